"""bricks store upgrade: a store of schema 1, written here by hand, becomes items, and nothing is done again."""

import hashlib
import json
from contextlib import nullcontext
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bricks_core.errors import CorruptManifest
from bricks_core.pipeline.garbage import collect
from bricks_core.pipeline.local import run_path
from bricks_core.pipeline.points import read_points
from bricks_core.pipeline.screen import artifact_screen, upgrade_screen
from bricks_core.pipeline.upgrade import upgrade
from bricks_core.spec.caption import Caption
from bricks_core.spec.clip import Image
from bricks_core.spec.items import Item, ItemKey
from bricks_core.spec.latents import Latent
from bricks_core.spec.manifest import canonical_json, content_id
from bricks_core.spec.stages import STAGES
from bricks_core.stages.clip.earlier import found_shots
from bricks_core.storage.artifacts import Artifact, find_manifest, open_artifact
from bricks_core.storage.places import list_source, open_store
from bricks_core.storage.store import SourceFile
from bricks_core.video.isolate import Isolation
from tests.s3_server import BUCKET, KEY_ID, SECRET, S3Server
from tests.stages.caption.conftest import said

PATH = ["ingest", "clip", "score"]
NEW_COLUMNS = {"source_sha256", "item"}
FOLDERS = {"clips": "clips", "images": "images"}
NOW = datetime(2026, 1, 1, tzinfo=UTC).isoformat()


@pytest.fixture(scope="module")
def today(tmp_path_factory, drawn_films, run_of):
    """A run as it is done today: its store and manifests."""
    store = open_store(str(tmp_path_factory.mktemp("today") / "store"))
    return store, run_path(run_of(drawn_films), store, "score")


class Schema1:
    """Writes what a run of today has made as schema 1 had it."""

    def __init__(self, store, today, tmp_path):
        self.store, (self._today, self._manifests), self._tmp = store, today, tmp_path
        self.digests = {}

    def finished(self, stage):
        self._write(stage, self._objects(stage), is_finished=True)

    def unfinished(self, stage):
        self._write(stage, self._objects(stage), is_finished=False)

    def _write(self, stage, made, *, is_finished):
        tables, objects, put = made
        spec = self._manifests[stage].spec
        inputs = {need: self.digests[need] for need in STAGES[stage].needs} or {"sources": "f" * 32}
        question = {"schema": 1, "stage": stage, "version": 2, "spec": spec, "inputs": inputs}
        digest = self.digests[stage] = hashlib.sha256(canonical_json(question)).hexdigest()[:32]
        prefix = f"artifacts/{stage}/{digest}/"
        for key, path in put:
            with path as file:
                self.store.put_file(prefix + key, file)
        pointer = json.dumps({"stage": stage, "digest": digest, "spec": spec, "inputs": inputs}).encode()
        self.store.put(f"runs/films/wanted/{stage}.json", pointer)
        for item, rows in self._parts(stage, tables).items():
            part = {"item": item, "rows": rows, "objects": objects if item == "0" * 16 else []}
            self.store.put(f"{prefix}parts/{item}.json", json.dumps(part).encode())
        if not is_finished:
            return
        described = {}
        for name, rows in tables.items():
            file = self._tmp / f"{name}.parquet"
            pq.write_table(pa.Table.from_pylist(rows) if rows else pa.table({"id": pa.array([], pa.string())}), file)
            stored = self.store.put_file(prefix + file.name, file)
            objects = [*objects, stored.model_dump() | {"key": file.name}]
            described[name] = {"key": file.name, "row": name, "num_rows": len(rows)}
        manifest = {
            "schema_version": 1,
            "stage": stage,
            "stage_version": 2,
            "digest": digest,
            "spec": spec,
            "inputs": inputs,
            "code_version": "0.1.0",
            "tables": described,
            "objects": objects,
            "started_at": NOW,
            "finished_at": NOW,
        }
        self.store.put(f"{prefix}manifest.json", json.dumps(manifest).encode())
        self.store.put(f"runs/films/{stage}.json", pointer)

    def _parts(self, stage, tables):
        """One part is enough, but for ingest, whose parts had the names of their files' contents."""
        if stage != "ingest":
            return {"0" * 16: tables}
        files = {(row["source"], row["name"]): row for row in tables["videos"]}
        parts = {}
        for source in {source for source, _ in files}:
            for file in list_source(source):
                name = content_id("ingest", source, file.name, file.size_bytes, file.fingerprint())
                parts[name] = {"videos": [files[source, file.name]], "given": []}
        return parts

    def _objects(self, stage):
        """Rows by table without the columns that came later, and files under the keys that they had."""
        artifact = Artifact(self._today, self._manifests[stage])
        if stage == "latents":
            return self._latents(artifact)
        tables, objects, put = {}, [], []
        for name, row in STAGES[stage].tables.items():
            tables[name] = []
            for each in artifact.rows(name, row):
                old = each.model_dump(exclude=NEW_COLUMNS)
                if name in FOLDERS:
                    suffix = each.key[each.key.rindex(".") :]
                    old["key"] = f"{name}/{each.id}{suffix}"
                    objects.append({name: old[name] for name in ("key", "size_bytes", "sha256")})
                    put.append((old["key"], artifact.local(each.key)))
                tables[name].append(old)
        return tables, objects, put

    def _latents(self, artifact):
        """One pack for everything, and rows that said the place of their pieces in it."""
        clip = Artifact(self._today, self._manifests["clip"])
        images = {row.clip_id: row.id for row in clip.rows("images", Image)}
        whole, begins = b"", {}

        def place(pack, offset):
            nonlocal whole
            if pack not in begins:
                begins[pack] = len(whole)
                whole += self._today.get(pack)
                whole += bytes(-len(whole) % 64)
            return begins[pack] + offset

        rows = []
        for row in artifact.rows("latents", Latent):
            name = images[row.clip_id] if row.kind == "image" else row.clip_id
            old = row.model_dump(exclude={"item", "text_item", "text_pack", "empty_text_pack"})
            rows.append(
                old
                | {
                    "id": content_id("latent", name, row.resolution),
                    "pack": "packs/0.bin",
                    "latents_offset_bytes": place(row.pack, row.latents_offset_bytes),
                    "text_offset_bytes": place(row.text_pack, row.text_offset_bytes),
                    "empty_text_offset_bytes": place(row.empty_text_pack, row.empty_text_offset_bytes),
                }
            )
        (self._tmp / "0.bin").write_bytes(whole)
        pack = {"key": "packs/0.bin", "size_bytes": len(whole), "sha256": hashlib.sha256(whole).hexdigest()}
        return {"latents": rows}, [pack], [("packs/0.bin", nullcontext(self._tmp / "0.bin"))]


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path / "store"))


@pytest.fixture
def schema1(store, today, tmp_path):
    return Schema1(store, today, tmp_path)


@pytest.fixture
def earlier(schema1):
    """A store that holds the whole run as schema 1 had it."""
    for stage in PATH:
        schema1.finished(stage)
    return schema1


@pytest.fixture
def no_decoder(monkeypatch):
    """Nothing may be decoded."""

    def refuse(*arguments, **settings):
        raise AssertionError("a film or clip is decoded")

    monkeypatch.setattr(Isolation, "call", refuse)
    monkeypatch.setattr("bricks_core.stages.score.stage.measure", refuse)


def items(store):
    found = {}
    for entry in store.list("items/"):
        if entry.key.endswith(".json"):
            _, kind, _, name = entry.key.split("/")
            item = Item.opened(store.get(entry.key), ItemKey(kind, name.removesuffix(".json")))
            found[item.item_key] = item
    return found


def answers(store):
    """What items say, as far as schema 1 knew it."""
    unknown = {"stored_width_px", "stored_height_px", "first_damaged_frame", "start_s", "colour_matrix"}
    return {
        key: {name: each for name, each in item.answer.items() if name not in unknown}
        for key, item in items(store).items()
    }


def test_the_same_items_come_out_as_of_a_run_of_today(earlier, today):
    done = upgrade(earlier.store)
    assert answers(earlier.store) == answers(today[0])
    assert dict(done.made) == {"film": 2, "shots": 2, "clip": 3, "measures": 3}
    assert not done.left


def test_after_it_a_run_decodes_nothing(earlier, drawn_films, run_of, no_decoder):
    upgrade(earlier.store)
    manifests = run_path(run_of(drawn_films), earlier.store, "score")
    assert manifests["clip"].counts["clips"] == 3
    clip = open_artifact(earlier.store, "clip", manifests["clip"].digest)
    keys = [row.key for row in clip.rows("clips", STAGES["clip"].tables["clips"])]
    assert all(key.startswith(f"artifacts/clip/{earlier.digests['clip']}/clips/") for key in keys)


def test_files_that_items_need_stay_when_everything_else_of_schema_1_is_swept(earlier, drawn_films, run_of, no_decoder):
    upgrade(earlier.store)
    run = run_of(drawn_films)
    run_path(run, earlier.store, "score")
    collect(earlier.store, delete=True, keep_days=0)
    left = [entry.key.split("/")[3] for entry in earlier.store.list(f"artifacts/clip/{earlier.digests['clip']}/")]
    assert sorted(left) == ["clips"] * 3 + ["images"] * 3
    run_path(run, earlier.store, "score")


def test_gc_right_after_it_takes_nothing(earlier):
    upgrade(earlier.store)
    before = {entry.key for entry in earlier.store.list()}
    collect(earlier.store, delete=True)
    assert {entry.key for entry in earlier.store.list()} == before


def test_a_second_time_it_finds_all_done(earlier):
    upgrade(earlier.store)
    before = {entry.key: entry.etag for entry in earlier.store.list()}
    again = upgrade(earlier.store)
    assert not again.made
    assert again.there["clip"] == 3
    assert {entry.key: entry.etag for entry in earlier.store.list()} == before


def test_a_dry_run_writes_nothing(earlier, capsys):
    before = {entry.key for entry in earlier.store.list()}
    upgrade_screen(upgrade(earlier.store, dry_run=True), dry_run=True)
    assert {entry.key for entry in earlier.store.list()} == before
    assert "would be made" in capsys.readouterr().out


def test_what_a_stage_that_was_not_finished_had_done_is_used_too(schema1, drawn_films, run_of, no_decoder):
    for stage in PATH:
        schema1.unfinished(stage)
    assert upgrade(schema1.store).made["measures"] == 3
    assert run_path(run_of(drawn_films), schema1.store, "score")["clip"].counts["clips"] == 3


def test_a_clip_whose_file_is_gone_is_left_with_the_reason_and_cut_again(earlier, drawn_films, run_of):
    prefix = f"artifacts/clip/{earlier.digests['clip']}/clips/"
    gone = next(entry.key for entry in earlier.store.list(prefix))
    earlier.store.delete([gone])
    done = upgrade(earlier.store)
    assert done.made["clip"] == 2
    assert done.left["clips cut", "its file, or the picture of its middle frame, is gone"] == 1
    assert run_path(run_of(drawn_films), earlier.store, "clip")["clip"].counts["clips"] == 3


def test_a_film_that_could_not_be_read_is_looked_at_again(earlier, store):
    key = f"artifacts/ingest/{earlier.digests['ingest']}/manifest.json"
    store.delete([key])  # then its part tells
    part = next(entry.key for entry in store.list(f"artifacts/ingest/{earlier.digests['ingest']}/parts/"))
    value = json.loads(store.get(part))
    value["rows"]["videos"][0] |= {"state": "unreadable", "reason": "It took longer than 60 s."}
    store.put(part, json.dumps(value).encode())
    done = upgrade(store)
    assert done.made["film"] == 1
    assert any("perhaps because of a limit" in why for _, why in done.left)


def test_artifacts_older_than_the_last_of_schema_1_are_left(earlier, store):
    key = f"artifacts/score/{earlier.digests['score']}/manifest.json"
    store.put(key, json.dumps(json.loads(store.get(key)) | {"stage_version": 1}).encode())
    done = upgrade(store)
    assert done.made["measures"] == 0
    assert any(what == "score artifacts" for what, _ in done.left)


def test_an_artifact_that_cannot_be_read_does_not_end_it(earlier, store):
    store.put(f"artifacts/ingest/{earlier.digests['ingest']}/manifest.json", b"{")
    done = upgrade(store)
    assert done.left["ingest artifacts", "the manifest cannot be read"] == 1
    assert done.made["film"] == 0


def test_a_run_points_to_what_it_had_and_it_can_be_shown_and_is_never_built_on(earlier, capsys):
    upgrade(earlier.store)
    assert {name: each.digest for name, each in read_points(earlier.store, "films").stages.items()} == earlier.digests
    artifact_screen(earlier.store, "films/clip", 2, False)
    screen = capsys.readouterr().out
    assert "clips: 3 rows" in screen
    assert "made by an earlier version of Bricks" in screen
    with pytest.raises(CorruptManifest, match="bricks store upgrade"):
        find_manifest(earlier.store, "clip", earlier.digests["clip"])


def test_a_store_of_today_has_nothing_to_upgrade(today, capsys):
    upgrade_screen(upgrade(today[0]), dry_run=False)
    assert "Nothing to upgrade" in capsys.readouterr().out


def captions(store, manifests):
    return {row.id: row for row in Artifact(store, manifests["caption"]).rows("captions", Caption)}


@pytest.fixture
def paid(store, tmp_path, drawn_films, run_of, vision_server):
    """A store of schema 1 whose captions were paid for, with the run and its captions of today."""
    texts = [
        "A red thing crosses a soft field to the right.",
        '"It crosses."',
        "A frame.",
        "Not enough information",
        "",
    ]

    def answer(question, number):
        return said(texts[number % len(texts)], finish="length" if number == 5 else "stop", tokens=(900 + number, 40))

    vision_server.answer = answer
    run = run_of(drawn_films, caption={"provider": "openai", "model": "eyes-1", "concurrency": 1})
    new = open_store(str(tmp_path / "new"))
    manifests = run_path(run, new, "caption")
    earlier = Schema1(store, (new, manifests), tmp_path)
    for stage in [*PATH, "caption"]:
        earlier.finished(stage)
    return run, captions(new, manifests), vision_server


def test_no_answer_that_was_paid_for_is_asked_again(store, paid):
    run, before, server = paid
    num_asked = len(server.questions)
    done = upgrade(store)
    assert done.made["answer"] == num_asked == 6
    slower = run.spec.caption.model_copy(update={"concurrency": 4, "max_calls": 2})
    for caption in (run.spec.caption, slower):
        changed = run.model_copy(update={"spec": run.spec.model_copy(update={"caption": caption})})
        assert captions(store, run_path(changed, store, "caption")) == before
    assert len(server.questions) == num_asked


def test_without_decoding_or_with_other_prompts_less_is_known(store, paid, monkeypatch):
    monkeypatch.setattr("bricks_core.stages.caption.earlier.see", lambda *arguments: pytest.fail("a clip is decoded"))
    done = upgrade(store, decode=False)
    assert done.made["answer"] == 3
    assert [number for (what, why), number in done.left.items() if "--no-decode" in why] == [3]
    monkeypatch.setattr("bricks_core.stages.caption.earlier.image_prompt", lambda spec: "What is it?")
    other = upgrade(store, dry_run=True)
    assert other.left["answers of a model", "the same is asked in other words today"] == 6


def test_captions_by_measuring_and_latents_are_not_made_again(store, tmp_path, drawn_films, run_of, monkeypatch):
    run = run_of(drawn_films, latents={"resolutions": ["48x80"], "pack_bytes": 1 << 18})
    new = open_store(str(tmp_path / "new"))
    manifests = run_path(run, new, "latents")
    earlier = Schema1(store, (new, manifests), tmp_path)
    for stage in [*PATH, "caption", "latents"]:
        earlier.finished(stage)
    done = upgrade(store)
    assert not done.left
    assert (done.made["description"], done.made["latent"]) == (3, 6)

    def refuse(*arguments, **settings):
        raise AssertionError("a clip or text is read again")

    monkeypatch.setattr("bricks_core.stages.caption.stage.see", refuse)
    monkeypatch.setattr("bricks_core.stages.latents.stage.encode_latents", refuse)
    monkeypatch.setattr("bricks_core.stages.latents.stage.encode_texts", refuse)
    again = run_path(run, store, "latents")
    assert captions(store, again) == captions(new, manifests)
    assert again["latents"].read_as == manifests["latents"].read_as
    assert pieces(store, again) == pieces(new, manifests)


def pieces(store, manifests):
    """Bytes of all latents, of all captions' features and of the empty one's."""
    found = {}
    for row in Artifact(store, manifests["latents"]).rows("latents", Latent):
        size = 2 * row.num_latents * row.latent_channels * row.latent_height * row.latent_width
        found[row.id] = [
            store.get(pack)[offset : offset + num_bytes]
            for pack, offset, num_bytes in (
                (row.pack, row.latents_offset_bytes, size),
                (row.text_pack, row.text_offset_bytes, 2 * row.num_tokens * row.text_width),
                (row.empty_text_pack, row.empty_text_offset_bytes, 2 * row.num_empty_tokens * row.text_width),
            )
        ]
    return found


@pytest.fixture
def bucket(drawn_films, monkeypatch):
    """A bucket with the films."""
    server = S3Server()
    server.start()
    for name, value in {
        "AWS_ACCESS_KEY_ID": KEY_ID,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL_S3": server.endpoint,
    }.items():
        monkeypatch.setenv(name, value)
    for file in drawn_films.iterdir():
        server.client.upload_file(str(file), BUCKET, f"films/{file.name}")
    yield server
    server.kill()


def test_films_in_a_bucket_are_not_read_again(store, bucket, tmp_path, run_of, monkeypatch):
    run, new = run_of(f"s3://{BUCKET}/films"), open_store(str(tmp_path / "new"))
    earlier = Schema1(store, (new, run_path(run, new, "clip")), tmp_path)
    for stage in ("ingest", "clip"):
        earlier.finished(stage)
    assert upgrade(store).made["content"] == 2
    monkeypatch.setattr(SourceFile, "local", lambda self: pytest.fail("a film is read"))
    run_path(run, store, "clip")


def test_a_bucket_that_cannot_be_reached_is_told(store, bucket, tmp_path, run_of):
    run, new = run_of(f"s3://{BUCKET}/films"), open_store(str(tmp_path / "new"))
    earlier = Schema1(store, (new, run_path(run, new, "ingest")), tmp_path)
    earlier.finished("ingest")
    bucket.client.delete_objects(
        Bucket=BUCKET, Delete={"Objects": [{"Key": f"films/{name}.mp4"} for name in ("one", "two")]}
    )
    bucket.client.delete_bucket(Bucket=BUCKET)
    done = upgrade(store)
    assert done.made["film"] == 2
    assert any(why.startswith("its source cannot be listed") for _, why in done.left)


def rows(*shots):
    return [
        {"first_frame": first, "end_frame": end, "state": "dropped" if reason else "clip", "reason": reason}
        for first, end, reason in shots
    ]


@pytest.mark.parametrize(
    ("shots", "found"),
    [
        ([(0, 50, ""), (50, 90, "")], [(0, 50, ""), (50, 90, "")]),
        ([(0, 50, ""), (50, 55, "too short: 5 frames of at least 15")], [(0, 50, ""), (50, 55, "")]),
        ([(0, 50, ""), (50, 70, "damaged in the file")], [(0, 50, ""), (50, 70, "damaged in the file")]),
        ([(0, 100, ""), (100, 160, "")], [(0, 100, ""), (100, 160, "")]),  # no even split of 160 frames
        ([(0, 60, ""), (60, 120, "")], "whether long ones were split"),
        ([(0, 10, "damaged in the file"), (10, 80, ""), (80, 150, ""), (150, 220, "")], "whether long ones were split"),
        ([(0, 50, ""), (50, 90, "The decoder ended without an answer.")], "could not be searched or cut"),
        ([(0, 50, ""), (60, 90, "")], "do not fill their film"),
        ([(0, 50, "")], "do not fill their film"),
    ],
)
def test_shots_are_taken_as_they_were_found_only_where_that_is_certain(shots, found):
    num_frames = 90 if shots[-1][1] <= 90 and found == "do not fill their film" else shots[-1][1]
    told = found_shots(rows(*shots), num_frames, max_frames=100)
    assert told == found if isinstance(found, list) else found in told
