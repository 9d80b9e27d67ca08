"""Which claims of a prompt a sample keeps, told by measuring it; and what samples of other prompts keep of them.

A claim is kept, not kept, or cannot be told of this sample (None): the number of things where none moves or the camera
does, and anything that moves where there is a single frame. What a prompt says that moves, and does not, is not kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from bricks_core.judge.colours import SKIES, Share
from bricks_core.judge.facts import APPEAR, IN_PLACE, NUMBERS, STILL, Claim
from bricks_core.judge.measured import DARK, DIM, Scene, measure
from bricks_core.judge.pictures import see_frames

Frames = npt.NDArray[np.uint8]

MOST, SKY = 0.4, 0.3
"""Share of the lowest or highest quarter that has the colour of a ground or background, or of a sky in that light."""
SOME, SOME_MOVING = 0.02, 0.12
"""Share of the picture that a colour needs; and of what moves, where the prompt gives it to things that do."""
MARGIN = 8
"""Levels of 255 by which light may miss its word."""
LEVELS: Mapping[str, tuple[float, float]] = {
    "dark": (0, DARK),
    "dim": (DARK, DIM),
    "bright": (DIM, 255),
    "night": (0, DIM),
    "sunset": (DARK, 140),
    "day": (77, 255),
    "mist": (DIM, 255),
}
"""Mean levels of a light. By day a scene on brown ground is dim."""
_TO_AND_FRO = 0.6
"""Of the path of what moves: up to that far from its start it has moved to and fro."""
_LEAST_PATH = 0.03
"""In widths per second."""
_OPPOSITE = {"to the left": "to the right", "to the right": "to the left", "up": "down", "down": "up"}


@dataclass(frozen=True)
class Verdict:
    """A claim, and whether the sample keeps it; None where that cannot be told."""

    claim: Claim
    kept: bool | None


class Judge(Protocol):
    """Tells of each claim whether a sample keeps it: frames (T, H, W, 3) RGB uint8, at `fps`."""

    def judged(self, claims: Sequence[Claim], frames: Frames, fps: float) -> list[Verdict]: ...


class Measured:
    """The judge that needs neither a network nor weights."""

    def judged(self, claims: Sequence[Claim], frames: Frames, fps: float) -> list[Verdict]:
        """Raises DataError: see `scene_of`."""
        return verdicts(claims, scene_of(frames, fps))


def scene_of(frames: Frames, fps: float) -> Scene:
    """What is measured of a sample, (T, H, W, 3) RGB uint8.

    Raises:
        DataError: it has another shape or type, or no rate.
    """
    return measure(see_frames(frames, fps))


def verdicts(claims: Sequence[Claim], scene: Scene) -> list[Verdict]:
    """Whether this scene keeps the claims; of one that was measured before, so that many prompts can be asked of it."""
    return [Verdict(claim, _is_kept(claim, scene)) for claim in claims]


def _is_kept(claim: Claim, scene: Scene) -> bool | None:
    match claim.kind:
        case "ground":
            return _shown(claim.kept_by, scene.below) >= MOST
        case "background":
            return _shown(claim.kept_by, scene.above) >= MOST
        case "light":
            return _is_lit(claim.value, scene)
        case "colours":
            is_told_of_movers = claim.is_moving and scene.moving
            places, least = (scene.moving, SOME_MOVING) if is_told_of_movers else (scene.everywhere, SOME)
            return _shown(claim.kept_by, places) >= least
        case "direction":
            return _goes(claim.value, scene) if scene.num_frames > 1 else None
        case "count":
            return _are_so_many(claim, scene)
        case "camera":
            return _is_filmed_so(claim.value, scene) if scene.num_frames > 1 else None


def _shown(names: Iterable[str], shares: Iterable[Share]) -> float:
    wanted = set(names)
    return sum(each.share for each in shares if each.name in wanted)


def _is_lit(light: str, scene: Scene) -> bool:
    """By the mean level, and in a light that has a colour by the sky, where there is one."""
    least, most = LEVELS[light]
    if not least - MARGIN <= scene.level <= most + MARGIN:
        return False
    return light not in SKIES or _shown(SKIES[light], scene.above) >= SKY or _is_from_above(scene)


def _is_from_above(scene: Scene) -> bool:
    """Whether no horizon is to be seen: then neither is a sky, and a camera that moves looks like all things moving."""
    return scene.ground == scene.background


def _are_so_many(claim: Claim, scene: Scene) -> bool | None:
    num = scene.num_things if claim.is_of_parts else scene.num_side_by_side
    if not num or (claim.is_of_parts and scene.appear):
        return None
    return num == NUMBERS.index(claim.value) + 1 if claim.value in NUMBERS else num > len(NUMBERS)


def _is_filmed_so(way: str, scene: Scene) -> bool | None:
    if way != STILL:
        return _is_alike(way, scene.camera)
    return None if scene.camera and _is_from_above(scene) else not scene.camera


def _goes(way: str, scene: Scene) -> bool:
    """Whether things move so. A way an eighth of a turn off is the same one."""
    if way == APPEAR:
        return scene.comes_to_stay
    if way in (IN_PLACE, "up and down", "back and forth"):
        return _goes_to_and_fro(way, scene)
    if scene.camera and _is_from_above(scene) and _is_alike(way, _OPPOSITE.get(scene.camera, "")):
        return True
    return _is_alike(way, scene.way)


def _goes_to_and_fro(way: str, scene: Scene) -> bool:
    motion = scene.motion
    path_x, path_y = motion.sway_x, motion.sway_y * scene.aspect
    path = math.hypot(path_x, path_y)
    if scene.camera or math.hypot(motion.things_x, motion.things_y * scene.aspect) > _TO_AND_FRO * path:
        return False
    if way == IN_PLACE:
        return scene.num_things > 0
    return path > _LEAST_PATH and (path_y > path_x) == (way == "up and down")


def _is_alike(way: str, other: str) -> bool:
    one, two = _turn(way), _turn(other)
    return one is not None and two is not None and abs((one - two + 180) % 360 - 180) <= 45


def _turn(way: str) -> float | None:
    """A way in words, such as "up and to the left", in degrees; None: nowhere."""
    x = way.endswith("right") - way.endswith("left")
    y = way.startswith("down") - way.startswith("up")
    return None if way == "up and down" or not (x or y) else math.degrees(math.atan2(y, x))
