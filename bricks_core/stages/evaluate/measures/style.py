"""Style: where tuned samples stand on the way from base samples to the user's clips.

What it measures: distances between sets of clips, of base and tuned samples to real clips, and of one real film to the
    others, which is the end of the scale. `position` is a rank: 0 at the base, 1 as near as a real film is to the
    others, above where nearer, negative where farther away than the base. Two positions of other clips, other
    features or another base are not comparable, and none is an absolute grade.
    `separability` is the share of pairs (one of each side) that a simple classifier of features puts in order.
Source: unbiased MMD with a cubic kernel (KID: arXiv:1801.01401; fewer samples than Fréchet's needs: arXiv:2410.05203).
    Pairs of one film or one prompt are left out, since these have more in common than their style. The distance is the
    root, and 0 where the unbiased square is negative: a mixture of a real and 1 - a base samples stands at a.
Unit: none; position in steps from base to real, separability 0.5 (chance) to 1. Direction: position up to 1 is better.
Interval: prompts weighed at random (the same for base and tuned) with the real films as they are, and films weighed
    with the prompts as they are; both widened for few groups (report/intervals.py), and their squares added.
Validated on: tests/stages/evaluate/measures/test_style.py: brick and plain films, mixtures of them, blur, noise,
    blocks, brightness and mirrors, and 100 repetitions in which nothing changed.
Needs: nothing ("by-hand"), the wheel of bricks[style] ("efficientnet-lite0"), or an encoder by folder or hub id.
    EfficientNet sees set, light and camera more than style: features of hand are the default.

Samples have been through the codec, whose blur is none of their style: decode real clips with it too before comparing.
(Brick clips through the built-in codec stand at 0.86 between plain ones and decoded real clips, at 0.30 otherwise.)
Of drawn features, intervals held 0 in 93 to 99 of 100 cases with 24 prompts or more, in 88 to 90 with six.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bricks_core.errors import DataError
from bricks_core.models.image_encoder import ImageEncoder, load_image_encoder
from bricks_core.report.intervals import (
    Floats,
    Groups,
    Interval,
    bounded,
    joined,
    membership,
    weights,
    widened,
)
from bricks_core.stages.evaluate.measures.by_hand import Pixels, features_by_hand

Chosen = npt.NDArray[np.bool_]

BY_HAND = "by-hand"
_NUM_DRAWS = 2000
_LEAST_SPREAD = 0.05
"""Of a feature of hand, however alike real clips are in it: less would make much of nothing."""
_RIDGE = 0.1


@dataclass(frozen=True)
class Described:
    """Clips as features (N, D), each with its film (real clips) or prompt (samples)."""

    features: Floats
    groups: npt.NDArray[np.str_]
    kind: str
    """`by-hand`, or the encoder's name."""
    height_px: int
    width_px: int
    fps: float

    @property
    def names(self) -> list[str]:
        return sorted(set(self.groups.tolist()))


@dataclass(frozen=True)
class Style:
    """Distances, each with what varies by itself: prompts and films."""

    features: str
    base_to_real: Interval
    tuned_to_real: Interval
    real_to_real: Interval
    """Of one real film to the others."""
    position: Interval | None
    """None: the base is no farther from the real films than these are from each other, so there is no scale."""

    @property
    def leaves_base_out(self) -> bool:
        """Whether tuned samples are nearer to the real clips than base samples, beyond noise."""
        return self.position is not None and self.position.low > 0


def describe(
    clips: Iterable[Pixels],
    groups: Groups,
    fps: float,
    features: str = BY_HAND,
    encoder: ImageEncoder | None = None,
) -> Described:
    """Clips, uint8 (T, H, W, 3) RGB and all of one size, as features. An encoder's are the mean of a clip's frames.

    `features` is `by-hand`, or what `load_image_encoder` knows; give `encoder` to load that once only.

    Raises DataError: there are no clips, they have several sizes, or not every one has a group; and what the encoder
    raises.
    """
    if features != BY_HAND and encoder is None:
        encoder = load_image_encoder(features)
    rows, sizes = [], set()
    for clip in clips:
        sizes.add(clip.shape[1:3])
        rows.append(features_by_hand(clip) if encoder is None else encoder(clip).mean(axis=0, dtype=np.float64))
    if not rows:
        raise DataError("There are no clips to describe: give one or more.")
    if len(sizes) != 1:
        raise DataError(
            f"Clips of one size are compared, these have {len(sizes)}: bring them all to that of the samples."
        )
    membership(len(rows), groups)
    (height, width), names = sizes.pop(), np.asarray([str(group) for group in groups])
    return Described(np.stack(rows), names, features, height, width, fps)


def position(real: Described, base: Described, tuned: Described, seed: int = 0) -> Style:
    """Where `tuned` stands between `base` and `real`. Groups of the same name in base and tuned are the same prompt.

    Raises DataError: what is compared differs in size, rate or features; fewer than two films, no film with two clips,
    or fewer than two prompts.
    """
    _comparable(real, base, tuned)
    for what, described, unit in (("real clips", real, "film"), ("base", base, "prompt"), ("tuned", tuned, "prompt")):
        if len(described.names) < 2:
            raise DataError(f"Style is measured across {unit}s, but of {what} there is a single one: give two or more.")
    kernels = _kernels(real, base, tuned)
    prompts = sorted({*base.names, *tuned.names})
    columns = [[prompts.index(name) for name in each.names] for each in (base, tuned)]
    num_prompts, num_films = len(prompts), len(real.names)

    def distances(by_prompt: Floats, by_film: Floats) -> _Distances:
        return _distances(kernels, by_prompt[:, columns[0]], by_prompt[:, columns[1]], by_film)

    all_prompts, all_films = np.ones((1, num_prompts)), np.ones((1, num_films))
    here = distances(all_prompts, all_films)
    prompts_drawn = distances(weights(num_prompts, _NUM_DRAWS, seed), all_films)
    films_drawn = distances(all_prompts, weights(num_films, _NUM_DRAWS, seed))

    def found(pick: Callable[[_Distances], Floats]) -> Interval:
        value = float(pick(here)[0])
        by_prompts = widened(value, pick(prompts_drawn), num_prompts)
        return joined(value, by_prompts, widened(value, pick(films_drawn), num_films))

    room = widened(float(_room(here)[0]), _room(prompts_drawn), num_prompts)
    return Style(
        features=real.kind,
        base_to_real=_rooted(found(lambda each: each.base)),
        tuned_to_real=_rooted(found(lambda each: each.tuned)),
        real_to_real=_rooted(widened(float(here.real[0]), films_drawn.real, num_films)),
        position=found(_position) if room.low > 0 else None,
    )


def separability(a: Described, b: Described, seed: int = 0) -> Interval:
    """How well a and b are told apart: the share of pairs in order (AUC), each clip judged by a classifier that has
    seen none of its group. 0.5: not at all, 1: always.

    Raises DataError: a and b differ in size, rate or features, or one has a single group.
    """
    _comparable(a, b)
    scores_a, scores_b = np.empty(len(a.groups)), np.empty(len(b.groups))
    for name in {*a.names, *b.names}:
        left_a, left_b = a.groups == name, b.groups == name
        if left_a.all() or left_b.all():
            raise DataError(f"All clips of one side are of {name}: give two films or prompts of each, or more.")
        judge = _Classifier(a, b, ~left_a, ~left_b)
        scores_a[left_a], scores_b[left_b] = judge(a.features[left_a]), judge(b.features[left_b])
    return _in_order(scores_a, scores_b, a, b, seed)


def tells_apart(a: Described, b: Described, like_a: Described, like_b: Described, seed: int = 0) -> Interval:
    """How well what tells a from b tells like_a from like_b: a classifier of real clips on tuned and base samples.

    Raises DataError: they differ in size, rate or features.
    """
    _comparable(a, b, like_a, like_b)
    judge = _Classifier(a, b)
    return _in_order(judge(like_a.features), judge(like_b.features), like_a, like_b, seed)


def _comparable(*sets: Described) -> None:
    """Raises DataError: features, size or rate are not the same."""
    first = sets[0]
    for other in sets[1:]:
        if other.kind != first.kind:
            raise DataError(f"Features {first.kind} and {other.kind} are not comparable: describe all clips by one.")
        here, there = (f"{each.height_px}x{each.width_px} at {each.fps:.4g} frames/s" for each in (first, other))
        if here != there:
            raise DataError(f"Clips of {here} and of {there} are not comparable: bring them to one size and rate.")


class _Scale:
    """Features in units of the spread of what is given, without their centre.

    Features of hand one by one, by quartiles, and by their logarithm where large: else the one that differs most
    decides alone. What is not a number counts as the centre. An encoder's by one number for all.
    """

    def __init__(self, features: Floats, kind: str):
        self.by_hand = kind == BY_HAND
        if self.by_hand:
            known = np.where(np.isfinite(features).any(axis=0), features, 0.0)
            low, self.centre, high = np.nanquantile(known, (0.25, 0.5, 0.75), axis=0)
            self.spread = np.maximum((high - low) / 1.349, _LEAST_SPREAD)
        else:
            self.centre = features.mean(axis=0)
            self.spread = np.maximum(np.sqrt(np.mean((features - self.centre) ** 2)), 1e-12)

    def __call__(self, features: Floats) -> Floats:
        scaled = (features - self.centre) / self.spread
        return np.arcsinh(np.nan_to_num(scaled)) if self.by_hand else scaled


class _Kernels(NamedTuple):
    """Means of the kernel over pairs of clips, by their groups. R real, B base, T tuned."""

    RR: Floats
    BR: Floats
    TR: Floats
    BB: Floats
    TT: Floats
    one_film: Floats
    """Over pairs of different clips of a film; not a number where it has one clip."""


class _Distances(NamedTuple):
    """Squared, (num_draws,)."""

    base: Floats
    tuned: Floats
    real: Floats


def _kernels(real: Described, base: Described, tuned: Described) -> _Kernels:
    scale = _Scale(real.features, real.kind)
    R, B, T = (scale(each.features) for each in (real, base, tuned))
    r, b, t = (_shares(each) for each in (real, base, tuned))
    num_clips = (r > 0).sum(axis=1)
    if num_clips.max() < 2:
        raise DataError("Every real film has a single clip, so how alike clips of a film are is unknown: give more.")
    itself = _kernel(R, R)
    whole = np.diag(r @ itself @ r.T) * num_clips**2 - (r > 0) @ np.diag(itself)
    one_film = np.where(num_clips > 1, whole / np.maximum(num_clips * (num_clips - 1), 1), np.nan)
    return _Kernels(
        RR=r @ itself @ r.T,
        BR=b @ _kernel(B, R) @ r.T,
        TR=t @ _kernel(T, R) @ r.T,
        BB=b @ _kernel(B, B) @ b.T,
        TT=t @ _kernel(T, T) @ t.T,
        one_film=one_film,
    )


def _kernel(x: Floats, y: Floats) -> Floats:
    """(N, D), (M, D) -> (N, M): KID's, arXiv:1801.01401 section 4."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def _shares(described: Described) -> Floats:
    """(groups, N): each clip's share of its group."""
    mine = np.asarray(described.names)[:, None] == described.groups
    return mine / mine.sum(axis=1, keepdims=True)


def _distances(kernels: _Kernels, of_base: Floats, of_tuned: Floats, of_real: Floats) -> _Distances:
    """Under weights of groups, (num_draws or 1, groups) each."""
    to_real = _apart(kernels.RR, of_real)
    several = np.isfinite(kernels.one_film)
    alike = (of_real[:, several] @ kernels.one_film[several]) / of_real[:, several].sum(axis=1)
    return _Distances(
        base=_apart(kernels.BB, of_base) + to_real - 2 * _between(kernels.BR, of_base, of_real),
        tuned=_apart(kernels.TT, of_tuned) + to_real - 2 * _between(kernels.TR, of_tuned, of_real),
        real=alike - to_real,
    )


def _apart(kernel: Floats, weight: Floats) -> Floats:
    """The mean over pairs of different groups."""
    squares = weight**2
    whole = ((weight @ kernel) * weight).sum(axis=1) - squares @ np.diag(kernel)
    return whole / (weight.sum(axis=1) ** 2 - squares.sum(axis=1))


def _between(kernel: Floats, left: Floats, right: Floats) -> Floats:
    return ((left @ kernel) * right).sum(axis=1) / (left.sum(axis=1) * right.sum(axis=1))


def _room(squared: _Distances) -> Floats:
    """How much farther the base is than one real film."""
    return squared.base - np.maximum(squared.real, 0)


def _position(squared: _Distances) -> Floats:
    base, tuned, real = (np.sqrt(np.maximum(each, 0)) for each in squared)
    return (base - tuned) / np.maximum(base - real, 1e-6)


def _rooted(squared: Interval) -> Interval:
    value, low, high = (math.sqrt(max(each, 0.0)) for each in (squared.value, squared.low, squared.high))
    return Interval(value, low, high, squared.num)


class _Classifier:
    """A linear discriminant with a ridge: large for what is like a. Both sides count alike, however many they are."""

    def __init__(self, a: Described, b: Described, of_a: Chosen | None = None, of_b: Chosen | None = None):
        left, right = (x.features if of is None else x.features[of] for x, of in ((a, of_a), (b, of_b)))
        self.scale = _Scale(np.concatenate([left, right]), a.kind)
        left, right = self.scale(left), self.scale(right)
        spread = (np.cov(left, rowvar=False, bias=True) + np.cov(right, rowvar=False, bias=True)) / 2
        ridge = _RIDGE * np.trace(spread) / len(spread) + 1e-9
        self.direction = np.linalg.solve(spread + ridge * np.eye(len(spread)), left.mean(axis=0) - right.mean(axis=0))
        self.middle = (left.mean(axis=0) + right.mean(axis=0)) / 2

    def __call__(self, features: Floats) -> Floats:
        return (self.scale(features) - self.middle) @ self.direction


def _in_order(scores_a: Floats, scores_b: Floats, a: Described, b: Described, seed: int) -> Interval:
    """The share of pairs in which a's score is larger, a tie being half of one, over groups that weigh by chance."""
    won = (scores_a[:, None] > scores_b) + 0.5 * (scores_a[:, None] == scores_b)
    shares, others = _shares(a), _shares(b)
    names = sorted({*a.names, *b.names})
    by_group = shares @ won @ others.T
    drawn = weights(len(names), _NUM_DRAWS, seed)
    of_a, of_b = (drawn[:, [names.index(name) for name in each.names]] for each in (a, b))
    num = min(len(a.names), len(b.names))
    return bounded(widened(float(by_group.mean()), _between(by_group, of_a, of_b), num), (0.0, 1.0))
