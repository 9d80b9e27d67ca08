"""Open-Sora 1.1 beside Bricks: single modules of it, without the stack of 2024 that it pins.

Its requirements (torch 2.2, ColossalAI, xformers, pandarallel) cannot live in one environment with ours. Of them its
network, its sampler and its loader use four things: a device, attention over packed captions, a reader of videos, and
rows of a table worked on at once. These are given here, exact; everything else that is computed is upstream's own.
docs/open-sora.md says how it is installed.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

WITHOUT_THEIR_INIT = ("models", "models.stdit", "models.layers", "schedulers", "datasets", "utils", "acceleration")
"""Packages whose __init__ imports every model, encoder and launcher there is."""


ALWAYS = {"xformers", "pandarallel"}
"""Stood in for also where they are installed: the one has no kernel for the CPU, where the comparison runs, the other
does not know pandas 3."""
LAUNCHERS = {"apex", "colossalai", "flash_attn"}


def folder() -> Path | None:
    """Where Open-Sora 1.1 is installed; None where it is not, or where another package has its name."""
    spec = importlib.util.find_spec("opensora")
    places = [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
    return next((place for place in places if (place / "models" / "stdit" / "stdit2.py").is_file()), None)


@contextmanager
def importable(root: Path) -> Iterator[Callable[[str], Any]]:
    """Gives a function that imports a module of Open-Sora by name, and afterwards forgets all that was imported so."""
    stand_ins = _StandIns(ALWAYS | {name for name in LAUNCHERS if importlib.util.find_spec(name) is None})
    ours = {name for name in sys.modules if name.partition(".")[0] in {"opensora", *stand_ins.names}}
    put_aside = {name: sys.modules.pop(name) for name in ours}
    sys.meta_path.insert(0, stand_ins)
    try:
        for name in ("", *WITHOUT_THEIR_INIT):
            package = ModuleType(".".join(filter(None, ("opensora", name))))
            package.__path__ = [str(root.joinpath(*name.split(".")))]
            sys.modules[package.__name__] = package
        _use_exact_attention()
        _use_our_reader()
        with _rows_one_by_one():
            if "colossalai" in stand_ins.names:
                devices: Any = importlib.import_module("colossalai.utils")
                devices.get_current_device = lambda: torch.device("cpu")
            yield importlib.import_module
    finally:
        sys.meta_path.remove(stand_ins)
        for name in list(sys.modules):
            if name.partition(".")[0] in {"opensora", *stand_ins.names}:
                del sys.modules[name]
        sys.modules.update(put_aside)


class _StandIns(MetaPathFinder, Loader):
    """Modules of absent packages: whatever is imported from them is an empty class, good for inheriting from."""

    def __init__(self, names: set[str]):
        self.names = names

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if fullname.partition(".")[0] not in self.names:
            return None
        return ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Empty(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


class _Empty(ModuleType):
    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def _use_exact_attention() -> None:
    """Attention of every sample over its own span of the packed captions, by softmax in float32.

    q (1, sum of N, heads, d), k and v (1, sum of lengths, heads, d); the mask is the two lists of lengths.
    """

    def attention(q: Tensor, k: Tensor, v: Tensor, attn_bias: tuple[list[int], list[int]], p: float = 0.0) -> Tensor:
        assert p == 0.0
        rows, tokens = attn_bias
        mixed = []
        for one_q, one_k, one_v in zip(
            q[0].split(rows), k[0].split(tokens), v[0].split(tokens), strict=True
        ):  # (N, heads, d)
            scores = torch.einsum("nhd,lhd->hnl", one_q.float(), one_k.float()) / q.shape[-1] ** 0.5
            mixed.append(torch.einsum("hnl,lhd->nhd", scores.softmax(dim=-1), one_v.float()))
        return torch.cat(mixed)[None].to(q.dtype)

    ops: Any = importlib.import_module("xformers.ops")
    lengths = SimpleNamespace(from_seqlens=lambda rows, tokens: (list(rows), list(tokens)))
    ops.fmha = SimpleNamespace(BlockDiagonalMask=lengths)
    ops.memory_efficient_attention = attention


@contextmanager
def _rows_one_by_one() -> Iterator[None]:
    """pandarallel's one method, without its processes."""
    import pandas

    module: Any = importlib.import_module("pandarallel")
    module.pandarallel = SimpleNamespace(initialize=lambda **options: None)
    frame: Any = pandas.DataFrame
    frame.parallel_apply = frame.apply
    try:
        yield
    finally:
        del frame.parallel_apply


def _use_our_reader() -> None:
    """torchvision's readers of videos, which later versions of it have no more."""
    from bricks_core.video.probe import probe
    from bricks_core.video.read import read_rgb

    try:
        io: Any = importlib.import_module("torchvision.io")
    except ModuleNotFoundError:
        return
    if hasattr(io, "read_video") and hasattr(io, "write_video"):
        return

    def read_video(filename: str, pts_unit: str = "sec", output_format: str = "TCHW") -> tuple[Tensor, Tensor, dict]:
        assert (pts_unit, output_format) == ("sec", "TCHW")
        frames = torch.from_numpy(read_rgb(filename)).permute(0, 3, 1, 2)
        return frames, torch.empty(1, 0), {"video_fps": probe(Path(filename)).fps}

    io.read_video, io.write_video = read_video, type("write_video", (), {})
