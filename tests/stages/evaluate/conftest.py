"""A finished run in miniature: every artifact that evaluate reads, real files, and numbers that tests can count."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bricks_core.models.stdit2 import STDiT2
from bricks_core.models.weights import save_config
from bricks_core.progress import Progress
from bricks_core.spec.caption import Caption
from bricks_core.spec.clip import Clip, Image, Shot
from bricks_core.spec.evaluate import EvaluateSpec
from bricks_core.spec.ingest import Video
from bricks_core.spec.items import Item, ItemKey, Recipe, recipe
from bricks_core.spec.latents import Latent
from bricks_core.spec.manifest import Manifest, cache_key, content_id
from bricks_core.spec.run import BrickRun
from bricks_core.spec.score import Score
from bricks_core.spec.stages import STAGES
from bricks_core.spec.strict import Row, what_of
from bricks_core.spec.train import BucketLossRow, CheckpointRow, ClipLossRow, HeldOutRow, StepRow
from bricks_core.stages.evaluate import stage
from bricks_core.storage.artifacts import Artifact, open_artifact
from bricks_core.storage.items import digest_of
from bricks_core.storage.places import open_store
from bricks_core.storage.shards import PackWriter, pack_key
from bricks_core.storage.store import Store
from bricks_core.storage.work import Joined, Work
from bricks_core.video.write import jpeg, write_mp4

TEXT_WIDTH, MAX_TOKENS = 4096, 16
STEPS = (0, 20, 40, 60)


def run_of(prompts: list[str], tracking: str = "off", **evaluate: Any) -> BrickRun:
    """The run file of the miniature."""
    phases = [
        {
            "name": name,
            "steps": 30,
            "buckets": [
                {"num_frames": 1, "resolution": "32x48", "batch_size": 8},
                {"num_frames": 4, "resolution": "32x48", "frame_interval": 2, "batch_size": 4},
            ],
            "schedule": {"kind": "cosine_constant", "lr": 1e-3, "warmup_steps": 10},
        }
        for name in ("look", "move")
    ]
    model = {"hidden_size": 24, "depth": 1, "num_heads": 2, "input_sq_size_px": 32}
    return BrickRun.model_validate(
        {
            "apiVersion": "bricks.dev/v1alpha1",
            "kind": "BrickRun",
            "metadata": {"name": "miniature"},
            "spec": {
                "ingest": {"sources": [{"path": "films", "licence": "CC0-1.0"}]},
                "latents": {"resolutions": ["32x48"], "text": {"max_tokens": MAX_TOKENS}},
                "train": {"model": model, "phases": phases},
                "evaluate": {
                    "prompts": prompts,
                    "num_frames": 4,
                    "resolution": "32x48",
                    "num_sampling_steps": 2,
                    "num_checkpoints": 3,
                    "audit_guidance": [],
                    "num_seeds": 1,
                    "held_out_prompts": 0,
                    "plain_prompts": [],
                    **evaluate,
                },
                "tracking": {"wandb": tracking},
            },
        }
    )


@dataclass
class Finished:
    """A store with everything up to train, and what evaluate makes of it."""

    store: Store
    run: BrickRun
    digests: dict[str, str]

    @property
    def spec(self) -> EvaluateSpec:
        assert self.run.spec.evaluate is not None
        return self.run.spec.evaluate

    def work(self, spec: EvaluateSpec | None = None) -> Work:
        return self._work("evaluate", spec or self.spec)

    def evaluate(self, spec: EvaluateSpec | None = None) -> Artifact:
        """Run the stage, join and commit."""
        work = self.work(spec)
        stage.run(work.spec, work)
        work = self.work(spec)
        return Artifact(self.store, work.commit(stage.join(work.spec, work)))

    def page(self, artifact: Artifact) -> str:
        return self.store.get(artifact.prefix + "report/index.html").decode()

    def commit(self, work: Work, tables: dict[str, list[Any]], items: Iterable[Item] = (), **more: Any) -> Manifest:
        name = work.stage.name
        ordered = {table: sorted(rows, key=lambda row: row.id) for table, rows in tables.items()}
        manifest = work.commit(Joined(ordered, [each.item_key for each in items], **more))
        self.digests[name] = manifest.digest
        return manifest

    def work_of(self, name: str) -> Work:
        return self._work(name, self.run.stage_spec(name))

    def _work(self, name: str, spec: Any) -> Work:
        needs = {need: self.digests[need] for need in STAGES[name].needs}
        inputs = {need: open_artifact(self.store, need, digest) for need, digest in needs.items()}
        keyed = {need: inputs[need].manifest.read_as.get(name) or needs[need] for need in STAGES[name].key_inputs}
        return Work(
            store=self.store,
            stage=STAGES[name],
            spec=spec,
            digest=cache_key(STAGES[name], what_of(spec), keyed),
            input_digests=needs,
            inputs=inputs,
            progress=Progress(name),
            run=self.run,
        )


def finish_inputs(
    folder: Path,
    films: dict[str, list[np.ndarray]],
    prompts: list[str],
    *,
    caption: Callable[[int], str] = lambda number: f"A red square moves to the right, number {number}.",
    held_out: bool = True,
    fps: float = 24,
    pack_size: int = 100,
    num_held_out: int = 1,
    **evaluate: Any,
) -> Finished:
    """Commit ingest to train for some films, each given as its clips (num_frames, height, width, 3).

    Of every film the last clip is dropped by the filter; the last films are held out. `pack_size`: latents to a pack.
    """
    made = Finished(open_store(str(folder / "store")), run_of(prompts, **evaluate), {})
    _put_films(made, folder, films, fps)
    clips = list(_rows(made, "clip", "clips", Clip))
    last_films = {content_id("video", film) for film in list(films)[-num_held_out:]}
    lasts = {content_id("clip", film, len(scenes) - 1) for film, scenes in films.items()}
    scores = [
        _score(clip, number, clip.id in lasts, held_out and clip.video_id in last_films)
        for number, clip in enumerate(clips)
    ]
    made.commit(made.work_of("score"), {"scores": scores})
    captions = _put_captions(made, scores, caption)
    _put_latents(made, folder, clips, scores, captions, pack_size)
    _put_training(made, folder, held_out)
    return made


def _put_films(made: Finished, folder: Path, films: dict[str, list[np.ndarray]], fps: float) -> None:
    videos = [
        Video(
            id=content_id("video", film), name=f"{film}.mp4", source="films", licence="CC0-1.0", credit="",
            sha256=_source(film), size_bytes=1000, state="ok", num_frames=sum(map(len, scenes)), fps=fps,
            width_px=160, height_px=96,
        )
        for film, scenes in films.items()
    ]  # fmt: skip
    videos.append(
        Video(
            id=content_id("video", "empty"), name="empty.mp4", source="films", licence="CC0-1.0", credit="",
            sha256="1" * 64, size_bytes=0, state="unreadable", reason="The file is empty.",
        )
    )  # fmt: skip
    made.commit(made.work_of("ingest"), {"videos": videos, "given": []})
    work = made.work_of("clip")
    clips, images, shots, items = [], [], [], []
    for film, scenes in films.items():
        for place, pictures in enumerate(scenes):
            clip_id, image_id = content_id("clip", film, place), content_id("image", film, place)
            write_mp4(folder / "clip.mp4", pictures, fps)
            (folder / "image.jpg").write_bytes(jpeg(pictures[len(pictures) // 2]))
            span = {
                "video_id": content_id("video", film),
                "first_frame": 1000 * place,
                "end_frame": 1000 * place + len(pictures),
            }
            cut = recipe("clip", source=_source(film), span=[span["first_frame"], span["end_frame"]])
            files = {".mp4": folder / "clip.mp4", ".jpg": folder / "image.jpg"}
            stored, still = (work.items.put_file(cut.key, file, suffix) for suffix, file in files.items())
            size = {"width_px": pictures.shape[2], "height_px": pictures.shape[1]}
            about = {**size, "source_sha256": _source(film), "item": "/".join(cut.key)}
            clips.append(Clip(id=clip_id, num_frames=len(pictures), fps=fps, **span, **about, **stored.model_dump()))
            images.append(
                Image(id=image_id, clip_id=clip_id, video_id=span["video_id"], frame=1, **about, **still.model_dump())
            )
            shots.append(Shot(id=clip_id, state="clip", **span))
            items.append(work.items.put(cut, {}, [stored, still]))
        shots.append(
            Shot(
                id=content_id("short", film), video_id=content_id("video", film), first_frame=0, end_frame=9,
                state="dropped", reason="shorter than 15 frames",
            )
        )  # fmt: skip
    made.commit(work, {"shots": shots, "clips": clips, "images": images}, items)


def _source(film: str) -> str:
    return hashlib.sha256(film.encode()).hexdigest()


def _score(clip: Clip, number: int, dropped: bool, held_out: bool) -> Score:
    motion = 3.25 + number if dropped else 20.0 + 1.7 * number
    return Score(
        id=clip.id, video_id=clip.video_id, num_frames=clip.num_frames, motion=motion, motion_x=0.1, motion_y=0,
        camera_x=0, camera_y=0, sharpness=300 + 40 * number,
        brightness=90 + 3.0 * number, contrast=40 + number, plain_share=0.3, duplicate_frame_share=0.5, picture_fps=12,
        perceptual_hash=["0" * 16] * 3, state="dropped" if dropped else "kept",
        reasons=["too still"] if dropped else [], split="held_out" if held_out else "train",
    )  # fmt: skip


def _put_captions(made: Finished, scores: list[Score], caption: Callable[[int], str]) -> list[Caption]:
    captions = []
    for number, score in enumerate(each for each in scores if each.state == "kept"):
        text = caption(number)
        for kind in ("video", "image"):
            about = {"clip_id": score.id, "kind": kind, "by": "measured"}
            row_id = score.id if kind == "video" else content_id("still", score.id)
            if number == 1 and kind == "video":
                captions.append(Caption(id=row_id, status="no_movement", reason="Nothing moves.", **about))
            else:
                captions.append(Caption(id=row_id, status="ok", text=text, num_words=len(text.split()), **about))
    made.commit(made.work_of("caption"), {"captions": captions})
    return captions


def _put_latents(
    made: Finished, folder: Path, clips: list[Clip], scores: list[Score], captions: list[Caption], pack_size: int
) -> None:
    by_id, splits = {clip.id: clip for clip in clips}, {score.id: score.split for score in scores}
    work = made.work_of("latents")
    accepted = [caption for caption in captions if caption.status == "ok"]
    latents = [
        recipe("latent", clip=by_id[each.clip_id].item, still=each.kind == "image", size=[32, 48]) for each in accepted
    ]
    texts = [recipe("text", text=text) for text in sorted({each.text for each in accepted} | {""})]
    packed = _put_packed(work, folder, latents, pack_size) | _put_packed(work, folder, texts, pack_size)
    empty = packed[recipe("text", text="").key]
    rows, lines = [], []
    for caption, of_clip in zip(accepted, latents, strict=True):
        clip, of_text = by_id[caption.clip_id], recipe("text", text=caption.text)
        latent, text = packed[of_clip.key], packed[of_text.key]
        split = splits[caption.clip_id]
        lines.append(f"{latent.key} {text.key} 32x48 {split}")
        rows.append(
            Latent(
                id=content_id("latent", latent.key, text.key, "32x48"), clip_id=clip.id, video_id=clip.video_id,
                kind=caption.kind, split=split, resolution="32x48", aspect="32x48",
                height_px=32, width_px=48, time_stride=1, latent_channels=4, latent_height=4, latent_width=6,
                num_frames=clip.num_frames if caption.kind == "video" else 1, fps=clip.fps,
                item=latent.key, text_item=text.key,
                pack=latent.objects[0].key, latents_offset_bytes=latent.answer["offset_bytes"],
                text_pack=text.objects[0].key, text_offset_bytes=text.answer["offset_bytes"], num_tokens=4,
                empty_text_pack=empty.objects[0].key, empty_text_offset_bytes=empty.answer["offset_bytes"],
                num_empty_tokens=1, text_width=TEXT_WIDTH,
                caption=caption.text, caption_by=caption.by, codec="patch-dct:1", text_encoder="hashed-words:1",
            )
        )  # fmt: skip
    made.commit(work, {"latents": rows}, packed.values(), read_as={"train": digest_of(sorted(lines))})


def _put_packed(work: Work, folder: Path, made: list[Recipe], pack_size: int) -> dict[ItemKey, Item]:
    """Record items whose files are packs that they share: 16 frames of latents each, or features of 4 tokens."""
    items = {}
    for first in range(0, len(made), pack_size):
        pack = made[first : first + pack_size]
        with PackWriter(folder / "pack.bin") as writer:
            offsets = [_written(writer, each) for each in pack]
        stored = work.items.put_file(pack_key([each.key for each in pack]), folder / "pack.bin", ".bin")
        for offset, each in zip(offsets, pack, strict=True):
            items[each.key] = work.items.put(each, {"offset_bytes": offset}, [stored])
    return items


def _written(writer: PackWriter, made: Recipe) -> int:
    drawn = np.random.default_rng(int(made.key.key, 16))
    if made.key.kind == "latent":
        return writer.add_latents([drawn.normal(size=(16, 4, 4, 6))], 16, 4, 6)
    return writer.add_text(0.02 * drawn.normal(size=(4, TEXT_WIDTH)))


def _put_training(made: Finished, folder: Path, held_out: bool) -> None:
    train = made.run.spec.train
    assert train is not None
    work = made.work_of("train")
    torch.manual_seed(0)
    model = STDiT2(24, 1, 2, caption_channels=TEXT_WIDTH, model_max_length=MAX_TOKENS, input_sq_size=32)
    checkpoints, objects = [], []
    for step in STEPS:
        keys = {}
        save_config(model, folder / "config.json")
        objects.append(work.put_file(f"checkpoints/step-{step:06d}/config.json", folder / "config.json"))
        for weights in ("weights", "ema"):
            # Each checkpoint is a little further from the first; EMA lags.
            way = step / 60 * (1.0 if weights == "weights" else 0.6)
            state = {name: tensor + 0.05 * way for name, tensor in model.state_dict().items()}
            save_file(state, folder / "checkpoint.safetensors")
            stored = work.put_file(
                f"checkpoints/step-{step:06d}/{weights}.safetensors", folder / "checkpoint.safetensors"
            )
            objects.append(stored)
            keys[weights] = stored.key
        checkpoints.append(
            CheckpointRow(
                id=f"checkpoints/step-{step:06d}", step=step, phase="look" if step <= 30 else "move",
                weights_key=keys["weights"], ema_key=keys["ema"], state_key="",
            )
        )  # fmt: skip
    dice = np.random.default_rng(0)
    steps, buckets, measured = [], [], []
    names = [bucket.name for bucket in train.phases[0].buckets]
    for step in range(60):
        level = 0.3 + 0.7 * math.exp(-step / 15)
        losses = [level * (1 + 0.2 * dice.normal()) for _ in names]
        steps.append(
            StepRow(
                id=content_id("step", step), step=step, phase="look" if step < 30 else "move",
                loss=float(np.mean(losses)), mse=level, vb=0.01, learning_rate=1e-3 * min(1, (step % 30 + 1) / 10),
                gradient_norm=level + 0.1 * dice.random(), num_samples=12,
            )
        )  # fmt: skip
        buckets += [
            BucketLossRow(id=content_id("bucket", step, name), step=step, bucket=name, loss=each)
            for name, each in zip(names, losses, strict=True)
        ]
    for step in STEPS if held_out else ():
        for weights, lag in (("raw", 1.0), ("ema", 0.8)):
            for name in names:
                for place in range(4):
                    level = (
                        (0.25 + 0.75 * math.exp(-step * lag / 20))
                        * (1.2 - 0.25 * place)
                        * (1.1 if name == names[1] else 1)
                    )
                    measured.append(
                        HeldOutRow(
                            id=content_id("held_out", step, weights, name, place),
                            step=step, weights=weights, bucket=name,
                            first_timestep=250 * place, end_timestep=250 * (place + 1), loss=level, mse=level, vb=0.0,
                            num_samples=3,
                        )
                    )  # fmt: skip
    clip_losses = [
        ClipLossRow(
            id=content_id("clip_loss", step, weights, name, clip), step=step, weights=weights, bucket=name,
            split="held_out", clip_id=f"clip-{clip}", video_id=f"film-{clip}", mse=0.0,
            loss=(0.25 + 0.75 * math.exp(-step * lag / 20)) * (0.9 + 0.1 * clip),
        )
        for step in (STEPS if held_out else ())
        for weights, lag in (("raw", 1.0), ("ema", 0.8))
        for name in names
        for clip in range(3)
    ]  # fmt: skip
    made.commit(
        work,
        {
            "steps": steps,
            "bucket_losses": buckets,
            "held_out": measured,
            "clip_losses": clip_losses,
            "checkpoints": checkpoints,
        },
        objects=objects,
    )


def _rows(made: Finished, name: str, table: str, row: type[Row]) -> Any:
    return open_artifact(made.store, name, made.digests[name]).rows(table, row)


@pytest.fixture(scope="session")
def finished_in(drawing: Any) -> Callable[..., Finished]:
    """finished_in(folder, prompts=[...], caption=..., held_out=...): a run that evaluate can begin on."""

    def make(folder: Path, prompts: list[str] | None = None, num_films: int = 3, **settings: Any) -> Finished:
        films = {
            f"film-{film}": [
                drawing.scene([drawing.Mover(colour)], num_frames=16, seed=7 * film + place)
                for place, colour in enumerate(("red", "blue", "yellow"))
            ]
            for film in range(num_films)
        }
        return finish_inputs(folder, films, prompts or ["A red square on a green ground", "A blue square"], **settings)

    return make


@pytest.fixture
def finished(finished_in: Callable[..., Finished], tmp_path: Path) -> Callable[..., Finished]:
    """The same, in the test's own folder."""
    return functools.partial(finished_in, tmp_path)
