"""Videos from checkpoints: the same prompts and the same noise for each, so that only the weights differ.

A sample is finished, and kept, as soon as its video and its strip are stored.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
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
from bricks_core.storage.scratch import scratch
from bricks_core.storage.trainings import sampling_batch
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


def make_samples(spec: EvaluateSpec, work: Work) -> None:
    """Make the samples that are asked for, as far as that is not done yet."""
    asked = list(asked_samples(spec, work))
    todo = _todo(spec, work, asked)
    if not todo:
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    latents = LatentsSpec.model_validate(work.inputs["latents"].manifest.spec)
    train = TrainSpec.model_validate(work.inputs["train"].manifest.spec)
    compared = compared_models(spec, work)
    # The encoder may be far larger than the model: it is gone before the model comes.
    captions = Captions.of(load_text_encoder(latents.text, device), [each.text for each in prompts_of(spec, work)])
    codec = load_codec(latents.codec, device)
    precise = device.type == "cpu" or train.precision == "float32"
    for source, samples in _by_source(asked):
        with _alone(work, source, [each for each in samples if each in todo]) as left:
            batches = [batch for batch in batches_of(samples, spec.batch_size) if not left.isdisjoint(batch)]
            if not batches:
                continue
            frame = frame_of(spec, codec, source.num_frames)
            model = compared[source.of] if source.of else None
            family = model.family if model is not None else family_of(train.model)
            network = model.load(device) if model is not None else _network(work, family, source.weights_key, device)
            if model is not None:
                family.check(network, codec.channels, frame.latents)
            sampling = replace(sampling_of(spec), shift=model.shift if model is not None else None)
            with nullcontext() if precise else torch.autocast(device.type, torch.bfloat16):
                for batch in batches:
                    generators = [noise_of(spec.seed, each.prompt_index, each.seed_index) for each in batch]
                    prompts = captions.of_prompts([each.prompt_index for each in batch], device)
                    sampled = family.sample(network, prompts, frame, generators, sampling)
                    for each, latent in zip(batch, sampled, strict=True):
                        if each in left:
                            keep_sample(work, spec, each, decoded(codec, latent))


@contextmanager
def _alone(work: Work, source: _Source, samples: Sequence[Asked]) -> Iterator[set[Asked]]:
    """Those that are still to be made, while nobody else samples from these weights, such as `bricks evaluate
    --follow`."""
    if not samples or work.num_shards > 1:  # shards have shares of the same checkpoint
        yield set(samples)
        return
    with work.alone(sampling_batch(source.weights_key), samples) as left:
        if len(left) < len(samples):
            work.progress.advance(len(samples) - len(left))
        yield set(left)


def _todo(spec: EvaluateSpec, work: Work, asked: Sequence[Asked]) -> set[Asked]:
    """The samples that this shard is to make. Shards share whole batches, so that none is sampled twice."""
    mine = [
        each
        for _, samples in _by_source(asked)
        for batch in batches_of(samples, spec.batch_size)
        if work.num_shards == 1 or work.is_mine(batch[0].id)
        for each in batch
        if work.num_shards > 1 or work.is_mine(each.id)
    ]
    todo = set(work.pending(mine))
    work.progress.begin(len(mine), done=len(mine) - len(todo), unit="samples")
    return todo


def _by_source(asked: Iterable[Asked]) -> Iterator[tuple[_Source, list[Asked]]]:
    """Samples of the same weights and the same length together, whatever is done: batches are the same after a kill, so
    that a sample's bytes do not depend on when it was made."""
    found: dict[_Source, list[Asked]] = {}
    for each in asked:
        found.setdefault(_Source(each.weights_key, each.of, each.num_frames), []).append(each)
    yield from found.items()


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


def keep_sample(work: Work, spec: EvaluateSpec, asked: Asked, frames: Pixels) -> None:
    """Store a sample's video and strip, and record it as done."""
    key = asked.made.key
    which = f"seed {spec.seed}" + (f".{asked.seed_index}" if asked.seed_index else "")
    with scratch() as folder:
        video, strip = folder / "video.mp4", folder / "strip.jpg"
        about = {"title": asked.prompt.text, "comment": f"{asked.weights} weights after step {asked.step}, {which}"}
        write_mp4(video, frames, spec.fps, metadata=about)
        strip.write_bytes(jpeg(strip_of(frames)))
        objects = [work.items.put_file(key, video, ".mp4"), work.items.put_file(key, strip, ".jpg")]
    work.items.put(asked.made, {}, objects)
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


def batches_of(samples: Sequence[Asked], size: int) -> Iterator[Sequence[Asked]]:
    """Neighbours together, `size` at a time."""
    for number in range(math.ceil(len(samples) / size)):
        yield samples[number * size : (number + 1) * size]
