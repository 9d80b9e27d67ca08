"""The facts of a prompt: what it claims of colours, light, number, direction and camera.

Two ways of writing are read: the vocabulary of measured.py, and plain sentences such as

    One red car drives to the left on a yellow ground at night.

A word that is not understood gives no claim, and is told: a judge that has read half of a prompt has to say so.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

from bricks_core.judge.colours import IN_LIGHT, NAMES, NEAR

Kind = Literal["ground", "background", "light", "colours", "direction", "count", "camera"]
KINDS: tuple[Kind, ...] = get_args(Kind)

NUMBERS = ("one", "two", "three", "four", "five")
MANY = "many"
APPEAR, IN_PLACE, STILL = "appear", "in place", "still"
Values = Callable[[re.Match[str]], list[str]]

_COLOUR = "|".join(sorted(NAMES, key=len, reverse=True))
_LIST = rf"(?:{_COLOUR})(?:(?:, | and )(?:{_COLOUR}))*"
_WAY = r"(?:up|down) and to the (?:right|left)|to the (?:right|left)|up and down|back and forth|(?:a little )?in place"
_MOVES = r"(?:(?<=move )|(?<=moves )|(?<=slowly )|(?<=quickly ))"
_SPEED = r"(?: slowly| quickly)?"
_TIMES = {
    "in daylight": "day",
    "by day": "day",
    "at sunset": "sunset",
    "at night": "night",
    "in mist": "mist",
    "in the mist": "mist",
}
_LIT = {"day": "in daylight", "sunset": "at sunset", "night": "at night", "mist": "in mist"}
_SMALL = {
    *("a", "an", "the", "and", "of", "in", "on", "at", "to", "with", "is", "are", "it", "its", "over", "along"),
    *("thing", "things", "something", "move", "moves"),
}
"""Words that claim nothing by themselves."""


@dataclass(frozen=True)
class Claim:
    """One thing that a prompt says of the pictures.

    `value` is a word of the prompt: a colour, a light, a way, a number. `kept_by` are colours as they may be measured.
    """

    kind: Kind
    value: str
    kept_by: tuple[str, ...] = ()
    is_moving: bool = False
    """Of a colour: whether the prompt gives it to things that move."""
    is_of_parts: bool = False
    """Of a number: whether it counts what measured.py calls a thing, a connected area that moves, or whole ones."""

    @property
    def words(self) -> str:
        """As a sentence that is true or not, for a judge that reads."""
        match self.kind:
            case "ground" | "background":
                return f"The {self.kind} is {self.value}."
            case "light":
                return f"The scene is {_LIT.get(self.value, self.value)}."
            case "colours":
                return f"Something {self.value} moves." if self.is_moving else f"Something {self.value} can be seen."
            case "direction":
                return (
                    "Things appear one after another." if self.value == "appear" else f"Something moves {self.value}."
                )
            case "count":
                return f"The number of things that move is {self.value}."
            case "camera":
                return f"The camera {'stands still' if self.value == 'still' else f'moves {self.value}'}."


@dataclass(frozen=True)
class Facts:
    """What a prompt claims, in the order of KINDS, and the words that this reader does not know."""

    claims: tuple[Claim, ...]
    unread: tuple[str, ...]
    coverage: float
    """Share of the words that say something which became claims, 0 to 1."""


def facts(prompt: str) -> Facts:
    """Read a prompt."""
    text = _plain(prompt)
    num_words = len(_telling(text))
    found: list[Claim] = []
    unread: list[str] = []
    for sentence in re.split(r"[.;!?\n]+", text):
        reader = _Sentence(sentence.strip())
        found += reader.claims()
        unread += _telling(reader.left)
    light = next((claim.value for claim in found if claim.value in IN_LIGHT), "day")
    claims = dict.fromkeys(_in_light(claim, light) for claim in sorted(found, key=lambda each: KINDS.index(each.kind)))
    return Facts(tuple(claims), tuple(unread), 1 - len(unread) / num_words if num_words else 0.0)


class _Sentence:
    """Finds claims, and takes the words that they were made of out of what is left."""

    def __init__(self, text: str):
        self.left = text
        self._found: list[Claim] = []

    def claims(self) -> list[Claim]:
        """All that this sentence claims; nothing where it says what is not there, since nobody can judge that here."""
        if not re.search(r"\b(?:no|not|without|never|nothing)\b", self.left):
            self._setting()
            self._motion()
            self._count()
            self._colours()
        return self._found

    def _setting(self) -> None:
        self._take(rf"\b({'|'.join(_TIMES)})\b", "light", lambda found: [_TIMES[found[1]]])
        self._take(r"\ba (bright|dim|dark) scene", "light")
        self._take(rf"in front of an? ({_COLOUR}) background", "background")
        self._take(rf"\b(?:on|over)(?: an?| the)? ({_COLOUR}) (?:ground|floor|baseplate)", "ground")
        for both in self._take(rf"({_COLOUR}) from top to bottom", "ground"):
            self._found.append(Claim("background", both.value))
        self._take(rf"({_LIST}) stands? out", "colours", _listed)

    def _motion(self) -> None:
        self._take(r"the camera (?:stands|is) still", "camera", lambda _: [STILL])
        if self._take(rf"the camera \w+{_SPEED} ({_WAY}|up|down)\b", "camera"):
            return
        self._take(r"appears? one after another|grows? from falling", "direction", lambda _: [APPEAR])
        self._take(r"takes? off", "direction", lambda _: ["up"])
        self._take(r"talks? to (?:each other|one another)", "direction", lambda _: [IN_PLACE])
        self._take(rf"{_MOVES}(up|down)(?! and)\b", "direction")
        self._take(rf"({_WAY})", "direction", lambda found: [found[1].removeprefix("a little ")])

    def _count(self) -> None:
        """Of what moves, one number a sentence; "a person and one ..." are two. What is built is not counted."""
        if not self._moves() or any(claim.value == APPEAR for claim in self._found):
            return
        if self._take(r"^an? (?=.* and one )|(?<= and) one\b", "count", lambda _: ["two"]):
            return
        if not self._take(rf"\b({'|'.join((*NUMBERS, MANY))})\b", "count", most=1):
            self._take(r"^an? ", "count", lambda _: ["one"])
        if re.search(r"\bthings?\b", self.left) and self._found and self._found[-1].kind == "count":
            self._found[-1] = replace(self._found[-1], is_of_parts=True)

    def _colours(self) -> None:
        self._take(rf"\b({_COLOUR})\b", "colours", is_moving=self._moves())

    def _moves(self) -> bool:
        return any(claim.kind == "direction" for claim in self._found)

    def _take(
        self,
        pattern: str,
        kind: Kind,
        values: Values = lambda found: [found[1]],
        *,
        most: int = 0,
        is_moving: bool = False,
    ) -> list[Claim]:
        """Make claims of what matches, and blank it out."""
        matches = list(re.finditer(pattern, self.left))[: most or None]
        claims = [Claim(kind, value, is_moving=is_moving) for found in matches for value in values(found)]
        for found in matches:
            self.left = self.left[: found.start()] + " " * len(found[0]) + self.left[found.end() :]
        self._found += claims
        return claims


def _listed(found: re.Match[str]) -> list[str]:
    return re.findall(_COLOUR, found[1])


def _in_light(claim: Claim, light: str) -> Claim:
    """With the colours that it may be measured as, in this light."""
    if claim.value not in NAMES:
        return claim
    return replace(claim, kept_by=(claim.value, *NEAR.get(claim.value, ()), *IN_LIGHT[light].get(claim.value, ())))


def _plain(prompt: str) -> str:
    """Small letters and single blanks; shades without hyphens."""
    text = re.sub(r"\b(dark|light)-(?=\w)", r"\1 ", prompt.lower().replace("gray", "grey"))
    return " ".join(re.sub(r"[^a-z0-9.,;!?'\n-]+", " ", text).split())


def _telling(text: str) -> list[str]:
    return [word for word in re.findall(r"[a-z0-9][a-z0-9'-]*", text) if word not in _SMALL]
