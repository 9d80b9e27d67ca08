"""Training on all GPUs of this machine, for `bricks run`: a process for each, and this one waits for them."""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import os
import signal
from collections.abc import Iterator

import torch
import yaml

from bricks_core.errors import DataError, Stopped, UsageError
from bricks_core.nodes.agent import launch, set_defaults
from bricks_core.nodes.exit_codes import STOPS, NodeEnded
from bricks_core.nodes.meeting import Meeting
from bricks_core.pipeline.plan import make_plan
from bricks_core.spec.run import BrickRun
from bricks_core.spec.train import TrainSpec
from bricks_core.storage.scratch import scratch
from bricks_core.storage.store import Store

log = logging.getLogger("bricks")


def train_here(run: BrickRun, store: Store, *, verbose: bool = False) -> None:
    """Have the run's training done by as many processes as there are GPUs. Does nothing where one is enough, so that
    the caller trains itself.

    Raises:
        NodeEnded: with the code and the sentence of the process that ended it.
        AlteredObject, CorruptManifest: what training reads is damaged.
        Stopped: a signal came; a checkpoint was written.
    """
    num_processes = _num_processes(run)
    if num_processes == 1:
        return
    gc.collect()
    torch.cuda.empty_cache()  # what earlier stages had on a GPU is wanted there now
    with scratch() as folder, _as_before():
        # Not the file that was given: somebody may have begun to change it for the next run.
        file = folder / "run.yaml"
        file.write_text(yaml.safe_dump(run.model_dump(mode="json")), encoding="utf-8")
        set_defaults(rdma=False, num_processes=num_processes)
        # A store that has gone is told in a sentence; torch would add a trace of its own functions each time.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        arguments = ["-m", "jobs.train_process", "--run", str(file), "--store", store.uri, "--no-preflight", "--quiet"]
        log.info("train: %d processes", num_processes)
        try:
            launch(Meeting(num_processes=num_processes, max_restarts=0), arguments + ["--verbose"] * verbose)
        except NodeEnded as ended:
            if ended.exit_code in STOPS:
                raise Stopped(ended.exit_code - 128) from None
            if ended.exit_code == DataError.exit_code:
                for step in make_plan(run, store, "latents", thorough=True):
                    for wrong in step.wrong:
                        raise wrong from None
            raise


def _num_processes(run: BrickRun) -> int:
    """One for each GPU, as far as every batch can be shared evenly. BRICKS_PROCESSES says another number.

    Raises:
        UsageError: that is no number.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # somebody else's launcher has started this one among others
        return 1
    if wanted := os.environ.get("BRICKS_PROCESSES"):
        if not wanted.isdecimal() or not int(wanted):
            raise UsageError(f"BRICKS_PROCESSES is {wanted!r}: write a whole number of processes, such as 4.")
        return int(wanted)
    num_gpus = torch.cuda.device_count()
    spec = run.stage_spec("train")
    assert isinstance(spec, TrainSpec)
    shared = math.gcd(*(bucket.batch_size for phase in spec.phases for bucket in phase.buckets))
    num_processes = max(number for number in range(1, max(num_gpus, 1) + 1) if shared % number == 0)
    if num_processes < num_gpus:
        log.warning(
            "train: %d of %d GPUs: every batch_size of train.phases must divide by the number of processes.",
            num_processes,
            num_gpus,
        )
    return num_processes


@contextlib.contextmanager
def _as_before() -> Iterator[None]:
    """What an agent sets in its own process, such as handlers of signals, is not for the stages that follow."""
    environment = dict(os.environ)
    handlers = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)}
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(environment)
        for each, handler in handlers.items():
            signal.signal(each, handler)
