"""The pods of an object, wherever its kind keeps them, and reading amounts as Kubernetes writes them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

Object = dict[str, Any]

QUANTITY = re.compile(r"^([+-]?[0-9]+(?:\.[0-9]*)?)(|[eE][+-]?[0-9]+|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)$")
UNITS: dict[str, Decimal] = {"": Decimal(1), "m": Decimal("0.001")}
UNITS |= {unit: Decimal(1000) ** power for power, unit in enumerate(["k", "M", "G", "T", "P", "E"], 1)}
UNITS |= {f"{unit}i": Decimal(1024) ** power for power, unit in enumerate(["K", "M", "G", "T", "P", "E"], 1)}


def pods_of(obj: Object) -> Iterator[tuple[str, Object]]:
    """Every pod template of an object, with its place; a Pod is one itself."""
    spec = obj.get("spec") or {}
    match obj.get("kind"):
        case "Pod":
            yield "pod", obj
        case "Job" | "Deployment" | "DaemonSet" | "StatefulSet" | "ReplicaSet":
            yield "spec.template", spec["template"]
        case "CronJob":
            yield "spec.jobTemplate.spec.template", spec["jobTemplate"]["spec"]["template"]
        case "PyTorchJob":
            for name, replica in spec["pytorchReplicaSpecs"].items():
                yield f"spec.pytorchReplicaSpecs.{name}.template", replica["template"]
        case "TrainingRuntime":
            for place, job in enumerate(spec["template"]["spec"]["replicatedJobs"]):
                path = f"spec.template.spec.replicatedJobs.{place}.template.spec.template"
                yield path, job["template"]["spec"]["template"]


def amount(quantity: str | int) -> Decimal:
    """A quantity in its base unit. ValueError: it is none."""
    found = QUANTITY.match(str(quantity))
    if not found:
        raise ValueError(f"{quantity!r} is no quantity")
    number, unit = found.groups()
    return Decimal(number + unit) if unit[:1] in ("e", "E") and unit[1:] else Decimal(number) * UNITS[unit]
