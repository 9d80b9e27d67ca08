"""The audit of guidance: samples at several scales, and what is predicted with a caption and without one.

Of the base model and of the last checkpoint, in the weights that count. The samples of one checkpoint at one scale are
an item, and so are the predictions of a checkpoint.
"""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bricks_core.diffusion.families import family_of
from bricks_core.diffusion.family import Family, Frame, Prompts
from bricks_core.diffusion.noise_schedule import NUM_TIMESTEPS
from bricks_core.models.text_encoder import load_text_encoder
from bricks_core.models.vae import LatentCodec, load_codec
from bricks_core.report.audit import GuidanceAudit, GuidanceOf, GuidanceRow
from bricks_core.report.intervals import interval
from bricks_core.spec.evaluate import EvaluateSpec
from bricks_core.spec.items import ItemKey, Recipe, recipe
from bricks_core.spec.latents import Latent, LatentsSpec
from bricks_core.spec.manifest import StoredObject, content_id
from bricks_core.spec.strict import Strict, what_of
from bricks_core.spec.train import DEFAULT_WEIGHTS, CheckpointRow, TrainSpec, Weights
from bricks_core.stages.evaluate.asked import noise_of
from bricks_core.stages.evaluate.measures import guidance_audit as measure
from bricks_core.stages.evaluate.samples import Captions, beside, decoded, frame_of, sampling_of, strip_of
from bricks_core.storage.items import seconds_since
from bricks_core.storage.scratch import scratch
from bricks_core.storage.shards import Packs
from bricks_core.storage.work import Work
from bricks_core.video.read import Pixels
from bricks_core.video.write import jpeg, write_mp4

MAX_PROMPTS = 4
"""Of the run's own, the first so many are sampled."""
MAX_CLIPS = 16
"""Held-out clips that predictions are made for."""
MAX_PACKS = 4
"""They lie in so many packs of latents at most, since each is fetched whole."""
TIMESTEPS = tuple(NUM_TIMESTEPS * (2 * place + 1) // 10 for place in range(5))
_OF_SAMPLES = ("num_frames", "resolution", "aspect", "fps", "sampler", "num_sampling_steps", "guided_channels", "code")


@dataclass(frozen=True)
class Audited:
    """A part of the audit: a checkpoint's samples at one scale, or its predictions."""

    step: int
    weights: Weights
    weights_key: str
    """Of the checkpoint's file, relative to the artifact of train."""
    guidance: float | None
    """None: the predictions."""
    made: Recipe = field(compare=False, repr=False)

    @property
    def id(self) -> str:
        """Of its item."""
        return self.made.key.key

    @property
    def keys(self) -> tuple[ItemKey, ...]:
        return (self.made.key,)


@dataclass(frozen=True)
class Stretch:
    """Frames of a held-out clip, and the row whose caption is the wrong one; None: all have the same."""

    row: Latent
    begin: int
    interval: int
    other: Latent | None

    @property
    def noise_id(self) -> str:
        return content_id("stretch", self.row.item, self.begin, self.interval)


class Answer(Strict):
    """The answer of an item of kind guidance."""

    roughness: list[float]
    """Of the latents of each sample, by prompt; of predictions, of each clip."""
    numbers: list[list[list[float | None]]] = []
    """Of predictions (clips, timesteps, NUMBERS); null where there is no other caption."""


def asked_audit(spec: EvaluateSpec, work: Work) -> Iterator[Audited]:
    """All parts of the audit, by checkpoint."""
    rows = sorted(work.rows("train", "checkpoints", CheckpointRow), key=lambda row: row.step)
    if not spec.audit_guidance or not rows:
        return
    weights: Weights = DEFAULT_WEIGHTS if DEFAULT_WEIGHTS in spec.weights else spec.weights[0]
    stretches, _ = stretches_of(spec, work)
    for row in dict.fromkeys((rows[0], rows[-1])):
        key = row.ema_key if weights == "ema" else row.weights_key
        weights_of = work.inputs["train"].full(key)
        for scale in dict.fromkeys(spec.audit_guidance):
            made = recipe(
                "guidance",
                of="samples",
                weights_of=weights_of,
                guidance=scale,
                prompts=spec.prompts[:MAX_PROMPTS],
                settings=what_of(spec, "seed", *_OF_SAMPLES),
            )
            yield Audited(row.step, weights, key, scale, made)
        if stretches:
            made = recipe(
                "guidance",
                of="predictions",
                weights_of=weights_of,
                clips=[
                    [each.row.item, each.row.text_item, each.other.text_item if each.other else "", each.begin]
                    for each in stretches
                ],
                settings=what_of(spec, "seed", "num_frames", "fps", "sampler", "code"),
            )
            yield Audited(row.step, weights, key, None, made)


def make_audit(spec: EvaluateSpec, work: Work) -> None:
    """Make the parts that are missing, each kept as soon as it is there."""
    todo = work.todo(asked_audit(spec, work), unit="parts of the audit")
    if not todo:
        return
    auditor = _Auditor(spec, work)
    if any(each.guidance is not None for each in todo):
        # The encoder may be far larger than the model: it is gone before the model comes.
        _ = auditor.captions
    with closing(work.in_turn([("/".join(each.made.key), [each]) for each in todo])) as coming:
        for number, _left in coming:
            each = todo[number]
            with auditor.precision():
                auditor.predict(each) if each.guidance is None else auditor.sample(each)
            work.progress.advance(note=f"step {each.step} {each.weights}")


class _Auditor:
    """What all parts need, each loaded when it is first asked for."""

    def __init__(self, spec: EvaluateSpec, work: Work):
        self._spec, self._work = spec, work
        self._latents = LatentsSpec.model_validate(work.inputs["latents"].manifest.spec)
        self._train = TrainSpec.model_validate(work.inputs["train"].manifest.spec)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.family: Family = family_of(self._train.model)
        self._key = ""
        self._loaded: Any = None

    def precision(self) -> contextlib.AbstractContextManager[object]:
        precise = self.device.type == "cpu" or self._train.precision == "float32"
        return nullcontext() if precise else torch.autocast(self.device.type, torch.bfloat16)

    @cached_property
    def captions(self) -> Captions:
        return Captions.of(load_text_encoder(self._latents.text, self.device), self._spec.prompts[:MAX_PROMPTS])

    @cached_property
    def codec(self) -> LatentCodec:
        return load_codec(self._latents.codec, self.device)

    def _network(self, key: str) -> Any:
        """The network of a checkpoint: that of the part before, if it is the same."""
        if self._key != key:
            self._loaded, self._key = None, key  # its memory is wanted
            with (
                self._work.local("train", key) as file,
                self._work.local("train", beside(key, "config.json")) as config,
            ):
                self._loaded = self.family.load(file, config).to(self.device)
        return self._loaded

    def sample(self, asked: Audited) -> None:
        """Samples of one scale: their videos, strips, and how rough their latents are."""
        began_s = time.monotonic()
        spec, network = self._spec, self._network(asked.weights_key)
        assert asked.guidance is not None
        frame, sampling = frame_of(spec, self.codec), replace(sampling_of(spec), guidance_scale=asked.guidance)
        indices = range(len(spec.prompts[:MAX_PROMPTS]))
        rough: list[float] = []
        objects: list[StoredObject] = []
        for first in range(0, len(indices), spec.batch_size):
            batch = indices[first : first + spec.batch_size]
            captions = self.captions.of_prompts(batch, self.device)
            noise = [noise_of(spec.seed, index) for index in batch]
            sampled = self.family.sample(network, captions, frame, noise, sampling)
            for index, latent in zip(batch, sampled, strict=True):
                rough.append(measure.roughness(latent.float().cpu().numpy()))
                objects += self._stored(asked, index, decoded(self.codec, latent))
        self._work.items.put(asked.made, Answer(roughness=rough), objects, cost=seconds_since(began_s))

    def _stored(self, asked: Audited, index: int, frames: Pixels) -> Iterator[StoredObject]:
        what = f"{asked.weights} weights after step {asked.step}, guidance {asked.guidance:g}"
        with scratch() as folder:
            video, strip = folder / "video.mp4", folder / "strip.jpg"
            write_mp4(video, frames, self._spec.fps, metadata={"title": self._spec.prompts[index], "comment": what})
            strip.write_bytes(jpeg(strip_of(frames)))
            for file in (video, strip):
                yield self._work.items.put_file(asked.made.key, file, f"-{index}{file.suffix}")

    @torch.inference_mode()
    def predict(self, asked: Audited) -> None:
        """NUMBERS of every clip at every timestep, and how rough the clips' latents are."""
        began_s = time.monotonic()
        network = self._network(asked.weights_key)
        numbers, rough = [], []
        stretches, _ = stretches_of(self._spec, self._work)
        with contextlib.ExitStack() as stack:
            files = {
                key: stack.enter_context(self._work.local("latents", key))
                for key in dict.fromkeys(key for each in stretches for key in _packs_of(each))
            }
            packs = Packs(files.__getitem__)
            for each in stretches:
                latents = _window(self._spec, each, packs)
                rough.append(measure.roughness(latents.numpy()))
                numbers.append(self._numbers(each, latents, packs, network).tolist())
        told = [[[_told(number) for number in row] for row in clip] for clip in numbers]
        self._work.items.put(asked.made, Answer(roughness=rough, numbers=told), cost=seconds_since(began_s))

    def _numbers(self, asked: Stretch, latents: Tensor, packs: Packs, network: Any) -> np.ndarray:
        """(timesteps, NUMBERS) of one clip's latents (C, T, H, W)."""
        row, num = asked.row, len(TIMESTEPS)
        noise = [
            torch.randn(latents.shape, generator=noise_of(self._spec.seed, timestep, int(asked.noise_id[:12], 16)))
            for timestep in TIMESTEPS
        ]
        rows = [row, asked.other] if asked.other else [row]
        empty = torch.tensor(packs.empty_text(row).astype(np.float32), device=self.device)
        prompts = []
        for each in rows:
            text = torch.tensor(packs.text(each).astype(np.float32), device=self.device)
            mask = torch.ones(num, len(text), device=self.device)
            prompts.append(Prompts(text[None, None].expand(num, -1, -1, -1), mask, empty))
        size = (latents.shape[1], latents.shape[2], latents.shape[3])
        frame = Frame(self._spec.num_frames, row.height_px, row.width_px, row.fps / asked.interval, size)
        found = self.family.predict(
            network,
            latents.to(self.device).expand(num, -1, -1, -1, -1),
            torch.stack(noise).to(self.device),
            torch.tensor(TIMESTEPS, device=self.device),
            prompts,
            frame,
            self._spec.sampler,
        )
        own, *other = (each.float().cpu().numpy() for each in found.captioned)
        without, target = found.without.float().cpu().numpy(), found.target.float().cpu().numpy()
        return measure.compared(measure.Predicted(own, other[0] if other else None, without, target))


def stretches_of(spec: EvaluateSpec, work: Work) -> tuple[list[Stretch], str]:
    """Held-out clips as long as a sample, spread over their films, and why there are none.

    Which ones follows from their content, and from which packs they lie in where there are many.
    """
    kind = "image" if spec.num_frames == 1 else "video"
    rows = [row for row in work.rows("latents", "latents", Latent) if row.split == "held_out" and row.kind == kind]
    of_size = [row for row in rows if row.resolution == spec.resolution]
    if not of_size:
        what = f"held-out {kind}s" if not rows else f"held-out {kind}s of {spec.resolution}"
        return [], f"There are no {what} to make predictions for."
    long_enough = [row for row in of_size if row.num_frames > _span(spec, row)]
    if not long_enough:
        return [], f"All {len(of_size)} held-out clips are shorter than a sample: there are no predictions for them."
    chosen = _few_packs(_spread(long_enough))
    found = []
    for place, row in enumerate(chosen):
        slack = 0 if row.time_stride > 1 else row.num_frames - 1 - _span(spec, row)
        around = (*chosen[place + 1 :], *chosen[:place])
        other = next((each for each in around if each.text_item != row.text_item), None)
        found.append(Stretch(row, slack // 2, _interval(spec, row), other))
    return found, ""


def _interval(spec: EvaluateSpec, row: Latent) -> int:
    """Frames of the clip to one of a sample; what shrinks time is read frame by frame."""
    return 1 if row.time_stride > 1 or spec.num_frames == 1 else max(1, round(row.fps / spec.fps))


def _span(spec: EvaluateSpec, row: Latent) -> int:
    """How far the last frame is from the first: of whole latents."""
    return (spec.num_frames - 1) // row.time_stride * row.time_stride * _interval(spec, row)


def _window(spec: EvaluateSpec, asked: Stretch, packs: Packs) -> Tensor:
    """(C, T, H, W) float32"""
    num_frames = _span(spec, asked.row) // asked.interval + 1
    window = packs.window(asked.row, asked.begin, num_frames, asked.interval)
    return torch.tensor(window.astype(np.float32)).transpose(0, 1).contiguous()


def _spread(rows: Iterable[Latent]) -> list[Latent]:
    """One of each film, then a second of each, and so on; of a clip with several captions or sizes one."""
    films: dict[str, dict[str, tuple[str, Latent]]] = defaultdict(dict)
    for row in rows:
        entry = (content_id("audited", row.item, row.text_item), row)
        clips = films[row.video_id]
        clips[row.clip_id] = min(clips.get(row.clip_id, entry), entry, key=lambda each: each[0])
    turns = [
        (turn, rank, row)
        for clips in films.values()
        for turn, (rank, row) in enumerate(sorted(clips.values(), key=lambda each: each[0]))
    ]
    return [row for _, _, row in sorted(turns, key=lambda each: each[:2])]


def _few_packs(rows: Sequence[Latent]) -> list[Latent]:
    """The first MAX_CLIPS that lie in few packs."""
    packs: set[str] = set()
    texts: set[str] = set()
    found = []
    for row in rows:
        if len(packs | {row.pack}) <= MAX_PACKS and len(texts | {row.text_pack}) <= MAX_PACKS:
            packs.add(row.pack)
            texts.add(row.text_pack)
            found.append(row)
    return found[:MAX_CLIPS]


def _packs_of(asked: Stretch) -> tuple[str, ...]:
    other = (asked.other.text_pack,) if asked.other else ()
    return (asked.row.pack, asked.row.text_pack, asked.row.empty_text_pack, *other)


def _told(number: float) -> float | None:
    """As JSON has it: it knows no nan."""
    return float(f"{number:.6g}") if np.isfinite(number) else None


def object_keys(asked: Audited) -> list[str]:
    """Where the samples of a part lie in the report, relative to the artifact, in the order of its item's files."""
    if asked.guidance is None:
        return []
    name = f"report/guidance/step-{asked.step:06d}-{asked.weights}-guidance-{asked.guidance:g}"
    return [f"{name}-prompt-{index:02d}{suffix}" for index in range(MAX_PROMPTS) for suffix in (".mp4", ".jpg")]


def audit_of(spec: EvaluateSpec, work: Work) -> tuple[GuidanceAudit | None, list[StoredObject]]:
    """What the audit found, and the copies of its samples beside the page. None where none was asked for.

    Raises DataError: a part is missing.
    """
    asked = list(asked_audit(spec, work))
    if not asked:
        return None, []
    work.items.load(key for each in asked for key in each.keys)
    checkpoints, rows, objects = [], [], []
    found: dict[int, measure.Found] = {}
    stretches, reason = stretches_of(spec, work)
    films = [each.row.video_id for each in stretches]
    real = None
    for each in asked:
        item = work.items.need(each.made.key)
        answer = Answer.model_validate(item.answer)
        if each.guidance is None:
            numbers = np.array(answer.numbers, np.float64)
            found[each.step] = measure.audited(numbers, TIMESTEPS, films)
            of = found[each.step]
            checkpoints.append(GuidanceOf(each.step, each.weights, of.bins, of.worth, of.excess))
            real = interval(answer.roughness, films, bounds=(0, 1))
            continue
        keys = object_keys(each)
        for stored, key in zip(item.objects, keys, strict=False):
            with work.store.local(stored.key, sha256=stored.sha256) as file:
                objects.append(work.put_file(key, file))
        for index, (text, rough) in enumerate(zip(spec.prompts, answer.roughness, strict=False)):
            place = (each.step, each.weights, each.guidance)
            rows.append(GuidanceRow(index, text, *place, rough, keys[2 * index], keys[2 * index + 1]))
    steps = list(dict.fromkeys(each.step for each in asked))
    by_step = {step: [row for row in rows if row.step == step] for step in steps}
    scales = [scale for step, some in by_step.items() for scale in measure.scales_of(step, *_columns(some))]
    rougher = measure.noise_at_0(*_columns(by_step[steps[-1]]))
    audit = GuidanceAudit(
        checkpoints=checkpoints,
        num_clips=len(stretches),
        num_films=len(set(films)),
        rows=rows,
        scales=scales,
        roughness_real=real,
        finding=measure.finding(found.get(steps[-1]), rougher),
        reason=reason,
    )
    return audit, objects


def _columns(rows: Sequence[GuidanceRow]) -> tuple[list[float], list[float], list[int]]:
    return [row.guidance for row in rows], [row.roughness for row in rows], [row.prompt_index for row in rows]
