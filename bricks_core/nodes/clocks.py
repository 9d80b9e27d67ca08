"""How far nodes' clocks are apart: where they differ, S3's signatures expire and nobody can read several logs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist

from bricks_core.nodes.checks import left_out
from bricks_core.nodes.report import ANOTHER_NODE, Check
from bricks_core.spec.cluster import PreflightProfile

ROUNDS = 7


def skews_s(
    leaders: Sequence[int], group: dist.ProcessGroup | None, clock: Callable[[], float] = time.time
) -> list[float]:
    """How much later each leader's clock is than the first one's, in seconds, told to the first; zeros in the others.

    `leaders`: one process of each node. Only they may call it. The first asks each for its time; the answer was given
    half a round trip ago, as in NTP (RFC 5905, section 8), and the quickest of some rounds is the most exact.
    """
    here, first = dist.get_rank(), leaders[0]
    skews = [0.0] * len(leaders)
    for place, leader in enumerate(leaders[1:], start=1):
        answer = torch.zeros(1, dtype=torch.float64)
        if here == first:
            best_s = float("inf")
            for _ in range(ROUNDS):
                asked_s, begun_s = clock(), time.monotonic()
                dist.send(answer, leader, group=group)
                dist.recv(answer, leader, group=group)
                trip_s = time.monotonic() - begun_s
                if trip_s < best_s:
                    best_s, skews[place] = trip_s, float(answer) - (asked_s + trip_s / 2)
        elif here == leader:
            for _ in range(ROUNDS):
                dist.recv(answer, first, group=group)
                dist.send(torch.tensor([clock()], dtype=torch.float64), first, group=group)
    return skews


def off_by_s(skews: Sequence[float]) -> list[float]:
    """How far each node's clock is off, from how much later each is than the first one's.

    Off what most say: it may be the first one's that is wrong, and its node that is to go. Of two nobody can tell, and
    the second is taken for it.
    """
    middle = statistics.median(skews) if len(skews) > 2 else 0.0
    return [skew - middle for skew in skews]


def clock_check(skew_s: float, num_nodes: int, profile: PreflightProfile) -> Check:
    """Whether a node's clock is near enough to the other nodes'."""
    if num_nodes == 1:
        return left_out("clock", "There is one node.")
    if not profile.clock_skew_s:
        return left_out("clock", "preflight.clockSkewS is 0.")
    fine = abs(skew_s) <= profile.clock_skew_s
    words = f"The clock is {abs(skew_s):.1f} s {'ahead of' if skew_s > 0 else 'behind'} the other nodes', and "
    words += f"{profile.clock_skew_s:g} s are allowed: see that chrony or ntpd runs on this node."
    return Check(
        name="clock",
        state="passed" if fine else "failed",
        measured=round(skew_s, 3),
        wanted=profile.clock_skew_s,
        unit="s",
        sentence="" if fine else words,
        exit_code=0 if fine else ANOTHER_NODE,
    )
