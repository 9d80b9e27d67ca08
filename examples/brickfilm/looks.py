"""How a film looks: bricks on a studded ground, animated by hand, or a plain world that is filmed as it moves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from . import actors, plain
from .actors import Pose
from .solids import Part, Rgb, Thing


class Actors(Protocol):
    """Who plays in the scenes. Both looks have all of them, about equally large, so that the scenes are the same."""

    def figure(self, shirt: Rgb, trousers: Rgb, hair: Rgb, pose: Pose) -> Thing: ...
    def car(self, body: Rgb, roof: Rgb, angle: float = 0.0) -> Thing: ...
    def bus(self, body: Rgb, roof: Rgb, angle: float = 0.0) -> Thing: ...
    def boat(self, hull: Rgb, sail: Rgb, angle: float = 0.0) -> Thing: ...
    def rocket(self, body: Rgb, trim: Rgb, flame: float = 0.0) -> Thing: ...
    def house(self, wall: Rgb, roof: Rgb, width: int = 6, floors: int = 1, lit: bool = False) -> Thing: ...
    def tree(self, leaves: Rgb = (38, 120, 50), size: float = 1.0) -> Thing: ...
    def block(self, x: float, y: float, z: float, w: int, d: int, rgb: Rgb, h: float = 1.2) -> Part: ...


@dataclass(frozen=True)
class Look:
    """A style. `person` and `block` are the words for figures and for what is built from."""

    name: str
    actors: Actors
    person: str
    block: str
    studs: bool
    """Whether the ground is a baseplate."""


BRICK = Look("brick", actors, "toy figure", "brick", studs=True)
PLAIN = Look("plain", plain, "person", "block", studs=False)
LOOKS = {look.name: look for look in (BRICK, PLAIN)}
