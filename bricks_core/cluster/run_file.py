"""The ConfigMap that every pod reads its run from, and YAML as a person would write it."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import yaml

from bricks_core.cluster.launcher import Object, Task
from bricks_core.cluster.metadata import labels, owners
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
    run = task.run.model_dump(mode="json")
    # What says nothing to a stage would only make another ConfigMap: annotations that kubectl keeps, the stop buttons.
    run["metadata"] = {"name": task.run.name}
    # null in `cluster` says: as the profile has it.
    cluster = task.run.spec.cluster.model_dump(mode="json", exclude_none=True)
    run["spec"] |= {"cluster": cluster, "suspend": False, "cancel": False}
    data = {
        "run.yaml": as_yaml(run),
        "preflight.yaml": as_yaml(task.profile.preflight.model_dump(mode="json", by_alias=True)),
    }
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
            "labels": {
                name: value for name, value in labels(task).items() if name.endswith(("/name", "/managed-by", "/run"))
            },
        }
        | owners(task),
        "immutable": True,
        "data": data,
    }


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
