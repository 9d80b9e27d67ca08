"""Pictures and films that are given: read from files, brought to the sample's size, and encoded.

Letters: R frames of a reference, H, W pixels, C latent channels, h, w size of the latents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from bricks_core.diffusion.conditions import Condition, Reference, apply_conditions, extension
from bricks_core.errors import DataError, UsageError
from bricks_core.storage.hashes import sha256_of_file
from bricks_core.storage.os_errors import told
from bricks_core.video.read import Pixels, frames
from bricks_core.video.resize import fit

MAX_FRAMES = 1000
"""A longer film is refused: all of a reference is encoded and held."""
_CHUNK = 16

Encode = Callable[[Pixels], torch.Tensor]
"""(R, H, W, 3) frames -> (C, R, h, w) latents"""


@dataclass(frozen=True)
class Given:
    """A file that is given, and which of its frames."""

    file: Path
    last_frames: int | None = None
    """Only so many of its last frames, at `fps`; None takes all frames as they are."""
    fps: float = 0.0

    @property
    def identity(self) -> dict[str, object]:
        """As a film's settings tell it."""
        with told(self.file, "read"):
            found: dict[str, object] = {"file": self.file.name, "sha256": sha256_of_file(self.file)[:16]}
        return found | ({} if self.last_frames is None else {"last_frames": self.last_frames})


def given_file(name: str) -> Path:
    """The file of that name.

    Raises:
        UsageError: it is not here, or is an address.
    """
    if "://" in name:
        raise UsageError(f"{name} is an address: download the file first, and give its path.")
    file = Path(name).expanduser()
    if not file.is_file():
        raise UsageError(f"There is no file {name} to begin from.")
    return file


def num_frames_of(given: Given) -> int:
    """Frames of a reference, without converting them.

    Raises:
        DataError: it is neither picture nor film; or it is too long, or too short for the frames wanted of it.
    """
    if given.last_frames is not None:
        return len(_last_indices(given))
    if _picture(given.file) is not None:
        return 1
    with told(given.file, "read"), closing(frames(given.file)) as film:
        num = sum(1 for _ in film)
    if not num:
        raise DataError(f"{given.file} has no frame that can be decoded.")
    if num > MAX_FRAMES:
        raise DataError(
            f"{given.file} has {num} frames, and a reference at most {MAX_FRAMES}: cut out the part that is meant."
        )
    return num


def encoded(given: Given, encode: Encode, height_px: int, width_px: int) -> Reference:
    """A reference as latents (C, R, h, w): covered and cropped to the sample's size like training data."""
    parts = [encode(fit(chunk, height_px, width_px)) for chunk in _in_chunks(_pictures(given))]
    return torch.cat(parts, dim=1)


def rehearse(
    lengths: list[int], conditions: tuple[Condition, ...], num_frames: int, num_loops: int, num_given: int
) -> None:
    """Put frames of nothing where the real ones will go, so that what cannot be is said before a network is loaded.

    lengths  frames of each reference

    Raises:
        UsageError: a condition names a frame, a reference or a loop that is not there.
    """
    references, wanted = [torch.zeros(1, each, 1, 1) for each in lengths], list(conditions)
    for condition in conditions:
        if condition.loop >= num_loops:
            raise UsageError(
                f"Condition {condition} is for loop {condition.loop}, and the last one is {num_loops - 1}: ask for "
                f"--loops {condition.loop + 1}."
            )
    for loop in range(num_loops):
        if loop:
            wanted.append(extension(num_given, len(references), loop))
            references.append(torch.zeros(1, num_frames, 1, 1))
        apply_conditions(torch.zeros(1, 1, num_frames, 1, 1), [references], [wanted], loop)


def _pictures(given: Given) -> Iterator[Pixels]:
    """Frames one by one, (height, width, 3)."""
    if (picture := _picture(given.file)) is not None:
        yield picture
        return
    chosen = None if given.last_frames is None else set(_last_indices(given))
    with told(given.file, "read"), closing(frames(given.file)) as film:
        for frame in film:
            if chosen is None or frame.index in chosen:
                yield frame.rgb()


def _in_chunks(pictures: Iterator[Pixels]) -> Iterator[Pixels]:
    chunk: list[Pixels] = []
    for picture in pictures:
        chunk.append(picture)
        if len(chunk) == _CHUNK:
            yield np.stack(chunk)
            chunk = []
    if chunk:
        yield np.stack(chunk)


def _picture(file: Path) -> Pixels | None:
    """A picture file's pixels, upright, on black where it is transparent; None when it is no picture, or moves."""
    with told(file, "read"):
        try:
            with Image.open(file) as opened:
                if getattr(opened, "n_frames", 1) > 1:
                    return None
                upright = ImageOps.exif_transpose(opened).convert("RGBA")
        except UnidentifiedImageError:
            return None
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the disk's trouble, not the picture's
            raise DataError(f"{file} is a damaged picture: {error}.") from error
    ground = Image.new("RGBA", upright.size, (0, 0, 0, 255))
    return np.asarray(Image.alpha_composite(ground, upright).convert("RGB"))


def _last_indices(given: Given) -> list[int]:
    """Frames at `fps` that end with a film's last one: the nearest to each of the times, which must differ."""
    assert given.last_frames is not None
    if _picture(given.file) is not None:
        raise UsageError(f"{given.file} is a picture, not a film: give it with --image.")
    with told(given.file, "read"), closing(frames(given.file)) as film:
        times_s = np.array([frame.time_s for frame in film])
    if not len(times_s):
        raise DataError(f"{given.file} has no frame that can be decoded.")
    wanted_s = times_s[-1] - np.arange(given.last_frames)[::-1] / given.fps
    found = [int(np.abs(times_s - each).argmin()) for each in wanted_s]
    # Half a frame before the first is still the first; more is not there.
    if wanted_s[0] < times_s[0] - 0.5 / given.fps or len(set(found)) < len(found):
        raise UsageError(
            f"{given.file} has {len(times_s)} frames in {times_s[-1] - times_s[0]:.2f} s, which is not "
            f"{given.last_frames} at {given.fps:g} fps: go on from fewer with --condition-frames, or tell its own rate "
            "with --fps."
        )
    return found
