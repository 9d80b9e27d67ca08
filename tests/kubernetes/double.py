"""A Kubernetes API server for tests, over real HTTP: small, fast, and wrong wherever a test wants it to be.

    with Double() as server:
        cluster = server.cluster("bricks")          # bricks_core.cluster.api, through a kubeconfig and HTTP
        server.kubeconfig(path, user=...)           # for kubectl, kopf, Helm and the command line

What it keeps of the real one is held by tests/kubernetes/test_contract.py, which runs against both. After every write
its controllers (garbage collection, Jobs, PyTorchJobs, TrainJobs) work until there is nothing left to do, so that a
test needs no waiting; `hold()` stops them for a while, `advance()` moves the time. There is no scheduler and no node:
pods stay Pending until somebody plays kubelet (tests/kubernetes/kubelet.py does, with real processes).
"""

from __future__ import annotations

import base64
import os
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self

import yaml

from bricks_core.cluster.api import Cluster
from tests.kubernetes.access import ADMIN, User, service_account
from tests.kubernetes.admission import admit, custom_resources
from tests.kubernetes.failures import Failure, Object, Resource
from tests.kubernetes.jobs import Jobs
from tests.kubernetes.kinds import KINDS
from tests.kubernetes.logs import Logs
from tests.kubernetes.pytorchjobs import PyTorchJobs
from tests.kubernetes.raw import Api
from tests.kubernetes.serve import certificate, serve
from tests.kubernetes.storage import Change, Clock, Storage
from tests.kubernetes.trainjobs import TrainJobs


@dataclass(frozen=True)
class Request:
    """What was asked, as a hook of faults and `Double.requests` see it."""

    method: str
    path: str
    verb: str
    group: str
    resource: str
    namespace: str
    name: str
    subresource: str
    user: str
    query: dict[str, str] = field(default_factory=dict)
    body: Any = None


@dataclass(frozen=True)
class Fault:
    """What goes wrong with a request."""

    delay_s: float = 0
    status: int | None = None
    """It is answered with this (409, 404, 410, 429, 500, 503, …) and has no effect."""
    drop: Literal["", "before", "after"] = ""
    """The connection is cut before or after the request took effect."""


Hook = Callable[[Request], Fault | None]
Deliver = Callable[[Request, Object], Iterable[Object]]
"""(the watch, an event) -> what is sent instead: nothing (lost), twice, or one kept from earlier (out of order)."""


class Controller(Protocol):
    """Part of the cluster's own machinery; called with the storage's lock held, until nothing changes any more."""

    def work(self, storage: Storage) -> None: ...


class Double:
    """One cluster. Everything public may be used from any thread."""

    def __init__(self, *, crds: Iterable[Object] = (), namespaces: Iterable[str] = ("default", "bricks")) -> None:
        self.clock = Clock()
        self.storage = Storage(admit, self.clock)
        self.logs = Logs(self.clock)
        self.faults: list[Hook] = []
        self.deliver: Deliver = lambda _, event: (event,)
        self.requests: list[Request] = []
        self.bookmark_s = 1.0
        """Between two bookmarks of a watch that asks for them."""
        self.applied: dict[tuple[str, str], Object] = {}
        """What a field manager last applied, by uid and manager."""
        self.snapshots: dict[str, tuple[int, list[Object]]] = {}
        """The rest of lists that are read page by page."""
        self.generation_of_watches = 0
        self.stopping = False
        self._tokens: dict[str, User] = {"admin": ADMIN}
        self._held = 0
        self._settled = 0
        self._http: ThreadingHTTPServer | None = None
        self.controllers: list[Controller] = [TrainJobs(), PyTorchJobs(), Jobs()]
        for resource in KINDS:
            self.storage.serve(resource)
        for namespace in ("kube-system", *namespaces):
            self.make({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
        for crd in crds:
            self.make(crd)

    # Its life

    def __enter__(self) -> Self:
        self._http = serve(self)
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True, name="double").start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopping = True
        self.break_watches()
        assert self._http is not None
        self._http.shutdown()
        self._http.server_close()

    @property
    def url(self) -> str:
        assert self._http is not None, "use it as a context manager"
        return f"https://127.0.0.1:{self._http.server_address[1]}"

    # Its users

    def token(self, user: User = ADMIN) -> str:
        """A bearer token of a user."""
        if user is ADMIN:
            return "admin"
        token = secrets.token_urlsafe(24)
        self._tokens[token] = user
        return token

    def user(self, token: str) -> User | None:
        return self._tokens.get(token)

    def kubeconfig(self, file: Path, *, namespace: str = "default", user: User = ADMIN) -> Path:
        """Write a kubeconfig that leads here."""
        authority = base64.b64encode(certificate()[1]).decode()
        cluster = {"server": self.url, "certificate-authority-data": authority}
        return write_kubeconfig(file, cluster, self.token(user), namespace)

    def cluster(self, namespace: str = "bricks", *, user: User = ADMIN) -> Cluster:
        """Our own client, connected."""
        return client_of(self.url, self.token(user), namespace, authority=certificate()[1].decode())

    def api(self, user: User = ADMIN) -> Api:
        """The bare API, as a user."""
        return Api(self.url, self.token(user))

    # What happens in it

    def make(self, obj: Object) -> Object:
        """Create an object, past HTTP and rights."""
        resource = self.storage.kind(obj["apiVersion"], obj["kind"])
        assert resource is not None, f"{obj['kind']} is not served"
        with self.storage.lock:
            made = self.storage.create(resource, obj["metadata"].get("namespace", "default"), obj)
            self.settle()
            return made

    def settle(self) -> None:
        """Let the controllers work until nothing changes, unless they are held."""
        with self.storage.lock:
            self._serve_customs()
            if self._held:
                return
            for _ in range(10_000):
                before = self.storage.version
                self.storage.collect()
                for controller in self.controllers:
                    controller.work(self.storage)
                self._serve_customs()
                if self.storage.version == before:
                    return
            raise AssertionError("the controllers never come to rest")

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Nothing is collected and no controller acts meanwhile: as a real cluster for a moment."""
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
            self.settle()

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        with self.storage.lock:
            self.clock.ahead_s += seconds
            self.settle()

    def compact(self) -> None:
        """Forget the history: whoever watches or lists from before now gets 410."""
        with self.storage.lock:
            self.storage.compact()
            self.snapshots.clear()
            self.storage.lock.notify_all()

    def break_watches(self) -> None:
        """Cut every watch."""
        with self.storage.lock:
            self.generation_of_watches += 1
            self.storage.lock.notify_all()

    def _serve_customs(self) -> None:
        """Serve what the CRDs of now define, and nothing of those that are gone."""
        if self._settled == self.storage.version:
            return
        changes = self.storage.since(self._settled)
        self._settled = self.storage.version
        for change in changes:
            if change.resource.kind == "CustomResourceDefinition":
                self._serve_custom(change)

    def _serve_custom(self, change: Change) -> None:
        for resource in custom_resources(change.object):
            if change.type != "DELETED":
                self.storage.serve(resource)
                continue
            for obj in self.storage.all(resource):
                meta = obj["metadata"]
                self.storage.delete(resource, meta.get("namespace", ""), meta["name"])
            self.storage.forget(resource)


def write_kubeconfig(file: Path, cluster: dict[str, Any], token: str, namespace: str) -> Path:
    """A kubeconfig of one context, readable by its owner alone."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": cluster}],
        "users": [{"name": "test", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": namespace}}],
        "current-context": "test",
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as to:
        yaml.safe_dump(config, to)
    return file


def client_of(url: str, token: str, namespace: str, *, authority: str | None = None) -> Cluster:
    """Our client with a token, past the kubeconfig. authority: the certificate that is trusted; None trusts any."""
    import urllib3
    from kubernetes.client import ApiClient, Configuration

    configuration = Configuration()
    configuration.host = url
    configuration.retries = False
    configuration.verify_ssl = authority is not None
    configuration.ca_cert_data = authority
    configuration.connection_pool_maxsize = 16
    configuration.api_key["BearerToken"] = f"Bearer {token}"
    if authority is None:
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
    return Cluster(ApiClient(configuration), namespace)


__all__ = ["Double", "Failure", "Fault", "Request", "Resource", "User", "service_account"]
