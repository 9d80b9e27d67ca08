"""Whether samples repeat clips that the network was trained on: in what they show, and in how it moves.

What it measures: for every sample the training clip that is nearest in content and the one nearest in motion, mirrored
    or not. Chen et al. (arXiv:2410.21669) keep the two apart as well, and leave natural motion out.
    Content, in two steps. A descriptor of the whole picture, compared with those of all training clips, leaves 24. On
    these the sample is laid (mirrored, scaled by 0.85 to 1.18, shifted, earlier or later), then compared patch by patch
    with a little play. A patch counts by its detail, and less where other training clips show the same, as the ground
    of a set does. The score is what all but the worst fifth of the picture reaches, times how far the colours agree
    when those of one may be turned as a whole. So a copy must match nearly everywhere; the same set with other actors
    does not.
    Motion: the cosine of the displacements over time and picture, beyond the camera's.
Source: colour structure tensor (Di Zenzo 1986), which no exchange of colour channels alters; zero-mean normalised
    cross-correlation with the constant of SSIM (Wang et al. 2004); Procrustes' rotation for colours; optical flow of
    Kroeger et al. (arXiv:1603.03590). One cosine of features of the picture cannot do it: another film of a set is as
    near as a copy with 5 % cut off, and nearer than a blurred one.
Unit: none, 1 is a copy. Direction: less is better.
Interval: report/intervals.py `interval` over `Memorisation.content` and `.motion` (0 or 1 each), grouped by prompt.
Thresholds: what held-out clips, which cannot have been copied, reach against the same training clips: the highest, of
    100 and more the 99 % quantile, and at least FLOOR. So of samples that copy nothing about one in `num_held_out` + 1
    (one in 100) is flagged all the same. Held-out clips that are copies themselves (`COPY`, in the same colours) do not
    count here, and are named.
Validated on: tests/stages/evaluate/measures/test_memorisation.py: a copy, mirrored, hue turned by 120 degrees, blurred,
    5 to 15 % cropped, at a corner too, brighter, noisy, as JPEG, and several of these at once are found; other films of
    the same sets and kinds of scenes are not. Of 56 scenes of brick films such copies scored 0.85 to 1 (blurred by 3
    pixels of 160 0.77, by 4 0.63), other actors on the very same set at most 0.76; of real films 0.83 to 1, and 0.24.
    Less sure: a copy without colours (0.25 to 1), and one a quarter of a step later in fast motion (0.44 to 1). The
    motion of cropped copies is not found (0.3 to 0.9); their content is.
Needs: nothing. A clip is 24 kB and takes 14 ms, which can be kept; 24,000 x 96 took 18 s of one core and 0.9 GB.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise, product
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

from bricks_core.errors import DataError

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

NUM_FRAMES = 8
"""Of a clip that are looked at, evenly spaced."""
FLOOR = {"content": 0.78, "motion": 0.9}
"""Below, nothing is called a copy, however little alike held-out and training clips are."""
COPY = {"content": 0.8, "motion": 0.98}
"""From here on a held-out clip repeats a training clip, instead of telling how alike two different clips are..."""
SAME_COLOURS = 0.9
"""... if its colours are the same too, not turned: bricks that slide over a plate are laid out as others are."""
QUANTILE = 0.99
NUM_SHORTLISTED = 24

_PICTURE = (160, 96)  # width, height in which detail and motion are measured
_WIDTH, _HEIGHT = 40, 24  # of the maps: a cell is 4 x 4 pixels of those
_KEYS = (1, 3, 5, 7)  # the frames of a sample that are compared
_SCALES = (0.85, 0.885, 0.92, 0.96, 1.0, 1.04, 1.09, 1.13, 1.18)
_REACH = 4  # cells by which a picture as a whole may be shifted
_DETAIL_SCALE = 48.0  # of maps stored in a byte
_PATCH = 7  # cells
_MEAN_OF_CHANNELS = np.full((1, 3), 1 / 3, np.float32)
_STEADY = 0.1  # as SSIM's constant, in the unit of a normalised map's energy
_WORST = 0.2
_COMMON = 3  # other training clips that show a patch make it common
_MOVES = 0.004  # widths: the mean over the picture's most moving tenth, below which nothing moves


@dataclass(frozen=True)
class Fingerprint:
    """What is kept of a clip, to be compared."""

    detail: npt.NDArray[np.int8]
    """(8, 24, 40, 2) direction and strength of edges, whatever their colours, relative to those around them."""
    colours: Pixels
    """(8, 12, 20, 3)"""
    whole: npt.NDArray[np.float16]
    """(480,) the detail of the first and the last half, in 6 x 10 cells."""
    motion: npt.NDArray[np.float16]
    """(7, 6, 10, 2) displacements right and down, beyond the camera's, in widths; zeros where nothing moves."""


@dataclass(frozen=True)
class Match:
    """Where a training clip is nearest to a clip in one part."""

    part: Literal["content", "motion"]
    training: int
    """Its index."""
    score: float
    mirrored: bool
    frame: int = 0
    """Of the clip, where it is most like..."""
    training_frame: int = 0
    """... this frame of the training clip. Both counted in the 8 that are looked at."""
    scale: float = 1.0
    """Below 1 the clip shows a part of the training clip, as large as the whole picture."""
    same_colours: float = 1.0
    """How far colours agree as they are: 1 is a copy's, also a brighter one's; a recoloured one's is lower."""

    @property
    def is_the_same_clip(self) -> bool:
        """Of a held-out clip: it repeats the training clip, rather than being laid out like it."""
        return self.part == "content" and self.score >= COPY["content"] and self.same_colours >= SAME_COLOURS


@dataclass(frozen=True)
class Nearest:
    """Of one clip. `motion` is None where nothing moves but the camera."""

    content: Match
    motion: Match | None


@dataclass(frozen=True)
class Pair:
    """A sample that is called a copy, to be shown next to its training clip."""

    sample: int
    match: Match


@dataclass(frozen=True)
class Memorisation:
    """Which samples are copies, and of what."""

    thresholds: dict[str, float]
    """A score above it is a copy's; by part."""
    num_held_out: dict[str, int]
    """Held-out clips that made the threshold. With none it is FLOOR."""
    content: npt.NDArray[np.float64]
    """(num_samples,) 1 where the content is copied, else 0."""
    motion: npt.NDArray[np.float64]
    """(num_samples,) 1, 0, or not a number where nothing moves."""
    pairs: list[Pair]
    """The highest scores first."""
    held_out_copies: list[Pair]
    """Held-out clips (their index as `sample`) that repeat a training clip: they void the held-out loss."""


def fingerprint(frames: Pixels) -> Fingerprint:
    """Of a clip, (T, H, W, 3) RGB. Clips that are compared have one size, rate and length in time.

    Raises DataError: these are no frames.
    """
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise DataError(f"A clip is uint8 (T, H, W, 3), this is {frames.dtype} {frames.shape}.")
    taken = np.linspace(0, len(frames) - 1, NUM_FRAMES).round().astype(int)
    pictures = [cv2.resize(frames[i], _PICTURE, interpolation=cv2.INTER_AREA) for i in taken]
    detail = np.stack([_detail(picture) for picture in pictures])
    colours = np.stack(
        [cv2.resize(each, (_WIDTH // 2, _HEIGHT // 2), interpolation=cv2.INTER_AREA) for each in pictures]
    )
    stored = np.clip(np.round(detail * _DETAIL_SCALE), -127, 127).astype(np.int8)
    return Fingerprint(stored, colours, _whole(detail).astype(np.float16), _motion(pictures))


def nearest(clips: Sequence[Fingerprint], training: Sequence[Fingerprint]) -> list[Nearest]:
    """For every clip the training clips that are nearest in content and in motion.

    Raises DataError: there are no training clips.
    """
    if not training:
        raise DataError("Copies are looked for among training clips, and none are given.")
    wholes = np.stack([each.whole for each in training]).astype(np.float32)
    common = wholes.sum(axis=0) / (len(training) + 4)  # what all show tells nothing apart
    wholes = _unit(wholes - common)
    moves = _unit(np.stack([each.motion.ravel() for each in training]).astype(np.float32))
    return [
        Nearest(_nearest_content(clip, training, wholes, common), _nearest_motion(clip, training, moves))
        for clip in clips
    ]


def memorised(samples: Sequence[Nearest], held_out: Sequence[Nearest]) -> Memorisation:
    """Which samples are copies, by what held-out clips reach against the same training clips."""
    thresholds, num, pairs, copies = {}, {}, [], []
    flags: dict[str, npt.NDArray[np.float64]] = {}
    for part in ("content", "motion"):
        theirs = [getattr(each, part) for each in held_out]
        # How things move may well be the same in two films: only content makes a held-out clip a copy.
        if part == "content":
            copies = [Pair(i, match) for i, match in enumerate(theirs) if match.is_the_same_clip]
            scores = [match.score for match in theirs if not match.is_the_same_clip]
        else:
            scores = [match.score for match in theirs if match is not None and match.score < COPY[part]]
        highest = float(np.quantile(scores, QUANTILE, method="higher")) if scores else 0.0
        thresholds[part], num[part] = max(highest, FLOOR[part]), len(scores)
        ours = [getattr(each, part) for each in samples]
        flags[part] = np.array([np.nan if match is None else match.score > thresholds[part] for match in ours], float)
        pairs += [Pair(i, match) for i, match in enumerate(ours) if match and match.score > thresholds[part]]
    pairs.sort(key=lambda pair: -pair.match.score)
    return Memorisation(thresholds, num, flags["content"], flags["motion"], pairs, copies)


def _detail(picture: Pixels) -> Floats:
    """(96, 160, 3) -> (24, 40, 2): the structure tensor's direction as cosine and sine of twice its angle."""
    smooth = cv2.GaussianBlur(picture.astype(np.float32), (0, 0), 1.5)
    right, down = (np.asarray(cv2.Sobel(smooth, cv2.CV_32F, *way), np.float32) for way in ((1, 0), (0, 1)))
    xx, yy, xy = _inner(right, right), _inner(down, down), _inner(right, down)
    field = np.stack([xx - yy, 2 * xy], axis=2)
    # Strength as the gradient's length rather than its square, so that one strong edge does not outweigh all.
    field /= np.sqrt(np.sqrt(_inner(field, field)) + 1e-6)[..., None]
    small = np.asarray(cv2.resize(field, (_WIDTH, _HEIGHT), interpolation=cv2.INTER_AREA), np.float32)
    energy = _inner(small, small)
    around = cv2.GaussianBlur(energy, (0, 0), 4) + 0.3 * energy.mean() + 1e-3
    return np.asarray(small / np.sqrt(around)[..., None], np.float32)


def _whole(detail: Floats) -> Floats:
    """(8, 24, 40, 2) -> (480,): edges along four directions in 6 x 10 cells, of both halves."""
    signed = np.concatenate([np.maximum(detail, 0), np.maximum(-detail, 0)], axis=3)
    cells = np.sqrt(signed.reshape(2, NUM_FRAMES // 2, 6, 4, 10, 4, 4).mean(axis=(1, 3, 5)))
    return np.asarray(cells.ravel(), np.float32)


def _motion(pictures: list[Pixels]) -> npt.NDArray[np.float16]:
    """The displacements between the pictures, (7, 6, 10, 2), beyond the camera's."""
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    # The mean of the channels, not luma: an exchange of channels leaves it alone. Smooth, so that a blurred copy and
    # one in a mirror have the same flow.
    greys = [cv2.GaussianBlur(cv2.transform(each, _MEAN_OF_CHANNELS), (0, 0), 2) for each in pictures]
    found = np.zeros((len(greys) - 1, 6, 10, 2), np.float32)
    for cells, (before, after) in zip(found, pairwise(greys), strict=True):
        none = np.zeros((*before.shape, 2), np.float32)
        # Also seen in a mirror, where the search for far displacements goes astray elsewhere.
        seen = flow.calc(before, after, none.copy())
        in_mirror = flow.calc(before[:, ::-1].copy(), after[:, ::-1].copy(), none)
        field = (seen + in_mirror[:, ::-1] * np.array([-1, 1], np.float32)) / (2 * _PICTURE[0])
        cells[:] = cv2.resize(field - np.median(field, axis=(0, 1)), (10, 6), interpolation=cv2.INTER_AREA)
    lengths = np.sort(np.hypot(found[..., 0], found[..., 1]).ravel())
    if lengths[-lengths.size // 10 :].mean() < _MOVES:
        found[:] = 0
    return found.astype(np.float16)


def _inner(a: Floats, b: Floats) -> Floats:
    """The sum over channels of a * b; numpy is slow at short axes."""
    return np.asarray(cv2.transform(a * b, np.ones((1, a.shape[2]), np.float32)))


def _mirrored(field: Floats) -> Floats:
    """A map (..., height, width, 2) of detail seen in a mirror."""
    return np.asarray(field[..., ::-1, :] * np.array([1, -1], np.float32))


def _unit(rows: Floats) -> Floats:
    return np.asarray(rows / (np.linalg.norm(rows, axis=-1, keepdims=True) + 1e-6), np.float32)


def _warped(maps: Floats, scale: float, down: float = 0.0, right: float = 0.0) -> Floats:
    """(N, 24, 40, C) scaled around the middle, then shifted, in cells; what it does not reach is 0."""
    num, height, width, channels = maps.shape
    matrix = np.array(
        [[scale, 0, (width - 1) / 2 * (1 - scale) + right], [0, scale, (height - 1) / 2 * (1 - scale) + down]],
        np.float32,
    )
    laid = [cv2.warpAffine(each, matrix, (width, height), flags=cv2.INTER_LINEAR) for each in maps]
    return np.stack(laid).astype(np.float32).reshape(num, height, width, channels)


def _nearest_motion(clip: Fingerprint, training: Sequence[Fingerprint], moves: Floats) -> Match | None:
    own = clip.motion.astype(np.float32)
    if not own.any():
        return None
    in_mirror = own[:, :, ::-1] * np.array([-1, 1], np.float32)
    asked = np.stack([_later(each, by).ravel() for each in (own, in_mirror) for by in (0, -1, 1)])
    cosines = _unit(asked) @ moves.T
    way, index = divmod(int(cosines.argmax()), len(training))
    return Match("motion", index, float(cosines[way, index]), way >= 3)


def _later(motion: Floats, by: int) -> Floats:
    moved = np.zeros_like(motion)
    moved[max(by, 0) : len(motion) + min(by, 0)] = motion[max(-by, 0) : len(motion) + min(-by, 0)]
    return moved


def _nearest_content(clip: Fingerprint, training: Sequence[Fingerprint], wholes: Floats, common: Floats) -> Match:
    own = clip.detail.astype(np.float32) / _DETAIL_SCALE
    both = (own, _mirrored(own))
    asked = np.stack([_whole(_warped(each, *place)) for each in both for place in _placements()])
    near = (_unit(asked - common) @ wholes.T).max(axis=0)
    shortlist = np.argsort(-near, kind="stable")[:NUM_SHORTLISTED]
    theirs = np.stack([training[i].detail for i in shortlist]).astype(np.float32) / _DETAIL_SCALE
    found = [_compared(place, both, theirs[n]) for n, place in enumerate(_aligned(both, theirs))]
    best = Match("content", int(shortlist[0]), 0.0, False)
    for n, (index, (place, likeness, detail)) in enumerate(zip(shortlist, found, strict=True)):
        others = np.sort([other[1] for k, other in enumerate(found) if k != n], axis=0)
        shown = np.clip(others[-_COMMON], 0, 1) if len(others) >= _COMMON else np.zeros_like(likeness)
        turned, same = _colour_agreement(clip, training[index], place)
        score = _worst(likeness, detail * ((1 - shown) ** 2 + 0.02)) * turned
        if score > best.score:
            at = int(likeness.mean(axis=(1, 2)).argmax())
            frames = (_KEYS[at], place.frames[at])
            best = Match("content", int(index), score, place.mirrored, *frames, place.scale, same)
    return best


@cache
def _placements() -> tuple[tuple[float, float, float], ...]:
    """(scale, down, right) in which the shortlist is made: whole, smaller and larger, in the middle and at corners."""
    placements = [(1.0, 0.0, 0.0)]
    for scale in (0.87, 0.95, 1.06, 1.15):
        down, right = abs(1 - scale) * _HEIGHT / 2, abs(1 - scale) * _WIDTH / 2
        placements.append((scale, 0.0, 0.0))
        if abs(1 - scale) > 0.1:
            placements += [(scale, y * down, x * right) for y, x in product((-1, 1), (-1, 1))]
    return tuple(placements)


@cache
def _courses() -> npt.NDArray[np.intp]:
    """(13, 4): which frames of a training clip the four of a sample may be: earlier or later, or one that is held."""
    keys = np.array(_KEYS)
    shifted = [np.clip(keys + by, 0, NUM_FRAMES - 1) for by in (0, -1, 1, -2, 2)]
    return np.array(shifted + [np.full(len(keys), frame) for frame in range(NUM_FRAMES)])


@dataclass(frozen=True)
class _Place:
    """How a sample lies on a training clip: one scale, and for each of the four frames its frame and shift."""

    mirrored: bool
    scale: float
    frames: tuple[int, ...]
    shifts: tuple[tuple[float, float], ...]
    """(down, right) in cells."""


def _aligned(both: tuple[Floats, Floats], theirs: Floats) -> list[_Place]:
    """Where each training clip (K, 8, 24, 40, 2) fits best. One product tells all shifts of all frames."""
    num, side = len(theirs), 2 * _REACH + 1
    flat = _unit(theirs.reshape(num * NUM_FRAMES, -1))
    best = np.full(num, -np.inf)
    places: list[_Place | None] = [None] * num
    for mirrored, scale in product((False, True), _SCALES):
        warped = _warped(both[mirrored][list(_KEYS)], scale)
        shifted = _unit(_all_shifts(warped).reshape(len(_KEYS) * side * side, -1))
        fits = (shifted @ flat.T).reshape(len(_KEYS), side, side, num, NUM_FRAMES)
        tops = fits.max(axis=(1, 2))  # (4, K, 8)
        courses = tops[np.arange(len(_KEYS))[:, None], :, _courses().T].mean(axis=0)  # (13, K)
        for n in np.flatnonzero(courses.max(axis=0) > best):
            best[n] = courses[:, n].max()
            frames = _courses()[courses[:, n].argmax()]
            shifts = tuple(_peak(fits[k, :, :, n, frame]) for k, frame in enumerate(frames))
            places[n] = _Place(mirrored, scale, tuple(frames.tolist()), shifts)
    return [place for place in places if place is not None]


def _all_shifts(maps: Floats) -> Floats:
    """(N, 24, 40, 2) -> (N, 9, 9, 24, 40, 2), each shifted by -4 to 4 cells down and right."""
    padded = np.pad(maps, ((0, 0), (_REACH, _REACH), (_REACH, _REACH), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (_HEIGHT, _WIDTH), axis=(1, 2))
    # A window that begins farther up and left shows the map farther down and right.
    return np.asarray(np.moveaxis(windows[:, ::-1, ::-1], 3, -1))


def _peak(fits: Floats) -> tuple[float, float]:
    """(9, 9) -> the shift (down, right) that fits best, between cells by a parabola."""
    y, x = divmod(int(fits.argmax()), fits.shape[1])
    return y - _REACH + _between(fits[:, x], y), x - _REACH + _between(fits[y], x)


def _between(row: Floats, top: int) -> float:
    if not 0 < top < len(row) - 1:
        return 0.0
    before, middle, after = (float(each) for each in row[top - 1 : top + 2])
    bend = before - 2 * middle + after
    return 0.0 if bend >= 0 else min(max(0.5 * (before - after) / bend, -0.5), 0.5)


def _compared(place: _Place, both: tuple[Floats, Floats], theirs: Floats) -> tuple[_Place, Floats, Floats]:
    """Likeness and detail of every patch, (4, rows, columns) each, in the sample's own orientation."""
    likeness, detail = [], []
    for key, frame, shift in zip(_KEYS, place.frames, place.shifts, strict=True):
        own = _warped(both[place.mirrored][[key]], place.scale, *shift)[0]
        reached = _warped(np.ones((1, _HEIGHT, _WIDTH, 1), np.float32), place.scale, *shift)[0, ..., 0]
        like, much = _patches(own, theirs[frame])
        likeness.append(like)
        detail.append(much * (_patch_means(reached) > 0.95))
    way = -1 if place.mirrored else 1
    return place, np.stack(likeness)[..., ::way], np.stack(detail)[..., ::way]


def _patches(own: Floats, theirs: Floats) -> tuple[Floats, Floats]:
    """Zero-mean normalised cross-correlation of patches, at the best of nine shifts by a cell; and their detail."""
    mean, their_mean = _patch_means(own), _patch_means(theirs)
    energy = _patch_means(_inner(own, own)) - _inner(mean, mean)
    their_energy = _patch_means(_inner(theirs, theirs)) - _inner(their_mean, their_mean)
    best = np.full(energy.shape, -1, np.float32)
    padded = cv2.copyMakeBorder(own, 1, 1, 1, 1, cv2.BORDER_REPLICATE)
    for y, x in product(range(3), range(3)):
        moved = np.asarray(padded[y : y + _HEIGHT, x : x + _WIDTH], np.float32).copy()
        shared = _patch_means(_inner(moved, theirs)) - _inner(_patch_means(moved), their_mean)
        best = np.maximum(best, shared)
    likeness = (best + _STEADY) / np.sqrt((energy + _STEADY) * (their_energy + _STEADY))
    return np.minimum(likeness, 1), np.maximum(energy, their_energy)


def _patch_means(field: Floats) -> Floats:
    """(24, 40) or (24, 40, C) -> (9, 17, ...): means of 7 x 7 cells, every other one."""
    rim = _PATCH // 2
    return np.asarray(cv2.blur(field, (_PATCH, _PATCH), borderType=cv2.BORDER_REFLECT)[rim:-rim:2, rim:-rim:2])


def _worst(likeness: Floats, weights: Floats) -> float:
    """The likeness that all but the worst fifth of the picture, by weight, reach; 0 where there is nothing to see."""
    order = np.argsort(likeness, axis=None)
    total = np.cumsum(weights.ravel()[order], dtype=np.float64)
    if total[-1] <= 1e-6:
        return 0.0
    return max(float(likeness.ravel()[order[np.searchsorted(total, _WORST * total[-1])]]), 0.0)


def _colour_agreement(clip: Fingerprint, training: Fingerprint, place: _Place) -> tuple[float, float]:
    """How far colours differ from each other in the one as in the other, whichever way they are turned, and as they
    are: each up to 1.

    A change of hue is a rotation of all colours; another film on the set has other colours in some places only.
    """
    agreements, as_they_are = [], []
    for key, frame, (down, right) in zip(_KEYS, place.frames, place.shifts, strict=True):
        own = clip.colours[key].astype(np.float32)[:, :: -1 if place.mirrored else 1]
        laid = _warped(
            np.dstack([own, np.full(own.shape[:2], 255, np.float32)])[None], place.scale, down / 2, right / 2
        )[0]
        inside = laid[..., 3] > 250
        a, b = laid[inside][:, :3], training.colours[frame][inside].astype(np.float32)
        a, b = a - a.mean(axis=0), b - b.mean(axis=0)
        together, spread = a.T @ b, np.sqrt(((a**2).sum() + 1.0) * ((b**2).sum() + 1.0))
        agreements.append((np.linalg.svd(together, compute_uv=False).sum() + 1.0) / spread)
        as_they_are.append((np.trace(together) + 1.0) / spread)
    return min(float(np.mean(agreements)), 1.0), min(float(np.mean(as_they_are)), 1.0)
