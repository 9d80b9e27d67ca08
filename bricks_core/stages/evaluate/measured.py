"""What the samples are: figures made of looks (looks.py) by measures/, as report/measures.py has them.

A measure that cannot be had is None, and `missing` says why.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np

from bricks_core.errors import AlteredObject, DataError
from bricks_core.judge.facts import KINDS, facts
from bricks_core.judge.kept import verdicts
from bricks_core.report import measures as report
from bricks_core.report.evidence import Losses
from bricks_core.report.intervals import Interval, bounded, difference, interval
from bricks_core.spec.evaluate import EvaluateSpec, PromptSet, Sample
from bricks_core.stages.evaluate.copies import copies_of
from bricks_core.stages.evaluate.looks import (
    OF_FILMS,
    Checkpoint,
    Look,
    Looked,
    RealLooks,
    checkpoints_of,
    frames_of,
    look_at_all,
    need,
)
from bricks_core.stages.evaluate.measures import adherence, drift, motion, style
from bricks_core.storage.work import Work

T = TypeVar("T")
SETS: dict[PromptSet, str] = {
    "style": "the run's prompts",
    "held_out": "captions of held-out clips",
    "plain": "plain prompts",
}


@dataclass(frozen=True)
class Measured:
    """The figures, and the pictures that go with them, by key."""

    measures: report.Measures
    pictures: dict[str, bytes] = field(default_factory=dict)


def measured(
    spec: EvaluateSpec, work: Work, samples: Sequence[Sample], losses: Losses | None, weights: str
) -> Measured | None:
    """Everything that can be measured on these samples; None where only the base model was sampled.

    `weights`: those that count. `losses` say which of the checkpoints that were sampled fully is the one to take.
    """
    if not checkpoints_of(samples, weights)[1]:
        return None
    seen = look_at_all(spec, work, samples, weights)
    tuned = to_take(seen.own, losses)
    missing = _missing_clips(seen)
    others = [each for each in (*seen.own, *seen.compared) if each is not tuned]
    copies, pictures = copies_of(work, tuned, seen, missing)
    found = report.Measures(
        tuned=model_of(tuned, seen, missing),
        num_prompts={each: len({key[0] for key in tuned.keys(each)}) for each in SETS if tuned.keys(each)},
        num_seeds=len({seed for _, seed in tuned.samples}),
        num_held_out_clips=seen.held_out.chosen.num_clips,
        of_held_out_clips=seen.held_out.chosen.of,
        others=[model_of(each, seen, {}) for each in others],
        drift=_drifts(spec, work, seen, missing),
        memorisation=copies,
        missing=missing,
    )
    return Measured(found, pictures)


def to_take(own: Sequence[Checkpoint], losses: Losses | None) -> Checkpoint:
    """Of checkpoints that were sampled fully the one with the least held-out loss; the last where it is not known."""
    rises = {each.step: each.by.value for each in losses.since_base} if losses else {}
    return min(own, key=lambda each: (rises.get(each.step, math.inf), -each.step))


def model_of(model: Checkpoint, seen: Looked, missing: dict[str, str]) -> report.Model:
    """All figures of one checkpoint, next to the base model's."""
    real = seen.held_out.in_order
    return report.Model(
        name=model.name,
        of=model.of,
        step=model.step,
        weights=model.weights,
        num_samples=len(model.samples),
        adherence=[each for name in SETS for each in kept_facts(model, seen.base, name, missing)],
        style=_tried("style", missing, lambda: _style(model, seen)),
        motion=_motion(model, seen.base, real, seen.held_out, missing),
    )


def kept_facts(
    model: Checkpoint, base: Checkpoint, prompt_set: PromptSet, missing: dict[str, str]
) -> list[report.KeptFacts]:
    """Which facts of a set's prompts the samples show, by kind."""
    keys = [key for key in model.keys(prompt_set) if key in base.samples]
    if not keys:
        return []
    claims = [facts(model.samples[key].prompt).claims for key in keys]
    if not any(claims):
        missing[f"facts of {SETS[prompt_set]}"] = (
            f"none of {SETS[prompt_set]} names a colour, light, direction, number or way of the camera"
        )
        return []
    prompts = [str(key[0]) for key in keys]
    scenes, before = ([need(each.looks[key].scene) for key in keys] for each in (model, base))
    told, told_before = (
        adherence.shares_kept([verdicts(of, scene) for of, scene in zip(claims, some, strict=True)])
        for some in (scenes, before)
    )
    tuned = adherence.adherence(told, prompts, adherence.chance(claims, scenes))
    of_base, changes = adherence.adherence(told_before, prompts), adherence.change(told, told_before, prompts)
    if report.ALL in tuned and tuned[report.ALL].chance is None:
        missing[f"chance of {SETS[prompt_set]}"] = "there is no other prompt to compare with"
    return [
        report.KeptFacts(
            prompt_set=prompt_set,
            kind=kind,
            num_samples=tuned[kind].num_samples,
            tuned=tuned[kind].kept,
            base=of_base[kind].kept if kind in of_base else None,
            chance=tuned[kind].chance,
            gain=_of_shares(tuned[kind].gain),
            change=_of_shares(changes.get(kind)),
        )
        for kind in (report.ALL, *KINDS)
        if kind in tuned
    ]


def _of_shares(found: Interval | None) -> Interval | None:
    """A difference of two shares."""
    return bounded(found, (-1.0, 1.0)) if found else None


def _missing_clips(seen: Looked) -> dict[str, str]:
    missing = {}
    for what, real in (("held-out clips", seen.held_out), ("training clips", seen.training)):
        if not real.chosen.of:
            missing[what] = "there are none with latents"
        elif not real.chosen.num_clips:
            missing[what] = f"all {real.chosen.of} are shorter than a sample"
    return missing


def _style(model: Checkpoint, seen: Looked) -> report.Style:
    """Raises DataError: there is too little to compare."""
    if seen.too_small:
        raise DataError("Samples are too small for features of hand: 32 pixels are the least.")
    keys = [key for key in model.keys(*OF_FILMS) if key in seen.base.samples]
    if not keys:
        raise DataError("No prompts about the films were sampled.")
    if not seen.held_out.chosen.stretches:
        raise DataError("There is no held-out clip to compare with.")
    real = _described(seen.held_out.in_order)
    base, tuned = (_described([each.looks[key] for key in keys]) for each in (seen.base, model))
    found = style.position(real, base, tuned)
    nothing: dict[str, str] = {}
    return report.Style(
        features=found.features,
        base_to_real=found.base_to_real,
        tuned_to_real=found.tuned_to_real,
        real_to_real=found.real_to_real,
        position=found.position,
        tuned_from_base=_tried("", nothing, lambda: style.separability(tuned, base)),
        tuned_from_real=_tried("", nothing, lambda: style.separability(tuned, real)),
        num_clips=seen.held_out.chosen.num_clips,
        num_films=len(real.names),
    )


def _described(looks: Iterable[Look]) -> style.Described:
    """Several clips as one set."""
    rows = [need(look.style) for look in looks]
    return replace(
        rows[0],
        features=np.concatenate([row.features for row in rows]),
        groups=np.concatenate([row.groups for row in rows]),
    )


def _motion(
    model: Checkpoint, base: Checkpoint, real: Sequence[Look], of_real: RealLooks, missing: dict[str, str]
) -> list[report.MotionNumber]:
    keys = [key for key in model.keys(*OF_FILMS) if key in base.samples]
    if not keys:
        return []
    looked = [need(model.looks[key].motion) for key in keys]
    if all("amount" in each.reasons for each in looked):
        missing["motion"] = looked[0].reasons["amount"]
        return []
    prompts, films = [str(key[0]) for key in keys], [each.video_id for each in of_real.chosen.stretches]
    tuned, before = motion.table(looked), motion.table([need(base.looks[key].motion) for key in keys])
    clips = motion.table([need(each.motion) for each in real])
    found = []
    for name, number in motion.NUMBERS.items():
        of_tuned = _mean(tuned[name], prompts)
        if of_tuned is None:
            reasons = [each.reasons[name] for each in looked if name in each.reasons]
            missing[f"motion: {name.replace('_', ' ')}"] = reasons[0] if reasons else "it cannot be told of any sample"
        distances = [motion.apart(each[name], clips[name]) for each in (before, tuned)]
        found.append(
            report.MotionNumber(
                name=name,
                what=number.what,
                unit=number.unit,
                direction=number.direction,
                tuned=of_tuned,
                base=_mean(before[name], prompts),
                real=_mean(clips[name], films),
                nearer=_difference(distances[0], distances[1], prompts),
            )
        )
    return found


def _drifts(spec: EvaluateSpec, work: Work, seen: Looked, missing: dict[str, str]) -> list[report.Drift]:
    """Of the base model and of the last step, in the usual length and in further ones, of the prompts that were asked
    for these."""
    asked = {each.prompt_index for each in seen.longer}
    found = []
    for model in (seen.base, seen.own[-1]) if asked else ():
        usual = [model.samples[prompt, 0] for prompt in sorted(asked) if (prompt, 0) in model.samples]
        samples = [*usual, *(each for each in seen.longer if each.step == model.step)]
        told = _tried("drift with length", missing, partial(_drift, spec, work, samples))
        if told is not None:
            found.append(report.Drift(model.step, told.courses, told.per_doubling, told.from_length))
    return found


def _drift(spec: EvaluateSpec, work: Work, samples: Sequence[Sample]) -> drift.Drift:
    frames = [frames_of(work, each) for each in samples]
    return drift.drift(frames, [each.prompt_index for each in samples], spec.fps)


def _mean(values: Any, groups: Sequence[str]) -> Interval | None:
    """Of those that could be told."""
    told = np.isfinite(values)
    return interval(values[told], np.asarray(groups)[told]) if told.any() else None


def _difference(a: Any, b: Any, groups: Sequence[str]) -> Interval | None:
    told = np.isfinite(a) & np.isfinite(b)
    return difference(a[told], b[told], np.asarray(groups)[told]) if told.any() else None


def _tried(what: str, missing: dict[str, str], measure: Callable[[], T]) -> T | None:
    """What is measured; None where there is too little for it, which is said."""
    try:
        return measure()
    except AlteredObject:
        raise
    except DataError as error:
        missing[what] = str(error)
        return None
