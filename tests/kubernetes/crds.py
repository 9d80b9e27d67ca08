"""The CRDs of Kubeflow, for the double: from the schemas that tests/schemas keeps."""

from __future__ import annotations

import json
from pathlib import Path

from tests.kubernetes.failures import Object

FOLDER = Path(__file__).parent.parent / "schemas" / "crds"


def kubeflow(*kinds: str) -> list[Object]:
    """PyTorchJob, TrainJob and TrainingRuntime, or those that are named."""
    return [_crd(kind) for kind in kinds or ("PyTorchJob", "TrainJob", "TrainingRuntime")]


def _crd(kind: str) -> Object:
    found = json.loads((FOLDER / f"{kind.lower()}.json").read_text(encoding="utf-8"))
    group, version = found["apiVersion"].split("/")
    schema = found["schema"]
    schema["properties"]["status"] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    plural = kind.lower() + "s"
    names = {"kind": kind, "plural": plural}
    served = {"name": version, "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    if kind != "TrainingRuntime":
        served["subresources"] = {"status": {}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}"},
        "spec": {"group": group, "scope": "Namespaced", "names": names, "versions": [served]},
    }
