"""The wires: how fast processes sum a tensor, in one node and over all, and whether the sum is right."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta

import torch
import torch.distributed as dist

from bricks_core.nodes.report import Sweep

TIMEOUT = timedelta(minutes=3)
"""Of one collective here. Training waits longer, for work that takes long; here a hang is a fault."""
MAX_CPU_BYTES = 16 << 20
"""gloo has reached its speed by then."""
SMALLEST_BYTES = 64 << 10
STEP = 8
REPEATS = 5


def sizes(max_bytes: int, device: torch.device) -> list[int]:
    """Sizes of a sweep, the largest last."""
    largest = max_bytes if device.type == "cuda" else min(max_bytes, MAX_CPU_BYTES)
    found = [largest]
    while found[0] // STEP >= SMALLEST_BYTES:
        found.insert(0, found[0] // STEP)
    return found


def sweep(group: dist.ProcessGroup, device: torch.device, num_bytes: Sequence[int], scope: str) -> list[Sweep]:
    """All-reduce each size in a group, as this process sees it. All of the group call it.

    Raises ArithmeticError: a sum is wrong. RuntimeError: torch's, when it does not come through.
    """
    count = dist.get_world_size(group)
    found = []
    for size in num_bytes:
        numbers = torch.full((size // 4,), float(dist.get_rank(group) + 1), device=device)
        dist.all_reduce(numbers, group=group)
        wrong = int((numbers != count * (count + 1) / 2).sum())
        if wrong:
            raise ArithmeticError(f"{wrong} of {size // 4} sums of {count} processes are wrong")
        numbers.zero_()
        dist.barrier(group=group)
        _finish(device)
        begun_s = time.perf_counter()
        for _ in range(REPEATS):
            dist.all_reduce(numbers, group=group)
        _finish(device)
        seconds = (time.perf_counter() - begun_s) / REPEATS
        rate = size / seconds * 2 * (count - 1) / count / 1e9
        found.append(Sweep(scope=scope, num_processes=count, num_bytes=size, seconds=seconds, bus_gbps=rate))
    return found


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def at_fault(pairs_gbps: Sequence[float], wanted_gbps: float) -> set[int]:
    """Which nodes make the whole slow, from the bandwidth between each node and the next, the last and the first.

    A node is at fault when it is slow with both its neighbours; where only one pair is slow, both of it may be.
    Nobody, when all pairs are slow: then it is not a node.
    """
    count = len(pairs_gbps)
    slow = [rate < wanted_gbps for rate in pairs_gbps]
    if all(slow):
        return set()
    both = {node for node in range(count) if slow[node] and slow[node - 1]}
    for place, is_slow in enumerate(slow):
        pair = {place, (place + 1) % count}
        if is_slow and not pair & both:
            both |= pair
    return both
