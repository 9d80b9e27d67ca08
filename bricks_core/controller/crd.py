"""The CustomResourceDefinition of BrickRun, made of the run file's own contract and of what a status says.

The API server wants a *structural* schema: no references, every place one type, alternatives as one object with all
their fields. So this is a translation of pydantic's JSON schema, and rules in CEL for what is lost on the way, and for
the mistakes that are made most: they are then told by `kubectl apply`, not by the controller a while later. The rules
refuse nothing that the run file's contract accepts, and not all that it refuses: the controller checks the rest.

No defaults are written: what is stored is what the user wrote, whatever version of the chart reads it.

Two things differ from the run file. `notify` is a secret, and whoever may read runs could read it: it is left out, so
that a server refuses it as a key that is none, before anything is stored. And fields of earlier versions are there,
since a server takes what its schema does not know out of what it has stored: a run would silently come to mean
something else. So they are kept for the reader of the run file, which says what to write instead; a rule says the same
to whoever writes one anew.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import yaml
from pydantic import BaseModel

from bricks_core.cluster.launcher import Object
from bricks_core.controller.status import RunStatus
from bricks_core.spec.clip import ClipSpec
from bricks_core.spec.earlier import GONE
from bricks_core.spec.evaluate import EvaluateSpec
from bricks_core.spec.latents import LatentsSpec
from bricks_core.spec.run import BrickRun

GROUP, VERSION, PLURAL = "bricks.dev", "v1alpha1", "brickruns"

MAX_TEXT = 4096
MAX_ITEMS = 1024
MAX_LENGTHS = {"spec.train.phases[].name": 128, "spec.train.phases[].buckets[].resolution": 64}
"""Of texts that rules compare. Rules are admitted only if their cost is bounded, and so must be what they read."""
MAX_LISTS = {"spec.train.phases": 32, "spec.train.phases[].buckets": 32, "spec.latents.resolutions": 32}

_SECRET = "notify"
_TYPES_OF_GONE: dict[str, Object] = {"spec.clip.content_threshold": {"type": "number"}}
"""What each field of GONE (spec/earlier.py) held: a rule can read only what has a type."""

COLUMNS = (
    ("Phase", "string", ".status.phase", 0),
    ("Stage", "string", ".status.currentStage", 0),
    ("Progress", "string", ".status.progress", 0),
    ("Reason", "string", '.status.conditions[?(@.type=="Succeeded")].reason', 0),
    ("Message", "string", '.status.conditions[?(@.type=="Succeeded")].message', 1),
    ("Age", "date", ".metadata.creationTimestamp", 0),
)
"""What `kubectl get brickruns` shows: name, type, where it is; 1 is for `-o wide` alone."""

HEADING = (
    "# The kind BrickRun, for Kubernetes. Generated from bricks_core/spec by `bricks schema --crd`: do not edit.\n"
)


def crd() -> Object:
    """The CustomResourceDefinition, as it is applied."""
    version = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "additionalPrinterColumns": [
            {"name": name, "type": kind, "jsonPath": path} | ({"priority": priority} if priority else {})
            for name, kind, path, priority in COLUMNS
        ],
        "schema": {"openAPIV3Schema": schema()},
    }
    names = {
        "kind": "BrickRun",
        "listKind": "BrickRunList",
        "plural": PLURAL,
        "singular": "brickrun",
        "shortNames": ["br"],
        "categories": ["bricks"],
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {"group": GROUP, "scope": "Namespaced", "names": names, "versions": [version]},
    }


def crd_yaml() -> str:
    """The same, as committed in helm/bricks/files/brickruns.yaml."""
    return HEADING + yaml.safe_dump(crd(), sort_keys=False, allow_unicode=True, width=120)


def schema() -> Object:
    """The structural schema of a BrickRun and its status."""
    text: Object = {"type": "string", "maxLength": 253}
    spec = _of_model(BrickRun, "spec")
    del spec["properties"][_SECRET]
    properties: Object = {
        # Said here, though every object has them, so that the rule below reads a name of bounded length.
        "apiVersion": text,
        "kind": text,
        "metadata": {"type": "object", "properties": {"name": text, "generateName": text}},
        "spec": spec,
        "status": _of_model(RunStatus, "") | {"description": "What the controller has found. A report; never edit it."},
    }
    root: Object = {
        "type": "object",
        "description": " ".join((BrickRun.__doc__ or "").split()),
        "required": ["spec"],
        "properties": properties,
    }
    for path, rules in RULES.items():
        _add_rules(_place(root, path), rules)
    for path, instead in GONE.items():
        above, _, name = path.rpartition(".")
        place = _place(root, above)
        place = place.get("items", place)
        place["properties"][name] = {"description": f"Gone. {instead}"} | _TYPES_OF_GONE[path]
        _add_rules(place, [_rule(f"!has(self.{name})", instead)])
    return root


def _place(root: Object, path: str) -> Object:
    """A place of the schema. `path` is where it is, as spec.train.phases[], or without the marks of lists."""
    place = root
    for name in path.split(".") if path else []:
        place = place.get("items", place)["properties"][name.removesuffix("[]")]
    return place["items"] if path.endswith("[]") else place


def _add_rules(place: Object, rules: list[Object]) -> None:
    place["x-kubernetes-validations"] = [*rules, *place.get("x-kubernetes-validations", [])]


# ------------------------------------------------------------------------------------------------------------- rules


def _rule(rule: str, message: str) -> Object:
    return {"rule": rule, "message": message}


def _given(model: type[BaseModel], name: str) -> str:
    """CEL for a field's value, or the contract's default where it is not written."""
    default = model.model_fields[name].get_default(call_default_factory=True)
    return f"(has(self.{name}) ? self.{name} : {_literal(default)})"


def _literal(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_literal, value))}]"
    return f"'{value}'" if isinstance(value, str) else str(value)


def _needs_model(built_in: str, example: str) -> Object:
    return _rule(
        f"!has(self.kind) || self.kind == '{built_in}' || (has(self.model) && self.model != '')",
        f"model is missing: every kind but {built_in} needs one, a hub id such as {example}, or a folder.",
    )


_RESOLUTIONS = (
    "(has(self.latents) && has(self.latents.resolutions) ? self.latents.resolutions : "
    f"{_literal(LatentsSpec().resolutions)})"
)

RULES: dict[str, list[Object]] = {
    "": [
        _rule(
            "self.metadata.name.size() <= 30 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
            "metadata.name must be lower-case letters, digits and dashes, begin with a letter, and have at most 30 "
            "characters: pods add -<stage>-a<attempt>-worker-<n> to it, and 63 is all that a name may have.",
        )
        | {"fieldPath": ".metadata.name"}
    ],
    "spec": [
        _rule(
            "!has(self.train) || self.train == null || self.train.phases.all(phase, phase.buckets.all(bucket, "
            f"bucket.resolution in {_RESOLUTIONS}))",
            "a bucket's resolution is not encoded: latents.resolutions must have it, written the same.",
        ),
        _rule(
            "!has(self.evaluate) || self.evaluate == null || (has(self.evaluate.resolution) ? self.evaluate.resolution "
            f": {_literal(EvaluateSpec.model_fields['resolution'].default)}) in {_RESOLUTIONS}",
            "evaluate.resolution is not encoded: latents.resolutions must have it, written the same.",
        ),
    ],
    "spec.clip": [
        _rule(
            f"{_given(ClipSpec, 'max_frames')} >= 2 * {_given(ClipSpec, 'min_frames')} - 1",
            "max_frames is too near min_frames: a shot one frame longer than the longest clip has no even split. Set "
            "max_frames to 2 * min_frames - 1 or more.",
        )
    ],
    "spec.caption": [
        _rule(
            "!has(self.provider) || self.provider != 'openai' || (has(self.model) && self.model != '')",
            "provider openai needs a model: the name that your server knows.",
        )
    ],
    "spec.latents.codec": [_needs_model("patch-dct", "stabilityai/sd-vae-ft-ema")],
    "spec.latents.text": [_needs_model("hashed-words", "DeepFloyd/t5-v1_1-xxl")],
    "spec.train": [
        _rule(
            "self.phases.all(one, self.phases.exists_one(other, other.name == one.name))",
            "two phases have the same name.",
        )
    ],
}
"""Rules by place. An optional section that may be null is compared with null first: null is a value to CEL."""


def _rules_of_kinds(field: str, kinds: dict[str, Object], optional: str, always: list[str]) -> list[Object]:
    """What the alternatives of an object need and refuse, once they are one object with all their fields.

    `optional`: the kind that is meant when none is written; empty: one must be. `always`: what every kind needs, which
    the schema says.
    """
    kind = f"(has(self.{field}) ? self.{field} : '{optional}')" if optional else f"self.{field}"
    names = dict.fromkeys(name for each in kinds.values() for name in each["properties"])
    rules = []
    for value, each in kinds.items():
        needed = [name for name in each.get("required", []) if name not in (field, *always)]
        strange = [name for name in names if name not in each["properties"]]
        if needed:
            has_all = " && ".join(f"has(self.{name})" for name in needed)
            rules.append(_rule(f"{kind} != '{value}' || ({has_all})", f"{value} needs {_listed(needed, 'and')}."))
        if strange:
            has_any = " || ".join(f"has(self.{name})" for name in strange)
            rules.append(_rule(f"{kind} != '{value}' || !({has_any})", f"{value} has no {_listed(strange, 'or')}."))
    return rules


def _listed(names: list[str], last: str) -> str:
    return f"{', '.join(names[:-1])} {last} {names[-1]}" if len(names) > 1 else names[0]


# ----------------------------------------------------------------------------------------------------- the translation


def _of_model(model: type[BaseModel], below: str) -> Object:
    """A model's structural schema; of a run file the part `below`."""
    document = model.model_json_schema(mode="validation", by_alias=True)
    node = document["properties"][below] if below else document
    return _Translation(document.get("$defs", {})).of(node, below)


class _Translation:
    """From pydantic's JSON schema (draft 2020-12) to Kubernetes' structural schema."""

    def __init__(self, definitions: dict[str, Object]):
        self._definitions = definitions

    def of(self, node: Object, path: str) -> Object:
        """A place's schema. `path` is where it is, as spec.train.phases[].name."""
        node = self._resolved(node)
        if "discriminator" in node:
            made = self._of_kinds(node, path)
        elif "anyOf" in node:
            made = self._or_null(node, path)
        elif node.get("type") == "object":
            made = self._object(node, path)
        elif node.get("type") == "array":
            made = self._array(node, path)
        else:
            made = _value(node, path)
        words = _first_words(node.get("description", ""))
        return ({"description": words} if words else {}) | made

    def _resolved(self, node: Object) -> Object:
        """A node with its reference followed; what stands beside the reference wins."""
        if "$ref" not in node:
            return node
        found = self._definitions[node["$ref"].rpartition("/")[2]]
        return found | {name: value for name, value in node.items() if name != "$ref"}

    def _or_null(self, node: Object, path: str) -> Object:
        others = [each for each in node["anyOf"] if each.get("type") != "null"]
        if len(others) != 1 or len(node["anyOf"]) != 2:
            raise ValueError(f"{path} may be of several types, and Kubernetes wants one.")
        made = self.of(others[0], path)
        if "enum" in made:
            # A list of words refuses null, nullable or not (seen with 1.36), and one with null in it is no valid schema
            # to older servers (1.20): so a pattern says the same.
            made["pattern"] = f"^({'|'.join(map(re.escape, made.pop('enum')))})$"
            made["maxLength"] = MAX_TEXT
        return made | {"nullable": True}

    def _object(self, node: Object, path: str) -> Object:
        properties = dict(node.get("properties", {}))
        if "propertyNames" in node:  # a mapping whose keys are known is an object: a wrong key is then refused
            names = self._resolved(node["propertyNames"])["enum"]
            properties = dict.fromkeys(names, node["additionalProperties"])
        elif not properties:
            raise ValueError(f"{path} is a mapping with any keys: give it known ones.")
        made: Object = {"type": "object"}
        if node.get("required"):
            made["required"] = list(node["required"])
        below = f"{path}." if path else ""
        made["properties"] = {name: self.of(each, below + name) for name, each in properties.items()}
        return made

    def _array(self, node: Object, path: str) -> Object:
        places = node.get("prefixItems")
        items = self.of(node["items"], f"{path}[]") if places is None else self._of_places(places, path)
        made: Object = {"type": "array", "items": items}
        if "minItems" in node:
            made["minItems"] = node["minItems"]
        made["maxItems"] = node.get("maxItems", MAX_LISTS.get(path, MAX_ITEMS))
        return made | {name: value for name, value in node.items() if name.startswith("x-kubernetes-")}

    def _of_places(self, places: list[Object], path: str) -> Object:
        """A list whose places differ: each may be what any of them may be."""
        made = [self.of(each, f"{path}[]") for each in places]
        return made[0] | {"enum": sorted({value for each in made for value in each["enum"]})}

    def _of_kinds(self, node: Object, path: str) -> Object:
        """Alternatives told apart by a field, as one object: all their fields, and rules for which belong together."""
        field = node["discriminator"]["propertyName"]
        kinds = {value: self._resolved({"$ref": ref}) for value, ref in node["discriminator"]["mapping"].items()}
        properties: Object = {field: {"type": "string", "enum": list(kinds)}}
        for each in kinds.values():
            for name, child in each["properties"].items():
                made = self.of(child, f"{path}.{name}")
                if name != field and properties.setdefault(name, made) != made:
                    raise ValueError(f"{path}.{name} is not the same in every kind: Kubernetes wants one schema.")
        default = node.get("default", {}).get(field, "")
        needed = set.intersection(*(set(each.get("required", [])) for each in kinds.values()))
        required = [name for name in properties if name in needed or (name == field and not default)]
        made = {"type": "object"} | ({"required": required} if required else {}) | {"properties": properties}
        return made | {"x-kubernetes-validations": _rules_of_kinds(field, kinds, default, required)}


_KEPT = ("minimum", "maximum", "multipleOf", "minLength", "pattern", "enum", "format")


def _value(node: Object, path: str) -> Object:
    """A text, a number or a truth."""
    if "type" not in node:
        raise ValueError(f"{path} has no type, and Kubernetes wants one.")
    made: Object = {"type": node["type"]} | {name: node[name] for name in _KEPT if name in node}
    if "const" in node:
        made["enum"] = [node["const"]]
    for ours, theirs in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if ours in node:  # a number in JSON schema, a truth beside the number in Kubernetes
            made |= {theirs: node[ours], ours: True}
    if node["type"] == "string" and "enum" not in made:
        made["maxLength"] = node.get("maxLength", MAX_LENGTHS.get(path, MAX_TEXT))
    return made


@cache
def _first_words(description: str) -> str:
    """The first paragraph on one line: enough for `kubectl explain`, and the whole stays small."""
    return " ".join(description.split("\n\n")[0].split())
