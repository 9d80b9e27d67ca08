"""A kubelet for tests: runs the commands of pods as processes of this machine, against any API server.

    with Kubelet(server, "bricks", tmp_path) as kubelet:
        ...                                     # pods are bound, started, watched and reported, as they come
        kubelet.kill("demo-clip-a1-0-x7k2p")     # kill -9 of all its processes
        kubelet.drain("demo-train-a1-worker-1")  # as a node that is emptied: DisruptionTarget, SIGTERM, grace, SIGKILL

It is scheduler and kubelet in one. Containers are processes of their own group with their own folders for what they
mount, their variables alone, and no other boundary: what limits and security contexts do is tested with real containers
(tests/images).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from tests.kubernetes import pods
from tests.kubernetes.failures import Object
from tests.kubernetes.logs import Logs
from tests.kubernetes.raw import STRATEGIC, Answered, Api

ROOT = Path(__file__).parent.parent.parent


class Server(Protocol):
    """An API server: the double, or the real one."""

    @property
    def logs(self) -> Logs | None:
        """Where the server reads what containers wrote; None: it cannot."""

    def api(self) -> Api: ...


@dataclass
class Running:
    """A container: its process, now, and how often it was started again."""

    name: str
    command: list[str]
    env: dict[str, str]
    folder: Path
    process: subprocess.Popen[bytes] | None = None
    started: str = ""
    ended: str = ""
    code: int | None = None
    restarts: int = 0
    reader: threading.Thread | None = None


@dataclass
class Pod:
    """A pod that runs here."""

    object: Object
    folder: Path
    containers: list[Running] = field(default_factory=list)
    kill_at: float | None = None
    """When what is left of it is killed, as it is being deleted."""
    is_over: bool = False
    told: str = "Pending"
    """The phase that the server was told last."""

    @property
    def name(self) -> str:
        return str(self.object["metadata"]["name"])

    @property
    def uid(self) -> str:
        return str(self.object["metadata"]["uid"])


class Kubelet:
    """All nodes of a cluster, for one namespace.

    Args:
        environment: Beside each container's own variables: what an image would set.
        mounts: Paths in containers that are folders of this machine, such as {"/store": …} for a volume claim.
        nodes: Names of nodes; a pod goes to the least busy one that it may run on.
        grace_s: The longest grace period, whatever pods ask for; None: theirs.
    """

    def __init__(
        self,
        server: Server,
        namespace: str,
        folder: Path,
        *,
        environment: Mapping[str, str] | None = None,
        mounts: Mapping[str, Path] | None = None,
        nodes: Iterable[str] = ("node-1",),
        grace_s: float | None = None,
    ) -> None:
        self.namespace, self.folder = namespace, folder
        self.logs = server.logs or Logs()
        self.nodes = tuple(nodes)
        self._api = server.api()
        self._path = f"/api/v1/namespaces/{namespace}"
        self._environment = dict(environment or {})
        self._mounts = dict(mounts or {})
        self._grace_s = grace_s
        self._meeting = pods.Meeting()
        self._pods: dict[str, Pod] = {}
        self._lock = threading.RLock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="kubelet")
        self.error: BaseException | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(30)
        for pod in self._pods.values():
            self._stop_at_once(pod)
        if self.error is not None and error is None:
            raise self.error

    # What a test does to it

    def kill(self, name: str) -> None:
        """kill -9 of all processes of a pod."""
        with self._lock:
            self._signal(self._named(name), signal.SIGKILL)

    def drain(self, name: str) -> None:
        """Empty the pod's node of it, as `kubectl drain` and a preemption do."""
        condition = {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}
        condition |= {"message": "the test drains the node", "lastTransitionTime": _now()}
        self._api.patch(f"{self._path}/pods/{name}/status", {"status": {"conditions": [condition]}}, STRATEGIC)
        self._api.delete(f"{self._path}/pods/{name}")

    def processes(self, name: str) -> list[int]:
        """Process ids of a pod's containers."""
        with self._lock:
            return [each.process.pid for each in self._named(name).containers if each.process and each.code is None]

    def said(self, name: str) -> str:
        """All that a pod's containers wrote here."""
        files = sorted((self.folder / name).glob("*/log-*.txt"))
        return "".join(file.read_text(errors="replace", encoding="utf-8") for file in files)

    def _named(self, name: str) -> Pod:
        return next(pod for pod in self._pods.values() if pod.name == name)

    # Its loop

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._look()
            except Answered as answer:
                if answer.status not in (404, 409, 410, 429, 500, 503, 504):  # the next look sees it as it is
                    self.error = answer
            except (OSError, Exception) as error:
                if "urllib3" not in type(error).__module__:
                    self.error = error
                    return
            self._stop.wait(0.1)

    def _look(self) -> None:
        found = {pod["metadata"]["uid"]: pod for pod in self._api.get(f"{self._path}/pods")["items"]}
        with self._lock:
            for uid, pod in found.items():
                if uid in self._pods:
                    self._pods[uid].object = pod
                elif not pod["metadata"].get("deletionTimestamp") and pod["status"].get("phase") == "Pending":
                    self._bind(pod)
            for pod in list(self._pods.values()):
                if pod.uid not in found:  # removed by force
                    self._stop_at_once(pod)
                    del self._pods[pod.uid]
                else:
                    self._tend(pod)

    def _bind(self, pod: Object) -> None:
        """Find a node for the pod, and start it."""
        name = pod["metadata"]["name"]
        busy = dict.fromkeys(self.nodes, 0)
        for each in self._pods.values():
            busy[each.object["spec"]["nodeName"]] = busy.get(each.object["spec"]["nodeName"], 0) + (not each.is_over)
        node = pod["spec"].get("nodeName") or pods.node_for(pod, busy)
        if node is None:
            reason = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
            reason |= {"message": f"0/{len(busy)} nodes are available", "lastTransitionTime": _now()}
            if not any(each["type"] == "PodScheduled" for each in pod["status"].get("conditions", [])):
                self._write(name, {"conditions": [reason]})
            return
        if not pod["spec"].get("nodeName"):
            target = {"apiVersion": "v1", "kind": "Node", "name": node}
            body = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}, "target": target}
            self._api.post(f"{self._path}/pods/{name}/binding", body)
            pod["spec"]["nodeName"] = node
        made = Pod(pod, self.folder / name)
        if self._prepare(made):
            self._pods[made.uid] = made
            for container in made.containers:
                self._start(made, container)

    def _prepare(self, pod: Pod) -> bool:
        """Folders, variables and commands; False when something it reads is not there (yet)."""
        spec = pod.object["spec"]
        try:
            volumes = {volume["name"]: self._volume(pod, volume) for volume in spec.get("volumes") or []}
            for container in spec["containers"]:
                own = pod.folder / container["name"]
                own.mkdir(parents=True, exist_ok=True)
                folders = {**self._mounts}
                for mount in container.get("volumeMounts") or []:
                    if mount["mountPath"] not in folders:
                        folders[mount["mountPath"]] = volumes[mount["name"]] / mount.get("subPath", "")
                known = pods.environment(pod.object, container, self._read)
                env = {key: self._local(value, pod, folders) for key, value in known.items()}
                first, *rest = (self._local(each, pod, folders) for each in pods.command_of(container, known))
                command = [pods.program(first), *rest]
                pod.containers.append(Running(container["name"], command, {**self._base(), **env}, own))
        except (Answered, KeyError) as error:
            pod.containers.clear()
            waiting = {"waiting": {"reason": "CreateContainerConfigError", "message": str(error)[:300]}}
            statuses = [_status(each["name"], each["image"], 0, waiting) for each in spec["containers"]]
            self._write(pod.name, {"containerStatuses": statuses})
            return False
        return True

    def _local(self, text: str, pod: Pod, folders: Mapping[str, Path]) -> str:
        return pods.moved(self._meeting.local(text, pod.object), folders)

    def _base(self) -> dict[str, str]:
        """What an image would bring: a path to python and to this project."""
        path = os.pathsep.join([str(pods.BIN), *os.environ.get("PATH", "/usr/bin:/bin").split(os.pathsep)])
        return {"PATH": path, "LANG": "C.UTF-8", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **self._environment}

    def _read(self, plural: str, name: str) -> Object:
        return self._api.get(f"{self._path}/{plural}/{name}")

    def _volume(self, pod: Pod, volume: Object) -> Path:
        folder = pod.folder / "volumes" / str(volume["name"])
        folder.mkdir(parents=True, exist_ok=True)
        for key, plural, name in (("configMap", "configmaps", "name"), ("secret", "secrets", "secretName")):
            if key in volume:
                for file, text in pods.values(plural, self._read(plural, volume[key][name])).items():
                    (folder / file).write_text(text, encoding="utf-8")
        return folder

    def _start(self, pod: Pod, container: Running) -> None:
        container.started, container.code = _now(), None
        self.logs.begin(self.namespace, pod.name, container.name)
        container.process = subprocess.Popen(
            container.command,
            env=container.env,
            cwd=container.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        container.reader = threading.Thread(target=self._copy, args=(pod.name, container), daemon=True)
        container.reader.start()

    def _copy(self, pod: str, container: Running) -> None:
        """What a container writes, line by line, to where it can be read."""
        process = container.process
        assert process is not None
        assert process.stdout is not None
        with open(container.folder / f"log-{container.restarts}.txt", "wb") as to:
            for line in process.stdout:
                to.write(line)
                to.flush()
                self.logs.write(self.namespace, pod, container.name, line.decode(errors="replace").rstrip("\n"))
        process.stdout.close()
        self.logs.end(self.namespace, pod, container.name)

    # What becomes of pods

    def _tend(self, pod: Pod) -> None:
        ended = self._reap(pod)
        going = pod.object["metadata"].get("deletionTimestamp")
        if going and not pod.is_over:
            self._end(pod)
        if ended and not going and self._restart(pod):
            pod.told = "Pending"  # its containers' statuses are others now
        pod.is_over = all(container.code is not None for container in pod.containers)
        failed = any(container.code for container in pod.containers)
        phase = "Running" if not pod.is_over else "Failed" if failed else "Succeeded"
        if phase != pod.told:
            self._report(pod, phase)
            pod.told = phase
        if going and pod.is_over:
            self._remove(pod)

    def _reap(self, pod: Pod) -> bool:
        """Take note of containers that have ended; whether one has since the last look."""
        ended = False
        for container in pod.containers:
            if container.process is None or container.code is not None or container.process.poll() is None:
                continue
            _kill_group(container.process, signal.SIGKILL)  # with its first process a container ends
            if container.reader:
                container.reader.join(10)
            code = container.process.returncode
            container.code = 128 - code if code < 0 else code
            container.ended, ended = _now(), True
        return ended

    def _restart(self, pod: Pod) -> bool:
        policy, again = pod.object["spec"]["restartPolicy"], False
        for container in pod.containers:
            if container.code is not None and (policy == "Always" or (policy == "OnFailure" and container.code)):
                container.restarts += 1
                self._start(pod, container)
                again = True
        return again

    def _end(self, pod: Pod) -> None:
        """SIGTERM once, SIGKILL when the grace period is over."""
        grace = float(pod.object["metadata"].get("deletionGracePeriodSeconds") or 0)
        grace = grace if self._grace_s is None else min(grace, self._grace_s)
        if pod.kill_at is None:
            pod.kill_at = time.monotonic() + grace
            for container in pod.containers:
                if container.process and container.code is None:
                    container.process.send_signal(signal.SIGTERM)
        elif time.monotonic() >= pod.kill_at:
            self._signal(pod, signal.SIGKILL)

    def _remove(self, pod: Pod) -> None:
        try:
            self._api.delete(f"{self._path}/pods/{pod.name}", gracePeriodSeconds=0, preconditions={"uid": pod.uid})
        except Answered as answer:
            if answer.status not in (404, 409):
                raise

    def _stop_at_once(self, pod: Pod) -> None:
        self._signal(pod, signal.SIGKILL)
        for container in pod.containers:
            if container.process:
                container.process.wait(30)
            if container.reader:
                container.reader.join(30)

    def _signal(self, pod: Pod, number: int) -> None:
        for container in pod.containers:
            if container.process and container.code is None:
                _kill_group(container.process, number)

    def _report(self, pod: Pod, phase: str) -> None:
        statuses = []
        for container, given in zip(pod.containers, pod.object["spec"]["containers"], strict=True):
            if container.code is None:
                state: Object = {"running": {"startedAt": container.started}}
            else:
                reason = "Error" if container.code else "Completed"
                state = {"terminated": {"exitCode": container.code, "reason": reason, "message": ""}}
                state["terminated"] |= {"startedAt": container.started, "finishedAt": container.ended}
                if given.get("terminationMessagePolicy") == "FallbackToLogsOnError" and container.code:
                    state["terminated"]["message"] = self._last_words(container)
            statuses.append(_status(container.name, given["image"], container.restarts, state))
        ready = {"status": "True" if phase == "Running" else "False", "lastTransitionTime": _now()}
        conditions = [{"type": kind, **ready} for kind in ("Ready", "ContainersReady")]
        conditions += [
            {"type": kind, "status": "True", "lastTransitionTime": _now()} for kind in ("Initialized", "PodScheduled")
        ]
        status = {"phase": phase, "conditions": conditions, "containerStatuses": statuses, "podIP": "127.0.0.1"}
        self._write(pod.name, status | {"hostIP": "127.0.0.1", "startTime": pod.containers[0].started})

    def _last_words(self, container: Running) -> str:
        """The last lines of its log, at most 2048 bytes of 80 lines, as a kubelet keeps them."""
        text = (container.folder / f"log-{container.restarts}.txt").read_text(errors="replace", encoding="utf-8")
        return "\n".join(text.splitlines()[-80:])[-2048:]

    def _write(self, pod: str, status: Object) -> None:
        try:
            self._api.patch(f"{self._path}/pods/{pod}/status", {"status": status}, STRATEGIC)
        except Answered as answer:
            if answer.status != 404:
                raise


def _status(name: str, image: str, restarts: int, state: Object) -> Object:
    running = "running" in state
    base = {"name": name, "image": image, "imageID": "", "restartCount": restarts}
    state = {"waiting": None, "running": None, "terminated": None} | state  # null: what was there before goes
    return base | {"ready": running, "started": running, "state": state}


def _kill_group(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
