"""Pods of one container as podman runs them: what a kubelet would do with the same specification."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.images.podman import Podman
from tests.kubernetes import kubelet
from tests.kubernetes import pods as pod_rules

Object = dict[str, Any]
PIDS = 1024
"""Processes of a pod, as a kubelet's podPidsLimit bounds them."""
_UNITS = {"": 1, "m": 1e-3, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "k": 1e3, "M": 1e6, "G": 1e9}


def podman_arguments(spec: Object, environment: Mapping[str, str], mounts: Iterable[str], folder: Path) -> list[str]:
    """`podman run` without its name and network, for a pod's specification.

    The environment goes by a file in `folder`: arguments can be read by everybody on the machine.
    """
    (container,) = spec["containers"]
    variables = folder / "environment"
    folder.mkdir(parents=True, exist_ok=True)
    with open(os.open(variables, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.writelines(f"{name}={value}\n" for name, value in environment.items())
    memory = str(_amount(container["resources"]["limits"]["memory"]))
    pod, own = spec["securityContext"], container["securityContext"]
    assert pod["seccompProfile"] == {"type": "RuntimeDefault"}  # as podman does without being told
    flags = ["run", "--rm", "--pull=never", "--user", f"{pod['runAsUser']}:{pod['runAsGroup']}"]
    flags += ["--group-add", str(pod["fsGroup"])] if "fsGroup" in pod else []
    flags += [f"--cap-drop={each}" for each in own["capabilities"]["drop"]]
    flags += [] if own["allowPrivilegeEscalation"] else ["--security-opt", "no-new-privileges"]
    flags += ["--read-only", "--read-only-tmpfs=false"] if own["readOnlyRootFilesystem"] else []
    flags += ["--memory", memory, "--memory-swap", memory, "--pids-limit", str(PIDS)]
    flags += ["--stop-timeout", str(spec.get("terminationGracePeriodSeconds", 30)), "--env-file", str(variables)]
    flags += [flag for mount in mounts for flag in ("--volume", mount)]
    return [*flags, "--entrypoint", json.dumps(container["command"])]


def empty_dir(folder: Path, spec: Object) -> Path:
    """An emptyDir belongs to root and to the group fsGroup, which may write."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.chown(folder, 0, spec["securityContext"].get("fsGroup", spec["securityContext"]["runAsGroup"]))
    folder.chmod(0o2775)
    return folder


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
        self.podman("kill", "--signal", "TERM", self.name, code=None)

    @property
    def said(self) -> str:
        return "".join(self._out)


class Node:
    """Starts pods, whatever made them.

    `volumes` holds what they may write; `secrets` are known by name, as the cluster has them.
    """

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
        network: str = "",
        environment: Mapping[str, str] | None = None,
        mounts: Iterable[str] = (),
    ) -> Container:
        """Start a pod of a template, at an index of its Job.

        `memory`, `cpus`, `network`: where they are to be other than usual. `environment` and `mounts` are what a
        cluster adds to what the pod itself asks for.
        """
        self._num += 1
        name = f"bricks-test-{template['metadata']['labels']['app.kubernetes.io/component']}-{index}-{self._num}"
        labels = template["metadata"]["labels"] | {"batch.kubernetes.io/job-completion-index": str(index)}
        spec = json.loads(json.dumps(template["spec"]))
        (container,) = spec["containers"]
        if memory:
            container["resources"]["limits"]["memory"] = memory
        pod = {"metadata": {"name": name, "labels": labels}, "spec": spec | {"nodeName": "here"}}
        known = {"JOB_COMPLETION_INDEX": str(index), **(environment or {})}
        for each in container.get("envFrom", []):
            known |= self._secrets[each["secretRef"]["name"]]
        known |= pod_rules.environment(pod, container | {"envFrom": []}, _reads_nothing)
        folder = self._volumes / name
        flags = podman_arguments(spec, known, [*self._mounts(spec, configs, folder), *mounts], folder)
        flags += ["--name", name, "--network", network or self._network, "--cpus", f"{cpus:g}"]
        process = subprocess.Popen(
            self._podman.command(*flags, container["image"], *container.get("args", [])),
            env=self._podman.environment(),
            cwd=folder,  # where conmon leaves a file when memory runs out
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
        )
        out: list[str] = []
        reader = threading.Thread(target=lambda: out.extend(process.stdout or ()), daemon=True)
        reader.start()
        return Container(self._podman, name, process, out, reader)

    @staticmethod
    def _mounts(spec: Object, configs: list[Object], folder: Path) -> list[str]:
        volumes = {each["name"]: each for each in spec["volumes"]}
        data = {each["metadata"]["name"]: each["data"] for each in configs if each["kind"] == "ConfigMap"}
        mounts = []
        for mount in spec["containers"][0]["volumeMounts"]:
            place = folder / mount["name"]
            if config := volumes[mount["name"]].get("configMap"):
                place.mkdir(parents=True)
                for name, text in data[config["name"]].items():
                    (place / name).write_text(text, encoding="utf-8")
            else:
                empty_dir(place, spec)
            mounts.append(f"{place}:{mount['mountPath']}:{'ro' if mount.get('readOnly') else 'rw'}")
        return mounts


class ContainerKubelet(kubelet.Kubelet):
    """The tests' kubelet (tests/kubernetes), whose pods are containers instead of processes."""

    def __init__(self, podman: Podman, network: str, server: kubelet.Server, namespace: str, folder: Path):
        super().__init__(server, namespace, folder)
        self._podman = podman
        self._network = network

    def _prepare(self, pod: kubelet.Pod) -> bool:
        spec = pod.object["spec"]
        (container,) = spec["containers"]
        own = pod.folder / container["name"]
        volumes = {each["name"]: self._volume(pod, each) for each in spec["volumes"]}
        for each in spec["volumes"]:
            if "emptyDir" in each:
                empty_dir(volumes[each["name"]], spec)
        mounts = [
            f"{volumes[each['name']]}:{each['mountPath']}:{'ro' if each.get('readOnly') else 'rw'}"
            for each in container["volumeMounts"]
        ]
        flags = podman_arguments(spec, pod_rules.environment(pod.object, container, self._read), mounts, own)
        flags += ["--name", pod.name, "--network", self._network, "--cpus", "1"]
        command = self._podman.command(*flags, container["image"], *container["args"])
        pod.containers.append(kubelet.Running(container["name"], command, self._podman.environment(), own))
        return True

    def _signal(self, pod: kubelet.Pod, number: int) -> None:
        # SIGTERM goes through podman to the container; of SIGKILL podman itself would die, and nothing else.
        if number == signal.SIGKILL:
            self._podman("kill", pod.name, code=None)
        else:
            super()._signal(pod, number)


def _reads_nothing(plural: str, name: str) -> Object:
    raise KeyError(f"{plural}/{name}")


def _amount(text: str) -> int:
    number, unit = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", text).groups()  # type: ignore[union-attr]
    return int(float(number) * _UNITS[unit])
