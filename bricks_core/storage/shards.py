"""Packs: the files that latents and caption features are written to by `latents`, and read from by `train`.

A pack is one file of many pieces, float16 little-endian, each beginning at a multiple of 64 bytes: latents of clips of
one shape, or features of captions, in packs of their own, so that another caption leaves the latents where they are.

    64 bytes of heading | latents (t, C, h, w) | latents | ...
    64 bytes of heading | text (L, width) | text | ...

All latents of a clip follow each other, so that training takes another window of them every time, at the cost of the
window; text has its real length, and the empty caption is among the texts. What lies where is in the `Latent` rows.
Packs are read by memory map: of the formats we measured (`.pt`, `.npy`, safetensors, tar, Parquet, Lance) this is the
fastest for such windows (benchmarks/latent_format.py keeps the comparison with `.pt`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from bricks_core.errors import AlteredObject, DataError
from bricks_core.spec.items import ItemKey
from bricks_core.spec.latents import Latent
from bricks_core.storage.os_errors import told

LATENT_CHANNELS = 4
FLOAT = np.dtype("<f2")
ALIGNMENT_BYTES = 64
HEADING = b"bricks pack 1, float16 little-endian\n".ljust(ALIGNMENT_BYTES, b"\0")

Floats = NDArray[np.float16]


def pack_key(keys: Iterable[ItemKey]) -> ItemKey:
    """What a pack of these items, in this order, is stored as."""
    names = "\n".join(each.key for each in keys)
    return ItemKey("pack", hashlib.sha256(names.encode()).hexdigest()[:32])


class PackWriter:
    """Writes a pack, a piece after the other, in the memory of one chunk. The same pieces make the same bytes.

    Every method may raise TryLater when the disk is full.
    """

    def __init__(self, path: Path):
        self._path = path
        with told(path, "write"):
            self._file: BinaryIO = path.open("wb")
        self._append(HEADING)
        self._texts: dict[bytes, int] = {}

    def add_latents(
        self, chunks: Iterable[np.ndarray], num_latents: int, height: int, width: int, channels: int = LATENT_CHANNELS
    ) -> int:
        """Append a clip's latents, given as chunks (t, channels, height, width). Returns where they begin, in bytes.

        Raises DataError: the chunks have another shape or number of latents, or numbers that float16 cannot hold.
        """
        offset = self._align()
        written = 0
        for chunk in chunks:
            if chunk.shape[1:] != (channels, height, width):
                raise DataError(f"Latents of {chunk.shape[1:]} do not fit a clip of ({channels}, {height}, {width}).")
            self._append(self._half(chunk).data)
            written += len(chunk)
        if written != num_latents:
            raise DataError(f"A clip of {num_latents} frames came as latents of {written} frames: was it cut short?")
        return offset

    def add_text(self, features: np.ndarray) -> int:
        """Append a caption's features (L, width), once however often they come. Returns where they begin, in bytes."""
        half = self._half(features)
        digest = hashlib.sha256(repr(half.shape).encode() + half.tobytes()).digest()
        if digest not in self._texts:
            self._texts[digest] = self._align()
            self._append(half.data)
        return self._texts[digest]

    def add_bytes(self, piece: NDArray[np.uint8]) -> int:
        """Append a piece of another pack as it is. Returns where it begins, in bytes."""
        offset = self._align()
        self._append(piece.data)
        return offset

    @property
    def size_bytes(self) -> int:
        """Bytes written so far."""
        return self._file.tell()

    def close(self) -> None:
        """End the file; a second close does nothing."""
        with told(self._path, "write"):
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _align(self) -> int:
        self._append(b"\0" * (-self._file.tell() % ALIGNMENT_BYTES))
        return self._file.tell()

    def _append(self, data: bytes | memoryview) -> None:
        with told(self._path, "write"):
            self._file.write(data)

    def _half(self, numbers: np.ndarray) -> Floats:
        # Whether anything became infinite is asked of the result, so NumPy need not warn on the way.
        with np.errstate(over="ignore"):
            half = np.ascontiguousarray(numbers, dtype=FLOAT)
        if not np.isfinite(half).all():
            raise DataError(
                f"{self._path.name}: a number is not finite in float16 (at most 65504): the encoder overflowed. "
                "Set its dtype to bfloat16 or float32."
            )
        return half


class Packs:
    """Reads the packs of an index by memory map. Safe to use from threads; packs are opened when first needed.

    `locate` gives the local file of a pack's key. With `codec` or `text_encoder`, rows made by another are refused.
    """

    def __init__(self, locate: Callable[[str], Path], codec: str | None = None, text_encoder: str | None = None):
        self._locate, self._codec, self._text_encoder = locate, codec, text_encoder
        self._maps: dict[str, NDArray[np.uint8]] = {}

    def window(self, row: Latent, begin: int, num_frames: int, interval: int = 1, out: Floats | None = None) -> Floats:
        """Latents of frames begin, begin + interval, ... of a clip -> float16 (t, C, h, w), copied once.

        The copy goes into `out` when given: a slice of a batch, say. Raises DataError: the window is not inside the
        clip, or not one that its codec has latents of, `out` has another shape, or another encoder made the row;
        AlteredObject: the pack is damaged.
        """
        last = begin + (num_frames - 1) * interval
        if begin < 0 or num_frames < 1 or interval < 1 or last >= row.num_frames:
            raise DataError(
                f"{row.id} has {row.num_frames} frames: {num_frames} of them, every {interval} from {begin} on, are "
                "not inside it."
            )
        if row.time_stride > 1 and (begin, interval, (num_frames - 1) % row.time_stride) != (0, 1, 0):
            raise DataError(
                f"The latents of {row.id} each tell of {row.time_stride} frames and of those before: a window of them "
                f"begins at frame 0 and has 1, {1 + row.time_stride}, {1 + 2 * row.time_stride} ... frames that follow "
                f"each other, not {num_frames}, every {interval} from {begin} on."
            )
        self._check_encoders(row)
        shape = (row.num_latents, row.latent_channels, row.latent_height, row.latent_width)
        end = last // row.time_stride + 1
        return _copied(self._piece(row.pack, row.latents_offset_bytes, shape)[begin:end:interval], out, row)

    def text(self, row: Latent, out: Floats | None = None) -> Floats:
        """The features of a row's caption -> float16 (L, width), copied once. Raises as `window` does."""
        self._check_encoders(row)
        return _copied(self._piece(row.text_pack, row.text_offset_bytes, (row.num_tokens, row.text_width)), out, row)

    def empty_text(self, row: Latent, out: Floats | None = None) -> Floats:
        """The features of the empty caption -> float16 (L, width): of all rows of one text encoder the same."""
        self._check_encoders(row)
        shape = (row.num_empty_tokens, row.text_width)
        return _copied(self._piece(row.empty_text_pack, row.empty_text_offset_bytes, shape), out, row)

    def close(self) -> None:
        """Let go of every map. What was read stays valid: it was copied."""
        self._maps.clear()

    def _check_encoders(self, row: Latent) -> None:
        for what, made, wanted in (
            ("latents", row.codec, self._codec),
            ("caption features", row.text_encoder, self._text_encoder),
        ):
            if wanted is not None and made != wanted:
                raise DataError(
                    f"The {what} of {row.id} were made by {made}, here {wanted} is expected: the two mean different "
                    "things. Run the latents stage again with one encoder for all."
                )

    def _piece(self, pack: str, offset: int, shape: tuple[int, ...]) -> Floats:
        piece: Floats = self.piece(pack, offset, int(np.prod(shape)) * FLOAT.itemsize).view(FLOAT).reshape(shape)
        return piece

    def piece(self, pack: str, offset: int, size: int) -> NDArray[np.uint8]:
        """The bytes of a piece, not copied: valid as long as the pack's file.

        Raises AlteredObject: the pack is damaged.
        """
        data = self._maps.get(pack)
        if data is None:
            data = self._maps[pack] = _open(self._locate(pack), pack)
        if offset < len(HEADING) or offset % ALIGNMENT_BYTES or offset + size > len(data):
            raise AlteredObject(
                pack,
                f"is damaged or not the pack of its index: it has {len(data)} bytes, and a piece of {size} should "
                f"begin at {offset}. Run the latents stage again: it makes anew what is damaged.",
            )
        return data[offset : offset + size]


def one_encoder(rows: Iterable[Latent]) -> tuple[str, str]:
    """The (codec, text encoder) that made all rows. Raises DataError: there are several, or no rows."""
    made = {(row.codec, row.text_encoder) for row in rows}
    if len(made) != 1:
        raise DataError(
            f"Latents of {len(made)} different encoders cannot be trained on together"
            + (f" ({'; '.join(' and '.join(each) for each in sorted(made))})" if made else "")
            + ": run the latents stage with one."
        )
    return made.pop()


def _open(path: Path, pack: str) -> NDArray[np.uint8]:
    try:
        # mmap refuses an empty file, so its size is asked first.
        data = np.memmap(path, np.uint8, mode="r") if path.stat().st_size else np.empty(0, np.uint8)
    except OSError as error:
        raise AlteredObject(pack, f"cannot be read ({error.strerror}). Run the latents stage again.") from error
    if bytes(data[: len(HEADING)]) != HEADING:
        raise AlteredObject(pack, "is no pack of latents of this version. Run the latents stage again.")
    return data


def _copied(piece: Floats, out: Floats | None, row: Latent) -> Floats:
    if out is None:
        return np.array(piece, dtype=np.float16)
    if out.shape != piece.shape:
        raise DataError(f"{row.id}: a piece of {piece.shape} does not fit a place of {out.shape}.")
    np.copyto(out, piece)
    return out
