"""A user of Open-Sora brings a checkpoint, fine-tunes it, and takes the result back to upstream and to diffusers."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from bricks_core.models.stdit2 import STDiT2
from bricks_core.storage.places import open_store
from bricks_core.storage.trainings import WEIGHTS, trainings_of
from bricks_core.video.read import read_rgb
from tests.journey.tiny_run import Runner

pytestmark = pytest.mark.slow

SHAPE = {
    "hidden_size": 48,
    "depth": 2,
    "num_heads": 2,
    "input_sq_size": 64,
    "mlp_ratio": 4.0,
    "caption_channels": 4096,
    "model_max_length": 200,
    "qk_norm": True,
    "pred_sigma": True,
    "in_channels": 4,
    "patch_size": [1, 2, 2],
}
"""The tiny run's network, as upstream's config.json describes one."""
BUILT_IN = ("--vae", "patch-dct", "--text-encoder", "hashed-words")
ASKED = ("--prompt", "A red thing moves.", "--frames", "4", "--size", "48x80", "--fps", "12", "--steps", "2")


@pytest.fixture(scope="module")
def upstream(tmp_path_factory):
    """A folder as on the hub, with weights that are no longer those of the start."""
    folder = tmp_path_factory.mktemp("hub")
    torch.manual_seed(1)
    model = STDiT2(**SHAPE)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape))
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    unused = {"architectures": ["STDiT2"], "input_size": [32, 60, 106], "enable_flash_attn": False, "freeze": None}
    (folder / "config.json").write_text(json.dumps(unused | SHAPE), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def tuned(finished, upstream, tmp_path_factory):
    """A user who has imported it and tuned it on the films, for a few steps."""
    folder = tmp_path_factory.mktemp("tuned") / "run"
    shutil.copytree(finished.folder, folder)
    runner = Runner(folder, folder / "tuned.yaml")
    runner.bricks("checkpoint", "import", str(upstream), "--out", "brought")
    document = yaml.safe_load((folder / "tiny.yaml").read_text(encoding="utf-8"))
    document["metadata"]["name"] = "tuned"
    document["spec"]["train"] |= {"init_from": "brought", "phases": document["spec"]["train"]["phases"][1:]}
    runner.run_file.write_text(yaml.safe_dump(document), encoding="utf-8")
    runner.bricks("run", "tuned.yaml", "--until", "train")
    return runner


def checkpoint(runner, step):
    """The weights after so many steps of run `tuned`."""
    store = open_store(str(runner.folder / "bricks-store"))
    training = next(trainings_of(store, "tuned"))
    with store.local(training.records[step].folder + WEIGHTS) as file:
        return load_file(file)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def film(runner, model, *more):
    out = runner.folder / f"films-of-{model.rpartition('/')[2]}"
    runner.bricks("generate", model, *ASKED, *more, "--out", str(out))
    return read_rgb(next(out.glob("*.mp4")))


def test_training_begins_with_the_very_weights_that_were_brought_and_moves_them(tuned, upstream):
    brought = load_file(upstream / "model.safetensors")
    assert same(checkpoint(tuned, 0), brought)
    assert not same(checkpoint(tuned, 5), brought)


def test_what_is_taken_back_to_upstream_and_to_diffusers_makes_the_same_film(tuned):
    """Generate and export mean the same weights where nobody says which, and a folder tells what it goes with."""
    own = film(tuned, "tuned")
    assert own.std() > 0
    for layout in ("open-sora-hub", "diffusers"):
        told = tuned.bricks("checkpoint", "export", "tuned", "--format", layout, "--out", layout).out
        assert ("no VAE of diffusers" in told) == (layout == "diffusers")
        np.testing.assert_array_equal(film(tuned, str(tuned.folder / layout)), own)
    flagged = film(tuned, str(tuned.folder / "diffusers"), *BUILT_IN)
    np.testing.assert_array_equal(flagged, own)


def test_what_is_taken_back_is_every_number_of_the_training(tuned):
    what = ("--format", "open-sora-hub", "--weights", "raw", "--out", "back")
    tuned.bricks("checkpoint", "export", "tuned", *what)
    assert same(load_file(tuned.folder / "back/model.safetensors"), checkpoint(tuned, 5))
    tuned.bricks("checkpoint", "import", "back", "--out", "again")
    assert same(load_file(tuned.folder / "again/weights.safetensors"), checkpoint(tuned, 5))
    shown = tuned.bricks("checkpoint", "show", "again").out
    assert "Every tensor of the network that its config describes is there, and no other." in shown
