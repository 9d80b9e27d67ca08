"""The processes that train together: one, or as many as torchrun started.

    torchrun --nproc-per-node 8 -m -- jobs.train --run FILE     (without the --, torchrun takes --run for its own)

torchrun says who is who in the environment (RANK, WORLD_SIZE, LOCAL_RANK). Every process takes its share of each step's
samples; gradients are summed once per step, whatever the number of micro-batches. The first process writes.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bricks_core.errors import TryLater

T = TypeVar("T")

BUCKET_MB = 256
"""Gradients summed at once: larger than torch's 25, which costs a fifth of the wires' speed on four nodes."""
TIMEOUT = timedelta(minutes=15)
"""A held-out evaluation or a checkpoint of another process may take a while; a hang should still end."""
_LOST = re.compile(r"gloo/|Connection (closed|reset|refused)|Socket (closed|Timeout)|Broken pipe|ncclRemoteError", re.I)
# The only buffer, the null caption, never changes. torch renamed the option between 2.11 and 2.13.
_RENAMED = "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters
_NO_SYNC_OF_BUFFERS: dict[str, Any] = {"forward_sync_buffers" if _RENAMED else "broadcast_buffers": False}
_SAID = re.compile(r"Connection \w+|Socket \w+|Broken pipe|Timed out|ncclRemoteError", re.I)


@dataclass(frozen=True)
class Processes:
    """Who this process is among those that train together."""

    rank: int
    world_size: int
    device: torch.device
    control: dist.ProcessGroup | None = None
    """For agreements on the CPU: asking a GPU would make it wait for all the work it has been given."""

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def wrapped(self, model: nn.Module) -> nn.Module:
        """The network, with gradients summed over all processes in its backward pass."""
        if self.world_size == 1:
            return model
        wrapped = DistributedDataParallel(
            model,
            device_ids=[self.device.index] if self.device.type == "cuda" else None,
            **_NO_SYNC_OF_BUFFERS,
            gradient_as_bucket_view=True,
            bucket_cap_mb=BUCKET_MB,
        )
        if self.device.type == "cpu":
            wrapped.register_comm_hook(None, lambda _, bucket: _mean_in_order(bucket))
        return wrapped

    def summed(self, numbers: Tensor) -> Tensor:
        """The sum over all processes, in all of them."""
        numbers = numbers.clone()
        if self.world_size > 1:
            dist.all_reduce(numbers)
        return numbers

    def any(self, flag: int) -> int:
        """The largest flag of all processes: what one of them knows, all do."""
        if self.world_size == 1:
            return flag
        told = torch.tensor(flag)
        dist.all_reduce(told, op=dist.ReduceOp.MAX, group=self.control)
        return int(told)

    def told_by_first(self, word: T) -> T:
        """What the first process says."""
        if self.world_size == 1:
            return word
        words: list[Any] = [word]
        dist.broadcast_object_list(words, src=0, group=self.control)
        told: T = words[0]
        return told

    def wait_for_all(self) -> None:
        """Go on when all processes have come here."""
        if self.world_size > 1:
            dist.barrier(group=self.control)


def _mean_in_order(bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """The mean of gradients, summed in the order of ranks whatever bucket they are in.

    gloo's own order depends on a gradient's place in its bucket, and torch lays buckets anew after the first step: so a
    run of three processes or more that was continued would round differently from one that was not.
    """
    own = bucket.buffer()
    of_all = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(of_all, own)
    total = of_all[0]
    for other in of_all[1:]:
        total += other
    done: torch.futures.Future[Tensor] = torch.futures.Future()
    done.set_result(total.div_(len(of_all)))
    return done


@contextlib.contextmanager
def processes() -> Iterator[Processes]:
    """Meet the processes that torchrun started; without it, be the only one. A GPU is used when there is one.

    Within such a context another one meets the same processes, without starting anew.

    Raises TryLater: another process has gone, so that nothing can be summed any more.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield Processes(0, 1, torch.device("cuda", torch.cuda.current_device()) if _has_gpu() else torch.device("cpu"))
        return
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if _has_gpu() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    is_outermost = not dist.is_initialized()
    try:
        if is_outermost:
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
        control = dist.new_group(backend="gloo", timeout=TIMEOUT)
        yield Processes(dist.get_rank(), world_size, device, control)
    except RuntimeError as error:
        if not is_lost_peer(error):
            raise
        said = _SAID.search(str(error))
        raise TryLater(
            "Another process that trains with this one has ended or does not answer "
            f"({said[0] if said else type(error).__name__}): where it ran it is told why."
        ) from error
    finally:
        if is_outermost and dist.is_initialized():
            dist.destroy_process_group()


def is_lost_peer(error: BaseException) -> bool:
    """Whether an error of torch's says that another process is gone, rather than that something is wrong here."""
    # gloo's own are plain RuntimeErrors that name a place in its source, or what the socket said.
    return isinstance(error, (dist.DistNetworkError, dist.DistStoreError)) or bool(_LOST.search(str(error)))


def _has_gpu() -> bool:
    return torch.cuda.is_available()
