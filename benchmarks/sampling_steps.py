"""How many steps a sample needs: distance to where many steps end, by scheduler and number of steps, same noise.

    python -m benchmarks.sampling_steps [--save] [--store FOLDER] [--sheet FILE.png]

The quickstart's last checkpoint (EMA weights), its prompts, 8 frames of 96x160 at 6 fps, guidance 2 on four channels.

`solvers`     distance of the latents at n steps, as a share of their spread: to the same solver's 100 steps, and to
              where the flow itself leads (DPM-Solver++ with 400 steps); the latter in 8-bit pixels too
`strong_guidance`  distance to UniPC's 100 steps for the two named solvers, at guidance 7
`statistics`  mean and spread of all latents at n steps, IDDPM's among them: it draws noise on the way, so its samples
              are others, and can be compared only as a crowd; and those of the held-out clips
`null`        the two ways to read the null caption: what the network's noise is off by without a caption, on held-out
              clips, by how long the caption was; and how far the samples differ
Without --store the quickstart is run first, about six minutes. --sheet draws some frames of 5 to 100 steps.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from torch import Tensor

from benchmarks.quickstart import ROOT, artifact_of
from benchmarks.record import flags, keep
from bricks_core.diffusion.guidance import NullLength, null_captions
from bricks_core.diffusion.noise_schedule import NoiseSchedule
from bricks_core.diffusion.sampling import Chain, captioned_denoiser, scheduler_named
from bricks_core.models.stdit2 import STDiT2
from bricks_core.models.text_encoder import HashedWords
from bricks_core.models.vae import PatchDct
from bricks_core.models.weights import load_network
from bricks_core.spec.latents import Latent
from bricks_core.spec.run import load_run
from bricks_core.spec.train import CheckpointRow
from bricks_core.storage.artifacts import Artifact
from bricks_core.storage.places import open_store
from bricks_core.storage.shards import Packs
from bricks_core.video.write import jpeg

RUN = ROOT / "k8s/runs/quickstart.yaml"
STEPS = (5, 8, 10, 15, 20, 25, 50, 100)
SHAPE = (8, 12, 20)
PIXELS = (96, 160)
FPS = 6.0
SCALE = 2.0
STRONG_SCALE = 7.0


def from_ours(name: str, **changed: Any) -> Callable[[], Any]:
    return lambda: getattr(diffusers, name).from_config(scheduler_named("dpm-solver++").config, **changed)


SOLVERS: dict[str, Callable[[], Any]] = {
    "dpm-solver++": lambda: scheduler_named("dpm-solver++"),
    "dpm-solver++, linspace": from_ours("DPMSolverMultistepScheduler", timestep_spacing="linspace"),
    "dpm-solver++, Karras sigmas": from_ours("DPMSolverMultistepScheduler", use_karras_sigmas=True),
    "dpm-solver++, third order": from_ours("DPMSolverMultistepScheduler", solver_order=3),
    "unipc": lambda: scheduler_named("unipc"),
    "ddim": from_ours("DDIMScheduler"),
    "euler": from_ours("EulerDiscreteScheduler"),
}


@dataclass(frozen=True)
class Asked:
    """The network and what it is asked for."""

    model: STDiT2
    captions: Tensor
    mask: Tensor
    scale: float = SCALE

    def sample(self, scheduler: Any, num_steps: int, null_length: NullLength = "caption", seed: int = 0) -> Tensor:
        """-> (prompts, 4, T, H, W)"""
        generator = torch.Generator().manual_seed(seed)
        shape = (len(self.captions), 4, *SHAPE)

        def draw() -> Tensor:
            return torch.randn(shape, generator=generator)

        chain = Chain(scheduler, num_steps, draw, device="cpu", generator=generator)
        return chain.run(self.denoiser(self.captions, self.mask, null_length), draw())

    def denoiser(self, captions: Tensor, mask: Tensor, null_length: NullLength, scale: float | None = None) -> Any:
        null = null_captions(self.model.y_embedder.y_embedding, mask, null_length)
        return captioned_denoiser(
            self.model,
            captions,
            mask,
            *null,
            num_frames=SHAPE[0],
            pixel_size=PIXELS,
            fps=FPS,
            scale=self.scale if scale is None else scale,
            num_channels=4,
        )


def main() -> None:
    """Measure, print the JSON, and with --save keep it under benchmarks/results."""
    parser = flags(__doc__)
    parser.add_argument("--store", default="", help="a store in which the quickstart has run already")
    parser.add_argument("--sheet", type=Path, help="where to draw some of the samples")
    asked = parser.parse_args()
    if asked.store:
        found = measure(asked.store, asked.sheet)
    else:
        with tempfile.TemporaryDirectory(prefix="bricks-") as folder:
            subprocess.run([sys.executable, "examples/make_films.py", "examples/films"], cwd=ROOT, check=True)
            subprocess.run(
                [sys.executable, "-m", "jobs.bricks", "run", str(RUN), "--store", folder, "--until", "train"],
                cwd=ROOT,
                check=True,
            )
            found = measure(folder, asked.sheet)
    keep("sampling_steps", found, save=asked.save)


@torch.inference_mode()
def measure(uri: str, sheet: Path | None) -> dict[str, Any]:
    """All of it, on the quickstart of a store."""
    store, run = open_store(uri), load_run(RUN)
    train = artifact_of(store, run.name, "train")
    last = max(train.rows("checkpoints", CheckpointRow), key=lambda row: row.step)
    config_key = last.ema_key.rpartition("/")[0] + "/config.json"
    with train.local(last.ema_key) as weights, train.local(config_key) as config:
        model = load_network(weights, config)
    assert run.spec.evaluate is not None
    asked = Asked(model, *captions_of(list(run.spec.evaluate.prompts)))
    samples = {name: {n: asked.sample(make(), n) for n in STEPS} for name, make in SOLVERS.items()}
    flow = asked.sample(scheduler_named("dpm-solver++"), 400)
    if sheet:
        draw_sheet(sheet, samples, flow)
    latents = artifact_of(store, run.name, "latents")
    return {
        "checkpoint": f"quickstart, step {last.step}, EMA",
        "asked": {"prompts": len(asked.captions), "frames": SHAPE[0], "guidance_scale": SCALE},
        "solvers": {name: distances(samples[name], flow) for name in SOLVERS},
        "strong_guidance": strong_guidance(replace(asked, scale=STRONG_SCALE)),
        "statistics": crowds(asked, samples["dpm-solver++"], held_out(latents)),
        "null": null_caption(asked, held_out(latents)),
    }


def captions_of(texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """-> features (B, 1, L, width), mask (B, L)"""
    return padded([torch.from_numpy(rows) for rows in HashedWords().encode(list(texts))])


def padded(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    longest = max(len(each) for each in rows)
    features, mask = torch.zeros(len(rows), 1, longest, rows[0].shape[1]), torch.zeros(len(rows), longest)
    for place, each in enumerate(rows):
        features[place, 0, : len(each)], mask[place, : len(each)] = each, 1
    return features, mask.long()


def distances(samples: dict[int, Tensor], flow: Tensor) -> dict[str, dict[str, float]]:
    """By number of steps; a share of 1 is as far as another sample."""

    def share(one: Tensor, other: Tensor) -> float:
        return round(((one - other).pow(2).mean().sqrt() / other.std()).item(), 4)

    return {
        "to_own_100_steps": {str(n): share(each, samples[100]) for n, each in samples.items() if n != 100},
        "to_the_flow": {str(n): share(each, flow) for n, each in samples.items()},
        "to_the_flow_in_pixels": {
            str(n): round((pixels(each) - pixels(flow)).pow(2).mean().sqrt().item(), 2) for n, each in samples.items()
        },
    }


def strong_guidance(asked: Asked) -> dict[str, dict[str, float]]:
    """Solver -> number of steps -> distance to UniPC's 100 steps, as a share of their spread."""
    flow = asked.sample(scheduler_named("unipc"), 100)
    return {
        name: {
            str(n): round(((asked.sample(SOLVERS[name](), n) - flow).pow(2).mean().sqrt() / flow.std()).item(), 4)
            for n in (8, 15, 25)
        }
        for name in ("dpm-solver++", "unipc")
    }


def pixels(latents: Tensor) -> Tensor:
    """(B, 4, T, h, w) -> (B T, 3, H, W), 0 to 255"""
    decoded = PatchDct().decode(latents.transpose(1, 2).flatten(0, 1))
    return decoded.clamp(-1, 1).add(1).mul(127.5)


@dataclass(frozen=True)
class Clips:
    """The held-out clips: latents (B, 4, T, h, w), captions (B, 1, L, width), masks (B, L)."""

    latents: Tensor
    captions: Tensor
    mask: Tensor


def held_out(latents: Artifact) -> Clips:
    frames, interval = SHAPE[0], 4
    rows = [
        row
        for row in latents.rows("latents", Latent)
        if row.split == "held_out" and row.kind == "video" and row.num_frames > frames * interval
    ]
    clips, texts = [], []
    for row in rows:
        with ExitStack() as stack:
            packs = Packs(lambda key, stack=stack: stack.enter_context(latents.local(key)))  # type: ignore[misc]
            clips.append(torch.from_numpy(packs.window(row, 0, frames, interval)).float().transpose(0, 1))
            texts.append(torch.from_numpy(packs.text(row)).float())
    return Clips(torch.stack(clips), *padded(texts))


def crowds(asked: Asked, solved: dict[int, Tensor], real: Clips) -> dict[str, Any]:
    """Mean and spread of each latent channel, and the mean change from frame to frame."""
    drawn = {f"iddpm, {n} steps": asked.sample(scheduler_named("iddpm"), n) for n in (25, 50, 100, 250)}
    again = {"iddpm, 100 steps, other noise": asked.sample(scheduler_named("iddpm"), 100, seed=1)}
    named = {f"dpm-solver++, {n} steps": each for n, each in solved.items()}
    return {
        name: {
            "mean": [round(each, 3) for each in latents.mean(dim=(0, 2, 3, 4)).tolist()],
            "spread": [round(each, 3) for each in latents.transpose(0, 1).flatten(1).std(dim=1).tolist()],
            "change_per_frame": round(latents.diff(dim=2).abs().mean().item(), 4),
        }
        for name, latents in {"held-out clips": real.latents, **named, **drawn, **again}.items()
    }


def null_caption(asked: Asked, real: Clips) -> dict[str, Any]:
    """Mean squared error of the predicted noise without a caption (and with it), and how far samples differ."""
    schedule, generator = NoiseSchedule.of(), torch.Generator().manual_seed(0)
    noise = torch.randn(real.latents.shape, generator=generator)
    errors: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    ways: dict[str, tuple[NullLength, float]] = {
        "caption": ("caption", 0.0),
        "whole": ("whole", 0.0),
        "with its caption": ("caption", 1.0),
    }
    lengths = real.mask.sum(dim=1)
    for timestep in range(50, 1000, 100):
        step = torch.full((len(noise),), timestep)
        x = schedule.add_noise(real.latents, noise, step)
        for name, (length, scale) in ways.items():
            # One by one: a batch's longest caption must not lengthen the others' null captions.
            answers = [
                asked.denoiser(real.captions[i : i + 1], real.mask[i : i + 1], length, scale)(
                    x[i : i + 1], step[:1], None
                )
                for i in range(len(x))
            ]
            error = (torch.cat(answers)[:, :4] - noise).pow(2).mean(dim=(1, 2, 3, 4))
            errors[name]["all"].append(error.mean().item())
            for kind, chosen in (("short", lengths <= lengths.median()), ("long", lengths > lengths.median())):
                errors[name][kind].append(error[chosen].mean().item())
    by_caption, whole = (asked.sample(scheduler_named("dpm-solver++"), 50, each) for each in ("caption", "whole"))
    spread = by_caption.std()
    return {
        "caption_lengths": sorted(lengths.tolist()),
        "error": {name: {kind: round(float(np.mean(e)), 5) for kind, e in by.items()} for name, by in errors.items()},
        "distance_of_samples": round(((by_caption - whole).pow(2).mean().sqrt() / spread).item(), 4),
    }


def draw_sheet(file: Path, samples: dict[str, dict[int, Tensor]], flow: Tensor) -> None:
    """A row for each number of steps and solver: frames 0 and 7 of every prompt."""
    rows = []
    for name in ("dpm-solver++", "unipc", "ddim"):
        for n in (5, 10, 25, 100):
            rows.append(strip(samples[name][n]))
    rows.append(strip(flow))
    file.write_bytes(jpeg(np.concatenate(rows)))


def strip(latents: Tensor) -> Any:
    shown = pixels(latents[:, :, [0, -1]]).round().to(torch.uint8)  # (B 2, 3, H, W)
    return np.concatenate(list(shown.permute(0, 2, 3, 1).numpy()), axis=1)


if __name__ == "__main__":
    main()
