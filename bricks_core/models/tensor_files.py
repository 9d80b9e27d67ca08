"""Tensors in files, one in memory at a time: safetensors, alone or in shards under an index, and what torch.save wrote.

Nothing in a file is ever executed: pickles are read with torch's own reader of weights alone.
"""

from __future__ import annotations

import json
import math
import os
import re
import warnings
import zipfile
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from bricks_core.errors import DataError
from bricks_core.storage.os_errors import told

INDEX = ".index.json"
"""How the name of an index ends, whatever the shards are."""

MAX_HEAD_BYTES = 100_000_000
"""As safetensors' own reader has it."""

ALIGNMENT_BYTES = 64
"""Of the memory that torch takes on the CPU (c10/core/alignment.h)."""

DTYPES = {
    "I64": torch.int64,
    "F64": torch.float64,
    "F32": torch.float32,
    "I32": torch.int32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I16": torch.int16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""By their names in safetensors' heading, in the order in which it lays their data."""
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Heading(NamedTuple):
    """What is known of a tensor before it is read."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def numbers(self) -> int:
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        return self.numbers * self.dtype.itemsize


@dataclass(frozen=True)
class Tensors:
    """The tensors of a file, or of several under an index."""

    place: Path
    """How to call it."""
    files: tuple[Path, ...]
    """Those that hold it, an index among them."""
    headings: Mapping[str, Heading]
    _read: Callable[[str], Tensor]

    def read(self, name: str) -> Tensor:
        """One tensor, on the CPU, where torch's kernels want it: see `aligned`.

        Raises:
            DataError: the file has changed since it was opened.
        """
        try:
            with told(self.place, "read"):
                return aligned(self._read(name))
        except RuntimeError as error:
            raise DataError(
                f"{self.place}: {name} cannot be read ({_first_line(error)}): get the file again."
            ) from error

    def read_all(
        self, dtype: torch.dtype | None = None, device: str | torch.device = "cpu", *, exact: Collection[str] = ()
    ) -> dict[str, Tensor]:
        """All of them on a device, as `dtype` but for those that are `exact`, float32. None: as they are in the file.

        Memory for all is taken before the first is read: what is read of another type, and given back, would else leave
        holes between those that stay (of 160 MB in bfloat16, up to 57 MB more than they need).
        """
        types = {name: torch.float32 if dtype is not None and name in exact else dtype for name in self.headings}
        taken = {
            name: torch.empty(heading.shape, dtype=types[name] or heading.dtype, device=device)
            for name, heading in self.headings.items()
        }
        for name, tensor in taken.items():
            tensor.copy_(self.read(name))
        return taken

    @property
    def size_bytes(self) -> int:
        return sum(heading.size_bytes for heading in self.headings.values())

    @property
    def numbers(self) -> int:
        return sum(heading.numbers for heading in self.headings.values())

    def without(self, names: Iterable[str]) -> Tensors:
        """The same, as if it did not hold these."""
        gone = set(names)
        return replace(self, headings={name: each for name, each in self.headings.items() if name not in gone})

    def changed(self, name: str, shape: tuple[int, ...], change: Callable[[Tensor], Tensor]) -> Tensors:
        """The same, with one tensor put through a function that gives it this shape."""
        headings = dict(self.headings) | {name: Heading(self.headings[name].dtype, shape)}
        return replace(
            self, headings=headings, _read=lambda each: change(self._read(each)) if each == name else self._read(each)
        )


# ----------------------------------------------------------------------------------------------------------- in memory


def aligned(tensor: Tensor) -> Tensor:
    """The same numbers at an address that torch could have given them itself; a copy where they lie elsewhere.

    torch's own memory begins at multiples of 64 bytes. What a reader of files or NumPy has made begins where the file's
    heading ends, or at multiples of 16, and there sums round otherwise: MKL promises the same bits only for memory
    aligned at 64 (oneMKL developer guide, "Obtaining Numerically Reproducible Results"). On an AMD EPYC a vector times
    a matrix that lies 4 or 8 bytes off a multiple of 16 moves a network's output by 1e-6.
    """
    return tensor.clone() if tensor.device.type == "cpu" and tensor.data_ptr() % ALIGNMENT_BYTES else tensor


def align(network: nn.Module) -> None:
    """The same for all that a network holds, in place: of loaders that leave weights where the file was mapped.

    Weights under several names stay one.
    """
    for tensor in [*network.parameters(), *network.buffers()]:
        tensor.data = aligned(tensor.data)


# ------------------------------------------------------------------------------------------------------------- reading


def open_tensors(file: Path) -> Tensors:
    """The tensors of a safetensors file, of a file of torch, or of all shards that an index names.

    Raises:
        DataError: it is none of these, is cut short, holds more than tensors, or a shard is missing.
    """
    if file.name.endswith(INDEX):
        return _open_shards(file)
    return _open_safetensors(file) if file_kind(file) == "safetensors" else _open_pickle(file)


def read_tensors(file: Path) -> dict[str, Tensor]:
    """All of them, in memory of torch's own. Raises as `open_tensors` and `Tensors.read` do."""
    opened = open_tensors(file)
    return {name: opened.read(name) for name in opened.headings}


def file_kind(file: Path) -> Literal["safetensors", "pickle"]:
    """What a file of weights is, by how it begins.

    Raises:
        DataError: it holds no weights; says what it seems to be.
    """
    with told(file, "read"), file.open("rb") as opened:
        head = opened.read(512)
    if not head:
        raise DataError(f"{file} is empty: it was not written to its end. Get it again.")
    # First of all: the length that a safetensors file begins with may look like the beginning of anything.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < MAX_HEAD_BYTES:
        return "safetensors"
    if head.startswith(b"version https://git-lfs"):
        size = re.search(rb"size (\d+)", head)
        of_bytes = f" of {int(size[1]):,} bytes" if size else ""
        raise DataError(f"{file} is Git LFS's pointer to a file{of_bytes}, not that file: run git lfs pull there.")
    if head.lstrip()[:1] == b"<":
        raise DataError(
            f"{file} is a web page, not weights: the download was answered with one (a login, or an error). Get it "
            "again, and look at its size."
        )
    if head[:2] == b"PK" or head[:1] == b"\x80":
        return "pickle"
    raise DataError(
        f"{file} is no safetensors file and none of torch's: it begins with {head[:8]!r}. Name the file of weights."
    )


def _open_safetensors(file: Path) -> Tensors:
    try:
        opened = safe_open(file, "pt", backend="pread")
        slices = {name: opened.get_slice(name) for name in opened.offset_keys()}
        headings = {name: Heading(DTYPES[each.get_dtype()], tuple(each.get_shape())) for name, each in slices.items()}
        with file.open("rb") as beginning:
            end = 8 + int.from_bytes(beginning.read(8), "little")
            size_bytes = os.fstat(beginning.fileno()).st_size
    except (OSError, SafetensorError) as error:
        why = _what_is_wrong(file) or f"{_first_line(error)}"
        raise DataError(f"{file} is no safetensors file: {why}. Get it again.") from error
    except KeyError as error:
        raise DataError(f"{file} holds tensors of type {error}, which no network here has.") from error
    # One follows the other without a gap; safe_open has checked that.
    begins = {}
    for name, heading in headings.items():
        begins[name], end = end, end + heading.size_bytes

    def read(name: str) -> Tensor:
        # Into memory of torch's own: what safetensors' readers give lies elsewhere, and would be there beside its copy.
        tensor = torch.empty(headings[name].shape, dtype=headings[name].dtype)
        with file.open("rb") as opened:
            if os.fstat(opened.fileno()).st_size != size_bytes:
                raise RuntimeError("the file has another size than when it was opened")
            opened.seek(begins[name])
            opened.readinto(tensor.view(-1).view(torch.uint8).numpy().data)
        return tensor

    return Tensors(file, (file,), headings, read)


def _what_is_wrong(file: Path) -> str:
    """The first thing wrong with a safetensors file, by tensor; nothing when it cannot be told."""
    size_bytes = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if size_bytes < 8 + length:
            return f"it ends within its own heading, at byte {size_bytes:,} of {8 + length:,}"
        try:
            entries = json.loads(opened.read(length))
            entries.pop("__metadata__", None)
            ordered = sorted(entries.items(), key=lambda item: item[1]["data_offsets"])
            return _first_wrong_entry(ordered, size_bytes, 8 + length)
        except (ValueError, KeyError, TypeError, AttributeError, UnicodeDecodeError):
            return "its heading is no list of tensors"


def _first_wrong_entry(ordered: list[tuple[str, Any]], size_bytes: int, head_bytes: int) -> str:
    due = 0
    for place, (name, entry) in enumerate(ordered, 1):
        begin, end = entry["data_offsets"]
        if begin != due:
            return f"its heading puts {name} at byte {begin:,} of the data, where byte {due:,} is due"
        if entry["dtype"] in DTYPES:
            needed = Heading(DTYPES[entry["dtype"]], tuple(entry["shape"])).size_bytes
            if end - begin != needed:
                return f"its heading gives {name} {end - begin:,} bytes, its shape {entry['shape']} needs {needed:,}"
        if head_bytes + end > size_bytes:
            return (
                f"it ends at byte {size_bytes:,}, within {name}, tensor {place} of {len(ordered)}; "
                f"{head_bytes + ordered[-1][1]['data_offsets'][1]:,} bytes are due"
            )
        due = end
    return f"{size_bytes - head_bytes - due:,} bytes follow its last tensor" if size_bytes > head_bytes + due else ""


def _open_shards(index: Path) -> Tensors:
    names: dict[str, str] = read_index(index)
    shards: dict[str, Tensors] = {}
    for file in sorted(set(names.values())):
        if not index.with_name(file).is_file():
            first = next(name for name, each in names.items() if each == file)
            raise DataError(f"{index} names {file} for {first}, but that shard is not there: get it too.")
        shards[file] = open_tensors(index.with_name(file))
    for name, file in names.items():
        if name not in shards[file].headings:
            raise DataError(f"{index} says that {name} is in {file}, but it is not: the two do not belong together.")
    files = (index, *(file for each in shards.values() for file in each.files))
    headings = {name: shards[file].headings[name] for name, file in names.items()}
    return Tensors(index, files, headings, lambda name: shards[names[name]].read(name))


def read_index(index: Path) -> dict[str, str]:
    """The shard of every tensor, by the index that lies beside the shards.

    Raises:
        DataError: it is no such index.
    """
    try:
        with told(index, "read"):
            names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        for name, file in names.items():
            if not isinstance(file, str) or Path(file).name != file:
                raise DataError(f"{index} puts {name} in {file!r}, which is no file beside it.")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{index} is no index of shards: {_first_line(error)}. Get it again.") from error
    if not names:
        raise DataError(f"{index} names no tensor. Get it again.")
    return dict(names)


def _open_pickle(file: Path) -> Tensors:
    if file.suffix == ".safetensors":  # torch.load goes by the name
        raise DataError(f"{file} is called safetensors, but torch.save wrote it: rename it to {file.stem}.pt.")
    is_zip = zipfile.is_zipfile(file)
    if not is_zip:
        with file.open("rb") as opened:
            if opened.read(2) == b"PK":
                raise DataError(f"{file} is cut short: the list at the end of torch's file is missing. Get it again.")
    try:
        # Never anything but tensors and containers: what else a pickle asks for is refused, not executed. Mapped, so
        # that a file of gigabytes is not in memory as a whole.
        with warnings.catch_warnings(action="ignore"):  # what torch thinks of it is told below
            found = torch.load(file, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # a damaged pickle can make its reader fail in any way
        raise DataError(_why_no_weights(file, error)) from error
    state = _state_dict(file, found)
    headings = {name: Heading(tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items()}
    return Tensors(file, (file,), headings, state.__getitem__)


def _why_no_weights(file: Path, error: Exception) -> str:
    asked = re.search(r"GLOBAL ([\w.]+)", str(error))
    if asked:
        return (
            f"{file} wants {asked[1]} to be run while it is read; a file of weights holds tensors alone. Nothing of "
            "it was run. Do not use it, unless you know who made it: then save its tensors as safetensors."
        )
    return f"{file} cannot be read as tensors: it is damaged, or holds something else ({_first_line(error)})."


def _state_dict(file: Path, found: Any) -> dict[str, Tensor]:
    """Tensors by name, also where a trainer wrapped them."""
    for key in ("state_dict", "model", "ema"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not found:
        raise DataError(f"{file} holds no tensors by name but {type(found).__name__}: name the file of weights.")
    for name, tensor in found.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
            raise DataError(f"{file}: {name!r} is {type(tensor).__name__}, not a plain tensor by name.")
    return {name: tensor.detach() for name, tensor in found.items()}


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


# ------------------------------------------------------------------------------------------------------------- writing


def write_safetensors(
    file: Path,
    headings: Mapping[str, Heading],
    read: Callable[[str], Tensor],
    wrote: Callable[[str], None] = lambda name: None,
) -> None:
    """Write tensors as they are read, each cast to its heading's type: the bytes that safetensors' save_file writes.

    `read` gives a tensor by name, `wrote` is told each name. Metadata is that of the published checkpoint.
    """
    with file.open("wb") as opened:
        opened.write(_head(headings))
        for name in _in_order(headings):
            tensor = read(name).detach().to("cpu", headings[name].dtype).contiguous()
            opened.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
            wrote(name)


def safetensors_bytes(headings: Mapping[str, Heading]) -> int:
    """How large write_safetensors will make a file."""
    return len(_head(headings)) + sum(heading.size_bytes for heading in headings.values())


def _head(headings: Mapping[str, Heading]) -> bytes:
    """Eight bytes of length, then JSON filled with spaces, so that the data begins at a multiple of eight."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name in _in_order(headings):
        heading = headings[name]
        entries[name] = {
            "dtype": _NAMES[heading.dtype],
            "shape": list(heading.shape),
            "data_offsets": [begin, begin + heading.size_bytes],
        }
        begin += heading.size_bytes
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _in_order(headings: Mapping[str, Heading]) -> list[str]:
    """As safetensors lays them: wide types first, so that each is aligned; then by name."""
    order = list(DTYPES.values())
    return sorted(headings, key=lambda name: (order.index(headings[name].dtype), name))
