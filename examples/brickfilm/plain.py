"""What plays in a plain world: the toys of actors.py as round and smooth things, of the same sizes."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

from .actors import COLOURS, GLASS, INK, LAMP, Pose, limb
from .camera import Point
from .solids import Part, Rgb, Thing, ball, box, cylinder

SKIN: Rgb = (232, 180, 140)
SIDES = 16


def _smooth(*parts: Part) -> tuple[Part, ...]:
    return tuple(replace(part, smooth=True) for part in parts)


def _profile(points: list[tuple[float, float]], width: float, rgb: Rgb) -> Part:
    """A convex outline in x and z, seen from the side, as deep as `width`."""
    outline: tuple[Point, ...] = tuple((x, -width / 2, z) for x, z in points)
    return Part(outline, (0.0, width, 0.0), rgb, smooth=True)


def _hood(left: float, right: float, low: float, high: float, sharpness: float = 0.7) -> list[tuple[float, float]]:
    """Half of a flattened ellipse that stands on z = low."""
    middle, half = (left + right) / 2, (right - left) / 2
    points = []
    for i in range(13):
        angle = math.pi * i / 12
        c, s = math.cos(angle), math.sin(angle)
        x = middle + half * math.copysign(abs(c) ** sharpness, c)
        points.append((x, low + (high - low) * s**sharpness))
    return points


def block(x: float, y: float, z: float, w: int, d: int, rgb: Rgb, h: float = 1.2) -> Part:
    """A box without anything on it."""
    return replace(box(x, y, z, w, d, h, rgb), smooth=True)


@lru_cache(maxsize=128)
def figure(shirt: Rgb, trousers: Rgb, hair: Rgb, pose: Pose) -> Thing:
    """A person, about 2.7 wide and 6 high."""
    hip, shoulder = (0.0, 0.0, 2.1), (0.0, 0.0, 4.05)
    right_arm, left_arm = pose.arms or (pose.swing, -pose.swing)
    hands = []
    for x, angle in ((-1.15, right_arm), (1.15, left_arm)):
        hands.append(ball(x, -1.75 * math.sin(angle), 4.05 - 1.75 * math.cos(angle), 0.3, SKIN))
    lips = 0.16 if pose.mouth_open else 0.06
    return Thing(
        _smooth(
            limb(-0.72, 0.6, hip, 2.1, 0.6, -pose.swing * 0.8, trousers),
            limb(0.12, 0.6, hip, 2.1, 0.6, pose.swing * 0.8, trousers),
            cylinder((0.0, 0.0, 1.95), 0.78, (0.0, 0.0, 0.5), trousers, SIDES),
            cylinder((0.0, 0.0, 2.45), 0.8, (0.0, 0.0, 1.35), shirt, SIDES),
            cylinder((0.0, 0.0, 3.8), 0.62, (0.0, 0.0, 0.35), shirt, SIDES),
            limb(-1.36, 0.42, shoulder, 1.6, 0.45, right_arm, shirt),
            limb(0.94, 0.42, shoulder, 1.6, 0.45, left_arm, shirt),
            *hands,
            ball(0.0, 0.0, 4.95, 0.85, SKIN),
            box(-0.36, -0.92, 4.98, 0.16, 0.06, 0.24, INK),
            box(0.2, -0.92, 4.98, 0.16, 0.06, 0.24, INK),
            box(-0.22, -0.92, 4.6 - lips, 0.44, 0.06, 2 * lips, (150, 40, 40)),
            ball(0.0, 0.1, 5.45, 0.66, hair),
        )
    )


def _wheels(xs: tuple[float, ...], width: float, angle: float, radius: float = 0.8) -> tuple[Part, ...]:
    parts = []
    for x in xs:
        for y, hub_y in ((-width / 2 - 0.25, -width / 2 - 0.31), (width / 2 - 0.25, width / 2 + 0.25)):
            parts.append(cylinder((x, y, radius), radius, (0.0, 0.5, 0.0), COLOURS["black"], SIDES))
            parts.append(cylinder((x, hub_y, radius), 0.46, (0.0, 0.06, 0.0), (205, 205, 205), 5, angle))
    return _smooth(*parts)


def car(body: Rgb, roof: Rgb, angle: float = 0.0) -> Thing:
    """A car 6.4 long that drives towards +x, round as a beetle; `angle` turns its wheels."""
    return Thing(
        (
            *_wheels((-2.0, 2.0), 3.0, angle),
            _profile(_hood(-3.3, 3.3, 0.6, 2.5, 0.55), 2.9, body),
            _profile(_hood(-2.1, 1.6, 2.5, 3.7), 2.6, GLASS),
            _profile(_hood(-1.7, 1.1, 3.71, 4.15), 2.6, roof),
            *_smooth(box(3.0, -1.2, 1.5, 0.15, 0.5, 0.5, LAMP, glows=True)),
        )
    )


def bus(body: Rgb, roof: Rgb, angle: float = 0.0) -> Thing:
    """A bus 9 long that drives towards +x."""
    windows = [box(-3.9 + 1.6 * i, y, 2.9, 1.3, 0.05, 1.2, GLASS) for i in range(5) for y in (-1.56, 1.51)]
    return Thing(
        (
            *_wheels((-2.7, 2.7), 3.0, angle),
            _profile(
                [(-4.4, 0.7), (4.4, 0.7), (4.5, 1.2), (4.5, 3.9), (4.2, 4.6), (-4.3, 4.6), (-4.5, 4.2)], 3.0, body
            ),
            *_smooth(*windows),
            _profile(_hood(-4.2, 4.1, 4.61, 5.1, 0.4), 2.8, roof),
            *_smooth(box(4.5, -1.3, 1.6, 0.1, 0.5, 0.5, LAMP, glows=True)),
        )
    )


def boat(hull: Rgb, sail: Rgb, angle: float = 0.0) -> Thing:
    """A boat 8 long that sails towards +x; `angle` rocks it up and down a little."""
    lift = 0.12 * math.sin(angle)
    keel = [(-4.0, 1.6), (-3.7, 0.7), (-3.0, 0.2), (-1.5, 0.0), (1.5, 0.0), (3.0, 0.4), (4.3, 1.6)]
    cloth = [(0.1, 2.3), (2.9, 2.3), (2.6, 3.4), (1.9, 4.9), (0.9, 6.2), (0.1, 6.8)]
    return Thing(
        (
            _profile([(x, z + lift) for x, z in keel], 2.8, hull),
            *_smooth(box(-3.9, -1.4, 1.6 + lift, 8.0, 2.8, 0.2, COLOURS["white"])),
            *_smooth(cylinder((-0.2, 0.0, 1.8 + lift), 0.18, (0.0, 0.0, 5.2), COLOURS["brown"], 8)),
            _profile([(x, z + lift) for x, z in cloth], 0.1, sail),
            ball(-2.4, 0.0, 2.5 + lift, 0.7, COLOURS["orange"]),
        )
    )


def rocket(body: Rgb, trim: Rgb, flame: float = 0.0) -> Thing:
    """A rocket 9 high; `flame` is the length of the fire under it."""
    fins = []
    for side in (-1, 1):
        wing = ((side * 1.1, -0.2, 1.0), (side * 2.4, -0.2, -0.1), (side * 2.3, -0.2, 1.3), (side * 1.1, -0.2, 3.2))
        fins.append(Part(wing, (0.0, 0.4, 0.0), trim, smooth=True))
    radii = (1.15, 1.0, 0.8, 0.55, 0.25)
    nose = [cylinder((0, 0, 6.6 + 0.5 * i), r, (0, 0, 0.5), trim, SIDES) for i, r in enumerate(radii)]
    fire = []
    if flame > 0:
        for width, length, rgb in ((0.8, 1.0, (255, 130, 20)), (0.4, 0.6, (255, 235, 120))):
            tongue = ((-width, -width / 4, 0.6), (width, -width / 4, 0.6), (0.0, -width / 4, 0.6 - flame * length))
            fire.append(Part(tongue, (0.0, 0.1, 0.0), rgb, glows=True))
    return Thing(
        (
            *fire,
            *_smooth(
                cylinder((0, 0, 0.6), 1.0, (0, 0, 0.8), trim, SIDES),
                cylinder((0, 0, 1.4), 1.2, (0, 0, 5.2), body, SIDES),
                cylinder((0, -1.26, 5.0), 0.55, (0, 0.06, 0), GLASS, SIDES),
                *nose,
            ),
            *fins,
        )
    )


def house(wall: Rgb, roof: Rgb, width: int = 6, floors: int = 1, lit: bool = False) -> Thing:
    """A house with a gable roof; `lit` lights its windows."""
    half, height, depth = width / 2, 3.6 * floors, 4.0
    glass, parts = LAMP if lit else GLASS, []
    parts.append(box(-half, 0, 0, width, depth, height, wall))
    for floor in range(floors):
        for i in range(width // 2):
            x, is_door = -half + 0.5 + 2 * i, floor == 0 and i == width // 4
            if is_door:
                parts.append(_profile(_hood(x, x + 1.1, 0.0, 2.7, 0.4), 0.1, COLOURS["brown"]))
            else:
                parts.append(cylinder((x + 0.55, -0.06, 2.0 + 3.6 * floor), 0.75, (0.0, 0.05, 0.0), glass, SIDES))
                parts[-1] = replace(parts[-1], glows=lit)
    gable = [
        (-half - 0.4, height),
        (half + 0.4, height),
        (half * 0.6, height + half * 0.55),
        (0.0, height + half * 0.8),
    ]
    gable.append((-half * 0.6, height + half * 0.55))
    parts.append(replace(_profile(gable, depth + 0.6, roof), sweep=(0.0, depth + 0.6, 0.0)))
    parts[-1] = replace(parts[-1], outline=tuple((x, -0.3, z) for x, z in gable))
    return Thing(_smooth(*parts))


def tree(leaves: Rgb = (38, 120, 50), size: float = 1.0) -> Thing:
    """A trunk and a round crown."""
    return Thing(
        (
            *_smooth(cylinder((0, 0, 0), 0.4 * size, (0, 0, 1.6 * size), COLOURS["brown"], 8)),
            ball(-0.7 * size, 0.0, 2.6 * size, 1.3 * size, leaves),
            ball(0.8 * size, 0.0, 2.8 * size, 1.2 * size, leaves),
            ball(0.0, 0.0, 3.8 * size, 1.35 * size, leaves),
        )
    )
