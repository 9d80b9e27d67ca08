"""The double beside the real server: whatever is asked of both, in whatever order, both answer alike."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.kubernetes.conftest import Server
from tests.kubernetes.double import Double
from tests.kubernetes.raw import JSON_PATCH, MERGE, STRATEGIC, Answered, Api
from tests.kubernetes.real import namespace_of, real_server
from tests.kubernetes.test_contract import define_toys

Object = dict[str, Any]
Operation = tuple[str, Any]
NAMES = st.sampled_from(["a", "b", "c.d", "Not_A_Name", "-x", "a" * 254])
KEYS = st.sampled_from(["k", "l", "bricks.dev/m"])
TEXTS = st.sampled_from(["", "1", "two words", "x" * 64])
LABELS = st.dictionaries(KEYS, st.sampled_from(["", "1", "x", "-bad-", "y" * 64]), max_size=2)
HELD = st.lists(st.sampled_from(["bricks.dev/x", "bricks.dev/y"]), max_size=2, unique=True)
META = st.fixed_dictionaries(
    {}, optional={"labels": LABELS, "annotations": st.dictionaries(KEYS, TEXTS), "finalizers": HELD}
)
DATA = st.dictionaries(st.sampled_from(["k", "l", "m.n", "no/slash"]), TEXTS, max_size=3)
BODY = st.fixed_dictionaries({"metadata": META}, optional={"data": DATA, "immutable": st.booleans()})
MAYBE = st.none() | TEXTS
CHANGE = st.fixed_dictionaries(
    {},
    optional={
        "data": st.none() | st.dictionaries(st.sampled_from(["k", "l"]), MAYBE, max_size=2),
        "metadata": st.fixed_dictionaries(
            {},
            optional={
                "labels": st.none() | st.dictionaries(KEYS, st.none() | st.sampled_from(["1", "x"]), max_size=2),
                "finalizers": st.none() | HELD,
                "resourceVersion": st.sampled_from(["fresh", "stale"]),
            },
        ),
        "immutable": st.none() | st.booleans(),
    },
)
PATHS = st.sampled_from(["/data", "/data/k", "/data/l", "/metadata/labels", "/metadata/labels/k", "/none/where"])
STEPS = st.lists(
    st.fixed_dictionaries({"op": st.sampled_from(["add", "replace", "test"]), "path": PATHS, "value": TEXTS})
    | st.fixed_dictionaries({"op": st.just("remove"), "path": PATHS}),
    max_size=3,
)
SELECTORS = st.sampled_from(
    ["k", "!k", "k=1", "k!=1", "k in (1,x)", "k notin (1)", "l,k=x", "bricks.dev/m", "k==x,!l", "=", "k in"]
)
OPERATIONS = st.one_of(
    st.tuples(st.just("create"), st.tuples(NAMES, BODY)),
    st.tuples(st.just("put"), st.tuples(NAMES, BODY, st.sampled_from(["fresh", "stale", "none"]))),
    st.tuples(st.just("merge"), st.tuples(NAMES, CHANGE)),
    st.tuples(st.just("strategic"), st.tuples(NAMES, CHANGE)),
    st.tuples(st.just("json"), st.tuples(NAMES, STEPS)),
    st.tuples(st.just("delete"), st.tuples(NAMES, st.sampled_from(["", "right", "wrong"]))),
    st.tuples(st.just("get"), NAMES),
    st.tuples(st.just("list"), SELECTORS),
)


@dataclass
class Side:
    """One of the two servers, and what was read from it."""

    api: Api
    path: str
    kind: Object = field(default_factory=lambda: {"apiVersion": "v1", "kind": "ConfigMap"})
    versions: dict[str, list[str]] = field(default_factory=dict)
    uids: dict[str, str] = field(default_factory=dict)

    def do(self, operation: Operation) -> Any:
        """What it answers, as far as both can say the same."""
        verb, what = operation
        try:
            answer = getattr(self, f"_{verb}")(what)
        except Answered as answered:
            body = answered.body if isinstance(answered.body, dict) else {}
            causes = (body.get("details") or {}).get("causes") or []
            # 1.20 names a list where later ones name the place in it.
            fields = {re.sub(r"\[\d+\]", "", cause.get("field", "")) for cause in causes}
            return answered.status, body.get("reason"), sorted(fields)
        if answer.get("kind") == self.kind["kind"]:
            meta = answer["metadata"]
            self.versions.setdefault(meta["name"], []).append(meta["resourceVersion"])
            self.uids[meta["name"]] = meta["uid"]
        return plain(answer)

    def _create(self, what: Any) -> Any:
        name, body = what
        return self.api.post(self.path, self._named(name, body))

    def _put(self, what: Any) -> Any:
        name, body, version = what
        body = self._named(name, body)
        if version != "none":
            body["metadata"]["resourceVersion"] = self._version(name, version)
        return self.api.put(f"{self.path}/{name}", body)

    def _named(self, name: str, body: Object) -> Object:
        return {**self.kind, **body, "metadata": {**body["metadata"], "name": name}}

    def _version(self, name: str, which: str) -> str:
        known = self.versions.get(name, ["1"])
        return known[-1] if which == "fresh" else known[0]

    def _merge(self, what: Any, kind: str = MERGE) -> Any:
        name, change = what
        meta = change.get("metadata") or {}
        if "resourceVersion" in meta:
            change = {**change, "metadata": {**meta, "resourceVersion": self._version(name, meta["resourceVersion"])}}
        return self.api.patch(f"{self.path}/{name}", change, kind)

    def _strategic(self, what: Any) -> Any:
        return self._merge(what, STRATEGIC)

    def _json(self, what: Any) -> Any:
        name, steps = what
        return self.api.patch(f"{self.path}/{name}", steps, JSON_PATCH)

    def _delete(self, what: Any) -> Any:
        name, uid = what
        options = {"preconditions": {"uid": self.uids.get(name, "x") if uid == "right" else "y"}} if uid else {}
        return self.api.delete(f"{self.path}/{name}", **options)

    def _get(self, name: str) -> Any:
        return self.api.get(f"{self.path}/{name}")

    def _list(self, selector: str) -> Any:
        return self.api.get(self.path, labelSelector=selector)


SERVERS_OWN = (
    "uid",
    "resourceVersion",
    "creationTimestamp",
    "deletionTimestamp",
    "managedFields",
    "namespace",
    "selfLink",
)


def plain(value: Any) -> Any:
    """Without what no two servers say alike; that it is there at all is kept."""
    if isinstance(value, list):
        return [plain(each) for each in value if not is_rootca(each)]
    if not isinstance(value, dict):
        return value
    kept = {key: plain(each) for key, each in value.items() if key not in SERVERS_OWN}
    return kept | {key: bool(value[key]) for key in ("uid", "deletionTimestamp") if key in value}


def is_rootca(value: Any) -> bool:
    """What the real one's controllers put into every namespace."""
    return isinstance(value, dict) and value.get("metadata", {}).get("name") == "kube-root-ca.crt"


ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 9) | st.sampled_from([1.5, "red", "", "7"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=4,
)
SPEC = (
    st.fixed_dictionaries(
        {},
        optional={
            "colour": st.sampled_from(["red", "blue", "green"]) | ANY,
            "size": st.integers(-1, 5) | ANY,
            "parts": st.lists(st.fixed_dictionaries({}, optional={"name": st.just("x") | ANY, "odd": ANY}), max_size=2)
            | ANY,
            "free": st.dictionaries(st.sampled_from("ab"), ANY, max_size=2) | ANY,
            "either": st.integers(0, 3) | st.just("50%") | ANY.filter(lambda value: value != ""),  # 1.20 trips over it
            "odd": ANY,
        },
    )
    | ANY
)
TOYS = st.one_of(
    st.tuples(
        st.just("create"), st.tuples(st.sampled_from("ab"), st.fixed_dictionaries({"metadata": META, "spec": SPEC}))
    ),
    st.tuples(st.just("merge"), st.tuples(st.sampled_from("ab"), st.fixed_dictionaries({"spec": SPEC}))),
    st.tuples(st.just("delete"), st.tuples(st.sampled_from("ab"), st.just(""))),
)
TOY = {"apiVersion": "bricks.test/v1", "kind": "Toy"}


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[Server, Server]]:
    with Double() as double:
        yield double, real_server()


@pytest.fixture(scope="module")
def toys(both: tuple[Server, Server]) -> Iterator[tuple[str, str]]:
    """Where both serve a kind of ours."""
    apis = [server.api() for server in both]
    with namespace_of(apis[0]) as one, namespace_of(apis[1]) as other:
        paths = tuple(f"/apis/bricks.test/v1/namespaces/{name}/toys" for name in (one, other))
        for api, path in zip(apis, paths, strict=True):
            define_toys(api, path)
        yield paths  # type: ignore[misc]


@settings(
    max_examples=12, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate]
)
@given(st.lists(OPERATIONS, min_size=4, max_size=25))
def test_whatever_is_asked_both_answer_alike(both: tuple[Server, Server], operations: list[Operation]) -> None:
    apis = [server.api() for server in both]
    with namespace_of(apis[0]) as one, namespace_of(apis[1]) as other:
        sides = [
            Side(api, f"/api/v1/namespaces/{name}/configmaps") for api, name in zip(apis, (one, other), strict=True)
        ]
        for operation in operations:
            double, real = (side.do(operation) for side in sides)
            assert double == real, operation
        for side in sides:  # or the real one's namespaces never go
            for each in side.api.get(side.path)["items"]:
                side.api.patch(f"{side.path}/{each['metadata']['name']}", {"metadata": {"finalizers": None}})


@settings(
    max_examples=40, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate]
)
@given(operations=st.lists(TOYS, min_size=3, max_size=12))
def test_whatever_a_kind_of_ours_is_given_both_take_or_refuse_it_alike(
    both: tuple[Server, Server], toys: tuple[str, str], operations: list[Operation]
) -> None:
    sides = [Side(server.api(), path, TOY) for server, path in zip(both, toys, strict=True)]
    for side in sides:
        for each in side.api.get(side.path)["items"]:
            path = f"{side.path}/{each['metadata']['name']}"
            side.api.patch(path, {"metadata": {"finalizers": None}})
            with contextlib.suppress(Answered):
                side.api.delete(path)
    for operation in operations:
        double, real = (side.do(operation) for side in sides)
        assert double == real, operation
