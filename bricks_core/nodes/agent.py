"""A node's agent: starts its training processes, watches them, and starts them again with those of the other nodes.

torchrun's own agent and rendezvous (c10d), called as a library, and what they do not do:

- An end that would only come again (a wrong run file, damaged data, an unfit node) is not tried again.
- The code that counts is told, here and on the other nodes, instead of 1. Nodes leave it on a board: the store where
  they meet, which the first node keeps until all have read it.
- After SIGTERM processes have the pod's grace period for a checkpoint, also in torch 2.11, which allows 30 s.
"""

from __future__ import annotations

import logging
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousParameters
from torch.distributed.elastic.rendezvous.api import RendezvousClosedError, RendezvousError, RendezvousTimeoutError
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import create_backend
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import create_handler

from bricks_core.errors import Stopped, TryLater
from bricks_core.nodes.exit_codes import (
    LOST_ANOTHER,
    NOT_TRIED_AGAIN,
    OF_ALL_NODES,
    OUR_BUG,
    STOPS,
    End,
    NodeEnded,
    decisive,
    described,
    exit_code,
    for_this_node,
    weight,
)
from bricks_core.nodes.meeting import JOIN_TIMEOUT_S, LOOK_AGAIN_S, Meeting, address_here, wait_for_host
from bricks_core.storage.scratch import scratch

log = logging.getLogger("bricks")

STOPPED = "Stopped. The same command goes on from the last checkpoint."
SETTLE_S = 5.0
"""How long a process or a node that lost another is not believed to be the reason: the other may still say its own."""
LINGER_S = 30.0
"""How long the first node keeps the board up for the others to read."""
LINGER_STOPPED_S = 5.0
LAST_S = 3.0
"""How much longer those nodes stay that have nothing to tell: after a good end all but the first, whose log people
read; after a bad one those that only lost another. Training Operator 1.9 calls a job done, or failed, when one node has
ended, and removes the pods of those that still run, with their logs and exit codes."""
CLOSE_S = 30
WATCH_EVERY_S = 0.2
READ_TIMEOUT_S = 120
KEEP_ALIVE_S, KEEP_ALIVE_ATTEMPTS = 3, 5
"""A node that is not heard of for 15 s is taken for gone, so that its replacement can join."""


def launch(meeting: Meeting, arguments: Sequence[str]) -> None:
    """Run `python arguments…` in every process of this node, together with the other nodes' to the end.

    Raises NodeEnded: with the code and the sentence of the end that counts.
    """
    # Each time they meet the first process makes a store anew. Shared with the agents' it would hold addresses of
    # processes that are gone, under names that a restart gives again.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    until_s = time.monotonic() + JOIN_TIMEOUT_S
    with scratch() as folder:
        os.environ["BRICKS_PREFLIGHT_PASSED"] = str(folder / "preflight-passed")
        while True:
            board, handler = _come_together(meeting)
            agent = Agent(_worker_spec(meeting, handler, arguments), str(folder), board, meeting)
            end = agent.run_to_the_end()
            # An end of an earlier try is still on the board of a first node that is about to leave.
            if end is None and time.monotonic() < until_s:
                time.sleep(LOOK_AGAIN_S)
                continue
            end = end or End(LOST_ANOTHER, "The other nodes' rendezvous is over.", meeting.node_rank)
            board.leave(end)
            break
    if end.code:
        raise NodeEnded(end)


def _come_together(meeting: Meeting) -> tuple[Board, RendezvousHandler]:
    if not meeting.is_host:
        wait_for_host(meeting)
    parameters = RendezvousParameters(
        backend="c10d",
        endpoint=f"[{meeting.host}]:{meeting.port}" if ":" in meeting.host else f"{meeting.host}:{meeting.port}",
        run_id=meeting.name,
        min_nodes=meeting.num_nodes,
        max_nodes=meeting.num_nodes,
        local_addr=address_here(meeting),
        is_host=meeting.is_host,
        join_timeout=JOIN_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        keep_alive_interval=KEEP_ALIVE_S,
        keep_alive_max_attempt=KEEP_ALIVE_ATTEMPTS,
    )
    try:
        backend, store = create_backend(parameters)
    except RendezvousError as error:
        what = "cannot be opened here" if meeting.is_host else "was left while this node came to it"
        raise TryLater(
            f"The rendezvous {meeting.host}:{meeting.port} {what} ({_cause(error)}). Another process may use the port."
        ) from error
    return Board(store, meeting), create_handler(store, backend, parameters)


def _worker_spec(meeting: Meeting, handler: RendezvousHandler, arguments: Sequence[str]) -> WorkerSpec:
    options: dict[str, Any] = {}
    if torch.cuda.is_available() and shutil.which("numactl"):
        from torch.numa.binding import AffinityMode, NumaOptions

        options["numa_options"] = NumaOptions(AffinityMode.NODE, should_fall_back_if_binding_fails=True)
    return WorkerSpec(
        role="train",
        local_world_size=meeting.num_processes,
        entrypoint=sys.executable,
        args=("-u", *arguments),
        rdzv_handler=handler,
        max_restarts=meeting.max_restarts,
        monitor_interval=WATCH_EVERY_S,
        local_addr=address_here(meeting),
        **options,
    )


class Board:
    """What nodes leave for each other about how they ended."""

    def __init__(self, store: dist.Store, meeting: Meeting):
        self._store, self._meeting = store, meeting
        self._end, self._left = f"bricks/{meeting.name}/end", f"bricks/{meeting.name}/left"

    def read(self) -> End | None:
        """The weightiest end that any node has told, or None. Raises RuntimeError: the first node is gone."""
        if not self._store.check([self._end]):
            return None
        return End.from_json(self._store.get(self._end).decode())

    def tell(self, end: End) -> End:
        """Leave this node's end unless a weightier one is there; returns the one that counts."""
        known = self.read()
        while known is None or weight(end.code) > weight(known.code):
            expected = "" if known is None else known.to_json()
            told = self._store.compare_set(self._end, expected, end.to_json()).decode()
            if told == end.to_json():
                return end
            known = End.from_json(told)
        return known

    def leave(self, end: End) -> None:
        """The last thing a node does. The first one stays until the others have left, as long as it may."""
        try:
            num_left = self._store.add(self._left, 1)
            if self._meeting.is_host:
                until_s = time.monotonic() + (LINGER_STOPPED_S if end.code in STOPS else LINGER_S)
                while num_left < self._meeting.num_nodes and time.monotonic() < until_s:
                    time.sleep(WATCH_EVERY_S)
                    num_left = self._store.add(self._left, 0)
            if end.code == LOST_ANOTHER or not (end.code or self._meeting.is_host):
                time.sleep(LAST_S)
        except (RuntimeError, SignalException) as error:
            log.debug("the board is gone: %s", error)


class Agent(LocalElasticAgent):
    """torchrun's agent, with an eye on what its processes and the other nodes say."""

    def __init__(self, spec: WorkerSpec, folder: str, board: Board, meeting: Meeting):
        super().__init__(spec=spec, logs_specs=DefaultLogsSpecs(log_dir=folder))
        self._board, self._meeting = board, meeting
        self._has_met = False
        self._own: End | None = None
        self._alone_since_s: float | None = None
        self._stop_timeout_s = CLOSE_S

    def run_to_the_end(self) -> End | None:
        """Run until nothing is left to try. None: the others had parted before this node met them."""
        here = self._meeting.node_rank
        try:
            result = self.run()
        except (SignalException, Stopped) as stopped:
            number = stopped.sigval if isinstance(stopped, SignalException) else stopped.exit_code - 128
            return self._told(
                End(128 + int(number), "Stopped. The same command goes on from the last checkpoint.", here)
            )
        except NodeEnded as ended:
            return ended.end
        except RendezvousClosedError:
            other = self._read()
            if other is None or (not self._has_met and other.code not in OF_ALL_NODES):
                return None
            return for_this_node(other, here)
        except RendezvousTimeoutError:
            wanted = self._meeting.num_nodes
            words = f"{wanted} nodes were to meet within {JOIN_TIMEOUT_S} s, and not all of them came: see their pods."
            return self._told(End(LOST_ANOTHER, words, here))
        except (RendezvousError, dist.DistError) as error:
            words = f"The first node, where all meet, has gone ({_cause(error)}): it must come back first."
            return End(LOST_ANOTHER, words, here)
        if result is None:
            return End(LOST_ANOTHER, "As many nodes as belong together had met before this one came.", here)
        if result.state == WorkerState.SUCCEEDED:
            return End(0, node_rank=here)
        own = self._own or End(LOST_ANOTHER, "A process hangs in the kernel.", here)
        told = self._told(own)
        self._close_rendezvous()
        return told

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        self._has_met = True
        codes = self._codes()
        if self._is_settling(codes):
            return RunResult(state=WorkerState.HEALTHY)
        if not any(codes.values()):
            self._look_at_the_board()
        # It ends the others where one has ended: what those return then is our doing, and explains nothing.
        result = super()._monitor_workers(worker_group)
        if result.is_failed():
            failures = [each for each in result.failures.values() if codes.get(each.local_rank)]
            ends = [self._end_of(each) for each in failures or result.failures.values()]
            self._own = decisive(ends)
            if self._own.code in NOT_TRIED_AGAIN:
                self._remaining_restarts = 0
            elif self._own.code == OUR_BUG:
                self._remaining_restarts = min(self._remaining_restarts, 1)
            if self._remaining_restarts > 0:
                log.warning("train: %s All nodes go on from the last checkpoint.", self._own.sentence)
        return result

    def _codes(self) -> dict[int, int | None]:
        """What every process has returned; None while it runs."""
        handlers = getattr(self._pcontext, "subprocess_handlers", {})
        return {rank: handler.proc.poll() for rank, handler in handlers.items()}

    def _is_settling(self, codes: dict[int, int | None]) -> bool:
        """Whether processes ended because another is gone, and the reason may still come from one that runs."""
        ended = [exit_code(code) for code in codes.values() if code]
        if not ended or set(ended) != {LOST_ANOTHER} or None not in codes.values():
            self._alone_since_s = None
            return False
        self._alone_since_s = self._alone_since_s or time.monotonic()
        return time.monotonic() - self._alone_since_s < SETTLE_S

    def _look_at_the_board(self) -> None:
        try:
            other = self._board.read()
        except RuntimeError as error:
            raise RendezvousError(str(error)) from error
        if other is not None:
            raise NodeEnded(for_this_node(other, self._meeting.node_rank))

    def _end_of(self, failure: Any) -> End:
        words = described(failure.exitcode, failure.error_file_data)
        return End(exit_code(failure.exitcode), f"Process {failure.local_rank}: {words}", self._meeting.node_rank)

    def _told(self, end: End) -> End:
        """Leave this node's end on the board, and take another's where that explains more."""
        try:
            until_s = time.monotonic() + SETTLE_S
            while (
                weight(end.code) <= weight(LOST_ANOTHER) and time.monotonic() < until_s and self._board.read() is None
            ):
                time.sleep(WATCH_EVERY_S)
            return for_this_node(self._board.tell(end), self._meeting.node_rank)
        except (RuntimeError, SignalException):
            return end

    def _read(self) -> End | None:
        try:
            return self._board.read()
        except RuntimeError:
            return None

    def _close_rendezvous(self) -> None:
        try:
            self._rdzv_handler.shutdown()
        except RuntimeError as error:
            log.debug("the rendezvous is gone: %s", error)

    def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM, timeout: int = CLOSE_S) -> None:
        # Where it was told to stop, here or on another node, processes are writing a checkpoint.
        why = sys.exc_info()[1]
        if isinstance(why, (SignalException, Stopped)) or (isinstance(why, NodeEnded) and why.exit_code in STOPS):
            timeout = self._meeting.stop_timeout_s
        if self._pcontext:
            self._pcontext.close(signal.Signals(death_sig), timeout)
        super()._shutdown(signal.Signals(death_sig))


def _cause(error: BaseException) -> str:
    return " ".join(str(error.__cause__ or error).split())[:200]


def set_defaults(*, rdma: bool, num_processes: int, only_preflight: bool = False) -> None:
    """What training processes need in their environment, where nobody has said otherwise."""
    defaults = {
        "NCCL_DEBUG": "WARN",
        # A hang leaves a record of what each process waited for.
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
        "TORCH_FR_BUFFER_SIZE": "2000",
    }
    if only_preflight:
        defaults |= {"NCCL_DEBUG": "INFO", "NCCL_DEBUG_SUBSYS": "INIT,NET"}
    if num_processes > 1:
        defaults["OMP_NUM_THREADS"] = "1"
    if rdma:
        # NCCL then fails where InfiniBand does not work, instead of going on over TCP at a hundredth of its speed.
        defaults["NCCL_NET"] = "IB"
        hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (hard, hard))
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
