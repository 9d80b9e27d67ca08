"""Objects as an API server keeps them: names, uids, versions, conflicts, finalizers, history. No HTTP, no kinds' rules.

One lock guards it all; whoever waits for changes (a watch) waits on it. `collect` is the garbage collector.
"""

from __future__ import annotations

import bisect
import copy
import random
import string
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from tests.kubernetes.failures import (
    Failure,
    Object,
    Resource,
    already_exists,
    bad_request,
    conflict,
    forbidden,
    invalid,
    not_found,
)

FOREGROUND, ORPHAN = "foregroundDeletion", "orphan"
REMEMBERED = 20_000
"""Changes that are kept."""
DELETION = ("deletionTimestamp", "deletionGracePeriodSeconds")
KEPT = ("name", "namespace", "uid", "creationTimestamp", "generation", *DELETION)
"""What of an object's metadata only the server writes."""


@dataclass(frozen=True)
class Change:
    """One entry of the history, as a watch tells it."""

    version: int
    type: str
    resource: Resource
    object: Object
    before: Object | None


class Clock:
    """The time as the server sees it: the wall's, and as much more as a test wants."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def now(self) -> float:
        return datetime.now(UTC).timestamp() + self.ahead_s

    def stamp(self, at: float | None = None) -> str:
        return datetime.fromtimestamp(self.now() if at is None else at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def seconds(stamp: str) -> float:
    """When a time stamp was."""
    return datetime.strptime(stamp, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()


Admission = Callable[[Resource, Object | None, Object, str], Object]
"""(resource, old, new, subresource) -> what is stored; raises Failure."""


class Storage:
    """All objects of a cluster."""

    def __init__(self, admit: Admission, clock: Clock):
        self.lock = threading.Condition(threading.RLock())
        self.clock = clock
        self.version = 1
        self.oldest = 0
        """The oldest version from which a watch can go on."""
        self.history: list[Change] = []
        self._admit = admit
        self._resources: dict[tuple[str, str], Resource] = {}
        self._objects: dict[tuple[str, str], dict[tuple[str, str], Object]] = {}
        self._by_uid: dict[str, tuple[Resource, Object]] = {}
        self._collected = 0

    # Kinds

    def serve(self, resource: Resource) -> None:
        self._resources[resource.group, resource.plural] = resource
        self._objects.setdefault((resource.group, resource.plural), {})

    def forget(self, resource: Resource) -> None:
        self._resources.pop((resource.group, resource.plural), None)
        self._objects.pop((resource.group, resource.plural), None)

    @property
    def resources(self) -> list[Resource]:
        return list(self._resources.values())

    def resource(self, group: str, plural: str) -> Resource | None:
        return self._resources.get((group, plural))

    def kind(self, api_version: str, kind: str) -> Resource | None:
        return next((each for each in self.resources if (each.api_version, each.kind) == (api_version, kind)), None)

    # Reading

    def find(self, resource: Resource, namespace: str, name: str) -> Object | None:
        return self._objects.get((resource.group, resource.plural), {}).get((namespace, name))

    def get(self, resource: Resource, namespace: str, name: str) -> Object:
        found = self.find(resource, namespace, name)
        if found is None:
            raise not_found(resource, name)
        return found

    def all(self, resource: Resource, namespace: str = "") -> list[Object]:
        """In the order of their names, as etcd gives them."""
        objects = self._objects.get((resource.group, resource.plural), {})
        return [objects[key] for key in sorted(objects) if not namespace or key[0] == namespace]

    def everything(self) -> Iterator[tuple[Resource, Object]]:
        for resource in self.resources:
            for obj in self.all(resource):
                yield resource, obj

    # Writing

    def create(self, resource: Resource, namespace: str, obj: Object, *, dry_run: bool = False) -> Object:
        obj = copy.deepcopy(obj)
        meta = obj.setdefault("metadata", {})
        if resource.namespaced:
            if meta.setdefault("namespace", namespace) != namespace:
                raise bad_request("the namespace of the object does not match the namespace on the request")
            self._check_namespace(resource, namespace, meta.get("name", ""))
        elif meta.get("namespace"):
            raise bad_request("namespace may not be set on a cluster-scoped object")
        if not meta.get("name") and meta.get("generateName"):
            meta["name"] = meta["generateName"][:58] + _suffix()
        name = meta.get("name", "")
        if not name:
            raise invalid(resource, "", [("metadata.name", "Required value: name or generateName is required")])
        if meta.get("resourceVersion"):
            raise bad_request("resourceVersion should not be set on objects to be created")
        for key in (*KEPT[2:], "selfLink"):
            meta.pop(key, None)
        if resource.status:
            obj.pop("status", None)
        meta |= {"uid": str(uuid.uuid4()), "creationTimestamp": self.clock.stamp()}
        obj = self._admit(resource, None, obj, "")
        if self.find(resource, namespace, name) is not None:
            raise already_exists(resource, name)
        if _counts_generations(resource):
            obj["metadata"]["generation"] = 1
        return obj if dry_run else self._put(resource, obj, "ADDED", None)

    def _check_namespace(self, resource: Resource, namespace: str, name: str) -> None:
        spaces = self.resource("", "namespaces")
        assert spaces is not None
        space = self.find(spaces, "", namespace)
        if space is None:
            raise not_found(spaces, namespace)
        if space["metadata"].get("deletionTimestamp"):
            why = f"unable to create new content in namespace {namespace} because it is being terminated"
            raise forbidden(resource, name, why)

    def update(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        change: Callable[[Object], Object],
        subresource: str = "",
        *,
        dry_run: bool = False,
    ) -> Object:
        """Replace an object by what `change` makes of a copy of it; 409 when that names another version than the one
        that is stored. Nothing is written when nothing changes."""
        old = self.get(resource, namespace, name)
        new = change(copy.deepcopy(old))
        meta = new.setdefault("metadata", {})
        if meta.get("name", name) != name:
            raise bad_request(f"the name of the object ({meta['name']}) does not match the name on the URL ({name})")
        if meta.get("uid", old["metadata"]["uid"]) != old["metadata"]["uid"]:
            raise invalid(resource, name, [("metadata.uid", f'Invalid value: "{meta["uid"]}": field is immutable')])
        if meta.get("resourceVersion") not in (None, "", old["metadata"]["resourceVersion"]):
            raise conflict(resource, name)
        new = self._separated(resource, old, new, subresource)
        new = self._admit(resource, old, new, subresource)
        if _counts_generations(resource) and _asked(new) != _asked(old):
            new["metadata"]["generation"] = old["metadata"].get("generation", 0) + 1
        if new == old or dry_run:
            return new
        if new["metadata"].get("deletionTimestamp") and self._may_go(new):
            return self._put(resource, new, "DELETED", old)
        return self._put(resource, new, "MODIFIED", old)

    def _separated(self, resource: Resource, old: Object, new: Object, subresource: str) -> Object:
        """The new object, as far as this way of writing may change the old one."""
        if subresource == "status":
            kept = {key: value for key, value in old.items() if key != "status"}
            return kept | ({"status": new["status"]} if "status" in new else {})
        meta, was = new["metadata"], old["metadata"]
        for key in (*KEPT, "resourceVersion", "selfLink"):
            meta.pop(key, None)
            if key in was:
                meta[key] = was[key]
        for key in ("labels", "annotations", "finalizers", "ownerReferences"):
            if not meta.get(key):
                meta.pop(key, None)
        added = set(meta.get("finalizers", [])) - set(was.get("finalizers", []))
        if added and was.get("deletionTimestamp"):
            text = f"Forbidden: no new finalizers can be added if the object is being deleted, found {sorted(added)}"
            raise invalid(resource, was["name"], [("metadata.finalizers", text)])
        if resource.status:
            new.pop("status", None)
            if "status" in old:
                new["status"] = old["status"]
        return {"apiVersion": resource.api_version, "kind": resource.kind} | new

    def delete(self, resource: Resource, namespace: str, name: str, options: Object | None = None) -> Object:
        """Remove an object, or mark it as going while finalizers hold it or a pod may still end well."""
        options = options or {}
        old = self.get(resource, namespace, name)
        meta = old["metadata"]
        self.hold_to(resource, old, options.get("preconditions") or {})
        new = copy.deepcopy(old)
        policy = options.get("propagationPolicy") or ("Orphan" if options.get("orphanDependents") else "")
        if not policy and (resource.group, resource.plural) == ("batch", "jobs"):
            policy = "Orphan"  # batch/v1's own default
        finalizers = [each for each in meta.get("finalizers", []) if not policy or each not in (FOREGROUND, ORPHAN)]
        if policy in ("Foreground", "Orphan") and not (meta.get("deletionTimestamp") and not meta.get("finalizers")):
            finalizers.append(FOREGROUND if policy == "Foreground" else ORPHAN)
        new["metadata"].pop("finalizers", None)
        if finalizers:
            new["metadata"]["finalizers"] = finalizers
        grace = self._grace(resource, old, options)
        if finalizers or grace or resource.kind == "Namespace":
            earlier = meta.get("deletionGracePeriodSeconds")
            grace = grace if earlier is None else min(grace, earlier)
            at = self.clock.stamp(self.clock.now() + grace)
            new["metadata"] |= {"deletionTimestamp": min(at, meta.get("deletionTimestamp", at))}
            new["metadata"] |= {"deletionGracePeriodSeconds": grace}
            if resource.kind == "Namespace":
                new["status"] = {"phase": "Terminating"}
            if _counts_generations(resource) and not meta.get("deletionTimestamp"):
                new["metadata"]["generation"] = meta.get("generation", 0) + 1
            return old if new == old else self._put(resource, new, "MODIFIED", old)
        return self._put(resource, new, "DELETED", old)

    def hold_to(self, resource: Resource, obj: Object, preconditions: Object) -> None:
        """409 when the object is not the one that is meant."""
        meta = obj["metadata"]
        for key, label in (("uid", "UID"), ("resourceVersion", "ResourceVersion")):
            wanted = preconditions.get(key)
            if wanted and wanted != meta[key]:
                why = f"Precondition failed: {label} in precondition: {wanted}, {label} in object meta: {meta[key]}"
                raise conflict(resource, meta["name"], why)

    def _grace(self, resource: Resource, obj: Object, options: Object) -> int:
        if resource.plural != "pods":
            return 0
        if not obj["spec"].get("nodeName") or obj.get("status", {}).get("phase") in ("Succeeded", "Failed"):
            return 0
        asked = options.get("gracePeriodSeconds")
        return int(obj["spec"].get("terminationGracePeriodSeconds", 30) if asked is None else asked)

    def _may_go(self, obj: Object) -> bool:
        return not obj["metadata"].get("finalizers") and not obj["metadata"].get("deletionGracePeriodSeconds")

    def _put(self, resource: Resource, obj: Object, kind: str, before: Object | None) -> Object:
        self.version += 1
        obj["metadata"]["resourceVersion"] = str(self.version)
        objects = self._objects[resource.group, resource.plural]
        key = (obj["metadata"].get("namespace", ""), obj["metadata"]["name"])
        if kind == "DELETED":
            objects.pop(key, None)
            self._by_uid.pop(obj["metadata"]["uid"], None)
        else:
            objects[key] = obj
            self._by_uid[obj["metadata"]["uid"]] = (resource, obj)
        self.history.append(Change(self.version, kind, resource, obj, before))
        if len(self.history) > REMEMBERED:
            del self.history[: REMEMBERED // 2]
            self.oldest = self.history[0].version - 1
        self.lock.notify_all()
        return obj

    def since(self, version: int) -> list[Change]:
        """What changed after a version."""
        return self.history[bisect.bisect_right(self.history, version, key=lambda change: change.version) :]

    def compact(self) -> None:
        """Forget the history: watches and lists from before now get 410."""
        with self.lock:
            self.history.clear()
            self.oldest = self.version

    # Garbage

    def collect(self) -> None:
        """One round of the garbage collector and of the removal of namespaces."""
        changes, known = self.since(self._collected), self.oldest <= self._collected
        self._collected = self.version
        uids = dict(self._by_uid) if not known or any(_leaves(change) for change in changes) else None
        if uids is None:  # nothing went: only what is new may have come too late for its owner
            for change in changes:
                if change.object["metadata"].get("ownerReferences"):
                    self._collect_one(change.resource, change.object, self._by_uid, {})
            return
        dependents: dict[str, list[tuple[Resource, Object]]] = {}
        for resource, obj in list(uids.values()):
            for owner in obj["metadata"].get("ownerReferences", []):
                dependents.setdefault(owner["uid"], []).append((resource, obj))
        for resource, obj in list(uids.values()):
            self._collect_one(resource, obj, uids, dependents)
        self._empty_namespaces()

    def _collect_one(self, resource: Resource, obj: Object, uids: dict[str, Any], dependents: dict[str, Any]) -> None:
        meta = obj["metadata"]
        mine = dependents.get(meta["uid"], [])
        going = bool(meta.get("deletionTimestamp"))
        if going and ORPHAN in meta.get("finalizers", []):
            for other, child in mine:
                self._without_owner(other, child, meta["uid"])
            self._without_finalizer(resource, obj, ORPHAN)
            return
        if going and FOREGROUND in meta.get("finalizers", []):
            blocking = [each for each in mine if _blocks(each[1], meta["uid"])]
            for other, child in blocking:
                if not child["metadata"].get("deletionTimestamp"):
                    deeper = dependents.get(child["metadata"]["uid"])
                    self._delete(other, child, "Foreground" if deeper else "Background")
            if not blocking:
                self._without_finalizer(resource, obj, FOREGROUND)
            return
        owners = meta.get("ownerReferences", [])
        if not owners or going:
            return
        alive = [owner for owner in owners if _same(owner, uids.get(owner["uid"]), meta.get("namespace", ""))]
        if not alive:
            self._delete(resource, obj, "Background")
        elif len(alive) < len(owners):
            for owner in owners:
                if owner not in alive:
                    self._without_owner(resource, obj, owner["uid"])

    def _delete(self, resource: Resource, obj: Object, policy: str) -> None:
        meta = obj["metadata"]
        there = self.find(resource, meta.get("namespace", ""), meta["name"])
        if there is not None and there["metadata"]["uid"] == meta["uid"]:
            self.delete(resource, meta.get("namespace", ""), meta["name"], {"propagationPolicy": policy})

    def _change_meta(self, resource: Resource, obj: Object, key: str, keep: Callable[[Any], bool]) -> None:
        meta = obj["metadata"]
        if self.find(resource, meta.get("namespace", ""), meta["name"]) is None:
            return

        def change(now: Object) -> Object:
            now["metadata"][key] = [each for each in now["metadata"].get(key, []) if keep(each)]
            return now

        self.update(resource, meta.get("namespace", ""), meta["name"], change)

    def _without_owner(self, resource: Resource, obj: Object, uid: str) -> None:
        self._change_meta(resource, obj, "ownerReferences", lambda owner: owner["uid"] != uid)

    def _without_finalizer(self, resource: Resource, obj: Object, finalizer: str) -> None:
        self._change_meta(resource, obj, "finalizers", lambda each: each != finalizer)

    def _empty_namespaces(self) -> None:
        spaces = self.resource("", "namespaces")
        assert spaces is not None
        for space in self.all(spaces):
            if not space["metadata"].get("deletionTimestamp"):
                continue
            name = space["metadata"]["name"]
            inside = [(r, obj) for r, obj in self.everything() if obj["metadata"].get("namespace") == name]
            for resource, obj in inside:
                if not obj["metadata"].get("deletionTimestamp"):
                    self._delete(resource, obj, "Background")
            if not inside:
                self._put(spaces, copy.deepcopy(space), "DELETED", space)


def _suffix() -> str:
    return "".join(random.choices(string.ascii_lowercase + string.digits, k=5))


def _counts_generations(resource: Resource) -> bool:
    return resource.schema is not None or resource.group in ("batch", "apps", "apiextensions.k8s.io")


def _asked(obj: Object) -> Object:
    """What somebody wants of it."""
    return {key: value for key, value in obj.items() if key not in ("metadata", "status")}


def _leaves(change: Change) -> bool:
    return change.type == "DELETED" or bool(change.object["metadata"].get("deletionTimestamp"))


def _blocks(obj: Object, owner: str) -> bool:
    return any(
        each["uid"] == owner and each.get("blockOwnerDeletion") for each in obj["metadata"].get("ownerReferences", [])
    )


def _same(owner: Object, found: tuple[Resource, Object] | None, namespace: str) -> bool:
    """Whether an owner reference points to what has its uid: kind, name and namespace, too."""
    if found is None:
        return False
    resource, obj = found
    group = owner["apiVersion"].partition("/")[0] if "/" in owner["apiVersion"] else ""
    named = (group, owner["kind"], owner["name"]) == (resource.group, resource.kind, obj["metadata"]["name"])
    return named and obj["metadata"].get("namespace", namespace) == namespace


__all__ = ["Change", "Clock", "Failure", "Storage", "seconds"]
