"""bricks as somebody types it, in the test's own process, against a cluster that a kubeconfig leads to."""

from __future__ import annotations

import contextlib
import io
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from bricks_core.errors import BricksError
from jobs import ci, cluster
from tests.kubernetes.access import ADMIN, User
from tests.kubernetes.double import Double

Object = dict[str, Any]
NAMESPACE = "bricks"
SMALL = {
    "apiVersion": "bricks.dev/v1alpha1",
    "kind": "BrickRun",
    "metadata": {"name": "small"},
    "spec": {
        "ingest": {"sources": ["s3://films/all"]},
        "latents": {"resolutions": ["96x160"]},
        "train": {
            "phases": [
                {
                    "name": "only",
                    "steps": 3,
                    "schedule": {"kind": "constant", "lr": 1e-3},
                    "buckets": [{"num_frames": 1, "resolution": "96x160", "batch_size": 2}],
                }
            ]
        },
        "evaluate": {"prompts": ["a red brick"], "resolution": "96x160"},
    },
}


@dataclass(frozen=True)
class Said:
    """What a command printed, and how it ended."""

    code: int
    out: str
    error: str = ""
    """What would be printed on standard error, without the program's name."""


@dataclass
class Terminal:
    """A user in a folder, with a kubeconfig."""

    folder: Path

    def __call__(self, *arguments: str | Path, code: int | None = 0) -> Said:
        said = self._run([str(each) for each in arguments])
        if code is not None:
            assert said.code == code, f"{arguments} ended with {said.code}:\n{said.out}\n{said.error}"
        return said

    def background(self, *arguments: str | Path) -> tuple[threading.Thread, list[Said]]:
        """The same in a thread: joined, it has left what it said."""
        said: list[Said] = []
        thread = threading.Thread(target=lambda: said.append(self(*arguments, code=None)), daemon=True)
        thread.start()
        return thread, said

    def run_file(self, name: str = "small", **spec: Any) -> Path:
        """The small run's file, with some sections replaced."""
        document = SMALL | {"metadata": {"name": name}, "spec": SMALL["spec"] | spec}  # type: ignore[operator]
        file = self.folder / f"{name}.yaml"
        file.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
        return file

    def _run(self, arguments: list[str]) -> Said:
        app, rest = (ci.app, arguments[1:]) if arguments[0] == "ci" else (cluster.app, arguments)
        out = io.StringIO()
        try:
            with contextlib.redirect_stdout(out):
                app(args=rest, standalone_mode=False, prog_name="bricks")
        except BricksError as error:
            return Said(error.exit_code, out.getvalue(), str(error))
        return Said(0, out.getvalue())


def at(server: Double, folder: Path, monkeypatch: pytest.MonkeyPatch, user: User = ADMIN) -> Terminal:
    """A user of a cluster, in a folder."""
    without_cluster(folder, monkeypatch)
    monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(folder / "kubeconfig", namespace=NAMESPACE, user=user)))
    return Terminal(folder)


def without_cluster(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A user in a folder who has no cluster."""
    for name in os.environ:
        if name.startswith(("BRICKS_", "KUBE", "AWS_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(folder)
    return Terminal(folder)
