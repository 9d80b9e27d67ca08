"""The ConfigMap that every pod reads its run from, the one that keeps what a run began with, and YAML as a person would
write it."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import yaml

from bricks_core.cluster.launcher import Object, Task
from bricks_core.cluster.metadata import labels, owners
from bricks_core.cluster.pin import pin_name
from bricks_core.errors import SpecError
from bricks_core.spec.manifest import canonical_json

CONFIG_FOLDER = "/etc/bricks"
RUN_FILE = f"{CONFIG_FOLDER}/run.yaml"
MAX_CONFIG_BYTES = 1_000_000
"""A ConfigMap holds 1 MiB."""
_EXPONENT = re.compile(r"[-+]?[0-9._]+[eE][-+]?[0-9]+")


def run_file(task: Task) -> Object:
    """The ConfigMap with the run as it is resolved, and with what a node must be able to do.

    Its name tells its content (and its owner, so that a run that was deleted and made again does not find a ConfigMap
    that is about to go): every try of every stage may create it, and it never changes.

    Raises:
        SpecError: the run is larger than a ConfigMap can be.
    """
    whole = task.run.model_dump(mode="json")
    spec = task.spec or whole["spec"]
    # null in `cluster` says: as the profile has it.
    cluster = _without_nulls(spec.get("cluster") or {})
    # What says nothing to a stage would only make another ConfigMap: annotations that kubectl keeps, the stop buttons.
    run = whole | {
        "metadata": {"name": task.run.name},
        "spec": spec | {"cluster": cluster, "suspend": False, "cancel": False},
    }
    preflight = task.profile.preflight.model_dump(mode="json", by_alias=True)
    if task.pin is not None:  # an image of before refuses what it does not know
        preflight = {name: value for name, value in preflight.items() if name in task.pin.preflight}
    data = {"run.yaml": as_yaml(run), "preflight.yaml": as_yaml(preflight)}
    size = sum(len(text.encode()) for text in data.values())
    if size > MAX_CONFIG_BYTES:
        raise SpecError(
            f"Run {task.run.name} is {size} bytes long, and a cluster's ConfigMap holds {MAX_CONFIG_BYTES}: name "
            "folders instead of single files in ingest.sources, and have fewer prompts."
        )
    digest = hashlib.sha256(canonical_json([data, task.owner.uid if task.owner else ""])).hexdigest()[:10]
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": f"{task.run.name}-{digest}",
            "labels": _labels(task),
        }
        | owners(task),
        "immutable": True,
        "data": data,
    }


def pin_file(task: Task) -> Object:
    """The ConfigMap that keeps what the task's run began with.

    Raises:
        SpecError: that is larger than a ConfigMap can be.
    """
    pin, owner = task.pin, task.owner
    assert pin is not None
    assert owner is not None
    kept = pin.data()
    size = sum(len(text) for texts in kept.values() for text in texts.values())
    if size > MAX_CONFIG_BYTES:
        raise SpecError(
            f"Run {task.run.name} is so large that its settings take {size} bytes, compressed, and a cluster's "
            f"ConfigMap holds {MAX_CONFIG_BYTES}: name folders instead of single files in ingest.sources."
        )
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": pin_name(task.run.name, owner.uid, pin.generation, pin.retry, pin.renew),
            "labels": _labels(task),
        }
        | owners(task),
        "immutable": True,
        **kept,
    }


def _labels(task: Task) -> dict[str, str]:
    return {name: value for name, value in labels(task).items() if name.endswith(("/name", "/managed-by", "/run"))}


def _without_nulls(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {name: _without_nulls(each) for name, each in value.items() if each is not None}


def as_yaml(value: Any) -> str:
    """YAML for a person: block style, in the order given, long lines as they are."""
    return yaml.dump(value, Dumper=_Indented, sort_keys=False, allow_unicode=True, width=100)


class _Indented(yaml.SafeDumper):
    """Items of a list stand further in than what they are a list of, texts of several lines as blocks; no anchors."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # PyYAML takes 12e34567 for a text; Kubernetes' parser takes it for a number, and every hash can look like that.
    style = "|" if "\n" in text else "'" if _EXPONENT.fullmatch(text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Indented.add_representer(str, _text)
