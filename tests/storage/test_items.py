"""Items: keys made of what changes an answer, and records that are found in bulk and read once."""

import contextlib
import json
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bricks_core.spec.items import KINDS, Item, ItemKey, recipe
from bricks_core.spec.manifest import Try
from bricks_core.storage import items as storage
from bricks_core.storage.items import Items, digest_of

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(made_of=st.dictionaries(st.sampled_from(["sha256", "span", "encoder", "of"]), JSON, max_size=4))
def test_a_key_depends_on_what_the_item_is_made_of_and_not_on_the_order_it_is_told_in(made_of):
    first, again = recipe("clip", **made_of), recipe("clip", **dict(reversed(made_of.items())))
    assert first.key == again.key
    assert len(first.key.key) == 32
    assert recipe("clip", **made_of, more=1).key != first.key
    assert recipe("shots", **made_of).key.key != first.key.key


def test_another_version_of_what_answers_is_another_key(monkeypatch):
    before = recipe("clip", sha256="a").key
    kind = KINDS["clip"]
    monkeypatch.setitem(KINDS, "clip", type(kind)(kind.name, kind.version + 1, kind.what))
    assert recipe("clip", sha256="a").key != before


@given(answer=st.dictionaries(st.text(max_size=6), JSON, max_size=4), place=st.integers(0, 10_000))
def test_a_record_is_read_as_it_was_written_and_an_altered_one_is_refused(answer, place):
    made = recipe("clip", sha256="a")
    item = Item(kind="clip", key=made.key.key, made_of=made.made_of, answer=answer)
    sealed = item.sealed()
    assert Item.opened(sealed, made.key) == item
    altered = bytearray(sealed)
    altered[place % len(altered)] ^= 1
    with contextlib.suppress(ValueError):
        assert Item.opened(bytes(altered), made.key) == item  # as a space that became another one
    with pytest.raises(ValueError, match="record"):
        Item.opened(sealed, ItemKey("clip", "f" * 32))


def put_some(store, num=5, kind="shots"):
    known = Items(store)
    return [known.put(recipe(kind, sha256=str(number)), {"number": number}).item_key for number in range(num)]


def test_what_was_put_is_found_by_others_and_what_was_not_is_not(store):
    keys = put_some(store)
    absent = recipe("shots", sha256="absent").key
    known = Items(store)
    assert known.load([*keys, absent]) == set(keys)
    assert [known.need(key).answer["number"] for key in keys] == list(range(5))
    assert known.get(absent) is None


def test_who_is_first_is_right(store):
    made = recipe("answer", prompt="?")
    first = Items(store).put(made, {"text": "first"}, by="one")
    second = Items(store).put(made, {"text": "second"}, by="another")
    assert (first.answer, second.answer, second.by) == ({"text": "first"}, {"text": "first"}, "one")


class Counting:
    """A store that counts what is asked of it."""

    def __init__(self, store):
        self._store, self.num = store, Counter()

    def __getattr__(self, name):
        def counted(*arguments, **settings):
            self.num[name] += 1
            return getattr(self._store, name)(*arguments, **settings)

        return counted

    def get_many(self, keys, **settings):
        keys = list(keys)
        self.num["get"] += len(keys)
        return self._store.get_many(keys, **settings)


def test_a_record_is_read_once_however_often_it_is_asked_for(store):
    keys = put_some(store, 5)
    counting = Counting(store)
    known = Items(counting)
    for _ in range(3):
        assert known.load(keys) == set(keys)
        assert all(known.get(key) for key in keys)
    assert counting.num["get"] == 5


def test_of_many_that_are_not_there_none_is_asked_for_one_by_one(store, monkeypatch):
    monkeypatch.setattr(storage, "FEW", 4)
    there = put_some(store, 3)
    absent = [recipe("shots", sha256=f"absent {number}").key for number in range(200)]
    counting = Counting(store)
    assert Items(counting).load([*there, *absent]) == set(there)
    assert counting.num["get"] == 3
    assert counting.num["list"] == 2


@pytest.mark.parametrize("num_kept_back", [1, 3, 100])
def test_what_is_put_is_at_hand_whether_or_not_it_is_on_disk_yet(store, monkeypatch, num_kept_back):
    monkeypatch.setattr(storage, "_AT_ONCE", num_kept_back)
    made = [recipe("shots", sha256=str(number)) for number in range(8)]
    counting = Counting(store)
    known = Items(counting)
    for number, each in enumerate(made):
        assert known.put(each, {"number": number}) == known.get(each.key)
    keys = [each.key for each in made]
    absent = recipe("shots", sha256="absent").key
    assert known.load([absent, *keys]) == set(keys)
    assert [json.loads(text)["answer"]["number"] for _, text in known.texts(keys)] == list(range(8))
    assert counting.num["get"] == 1  # that which is not there
    known.forget(keys[::2])
    assert known.load(keys) == set(keys[1::2])


def test_a_damaged_record_or_try_is_told_once_however_often_it_is_asked_for(store, caplog):
    keys = put_some(store)
    store.put(keys[0].record, b"{}")
    store.put(keys[0].attempt, b"{}")
    known = Items(store)
    for _ in range(3):
        assert known.load(keys) == set(keys[1:])
        assert known.get(keys[0]) is None
        assert known.tries(keys) == {}
    assert [each.split()[0] for each in caplog.messages] == [keys[0].record, keys[0].attempt]


def test_what_is_forgotten_is_made_again(store):
    keys = put_some(store, 3)
    known = Items(store)
    known.load(keys)
    known.forget(keys[:1])
    assert known.load(keys) == set(keys[1:])
    assert Items(store).load(keys) == set(keys[1:])


def test_a_try_is_no_answer_and_is_known_by_its_item(store):
    key = recipe("film", sha256="a").key
    Items(store).tried(Try(kind=key.kind, key=key.key, reason="too long", limits={"ingest.decode_timeout_s": 1}))
    known = Items(store)
    assert known.load([key]) == set()
    assert known.tries([key])[key].reason == "too long"
    store.put(key.attempt, json.dumps({"kind": "film"}).encode())
    assert Items(store).tries([key]) == {}


def test_a_file_of_an_item_is_named_by_its_content(store, tmp_path):
    key = recipe("clip", sha256="a").key
    stored = []
    for text in ("one", "two", "one"):
        (tmp_path / "clip.mp4").write_text(text, encoding="utf-8")
        stored.append(Items(store).put_file(key, tmp_path / "clip.mp4", ".mp4").key)
    assert stored[0] == stored[2] != stored[1]
    assert all(each.startswith(f"{key.place}.") and each.endswith(".mp4") for each in stored)


@given(lines=st.lists(st.text(st.characters(blacklist_characters="\n", codec="utf-8"), max_size=6), max_size=6))
def test_the_digest_of_lines_does_not_depend_on_their_order(lines):
    assert digest_of(lines) == digest_of(reversed(lines))
    assert digest_of([*lines, "one more"]) != digest_of(lines)


@pytest.mark.parametrize("there", [(), (1,), (2,), (3,), (1, 2), (1, 3), (2, 3), (1, 2, 3)], ids=str)
@pytest.mark.parametrize("kept", [(), (1,), (2,), (1, 2)], ids=str)
def test_the_oldest_item_of_the_versions_that_are_kept_answers_for_the_key_of_today(store, monkeypatch, there, kept):
    def at_version(number):
        monkeypatch.setitem(KINDS, "clip", replace(KINDS["clip"], version=number))
        return recipe("clip", sha256="a", span=[0, 24], encoder={"crf": 20.0, "of": [True, None]})

    keys = {number: at_version(number).key for number in there}
    for number in there:
        Items(store).put(at_version(number), {"version": number})
    store.put("items/clip/00/" + "0" * 32 + ".json", b"half a rec")
    today, items = at_version(3).key, Items(store)
    items.keep({"clip": kept} if kept else {})
    (first, *_) = [number for number in there if number in (*kept, 3)] or [None]
    assert items.load([today]) == ({today} if first else set())
    assert (items.get(today).answer if first else items.get(today)) == ({"version": first} if first else None)
    assert items.real(today) == (keys[first] if first else today)
    assert items.earlier(today) == ((keys[first], first) if first in kept else None)
    if first:
        assert Item.model_validate_json(dict(items.texts([items.real(today)]))[items.real(today)]).version == first
