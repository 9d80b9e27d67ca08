"""Items: the answers of the data stages, each under a key made of everything that changes it, and of nothing else.

What a thing is made of is its derivation (the source's sha256, a span of frames, settings), never the hash of an
encoder's output, so that a clip that is built again keeps its key. Names, paths, licences, ids and sides of the split
are facts: they are joined on when tables are made, and are in no key.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

from bricks_core.spec.manifest import StoredObject, canonical_json
from bricks_core.spec.strict import Strict


@dataclass(frozen=True)
class Kind:
    """A kind of work."""

    name: str
    version: int
    """Of the one function that answers: raised when the same recipe would get another answer."""
    what: str
    """As a person is told."""
    paid: bool = False
    """Its answers cost money: they are never swept unless that is asked for."""


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("content", 1, "contents of source objects"),
        Kind("film", 1, "films probed"),
        Kind("picture", 1, "pictures probed"),
        Kind("shots", 1, "films searched for shots"),
        Kind("clip", 1, "clips cut"),
        Kind("file", 1, "given files"),
        Kind("measures", 1, "clips measured"),
        Kind("sight", 1, "choices of frames to show"),
        Kind("description", 1, "captions by measuring"),
        Kind("answer", 1, "answers of a model", paid=True),
        Kind("latent", 1, "latents"),
        Kind("text", 1, "caption features"),
        Kind("held_out", 1, "held-out losses"),
        Kind("sample", 1, "samples"),
        Kind("guidance", 1, "audits of guidance"),
    )
}


class ItemKey(NamedTuple):
    """Names an item."""

    kind: str
    key: str
    """32 hexadecimal digits."""

    @property
    def record(self) -> str:
        """Where its record lies in the store."""
        return f"{self.place}.json"

    @property
    def place(self) -> str:
        """What the keys of its record and of its files begin with."""
        return f"items/{self.kind}/{self.key[:2]}/{self.key}"

    @property
    def attempt(self) -> str:
        """Where its `Try` lies: that a limit stopped it."""
        return f"tries/{self.kind}/{self.key[:2]}/{self.key}.json"


@dataclass(frozen=True)
class Recipe:
    """What an item is made of, and the key that results."""

    key: ItemKey
    made_of: dict[str, Any] = field(compare=False)


def recipe(kind: str, **made_of: Any) -> Recipe:
    """The recipe of an item: the version of what answers, and JSON values for all else that changes the answer.

    Settings belong in as `what_of` gives them, without those that have the default they came in with.
    """
    whole = {"kind": kind, "version": KINDS[kind].version, **made_of}
    return Recipe(_key_of(whole), whole)


def _key_of(whole: dict[str, Any]) -> ItemKey:
    return ItemKey(whole["kind"], hashlib.sha256(canonical_json(whole)).hexdigest()[:32])


class Item(Strict):
    """An item's record: written once, after its files."""

    kind: str
    key: str
    made_of: dict[str, Any]
    answer: dict[str, Any]
    """What came out, without facts; its fields are those of the stage that asked."""
    objects: list[StoredObject] = []
    """Its files; keys from the store's root."""
    by: str = ""
    """The model that answered, as its server names it."""
    cost: dict[str, float] = {}
    """What it took: seconds, calls, tokens. For people; no key or table depends on it."""
    code_version: str = ""

    @property
    def item_key(self) -> ItemKey:
        return ItemKey(self.kind, self.key)

    @property
    def version(self) -> int:
        """Of the function that answered."""
        return int(self.made_of.get("version", 1))

    @property
    def key_now(self) -> ItemKey:
        """The key of the same recipe where this version of Bricks answers."""
        return _key_of(self.made_of | {"kind": self.kind, "version": KINDS[self.kind].version})

    def sealed(self) -> bytes:
        """The record as it is stored, with a checksum of all of it."""
        return sealed(self.model_dump_json())

    @classmethod
    def opened(cls, data: bytes | str, key: ItemKey) -> Self:
        """A stored record.

        Raises:
            ValueError: it was altered, or is another item's.
        """
        return cls._opened(data, key)[0]

    @classmethod
    def text_of(cls, data: bytes | str, key: ItemKey) -> str:
        """A stored record as JSON, checked as `opened` does."""
        return cls._opened(data, key)[1]

    @classmethod
    def _opened(cls, data: bytes | str, key: ItemKey) -> tuple[Self, str]:
        envelope = json.loads(data)
        if not isinstance(envelope, dict) or not isinstance(text := envelope.get("item"), str):
            raise ValueError("it is no record of an item")
        if hashlib.sha256(text.encode()).hexdigest() != envelope.get("sha256"):
            raise ValueError("its checksum is not that of its content")
        item = cls.model_validate_json(text)
        if item.item_key != key:
            raise ValueError(f"it is the record of {item.kind}/{item.key}")
        return item, text


def sealed(text: str) -> bytes:
    """A record, as JSON, as it is stored: see `Item.sealed`."""
    return json.dumps({"sha256": hashlib.sha256(text.encode()).hexdigest(), "item": text}).encode() + b"\n"
