"""The numbers of a run, gathered from the tables of its stages: what the report shows and report.json holds.

Tables are streamed, several times where that saves memory: what is kept grows with the number of reasons, buckets and
held-out measurements, never with the number of videos or clips.
"""

from __future__ import annotations

import math
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from statistics import fmean
from typing import Any

from bricks_core.report.evidence import Evidence
from bricks_core.report.measures import Measures
from bricks_core.spec.caption import Caption
from bricks_core.spec.clip import Clip, Image, Shot
from bricks_core.spec.evaluate import EvaluateSpec
from bricks_core.spec.ingest import Video
from bricks_core.spec.latents import Latent
from bricks_core.spec.manifest import Manifest
from bricks_core.spec.score import Score
from bricks_core.spec.train import DEFAULT_WEIGHTS, BucketLossRow, HeldOutRow, StepRow, TrainSpec
from bricks_core.storage.work import Work
from bricks_core.video.buckets import Size

MAX_REASONS = 40
"""Further kinds of reasons are counted together."""
MAX_POINTS = 240
"""Of a curve; longer ones are averaged stretch by stretch."""
NUM_BARS = 24
"""Of a histogram, at most."""
_TAIL_SHARE = 0.01
"""Of the values, at each end: they share the outermost bars, so that one odd clip does not flatten a histogram."""
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")

Point = tuple[float, float]


@dataclass
class Dataset:
    """What became of the videos."""

    videos: dict[str, int]
    """By state."""
    video_reasons: dict[str, int]
    licences: dict[str, int]
    """Videos that went on, by licence and whom to name."""
    num_shots: int
    shot_reasons: dict[str, int]
    num_clips: int
    num_images: int
    clip_seconds: float
    num_kept: int
    num_held_out_clips: int
    score_reasons: dict[str, int]
    captions: dict[str, dict[str, int]]
    """By kind, then by status."""
    caption_reasons: dict[str, int]
    captions_by: dict[str, int]
    """Accepted captions by who wrote them."""
    mean_caption_words: float
    caption_tokens: dict[str, int]
    latents: dict[str, int]
    """By kind and split, as "video train"."""
    latents_by_size: dict[str, int]
    histograms: list[Histogram]


@dataclass
class Histogram:
    """How many clips lie between two edges; the first bar also holds what is below, the last what is above."""

    name: str
    unit: str
    edges: list[float]
    kept: list[int]
    dropped: list[int]
    threshold_note: str = ""


@dataclass
class Training:
    """The curves of a training. Points are (step, value), averaged over stretches when there are many."""

    num_steps: int
    phases: list[tuple[str, int, int]]
    """Name, first step, end."""
    loss: list[Point]
    smoothed_loss: list[Point]
    learning_rate: list[Point]
    gradient_norm: list[Point]
    bucket_losses: dict[str, list[Point]]
    samples_seen: int
    """By the logged steps' rate, over all steps."""
    of_steps: int = 0
    """Steps that were asked for: more than `num_steps` where the training is not finished."""

    @property
    def is_finished(self) -> bool:
        return self.num_steps >= self.of_steps


@dataclass
class HeldOut:
    """The loss on videos that training never saw, at fixed timesteps with fixed noise. Empty when there are none."""

    first_step: int = 0
    last_step: int = 0
    curves: dict[str, list[Point]] = field(default_factory=dict)
    """By weights: mean over bins of timesteps, then over buckets."""
    bins: list[Bin] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    """First to last step, for all buckets together (bucket ""), then bucket by bucket."""

    def overall(self, weights: str) -> Change | None:
        """The change of one kind of weights over all buckets; None where it was not measured twice."""
        return next((each for each in self.changes if not each.bucket and each.weights == weights), None)


@dataclass
class Bin:
    """A range of timesteps, or several neighbouring ones when there are many."""

    first_timestep: int
    end_timestep: int
    curves: dict[str, list[Point]]
    """By weights."""


@dataclass
class Change:
    weights: str
    bucket: str
    before: float
    after: float
    num_clips: int
    """Clips it was measured on; 0 for all buckets together."""

    @property
    def improvement_percent(self) -> float:
        """How much lower the loss is, as a share of what it was. Negative: it rose."""
        return 100 * (self.before - self.after) / self.before if self.before else 0.0


@dataclass
class StageFacts:
    """One stage of the run: where its artifact lies, and what made it."""

    stage: str
    version: int
    digest: str
    code_version: str
    inputs: dict[str, str]
    rows: dict[str, int]
    num_items: int
    """Answers that its tables were made from. Their files and bytes are left out: how packs were filled depends on what
    else the store was asked for before, and by how many."""
    counts: dict[str, int]


def kind_of(reason: str) -> str:
    """A reason without its numbers: "motion 3.2 is below 12" and "motion 4.1 is below 12" are one kind."""
    return _NUMBER.sub("…", reason.strip().rstrip("."))


class Reasons:
    """Counts reasons by their kind, and shows a kind that always read the same with its numbers."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._texts: dict[str, str] = {}

    def add(self, reason: str) -> None:
        kind = kind_of(reason) or "no reason given"
        if kind not in self._counts and len(self._counts) >= MAX_REASONS:
            kind = "other reasons"
        text = reason.strip().rstrip(".") if kind != "other reasons" else kind
        self._counts[kind] += 1
        if self._texts.setdefault(kind, text) != text:
            self._texts[kind] = kind

    def counted(self) -> dict[str, int]:
        """Most frequent first."""
        found = sorted(self._counts.items(), key=lambda item: (-item[1], item[0]))
        return {self._texts[kind] or kind: count for kind, count in found}


def dataset_facts(work: Work) -> Dataset:
    """What became of the videos, from the tables of ingest, clip, score, caption and latents."""
    states: Counter[str] = Counter()
    licences: Counter[str] = Counter()
    video_reasons, shot_reasons, score_reasons, caption_reasons = Reasons(), Reasons(), Reasons(), Reasons()
    for video in work.rows("ingest", "videos", Video):
        if video.state == "beside" or video.kind == "image":
            continue  # no film, and nobody thought that it was one
        states[video.state] += 1
        if video.state in {"ok", "damaged"}:
            credit = f", {video.credit}" if video.credit else ""
            licences[f"{video.licence}{credit}, consent {video.consent}"] += 1
        if video.state != "ok":
            video_reasons.add(video.reason)
    num_shots = 0
    for shot in work.rows("clip", "shots", Shot):
        num_shots += 1
        if shot.state == "dropped":
            shot_reasons.add(shot.reason)
    num_clips, clip_seconds = 0, 0.0
    for clip in work.rows("clip", "clips", Clip):
        num_clips += 1
        clip_seconds += clip.num_frames / clip.fps if clip.fps else 0.0
    num_kept = num_held_out = 0
    for score in work.rows("score", "scores", Score):
        if score.kind == "image":
            continue
        if score.state == "kept":
            num_kept += 1
            num_held_out += score.split == "held_out"
        for reason in score.reasons if score.state == "dropped" else ():
            score_reasons.add(reason)
    captions = _captions(work, caption_reasons)
    latents: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for latent in work.rows("latents", "latents", Latent):
        latents[f"{latent.kind} {latent.split}"] += 1
        sizes[f"{latent.width_px}\u00a0×\u00a0{latent.height_px}"] += 1
    return Dataset(
        videos=_sorted(states),
        video_reasons=video_reasons.counted(),
        licences=_sorted(licences),
        num_shots=num_shots,
        shot_reasons=shot_reasons.counted(),
        num_clips=num_clips,
        num_images=sum(1 for _ in work.rows("clip", "images", Image)),
        clip_seconds=clip_seconds,
        num_kept=num_kept,
        num_held_out_clips=num_held_out,
        score_reasons=score_reasons.counted(),
        caption_reasons=caption_reasons.counted(),
        latents=_sorted(latents),
        latents_by_size=_sorted(sizes),
        histograms=histograms(work),
        **captions,
    )


def _captions(work: Work, reasons: Reasons) -> dict[str, Any]:
    by_status: dict[str, Counter[str]] = {"video": Counter(), "image": Counter()}
    by: Counter[str] = Counter()
    num_words = num_accepted = prompt_tokens = output_tokens = 0
    for caption in work.rows("caption", "captions", Caption):
        by_status[caption.kind][caption.status] += 1
        prompt_tokens += caption.prompt_tokens
        output_tokens += caption.output_tokens
        if caption.status == "ok":
            by[caption.by] += 1
            num_accepted += 1
            num_words += caption.num_words
        else:
            reasons.add(caption.reason or caption.status.replace("_", " "))
    return {
        "captions": {kind: _sorted(counts) for kind, counts in by_status.items()},
        "captions_by": _sorted(by),
        "mean_caption_words": num_words / num_accepted if num_accepted else 0.0,
        "caption_tokens": {"prompt": prompt_tokens, "output": output_tokens},
    }


@dataclass(frozen=True)
class Quantity:
    """Something that every clip has one of."""

    name: str
    unit: str
    of: Callable[[Score], float]


SCORES = (
    Quantity("Motion", "of 255", lambda score: score.motion),
    Quantity("Brightness", "of 255", lambda score: score.brightness),
    Quantity("Contrast", "of 255", lambda score: score.contrast),
    Quantity("Sharpness", "variance of Laplacian", lambda score: score.sharpness),
    Quantity("Repeated frames", "share of frames", lambda score: score.duplicate_frame_share),
    Quantity("New pictures", "per second", lambda score: score.picture_fps),
)


def histograms(work: Work) -> list[Histogram]:
    """Durations of all clips, the scores of kept and dropped ones, and lengths of accepted captions."""

    def durations() -> Iterator[tuple[float, bool]]:
        return ((clip.num_frames / clip.fps, True) for clip in work.rows("clip", "clips", Clip) if clip.fps)

    def words() -> Iterator[tuple[float, bool]]:
        return ((each.num_words, True) for each in work.rows("caption", "captions", Caption) if each.status == "ok")

    def scores(quantity: Quantity) -> Callable[[], Iterator[tuple[float, bool]]]:
        return lambda: (
            (quantity.of(score), score.state == "kept")
            for score in work.rows("score", "scores", Score)
            if score.kind == "video"
        )

    wanted = [("Length", "seconds", durations)]
    wanted += [(quantity.name, quantity.unit, scores(quantity)) for quantity in SCORES]
    wanted += [("Caption length", "words", words)]
    return [found for name, unit, values in wanted if (found := histogram(name, unit, values)) is not None]


def histogram(name: str, unit: str, values: Callable[[], Iterable[tuple[float, bool]]]) -> Histogram | None:
    """Bars of a round width over all but the outermost values. None when there are no values.

    `values` gives (value, kept) anew at every call; it is called some three times, and nothing of it is held.
    """
    lowest, highest, count, all_whole = math.inf, -math.inf, 0, True
    for value, _ in values():
        if math.isfinite(value):
            lowest, highest, count = min(lowest, value), max(highest, value), count + 1
            all_whole &= float(value).is_integer()
    if not count:
        return None
    low, high = _without_tails(lowest, highest, count, values)
    # Few clips in many bars are a picket fence; about twice the square root is readable at any number.
    wanted = min(NUM_BARS, max(6, round(2 * math.sqrt(count))))
    # Numbers so small that a tenth of them is 0 still have a bar.
    width = nice_step(max((high - low) / wanted if high > low else (abs(low) or 1.0) / 10, sys.float_info.min))
    width = max(width, 1.0) if all_whole else width
    first = math.floor(low / width)
    num_bars = math.floor(high / width) - first + 1
    if num_bars == 1:  # alone, a bar would be a wall
        first, num_bars = first - 2, 5
    kept, dropped = [0] * num_bars, [0] * num_bars
    for value, is_kept in values():
        if math.isfinite(value):
            bar = min(max(math.floor(value / width) - first, 0), num_bars - 1)
            (kept if is_kept else dropped)[bar] += 1
    edges = [round((first + index) * width, 12) for index in range(num_bars + 1)]
    return Histogram(name, unit, edges, kept, dropped)


def _without_tails(
    lowest: float, highest: float, count: int, values: Callable[[], Iterable[tuple[float, bool]]]
) -> tuple[float, float]:
    """The range that holds all values but a share at each end, found by counting into cells, then into finer ones."""
    if count < 2 / _TAIL_SHARE:
        return lowest, highest
    low, high = lowest, highest
    while high > low:
        cells = [0] * 1024
        for value, _ in values():
            if math.isfinite(value):
                place = (value - low) / (high - low) * len(cells)
                cells[int(min(max(place, 0), len(cells) - 1))] += 1
        first, last = _reached(cells, _TAIL_SHARE * count), _reached(cells[::-1], _TAIL_SHARE * count)
        cell = (high - low) / len(cells)
        shorter = low + cell * first, high - cell * last
        if shorter[1] - shorter[0] > 0.1 * (high - low) or shorter == (low, high):
            return shorter
        low, high = shorter
    return low, high


def _reached(cells: list[int], enough: float) -> int:
    """The first cell with which more than that many are counted."""
    return next(index for index, seen in enumerate(accumulate(cells)) if seen > enough)


def nice_step(step: float) -> float:
    """The next of 1, 2, 2.5, 5 times a power of ten that is not smaller."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= step * (1 - 1e-9))


def training_facts(work: Work, spec: TrainSpec) -> Training:
    """The curves, from the tables of train, as far as it has come."""
    of_steps, spec = spec.num_steps, spec.up_to(steps_done(work, spec))
    width = max(1, math.ceil(spec.num_steps / MAX_POINTS))
    loss, learning_rate, norm = Curve(width), Curve(width), Curve(width)
    num_logged = num_samples = 0
    for row in work.rows("train", "steps", StepRow):
        loss.add(row.step, row.loss)
        learning_rate.add(row.step, row.learning_rate)
        norm.add(row.step, row.gradient_norm)
        num_logged, num_samples = num_logged + 1, num_samples + row.num_samples
    buckets: dict[str, Curve] = {}
    for each in work.rows("train", "bucket_losses", BucketLossRow):
        buckets.setdefault(each.bucket, Curve(width)).add(each.step, each.loss)
    phases, first = [], 0
    for phase in spec.phases:
        phases.append((phase.name, first, first + phase.steps))
        first += phase.steps
    return Training(
        num_steps=spec.num_steps,
        phases=phases,
        loss=loss.points(),
        smoothed_loss=smoothed(loss.points()),
        learning_rate=learning_rate.points(),
        gradient_norm=norm.points(),
        bucket_losses={bucket: smoothed(buckets[bucket].points()) for bucket in sorted(buckets)},
        samples_seen=sum(phase.steps * sum(b.batch_size for b in phase.buckets) for phase in spec.phases),
        of_steps=of_steps,
    )


def steps_done(work: Work, spec: TrainSpec) -> int:
    """Steps of the training that its artifact tells of: fewer than were asked for where it is not finished."""
    return work.inputs["train"].manifest.counts.get("steps", spec.num_steps)


class Curve:
    """A curve in bounded memory: the mean of all values of each stretch of steps, whatever order they come in."""

    def __init__(self, width: int):
        self._width = width
        self._sums: dict[int, tuple[int, float, float]] = {}

    def add(self, step: int, value: float) -> None:
        if math.isfinite(value):
            count, steps, values = self._sums.get(step // self._width, (0, 0.0, 0.0))
            self._sums[step // self._width] = (count + 1, steps + step, values + value)

    def points(self) -> list[Point]:
        return [(steps / count, values / count) for _, (count, steps, values) in sorted(self._sums.items())]


def smoothed(points: list[Point], share: float = 0.06) -> list[Point]:
    """Exponential mean over about a share of the points, without the usual pull towards the first one."""
    keep = 1 - 1 / max(1.0, share * len(points))
    mean = weight = 0.0
    result = []
    for step, value in points:
        mean, weight = keep * mean + (1 - keep) * value, keep * weight + (1 - keep)
        result.append((step, mean / weight))
    return result


def held_out_facts(rows: Iterable[HeldOutRow], max_bins: int = 10) -> HeldOut:
    """Curves and changes of the held-out loss: means over bins of timesteps, then over buckets."""
    measured = list(rows)
    if not measured:
        return HeldOut()
    first, last = min(row.step for row in measured), max(row.step for row in measured)
    # A bucket that is measured only in a later phase would make the mean jump when it comes in.
    buckets = {row.bucket for row in measured if row.step == first} & {
        row.bucket for row in measured if row.step == last
    }
    whole = [row for row in measured if row.bucket in buckets] or measured
    weights = sorted({row.weights for row in whole}, key=("raw", "ema").index)
    return HeldOut(
        first_step=first,
        last_step=last,
        curves={each: _curve(row for row in whole if row.weights == each) for each in weights},
        bins=[
            Bin(
                low,
                high,
                {w: _curve(r for r in whole if r.weights == w and low <= r.first_timestep < high) for w in weights},
            )
            for low, high in _bins(whole, max_bins)
        ],
        changes=[
            change
            for bucket in ["", *sorted({row.bucket for row in measured})]
            for each in weights
            if (change := _change(measured if bucket else whole, each, bucket)) is not None
        ],
    )


def _within(rows: list[HeldOutRow], weights: str, low: int, high: int) -> list[HeldOutRow]:
    return [row for row in rows if row.weights == weights and low <= row.first_timestep < high]


def _bins(rows: list[HeldOutRow], at_most: int) -> list[tuple[int, int]]:
    bins = sorted({(row.first_timestep, row.end_timestep) for row in rows})
    size = math.ceil(len(bins) / at_most)
    return [(bins[at][0], bins[min(at + size, len(bins)) - 1][1]) for at in range(0, len(bins), size)]


def _curve(rows: Iterable[HeldOutRow]) -> list[Point]:
    """By step: the mean over bins of each bucket, then over buckets, as the training itself tells it."""
    by_step: dict[int, dict[str, list[float]]] = {}
    for row in rows:
        by_step.setdefault(row.step, {}).setdefault(row.bucket, []).append(row.loss)
    return [(step, fmean(fmean(losses) for losses in buckets.values())) for step, buckets in sorted(by_step.items())]


def _change(rows: list[HeldOutRow], weights: str, bucket: str) -> Change | None:
    points = _curve(row for row in rows if row.weights == weights and bucket in ("", row.bucket))
    if len(points) < 2:
        return None
    num_clips = max(row.num_samples for row in rows if row.bucket == bucket) if bucket else 0
    return Change(weights, bucket, points[0][1], points[-1][1], num_clips)


def stage_facts(manifest: Manifest) -> StageFacts:
    """A stage's line in the lineage: all of it follows from what was asked and made, nothing from when and where."""
    return StageFacts(
        stage=manifest.stage,
        version=manifest.stage_version,
        digest=manifest.digest,
        code_version=manifest.code_version,
        inputs=manifest.inputs,
        rows={name: table.num_rows for name, table in manifest.tables.items()},
        num_items=manifest.num_items,
        counts=manifest.counts,
    )


def _sorted(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


@dataclass(frozen=True)
class Facts:
    """Everything the report is made of, and what report.json holds."""

    spec: EvaluateSpec
    size: Size
    dataset: Dataset
    training: Training
    held_out: HeldOut
    evidence: Evidence
    lineage: list[StageFacts]
    settings: dict[str, dict[str, Any]]
    """The resolved settings of every stage."""
    measures: Measures | None = None
    """None: only the base model was sampled."""

    @property
    def weights(self) -> str:
        """Of raw and EMA, those that the page is about: what `bricks generate` takes too, unless only others were
        sampled."""
        return DEFAULT_WEIGHTS if DEFAULT_WEIGHTS in self.spec.weights else self.spec.weights[0]

    @property
    def change(self) -> Change | None:
        """What became of their held-out loss; None where that was not measured twice."""
        return self.held_out.overall(self.weights)
