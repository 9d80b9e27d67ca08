"""What a film really is, or why it is none."""

from fractions import Fraction

import av
import numpy as np
import pytest

from bricks_core.video.probe import probe


def test_facts_are_of_the_frames_and_not_of_the_header(films, tmp_path):
    path = films.write(tmp_path / "film.webm", films.numbered(31), codec="libvpx", rate=24)
    facts = probe(path)
    assert (facts.state, facts.reason) == ("ok", "")
    assert (facts.container, facts.codec, facts.pixel_format) == ("matroska,webm", "vp8", "yuv420p")
    assert (facts.num_frames, facts.num_damaged_frames) == (31, 0)
    assert facts.fps == pytest.approx(24, rel=0.01)
    assert facts.duration_s == pytest.approx(31 / 24, abs=0.05)
    assert not facts.variable_frame_rate
    assert (facts.width_px, facts.height_px, facts.rotation_deg) == (160, 96, 0)


def test_a_whole_rate_is_whole(films, tmp_path):
    assert probe(films.write(tmp_path / "film.mp4", films.numbered(20))).fps == 25.0


def test_a_variable_rate_is_noticed(films, tmp_path):
    pts = [index + index // 5 * 2 for index in range(20)]
    path = films.write(tmp_path / "film.mp4", films.numbered(20), pts=pts, time_base=Fraction(1, 25))
    facts = probe(path)
    assert facts.variable_frame_rate
    assert facts.fps == pytest.approx(19 / (pts[-1] / 25))


def test_a_turned_film_has_its_upright_size(films, tmp_path):
    facts = probe(films.turn_by_90(films.write(tmp_path / "film.mp4", films.numbered(5))))
    assert (facts.width_px, facts.height_px) == (96, 160)
    assert (facts.stored_width_px, facts.stored_height_px, facts.rotation_deg) == (160, 96, 90)


def test_a_late_start_is_told(films, tmp_path):
    path = films.write(tmp_path / "film.mkv", films.numbered(5), pts=[25, 26, 27, 28, 29], time_base=Fraction(1, 25))
    facts = probe(path)
    assert (facts.start_s, facts.num_frames) == (1.0, 5)
    assert facts.duration_s == pytest.approx(0.2, abs=0.01)


def test_colours_are_told(films, tmp_path):
    hdr = {"colorspace": 9, "color_trc": 16, "color_primaries": 9, "color_range": 1}
    facts = probe(films.write(tmp_path / "hdr.mp4", films.numbered(3), pix_fmt="yuv420p10le", colour=hdr))
    assert (facts.hdr, facts.colour_transfer, facts.colour_primaries) == (True, "smpte2084", "bt2020")
    assert (facts.colour_matrix, facts.colour_range) == ("bt2020", "limited")
    facts = probe(films.write(tmp_path / "plain.mp4", films.numbered(3)))
    assert (facts.hdr, facts.colour_transfer, facts.colour_matrix) == (False, "unspecified", "bt601")


def write_sound(path):
    with av.open(str(path), "w") as film:
        stream = film.add_stream("aac", rate=44100)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        sound.sample_rate, sound.pts = 44100, 0
        film.mux(stream.encode(sound))
        film.mux(stream.encode(None))


def cut_before_its_index(path, films):
    films.write(path, [films.texture(seed) for seed in range(20)])
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path, films: path.write_bytes(b""), "The file is empty."),
        (lambda path, films: path.write_text("<!DOCTYPE html><title>404</title>", encoding="utf-8"), "web page"),
        (lambda path, films: path.write_bytes(bytes(range(256)) * 40), "not a video"),
        (lambda path, films: write_sound(path), "no video stream (only sound)"),
        (cut_before_its_index, "index (moov) is missing"),
    ],
)
def test_what_is_no_film_says_why(films, tmp_path, make, reason):
    path = tmp_path / "film.mp4"
    make(path, films)
    facts = probe(path)
    assert facts.state == "unreadable"
    assert reason in facts.reason
    assert facts.reason.endswith(".")


@pytest.mark.parametrize("name", ["film.mp4", "film.avi", "film.mkv"])
def test_a_cut_off_film_is_damaged_and_says_so(films, tmp_path, name):
    path = films.write(
        tmp_path / name,
        [films.texture(seed) for seed in range(100)],
        codec="mpeg4",
        options={"g": "10"},
        container={"movflags": "+faststart"} if name.endswith("mp4") else {},
    )
    assert probe(path).state == "ok"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    facts = probe(path)
    assert facts.state == "damaged"
    assert 40 < facts.num_frames < 80
    assert "Its end is missing" in facts.reason or f"the first is frame {facts.num_frames - 1}" in facts.reason
    assert f"{facts.num_frames} frames" in facts.reason
