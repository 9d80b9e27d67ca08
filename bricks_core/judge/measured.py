"""Plain sentences from what can be measured: colours, light, what moves, how many, where to and how fast.

No network and no model: it does not know what a thing is, and calls it a thing. Every word comes from a small, fixed
vocabulary, so that a small model can learn to follow it. The same clip gives the same words.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from bricks_core.judge.colours import NAMES, named, shares
from bricks_core.judge.pictures import Seen
from bricks_core.video.motion import Motion

Pixels = npt.NDArray[np.uint8]
Places = npt.NDArray[np.bool_]

AREA_PX = 160 * 90
LEVELS = 30
"""A pixel this far from the clip's usual picture (in its most differing channel) is where something moves."""
LEAST_SHARE = 0.002
"""Of the picture: what is smaller is noise, or an edge that shook."""
_UNSTEADY, _EVERYTHING = 0.6, 0.3
_CAMERA = 0.04
_SLOW, _FAST, _AT_ALL = 0.12, 0.45, 0.035
_DARK, _DIM = 58, 92
_STANDS_OUT = 0.03
_COUNTS = ("No", "One", "Two", "Three", "Four", "Five")


@dataclass(frozen=True)
class Scene:
    """What was measured, as far as sentences are made of it."""

    light: str
    ground: str
    background: str
    accents: tuple[str, ...]
    """Other colours that stand still, the largest first."""
    num_things: int
    """That move by themselves; 0 when the camera moves, since then all does."""
    things: tuple[str, ...]
    """Their colours, the largest first."""
    size: str
    """small, large, or nothing for in between."""
    appear: bool
    """Whether they come into the picture one after another and stay, as when something is built."""
    is_everything: bool
    """Whether much of the view changes all the time: then nobody can tell what moves, things or the camera."""
    is_steady: bool
    """Whether a large part of the view never changes, so that the camera must stand still."""
    way: str
    """How they move, as in "to the right"; nothing when they do not."""
    speed: str
    camera: str
    """Where the camera moves to; nothing when it stands."""
    place: str
    """Where the largest thing is in the middle of the clip."""


def measure(seen: Seen) -> Scene:
    """Look at a clip's small pictures."""
    pictures = {index: _smaller(picture) for index, picture in seen.small.items()}
    stack = _evenly_lit(np.stack(list(pictures.values())))
    middle = pictures[min(pictures, key=lambda index: abs(index - (max(pictures) + 1) // 2))]
    motion = seen.motion
    camera = _way(motion.camera_x, motion.camera_y, stack.shape[1] / stack.shape[2], _CAMERA)
    usual = middle if camera else np.median(stack, axis=0).astype(np.uint8)
    names = _lit(named(usual))
    ground, background = _ground(names), _background(names)
    movers = _Movers(np.zeros(usual.shape[:2], bool)) if camera else _movers(stack, middle, usual)
    is_steady = not camera and bool(movers.ever.mean() <= _UNSTEADY)
    still = ~movers.ever if is_steady else np.ones_like(movers.ever)
    accents = [each.name for each in shares(named(usual), still) if each.share >= _STANDS_OUT]
    return Scene(
        light=_light(float(stack.mean())),
        ground=ground,
        background=background,
        accents=_colours(accents, without={ground, background}, most=3),
        num_things=movers.num,
        things=tuple(movers.colours[:2]),
        size=movers.size,
        appear=movers.appear,
        is_everything=not camera and not is_steady and movers.share > _EVERYTHING,
        is_steady=is_steady,
        way=_movement(motion, stack.shape[1] / stack.shape[2]),
        speed=_speed(motion, stack.shape[1] / stack.shape[2]),
        camera=camera,
        place=movers.place,
    )


def video_sentences(scene: Scene) -> str:
    """A clip's caption; nothing when nothing moves."""
    if not scene.camera and not scene.num_things and not scene.is_everything:
        return ""
    sentences = [_setting(scene), _accents(scene)]
    if scene.is_everything:
        sentences.append(f"Nearly everything in view moves{_spaced(scene.speed)}{_spaced(scene.way)}.")
    elif scene.appear:
        sentences.append(f"{_capital(_joined(scene.things))} things appear one after another.")
    elif scene.num_things:
        verb = "moves" if scene.num_things == 1 else "move"
        sentences.append(f"{_things(scene)} {verb}{_spaced(scene.speed)}{_spaced(scene.way or 'a little in place')}.")
    if scene.camera:
        sentences.append(f"The camera moves {scene.camera}.")
    elif scene.is_steady:
        sentences.append("The camera stands still.")
    return " ".join(filter(None, sentences))


def image_sentences(scene: Scene) -> str:
    """The caption of a clip's middle image: as of the clip, without movement."""
    sentences = [_setting(scene), _accents(scene)]
    if scene.is_everything:
        pass
    elif scene.appear:
        sentences.append(f"{_capital(_joined(scene.things))} things are in the middle.")
    elif scene.num_things == 1:
        sentences.append(f"{_things(scene)} is {scene.place}.")
    elif scene.num_things:
        sentences.append(f"{_things(scene)} can be seen.")
    return " ".join(filter(None, sentences))


def _setting(scene: Scene) -> str:
    if scene.ground == scene.background:
        return f"A {scene.light} scene, {scene.ground} from top to bottom."
    article = "an" if scene.background[0] in "aeiou" else "a"
    return f"A {scene.light} scene on {scene.ground} ground in front of {article} {scene.background} background."


def _accents(scene: Scene) -> str:
    if not scene.accents:
        return ""
    return f"{_capital(_joined(scene.accents))} {'stands' if len(scene.accents) == 1 else 'stand'} out."


def _things(scene: Scene) -> str:
    count = _COUNTS[scene.num_things] if scene.num_things < len(_COUNTS) else "Many"
    words = [count, scene.size, _joined(scene.things), "thing" if scene.num_things == 1 else "things"]
    return " ".join(filter(None, words))


@dataclass
class _Movers:
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


@dataclass(frozen=True)
class _Part:
    """A connected area of a picture in which something is that usually is not."""

    where: Places
    share: float
    x: float
    """Of its centre, from 0 to 1."""


def _evenly_lit(stack: Pixels) -> Pixels:
    """Without the pictures of a fade at either end."""
    light = stack.mean(axis=(1, 2, 3)) + 1
    return stack[(light > 0.75 * np.median(light)) & (light < 1.33 * np.median(light))]


def _movers(stack: Pixels, middle: Pixels, usual: Pixels) -> _Movers:
    """Find what differs from the clip's usual picture, in every picture."""
    usual_names = named(usual)
    ever = np.zeros(usual.shape[:2], bool)
    counts, sizes, changed, votes = [], [], [], np.zeros(len(NAMES))
    for picture in stack:
        differs = _differs(picture, usual)
        ever |= differs
        changed.append(float(differs.mean()))
        names = named(picture)
        parts = _parts(differs, names, usual_names)
        if parts:
            counts.append(len(parts))
            sizes.append(max(part.share for part in parts))
            for part in parts:
                votes += np.bincount(names[part.where], minlength=len(NAMES))
    movers = _Movers(ever, share=float(np.median(changed)))
    if ever.mean() < _UNSTEADY and (grown := _grown(stack)):
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
    if min((half & whole).sum() / half.sum(), (most & whole).sum() / most.sum()) < 0.8:
        return []
    names = named(later[-1])
    # What only moved on has left a place that now looks like what is around it.
    if sum(part.share for part in _parts(whole, names, named(first))) < 0.8 * areas[2]:
        return []
    return _most(np.bincount(names[whole], minlength=len(NAMES)).astype(float))


def _most(votes: npt.NDArray[np.float64]) -> list[str]:
    """Colours with an eighth of the votes and more, the largest first; shades of one colour count as one."""
    total = votes.sum()
    found: list[str] = []
    for place in np.argsort(-votes, kind="stable"):
        if votes[place] >= total / 8 and _base(NAMES[place]) not in map(_base, found):
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


def _counted(names: Pixels) -> npt.NDArray[np.float64]:
    return np.bincount(names, minlength=len(NAMES)) / max(1, names.size)


def _place(x: float) -> str:
    return "on the left" if x < 0.36 else "on the right" if x > 0.64 else "in the middle"


def _ground(names: Pixels) -> str:
    return _main(names[-max(1, names.shape[0] // 4) :])


def _background(names: Pixels) -> str:
    return _main(names[: max(1, names.shape[0] // 4)])


def _lit(names: Pixels) -> Pixels:
    """Without the black bars of a film of another shape; all of it when most of it is black."""
    black = names == NAMES.index("black")
    rows, columns = black.mean(axis=1) < 0.98, black.mean(axis=0) < 0.98
    return names[rows][:, columns] if min(rows.mean(), columns.mean()) > 0.5 else names


def _main(names: Pixels) -> str:
    return shares(names)[0].name


def _colours(names: list[str], without: set[str], most: int) -> tuple[str, ...]:
    """Without those named, their darker and lighter kin, and the black and grey that shadows are made of."""
    kin = {_base(name) for name in without}
    return tuple(name for name in names if name not in without and _base(name) not in kin)[:most]


def _base(name: str) -> str:
    plain = name.removeprefix("dark ").removeprefix("light ")
    return "brown" if plain == "orange" else plain


def _light(mean: float) -> str:
    return "dark" if mean < _DARK else "dim" if mean < _DIM else "bright"


def _way(x: float, y: float, aspect: float, least: float) -> str:
    """A direction in words, from widths and heights per second; nothing when too slow to tell."""
    y *= aspect
    if math.hypot(x, y) < least:
        return ""
    across = "to the right" if x > 0 else "to the left"
    along = "down" if y > 0 else "up"
    if abs(x) > 2 * abs(y):
        return across
    return along if abs(y) > 2 * abs(x) else f"{along} and {across}"


def _movement(motion: Motion, aspect: float) -> str:
    if way := _way(motion.things_x, motion.things_y, aspect, max(_AT_ALL, 0.3 * _path(motion, aspect))):
        return way
    if _path(motion, aspect) < 2 * _AT_ALL:
        return ""
    return "up and down" if motion.sway_y * aspect > motion.sway_x else "back and forth"


def _speed(motion: Motion, aspect: float) -> str:
    path = _path(motion, aspect)
    if not _movement(motion, aspect):
        return ""
    return "slowly" if path < _SLOW else "quickly" if path > _FAST else ""


def _path(motion: Motion, aspect: float) -> float:
    return math.hypot(motion.sway_x, motion.sway_y * aspect)


def _smaller(picture: Pixels) -> Pixels:
    height, width = picture.shape[:2]
    scale = math.sqrt(AREA_PX / (height * width))
    size = (round(width * scale), round(height * scale))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA))


def _joined(words: tuple[str, ...]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else ""


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]


def _spaced(word: str) -> str:
    return f" {word}" if word else ""
