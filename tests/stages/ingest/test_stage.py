"""Sources become rows: every file, whatever it is, and nothing twice."""

import hashlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import boto3
import numpy as np
import pytest

from bricks_core.errors import SpecError
from bricks_core.pipeline.local import run_alone
from bricks_core.spec.ingest import Video
from bricks_core.spec.run import BrickRun
from bricks_core.storage.artifacts import open_artifact
from bricks_core.storage.places import open_store
from bricks_core.video.write import write_mp4


def write_film(path, seed=0, size=(96, 160), num_frames=6):
    path.parent.mkdir(parents=True, exist_ok=True)
    dice = np.random.default_rng(seed)
    write_mp4(path, dice.integers(0, 255, (num_frames, *size, 3), np.uint8), 12, crf=30)
    return path


@pytest.fixture
def ingest(tmp_path):
    """ingest(sources, **settings) -> the rows and the manifest, in a fresh store."""

    def ran(sources, store=str(tmp_path / "store"), **settings):
        run = BrickRun.model_validate(
            {
                "apiVersion": "bricks.dev/v1alpha1",
                "kind": "BrickRun",
                "metadata": {"name": "test"},
                "spec": {"ingest": {"sources": sources} | settings},
            }
        )
        opened = open_store(store)
        manifest = run_alone(run, opened, "ingest", shard=0, num_shards=1, commit=None)
        return list(open_artifact(opened, "ingest", manifest.digest).rows("videos", Video)), manifest

    return ran


def test_every_file_of_a_folder_is_a_row_with_facts_or_a_reason(ingest, tmp_path):
    folder = tmp_path / "films"
    film = write_film(folder / "deep" / "film.mp4")
    write_film(folder / "small.mp4", seed=1, size=(32, 160))
    (folder / "empty.mp4").touch()
    (folder / "page.mp4").write_text("<html>not found</html>", encoding="utf-8")
    (folder / "notes.txt").write_text("what we filmed", encoding="utf-8")
    (folder / ".hidden.mp4").write_bytes(film.read_bytes())
    whole = film.read_bytes()
    (folder / "cut.mp4").write_bytes(write_film(tmp_path / "x.mp4", seed=2, num_frames=24).read_bytes()[:-20000])
    rows, manifest = ingest([{"path": str(folder), "licence": "CC-BY-4.0", "credit": "A. Maker", "consent": "signed"}])
    by_name = {row.name: row for row in rows}
    assert {name: row.state for name, row in by_name.items()} == {
        "deep/film.mp4": "ok",
        "small.mp4": "unusable",
        "empty.mp4": "unreadable",
        "page.mp4": "unreadable",
        "notes.txt": "beside",
        "cut.mp4": "damaged",
    }
    assert manifest.counts == {
        "beside them: no films, by their names": 1,
        "damaged": 1,
        "ok": 1,
        "unreadable": 2,
        "unusable": 1,
    }
    row = by_name["deep/film.mp4"]
    sha256 = hashlib.sha256(whole).hexdigest()
    assert (row.id, row.sha256, row.size_bytes) == (sha256[:16], sha256, len(whole))
    assert (row.num_frames, row.width_px, row.height_px, row.fps, row.codec) == (6, 160, 96, 12.0, "h264")
    assert (row.licence, row.credit, row.consent, row.reason) == ("CC-BY-4.0", "A. Maker", "signed", "")
    assert "its shorter side is below 64" in by_name["small.mp4"].reason
    assert by_name["empty.mp4"].reason == "The file is empty."
    assert ".txt" in by_name["notes.txt"].reason
    assert 0 < by_name["cut.mp4"].num_frames < 24
    assert [row.id for row in rows] == sorted(row.id for row in rows)


def test_a_licence_is_unknown_unless_told(ingest, tmp_path):
    rows, _ = ingest([str(write_film(tmp_path / "film.mp4"))])
    assert [(row.name, row.licence) for row in rows] == [("film.mp4", "unknown")]


def test_the_same_content_is_one_video_and_its_copies_say_so(ingest, tmp_path):
    film = write_film(tmp_path / "b" / "film.mp4")
    (tmp_path / "b" / "again.mp4").write_bytes(film.read_bytes())
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "copy.mp4").write_bytes(film.read_bytes())
    sources = [str(tmp_path / "b"), str(tmp_path / "a"), str(tmp_path / "b"), str(film)]
    rows, manifest = ingest(sources)
    assert len({row.id for row in rows}) == len(rows) == 4
    (kept,) = [row for row in rows if row.state == "ok"]
    assert (kept.name, kept.source) == ("again.mp4", sources[0])  # the first source, the first name
    copies = {(row.source, row.name): row.reason for row in rows if row is not kept}
    assert set(copies) == {(sources[0], "film.mp4"), (sources[1], "copy.mp4"), (sources[3], "film.mp4")}
    assert set(copies.values()) == {f"It has the same content as again.mp4 in {sources[0]}, which is used."}
    assert manifest.counts == {"ok": 1, "unusable": 3}


def test_shards_together_leave_what_one_process_leaves(ingest, tmp_path):
    for seed in range(5):
        write_film(tmp_path / "films" / f"{seed}.mp4", seed)
    whole, _ = ingest([str(tmp_path / "films")])
    run = BrickRun.model_validate(
        {
            "apiVersion": "bricks.dev/v1alpha1",
            "kind": "BrickRun",
            "metadata": {"name": "test"},
            "spec": {"ingest": {"sources": [str(tmp_path / "films")]}},
        }
    )
    store = open_store(str(tmp_path / "sharded"))
    *_, manifest = (run_alone(run, store, "ingest", shard=shard, num_shards=3) for shard in (2, 0, 1))
    assert manifest is not None, "the last of them finds nothing missing, and commits"
    assert list(open_artifact(store, "ingest", manifest.digest).rows("videos", Video)) == whole


def test_a_source_that_is_not_there_is_one_sentence(ingest, tmp_path):
    with pytest.raises(SpecError, match="is not there"):
        ingest([str(tmp_path / "nowhere")])


@pytest.fixture
def s3_films(monkeypatch, tmp_path):
    """s3://films/season1/ with two films and a page, on moto's server."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    endpoint = f"http://127.0.0.1:{port}"
    for name, value in {
        "AWS_ACCESS_KEY_ID": "bricks",
        "AWS_SECRET_ACCESS_KEY": "bricks-on-loopback",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL_S3": endpoint,
        "AWS_EC2_METADATA_DISABLED": "true",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(name, value)
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while True:
            try:
                urllib.request.urlopen(f"{endpoint}/moto-api/", timeout=5).close()
                break
            except urllib.error.HTTPError:
                break
            except OSError:
                assert server.poll() is None, "moto's server did not start"
                time.sleep(0.05)
        client = boto3.client("s3", endpoint_url=endpoint)
        client.create_bucket(Bucket="films")
        for name, seed in (("one.mp4", 1), ("deep/two.mp4", 2)):
            client.upload_file(str(write_film(tmp_path / "up" / name, seed)), "films", f"season1/{name}")
        client.put_object(Bucket="films", Key="season1/page.mp4", Body=b"<html>")
        client.put_object(Bucket="films", Key="season2/three.mp4", Body=b"another season")
        yield "s3://films/season1/"
    finally:
        server.kill()
        server.wait()


def test_films_of_a_bucket_are_the_same_rows_as_those_of_a_folder(ingest, s3_films, tmp_path):
    rows, _ = ingest([s3_films])
    assert {row.name: row.state for row in rows} == {"one.mp4": "ok", "deep/two.mp4": "ok", "page.mp4": "unreadable"}
    (tmp_path / "up" / "page.mp4").write_bytes(b"<html>")
    local, _ = ingest([str(tmp_path / "up")])
    same = {"source": ""}
    assert [row.model_copy(update=same) for row in rows] == [row.model_copy(update=same) for row in local]


def test_a_table_in_a_bucket_names_clips_beside_it_and_elsewhere_in_buckets(ingest, s3_films, tmp_path):
    client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL_S3"])
    names = ["one.mp4", "./deep/two.mp4", "s3://films/season1/page.mp4", "s3://films/season2/none.mp4", "three.mp4"]
    table = "path,text,licence\n" + "".join(f"{name},A thing.,CC0-1.0\n" for name in names)
    client.put_object(Bucket="films", Key="season1/meta.csv", Body=table.encode())
    rows, manifest = ingest([{"path": "s3://films/season1/meta.csv", "licence": "MIT"}])
    assert [(row.row, row.kind, row.state, row.licence) for row in sorted(rows, key=lambda row: row.row)] == [
        (1, "clip", "ok", "CC0-1.0"),
        (2, "clip", "ok", "CC0-1.0"),
        (3, "clip", "unreadable", "CC0-1.0"),
        (4, "clip", "unreadable", "MIT"),
        (5, "clip", "unreadable", "MIT"),
    ]
    reasons = {row.row: row.reason for row in rows}
    assert reasons[5] == "Row 5 (line 6): three.mp4 is not there."
    assert manifest.counts == {"ok": 2, "unreadable": 3}
