"""Who may do what: bearer tokens are users, and Roles and ClusterRoles, bound to them, are their rights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.kubernetes.failures import Failure, Object
from tests.kubernetes.storage import Storage

GROUP = "rbac.authorization.k8s.io"


@dataclass(frozen=True)
class User:
    name: str
    groups: tuple[str, ...] = ("system:authenticated",)


ADMIN = User("admin", ("system:masters", "system:authenticated"))
ANONYMOUS = User("system:anonymous", ("system:unauthenticated",))


def service_account(namespace: str, name: str) -> User:
    groups = ("system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated")
    return User(f"system:serviceaccount:{namespace}:{name}", groups)


@dataclass(frozen=True)
class Action:
    """What somebody asks to do."""

    verb: str
    group: str
    resource: str
    namespace: str = ""
    name: str = ""
    subresource: str = ""

    @property
    def full(self) -> str:
        return f"{self.resource}/{self.subresource}" if self.subresource else self.resource


def allowed(storage: Storage, user: User, action: Action) -> bool:
    if "system:masters" in user.groups:
        return True
    if action.group == "authorization.k8s.io" and action.resource.startswith("selfsubject"):
        return "system:authenticated" in user.groups  # system:basic-user
    return any(_grants(rule, action) for rule in rules(storage, user, action.namespace))


def rules(storage: Storage, user: User, namespace: str) -> list[Object]:
    """All rules that hold for a user in a namespace."""
    found: list[Object] = []
    bindings = [("clusterrolebindings", "")] + ([("rolebindings", namespace)] if namespace else [])
    for plural, where in bindings:
        resource = storage.resource(GROUP, plural)
        assert resource is not None
        for binding in storage.all(resource, where):
            if any(_is(subject, user, where) for subject in binding.get("subjects") or []):
                found += _role(storage, binding["roleRef"], where).get("rules") or []
    return found


def _role(storage: Storage, ref: Object, namespace: str) -> Object:
    cluster = ref["kind"] == "ClusterRole"
    resource = storage.resource(GROUP, "clusterroles" if cluster else "roles")
    assert resource is not None
    return storage.find(resource, "" if cluster else namespace, ref["name"]) or {}


def _is(subject: Object, user: User, namespace: str) -> bool:
    match subject["kind"]:
        case "ServiceAccount":
            where = subject.get("namespace", namespace)
            return user.name == f"system:serviceaccount:{where}:{subject['name']}"
        case "Group":
            return subject["name"] in user.groups
        case _:
            return bool(subject["name"] == user.name)


def _grants(rule: Object, action: Action) -> bool:
    def has(key: str, *wanted: str) -> bool:
        return bool({"*", *wanted} & set(rule.get(key) or []))

    named = rule.get("resourceNames")
    return (
        has("verbs", action.verb)
        and has("apiGroups", action.group)
        and has("resources", action.full, *([f"*/{action.subresource}"] if action.subresource else []))
        and (not named or action.name in named)
    )


def denied(user: User, action: Action) -> Failure:
    """403, in the real server's words."""
    qualified = f"{action.resource}.{action.group}" if action.group else action.resource
    name = f' "{action.name}"' if action.name else ""
    where = f' in the namespace "{action.namespace}"' if action.namespace else " at the cluster scope"
    message = (
        f'{qualified}{name} is forbidden: User "{user.name}" cannot {action.verb} resource "{action.full}" '
        f'in API group "{action.group}"{where}'
    )
    details: dict[str, Any] = {"name": action.name, "group": action.group, "kind": action.resource}
    return Failure(403, "Forbidden", message, {key: value for key, value in details.items() if value})
