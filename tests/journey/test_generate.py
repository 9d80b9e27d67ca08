"""Films from a run's training, through the real command line."""

from __future__ import annotations

import numpy as np
import pytest

from bricks_core.errors import BricksError
from bricks_core.generate.outputs import settings_of
from bricks_core.video.read import read_rgb
from tests.generate.conftest import Generate


@pytest.fixture
def generate(capsys, finished) -> Generate:
    """generate in this process, over the store of the finished run."""
    return Generate(capsys, "--store", finished.folder / "bricks-store", "--prompt", "A red thing", "--steps", "2")


def test_a_run_knows_its_codec_its_encoder_and_its_size(finished, tmp_path):
    """The largest bucket of tiny: 4 frames of 48x80, every second of the clips'."""
    ended = finished("jobs.generate", "tiny", "--prompt", "A red thing moves.", "--steps", "2", "--out", str(tmp_path))
    assert ended.out == f"{tmp_path}/001-a-red-thing-moves.mp4\n"
    assert "tiny, ema weights after step 9" in ended.err
    assert "not trained on" not in ended.err
    film = tmp_path / "001-a-red-thing-moves.mp4"
    assert read_rgb(film).shape == (4, 48, 80, 3)
    settings = settings_of(film)
    assert settings["model"]["step"] == 9
    assert (settings["codec"], settings["fps"]) == ("patch-dct:1", 12.0)


def test_a_step_and_its_weights_are_chosen_and_another_size_is_warned_of(generate, finished, tmp_path):
    manifest = next(finished.folder.glob("bricks-store/artifacts/train/*/manifest.json"))
    made = {}
    for step, weights in ((3, "raw"), (9, "raw"), (9, "ema")):
        film, sheet = generate(
            *(f"train/{manifest.parent.name[:12]}", "--step", step, "--weights", weights, "--sheet"),
            *("--frames", "3", "--size", "32x48", "--out", tmp_path / f"{step}-{weights}"),
        )
        assert sheet.is_file()
        made[step, weights] = read_rgb(film)
    (warned,) = [line for line in generate.told.splitlines() if "not trained on" in line]
    assert "3 frames of 32x48" in warned
    assert "4 frames at 12 fps of 48x80; images of 48x80" in warned
    assert not np.array_equal(made[3, "raw"], made[9, "raw"])
    assert not np.array_equal(made[9, "raw"], made[9, "ema"])


def test_a_folder_that_is_no_model_does_not_hide_a_run_of_its_name(generate, tmp_path, monkeypatch):
    (tmp_path / "tiny").mkdir()
    monkeypatch.chdir(tmp_path)
    (film,) = generate("tiny", "--frames", "1")
    assert settings_of(tmp_path / film)["model"]["step"] == 9


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("tiny", "--step", "5"), 64, "it has 0, 3, 4, 6, 9"),
        (("tiny", "--vae", "patch-dct"), 64, "leave --vae, --text-encoder and --revision out"),
        (("tiny/latents/x",), 64, "There is no model tiny/latents/x"),
        (("train/ffff",), 65, "no artifact of train whose digest begins with ffff"),
        (("tony",), 64, "There is no model tony"),
    ],
)
def test_what_a_run_has_not_is_refused(generate, arguments, code, said):
    with pytest.raises(BricksError) as refused:
        generate(*arguments)
    assert said in str(refused.value)
    assert refused.value.exit_code == code
