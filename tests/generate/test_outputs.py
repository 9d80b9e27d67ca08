"""Files with their settings inside."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bricks_core.errors import SpecError, TryLater, UsageError
from bricks_core.generate.outputs import MAX_SLUG, file_name, frames_at, settings_of, slug, state_of, write

SETTINGS = {"bricks": "1", "prompt": 'A "red" car — 赤い車', "seed": 7, "fps": 8.0, "texts": ["a", "b"]}
FILM = np.random.default_rng(0).integers(0, 255, (6, 32, 48, 3), np.uint8)


@pytest.mark.parametrize("name", ["001-a.mp4", "001-a.png"])
def test_a_file_tells_its_settings(tmp_path: Path, name: str):
    write(tmp_path / "out" / name, iter(FILM), 8.0, "A title", SETTINGS)
    assert settings_of(tmp_path / "out" / name) == SETTINGS
    assert state_of(tmp_path / "out" / name, SETTINGS) == ("same", [])
    assert [file.name for file in (tmp_path / "out").iterdir()] == [name]


def test_other_settings_are_named_and_another_version_is_none(tmp_path: Path):
    write(tmp_path / "a.mp4", iter(FILM), 8.0, "A title", SETTINGS)
    assert state_of(tmp_path / "a.mp4", SETTINGS | {"bricks": "2", "texts": ("a", "b")}) == ("same", [])
    other = {key: value for key, value in SETTINGS.items() if key != "fps"} | {"seed": 8, "steps": 3}
    assert state_of(tmp_path / "a.mp4", other) == ("other", ["seed", "steps", "fps"])
    assert state_of(tmp_path / "b.mp4", SETTINGS) == ("missing", [])


@pytest.mark.parametrize("content", [b"", b"my own notes"])
def test_what_was_not_made_here_is_not_replaced(tmp_path: Path, content: bytes):
    for name in ("a.mp4", "a.png"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UsageError, match="was not made by bricks generate"):
            state_of(tmp_path / name, SETTINGS)


def test_a_picture_too_large_to_be_read_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path / "a.png", iter(FILM), 8.0, "A title", SETTINGS)
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UsageError, match="was not made by bricks generate"):
        state_of(tmp_path / "a.png", SETTINGS)


def test_a_name_too_long_for_the_disk_is_told(tmp_path: Path):
    with pytest.raises(SpecError, match="the name is too long"):
        state_of(tmp_path / ("x" * 300) / "a.mp4", SETTINGS)


def test_a_film_cut_off_while_it_is_made_leaves_the_old_one_and_nothing_beside_it(tmp_path: Path):
    file = tmp_path / "a.mp4"
    write(file, iter(FILM), 8.0, "A title", SETTINGS)
    before = file.read_bytes()

    def cut_off():
        yield FILM[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(file, cut_off(), 8.0, "A title", SETTINGS | {"seed": 8})
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_a_film_that_another_process_is_making_is_left_to_it(tmp_path: Path):
    file = tmp_path / "a.mp4"

    def met_by_another():
        yield from FILM[:3]
        with pytest.raises(TryLater, match="is being made by another process"):
            write(file, iter(FILM), 8.0, "A title", SETTINGS | {"seed": 8})
        yield from FILM[3:]

    write(file, met_by_another(), 8.0, "A title", SETTINGS)
    assert settings_of(file) == SETTINGS
    assert len(frames_at(file, len(FILM), len(FILM))) == len(FILM)
    assert list(tmp_path.iterdir()) == [file]


def test_what_a_killed_process_left_beside_a_film_is_in_nobodys_way(tmp_path: Path):
    (tmp_path / ".a.mp4.part").write_bytes(b"half a film")
    write(tmp_path / "a.mp4", iter(FILM), 8.0, "A title", SETTINGS)
    assert settings_of(tmp_path / "a.mp4") == SETTINGS
    assert [file.name for file in tmp_path.iterdir()] == ["a.mp4"]


def test_a_picture_keeps_its_pixels_and_a_film_shows_its_first_and_last_frame(tmp_path: Path):
    write(tmp_path / "a.png", iter(FILM[:1]), 8.0, "A title", SETTINGS)
    (picture,) = frames_at(tmp_path / "a.png", 1, 4)
    np.testing.assert_array_equal(picture, FILM[0])
    steps = np.repeat(np.arange(0, 240, 40, dtype=np.uint8), 32 * 48 * 3).reshape(6, 32, 48, 3)
    write(tmp_path / "a.mp4", iter(steps), 8.0, "A title", SETTINGS)
    shown = [int(frame.mean().round()) for frame in frames_at(tmp_path / "a.mp4", 6, 4)]
    np.testing.assert_allclose(shown, [0, 80, 120, 200], atol=2)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("A red car, moving!", "003-a-red-car-moving.mp4"),
        ("../../etc/passwd", "003-etc-passwd.mp4"),
        ("赤い車", "003-赤い車.mp4"),
        ("?!", "003-prompt.mp4"),
        ("word " * 40, "003-word-word-word-word-word-word-word-word-word.mp4"),
        ("x" * 100, f"003-{'x' * 24}.mp4"),
    ],
)
def test_a_file_is_called_after_its_prompt(text: str, name: str):
    assert file_name(3, text, 16) == name


def test_a_picture_is_a_png_and_further_samples_name_their_seed():
    assert file_name(1, "a", 1, seed=43) == "001-a-seed-43.png"


@given(st.text())
def test_any_prompt_makes_a_short_name_of_words(text: str):
    made = slug(text)
    assert made
    assert len(made) <= MAX_SLUG
    assert not set(made) & set("/\\. \0\n")
