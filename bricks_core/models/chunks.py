"""Work done some frames at a time, so that only the result grows with their number."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def in_chunks(
    work: Callable[[Tensor], Tensor], frames: Tensor, size: int, device: torch.device | str | None = None
) -> Tensor:
    """work(frames), `size` frames at a time.  (T, ...) -> (T, ...), on `device`, or where the work leaves it; T >= 1

    The result is written into one tensor: parts that are put together at the end would be held twice.
    """
    first = work(frames[:size])
    if len(frames) <= size:
        return first if device is None else first.to(device)
    whole = torch.empty(len(frames), *first.shape[1:], dtype=first.dtype, device=device or first.device)
    whole[:size] = first
    del first
    for start in range(size, len(frames), size):
        whole[start : start + size] = work(frames[start : start + size])
    return whole
