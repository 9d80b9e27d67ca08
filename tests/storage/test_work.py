"""A stage's work: tasks, items, shards and the commit; and what happens to an artifact that is damaged later."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Barrier

import pytest

from bricks_core.errors import AlteredObject, CorruptManifest, DataError
from bricks_core.progress import Progress
from bricks_core.spec.clip import ClipSpec, Image, Shot
from bricks_core.spec.items import ItemKey, recipe
from bricks_core.spec.manifest import Try, content_id
from bricks_core.spec.stages import STAGES
from bricks_core.storage.artifacts import (
    RECORDS,
    Artifact,
    artifact_prefix,
    find_manifest,
    open_artifact,
    problems,
    reopen,
)
from bricks_core.storage.in_threads import in_threads
from bricks_core.storage.items import Items
from bricks_core.storage.work import Joined, Work

FILMS = [content_id("film", i) for i in range(7)]
PREFIX = artifact_prefix("clip", "d" * 32)


@dataclass(frozen=True)
class Film:
    id: str

    @property
    def keys(self) -> tuple[ItemKey, ...]:
        return (made_of(self.id).key,)


def made_of(film):
    return recipe("shots", sha256=film)


def work_on(store, **settings):
    return Work(store, STAGES["clip"], ClipSpec(), "d" * 32, {"ingest": "i" * 32}, {}, Progress("clip"), **settings)


def films():
    return [Film(film) for film in FILMS]


def do(work: Work, film: str, folder: Path):
    file = folder / f"{film}-{work.shard}.jpg"
    file.write_text(f"picture of {film}", encoding="utf-8")
    stored = work.items.put_file(made_of(film).key, file, ".jpg")
    work.items.put(made_of(film), {"shots": [0, 20]}, [stored])
    work.progress.advance()


def rows(work):
    for film in FILMS:
        for place in work.items.need(made_of(film).key).answer["shots"]:
            span = {"first_frame": place, "end_frame": place + 20}
            yield Shot(id=content_id(film, place), video_id=film, state="clip", **span)


def finish(store, folder, **settings):
    work = work_on(store, **settings)
    for film in work.todo(films()):
        do(work, film.id, folder)
    shots = sorted(rows(work), key=lambda row: row.id)
    keys = [film.keys[0] for film in films()]
    return work.commit(Joined({"shots": shots, "clips": [], "images": []}, keys, counts={"shots": 14}))


def picture(store, film):
    (stored,) = Items(store).need(made_of(film).key).objects
    return stored.key


def timeless(manifest):
    return manifest.model_dump(exclude={"started_at", "finished_at", "host", "records"})


def test_a_committed_stage_can_be_read_back(store, tmp_path):
    manifest = finish(store, tmp_path)
    artifact = open_artifact(store, "clip", "d" * 32)
    assert timeless(artifact.manifest) == timeless(manifest)
    assert manifest.tables["shots"].num_rows == 14
    assert (manifest.num_items, manifest.num_item_objects) == (7, 7)
    assert manifest.item_bytes == sum(len(f"picture of {film}") for film in FILMS)
    assert {row.video_id for row in artifact.rows("shots", Shot)} == set(FILMS)
    assert list(artifact.rows("images", Image)) == []
    with artifact.local(picture(store, FILMS[0])) as file:
        assert file.read_text(encoding="utf-8") == f"picture of {FILMS[0]}"


def test_a_task_done_before_is_not_done_again(store, tmp_path):
    do(work_on(store), FILMS[3], tmp_path)
    assert [film.id for film in work_on(store).todo(films())] == FILMS[:3] + FILMS[4:]


def test_two_tasks_that_leave_the_same_items_are_done_once(store, tmp_path):
    assert [film.id for film in work_on(store).todo(films() + films())] == FILMS


def test_two_processes_that_come_to_the_same_tasks_do_each_once(store, tmp_path):
    done, both_began = [], Barrier(2)

    def run_one(number):
        work = work_on(store)
        pending = work.todo(films())
        both_began.wait()  # both have found all of them pending

        def do_one(film):
            done.append(film.id)
            do(work, film.id, tmp_path)

        with work.claims:
            work.share(pending, do_one, partial(in_threads, num_threads=2))
        assert work.progress.done == work.progress.total == len(FILMS)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run_one, range(2)))
    assert sorted(done) == sorted(FILMS)


def test_what_a_limit_stopped_at_another_process_is_left_here_too(store, tmp_path):
    slow, limits = FILMS[2], {"ingest.decode_timeout_s": 5.0}
    work, other = work_on(store, limits=limits), work_on(store, limits=limits)
    pending = work.todo(films())
    other.tried(made_of(slow).key, "no frame for 5 s", limits)
    done = []
    with work.claims:
        work.share(pending, lambda film: done.append(film.id), partial(in_threads, num_threads=1))
    assert sorted(done) == sorted(set(FILMS) - {slow})


@pytest.mark.parametrize("num_shards", [1, 2, 3, 16])
def test_every_task_belongs_to_exactly_one_shard(store, num_shards):
    shares = [
        [film.id for film in work_on(store, shard=shard, num_shards=num_shards).todo(films())]
        for shard in range(num_shards)
    ]
    assert sorted(film for share in shares for film in share) == sorted(FILMS)


def test_shards_leave_the_same_artifact_as_one_process(store, tmp_path):
    whole = finish(store, tmp_path)
    reopen(store, "clip", "d" * 32, [picture(store, film) for film in FILMS])
    assert find_manifest(store, "clip", "d" * 32) is None
    for shard in (2, 0, 1):
        work = work_on(store, shard=shard, num_shards=3)
        for film in work.todo(films()):
            do(work, film.id, tmp_path)
    assert work_on(store).pending(films()) == []
    assert timeless(finish(store, tmp_path)) == timeless(whole)


def test_what_is_pending_is_known_before_the_commit(store, tmp_path):
    do(work_on(store), FILMS[0], tmp_path)
    assert [film.id for film in work_on(store).pending(films())] == FILMS[1:]


def test_what_a_limit_stopped_is_not_tried_again_until_the_limit_is_another(store, tmp_path):
    work = work_on(store, limits={"ingest.decode_timeout_s": 5.0})
    work.tried(made_of(FILMS[2]).key, "no frame for 5 s", {"ingest.decode_timeout_s": 5.0})
    assert FILMS[2] not in [film.id for film in work.pending(films())]
    more_patient = work_on(store, limits={"ingest.decode_timeout_s": 50.0})
    assert [film.id for film in more_patient.pending(films())] == FILMS
    do(more_patient, FILMS[2], tmp_path)
    assert FILMS[2] not in [film.id for film in more_patient.pending(films())]


def test_what_is_pending_gives_the_artifact_another_address(store, tmp_path):
    whole = finish(store, tmp_path)
    work = work_on(store)
    stopped = Try(kind="shots", key="0" * 32, reason="no frame for 5 s", limits={"ingest.decode_timeout_s": 5.0})
    keys = [film.keys[0] for film in films()]
    work.items.load(keys)
    partly = work.commit(Joined({"shots": [], "clips": [], "images": []}, keys, pending=[stopped]))
    assert partly.digest != whole.digest == partly.cache_key
    assert find_manifest(store, "clip", partly.digest).pending == [stopped]


def test_processes_that_race_to_the_same_artifact_are_all_right(store, tmp_path):
    folders = [tmp_path / str(number) for number in range(8)]
    for folder in folders:
        folder.mkdir()
    with ThreadPoolExecutor(8) as pool:
        manifests = list(pool.map(lambda folder: finish(store, folder), folders))
    assert len({manifest.finished_at for manifest in manifests}) == 1
    assert problems(store, manifests[0], thorough=True) == []


def test_an_unfinished_stage_cannot_be_read(store, tmp_path):
    do(work_on(store), FILMS[0], tmp_path)
    with pytest.raises(DataError, match="clip is not finished"):
        open_artifact(store, "clip", "d" * 32)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"stage": "clip"}'])
def test_a_corrupt_manifest_is_named(store, tmp_path, text):
    finish(store, tmp_path)
    store.put(f"{PREFIX}manifest.json", text)
    with pytest.raises(CorruptManifest, match=r"manifest\.json is no manifest"):
        find_manifest(store, "clip", "d" * 32)


def test_a_manifest_in_the_wrong_place_is_named(store, tmp_path):
    finish(store, tmp_path)
    store.put(f"artifacts/clip/{'e' * 32}/manifest.json", store.get(f"{PREFIX}manifest.json"))
    with pytest.raises(CorruptManifest, match="wrong"):
        find_manifest(store, "clip", "e" * 32)


def test_a_missing_and_a_shortened_file_of_an_item_are_noticed_and_named(store, tmp_path):
    manifest = finish(store, tmp_path)
    keys = [picture(store, film) for film in FILMS[:2]]
    store.delete(keys[:1])
    store.put(keys[1], b"short")
    assert {problem.key for problem in problems(store, manifest, items=True)} == set(keys)
    assert problems(store, manifest) == [], "a plan looks at the artifact's own objects"


def test_a_file_altered_without_changing_its_size_is_never_used(store, tmp_path):
    manifest = finish(store, tmp_path)
    key = picture(store, FILMS[0])
    store.put(key, store.get(key)[::-1])
    assert [problem.key for problem in problems(store, manifest, thorough=True)] == [key]
    artifact = Artifact(store, manifest)
    with pytest.raises(AlteredObject, match=made_of(FILMS[0]).key.key), artifact.local(key):
        pass


def test_a_broken_artifact_is_rebuilt_item_by_item_and_is_then_the_same(store, tmp_path):
    whole = finish(store, tmp_path)
    key = picture(store, FILMS[2])
    store.put(key, b"altered")
    assert reopen(store, "clip", "d" * 32, [key]) == [made_of(FILMS[2]).key]
    assert [film.id for film in work_on(store).pending(films())] == [FILMS[2]]
    assert timeless(finish(store, tmp_path)) == timeless(whole)


def test_a_broken_table_costs_no_item(store, tmp_path):
    whole = finish(store, tmp_path)
    key = f"{PREFIX}shots.parquet"
    store.put(key, b"altered")
    assert reopen(store, "clip", "d" * 32, [key]) == []
    assert timeless(finish(store, tmp_path)) == timeless(whole)


@pytest.mark.parametrize("text", [b"{", b"[]", b'{"sha256": "", "item": "{}"}'])
def test_a_record_that_cannot_be_read_costs_its_item(store, tmp_path, text):
    whole = finish(store, tmp_path)
    store.put(made_of(FILMS[5]).key.record, text)
    reopen(store, "clip", "d" * 32, [])
    assert [film.id for film in work_on(store).pending(films())] == [FILMS[5]]
    assert timeless(finish(store, tmp_path)) == timeless(whole)


def test_a_record_with_another_answer_than_it_was_written_with_is_not_used(store, tmp_path):
    finish(store, tmp_path)
    envelope = json.loads(store.get(made_of(FILMS[1]).key.record))
    envelope["item"] = envelope["item"].replace("20", "30")
    store.put(made_of(FILMS[1]).key.record, json.dumps(envelope).encode())
    assert [film.id for film in work_on(store).pending(films())] == [FILMS[1]]


def test_an_altered_file_of_records_is_noticed_and_costs_no_item(store, tmp_path):
    whole = finish(store, tmp_path)
    store.put(PREFIX + RECORDS, b"altered")
    (wrong,) = problems(store, whole)
    assert wrong.key == PREFIX + RECORDS
    assert reopen(store, "clip", "d" * 32, [wrong.key]) == []
    assert timeless(finish(store, tmp_path)) == timeless(whole)


def test_the_records_of_a_finished_stage_are_in_one_file_and_read_from_there(store, tmp_path):
    manifest = finish(store, tmp_path)
    store.delete([film.keys[0].record for film in films()])
    known = Items(store, Artifact(store, manifest).bundle())
    assert known.load(film.keys[0] for film in films()) == {film.keys[0] for film in films()}
    store.put(PREFIX + RECORDS, b"altered")
    assert Items(store, Artifact(store, manifest).bundle()).load(film.keys[0] for film in films()) == set()
