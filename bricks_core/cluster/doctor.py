"""Whether everything is there that a run on the cluster needs: looked at one by one, each with the way to mend it.

Nothing is changed but one small object in the store, which is removed again. What we may not see is unknown, not wrong:
a user has fewer rights than the controller, and the chart's test pod has others than both.
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any, Literal

import yaml
from pydantic import ValidationError

from bricks_core.cluster.api import KINDS, Cluster, NotThere
from bricks_core.cluster.launcher import RUN_LABEL, STAGE_LABEL, Object
from bricks_core.cluster.runs import current_stage
from bricks_core.errors import BricksError, ClusterDenied, ClusterUnavailable, SpecError
from bricks_core.spec.cluster import ClusterProfile
from bricks_core.storage.places import open_store

OLDEST = (1, 33)
"""The first Kubernetes in which all that we use is on by default."""
CONTROLLER = {"app.kubernetes.io/name": "bricks", "app.kubernetes.io/component": "controller"}
PROFILE = {"app.kubernetes.io/name": "bricks", "app.kubernetes.io/component": "profile"}
SECURITY_LABEL = "pod-security.kubernetes.io/enforce"
OPERATORS = {
    "pytorchjob": ("PyTorchJob", "Kubeflow's Training Operator 1.9"),
    "trainjob": ("TrainJob", "Kubeflow's Trainer 2.2 or later"),
}
USERS_RIGHTS = (
    ("bricks.dev", "brickruns", ("create", "get", "list", "patch")),
    ("batch", "jobs", ("list",)),
    ("", "pods", ("list",)),
    ("", "pods/log", ("get",)),
)
"""What `bricks submit`, `status`, `logs` and `cancel` do: (API group, resource, verbs)."""
CONTROLLERS_RIGHTS = (
    ("bricks.dev", "brickruns", ("get", "list", "watch")),
    ("bricks.dev", "brickruns/status", ("update",)),
    ("batch", "jobs", ("get", "list", "watch", "create", "patch", "delete")),
    ("", "configmaps", ("get", "create")),
    ("", "services", ("get", "create")),
    ("", "pods", ("list", "watch")),
    ("", "events", ("get", "create", "patch")),
)
"""What the controller does on every cluster; the rest depends on the operators that are there."""

State = Literal["ok", "wrong", "unknown", "none"]


@dataclass(frozen=True)
class Finding:
    """What one look found."""

    what: str
    state: State
    """unknown: we may not see it. none: there is nothing to be looked at."""
    said: str
    mend: str = ""
    away: bool = False
    """What is wrong is a service that is not there, rather than a setting."""


@dataclass(frozen=True)
class Patient:
    """What is looked at."""

    cluster: Cluster
    given: ClusterProfile | None
    """None: the profile that the chart installed in the namespace."""
    store: str | None
    """None: the profile's."""
    schema: Object
    """BrickRun's, as this version of Bricks would install it."""

    @cached_property
    def profile(self) -> ClusterProfile | None:
        """None: none is given, and none can be read in the namespace."""
        if self.given:
            return self.given
        try:
            for each in self.cluster.list("ConfigMap", labels=PROFILE):
                return ClusterProfile.model_validate(yaml.safe_load(each["data"]["profile.yaml"]))
        except (ClusterDenied, KeyError, ValidationError, yaml.YAMLError):
            return None
        return None

    @property
    def is_inside(self) -> bool:
        """Whether we are a pod of the cluster."""
        return bool(os.environ.get("KUBERNETES_SERVICE_HOST"))


Look = Callable[[Patient], Iterator[Finding]]


def examine(patient: Patient) -> Iterator[Finding]:
    """All findings, as they come.

    Raises:
        ClusterUnavailable: the cluster does not answer, so that there is nothing to be looked at.
    """
    yield from _cluster(patient)
    for look in (_kind, _controller, _live_runs, _rights, _profile):
        yield from _guarded(look, patient)
    if patient.profile is not None:
        for look in (_launcher, _queues, _secrets, _account, _claim, _gpus, _rdma, _pod_security):
            yield from _guarded(look, patient)
    yield from _guarded(_store, patient)


def findings_screen(findings: Iterator[Finding]) -> None:
    """Print findings as they come.

    Raises:
        ClusterUnavailable: a service is away. SpecError: something else is wrong.
    """
    signs = {"ok": "✓", "wrong": "✗", "unknown": "?", "none": "·"}
    num, wrong = 0, []
    for each in findings:
        num += 1
        print(f"{signs[each.state]} {each.what:13} {each.said}", flush=True)
        if each.mend:
            print(f"  {'':13} → {each.mend}", flush=True)
        if each.state == "wrong":
            wrong.append(each)
    if wrong:
        kind = ClusterUnavailable if any(each.away for each in wrong) else SpecError
        names = ", ".join(dict.fromkeys(each.what for each in wrong))
        raise kind(f"{len(wrong)} of {num} looks found something wrong ({names}): the lines above say how to mend it.")
    print(f"Nothing is wrong in {num} looks.")


def _guarded(look: Look, patient: Patient) -> Iterator[Finding]:
    """A look that we may not take tells so, and does not end the others."""
    name = look.__name__.strip("_").replace("_", " ")
    try:
        yield from look(patient)
    except ClusterDenied as error:
        yield Finding(name, "unknown", f"cannot be seen. {error}")
    except NotThere as error:
        yield Finding(name, "wrong", str(error))


def _cluster(patient: Patient) -> Iterator[Finding]:
    version = patient.cluster.version()
    found = re.match(r"v?(\d+)\.(\d+)", version)
    said = f"{patient.cluster.address}, Kubernetes {version}, namespace {patient.cluster.namespace}"
    if found and (int(found[1]), int(found[2])) < OLDEST:
        yield Finding(
            "cluster",
            "wrong",
            f"{said}: too old",
            f"Upgrade it to {OLDEST[0]}.{OLDEST[1]} or later: older ones do not retry shards one by one.",
        )
    else:
        yield Finding("cluster", "ok", said)
    if _may(patient.cluster, "", "namespaces", "get"):
        try:
            patient.cluster.ask(f"/api/v1/namespaces/{patient.cluster.namespace}")
        except (ClusterDenied, NotThere) as error:
            yield Finding("namespace", "wrong", str(error))


def _kind(patient: Patient) -> Iterator[Finding]:
    if not patient.cluster.knows("BrickRun"):
        mend = "helm upgrade --install bricks helm/bricks --set crds.enabled=true …"
        yield Finding("kind", "wrong", "the cluster does not know BrickRun", mend)
        return
    try:
        path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/brickruns.bricks.dev"
        versions = patient.cluster.ask(path)["spec"]["versions"]
    except ClusterDenied:
        yield Finding("kind", "ok", "BrickRun is known; whether it is of this version we may not see")
        return
    mine: Object = next((each["schema"]["openAPIV3Schema"] for each in versions if each["name"] == "v1alpha1"), {})
    lost = sorted(_paths(patient.schema) - _paths(mine))
    if lost:
        some = ", ".join(lost[:3]) + (f" and {len(lost) - 3} more" if len(lost) > 3 else "")
        yield Finding(
            "kind",
            "wrong",
            f"BrickRun is of an older version, and loses {some} of a run file",
            "kubectl apply -f helm/bricks/files/brickruns.yaml, or helm upgrade with the chart of this version.",
        )
    else:
        yield Finding("kind", "ok", "BrickRun is known, with every field of this version")


def _controller(patient: Patient) -> Iterator[Finding]:
    pods = patient.cluster.list("Pod", labels=CONTROLLER)
    ready = [pod for pod in pods if _condition(pod, "Ready").get("status") == "True"]
    where = f"in namespace {patient.cluster.namespace}"
    if not pods:
        mend = "helm install bricks helm/bricks with controller.enabled=true; or run stages without it (k8s/*.yaml)."
        yield Finding("controller", "wrong", f"no pod of it {where}", mend, away=True)
    elif not ready:
        name = pods[0]["metadata"]["name"]
        mend = f"kubectl describe pod {name}; kubectl logs {name}"
        yield Finding("controller", "wrong", f"pod {name} is not ready {where}", mend, away=True)
    else:
        since = _condition(ready[0], "Ready").get("lastTransitionTime", "?")
        yield Finding("controller", "ok", f"pod {ready[0]['metadata']['name']} is ready since {since}")
        yield from _looked_at(patient)


def _looked_at(patient: Patient) -> Iterator[Finding]:
    """Whether the controller has seen every run as it is now: what it says of itself is only that it is alive."""
    runs = patient.cluster.list("BrickRun")
    just_now = datetime.now(UTC) - timedelta(seconds=60)
    unseen = [
        run["metadata"]["name"]
        for run in runs
        if (run.get("status") or {}).get("observedGeneration", 0) < run["metadata"].get("generation", 0)
        and datetime.fromisoformat(run["metadata"]["creationTimestamp"]) < just_now
    ]
    if unseen:
        yield Finding(
            "controller",
            "wrong",
            f"it has not looked at {', '.join(sorted(unseen)[:5])} as it is now",
            "If that stays so for a minute: kubectl logs deployment/bricks-controller says what holds it up.",
            away=True,
        )
    elif runs:
        yield Finding("controller", "ok", f"it looks at the runs ({len(runs)})")


def _live_runs(patient: Patient) -> Iterator[Finding]:
    """What an upgrade meets: stages under way go on with the image that they began with, which must stay to be had."""
    if not patient.cluster.knows("BrickRun"):
        return
    runs = [run for run in patient.cluster.list("BrickRun") if _condition(run, "Finished").get("status") != "True"]
    if not runs:
        yield Finding("live runs", "none", "no run is under way, so that an upgrade meets none")
    for run in sorted(runs, key=lambda each: str(each["metadata"]["name"])):
        name, status = run["metadata"]["name"], run.get("status") or {}
        stage = current_stage(run)
        if not stage:
            yield Finding("live runs", "ok", f"{name}: nothing of it has begun")
            continue
        pods = patient.cluster.list("Pod", labels={RUN_LABEL: name, STAGE_LABEL: stage["name"]})
        images = sorted({each["spec"]["containers"][0]["image"] for each in pods})
        pinned = (status.get("pinned") or {}).get("stages") or ()
        images = images or [each.get("image", "?") for each in pinned if each.get("name") == stage["name"]]
        since = f" since {stage['startedAt']}" if stage.get("startedAt") else ""
        what = f"{stage['name']} {str(stage.get('state')).lower()}{since}, try {stage.get('attempt', 0)}"
        with_image = f"image {', '.join(images) or '?'}"
        yield Finding("live runs", "ok", f"{name}: {what}, {with_image}; it goes on so after an upgrade")


def _rights(patient: Patient) -> Iterator[Finding]:
    wanted = CONTROLLERS_RIGHTS if patient.is_inside else USERS_RIGHTS
    whose = "the controller's" if patient.is_inside else "those of bricks submit, status, logs and cancel"
    missing = [
        f"{verb} {resource}{'.' + group if group else ''}"
        for group, resource, verbs in wanted
        for verb in verbs
        if not _may(patient.cluster, group, resource, verb)
    ]
    where = f"in namespace {patient.cluster.namespace}"
    if missing:
        yield Finding(
            "rights",
            "wrong",
            f"we may not {', '.join(missing)} {where}",
            "Bind a Role with these verbs to us (the chart's rbac.aggregate gives BrickRuns to whoever may edit).",
        )
    else:
        yield Finding("rights", "ok", f"all of {whose}, {where}")


def _profile(patient: Patient) -> Iterator[Finding]:
    if patient.given:
        yield Finding("profile", "ok", "the one that was given")
    elif patient.profile is not None:
        yield Finding("profile", "ok", "the one that the chart installed")
    else:
        said = "none can be read in the namespace, so what it asks of the cluster was not looked at"
        yield Finding(
            "profile", "unknown", said, "bricks doctor --profile FILE, such as k8s/cluster/profile-h100-ib.yaml"
        )


def _launcher(patient: Patient) -> Iterator[Finding]:
    train = _needed(patient).train
    kind, operator = OPERATORS.get(train.launcher, ("", ""))
    if train.nodes == 1 or not kind:
        why = "one node trains" if train.nodes == 1 else "train.launcher is job"
        yield Finding("launcher", "none", f"{why}: that needs nobody but Kubernetes")
    elif patient.cluster.knows(kind):
        yield Finding("launcher", "ok", f"{kind} is known")
    else:
        yield Finding(
            "launcher",
            "wrong",
            f"the cluster does not know {kind}, which brings {train.nodes} nodes together",
            f"Install {operator}, or set train.launcher to job, which needs nothing.",
        )


def _queues(patient: Patient) -> Iterator[Finding]:
    queues = _needed(patient).queues
    names = sorted({name for name in (queues.cpu, queues.gpu) if name})
    if not names:
        yield Finding("queues", "none", "the profile names none, so Kueue is left out")
        return
    if not patient.cluster.knows("Workload"):
        mend = "Install Kueue 0.15 or later, or empty the profile's queues."
        yield Finding("queues", "wrong", "the cluster has no Kueue (v1beta2)", mend)
        return
    version = KINDS["Workload"].api_version
    yield from _each_there(patient, "queues", f"/apis/{version}", "localqueues", names, "kubectl apply -f k8s/cluster/")


def _secrets(patient: Patient) -> Iterator[Finding]:
    profile = _needed(patient)
    secrets = profile.secrets
    names = {profile.store.secret, secrets.caption, secrets.tracking, secrets.hub, *profile.images.pull_secrets} - {""}
    if not names:
        yield Finding("secrets", "none", "the profile names none")
        return
    mend = (
        f"kubectl create secret generic NAME -n {patient.cluster.namespace} --from-env-file=FILE; docs/cluster.md says "
        "which keys each needs."
    )
    yield from _each_there(patient, "secrets", "/api/v1", "secrets", sorted(names), mend)


def _account(patient: Patient) -> Iterator[Finding]:
    name = _needed(patient).service_account
    if name:
        mend = "The chart makes it (serviceAccounts.stages.create), or: kubectl create serviceaccount NAME"
        yield from _each_there(patient, "account", "/api/v1", "serviceaccounts", [name], mend)


def _claim(patient: Patient) -> Iterator[Finding]:
    name = _needed(patient).store.claim
    if name:
        mend = "The chart makes one (storage.pvc.size), or name one that all pods can mount."
        yield from _each_there(patient, "claim", "/api/v1", "persistentvolumeclaims", [name], mend)


def _gpus(patient: Patient) -> Iterator[Finding]:
    train = _needed(patient).train
    if not train.gpus_per_node:
        yield Finding("gpus", "none", "the profile trains without")
        return
    yield _enough(patient, "gpus", {train.gpu_resource: train.gpus_per_node}, train.nodes)


def _rdma(patient: Patient) -> Iterator[Finding]:
    train = _needed(patient).train
    if train.rdma.resources:
        yield _enough(patient, "rdma", train.rdma.resources, train.nodes)


def _pod_security(patient: Patient) -> Iterator[Finding]:
    namespace, rdma = patient.cluster.namespace, _needed(patient).train.rdma
    labels = patient.cluster.ask(f"/api/v1/namespaces/{namespace}")["metadata"].get("labels") or {}
    level = labels.get(SECURITY_LABEL, "")
    asked = (
        "train.rdma.memlock: root" if rdma.memlock == "root" else "train.rdma.hostNetwork" if rdma.host_network else ""
    )
    set_it = f"kubectl label namespace {namespace} {SECURITY_LABEL}="
    if asked and level not in ("", "privileged"):
        mend = f"{set_it}privileged --overwrite, or do without."
        yield Finding("pod security", "wrong", f"the namespace enforces {level}, and {asked} needs privileged", mend)
    elif not level and not asked:
        mend = f"{set_it}restricted refuses pods that ask for more than ours do."
        yield Finding("pod security", "ok", "the namespace enforces no level", mend)
    else:
        yield Finding(
            "pod security", "ok", f"the namespace enforces {level or 'no level'}, and all pods of ours may run"
        )


def _store(patient: Patient) -> Iterator[Finding]:
    profile = patient.profile
    uri = patient.store or (profile.store.uri if profile else "")
    if not uri:
        yield Finding("store", "none", "no profile says where it is", "bricks doctor --store s3://bucket/prefix")
        return
    if not patient.store and profile and not patient.is_inside:
        host = profile.store.endpoint.partition("://")[2].partition("/")[0].partition(":")[0]
        if profile.store.claim or host.endswith((".svc", ".cluster.local")):
            said = f"{uri} is to be reached from inside the cluster alone"
            yield Finding("store", "unknown", said, "helm test bricks --logs looks at it from there.")
            return
        # What the user has set for all services wins: it may be another way to the same place.
        endpoint = "" if "AWS_ENDPOINT_URL" in os.environ else profile.store.endpoint
        for name, value in (("AWS_ENDPOINT_URL_S3", endpoint), ("AWS_REGION", profile.store.region)):
            if value:
                os.environ.setdefault(name, value)
    try:
        yield _probe(uri)
    except BricksError as error:
        # Not the address as it was given: it may hold a key, which is what is wrong with it.
        yield Finding("store", "wrong", str(error), away=error.exit_code == ClusterUnavailable.exit_code)


def _probe(uri: str) -> Finding:
    """Write, read and remove one small object, by the promise that everything else rests on."""
    store = open_store(uri)
    key = f"doctor/{uuid.uuid4().hex}"
    first = store.put(key, b"bricks doctor", if_absent=True)
    try:
        second = store.put(key, b"bricks doctor", if_absent=True)
        kept = store.get(key) == b"bricks doctor"
    finally:
        store.delete([key])
    if first and not second and kept:
        return Finding("store", "ok", f"{uri} can be written and read, and of two who write the same one is first")
    mend = "Use a server that knows conditional writes (If-None-Match), or a folder."
    return Finding("store", "wrong", f"{uri} lets two be first, so that two pods could leave one artifact", mend)


def _each_there(patient: Patient, what: str, root: str, plural: str, names: list[str], mend: str) -> Iterator[Finding]:
    """Whether objects of these names are in the namespace. Only their metadata is asked for."""
    missing, unseen = [], []
    for name in names:
        try:
            path = f"{root}/namespaces/{patient.cluster.namespace}/{plural}/{name}"
            patient.cluster.ask(path, metadata_only=True)
        except NotThere:
            missing.append(name)
        except ClusterDenied:
            unseen.append(name)
    if missing:
        yield Finding(what, "wrong", f"not in namespace {patient.cluster.namespace}: {', '.join(missing)}", mend)
    if unseen:
        yield Finding(what, "unknown", f"whether {', '.join(unseen)} is there, we may not see")
    if not missing and not unseen:
        yield Finding(what, "ok", f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} there")


def _enough(patient: Patient, what: str, wanted: dict[str, int], nodes: int) -> Finding:
    """Whether enough nodes have what one pod of training asks for. Only what they have, not what is free of it."""
    asked = ", ".join(f"{count} {name}" for name, count in wanted.items())
    try:
        found = patient.cluster.ask("/api/v1/nodes")["items"]
    except ClusterDenied:
        return Finding(what, "unknown", f"training asks for {nodes} x {asked}; what nodes have, we may not see")
    fitting = [node for node in found if _has(node, wanted)]
    if len(fitting) >= nodes:
        return Finding(what, "ok", f"{len(fitting)} of {len(found)} nodes have {asked}; training asks for {nodes} such")
    there = sorted({name for node in found for name in _allocatable(node) if "/" in name})
    return Finding(
        what,
        "wrong",
        f"{len(fitting)} of {len(found)} nodes have {asked}, and training asks for {nodes} such",
        f"Compare names and numbers with what nodes have ({', '.join(there) or 'no device at all'}): is the device "
        "plugin running? Or ask for fewer nodes (train.nodes).",
    )


def _has(node: Object, wanted: dict[str, int]) -> bool:
    have = _allocatable(node)
    return all(have.get(name, "0").isdigit() and int(have.get(name, "0")) >= count for name, count in wanted.items())


def _allocatable(node: Object) -> dict[str, str]:
    have = (node.get("status") or {}).get("allocatable") or {}
    return {name: str(value) for name, value in have.items()}


def _may(cluster: Cluster, group: str, resource: str, verb: str) -> bool:
    plural, _, subresource = resource.partition("/")
    asked = {"namespace": cluster.namespace, "verb": verb, "group": group, "resource": plural}
    if subresource:
        asked["subresource"] = subresource
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": asked},
    }
    answer = cluster.ask("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", body=review)
    return bool((answer.get("status") or {}).get("allowed"))


def _paths(schema: Any, path: str = "") -> set[str]:
    """Every field that a structural schema knows."""
    if not isinstance(schema, dict):
        return set()
    found = set()
    for name, each in (schema.get("properties") or {}).items():
        here = f"{path}.{name}" if path else name
        found |= {here} | _paths(each, here)
    return found | _paths(schema.get("items"), path) | _paths(schema.get("additionalProperties"), path)


def _condition(obj: Object, kind: str) -> Object:
    conditions = (obj.get("status") or {}).get("conditions") or []
    return next((each for each in conditions if each.get("type") == kind), {})


def _needed(patient: Patient) -> ClusterProfile:
    assert patient.profile is not None
    return patient.profile
