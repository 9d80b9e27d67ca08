"""The set: a ground, a painted sky behind it, a light, and the studio that photographs it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .camera import Array, Camera, Point
from .looks import BRICK, Look
from .solids import STUD_SPACING, Light, Rgb, Thing, painting_order, shadow_of, strokes_of, stud_strokes

OVERSAMPLE = 3  # drawn this many times larger, then averaged
MARGIN_PX = 8  # of the drawn picture on each side, so that a nudged camera never shows an edge
SKY_DISTANCE = 30.0

GROUNDS: dict[str, Rgb] = {
    "green": (72, 168, 66),
    "yellow": (238, 200, 86),
    "grey": (128, 130, 136),
    "white": (232, 236, 240),
    "red": (188, 62, 44),
    "blue": (28, 104, 196),
}
ALL_GROUNDS = GROUNDS | {"brown": (126, 84, 52)}
"""With those that only the plain world has, as ALL_LIGHTS."""
LIGHTS: dict[str, Light] = {
    "day": Light("day", (70, 150, 236), (186, 222, 248), (1.0, 1.0, 0.98), 1.0, (-0.46, -0.5, 0.734), 0.52, 0.42),
    "sunset": Light("sunset", (226, 84, 60), (255, 196, 96), (1.02, 0.84, 0.68), 0.8, (0.62, -0.52, 0.588), 0.5, 0.45),
    "night": Light("night", (8, 12, 40), (30, 40, 92), (0.68, 0.7, 0.84), 0.5, (-0.3, -0.45, 0.841), 0.6, 0.5),
}
ALL_LIGHTS = LIGHTS | {
    "mist": Light("mist", (172, 180, 188), (206, 210, 214), (0.92, 0.94, 0.96), 0.95, (-0.2, -0.5, 0.843), 0.7, 0.18),
}


@dataclass(frozen=True)
class Scenery:
    """What does not move. `from_above` leaves no sky in the picture; `sky_seed` places clouds and stars.

    The camera shows `zoom` times as much, and looks down by `tilt` radians more than usual.
    """

    ground: str
    light: Light
    from_above: bool = False
    sky_seed: int = 0
    road: bool = False
    zoom: float = 1.0
    tilt: float = 0.0


def _across(rows: Array, width: int) -> Image.Image:
    """(H, 3) colours of rows -> a picture of that width."""
    column = np.clip(rows, 0, 255).astype(np.uint8)[:, None]
    return Image.fromarray(column).resize((width, len(rows)), Image.Resampling.NEAREST)


@dataclass
class Studio:
    """Photographs things on one set. `size_px` is (width, height) of the picture that leaves."""

    size_px: tuple[int, int]
    scenery: Scenery
    look: Look = BRICK
    _empty: dict[Camera, Image.Image] = field(default_factory=dict)

    @property
    def canvas_px(self) -> tuple[int, int]:
        width, height = self.size_px
        return width * OVERSAMPLE + 2 * MARGIN_PX, height * OVERSAMPLE + 2 * MARGIN_PX

    def camera(self, width: float, target: Point = (0.0, 0.0, 3.2)) -> Camera:
        """The set's usual viewpoint, `width` studs wide at the target."""
        width, tilt = width * self.scenery.zoom, self.scenery.tilt
        if self.scenery.from_above:
            return Camera.facing(target, width, 40.0, 0.72 + tilt, self.canvas_px)
        return Camera.facing(target, width, 26.0, 0.17 + tilt, self.canvas_px)

    def photograph(self, camera: Camera, things: Sequence[Thing], nudge_px: tuple[int, int] = (0, 0)) -> Image.Image:
        """One picture. `nudge_px` moves the camera by thirds of a pixel (drawn pixels, at most the margin)."""
        light = self.scenery.light
        canvas = self._empty_set(camera).copy()
        self._cast_shadows(canvas, camera, things)
        draw = ImageDraw.Draw(canvas)
        if things:
            for i in painting_order([thing.bounds for thing in things], np.asarray(camera.eye)):
                for stroke in strokes_of(things[i], camera, light):
                    stroke.paint(draw)
        width, height = self.size_px
        x, y = MARGIN_PX + nudge_px[0], MARGIN_PX + nudge_px[1]
        return canvas.reduce(OVERSAMPLE, box=(x, y, x + width * OVERSAMPLE, y + height * OVERSAMPLE))

    def _cast_shadows(self, canvas: Image.Image, camera: Camera, things: Sequence[Thing]) -> None:
        """Darken the ground; the mask is drawn small, which is quick and leaves the edges soft."""
        small = (canvas.width // OVERSAMPLE, canvas.height // OVERSAMPLE)
        mask = Image.new("L", small)
        draw = ImageDraw.Draw(mask)
        strength = round(255 * self.scenery.light.shadow)
        for thing in things:
            for polygon in shadow_of(thing, camera, self.scenery.light):
                draw.polygon([c / OVERSAMPLE for c in polygon], fill=strength)
        box = mask.getbbox()
        if box is None:
            return
        left, top, right, bottom = (max(0, box[0] - 3), max(0, box[1] - 3), box[2] + 3, box[3] + 3)
        soft = mask.crop((left, top, right, bottom)).filter(ImageFilter.BoxBlur(1))
        soft = soft.resize((soft.width * OVERSAMPLE, soft.height * OVERSAMPLE), Image.Resampling.BILINEAR)
        canvas.paste((12, 10, 30), (left * OVERSAMPLE, top * OVERSAMPLE), soft)

    def _empty_set(self, camera: Camera) -> Image.Image:
        if camera not in self._empty:
            if len(self._empty) > 1:  # a camera that travels needs each view once
                self._empty.clear()
            self._empty[camera] = self._draw_empty_set(camera)
        return self._empty[camera]

    def _horizon_px(self, camera: Camera) -> int:
        if self.scenery.from_above:
            return 0
        pixels, _ = camera.project(np.array([[camera.eye[0], SKY_DISTANCE, 0.0]]))
        return max(0, min(self.canvas_px[1], round(float(pixels[0, 1]))))

    def _draw_empty_set(self, camera: Camera) -> Image.Image:
        width, height = self.canvas_px
        horizon, light = self._horizon_px(camera), self.scenery.light
        t = np.linspace(0.0, 1.0, max(1, horizon))[:, None]
        sky = np.array(light.sky_top) * (1 - t) + np.array(light.sky_low) * t
        ground_rgb = ALL_GROUNDS[self.scenery.ground]
        flat = np.array(light.on(ground_rgb, (0, 0, 1), 0.93 * light.on_ground))
        nearness = np.linspace(0.0, 1.0, height - horizon)[:, None]
        ground = flat * (1.0 - 0.1 * nearness)
        canvas = Image.new("RGB", self.canvas_px)
        if horizon:
            canvas.paste(_across(sky, width), (0, 0))
            self._paint_sky(canvas, camera)
        canvas.paste(_across(ground, width), (0, horizon))
        draw = ImageDraw.Draw(canvas)
        if self.scenery.road:
            self._paint_road(draw, camera)
        if self.look.studs:
            for stroke in stud_strokes(self._ground_studs(camera), ground_rgb, camera, light, light.on_ground):
                stroke.paint(draw)
        return canvas

    def _ground_studs(self, camera: Camera) -> Array:
        """The studs of the ground that the camera sees, far ones first."""
        middle = STUD_SPACING * round(camera.eye[0] / STUD_SPACING)
        far, near = (19, -22) if self.scenery.from_above else (21, -14)
        xs, ys = np.arange(middle - 34, middle + 35, STUD_SPACING), np.arange(far, near, -STUD_SPACING)
        grid = np.stack(np.meshgrid(xs, ys), axis=-1).reshape(-1, 2)
        if self.scenery.road:
            grid = grid[(grid[:, 1] < -5.0) | (grid[:, 1] > 4.0)]
        points = np.concatenate([grid, np.zeros((len(grid), 1))], axis=1)
        in_front = (points - np.asarray(camera.eye))[:, 1] > 3.0
        points = points[in_front]
        pixels, _ = camera.project(points)
        inside = (pixels > -20).all(axis=1) & (pixels < np.array(self.canvas_px) + 20).all(axis=1)
        return points[inside]

    def _paint_road(self, draw: ImageDraw.ImageDraw, camera: Camera) -> None:
        """A strip of asphalt along x with a dashed line."""
        light, ex = self.scenery.light, round(camera.eye[0])
        stripes: list[tuple[float, float, float, float, Rgb]] = [(ex - 40, -5.0, ex + 40, 4.0, (84, 86, 94))]
        stripes += [(4.0 * i, -3.3, 4.0 * i + 2.0, -2.8, (240, 240, 236)) for i in range(ex // 4 - 9, ex // 4 + 10)]
        for x0, y0, x1, y1, rgb in stripes:
            pixels, _ = camera.project(np.array([[x0, y0, 0], [x1, y0, 0], [x1, y1, 0], [x0, y1, 0]], dtype=float))
            draw.polygon(tuple(pixels.ravel().tolist()), fill=light.on(rgb, (0, 0, 1), 0.93 * light.on_ground))

    def _paint_sky(self, canvas: Image.Image, camera: Camera) -> None:
        """Sun or moon, clouds or stars, on a sheet of paper behind the set: they pass slowly when the camera moves."""
        rng, name = random.Random(self.scenery.sky_seed), self.scenery.light.name
        draw = ImageDraw.Draw(canvas)

        def at(x: float, z: float) -> tuple[float, float, float]:
            pixels, depth = camera.project(np.array([[x, SKY_DISTANCE, z]]))
            return float(pixels[0, 0]), float(pixels[0, 1]), camera.focal_px / float(depth[0])

        def disc(x: float, z: float, radius: float, rgb: Rgb) -> None:
            px, py, scale = at(x, z)
            r = radius * scale
            draw.ellipse((px - r, py - r, px + r, py + r), fill=rgb)

        side = rng.choice((-1, 1))
        if name == "night":
            for _ in range(70):
                disc(rng.uniform(-45, 45), rng.uniform(1, 16), rng.choice((0.08, 0.12, 0.16)), (226, 228, 240))
            disc(side * 12.0, 8.4, 1.9, (244, 240, 214))
            disc(side * 12.0 - 0.8, 8.8, 1.7, (18, 22, 60))
        elif name == "mist":
            disc(side * 10.0, 7.5, 2.2, (232, 232, 226))
        elif name == "sunset":
            disc(side * 8.0, 3.0, 3.6, (255, 236, 150))
        else:
            disc(side * 15.0, 8.5, 1.8, (255, 240, 150))
            for i in range(7):
                x, z = -42 + 14 * i + rng.uniform(-3, 3), rng.uniform(5.5, 8.5)
                for _ in range(4):
                    disc(x + rng.uniform(-2.4, 2.4), z + rng.uniform(-0.3, 0.6), rng.uniform(0.8, 1.4), (250, 252, 255))


class Lens:
    """What the stills camera adds: vignette, exposure that flickers, grain. Pictures in, (H, W, 3) uint8 out."""

    def __init__(self, size_px: tuple[int, int], seed: int, grain: float):
        width, height = size_px
        generator = np.random.default_rng(seed)
        y, x = np.mgrid[-1.0 : 1.0 : height * 1j, -1.0 : 1.0 : width * 1j]
        self.vignette = (1.03 - 0.09 * (x * x + y * y))[..., None].astype(np.float32)
        self.grains = [generator.normal(0.5, grain, (height, width, 1)).astype(np.float32) for _ in range(6)]

    def develop(self, picture: Image.Image, exposure: float, film: int) -> np.ndarray:
        """`film` picks the grain; `exposure` multiplies the light."""
        shown = np.asarray(picture, dtype=np.float32) * (self.vignette * np.float32(exposure))
        return np.clip(shown + self.grains[film % len(self.grains)], 0, 255).astype(np.uint8)


def blend(a: np.ndarray, b: np.ndarray, share: float) -> np.ndarray:
    """(1 - share) of a and share of b."""
    return np.asarray(Image.blend(Image.fromarray(a), Image.fromarray(b), share))
