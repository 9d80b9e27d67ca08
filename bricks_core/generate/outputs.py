"""The files that are made: their names, the settings inside them, and what is there already.

A file's settings are JSON in its comment, so that a film alone says how to make it again, and a run that was stopped
knows which of its films are done.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from bricks_core.errors import DataError, TryLater, UsageError
from bricks_core.storage.os_errors import told
from bricks_core.video.read import Pixels, open_film, read_rgb
from bricks_core.video.write import write_mp4

Settings = Mapping[str, Any]
"""All that decides what is in a film, as JSON has it; and what does not count when settings are compared: the code's
version, and how far the model's training was."""

State = Literal["missing", "same", "other"]

MAX_SLUG = 48
_VERSION = "bricks"
_NOT_COMPARED = (_VERSION, "training")


def slug(text: str) -> str:
    """A prompt as part of a file's name: its first words, in lower case, with hyphens."""
    words = re.findall(r"\w+", unicodedata.normalize("NFKC", text).lower().replace("_", " "))
    found = ""
    for word in words:
        longer = f"{found}-{word}".strip("-")
        if len(longer) > MAX_SLUG or len(longer.encode()) > 3 * MAX_SLUG:
            break
        found = longer
    return found or (words[0][: MAX_SLUG // 2] if words else "prompt")


def file_name(number: int, text: str, num_frames: int, seed: int | None = None) -> str:
    """Such as 003-a-red-car.mp4, .png for one frame. `seed` is named where a prompt has several."""
    ending = "png" if num_frames == 1 else "mp4"
    return f"{number:03d}-{slug(text)}{'' if seed is None else f'-seed-{seed}'}.{ending}"


def state_of(file: Path, settings: Settings) -> tuple[State, list[str]]:
    """Whether a file is there with these settings, and if with others, which differ.

    Raises:
        UsageError: something is there that was not made here, so it is not ours to replace.
    """
    with told(file, "read"):
        if not file.exists():
            return "missing", []
    found = settings_of(file)
    if found is None:
        raise UsageError(
            f"{file} is there and was not made by bricks generate: move it away, or choose another folder with --out."
        )
    differing = [
        name
        for name in dict.fromkeys([*settings, *found])
        if name not in _NOT_COMPARED and found.get(name) != _as_json(settings.get(name))
    ]
    return ("other" if differing else "same"), differing


def settings_of(file: Path) -> dict[str, Any] | None:
    """The settings inside a film or picture, or None when it has none of ours."""
    try:
        if file.suffix == ".png":
            with Image.open(file) as picture:
                comment = picture.info.get("Comment", "")
        else:
            with open_film(file) as film:
                comment = film.metadata.get("comment", "")
    except (DataError, UnidentifiedImageError, Image.DecompressionBombError, OSError, av.FFmpegError):
        return None
    try:
        found = json.loads(comment)
    except ValueError:
        return None
    return found if isinstance(found, dict) and _VERSION in found else None


def write(file: Path, frames: Iterable[Pixels], fps: float, title: str, settings: Settings) -> None:
    """Write a film (a picture for .png) beside its place and move it there when it is whole.

    frames  one by one, (height, width, 3) in 0..255

    Raises TryLater: another process is making this file, or the disk is full.
    """
    about = {"title": title, "comment": json.dumps(settings, ensure_ascii=False)}
    beside = file.with_name(f".{file.name}.part")
    with told(file, "write"):
        file.parent.mkdir(parents=True, exist_ok=True)
        with _held(beside, file):
            try:
                if file.suffix == ".png":
                    _write_png(beside, next(iter(frames)), about)
                else:
                    write_mp4(beside, frames, fps, metadata=about)
                os.replace(beside, file)
            finally:
                beside.unlink(missing_ok=True)


def frames_at(file: Path, num_frames: int, at_most: int) -> list[Pixels]:
    """Some frames of what was written: the first, the last, and evenly spaced ones between."""
    if file.suffix == ".png":
        with Image.open(file) as picture:
            return [np.asarray(picture.convert("RGB"))]
    columns = min(num_frames, at_most)
    places = [round(place * (num_frames - 1) / max(columns - 1, 1)) for place in range(columns)]
    return list(read_rgb(file, places))


@contextlib.contextmanager
def _held(beside: Path, file: Path) -> Iterator[None]:
    """No other process writes to `beside` meanwhile. A killed one holds it no more."""
    lock = os.open(beside, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Else another process has moved it to its place since it was opened.
            is_ours = beside.exists() and os.fstat(lock).st_ino == beside.stat().st_ino
        except OSError as error:
            is_ours = error.errno not in (errno.EWOULDBLOCK, errno.EACCES)  # a file system without locks
        if not is_ours:
            raise TryLater(
                f"{file} is being made by another process: wait for it, or choose another folder with --out."
            )
        yield
    finally:
        os.close(lock)


def _write_png(file: Path, picture: Pixels, about: Mapping[str, str]) -> None:
    texts = PngImagePlugin.PngInfo()
    for name, text in about.items():
        texts.add_itxt(name.capitalize(), text)
    Image.fromarray(picture).save(file, format="png", pnginfo=texts)


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))
