"""A stage's work: items, parts, shards and the commit; and what happens to an artifact that is damaged later."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bricks_core.errors import AlteredObject, CorruptManifest, DataError
from bricks_core.progress import Progress
from bricks_core.spec.clip import ClipSpec, Image, Shot
from bricks_core.spec.manifest import content_id
from bricks_core.spec.stages import STAGES
from bricks_core.storage.artifacts import Artifact, find_manifest, open_artifact, part_key, problems, reopen
from bricks_core.storage.work import Work

ITEMS = [f"{content_id('film', i)}" for i in range(7)]


class Film:
    def __init__(self, id: str):
        self.id = id


def work_on(store, **settings):
    return Work(store, STAGES["clip"], ClipSpec(), "d" * 32, {"ingest": "i" * 32}, {}, Progress("clip"), **settings)


def shot(item, place=0):
    return Shot(id=content_id(item, place), video_id=item, first_frame=place, end_frame=place + 20, state="clip")


def do(work: Work, item, folder: Path):
    file = folder / f"{item}-{work.shard}.jpg"
    file.write_text(f"picture of {item}")
    stored = work.put_file(f"images/{item}.jpg", file)
    work.done(item, {"shots": [shot(item, 0), shot(item, 20)]}, [stored])


def finish(store, folder, **settings):
    work = work_on(store, **settings)
    for film in work.todo([Film(item) for item in ITEMS]):
        do(work, film.id, folder)
    return work.commit({"shots": work.part_rows("shots", Shot), "clips": [], "images": []}, counts={"shots": 14})


def timeless(manifest):
    return manifest.model_dump(exclude={"started_at", "finished_at", "host"})


def test_a_committed_stage_can_be_read_back(store, tmp_path):
    manifest = finish(store, tmp_path)
    artifact = open_artifact(store, "clip", "d" * 32)
    assert timeless(artifact.manifest) == timeless(manifest)
    assert manifest.tables["shots"].num_rows == 14
    assert {row.video_id for row in artifact.rows("shots", Shot)} == set(ITEMS)
    assert list(artifact.rows("images", Image)) == []
    with artifact.local(f"images/{ITEMS[0]}.jpg") as file:
        assert file.read_text() == f"picture of {ITEMS[0]}"


def test_an_item_done_before_is_not_done_again(store, tmp_path):
    first = work_on(store)
    do(first, ITEMS[3], tmp_path)
    assert [film.id for film in work_on(store).todo([Film(item) for item in ITEMS])] == ITEMS[:3] + ITEMS[4:]


@pytest.mark.parametrize("num_shards", [1, 2, 3, 16])
def test_every_item_belongs_to_exactly_one_shard(store, num_shards):
    films = [Film(item) for item in ITEMS]
    shares = [
        [film.id for film in work_on(store, shard=shard, num_shards=num_shards).todo(films)]
        for shard in range(num_shards)
    ]
    assert sorted(item for share in shares for item in share) == sorted(ITEMS)


def test_shards_leave_the_same_artifact_as_one_process(store, tmp_path):
    whole = finish(store, tmp_path)
    reopen(store, "clip", "d" * 32, [entry.key for entry in store.list(f"artifacts/clip/{'d' * 32}/images/")])
    assert find_manifest(store, "clip", "d" * 32) is None
    for shard in (2, 0, 1):
        work = work_on(store, shard=shard, num_shards=3)
        for film in work.todo([Film(item) for item in ITEMS]):
            do(work, film.id, tmp_path)
    assert work_on(store).missing(ITEMS) == []
    assert timeless(finish(store, tmp_path)) == timeless(whole)


def test_what_is_missing_is_known_before_the_commit(store, tmp_path):
    do(work_on(store), ITEMS[0], tmp_path)
    assert work_on(store).missing(ITEMS) == ITEMS[1:]


def test_processes_that_race_to_the_same_artifact_are_all_right(store, tmp_path):
    folders = [tmp_path / str(number) for number in range(8)]
    for folder in folders:
        folder.mkdir()
    with ThreadPoolExecutor(8) as pool:
        manifests = list(pool.map(lambda folder: finish(store, folder), folders))
    assert len({manifest.finished_at for manifest in manifests}) == 1
    assert problems(store, manifests[0], thorough=True) == []


def test_an_unfinished_stage_cannot_be_read(store, tmp_path):
    do(work_on(store), ITEMS[0], tmp_path)
    with pytest.raises(DataError, match="clip is not finished"):
        open_artifact(store, "clip", "d" * 32)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"stage": "clip"}'])
def test_a_corrupt_manifest_is_named(store, tmp_path, text):
    finish(store, tmp_path)
    store.put(f"artifacts/clip/{'d' * 32}/manifest.json", text)
    with pytest.raises(CorruptManifest, match=r"manifest\.json is no manifest"):
        find_manifest(store, "clip", "d" * 32)


def test_a_manifest_in_the_wrong_place_is_named(store, tmp_path):
    finish(store, tmp_path)
    store.put(f"artifacts/clip/{'e' * 32}/manifest.json", store.get(f"artifacts/clip/{'d' * 32}/manifest.json"))
    with pytest.raises(CorruptManifest, match="wrong"):
        find_manifest(store, "clip", "e" * 32)


def test_a_missing_and_a_shortened_object_are_noticed_and_named(store, tmp_path):
    manifest = finish(store, tmp_path)
    keys = [f"artifacts/clip/{'d' * 32}/images/{item}.jpg" for item in ITEMS[:2]]
    store.delete(keys[:1])
    store.put(keys[1], b"short")
    assert {problem.key for problem in problems(store, manifest)} == set(keys)


def test_an_object_altered_without_changing_its_size_is_never_used(store, tmp_path):
    manifest = finish(store, tmp_path)
    key = f"artifacts/clip/{'d' * 32}/images/{ITEMS[0]}.jpg"
    store.put(key, store.get(key)[::-1])
    assert [problem.key for problem in problems(store, manifest, thorough=True)] == [key]
    artifact = Artifact(store, manifest)
    with pytest.raises(AlteredObject, match=ITEMS[0]), artifact.local(f"images/{ITEMS[0]}.jpg"):
        pass


def test_a_broken_artifact_is_rebuilt_item_by_item_and_is_then_the_same(store, tmp_path):
    whole = finish(store, tmp_path)
    key = f"artifacts/clip/{'d' * 32}/images/{ITEMS[2]}.jpg"
    store.put(key, b"altered")
    assert reopen(store, "clip", "d" * 32, [key]) == 1
    assert work_on(store).missing(ITEMS) == [ITEMS[2]]
    assert timeless(finish(store, tmp_path)) == timeless(whole)


def test_a_broken_table_costs_no_item(store, tmp_path):
    whole = finish(store, tmp_path)
    key = f"artifacts/clip/{'d' * 32}/shots.parquet"
    store.put(key, b"altered")
    assert reopen(store, "clip", "d" * 32, [key]) == 0
    assert timeless(finish(store, tmp_path)) == timeless(whole)


def test_a_part_that_cannot_be_read_costs_its_item(store, tmp_path):
    whole = finish(store, tmp_path)
    store.put(part_key("clip", "d" * 32, ITEMS[5]), b"{")
    assert reopen(store, "clip", "d" * 32, []) == 1
    assert timeless(finish(store, tmp_path)) == timeless(whole)


def test_an_unknown_table_is_a_bug_that_shows_at_once(store):
    with pytest.raises(KeyError):
        work_on(store).done(ITEMS[0], {"shot": []})
