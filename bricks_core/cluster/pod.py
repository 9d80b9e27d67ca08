"""The pod of a stage: one container that may do nothing but its work.

Every pod passes Kubernetes' `restricted` Pod Security standard, with one exception that has to be asked for
(train.rdma.memlock: root): a number as its user, a read-only root, no capability, no token of a service account, bounds
on memory, disk, time and processes. The objects are plain dictionaries, as the API writes them; tests hold them against
the schemas of every supported Kubernetes.
"""

from __future__ import annotations

import math

from kubernetes.utils.quantity import parse_quantity

from bricks_core.cluster.launcher import Object, Task
from bricks_core.cluster.metadata import labels
from bricks_core.cluster.needs import image, needs, num_nodes, num_processes
from bricks_core.cluster.run_file import CONFIG_FOLDER, RUN_FILE
from bricks_core.spec.stages import STAGES

STORE_FOLDER = "/store"
USER = 65532
"""The user and group of every image (images/*/Dockerfile)."""
RENDEZVOUS_PORT = 29400
WITH_TORCH = ("latents", "train", "evaluate")
"""Stages whose images can use a GPU."""
MAX_PROCESSES = 16_384
"""Of our user on one node, threads included, beyond which a stage that decodes can start none. Linux counts all pods of
a node together, unless each has users of its own (hostUsers: false)."""
STAGE_GRACE_S = 60
"""From SIGTERM to SIGKILL. An item is written whole or not at all, so there is little to finish; train has its own."""


def pod_template(
    task: Task,
    config: Object,
    *,
    container: str = "main",
    restart_policy: str | None = "Never",
    env: list[Object] | None = None,
    subdomain: str = "",
) -> Object:
    """A pod of the task, which reads `config` (see `run_file`).

    `env` is the launcher's own, beside what every pod of the stage gets; `restart_policy` None leaves it to a kind that
    says it elsewhere.
    """
    train = task.profile.train
    root = _is_root(task)
    annotations = train.rdma.pod_annotations | train.topology if task.stage == "train" else {}
    spec: Object = {
        "restartPolicy": restart_policy,
        "terminationGracePeriodSeconds": train.grace_s if task.stage == "train" else STAGE_GRACE_S,
        "serviceAccountName": task.profile.service_account or None,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "subdomain": subdomain or None,
        "priorityClassName": _priority_class(task) or None,
        **_network(task),
        "securityContext": {
            "runAsNonRoot": not root,
            "runAsUser": 0 if root else USER,
            "runAsGroup": 0 if root else USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "imagePullSecrets": [{"name": name} for name in task.profile.images.pull_secrets],
        "nodeSelector": task.profile.node_selector | (task.profile.gpu_node_selector if needs(task).gpus else {}),
        "affinity": _elsewhere(task),
        "tolerations": [*task.profile.tolerations, *(task.profile.gpu_tolerations if needs(task).gpus else [])],
        "containers": [_container(task, container, env or [])],
        "volumes": _volumes(task, config),
    }
    return {
        "metadata": {"labels": labels(task)} | ({"annotations": annotations} if annotations else {}),
        "spec": {name: value for name, value in spec.items() if value not in (None, [], {})},
    }


def _container(task: Task, name: str, env: list[Object]) -> Object:
    what = {
        "name": name,
        "image": image(task),
        "imagePullPolicy": task.profile.images.pull_policy,
        "command": _command(task),
        "args": _arguments(task),
        "env": _environment(task) + env,
        "envFrom": [{"secretRef": {"name": secret}} for secret in _secrets(task)],
        "ports": [{"name": "rendezvous", "containerPort": RENDEZVOUS_PORT}] if num_nodes(task) > 1 else [],
        "resources": _resources(task),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            # With another user than root a capability that is added is never in effect, so only root gets it.
            "capabilities": {"drop": ["ALL"]} | ({"add": ["IPC_LOCK"]} if _is_root(task) else {}),
        },
        # The last lines of a container that failed stay in its status, where `kubectl describe` and we find them.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": _mounts(task),
    }
    return {key: value for key, value in what.items() if value != []}


def _command(task: Task) -> list[str]:
    return ["bricks-train"] if task.stage == "train" else ["python", "-m", f"jobs.{task.stage}"]


def _arguments(task: Task) -> list[str]:
    arguments = ["--run", RUN_FILE]
    if task.preflight_only:
        arguments = ["--preflight-only", *arguments]
    if STAGES[task.stage].sharded:
        arguments += ["--num-shards", str(needs(task).shards)]
    return arguments


def _environment(task: Task) -> list[Object]:
    """The contract with the images (docs/manifests.md) wins over what the profile sets for all."""
    profile = task.profile
    # A pod sees all cores of its node; libraries, and we, would start a thread for each.
    cores = _whole(needs(task).cpu)
    values = {} if task.stage == "train" else {"OMP_NUM_THREADS": cores}
    values |= profile.env
    if task.stage == "train":
        values |= profile.train.nccl
    values |= {"BRICKS_STORE": profile.store.uri}
    if profile.store.endpoint:
        values["AWS_ENDPOINT_URL_S3"] = profile.store.endpoint
    if profile.store.region:
        values["AWS_REGION"] = profile.store.region
    values |= {"BRICKS_IMAGE": image(task), "HOME": "/scratch", "TMPDIR": "/scratch"}
    if task.stage in WITH_TORCH and not needs(task).gpus:
        # These images ask for all GPUs, which some nodes give to every container that nobody has given any.
        values["NVIDIA_VISIBLE_DEVICES"] = "void"
    if task.stage != "train":
        values |= {"BRICKS_CPUS": cores, "BRICKS_MAX_PROCESSES": str(MAX_PROCESSES)}
    return [{"name": name, "value": value} for name, value in values.items()]


def _whole(cpu: str) -> str:
    """A number of cores, at least one: 500m is half of one."""
    return str(max(1, math.ceil(parse_quantity(cpu))))


def train_environment(task: Task, *, rendezvous: str, rank_label: str) -> list[Object]:
    """What `bricks-train` must know of its place among the nodes.

    `rendezvous` is the first node's name; `rank_label` the pod's label with its number, from 0.
    """
    train = task.profile.train
    values = {
        "BRICKS_NODES": str(num_nodes(task)),
        "BRICKS_PROCESSES": str(num_processes(task)),
        "BRICKS_GPUS": str(needs(task).gpus),
        "BRICKS_RENDEZVOUS": f"{rendezvous}:{RENDEZVOUS_PORT}",
        "BRICKS_RENDEZVOUS_ID": task.workload_name,
        "BRICKS_MAX_RESTARTS": "0" if task.preflight_only else str(train.max_restarts),
        "BRICKS_GRACE_S": str(train.grace_s),
    }
    if train.rdma.resources:
        values["BRICKS_RDMA"] = "1"
    fields = {"BRICKS_NODE_NAME": "spec.nodeName", "BRICKS_NODE_RANK": f"metadata.labels['{rank_label}']"}
    return [{"name": name, "value": value} for name, value in values.items()] + [
        {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in fields.items()
    ]


def _secrets(task: Task) -> list[str]:
    """The Secrets the stage reads, and no other's."""
    secrets = task.profile.secrets
    names = [
        task.profile.store.secret,
        secrets.caption if task.stage == "caption" else "",
        secrets.tracking if task.stage in ("train", "evaluate") and not task.preflight_only else "",
        secrets.hub if task.stage in ("latents", "train", "evaluate") and not task.preflight_only else "",
    ]
    return list(dict.fromkeys(name for name in names if name))


def _resources(task: Task) -> Object:
    """Memory, disk and devices are limits as well as requests; CPU is not limited: it would only be left idle."""
    need = needs(task)
    bounded: dict[str, str] = {
        "memory": need.memory,
        "ephemeral-storage": "2Gi" if _scratch_class(task) else need.scratch,
    }
    if need.gpus:
        bounded[task.profile.train.gpu_resource] = str(need.gpus)
    if task.stage == "train":
        bounded |= {name: str(count) for name, count in task.profile.train.rdma.resources.items()}
    return {"requests": {"cpu": need.cpu} | bounded, "limits": bounded}


def _mounts(task: Task) -> list[Object]:
    mounts: list[Object] = [
        {"name": "config", "mountPath": CONFIG_FOLDER, "readOnly": True},
        {"name": "scratch", "mountPath": "/scratch"},
        {"name": "tmp", "mountPath": "/tmp"},
    ]
    if task.stage == "train":
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})
    if task.profile.store.claim:
        mounts.append({"name": "store", "mountPath": STORE_FOLDER})
    return mounts


def _volumes(task: Task, config: Object) -> list[Object]:
    scratch, storage_class = needs(task).scratch, _scratch_class(task)
    claim = {
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": storage_class,
        "resources": {"requests": {"storage": scratch}},
    }
    local: Object = (
        {"ephemeral": {"volumeClaimTemplate": {"spec": claim}}}
        if storage_class
        else {"emptyDir": {"sizeLimit": scratch}}
    )
    volumes: list[Object] = [
        {"name": "config", "configMap": {"name": config["metadata"]["name"]}},
        {"name": "scratch"} | local,
        {"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}},
    ]
    if task.stage == "train":
        # The container's own is 64 MiB, too small for NCCL. What is in it counts as the container's memory.
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": task.profile.train.shm}})
    if task.profile.store.claim:
        volumes.append({"name": "store", "persistentVolumeClaim": {"claimName": task.profile.store.claim}})
    return volumes


def _network(task: Task) -> Object:
    """The host's network, or the pod's own; and whose users the pod has."""
    if task.stage == "train" and task.profile.train.rdma.host_network:
        return {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}
    # A user namespace goes with neither: Kubernetes refuses it with the host's network, and to pin memory the kernel
    # wants the capability in the host's own.
    return {} if task.profile.host_users is None or _is_root(task) else {"hostUsers": task.profile.host_users}


def _elsewhere(task: Task) -> Object:
    """Not on the nodes that failed their preflight, nor on the hosts that the profile leaves out of training."""
    hosts = sorted(set(task.profile.train.exclude_nodes)) if task.stage == "train" else []
    term: Object = {}
    if hosts:
        term["matchExpressions"] = [{"key": "kubernetes.io/hostname", "operator": "NotIn", "values": hosts}]
    if task.excluded_nodes:
        # By the node's own name, as pods tell it: the label says what the host calls itself, which may be another name.
        # Kubernetes takes one value in each.
        names = sorted(set(task.excluded_nodes))
        term["matchFields"] = [{"key": "metadata.name", "operator": "NotIn", "values": [name]} for name in names]
    if not term:
        return {}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}}


def _is_root(task: Task) -> bool:
    return task.stage == "train" and task.profile.train.rdma.memlock == "root"


def _scratch_class(task: Task) -> str:
    return task.profile.train.scratch_storage_class if task.stage == "train" else ""


def _priority_class(task: Task) -> str:
    asked = task.run.spec.cluster.priority_class
    return task.profile.priority_class if asked is None else asked
