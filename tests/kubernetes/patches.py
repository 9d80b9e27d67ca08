"""The ways to change a part of an object: JSON patch, merge patch, strategic merge patch, server-side apply."""

from __future__ import annotations

import copy
from typing import Any

from tests.kubernetes.failures import Failure, bad_request

MERGE_KEYS = {
    "containers": ("name",),
    "initContainers": ("name",),
    "env": ("name",),
    "volumes": ("name",),
    "volumeMounts": ("mountPath",),
    "ports": ("containerPort", "port"),
    "conditions": ("type",),
    "ownerReferences": ("uid",),
    "imagePullSecrets": ("name",),
    "containerStatuses": ("name",),
    "secrets": ("name",),
}
"""Lists whose items are told apart by a key, in the core kinds we use; all others are replaced as a whole."""
SETS = {"finalizers"}
"""Lists of words that are joined."""


def merge(target: Any, change: Any) -> Any:
    """RFC 7386."""
    if not isinstance(change, dict):
        return copy.deepcopy(change)
    merged = dict(target) if isinstance(target, dict) else {}
    for key, value in change.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge(merged.get(key), value)
    return merged


def strategic(target: Any, change: Any, field: str = "") -> Any:
    """As a merge patch, but lists with a key are merged by it; `$patch: delete` and `replace` are known."""
    if isinstance(change, dict):
        if change.get("$patch") == "replace":
            return {key: value for key, value in change.items() if key != "$patch"}
        merged = dict(target) if isinstance(target, dict) else {}
        for key, value in change.items():
            if key.startswith(("$setElementOrder/", "$retainKeys")):
                continue
            if key.startswith("$deleteFromPrimitiveList/"):
                name = key.partition("/")[2]
                merged[name] = [each for each in merged.get(name, []) if each not in value]
            elif value is None:
                merged.pop(key, None)
            else:
                merged[key] = strategic(merged.get(key), value, key)
        return merged
    if isinstance(change, list) and isinstance(target, list):
        if field in SETS:
            return [*target, *(each for each in change if each not in target)]
        if field in MERGE_KEYS:
            return _by_key(target, change, MERGE_KEYS[field])
    return copy.deepcopy(change)


def _by_key(target: list[Any], change: list[Any], keys: tuple[str, ...]) -> list[Any]:
    def identity(item: Any) -> Any:
        return next((item[key] for key in keys if isinstance(item, dict) and key in item), None)

    merged = list(target)
    for item in change:
        there = next((i for i, each in enumerate(merged) if identity(each) == identity(item)), None)
        if isinstance(item, dict) and item.get("$patch") == "delete":
            if there is not None:
                del merged[there]
        elif there is None:
            merged.append(copy.deepcopy(item))
        else:
            merged[there] = strategic(merged[there], item)
    return merged


def json_patch(target: Any, operations: Any) -> Any:
    """RFC 6902."""
    if not isinstance(operations, list):
        raise bad_request("json: cannot unmarshal object into Go value of type jsonpatch.Patch")
    document = copy.deepcopy(target)
    for operation in operations:
        try:
            document = _operate(document, operation)
        except (KeyError, IndexError, ValueError, TypeError):
            path = operation.get("path", "") if isinstance(operation, dict) else ""
            message = f"the server rejected our request due to an error in our request ({path})"
            raise Failure(422, "Invalid", message) from None
    return document


def _operate(document: Any, operation: dict[str, Any]) -> Any:
    action, path = operation["op"], _pointer(operation["path"])
    if action in ("move", "copy"):
        value = copy.deepcopy(_look(document, _pointer(operation["from"])))
        if action == "move":
            document = _set(document, _pointer(operation["from"]), None, "remove")
        return _set(document, path, value, "add")
    if action == "test":
        if _look(document, path) != operation["value"]:
            raise ValueError("test failed")
        return document
    if action in ("replace", "remove"):
        _look(document, path)
    return _set(document, path, copy.deepcopy(operation.get("value")), action)


def _pointer(path: str) -> list[str]:
    return [part.replace("~1", "/").replace("~0", "~") for part in path.split("/")[1:]]


def _look(document: Any, path: list[str]) -> Any:
    for part in path:
        document = document[int(part)] if isinstance(document, list) else document[part]
    return document


def _set(document: Any, path: list[str], value: Any, action: str) -> Any:
    if not path:
        return value
    parent, last = _look(document, path[:-1]), path[-1]
    if isinstance(parent, list):
        at = len(parent) if last == "-" else int(last)
        if action == "add":
            parent.insert(at, value)
        elif action == "remove":
            del parent[at]
        else:
            parent[at] = value
    elif action == "remove":
        del parent[last]
    else:
        parent[last] = value
    return document


def apply(target: Any, before: Any, after: Any, field: str = "") -> Any:
    """Server-side apply by one manager: what it wrote `before` and does not write now goes, the rest is merged.

    Minimal: whose a field is, is known of this manager alone, so there are no conflicts between managers.
    """
    if not isinstance(after, dict):
        if isinstance(after, list) and isinstance(target, list) and field in MERGE_KEYS:
            keys = MERGE_KEYS[field]
            known = [each.get(key) for each in after for key in keys if isinstance(each, dict) and key in each]
            dropped = [
                {**each, "$patch": "delete"}
                for each in (before if isinstance(before, list) else [])
                if isinstance(each, dict) and not any(each.get(key) in known for key in keys if key in each)
            ]
            return _by_key(target, [*dropped, *after], keys)
        return copy.deepcopy(after)
    merged = dict(target) if isinstance(target, dict) else {}
    for key in before if isinstance(before, dict) else ():
        if key not in after:
            merged.pop(key, None)
    for key, value in after.items():
        merged[key] = apply(merged.get(key), before.get(key) if isinstance(before, dict) else None, value, key)
    return merged
