"""Manifests for `kubectl apply` alone: one stage, with nobody but Kubernetes (and an operator for several nodes)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from bricks_core.cluster.indexed_job import KEPT_FOR_S
from bricks_core.cluster.launcher import RUN_LABEL, STAGE_LABEL, Object, Task
from bricks_core.cluster.launchers import launcher_for
from bricks_core.cluster.metadata import QUEUE_LABEL, component, labels
from bricks_core.cluster.needs import needs, num_nodes
from bricks_core.cluster.run_file import as_yaml
from bricks_core.errors import UsageError
from bricks_core.spec.cluster import ClusterProfile
from bricks_core.spec.run import BrickRun
from bricks_core.spec.stages import STAGES

NAME = re.compile(r"^[a-z]([-a-z0-9]*[a-z0-9])?$")
LONGEST_NAME = 52
"""So that the last pod's, <name>-worker-255, is still a host's name."""

WHAT = {
    "ingest": "takes the films in",
    "clip": "cuts the films into clips",
    "score": "measures the clips",
    "caption": "writes the captions",
    "latents": "encodes clips and captions",
    "train": "fine-tunes the model",
    "evaluate": "samples from the model and writes the report",
    "preflight": "looks whether the nodes are fit to train",
}
"""By component: a sentence without its subject."""
OPERATORS = {
    "PyTorchJob": "Kubeflow's Training Operator 1.9",
    "TrainJob": "Kubeflow Trainer 2.2 or later",
}
ABOUT = {
    "ConfigMap": "What the pods read in /etc/bricks: the run with every default, and what a node must be able to do.",
    "Service": "Gives the first node the name that the others meet at.",
    "TrainingRuntime": "What a node is.",
}
"""By kind: what an object beside the workload is for."""


@dataclass(frozen=True)
class Origin:
    """What a manifest was made of, for its head."""

    file: str = "FILE"
    """Where it will be kept."""
    command: str = ""
    """What makes it again."""


def plain_task(
    run: BrickRun,
    stage: str,
    profile: ClusterProfile,
    *,
    name: str = "",
    image: str = "",
    preflight_only: bool = False,
) -> Task:
    """A stage's task for nobody's account: the workload is called `name`, or <run>-<stage>.

    Raises:
        UsageError: `name` cannot be a workload's.
        SpecError: the run does not have the stage.
    """
    run.stage_spec(stage)
    name = name or f"{run.name}-{'preflight' if preflight_only else stage}"
    if not NAME.match(name) or len(name) > LONGEST_NAME:
        raise UsageError(
            f"{name} cannot be a workload's name: at most {LONGEST_NAME} of a-z, 0-9 and -, a letter first."
        )
    return Task(run, stage, profile, name=name, image=image, preflight_only=preflight_only)


def objects(task: Task, namespace: str = "") -> list[Object]:
    """What to create, in order; each in the namespace, if one is named."""
    rendered = launcher_for(task.run, task.profile, task.stage).render(task)
    if not namespace:
        return rendered
    return [each | {"metadata": _in_namespace(each["metadata"], namespace)} for each in rendered]


def _in_namespace(metadata: Object, namespace: str) -> Object:
    return {"name": metadata["name"], "namespace": namespace} | metadata


def manifest(task: Task, namespace: str = "", origin: Origin = Origin()) -> str:
    """The YAML of a task, with a head that says what it is, what it needs, and how it is applied."""
    rendered = objects(task, namespace)
    parts = [_head(task, rendered[-1], namespace, origin)]
    for each in rendered:
        about = f"# {ABOUT[each['kind']]}\n" if each["kind"] in ABOUT else ""
        parts.append(f"{about}{as_yaml(each)}")
    return "---\n".join(["".join(parts[:2]), *parts[2:]])


def _head(task: Task, workload: Object, namespace: str, origin: Origin) -> str:
    where = "" if namespace else " -n bricks"
    selector = ",".join(f"{name}={labels(task)[name]}" for name in (RUN_LABEL, STAGE_LABEL))
    lines = [
        f"Run {task.run.name}: {WHAT[component(task)]}. A {workload['kind']}{_shape(task)}.",
        "",
        f"  kubectl apply{where} -f {origin.file}",
        f"  kubectl logs{where} -f --prefix{_many(task)} -l {selector}",
        "",
        *_ends(task),
        "",
        "It needs:",
        *(f"- {each}" for each in _needed(task, workload)),
    ]
    if origin.command:
        lines += ["", "Not written by hand. This makes it:", f"  {origin.command}"]
    return "".join(f"# {line}".rstrip() + "\n" for line in lines) + "\n"


def _many(task: Task) -> str:
    """kubectl follows five pods, unless it is told of more."""
    pods = max(min(needs(task).shards, needs(task).parallelism), num_nodes(task))
    return f" --max-log-requests {pods}" if pods > 5 else ""


def _shape(task: Task) -> str:
    need = needs(task)
    gpus = f" with {need.gpus} GPU{'s' if need.gpus > 1 else ''}" if need.gpus else ""
    if task.stage == "train":
        nodes = num_nodes(task)
        return f" of {nodes} node{'s' if nodes > 1 else ''}{gpus}{' each' if nodes > 1 and gpus else ''}"
    if need.shards == 1 or not STAGES[task.stage].sharded:
        return f" of one pod{gpus}"
    return f" of {need.shards} pods{gpus}{' each' if gpus else ''}"


def _ends(task: Task) -> list[str]:
    goes = f"The job itself goes after {KEPT_FOR_S // 86_400} days; to run it again before, `kubectl delete` it first."
    if task.preflight_only:
        return ["What it measured is in preflight.json, in the store.", goes]
    return ["Its end is a manifest in the store: what is finished is kept, and found by every other way to run.", goes]


def _needed(task: Task, workload: Object) -> list[str]:
    """What must be there before it is applied."""
    profile, train = task.profile, task.stage == "train"
    secrets = profile.secrets
    every: list[tuple[object, str]] = [
        (not task.preflight_only and STAGES[task.stage].needs, f"{_stages_before(task)} done, in the same store."),
        (profile.store.secret, f"Secret {profile.store.secret}: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."),
        (profile.store.claim, f"PersistentVolumeClaim {profile.store.claim}, ReadWriteMany."),
        (task.stage == "caption" and secrets.caption, f"Secret {secrets.caption}: OPENAI_API_KEY, OPENAI_BASE_URL."),
        (
            task.stage in ("train", "evaluate") and not task.preflight_only and secrets.tracking,
            f"Secret {secrets.tracking}: WANDB_API_KEY.",
        ),
        (
            task.stage in ("latents", "train", "evaluate") and not task.preflight_only and secrets.hub,
            f"Secret {secrets.hub}: HF_TOKEN.",
        ),
        (profile.service_account, f"ServiceAccount {profile.service_account}, which needs no rights."),
        (workload["kind"] in OPERATORS, f"{OPERATORS.get(workload['kind'], '')}."),
        (
            train and profile.train.rdma.resources,
            f"Nodes that offer {', '.join(profile.train.rdma.resources)} (k8s/cluster/rdma-shared.yaml is one way).",
        ),
        (
            train and profile.train.rdma.resources and profile.train.rdma.memlock == "node",
            "On those nodes, a containerd that lets processes pin memory (k8s/cluster/containerd-memlock.conf).",
        ),
        (
            train and profile.train.scratch_storage_class,
            f"StorageClass {profile.train.scratch_storage_class}, of local NVMe (k8s/cluster/storage-nvme.yaml).",
        ),
        (
            QUEUE_LABEL in workload["metadata"]["labels"],
            f"Kueue with LocalQueue {workload['metadata']['labels'].get(QUEUE_LABEL)} (k8s/cluster/queues.yaml).",
        ),
    ]
    return [sentence for wanted, sentence in every if wanted]


def _stages_before(task: Task) -> str:
    *first, last = STAGES[task.stage].needs or ("",)
    return f"{', '.join(first)} and {last}" if first else last
