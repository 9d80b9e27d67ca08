"""Films written: every picture of the plan, upright, at its time, the same bytes every time."""

import os
import subprocess
import sys
from contextlib import closing
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bricks_core.errors import DataError
from bricks_core.video.probe import probe
from bricks_core.video.read import frames, read_rgb
from bricks_core.video.write import Mp4Writer, jpeg, planes_of, planes_of_rgb, write_mp4


def copied(source, target, **settings):
    with closing(frames(source)) as film:
        first = next(film)
        with Mp4Writer(target, fps=Fraction(25), time_base=first.time_base, **settings) as writer:
            writer.add(planes_of(first), first.pts, first.duration)
            for frame in film:
                writer.add(planes_of(frame), frame.pts, frame.duration)
    return target


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"codec": "ffv1", "pix_fmt": "bgr0"},
        {"pix_fmt": "yuv444p"},
        {"pix_fmt": "yuv420p10le"},
        {"colour": {"colorspace": 1, "color_range": 1}},
        {"pix_fmt": "yuvj420p", "colour": {"color_range": 2}},
    ],
)
def test_a_written_film_looks_like_its_source(films, tmp_path, settings):
    pictures = [films.texture(seed) for seed in range(4)]
    source = films.write(tmp_path / "source.mkv", pictures, **{"options": {"crf": "2"}} | settings)
    written = copied(source, tmp_path / "written.mp4", crf=4)
    assert np.abs(read_rgb(written).astype(int) - read_rgb(source)).mean() < 4
    facts = probe(written)
    assert (facts.codec, facts.num_frames, facts.state) == ("h264", 4, "ok")
    with av.open(str(written)) as film:
        assert [stream.type for stream in film.streams] == ["video"]
        assert film.streams[0].codec_context.colorspace in (1, 6)  # told, so that nobody has to guess
        assert film.streams[0].codec_context.pix_fmt in ("yuv420p", "yuvj420p")


def test_the_same_pictures_make_the_same_bytes(films, tmp_path):
    pictures = np.stack([films.texture(seed) for seed in range(12)])
    for name in ("a.mp4", "b.mp4"):
        write_mp4(tmp_path / name, pictures, 8)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    assert jpeg(pictures[0]) == jpeg(pictures[0])


AMONG_LEFTOVERS = """
import sys
import numpy as np
from bricks_core.video.write import write_mp4

pictures = np.load(sys.argv[1])
leftovers = [np.full(1 << 16, int(sys.argv[2]), np.uint8) for _ in range(1000)]
del leftovers
write_mp4(sys.argv[3], pictures, 8)
"""


def test_what_was_in_memory_before_is_not_in_the_bytes(films, tmp_path):
    """An encoder that reads beyond its own data makes other films of the same pictures."""
    moving = [np.roll(films.texture(3), 3 * index, axis=1) for index in range(24)]
    np.save(tmp_path / "pictures.npy", np.stack(moving))
    made = []
    for leftover in ("0", "255"):
        film = tmp_path / f"among-{leftover}.mp4"
        # What is freed stays with the process, and is given out again.
        keeping = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
        command = [sys.executable, "-c", AMONG_LEFTOVERS, tmp_path / "pictures.npy", leftover, film]
        subprocess.run(command, check=True, cwd=Path(__file__).parents[2], env=os.environ | keeping)
        made.append(film.read_bytes())
    assert made[0] == made[1]


def test_times_stay_as_they_were(films, tmp_path):
    pts = [0, 33, 67, 233, 267, 400, 433]
    source = films.write(tmp_path / "vfr.mkv", films.numbered(7), pts=pts, time_base=Fraction(1, 1000))
    written = copied(source, tmp_path / "written.mp4")
    with closing(frames(written)) as film:
        assert [round(1000 * frame.time_s) for frame in film] == pts
    assert probe(written).variable_frame_rate


def test_a_turned_film_is_written_upright(films, tmp_path):
    source = films.turn_by_90(films.write(tmp_path / "turned.mp4", [films.texture(5)] * 3, options={"crf": "2"}))
    written = copied(source, tmp_path / "written.mp4", crf=4)
    facts = probe(written)
    assert (facts.width_px, facts.height_px, facts.rotation_deg) == (96, 160, 0)
    assert np.abs(read_rgb(written).astype(int) - np.rot90(films.texture(5))).mean() < 6


@given(height=st.integers(16, 70), width=st.integers(16, 70), num_frames=st.integers(1, 4), seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_any_size_is_written_but_for_an_odd_last_row_or_column(tmp_path_factory, height, width, num_frames, seed):
    # Smooth pictures: what 4:2:0 and x264 take away is not what is tested.
    y, x = np.mgrid[0:height, 0:width]
    pictures = [np.stack([y + seed, x + 2 * index, y + x], axis=-1) for index in range(num_frames)]
    video = np.stack(pictures).astype(np.uint8)
    path = tmp_path_factory.mktemp("sizes") / "film.mp4"
    assert write_mp4(path, video, 12, crf=8) == num_frames
    read = read_rgb(path)
    assert read.shape == (num_frames, height & ~1, width & ~1, 3)
    assert np.abs(read.astype(int) - video[:, : height & ~1, : width & ~1]).mean() < 6


def test_a_film_carries_its_title_and_comment(films, tmp_path):
    path = tmp_path / "sample.mp4"
    write_mp4(path, films.numbered(5), 8, metadata={"title": "A red car", "comment": "seed 3, step 250"})
    with av.open(str(path)) as film:
        assert film.metadata["title"] == "A red car"
        assert film.metadata["comment"] == "seed 3, step 250"
        assert film.streams.video[0].average_rate == 8


def test_frames_lost_on_the_way_are_noticed(films, tmp_path):
    writer = Mp4Writer(tmp_path / "film.mp4", fps=Fraction(25))
    for index, picture in enumerate(films.numbered(5)):
        writer.add(planes_of_rgb(picture), index)
    writer.num_frames += 1
    with pytest.raises(DataError, match="6 frames went in, 5 come out"):
        writer.close()


def test_a_picture_survives_as_jpeg(films):
    picture = films.texture(3)
    read = cv2.cvtColor(cv2.imdecode(np.frombuffer(jpeg(picture), np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    assert np.abs(read.astype(int) - picture).mean() < 3
