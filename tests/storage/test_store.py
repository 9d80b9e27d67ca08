"""What a store promises, of a folder and of S3 alike."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import pickle
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from bricks_core.errors import AlteredObject, NoSuchObject, SpecError, StoreDenied
from bricks_core.storage.places import open_existing, open_store
from bricks_core.storage.store import MAX_KEY_BYTES, Store, check_key

MIB = 1 << 20
QUICK = settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])

LETTERS = st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/\ufffe\uffff")
PARTS = st.text(LETTERS, min_size=1, max_size=12).filter(lambda part: not part.startswith("."))
KEYS = st.lists(PARTS, min_size=1, max_size=4).map("/".join)
CONTENTS = st.binary(max_size=200)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def keys(store: Store, prefix: str = "") -> list[str]:
    return [entry.key for entry in store.list(prefix)]


@QUICK
@given(key=KEYS, content=CONTENTS)
def test_what_was_put_is_got_under_any_key(store: Store, key: str, content: bytes) -> None:
    assume(len(key.encode()) < 900)
    assert store.put(key, content)
    assert store.get(key) == content
    entry = store.head(key)
    assert entry is not None
    assert (entry.key, entry.size_bytes) == (key, len(content))
    assert entry in list(store.list(key))
    assert store.sha256(key) == sha256(content)
    with store.local(key, sha256=sha256(content)) as path:
        assert path.read_bytes() == content
    assert store.delete([key]) == 1
    assert store.head(key) is None


def test_a_store_behaves_like_a_dictionary(place: str) -> None:
    """Any sequence of operations, compared with a dict after every step."""
    # Few letters around the slash in sorting order, so that keys begin with each other; no key is another's folder.
    some_key = st.sampled_from(
        ["a/b", "a-b", "a.b", "a0", "a/b.c/d", "a/b-c", "ä/ü", "a b/c d", "A/b", "a+b/%20", "z/🧱"]
    )
    some_prefix = st.sampled_from(["", "a", "a/", "a/b", "a/b.c/", "ä", "none", "a b", "A/"])

    class LikeADictionary(RuleBasedStateMachine):
        @initialize()
        def begin(self) -> None:
            self.store = open_store(place)
            self.store.delete(keys(self.store))
            self.model: dict[str, bytes] = {}

        @rule(key=some_key, content=CONTENTS)
        def put(self, key: str, content: bytes) -> None:
            assert self.store.put(key, content) is True
            self.model[key] = content

        @rule(key=some_key, content=CONTENTS)
        def put_if_absent(self, key: str, content: bytes) -> None:
            assert self.store.put(key, content, if_absent=True) is (key not in self.model)
            self.model.setdefault(key, content)

        @rule(some=st.lists(some_key, max_size=3))
        def delete(self, some: list[str]) -> None:
            assert self.store.delete(some) == len(some)
            for key in some:
                self.model.pop(key, None)

        @rule(key=some_key)
        def get(self, key: str) -> None:
            if key in self.model:
                assert self.store.get(key) == self.model[key]
            else:
                with pytest.raises(NoSuchObject, match="is not in the store"):
                    self.store.get(key)

        @rule(prefix=some_prefix)
        def list_a_prefix(self, prefix: str) -> None:
            assert keys(self.store, prefix) == sorted(key for key in self.model if key.startswith(prefix))

        @invariant()
        def everything_is_listed(self) -> None:
            if hasattr(self, "model"):
                listed = [(entry.key, entry.size_bytes) for entry in self.store.list()]
                assert listed == [(key, len(content)) for key, content in sorted(self.model.items())]

    quick = settings(QUICK, max_examples=6, stateful_step_count=12, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(LikeADictionary, settings=quick)


def test_nothing_is_there_before_the_first_put(store: Store) -> None:
    assert keys(store) == []
    assert store.head("a") is None
    for read in (store.get, store.sha256, lambda key: store.local(key).__enter__()):
        with pytest.raises(NoSuchObject) as caught:
            read("a/b")
        assert caught.value.key == "a/b"


NO_KEYS = ["", "/a", "a/", "a//b", "../a", "a/../b", "./a", ".a", "a/.b", "a\nb", "a\x7f", "a\0", "a\udc80"]
TOO_LONG = ["x" * 256, "/".join(["x" * 200] * 6)]


@pytest.mark.parametrize("key", NO_KEYS + TOO_LONG)
def test_what_is_no_key_is_refused_before_anything_is_touched(store: Store, key: str) -> None:
    for use in (store.get, store.head, store.sha256, lambda key: store.put(key, b""), lambda key: store.delete([key])):
        with pytest.raises(SpecError, match="is no key for a store"):
            use(key)
    assert keys(store) == []


def test_the_longest_key_is_kept(store: Store) -> None:
    prefix_bytes = 64  # on S3 the store's own prefix counts
    key = "/".join(["x" * 200] * 4) + "/" + "y" * (MAX_KEY_BYTES - prefix_bytes - 4 * 201)
    store.put(check_key(key), b"long")
    assert keys(store) == [key]


def test_the_first_writer_wins_and_the_second_changes_nothing(store: Store) -> None:
    assert store.put("manifest.json", b"first", if_absent=True) is True
    assert store.put("manifest.json", b"second", if_absent=True) is False
    assert store.get("manifest.json") == b"first"
    assert keys(store) == ["manifest.json"]


def test_of_sixteen_writers_at_once_exactly_one_wins(place: str, all_at_once: Callable[..., list[Any]]) -> None:
    num_rounds = 5 if place.startswith("s3://") else 40
    together = multiprocessing.get_context("fork").Barrier(16)

    def write(index: int) -> list[bool]:
        mine, won = open_store(place), []
        mine.head("connected")
        for lap in range(num_rounds):
            together.wait()
            won.append(mine.put(f"race/{lap}", b"%d" % index * 1000, if_absent=True))
        return won

    results = all_at_once(16, write)
    store = open_store(place)
    for lap in range(num_rounds):
        winners = [index for index, won in enumerate(results) if won[lap]]
        assert len(winners) == 1, results
        assert store.get(f"race/{lap}") == b"%d" % winners[0] * 1000
    assert keys(store) == sorted(f"race/{lap}" for lap in range(num_rounds))


def test_of_sixteen_threads_with_one_store_exactly_one_wins(store: Store) -> None:
    together = threading.Barrier(16)

    def write(index: int) -> bool:
        together.wait()
        return store.put("race", b"%d" % index, if_absent=True)

    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(write, range(16)))
    assert won.count(True) == 1
    assert store.get("race") == b"%d" % won.index(True)


def test_a_reader_never_sees_half_an_object(store: Store) -> None:
    size_bytes = 2 * MIB
    store.put("film", b"0" * size_bytes)
    stop = threading.Event()

    def write() -> None:
        for digit in range(1, 9):
            store.put("film", b"%d" % digit * size_bytes)
        stop.set()

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        seen = [store.get("film")]
        while not stop.is_set() and not writing.done():
            seen.append(store.get("film"))
        writing.result()
    assert {len(content) for content in seen} == {size_bytes}
    assert all(content == content[:1] * size_bytes for content in seen)


def test_more_keys_than_one_answer_of_s3_holds_are_listed_and_deleted(store: Store) -> None:
    wanted = [f"parts/{index:05}.json" for index in range(1050)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: store.put(key, b"{}"), wanted))
    assert keys(store, "parts/") == wanted
    assert store.delete(keys(store)) == len(wanted)
    assert keys(store) == []


def test_a_key_written_again_has_another_etag_and_one_left_alone_has_not(store: Store) -> None:
    store.put("a", b"same size")
    store.put("b", b"same size")
    before = list(store.list())
    store.put("a", b"SAME SIZE")
    after = list(store.list())
    assert before[0].etag != after[0].etag
    assert before[1] == after[1] == store.head("b")


def test_the_hash_is_of_the_content_now(store: Store) -> None:
    for content in (b"one", b"two", b"six"):  # one size, at once one after the other
        store.put("a", content)
        assert store.sha256("a") == sha256(content)
        assert store.sha256("a") == sha256(content)


def test_what_a_listing_knows_of_a_content_is_true(store: Store) -> None:
    store.put("a", b"one")
    assert [store.known_sha256(entry) for entry in store.list()] == [sha256(b"one")]


def test_when_an_object_was_written_is_told_by_the_server_s_clock(store: Store) -> None:
    before = time.time()
    store.put("a", b"one")
    (listed,) = store.list()
    after = time.time()
    assert before - 2 <= listed.modified_s <= after + 2  # S3 tells whole seconds
    assert store.head("a") == listed


def test_many_objects_are_got_in_the_order_asked_with_none_for_what_is_not_there(store: Store) -> None:
    there = {f"items/{index:03}.json": b"%d" % index for index in range(0, 150, 2)}
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda each: store.put(*each), there.items()))
    asked = [f"items/{index:03}.json" for index in range(149, -1, -1)]
    asked += asked[:3]  # asked twice, answered twice
    assert list(store.get_many(asked, num_at_once=4)) == [(key, there.get(key)) for key in asked]
    entries = {entry.key: entry for entry in store.list()}
    assert list(store.heads(asked)) == [(key, entries.get(key)) for key in asked]
    assert list(store.get_many([])) == list(store.heads(iter([]))) == []
    assert list(store.get_many(["items/000.json"])) == [("items/000.json", b"0")]


def test_many_contents_are_asked_for_little_by_little(store: Store) -> None:
    num_asked = 0

    def asked() -> Iterator[str]:
        nonlocal num_asked
        while True:
            num_asked += 1
            yield f"{num_asked}"

    for index, _ in enumerate(store.get_many(asked(), num_at_once=2)):
        assert num_asked - index <= 5
        if index == 20:
            break


def test_an_error_of_one_of_many_is_raised_in_its_turn(store: Store) -> None:
    store.put("a", b"here")
    answers = store.get_many(["a", "b", ".no key", "a"])
    assert [next(answers), next(answers)] == [("a", b"here"), ("b", None)]
    with pytest.raises(SpecError, match="is no key for a store"):
        next(answers)


@pytest.mark.parametrize("size_bytes", [0, 1, MIB, 16 * MIB, 16 * MIB + 1, 40 * MIB])
def test_a_file_is_put_whole_and_its_hash_is_told(store: Store, tmp_path: Path, size_bytes: int) -> None:
    content = (bytes(range(251)) * (size_bytes // 251 + 1))[:size_bytes]
    (tmp_path / "film.mp4").write_bytes(content)
    stored = store.put_file("videos/film.mp4", tmp_path / "film.mp4")
    assert (stored.key, stored.size_bytes, stored.sha256) == ("videos/film.mp4", size_bytes, sha256(content))
    assert store.get("videos/film.mp4") == content
    with store.local("videos/film.mp4", sha256=stored.sha256) as path:
        assert path.suffix == ".mp4"
        assert path.stat().st_size == size_bytes


def test_a_large_file_passes_through_little_memory(
    place: str, tmp_path: Path, all_at_once: Callable[..., list[Any]]
) -> None:
    size_bytes = 200 * MIB
    with (tmp_path / "large").open("wb") as file:
        file.truncate(size_bytes)

    def peak_growth_mib(_: int) -> float:
        store = open_store(place)
        store.put("warm", b"")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        store.put_file("large", tmp_path / "large")
        with store.local("large", sha256=store.sha256("large")) as path:
            assert path.stat().st_size == size_bytes
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024

    (growth_mib,) = all_at_once(1, peak_growth_mib)
    open_store(place).delete(["large"])
    assert growth_mib < 160


def test_a_missing_file_to_put_is_named(store: Store, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"nowhere\.mp4") as caught:
        store.put_file("a", tmp_path / "nowhere.mp4")
    assert caught.value.exit_code == 78  # type: ignore[attr-defined]
    assert keys(store) == []


def test_altered_content_is_noticed_and_named(store: Store) -> None:
    store.put("clips/a.mp4", b"genuine")
    genuine = store.sha256("clips/a.mp4")
    store.put("clips/a.mp4", b"altered")
    with pytest.raises(AlteredObject, match=r"clips/a\.mp4") as caught, store.local("clips/a.mp4", sha256=genuine):
        pytest.fail("it was handed out")
    assert caught.value.key == "clips/a.mp4"


def test_what_was_lent_is_given_back(place: str) -> None:
    store = open_store(place)
    store.put("a.bin", b"lent")
    with store.local("a.bin") as path:
        lent = path
        assert path.read_bytes() == b"lent"
    assert lent.exists() is not place.startswith("s3://")  # a folder lends the object itself
    assert store.get("a.bin") == b"lent"


def test_two_stores_side_by_side_do_not_see_each_other(place: str) -> None:
    outer = open_store(place)
    outer.put("inner/a", b"")
    outer.put("inner-b", b"")
    assert keys(open_store(f"{place}/inner")) == ["a"]


def test_a_store_sent_to_another_process_opens_the_same_place(store: Store) -> None:
    store.put("a", b"here")
    twin = pickle.loads(pickle.dumps(store))
    assert (twin.uri, twin.get("a")) == (store.uri, b"here")


def test_a_store_survives_a_fork(store: Store, all_at_once: Callable[..., list[Any]]) -> None:
    store.put("a", b"before")
    assert all_at_once(4, lambda index: (store.get("a"), store.put(f"b{index}", b""))) == [(b"before", True)] * 4
    assert keys(store) == ["a", "b0", "b1", "b2", "b3"]


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("", "no place"),
        ("gs://bucket/x", "no place known here"),
        ("https://user:secret@host/x", "no place known here"),
        ("s3://", "names no bucket"),
        ("s3:///prefix", "names no bucket"),
        ("s3://key:secret@bucket/x", "must not hold keys"),
        ("s3://bucket/a//b", "is no key"),
        ("s3://bucket/../b", "is no key"),
        ("file://otherhost/x", "no place known here"),
        ("file://", "no place known here"),
    ],
)
def test_what_is_no_place_is_refused_in_one_sentence(uri: str, why: str) -> None:
    with pytest.raises(SpecError, match=why) as caught:
        open_store(uri)
    assert "secret" not in str(caught.value)


def test_whoever_would_only_look_is_told_that_nothing_is_there(tmp_path: Path) -> None:
    place = tmp_path / "store"
    for uri in (str(place), f"file://{place}", f"{place}/deeper"):
        with pytest.raises(StoreDenied, match=r"There is no store .*store.*--store.*bricks run FILE"):
            open_existing(uri)
    assert not place.exists()
    place.write_text("a file", encoding="utf-8")
    with pytest.raises(SpecError, match="is a file"):
        open_existing(str(place))


def test_an_empty_place_is_a_store_and_one_with_other_files_alone_is_none(place: str) -> None:
    store = open_store(place)
    store.put("runs/tiny/run.json", b"")
    store.delete(["runs/tiny/run.json"])
    assert keys(open_existing(place)) == []
    store.put("photos/beach.jpg", b"")
    with pytest.raises(StoreDenied, match=r"No run has been in .*items/.*such as photos/beach\.jpg"):
        open_existing(place)
    store.put("claims/run/tiny-000001.json", b"")  # a run that begins
    assert keys(open_existing(place)) == ["claims/run/tiny-000001.json", "photos/beach.jpg"]


def test_a_folder_may_be_written_as_a_url(tmp_path: Path) -> None:
    open_store(str(tmp_path / "my store")).put("a", b"here")
    assert open_store(f"file://{tmp_path}/my%20store").get("a") == b"here"


def test_boto3_is_only_imported_for_s3(tmp_path: Path) -> None:
    program = (
        "import sys; from bricks_core.storage.places import open_store, list_source;"
        "s = open_store(sys.argv[1]); s.put('a', b''); list(s.list()); list(list_source(sys.argv[1]));"
        "heavy = {'boto3', 'botocore', 'torch', 'numpy', 'pyarrow'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "store")], check=True, env=os.environ)


def test_what_is_no_object_of_ours_is_not_listed(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.put("a/b", b"")
    (tmp_path / "a" / ".hidden").touch()
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").touch()
    (tmp_path / "line\nbreak").touch()
    Path(os.fsdecode(bytes(tmp_path) + b"/not-utf8-\xff")).touch()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing")
    (tmp_path / "ring").symlink_to(tmp_path)
    (tmp_path / "linked").symlink_to(tmp_path / "a")
    assert keys(store) == ["a/b", "linked/b"]


def test_a_deleted_artifact_leaves_no_empty_folders(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.put("artifacts/clip/1/parts/a.json", b"")
    store.put("artifacts/clip/2/a.json", b"")
    store.delete(["artifacts/clip/1/parts/a.json"])
    assert [each.name for each in (tmp_path / "artifacts" / "clip").iterdir()] == ["2"]


def test_putting_and_deleting_beside_each_other_lose_nothing(tmp_path: Path) -> None:
    """A `put` makes the folders which a `delete` beside it removes when they are empty."""
    store = open_store(str(tmp_path / "store"))

    def write(worker: int) -> None:
        for lap in range(40):
            store.put(f"a/b/{worker}", b"%d" % lap)
            assert store.get(f"a/b/{worker}") == b"%d" % lap
            store.delete([f"a/b/{worker}"])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert keys(store) == []
