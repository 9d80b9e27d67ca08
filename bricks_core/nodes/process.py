"""What each training process does: meet the others, see whether the nodes are fit, train, and wait for the commit."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from dataclasses import dataclass

from bricks_core.nodes.preflight import Node, preflight
from bricks_core.pipeline.local import run_alone
from bricks_core.spec.run import BrickRun
from bricks_core.stages.train.parallel import processes
from bricks_core.storage.store import Store


@dataclass(frozen=True)
class Duty:
    """What is to be done: the preflight, training, or both."""

    preflight: bool = True
    train: bool = True


def do(run: BrickRun, store: Store, node: Node, duty: Duty) -> str:
    """Do it, together with the other processes. Returns where the artifact is, in one process of each node.

    Raises what the preflight and the train stage raise; TryLater: another process has gone.
    """
    _die_with_the_agent()
    with processes() as everyone:
        if duty.preflight:
            preflight(node, store, everyone, say=_say if duty.train else print)
        if not duty.train:
            return ""
        manifest = run_alone(run, store, "train")
    speaks = manifest is not None and os.environ.get("LOCAL_RANK", "0") == "0"
    return f"artifacts/{manifest.stage}/{manifest.digest}" if manifest and speaks else ""


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _die_with_the_agent() -> None:
    """An agent that is killed must not leave processes that hold its GPUs (prctl(2), PR_SET_PDEATHSIG)."""
    if sys.platform == "linux" and "TORCHELASTIC_RUN_ID" in os.environ:
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)
