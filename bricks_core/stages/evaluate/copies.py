"""Which samples repeat training clips, and both shown: measures/memorisation.py on what was looked at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from bricks_core.report import measures as report
from bricks_core.report.intervals import interval
from bricks_core.stages.evaluate.looks import OF_FILMS, Checkpoint, Key, Looked, contact_of, frames_of, need
from bricks_core.stages.evaluate.measures.memorisation import QUANTILE, Memorisation, Nearest, Pair, memorised, nearest
from bricks_core.storage.in_threads import in_threads, num_cores
from bricks_core.storage.work import Work

MAX_PAIRS = 12
"""Copies that are shown."""


def copies_of(
    work: Work, tuned: Checkpoint, seen: Looked, missing: dict[str, str]
) -> tuple[report.Memorisation | None, dict[str, bytes]]:
    """Which samples repeat training clips, and the pictures of both."""
    training, held_out, keys = seen.training.in_order, seen.held_out.in_order, tuned.keys(*OF_FILMS)
    if not training or not keys:
        missing["copies"] = "there is no training clip to compare with" if keys else "no prompts about the films"
        return None, {}
    prints = [need(look.print) for look in training]
    asked = [need(tuned.looks[key].print) for key in keys] + [need(look.print) for look in held_out]
    compared: dict[int, Nearest] = {}

    def compare(place: int) -> None:
        compared[place] = nearest([asked[place]], prints)[0]
        work.progress.advance(note="looking for copies of training clips")

    in_threads(compare, range(len(asked)), num_cores())
    in_order = [compared[place] for place in range(len(asked))]
    found = memorised(in_order[: len(keys)], in_order[len(keys) :])
    parts = [_copied("content", found, keys, missing), _copied("motion", found, keys, missing)]
    pairs, pictures = _pairs(work, tuned, seen, keys, found.pairs)
    clips = seen.training.chosen.stretches
    repeats = {
        seen.held_out.chosen.stretches[each.sample].clip_id: clips[each.match.training].clip_id
        for each in found.held_out_copies
    }
    return (
        report.Memorisation(
            parts=[each for each in parts if each is not None],
            num_training=seen.training.chosen.num_clips,
            of_training=seen.training.chosen.of,
            pairs=pairs,
            repeats=sorted(repeats.items()),
        ),
        pictures,
    )


def _copied(
    part: Literal["content", "motion"], found: Memorisation, keys: Sequence[Key], missing: dict[str, str]
) -> report.Copied | None:
    flags, num_held_out = getattr(found, part), found.num_held_out[part]
    told = np.isfinite(flags)
    if not num_held_out or not told.any():
        missing[f"copies: {part}"] = (
            "no sample moves" if not told.any() else "no held-out clip tells how alike different clips are"
        )
        return None
    groups = [str(key[0]) for key, is_told in zip(keys, told, strict=True) if is_told]
    return report.Copied(
        part=part,
        num=int(flags[told].sum()),
        of=int(told.sum()),
        share=interval(flags[told], groups, bounds=(0, 1)),
        # The threshold is the highest of so few; of many it is a quantile.
        expected=1 / (num_held_out + 1) if num_held_out < 1 / (1 - QUANTILE) else 1 - QUANTILE,
        threshold=found.thresholds[part],
        num_held_out=num_held_out,
    )


def _pairs(
    work: Work, tuned: Checkpoint, seen: Looked, keys: Sequence[Key], found: Sequence[Pair]
) -> tuple[list[report.CopiedPair], dict[str, bytes]]:
    """The likest, each sample once, with a picture of it and of its training clip."""
    pairs: list[report.CopiedPair] = []
    pictures: dict[str, bytes] = {}
    for pair in {each.sample: each for each in reversed(found)}.values():
        sample, stretch = tuned.samples[keys[pair.sample]], seen.training.chosen.stretches[pair.match.training]
        pairs.append(
            report.CopiedPair(
                part=pair.match.part,
                sample=sample.id,
                prompt=sample.prompt,
                seed_index=sample.seed_index,
                clip=stretch.clip_id,
                score=round(pair.match.score, 4),
                mirrored=pair.match.mirrored,
                sample_picture=f"report/copies/{sample.id}.jpg",
                clip_picture=f"report/copies/{sample.id}-clip.jpg",
            )
        )
        pictures[pairs[-1].clip_picture] = seen.training.looks[pair.match.training].contact
    pairs.sort(key=lambda each: (-each.score, each.sample))
    pairs = pairs[:MAX_PAIRS]
    shown = {each.sample: each.sample_picture for each in pairs}
    for sample in tuned.samples.values():
        if sample.id in shown:
            pictures[shown[sample.id]] = contact_of(frames_of(work, sample))
    wanted = {each.clip_picture for each in pairs} | set(shown.values())
    return pairs, {key: data for key, data in pictures.items() if key in wanted}
