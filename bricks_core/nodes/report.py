"""What a preflight found: checks, nodes, and what follows from them for each node.

runs/<run>/preflight/node-<rank>.json     one node, written by itself
runs/<run>/preflight/preflight.json       all of them, written by the first process
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from bricks_core.errors import PreflightFailed, SpecError, StoreUnavailable, TryLater
from bricks_core.spec.strict import Strict

State = Literal["passed", "failed", "left out"]
ANOTHER_NODE, CONFIGURATION = PreflightFailed.exit_code, SpecError.exit_code


class Check(Strict):
    """One thing that a node must be able to do."""

    name: str
    state: State
    measured: float | None = None
    wanted: float | None = None
    """The least, or for a difference of clocks the most. null: it is not compared with anything."""
    unit: str = ""
    sentence: str = ""
    """What it is, and when it failed how to mend it."""
    exit_code: int = 0
    """What a failure means: 77 another node would do, 78 the settings are wrong, 69 or 75 a service is away."""


class Sweep(Strict):
    """One size of an all-reduce."""

    scope: str
    """node: the processes of one node. cluster: all. pair: two neighbouring nodes."""
    num_processes: int
    num_bytes: int
    seconds: float
    bus_gbps: float
    """GB/s that every process's link carried: num_bytes / seconds · 2(n - 1)/n (nccl-tests, PERFORMANCE.md)."""


class NodeReport(Strict):
    """What one node found about itself."""

    node_rank: int
    node_name: str = ""
    hostname: str = ""
    checks: list[Check] = []
    sweeps: list[Sweep] = []

    @property
    def failed(self) -> list[Check]:
        return [check for check in self.checks if check.state == "failed"]

    @property
    def title(self) -> str:
        return f"Node {self.node_rank} ({self.node_name or self.hostname})"

    @property
    def fault(self) -> str:
        return f"{self.title}: {' '.join(check.sentence for check in self.failed)}"


class Report(Strict):
    """preflight.json."""

    run: str
    time: str
    fit: bool
    exit_codes: list[int] = Field([])
    """Of the nodes, by their rank."""
    nodes: list[NodeReport] = []


@dataclass(frozen=True)
class Verdict:
    """What follows for one node."""

    code: int
    sentence: str


def verdicts(nodes: Sequence[NodeReport]) -> list[Verdict]:
    """What every node ends with: 0 where all are fit.

    A setting that is wrong on every node is wrong (78). Where others have it right it is the node that is unlike them,
    and another one would do (77). A node that is fit but cannot train for another's sake tries later (75).
    """
    if not any(node.failed for node in nodes):
        return [Verdict(0, "") for _ in nodes]
    everywhere = Counter(
        name for node in nodes for name in {check.name for check in node.failed if check.exit_code == CONFIGURATION}
    )
    wrong = {name for name, count in everywhere.items() if count == len(nodes)}
    if wrong:
        found = [check.sentence for check in nodes[0].failed if check.name in wrong]
        return [Verdict(CONFIGURATION, " ".join(found)) for _ in nodes]
    others = " ".join(node.fault for node in nodes if node.failed)
    return [_verdict(node, others) for node in nodes]


def _verdict(node: NodeReport, others: str) -> Verdict:
    if not node.failed:
        return Verdict(TryLater.exit_code, f"This node is fit, and another one is not. {others}")
    codes = {ANOTHER_NODE if check.exit_code == CONFIGURATION else check.exit_code for check in node.failed}
    waits = codes & {StoreUnavailable.exit_code, TryLater.exit_code}
    # A store that is away says nothing about the node, so a fault of its own counts more.
    code = ANOTHER_NODE if ANOTHER_NODE in codes else min(waits or codes)
    return Verdict(code, node.fault)


def table(report: Report) -> str:
    """For a person: a line a check, and what to do about those that failed."""
    lines = []
    for node in report.nodes:
        lines.append(node.title)
        for check in node.checks:
            wanted = "" if check.wanted is None else f"   wanted {_number(check.wanted, check.unit)}"
            measured = "" if check.measured is None else _number(check.measured, check.unit)
            lines.append(f"  {check.name:<26} {check.state:<9} {measured:>12}{wanted}".rstrip())
            if check.state == "failed":
                lines.append(f"      {check.sentence}")
    lines.append("All nodes are fit." if report.fit else "Not fit to train.")
    return "\n".join(lines)


def _number(value: float, unit: str) -> str:
    if value == float("inf"):
        return "unlimited"
    if unit == "bytes":
        for size, word in ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
            if value >= size:
                return f"{value / size:.4g} {word}"
    return f"{value:.4g} {unit}".strip()
