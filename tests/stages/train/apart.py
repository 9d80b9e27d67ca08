"""Training in a process of its own, that can be killed, or told to stop, at a chosen moment."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from bricks_core.spec.train import TrainSpec
from bricks_core.storage.places import open_store
from tests.stages.train.latents_made_up import train_work

# A server process imports torch once (and what its optimizers import when they are made), and every training process is
# forked from it.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch._inductor", "bricks_core.stages.train.stage"])


def train_apart(store: str, spec: TrainSpec, at: tuple[str, int] = ("", 0), send: int = signal.SIGKILL) -> int:
    """Train and commit. Returns the exit code; -9 when it was killed.

    `at`: ("write", n) sends the signal before the n-th write to the store, ("step", n) before the n-th step.
    """
    process = CONTEXT.Process(target=_train, args=(store, spec.model_dump_json(), at, send))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def train_together(
    store: str, spec: TrainSpec, num_processes: int, at: tuple[int, int] = (-1, 0), send: int = signal.SIGTERM
) -> list[int]:
    """Train in several processes, as torchrun starts them. Returns their exit codes.

    `at`: (rank, n) sends the signal to one of them, before its n-th step.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {"WORLD_SIZE": num_processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = []
    for rank in range(num_processes):
        own = {name: str(value) for name, value in (environment | {"RANK": rank, "LOCAL_RANK": rank}).items()}
        moment = ("step", at[1]) if rank == at[0] else ("", 0)
        process = CONTEXT.Process(target=_train, args=(store, spec.model_dump_json(), moment, send, own))
        process.start()
        started.append(process)
    for process in started:
        process.join()
    return [process.exitcode or 0 for process in started]


def _train(uri: str, spec_json: str, at: tuple[str, int], send: int, environment: dict[str, str] | None = None) -> None:
    os.environ.update(environment or {})
    import torch

    from bricks_core.errors import BricksError, Stopped
    from bricks_core.stages.train import stage
    from bricks_core.stages.train.step import Trainer

    torch.set_num_threads(1)
    spec = TrainSpec.model_validate_json(spec_json)
    store = open_store(uri)
    work = train_work(store, spec)
    counted = {"write": 0, "step": 0}

    def count(what: str, call: Any) -> Any:
        def counting(*arguments: Any, **named: Any) -> Any:
            counted[what] += 1
            if at == (what, counted[what]):
                os.kill(os.getpid(), send)
            return call(*arguments, **named)

        return counting

    for name in ("put", "put_file"):
        setattr(store, name, count("write", getattr(store, name)))
    Trainer.step = count("step", Trainer.step)  # type: ignore[method-assign]
    try:
        stage.run(spec, work)
        joined = stage.join(spec, work)
        work.commit(joined)
    except (BricksError, Stopped) as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)


def left(store: str) -> dict[str, bytes]:
    """Every file of the training and of its artifact, but the manifest, which has times in it."""
    root = Path(store)
    places = ("artifacts/train", "trainings", "items/held_out")
    found = (file for place in places for file in (root / place).rglob("*"))
    files = (file for file in found if file.is_file() and file.name != "manifest.json")
    return {str(file.relative_to(root)): file.read_bytes() for file in sorted(files)}


def steps_of(left: dict[str, bytes], name: str) -> list[int]:
    """The steps of the states that have a file of this name."""
    found = (re.fullmatch(rf"trainings/[0-9a-f]+/step-([0-9]+)-[0-9a-f]+/{name}", key) for key in left)
    return sorted(int(match[1]) for match in found if match)


if __name__ == "__main__":
    _train(sys.argv[1], Path(sys.argv[2]).read_text(encoding="utf-8"), ("", 0), 0)
