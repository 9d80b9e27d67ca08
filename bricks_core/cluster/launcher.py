"""The seam between a stage and whoever runs it on a cluster: `render` says what to create, `observe` what came of it.

Four launchers keep it: an Indexed Job for every stage but train and for one node, a PyTorchJob (Training Operator 1.9),
a TrainJob (Trainer 2.2 and later), and an Indexed Job with a headless Service where there is no operator. Both halves
are pure: the same arguments give the same objects, so that a test can hold them, and nothing here talks to a cluster.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from bricks_core.cluster.pin import Pin
from bricks_core.spec.cluster import ClusterProfile
from bricks_core.spec.manifest import canonical_json
from bricks_core.spec.run import BrickRun
from bricks_core.spec.stages import until
from bricks_core.spec.strict import what_of

Object = dict[str, Any]
"""A Kubernetes object as its API writes it."""

RUN_LABEL = "bricks.dev/run"
STAGE_LABEL = "bricks.dev/stage"
ATTEMPT_LABEL = "bricks.dev/attempt"
CACHE_KEY_ANNOTATION = "bricks.dev/cache-key"
"""What the child was made for: see `Task.cache_key`."""
WORK_ANNOTATION = "bricks.dev/work"
"""What the child is to do, told apart from all other work: see `Task.work`."""
CIRCUMSTANCES_ANNOTATION = "bricks.dev/circumstances"
"""See `Task.circumstances`."""


@dataclass(frozen=True)
class Owner:
    """The BrickRun that a child goes with when it is deleted."""

    name: str
    uid: str


@dataclass(frozen=True)
class Task:
    """One try at one stage of one run."""

    run: BrickRun
    stage: str
    profile: ClusterProfile
    attempt: int = 1
    owner: Owner | None = None
    """None: the objects stand alone, as `bricks render` writes them."""
    excluded_nodes: tuple[str, ...] = ()
    """Names of nodes that failed their preflight, beside the profile's hosts."""
    name: str = ""
    """Of the workload; empty: <run>-<stage>-a<attempt>."""
    preflight_only: bool = False
    """For `train`: only look whether the nodes are fit for it."""
    image: str = ""
    """Of its pods; empty: the profile's for the stage."""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """What stands for the finished artifacts in the stage's cache key, by stage; empty where nobody has looked."""
    pin: Pin | None = None
    """What the run began with; None: nobody keeps it."""
    spec: Object | None = None
    """The run file's spec with the defaults that the run began with, as its pods read it; None: as `run` has it."""

    @property
    def workload_name(self) -> str:
        return self.name or f"{self.run.name}-{self.stage}-a{self.attempt}"

    @property
    def cache_key(self) -> str:
        """Names what the child is for, as far as the run file tells: the settings of its stage and of those before it
        that change an answer.

        A child with another one works on something that nobody asks for any more. What only says how an answer is got
        is not in it, so that a change of it leaves alone what runs.
        """
        return _hash({stage.name: what_of(self.run.stage_spec(stage.name)) for stage in until(self.stage)})

    @property
    def work(self) -> str:
        """Names what the child is to do, the artifacts that it reads included: equal for runs that ask for the same of
        the same version."""
        version = [self.pin.stage(self.stage).version] if self.pin else []
        return _hash([self.cache_key, dict(self.inputs), *version])

    @property
    def circumstances(self) -> str:
        """Names what the run file asks for its tries, beside its cache key: when that changes, it may try again.

        Nothing of the cluster's profile, and nothing of the code's version: an upgrade begins no run again.
        """
        spec = self.spec or self.run.model_dump(mode="json")["spec"]
        begun = [self.pin.retry, self.pin.renew] if self.pin else []
        return _hash([self.cache_key, spec.get(self.stage), spec.get("cluster"), *begun])


def _hash(value: Any) -> str:
    return hashlib.sha256(canonical_json(value)).hexdigest()[:16]


@dataclass(frozen=True)
class Failure:
    """Why a try ended badly, as far as its pods tell."""

    exit_code: int | None
    """Of the pod that decided; None: it never ran, or is gone."""
    disrupted: bool = False
    """Stopped from outside: drained, preempted, evicted."""
    bad_nodes: tuple[str, ...] = ()
    """Names of the nodes of pods that ended with 77: they failed their preflight."""


@dataclass(frozen=True)
class Observation:
    """What a workload and its pods say."""

    state: Literal["waiting", "running", "succeeded", "failed"]
    reason: str
    """Stable, CamelCase: what a program reads."""
    message: str
    """One sentence: why it is so and, where somebody can do something, what."""
    failure: Failure | None = None
    num_active: int = 0
    num_succeeded: int = 0
    num_failed: int = 0


class Launcher(ABC):
    """One way to run a stage on a cluster."""

    api_version: str
    kind: str

    @abstractmethod
    def render(self, task: Task) -> list[Object]:
        """The objects of one try, in the order in which they are created; the workload is the last one.

        The same task gives the same objects, names and bytes. What comes before the workload (the run file's ConfigMap,
        a Service) may be there already, from an earlier try.
        """

    @abstractmethod
    def observe(self, workload: Object, pods: list[Object], admission: Object | None = None) -> Observation:
        """What the workload has come to, from its own status, its pods, and Kueue's Workload where there is one."""
