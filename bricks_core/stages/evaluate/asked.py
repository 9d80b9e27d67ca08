"""What an evaluation asks for: which prompts, of which checkpoints, with which noise; and how each sample is named.

The run's own prompts are sampled once at every chosen checkpoint: that is what the page's panels show. Everything else,
further seeds, captions of held-out clips and plain prompts, costs as much and is asked only where it decides something:
of the base model, the last checkpoint, the one with the lowest held-out loss, and of those to compare with.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import torch
from safetensors import safe_open

from bricks_core.errors import DataError
from bricks_core.report.facts import held_out_facts
from bricks_core.spec.evaluate import EvaluateSpec, PromptSet, Sample
from bricks_core.spec.items import ItemKey, Recipe, recipe
from bricks_core.spec.latents import Latent
from bricks_core.spec.manifest import content_id
from bricks_core.spec.strict import what_of
from bricks_core.spec.train import DEFAULT_WEIGHTS, CheckpointRow, HeldOutRow, Weights
from bricks_core.stages.evaluate.compared import compared_models
from bricks_core.storage.work import Work

PROMPTS_OF_LENGTHS = 2
"""Of the run's own, the first so many are asked for in `lengths`."""
_WHICH = frozenset(
    [
        "prompts",
        "num_checkpoints",
        "weights",
        "num_seeds",
        "held_out_prompts",
        "plain_prompts",
        "compare",
        "lengths",
        "style_features",
        "audit_guidance",
    ]
)
"""Settings that say which samples are asked for, or what is made of them, and change none."""


@dataclass(frozen=True)
class AskedPrompt:
    """A prompt to be sampled."""

    index: int
    """Over the run's own, then captions of held-out clips, then plain ones: its noise comes from it."""
    text: str
    set: PromptSet = "style"
    clip: str = ""
    """Whose caption it is, of a held-out clip."""


@dataclass(frozen=True)
class Asked:
    """A sample to be made."""

    prompt: AskedPrompt
    seed_index: int
    step: int
    weights: Weights
    weights_key: str
    """Of the checkpoint's file: relative to the artifact of train, or of a compared one its identity."""
    of: str
    """The compared checkpoint, as evaluate.compare names it; empty: one of this run's."""
    num_frames: int
    """0: as many as evaluate.num_frames says."""
    made: Recipe = field(compare=False, repr=False)

    @property
    def id(self) -> str:
        """Of its item."""
        return self.made.key.key

    @property
    def keys(self) -> tuple[ItemKey, ...]:
        return (self.made.key,)

    @property
    def prompt_index(self) -> int:
        return self.prompt.index

    @property
    def is_on_the_page(self) -> bool:
        """Whether it is one of those that panels show: the run's own prompts at every checkpoint, once."""
        return self.prompt.set == "style" and not (self.seed_index or self.of or self.num_frames)


def asked_samples(spec: EvaluateSpec, work: Work) -> Iterator[Asked]:
    """Every sample of the stage: by checkpoint, then weights, then prompt; those to compare with last.

    Where raw and EMA weights are still the same, as before the first step, one sample stands for both.

    Raises:
        DataError: the training has left no checkpoint.
        SpecError: a checkpoint to compare with does not go with this run.
    """
    rows = sorted(work.rows("train", "checkpoints", CheckpointRow), key=lambda row: row.step)
    if not rows:
        raise DataError("The training has left no checkpoint to sample from: run train again with other settings.")
    by_step = {row.step: row for row in rows}
    steps = chosen_steps(list(by_step), spec.num_checkpoints)
    ends = {steps[0], steps[-1]}
    whole = ends | best_step(work, steps, _default(spec.weights))
    prompts = prompts_of(spec, work)
    once = [(each, 0) for each in prompts if each.set == "style"]
    rest = [(each, seed) for each in prompts for seed in range(spec.num_seeds) if (each, seed) not in once]
    for step in steps:
        files: dict[Weights, str] = {"raw": by_step[step].weights_key, "ema": by_step[step].ema_key}
        wanted: list[Weights] = [each for each in ("raw", "ema") if each in spec.weights]
        if len(wanted) == 2 and step == rows[0].step and _same_weights(work, files["raw"], files["ema"]):
            wanted = ["raw"]
        for weights in wanted:
            asker = _Asker(spec, step, weights, files[weights], work.inputs["train"].full(files[weights]))
            is_usual = weights == _default(wanted)
            yield from (asker.ask(*each) for each in (once + rest if is_usual and step in whole else once))
            if is_usual and step in ends:
                for num_frames in dict.fromkeys(spec.lengths):
                    yield from (asker.ask(*each, num_frames) for each in once[:PROMPTS_OF_LENGTHS])
    for name, model in compared_models(spec, work).items():
        asker = _Asker(spec, model.step, model.weights, model.weights_of, model.weights_of, name, model.goes_with)
        yield from (asker.ask(*each) for each in once + rest)


@dataclass(frozen=True)
class _Asker:
    """Asks one checkpoint for samples."""

    spec: EvaluateSpec
    step: int
    weights: Weights
    weights_key: str
    weights_of: str
    """As items name it."""
    of: str = ""
    goes_with: Mapping[str, str] = field(default_factory=dict)

    def ask(self, prompt: AskedPrompt, seed_index: int, num_frames: int = 0) -> Asked:
        made = self._recipe(prompt, seed_index, num_frames)
        place = (self.step, self.weights, self.weights_key, self.of)
        return Asked(prompt, seed_index, *place, num_frames, made)

    def _recipe(self, prompt: AskedPrompt, seed_index: int, num_frames: int) -> Recipe:
        """What a sample is made of: not which others are asked for with it."""
        spec = self.spec.model_copy(update={"num_frames": num_frames}) if num_frames else self.spec
        settings = {name: each for name, each in what_of(spec).items() if name not in _WHICH}
        # Only what is not as in the first version, so that its samples are found.
        more: dict[str, Any] = ({"seed_index": seed_index} if seed_index else {}) | dict(self.goes_with)
        about = {"prompt": prompt.text, "index": prompt.index, "step": self.step, "weights": self.weights}
        return recipe("sample", weights_of=self.weights_of, **about, **more, settings=settings)


def prompts_of(spec: EvaluateSpec, work: Work) -> list[AskedPrompt]:
    """All prompts that are asked for: the run's own, captions of held-out clips, plain ones."""
    texts: list[tuple[str, PromptSet, str]] = [(text, "style", "") for text in spec.prompts]
    if spec.held_out_prompts:
        rows = work.rows("latents", "latents", Latent)
        texts += [
            (text, "held_out", clip) for clip, text in held_out_captions(rows, spec.held_out_prompts, spec.prompts)
        ]
    texts += [(text, "plain", "") for text in spec.plain_prompts]
    return [AskedPrompt(index, *each) for index, each in enumerate(texts)]


def held_out_captions(rows: Iterable[Latent], at_most: int, known: Sequence[str] = ()) -> list[tuple[str, str]]:
    """Clips that are held out and their captions, as many as were asked for at most: one of each film, then a second of
    each, and so on, each text once and none that is `known`. Which ones depends on their content alone.

    Of images only where no video is held out.
    """
    films: dict[str, dict[str, dict[str, tuple[str, str]]]] = {
        "video": defaultdict(dict),
        "image": defaultdict(dict),
    }
    for row in rows:
        if row.split == "held_out":
            # Of a clip that is encoded at several sizes, one.
            entry = (content_id("held-out prompt", row.item, row.text_item), row.caption)
            clips = films[row.kind][row.video_id]
            clips[row.clip_id] = min(clips.get(row.clip_id, entry), entry)
    queues = [
        sorted((rank, clip, text) for clip, (rank, text) in clips.items())
        for clips in (films["video"] or films["image"]).values()
    ]
    seen = set(known)
    found: list[tuple[str, str]] = []
    for turn in zip_longest(*sorted(queues)):
        for each in turn:
            if each is not None and each[2] not in seen and len(found) < at_most:
                seen.add(each[2])
                found.append((each[1], each[2]))
    return found


def best_step(work: Work, steps: Sequence[int], weights: Weights) -> set[int]:
    """Of these steps the one with the lowest held-out loss; none where it was not measured at any of them."""
    curve = held_out_facts(work.rows("train", "held_out", HeldOutRow)).curves.get(weights, [])
    losses = {int(step): loss for step, loss in curve if int(step) in steps}
    return {min(losses, key=lambda step: (losses[step], step))} if losses else set()


def chosen_steps(steps: Sequence[int], at_most: int) -> list[int]:
    """The first, the last, and those nearest to evenly spaced ones between; each once."""
    steps = sorted(set(steps))
    if len(steps) <= at_most:
        return steps
    first, last = steps[0], steps[-1]
    wanted = [first + (last - first) * place / (at_most - 1) for place in range(at_most)]
    return sorted({min(steps, key=lambda step: (abs(step - each), step)) for each in wanted})


def object_keys(spec: EvaluateSpec, asked: Asked) -> tuple[str, str]:
    """Where a sample's video and strip lie in the report, relative to the artifact."""
    name = f"step-{asked.step:06d}-{asked.weights}-prompt-{asked.prompt_index:02d}"
    if asked.of:
        name = f"compared-{spec.compare.index(asked.of):02d}-{name}"
    name += f"-seed-{asked.seed_index:02d}" if asked.seed_index else ""
    name += f"-frames-{asked.num_frames:04d}" if asked.num_frames else ""
    return f"report/samples/{name}.mp4", f"report/samples/{name}.jpg"


def sample_of(spec: EvaluateSpec, asked: Asked) -> Sample:
    """A sample's row."""
    video_key, strip_key = object_keys(spec, asked)
    more = () if asked.is_on_the_page else (asked.seed_index, asked.of, asked.num_frames)
    return Sample(
        id=content_id("sample", asked.prompt_index, asked.step, asked.weights, *more),
        prompt_index=asked.prompt_index,
        prompt=asked.prompt.text,
        step=asked.step,
        weights=asked.weights,
        seed=spec.seed,
        video_key=video_key,
        strip_key=strip_key,
        prompt_set=asked.prompt.set,
        seed_index=asked.seed_index,
        of=asked.of,
        num_frames=asked.num_frames,
        held_out_clip=asked.prompt.clip,
    )


def noise_of(seed: int, prompt_index: int, seed_index: int = 0) -> torch.Generator:
    """Where all of a sample's noise comes from: the same at every checkpoint and in any batch."""
    which = (prompt_index, seed_index) if seed_index else (prompt_index,)
    return torch.Generator().manual_seed(int(content_id("noise", seed, *which), 16) & (2**63 - 1))


def _default(weights: Sequence[Weights]) -> Weights:
    """Those that are sampled with all prompts and seeds."""
    return DEFAULT_WEIGHTS if DEFAULT_WEIGHTS in weights else weights[0]


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
