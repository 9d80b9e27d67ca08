"""The tiny run, a runner of our programs, and what must be the same of two stores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bricks_core.pipeline.plan import differences

ROOT = Path(__file__).parents[2]
STAGES = ["ingest", "clip", "score", "caption", "latents", "train", "evaluate"]
KINDS = {
    "ingest": ("film",),
    "clip": ("shots", "clip"),
    "score": ("measures",),
    "caption": ("description",),
    "latents": ("latent", "text", "pack"),
    "train": (),
    "evaluate": ("sample",),
}
"""The kinds of items that each stage leaves."""

TINY = {
    "apiVersion": "bricks.dev/v1alpha1",
    "kind": "BrickRun",
    "metadata": {"name": "tiny"},
    "spec": {
        "ingest": {"sources": [{"path": "FILMS", "licence": "CC0-1.0"}]},
        "clip": {"preset": "ultrafast"},
        "score": {"held_out_share": 0.3},
        "latents": {"resolutions": ["48x80"], "pack_bytes": 1 << 18},
        "train": {
            "model": {"hidden_size": 48, "depth": 2, "num_heads": 2, "input_sq_size_px": 64},
            "precision": "float32",
            "checkpoint_every_steps": 3,
            "log_every_steps": 2,
            "held_out": {"every_steps": 4, "num_samples": 2, "num_timestep_bins": 2, "timesteps_per_bin": 1},
            "phases": [
                {
                    "name": "images",
                    "steps": 4,
                    "schedule": {"kind": "cosine_constant", "lr": 1e-3, "warmup_steps": 2},
                    "buckets": [{"num_frames": 1, "resolution": "48x80", "batch_size": 4}],
                },
                {
                    "name": "mixed",
                    "steps": 5,
                    "schedule": {"kind": "constant", "lr": 1e-3},
                    "buckets": [
                        {"num_frames": 1, "resolution": "48x80", "batch_size": 4},
                        {"num_frames": 4, "resolution": "48x80", "frame_interval": 2, "batch_size": 2},
                    ],
                },
            ],
        },
        "evaluate": {
            "prompts": ["A red thing moves over green ground.", "A dark scene."],
            "num_frames": 4,
            "resolution": "48x80",
            "num_sampling_steps": 3,
            "num_checkpoints": 2,
            "num_seeds": 1,
            "held_out_prompts": 0,
            "plain_prompts": [],
        },
        "tracking": {"wandb": "off"},
    },
}


PLACES = ("objects", "num_item_objects", "item_bytes")
"""Of the latents' manifest: what tells where they lie."""


@dataclass(frozen=True)
class Ended:
    """How a program ended."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Runner:
    """Runs our programs as a user does, in a folder of its own."""

    folder: Path
    run_file: Path

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "BRICKS_"))}
        # The code's version is named by hand: a commit made while the tests run is no difference between two stores.
        fixed = {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(self.folder / "cache"), "BRICKS_COMMIT": "tested"}
        return subprocess.Popen(
            [sys.executable, "-m", *arguments],
            cwd=self.folder,
            env=inherited | fixed | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            start_new_session=True,
        )

    def __call__(self, *arguments: str, code: int | None = 0, **environment: str) -> Ended:
        process = self.start(*arguments, **environment)
        out, err = process.communicate(timeout=600)
        if code is not None:
            assert process.returncode == code, f"{arguments} ended with {process.returncode}:\n{out}\n{err}"
        return Ended(process.returncode, out, err)

    def bricks(self, *arguments: str, code: int | None = 0, **environment: str) -> Ended:
        return self("jobs.bricks", *arguments, code=code, **environment)


def artifacts(store: Path) -> dict[str, Any]:
    """Everything about a store's artifacts that must not depend on when, where, or how often they were interrupted."""
    return timeless(file.read_bytes() for file in sorted(store.glob("artifacts/*/*/manifest.json")))


def timeless(manifests: Iterable[bytes]) -> dict[str, Any]:
    """Manifests by address, without times, hosts, and the items' records, which tell what each took."""
    found = {}
    for text in manifests:
        manifest = json.loads(text)
        for fact in ("started_at", "finished_at", "host", "records"):
            del manifest[fact]
        # In which packs latents lie depends on who encoded them when. What they are, the training's weights tell.
        for fact in PLACES if manifest["stage"] == "latents" else ():
            del manifest[fact]
        found[f"{manifest['stage']}/{manifest['digest']}"] = manifest
    return found


def differing(store: Path, other: Path) -> list[str]:
    """In what two stores' artifacts differ; nothing when they are the same."""
    return list(differences(artifacts(store), artifacts(other)))
