"""Videos from checkpoints: the same prompts and the same noise for each, so that only the weights differ.

A sample is finished, and kept, as soon as its video and its strip are stored.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from bricks_core.diffusion.families import family_of
from bricks_core.diffusion.family import Frame, Prompts, Sampling
from bricks_core.errors import DataError, SpecError
from bricks_core.models.text_encoder import TextEncoder, load_text_encoder
from bricks_core.models.vae import LatentCodec, load_codec
from bricks_core.spec.evaluate import EvaluateSpec, Sample
from bricks_core.spec.items import ItemKey, Recipe, recipe
from bricks_core.spec.latents import LatentsSpec
from bricks_core.spec.manifest import content_id
from bricks_core.spec.strict import what_of
from bricks_core.spec.train import CheckpointRow, TrainSpec
from bricks_core.storage.scratch import scratch
from bricks_core.storage.work import Work
from bricks_core.video.buckets import Size, resolution
from bricks_core.video.read import Pixels
from bricks_core.video.write import jpeg, write_mp4

Weights = Literal["raw", "ema"]

STRIP_FRAMES = 8
"""Frames of a strip at most: the first, the last, and evenly spaced ones between."""
STRIP_FRAME_WIDTH_PX = 320
"""A strip's frames are made no wider than this."""


@dataclass(frozen=True)
class Asked:
    """A sample to be made."""

    id: str
    """Of its item."""
    prompt_index: int
    step: int
    weights: Weights
    weights_key: str
    """Of the checkpoint's file, relative to the artifact of train."""
    row_id: str

    @property
    def keys(self) -> tuple[ItemKey, ...]:
        return (ItemKey("sample", self.id),)


def make_samples(spec: EvaluateSpec, work: Work) -> None:
    """Sample every prompt at the chosen checkpoints, as far as that is not done yet."""
    asked = list(asked_samples(spec, work))
    todo = {each.id for each in work.todo(asked, unit="samples")}
    if not todo:
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    latents = LatentsSpec.model_validate(work.inputs["latents"].manifest.spec)
    train = TrainSpec.model_validate(work.inputs["train"].manifest.spec)
    # The encoder may be far larger than the model: it is gone before the model comes.
    captions = Captions.of(load_text_encoder(latents.text, device), spec.prompts)
    codec = load_codec(latents.codec, device)
    family, frame = family_of(train.model), frame_of(spec, codec)
    by_weights: dict[str, list[Asked]] = {}
    for each in asked:
        by_weights.setdefault(each.weights_key, []).append(each)
    for key, samples in by_weights.items():
        if todo.isdisjoint(each.id for each in samples):
            continue
        with work.local("train", key) as file, work.local("train", beside(key, "config.json")) as config:
            model: torch.nn.Module = family.load(file, config).to(device)
        precise = device.type == "cpu" or train.precision == "float32"
        with nullcontext() if precise else torch.autocast(device.type, torch.bfloat16):
            # Batches are the same after a kill, so that a sample's bytes do not depend on when it was made.
            for batch in batches(samples, spec.batch_size):
                if todo.isdisjoint(each.id for each in batch):
                    continue
                generators = [noise_of(spec.seed, each.prompt_index) for each in batch]
                prompts = captions.of_prompts([each.prompt_index for each in batch], device)
                sampled = family.sample(model, prompts, frame, generators, sampling_of(spec))
                for each, latent in zip(batch, sampled, strict=True):
                    if each.id in todo:
                        keep_sample(work, spec, each, decoded(codec, latent))


def beside(key: str, name: str) -> str:
    """The key of another file of the same checkpoint."""
    return f"{key.rpartition('/')[0]}/{name}"


def asked_samples(spec: EvaluateSpec, work: Work) -> Iterator[Asked]:
    """Every sample of the stage: by checkpoint, then weights, then prompt.

    Where raw and EMA weights are still the same, as before the first step, one sample stands for both.
    """
    rows = sorted(work.rows("train", "checkpoints", CheckpointRow), key=lambda row: row.step)
    if not rows:
        raise DataError("The training has left no checkpoint to sample from: run train again with other settings.")
    by_step = {row.step: row for row in rows}
    for step in chosen_steps(list(by_step), spec.num_checkpoints):
        files: dict[Weights, str] = {"raw": by_step[step].weights_key, "ema": by_step[step].ema_key}
        wanted = [each for each in ("raw", "ema") if each in spec.weights]
        if len(wanted) == 2 and step == rows[0].step and _same_weights(work, files["raw"], files["ema"]):
            wanted = ["raw"]
        for weights in wanted:
            for index in range(len(spec.prompts)):
                made = _sample_of(spec, work, index, step, weights, files[weights]).key.key
                row_id = content_id("sample", index, step, weights)
                yield Asked(made, index, step, weights, files[weights], row_id)


def _sample_of(spec: EvaluateSpec, work: Work, index: int, step: int, weights: Weights, key: str) -> Recipe:
    """What a sample is made of: not which others are asked for with it."""
    settings = what_of(spec)
    asked = {"prompt": spec.prompts[index], "index": index, "step": step, "weights": weights}
    how = {name: each for name, each in settings.items() if name not in ("prompts", "num_checkpoints", "weights")}
    return recipe("sample", weights_of=work.inputs["train"].full(key), **asked, settings=how)


def object_keys(asked: Asked) -> tuple[str, str]:
    """Where a sample's video and strip lie in the report, relative to the artifact."""
    name = f"step-{asked.step:06d}-{asked.weights}-prompt-{asked.prompt_index:02d}"
    return f"report/samples/{name}.mp4", f"report/samples/{name}.jpg"


def sample_of(spec: EvaluateSpec, asked: Asked) -> Sample:
    """A sample's row."""
    video_key, strip_key = object_keys(asked)
    return Sample(
        id=asked.row_id,
        prompt_index=asked.prompt_index,
        prompt=spec.prompts[asked.prompt_index],
        step=asked.step,
        weights=asked.weights,
        seed=spec.seed,
        video_key=video_key,
        strip_key=strip_key,
    )


def chosen_steps(steps: Sequence[int], at_most: int) -> list[int]:
    """The first, the last, and those nearest to evenly spaced ones between; each once."""
    steps = sorted(set(steps))
    if len(steps) <= at_most:
        return steps
    first, last = steps[0], steps[-1]
    wanted = [first + (last - first) * place / (at_most - 1) for place in range(at_most)]
    return sorted({min(steps, key=lambda step: (abs(step - each), step)) for each in wanted})


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


def frame_of(spec: EvaluateSpec, codec: LatentCodec) -> Frame:
    """The size to sample at, in pixels and in latents."""
    size = size_of(spec)
    height, width = size.height_px // codec.space_stride, size.width_px // codec.space_stride
    latents = (codec.num_latents(spec.num_frames), height, width)
    return Frame(spec.num_frames, size.height_px, size.width_px, spec.fps, latents)


def sampling_of(spec: EvaluateSpec) -> Sampling:
    """How it is sampled."""
    return Sampling(spec.sampler, spec.num_sampling_steps, spec.guidance_scale, spec.guided_channels)


def noise_of(seed: int, prompt_index: int) -> torch.Generator:
    """Where all of a prompt's noise comes from: the same at every checkpoint and in any batch."""
    return torch.Generator().manual_seed(int(content_id("noise", seed, prompt_index), 16) & (2**63 - 1))


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
    prompt = spec.prompts[asked.prompt_index]
    made = _sample_of(spec, work, asked.prompt_index, asked.step, asked.weights, asked.weights_key)
    with scratch() as folder:
        video, strip = folder / "video.mp4", folder / "strip.jpg"
        about = {"title": prompt, "comment": f"{asked.weights} weights after step {asked.step}, seed {spec.seed}"}
        write_mp4(video, frames, spec.fps, metadata=about)
        strip.write_bytes(jpeg(strip_of(frames)))
        objects = [work.items.put_file(made.key, video, ".mp4"), work.items.put_file(made.key, strip, ".jpg")]
    work.items.put(made, {}, objects)
    work.progress.advance(note=f"step {asked.step} {asked.weights}")


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


def batches(samples: Sequence[Asked], size: int) -> Iterator[Sequence[Asked]]:
    """Neighbours together, `size` at a time."""
    for number in range(math.ceil(len(samples) / size)):
        yield samples[number * size : (number + 1) * size]


def _same_weights(work: Work, first: str, second: str) -> bool:
    """Whether two files hold the same tensors; read one at a time."""
    shas = {stored.key: stored.sha256 for stored in work.inputs["train"].manifest.objects}
    if shas.get(first) == shas.get(second):
        return True
    with (
        work.local("train", first) as one,
        work.local("train", second) as other,
        safe_open(one, framework="pt") as a,
        safe_open(other, framework="pt") as b,
    ):
        names = set(a.keys())
        return names == set(b.keys()) and all(torch.equal(a.get_tensor(each), b.get_tensor(each)) for each in names)


def weights_of(samples: Iterable[Sample]) -> list[Weights]:
    """The kinds of weights that were sampled, raw first."""
    found = {each.weights for each in samples}
    return [each for each in ("raw", "ema") if each in found]
