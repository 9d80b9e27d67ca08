"""Convex solids, the order in which to paint them, and the strokes that paint them.

Everything on the set is a ball or a prism: a convex outline swept along a vector. A brick is a swept rectangle, a wheel
a swept polygon of twelve corners, a torso a swept trapezium. Things (a car, a figure, a brick) are rigid groups of
them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import ImageDraw

from .camera import Array, Camera, Point

Rgb = tuple[int, int, int]
BRICK_HEIGHT = 1.2
STUD_SPACING = 2
STUD_RADIUS, STUD_HEIGHT = 0.62, 0.36


@dataclass(frozen=True)
class Light:
    """One lamp far away, the rest of the room, and the colour of both.

    `sun` points towards the lamp and has length one; `tint` multiplies every colour and `on_ground` the
    ground's once more, because lamps are aimed at the actors; `shadow` in 0..1 is the darkness of shadows.
    """

    name: str
    sky_top: Rgb
    sky_low: Rgb
    tint: tuple[float, float, float]
    on_ground: float
    sun: Point
    ambient: float
    shadow: float

    def on(self, rgb: Rgb, normal: Array | Point, gain: float = 1.0) -> Rgb:
        """The colour of a matt face with this normal (Lambert's cosine law)."""
        lit = self.ambient + (1.18 - self.ambient) * max(0.0, float(np.dot(normal, self.sun)))
        return _rgb(*(c * t * lit * gain for c, t in zip(rgb, self.tint, strict=True)))


def _rgb(*channels: float) -> Rgb:
    r, g, b = (max(0, min(255, round(c))) for c in channels)
    return r, g, b


@dataclass(frozen=True)
class Part:
    """A convex prism in the coordinates of its thing. `box` replaces its true bounds when parts are put in order.

    `smooth` leaves the lines out where two faces meet. With a `radius` it is a ball, of which the prism is a hull.
    """

    outline: tuple[Point, ...]
    sweep: Point
    rgb: Rgb
    studs: tuple[Point, ...] = ()
    glows: bool = False
    box: tuple[Point, Point] | None = None
    smooth: bool = False
    radius: float = 0.0

    @cached_property
    def corners(self) -> Array:
        """(2n, 3): the outline, then the outline moved along the sweep."""
        base = np.array(self.outline)
        return np.concatenate([base, base + np.array(self.sweep)])

    @cached_property
    def bounds(self) -> tuple[Array, Array]:
        if self.box is not None:
            return np.array(self.box[0]), np.array(self.box[1])
        return self.corners.min(axis=0), self.corners.max(axis=0)

    @cached_property
    def faces(self) -> tuple[list[list[int]], Array]:
        """Every face as indices into `corners`, and the (n + 2, 3) normals that point outwards."""
        n = len(self.outline)
        indices = [list(range(n)), list(range(n, 2 * n))]
        indices += [[i, (i + 1) % n, n + (i + 1) % n, n + i] for i in range(n)]
        sweep = np.array(self.sweep)
        edges = np.roll(self.corners[:n], -1, axis=0) - self.corners[:n]
        cap = np.cross(edges[0], edges[1])
        normals = np.concatenate([[cap], [cap], np.cross(edges, sweep)])
        middles = np.stack([self.corners[i].mean(axis=0) for i in indices])
        outwards = np.sign(np.einsum("ij,ij->i", normals, middles - self.corners.mean(axis=0)))
        return indices, normals * (outwards / np.linalg.norm(normals, axis=1))[:, None]


@dataclass(frozen=True)
class Thing:
    """Parts that move together: turned by `turn` radians (seen from above, anticlockwise), then moved to `at`."""

    parts: tuple[Part, ...]
    at: Point = (0.0, 0.0, 0.0)
    turn: float = 0.0

    def moved(self, at: Point, turn: float | None = None) -> Thing:
        return replace(self, at=at, turn=self.turn if turn is None else turn)

    @cached_property
    def rotation(self) -> Array:
        c, s = math.cos(self.turn), math.sin(self.turn)
        return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])

    def placed(self, points: Array) -> Array:
        """(N, 3) in the thing's coordinates -> (N, 3) in the world's."""
        return points @ self.rotation.T + np.asarray(self.at)

    @cached_property
    def bounds(self) -> tuple[Array, Array]:
        world = self.placed(np.concatenate([part.corners for part in self.parts]))
        return world.min(axis=0), world.max(axis=0)


def box(x: float, y: float, z: float, w: float, d: float, h: float, rgb: Rgb, *, glows: bool = False) -> Part:
    """A plain box with its lowest corner at (x, y, z)."""
    outline = ((x, y, z), (x + w, y, z), (x + w, y + d, z), (x, y + d, z))
    return Part(outline, (0.0, 0.0, h), rgb, glows=glows)


def brick(x: float, y: float, z: float, w: int, d: int, rgb: Rgb, h: float = BRICK_HEIGHT) -> Part:
    """A box w wide and d deep, with a stud for every two by two of that, and one across at least."""
    across, along = max(1, w // STUD_SPACING), max(1, d // STUD_SPACING)
    xs, ys = ([(i + 0.5) * size / num for i in range(num)] for size, num in ((w, across), (d, along)))
    studs = tuple((x + i, y + j, z + h) for j in reversed(ys) for i in xs)
    return replace(box(x, y, z, w, d, h, rgb), studs=studs)


def ball(x: float, y: float, z: float, radius: float, rgb: Rgb) -> Part:
    """A ball around (x, y, z)."""
    turns = [math.pi * (i + 0.5) / 4 for i in range(8)]
    outline = tuple((x + radius * math.cos(a), y + radius * math.sin(a), z - radius / 2) for a in turns)
    reach = ((x - radius, y - radius, z - radius), (x + radius, y + radius, z + radius))
    return Part(outline, (0.0, 0.0, radius), rgb, box=reach, radius=radius)


def cylinder(centre: Point, radius: float, sweep: Point, rgb: Rgb, sides: int = 12, angle: float = 0.0) -> Part:
    """A prism of `sides` corners around an upright axis, or one along y when the sweep goes along y."""
    x, y, z = centre
    turns = [angle + 2 * math.pi * (i + 0.5) / sides for i in range(sides)]
    if sweep[2]:
        outline = tuple((x + radius * math.cos(a), y + radius * math.sin(a), z) for a in turns)
    else:
        outline = tuple((x + radius * math.cos(a), y, z + radius * math.sin(a)) for a in turns)
    return Part(outline, sweep, rgb)


def painting_order(bounds: Sequence[tuple[Array, Array]], eye: Array) -> list[int]:
    """Indices from back to front for boxes (lowest, highest corner) that do not overlap.

    A plane between two boxes with the eye on one side of it means that the box on the other side hides nothing of the
    nearer one. Where the rule goes round in a circle (boxes that do overlap), the farthest is painted first.
    """
    low, high = np.stack([b[0] for b in bounds]), np.stack([b[1] for b in bounds])
    gap = low[:, None] >= high[None] - 1e-6  # i lies wholly above j on this axis
    above = np.any(gap & (eye >= low)[:, None], axis=2)  # the eye is above too: j cannot hide i
    below = np.any(gap & (eye <= high)[None], axis=2)  # the eye is below: i cannot hide j
    cannot_hide: NDArray[np.bool_] = above.T | below  # [a, b]: a cannot hide b
    first = cannot_hide & ~cannot_hide.T  # a must come before b
    distance = np.linalg.norm((low + high) / 2 - eye, axis=1)
    left, order = np.ones(len(bounds), dtype=bool), []
    blockers = first.sum(axis=0)
    for _ in bounds:
        free = left & (blockers == 0)
        pool = np.flatnonzero(free if free.any() else left)
        pick = int(pool[distance[pool].argmax()])
        order.append(pick)
        left[pick] = False
        blockers = blockers - first[pick]
    return order


@dataclass(frozen=True)
class Stroke:
    """A polygon (pixels x0, y0, x1, y1, ...) or an ellipse (its box) in one colour."""

    is_ellipse: bool
    pixels: tuple[float, ...]
    fill: Rgb
    rim: Rgb | None = None

    def paint(self, draw: ImageDraw.ImageDraw) -> None:
        if self.is_ellipse:
            draw.ellipse(self.pixels, fill=self.fill)
        else:
            draw.polygon(self.pixels, fill=self.fill, outline=self.rim)


def stud_strokes(tops: Array, rgb: Rgb, camera: Camera, light: Light, gain: float = 1.0) -> list[Stroke]:
    """Studs standing on the points `tops` (N, 3), in that order."""
    pixels, depth = camera.project(tops)
    flat = math.sin(
        math.atan2(camera.eye[2] - float(tops[:, 2].mean()), float(depth.mean())) * 0.5 + camera.pitch * 0.5
    )
    side, top = light.on(rgb, (0, -1, 0), 0.86 * gain), light.on(rgb, (0, 0, 1), 1.1 * gain)
    strokes = []
    for (x, y), scale in zip(pixels.tolist(), (camera.focal_px / depth).tolist(), strict=True):
        rx, h = STUD_RADIUS * scale, STUD_HEIGHT * scale
        ry = rx * flat
        strokes.append(Stroke(True, (x - rx, y - ry, x + rx, y + ry), side))
        strokes.append(Stroke(False, (x - rx, y - h, x + rx, y - h, x + rx, y, x - rx, y), side))
        strokes.append(Stroke(True, (x - rx, y - h - ry, x + rx, y - h + ry), top))
    return strokes


def _ball_strokes(part: Part, centre: Array, camera: Camera, light: Light) -> list[Stroke]:
    """Discs that grow lighter towards the lamp: the light on a matt ball falls off evenly from where it faces it."""
    pixels, depth = camera.project(centre[None])
    (x, y), radius = pixels[0], part.radius * camera.focal_px / float(depth[0])
    towards = np.array([light.sun[0], -light.sun[2] * math.cos(camera.pitch)])
    strokes = []
    for share in (0.0, 0.2, 0.38, 0.55, 0.72):
        r, (cx, cy) = radius * (1 - share), (x, y) + towards * radius * share * 0.8
        normal = np.asarray(light.sun) * (0.1 + share) + np.array([0.0, -1.0, 0.0]) * (0.9 - share)
        fill = light.on(part.rgb, normal / np.linalg.norm(normal))
        strokes.append(Stroke(True, (cx - r, cy - r, cx + r, cy + r), fill))
    return strokes


def _part_strokes(part: Part, thing: Thing, camera: Camera, light: Light) -> list[Stroke]:
    world = thing.placed(part.corners)
    if part.radius:
        return _ball_strokes(part, world.mean(axis=0), camera, light)
    indices, normals = part.faces
    normals = normals @ thing.rotation.T
    eye, (pixels, _) = np.asarray(camera.eye), camera.project(world)
    strokes = []
    for index, normal in zip(indices, normals, strict=True):
        if np.dot(normal, eye - world[index[0]]) <= 0:
            continue
        fill = part.rgb if part.glows else light.on(part.rgb, normal)
        rim = fill if part.glows or part.smooth else _rgb(*(c * 0.84 for c in fill))
        strokes.append(Stroke(False, tuple(pixels[index].ravel().tolist()), fill, rim))
    if part.studs:
        strokes += stud_strokes(thing.placed(np.array(part.studs)), part.rgb, camera, light)
    return strokes


@lru_cache(maxsize=1024)  # what stands still is worked out once a scene
def strokes_of(thing: Thing, camera: Camera, light: Light) -> tuple[Stroke, ...]:
    """All strokes of a thing, back to front."""
    eye = thing.rotation.T @ (np.asarray(camera.eye) - np.asarray(thing.at))
    order = painting_order([part.bounds for part in thing.parts], eye)
    return tuple(s for i in order for s in _part_strokes(thing.parts[i], thing, camera, light))


@lru_cache(maxsize=1024)
def shadow_of(thing: Thing, camera: Camera, light: Light) -> tuple[tuple[float, ...], ...]:
    """The shadows of a thing's parts on the ground, as polygons in pixels."""
    polygons = []
    for part in thing.parts:
        world = thing.placed(part.corners)
        if part.glows or (world[:, 2] < 0).any():
            continue
        along = world[:, 2:] * np.array(light.sun) / light.sun[2]
        pixels, _ = camera.project(world - along)
        polygons.append(tuple(c for point in _hull(pixels.tolist()) for c in point))
    return tuple(polygons)


def _hull(points: Iterable[Sequence[float]]) -> list[tuple[float, float]]:
    """The convex hull, by monotone chains."""
    ordered = sorted({(float(p[0]), float(p[1])) for p in points})

    def chain(path: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
        hull: list[tuple[float, float]] = []
        for x, y in path:
            while len(hull) > 1 and (
                (hull[-1][0] - hull[-2][0]) * (y - hull[-2][1]) <= (hull[-1][1] - hull[-2][1]) * (x - hull[-2][0])
            ):
                hull.pop()
            hull.append((x, y))
        return hull[:-1]

    return chain(ordered) + chain(reversed(ordered))
