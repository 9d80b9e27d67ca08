"""A table of clips and images, each with its caption: CSV or Parquet, Open-Sora's columns and a few more.

Open-Sora reads `path` and `text` (and num_frames, height, width, which are measured anew here). What else is known of a
row has a column of its own (docs/dataset.md); a table without them is as good.
"""

from __future__ import annotations

import csv
import math
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any, Literal

from bricks_core.errors import DataError, SpecError, nearest
from bricks_core.spec.ingest import Given
from bricks_core.storage.os_errors import told
from bricks_core.storage.places import list_source, split_uri
from bricks_core.storage.store import SourceFile

if TYPE_CHECKING:  # imported where it is used, as in tables.py
    import pyarrow as pa
    import pyarrow.parquet as pq

TABLE_SUFFIXES = (".csv", ".parquet")
VIDEO_SUFFIXES = frozenset({".mp4", ".avi", ".mov", ".mkv"})
"""What Open-Sora's loader takes for a video."""
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"})
"""What it takes for an image: torchvision's list. It stops at every other."""
MAX_CAPTION_CHARACTERS = 1 << 20
HELD_OUT_NAMES = frozenset({"held_out", "held-out", "validation", "valid", "val", "dev", "test"})
_USED = {"path", "file", "text", "caption_by", "licence", "license", "credit", "split", "id", "clip_id", "video_id"}
_USED |= {"consent", "video_name", "first_frame", "end_frame", "num_frames", "sha256"}
_TEXTS = {"path", "file", "text"}
_OUR_ID = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True)
class TableRow:
    """A row as it is read. Texts are empty, and counts -1, where the table says nothing."""

    number: int
    """From 1, without the header."""
    line: int = 0
    """Of a CSV file: the line it ends on."""
    names: tuple[str, ...] = ()
    """Where its file may be: `file`, then `path`."""
    text: str = ""
    caption_by: str = ""
    licence: str = ""
    credit: str = ""
    consent: str = ""
    split: Literal["", "train", "held_out"] = ""
    id: str = ""
    clip_id: str = ""
    video_id: str = ""
    video_name: str = ""
    first_frame: int = -1
    end_frame: int = -1
    num_frames: int = -1
    sha256: str = ""
    problem: str = ""
    """Why it cannot be used: one sentence."""

    @property
    def kind(self) -> Literal["clip", "image"]:
        return "clip" if self.names and PurePosixPath(self.names[0]).suffix.lower() in VIDEO_SUFFIXES else "image"

    @property
    def place(self) -> str:
        return f"Row {self.number} (line {self.line})" if self.line else f"Row {self.number}"

    def given(self, video_id: str) -> Given:
        """What it says, as a row of ours."""
        return Given(
            id=video_id,
            kind=self.kind,
            text=self.text,
            caption_by=self.caption_by,
            split=self.split,
            clip_id=self.clip_id if self.kind == "image" else "",
            video_id=self.video_id,
            video_name=self.video_name,
            first_frame=self.first_frame,
            end_frame=self.end_frame,
            num_frames=self.num_frames,
        )


class MediaTable:
    """A table and the files it names. They lie relative to it, or at absolute paths, or in buckets."""

    def __init__(self, uri: str):
        """`uri`: a file, or s3://bucket/key."""
        self.uri = uri
        self._scheme, self._path = split_uri(uri)

    def columns(self) -> list[str]:
        """Names of its columns, in lower case. Errors as of `rows`."""
        with self._local() as file:
            if self._is_parquet:
                with _opened_parquet(file, self.uri) as opened:
                    return _lower(opened.schema_arrow.names)
            with _opened_csv(file) as text:
                return _header(csv.reader(text, strict=True), self.uri)

    def rows(self) -> Iterator[TableRow]:
        """Every row in order, streamed; one that says something impossible has a `problem`.

        Raises:
            SpecError: there is no such table.
            DataError: it is no table, or has no column that names files.
        """
        with self._local() as file:
            yield from (_parquet_rows if self._is_parquet else _csv_rows)(file, self.uri)

    def files(self) -> Iterator[tuple[TableRow, SourceFile | None]]:
        """Every row with its file, named as `named` finds it again. No file: the row's problem says why."""
        for row in self.rows():
            if row.problem:
                yield row, None
                continue
            found = next((found for name in row.names if (found := self._find(name)) is not None), None)
            if found is None:
                tried = f"neither {' nor '.join(row.names)} is" if len(row.names) > 1 else f"{row.names[0]} is not"
                row = replace(row, problem=f"{row.place}: {tried} there.")
            yield row, found

    def named(self, names: Iterable[str]) -> Iterator[SourceFile]:
        """The files of these names, as `files` gave them; without those that are not there any more."""
        yield from (found for name in names if (found := self._find(name)) is not None)

    def _find(self, name: str) -> SourceFile | None:
        if "://" in name:
            return _only(name, name)
        if self._scheme == "s3":
            return self._beside_in_bucket.get(str(PurePosixPath(name))) if not name.startswith("/") else _local(name)
        beside = os.path.join(os.path.dirname(os.path.abspath(self._path)), os.path.expanduser(name))
        # Open-Sora takes a relative path from where it runs, everybody else from where the table lies.
        return _only(beside, name) if os.path.isfile(beside) else _local(name)

    @property
    def _is_parquet(self) -> bool:
        return self.uri.lower().endswith(".parquet")

    @contextmanager
    def _local(self) -> Iterator[Path]:
        (source,) = list_source(self.uri)
        with source.local() as file, told(file, "read"):
            yield file

    @cached_property
    def _beside_in_bucket(self) -> dict[str, SourceFile]:
        folder = self.uri[: self.uri.rindex("/") + 1]
        return {file.name: file for file in list_source(folder)}


def is_table(uri: str) -> bool:
    """Whether a source is a table of clips and images, by its name."""
    return uri.lower().endswith(TABLE_SUFFIXES) and not os.path.isdir(uri)


def listed(uri: str) -> Iterator[SourceFile]:
    """All files a source is made of: its own (`list_source`), or of a table that and those it names."""
    yield from list_source(uri)
    if is_table(uri):
        yield from (file for _, file in MediaTable(uri).files() if file is not None)


def _local(name: str) -> SourceFile | None:
    path = os.path.abspath(os.path.expanduser(name))
    return _only(path, path) if os.path.isfile(path) else None


def _only(uri: str, name: str) -> SourceFile | None:
    try:
        found = next(list_source(uri), None)
    except SpecError:
        return None
    # An address that is a folder lists what is in it.
    return replace(found, name=name) if found is not None and found.uri.endswith(PurePosixPath(uri).name) else None


def _csv_rows(file: Path, uri: str) -> Iterator[TableRow]:
    with _opened_csv(file) as text:
        reader = csv.reader(text, strict=True)
        columns = _header(reader, uri)
        number = 0
        while True:
            try:
                fields = next(reader, None)
            except csv.Error as error:
                number += 1
                yield TableRow(number, reader.line_num, problem=f"Row {number} (line {reader.line_num}): {error}.")
                continue
            if fields is None:
                return
            if not fields:  # an empty line
                continue
            number += 1
            yield _fields_row(number, reader.line_num, columns, fields)


def _opened_csv(file: Path) -> IO[str]:
    """What is not UTF-8 is told with the row it stands in."""
    csv.field_size_limit(MAX_CAPTION_CHARACTERS)
    return file.open(encoding="utf-8-sig", errors="surrogateescape", newline="")


def _header(reader: Iterator[list[str]], uri: str) -> list[str]:
    try:
        columns = _lower(next(reader, []))
    except csv.Error as error:
        raise DataError(f"{uri} is no CSV table: {error}.") from None
    _check_columns(columns, uri)
    return columns


def _lower(names: Iterable[str]) -> list[str]:
    return [name.strip().lower() for name in names]


def _fields_row(number: int, line: int, columns: list[str], fields: list[str]) -> TableRow:
    bare = TableRow(number, line)
    if len(fields) != len(columns):
        problem = f"{bare.place} has {len(fields)} fields, the header has {len(columns)}."
        return replace(bare, problem=problem)
    try:
        "".join(fields).encode()
    except UnicodeEncodeError:
        return replace(bare, problem=f"{bare.place} is not UTF-8: save the table as UTF-8.")
    return _row(bare, dict(zip(columns, fields, strict=True)))


def _parquet_rows(file: Path, uri: str) -> Iterator[TableRow]:
    with _opened_parquet(file, uri) as opened:
        _check_columns(_lower(opened.schema_arrow.names), uri)
        for field in opened.schema_arrow:
            if field.name.strip().lower() in _TEXTS and not _is_told(field.type):
                raise DataError(f"{uri}: column {field.name} holds {field.type}, not texts: save it as strings.")
        # Other columns may hold whole videos.
        used = [name for name in opened.schema_arrow.names if name.strip().lower() in _USED]
        number = 0
        for batch in opened.iter_batches(1024, columns=used):
            columns = _lower(batch.schema.names)
            for values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                number += 1
                yield _row(TableRow(number), dict(zip(columns, map(_told, values), strict=True)))


@contextmanager
def _opened_parquet(file: Path, uri: str) -> Iterator[pq.ParquetFile]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as opened:
            yield opened
    except (pa.ArrowException, ValueError) as error:
        raise DataError(f"{uri} is no Parquet table: {' '.join(str(error).split()).rstrip('.')}.") from None


def _is_told(kind: pa.DataType) -> bool:
    """Whether such a column's values are texts as they stand. A list's or bytes' would be Python's words for them."""
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return not (pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _told(value: Any) -> str:
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else str(value)


def _check_columns(columns: list[str], uri: str) -> None:
    if {"path", "file"} & set(columns):
        return
    if any(mark in columns[0] for mark in ";\t|") if columns else False:
        raise DataError(f"{uri} is not separated by commas: save it as CSV with commas.")
    if columns and "\0" in columns[0]:
        raise DataError(f"{uri} is not UTF-8: save it as CSV in UTF-8.")
    shown = ", ".join(columns[:20]) or "none"
    raise DataError(f"{uri} has no column path{nearest('path', columns)}, which names the files; it has: {shown}.")


def _row(bare: TableRow, values: dict[str, str]) -> TableRow:
    names = tuple(dict.fromkeys(name for key in ("file", "path") if (name := values.get(key, "").strip())))
    if not names or any("\0" in name for name in names):
        return replace(bare, problem=f"{bare.place} names no file: its path is empty.")
    problem = ""
    if PurePosixPath(names[0]).suffix.lower() not in VIDEO_SUFFIXES | IMAGE_SUFFIXES:
        kinds = f"a video's ({' '.join(sorted(VIDEO_SUFFIXES))}) nor an image's ({' '.join(sorted(IMAGE_SUFFIXES))})"
        problem = f"{bare.place}: {names[0]} has neither {kinds} ending."
    numbers: dict[str, int] = {}
    for key in ("first_frame", "end_frame", "num_frames"):
        try:
            numbers[key] = int(float(values.get(key, "").strip() or -1))
        except (ValueError, OverflowError):
            numbers[key] = -1
            problem = f"{bare.place}: {key} is {values[key]!r}, which is no number."
    split = values.get("split", "").strip().lower()
    if split and split != "train" and split not in HELD_OUT_NAMES:
        problem = f"{bare.place}: split is {split!r}; write train or held_out, or nothing to have it drawn."
    given_id, sha256 = values.get("id", "").strip(), values.get("sha256", "").strip().lower()
    return replace(
        bare,
        names=names,
        text=values.get("text", ""),
        caption_by=values.get("caption_by", "").strip(),
        licence=(values.get("licence") or values.get("license") or "").strip(),
        credit=values.get("credit", "").strip(),
        consent=values.get("consent", "").strip(),
        split="" if not split else "train" if split == "train" else "held_out",
        id=given_id if _OUR_ID.fullmatch(given_id) else "",
        clip_id=values.get("clip_id", "").strip(),
        video_id=values.get("video_id", "").strip(),
        video_name=values.get("video_name", "").strip(),
        sha256=sha256,
        problem=problem,
        **numbers,
    )
