"""What has been taken down: contents that no later run may use, each with a mark of its own.

    takedowns/<sha256>.json     the content, what it was called, why, and what had been made of it

A mark is written before anything is deleted, so that whoever is killed in between finds again what was left, and
`bricks gc` never takes one. It holds no word of a caption and no picture.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime
from typing import Literal, Self

from pydantic import Field, ValidationError

from bricks_core.errors import DataError
from bricks_core.spec.items import ItemKey
from bricks_core.spec.strict import Strict
from bricks_core.storage.store import Store

ROOT = "takedowns/"
_KEY = re.compile(rf"{ROOT}([0-9a-f]{{64}})\.json")

Side = Literal["train", "held_out"]


class Takedown(Strict):
    """The mark of a content."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    names: list[str] = []
    """What it was called, as source/name."""
    why: str = ""
    at: datetime
    files: list[str] = []
    """sha256 of clips and pictures that were cut from it: refused as files of their own, too."""
    items: list[str] = []
    """`kind/key` of what had been made of it."""
    latents: dict[str, list[Side]] = {}
    """Digests of artifacts of latents that had it, and on which sides of the split."""

    @property
    def key(self) -> str:
        return f"{ROOT}{self.sha256}.json"

    @property
    def video_id(self) -> str:
        """What rows of tables call it."""
        return self.sha256[:16]

    @property
    def item_keys(self) -> list[ItemKey]:
        pairs = (each.partition("/") for each in self.items)
        return [ItemKey(kind, key) for kind, _, key in pairs]

    @property
    def reason(self) -> str:
        """Why a file is refused: one sentence."""
        why = f" ({self.why})" if self.why else ""
        return f"It was taken down on {self.at:%Y-%m-%d}{why}: {self.key} says so, and no run uses it."

    def joined(self, other: Takedown) -> Takedown:
        """Both together: the first word on why and when stays."""
        sides = {digest: {*self.latents.get(digest, ()), *other.latents.get(digest, ())} for digest in other.latents}
        first, last = sorted((self, other), key=lambda each: each.at)
        return first.model_copy(
            update={
                "why": first.why or last.why,
                "names": sorted({*self.names, *other.names}),
                "files": sorted({*self.files, *other.files}),
                "items": sorted({*self.items, *other.items}),
                "latents": self.latents | {digest: sorted(each) for digest, each in sorted(sides.items())},
            }
        )


class Takedowns:
    """The marks of a store."""

    def __init__(self, marks: Iterable[Takedown] = ()):
        self.marks = {mark.sha256: mark for mark in marks}
        self._files = {file: mark for mark in self.marks.values() for file in mark.files} | self.marks
        self._videos = {mark.video_id: mark for mark in self.marks.values()}

    @classmethod
    def of(cls, store: Store) -> Self:
        """All marks of a store.

        Raises:
            DataError: one cannot be read, so that it is not known what it refuses.
        """
        keys = [entry.key for entry in store.list(ROOT) if _KEY.fullmatch(entry.key)]
        return cls(_opened(key, data) for key, data in store.get_many(keys) if data is not None)

    def of_file(self, sha256: str, video_id: str = "") -> Takedown | None:
        """The mark that refuses a file: by its content, by that of what it was cut from, or by what a table says that
        it was cut from."""
        return self._files.get(sha256) or self._videos.get(video_id)


def put_mark(store: Store, mark: Takedown) -> None:
    """Keep a mark, together with what is said there already."""
    ((_, data),) = store.get_many([mark.key])
    now = mark if data is None else _opened(mark.key, data).joined(mark)
    text = (now.model_dump_json(indent=1) + "\n").encode()
    if data != text:
        store.put(mark.key, text)


def _opened(key: str, data: bytes) -> Takedown:
    try:
        mark = Takedown.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(
            f"{key} says what was taken down and cannot be read ({'.'.join(map(str, first['loc']))}: {first['msg']}): "
            "write it anew by bricks takedown, with the sha256 of its name, after deleting it."
        ) from None
    if mark.key != key:
        raise DataError(f"{key} is the mark of {mark.sha256}: give it back its name.")
    return mark
