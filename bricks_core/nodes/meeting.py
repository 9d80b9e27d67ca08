"""Who this node is among those that train together, and how it finds the others."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass

from bricks_core.errors import TryLater, UsageError

JOIN_TIMEOUT_S = 1800
"""How long nodes wait for each other: longer than a cold node needs to fetch the image."""
LOOK_AGAIN_S = 1.0
DEFAULT_PORT = 29400
NAMED_WITHIN_S = 60.0
"""How long the first node may not know its own name: a name server keeps it for half a minute that it was asked too
early, by a node that began before."""
ELSEWHERE = "192.0.2.1"
"""An address that nobody has (RFC 5737): the way to it leaves by the default route."""


@dataclass(frozen=True)
class Meeting:
    """The nodes that train together, and this one's place among them."""

    num_nodes: int = 1
    num_processes: int = 1
    """Of each node."""
    node_rank: int = 0
    host: str = "127.0.0.1"
    """Where the first node's store listens."""
    port: int = 0
    """0: any that is free, which is enough for one node."""
    name: str = "alone"
    """The same on all nodes, another for every try."""
    max_restarts: int = 3
    grace_s: int = 60
    node_name: str = ""

    @property
    def is_host(self) -> bool:
        """Whether this node's agent keeps the store that the others come to.

        Always told, never guessed: torch compares host names, which are others inside a pod (pytorch#73380).
        """
        return self.node_rank == 0

    @property
    def stop_timeout_s(self) -> int:
        """How long processes may take to write a checkpoint after SIGTERM, so that there is time left to end."""
        return max(self.grace_s - 10, self.grace_s // 2)


def node_rank(given: int | None, environment: Mapping[str, str] = os.environ) -> int:
    """This node's place: as given, else the index of an Indexed Job's pod, else what Kubeflow's Trainer says.

    Raises UsageError: what is there is no number.
    """
    if given is not None:
        return given
    for name in ("JOB_COMPLETION_INDEX", "PET_NODE_RANK"):
        if text := environment.get(name):
            if not text.isdigit():
                raise UsageError(f"{name} is {text!r}: it must be this node's place, counted from 0.")
            return int(text)
    return 0


def rendezvous(given: str, environment: Mapping[str, str] = os.environ) -> tuple[str, int]:
    """Where the nodes meet: as given, else as Kubeflow's operators say. ("", 0): nobody says.

    Raises UsageError: what is there is no host:port.
    """
    text = given or environment.get("PET_RDZV_ENDPOINT", "")
    if not text and (address := environment.get("PET_MASTER_ADDR")):
        text = f"{address}:{environment.get('PET_MASTER_PORT') or DEFAULT_PORT}"
    if not text:
        return "", 0
    host, colon, port = text.rpartition(":")
    if not colon:
        host, port = text, str(DEFAULT_PORT)
    if not host or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise UsageError(f"The rendezvous {text!r} is no host:port: write the first node's name and a free port of it.")
    return host.strip("[]"), int(port)


def wait_for_host(meeting: Meeting, timeout_s: float = JOIN_TIMEOUT_S) -> None:
    """Return when the first node's store answers. A pod's name may not even resolve before it has begun.

    Raises TryLater: it does not answer in time.
    """
    until_s = time.monotonic() + timeout_s
    while True:
        try:
            socket.create_connection((meeting.host, meeting.port), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > until_s:
                raise TryLater(
                    f"{meeting.host}:{meeting.port} does not answer ({error}), and was waited for for {timeout_s:.0f} "
                    "s: the first node is not up. See why its pod does not run; this one can only wait for it."
                ) from None
            time.sleep(LOOK_AGAIN_S)


def address_here(meeting: Meeting) -> str:
    """The address under which the others reach this node.

    The one that the system would use to speak to the first node, else to anybody. Last the host's name: a pod's often
    resolves nowhere, and whoever is told it would look for this node until its time is up.
    """
    if meeting.num_nodes == 1:
        return "127.0.0.1"
    until_s = time.monotonic() + NAMED_WITHIN_S
    while True:
        try:
            return _address_towards(meeting.host, meeting.port or 1)
        except OSError:
            if time.monotonic() > until_s:
                break
            time.sleep(LOOK_AGAIN_S)
    with contextlib.suppress(OSError):
        return _address_towards(ELSEWHERE, 1)
    return socket.gethostname()


def _address_towards(host: str, port: int) -> str:
    family, kind, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(place)  # sends nothing: it only chooses a route
        return str(probe.getsockname()[0])
