"""How fast training goes, and what it costs to feed it, in the same run.

    python -m benchmarks.train_steps [--save] [--repeats 5]

`steps`: steps of a small network on images and clips mixed, with the share of the time spent waiting for data.
`batches`: batches of 32 frames at 360p alone, made at once, by the thread, and by a worker process of torch's
DataLoader, which has to hand them over.
`waiting`: the share of its time that a GPU which takes 0.2 s for a step would wait for such a batch, made ahead by the
thread or made when it is asked for.
Variants take turns, so that a busy machine is busy for all of them.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.record import flags, keep
from bricks_core.diffusion.families import family_of
from bricks_core.spec.latents import Latent
from bricks_core.spec.train import Constant, Phase, STDiT2Spec, TrainBucket, TrainSpec
from bricks_core.stages.train.dataloader import Loader, MicroBatch, Plan
from bricks_core.stages.train.parallel import processes
from bricks_core.stages.train.step import Trainer
from bricks_core.storage.shards import Packs, PackWriter

PACK = "pack.bin"
Batches = list[MicroBatch]


def main() -> None:
    """Measure, print the JSON, and with --save keep it under benchmarks/results."""
    parser = flags(__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bricks-") as folder:
        results = {
            "steps": measure_steps(Path(folder), asked.repeats),
            "batches": measure_batches(Path(folder), asked.repeats),
            "waiting": measure_waiting(Path(folder), asked.repeats),
        }
    device = "cuda" if torch.cuda.is_available() else "cpu"
    keep("train_steps", {"num_threads": torch.get_num_threads(), "device": device} | results, save=asked.save)


def measure_steps(folder: Path, repeats: int, steps_per_try: int = 8) -> dict[str, Any]:
    """Steps of a small network."""
    buckets = [
        TrainBucket(num_frames=1, resolution="96x160", batch_size=8),
        TrainBucket(num_frames=8, resolution="96x160", batch_size=4),
    ]
    spec = TrainSpec(
        model=STDiT2Spec(hidden_size=144, depth=4, num_heads=4, input_sq_size_px=128),
        precision="float32",
        phases=[Phase(name="all", steps=1000, buckets=buckets, schedule=Constant(lr=1e-4))],
    )
    rows = write_clips(folder / "small", num_clips=64, num_frames=60, height=12, width=20, text_width=512)
    num_samples = sum(bucket.batch_size for bucket in buckets)
    waited = []
    with processes() as everyone:
        loader = loader_of(spec, rows, folder / "small", pin=everyone.device.type == "cuda")
        network = family_of(spec.model).build(spec.model, text_width=512, max_tokens=200, caption_dropout=0.1)
        trainer = Trainer(spec, network, everyone)

        def steps() -> float:
            with loader.prefetched(0, steps_per_try + 1) as ahead:
                found = rate(lambda: trainer.step(next(ahead), num_samples, len(buckets), 1e-4), steps_per_try)
                waited.append(ahead.waited_s * found / (steps_per_try + 1))
            return found

        found = in_turns({"steps": steps}, repeats)["steps"]
    num_tokens = sum(batch.num_tokens for batch in loader.micro_batches(0))
    return {
        "network": f"{sum(parameter.numel() for parameter in trainer.model.parameters()) / 1e6:.1f} million numbers",
        "samples_per_step": num_samples,
        "tokens_per_step": num_tokens,
        **found,
        "samples_per_s": round(found["median_per_s"] * num_samples, 1),
        "tokens_per_s": round(found["median_per_s"] * num_tokens),
        "waiting_share": round(statistics.median(waited), 4),
    }


def measure_batches(folder: Path, repeats: int, batches_per_try: int = 12) -> dict[str, Any]:
    """Batches of 4 windows of 32 frames at 360p with captions of T5's width, noise included, made in three ways."""
    loader = large_loader(folder / "batches")

    def at_once() -> float:
        made = (loader.micro_batches(step) for step in range(batches_per_try + 1))
        return rate(lambda: next(made), batches_per_try)

    def by_the_thread() -> float:
        with loader.prefetched(0, batches_per_try + 1) as ahead:
            return rate(lambda: next(ahead), batches_per_try)

    def by_a_process() -> float:
        steps = Steps(loader, batches_per_try + 1)
        made = iter(DataLoader(steps, batch_size=None, num_workers=1, collate_fn=lambda batches: batches))
        return rate(lambda: next(made), batches_per_try)

    ways = {"at once": at_once, "by a thread": by_the_thread, "by a process": by_a_process}
    found = in_turns(ways, repeats)
    ratio = found["by a thread"]["median_per_s"] / found["by a process"]["median_per_s"]
    return {
        "batch": "4 x 32 frames of 45x80 latents, captions of up to 120 x 4096, and their noise",
        "ways": found,
        "ratio_thread_to_process": round(ratio, 2),
    }


def measure_waiting(folder: Path, repeats: int, num_steps: int = 8, step_s: float = 0.2) -> dict[str, Any]:
    """The share of its time a GPU would wait; the CPU has nothing else to do meanwhile."""
    loader = large_loader(folder / "waiting")
    shares: dict[str, list[float]] = {"made ahead": [], "made when asked": []}
    for _ in range(repeats):
        with loader.prefetched(0, num_steps + 1) as ahead:
            shares["made ahead"].append(share_waited(ahead, num_steps, step_s))
        asked = (loader.micro_batches(step) for step in range(num_steps + 1))
        shares["made when asked"].append(share_waited(asked, num_steps, step_s))
    return {"step_s": step_s} | {name: round(statistics.median(each), 4) for name, each in shares.items()}


def share_waited(batches: Iterator[Batches], num_steps: int, step_s: float) -> float:
    next(batches)
    waited_s = 0.0
    for _ in range(num_steps):
        time.sleep(step_s)
        began_s = time.perf_counter()
        next(batches)
        waited_s += time.perf_counter() - began_s
    return waited_s / (waited_s + num_steps * step_s)


def large_loader(folder: Path) -> Loader:
    """Writes clips to a folder. Batches as the reference's 32-frame run has them."""
    bucket = TrainBucket(num_frames=32, resolution="96x160", frame_interval=2, batch_size=4)
    spec = TrainSpec(phases=[Phase(name="all", steps=1000, buckets=[bucket], schedule=Constant(lr=1e-4))])
    rows = write_clips(folder, num_clips=24, num_frames=100, height=45, width=80, text_width=4096)
    return loader_of(spec, rows, folder)


class Steps(Dataset[Batches]):
    """The loader as torch's DataLoader wants it."""

    def __init__(self, loader: Loader, num_steps: int):
        self._loader, self._num_steps = loader, num_steps

    def __len__(self) -> int:
        return self._num_steps

    def __getitem__(self, step: int) -> Batches:
        return self._loader.micro_batches(step)


def rate(one: Callable[[], object], times: int) -> float:
    """How often per second, after a first time that does not count."""
    one()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began_s = time.perf_counter()
    for _ in range(times):
        one()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return times / (time.perf_counter() - began_s)


def in_turns(ways: dict[str, Callable[[], float]], repeats: int) -> dict[str, dict[str, float]]:
    """Median and best rate of every way."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            rates[name].append(way())
    return {
        name: {"median_per_s": round(statistics.median(each), 3), "best_per_s": round(max(each), 3)}
        for name, each in rates.items()
    }


def loader_of(spec: TrainSpec, rows: list[Latent], folder: Path, pin: bool = False) -> Loader:
    return Loader(Plan(spec, rows), Packs(lambda key: folder / key), pin=pin)


def write_clips(
    folder: Path, num_clips: int, num_frames: int, height: int, width: int, text_width: int
) -> list[Latent]:
    """Random clips and images in one pack. The resolution's name is only a name."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = []
    with PackWriter(folder / PACK) as pack:
        for clip in range(num_clips):
            frames = rng.standard_normal((num_frames, 4, height, width), dtype=np.float32)
            text = rng.standard_normal((int(rng.integers(20, 120)), text_width), dtype=np.float32)
            text_offset, empty = pack.add_text(text), pack.add_text(text[:1])
            for kind, latents in (("video", frames), ("image", frames[:1])):
                row = Latent(
                    id=f"{clip:08x}{kind}",
                    clip_id=f"{clip:08x}",
                    video_id=f"{clip:08x}",
                    kind="image" if kind == "image" else "video",
                    split="train",
                    resolution="96x160",
                    aspect="0.60",
                    height_px=8 * height,
                    width_px=8 * width,
                    num_frames=len(latents),
                    time_stride=1,
                    latent_channels=4,
                    latent_height=height,
                    latent_width=width,
                    fps=24.0,
                    item="",
                    text_item="",
                    pack=PACK,
                    latents_offset_bytes=pack.add_latents([latents], len(latents), height, width),
                    text_pack=PACK,
                    text_offset_bytes=text_offset,
                    num_tokens=len(text),
                    empty_text_pack=PACK,
                    empty_text_offset_bytes=empty,
                    num_empty_tokens=1,
                    text_width=text_width,
                    caption="",
                    caption_by="",
                    codec="random",
                    text_encoder="random",
                )
                rows.append(row)
    return rows


if __name__ == "__main__":
    main()
