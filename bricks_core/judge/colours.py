"""The names of colours, as an eye would give them; few enough for a small model to learn."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
Places = npt.NDArray[np.bool_]

NAMES = (
    "black", "dark grey", "grey", "white", "dark red", "red", "pink", "brown", "orange", "beige", "dark yellow",
    "yellow", "dark green", "green", "light green", "turquoise", "dark blue", "blue", "light blue", "purple",
)  # fmt: skip
_PLACE = {name: place for place, name in enumerate(NAMES)}

NEAR: dict[str, tuple[str, ...]] = {
    "black": ("dark grey",),
    "dark grey": ("grey", "black"),
    "grey": ("dark grey",),
    "white": ("grey",),
    "dark red": ("red",),
    "red": ("dark red",),
    "dark yellow": ("yellow",),
    "yellow": ("dark yellow",),
    "dark green": ("green",),
    "green": ("dark green",),
    "light green": ("green",),
    "dark blue": ("blue",),
    "blue": ("dark blue",),
    "light blue": ("blue",),
}
"""What a colour is measured as, too, where it is a little darker than its name, as in the shade; or, of what is dark
already, lighter. Other hues are no neighbours: brown hair and orange bricks are in every second picture."""
IN_LIGHT: dict[str, dict[str, tuple[str, ...]]] = {
    "day": {},
    "mist": {},
    "sunset": {"white": ("beige", "brown"), "grey": ("brown",), "yellow": ("orange",)},
    "night": {"white": ("light blue", "blue", "dark blue"), "grey": ("dark blue",), "orange": ("brown",)},
}
"""What a thing of a colour is measured as, too, where the light has a colour: yellow at sunset is orange."""
SKIES: dict[str, tuple[str, ...]] = {
    "day": ("light blue", "blue", "turquoise", "white"),
    "mist": ("grey", "white"),
    "sunset": ("orange", "red", "pink", "beige", "yellow", "purple"),
    "night": ("dark blue", "black", "dark grey"),
}
"""What a sky is measured as in a light."""


class Share(NamedTuple):
    """A colour and the share of an area that has it."""

    name: str
    share: float


def named(bgr: Pixels) -> Pixels:
    """(height, width, 3) -> (height, width): each pixel's place in NAMES."""
    hue, saturation, value = (plane.astype(np.int32) for plane in cv2.split(cv2.cvtColor(bgr, cv2.COLOR_BGR2HSV)))
    degrees = hue * 2
    chroma = saturation * value // 255
    found = np.full(hue.shape, _PLACE["red"], np.uint8)

    def paint(name: str, where: npt.NDArray[np.bool_]) -> None:
        found[where] = _PLACE[name]

    paint("orange", (degrees >= 14) & (degrees < 42))
    paint("yellow", (degrees >= 42) & (degrees < 70))
    paint("green", (degrees >= 70) & (degrees < 160))
    paint("turquoise", (degrees >= 160) & (degrees < 188))
    paint("blue", (degrees >= 188) & (degrees < 258))
    paint("purple", (degrees >= 258) & (degrees < 315))
    paint("pink", (degrees >= 315) & (degrees < 346))
    reds, oranges = found == _PLACE["red"], found == _PLACE["orange"]
    yellows, greens, blues = found == _PLACE["yellow"], found == _PLACE["green"], found == _PLACE["blue"]
    paint("dark red", reds & (value < 110))
    paint("pink", reds & (value > 190) & (saturation < 125))
    paint("brown", oranges & ((value < 125) | ((value < 175) & (saturation < 165))))
    paint("beige", (oranges | yellows) & (value >= 165) & (saturation < 105))
    paint("dark yellow", yellows & (value < 140))
    paint("dark green", greens & (value < 95))
    paint("light green", greens & (value > 190) & (saturation < 120))
    paint("dark blue", blues & (value < 115))
    paint("light blue", blues & (value > 165) & (saturation < 150))
    # Too little colour to be called one: more is needed where it is dark, since noise has colour too.
    pale = (saturation < 38) | (chroma < 16)
    paint("grey", pale)
    paint("white", pale & (value >= 192))
    paint("dark grey", pale & (value < 92))
    paint("black", value < 34)
    return found


def shares(names: Pixels, where: Places | None = None) -> list[Share]:
    """The colours of an area, the largest first."""
    flat = names[where] if where is not None else names.reshape(-1)
    if not flat.size:
        return []
    counts = np.bincount(flat, minlength=len(NAMES)) / flat.size
    return [Share(NAMES[place], float(counts[place])) for place in np.argsort(-counts, kind="stable") if counts[place]]


def hue(name: str) -> str:
    """The name without its shade; orange in the shade is brown."""
    plain = name.removeprefix("dark ").removeprefix("light ")
    return "brown" if plain == "orange" else plain
