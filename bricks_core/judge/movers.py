"""What moves in front of a still camera: where, how many, how large, of what colours; by what differs from picture to
picture."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from bricks_core.judge.colours import NAMES, Share, hue, named

Pixels = npt.NDArray[np.uint8]
Places = npt.NDArray[np.bool_]

UNSTEADY = 0.6
"""Share of the picture that changes at some time, up to which the camera must stand still."""
LEVELS = 30
"""A pixel this far from the clip's usual picture (in its most differing channel) is where something moves."""
LEAST_SHARE = 0.002
"""Of the picture: what is smaller is noise, or an edge that shook."""
_STAYS, _MOSTLY = 0.03, 0.42
"""Share of the picture, and of what is new in it, that has come to rest: a builder's bricks are above, a bus below."""


@dataclass
class Movers:
    """What moves in front of a still camera."""

    ever: Places
    """Where anything ever moves."""
    num: int = 0
    colours: tuple[str, ...] = ()
    size: str = ""
    place: str = ""
    share: float = 0.0
    """Of the picture, in the median picture."""
    appear: bool = False
    shares: tuple[Share, ...] = ()
    """All colours of what moves, the largest first."""
    num_side_by_side: int = 0


@dataclass(frozen=True)
class _Part:
    """A connected area of a picture in which something is that usually is not."""

    where: Places
    share: float
    x: float
    """Of its centre, from 0 to 1."""


def movers_in(stack: Pixels, middle: Pixels, usual: Pixels) -> Movers:
    """Find what differs from the clip's usual picture, in every picture."""
    usual_names = named(usual)
    ever = np.zeros(usual.shape[:2], bool)
    counts, columns, sizes, changed, votes = [], [], [], [], np.zeros(len(NAMES))
    for picture in stack:
        differs = _differs(picture, usual)
        ever |= differs
        changed.append(float(differs.mean()))
        names = named(picture)
        parts = _parts(differs, names, usual_names)
        if parts:
            counts.append(len(parts))
            columns.append(_side_by_side(parts))
            sizes.append(max(part.share for part in parts))
            for part in parts:
                votes += np.bincount(names[part.where], minlength=len(NAMES))
    movers = Movers(ever, share=float(np.median(changed)), shares=_shares(votes))
    movers.num_side_by_side = round(float(np.median(columns))) if columns else 0
    if ever.mean() < UNSTEADY and (grown := _grown(stack)):
        movers.appear, movers.num, movers.colours = True, len(grown), tuple(grown)
        return movers
    if len(counts) < len(stack) / 3:  # a passing transition, not a thing
        return movers
    movers.num = max(1, round(float(np.median(counts))))
    typical = float(np.median(sizes))
    movers.size = "small" if typical < 0.015 else "large" if typical > 0.1 else ""
    movers.colours = tuple(_most(votes))
    now = _parts(_differs(middle, usual), named(middle), usual_names)
    movers.place = _place(max(now, key=lambda part: part.share).x) if now else "in view"
    return movers


def _grown(stack: Pixels) -> list[str]:
    """The colours of what comes and stays, the largest first; nothing when things move on, or nothing comes."""
    first, *later = (stack[len(stack) * eighth // 8 - (eighth == 8)] for eighth in (1, 4, 6, 8))
    half, most, whole = (_differs(picture, first) for picture in later)
    areas = [float(each.mean()) for each in (half, most, whole)]
    if not LEAST_SHARE < areas[0] < 0.8 * areas[2] or areas[1] > 1.1 * areas[2]:
        return []
    if (half & whole).sum() < 0.8 * half.sum() or (most & whole).sum() < 0.8 * most.sum():
        return []
    names = named(later[-1])
    # What only moved on has left a place that now looks like what is around it.
    if sum(part.share for part in _parts(whole, names, named(first))) < 0.8 * areas[2]:
        return []
    return _most(np.bincount(names[whole], minlength=len(NAMES)).astype(float))


def comes_to_stay(stack: Pixels) -> bool:
    """Whether things come one after another and stay, those in the air not counted."""
    first, later, last = stack[0], stack[len(stack) * 5 // 8], stack[-1]
    new = _differs(last, first)
    at_rest = cv2.morphologyEx(
        (new & ~_differs(last, later)).astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)
    )
    area = sum(part.share for part in _parts(at_rest > 0, named(last), named(first)))
    return area >= _STAYS and area >= _MOSTLY * float(new.mean())


def _shares(votes: npt.NDArray[np.float64]) -> tuple[Share, ...]:
    """All colours that have votes, the largest first."""
    order = np.argsort(-votes, kind="stable")
    return tuple(Share(NAMES[place], float(votes[place] / votes.sum())) for place in order if votes[place])


def _most(votes: npt.NDArray[np.float64]) -> list[str]:
    """Colours with an eighth of the votes and more, the largest first; shades of one colour count as one."""
    total = votes.sum()
    found: list[str] = []
    for place in np.argsort(-votes, kind="stable"):
        if votes[place] >= total / 8 and hue(NAMES[place]) not in map(hue, found):
            found.append(NAMES[place])
    return found


def _differs(picture: Pixels, usual: Pixels) -> Places:
    """Where a picture differs from the usual one, but for exposure, noise, and shadows."""
    ratios = (picture.mean(axis=2) + 4) / (usual.mean(axis=2) + 4)
    gain = float(np.clip(np.median(ratios), 0.8, 1.25))
    expected = usual.astype(np.float32) * gain
    differs = np.abs(picture - expected).max(axis=2) > LEVELS
    # A shadow darkens all channels alike: what is left when its darkness is taken away is nothing.
    darker = np.clip(ratios / gain, 0, 1)[..., None]
    shadow = (np.abs(picture - expected * darker).max(axis=2) < LEVELS / 2) & (darker[..., 0] > 0.35)
    where = (differs & ~shadow).astype(np.uint8)
    where = cv2.morphologyEx(where, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    return np.asarray(cv2.morphologyEx(where, cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8)) > 0)


def _parts(differs: Places, names: Pixels, usual_names: Pixels) -> list[_Part]:
    """The connected areas of what differs, but for the empty places that something left."""
    count, labels, stats, centres = cv2.connectedComponentsWithStats(differs.astype(np.uint8))
    found = []
    for label in range(1, count):
        share = float(stats[label, cv2.CC_STAT_AREA]) / differs.size
        if share < LEAST_SHARE:
            continue
        where = labels == label
        around = (cv2.dilate(where.astype(np.uint8), np.ones((7, 7), np.uint8)) > 0) & ~differs
        surroundings = _counted(names[around])
        now, usually = _counted(names[where]), _counted(usual_names[where])
        if np.minimum(now, surroundings).sum() > np.minimum(usually, surroundings).sum() + 0.1:
            continue  # looks like what is around it, more than what is usually here: the thing is away
        found.append(_Part(where, share, float(centres[label][0]) / differs.shape[1]))
    return found


def _side_by_side(parts: list[_Part]) -> int:
    """How many there are when those that overlap by half of the narrower one, seen from above, count as one."""
    spans: list[tuple[int, int]] = []
    for part in sorted(parts, key=lambda each: -each.share):
        columns = np.flatnonzero(part.where.any(axis=0))
        left, right = int(columns[0]), int(columns[-1])
        for place, (start, end) in enumerate(spans):
            if min(right, end) - max(left, start) >= 0.5 * min(right - left, end - start):
                spans[place] = (min(left, start), max(right, end))
                break
        else:
            spans.append((left, right))
    return len(spans)


def _counted(names: Pixels) -> npt.NDArray[np.float64]:
    return np.bincount(names, minlength=len(NAMES)) / max(1, names.size)


def _place(x: float) -> str:
    return "on the left" if x < 0.36 else "on the right" if x > 0.64 else "in the middle"
