"""The same path with another family: Wan, from films to report."""

from __future__ import annotations

import json
import re

import pytest
import torch
import yaml
from diffusers import WanPipeline
from safetensors.torch import load_file

from bricks_core.diffusion.families import family_of
from bricks_core.pipeline.points import read_pointer
from bricks_core.spec.evaluate import Sample
from bricks_core.spec.latents import Latent
from bricks_core.spec.train import CheckpointRow, HeldOutRow, StepRow
from bricks_core.storage.artifacts import Artifact, open_artifact
from bricks_core.storage.places import open_store
from bricks_core.video.probe import probe
from tests.journey.tiny_run import STAGES, TINY, Runner, artifacts

WAN = {
    "latents": {
        "resolutions": ["48x80"],
        "codec": {"kind": "wan-vae", "model": "WAN"},
        "text": {"kind": "umt5", "model": "WAN", "max_tokens": 64},
    },
    "train": {
        **TINY["spec"]["train"],
        "model": {
            "family": "wan",
            "num_layers": 2,
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "ffn_dim": 48,
            "freq_dim": 32,
            "text_dim": 32,
            "shift": 5.0,
        },
        "phases": [
            {
                "name": "mixed",
                "steps": 6,
                "schedule": {"kind": "constant", "lr": 3e-3},
                "buckets": [
                    {"num_frames": 1, "resolution": "48x80", "batch_size": 2},
                    {"num_frames": 9, "resolution": "48x80", "batch_size": 2},
                ],
            }
        ],
    },
    "evaluate": {**TINY["spec"]["evaluate"], "num_frames": 9, "sampler": "unipc", "prompts": ["A red thing moves."]},
}


@pytest.fixture(scope="module")
def wan(films, tiny_wan, tmp_path_factory) -> Runner:
    """A user whose run of Wan went through."""
    folder = tmp_path_factory.mktemp("wan")
    tiny_wan(folder / "tiny-wan")
    document = json.loads(json.dumps(TINY | {"spec": TINY["spec"] | WAN}).replace("FILMS", str(films)))
    for part in ("codec", "text"):
        document["spec"]["latents"][part]["model"] = str(folder / "tiny-wan")
    document["metadata"]["name"] = "wan"
    file = folder / "wan.yaml"
    file.write_text(yaml.safe_dump(document), encoding="utf-8")
    runner = Runner(folder, file)
    (folder / "screen.txt").write_text(runner.bricks("run", "wan.yaml").out, encoding="utf-8")
    return runner


def artifact(runner: Runner, stage: str) -> Artifact:
    store = open_store(str(runner.folder / "bricks-store"))
    pointer = read_pointer(store, "wan", stage)
    assert pointer is not None
    return open_artifact(store, stage, pointer.digest)


def test_every_stage_leaves_an_artifact_and_the_report_is_there(wan):
    screen = (wan.folder / "screen.txt").read_text(encoding="utf-8")
    assert {key.partition("/")[0] for key in artifacts(wan.folder / "bricks-store")} == set(STAGES)
    report = re.search(r"Report +(\S+index\.html)", screen)
    assert (wan.folder / report[1]).exists()
    assert re.search(r"Held-out loss, raw +[\d.]+ at step 0 → [\d.]+ at step 6", screen)


def test_latents_join_four_frames_after_the_first(wan):
    rows = list(artifact(wan, "latents").rows("latents", Latent))
    assert {row.kind for row in rows} == {"image", "video"}
    assert all(row.num_frames == 4 * row.num_latents - 3 and row.latent_channels == 16 for row in rows)


def test_it_learns_and_the_held_out_loss_of_every_bin_is_told(wan):
    train = artifact(wan, "train")
    held_out = [row for row in train.rows("held_out", HeldOutRow) if row.weights == "raw"]
    assert {(row.first_timestep, row.end_timestep) for row in held_out} == {(0, 500), (500, 1000)}
    assert {row.bucket for row in held_out} == {"1f-48x80", "9f-48x80"}
    first, last = (sum(row.loss for row in held_out if row.step == step) for step in (0, 6))
    assert last < first
    assert all(row.vb == 0 and row.loss == row.mse for row in train.rows("steps", StepRow))


def test_checkpoints_are_files_that_diffusers_knows(wan):
    train = artifact(wan, "train")
    last = max(train.rows("checkpoints", CheckpointRow), key=lambda row: row.step)
    config_key = last.weights_key.replace("weights.safetensors", "config.json")
    with train.local(last.ema_key) as weights, train.local(config_key) as config:
        about = json.loads(config.read_text(encoding="utf-8"))
        assert about["_class_name"] == "WanTransformer3DModel"
        network = family_of(about).load(weights, config)
    assert sum(each.numel() for each in network.parameters()) > 10_000
    assert all(torch.isfinite(each).all() for each in network.parameters())


def test_samples_have_the_frames_that_were_asked_for(wan):
    evaluate = artifact(wan, "evaluate")
    samples = list(evaluate.rows("samples", Sample))
    assert {row.step for row in samples} == {0, 6}
    with evaluate.local(samples[0].video_key) as file:
        film = probe(file)
    assert (film.num_frames, film.height_px, film.width_px) == (9, 48, 80)


def test_it_is_taken_to_diffusers_with_one_command(wan):
    parts = ["--vae", str(wan.folder / "tiny-wan"), "--text-encoder", str(wan.folder / "tiny-wan")]
    where = ["--format", "diffusers", "--out", "exported", "--weights", "ema"]
    wan("jobs.checkpoint", "export", "wan", *where, *parts)
    pipe = WanPipeline.from_pretrained(wan.folder / "exported")
    train = artifact(wan, "train")
    last = max(train.rows("checkpoints", CheckpointRow), key=lambda row: row.step)
    with train.local(last.ema_key) as file:
        ours = load_file(file)
    theirs = pipe.transformer.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert pipe.scheduler.config.flow_shift == 5.0  # as it was trained
    pipe.set_progress_bar_config(disable=True)
    [video] = pipe("A brick.", height=48, width=80, num_frames=5, num_inference_steps=1, output_type="np").frames
    assert video.shape == (5, 48, 80, 3)
    refused = wan("jobs.checkpoint", "export", "wan", "--format", "open-sora-hub", "--out", "other", code=64)
    assert "open-sora-hub is Open-Sora's and holds STDiT2; wan, step 6 is of the family wan." in refused.err
