"""Samples and real clips, each looked at once: what is kept of a clip is a few numbers.

Base and tuned samples are of the same prompts and noise. Real clips are brought to what a sample could look like.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import TypeVar

import cv2
import numpy as np
import torch

from bricks_core.judge.kept import scene_of
from bricks_core.judge.measured import Scene
from bricks_core.models.image_encoder import ImageEncoder, load_image_encoder
from bricks_core.models.vae import load_codec
from bricks_core.spec.evaluate import EvaluateSpec, PromptSet, Sample
from bricks_core.spec.latents import LatentsSpec
from bricks_core.stages.evaluate.measures import motion, style
from bricks_core.stages.evaluate.measures.by_hand import MIN_PX
from bricks_core.stages.evaluate.measures.memorisation import Fingerprint, fingerprint
from bricks_core.stages.evaluate.real_clips import RealClips, choose, decoded_clips
from bricks_core.stages.evaluate.samples import size_of
from bricks_core.storage.in_threads import in_threads, num_cores
from bricks_core.storage.work import Work
from bricks_core.video.read import Pixels, read_rgb
from bricks_core.video.write import jpeg

T = TypeVar("T")
NUM_HELD_OUT, NUM_TRAINING = 64, 256
"""Held-out clips, and stretches of training clips, that are looked at, at most."""
OF_FILMS: tuple[PromptSet, ...] = ("style", "held_out")
"""Prompts that are about the films: of their samples style, motion and copies are told."""
CONTACT_WIDTH_PX = 160
"""Of each of the four frames by which a clip is shown."""
Key = tuple[int, int]
"""Of a sample among those of a checkpoint: prompt and seed."""


@dataclass(frozen=True)
class Look:
    """What is kept of a clip; None where it was not asked for."""

    motion: motion.Motion | None = None
    scene: Scene | None = None
    style: style.Described | None = None
    print: Fingerprint | None = None
    contact: bytes = b""
    """A JPEG of four of its frames."""


@dataclass
class Checkpoint:
    """One checkpoint's samples, by prompt and seed."""

    name: str
    of: str
    step: int
    weights: str
    samples: dict[Key, Sample]
    looks: dict[Key, Look] = field(default_factory=dict)

    def keys(self, *sets: str) -> list[Key]:
        """Of the samples of some sets of prompts, in order."""
        return sorted(key for key, each in self.samples.items() if each.prompt_set in sets)


@dataclass
class RealLooks:
    """Clips of one side of the split."""

    chosen: RealClips
    looks: dict[int, Look] = field(default_factory=dict)
    """By the place of the stretch."""

    @property
    def in_order(self) -> list[Look]:
        return [self.looks[place] for place in range(len(self.chosen.stretches))]


@dataclass
class Looked:
    """All that was looked at."""

    base: Checkpoint
    own: list[Checkpoint]
    """Of this run, sampled as fully as the base; by step."""
    compared: list[Checkpoint]
    longer: list[Sample]
    """Samples of evaluate.lengths."""
    held_out: RealLooks
    training: RealLooks
    too_small: bool = False
    """For features of hand."""


def checkpoints_of(samples: Sequence[Sample], weights: str) -> tuple[Checkpoint, list[Checkpoint], list[Checkpoint]]:
    """The base model's samples, those of each later step that has all of the base's, and of each compared checkpoint.

    Of the base raw weights stand for both where they were still the same.
    """
    usual = [each for each in samples if not each.num_frames]
    ours = [each for each in usual if not each.of]
    first = min((each.step for each in ours), default=0)
    of_base = sorted((each for each in ours if each.step == first), key=lambda each: each.weights == weights)
    base = Checkpoint(
        "base model", "", first, of_base[-1].weights if of_base else weights, {_key(each): each for each in of_base}
    )
    own = []
    for step in sorted({each.step for each in ours} - {first}):
        mine = {_key(each): each for each in ours if (each.step, each.weights) == (step, weights)}
        if mine.keys() >= base.samples.keys():
            own.append(Checkpoint(f"step {step:,}", "", step, weights, mine))
    compared = []
    for name in dict.fromkeys(each.of for each in usual if each.of):
        theirs = {_key(each): each for each in usual if each.of == name}
        one = next(iter(theirs.values()))
        compared.append(Checkpoint(name, name, one.step, one.weights, theirs))
    return base, own, compared


def look_at_all(spec: EvaluateSpec, work: Work, samples: Sequence[Sample], weights: str) -> Looked:
    """Look at every sample that measures are made of, and at as many real clips as may be."""
    base, own, compared = checkpoints_of(samples, weights)
    latents = LatentsSpec.model_validate(work.inputs["latents"].manifest.spec)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    codec = load_codec(latents.codec, device)
    held_out = RealLooks(choose(spec, work, codec, "held_out", NUM_HELD_OUT))
    training = RealLooks(choose(spec, work, codec, "train", NUM_TRAINING))
    size = size_of(spec)
    is_styled = spec.style_features != style.BY_HAND or min(size.height_px, size.width_px) >= MIN_PX
    longer = [each for each in samples if each.num_frames and not each.of]
    found = Looked(base, own, compared, longer, held_out, training, not is_styled)
    everyone = [base, *own, *compared]
    stretches = [*held_out.chosen.stretches, *training.chosen.stretches]
    num_compared = len(stretches) and len(held_out.chosen.stretches) + len(base.keys(*OF_FILMS))
    total = sum(len(each.samples) for each in everyone) + len(stretches) + num_compared
    work.progress.begin(total, unit="clips measured")
    encoder = None
    if is_styled and own and spec.style_features != style.BY_HAND:
        encoder = load_image_encoder(spec.style_features, device)
    look = _Looker(spec, median(each.fps for each in stretches) if stretches else None, encoder, is_styled)

    def jobs() -> Iterator[Callable[[], None]]:
        for checkpoint in everyone:
            for key in checkpoint.samples:
                yield partial(look.at_sample, work, checkpoint, key)
        # Decoded here, one after the other, while threads look at those before.
        for real, is_held_out in ((held_out, True), (training, False)):
            pictures = decoded_clips(spec, size, work, codec, real.chosen.stretches)
            for place, frames in enumerate(pictures):
                yield partial(look.at_real, real, place, frames, is_held_out)

    def do(job: Callable[[], None]) -> None:
        job()
        work.progress.advance(note="looking at samples and clips")

    in_threads(do, jobs(), num_cores())
    return found


@dataclass(frozen=True)
class _Looker:
    spec: EvaluateSpec
    film_fps: float | None
    encoder: ImageEncoder | None
    is_styled: bool

    def at_sample(self, work: Work, checkpoint: Checkpoint, key: Key) -> None:
        sample = checkpoint.samples[key]
        frames, fps = frames_of(work, sample), self.spec.fps
        of_films = sample.prompt_set in OF_FILMS
        checkpoint.looks[key] = Look(
            motion=motion.measure(frames, fps, self.film_fps) if of_films else None,
            scene=scene_of(frames, fps),
            style=self._styled(frames, str(sample.prompt_index)) if of_films else None,
            print=fingerprint(frames) if of_films and sample.step and not sample.of else None,
        )

    def at_real(self, real: RealLooks, place: int, frames: Pixels, is_held_out: bool) -> None:
        stretch = real.chosen.stretches[place]
        real.looks[place] = Look(
            motion=motion.measure(frames, stretch.shown_fps, stretch.fps) if is_held_out else None,
            style=self._styled(frames, stretch.video_id) if is_held_out else None,
            print=fingerprint(frames),
            contact=b"" if is_held_out else contact_of(frames),
        )

    def _styled(self, frames: Pixels, group: str) -> style.Described | None:
        if not self.is_styled:
            return None
        return style.describe([frames], [group], self.spec.fps, self.spec.style_features, self.encoder)


def frames_of(work: Work, sample: Sample) -> Pixels:
    """A sample's frames as its file shows them, (T, H, W, 3) RGB."""
    with work.store.local(work.prefix + sample.video_key) as file:
        return read_rgb(file)


def contact_of(frames: Pixels) -> bytes:
    """Four frames, two by two, as a JPEG."""
    chosen = frames[np.linspace(0, len(frames) - 1, 4).round().astype(int)]
    height, width = chosen.shape[1:3]
    scale = min(1.0, CONTACT_WIDTH_PX / width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    a, b, c, d = (np.asarray(cv2.resize(each, size, interpolation=cv2.INTER_AREA), np.uint8) for each in chosen)
    return jpeg(np.concatenate([np.concatenate([a, b], axis=1), np.concatenate([c, d], axis=1)]), 88)


def need(look: T | None) -> T:
    """What was looked at for certain."""
    if look is None:
        raise ValueError("A clip was not looked at for what is measured of it.")  # a mistake of ours
    return look


def _key(sample: Sample) -> Key:
    return sample.prompt_index, sample.seed_index
