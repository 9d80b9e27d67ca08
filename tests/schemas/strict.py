"""Structure: the schemas of Kubernetes 1.33 to 1.37, of PyTorchJob 1.9, of Trainer 2.3 and of Kueue 0.19, all closed.

A pod template is held against the pod's own schema too, wherever it stands: a CRD repeats an older one.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import yaml
from referencing import Registry, Resource

from bricks_core.spec.run import BrickRun
from tests.schemas.pods import pods_of
from tests.schemas.semantics import doubts

KUBERNETES = ("1.33", "1.34", "1.35", "1.36", "1.37")
CRDS = Path(__file__).parent / "crds"


def valid(obj: dict[str, Any], *, versions: Collection[str] = KUBERNETES, allow: Collection[str] = ()) -> None:
    """Assert that an object is what an API server takes and what we mean.

    Args:
        versions: Of Kubernetes.
        allow: What a pod may have beyond the restricted profile: "root-memlock", "host-network", "not-ours" (anything).
    """
    found = mistakes(obj, versions=versions, allow=allow)
    name = f"{obj.get('kind')} {obj.get('metadata', {}).get('name')}"
    assert not found, f"{name}:\n" + "\n".join(found)


def mistakes(obj: dict[str, Any], *, versions: Collection[str] = KUBERNETES, allow: Collection[str] = ()) -> list[str]:
    """All that is wrong with an object, each as its place and a sentence."""
    structure = list(_structure(obj, versions))
    return structure or list(doubts(obj, allow))


def documents(text: str) -> list[dict[str, Any]]:
    """The objects of a YAML file; a key that stands twice is an error, where YAML's loader would take the last."""
    return [each for each in yaml.load_all(text, Loader=_NoKeyTwice) if each is not None]


class _NoKeyTwice(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f'the key "{key}" stands twice', node.start_mark)
        return super().construct_mapping(node, deep)


def _structure(obj: dict[str, Any], versions: Collection[str]) -> Iterator[str]:
    if obj.get("kind") == "BrickRun":
        BrickRun.model_validate(obj)
        return
    own = _crds().get((obj.get("apiVersion"), obj.get("kind")))
    if own:
        yield from _errors(own, obj, "")
    for version in versions:
        if not own:
            validator = _kubernetes(version, str(obj.get("apiVersion")), str(obj.get("kind")))
            if validator is None:
                yield f"Kubernetes {version} has no {obj.get('apiVersion')} {obj.get('kind')}"
                continue
            yield from _errors(validator, obj, f"Kubernetes {version}: ")
        for path, template in pods_of(obj):
            pod = {"apiVersion": "v1", "kind": "Pod", "spec": template.get("spec")}
            pod |= {"metadata": template["metadata"]} if "metadata" in template else {}
            yield from _errors(_kubernetes(version, "v1", "Pod"), pod, f"Kubernetes {version}: {path}: ")


def _errors(validator: Any, obj: Any, where: str) -> Iterator[str]:
    for error in validator.iter_errors(obj):
        yield f"{where}{'.'.join(map(str, error.absolute_path)) or '(the object)'}: {error.message[:300]}"


@cache
def _crds() -> dict[tuple[str | None, str | None], Any]:
    kinds = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(CRDS.glob("*.json"))]
    return {(kind["apiVersion"], kind["kind"]): jsonschema.Draft7Validator(kind["schema"]) for kind in kinds}


@cache
def _kubernetes(version: str, api_version: str, kind: str) -> Any:
    """A kind's validator, of the schemas that the package kubernetes-validate brings; None: it has no such kind."""
    group, _, name = api_version.rpartition("/")
    short = f"{group.partition('.')[0]}-{name}" if group else name
    file = _schemas(version) / f"{kind.lower()}-{short}.json"
    if not file.is_file():
        return None
    schema = json.loads(file.read_text(encoding="utf-8"))
    return jsonschema.Draft202012Validator(schema, registry=_definitions(version))


@cache
def _definitions(version: str) -> Registry[Any]:
    definitions: Resource[Any] = Resource.from_contents(
        json.loads((_schemas(version) / "_definitions.json").read_text(encoding="utf-8"))
    )
    return definitions @ Registry()


def _schemas(version: str) -> Any:
    return resources.files("kubernetes_validate") / f"kubernetes-json-schema/v{version}.0-local-strict"
