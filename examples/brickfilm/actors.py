"""The toys of a brick film: figures, cars, buses, boats, rockets, houses, trees.

Each is a Thing that stands on z = 0, facing -y.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from .camera import Point
from .solids import Part, Rgb, Thing, box, brick, cylinder

COLOURS: dict[str, Rgb] = {
    "red": (205, 32, 28),
    "yellow": (250, 205, 30),
    "blue": (20, 88, 190),
    "green": (50, 150, 62),
    "white": (240, 240, 236),
    "orange": (245, 125, 25),
    "grey": (140, 144, 150),
    "black": (44, 46, 52),
    "brown": (110, 68, 42),
}
SKIN, INK, GLASS, LAMP = COLOURS["yellow"], (34, 24, 22), (120, 190, 225), (255, 236, 150)


@dataclass(frozen=True)
class Pose:
    """What the animator sets: legs and arms swing, `arms` (right, left) lifts them instead, in radians; the mouth."""

    swing: float = 0.0
    arms: tuple[float, float] | None = None
    mouth_open: bool = False


def limb(x: float, width: float, joint: Point, length: float, depth: float, angle: float, rgb: Rgb) -> Part:
    """A limb hanging from a joint (its x is not used) and swung forwards by `angle` about the x axis."""
    _, y0, z0 = joint
    c, s = math.cos(angle), math.sin(angle)
    profile = ((-depth / 2, 0.0), (depth / 2, 0.0), (depth / 2, -length), (-depth * 0.62, -length))
    outline = tuple((x, y0 + y * c + z * s, z0 - y * s + z * c) for y, z in profile)
    reach = ((x, y0 - 0.55, z0 - length), (x + width, y0 + 0.55, z0))
    return Part(outline, (width, 0.0, 0.0), rgb, box=reach)


@lru_cache(maxsize=64)  # a walk cycle has six poses: their faces and normals are worked out once
def figure(shirt: Rgb, trousers: Rgb, hair: Rgb, pose: Pose) -> Thing:
    """A toy person, 2.9 studs wide and 6 high."""
    hip, shoulder = (0.0, 0.0, 1.9), (0.0, 0.0, 4.15)
    right_arm, left_arm = pose.arms or (pose.swing, -pose.swing)
    hands = []
    for x, angle in ((-1.38, right_arm), (1.02, left_arm)):
        y, z = -1.75 * math.sin(angle), 4.15 - 1.75 * math.cos(angle)
        hands.append(box(x, y - 0.22, z - 0.22, 0.36, 0.44, 0.44, SKIN))
    torso = Part(((-1.0, -0.5, 2.2), (1.0, -0.5, 2.2), (0.84, -0.5, 4.2), (-0.84, -0.5, 4.2)), (0.0, 1.0, 0.0), shirt)
    chin = 4.46 if pose.mouth_open else 4.62
    lips = ((-0.3, -0.86, 4.76), (0.3, -0.86, 4.76), (0.16, -0.86, chin), (-0.16, -0.86, chin))
    mouth = Part(lips, (0.0, 0.06, 0.0), (110, 20, 20))
    return Thing(
        (
            limb(-0.98, 0.93, hip, 1.9, 0.9, -pose.swing * 0.8, trousers),
            limb(0.05, 0.93, hip, 1.9, 0.9, pose.swing * 0.8, trousers),
            box(-1.0, -0.5, 1.9, 2.0, 1.0, 0.3, trousers),
            torso,
            limb(-1.45, 0.46, shoulder, 1.6, 0.62, right_arm, shirt),
            limb(1.0, 0.46, shoulder, 1.6, 0.62, left_arm, shirt),
            *hands,
            cylinder((0.0, 0.0, 4.2), 0.8, (0.0, 0.0, 1.25), SKIN),
            box(-0.4, -0.86, 4.95, 0.2, 0.06, 0.26, INK),
            box(0.2, -0.86, 4.95, 0.2, 0.06, 0.26, INK),
            mouth,
            cylinder((0.0, 0.0, 5.45), 0.88, (0.0, 0.0, 0.5), hair),
        )
    )


block = brick
"""What is built from, and slides."""


def _wheels(xs: tuple[float, ...], width: float, angle: float, radius: float = 0.8) -> list[Part]:
    parts = []
    for x in xs:
        for y, hub_y in ((-width / 2 - 0.25, -width / 2 - 0.31), (width / 2 - 0.25, width / 2 + 0.25)):
            parts.append(cylinder((x, y, radius), radius, (0.0, 0.5, 0.0), COLOURS["black"]))
            parts.append(cylinder((x, hub_y, radius), 0.46, (0.0, 0.06, 0.0), (205, 205, 205), 4, angle))
    return parts


def car(body: Rgb, roof: Rgb, angle: float = 0.0) -> Thing:
    """A car 6.4 studs long that drives towards +x; `angle` turns its wheels."""
    return Thing(
        (
            *_wheels((-2.0, 2.0), 3.0, angle),
            box(-3.2, -1.24, 0.55, 6.4, 2.48, 0.6, body),
            brick(-3.0, -1.5, 1.62, 6, 3, body, h=0.85),
            box(-1.9, -1.3, 2.68, 3.2, 2.6, 1.0, GLASS),
            *(box(x, y, 2.68, 0.3, 0.05, 1.0, body) for x in (-1.95, -0.4) for y in (-1.36, 1.31)),
            brick(-2.0, -1.5, 3.68, 3, 3, roof, h=0.4),
            box(3.0, -1.3, 1.8, 0.15, 0.5, 0.5, LAMP, glows=True),
            box(3.0, 0.8, 1.8, 0.15, 0.5, 0.5, LAMP, glows=True),
        )
    )


def bus(body: Rgb, roof: Rgb, angle: float = 0.0) -> Thing:
    """A bus 9 studs long that drives towards +x."""
    windows = [box(-4.0 + 1.65 * i, y, 2.9, 1.25, 0.05, 1.3, GLASS) for i in range(5) for y in (-1.56, 1.51)]
    return Thing(
        (
            *_wheels((-2.7, 2.7), 3.0, angle),
            box(-4.3, -1.24, 0.55, 8.6, 2.48, 1.06, COLOURS["black"]),
            box(-4.5, -1.5, 1.61, 9.0, 3.0, 3.1, body),
            *windows,
            brick(-4.5, -1.5, 4.71, 9, 3, roof, h=0.4),
            box(4.5, -1.3, 1.9, 0.1, 0.5, 0.5, LAMP, glows=True),
        )
    )


def boat(hull: Rgb, sail: Rgb, angle: float = 0.0) -> Thing:
    """A boat 8 studs long that sails towards +x; `angle` rocks it up and down a little."""
    lift = 0.12 * math.sin(angle)
    side = ((-3.4, -1.4, lift), (2.8, -1.4, lift), (4.2, -1.4, 1.5 + lift), (-4.0, -1.4, 1.5 + lift))
    mast = ((-0.2, -0.05, 2.3 + lift), (2.9, -0.05, 2.3 + lift), (-0.2, -0.05, 6.6 + lift))
    return Thing(
        (
            Part(side, (0.0, 2.8, 0.0), hull),
            box(-4.0, -1.45, 1.5 + lift, 8.0, 2.9, 0.3, COLOURS["white"]),
            brick(-3.4, -1.0, 1.8 + lift, 2, 2, COLOURS["orange"]),
            box(-0.55, -0.15, 1.8 + lift, 0.3, 0.3, 5.0, COLOURS["brown"]),
            Part(mast, (0.0, 0.12, 0.0), sail),
        )
    )


def rocket(body: Rgb, trim: Rgb, flame: float = 0.0) -> Thing:
    """A rocket 9 studs high; `flame` is the length of the fire under it."""
    fins = []
    for side in (-1, 1):
        wing = ((side * 1.2, -0.2, 1.0), (side * 2.4, -0.2, 0.0), (side * 2.4, -0.2, 1.2), (side * 1.2, -0.2, 3.0))
        fins.append(Part(wing, (0.0, 0.4, 0.0), trim))
    nose = [cylinder((0, 0, 6.8 + 0.6 * i), 1.1 - 0.3 * i, (0, 0, 0.6), trim) for i in range(3)]
    fire = []
    if flame > 0:
        cone = ((-0.8, -0.1, 0.6), (0.8, -0.1, 0.6), (0.0, -0.1, 0.6 - flame))
        core = ((-0.4, -0.2, 0.6), (0.4, -0.2, 0.6), (0.0, -0.2, 0.6 - flame * 0.6))
        fire = [
            Part(cone, (0, 0.1, 0), (255, 130, 20), glows=True),
            Part(core, (0, 0.1, 0), (255, 235, 120), glows=True),
        ]
    return Thing(
        (
            *fire,
            cylinder((0, 0, 0.6), 1.2, (0, 0, 2.2), body),
            cylinder((0, 0, 2.8), 1.2, (0, 0, 0.5), trim),
            cylinder((0, 0, 3.3), 1.2, (0, 0, 3.5), body),
            cylinder((0, -1.26, 5.2), 0.55, (0, 0.06, 0), GLASS),
            *fins,
            *nose,
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
            z, h = (0.0, 2.6) if is_door else (1.2 + 3.6 * floor, 1.5)
            parts.append(
                box(x, -0.06, z, 1.1, 0.06, h, COLOURS["brown"] if is_door else glass, glows=lit and not is_door)
            )
    gable = ((-half - 0.4, -0.3, height), (half + 0.4, -0.3, height), (0.0, -0.3, height + half * 0.9))
    parts.append(Part(gable, (0.0, depth + 0.6, 0.0), roof))
    return Thing(tuple(parts))


def tree(leaves: Rgb = (38, 120, 50), size: float = 1.0) -> Thing:
    """A trunk and three layers of leaves."""
    trunk = cylinder((0, 0, 0), 0.45 * size, (0, 0, 1.2 * size), COLOURS["brown"], 8)
    layers = [
        cylinder((0, 0, (1.2 + 1.3 * i) * size), (1.9 - 0.5 * i) * size, (0, 0, 1.3 * size), leaves, 8)
        for i in range(3)
    ]
    return Thing((trunk, *layers))
