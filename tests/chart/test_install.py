"""Installed, upgraded and uninstalled for real: on the double by Helm 4, on Kubernetes 1.20.2 by Helm 4 and Helm 3.

The double is spoken to with the chart as it is. For 1.20.2 two things are changed in a copy: the chart's floor (1.33),
and the rules in CEL, which it does not know and Helm's server-side apply therefore refuses. What the chart makes is the
same otherwise: rights, accounts, policies, the Deployment, and the CRD's structural schema.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import helm_python as helm
import pytest
import yaml

from bricks_core.cluster.api import KINDS
from tests.chart import helm3
from tests.chart.chart import CHART, S3, YAML, Object
from tests.chart.test_rights import asked_by_code, asked_by_kopf
from tests.kubernetes.access import service_account
from tests.kubernetes.double import Double
from tests.kubernetes.raw import Answered, Api, eventually
from tests.kubernetes.real import RealServer, namespace_of, real_server, token_of

ROOT = Path(__file__).parents[2]
CRD = ("CustomResourceDefinition", "", "brickruns.bricks.dev")
VERBS = ("get", "list", "watch", "create", "update", "patch", "delete", "deletecollection")
NOT_OURS = {"APIService", "Event", "Endpoints", "EndpointSlice", "Lease"}
"""What a cluster's own controllers write meanwhile."""


class Helm(Protocol):
    """One Helm, one namespace."""

    def install(self, values: Object) -> None: ...

    def upgrade(self, values: Object) -> None: ...

    def uninstall(self) -> None: ...


class Helm4:
    def __init__(self, kubeconfig: Path, namespace: str, chart: Path, storage: str | None = None):
        self._config = helm.Config(kubeconfig_path=kubeconfig, namespace=namespace, storage_driver=storage)
        self._chart = chart

    def install(self, values: Object) -> None:
        self._config.install(str(self._chart), "bricks", values)

    def upgrade(self, values: Object) -> None:
        self._config.upgrade(str(self._chart), "bricks", values)

    def uninstall(self) -> None:
        self._config.uninstall("bricks")


class Helm3:
    def __init__(self, kubeconfig: Path, namespace: str, chart: Path, folder: Path):
        helm3.helm3()
        self._where = ("--kubeconfig", kubeconfig, "--namespace", namespace)
        self._chart, self._file = chart, folder / "values.yaml"

    def _run(self, command: str, *arguments: str | Path) -> None:
        helm3.run(command, "bricks", *arguments, *self._where)

    def install(self, values: Object) -> None:
        self._file.write_text(json.dumps(values), encoding="utf-8")
        self._run("install", self._chart, "--values", self._file)

    def upgrade(self, values: Object) -> None:
        self._file.write_text(json.dumps(values), encoding="utf-8")
        self._run("upgrade", self._chart, "--values", self._file)

    def uninstall(self) -> None:
        self._run("uninstall")


@dataclass(frozen=True)
class Place:
    """A namespace of a cluster, and a Helm that is to install there."""

    api: Api
    namespace: str
    helm: Helm
    server: Double | RealServer

    def as_account(self, name: str) -> Api:
        """The API as a service account sees it."""
        if isinstance(self.server, Double):
            return self.server.api(service_account(self.namespace, name))
        return self.server.api(token_of(self.api, self.namespace, name))


@pytest.fixture(params=["Helm 4 on the double", "Helm 4 on 1.20.2", "Helm 3 on 1.20.2"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    kubeconfig = tmp_path / "kubeconfig"
    if request.param.endswith("double"):
        with Double() as double:
            # Helm keeps a release in a Secret, by a protocol that the double does not speak: in memory, then.
            four = Helm4(double.kubeconfig(kubeconfig), "bricks", CHART, storage="memory")
            yield Place(double.api(), "bricks", four, double)
        return
    if request.param.startswith("Helm 3"):
        helm3.helm3()
    server = real_server()
    chart = for_old_kubernetes(tmp_path / "bricks")
    with namespace_of(server.api()) as namespace, without_the_kind(server.api()):
        server.kubeconfig(kubeconfig)
        if request.param.startswith("Helm 3"):
            yield Place(server.api(), namespace, Helm3(kubeconfig, namespace, chart, tmp_path), server)
        else:
            yield Place(server.api(), namespace, Helm4(kubeconfig, namespace, chart), server)


@contextmanager
def without_the_kind(api: Api) -> Iterator[None]:
    """Other tests use the same server: the CRD is taken away before and after."""

    def gone() -> bool:
        try:
            api.delete("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/brickruns.bricks.dev")
        except Answered as answer:
            return answer.status == 404
        return False

    eventually(gone)
    yield
    eventually(gone)


def for_old_kubernetes(folder: Path) -> Path:
    """A copy of the chart that 1.20.2 takes."""
    shutil.copytree(CHART, folder)
    about = folder / "Chart.yaml"
    about.write_text(
        re.sub(r"(?m)^kubeVersion:.*$", 'kubeVersion: ">=1.20.0-0"', about.read_text(encoding="utf-8")),
        encoding="utf-8",
    )
    crd = folder / "files" / "brickruns.yaml"
    crd.write_text(json.dumps(without_rules(yaml.load(crd.read_text(encoding="utf-8"), YAML))), encoding="utf-8")
    return folder


def without_rules(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_rules(each) for key, each in value.items() if key != "x-kubernetes-validations"}
    return [without_rules(each) for each in value] if isinstance(value, list) else value


def everything(api: Api) -> set[tuple[str, str, str]]:
    """(kind, namespace, name) of every object in the cluster."""
    groups = api.get("/apis")["groups"]
    roots = ["/api/v1"] + [f"/apis/{each['preferredVersion']['groupVersion']}" for each in groups]
    found = set()
    for root in roots:
        for resource in api.get(root)["resources"]:
            if "list" in resource["verbs"] and resource["kind"] not in NOT_OURS:
                for each in api.get(f"{root}/{resource['name']}")["items"]:
                    metadata = each["metadata"]
                    found.add((resource["kind"], metadata.get("namespace", ""), metadata["name"]))
    return found


def told(left: set[tuple[str, str, str]], wanted: set[tuple[str, str, str]]) -> bool:
    assert left == wanted
    return True


def deployment(place: Place) -> Object:
    (found,) = place.api.get(f"/apis/apps/v1/namespaces/{place.namespace}/deployments")["items"]
    return dict(found)


def may(api: Api, namespace: str, group: str, resource: str, verb: str) -> bool:
    plural, _, subresource = resource.partition("/")
    asked = {"namespace": namespace, "group": group, "resource": plural, "subresource": subresource, "verb": verb}
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": {key: value for key, value in asked.items() if value}},
    }
    return bool(api.post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review)["status"]["allowed"])


def test_it_comes_changes_and_goes(place: Place, tmp_path: Path) -> None:
    before = everything(place.api)
    place.helm.install(S3)
    installed = everything(place.api) - before
    assert {kind for kind, _, _ in installed} >= {
        *("ConfigMap", "Deployment", "NetworkPolicy", "Role", "RoleBinding", "ServiceAccount", "ClusterRole"),
        "CustomResourceDefinition",
    }

    first = deployment(place)
    place.helm.upgrade({**S3, "train": {"nodes": 4}})
    second = deployment(place)
    assert second["metadata"]["uid"] == first["metadata"]["uid"]
    assert second["spec"]["selector"] == first["spec"]["selector"]
    assert second["spec"]["template"] != first["spec"]["template"], "the controller would read the old profile"

    check_rights(place, tmp_path)
    check_run(place)

    place.helm.uninstall()
    # The garbage collector takes what belongs to the Deployment a moment later.
    eventually(lambda: told(everything(place.api) - before, {CRD}))

    place.helm.install(S3)  # it takes up the kind that it left
    place.helm.uninstall()


def test_nothing_at_all_is_left_where_the_kind_is_not_to_be_kept(place: Place) -> None:
    before = everything(place.api)
    place.helm.install({**S3, "crds": {"keep": False}, "serviceAccounts": {"ci": {"create": True}}})
    assert CRD in everything(place.api)
    place.helm.uninstall()
    eventually(lambda: told(everything(place.api) - before, set()))


def check_rights(place: Place, folder: Path) -> None:
    """The controller's account may do what the code asks for, and that is all; the stages' account nothing."""
    controller, stage = place.as_account("bricks-controller"), place.as_account("bricks-stage")
    asked = asked_by_code() | asked_by_kopf(folder)
    resources = {
        *((kind.api_version.rpartition("/")[0], kind.plural) for kind in KINDS.values()),
        *(("bricks.dev", "brickruns/status"), ("", "pods/log"), ("", "pods/exec"), ("", "secrets")),
        *(("", "serviceaccounts"), ("rbac.authorization.k8s.io", "roles"), ("apps", "deployments")),
    }
    for group, resource in sorted(resources):
        for verb in VERBS:
            allowed = may(controller, place.namespace, group, resource, verb)
            assert allowed is ((group, resource, verb) in asked), (group, resource, verb)
            assert not may(stage, place.namespace, group, resource, verb), (group, resource, verb)
    for group, resource, verb in sorted(asked):
        assert not may(controller, "default", group, resource, verb), "in another namespace"


def check_run(place: Place) -> None:
    """The kind is served, takes our run files, and refuses what is none."""
    path = f"/apis/bricks.dev/v1alpha1/namespaces/{place.namespace}/brickruns"
    for file in sorted((ROOT / "k8s" / "runs").glob("*.yaml")):
        place.api.post(path, yaml.load(file.read_text(encoding="utf-8"), YAML), dryRun="All")
    run = yaml.load((ROOT / "k8s" / "runs" / "quickstart.yaml").read_text(encoding="utf-8"), YAML)
    run["spec"]["latents"]["resolutions"] = "96x160"
    with pytest.raises(Answered) as refused:
        place.api.post(path, run, dryRun="All")
    assert refused.value.status == 422
    assert "spec.latents.resolutions" in str(refused.value)
