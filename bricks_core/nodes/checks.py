"""What a node must have before it trains, apart from its GPUs and its wires: room, rights, devices, and the store."""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path

from bricks_core.errors import BricksError, StoreDenied
from bricks_core.nodes.report import ANOTHER_NODE, CONFIGURATION, Check
from bricks_core.spec.cluster import PreflightProfile
from bricks_core.storage.store import Store

CAP_IPC_LOCK = 14
"""capabilities(7): memory may be locked whatever the limit."""
UNLIMITED = float("inf")


def free_disk(profile: PreflightProfile) -> Check:
    """Room for checkpoints and packs on their way."""
    place = tempfile.gettempdir()
    free, wanted = shutil.disk_usage(place).free, profile.free_disk_bytes
    words = f"{place} has {free / 1e9:.1f} GB free and {wanted / 1e9:.1f} GB are wanted: empty it, ask for a larger "
    words += "scratch volume, or set TMPDIR to a disk that has the room."
    return at_least("free disk", free, wanted, "bytes", words, "preflight.freeDiskBytes")


def shared_memory(profile: PreflightProfile, place: Path = Path("/dev/shm")) -> Check:
    """/dev/shm, through which NCCL and loaders pass data; a container's has 64 MiB unless it is asked for more."""
    if not place.is_dir():
        return left_out("shared memory", f"There is no {place} here.")
    disk = os.statvfs(place)
    size, wanted = disk.f_blocks * disk.f_frsize, profile.shm_bytes
    words = (
        f"{place} has {size >> 20} MiB and {wanted >> 20} MiB are wanted: mount an emptyDir with medium Memory there "
    )
    words += "(train.shm in the chart), or give docker --shm-size."
    return at_least("shared memory", size, wanted, "bytes", words, "preflight.shmBytes", CONFIGURATION)


def lockable_memory(
    profile: PreflightProfile,
    *,
    rdma: bool,
    limit: int | None = None,
    status: Path = Path("/proc/self/status"),
) -> Check:
    """Memory that a process may pin, which InfiniBand does with every buffer it sends from.

    The right to lock any amount (IPC_LOCK) only works for root: Kubernetes gives it to other users without effect.
    """
    wanted: float = profile.memlock_bytes
    if not wanted and not rdma:
        return left_out("lockable memory", "No RDMA is asked for.")
    wanted = wanted or UNLIMITED
    hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1] if limit is None else limit
    measured = UNLIMITED if hard == resource.RLIM_INFINITY or _has_capability(status, CAP_IPC_LOCK) else float(hard)
    words = f"A process may lock {measured:.0f} bytes of memory here, and RDMA needs "
    words += f"{'any amount' if wanted == UNLIMITED else f'{wanted:.0f}'}: set LimitMEMLOCK=infinity for the nodes' "
    words += "containerd (docs/preflight.md has the file), or train.rdma.memlock: root in the chart."
    return at_least("lockable memory", measured, wanted, "bytes", words, "preflight.memlockBytes", CONFIGURATION)


def rdma_devices(*, rdma: bool, place: Path = Path("/dev/infiniband")) -> Check:
    """The doors to the InfiniBand cards, which a device plugin puts into the pod."""
    if not rdma:
        return left_out("RDMA devices", "No RDMA is asked for.")
    found = len(list(place.glob("uverbs*")))
    if os.environ.get("NCCL_IB_DISABLE") == "1":
        return failed("RDMA devices", "NCCL_IB_DISABLE=1 turns off what BRICKS_RDMA=1 asks for: take one away.")
    words = f"There is no {place}/uverbs* here: ask for the resource of the cluster's RDMA device plugin "
    words += "(train.rdma.resources in the chart), and see that its pods run on this node."
    return at_least("RDMA devices", found, 1, "", words, "", CONFIGURATION)


def verbs_library(*, rdma: bool, names: Sequence[str] = ("libibverbs.so.1",)) -> Check:
    """libibverbs: without it NCCL says nothing and goes over TCP."""
    if not rdma:
        return left_out("verbs library", "No RDMA is asked for.")
    for name in names:
        try:
            ctypes.CDLL(name)
            return Check(name="verbs library", state="passed", sentence=f"{name} can be loaded.")
        except OSError:
            continue
    words = f"{names[0]} cannot be loaded, so NCCL would have no RDMA: train from an image with libibverbs1, "
    return failed("verbs library", words + "ibverbs-providers and librdmacm1, as images/train has them.")


def store_write(store: Store, run: str, node_rank: int) -> Check:
    """The store takes an object, and a second one under the same name only unless it is told not to."""
    key = f"runs/{run}/preflight/probe-{node_rank}-{uuid.uuid4().hex[:8]}"
    try:
        first = store.put(key, b"1", if_absent=True)
        second = store.put(key, b"2", if_absent=True)
        content = store.get(key)
        store.delete([key])
    except BricksError as error:
        return failed("store", f"{store.uri} cannot be written: {error}", error.exit_code)
    if not first or second or content != b"1":
        words = f"{store.uri} lets two writers make the same object (If-None-Match: * is not kept): "
        return failed("store", words + "use an S3 service that keeps it, or a folder.", StoreDenied.exit_code)
    return Check(name="store", state="passed", sentence="Written, read, and not written twice.")


def _has_capability(status: Path, bit: int) -> bool:
    try:
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) >> bit & 1)
    except OSError:
        pass
    return False


def at_least(
    name: str, measured: float, wanted: float, unit: str, words: str, setting: str, code: int = ANOTHER_NODE
) -> Check:
    """A measure that must not be smaller than wanted; 0 wants nothing. `words`: what to say and do where it is."""
    if not wanted:
        return left_out(name, f"{setting} is 0.")
    if measured >= wanted:
        return Check(name=name, state="passed", measured=measured, wanted=wanted, unit=unit)
    return Check(name=name, state="failed", measured=measured, wanted=wanted, unit=unit, sentence=words, exit_code=code)


def failed(name: str, sentence: str, exit_code: int = CONFIGURATION) -> Check:
    return Check(name=name, state="failed", sentence=sentence, exit_code=exit_code)


def left_out(name: str, sentence: str) -> Check:
    return Check(name=name, state="left out", sentence=sentence)
