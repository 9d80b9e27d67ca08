"""The real API server, kube-apiserver 1.20.2 with etcd and the controller manager, where its start script is at hand.

It lies beside the project (../shared/tools/kubernetes-1.20.2), not in it: without it, tests that want it are skipped.
Of 1.20 it must be known that it drops what it does not know (Indexed Jobs, podFailurePolicy, suspend, CEL) silently.
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import urllib3

from bricks_core.cluster.api import Cluster
from tests.kubernetes.double import client_of, write_kubeconfig
from tests.kubernetes.logs import Logs
from tests.kubernetes.raw import Answered, Api, eventually

START = Path(__file__).parents[3] / "shared" / "tools" / "kubernetes-1.20.2" / "start.sh"
NEEDED = {"etcd": "etcd-server", "zstd": "zstd", "openssl": "openssl", "curl": "curl"}
"""Programs, and Debian's packages of them."""


@dataclass
class RealServer:
    """A cluster of one process each; as Double, as far as both can."""

    folder: Path
    url: str
    logs: Logs | None = None

    def api(self, token: str = "admintoken") -> Api:
        return Api(self.url, token)

    def cluster(self, namespace: str, *, token: str = "admintoken") -> Cluster:
        return client_of(self.url, token, namespace)

    def kubeconfig(self, file: Path, *, namespace: str = "default", token: str = "admintoken") -> Path:
        cluster = {"server": self.url, "insecure-skip-tls-verify": True}
        return write_kubeconfig(file, cluster, token, namespace)


def token_of(api: Api, namespace: str, service_account: str) -> str:
    """A token of a service account, by the API: of the double as of the real one."""
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": []}}
    path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{service_account}/token"
    return str(api.post(path, body)["status"]["token"])


@contextmanager
def namespace_of(api: Api) -> Iterator[str]:
    """A namespace for one test."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    api.post("/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    # The real one's controllers make this account a moment later; nothing can be made in its name before.
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}
    try:
        api.post(f"/api/v1/namespaces/{name}/serviceaccounts", account)
    except Answered as answer:
        if answer.status != 409:
            raise
    yield name
    api.delete(f"/api/v1/namespaces/{name}")


@functools.cache
def real_server() -> RealServer:
    """The one real server of this process, started for the first test that asks for it and stopped at the end.

    Skips the test where it cannot be had.
    """
    if not START.exists():
        pytest.skip(f"the real API server's start script is not at hand ({START.parent.name} beside the project)")
    missing = [package for program, package in NEEDED.items() if shutil.which(program) is None]
    if missing:
        pytest.skip(f"the real API server needs Debian's {', '.join(missing)}")
    for again in (True, True, False):  # a port that was free may be taken by now, and a busy machine may be too slow
        try:
            return _start()
        except (AssertionError, subprocess.SubprocessError):
            if not again:
                raise
    raise AssertionError  # the last try returns or raises


def _start() -> RealServer:
    folder = Path(tempfile.mkdtemp(prefix="kubernetes-"))
    atexit.register(_stop, folder)
    port, etcd_port, *manager = (_free_port() for _ in range(4))
    env = {**os.environ, "PORT": str(port), "ETCD_PORT": str(etcd_port)}
    subprocess.run([str(START), str(folder)], env=env, check=True, capture_output=True, timeout=120)
    server = RealServer(folder, f"https://127.0.0.1:{port}")
    _own_controller_manager(folder, manager)
    eventually(lambda: _answers(server))
    return server


def _answers(server: RealServer) -> bool:
    """Whether its controllers work: one of them makes this account."""
    try:
        return bool(server.api().get("/api/v1/namespaces/default/serviceaccounts/default"))
    except (Answered, urllib3.exceptions.HTTPError):
        return False


def _stop(folder: Path) -> None:
    for file in folder.glob("*.pid"):
        _end(int(file.read_text(encoding="utf-8")))
    shutil.rmtree(folder, ignore_errors=True)


def _own_controller_manager(folder: Path, ports: list[int]) -> None:
    """The script's listens on its usual ports, and ends where another one does; this one has its own."""
    file = folder / "controller-manager.pid"
    _end(int(file.read_text(encoding="utf-8")))
    arguments = [
        f"--kubeconfig={folder}/kubeconfig",
        "--leader-elect=false",
        f"--service-account-private-key-file={folder}/sa.key",
        "--bind-address=127.0.0.1",
        f"--secure-port={ports[0]}",
        f"--port={ports[1]}",
        "--concurrent-gc-syncs=4",
    ]
    with open(folder / "controller-manager.log", "wb") as log:
        process = subprocess.Popen(
            [str(folder / "kube-controller-manager"), *arguments], stdout=log, stderr=log, start_new_session=True
        )
    file.write_text(str(process.pid), encoding="utf-8")


def _end(pid: int) -> None:
    """Stop a process that we started, and its group."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(pid, number)
        except (ProcessLookupError, PermissionError):
            return
        time.sleep(0.2)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])
