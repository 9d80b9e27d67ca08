"""What an API server says when it does not do what was asked: a Status, in the real one's words."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Object = dict[str, Any]


@dataclass(frozen=True)
class Resource:
    """A kind of objects, and where it is served."""

    group: str
    version: str
    kind: str
    plural: str
    namespaced: bool = True
    status: bool = False
    """Whether it has the status subresource."""
    short_names: tuple[str, ...] = ()
    schema: Object | None = field(default=None, compare=False)
    """Of a custom kind: its openAPIV3Schema."""
    categories: tuple[str, ...] = ()

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def qualified(self) -> str:
        """jobs.batch: as messages name it."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def qualified_kind(self) -> str:
        return f"{self.kind}.{self.group}" if self.group else self.kind


class Failure(Exception):
    """An answer that is not a good one."""

    def __init__(self, code: int, reason: str, message: str, details: Object | None = None):
        super().__init__(message)
        self.code = code
        self.status: Object = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": message,
            "reason": reason,
            **({"details": details} if details else {}),
            "code": code,
        }


def _details(resource: Resource, name: str) -> Object:
    group = {"group": resource.group} if resource.group else {}
    return {"name": name, **group, "kind": resource.plural}


def not_found(resource: Resource, name: str) -> Failure:
    return Failure(404, "NotFound", f'{resource.qualified} "{name}" not found', _details(resource, name))


def already_exists(resource: Resource, name: str) -> Failure:
    return Failure(409, "AlreadyExists", f'{resource.qualified} "{name}" already exists', _details(resource, name))


def conflict(resource: Resource, name: str, why: str = "") -> Failure:
    why = why or "the object has been modified; please apply your changes to the latest version and try again"
    message = f'Operation cannot be fulfilled on {resource.qualified} "{name}": {why}'
    return Failure(409, "Conflict", message, _details(resource, name))


def invalid(resource: Resource, name: str, mistakes: list[tuple[str, str]]) -> Failure:
    """`mistakes`: (field, "Required value"), …"""
    causes = [
        {"reason": "FieldValue" + text.split(" ")[0].rstrip(":"), "message": text, "field": where}
        for where, text in mistakes
    ]
    told = [f"{where}: {text}" for where, text in mistakes]
    text = told[0] if len(told) == 1 else f"[{', '.join(told)}]"
    details = _details(resource, name) | {"kind": resource.kind, "causes": causes}
    return Failure(422, "Invalid", f'{resource.qualified_kind} "{name}" is invalid: {text}', details)


def bad_request(message: str) -> Failure:
    return Failure(400, "BadRequest", message)


def forbidden(resource: Resource, name: str, why: str) -> Failure:
    which = f' "{name}"' if name else ""
    return Failure(403, "Forbidden", f"{resource.qualified}{which} is forbidden: {why}", _details(resource, name))


def gone(message: str, reason: str = "Expired") -> Failure:
    return Failure(410, reason, message)
