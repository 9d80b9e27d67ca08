"""How long it takes to say where things come from, and what would go with a film, in a store of many clips.

    python -m benchmarks.lineage [--save] [--clips 24000]

The store is that of benchmarks/large_store.py, with latents of every kept clip and its picture, and a training that has
begun with two states. Each figure is of a process of its own, with its start; tables were written a moment before.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.large_store import RUN, Counting, Large, commit_at_hand, make_store
from benchmarks.large_store import _of_a_child as of_a_child
from benchmarks.record import flags, keep
from bricks_core.pipeline.points import point
from bricks_core.spec.items import recipe
from bricks_core.spec.latents import Latent
from bricks_core.spec.manifest import content_id
from bricks_core.spec.train import TrainSpec
from bricks_core.storage.in_order import in_order
from bricks_core.storage.trainings import COMMIT, Record, Trajectory, begin, keyed
from bricks_core.storage.work import Joined

SHAPE: dict[str, Any] = {
    "resolution": "240p",
    "aspect": "0.56",
    "height_px": 240,
    "width_px": 426,
    "num_frames": 60,
    "time_stride": 1,
    "latent_channels": 4,
    "latent_height": 30,
    "latent_width": 53,
    "fps": 24.0,
    "num_tokens": 50,
    "num_empty_tokens": 1,
    "text_width": 4096,
    "codec": "sd-vae",
    "text_encoder": "t5",
    "caption": "A bright scene on green ground in front of a light blue background.",
    "caption_by": "a-vision-model",
}


def main() -> None:
    """Make the store, then ask."""
    parser = flags(__doc__)
    parser.add_argument("--clips", type=int, default=24_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bricks-") as name:
        os.environ["XDG_CACHE_HOME"] = f"{name}/cache"
        large = Large(Path(name), arguments.clips)
        large.make_sources()
        make_store(large)
        commit_at_hand(large)
        _train(large)
        time.sleep(4)  # a file's content is remembered once the file is older than the coarsest of clocks
        clip = large.clips[0].clip
        found: dict[str, Any] = {"num_clips": large.num_clips, "num_latents": large.num_clips}
        commands = {
            "bricks lineage RUN": ["lineage", RUN],
            "bricks lineage CLIP": ["lineage", clip.id],
            "bricks lineage SOURCE": ["lineage", "film-00000.mp4"],
            "bricks takedown SOURCE": ["takedown", "film-00000.mp4"],
            "bricks takedown SOURCE --delete": ["takedown", "film-00000.mp4", "--delete"],
        }
        for what, words in commands.items():
            found[what] = of_a_child(["-m", "jobs.bricks", *words, "--store", str(large.place)])
            print(what, found[what], file=sys.stderr)
        keep("lineage", found, save=arguments.save)


def _train(large: Large) -> None:
    """Latents of what was kept, and a training that has begun."""
    store = Counting(large.place)
    work = large.work("latents", store)
    manifest = work.commit(Joined({"latents": in_order(_latents(large), Latent)}, read_as={"train": "1" * 32}))
    *_, step = large.stages(store, "latents")
    assert step.address is not None
    point(RUN, store, step.address.pointer())
    spec = large.run().stage_spec("train")
    assert isinstance(spec, TrainSpec)
    inputs = keyed(manifest, {})
    begin(store, RUN, spec, inputs, manifest.digest)
    trajectory = Trajectory(spec, inputs)
    for step_number in trajectory.wanted()[:2]:
        folder = trajectory.folder(step_number)
        files = [store.put_file(folder + name, large.file) for name in ("weights.safetensors", "ema.safetensors")]
        files.append(store.put_file(folder + "config.json", large.file))
        record = Record(step=step_number, phase=spec.phases[0].name, folder=folder, is_wanted=True, files=files)
        store.put(folder + COMMIT, record.model_dump_json().encode())


def _latents(large: Large) -> Iterator[Latent]:
    pack = "items/pack/00/" + "0" * 32 + ".00000000.bin"
    for number, each in enumerate(large.clips):
        if each.score.state == "kept":
            for kind in ("video", "image"):
                made = recipe("latent", of=[each.clip.item, *(["image"] if kind == "image" else [])], codec={})
                text = recipe("text", text=f"{kind} {number}", encoder={})
                yield Latent(
                    id=content_id("latent", made.key.key),
                    clip_id=each.clip.id,
                    video_id=each.clip.video_id,
                    kind=kind,
                    split="train",
                    item=made.key.key,
                    text_item=text.key.key,
                    pack=pack,
                    latents_offset_bytes=64,
                    text_pack=pack,
                    text_offset_bytes=64,
                    empty_text_pack=pack,
                    empty_text_offset_bytes=64,
                    **SHAPE,
                )


if __name__ == "__main__":
    main()
