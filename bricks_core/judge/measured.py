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

from bricks_core.judge.colours import NAMES, Share, hue, named, shares
from bricks_core.judge.movers import UNSTEADY, Movers, comes_to_stay, movers_in
from bricks_core.judge.pictures import Seen
from bricks_core.video.motion import Motion

Pixels = npt.NDArray[np.uint8]

AREA_PX = 160 * 90
_EVERYTHING = 0.3
_CAMERA = 0.04
_SLOW, _FAST, _AT_ALL = 0.12, 0.45, 0.035
DARK, DIM = 58, 92
"""Levels below which a scene is dark, or dim."""
_STANDS_OUT = 0.03
_COUNTS = ("No", "One", "Two", "Three", "Four", "Five")


@dataclass(frozen=True)
class Scene:
    """What was measured: first what sentences are made of, then the numbers behind it, which kept.py reads too."""

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
    level: float
    """Mean of all channels, of 255."""
    above: tuple[Share, ...]
    """Colours of the highest quarter of the usual picture, the largest first."""
    below: tuple[Share, ...]
    """Of the lowest quarter."""
    everywhere: tuple[Share, ...]
    """Of the usual picture."""
    moving: tuple[Share, ...]
    """Of what moves by itself."""
    num_side_by_side: int
    """Things that move, where what is above another is one with it: someone who jumps leaves two marks, not two people.
    0 when the camera moves."""
    comes_to_stay: bool
    """As `appear`, of few pictures too: most of what is new in the last picture has come to rest."""
    num_frames: int
    motion: Motion
    aspect: float
    """Height by width."""


def measure(seen: Seen) -> Scene:
    """Look at a clip's small pictures."""
    pictures = {index: _smaller(picture) for index, picture in seen.small.items()}
    stack = _evenly_lit(np.stack(list(pictures.values())))
    middle = pictures[min(pictures, key=lambda index: abs(index - (max(pictures) + 1) // 2))]
    motion, aspect = seen.motion, stack.shape[1] / stack.shape[2]
    camera = _way(motion.camera_x, motion.camera_y, aspect, _CAMERA)
    usual = middle if camera else np.median(stack, axis=0).astype(np.uint8)
    names = _lit(named(usual))
    ground, background = _ground(names), _background(names)
    movers = Movers(np.zeros(usual.shape[:2], bool)) if camera else movers_in(stack, middle, usual)
    is_steady = not camera and bool(movers.ever.mean() <= UNSTEADY)
    still = ~movers.ever if is_steady else np.ones_like(movers.ever)
    accents = [each.name for each in shares(named(usual), still) if each.share >= _STANDS_OUT]
    level = float(stack.mean())
    return Scene(
        light=_light(level),
        ground=ground,
        background=background,
        accents=_colours(accents, without={ground, background}, most=3),
        num_things=movers.num,
        things=tuple(movers.colours[:2]),
        size=movers.size,
        appear=movers.appear,
        is_everything=not camera and not is_steady and movers.share > _EVERYTHING,
        is_steady=is_steady,
        way=_movement(motion, aspect),
        speed=_speed(motion, aspect),
        camera=camera,
        place=movers.place,
        level=level,
        above=tuple(shares(_above(names))),
        below=tuple(shares(_below(names))),
        everywhere=tuple(shares(names)),
        moving=movers.shares,
        num_side_by_side=movers.num_side_by_side,
        comes_to_stay=not camera and comes_to_stay(stack),
        num_frames=len(pictures),
        motion=motion,
        aspect=aspect,
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


def _evenly_lit(stack: Pixels) -> Pixels:
    """Without the pictures of a fade at either end; all of them where none has the usual light."""
    light = stack.mean(axis=(1, 2, 3)) + 1
    even = (light > 0.75 * np.median(light)) & (light < 1.33 * np.median(light))
    return stack[even] if even.any() else stack


def _ground(names: Pixels) -> str:
    return _main(_below(names))


def _below(names: Pixels) -> Pixels:
    return names[-max(1, names.shape[0] // 4) :]


def _background(names: Pixels) -> str:
    return _main(_above(names))


def _above(names: Pixels) -> Pixels:
    return names[: max(1, names.shape[0] // 4)]


def _lit(names: Pixels) -> Pixels:
    """Without the black bars of a film of another shape; all of it when most of it is black."""
    black = names == NAMES.index("black")
    rows, columns = black.mean(axis=1) < 0.98, black.mean(axis=0) < 0.98
    return names[rows][:, columns] if min(rows.mean(), columns.mean()) > 0.5 else names


def _main(names: Pixels) -> str:
    return shares(names)[0].name


def _colours(names: list[str], without: set[str], most: int) -> tuple[str, ...]:
    """Without those named, their darker and lighter kin, and the black and grey that shadows are made of."""
    kin = {hue(name) for name in without}
    return tuple(name for name in names if name not in without and hue(name) not in kin)[:most]


def _light(mean: float) -> str:
    return "dark" if mean < DARK else "dim" if mean < DIM else "bright"


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
