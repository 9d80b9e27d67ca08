"""Clips hold every frame of their shot and none of its neighbours."""

from contextlib import closing
from fractions import Fraction
from itertools import pairwise

import av
import cv2
import numpy as np
import pytest

from bricks_core.errors import DataError
from bricks_core.stages.clip.cut import cut
from bricks_core.stages.clip.scenes import Shot
from bricks_core.video.read import frames, read_rgb
from bricks_core.video.write import write_mp4


@pytest.fixture
def film(shots, tmp_path):
    """Three shots of 20 frames whose neighbours look quite different."""
    path = tmp_path / "film.mp4"
    write_mp4(path, np.concatenate([shots.pan(seed, 20, speed_px=3) for seed in range(3)]), 25)
    return path


SHOTS = [Shot(0, 20), Shot(20, 37), Shot(40, 60)]


def test_every_frame_of_the_plan_and_no_other(film, tmp_path):
    source = read_rgb(film).astype(int)
    clips = cut(film, SHOTS, tmp_path)
    assert [clip.shot for clip in clips] == SHOTS
    for clip in clips:
        read = read_rgb(clip.file)
        assert len(read) == clip.shot.num_frames
        for index, picture in enumerate(read):
            # Nearer to its own frame than to the one before and the one after, at both ends too.
            distances = np.abs(source - picture).mean(axis=(1, 2, 3))
            assert distances.argmin() == clip.shot.first_frame + index
            assert distances.min() < 3
        assert (clip.width_px, clip.height_px, clip.fps) == (256, 144, 25.0)


def test_the_middle_frame_is_a_picture(film, tmp_path):
    source = read_rgb(film).astype(int)
    for clip in cut(film, SHOTS, tmp_path):
        assert clip.image_frame == (clip.shot.first_frame + clip.shot.end_frame) // 2
        picture = cv2.cvtColor(cv2.imread(str(clip.image_file)), cv2.COLOR_BGR2RGB)
        assert np.abs(picture - source[clip.image_frame]).mean() < 3


def test_the_same_cut_makes_the_same_bytes(film, tmp_path):
    made = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        clips = cut(film, SHOTS, tmp_path / name)
        made.append([(clip.file.read_bytes(), clip.image_file.read_bytes()) for clip in clips])
    assert made[0] == made[1]


def test_times_of_a_variable_rate_stay(shots, tmp_path):
    path = tmp_path / "vfr.mp4"
    pts = [40 * index + 80 * (index // 3) for index in range(40)]
    with av.open(str(path), "w") as film:
        stream = film.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 256, 144, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for index, picture in enumerate(shots.pan(1, 40)):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = pts[index], Fraction(1, 1000)
            film.mux(stream.encode(frame))
        film.mux(stream.encode(None))
    (clip,) = cut(path, [Shot(10, 30)], tmp_path)
    with closing(frames(clip.file)) as film:
        times = [round(1000 * frame.time_s) for frame in film]
    assert [b - a for a, b in pairwise(times)] == [b - a for a, b in pairwise(pts[10:30])]
    assert clip.fps == pytest.approx(19 / ((pts[29] - pts[10]) / 1000))


def test_nothing_is_cut_from_a_film_without_clips(film, tmp_path):
    assert cut(film, [], tmp_path) == []


def test_a_film_that_ends_early_is_an_error(film, tmp_path):
    with pytest.raises(DataError, match="ended before frame 80"):
        cut(film, [Shot(0, 20), Shot(50, 80)], tmp_path)
