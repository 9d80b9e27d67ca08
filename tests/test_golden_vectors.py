"""The golden files themselves: whole, each read by a test, and with a case of everything they are there to prove."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest
import torch

from tests.golden_vectors import FOLDER, OURS, tensors_of

ROOT = Path(__file__).parents[1]
PUBLISHED = ROOT.parent / "shared" / "golden"
DATA = sorted(path for path in OURS.iterdir() if path.suffix in {".json", ".safetensors"})
only_ours = pytest.mark.skipif(FOLDER != OURS, reason="BRICKS_GOLDEN names other files: they need not hold it all")


def test_our_files_are_the_published_ones():
    if not PUBLISHED.exists():
        pytest.skip("the published golden vectors are not beside this checkout: nothing to compare ours with")
    published = dict(
        reversed(line.split()) for line in (PUBLISHED / "MANIFEST.sha256").read_text(encoding="utf-8").splitlines()
    )
    published.pop("README.md", None)
    assert {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in DATA} == published


def test_every_file_is_read_by_a_test():
    sources = "\n".join(path.read_text(encoding="utf-8") for path in ROOT.joinpath("tests").rglob("test_*.py"))
    sources += ROOT.joinpath("tests/conftest.py").read_text(encoding="utf-8")
    read = set(re.findall(r"(?:golden|golden_json|every_case|every_entry|tensors_of|text_of)\(\"(\w+)\"", sources))
    assert {path.stem for path in DATA} - read == set()


def cases(file: str) -> list[dict[str, torch.Tensor]]:
    return [tensors for tensors in tensors_of(file).values() if any(name.startswith("in.") for name in tensors)]


@only_ours
def test_forward_cases_show_every_input_that_changes_the_answer():
    shown = {
        "clean frames": lambda v: "in.x_mask" in v and not v["in.x_mask"].all(),
        "a mask that is True everywhere": lambda v: "in.x_mask" in v and v["in.x_mask"].all(dim=1).any(),
        "no caption mask": lambda v: "in.mask" not in v,
        "a caption of one token": lambda v: "in.mask" in v and (v["in.mask"].sum(dim=1) == 1).any(),
        "rows tiled for guidance": lambda v: "in.mask" in v and len(v["in.mask"]) < len(v["in.x"]),
        "one frame": lambda v: v["in.x"].shape[2] == 1,
        "odd sizes": lambda v: v["in.x"].shape[3] % 2 and v["in.x"].shape[4] % 2,
        "timestep 0": lambda v: (v["in.timestep"] == 0).any(),
        "timestep 999": lambda v: (v["in.timestep"] == 999).any(),
    }
    assert [what for what, holds in shown.items() if not any(holds(each) for each in cases("forward"))] == []


@only_ours
def test_loss_cases_show_masks_and_the_first_timesteps():
    for file, mask in (("diffusion_losses", "in.mask"), ("gradients", "in.x_mask")):
        assert any(mask not in each for each in cases(file)), file
        assert any(mask in each and not each[mask].all() for each in cases(file)), file
        assert any((each["in.t"] == 0).any() for each in cases(file)), file
    assert any("in.mask" in each and each["in.mask"].all() for each in cases("diffusion_losses"))
    assert {0, 1, 2} <= {int(step) for each in cases("diffusion_losses") for step in each["in.t"]}


@only_ours
def test_sampling_cases_show_chains_with_and_without_frame_masks_and_a_hundred_steps():
    for file in ("sampling_toy", "sampling_model"):
        masks = [each.get("in.mask") for each in cases(file)]
        assert any(mask is None for mask in masks), file
        assert any(mask is not None and ((mask > 0) & (mask < 1)).any() for mask in masks), file
    assert {len(each["in.timestep_map"]) for each in cases("sampling_toy")} == {10, 100}
    assert any("chNone" in case for case in tensors_of("sampling_toy"))


@only_ours
def test_batch_sampler_cases_show_resumption_ranks_order_and_padding():
    stored = json.loads((OURS / "batch_sampler.json").read_text(encoding="utf-8"))["cases"]
    for name, values in {"shuffle": {True, False}, "drop_last": {True, False}, "world_size": {1, 2, 3}}.items():
        assert {case[name] for case in stored} == values
    assert any(case["resume_after_steps"] for case in stored)
    assert any(case["epoch"] for case in stored)


@only_ours
def test_training_masks_show_every_strategy_and_the_recipe_s_ratios_drawn():
    stored = json.loads((OURS / "training_masks.json").read_text(encoding="utf-8"))
    assert {case["strategy"] for case in stored["deterministic"]} == set(stored["train_ratios"])
    assert any(case["ratios"] == stored["train_ratios"] and case["T"] > 1 for case in stored["seeded"])
