"""The double over HTTP: paths, discovery, lists, watches, patches, subresources, and whatever faults a test injects."""

from __future__ import annotations

import copy
import functools
import json
import secrets
import socket
import ssl
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.kubernetes import patches
from tests.kubernetes.access import ANONYMOUS, Action, User, allowed, denied, rules, service_account
from tests.kubernetes.admission import VERSION, unknown_fields
from tests.kubernetes.failures import Failure, Object, Resource, bad_request, gone, invalid
from tests.kubernetes.kinds import REVIEWS, SHORT_NAMES, SUBRESOURCES, VERBS
from tests.kubernetes.selectors import Test, field_test, label_test
from tests.kubernetes.storage import Change

if TYPE_CHECKING:
    from tests.kubernetes.double import Double, Fault, Request

PATCHES: dict[str, Callable[[Any, Any], Any]] = {
    "application/merge-patch+json": patches.merge,
    "application/json-patch+json": patches.json_patch,
    "application/strategic-merge-patch+json": patches.strategic,
}
APPLY = "application/apply-patch+yaml"
REASONS = {
    404: "NotFound",
    409: "Conflict",
    410: "Expired",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
    504: "Timeout",
}


class Dropped(Exception):
    """The connection is cut, as a fault asked."""


@dataclass
class Target:
    """What a path means."""

    resource: Resource
    namespace: str = ""
    name: str = ""
    subresource: str = ""


def serve(double: Double) -> ThreadingHTTPServer:
    class Bound(Handler):
        pass

    Bound.double = double
    server = Server(("127.0.0.1", 0), Bound)
    # The handshake is made by the connection's own thread, at its first reading.
    server.socket = tls_context().wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    return server


@functools.cache
def certificate() -> tuple[bytes, bytes]:
    """A key and a certificate for 127.0.0.1, signed by itself: kubectl and Helm send no token without TLS."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test double")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    return key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain), made.public_bytes(pem)


@functools.cache
def tls_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"".join(certificate()))
        file.flush()
        context.load_cert_chain(file.name)
    return context


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are no error of ours; anything else is told as usual."""
        if not isinstance(sys.exception(), ConnectionError | ssl.SSLError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    double: Double
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # head and body in one packet

    def log_message(self, format: str, *args: Any) -> None:
        """Silence: tests look at Double.requests."""

    def do_GET(self) -> None:
        self._answer()

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815 (http.server looks for these names)

    def _answer(self) -> None:
        try:
            self._handle()
        except Failure as failure:
            self._send(failure.code, failure.status)
        except Dropped:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        self.wfile.flush()

    def _handle(self) -> None:
        parts = urlsplit(self.path)
        self.query = dict(parse_qsl(parts.query, keep_blank_values=True))
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else b""
        path = [unquote(part) for part in parts.path.split("/") if part]
        user = self._user()
        if self._plain(path):
            return
        target = self._target(path)
        if target is None:
            self._send_text(404, "404 page not found\n")
            return
        parsed = self._parsed(body)
        request = self._request(target, user, parsed)
        fault = self._note(request)
        action = Action(
            request.verb,
            target.resource.group,
            target.resource.plural,
            target.namespace,
            target.name,
            target.subresource,
        )
        with self.double.storage.lock:
            if not allowed(self.double.storage, user, action):
                raise denied(user, action)
        self._obey(target, request, user, parsed)
        if fault and fault.drop == "after":
            raise Dropped

    def _user(self) -> User:
        header = self.headers.get("Authorization", "")
        user: User | None = ANONYMOUS
        if header:
            user = self.double.user(header.partition(" ")[2].strip())
        if user is None:
            raise Failure(401, "Unauthorized", "Unauthorized")
        other = self.headers.get("Impersonate-User")
        if other and "system:masters" in user.groups:
            kind, _, account = other.partition("system:serviceaccount:")
            if account and not kind:
                return service_account(*account.split(":"))
            return User(other, (*(self.headers.get_all("Impersonate-Group") or []), "system:authenticated"))
        return user

    def _parsed(self, body: bytes) -> Any:
        if not body:
            return {}
        if "protobuf" in self.headers.get("Content-Type", ""):
            raise Failure(415, "UnsupportedMediaType", "this server speaks JSON alone")
        try:
            return json.loads(body)
        except ValueError as error:
            # Read as YAML only what is no JSON: to PyYAML, which knows YAML 1.1, the number 5e-05 is a text.
            if "yaml" not in self.headers.get("Content-Type", ""):
                raise bad_request(f"the object provided is unrecognized: {error}") from None
        try:
            return yaml.safe_load(body)
        except (ValueError, yaml.YAMLError) as error:
            raise bad_request(f"the object provided is unrecognized: {error}") from None

    def _request(self, target: Target, user: User, body: Any) -> Request:
        from tests.kubernetes.double import Request

        watching = self.query.get("watch") in ("true", "1")
        verb = {
            "GET": "get" if target.name else "watch" if watching else "list",
            "POST": "create",
            "PUT": "update",
            "PATCH": "patch",
            "DELETE": "delete" if target.name else "deletecollection",
        }[self.command]
        return Request(
            self.command,
            self.path,
            verb,
            target.resource.group,
            target.resource.plural,
            target.namespace,
            target.name,
            target.subresource,
            user.name,
            self.query,
            copy.deepcopy(body),
        )

    def _note(self, request: Request) -> Fault | None:
        """Keep the request, and let the faults strike that come before it takes effect."""
        self.double.requests.append(request)
        fault = next((fault for hook in self.double.faults if (fault := hook(request))), None)
        if fault is None:
            return None
        time.sleep(fault.delay_s)
        if fault.drop == "before":
            raise Dropped
        if fault.status is not None:
            raise Failure(fault.status, REASONS.get(fault.status, "Unknown"), "injected by the test")
        return fault

    # Paths

    def _plain(self, path: list[str]) -> bool:
        """What is no object: health, version, discovery."""
        match path:
            case ["healthz" | "readyz" | "livez", *_]:
                self._send_text(200, "ok")
            case ["version"]:
                self._send(
                    200, {"major": "1", "minor": VERSION[2:], "gitVersion": f"v{VERSION}.0", "platform": "linux/amd64"}
                )
            case ["api"]:
                self._send(200, {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []})
            case ["apis"]:
                groups = {each.group for each in self._served()} - {""}
                found = [self._group(group) for group in sorted(groups)]
                self._send(200, {"kind": "APIGroupList", "apiVersion": "v1", "groups": found})
            case ["apis", group] if any(each.group == group for each in self._served()):
                self._send(200, {"kind": "APIGroup", "apiVersion": "v1", **self._group(group)})
            case ["openapi", "v3"]:
                names = {f"apis/{each.api_version}" if each.group else "api/v1" for each in self._served()}
                self._send(200, {"paths": {name: {"serverRelativeURL": f"/openapi/v3/{name}"} for name in names}})
            case ["openapi", "v3", *rest]:
                self._send(200, _openapi([each for each in self._served() if each.version == rest[-1]]))
            case ["api", version] | ["apis", _, version]:
                group = path[1] if path[0] == "apis" else ""
                served = [each for each in self._served() if (each.group, each.version) == (group, version)]
                if not served:
                    return False
                name = f"{group}/{version}" if group else version
                found = [entry for each in served for entry in _discovered(each)]
                self._send(
                    200, {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": name, "resources": found}
                )
            case _:
                return False
        return True

    def _served(self) -> list[Resource]:
        return [*self.double.storage.resources, *REVIEWS]

    def _group(self, group: str) -> Object:
        versions = sorted({each.version for each in self._served() if each.group == group})
        found = [{"groupVersion": f"{group}/{version}", "version": version} for version in versions]
        return {"name": group, "versions": found, "preferredVersion": found[-1]}

    def _target(self, path: list[str]) -> Target | None:
        match path:
            case ["api", "v1", *rest]:
                group, version = "", "v1"
            case ["apis", group, version, *rest]:
                pass
            case _:
                return None
        namespace = ""
        if rest[:1] == ["namespaces"] and len(rest) > 2 and rest[2] not in ("status", "finalize"):
            namespace, rest = rest[1], rest[2:]
        if not 1 <= len(rest) <= 3:
            return None
        plural, name, subresource = (*rest, "", "")[:3]
        resource = self.double.storage.resource(group, plural)
        resource = resource or next((each for each in REVIEWS if (each.group, each.plural) == (group, plural)), None)
        if resource is None or resource.version != version or (namespace and not resource.namespaced):
            return None
        known = (*SUBRESOURCES.get(plural, ()), *(("status",) if resource.status else ()))
        if subresource and subresource not in known:
            return None
        if resource.namespaced and name and not namespace:
            return None
        return Target(resource, namespace, name, subresource)

    # Verbs

    def _obey(self, target: Target, request: Request, user: User, body: Any) -> None:
        if request.verb == "watch":
            self._watch(target, request)
            return
        if target.subresource == "log":
            self._log(target)
            return
        double = self.double
        with double.storage.lock:
            if target.resource in REVIEWS:
                answer = self._review(target.resource, user, body)
            elif request.method == "POST" and target.subresource:
                answer = self._act_on(target, body)
            else:
                answer = getattr(self, f"_{request.verb}")(target, body)
            if request.verb not in ("get", "list"):
                double.settle()
        self._send(201 if request.method == "POST" else 200, answer)

    @property
    def _dry(self) -> bool:
        return self.query.get("dryRun") == "All"

    def _get(self, target: Target, body: Any) -> Object:
        found = self.double.storage.get(target.resource, target.namespace, target.name)
        if "as=PartialObjectMetadata" in self.headers.get("Accept", ""):
            kind = {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1"}
            return {**kind, "metadata": found["metadata"]}
        return found

    def _create(self, target: Target, body: Any) -> Object:
        if target.resource.namespaced and not target.namespace:
            raise bad_request("an empty namespace may not be set during creation")
        self._check_body(target, body)
        return self.double.storage.create(target.resource, target.namespace, body, dry_run=self._dry)

    def _check_body(self, target: Target, body: Any) -> None:
        resource = target.resource
        if not isinstance(body, dict) or body.get("kind") != resource.kind:
            raise bad_request(f"the object provided is no {resource.kind}: its kind is {body.get('kind')!r}")
        if body.get("apiVersion") != resource.api_version:
            message = (
                f"the API version in the data ({body.get('apiVersion')}) does not match the expected API version "
                f"({resource.api_version})"
            )
            raise bad_request(message)
        if resource.schema is not None and self.query.get("fieldValidation") == "Strict":
            unknown = unknown_fields(resource, body)
            if unknown:
                raise bad_request("strict decoding error: " + ", ".join(f'unknown field "{at}"' for at in unknown))

    def _update(self, target: Target, body: Any) -> Object:
        self._check_body(target, body)
        if target.resource.schema is not None and not (body.get("metadata") or {}).get("resourceVersion"):
            text = "Invalid value: 0: must be specified for an update"
            raise invalid(target.resource, target.name, [("metadata.resourceVersion", text)])
        there = self.double.storage.get(target.resource, target.namespace, target.name)
        self.double.storage.hold_to(target.resource, there, {"uid": (body.get("metadata") or {}).get("uid")})
        return self._change(target, lambda _: body)

    def _change(self, target: Target, change: Callable[[Object], Object]) -> Object:
        return self.double.storage.update(
            target.resource, target.namespace, target.name, change, target.subresource, dry_run=self._dry
        )

    def _patch(self, target: Target, body: Any) -> Object:
        kind = self.headers.get("Content-Type", "").partition(";")[0].strip()
        if kind == APPLY:
            return self._apply(target, body)
        known = PATCHES.get(kind)
        if known is None or (target.resource.schema is not None and known is patches.strategic):
            message = (
                "the body of the request was in an unknown format - accepted media types include: "
                "application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml"
            )
            raise Failure(415, "UnsupportedMediaType", message)
        return self._change(target, lambda old: known(old, body))

    def _apply(self, target: Target, body: Any) -> Object:
        """Server-side apply: what this manager applied before and leaves out now goes, the rest is merged."""
        storage, manager = self.double.storage, self.query.get("fieldManager")
        if not manager:
            raise bad_request(
                "PatchOptions.meta.k8s.io is invalid: fieldManager: Required value: is required for apply patch"
            )
        self._check_body(target, body)
        there = storage.find(target.resource, target.namespace, target.name)
        if there is None:
            made = storage.create(target.resource, target.namespace, body, dry_run=self._dry)
        else:
            before = self.double.applied.get((there["metadata"]["uid"], manager), {})
            made = self._change(target, lambda old: patches.apply(old, before, body))
        if not self._dry:
            self.double.applied[made["metadata"]["uid"], manager] = copy.deepcopy(body)
        return made

    def _delete(self, target: Target, body: Any) -> Object:
        options = dict(body or {})
        for key in ("propagationPolicy", "gracePeriodSeconds"):
            if key in self.query:
                options[key] = int(self.query[key]) if key.endswith("Seconds") else self.query[key]
        storage = self.double.storage
        left = storage.delete(target.resource, target.namespace, target.name, options)
        if storage.find(target.resource, target.namespace, target.name) is not None:
            return left
        details = {"name": target.name, "kind": target.resource.plural, "uid": left["metadata"]["uid"]}
        if target.resource.group:
            details["group"] = target.resource.group
        return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}

    def _deletecollection(self, target: Target, body: Any) -> Object:
        matches = self._selected(target)
        for obj in self.double.storage.all(target.resource, target.namespace):
            if matches(obj):
                meta = obj["metadata"]
                self._delete(replace(target, namespace=meta.get("namespace", ""), name=meta["name"]), body)
        return self._listed(target.resource, [], {})

    # Lists and watches

    def _selected(self, target: Target) -> Test:
        labels = label_test(self.query.get("labelSelector", ""))
        fields = field_test(self.query.get("fieldSelector", ""), target.resource.plural)
        return lambda obj: labels(obj) and fields(obj)

    def _list(self, target: Target, body: Any) -> Object:
        matches, storage = self._selected(target), self.double.storage
        token, limit = self.query.get("continue", ""), int(self.query.get("limit") or 0)
        if token:
            if token not in self.double.snapshots:
                raise gone(
                    "The provided continue parameter is too old to display a consistent list result. You can start "
                    "a new list without the continue parameter."
                )
            version, objects = self.double.snapshots[token]
        else:
            objects = [obj for obj in storage.all(target.resource, target.namespace) if matches(obj)]
            version = storage.version
        meta: Object = {"resourceVersion": str(version)}
        if limit and len(objects) > limit:
            meta |= {"continue": secrets.token_urlsafe(12), "remainingItemCount": len(objects) - limit}
            self.double.snapshots[meta["continue"]] = (version, objects[limit:])
            objects = objects[:limit]
        return self._listed(target.resource, objects, meta)

    def _listed(self, resource: Resource, objects: list[Object], meta: Object) -> Object:
        if resource.schema is None:  # items of core kinds do not say what they are
            objects = [{key: each[key] for key in each if key not in ("apiVersion", "kind")} for each in objects]
        return {"kind": f"{resource.kind}List", "apiVersion": resource.api_version, "metadata": meta, "items": objects}

    def _watch(self, target: Target, request: Request) -> None:
        """Events from a version on, as lines of JSON, until the time is over or the client goes."""
        matches, storage, double = self._selected(target), self.double.storage, self.double
        until = time.monotonic() + float(self.query.get("timeoutSeconds") or 1800)
        generation = double.generation_of_watches
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.flush()
        with storage.lock:
            since, first = self._first_events(target, matches)
        bookmarks = self.query.get("allowWatchBookmarks") in ("true", "1")
        told = time.monotonic()
        self._tell(request, first)
        while time.monotonic() < until and not double.stopping and generation == double.generation_of_watches:
            with storage.lock:
                if since < storage.oldest:
                    events = [_expired(since, storage.oldest)]
                    until = 0.0
                else:
                    changes = storage.since(since)
                    if not changes:
                        storage.lock.wait(min(double.bookmark_s, max(until - time.monotonic(), 0)))
                        changes = storage.since(since)
                    if storage.oldest > since and not changes:
                        continue
                    since = changes[-1].version if changes else since
                    events = [event for each in changes if (event := _event(each, target, matches))]
            if not events and bookmarks and time.monotonic() - told >= double.bookmark_s:
                events = [_bookmark(target.resource, since)]
                told = time.monotonic()
            self._tell(request, events)
        self.wfile.write(b"0\r\n\r\n")

    def _first_events(self, target: Target, matches: Test) -> tuple[int, list[Object]]:
        """From which version the watch goes on, and what it is told at once."""
        storage = self.double.storage
        asked = self.query.get("resourceVersion", "")
        initial = self.query.get("sendInitialEvents") == "true"
        if asked not in ("", "0") and not initial:
            return int(asked), []
        objects = [obj for obj in storage.all(target.resource, target.namespace) if matches(obj)]
        events: list[Object] = [{"type": "ADDED", "object": obj} for obj in objects]
        if initial:
            mark = _bookmark(target.resource, storage.version)
            mark["object"]["metadata"]["annotations"] = {"k8s.io/initial-events-end": "true"}
            events.append(mark)
        return storage.version, events

    def _tell(self, request: Request, events: list[Object]) -> None:
        for event in events:
            for each in self.double.deliver(request, event):
                line = json.dumps(each).encode() + b"\n"
                self.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
        self.wfile.flush()

    # Subresources and questions

    def _act_on(self, target: Target, body: Any) -> Object:
        """POST to a subresource."""
        storage = self.double.storage
        found = storage.get(target.resource, target.namespace, target.name)
        if target.subresource == "token":
            token = self.double.token(service_account(target.namespace, target.name))
            return {
                **body,
                "apiVersion": "authentication.k8s.io/v1",
                "kind": "TokenRequest",
                "status": {"token": token},
            }
        if target.subresource == "binding":
            node = body["target"]["name"]

            def bind(pod: Object) -> Object:
                pod["spec"]["nodeName"] = node
                return pod

            if found["spec"].get("nodeName"):
                raise Failure(409, "Conflict", f"pod {target.name} is already assigned to node")
            storage.update(target.resource, target.namespace, target.name, bind)
        if target.subresource == "eviction":

            def disrupt(pod: Object) -> Object:
                condition = {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}
                condition |= {"message": "Eviction API: evicting", "lastTransitionTime": self.double.clock.stamp()}
                pod.setdefault("status", {}).setdefault("conditions", []).append(condition)
                return pod

            storage.update(target.resource, target.namespace, target.name, disrupt, "status")
            storage.delete(target.resource, target.namespace, target.name, body.get("deleteOptions"))
        return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}

    def _review(self, resource: Resource, user: User, body: Any) -> Object:
        storage, spec = self.double.storage, body.get("spec") or {}
        if resource.kind == "SelfSubjectRulesReview":
            found = rules(storage, user, spec.get("namespace", ""))
            status: Object = {"resourceRules": found, "nonResourceRules": [], "incomplete": False}
        else:
            asked = spec.get("resourceAttributes") or {}
            keys = ("verb", "group", "resource", "namespace", "name", "subresource")
            action = Action(*(asked.get(key, "") for key in keys))
            status = {"allowed": allowed(storage, user, action)}
        return {**body, "kind": resource.kind, "apiVersion": resource.api_version, "metadata": {}, "status": status}

    def _log(self, target: Target) -> None:
        with self.double.storage.lock:
            pod = self.double.storage.get(target.resource, target.namespace, target.name)
        names = [each["name"] for each in pod["spec"]["containers"]]
        container = self.query.get("container") or (names[0] if len(names) == 1 else "")
        if not container:
            raise bad_request(
                f"a container name must be specified for pod {target.name}, choose one of: [{' '.join(names)}]"
            )
        if container not in names + [each["name"] for each in pod["spec"].get("initContainers", [])]:
            raise bad_request(f"container {container} is not valid for pod {target.name}")
        logs, key = self.double.logs, (target.namespace, target.name, container)
        if pod["spec"].get("nodeName") and not logs.has(*key):
            message = f'container "{container}" in pod "{target.name}" is waiting to start: ContainerCreating'
            raise bad_request(message)
        tail = int(self.query["tailLines"]) if "tailLines" in self.query else None
        read = logs.follow if self.query.get("follow") == "true" and logs.has(*key) else logs.read
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for line in read(*key, since=self.query.get("sinceTime", ""), tail=tail):
            if self.double.stopping:
                break
            if line:
                text = line if self.query.get("timestamps") == "true" else line.partition(" ")[2]
                data = text.encode() + b"\n"
                self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")

    # Answers

    def _send(self, status: int, answer: Any) -> None:
        if isinstance(answer, dict) and "kind" in answer:
            answer = {"kind": answer["kind"], "apiVersion": answer.get("apiVersion", "v1"), **answer}
        headers = {"Retry-After": "1"} if status == 429 else {}
        self._send_bytes(status, json.dumps(answer).encode(), "application/json", headers)

    def _send_text(self, status: int, text: str) -> None:
        self._send_bytes(status, text.encode(), "text/plain; charset=utf-8", {})

    def _send_bytes(self, status: int, body: bytes, kind: str, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)


def _discovered(resource: Resource) -> list[Object]:
    """What discovery says of a kind: itself and its subresources."""
    names = list(resource.short_names) or SHORT_NAMES.get(resource.plural, [])
    itself: Object = {
        "name": resource.plural,
        "singularName": resource.kind.lower(),
        "namespaced": resource.namespaced,
        "kind": resource.kind,
        "verbs": ["create"] if resource in REVIEWS else VERBS,
        **({"shortNames": names} if names else {}),
        **({"categories": list(resource.categories)} if resource.categories else {}),
    }
    below = {name: ["create"] for name in SUBRESOURCES.get(resource.plural, ())}
    below |= {"log": ["get"]} if "log" in below else {}
    below |= {"status": ["get", "patch", "update"]} if resource.status else {}
    return [
        itself,
        *(
            {"name": f"{resource.plural}/{name}", "singularName": "", "namespaced": resource.namespaced}
            | {"kind": resource.kind, "verbs": verbs}
            for name, verbs in below.items()
        ),
    ]


def _openapi(resources: list[Resource]) -> Object:
    """As much of OpenAPI as kubectl and Helm look for: that fields are validated here."""
    paths: Object = {}
    for each in resources:
        kind = {"group": each.group, "version": each.version, "kind": each.kind}
        strict = {"name": "fieldValidation", "in": "query", "schema": {"type": "string"}}
        patch = {"x-kubernetes-group-version-kind": kind, "x-kubernetes-action": "patch", "parameters": [strict]}
        where = f"apis/{each.api_version}" if each.group else "api/v1"
        paths[f"/{where}/{each.plural}/{{name}}"] = {"patch": patch}
    return {"openapi": "3.0.0", "info": {"title": "Kubernetes", "version": VERSION}, "paths": paths, "components": {}}


def _event(change: Change, target: Target, matches: Test) -> Object | None:
    """A change as a watch with these selectors sees it."""
    resource = target.resource
    if (change.resource.group, change.resource.plural) != (resource.group, resource.plural):
        return None
    if target.namespace and change.object["metadata"].get("namespace") != target.namespace:
        return None
    if target.name and change.object["metadata"]["name"] != target.name:
        return None
    now = matches(change.object) and change.type != "DELETED"
    before = change.before is not None and matches(change.before)
    if now:
        return {"type": "MODIFIED" if before else "ADDED", "object": change.object}
    return {"type": "DELETED", "object": change.object} if before else None


def _bookmark(resource: Resource, version: int) -> Object:
    meta = {"resourceVersion": str(version), "creationTimestamp": None}
    return {"type": "BOOKMARK", "object": {"kind": resource.kind, "apiVersion": resource.api_version, "metadata": meta}}


def _expired(since: int, oldest: int) -> Object:
    return {"type": "ERROR", "object": gone(f"too old resource version: {since} ({oldest})").status}
