"""What is asked of a Kubernetes API server: a dozen calls on objects as they are written, whatever their kind.

The official client finds and keeps the connection (kubeconfig, exec plugins, service account, TLS); objects stay plain
dictionaries, because most of what we make (BrickRun, PyTorchJob, TrainJob) has no class there.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

import yaml

from bricks_core.cluster.launcher import Object
from bricks_core.errors import BricksError, ClusterDenied, ClusterUnavailable

if TYPE_CHECKING:
    from kubernetes.client import ApiClient, Configuration
    from kubernetes.client.rest import RESTResponse

Objects = list[Object]


@dataclass(frozen=True)
class Kind:
    """Where objects of a kind live in the API."""

    api_version: str
    plural: str


KINDS: dict[str, Kind] = {
    "BrickRun": Kind("bricks.dev/v1alpha1", "brickruns"),
    "ConfigMap": Kind("v1", "configmaps"),
    "Event": Kind("v1", "events"),
    "Job": Kind("batch/v1", "jobs"),
    "Pod": Kind("v1", "pods"),
    "PyTorchJob": Kind("kubeflow.org/v1", "pytorchjobs"),
    "Service": Kind("v1", "services"),
    "TrainJob": Kind("trainer.kubeflow.org/v1alpha1", "trainjobs"),
    "TrainingRuntime": Kind("trainer.kubeflow.org/v1alpha1", "trainingruntimes"),
    "Workload": Kind("kueue.x-k8s.io/v1beta2", "workloads"),
}
"""Every kind we speak of. The chart's Role is held against this list and the calls made with it."""


class NotThere(BricksError):
    """The object is not there (404), or was replaced by another one of its name."""

    exit_code = 65


class AlreadyThere(BricksError):
    """An object of that name is there already (409 on create)."""

    exit_code = 65


class Changed(BricksError):
    """Somebody else changed the object since it was read (409 on a write): read it again."""

    exit_code = 75


class Refused(BricksError):
    """The server says that the object cannot be (400, 422)."""

    exit_code = 78


_COMES_WITH = {
    "BrickRun": "install the chart's CRD (crds.enabled=true)",
    "PyTorchJob": "install Kubeflow's Training Operator 1.9, or choose another launcher in cluster.launcher",
    "TrainJob": "install Kubeflow's Trainer 2.2 or later, or choose another launcher in cluster.launcher",
    "TrainingRuntime": "install Kubeflow's Trainer 2.2 or later, or choose another launcher in cluster.launcher",
    "Workload": "install Kueue, or leave the queue empty",
}
"""What to do where the server does not know a kind."""

_TIMEOUT_S = (5.0, 30.0)
"""To connect, and between two bytes of an answer."""
_SILENCE_S = 120.0
"""A log that is followed is asked for anew after so long without a line: something on the way may have dropped it."""
_AGAIN_S = 1.0
"""Between a log that broke off and asking for the rest."""
_PAGE = 500
_MERGE = "application/merge-patch+json"
_EVENT_BYTES = 1024
"""The longest message of an Event that every version takes."""


@dataclass(frozen=True)
class _Asked:
    """What was asked for, for the sentence that says that it failed."""

    verb: str
    kind: str
    name: str = ""
    subresource: str = ""

    def __str__(self) -> str:
        return " ".join(filter(None, (self.verb, self.kind, self.name)))


@dataclass(frozen=True)
class Connection:
    """How a cluster is reached, for whoever speaks to it with another client: the controller's watch."""

    address: str
    authorization: str
    """The header's value, such as Bearer …; empty: none, or a client certificate."""
    ca_file: str | None
    ca_data: str | bytes | None
    """The same as text, where it is in no file."""
    certificate_file: str | None
    key_file: str | None
    is_verified: bool


class Cluster:
    """One namespace of a cluster. Safe to use from many threads.

    Every call has a timeout. Beside the classes above, all raise ClusterUnavailable when the server does not answer, is
    too busy or fails (429, 5xx), and ClusterDenied when it refuses us (401, 403) or does not know the kind. A write is
    sent once: whether it took effect when ClusterUnavailable comes back, only the next reading tells.
    """

    def __init__(self, client: ApiClient, namespace: str):
        self.namespace = namespace
        self._client = client
        self._signing = threading.Lock()  # a token that has run out is renewed by one thread

    @property
    def address(self) -> str:
        """The server's, such as https://10.0.0.1:6443."""
        return str(self._client.configuration.host)

    def connection(self) -> Connection:
        """How it is reached, with credentials as fresh as they can be. ClusterDenied: they cannot be renewed."""
        configuration = self._client.configuration
        return Connection(
            address=self.address,
            authorization=self._headers(None).get("authorization", ""),
            ca_file=configuration.ssl_ca_cert,
            ca_data=configuration.ca_cert_data,
            certificate_file=configuration.cert_file,
            key_file=configuration.key_file,
            is_verified=configuration.verify_ssl,
        )

    def get(self, kind: str, name: str) -> Object:
        """The object. NotThere."""
        return self._json("GET", self._path(kind, name), _Asked("get", kind, name))

    def list(self, kind: str, *, labels: Mapping[str, str] | None = None, fields: str = "") -> Objects:
        """All objects with these labels, page by page; each has its apiVersion and kind, and no managedFields.

        `fields` leaves out more of them, as Kubernetes writes it: status.phase!=Succeeded.
        """
        selector = ",".join(f"{key}={value}" for key, value in sorted((labels or {}).items()))
        selectors = {"labelSelector": selector, "fieldSelector": fields}
        for _ in range(5):
            try:
                return self._pages(kind, {name: value for name, value in selectors.items() if value})
            except _Expired:
                continue
        raise ClusterUnavailable(
            f"{self.address} keeps changing faster than its {KINDS[kind].plural} can be read: try again."
        )

    def _pages(self, kind: str, selectors: Mapping[str, str]) -> Objects:
        query = {"limit": str(_PAGE), **selectors}
        objects: Objects = []
        while True:
            page = self._json("GET", self._path(kind), _Asked("list", kind), query)
            for item in page.get("items") or []:
                item.get("metadata", {}).pop("managedFields", None)  # half of a small object, and nobody's business
                objects.append({"apiVersion": KINDS[kind].api_version, "kind": kind} | item)
            token = page.get("metadata", {}).get("continue")
            if not token:
                return objects
            query["continue"] = token

    def create(self, obj: Object) -> Object:
        """Create it in this namespace. AlreadyThere, Refused."""
        kind, name = obj["kind"], obj["metadata"].get("name", "")
        return self._json("POST", self._path(kind), _Asked("create", kind, name), body=obj)

    def write_status(self, obj: Object) -> Object:
        """Replace the status of an object as it was read (its resourceVersion is sent). Changed, NotThere, Refused."""
        kind, name = obj["kind"], obj["metadata"]["name"]
        asked = _Asked("update", kind, name, "status")
        return self._json("PUT", self._path(kind, name, "status"), asked, body=obj)

    def patch(self, kind: str, name: str, change: Object) -> Object:
        """Merge a change (RFC 7386) into an object. NotThere, Refused, Changed."""
        asked = _Asked("patch", kind, name)
        return self._json("PATCH", self._path(kind, name), asked, body=change, content_type=_MERGE)

    def delete(self, kind: str, name: str, *, uid: str | None = None, foreground: bool = True) -> None:
        """Delete it and what belongs to it; one that is not there, or has another uid by now, is as good as deleted."""
        options: Object = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": "Foreground" if foreground else "Background",
        }
        if uid:
            options["preconditions"] = {"uid": uid}
        try:
            self._json("DELETE", self._path(kind, name), _Asked("delete", kind, name), body=options)
        except NotThere:
            return
        except Changed:
            if uid is None or self._uid(kind, name) == uid:
                raise

    def _uid(self, kind: str, name: str) -> str | None:
        try:
            return str(self.get(kind, name)["metadata"]["uid"])
        except NotThere:
            return None

    def logs(self, pod: str, container: str, *, follow: bool = False, tail_lines: int | None = None) -> Iterator[str]:
        """The lines a container wrote, as they come. NotThere: it has not started.

        A log that is followed ends when the container does; a connection lost on the way is made again where it broke.
        """
        query = {"container": container, "timestamps": "true"}
        if tail_lines is not None:
            query["tailLines"] = str(tail_lines)
        if follow:
            query["follow"] = "true"
        seen, last = "", ""
        while True:
            try:
                for line in self._stream(pod, query):
                    at, _, text = line.partition(" ")
                    if at > seen:  # times are written to the nanosecond, all of the same length
                        last = at
                        yield text
                return
            except _Silent:
                if not follow:
                    raise ClusterUnavailable(f"{self.address} stopped in the middle of the log of pod {pod}.") from None
            time.sleep(_AGAIN_S)
            query.pop("tailLines", None)
            seen = last
            if seen:
                query["sinceTime"] = seen

    def _stream(self, pod: str, query: Mapping[str, str]) -> Iterator[str]:
        """The lines of a log with their times."""
        import urllib3

        asked = _Asked("get", "Pod", pod, "log")
        path = f"{self._path('Pod', pod, 'log')}?{urlencode(query)}"
        response = self._send("GET", path, asked, timeout=(_TIMEOUT_S[0], _SILENCE_S)).response
        rest = b""
        try:
            for chunk in response.stream(1 << 16, decode_content=True):
                *lines, rest = (rest + chunk).split(b"\n")
                yield from (line.decode(errors="replace") for line in lines)
        except (urllib3.exceptions.HTTPError, OSError):
            raise _Silent from None
        finally:
            response.close()
        if rest:
            yield rest.decode(errors="replace")

    def tell(self, about: Object, reason: str, message: str, *, warning: bool = False) -> None:
        """Write an Event about an object; the same one again is counted, not repeated."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        event = _event(about, self.namespace, reason, message, now, warning=warning)
        name = event["metadata"]["name"]
        for _ in range(5):
            try:
                self.create(event)
                return
            except AlreadyThere:
                pass
            try:
                told = self.get("Event", name)
                count = {"count": int(told.get("count") or 1) + 1, "lastTimestamp": now}
                seen = {"metadata": {"resourceVersion": told["metadata"]["resourceVersion"]}}
                self.patch("Event", name, seen | count)
                return
            except (Changed, NotThere):  # told by somebody else meanwhile, or old enough to be gone
                continue

    def knows(self, kind: str) -> bool:
        """Whether the server has this kind (its CRD is installed)."""
        try:
            served = self._json("GET", _group_path(KINDS[kind].api_version), _Asked("discover", kind))
        except _UnknownKind:
            return False
        return any(each.get("name") == KINDS[kind].plural for each in served.get("resources") or [])

    def version(self) -> str:
        """The server's version, such as v1.33.1."""
        return str(self._json("GET", "/version", _Asked("read", "version")).get("gitVersion", ""))

    def ask(self, path: str, *, body: Object | None = None, metadata_only: bool = False) -> Object:
        """Anything else of the API, to look around: GET of a path such as /api/v1/nodes, or POST of a review to one.

        `metadata_only`: of a Secret, all but its values. NotThere; ClusterDenied also where the path's kind is unknown.
        """
        asked = _Asked("create" if body is not None else "get", path.rstrip("/").rpartition("/")[2])
        accept = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1" if metadata_only else ""
        return self._json("GET" if body is None else "POST", path, asked, body=body, accept=accept)

    def _path(self, kind: str, name: str = "", subresource: str = "") -> str:
        parts = (_group_path(KINDS[kind].api_version), "namespaces", self.namespace, KINDS[kind].plural)
        return "/".join([*parts, *(quote(part, safe="") for part in (name, subresource) if part)])

    def _json(
        self,
        method: str,
        path: str,
        asked: _Asked,
        query: Mapping[str, str] | None = None,
        *,
        body: Object | None = None,
        content_type: str = "application/json",
        accept: str = "",
    ) -> Object:
        import urllib3

        if query:
            path = f"{path}?{urlencode(query)}"
        for last in (False, True):
            response = self._send(method, path, asked, body=body, content_type=content_type, accept=accept)
            try:
                answer = json.loads(response.read())
            except (urllib3.exceptions.HTTPError, OSError) as error:
                if last or method != "GET":
                    raise self._unreachable(error) from None
                continue
            except ValueError:
                break
            if isinstance(answer, dict):
                return answer
            break
        raise ClusterUnavailable(
            f"{self.address} answers, but not as a Kubernetes API server does: is that its address, or a proxy's?"
        )

    def _send(
        self,
        method: str,
        path: str,
        asked: _Asked,
        *,
        body: Object | None = None,
        content_type: str = "application/json",
        accept: str = "",
        timeout: tuple[float, float] | None = None,
    ) -> RESTResponse:
        """One request; its answer when it is a good one, unread. A connection that was closed while idle is made again
        for a reading, which costs nothing to ask twice."""
        import urllib3
        from kubernetes.client import ApiException

        url, within = self.address.rstrip("/") + path, timeout or _TIMEOUT_S
        for last in (False, True):
            headers = self._headers(content_type if body is not None else None)
            if accept:
                headers["Accept"] = accept
            try:
                response = self._client.rest_client.request(method, url, headers, body=body, _request_timeout=within)
                if response.status < 300:
                    return response
                failed = response.read()
            except urllib3.exceptions.ProtocolError as error:
                if last or method != "GET":
                    raise self._unreachable(error) from None
                continue
            except (urllib3.exceptions.HTTPError, ApiException, OSError) as error:
                raise self._unreachable(error) from None
            self._fail(response.status, failed, asked)
        raise AssertionError  # the loop returns or raises

    def _headers(self, content_type: str | None) -> dict[str, str]:
        from kubernetes.config import ConfigException

        headers = {"Accept": "application/json, */*;q=0.1", "User-Agent": "bricks"}
        if content_type:
            headers["Content-Type"] = content_type
        try:
            with self._signing:
                self._client.update_params_for_auth(headers, [], ["BearerToken"], "", "", None)
        except (ConfigException, OSError) as error:
            raise ClusterDenied(
                f"The credentials for {self.address} cannot be renewed ({_one_line(error)}): log in to it again."
            ) from None
        return headers

    def _unreachable(self, error: Exception) -> ClusterUnavailable:
        import urllib3

        text = _one_line(error)
        if isinstance(error, urllib3.exceptions.NewConnectionError):  # a kind of timeout, to urllib3
            why = text.rsplit("] ", 1)[-1].removesuffix(")").lower()
        elif isinstance(error, urllib3.exceptions.TimeoutError):
            why = "not in time"
        elif "CERTIFICATE_VERIFY_FAILED" in text or "certificate verify failed" in text:
            return ClusterUnavailable(
                f"The certificate of {self.address} is not one that the kubeconfig trusts: is certificate-authority of "
                "this cluster right?"
            )
        else:
            why = "the connection broke"
        return ClusterUnavailable(
            f"The cluster at {self.address} does not answer ({why}): is it up, and is the context the one you mean "
            "(kubectl config current-context)?"
        )

    def _fail(self, status: int, body: bytes, asked: _Asked) -> None:
        """Raise what a status of 300 and more means."""
        told = _status(body)
        message = str(told.get("message") or body[:200].decode(errors="replace")).strip().rstrip(".")
        details, reason = told.get("details") or {}, told.get("reason")
        where = f"in namespace {self.namespace}"
        match status:
            case 401:
                raise ClusterDenied(
                    f"The cluster at {self.address} does not know who we are, or no more: log in to it again (the "
                    "kubeconfig's user, or the pod's service account)."
                )
            case 403:
                raise _denied(message, asked, self.namespace)
            case 404 if details.get("kind") == "namespaces":
                raise ClusterDenied(
                    f"There is no namespace {self.namespace}: kubectl create namespace {self.namespace}, or name "
                    "another one."
                )
            case 404 if details.get("name"):
                raise NotThere(f"There is no {asked.kind} {asked.name} {where}.")
            case 404:
                hint = _COMES_WITH.get(asked.kind, "is it a Kubernetes API server of 1.33 or later?")
                raise _UnknownKind(f"The cluster does not know the kind {asked.kind}: {hint}.")
            case 409 if reason == "AlreadyExists":
                raise AlreadyThere(f"There is a {asked.kind} {asked.name} {where} already.")
            case 409:
                raise Changed(f"{asked.kind} {asked.name} {where} was changed by somebody else meanwhile: try again.")
            case 410:
                raise _Expired(f"The cluster has forgotten what was asked for, to {asked}: ask again.")
            case 429 | 500 | 502 | 503 | 504:
                busy = "is too busy" if status == 429 else f"fails ({status})"
                raise ClusterUnavailable(f"The cluster at {self.address} {busy} when asked to {asked}: {message}.")
            case 400 if asked.subresource == "log":
                raise NotThere(f"Pod {asked.name} has no log yet: {message}.")
            case _:
                raise Refused(f"The cluster refuses to {asked} {where}: {message}.")


class _Expired(ClusterUnavailable):
    """The place in a list is too old to go on from (410)."""


class _UnknownKind(ClusterDenied):
    """The server has no such kind."""


class _Silent(Exception):
    """A log stopped coming."""


def _group_path(api_version: str) -> str:
    return f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"


def _status(body: bytes) -> dict[str, Any]:
    """The Status that an error is told with; nothing when it is told otherwise."""
    try:
        told = json.loads(body)
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


def _denied(message: str, asked: _Asked, namespace: str) -> ClusterDenied:
    """What a 403 says: a right that is missing, or somebody's rule (a quota, an admission webhook) in its own words."""
    missing = re.search(r'User "([^"]*)" cannot (\S+) resource "([^"]*)" in API group "([^"]*)"', message)
    if missing is None:
        return ClusterDenied(f"The cluster does not let us {asked} in namespace {namespace}: {message}.")
    user, verb, resource, group = missing.groups()
    resource = f"{resource}.{group}" if group else resource
    return ClusterDenied(
        f'{user} may not {asked} in namespace {namespace}: it needs the verb "{verb}" on "{resource}" in a Role bound '
        f"to it there (kubectl auth can-i {verb} {resource} -n {namespace})."
    )


def _event(about: Object, namespace: str, reason: str, message: str, now: str, *, warning: bool) -> Object:
    """An Event of core/v1. Its name is its content's, so that the same one meets itself."""
    meta = about["metadata"]
    said = hashlib.sha256("\0".join((meta.get("uid", ""), reason, message)).encode()).hexdigest()[:16]
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{meta['name'][:230]}.{said}", "namespace": namespace},
        "involvedObject": {
            "apiVersion": about["apiVersion"],
            "kind": about["kind"],
            "name": meta["name"],
            "namespace": namespace,
            "uid": meta.get("uid", ""),
        },
        "reason": reason,
        "message": message.encode()[:_EVENT_BYTES].decode(errors="ignore"),
        "type": "Warning" if warning else "Normal",
        "source": {"component": "bricks"},
        "reportingComponent": "bricks",
        "reportingInstance": "bricks",
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def connect(context: str | None = None, namespace: str | None = None) -> Cluster:
    """The cluster that the kubeconfig or, inside a pod, the service account names.

    `namespace`: None takes the context's, or the pod's own. ClusterUnavailable: no cluster is configured.
    """
    import urllib3
    from kubernetes.client import ApiClient, Configuration

    configuration = Configuration()
    configuration.retries = False  # who calls decides what is asked twice
    configuration.connection_pool_maxsize = 16
    files = _kubeconfigs()
    if files or context:
        default = _from_kubeconfig(configuration, files, context)
    elif _IN_POD.with_name("token").exists() and os.environ.get("KUBERNETES_SERVICE_HOST"):
        default = _from_pod(configuration)
    else:
        named = os.environ.get("KUBECONFIG")
        missing = f"KUBECONFIG names {named}, which is not there" if named else "there is no ~/.kube/config"
        raise ClusterUnavailable(
            f"No cluster is configured: {missing}, and this is no pod of a cluster. Set KUBECONFIG to your cluster's "
            "file, or run on this machine (bricks run)."
        )
    if not configuration.verify_ssl:  # the kubeconfig says so (insecure-skip-tls-verify): once is enough
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
    return Cluster(ApiClient(configuration), namespace or default)


_IN_POD = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


def _kubeconfigs() -> list[str]:
    """The kubeconfigs that are there: $KUBECONFIG's, or the one at home."""
    named = os.environ.get("KUBECONFIG") or "~/.kube/config"
    return [file for file in map(os.path.expanduser, named.split(os.pathsep)) if file and Path(file).exists()]


def _from_pod(configuration: Configuration) -> str:
    """Use the pod's service account; returns its namespace."""
    from kubernetes.config import ConfigException, load_incluster_config

    try:
        load_incluster_config(configuration)
        return _IN_POD.read_text(encoding="utf-8").strip()
    except (ConfigException, OSError) as error:
        raise ClusterUnavailable(
            f"This pod's service account cannot be used ({_one_line(error)}): is its token mounted?"
        ) from None


def _from_kubeconfig(configuration: Configuration, files: list[str], context: str | None) -> str:
    """Use a context of the kubeconfig; returns its namespace."""
    from kubernetes.config import ConfigException, list_kube_config_contexts, load_kube_config

    where = " and ".join(files) or "the kubeconfig"
    joined = os.pathsep.join(files)
    try:
        contexts, active = list_kube_config_contexts(joined)
        chosen = next((each for each in contexts if each["name"] == context), None) if context else active
        if chosen is None:
            there = ", ".join(sorted(each["name"] for each in contexts)) or "none"
            raise ClusterUnavailable(f"{where} has no context {context}: it has {there}.")
        with _root_log_kept() as said:
            load_kube_config(joined, context=chosen["name"], client_configuration=configuration)
    except (ConfigException, OSError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise ClusterUnavailable(
            f"No cluster is configured: {where} cannot be used ({_one_line(error)}). Choose a context with kubectl "
            "config use-context, or set KUBECONFIG."
        ) from None
    if said:
        raise ClusterDenied(
            f"The login of context {chosen['name']} failed ({said[0][:300]}): log in again with the program that "
            f"{where} names under users."
        )
    return str(chosen["context"].get("namespace") or "default")


@contextmanager
def _root_log_kept() -> Iterator[list[str]]:
    """Collects what is logged as an error meanwhile: the client says so that a login plugin failed, and goes on."""
    said: list[str] = []

    def keep(record: logging.LogRecord) -> bool:
        if record.levelno >= logging.ERROR and "kubernetes" in record.pathname:
            said.append(" ".join(record.getMessage().split()))
            return False
        return True

    root = logging.getLogger()
    quiet = logging.NullHandler()  # with no handler at all, logging.error() would set one up for the whole process
    root.addHandler(quiet)
    root.addFilter(keep)
    try:
        yield said
    finally:
        root.removeFilter(keep)
        root.removeHandler(quiet)
