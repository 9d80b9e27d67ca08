"""Pods of one container as podman runs them: what a kubelet would do with the same specification."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.images.podman import Podman

Object = dict[str, Any]
_UNITS = {"": 1, "m": 1e-3, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "k": 1e3, "M": 1e6, "G": 1e9}


@dataclass
class Container:
    """A container that was started, and what it says."""

    podman: Podman
    name: str
    _process: subprocess.Popen[str]
    _out: list[str]
    _reader: threading.Thread

    def wait(self, timeout_s: float = 600) -> int:
        """Its exit code, once it has ended."""
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.podman("kill", self.name, code=None)
            raise AssertionError(f"{self.name} did not end in {timeout_s:g} s:\n{self.said}") from None
        self._reader.join()
        return code

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def terminate(self) -> None:
        """What a kubelet does first when a pod has to go."""
        self.podman("kill", "--signal", "TERM", self.name)

    @property
    def said(self) -> str:
        return "".join(self._out)


class Node:
    """Starts pods of one run. `volumes` holds what a pod may write; `secrets` by name, as the cluster has them."""

    def __init__(self, podman: Podman, network: str, volumes: Path, secrets: Mapping[str, Mapping[str, str]]):
        self._podman = podman
        self._network = network
        self._volumes = volumes
        self._secrets = secrets
        self._num = 0

    def start(
        self,
        template: Object,
        configs: list[Object],
        *,
        index: int = 0,
        memory: str = "",
        cpus: float = 2,
        arguments: list[str] | None = None,
    ) -> Container:
        """Start the pod of an Indexed Job's index. `memory` and `cpus` where they are to be other than it asks for."""
        self._num += 1
        labels = template["metadata"]["labels"]
        name = f"bricks-test-{labels['app.kubernetes.io/component']}-{index}-{self._num}"
        spec = template["spec"]
        (container,) = spec["containers"]
        environment = {"JOB_COMPLETION_INDEX": str(index)}
        for each in container.get("env", []):
            environment[each["name"]] = each["value"] if "value" in each else self._field(each["valueFrom"], index)
        # What is secret goes by podman's own environment: arguments can be read by everybody on the machine.
        secret: dict[str, str] = {}
        for each in container.get("envFrom", []):
            secret |= self._secrets[each["secretRef"]["name"]]
        folder = self._volumes / name
        flags = [
            *("run", "--rm", "--pull=never", "--name", name, "--network", self._network),
            *self._security(spec, container),
            *("--memory", str(_amount(memory or container["resources"]["limits"]["memory"]))),
            *("--memory-swap", str(_amount(memory or container["resources"]["limits"]["memory"]))),
            *("--cpus", f"{cpus:g}", "--pids-limit", "1024"),
            *("--stop-timeout", str(spec["terminationGracePeriodSeconds"])),
            *(flag for variable in secret for flag in ("--env", variable)),
            *(flag for name, value in environment.items() for flag in ("--env", f"{name}={value}")),
            *(flag for each in self._mounts(spec, container, configs, folder) for flag in ("--volume", each)),
            *("--entrypoint", json.dumps(container["command"])),
        ]
        command = self._podman.command(*flags, container["image"], *(arguments or container["args"]))
        process = subprocess.Popen(
            command,
            env=self._podman.environment(secret),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        out: list[str] = []
        reader = threading.Thread(target=lambda: out.extend(process.stdout or ()), daemon=True)
        reader.start()
        return Container(self._podman, name, process, out, reader)

    @staticmethod
    def _field(source: Object, index: int) -> str:
        """Of the downward API, what these pods ask for: the node's name and the place among the pods."""
        return "node" if source["fieldRef"]["fieldPath"] == "spec.nodeName" else str(index)

    @staticmethod
    def _security(spec: Object, container: Object) -> list[str]:
        pod, own = spec["securityContext"], container["securityContext"]
        assert pod["seccompProfile"] == {"type": "RuntimeDefault"}  # as podman does without being told
        flags = ["--user", f"{pod['runAsUser']}:{pod['runAsGroup']}", "--group-add", str(pod["fsGroup"])]
        flags += [f"--cap-drop={each}" for each in own["capabilities"]["drop"]]
        flags += [] if own["allowPrivilegeEscalation"] else ["--security-opt", "no-new-privileges"]
        return flags + (["--read-only", "--read-only-tmpfs=false"] if own["readOnlyRootFilesystem"] else [])

    def _mounts(self, spec: Object, container: Object, configs: list[Object], folder: Path) -> list[str]:
        volumes = {each["name"]: each for each in spec["volumes"]}
        data = {each["metadata"]["name"]: each["data"] for each in configs if each["kind"] == "ConfigMap"}
        mounts = []
        for mount in container["volumeMounts"]:
            volume = volumes[mount["name"]]
            place = folder / mount["name"]
            place.mkdir(parents=True)
            if "configMap" in volume:
                for name, text in data[volume["configMap"]["name"]].items():
                    (place / name).write_text(text)
            else:
                # An emptyDir belongs to root and to the group fsGroup.
                shutil.chown(place, 0, spec["securityContext"]["fsGroup"])
                place.chmod(0o2775)
            mounts.append(f"{place}:{mount['mountPath']}:{'ro' if mount.get('readOnly') else 'rw'}")
        return mounts


def _amount(text: str) -> int:
    number, unit = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", text).groups()  # type: ignore[union-attr]
    return int(float(number) * _UNITS[unit])
