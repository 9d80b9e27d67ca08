"""bricks gc: what is reached stays, what cost money stays, and the rest goes."""

import os
import time
from datetime import UTC, datetime

import pytest

from bricks_core.errors import DataError, TryLater
from bricks_core.pipeline.garbage import DAY_S, collect
from bricks_core.pipeline.local import run_path
from bricks_core.pipeline.points import Pointer, Points, point, points_place
from bricks_core.pipeline.screen import garbage_command, garbage_screen
from bricks_core.spec.items import ItemKey, recipe
from bricks_core.spec.manifest import Manifest, StoredObject, Try
from bricks_core.spec.stages import STAGES
from bricks_core.storage.artifacts import ITEMS, MANIFEST, ItemRow, artifact_prefix
from bricks_core.storage.claims import Claims
from bricks_core.storage.items import Items
from bricks_core.storage.places import open_store
from bricks_core.storage.tables import write_rows

LATER_S = 15 * DAY_S


def later():
    return time.time() + LATER_S


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path / "store"))


@pytest.fixture
def made(store, tmp_path):
    """made("clip", "d1", [(item key, object key), ...], ingest="d0"): a finished artifact."""

    def artifact(stage, digest, items=(), pending=(), **inputs):
        rows = [
            ItemRow(id="/".join(key), kind=key.kind, key=key.key, object=place)
            for key, place in sorted((key, place) for key, place in items)
        ]
        write_rows(tmp_path / ITEMS, ItemRow, rows)
        stored = store.put_file(artifact_prefix(stage, digest) + ITEMS, tmp_path / ITEMS)
        manifest = Manifest(
            stage=stage,
            stage_version=STAGES[stage].version,
            digest=digest,
            spec={},
            inputs=inputs,
            code_version="test",
            tables={},
            objects=[stored.model_copy(update={"key": ITEMS})],
            pending=list(pending),
            started_at=datetime(2026, 1, 1, 12, tzinfo=UTC),
            finished_at=datetime(2026, 1, 1, 15, tzinfo=UTC),
        )
        store.put(artifact_prefix(stage, digest) + MANIFEST, manifest.model_dump_json().encode())
        return Pointer(stage=stage, digest=digest, cache_key=digest, spec={}, inputs=inputs)

    return artifact


def item(store, kind, cost=None, **made_of):
    """An item in the store, without files."""
    return Items(store).put(recipe(kind, **made_of), {}, cost=cost).item_key


def in_pack(store, kind, pack, **made_of):
    made = recipe(kind, **made_of)
    Items(store).put(made, {}, [StoredObject(key=pack, size_bytes=4, sha256="0" * 64)])
    return made.key


def age(store, key, days):
    """Make an object as if it had been written so many days ago."""
    path = f"{store.uri}/{key}"
    os.utime(path, (time.time() - days * DAY_S,) * 2)


def keys(store):
    return {entry.key for entry in store.list()}


def test_what_a_run_points_to_stays_with_all_that_it_was_made_from(store, made):
    film, clip = item(store, "film", sha256="a"), item(store, "clip", sha256="a")
    made("ingest", "d0", [(film, "")])
    point("run", store, made("clip", "d1", [(clip, "")], ingest="d0"))
    before = keys(store)
    found = collect(store, delete=True, now=later)
    assert keys(store) == before
    assert (found.num_artifacts, found.num_items, found.size_bytes) == (2, 2, 0)


def test_what_no_run_points_to_goes_when_it_is_old_enough(store, made):
    clip = item(store, "clip", sha256="a")
    made("clip", "d1", [(clip, "")])
    assert collect(store, delete=True).size_bytes == 0
    assert collect(store, delete=True, keep_days=0).items["clip"].num == 1
    assert keys(store) == set()


def test_what_a_run_pointed_to_within_the_last_days_stays(store, made):
    old, new = item(store, "clip", sha256="a"), item(store, "clip", sha256="b")
    point("run", store, made("clip", "d1", [(old, "")]))
    point("run", store, made("clip", "d2", [(new, "")]))
    for entry in list(store.list("items/")) + list(store.list("artifacts/")):
        age(store, entry.key, 30)
    collect(store, delete=True)
    assert store.head(old.record)
    assert store.head(artifact_prefix("clip", "d1") + MANIFEST)
    collect(store, delete=True, now=later)
    assert not store.head(old.record)
    assert not store.head(artifact_prefix("clip", "d1") + MANIFEST)
    assert store.head(new.record)
    assert store.head(artifact_prefix("clip", "d2") + MANIFEST)
    assert [entry.key for entry in store.list(points_place("run"))] == [f"{points_place('run')}00000002.json"]


def test_answers_that_cost_money_go_only_when_that_is_asked_for(store, capsys):
    answer = item(store, "answer", cost={"calls": 1, "tokens": 950, "seconds": 2.5}, prompt="what is it?")
    film = item(store, "film", cost={"seconds": 7200}, sha256="a")
    found = collect(store, delete=True, now=later)
    assert store.head(answer.record)
    assert not store.head(film.record)
    assert (found.paid["answer"].num, found.paid["answer"].cost["tokens"]) == (1, 950)
    assert found.items["film"].cost == {"seconds": 7200}
    garbage_screen(found, deleted=True)
    screen = capsys.readouterr().out
    assert "answers of a model" in screen
    assert "2 s, 1 calls, 950 tokens" in screen
    assert "2.0 h" in screen
    collect(store, delete=True, paid=True, now=later)
    assert keys(store) == set()


def test_a_pack_stays_while_one_of_its_items_is_reached(store, made):
    used, unused = "items/pack/aa/" + "a" * 32 + ".bin", "items/pack/bb/" + "b" * 32 + ".bin"
    for pack in (used, unused):
        store.put(pack, b"1234")
    one = in_pack(store, "latent", used, of="clip/1")
    in_pack(store, "latent", used, of="clip/2")
    in_pack(store, "latent", unused, of="clip/3")
    point("run", store, made("latents", "d1", [(one, used)]))
    collect(store, delete=True, now=later)
    assert store.head(used)
    assert store.head(one.record)
    assert not store.head(unused)
    assert len(list(store.list("items/latent/"))) == 1


def test_a_pack_stays_for_a_young_item_that_no_artifact_holds_yet(store):
    pack = "items/pack/aa/" + "a" * 32 + ".bin"
    store.put(pack, b"1234")
    age(store, pack, 30)
    young = in_pack(store, "latent", pack, of="clip/1")
    collect(store, delete=True)
    assert store.head(pack)
    assert store.head(young.record)


def test_files_of_reached_items_stay_in_an_artifact_that_is_not(store, made):
    key = "artifacts/clip/d1/clips/a.mp4"
    store.put(key, b"clip")
    made("clip", "d1")
    clip = item(store, "clip", sha256="a")
    point("run", store, made("clip", "d2", [(clip, key)]))
    collect(store, delete=True, now=later)
    assert store.head(key)
    assert not store.head(artifact_prefix("clip", "d1") + MANIFEST)


def test_tries_stay_while_an_artifact_has_them_pending(store, made):
    tries = [Try(kind="film", key=letter * 32, reason="too slow", limits={"x": 1.0}) for letter in "ab"]
    for each in tries:
        Items(store).tried(each)
    point("run", store, made("ingest", "d0", pending=tries[:1]))
    collect(store, delete=True, now=later)
    assert [entry.key for entry in store.list("tries/")] == [ItemKey("film", "a" * 32).attempt]


def test_with_no_days_kept_it_waits_for_work_that_is_under_way(store):
    film = item(store, "film", sha256="a")
    with Claims(store, "bricks run films") as claims:
        claims.take("run/films")
        with pytest.raises(TryLater, match=r"bricks run films.*--keep-days 0"):
            collect(store, delete=True, keep_days=0)
        assert collect(store, keep_days=0).items["film"].num == 1  # only to look is no harm
        collect(store, delete=True)
        assert store.head(film.record)
        assert list(store.list("claims/"))
        claims.release("run/films")
    collect(store, delete=True, keep_days=0)
    assert keys(store) == set()


def test_what_a_living_claim_is_about_stays(store, made):
    mine, other = (item(store, "film", sha256=letter) for letter in "ab")
    made("train", "d9")
    with Claims(store) as claims:
        claims.take(f"film/{mine.key[:3]}")
        claims.take("train/d9")
        for entry in list(store.list("items/")) + list(store.list("artifacts/")):
            age(store, entry.key, 30)
        collect(store, delete=True)
        assert store.head(mine.record)
        assert not store.head(other.record)
        assert store.head("artifacts/train/d9/manifest.json")


def test_claims_of_the_dead_are_swept(store):
    Claims(store).take("film/abc")
    (claim,) = store.list("claims/")
    collect(store, delete=True, now=lambda: time.time() + 2 * DAY_S)
    assert store.head(claim.key) is None


def test_what_tells_of_other_things_is_deleted_before_them(store, made, monkeypatch):
    pack = "items/pack/aa/" + "a" * 32 + ".bin"
    store.put(pack, b"1234")
    made("latents", "d1", [(in_pack(store, "latent", pack, of="clip/1"), pack)])
    deleted = []
    delete = type(store).delete

    def told(self, keys):
        keys = list(keys)
        deleted.extend(keys)
        return delete(self, keys)

    monkeypatch.setattr(type(store), "delete", told)
    collect(store, delete=True, now=later)
    kinds = [key.partition("/")[0] + key[-4:] for key in deleted]
    assert kinds == ["artifactsjson", "itemsjson", "artifactsquet", "items.bin"]


def test_nothing_is_swept_when_it_cannot_be_told_what_a_run_needs(store, made):
    film = item(store, "film", sha256="a")
    point("run", store, made("ingest", "d0", [(film, "")]))
    store.put(artifact_prefix("ingest", "d0") + ITEMS, b"no table")
    with pytest.raises(DataError, match="bricks run mends it"):
        collect(store, delete=True, now=later)
    assert store.head(film.record)


def test_items_of_an_artifact_that_lost_its_manifest_stay(store, made):
    film = item(store, "film", sha256="a")
    point("run", store, made("ingest", "d0", [(film, "")]))
    store.delete([artifact_prefix("ingest", "d0") + MANIFEST])
    collect(store, delete=True, now=later)
    assert store.head(film.record)


def test_a_run_that_comes_back_to_something_while_gc_looks_keeps_it(store, made, monkeypatch):
    pointer = made("clip", "d1")
    real = type(store).list

    def racing(self, prefix=""):
        if prefix == "tries/":  # the last that is looked at
            point("run", store, pointer)
        return real(self, prefix)

    monkeypatch.setattr(type(store), "list", racing)
    with pytest.raises(TryLater, match="artifacts/clip/d1/"):
        collect(store, delete=True, now=later)
    assert store.head("artifacts/clip/d1/manifest.json")


def test_what_runs_of_an_earlier_version_point_to_stays(store, made):
    made("ingest", "d0")
    made("caption", "d1", ingest="d0")
    store.put("runs/old/caption.json", b'{"stage": "caption", "digest": "d1", "spec": {}, "inputs": {"ingest": "d0"}}')
    assert collect(store, delete=True, now=later).num_artifacts == 2
    assert store.head("artifacts/ingest/d0/manifest.json")


def test_what_a_run_of_an_earlier_version_had_begun_stays(store, made):
    store.put("artifacts/clip/d1/parts/0123.json", b"{}")
    store.put("runs/old/wanted/clip.json", b'{"stage": "clip", "digest": "d1", "spec": {}, "inputs": {}}')
    collect(store, delete=True, now=later)
    assert store.head("artifacts/clip/d1/parts/0123.json")


@pytest.mark.parametrize("name", ["manifest", "parts/0123"])
def test_captions_of_an_earlier_version_that_were_paid_for_go_only_when_that_is_asked_for(store, name):
    key = f"artifacts/caption/d1/{name}.json"
    store.put(key, b'{"schema_version": 1, "stage": "caption", "spec": {"provider": "openai"}}')
    assert collect(store, delete=True, now=later).paid["caption"].num == 1
    assert store.head(key)
    assert collect(store, delete=True, paid=True, now=later).artifacts["caption"].num == 1
    assert not store.head(key)


BAD_INPUT = b"""{"number": 2, "stages": {"clip":
    {"stage": "clip", "digest": "d1", "cache_key": "d1", "spec": {}, "inputs": {"ingest": "../x"}}}}"""


@pytest.mark.parametrize("content", [b"{", b'{"stages": 5}', b"[" * 5000, b"\xff", BAD_INPUT])
def test_nothing_is_swept_when_the_newest_set_of_a_run_cannot_be_read(store, made, content):
    point("run", store, made("ingest", "d0"))
    damaged = f"{points_place('run')}00000002.json"
    store.put(damaged, content)
    made("clip", "d1")
    before = keys(store)
    with pytest.raises(DataError, match=f"^{damaged} .*delete it, and run the run file again"):
        collect(store, delete=True, now=later)
    assert keys(store) == before
    store.delete([damaged])
    collect(store, delete=True, now=later)
    assert store.head("artifacts/ingest/d0/manifest.json")
    assert not store.head("artifacts/clip/d1/manifest.json")


def test_an_older_set_that_cannot_be_read_is_passed_over(store, made):
    store.put(f"{points_place('run')}00000001.json", b"{")
    point("run", store, made("ingest", "d0"))
    collect(store, delete=True)
    collect(store, delete=True, now=later)
    assert store.head("artifacts/ingest/d0/manifest.json")


def test_nothing_is_swept_when_the_newest_set_is_damaged_while_gc_looks(store, made, monkeypatch):
    point("run", store, made("ingest", "d0"))
    made("clip", "d1")
    real = type(store).list

    def racing(self, prefix=""):
        if prefix == "tries/":  # the last that is looked at
            store.put(f"{points_place('run')}00000002.json", b"{")
        return real(self, prefix)

    monkeypatch.setattr(type(store), "list", racing)
    with pytest.raises(DataError, match=r"points/00000002\.json"):
        collect(store, delete=True, now=later)
    assert store.head("artifacts/clip/d1/manifest.json")


WRONG_MANIFESTS = [
    b'{"pending": 5, "inputs": {}}',
    b'{"pending": [5]}',
    b'{"pending": [{"kind": 1, "key": null}]}',
    b'{"inputs": {"ingest": 5}}',
    b'{"inputs": {"ingest": "../../x"}}',
    b'{"inputs": []}',
    b'{"spec": 5, "records": 5, "started_at": {}}',
    b'{"schema_version": "x"}',
    b"[" * 5000,
    b"5",
    b"",
    b"\xff",
]


@pytest.mark.parametrize("content", WRONG_MANIFESTS)
def test_nothing_is_swept_when_a_manifest_that_is_reached_cannot_be_read(store, made, content):
    film = item(store, "film", sha256="a")
    point("run", store, made("score", "d1"))
    store.put("artifacts/score/d1/manifest.json", content)
    for keep_days in (0, 14):
        with pytest.raises(DataError, match=r"^artifacts/score/d1/manifest\.json .*cannot be read.*delete it"):
            collect(store, delete=True, keep_days=keep_days)
    assert store.head(film.record)
    assert store.head("artifacts/score/d1/manifest.json")


@pytest.mark.parametrize("content", WRONG_MANIFESTS)
def test_what_nothing_reaches_goes_whatever_its_manifest_holds(store, content):
    item(store, "film", sha256="a")
    for stage in ("score", "train"):
        store.put(f"artifacts/{stage}/d1/manifest.json", content)
    store.put("artifacts/caption/d1/manifest.json", content)
    found = collect(store, delete=True, keep_days=0)
    assert {"score", "train"} <= found.artifacts.keys()
    assert not store.head("artifacts/score/d1/manifest.json")


def test_a_caption_manifest_that_cannot_be_read_may_be_of_paid_answers(store):
    store.put("artifacts/caption/d1/manifest.json", b"{")
    assert collect(store, delete=True, now=later).paid["caption"].num == 1
    assert store.head("artifacts/caption/d1/manifest.json")


def test_with_no_days_kept_a_claim_that_cannot_be_read_is_named(store):
    store.put("claims/run/e-000001.json", b"{")
    film = item(store, "film", sha256="a")
    said = r"claims/run/e-000001\.json cannot be read: delete it if nobody is at the run"
    with pytest.raises(TryLater, match=said):
        collect(store, delete=True, keep_days=0)
    assert store.head(film.record)


def test_objects_that_no_claim_is_called_are_neither_minded_nor_swept(store):
    others = {f"claims/run/e{end}" for end in ("-0000001.json", "-000000.json", "-1.json", "-000001.txt", ".json")}
    for key in others:
        store.put(key, b"{")
    collect(store, delete=True, keep_days=0)
    assert keys(store) == others


def test_a_changed_filter_and_back_with_gc_in_between_loses_nothing(store, drawn_films, run_of):
    first, other = run_of(drawn_films), run_of(drawn_films, score={"filter": {"min_motion": 1.0}})
    run_path(first, store, "score")
    before = {entry.key: entry.etag for entry in store.list("items/")}
    assert {key.split("/")[1] for key in before} == {"film", "shots", "clip", "measures"}
    for run in (other, first):
        collect(store, delete=True, now=later)
        run_path(run, store, "score")
        assert {entry.key: entry.etag for entry in store.list("items/")} == before


def test_the_command_that_deletes_repeats_the_flags(store):
    uri = store.uri
    assert garbage_command(store, paid=True, keep_days=3) == f"bricks gc --delete --paid --keep-days 3 --store {uri}"
    assert garbage_command(open_store("bricks-store"), paid=False, keep_days=14) == "bricks gc --delete"


def test_an_empty_store_has_nothing_to_delete(store, capsys):
    garbage_screen(collect(store, delete=True), deleted=True)
    assert "Nothing to delete" in capsys.readouterr().out
    assert Points().stages == {}
