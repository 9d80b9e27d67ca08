"""Preflights in processes of their own, as bricks-train's would be on several nodes."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from typing import Any

from bricks_core.errors import BricksError
from bricks_core.spec.cluster import PreflightProfile
from bricks_core.storage.places import open_store
from tests.nodes.two_nodes import free_port
from tests.stages.train.apart import CONTEXT

SMALL = {"max_bytes": 1 << 20, "free_disk_bytes": 1 << 20, "shm_bytes": 1}


@dataclass(frozen=True)
class Place:
    """A node as its processes see it."""

    rank: int = 0
    num_processes: int = 1
    skew_s: float = 0
    """How far its clock is ahead."""
    store: str = ""
    """Where it finds the store; empty: as all do."""
    changes: dict[str, Any] = field(default_factory=dict)
    """Of its profile."""
    rdma: bool = False
    num_gpus: int = 0


@dataclass(frozen=True)
class Outcome:
    """How one process's preflight ended."""

    code: int
    sentence: str
    said: str


def fly(store: str, places: list[Place], **profile: Any) -> list[list[Outcome]]:
    """Every process's outcome, by node."""
    world = sum(place.num_processes for place in places)
    shared = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    answers = CONTEXT.Queue()
    started, rank = [], 0
    for group_rank, place in enumerate(places):
        for local_rank in range(place.num_processes):
            own = {"RANK": rank, "LOCAL_RANK": local_rank, "GROUP_RANK": group_rank}
            environment = shared | {name: str(value) for name, value in own.items()}
            process = CONTEXT.Process(target=_fly, args=(answers, rank, environment, store, place, profile))
            process.start()
            started.append(process)
            rank += 1
    found = dict(answers.get(timeout=240) for _ in started)
    for process in started:
        process.join()
    outcomes = [found[rank] for rank in range(world)]
    return [[outcomes.pop(0) for _ in range(place.num_processes)] for place in places]


def _fly(
    answers: Any, rank: int, environment: dict[str, str], store: str, place: Place, profile: dict[str, Any]
) -> None:
    os.environ.update(environment)
    import torch

    from bricks_core.nodes.preflight import Node, preflight
    from bricks_core.stages.train.parallel import processes

    torch.set_num_threads(1)
    said: list[str] = []
    node = Node(
        run="tiny",
        rank=place.rank,
        name=f"machine-{place.rank}",
        num_gpus=place.num_gpus,
        rdma=place.rdma,
        profile=PreflightProfile(
            **{"max_bytes": 1 << 20, "free_disk_bytes": 1 << 20, "shm_bytes": 1} | profile | place.changes
        ),
    )
    try:
        with processes() as everyone:
            at = open_store(place.store or store)
            preflight(node, at, everyone, say=said.append, clock=lambda: time.time() + place.skew_s)
        answers.put((rank, Outcome(0, "", "\n".join(said))))
    except BricksError as error:
        answers.put((rank, Outcome(error.exit_code, str(error), "\n".join(said))))
