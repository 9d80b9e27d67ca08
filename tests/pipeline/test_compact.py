"""bricks store compact: many small packs become a few large ones, and nothing that was there is lost or made again."""

import itertools
import shutil
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bricks_core.errors import AlteredObject, DataError, TryLater
from bricks_core.models.text_encoder import HashedWords
from bricks_core.models.vae import PatchDct
from bricks_core.pipeline import compact as module
from bricks_core.pipeline.compact import BATCH, compact
from bricks_core.pipeline.garbage import DAY_S, collect
from bricks_core.pipeline.local import run_path
from bricks_core.pipeline.plan import make_plan
from bricks_core.pipeline.points import read_pointer
from bricks_core.pipeline.screen import compact_screen
from bricks_core.spec.items import Item, ItemKey
from bricks_core.spec.latents import Latent
from bricks_core.spec.manifest import StoredObject
from bricks_core.storage.artifacts import MANIFEST, open_artifact, problems
from bricks_core.storage.claims import Claims
from bricks_core.storage.places import open_store
from bricks_core.storage.shards import ALIGNMENT_BYTES, HEADING, Packs
from bricks_core.video.write import write_mp4
from tests.drawn_shots import HEIGHT, WIDTH, shot
from tests.journey.tiny_run import TINY
from tests.s3_server import BUCKET, S3Server

LATENTS = {"resolutions": ["48x80", "24x40"]}
EVERY_CLIP = {"min_motion": 0, "max_near_duplicate_distance": None, "max_plain_share": 1.0}
FILMS = {"one.mp4": (1, 2), "two.mp4": (3,), "three.mp4": (4,), "four.mp4": (5,)}
SHAPES = 5
"""Clips and images at two sizes, and texts: as many packs are left as there are shapes."""


class User:
    """Somebody with films, a run of them, and a store in which each film more has left packs of its own."""

    def __init__(self, folder, run_of):
        self.folder, self._run_of = folder, run_of
        self.films = folder / "films"
        self.store = open_store(str(folder / "store"))

    def run(self, name="films", until="latents", **spec):
        sections = {"score": {"filter": EVERY_CLIP}, "latents": LATENTS} | spec
        return self._run_of(self.films, name, **sections), until

    def go(self, name="films", until="latents", **spec):
        run, until = self.run(name, until, **spec)
        return run_path(run, self.store, until)

    def add(self, name):
        still = [np.full((20, HEIGHT, WIDTH, 3), 20, np.uint8)]
        write_mp4(self.films / name, np.concatenate([shot(seed) for seed in FILMS[name]] + still), 12, crf=24)

    def artifact(self, run="films"):
        return open_artifact(self.store, "latents", read_pointer(self.store, run, "latents").digest)

    def content(self, run="films"):
        """All that a training reads, wherever it lies."""
        return content(self.artifact(run))

    def packs(self, run="films"):
        return {row.object for row in self.artifact(run).item_rows()}

    def path(self, key):
        return self.folder / "store" / key


def content(artifact):
    places = {name for name in Latent.model_fields if "offset" in name or name.endswith("pack")}

    def located(key):
        with artifact.local(key) as path:
            return path

    packs = Packs(located)
    return [
        (
            row.model_dump(exclude=places),
            packs.window(row, 0, row.num_frames).tobytes(),
            packs.text(row).tobytes(),
            packs.empty_text(row).tobytes(),
        )
        for row in artifact.rows("latents", Latent)
    ]


@pytest.fixture(scope="module")
def grown(tmp_path_factory, run_of):
    """Three films came, one after the other. Not to be changed."""
    user = User(tmp_path_factory.mktemp("grown"), run_of)
    user.films.mkdir()
    for name in ("one.mp4", "two.mp4", "three.mp4"):
        user.add(name)
        user.go()
    assert len(user.packs()) > 2 * SHAPES
    return user


@pytest.fixture
def user(grown, run_of, tmp_path):
    shutil.copytree(grown.folder, tmp_path / "user")
    # The films keep their times and their place: a source elsewhere would be looked at again.
    user = User(tmp_path / "user", run_of)
    user.films = grown.films
    return user


@pytest.fixture
def encoded(monkeypatch):
    """Counts what goes through the encoders."""
    found, pixels, words = Counter(), PatchDct.encode, HashedWords.encode

    def encode(codec, frames):
        found["frames"] += len(frames)
        return pixels(codec, frames)

    def encode_words(encoder, texts):
        found["texts"] += len(texts)
        return words(encoder, texts)

    monkeypatch.setattr(PatchDct, "encode", encode)
    monkeypatch.setattr(HashedWords, "encode", encode_words)
    return found


def objects(store):
    return {entry.key: entry.etag for entry in store.list()}


def later():
    return time.time() + 15 * DAY_S


def sweep(store):
    return collect(store, delete=True, now=later)


def damage(path):
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def test_training_reads_the_same_bytes_from_fewer_packs_and_nothing_is_encoded(user, encoded):
    before, manifest, packs = user.content(), user.artifact().manifest, user.packs()
    done = compact(user.store, "films")
    assert (done.num_before, done.num_after) == (len(packs), SHAPES) == (len(packs), len(user.packs()))
    assert user.content() == before
    assert encoded == Counter()
    after = user.artifact().manifest
    changed = {name for name, value in after if value != getattr(manifest, name)}
    assert changed == {"tables", "objects", "records", "num_item_objects", "item_bytes"}
    assert (after.num_item_objects, after.num_items) == (SHAPES, manifest.num_items)
    assert problems(user.store, after, items=True, thorough=True) == []
    assert packs <= objects(user.store).keys(), "who reads the old ones goes on"
    assert list(user.store.list("claims/")) == []


def test_every_record_leads_where_the_index_does_and_says_what_it_said(user):
    def records():
        keys = [ItemKey(row.kind, row.key) for row in user.artifact().item_rows()]
        return {key: Item.opened(user.store.get(key.record), key) for key in keys}

    before = records()
    compact(user.store, "films")
    after, index = records(), {(row.kind, row.key): row.object for row in user.artifact().item_rows()}
    assert {tuple(key): item.objects[0].key for key, item in after.items()} == index
    for key, item in after.items():
        was = before[key].model_dump()
        was["objects"], was["answer"]["offset_bytes"] = [item.objects[0].model_dump()], item.answer["offset_bytes"]
        assert item.model_dump() == was


def test_who_comes_again_finds_nothing_to_do_and_writes_nothing(user, capsys):
    compact_screen(compact(user.store, "films"), dry_run=False)
    assert f"→ {SHAPES}, " in capsys.readouterr().out
    before = objects(user.store)
    done = compact(user.store, "films")
    assert not done.is_changed
    assert objects(user.store) == before
    compact_screen(done, dry_run=False)
    assert f"Nothing to compact: {done.prefix} leads to {SHAPES} packs" in capsys.readouterr().out


def test_a_dry_run_says_the_same_and_writes_nothing(user, capsys):
    before = objects(user.store)
    said = compact(user.store, "films", dry_run=True)
    compact_screen(said, dry_run=True)
    assert "would be copied, nothing encoded" in capsys.readouterr().out
    assert objects(user.store) == before
    assert compact(user.store, "films") == said


def test_full_packs_stay_where_they_are(user):
    sizes = {row.object: row.size_bytes for row in user.artifact().item_rows()}
    run, _ = user.run(latents=LATENTS | {"pack_bytes": 1 << 16})
    run_path(run, user.store, "latents")
    large = {pack for pack, size in sizes.items() if 2 * size >= 1 << 16}
    assert 0 < len(large) < len(sizes)
    compact(user.store, "films")
    assert large <= user.packs()
    made = {row.object: row.size_bytes for row in user.artifact().item_rows() if row.object not in sizes}
    assert made
    assert max(made.values()) <= 1 << 16


def test_one_clip_more_is_encoded_alone_and_compacted_again(user, encoded, tmp_path):
    compact(user.store, "films")
    packs, before = user.packs(), user.artifact()
    user.films = shutil.copytree(user.films, tmp_path / "films")
    user.add("four.mp4")
    user.go()
    there = {row.item for row in before.rows("latents", Latent)}
    new = {row.item: row.num_frames for row in user.artifact().rows("latents", Latent) if row.item not in there}
    assert encoded["frames"] == sum(new.values()) > 0
    assert encoded["texts"] <= 2
    assert packs < user.packs()
    after = user.content()
    assert compact(user.store, "films").num_after == SHAPES
    assert user.content() == after


@pytest.mark.slow
def test_train_and_evaluate_are_found_done(user, encoded, monkeypatch):
    sections = {name: TINY["spec"][name] for name in ("train", "evaluate", "tracking")}
    user.go(until="evaluate", **sections)
    encoded.clear()
    compact(user.store, "films")
    run, _ = user.run(**sections)
    assert [step.state for step in make_plan(run, user.store, thorough=True)] == ["cached"] * 7
    sweep(user.store)
    before = objects(user.store)
    user.go(until="evaluate", **sections)
    assert objects(user.store) == before
    assert encoded == Counter()


def test_gc_takes_the_old_packs_when_nobody_may_read_them_any_more_and_all_still_loads(user, encoded):
    before, old = user.content(), user.packs()
    began = user.artifact()
    compact(user.store, "films")
    collect(user.store, delete=True)
    assert content(began) == before, "a training that is under way goes on"
    sweep(user.store)
    assert not old & objects(user.store).keys()
    assert user.content() == before
    assert len(list(user.store.list(user.artifact().prefix))) == 4
    user.go()
    assert encoded == Counter()
    assert not compact(user.store, "films").is_changed
    assert sweep(user.store).size_bytes == 0


def test_packs_that_another_run_leads_to_stay_readable_and_its_index_follows_when_asked(user, encoded):
    user.go("other", score={"filter": EVERY_CLIP, "held_out_share": 0.5})
    encoded.clear()
    assert read_pointer(user.store, "other", "latents").digest != read_pointer(user.store, "films", "latents").digest
    before, old = user.content("other"), user.packs("other")
    compact(user.store, "films")
    sweep(user.store)
    assert old <= objects(user.store).keys()
    assert user.content("other") == before
    done = compact(user.store, "other")
    assert (done.copied_bytes, done.num_after, done.is_changed) == (0, SHAPES, True)
    sweep(user.store)
    assert not old & objects(user.store).keys()
    assert user.content("other") == before
    user.go("third", latents=LATENTS | {"resolutions": ["24x40"]})
    assert encoded == Counter()


def test_packs_that_only_records_lead_to_stay_as_long_as_an_index_has_their_items(user, encoded):
    user.go("other", score={"filter": EVERY_CLIP, "held_out_share": 0.5})
    compact(user.store, "films")
    user.store.delete([entry.key for entry in user.store.list("runs/films/")])
    sweep(user.store)
    encoded.clear()
    user.go("third", latents=LATENTS | {"resolutions": ["24x40"]})
    assert encoded == Counter()
    assert problems(user.store, user.artifact("third").manifest, items=True) == []


class Killed(BaseException):
    """As SIGKILL: nobody catches it."""


@pytest.mark.slow
def test_a_kill_before_any_write_leaves_all_readable_and_whoever_comes_next_ends_it(grown, run_of, tmp_path):
    expected = grown.content()
    for survived in itertools.count():
        folder = tmp_path / str(survived)
        shutil.copytree(grown.folder, folder)
        user = User(folder, run_of)
        dying = open_store(str(folder / "store"))
        left = [survived]

        def until_killed(write, left=left):
            def written(key, *arguments, **settings):
                if not key.startswith("claims/"):
                    if left[0] <= 0:
                        raise Killed
                    left[0] -= 1
                return write(key, *arguments, **settings)

            return written

        dying.put, dying.put_file = until_killed(dying.put), until_killed(dying.put_file)
        try:
            compact(dying, "films")
            break
        except Killed:
            pass
        assert user.content() == expected, survived
        assert problems(user.store, user.artifact().manifest, items=True) == []
        if survived % 3 == 0:
            sweep(user.store)
            assert user.content() == expected, survived
        compact(user.store, "films")
        assert user.content() == expected, survived
        assert not compact(user.store, "films").is_changed
        sweep(user.store)
        assert user.content() == expected, survived
        assert problems(user.store, user.artifact().manifest, items=True, thorough=True) == []
        shutil.rmtree(folder)
    assert survived > 20


def test_a_damaged_old_pack_is_named_not_copied_and_compacted_once_it_is_mended(user, encoded):
    before = user.content()
    pack = next(row.pack for row in user.artifact().rows("latents", Latent) if row.kind == "video")
    lost = {row.item: row.num_frames for row in user.artifact().rows("latents", Latent) if row.pack == pack}
    damage(user.path(pack))
    with pytest.raises(AlteredObject, match=f"{pack} is damaged, and is not copied: bricks run of films mends it"):
        compact(user.store, "films")
    user.go()
    assert encoded["frames"] == sum(lost.values())
    assert compact(user.store, "films").num_after == SHAPES
    assert user.content() == before
    assert problems(user.store, user.artifact().manifest, items=True, thorough=True) == []


def test_a_damaged_new_pack_is_made_anew_alone(user, encoded):
    before = user.content()
    compact(user.store, "films")
    pack = next(row.pack for row in user.artifact().rows("latents", Latent) if row.kind == "video")
    lost = {row.item: row.num_frames for row in user.artifact().rows("latents", Latent) if row.pack == pack}
    damage(user.path(pack))
    user.go()
    assert encoded == {"frames": sum(lost.values())}
    assert user.content() == before
    sweep(user.store)
    assert user.content() == before
    assert not compact(user.store, "films").is_changed


def test_an_old_pack_that_is_damaged_once_its_bytes_lie_elsewhere_costs_tables_alone(user, encoded):
    user.go("other", score={"filter": EVERY_CLIP, "held_out_share": 0.5})
    compact(user.store, "films")
    before, old = user.content("other"), user.packs("other")
    encoded.clear()
    damage(user.path(min(old)))
    user.go("other", score={"filter": EVERY_CLIP, "held_out_share": 0.5})
    assert encoded == Counter()
    assert user.content("other") == before
    assert not old & user.packs("other")


def test_a_record_that_is_gone_or_leads_to_a_damaged_pack_counts_as_the_index_has_it(user, encoded):
    before = user.content()
    first, second = itertools.islice((ItemKey(row.kind, row.key) for row in user.artifact().item_rows()), 2)
    user.store.delete([first.record])
    item = Item.opened(user.store.get(second.record), second)
    away = [StoredObject(key="items/pack/00/away.bin", size_bytes=1, sha256="0" * 64)]
    user.store.put(second.record, item.model_copy(update={"objects": away}).sealed())
    compact(user.store, "films")
    assert user.content() == before
    assert len(user.packs()) == SHAPES
    for key in (first, second):
        assert Item.opened(user.store.get(key.record), key).objects[0].key in user.packs()


def test_one_at_a_time(user):
    with Claims(user.store, "somebody else") as claims:
        assert claims.take(BATCH) is None
        with pytest.raises(TryLater, match=r"compacted already, by somebody else .*call it again"):
            compact(user.store, "films")


def test_an_artifact_that_is_made_anew_meanwhile_is_left_to_whoever_does_it(user, monkeypatch):
    manifest = user.artifact().prefix + MANIFEST
    join = module.into_one

    def reopened(store, *arguments):
        places = join(store, *arguments)
        store.delete([manifest])
        return places

    monkeypatch.setattr(module, "into_one", reopened)
    before = user.content()
    with pytest.raises(TryLater, match="made anew meanwhile"):
        compact(user.store, "films")
    assert user.store.head(manifest) is None
    user.go()
    assert user.content() == before


def test_a_run_without_latents_is_named_with_the_nearest(user):
    with pytest.raises(DataError, match=r"has no run filme with finished latents \(did you mean \"films\"\?\)"):
        compact(user.store, "filme")
    user.go("short", until="score")
    with pytest.raises(DataError, match=r"has no run short with finished latents\."):
        compact(user.store, "short")


def test_a_store_in_s3_is_compacted_too(user, tmp_path, monkeypatch):
    before = user.content()
    server = S3Server()
    server.start()
    try:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        there = open_store(f"s3://{BUCKET}/compacted")
        for entry in user.store.list():
            there.put_file(entry.key, user.path(entry.key))
        user.store = there
        assert compact(there, "films").num_after == SHAPES == len(user.packs())
        digest = read_pointer(there, "films", "latents").digest
        for entry in there.list():
            place = tmp_path / "back" / entry.key
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(there.get(entry.key))
    finally:
        server.kill()
    assert content(open_artifact(open_store(str(tmp_path / "back")), "latents", digest)) == before


def piece(number, num_bytes):
    pack = StoredObject(key=f"items/pack/00/{number:04d}.bin", size_bytes=num_bytes, sha256="0" * 64)
    place = module.Place(pack.key, len(HEADING), num_bytes)
    return module.Piece(pack, [(place, ItemKey("latent", f"{number:032x}"))])


@given(st.lists(st.integers(1, 30 * ALIGNMENT_BYTES), max_size=60), st.integers(61, 200))
def test_pieces_fill_packs_of_which_all_but_one_are_more_than_half_full(sizes, pack_units):
    pack_bytes = pack_units * ALIGNMENT_BYTES
    pieces = [piece(number, size) for number, size in enumerate(sizes)]
    filled = module._filled(pieces, pack_bytes)
    assert sorted(each.pack.key for pack in filled for each in pack) == [each.pack.key for each in pieces]
    taken = [len(HEADING) + sum(each.num_bytes for each in pack) for pack in filled]
    assert all(size <= pack_bytes for size in taken)
    assert sum(2 * size <= pack_bytes for size in taken) <= 1
