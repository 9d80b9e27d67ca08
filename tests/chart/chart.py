"""The chart as Helm 4 renders it."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import helm_python as helm
import yaml

from bricks_core.spec.cluster import ClusterProfile

CHART = Path(__file__).parents[2] / "helm" / "bricks"
PROFILES = sorted(CHART.glob("values-*.yaml"))
FILES = [*PROFILES, *sorted((CHART / "ci").glob("*-values.yaml"))]
"""Every set of values that is held to be good."""
NAMES = [file.stem for file in FILES]
S3 = {"storage": {"s3": {"bucket": "films", "existingSecret": "s3"}}}
"""What the README's command sets."""
Values = dict[str, Any]
Object = dict[str, Any]


def values_of(name: str) -> Values:
    """The values of a file, by its name without .yaml."""
    return yaml.safe_load(FILES[NAMES.index(name)].read_text(encoding="utf-8"))


YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's where it is: BrickRun's definition is long."""


def render(values: Values, *, name: str = "bricks", namespace: str = "studio", chart: Path = CHART) -> list[Object]:
    """All objects, hooks too."""
    texts = _loaded(chart).render(values, name=name, namespace=namespace)
    return [
        each
        for file, text in sorted(texts.items())
        if not file.endswith("NOTES.txt")
        for each in yaml.load_all(text, YAML)
        if each
    ]


def notes(values: Values) -> str:
    """What a user reads after `helm install bricks … -n studio`."""
    return _loaded(CHART).render(values, name="bricks", namespace="studio")["bricks/templates/NOTES.txt"]


@cache
def rendered(name: str) -> list[Object]:
    """What a file of values renders."""
    return render(values_of(name))


def profile(objects: list[Object]) -> ClusterProfile:
    """The cluster's profile, as the controller reads it from the ConfigMap."""
    (config,) = [each for each in of_kind(objects, "ConfigMap") if "profile.yaml" in each["data"]]
    return ClusterProfile.model_validate(yaml.safe_load(config["data"]["profile.yaml"]))


def of_kind(objects: list[Object], kind: str) -> list[Object]:
    return [each for each in objects if each["kind"] == kind]


def pods(objects: list[Object]) -> list[Object]:
    """The pods that an installation starts, as templates: metadata and spec."""
    return [each["spec"]["template"] for each in of_kind(objects, "Deployment")] + of_kind(objects, "Pod")


@cache
def _loaded(chart: Path) -> helm.Chart:
    return helm.Chart.load(chart)
