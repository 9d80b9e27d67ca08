"""How fast the latents stage is: each step alone, and several clips from H.264 files to a pack.

    python -m benchmarks.latents_encode [--save] [--resolution 360p] [--source 720x1280]

The built-in encoders, on a film drawn here. `codec` and `text` are the encoders alone on data in memory; `group`
decodes, brings to size, encodes and writes clips, as a run does.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.record import flags, keep
from bricks_core.models.text_encoder import HashedWords
from bricks_core.models.vae import PatchDct
from bricks_core.stages.latents.encode import encode_latents
from bricks_core.stages.latents.sources import Source
from bricks_core.video.buckets import resolution as resolution_named
from bricks_core.video.read import Pixels
from bricks_core.video.write import write_mp4

NUM_CLIPS, NUM_FRAMES, REPEATS = 4, 48, 5
CAPTION = (
    "A small yellow figure in a red coat walks slowly from the left to the right over a green baseplate. "
    "Behind it is a grey wall of bricks, three windows wide, and a blue sky with two clouds. "
    "Near the end it stops and raises an arm."
)


def main() -> None:
    """Measure, print the JSON, and with --save keep it under benchmarks/results."""
    parser = flags(__doc__)
    parser.add_argument("--resolution", default="360p", help="what clips are brought to")
    parser.add_argument("--source", default="720x1280", help="height x width of the clips, in pixels")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # as the stage does for the built-in codec
    height, width = map(int, arguments.source.split("x"))
    with tempfile.TemporaryDirectory(prefix="bricks-") as folder:
        results = measure(Path(folder), arguments.resolution, height, width)
    source = {"num_clips": NUM_CLIPS, "num_frames": NUM_FRAMES, "size_px": arguments.source}
    found = {"source": source, "resolution": arguments.resolution, "repeats": REPEATS, "results": results}
    keep("latents_encode", found, save=arguments.save)


def measure(folder: Path, resolution: str, height: int, width: int) -> dict[str, float]:
    """Median rates of the parts and of the whole."""
    film = folder / "clip.mp4"
    write_mp4(film, drawn(NUM_FRAMES, height, width), 25)
    sources = [
        Source(
            id=f"{index:016x}",
            clip_id="",
            video_id="",
            key="clip.mp4",
            sha256="",
            item="",
            num_frames=NUM_FRAMES,
            height_px=height,
            width_px=width,
            fps=25.0,
            text="",
            kind="video",
            split="train",
        )
        for index in range(NUM_CLIPS)
    ]
    codec, encoder = PatchDct(), HashedWords()
    size = resolution_named(resolution).size_for(height, width)
    frames = drawn(16, size.height_px, size.width_px)
    latents = codec.encode(frames)
    # Another word in each, or the second caption on would only be looked up.
    texts = [f"{CAPTION} Number {index}." for index in range(32)]

    def whole() -> None:
        encode_latents(sources, size, codec, lambda each: contextlib.nullcontext(film), folder / "pack.bin")

    return {
        "codec_encode_frames_per_s": rate(lambda: codec.encode(frames), len(frames)),
        "codec_decode_frames_per_s": rate(lambda: codec.decode(latents), len(frames)),
        "text_captions_per_s": rate(lambda: encoder.encode(texts), len(texts)),
        "group_frames_per_s": rate(whole, NUM_CLIPS * NUM_FRAMES),
    }


def drawn(num_frames: int, height: int, width: int) -> Pixels:
    """A shaded ground with a box that moves over it, and some grain: (num_frames, height, width, 3)."""
    rng = np.random.default_rng(0)
    ground = np.linspace(60, 180, height)[:, None, None] + rng.normal(0, 6, (height, width, 3))
    film = np.repeat(np.clip(ground, 0, 255).astype(np.uint8)[None], num_frames, axis=0)
    for index in range(num_frames):
        left = (width - width // 5) * index // num_frames
        film[index, height // 3 : height * 2 // 3, left : left + width // 5] = (200, 40, 30)
    return film


def rate(work: Callable[[], object], amount: int) -> float:
    """Median amount per second, after one round to warm up."""
    work()
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return round(amount / statistics.median(seconds), 1)


if __name__ == "__main__":
    main()
