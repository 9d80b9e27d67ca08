"""Pictures and films that are given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bricks_core.diffusion.conditions import Condition, start_image
from bricks_core.errors import BricksError
from bricks_core.generate.references import Given, encoded, given_file, num_frames_of, rehearse
from bricks_core.video.write import write_mp4


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 frames at 24 fps; frame n has brightness 5 n."""
    file = tmp_path_factory.mktemp("films") / "film.mp4"
    frames = np.repeat(np.arange(0, 200, 5, dtype=np.uint8), 32 * 48 * 3).reshape(40, 32, 48, 3)
    write_mp4(file, frames, 24)
    return file


def brightness(given: Given) -> list[int]:
    """Of every frame of a reference, as a codec would see it."""
    seen = encoded(given, lambda frames: torch.from_numpy(frames).permute(3, 0, 1, 2).float(), 16, 24)
    assert seen.shape[0] == 3
    assert seen.shape[2:] == (16, 24)
    return seen.mean(dim=(0, 2, 3)).round().int().tolist()


def test_a_film_is_taken_frame_by_frame_as_it_is(film):
    assert num_frames_of(Given(film)) == 40
    np.testing.assert_allclose(brightness(Given(film)), np.arange(0, 200, 5), atol=2)


def test_of_a_film_to_go_on_from_the_last_frames_are_taken_at_the_models_rate(film):
    given = Given(film, last_frames=4, fps=8.0)  # every third of 24 fps, the last one included
    assert num_frames_of(given) == 4
    np.testing.assert_allclose(brightness(given), [150, 165, 180, 195], atol=2)


def test_a_film_without_so_many_frames_at_that_rate_is_refused(film):
    for given in (Given(film, last_frames=15, fps=8.0), Given(film, last_frames=4, fps=60.0)):
        with pytest.raises(BricksError, match="go on from fewer with --condition-frames"):
            num_frames_of(given)


def test_a_picture_is_one_frame_upright_and_black_where_it_is_transparent(tmp_path):
    picture = Image.new("RGBA", (48, 32), (200, 200, 200, 255))
    picture.paste((255, 255, 255, 0), (0, 0, 24, 32))
    exif = Image.Exif()
    exif[0x0112] = 3  # to be turned upside down
    picture.save(tmp_path / "a.png", exif=exif)
    given = Given(tmp_path / "a.png")
    assert num_frames_of(given) == 1
    seen = encoded(given, lambda frames: torch.from_numpy(frames).permute(3, 0, 1, 2).float(), 32, 48)
    assert seen[:, 0, :, :23].eq(200).all()
    assert seen[:, 0, :, 25:].eq(0).all()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"no picture", "not a video in any format"),
        ("a.png", b"\x89PNG\r\n\x1a\n broken", "not a video in any format"),
        ("a.mp4", b"", "not a video in any format"),
    ],
)
def test_what_is_neither_picture_nor_film_is_refused(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BricksError) as refused:
        num_frames_of(Given(tmp_path / name))
    assert said in str(refused.value)


def test_a_picture_cut_short_is_refused(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BricksError, match="damaged picture"):
        num_frames_of(Given(tmp_path / "a.png"))


@pytest.mark.parametrize(("name", "said"), [("nothing.png", "no file nothing.png"), ("https://a.b/c.png", "download")])
def test_a_file_that_is_not_here_is_refused(name, said):
    with pytest.raises(BricksError, match=said):
        given_file(name)


def test_conditions_that_hold_are_rehearsed_in_silence_and_one_frame_further_is_refused():
    rehearse([1, 5], (start_image(), Condition(1, -2, -2, 2), Condition(2, -1, 0, 1, 0.5, loop=1)), 8, 3, 2)
    with pytest.raises(BricksError, match="runs past the end of the sample"):
        rehearse([1, 5], (start_image(), Condition(1, -2, -1, 2)), 8, 3, 2)


@pytest.mark.parametrize(
    ("conditions", "said"),
    [
        ((start_image(2),), "wants reference 2, and there are 2"),
        ((Condition(target_start=9),), "begins at frame 9 of the sample"),
        ((Condition(loop=3),), "ask for --loops 4"),
    ],
)
def test_conditions_that_cannot_hold_are_refused_before_anything_is_encoded(conditions, said):
    with pytest.raises(BricksError) as refused:
        rehearse([1, 5], conditions, 8, 3, 2)
    assert said in str(refused.value)
