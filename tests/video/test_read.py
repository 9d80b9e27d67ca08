"""Frames of any film: the right ones, upright, in right colours."""

from contextlib import closing
from fractions import Fraction

import av
import numpy as np
import pytest

from bricks_core.errors import DataError
from bricks_core.video.read import frames, read_rgb


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("b_frames.mp4", {"options": {"bf": "3", "g": "12"}}),
        ("vp8_without_a_count.webm", {"codec": "libvpx", "options": {"crf": "4", "b": "2M"}}),
        ("full_chroma.mp4", {"pix_fmt": "yuv444p"}),
        ("lossless.mkv", {"codec": "ffv1", "pix_fmt": "bgr0"}),
        ("ten_bits.mp4", {"pix_fmt": "yuv420p10le"}),
        ("starts_late.mp4", {"pts": list(range(7, 47)), "time_base": Fraction(1, 25)}),
        ("animated.gif", {"codec": "gif", "pix_fmt": "rgb8", "rate": 10}),
        ("mpeg4.avi", {"codec": "mpeg4", "options": {"qscale": "2", "g": "10"}}),
    ],
)
def test_frames_are_counted_as_they_are_shown(films, tmp_path, name, settings):
    path = films.write(tmp_path / name, films.numbered(40), **settings)
    wanted = [39, 0, 17, 18, 3]
    step = 9 if name.endswith("gif") else 1  # rgb8 has few greys
    assert [
        abs(films.number_of(each) - want) <= step for each, want in zip(read_rgb(path, wanted), wanted, strict=True)
    ]
    with closing(frames(path)) as film:
        found = [(frame.index, films.number_of(frame.rgb())) for frame in film]
    assert [index for index, _ in found] == list(range(40))
    assert all(abs(number - index) <= step for index, number in found)


def test_a_variable_rate_is_told_by_timestamps(films, tmp_path):
    pts = [0, 40, 80, 200, 240, 400]
    path = films.write(tmp_path / "vfr.mp4", films.numbered(6), pts=pts, time_base=Fraction(1, 1000))
    with closing(frames(path)) as film:
        assert [round(frame.time_s, 3) for frame in film] == [each / 1000 for each in pts]


def test_a_turned_film_comes_upright(films, tmp_path):
    picture = films.texture(1)
    path = films.turn_by_90(films.write(tmp_path / "turned.mp4", [picture] * 3, options={"crf": "5"}))
    with closing(frames(path)) as film:
        frame = next(film)
        assert (frame.width_px, frame.height_px) == (96, 160)
        upright = np.rot90(picture)
        assert np.abs(frame.rgb().astype(int) - upright).mean() < 4
        assert np.abs(frame.luma() - upright @ [0.299, 0.587, 0.114]).mean() < 3


@pytest.mark.parametrize("size", [(75, 101), (96, 161), (97, 160)])
def test_odd_sizes_are_read_whole(films, tmp_path, size):
    picture = films.texture(2, 104, 168)[: size[0], : size[1]]
    path = films.write(tmp_path / "odd.mkv", [picture] * 2, codec="ffv1", pix_fmt="yuv420p")
    read = read_rgb(path, [1])
    assert read.shape == (1, *size, 3)
    assert np.abs(read[0].astype(int) - picture).mean() < 5


@pytest.mark.parametrize(("matrix", "full"), [(1, False), (6, False), (1, True), (6, True)])
def test_colours_come_by_the_files_own_matrix_and_range(tmp_path, matrix, full):
    # Pure red by the definition of each matrix: Kr = 0.2126 (BT.709) or 0.299 (BT.601).
    kr, kb = (0.2126, 0.0722) if matrix == 1 else (0.299, 0.114)
    luma, cb = kr, -kr / (2 * (1 - kb))
    scale, offset, chroma = (255, 0, 255) if full else (219, 16, 224)
    planes = [round(offset + scale * luma), round(128 + chroma * cb), round(128 + chroma * 0.5)]
    yuv = np.concatenate([np.full((96, 160), planes[0]), np.full((24, 160), planes[1]), np.full((24, 160), planes[2])])
    path = tmp_path / "red.mp4"
    with av.open(str(path), "w") as film:
        stream = film.add_stream("libx264", rate=25, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = 160, 96, "yuvj420p" if full else "yuv420p"
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, 2 if full else 1
        picture = av.VideoFrame.from_ndarray(np.clip(yuv, 0, 255).astype(np.uint8), format=stream.pix_fmt)
        picture.pts = 0
        film.mux(stream.encode(picture))
        film.mux(stream.encode(None))
    red = read_rgb(path)[0].reshape(-1, 3).mean(axis=0)
    assert np.abs(red - [255, 0, 0]).max() < 4


@pytest.mark.parametrize(("trc", "white"), [(16, 0.58), (18, 0.75)])
def test_high_dynamic_range_is_brought_to_ordinary_range(tmp_path, trc, white):
    """A grey at HDR's reference white (58 % PQ, 75 % HLG) is to be bright, black black, and neither to have a hue."""
    path = tmp_path / "hdr.mp4"
    with av.open(str(path), "w") as film:
        stream = film.add_stream("libx264", rate=25, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = 160, 96, "yuv420p10le"
        stream.codec_context.colorspace, stream.codec_context.color_trc = 9, trc
        stream.codec_context.color_primaries, stream.codec_context.color_range = 9, 1
        for pts, level in enumerate((0.0, white, 1.0)):
            picture = av.VideoFrame(160, 96, "yuv420p10le")
            for plane, value in zip(picture.planes, (round(64 + 876 * level), 512, 512), strict=True):
                plane.update(np.full(plane.buffer_size // 2, value, "<u2").tobytes())
            picture.pts = pts
            film.mux(stream.encode(picture))
        film.mux(stream.encode(None))
    with closing(frames(path)) as film:
        read = list(film)
        levels = [frame.rgb().reshape(-1, 3).mean(axis=0) for frame in read]
        lumas = [frame.luma().mean() for frame in read]
    assert all(frame.is_hdr for frame in read)
    assert all(np.ptp(level) < 2 for level in levels)
    assert levels[0].max() < 3
    assert 165 < levels[1].mean() < 215
    assert levels[2].min() > 250
    assert np.allclose(lumas, [level.mean() for level in levels], atol=2)


def test_after_damage_nothing_is_trusted_until_a_sound_key_frame(films, tmp_path):
    pictures = [films.texture(seed) for seed in range(60)]
    path = films.write(tmp_path / "film.mp4", pictures, options={"g": "20", "bf": "0", "sc_threshold": "0"})
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as film:
        places = [packet.pos for packet in film.demux(video=0) if packet.size]
    data[places[25] + 40 : places[25] + 240] = np.random.default_rng(0).bytes(
        200
    )  # frame 25: predicted from the key frame 20
    path.write_bytes(data)
    with closing(frames(path)) as film:
        damaged = [frame.index for frame in film if frame.is_damaged]
    assert damaged == list(range(25, 40))


def test_a_missing_tail_ends_the_film_with_a_damaged_frame_at_most(films, tmp_path):
    path = films.write(
        tmp_path / "film.mp4",
        [films.texture(seed) for seed in range(40)],
        options={"bf": "0"},
        container={"movflags": "+faststart"},
    )
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    with closing(frames(path)) as film:
        read = [frame.is_damaged for frame in film]
    assert 10 < len(read) < 30
    assert not any(read[:-1])


def test_the_largest_of_several_streams_is_read(films, tmp_path):
    path = tmp_path / "two.mp4"
    with av.open(str(path), "w") as film:
        small, large = (film.add_stream("libx264", rate=25) for _ in range(2))
        small.width, small.height, large.width, large.height = 96, 64, 160, 96
        for pts in range(5):
            for stream in (small, large):
                picture = av.VideoFrame.from_ndarray(films.texture(pts, stream.height, stream.width), format="rgb24")
                picture.pts = pts
                film.mux(stream.encode(picture))
        for stream in (small, large):
            film.mux(stream.encode(None))
    assert read_rgb(path, [0]).shape == (1, 96, 160, 3)
    with closing(frames(path, stream_index=0)) as film:
        assert next(film).width_px == 96


def test_a_frame_that_is_not_there_is_named(films, tmp_path):
    path = films.write(tmp_path / "short.mp4", films.numbered(5))
    with pytest.raises(DataError, match=r"short\.mp4 has no frame 5"):
        read_rgb(path, [2, 5])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("list.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfilm.mp4\n#EXT-X-ENDLIST\n"),
        ("list.ffconcat", "ffconcat version 1.0\nfile film.mp4\n"),
        ("text.txt", "a text\n" * 100),
    ],
)
def test_what_only_points_to_films_is_not_opened(films, tmp_path, name, content):
    films.write(tmp_path / "film.mp4", films.numbered(5))
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match="not a video"):
        read_rgb(tmp_path / name)
