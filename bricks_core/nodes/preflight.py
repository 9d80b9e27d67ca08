"""Before training: whether every node is fit, asked by the very processes that will train.

First what a node can tell alone, then the clocks, then the wires: all-reduce in each node, then over all of them. When
a process is started again the wires are not measured again, unless a node has come anew; everything else is.
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist

from bricks_core.errors import BricksError, PreflightFailed, SpecError, StoreUnavailable, TryLater
from bricks_core.nodes import checks, gpus
from bricks_core.nodes.all_reduce import TIMEOUT, at_fault, sizes, sweep
from bricks_core.nodes.clocks import clock_check, off_by_s, skews_s
from bricks_core.nodes.exit_codes import leave_word
from bricks_core.nodes.report import (
    ANOTHER_NODE,
    CONFIGURATION,
    Check,
    NodeReport,
    Report,
    Sweep,
    Verdict,
    table,
    verdicts,
)
from bricks_core.spec.cluster import PreflightProfile
from bricks_core.stages.train.parallel import Processes, is_lost_peer
from bricks_core.storage.store import Store

log = logging.getLogger("bricks")


@dataclass(frozen=True)
class Node:
    """What is asked of this node."""

    run: str
    rank: int = 0
    name: str = ""
    num_gpus: int = 0
    """0: none is asked for."""
    rdma: bool = False
    profile: PreflightProfile = field(default_factory=PreflightProfile)


@dataclass(frozen=True)
class _Place:
    """Where one process is."""

    node_rank: int
    group_rank: int
    local_rank: int
    node_passed: bool


def preflight(
    node: Node,
    store: Store,
    everyone: Processes,
    *,
    say: Callable[[str], None] = log.info,
    clock: Callable[[], float] = time.time,
) -> Report:
    """Ask everything; all processes of all nodes call it. The first one says the outcome as a table.

    Raises PreflightFailed: this node is not fit, another would do. SpecError: the settings are wrong on every node.
    StoreUnavailable: the store is away. TryLater: this node is fit, and another is not.
    """
    flight = _Flight(node, store, everyone, clock)
    reports = flight.ask()
    found = verdicts(reports)
    report = Report(
        run=node.run,
        time=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        fit=not any(each.code for each in found),
        exit_codes=[each.code for each in found],
        nodes=reports,
    )
    if flight.is_leader:
        flight.write(f"node-{node.rank}.json", reports[flight.index])
    if everyone.is_first:
        flight.write("preflight.json", report)
        if not (report.fit and flight.was_passed):
            say(table(report))
    everyone.wait_for_all()  # nobody ends, and has the others ended, before all is written
    _raise(found[flight.index])
    if flight.is_leader and (marker := _marker()):
        marker.touch()
    return report


class _Flight:
    """One process's part in a preflight."""

    def __init__(self, node: Node, store: Store, everyone: Processes, clock: Callable[[], float]):
        self.node, self.store, self.everyone, self.clock = node, store, everyone, clock
        place = _Place(
            node_rank=node.rank,
            group_rank=int(os.environ.get("GROUP_RANK", "0")),
            local_rank=int(os.environ.get("LOCAL_RANK", "0")),
            node_passed=(marker := _marker()) is not None and marker.exists(),
        )
        self.is_leader = place.local_rank == 0
        self.profiles: list[PreflightProfile] = []
        """By node. What is over all nodes follows the first one's, so that all come to the same verdict."""
        self.places: list[_Place] = self._gathered(place)
        self.node_ranks = sorted({each.node_rank for each in self.places})
        if len(self.node_ranks) < len({each.group_rank for each in self.places}):
            raise SpecError(
                f"Several nodes say that they are node {node.rank}: give each a --node-rank of its own, from 0."
            )
        self.index = self.node_ranks.index(node.rank)
        self.was_passed = all(each.node_passed for each in self.places)
        """Whether these very nodes have passed together before, and processes of theirs were started again since."""

    def ask(self) -> list[NodeReport]:
        """Every node's report, by its rank, the same in all processes."""
        own = self._node_checks() if self.is_leader else []
        if self.everyone.device.type == "cuda" and self.node.num_gpus:
            own.append(gpus.computes(self.everyone.device.index))
        skews = self._skews()
        gathered = self._gathered((platform.node(), self.node.name, own, skews, self.node.profile))
        first = next(found[3] for found, place in zip(gathered, self.places, strict=True) if self._leads_first(place))
        off_s = off_by_s(first)
        reports = []
        for index, rank in enumerate(self.node_ranks):
            of_node = [found for found, place in zip(gathered, self.places, strict=True) if place.node_rank == rank]
            found = [check for each in of_node for check in each[2]]
            found.insert(0, clock_check(off_s[index], len(self.node_ranks), of_node[0][4]))
            self.profiles.append(of_node[0][4])
            reports.append(NodeReport(node_rank=rank, node_name=of_node[0][1], hostname=of_node[0][0], checks=found))
        if any(report.failed for report in reports):
            words = "Not measured: something else is wrong already."
            return [_with(report, [checks.left_out("all-reduce", words)]) for report in reports]
        if self.was_passed:
            words = "Measured when these nodes met first."
            return [_with(report, [checks.left_out("all-reduce", words)]) for report in reports]
        return self._wires(reports)

    def write(self, name: str, report: NodeReport | Report) -> None:
        """Leave it in the store, which may be the very thing that is away."""
        try:
            data = report.model_dump_json(indent=1).encode() + b"\n"
            self.store.put(f"runs/{self.node.run}/preflight/{name}", data)
        except BricksError as error:
            log.warning("preflight: %s was not written: %s", name, error)

    def _node_checks(self) -> list[Check]:
        node = self.node
        return [
            *gpus.gpus(node.num_gpus),
            checks.lockable_memory(node.profile, rdma=node.rdma),
            checks.rdma_devices(rdma=node.rdma),
            checks.verbs_library(rdma=node.rdma),
            checks.free_disk(node.profile),
            checks.shared_memory(node.profile),
            checks.store_write(self.store, node.run, node.rank),
        ]

    def _skews(self) -> list[float]:
        if len(self.node_ranks) == 1 or not self.is_leader:
            return [0.0] * len(self.node_ranks)
        leaders = {place.node_rank: rank for rank, place in enumerate(self.places) if place.local_rank == 0}
        return skews_s([leaders[rank] for rank in self.node_ranks], self.everyone.control, self.clock)

    def _wires(self, reports: list[NodeReport]) -> list[NodeReport]:
        """The reports with all-reduce in each node and over all."""
        profile, found = self.profiles[0], [list[Check]() for _ in reports]
        node_sweeps, all_sweeps = self._in_each_node(), self._over_all()
        pairs: list[float] = []
        if all_sweeps and profile.cluster_bus_gbps and all_sweeps[-1].bus_gbps < profile.cluster_bus_gbps:
            pairs = self._between_neighbours()
        guilty = _guilty(len(reports), pairs, profile.cluster_bus_gbps, self.node.rdma)
        for index, (checked, sweeps) in enumerate(zip(found, node_sweeps, strict=True)):
            words = "inside this node: look at its GPUs' links (nvidia-smi topo -m), or lower preflight.nodeBusGbps."
            checked.append(
                _bandwidth("node all-reduce", sweeps, self.profiles[index].node_bus_gbps, words, ANOTHER_NODE)
            )
            words = "over all nodes. Look for NET/Socket in NCCL's lines (NCCL_DEBUG=INFO): TCP instead of InfiniBand. "
            words += "Or lower preflight.clusterBusGbps to what this cluster can."
            code = guilty.get(index, 0)
            over_all = _bandwidth("cluster all-reduce", all_sweeps, profile.cluster_bus_gbps, words, code)
            if over_all.state == "failed" and not code:  # it is another node's fault
                over_all = over_all.model_copy(update={"state": "passed", "sentence": "Slow because of other nodes."})
            checked.append(over_all)
        swept = [[*each, *all_sweeps] for each in node_sweeps]
        both = zip(reports, found, swept, strict=True)
        return [_with(report, checked).model_copy(update={"sweeps": sweeps}) for report, checked, sweeps in both]

    def _in_each_node(self) -> list[list[Sweep]]:
        """By node, as its leader sees it; nothing where a node has one process."""
        of_nodes = [
            [rank for rank, place in enumerate(self.places) if place.node_rank == each] for each in self.node_ranks
        ]
        words = f"All-reduce inside node {self.node.rank}"
        found = self._measured("node", of_nodes, self._sizes(), PreflightFailed, words)
        return [found[ranks[0]] for ranks in of_nodes]

    def _over_all(self) -> list[Sweep]:
        if len(self.node_ranks) == 1:
            return []
        everybody = list(range(self.everyone.world_size))
        words = "All-reduce over all nodes"
        return self._measured("cluster", [everybody], self._sizes(), TryLater, words)[0]

    def _between_neighbours(self) -> list[float]:
        """Bus bandwidth between each node and the next one, at the largest size. One pair after the other."""
        if len(self.node_ranks) == 2:
            return []
        rates = []
        for index, rank in enumerate(self.node_ranks):
            pair = {rank, self.node_ranks[(index + 1) % len(self.node_ranks)]}
            ranks = [each for each, place in enumerate(self.places) if place.node_rank in pair]
            words = f"All-reduce between nodes {sorted(pair)}"
            found = self._measured("pair", [ranks], self._sizes()[-1:], TryLater, words)
            rates.append(found[ranks[0]][-1].bus_gbps)
        return rates

    def _measured(
        self, scope: str, groups: list[list[int]], num_bytes: list[int], error: type[BricksError], words: str
    ) -> list[list[Sweep]]:
        """Every process's sweeps in the group of `groups` that it is in, at the same time in all groups."""
        own: list[Sweep] = []
        if any(len(ranks) > 1 for ranks in groups):
            made = [dist.new_group(ranks, timeout=2 * TIMEOUT) for ranks in groups]
            with _given_up(words, error):
                for ranks, group in zip(groups, made, strict=True):
                    if self.everyone.rank in ranks and len(ranks) > 1:
                        own = self._swept(group, num_bytes, scope, words)
                self.everyone.wait_for_all()
            for ranks, group in zip(groups, made, strict=True):
                if self.everyone.rank in ranks:
                    dist.destroy_process_group(group)
        return self._gathered(own)

    def _swept(self, group: Any, num_bytes: list[int], scope: str, words: str) -> list[Sweep]:
        try:
            return sweep(group, self.everyone.device, num_bytes, scope)
        except (RuntimeError, ArithmeticError) as error:
            if isinstance(error, RuntimeError) and is_lost_peer(error):
                raise
            # Not told to the others first: they hang in the same all-reduce. The agents end them.
            sentence = f"{words} fails on this node ({' '.join(str(error).split())[:300]}): another node, please."
            failure = Check(name=f"{scope} all-reduce", state="failed", sentence=sentence, exit_code=ANOTHER_NODE)
            here = NodeReport(
                node_rank=self.node.rank, node_name=self.node.name, hostname=platform.node(), checks=[failure]
            )
            self.write(f"node-{self.node.rank}.json", here)
            raise PreflightFailed(sentence) from error

    def _sizes(self) -> list[int]:
        return sizes(self.profiles[0].max_bytes, self.everyone.device)

    def _gathered(self, value: Any) -> list[Any]:
        if self.everyone.world_size == 1:
            return [value]
        found: list[Any] = [None] * self.everyone.world_size
        dist.all_gather_object(found, value, group=self.everyone.control)
        return found

    def _leads_first(self, place: _Place) -> bool:
        return place.local_rank == 0 and place.node_rank == self.node_ranks[0]


@contextlib.contextmanager
def _given_up(words: str, error: type[BricksError]) -> Iterator[None]:
    """End this process when what is within hangs: a collective cannot be left from outside."""

    def give_up() -> None:
        sentence = f"{words} does not come through within {TIMEOUT.total_seconds():.0f} s, and no process says why."
        if not leave_word(error(sentence)):
            log.error("%s", sentence)
        os._exit(error.exit_code)

    timer = threading.Timer(TIMEOUT.total_seconds(), give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _guilty(num_nodes: int, pairs_gbps: Sequence[float], wanted_gbps: float, rdma: bool) -> dict[int, int]:
    """By the place of a node, what a slow all-reduce over all nodes ends it with.

    Of two nodes nobody can tell which: with InfiniBand, where TCP is shut out, one of them is; without, the network.
    """
    if num_nodes == 2 and rdma:
        return dict.fromkeys(range(num_nodes), ANOTHER_NODE)
    found = at_fault(pairs_gbps, wanted_gbps) if pairs_gbps else set[int]()
    return dict.fromkeys(found, ANOTHER_NODE) or dict.fromkeys(range(num_nodes), CONFIGURATION)


def _bandwidth(name: str, sweeps: Sequence[Sweep], wanted_gbps: float, words: str, code: int) -> Check:
    if not sweeps:
        return checks.left_out(
            name, "There is one process to sum." if name.startswith("node") else "There is one node."
        )
    measured = round(sweeps[-1].bus_gbps, 3)
    if not wanted_gbps or measured >= wanted_gbps:
        return Check(name=name, state="passed", measured=measured, wanted=wanted_gbps or None, unit="GB/s")
    sentence = f"All-reduce carries {measured:g} GB/s and {wanted_gbps:g} are wanted {words}"
    return Check(
        name=name,
        state="failed",
        measured=measured,
        wanted=wanted_gbps,
        unit="GB/s",
        sentence=sentence,
        exit_code=code,
    )


def _with(report: NodeReport, more: list[Check]) -> NodeReport:
    return report.model_copy(update={"checks": [*report.checks, *more]})


def _raise(verdict: Verdict) -> None:
    if not verdict.code:
        return
    kinds: tuple[type[BricksError], ...] = (PreflightFailed, SpecError, StoreUnavailable, TryLater)
    for kind in kinds:
        if kind.exit_code == verdict.code:
            raise kind(verdict.sentence)
    raise PreflightFailed(verdict.sentence)


def _marker() -> Path | None:
    """A file of the agent's: there when this node has passed, whichever of its processes were started again."""
    text = os.environ.get("BRICKS_PREFLIGHT_PASSED")
    return Path(text) if text else None
