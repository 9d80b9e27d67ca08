"""Videos become clips, shots and pictures in the store; what is left out has a reason."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from bricks_core.errors import DataError
from bricks_core.pipeline.local import run_alone, run_path
from bricks_core.spec.clip import Clip, Image, Shot
from bricks_core.spec.ingest import Video
from bricks_core.spec.run import BrickRun
from bricks_core.storage.artifacts import open_artifact
from bricks_core.storage.places import open_store
from bricks_core.video.read import read_rgb
from bricks_core.video.write import write_mp4

VIDEOS = Path(__file__).parents[4] / "shared" / "videos"


def a_run(source, **settings):
    return BrickRun.model_validate(
        {
            "apiVersion": "bricks.dev/v1alpha1",
            "kind": "BrickRun",
            "metadata": {"name": "test"},
            "spec": {"ingest": {"sources": [str(source)]}, "clip": {"preset": "ultrafast"} | settings},
        }
    )


class Left:
    """What a run left of ingest and clip."""

    def __init__(self, store, manifests):
        self.store = store
        self.videos = list(open_artifact(store, "ingest", manifests["ingest"].digest).rows("videos", Video))
        self.manifest = manifests["clip"]
        self.artifact = open_artifact(store, "clip", self.manifest.digest)
        self.shots = list(self.artifact.rows("shots", Shot))
        self.clips = list(self.artifact.rows("clips", Clip))
        self.images = list(self.artifact.rows("images", Image))


@pytest.fixture
def folder(shots, tmp_path):
    """Two films: three shots of which one is too short; one long take."""
    films = tmp_path / "films"
    films.mkdir()
    parts = [shots.pan(1, 30, speed_px=2), shots.pan(2, 8), shots.pan(3, 25, speed_px=2)]
    write_mp4(films / "three.mp4", np.concatenate(parts), 24)
    write_mp4(films / "long.mp4", shots.pan(4, 90), 24)
    return films


@pytest.fixture
def clip(folder, tmp_path):
    def ran(name="store", source=folder, **settings):
        store = open_store(str(tmp_path / name))
        return Left(store, run_path(a_run(source, **settings), store, "clip"))

    return ran


def test_shots_of_the_right_length_become_clips_and_pictures(clip, folder):
    left = clip(max_frames=60)
    names = {video.id: video.name for video in left.videos}
    found = sorted((names[shot.video_id], shot.first_frame, shot.end_frame, shot.state) for shot in left.shots)
    assert found == [
        ("long.mp4", 0, 45, "clip"),
        ("long.mp4", 45, 90, "clip"),
        ("three.mp4", 0, 30, "clip"),
        ("three.mp4", 30, 38, "dropped"),
        ("three.mp4", 38, 63, "clip"),
    ]
    assert {shot.reason for shot in left.shots if shot.state == "dropped"} == {"too short: 8 frames of at least 15"}
    assert left.manifest.counts == {"clips": 4, "dropped: too short": 1}
    assert {each.id for each in left.clips} == {shot.id for shot in left.shots if shot.state == "clip"}
    for table in (left.shots, left.clips, left.images):
        assert [row.id for row in table] == sorted(row.id for row in table)
    pictures = {image.clip_id: image for image in left.images}
    for each in left.clips:
        source = read_rgb(folder / names[each.video_id]).astype(int)
        with left.artifact.local(each.key) as file:
            read = read_rgb(file)
        assert (len(read), each.num_frames) == (each.end_frame - each.first_frame,) * 2
        assert np.abs(read[0] - source[each.first_frame]).mean() < 4
        assert np.abs(read[-1] - source[each.end_frame - 1]).mean() < 4
        assert (each.width_px, each.height_px, each.fps) == (256, 144, 24.0)
        image = pictures[each.id]
        with left.artifact.local(image.key) as file:
            picture = cv2.cvtColor(cv2.imread(str(file)), cv2.COLOR_BGR2RGB)
        assert np.abs(picture - source[image.frame]).mean() < 4


def test_the_same_films_make_the_same_bytes(clip):
    one, two = clip("one"), clip("two")
    assert one.manifest.objects == two.manifest.objects
    assert one.manifest.digest == two.manifest.digest


def test_shards_together_leave_what_one_process_leaves(clip, folder, tmp_path):
    whole = clip()
    run, store = a_run(folder), open_store(str(tmp_path / "sharded"))
    run_path(run, store, "ingest")
    *_, manifest = (run_alone(run, store, "clip", shard=shard, num_shards=3) for shard in (1, 0, 2))
    assert manifest is not None, "the last of them finds nothing missing, and commits"
    assert manifest.objects == whole.manifest.objects


def test_a_damaged_film_is_used_as_far_as_it_can_be_read(shots, clip, folder):
    data = (folder / "long.mp4").read_bytes()
    for path in folder.iterdir():
        path.unlink()
    (folder / "cut.mp4").write_bytes(data[: len(data) * 2 // 3])
    left = clip()
    (video,) = left.videos
    assert video.state == "damaged"
    assert 30 < video.num_frames < 80
    assert [shot.state for shot in left.shots if shot.first_frame == 0] == ["clip"]
    assert max(shot.end_frame for shot in left.shots) == video.num_frames


def test_a_film_that_changed_since_it_was_ingested_is_noticed(clip, folder, tmp_path):
    run, store = a_run(folder), open_store(str(tmp_path / "store"))
    run_path(run, store, "ingest")
    write_mp4(folder / "long.mp4", np.zeros((20, 144, 256, 3), np.uint8), 24)
    with pytest.raises(DataError, match=r"long\.mp4 .* is not what it was when it was ingested"):
        run_alone(run, store, "clip", shard=0, num_shards=1)
    (folder / "long.mp4").unlink()
    with pytest.raises(DataError, match=r"long\.mp4 is not in .* any more"):
        run_alone(run, store, "clip", shard=0, num_shards=1)


@pytest.mark.slow
@pytest.mark.skipif(not VIDEOS.is_dir(), reason="the developer films are not on this machine (../shared/videos)")
def test_every_developer_film_is_clips_or_a_row_with_a_reason(clip):
    left = clip(source=VIDEOS)
    truth = json.loads((VIDEOS / "truth.json").read_text(encoding="utf-8"))
    videos = {video.name: video for video in left.videos}
    assert {path.name for path in VIDEOS.iterdir()} == set(videos)
    clips = {}
    for each in left.clips:
        clips.setdefault(each.video_id, []).append((each.first_frame, each.end_frame))
    for name, video in videos.items():
        facts = truth.get(name, {"expect": "reject"})
        reasons = [video.reason, *(shot.reason for shot in left.shots if shot.video_id == video.id)]
        assert video.id in clips or any(reasons), name
        assert all(15 <= end - first <= 200 for first, end in clips.get(video.id, [])), name
        match facts.get("expect"):
            case "reject":
                assert video.state == ("unreadable" if Path(name).suffix in (".mp4", ".webm") else "beside"), name
                assert video.id not in clips, name
            case "no clip":
                assert video.id not in clips, name
            case "partial":
                assert "damaged" in video.reason, name
            case None:
                assert video.num_frames == facts["frames"], name
                assert video.variable_frame_rate == bool(facts.get("vfr")), name
                assert video.rotation_deg == facts.get("rotation", 0), name
                assert video.hdr == ("hdr" in facts), name
                for cut in facts["cuts"]:
                    assert not any(first < cut < end for first, end in clips.get(video.id, [])), (name, cut)
