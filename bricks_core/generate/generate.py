"""Models and prompts become films.

    find the model -> decide the shape -> list the films -> leave out those that are there
    -> encode prompts (then the text encoder goes) -> encode references -> load the network -> sample, decode, write

One film at a time: rows of a matrix product may be rounded otherwise in another batch, and a film's bytes are to depend
on its own settings alone. What is not needed any more goes before the next network comes.
"""

from __future__ import annotations

import contextlib
import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bricks_core.diffusion.conditions import Condition, Reference
from bricks_core.diffusion.family import Family, Frame, Prompts, Sampling
from bricks_core.diffusion.family import Given as GivenFrames
from bricks_core.diffusion.loops import in_loops
from bricks_core.diffusion.model import BUILT_IN_TEXT_ENCODER, Choice, Model
from bricks_core.diffusion.prompts import Prompt
from bricks_core.errors import DataError, SpecError, TryLater, UsageError, nearest
from bricks_core.generate.films import Beginnings, Film, films, num_given_frames
from bricks_core.generate.model import find_model
from bricks_core.generate.outputs import frames_at, state_of, write
from bricks_core.generate.references import Given, encoded
from bricks_core.generate.shape import Able, Asked, Shape, shape_of
from bricks_core.generate.sheet import MAX_FRAMES, Cell, sheet
from bricks_core.models.pretrained import DTYPES
from bricks_core.models.text_encoder import load_text_encoder
from bricks_core.models.vae import LatentCodec, load_codec
from bricks_core.progress import Progress
from bricks_core.storage.code_version import code_version
from bricks_core.storage.os_errors import told
from bricks_core.storage.store import Store
from bricks_core.video.read import Pixels

log = logging.getLogger("bricks")

USUAL_STEPS = {"iddpm": 100, "flow-euler": 50}
"""Of samplers that need more than 25."""
SHEET = "sheet.png"


@dataclass(frozen=True)
class Steps:
    """How noise is to become latents; None: what is usual."""

    sampler: str | None = None
    num_steps: int | None = None
    guidance_scale: float | None = None
    guided_channels: int | None = None

    def of(self, model: Model) -> Sampling:
        """The same, with what is usual for a model.

        Raises:
            UsageError: the model is not sampled like that.
        """
        family = model.family
        sampler = self.sampler or family.samplers[0]
        if sampler not in family.samplers:
            raise UsageError(
                f"--sampler {sampler} is not for this model{nearest(sampler, family.samplers)}: "
                f"{', '.join(family.samplers)} are."
            )
        channels = self.guided_channels
        if channels is not None and not family.guides_some_channels:
            raise UsageError(
                "--guided-channels is not for this model, which is guided in all its channels: leave it out."
            )
        if sampler == "iddpm" and channels is None:
            channels = 3  # as the reference does
        guidance = family.published.guidance_scale if self.guidance_scale is None else self.guidance_scale
        return Sampling(sampler, self.num_steps or USUAL_STEPS.get(sampler, 25), guidance, channels, model.shift)


@dataclass(frozen=True)
class Wishes:
    """All that is asked of one call."""

    model: str
    prompts: tuple[Prompt, ...]
    out: Path
    choice: Choice = field(default_factory=Choice)
    shape: Asked = field(default_factory=Asked)
    beginnings: Beginnings = field(default_factory=Beginnings)
    steps: Steps = field(default_factory=Steps)
    seed: int = 42
    num_samples: int = 1
    clean: bool = True
    dtype: str | None = None
    """float32, bfloat16 or float16; None: bfloat16 on a GPU, float32 on a CPU."""
    device: str | None = None
    sheet: bool = False


@dataclass(frozen=True)
class _Plan:
    """Wishes that can be fulfilled."""

    model: Model
    shape: Shape
    sampling: Sampling
    device: torch.device
    dtype: str
    num_given: int

    def settings(self, wishes: Wishes) -> dict[str, Any]:
        """Of all that decides what is in a film, what is the same for every film of a call."""
        model, shape, sampling = self.model, self.shape, self.sampling
        found: dict[str, Any] = {
            "bricks": code_version(),
            "model": model.identity,
            "codec": model.codec_id or _named(model.codec),
            "text_encoder": model.text_id or _named(model.text),
            "sampler": sampling.sampler,
            "steps": sampling.num_steps,
            "guidance": sampling.guidance_scale,
            "guided_channels": sampling.guided_channels,
            "frames": shape.num_frames,
            "height_px": shape.size.height_px,
            "width_px": shape.size.width_px,
            "fps": shape.fps,
            "dtype": self.dtype,
            "device": self.device.type,
            "cleaned": wishes.clean,
        }
        if model.training:
            found["training"] = model.training
        if wishes.beginnings.num_loops > 1:
            found |= {"loops": wishes.beginnings.num_loops, "condition_frames": self.num_given}
        return found


def generate(wishes: Wishes, open_store: Callable[[], Store], tell: Callable[[str], None]) -> list[Film]:
    """Make what is asked for, as far as it is not there yet; `tell` is given the path of each film that is there.

    Raises:
        BricksError: what is asked for cannot be; or a disk, a service or a memory has too little.
    """
    # A hub that does not answer is asked again and again, with a line each time; what comes of it is told once.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    device = _device(wishes.device)
    model = find_model(wishes.model, wishes.choice, open_store)
    shape = shape_of(wishes.shape, Able(model.trained, model.usual, model.family.side_px, model.codec.time_stride))
    plan = _Plan(
        model,
        shape,
        wishes.steps.of(model),
        device,
        wishes.dtype or ("float32" if device.type == "cpu" else "bfloat16"),
        num_given_frames(wishes.beginnings, shape),
    )
    wanted = films(
        wishes.prompts,
        wishes.beginnings,
        shape,
        wishes.out,
        seed=wishes.seed,
        num_samples=wishes.num_samples,
        clean=wishes.clean,
    )
    _check_given(wanted, model.family, wishes)
    if model.training:
        log.warning("The training of %s is %s.", wishes.model, model.training)
    for remark in model.remarks:
        log.info("%s", remark)
    common = plan.settings(wishes)
    todo = _left_to_do(wanted, common, tell)
    if todo:
        with told(wishes.out, "write"):  # now, and not when the first film is done
            wishes.out.mkdir(parents=True, exist_ok=True)
        with _memory_told(), torch.inference_mode():
            _make(todo, common, plan, tell)
    if wishes.sheet:
        tell(str(_write_sheet(wanted, wishes.out, shape)))
    return wanted


def _named(spec: Any) -> str:
    """A codec or encoder by its kind and its model, of a folder only the last part: the same in another place."""
    return f"{spec.kind}:{Path(spec.model).name if Path(spec.model).exists() else spec.model}".rstrip(":")


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()  # and back: the meta device holds nothing
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise UsageError(
            f"--device {name} cannot be used here ({reason}): leave it out, or say cpu, cuda or cuda:0."
        ) from error
    return device


def _check_given(wanted: Sequence[Film], family: Family, wishes: Wishes) -> None:
    if not family.takes_given_frames and (wishes.beginnings.num_loops > 1 or any(film.conditions for film in wanted)):
        raise UsageError(
            "This model makes videos of text alone: leave images, videos, conditions and loops out, or take a model of "
            "the STDiT2 family."
        )


def _left_to_do(wanted: Sequence[Film], common: dict[str, Any], tell: Callable[[str], None]) -> list[Film]:
    todo = []
    for film in wanted:
        state, differing = state_of(film.file, common | film.settings)
        if state == "same":
            log.info("%s is there already, made with the same settings.", film.file)
            tell(str(film.file))
            continue
        if state == "other":
            log.warning("%s is there with other settings (%s), and is made anew.", film.file, ", ".join(differing))
        todo.append(film)
    return todo


@contextlib.contextmanager
def _memory_told() -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # torch has a class for a GPU's memory, and none for the machine's own.
        is_memory = isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)
        if not is_memory:
            raise
        raise TryLater(
            "There is too little memory for this model at this size: ask for fewer --frames or a smaller --size, for "
            "--dtype bfloat16, or free some. What was finished is kept."
        ) from error


# ---------------------------------------------------------------------------------------------------- making them


def _make(todo: Sequence[Film], common: dict[str, Any], plan: _Plan, tell: Callable[[str], None]) -> None:
    model, device = plan.model, plan.device
    log.info("%s, on %s in %s.", model.name, device, plan.dtype)
    captions = _read_prompts(todo, plan)
    gc.collect()  # the text encoder, which may be far larger than the network
    codec = load_codec(model.codec, device)
    if model.codec_id and codec.id != model.codec_id:
        raise SpecError(f"{model.name} was trained on latents of {model.codec_id}, and {codec.id} is here.")
    references = _encode_references(todo, codec, plan.shape)
    frame = _frame(plan.shape, codec)
    network = model.load(DTYPES[plan.dtype], device)
    model.family.check(network, codec.channels, frame.latents)
    with Progress("generate") as progress:
        progress.begin(sum(len(film.texts) for film in todo) * plan.sampling.num_steps, unit="steps")
        for number, film in enumerate(todo, 1):
            maker = _Maker(plan, network, codec, captions, frame, progress, f"film {number} of {len(todo)}")
            frames = maker.frames(film, [references[each] for each in film.references])
            write(film.file, frames, plan.shape.fps, film.title, common | film.settings)
            tell(str(film.file))


def _frame(shape: Shape, codec: LatentCodec) -> Frame:
    size, stride = shape.size, codec.space_stride
    latents = (codec.num_latents(shape.num_frames), size.height_px // stride, size.width_px // stride)
    return Frame(shape.num_frames, size.height_px, size.width_px, shape.fps, latents)


def _read_prompts(todo: Sequence[Film], plan: _Plan) -> dict[str, Tensor]:
    """The features of all texts, and of the empty one.  -> (L, width) float32 each, L the text's own tokens"""
    model, spec = plan.model, plan.model.text
    if not model.text_id and plan.dtype != "float32":
        spec = spec.model_copy(update={"dtype": "bfloat16"})  # T5 overflows in float16
    if spec.model:
        log.info("Prompts are read by %s.", _named(spec))
    encoder = load_text_encoder(spec, plan.device)
    if model.text_id and encoder.id != model.text_id:
        raise SpecError(f"{model.name} was trained on captions read by {model.text_id}, and {encoder.id} is here.")
    if model.text_width not in (None, encoder.width):
        raise SpecError(
            f"{model.name} was trained on caption features {model.text_width} wide, and those of {encoder.id} are "
            f"{encoder.width} wide: name the encoder it was trained with by --text-encoder."
        )
    texts = ["", *dict.fromkeys(text for film in todo for text in film.texts)]
    # One by one, so that padding and rounding do not depend on the company.
    rows = [encoder.encode([text])[0] for text in texts]
    for text, each in zip(texts, rows, strict=True):
        if len(each) >= spec.max_tokens:
            log.warning('"%s..." fills all %d tokens; what is beyond them is not read.', text[:40], spec.max_tokens)
    if model.text_id or spec.kind == BUILT_IN_TEXT_ENCODER:
        # Packs hold features as float16; a model trained here has never seen finer ones. What reads words with the
        # encoder that is built in was trained here, also where a checkpoint taken out of its run does not say so.
        rows = [each.astype(np.float16).astype(np.float32) for each in rows]
    return {text: torch.tensor(each) for text, each in zip(texts, rows, strict=True)}


def _encode_references(todo: Sequence[Film], codec: LatentCodec, shape: Shape) -> dict[Given, Reference]:
    """All references as latents, each file once."""

    def encode(frames: Pixels) -> Tensor:
        return codec.encode(frames).transpose(0, 1)

    size = shape.size
    wanted = dict.fromkeys(given for film in todo for given in film.references)
    return {given: encoded(given, encode, size.height_px, size.width_px) for given in wanted}


@dataclass(frozen=True)
class _Maker:
    """Makes films one by one with networks that are loaded."""

    plan: _Plan
    network: Any
    codec: LatentCodec
    captions: dict[str, Tensor]
    frame: Frame
    progress: Progress
    note: str

    def frames(self, film: Film, references: Sequence[Reference]) -> Iterator[Pixels]:
        """A film's frames as they come, (height, width, 3) each."""
        # All of a film's noise comes from its seed, loop after loop.
        generator = torch.Generator().manual_seed(film.seed)
        clips = in_loops(
            len(film.texts),
            self.plan.num_given,
            lambda loop, given, wanted: self._sample(film.texts[loop], loop, given, wanted, generator),
            self._decode,
            lambda frames: self.codec.encode(frames).transpose(0, 1),
            [references],
            [film.conditions],
        )
        for (new,) in clips:
            yield from new

    def _sample(
        self,
        text: str,
        loop: int,
        references: Sequence[Sequence[Reference]],
        conditions: Sequence[Sequence[Condition]],
        generator: torch.Generator,
    ) -> Tensor:
        """One clip of a batch of one.  -> (1, C, T, h, w)"""
        device, features = self.plan.device, self.captions[text].to(self.plan.device)
        prompts = Prompts(
            features[None, None], torch.ones(1, len(features), dtype=torch.long, device=device), self.captions[""]
        )
        given = GivenFrames(references, conditions, loop) if conditions[0] else None
        precise = self.plan.dtype == "float32"
        with contextlib.nullcontext() if precise else torch.autocast(device.type, DTYPES[self.plan.dtype]):
            return self.plan.model.family.sample(
                self.network,
                prompts,
                self.frame,
                [generator],
                self.plan.sampling,
                given,
                lambda step, x, x0: self.progress.advance(note=self.note),
            )

    def _decode(self, latents: Tensor) -> Pixels:
        """(C, T, h, w) latents -> (frames, height, width, 3) in 0..255"""
        pixels = self.codec.decode(latents.float().transpose(0, 1).contiguous())
        if not torch.isfinite(pixels).all():
            raise DataError(
                f"Sampling in {self.plan.dtype} ended in numbers that are not finite: try --dtype float32; if that is "
                "what it was, the weights are broken, or guidance is far too strong."
            )
        scaled = pixels.clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
        return np.ascontiguousarray(scaled.permute(0, 2, 3, 1).cpu().numpy())


def _write_sheet(wanted: Sequence[Film], out: Path, shape: Shape) -> Path:
    """A contact sheet of all films, as they are in their files."""
    cells = []
    for film in wanted:
        length = "" if film.num_frames == 1 else f" · {film.num_frames} frames · {film.num_frames / shape.fps:.3g} s"
        shown = frames_at(film.file, film.num_frames, MAX_FRAMES)
        cells.append(Cell(shown, film.title, f"{film.file.name.partition('-')[0]} · seed {film.seed}{length}"))
    file = out / SHEET
    with told(file, "write"):
        beside = file.with_name(f".{SHEET}.part")
        Image.fromarray(sheet(cells)).save(beside, format="png")
        beside.replace(file)
    return file
