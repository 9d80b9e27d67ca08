"""Make crds/*.json from the files of CustomResourceDefinitions that their projects publish: their structure alone.

    python -m tests.schemas.reduce FOLDER

FOLDER holds the files that README.md lists, wherever below it they are.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

CRDS = Path(__file__).parent / "crds"
SOURCES = {
    "kubeflow.org_pytorchjobs.yaml": ("kubeflow/trainer", "v1.9.4", "v1"),
    "trainer.kubeflow.org_trainjobs.yaml": ("kubeflow/trainer", "v2.3.0", "v1alpha1"),
    "trainer.kubeflow.org_trainingruntimes.yaml": ("kubeflow/trainer", "v2.3.0", "v1alpha1"),
    "kueue.x-k8s.io_clusterqueues.yaml": ("kubernetes-sigs/kueue", "v0.19.2", "v1beta2"),
    "kueue.x-k8s.io_localqueues.yaml": ("kubernetes-sigs/kueue", "v0.19.2", "v1beta2"),
    "kueue.x-k8s.io_resourceflavors.yaml": ("kubernetes-sigs/kueue", "v0.19.2", "v1beta2"),
    "kueue.x-k8s.io_topologies.yaml": ("kubernetes-sigs/kueue", "v0.19.2", "v1beta2"),
    "kueue.x-k8s.io_workloadpriorityclasses.yaml": ("kubernetes-sigs/kueue", "v0.19.2", "v1beta2"),
}
"""By file name: repository, tag, and which of its versions we write."""


def reduced(file: Path) -> dict[str, Any]:
    """What a CRD's file says of the structure of its kind, made strict."""
    repository, tag, version = SOURCES[file.name]
    crd = yaml.safe_load(file.read_text(encoding="utf-8"))["spec"]
    schema = next(each for each in crd["versions"] if each["name"] == version)["schema"]["openAPIV3Schema"]
    strict = _strict(schema)
    strict["properties"]["metadata"] = {"type": "object"}
    return {
        "source": f"https://github.com/{repository} {tag} {file.name}",
        "apiVersion": f"{crd['group']}/{version}",
        "kind": crd["names"]["kind"],
        "schema": strict,
    }


def _strict(schema: Any) -> Any:
    """Unknown fields are refused, as with `kubectl apply --validate=strict`."""
    if isinstance(schema, list):
        return [_strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    known = schema.get("properties")
    kept = {
        key: {name: _strict(each) for name, each in value.items()} if key == "properties" else _strict(value)
        for key, value in schema.items()
        if key not in ("description", "default", "format", "example") and not key.startswith("x-kubernetes-")
    }
    if known and "additionalProperties" not in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        kept["additionalProperties"] = False
    return kept


def main(folder: Path) -> None:
    for name in SOURCES:
        (file,) = folder.rglob(name)
        kind = reduced(file)
        text = json.dumps(kind, separators=(",", ":"), sort_keys=True)
        (CRDS / f"{kind['kind'].lower()}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
