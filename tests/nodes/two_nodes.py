"""Nodes of training as processes of this machine: bricks-train itself, and a store with small latents for it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from bricks_core.pipeline.points import Pointer, point
from bricks_core.pipeline.resolve import Found, Resolver
from bricks_core.progress import Progress
from bricks_core.spec.run import load_run
from bricks_core.spec.stages import until
from bricks_core.storage.places import open_store
from bricks_core.storage.work import Joined, Work
from tests.stages.train.latents_made_up import MAX_TOKENS, commit_made_up

ROOT = Path(__file__).parents[2]
DEADLINE_S = 240.0
EVERY = 20
"""Steps between checkpoints."""
BUCKET = {"num_frames": 4, "resolution": "64x48", "frame_interval": 2, "batch_size": 4}
RUN: dict[str, Any] = {
    "apiVersion": "bricks.dev/v1alpha1",
    "kind": "BrickRun",
    "metadata": {"name": "nodes"},
    "spec": {
        "ingest": {"sources": [{"path": "films", "licence": "CC0-1.0"}]},
        "latents": {"resolutions": ["64x48"], "text": {"max_tokens": MAX_TOKENS}},
        "train": {
            "model": {"hidden_size": 24, "depth": 1, "num_heads": 2, "input_sq_size_px": 64},
            "precision": "float32",
            "phases": [
                {"name": "first", "steps": 30, "buckets": [BUCKET], "schedule": {"kind": "constant", "lr": 2e-3}},
                {
                    "name": "second",
                    "steps": 90,
                    "buckets": [BUCKET | {"num_frames": 1, "frame_interval": 1}, BUCKET],
                    "schedule": {"kind": "constant", "lr": 1e-3},
                },
            ],
            "held_out": {"every_steps": 60, "num_samples": 4, "num_timestep_bins": 2, "timesteps_per_bin": 1},
            "checkpoint_every_steps": EVERY,
            "log_every_steps": 5,
        },
        "tracking": {"wandb": "off"},
    },
}
# Small enough for any machine that runs the tests.
FIT = {"freeDiskBytes": 1 << 20, "shmBytes": 1 << 20, "maxBytes": 1 << 20}


def wait_until(true: Callable[[], Any], what: Callable[[], str]) -> Any:
    """What `true` returns once it is something."""
    until_s = time.monotonic() + DEADLINE_S
    while not (found := true()):
        assert time.monotonic() < until_s, f"not within {DEADLINE_S:.0f} s: {what()}"
        time.sleep(0.02)
    return found


@dataclass
class Node:
    """A bricks-train that was started."""

    process: subprocess.Popen[str]
    log: Path

    @property
    def told(self) -> str:
        return self.log.read_text(encoding="utf-8")

    def ended(self) -> int:
        """Its exit code, once it has one."""
        wait_until(lambda: self.process.poll() is not None, lambda: f"the end of\n{self.told}")
        return self.process.returncode

    def workers(self) -> list[int]:
        """Its training processes that run."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        try:
            found = [int(each) for each in children.read_text(encoding="utf-8").split()]
        except (FileNotFoundError, ProcessLookupError):
            return []
        return [each for each in found if b"jobs.train_process" in _command(each)]


@dataclass
class Nodes:
    """A folder with a store and a run file, and the nodes that were started in it."""

    folder: Path
    run: dict[str, Any] = field(default_factory=lambda: json.loads(json.dumps(RUN)))
    preflight: dict[str, Any] = field(default_factory=lambda: dict(FIT))
    started: list[Node] = field(default_factory=list)

    def __post_init__(self) -> None:
        (self.folder / "films").mkdir(parents=True, exist_ok=True)
        self.write()

    def write(self) -> None:
        """The files that a pod has in /etc/bricks."""
        (self.folder / "run.yaml").write_text(yaml.safe_dump(self.run), encoding="utf-8")
        (self.folder / "preflight.yaml").write_text(yaml.safe_dump(self.preflight), encoding="utf-8")

    @property
    def store(self) -> Path:
        return self.folder / "store"

    def make_latents(self) -> None:
        """Leave a finished latents artifact where the run looks for it, and empty ones of the stages before."""
        run, store = load_run(self.folder / "run.yaml"), open_store(str(self.store))
        ingest = Pointer(
            stage="ingest",
            digest="0" * 32,
            cache_key="0" * 32,
            spec=run.stage_spec("ingest").model_dump(mode="json"),
            inputs={"sources": "made up"},
        )
        point(run.name, store, ingest)
        resolver, found = Resolver(run, store, frozen=True), Found()
        for stage in until("latents"):
            address = resolver.address(stage, found)
            work = Work(store, stage, address.spec, address.digest, address.inputs, {}, Progress(stage.name))
            if stage.name == "latents":
                manifest = commit_made_up(work, self.folder / "packs")
            else:
                manifest = work.commit(Joined({name: [] for name in stage.tables}))
            found[stage.name] = address, manifest

    def start(self, *arguments: str, rank: int = 0, count: int = 1, port: int = 0, **environment: str) -> Node:
        """A node, as a pod is: its settings come from the environment."""
        own = {
            "BRICKS_NODES": str(count),
            "BRICKS_NODE_RANK": str(rank),
            "BRICKS_RENDEZVOUS_ID": "nodes-train-a1",
            "BRICKS_NODE_NAME": f"machine-{rank}",
        }
        own |= {"BRICKS_RENDEZVOUS": f"127.0.0.1:{port}"} if port else {}
        return self.start_entry_point("jobs.bricks_train", *arguments, **(own | environment))

    def start_entry_point(self, module: str, *arguments: str, **environment: str) -> Node:
        """One of our programs, on this run."""
        inherited = {name: text for name, text in os.environ.items() if not name.startswith(("AWS_", "BRICKS_"))}
        own = {"BRICKS_STORE": "store", "BRICKS_COMMIT": "tested", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        log = self.folder / f"node-{len(self.started)}.log"
        with log.open("w", encoding="utf-8") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", module, "--run", "run.yaml", *arguments],
                cwd=self.folder,
                env=inherited | own | environment,
                stdout=out,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                start_new_session=True,
            )
        node = Node(process, log)
        self.started.append(node)
        return node

    def start_two(self, *arguments: str, port: int = 0, **environment: str) -> tuple[Node, Node]:
        """Two nodes of two processes each."""
        port = port or free_port()
        environment = {"BRICKS_PROCESSES": "2"} | environment
        first, second = (self.start(*arguments, rank=rank, count=2, port=port, **environment) for rank in range(2))
        return first, second

    def checkpoints(self) -> list[str]:
        """The checkpoints that are committed, the oldest first, such as step-000040."""
        found = self.store.glob("trainings/*/*/checkpoint.json")
        return sorted(file.parent.name.rpartition("-")[0] for file in found)

    def wait_for_checkpoint(self, name: str) -> None:
        """Return once it is committed."""

        def is_there() -> bool:
            there = name in self.checkpoints()
            assert there or any(node.process.poll() is None for node in self.started), self.last_words()
            return there

        wait_until(is_there, lambda: f"{name}; {self.last_words()}")

    def last_words(self) -> str:
        return "\n".join(f"--- {node.log.name}\n{node.told[-3000:]}" for node in self.started[-2:])

    def end_all(self) -> None:
        """Leave no process behind, whatever the test came to."""
        for node in self.started:
            for worker in node.workers():
                with suppress(ProcessLookupError):
                    os.kill(worker, signal.SIGKILL)
            if node.process.poll() is None:
                node.process.kill()
                node.process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _command(process: int) -> bytes:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""
