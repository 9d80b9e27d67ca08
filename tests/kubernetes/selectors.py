"""Label and field selectors, as in the query of a list or a watch."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from tests.kubernetes.failures import Object, bad_request

Test = Callable[[Object], bool]

FIELDS = {
    "pods": {"spec.nodeName", "spec.restartPolicy", "spec.serviceAccountName", "status.phase", "status.podIP"},
    "events": {
        *(f"involvedObject.{key}" for key in ("kind", "name", "namespace", "uid", "apiVersion", "fieldPath")),
        "reason",
        "reportingComponent",
        "source",
        "type",
    },
    "jobs": {"status.successful"},
    "secrets": {"type"},
    "namespaces": {"status.phase"},
}
"""Fields that can be selected by, beside metadata.name and metadata.namespace."""


def label_test(selector: str) -> Test:
    """Whether an object has the labels: a=b, a!=b, a in (b, c), a notin (b), a, !a; comma is and."""
    tests = [_requirement(part.strip()) for part in re.split(r",(?![^(]*\))", selector) if part.strip()]
    return lambda obj: all(test(obj.get("metadata", {}).get("labels") or {}) for test in tests)


def _requirement(text: str) -> Callable[[dict[str, str]], bool]:
    if match := re.fullmatch(r"(\S+)\s+(in|notin)\s+\(([^)]*)\)", text):
        key, how, listed = match.groups()
        values = {value.strip() for value in listed.split(",")}
        return lambda labels: (labels.get(key) in values) == (how == "in")
    if match := re.fullmatch(r"([^!=\s]+)\s*(==|=|!=)\s*(\S*)", text):
        key, how, value = match.groups()
        return lambda labels: (labels.get(key) == value) != (how == "!=")
    if match := re.fullmatch(r"(!?)\s*([^!=\s()]+)", text):
        absent, key = match.groups()
        return lambda labels: (key in labels) != bool(absent)
    raise bad_request(f'unable to parse requirement: found "{text}"')


def field_test(selector: str, plural: str) -> Test:
    """Whether an object's fields are so: a.b=c, a.b!=c; comma is and."""
    tests: list[Test] = []
    for part in filter(None, (part.strip() for part in selector.split(","))):
        match = re.fullmatch(r"([^!=]+)(==|=|!=)(.*)", part)
        if match is None:
            raise bad_request(f'invalid selector: "{selector}"; can\'t understand "{part}"')
        path, how, value = match.groups()
        if path not in {"metadata.name", "metadata.namespace"} | FIELDS.get(plural, set()):
            raise bad_request(f'field label not supported: "{path}"')
        tests.append(lambda obj, p=path, h=how, v=value: (_at(obj, p) == v) != (h == "!="))  # type: ignore[misc]
    return lambda obj: all(test(obj) for test in tests)


def _at(obj: Any, path: str) -> str:
    for key in path.split("."):
        obj = obj.get(key, "") if isinstance(obj, dict) else ""
    return str(obj or "")
