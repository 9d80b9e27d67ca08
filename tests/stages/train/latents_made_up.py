"""A small latents artifact with a rule in it that a network can learn, made through the packs that training reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bricks_core.progress import Progress
from bricks_core.spec.items import ItemKey, recipe
from bricks_core.spec.latents import Latent, LatentsSpec, TextSpec
from bricks_core.spec.manifest import Manifest, content_id
from bricks_core.spec.stages import STAGES
from bricks_core.spec.train import TrainSpec
from bricks_core.storage.artifacts import open_artifact
from bricks_core.storage.shards import PackWriter
from bricks_core.storage.store import Store
from bricks_core.storage.trainings import Trajectory, keyed
from bricks_core.storage.work import Joined, Work

TEXT_WIDTH = 24
MAX_TOKENS = 12
LATENTS_DIGEST = "0" * 31 + "1"


def made_up_rows(
    folder: Path,
    *,
    num_clips: int = 12,
    num_held_out: int = 4,
    sizes: tuple[tuple[int, int], ...] = ((8, 6),),
    time_stride: int = 1,
) -> list[Latent]:
    """Clips and their middle images, in one pack per size. A caption says which of four patterns a clip has."""
    rows = []
    for size_index, (height, width) in enumerate(sizes):
        key = f"packs/{size_index}.bin"
        (folder / "packs").mkdir(parents=True, exist_ok=True)
        with PackWriter(folder / key) as pack:
            for clip in range(size_index, num_clips + num_held_out, len(sizes)):
                split = "held_out" if clip >= num_clips else "train"
                rows += _clip(pack, key, clip, split, height, width, time_stride)
    return sorted(rows, key=lambda row: row.id)


def _clip(pack: PackWriter, key: str, clip: int, split: str, height: int, width: int, time_stride: int) -> list[Latent]:
    rng = np.random.default_rng(clip)
    pattern = clip % 4
    num_frames = 9 + clip % 3
    num_tokens = 3 + clip % 5
    frames = np.full((num_frames, 4, height, width), 0.2) * rng.standard_normal((num_frames, 4, 1, 1))
    frames[:, pattern] += 1.5
    text = np.zeros((num_tokens, TEXT_WIDTH)) + 0.1 * rng.standard_normal((num_tokens, TEXT_WIDTH))
    text[:, pattern] += 2.0
    text_offset, empty_offset = pack.add_text(text), pack.add_text(np.ones((1, TEXT_WIDTH)))
    made = []
    for kind, latents in (("video", frames), ("image", frames[num_frames // 2 :][:1])):
        offset = pack.add_latents([latents], len(latents), height, width)
        made.append(
            Latent(
                id=content_id("latent", clip, kind),
                clip_id=f"clip-{clip}",
                video_id=f"video-{clip}",
                kind=kind,
                split=split,
                resolution="64x48" if height >= width else "48x64",
                aspect=f"{height * 8}x{width * 8}",
                height_px=height * 8,
                width_px=width * 8,
                num_frames=1 + (len(latents) - 1) * time_stride,
                time_stride=time_stride,
                latent_channels=4,
                latent_height=height,
                latent_width=width,
                fps=120.0 if kind == "image" else 12.0,
                item=content_id("latent", clip, kind) * 2,
                text_item=content_id("text", clip) * 2,
                pack=key,
                latents_offset_bytes=offset,
                text_pack=key,
                text_offset_bytes=text_offset,
                num_tokens=num_tokens,
                empty_text_pack=key,
                empty_text_offset_bytes=empty_offset,
                num_empty_tokens=1,
                text_width=TEXT_WIDTH,
                caption=f"pattern {pattern}",
                caption_by="made up",
                codec="made up",
                text_encoder="made up",
            )
        )
    return made


def made_up_latents(store: Store, scratch: Path, digest: str = LATENTS_DIGEST, **how: Any) -> None:
    """Put them into a store as a finished latents artifact."""
    spec = LatentsSpec(resolutions=["64x48"], text=TextSpec(max_tokens=MAX_TOKENS))
    commit_made_up(Work(store, STAGES["latents"], spec, digest, {}, {}, Progress("latents")), scratch, **how)


def commit_made_up(work: Work, scratch: Path, **how: Any) -> Manifest:
    """Finish a latents artifact with them."""
    rows = made_up_rows(scratch, **how)
    keys = sorted({row.pack for row in rows})
    stored = {key: work.items.put_file(ItemKey("pack", content_id(key) * 2), scratch / key, ".bin") for key in keys}
    items = []
    for place, row in enumerate(rows):
        pack = stored[row.pack]
        item = work.items.put(recipe("latent", made_up=[work.digest, row.id]), {}, [pack])
        where = dict.fromkeys(("pack", "text_pack", "empty_text_pack"), pack.key)
        rows[place] = row.model_copy(update=where | {"item": item.key})
        items.append(item.item_key)
    return work.commit(Joined({"latents": rows}, items))


def trajectory_of(work: Work, spec: TrainSpec) -> Trajectory:
    """Where the states of a training lie."""
    return Trajectory(spec, keyed(work.inputs["latents"].manifest, work.fingerprints))


def state_folder(work: Work, spec: TrainSpec, step: int) -> Path:
    """Of a training in a folder store."""
    return Path(work.store.uri) / trajectory_of(work, spec).folder(step)


def train_work(store: Store, spec: TrainSpec, digest: str = "0" * 31 + "2", latents: str = LATENTS_DIGEST) -> Work:
    """A working place of the train stage that reads them."""
    inputs = {"latents": open_artifact(store, "latents", latents)}
    return Work(store, STAGES["train"], spec, digest, {"latents": latents}, inputs, Progress("train"))
