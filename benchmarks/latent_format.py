"""How fast training can read windows of latents: our packs against one `.pt` file per clip, in the same run.

    python -m benchmarks.latent_format [--save]

Writes clips of latents and caption features both ways, then reads shuffled windows of frames and the captions into a
preallocated batch. With `.pt` a window costs the whole clip; with packs it costs the window. The page cache is warm for
both (a laptop cannot drop it without rights), so the ratio is of work done, not of disks.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.record import flags, keep
from bricks_core.spec.latents import Latent
from bricks_core.storage.shards import Packs, PackWriter

NUM_CLIPS, MEAN_FRAMES, HEIGHT, WIDTH, TEXT_WIDTH = 48, 120, 45, 80, 4096
WINDOW, INTERVALS, REPEATS = 32, (1, 2, 4), 5
PACK = "pack.bin"


def main() -> None:
    """Measure, print the JSON, and with --save keep it under benchmarks/results."""
    parser = flags(__doc__)
    save = parser.parse_args().save
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="bricks-") as folder:
        rows = write_both(Path(folder))
        size_bytes = (Path(folder) / PACK).stat().st_size
        results = [measure(Path(folder), rows, interval) for interval in INTERVALS]
    clips = {"num_clips": NUM_CLIPS, "mean_frames": MEAN_FRAMES, "latents": [4, HEIGHT, WIDTH]}
    found = {"clips": clips, "pack_size_bytes": size_bytes, "window_frames": WINDOW, "repeats": REPEATS}
    keep("latent_format", found | {"results": results}, save=save)


def write_both(folder: Path) -> list[Latent]:
    """The same clips as one pack and as a `.pt` file each; returns the pack's index."""
    rng = np.random.default_rng(0)
    rows = []
    with PackWriter(folder / PACK) as pack:
        for index in range(NUM_CLIPS):
            num_frames = int(rng.integers(MEAN_FRAMES * 2 // 15, MEAN_FRAMES * 28 // 15))
            # Never shorter than the longest window needs.
            num_frames = max(num_frames, (WINDOW - 1) * max(INTERVALS) + 1)
            num_tokens = int(rng.integers(60, 120))
            latents = rng.standard_normal((num_frames, 4, HEIGHT, WIDTH), dtype=np.float32).astype(np.float16)
            text = rng.standard_normal((num_tokens, TEXT_WIDTH), dtype=np.float32).astype(np.float16)
            rows.append(
                Latent(
                    id=f"{index:016x}",
                    clip_id=f"{index:016x}",
                    video_id="0" * 16,
                    kind="video",
                    split="train",
                    resolution="360p",
                    aspect="0.56",
                    height_px=HEIGHT * 8,
                    width_px=WIDTH * 8,
                    num_frames=num_frames,
                    time_stride=1,
                    latent_channels=4,
                    latent_height=HEIGHT,
                    latent_width=WIDTH,
                    fps=25,
                    item="",
                    text_item="",
                    pack=PACK,
                    latents_offset_bytes=pack.add_latents([latents], num_frames, HEIGHT, WIDTH),
                    text_pack=PACK,
                    text_offset_bytes=pack.add_text(text),
                    num_tokens=num_tokens,
                    empty_text_pack=PACK,
                    empty_text_offset_bytes=pack.add_text(text[:1]),
                    num_empty_tokens=1,
                    text_width=TEXT_WIDTH,
                    caption="",
                    caption_by="",
                    codec="",
                    text_encoder="",
                )
            )
            torch.save(
                {"latents": torch.from_numpy(latents), "text": torch.from_numpy(text)}, folder / f"{rows[-1].id}.pt"
            )
    return rows


def measure(folder: Path, rows: list[Latent], interval: int) -> dict[str, float]:
    """Median clips per second of both ways over the same shuffled windows, and their ratio."""
    packs = Packs(lambda key: folder / key)
    latents = np.empty((WINDOW, 4, HEIGHT, WIDTH), np.float16)
    text = np.empty((200, TEXT_WIDTH), np.float16)

    def from_pack(row: Latent, begin: int) -> None:
        packs.window(row, begin, WINDOW, interval, out=latents)
        packs.text(row, out=text[: row.num_tokens])

    def from_pt(row: Latent, begin: int) -> None:
        clip = torch.load(folder / f"{row.id}.pt", weights_only=True)
        latents[:] = clip["latents"][begin : begin + (WINDOW - 1) * interval + 1 : interval].numpy()
        text[: row.num_tokens] = clip["text"].numpy()

    check_equal(from_pack, from_pt, rows[0], latents, text)
    ours, theirs = [], []
    for repeat in range(REPEATS):  # taking turns, so that a busy machine is busy for both
        ours.append(clips_per_s(from_pack, rows, interval, repeat))
        theirs.append(clips_per_s(from_pt, rows, interval, repeat))
    return {
        "frame_interval": interval,
        "pack_clips_per_s": round(statistics.median(ours), 1),
        "pt_clips_per_s": round(statistics.median(theirs), 1),
        "ratio": round(statistics.median(a / b for a, b in zip(ours, theirs, strict=True)), 2),
    }


def check_equal(
    one: Callable[[Latent, int], None],
    other: Callable[[Latent, int], None],
    row: Latent,
    latents: np.ndarray,
    text: np.ndarray,
) -> None:
    """Both ways must read the same numbers, or the comparison means nothing."""
    one(row, 1)
    first = latents.copy(), text[: row.num_tokens].copy()
    latents[:], text[:] = 0, 0
    other(row, 1)
    assert np.array_equal(first[0], latents)
    assert np.array_equal(first[1], text[: row.num_tokens])


def clips_per_s(read: Callable[[Latent, int], None], rows: list[Latent], interval: int, seed: int) -> float:
    """Read a window of every clip once, in shuffled order."""
    rng = np.random.default_rng(seed)
    order = [rows[at] for at in rng.permutation(len(rows))]
    begins = [int(rng.integers(0, row.num_frames - (WINDOW - 1) * interval)) for row in order]
    start = time.perf_counter()
    for row, begin in zip(order, begins, strict=True):
        read(row, begin)
    return len(order) / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
