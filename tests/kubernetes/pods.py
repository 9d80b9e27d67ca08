"""From a pod's specification to a process: environment, files, arguments. What a kubelet and a container runtime do.

Paths of mounts (/etc/bricks, /scratch, /store, …) are replaced by folders of this machine wherever they stand as paths
in the command, its arguments and its environment; names of pods that meet (rendezvous) by 127.0.0.1 and a free port.
"""

from __future__ import annotations

import base64
import re
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.kubernetes.failures import Object

BIN = Path(sys.executable).parent
Read = Callable[[str, str], Object]
"""(plural, name) -> the ConfigMap or Secret; raises when it is not there."""


def environment(pod: Object, container: Object, read: Read) -> dict[str, str]:
    """The container's variables: of ConfigMaps and Secrets, of fields of the pod, and values with $(NAME) filled in."""
    found: dict[str, str] = {}
    for source in container.get("envFrom") or []:
        for key, plural in (("configMapRef", "configmaps"), ("secretRef", "secrets")):
            if key in source:
                found |= values(plural, read(plural, source[key]["name"]))
    for entry in container.get("env") or []:
        if "valueFrom" in entry:
            found[entry["name"]] = _value_from(pod, entry["valueFrom"], read)
        else:
            found[entry["name"]] = expand(entry.get("value") or "", found)
    return found


def values(plural: str, obj: Object) -> dict[str, str]:
    """The texts in a ConfigMap or a Secret."""
    data = obj.get("data") or {}
    if plural == "configmaps":
        return dict(data)
    return {key: base64.b64decode(value).decode() for key, value in data.items()}


def _value_from(pod: Object, source: Object, read: Read) -> str:
    if "fieldRef" in source:
        return field(pod, source["fieldRef"]["fieldPath"])
    for key, plural in (("secretKeyRef", "secrets"), ("configMapKeyRef", "configmaps")):
        if key in source:
            return values(plural, read(plural, source[key]["name"]))[source[key]["key"]]
    raise ValueError(f"no kubelet of ours knows {source}")


def field(pod: Object, path: str) -> str:
    """A field of the pod, by the paths of the downward API."""
    if match := re.fullmatch(r"metadata\.(labels|annotations)\['([^']+)'\]", path):
        return str((pod["metadata"].get(match[1]) or {}).get(match[2], ""))
    found: object = pod
    for key in path.split("."):
        found = found.get(key, "") if isinstance(found, dict) else ""
    return str(found)


def expand(text: str, known: Mapping[str, str]) -> str:
    """$(NAME) by its value; $$(NAME) is a plain $(NAME); unknown names stay."""

    def one(match: re.Match[str]) -> str:
        if match[0].startswith("$$"):
            return match[0][1:]
        return known.get(match[1], match[0])

    return re.sub(r"\$?\$\(([A-Za-z_][A-Za-z0-9_.-]*)\)", one, text)


def moved(text: str, folders: Mapping[str, Path]) -> str:
    """The text with paths below a mount's path leading to its folder."""
    if not folders:
        return text
    paths = "|".join(re.escape(path) for path in sorted(folders, key=len, reverse=True))
    pattern = rf"(?:(?<=://)|(?<![\w./-]))({paths})(?![\w.-])"
    return re.sub(pattern, lambda found: str(folders[found[1]]), text)


class Meeting:
    """Where pods of this machine meet: each name of a pod with a port is one free port of 127.0.0.1."""

    def __init__(self) -> None:
        self._ports: dict[tuple[str, str], int] = {}

    def local(self, text: str, pod: Object) -> str:
        for name in names_of_peers(pod):
            end = r"(?:\.[a-z0-9-]+)*(?![\w-])"
            text = re.sub(rf"(?<![\w.-])({name}){end}:(\d+)", lambda found: self._place(found[1], found[2]), text)
            text = re.sub(rf"(?<![\w.-]){name}{end}", "127.0.0.1", text)
        return text

    def _place(self, name: str, port: str) -> str:
        if (name, port) not in self._ports:
            with socket.create_server(("127.0.0.1", 0)) as free:
                self._ports[name, port] = free.getsockname()[1]
        return f"127.0.0.1:{self._ports[name, port]}"


def names_of_peers(pod: Object) -> list[str]:
    """Patterns of the host names of all pods of the pod's job."""
    labels = pod["metadata"].get("labels") or {}
    found = []
    if job := labels.get("training.kubeflow.org/job-name"):
        found.append(rf"{re.escape(job)}-worker-\d+")
    if job := labels.get("batch.kubernetes.io/job-name") or labels.get("job-name"):
        found.append(rf"{re.escape(job)}-\d+")
    return found


def command_of(container: Object, known: Mapping[str, str]) -> list[str]:
    """The program and its arguments, as they are in the container."""
    if not container.get("command"):
        raise ValueError(f"container {container['name']} has no command, and there are no images here to ask for one")
    return [expand(part, known) for part in [*container["command"], *(container.get("args") or [])]]


def program(name: str) -> str:
    """Python and console scripts are those of this environment, wherever it lies: no path of the container's."""
    if name in ("python", "python3"):
        return sys.executable
    return str(BIN / name) if "/" not in name and (BIN / name).exists() else name


def node_for(pod: Object, nodes: Mapping[str, int]) -> str | None:
    """The least busy node that the pod may run on, as its selector and required affinity have it.

    nodes: their names, and how many pods each has; a node's only label is kubernetes.io/hostname.
    """
    affinity = ((pod["spec"].get("affinity") or {}).get("nodeAffinity") or {}).get(
        "requiredDuringSchedulingIgnoredDuringExecution"
    ) or {}
    terms = affinity.get("nodeSelectorTerms") or [{}]
    selector = pod["spec"].get("nodeSelector") or {}

    def fits(node: str) -> bool:
        labels = {"kubernetes.io/hostname": node}
        if any(labels.get(key) != value for key, value in selector.items() if key in labels):
            return False
        name = {"metadata.name": node}
        return any(
            all(_matches(each, labels) for each in term.get("matchExpressions") or [])
            and all(_matches(each, name) for each in term.get("matchFields") or [])
            for term in terms
        )

    fitting = [node for node in nodes if fits(node)]
    return min(fitting, key=lambda node: nodes[node]) if fitting else None


def _matches(expression: Object, labels: Mapping[str, str]) -> bool:
    value, values = labels.get(expression["key"]), expression.get("values") or []
    match expression["operator"]:
        case "In":
            return value in values
        case "NotIn":
            return value not in values
        case "Exists":
            return value is not None
        case _:
            return value is None
