"""What a run may ask of a cluster, and what a cluster is like: the two halves of every pod that is rendered.

`ClusterSettings` is a section of the run file, which a laptop does not read. `ClusterProfile` is written once for a
cluster: the chart makes it from its values for the controller, and `bricks render --profile` reads one.
Whatever differs from cluster to cluster (names of RDMA resources, networks, NCCL's settings, queues, secrets) is in the
profile, never in code.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.alias_generators import to_camel
from pydantic_core import ErrorDetails

from bricks_core.errors import SpecError
from bricks_core.spec.strict import How, Strict

StageName = Literal["ingest", "clip", "score", "caption", "latents", "train", "evaluate"]
Launcher = Literal["pytorchjob", "trainjob", "job"]
"""Who runs several nodes as one: Kubeflow's Training Operator (v1), its Trainer (v2), or nobody but Kubernetes."""
Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$")]
"""An amount as Kubernetes writes it: 4, 500m, 8Gi."""
ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
SECRET_NAME = re.compile(r"(_KEY|_TOKEN|_SECRET|PASSWORD|^AWS_ACCESS_KEY_ID)$", re.IGNORECASE)
DnsLabel = Annotated[str, Field(pattern=r"^$|^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=253)]


class StageSettings(Strict):
    """What one stage of this run needs, where it differs from the cluster's profile. null: as the profile says."""

    shards: How[int | None] = Field(None, ge=1, le=10_000)
    """Pods the stage's items are shared between (all stages but train)."""
    parallelism: How[int | None] = Field(None, ge=1, le=10_000)
    """Of them at the same time, at most."""
    cpu: How[Quantity | None] = None
    memory: How[Quantity | None] = None
    scratch: How[Quantity | None] = None
    gpus: How[int | None] = Field(None, ge=0, le=16)
    """Of each pod."""
    deadline_s: How[int | None] = Field(None, ge=60)
    """The stage is given up after so long."""


class ClusterSettings(Strict):
    """How a cluster runs it. `bricks run` on one machine does not read this."""

    nodes: How[int | None] = Field(None, ge=1, le=256)
    """Nodes that train together; null: as the cluster's profile says."""
    gpus_per_node: How[int | None] = Field(None, ge=0, le=16)
    """Each has a process of its own; 0: one process on the CPU."""
    launcher: How[Launcher | None] = None
    attempts: How[int] = Field(3, ge=1, le=20)
    """Tries that a stage has in all. Being stopped from outside (a drained node, a preemption) costs none."""
    queue: How[DnsLabel | None] = None
    """Kueue's LocalQueue for this run; null: the profile's, "": none."""
    priority_class: How[DnsLabel | None] = None
    stages: How[dict[StageName, StageSettings]] = {}


class Camel(Strict):
    """A part of the profile: written in camelCase, as the chart's values are."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        alias_generator=to_camel,
        validate_by_alias=True,
        validate_by_name=True,
        serialize_by_alias=True,
    )


class Images(Camel):
    """Where the stages' images are: <registry>/bricks-<stage>:<tag>, or @<digest>."""

    registry: Annotated[str, Field(pattern=r"^[^\s:/]+(:[0-9]+)?(/[^\s:]*)?$")] = "ghcr.io/bricks"
    """Without https://, as image references have it."""
    tag: str = "0.1.0"
    digests: dict[str, str] = {}
    """By stage (ingest … evaluate, controller): sha256:…, which wins over the tag."""
    pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    pull_secrets: list[str] = []
    """Names of the Secrets that the registry wants."""

    def of(self, stage: str) -> str:
        """The reference of a stage's image."""
        name = f"{self.registry.rstrip('/')}/bricks-{stage}"
        digest = self.digests.get(stage)
        return f"{name}@{digest}" if digest else f"{name}:{self.tag}"


class StoreProfile(Camel):
    """Where artifacts live, and how pods reach it: S3, or a folder on a volume that all pods mount."""

    uri: str = "s3://bricks/artifacts"
    """s3://bucket/prefix, or file:///store/… with `claim`."""
    endpoint: str = ""
    """S3's address where it is not Amazon's."""
    region: str = ""
    secret: DnsLabel = ""
    """An existing Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; empty: the service account's own rights."""
    claim: DnsLabel = ""
    """An existing PersistentVolumeClaim (ReadWriteMany), mounted at /store in every pod."""

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        if self.uri.startswith("file://") != bool(self.claim):
            raise ValueError(
                f"uri is {self.uri} and claim is {self.claim or 'empty'}: a file:// store needs a claim that all pods "
                "mount, and s3:// needs none."
            )
        if self.claim and not self.uri.startswith("file:///store"):
            raise ValueError(f"uri is {self.uri}, and the claim is mounted at /store: write file:///store/….")
        return self


class Secrets(Camel):
    """Existing Secrets whose keys become environment variables, each only of the stages that need it."""

    caption: DnsLabel = ""
    """OPENAI_API_KEY and, where it is not OpenAI's own server, OPENAI_BASE_URL. For caption."""
    tracking: DnsLabel = ""
    """WANDB_API_KEY. For train and evaluate."""
    hub: DnsLabel = ""
    """HF_TOKEN. For latents, train and evaluate, which read weights."""


class StageProfile(Camel):
    """What a pod of a stage gets. Memory and scratch are limits as well as requests; CPU is a request alone."""

    shards: int = Field(1, ge=1, le=10_000)
    parallelism: int = Field(16, ge=1, le=10_000)
    cpu: Quantity = "2"
    memory: Quantity = "8Gi"
    scratch: Quantity = "20Gi"
    gpus: int = Field(0, ge=0, le=16)
    deadline_s: int = Field(86_400, ge=60)


class Rdma(Camel):
    """How a pod reaches InfiniBand or RoCE. Every name in here is the cluster's own."""

    resources: dict[str, int] = {}
    """Extended resources of each pod and how many of each: {"rdma/rdma_shared_device_a": 1}, or eight keys on a DGX.
    Empty: no RDMA."""
    pod_annotations: dict[str, str] = {}
    """Such as Multus' networks: {"k8s.v1.cni.cncf.io/networks": …}."""
    host_network: bool = False
    """For RoCE without a device plugin. Needs a namespace that allows it."""
    memlock: Literal["node", "root"] = "node"
    """Who lets a process pin memory. node: the node's containerd (LimitMEMLOCK=infinity), and the pod stays without any
    right. root: uid 0 with IPC_LOCK, for nodes one cannot change; needs a namespace that enforces `privileged`."""


class PreflightProfile(Camel):
    """What a node must be able to do before it trains. 0 leaves a measure out."""

    node_bus_gbps: float = Field(0, ge=0)
    """All-reduce bus bandwidth of one node's GPUs, GB/s, at the largest size; eight H100 on NVSwitch have about 470."""
    cluster_bus_gbps: float = Field(0, ge=0)
    """The same over all nodes; about 400 with eight 400 Gb/s ports a node. About 5 means TCP."""
    max_bytes: int = Field(1 << 30, ge=1 << 20)
    """The largest message of the sweep."""
    clock_skew_s: float = Field(1.0, ge=0)
    """Largest difference between any node's clock and most nodes' (of two: the first one's)."""
    memlock_bytes: int = Field(0, ge=0)
    """Memory that a process must be able to pin; RDMA wants it unlimited."""
    free_disk_bytes: int = Field(20 << 30, ge=0)
    """On the scratch volume."""
    shm_bytes: int = Field(1 << 30, ge=0)
    """Of /dev/shm."""


class TrainProfile(Camel):
    """The nodes that train, and how they are asked for."""

    launcher: Launcher = "pytorchjob"
    nodes: int = Field(1, ge=1, le=256)
    gpus_per_node: int = Field(1, ge=0, le=16)
    gpu_resource: str = "nvidia.com/gpu"
    cpu: Quantity = "8"
    memory: Quantity = "64Gi"
    scratch: Quantity = "150Gi"
    scratch_storage_class: str = ""
    """A class of local NVMe volumes for /scratch, made and removed with the pod; empty: an emptyDir."""
    shm: Quantity = "16Gi"
    """/dev/shm, in memory: part of `memory`."""
    grace_s: int = Field(900, ge=30)
    """From SIGTERM to SIGKILL: time for a checkpoint."""
    deadline_s: int = Field(604_800, ge=60)
    max_restarts: int = Field(3, ge=0)
    """Of all processes together, inside the pods, before the job is tried again as a whole."""
    rdma: Rdma = Rdma()
    nccl: dict[str, str] = {}
    """Environment of the training processes: NCCL_NET, NCCL_IB_HCA, NCCL_SOCKET_IFNAME, …."""
    topology: dict[str, str] = {}
    """Annotations of the pods for Kueue's topology: {"kueue.x-k8s.io/podset-preferred-topology": …}."""
    exclude_nodes: list[str] = []
    """Host names never to train on; the controller adds those that failed their preflight."""


class Queues(Camel):
    """Kueue's LocalQueues; empty: none, and Kueue is not spoken to."""

    cpu: DnsLabel = ""
    gpu: DnsLabel = ""


DEFAULT_STAGES: dict[StageName, StageProfile] = {
    "ingest": StageProfile(shards=4, cpu="2", memory="4Gi"),
    "clip": StageProfile(shards=16, cpu="4", memory="8Gi"),
    "score": StageProfile(shards=16, cpu="2", memory="4Gi"),
    "caption": StageProfile(shards=4, cpu="1", memory="4Gi"),
    "latents": StageProfile(shards=4, cpu="4", memory="16Gi", gpus=1),
    "evaluate": StageProfile(cpu="8", memory="32Gi", gpus=1),
}


class ClusterProfile(Camel):
    """A cluster, as far as it shows in pods."""

    images: Images = Images()
    store: StoreProfile = StoreProfile()
    secrets: Secrets = Secrets()
    service_account: DnsLabel = "bricks-stage"
    """Of the stages' pods. It has no rights in the cluster, and its token is not mounted."""
    queues: Queues = Queues()
    priority_class: DnsLabel = ""
    host_users: bool | None = None
    """false: pods in a user namespace of their own (Kubernetes 1.33, containerd 2); null leaves it to the cluster."""
    node_selector: dict[str, str] = {}
    gpu_node_selector: dict[str, str] = {}
    """Beside node_selector, for pods that ask for GPUs."""
    tolerations: list[dict[str, Any]] = []
    gpu_tolerations: list[dict[str, Any]] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    env: dict[str, str] = {}
    """For every stage's pods. No secrets: whoever may read a pod reads its environment."""
    stages: dict[StageName, StageProfile] = DEFAULT_STAGES
    """What is not written of a stage is as in DEFAULT_STAGES."""
    train: TrainProfile = TrainProfile()
    preflight: PreflightProfile = PreflightProfile()

    @field_validator("stages", mode="before")
    @classmethod
    def _over_the_defaults(cls, given: Any) -> Any:
        """So that more memory for clip does not make one pod of its sixteen."""
        if not isinstance(given, dict) or not all(isinstance(each, dict | StageProfile) for each in given.values()):
            return given
        whole: dict[Any, Any] = dict(DEFAULT_STAGES)
        for stage, each in given.items():
            if isinstance(each, dict) and stage in DEFAULT_STAGES:
                each = DEFAULT_STAGES[stage].model_dump() | {to_camel(name): value for name, value in each.items()}
            whole[stage] = each
        return whole

    @model_validator(mode="after")
    def _plain_environment(self) -> Self:
        for name in self.env | self.train.nccl:
            if not ENV_NAME.fullmatch(name):
                raise ValueError(f"env has {name!r}, which is no variable's name: letters, digits and _.")
            if SECRET_NAME.search(name):
                raise ValueError(
                    f"env has {name}, which looks like a secret, and env can be read by many: put it into a Secret and "
                    "name that in `secrets` or `store.secret`."
                )
        return self

    def stage(self, name: str) -> StageProfile:
        """What a stage that is not train gets here."""
        return self.stages.get(name, StageProfile())  # type: ignore[call-overload]


def load_profile(file: Path) -> ClusterProfile:
    """Read a cluster's profile.

    Raises:
        SpecError: with the place of every mistake.
    """
    if not file.exists():
        raise SpecError(f"{file} is not there: write the cluster's profile, or leave --profile out.")
    return _read(file, ClusterProfile, "it must be a mapping such as k8s/cluster/profile-h100-ib.yaml")


def load_preflight(file: Path) -> PreflightProfile:
    """Read what a node must be able to do (preflight.yaml beside a run file); the defaults where there is no such file.

    Raises:
        SpecError: with the place of every mistake.
    """
    if not file.exists():
        return PreflightProfile()
    return _read(file, PreflightProfile, "it must be a mapping such as freeDiskBytes: 20000000000")


C = TypeVar("C", bound=Camel)


def _read(file: Path, kind: type[C], what: str) -> C:
    try:
        document = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SpecError(f"{file} cannot be read as YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(document, dict) or {"apiVersion", "kind"} & document.keys():
        raise SpecError(f"{file} holds no {kind.__name__}: {what}.")
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        raise SpecError("\n".join(f"{file}: {_mistake(each)}" for each in error.errors())) from None


def _mistake(detail: ErrorDetails) -> str:
    """One mistake of a profile in words a person can act on."""
    place = ".".join(map(str, detail["loc"]))
    if detail["type"] == "extra_forbidden":
        return f"{place}: unknown key."
    # Not what was given: where the name of a Secret belongs, somebody may have written the secret.
    return f"{place}: {detail['msg'].removeprefix('Value error, ')}"
