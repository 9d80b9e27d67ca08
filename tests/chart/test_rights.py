"""The controller's Role is what its code asks for: no right is missing, and none is left over.

What is asked for is read from the code: which calls of the API client the controller makes on which kinds, which
requests each call sends, and what kopf lists and watches for the handlers that are registered.
"""

import ast
import asyncio
from collections.abc import Iterator, Set
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import bricks_core.cluster.api
import bricks_core.controller
from bricks_core.cluster.api import KINDS, Cluster
from bricks_core.cluster.doctor import CONTROLLERS_RIGHTS
from bricks_core.cluster.launcher import Owner, Task
from bricks_core.cluster.launchers import launcher_for
from bricks_core.controller.handlers import Shell
from bricks_core.controller.reconcile import WORKLOADS, Reconciler
from bricks_core.spec.cluster import ClusterProfile
from bricks_core.spec.run import load_run
from bricks_core.storage.places import open_store
from tests.chart.chart import NAMES, S3, Object, of_kind, render, rendered

RUN = Path(__file__).parents[2] / "k8s" / "runs" / "text2bricks-64f.yaml"
STAGES = ("ingest", "clip", "score", "caption", "latents", "train", "evaluate")
ITS_ARGUMENT = "(the kind that the call names)"
NO_RESOURCE = {"discover", "read"}
"""Of the API's discovery and /version, which whoever has an account may read."""

Right = tuple[str, str, str]
"""API group, resource with its subresource, verb."""


@cache
def created() -> frozenset[str]:
    """Kinds of objects that any launcher renders for any stage."""
    kinds = set()
    for launcher in ("pytorchjob", "trainjob", "job"):
        for nodes in (1, 2):
            profile = ClusterProfile.model_validate({"train": {"launcher": launcher, "nodes": nodes}})
            run = load_run(RUN, ["cluster.nodes=null"])
            for stage in STAGES:
                task = Task(run, stage, profile, owner=Owner(run.name, "1234"))
                kinds |= {each["kind"] for each in launcher_for(run, profile, stage).render(task)}
    return frozenset(kinds)


def kinds_of(function: str, call: str) -> Set[str]:
    """Kinds of the calls whose first argument is no plain text, by the function they stand in."""
    known: dict[tuple[str, str], Set[str]] = {
        ("_children", "list"): set(WORKLOADS),
        ("_others", "list"): set(WORKLOADS),
        ("_act", "delete"): set(WORKLOADS),  # of children, which are found among these
        ("_act", "patch"): set(WORKLOADS),
        ("_create", "create"): created(),
        ("_compare", "get"): created(),
        ("_write", "write_status"): {"BrickRun"},
        ("_write", "tell"): {"Event"},
        ("tell", "write_status"): {"BrickRun"},
    }
    return known[function, call]


def functions(source: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def requests() -> dict[str, set[tuple[str, str, str]]]:
    """For every call of the API client: kind, subresource and verb of each request that it sends."""
    source = Path(bricks_core.cluster.api.__file__).read_text(encoding="utf-8")
    bodies = {node.name: node for node in functions(source)}

    def of(name: str, seen: frozenset[str] = frozenset()) -> set[tuple[str, str, str]]:
        found = set()
        for node in ast.walk(bodies[name]):
            if not isinstance(node, ast.Call):
                continue
            if isinstance(node.func, ast.Name) and node.func.id == "_Asked" and isinstance(node.args[0], ast.Constant):
                verb, kind = _text(node.args[0]), _text(node.args[1])
                subresource = _text(node.args[3]) if len(node.args) > 3 else ""
                if verb not in NO_RESOURCE:
                    found.add((kind, subresource, verb))
            if isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) == "self":
                called = node.func.attr
                if called in bodies and called not in seen | {name}:
                    kind = _text(node.args[0]) if node.args else ITS_ARGUMENT
                    found |= {
                        (kind if each == ITS_ARGUMENT else each, subresource, verb)
                        for each, subresource, verb in of(called, seen | {name})
                    }
        return found

    return {name: of(name) for name in vars(Cluster) if name in bodies and not name.startswith("_")}


def _text(node: ast.AST) -> str:
    return str(node.value) if isinstance(node, ast.Constant) else ITS_ARGUMENT


def asked_by_code() -> set[Right]:
    sends = requests()
    found: set[Right] = set()
    for file in Path(bricks_core.controller.__file__).parent.glob("*.py"):
        for function in functions(file.read_text(encoding="utf-8")):
            for node in ast.walk(function):
                if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                    continue
                call, on = node.func.attr, ast.unparse(node.func.value)
                if not on.endswith("cluster") or call not in sends or not sends[call]:
                    continue
                first = node.args[0]
                kinds = {_text(first)} if isinstance(first, ast.Constant) else kinds_of(function.name, call)
                for asked, subresource, verb in sends[call]:
                    for kind in kinds if asked == ITS_ARGUMENT else {asked}:
                        found.add(right(kind, subresource, verb))
    return found


def right(kind: str, subresource: str, verb: str) -> Right:
    place = KINDS[kind]
    group, _, _ = place.api_version.rpartition("/")
    return group, f"{place.plural}/{subresource}" if subresource else place.plural, verb


def asked_by_kopf(tmp_path: Path) -> set[Right]:
    """What kopf lists and watches where every kind is there."""

    class AllKnown(Cluster):
        def __init__(self) -> None:
            self.namespace = "studio"

        def knows(self, kind: str) -> bool:
            return True

    shell = Shell(Reconciler(AllKnown(), open_store(str(tmp_path)), ClusterProfile()), resync_s=60, workers=1)
    shell._watched = shell._kinds()
    registry = shell._registry(asyncio.Event())
    selectors = registry._watching.get_all_selectors()
    assert selectors
    return {
        (str(each.group), str(each.plural or each.any_name), verb) for each in selectors for verb in ("list", "watch")
    }


def granted(role: Object) -> set[Right]:
    return {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def role_of(objects: list[Object], suffix: str) -> Any:
    (role,) = [each for each in of_kind(objects, "Role") if each["metadata"]["name"].endswith(suffix)]
    return role


def test_the_requests_of_the_api_client_are_found() -> None:
    sends = requests()
    assert sends["get"] == {(ITS_ARGUMENT, "", "get")}
    assert sends["write_status"] == {(ITS_ARGUMENT, "status", "update")}
    assert sends["delete"] == {(ITS_ARGUMENT, "", "delete"), (ITS_ARGUMENT, "", "get")}
    assert sends["logs"] == {("Pod", "log", "get")}
    assert {verb for _, _, verb in sends["tell"]} == {"create", "get", "patch"}
    assert sends["knows"] == sends["version"] == set()


def test_all_kinds_of_children_are_found() -> None:
    assert created() >= {"ConfigMap", "Service", "TrainingRuntime", *WORKLOADS}


@pytest.mark.parametrize("name", [name for name in NAMES if name != "bare-values"])
def test_the_controller_may_do_what_its_code_does_and_nothing_else(name: str, tmp_path: Path) -> None:
    asked = asked_by_code() | asked_by_kopf(tmp_path)
    given = granted(role_of(rendered(name), "-controller"))
    assert asked - given == set(), "asked for by the code, and not in templates/rbac.yaml"
    assert given - asked == set(), "in templates/rbac.yaml, and not asked for by the code"


def test_what_bricks_doctor_looks_for_is_what_the_controller_has() -> None:
    given = granted(role_of(render(S3), "-controller"))
    looked_for = {(group, resource, verb) for group, resource, verbs in CONTROLLERS_RIGHTS for verb in verbs}
    # Of the operators' kinds, and Kueue's, it has the rights also where the cluster has no such kind.
    everywhere = {each for each in given if each[0] in ("", "batch", "bricks.dev")}
    assert looked_for == everywhere


@pytest.mark.parametrize("name", NAMES)
def test_rights_are_of_one_namespace(name: str) -> None:
    assert of_kind(rendered(name), "ClusterRoleBinding") == []
    for each in of_kind(rendered(name), "ClusterRole"):
        aggregated = [label for label in each["metadata"]["labels"] if "/aggregate-to-" in label]
        assert aggregated, each["metadata"]["name"]
        assert {group for group, _, _ in granted(each)} == {"bricks.dev"}


@pytest.mark.parametrize("name", [name for name in NAMES if name != "bare-values"])
def test_each_role_is_bound_to_its_own_account(name: str) -> None:
    for binding in of_kind(rendered(name), "RoleBinding"):
        role_of(rendered(name), binding["roleRef"]["name"])
        (subject,) = binding["subjects"]
        assert subject["kind"] == "ServiceAccount"
        assert subject["namespace"] == "studio"
        suffix = binding["metadata"]["name"].rpartition("-")[2]
        assert suffix in ("controller", "ci")
    accounts = [each["subjects"][0]["name"] for each in of_kind(rendered(name), "RoleBinding")]
    assert len(accounts) == len(set(accounts))


def test_a_viewer_sees_runs_and_changes_none() -> None:
    roles = {each["metadata"]["name"]: each for each in of_kind(render(S3), "ClusterRole")}
    assert {verb for *_, verb in granted(roles["bricks-studio-view"])} == {"get", "list", "watch"}
    assert {resource for _, resource, _ in granted(roles["bricks-studio-edit"])} == {"brickruns"}


def test_a_ci_makes_and_reads_jobs_and_no_more() -> None:
    given = granted(role_of(rendered("irsa-values"), "-ci"))
    evaluating = {
        ("batch", "jobs", "create"),
        ("batch", "jobs", "get"),
        ("", "configmaps", "create"),
        ("", "pods", "list"),
        ("", "pods/log", "get"),
        ("kueue.x-k8s.io", "workloads", "list"),
    }
    assert evaluating <= given
    assert {resource for _, resource, _ in given} == {"jobs", "configmaps", "pods", "pods/log", "workloads"}
    # Whoever may change the profile's ConfigMap says which images the controller starts.
    assert not {("", "configmaps", "update"), ("", "configmaps", "patch")} & given
