"""Train the autoencoder of examples/world: 8 x 8 pixels become one latent of four numbers, and pictures again.

    python examples/autoencoder.py OUT FOLDER... [--steps 8700] [--threads 0]

leaves OUT/ (config.json and diffusion_pytorch_model.safetensors in float16, diffusers' AutoencoderKL) and
OUT.training/ (pictures and state). Stopped at any moment, the same command goes on from its last 100 steps.

What it learns from: every sixth picture of the films at 96x160, as many of each folder, mirrored at random, a third of
them with other colours, so that it knows more than the films have. What it minimises: absolute and squared error, the
absolute error of the differences between neighbours (edges), and 3e-4 of the divergence of latents from a standard
normal, which keeps them centred and leaves a decoder that forgives a little noise. What is finer than a latent, and
differs little from what is around it, blurs.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from bricks_core.video.read import frames
from bricks_core.video.resize import fit

SIZE_PX = (96, 160)
EVERY_FRAMES = 6
BATCH_SIZE = 6
LEARNING_RATE = 1e-3
DIVERGENCE_WEIGHT = 3e-4
CHANNELS = (16, 32, 64, 96)
KEEP_EVERY_STEPS = 100
NUM_HELD_OUT = 48


def new_autoencoder() -> AutoencoderKL:
    """1.6 million weights, an eighth of the sides, four channels; without attention, so that any size is as quick."""
    torch.manual_seed(0)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(CHANNELS),
        up_block_types=("UpDecoderBlock2D",) * len(CHANNELS),
        block_out_channels=CHANNELS,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=SIZE_PX[1],
    )


def gather(folder: Path, path: Path) -> np.ndarray:
    """Every sixth picture of a folder's films, (N, 96, 160, 3) uint8, in an order of chance, kept in a file."""
    if not path.exists():
        pictures = []
        for film in sorted(folder.glob("*.mp4")):
            chosen = [frame.rgb() for frame in frames(film) if frame.index % EVERY_FRAMES == 0]
            pictures.append(fit(np.stack(chosen), *SIZE_PX))
        whole = np.concatenate(pictures)
        aside = path.with_suffix(".part.npy")
        np.save(aside, whole[np.random.default_rng(0).permutation(len(whole))])
        aside.replace(path)
    return np.asarray(np.load(path, mmap_mode="r"))


def batch(folders: Sequence[np.ndarray], step: int) -> Tensor:
    """The pictures of one step, (6, 3, 96, 160) in [-1, 1], as many of each folder: a function of the step alone."""
    rng = np.random.default_rng(step)
    chosen = [folders[place % len(folders)] for place in range(BATCH_SIZE)]
    pictures = np.stack([each[rng.integers(0, len(each) - NUM_HELD_OUT)] for each in chosen])
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div(127.5).sub(1)
    for i in range(len(x)):
        if rng.random() < 0.5:
            x[i] = x[i].flip(-1)
        if rng.random() < 0.33:
            gain = torch.from_numpy(rng.uniform(0.6, 1.1, (3, 1, 1))).float()
            x[i] = ((x[i, rng.permutation(3)] + 1) * gain - 1).clamp(-1, 1)
    return x


def loss_of(model: AutoencoderKL, x: Tensor) -> tuple[Tensor, Tensor]:
    """What is minimised, and the squared error, of pictures (B, 3, H, W)."""
    posterior = model.encode(x).latent_dist
    y = model.decode(posterior.sample()).sample.float()
    error = y - x
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    mean, log_variance = posterior.mean.float(), posterior.logvar.float()
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    squared = error.square().mean()
    return error.abs().mean() + squared + edges + DIVERGENCE_WEIGHT * divergence, squared


def learning_rate(step: int, num_steps: int) -> float:
    """A hundred steps up, then half a cosine down to a fiftieth."""
    share = max(0, step - 100) / max(1, num_steps - 100)
    return LEARNING_RATE * min(1.0, (step + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share)))


@torch.no_grad()
def judged(model: AutoencoderKL, pictures: np.ndarray) -> dict[str, float]:
    """On pictures kept from training: PSNR in dB (peak 1), and mean and deviation of the latents."""
    model.eval()
    errors, latents = [], []
    for start in range(0, len(pictures), 16):
        x = torch.from_numpy(pictures[start : start + 16]).permute(0, 3, 1, 2).float().div(127.5).sub(1)
        z = model.encode(x).latent_dist.mode()
        y = model.decode(z).sample.clamp(-1, 1)
        errors.append(((y - x) / 2).square().mean(dim=(1, 2, 3)))
        latents.append(z)
    model.train()
    psnr = -10 * torch.cat(errors).log10()
    z = torch.cat(latents)
    return {"psnr_db": float(psnr.mean()), "latent_mean": float(z.mean()), "latent_deviation": float(z.std())}


def train(out: Path, folders: Sequence[np.ndarray], num_steps: int) -> AutoencoderKL:
    """Go on from the last state to the end."""
    model = new_autoencoder().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.0)
    average = {name: value.detach().clone() for name, value in model.state_dict().items()}
    kept, begun = out / "state.pt", 0
    if kept.exists():
        state = torch.load(kept, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        average, begun = state["average"], state["step"]
    since, losses = time.monotonic(), []
    for step in range(begun, num_steps):
        torch.manual_seed(step)
        optimizer.param_groups[0]["lr"] = learning_rate(step, num_steps)
        x = batch(folders, step).to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            loss, squared = loss_of(model, x)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append((loss.item(), squared.item()))
        for name, value in model.state_dict().items():
            average[name].lerp_(value, 1 - min(0.995, (step + 1) / (step + 10)))
        if (step + 1) % KEEP_EVERY_STEPS == 0 or step + 1 == num_steps:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save({**state, "average": average, "step": step + 1}, kept.with_suffix(".part"))
            kept.with_suffix(".part").replace(kept)
            mean_loss, mean_squared = np.mean(losses, axis=0)
            seconds = (time.monotonic() - since) / len(losses)
            told = f"loss {mean_loss:.4f}, {-10 * math.log10(mean_squared / 4):.2f} dB, {seconds:.2f} s a step"
            print(f"step {step + 1}/{num_steps}: {told}", flush=True)
            since, losses = time.monotonic(), []
    model.load_state_dict(average)
    return model


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Train the autoencoder of examples/world.")
    parser.add_argument("out", type=Path)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--steps", type=int, default=8700)
    parser.add_argument("--threads", type=int, default=0, help="0: as many as there are cores")
    given: Any = parser.parse_args(argv)
    torch.set_num_threads(given.threads or os.cpu_count() or 1)
    aside = given.out.with_suffix(".training")
    aside.mkdir(parents=True, exist_ok=True)
    folders = [gather(folder, aside / f"{folder.name}.npy") for folder in given.folders]
    print(f"{[len(each) for each in folders]} pictures, {NUM_HELD_OUT} of each kept from training", flush=True)
    model = train(aside, folders, given.steps)
    told = judged(model, np.concatenate([each[-NUM_HELD_OUT:] for each in folders]))
    model.register_to_config(scaling_factor=round(1 / told["latent_deviation"], 4))
    model.to(torch.float16).save_pretrained(given.out)
    (aside / "figures.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(told), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
