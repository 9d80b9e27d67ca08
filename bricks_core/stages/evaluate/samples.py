"""Videos from checkpoints: the same prompts and the same noise for each, so that only the weights differ.

A sample is finished, and kept, as soon as its video and its strip are stored.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from torch import Tensor

from bricks_core.diffusion.families import family_of
from bricks_core.diffusion.family import Family, Frame, Prompts, Sampling
from bricks_core.errors import SpecError
from bricks_core.models.text_encoder import TextEncoder, load_text_encoder
from bricks_core.models.vae import LatentCodec, load_codec
from bricks_core.spec.evaluate import EvaluateSpec
from bricks_core.spec.latents import LatentsSpec
from bricks_core.spec.train import TrainSpec
from bricks_core.stages.evaluate.asked import Asked, asked_samples, noise_of, prompts_of
from bricks_core.stages.evaluate.compared import compared_models
from bricks_core.storage.items import seconds_since
from bricks_core.storage.scratch import scratch
from bricks_core.storage.work import Work
from bricks_core.video.buckets import Size, resolution
from bricks_core.video.read import Pixels
from bricks_core.video.write import jpeg, write_mp4

STRIP_FRAMES = 8
"""Frames of a strip at most: the first, the last, and evenly spaced ones between."""
STRIP_FRAME_WIDTH_PX = 320
"""A strip's frames are made no wider than this."""


@dataclass(frozen=True)
class _Source:
    """What a batch is sampled from, and how long its videos are: the same for all of them."""

    weights_key: str
    of: str
    num_frames: int


@dataclass(frozen=True)
class _Batch:
    """Samples that are made together."""

    source: _Source
    samples: Sequence[Asked]
    todo: Sequence[Asked] = ()
    """Those that are missing."""

    @property
    def claim(self) -> str:
        """What is claimed by whoever makes it."""
        return "/".join(self.samples[0].made.key)

    @property
    def num_frames(self) -> int:
        return len(self.samples) * self.source.num_frames


def make_samples(spec: EvaluateSpec, work: Work) -> None:
    """Make the samples that are asked for, as far as that is not done yet."""
    batches = _todo(spec, work)
    if not batches:
        return
    sampler = _Sampler(spec, work)
    with closing(work.in_turn([(batch.claim, batch.todo) for batch in batches])) as coming:
        for number, left in coming:
            sampler.make(batches[number], set(left))


def _todo(spec: EvaluateSpec, work: Work) -> list[_Batch]:
    """The batches with missing samples that this shard is to make, or of these those that are chosen."""
    batches = shared(batches_of(spec, asked_samples(spec, work)), work.shard, work.num_shards)
    mine = [each for batch in batches for each in batch.samples if work.num_shards > 1 or work.is_mine(each.id)]
    todo = set(work.pending(mine))
    work.progress.begin(len(mine), done=len(mine) - len(todo), unit="samples")
    wanted = [replace(batch, todo=[each for each in batch.samples if each in todo]) for batch in batches]
    return [batch for batch in wanted if batch.todo]


def batches_of(spec: EvaluateSpec, asked: Iterable[Asked]) -> list[_Batch]:
    """Neighbours of the same weights and the same length together, whatever is done: batches are the same after a kill,
    so that a sample's bytes do not depend on when it was made."""
    found: dict[_Source, list[Asked]] = {}
    for each in asked:
        source = _Source(each.weights_key, each.of, each.num_frames or spec.num_frames)
        found.setdefault(source, []).append(each)
    size = spec.batch_size
    return [
        _Batch(source, every[first : first + size])
        for source, every in found.items()
        for first in range(0, len(every), size)
    ]


def shared(batches: Sequence[_Batch], shard: int, num_shards: int) -> list[_Batch]:
    """A shard's share: neighbours, so that it loads few checkpoints, with about as many frames as any other's."""
    total, before, mine = sum(batch.num_frames for batch in batches), 0, []
    for batch in batches:
        middle = 2 * before + batch.num_frames
        before += batch.num_frames
        if middle * num_shards // (2 * total) == shard:
            mine.append(batch)
    return mine


class _Sampler:
    """What all batches need; the weights of one source at a time."""

    def __init__(self, spec: EvaluateSpec, work: Work):
        self._spec, self._work = spec, work
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        latents = LatentsSpec.model_validate(work.inputs["latents"].manifest.spec)
        self._train = TrainSpec.model_validate(work.inputs["train"].manifest.spec)
        self._compared = compared_models(spec, work)
        # The encoder may be far larger than the model: it is gone before the model comes.
        texts = [each.text for each in prompts_of(spec, work)]
        self._captions = Captions.of(load_text_encoder(latents.text, self._device), texts)
        self._codec = load_codec(latents.codec, self._device)
        self._of: tuple[str, str] | None = None
        self._network: torch.nn.Module | None = None

    def make(self, batch: _Batch, wanted: Collection[Asked]) -> None:
        """Sample a batch, and keep of it what is wanted."""
        began_s = time.monotonic()
        source, work, spec = batch.source, self._work, self._spec
        frame = frame_of(spec, self._codec, source.num_frames)
        family = self._family(source)
        network = self._loaded(family, source)
        shift = None
        if source.of:
            family.check(network, self._codec.channels, frame.latents)
            shift = self._compared[source.of].shift
        precise = self._device.type == "cpu" or self._train.precision == "float32"
        with nullcontext() if precise else torch.autocast(self._device.type, torch.bfloat16):
            generators = [noise_of(spec.seed, each.prompt_index, each.seed_index) for each in batch.samples]
            prompts = self._captions.of_prompts([each.prompt_index for each in batch.samples], self._device)
            sampling = replace(sampling_of(spec), shift=shift)
            sampled = family.sample(network, prompts, frame, generators, sampling)
            # Of each sample its share of the batch, and what it takes to make a film of it.
            share_s = (time.monotonic() - began_s) / len(batch.samples)
            for each, latent in zip(batch.samples, sampled, strict=True):
                if each in wanted:
                    began_s = time.monotonic() - share_s
                    keep_sample(work, spec, each, decoded(self._codec, latent), began_s)

    def _family(self, source: _Source) -> Family:
        return self._compared[source.of].family if source.of else family_of(self._train.model)

    def _loaded(self, family: Family, source: _Source) -> torch.nn.Module:
        """The network of a source: that of the batch before, if it is the same."""
        which = (source.weights_key, source.of)
        if self._network is None or self._of != which:
            self._network = None  # its memory is wanted
            self._of = which
            self._network = (
                self._compared[source.of].load(self._device)
                if source.of
                else _network(self._work, family, source.weights_key, self._device)
            )
        return self._network


def _network(work: Work, family: Family, key: str, device: torch.device) -> torch.nn.Module:
    """A checkpoint of this run's training."""
    with work.local("train", key) as file, work.local("train", beside(key, "config.json")) as config:
        network: torch.nn.Module = family.load(file, config).to(device)
    return network


def beside(key: str, name: str) -> str:
    """The key of another file of the same checkpoint."""
    return f"{key.rpartition('/')[0]}/{name}"


def size_of(spec: EvaluateSpec) -> Size:
    """The size to sample at.

    Raises:
        SpecError: the resolution has no such aspect.
    """
    found = resolution(spec.resolution)
    if len(found.sizes) == 1:
        return found.sizes[0]
    for size in found.sizes:
        if size.aspect == spec.aspect:
            return size
    known = " ".join(size.aspect for size in found.sizes)
    raise SpecError(f"evaluate.aspect {spec.aspect} is none of {spec.resolution}'s: {known}.")


@dataclass(frozen=True)
class Captions:
    """All prompts' features, as training would read them."""

    features: Tensor
    """(num_prompts, 1, L, width) float32, L the longest prompt's, so that a batch does not depend on its company."""
    mask: Tensor
    """(num_prompts, L), 1 where there is a token."""
    empty: Tensor
    """(tokens, width), the features of the empty caption."""

    @classmethod
    def of(cls, encoder: TextEncoder, prompts: Sequence[str]) -> Captions:
        """What an encoder makes of them."""
        rows = [_as_in_packs(each) for each in encoder.encode(list(prompts))]
        longest, width = max(len(each) for each in rows), rows[0].shape[1]
        features, mask = torch.zeros(len(rows), 1, longest, width), torch.zeros(len(rows), longest, dtype=torch.long)
        for index, each in enumerate(rows):
            features[index, 0, : len(each)] = each
            mask[index, : len(each)] = 1
        return cls(features, mask, _as_in_packs(encoder.encode([""])[0]))

    def of_prompts(self, indices: Sequence[int], device: torch.device) -> Prompts:
        """Some of the prompts, as a batch."""
        chosen = list(indices)
        return Prompts(self.features[chosen].to(device), self.mask[chosen].to(device), self.empty.to(device))


def _as_in_packs(features: np.ndarray) -> Tensor:
    """Packs hold features as float16; the model has never seen finer ones.  (L, width)"""
    return torch.tensor(features.astype(np.float16).astype(np.float32))


def frame_of(spec: EvaluateSpec, codec: LatentCodec, num_frames: int = 0) -> Frame:
    """The size to sample at, in pixels and in latents. `num_frames`: 0: as the settings say."""
    size, num_frames = size_of(spec), num_frames or spec.num_frames
    height, width = size.height_px // codec.space_stride, size.width_px // codec.space_stride
    latents = (codec.num_latents(num_frames), height, width)
    return Frame(num_frames, size.height_px, size.width_px, spec.fps, latents)


def sampling_of(spec: EvaluateSpec) -> Sampling:
    """How it is sampled."""
    return Sampling(spec.sampler, spec.num_sampling_steps, spec.guidance_scale, spec.guided_channels)


def decoded(codec: LatentCodec, latent: Tensor) -> Pixels:
    """(C, t, h, w) latents -> (T, H, W, 3) in 0..255."""
    pixels = codec.decode(latent.float().permute(1, 0, 2, 3).contiguous())
    return to_pixels(pixels)


def to_pixels(pixels: Tensor) -> Pixels:
    """(T, 3, height, width) around [-1, 1] -> (T, height, width, 3) in 0..255."""
    scaled = pixels.clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
    return np.ascontiguousarray(scaled.permute(0, 2, 3, 1).cpu().numpy())


def keep_sample(work: Work, spec: EvaluateSpec, asked: Asked, frames: Pixels, began_s: float) -> None:
    """Store a sample's video and strip, and record it as done. `began_s`: when the work on it began, by the monotonic
    clock."""
    key = asked.made.key
    which = f"seed {spec.seed}" + (f".{asked.seed_index}" if asked.seed_index else "")
    with scratch() as folder:
        video, strip = folder / "video.mp4", folder / "strip.jpg"
        about = {"title": asked.prompt.text, "comment": f"{asked.weights} weights after step {asked.step}, {which}"}
        write_mp4(video, frames, spec.fps, metadata=about)
        strip.write_bytes(jpeg(strip_of(frames)))
        objects = [work.items.put_file(key, video, ".mp4"), work.items.put_file(key, strip, ".jpg")]
    work.items.put(asked.made, {}, objects, cost=seconds_since(began_s))
    work.progress.advance(note=asked.of or f"step {asked.step} {asked.weights}")


def strip_of(frames: Pixels) -> Pixels:
    """Some frames side by side.  (T, height, width, 3) -> (height, columns x width, 3)"""
    chosen = frames[strip_places(len(frames))]
    height, width = chosen.shape[1:3]
    if width > STRIP_FRAME_WIDTH_PX:
        smaller = (STRIP_FRAME_WIDTH_PX, max(1, round(height * STRIP_FRAME_WIDTH_PX / width)))
        chosen = np.stack([cv2.resize(frame, smaller, interpolation=cv2.INTER_AREA) for frame in chosen])
    return np.concatenate(list(chosen), axis=1)


def strip_places(num_frames: int) -> list[int]:
    """Which frames a strip shows."""
    columns = min(num_frames, STRIP_FRAMES)
    return [round(place * (num_frames - 1) / max(columns - 1, 1)) for place in range(columns)]
