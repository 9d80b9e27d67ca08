"""Clips and images that a table gave are taken whole."""

import csv

import av
import numpy as np
import pytest

from bricks_core.errors import DataError
from bricks_core.pipeline.local import run_alone, run_path
from bricks_core.spec.clip import Clip, Image, Shot
from bricks_core.spec.run import BrickRun
from bricks_core.storage.artifacts import open_artifact
from bricks_core.storage.places import open_store
from bricks_core.video.write import jpeg, write_mp4


def a_run(table):
    return BrickRun.model_validate(
        {
            "apiVersion": "bricks.dev/v1alpha1",
            "kind": "BrickRun",
            "metadata": {"name": "test"},
            "spec": {"ingest": {"sources": [str(table)]}, "clip": {"max_frames": 30}},
        }
    )


def table_of(file, rows):
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with file.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.DictWriter(opened, columns)
        writer.writeheader()
        writer.writerows(rows)
    return file


def rows(store, manifests, table, row):
    return list(open_artifact(store, "clip", manifests["clip"].digest).rows(table, row))


def old_film(path, pictures, codec):
    """A film in a container of its suffix, as Open-Sora takes them beside mp4."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=8)
        stream.width, stream.height, stream.pix_fmt = pictures.shape[2], pictures.shape[1], "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def test_a_given_clip_is_its_file_byte_for_byte_however_long_and_with_cuts_in_it(shots, tmp_path):
    cut_in_it = np.concatenate([shots.pan(1, 30), shots.pan(2, 30)])
    write_mp4(tmp_path / "long.mp4", cut_in_it, 24)
    write_mp4(tmp_path / "short.mov", shots.pan(3, 3), 24)
    old_film(tmp_path / "old.avi", shots.pan(4, 12), "mpeg4")
    old_film(tmp_path / "free.mkv", shots.pan(5, 12), "mpeg4")
    names = ["long.mp4", "short.mov", "old.avi", "free.mkv"]
    table = table_of(tmp_path / "t.csv", [{"path": name, "text": "A thing."} for name in names])
    store = open_store(str(tmp_path / "store"))
    manifests = run_path(a_run(table), store, "clip")
    clips = {row.key.rpartition(".")[2]: row for row in rows(store, manifests, "clips", Clip)}
    assert {suffix: (row.num_frames, row.fps) for suffix, row in clips.items()} == {
        "mp4": (60, 24.0),
        "mov": (3, 24.0),
        "avi": (12, 8.0),
        "mkv": (12, 8.0),
    }
    artifact = open_artifact(store, "clip", manifests["clip"].digest)
    for name in names:
        with artifact.local(clips[name.rpartition(".")[2]].key) as file:
            assert file.read_bytes() == (tmp_path / name).read_bytes()
    assert rows(store, manifests, "images", Image) == []
    assert {(row.id, row.first_frame, row.end_frame, row.state) for row in rows(store, manifests, "shots", Shot)} == {
        (row.id, 0, row.num_frames, "clip") for row in clips.values()
    }
    assert manifests["clip"].counts == {"clips": 4}


def test_an_image_belongs_to_its_clip_where_that_is_here_and_else_to_itself(shots, tmp_path):
    write_mp4(tmp_path / "clip.mp4", shots.pan(1, 20), 24)
    for name in ("mine.jpg", "other.jpg", "alone.png"):
        (tmp_path / name).write_bytes(jpeg(shots.pan(len(name), 1)[0]))
    table = table_of(
        tmp_path / "t.csv",
        [
            {"path": "clip.mp4", "id": "a" * 16},
            {"path": "mine.jpg", "id": "b" * 16, "clip_id": "a" * 16},
            {"path": "other.jpg", "id": "c" * 16, "clip_id": "d" * 16},
            {"path": "alone.png", "id": "not one of ours"},
        ],
    )
    store = open_store(str(tmp_path / "store"))
    manifests = run_path(a_run(table), store, "clip")
    images = {row.id: row.clip_id for row in rows(store, manifests, "images", Image)}
    assert images.pop("b" * 16) == "a" * 16
    assert images.pop("c" * 16) == "c" * 16
    ((alone, clip_id),) = images.items()
    assert alone == clip_id
    assert manifests["clip"].counts == {"clips": 1, "given images": 3}


def test_one_file_under_two_ids_is_two_clips_and_an_id_twice_is_one(shots, tmp_path):
    write_mp4(tmp_path / "clip.mp4", shots.pan(1, 20), 24)
    write_mp4(tmp_path / "more.mp4", shots.pan(2, 20), 24)
    rows_given = [("clip.mp4", "a"), ("clip.mp4", "b"), ("more.mp4", "b")]
    table = table_of(tmp_path / "t.csv", [{"path": path, "id": letter * 16} for path, letter in rows_given])
    store = open_store(str(tmp_path / "store"))
    manifests = run_path(a_run(table), store, "clip")
    assert {row.id for row in rows(store, manifests, "clips", Clip)} == {"a" * 16, "b" * 16}
    assert manifests["ingest"].counts == {"ok": 2, "unusable": 1}


def test_a_given_clip_that_changed_or_went_since_is_noticed(shots, tmp_path):
    write_mp4(tmp_path / "clip.mp4", shots.pan(1, 20), 24)
    table = table_of(tmp_path / "t.csv", [{"path": "clip.mp4"}])
    store = open_store(str(tmp_path / "store"))
    run_path(a_run(table), store, "ingest")
    write_mp4(tmp_path / "clip.mp4", shots.pan(2, 20), 24)
    with pytest.raises(DataError, match=r"clip\.mp4 .* is not what it was when it was ingested"):
        run_alone(a_run(table), store, "clip")
    (tmp_path / "clip.mp4").unlink()
    with pytest.raises(DataError, match=r"clip\.mp4 is not in .*t\.csv any more"):
        run_alone(a_run(table), store, "clip")


def test_shards_together_leave_what_one_process_leaves(shots, tmp_path):
    for seed in range(4):
        write_mp4(tmp_path / f"{seed}.mp4", shots.pan(seed, 10), 24)
    table = table_of(tmp_path / "t.csv", [{"path": f"{seed}.mp4", "text": "A thing."} for seed in range(4)])
    whole = run_path(a_run(table), open_store(str(tmp_path / "whole")), "clip")
    store = open_store(str(tmp_path / "sharded"))
    for stage in ("ingest", "clip"):
        for shard in (1, 0):
            run_alone(a_run(table), store, stage, shard=shard, num_shards=2)
        manifest = run_alone(a_run(table), store, stage, num_shards=2, commit=True)
        assert manifest.objects == whole[stage].objects
