"""What is asked of a Kubernetes API server: a dozen calls on objects as they are written, whatever their kind.

The official client finds and keeps the connection (kubeconfig, service account, TLS); objects stay plain dictionaries,
because most of what we make (BrickRun, PyTorchJob, TrainJob) has no class there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from bricks_core.cluster.launcher import Object
from bricks_core.errors import BricksError


@dataclass(frozen=True)
class Kind:
    """Where objects of a kind live in the API."""

    api_version: str
    plural: str


KINDS: dict[str, Kind] = {
    "BrickRun": Kind("bricks.dev/v1alpha1", "brickruns"),
    "ConfigMap": Kind("v1", "configmaps"),
    "Event": Kind("v1", "events"),
    "Job": Kind("batch/v1", "jobs"),
    "Pod": Kind("v1", "pods"),
    "PyTorchJob": Kind("kubeflow.org/v1", "pytorchjobs"),
    "Service": Kind("v1", "services"),
    "TrainJob": Kind("trainer.kubeflow.org/v1alpha1", "trainjobs"),
    "TrainingRuntime": Kind("trainer.kubeflow.org/v1alpha1", "trainingruntimes"),
    "Workload": Kind("kueue.x-k8s.io/v1beta2", "workloads"),
}
"""Every kind we speak of. The chart's Role is held against this list and the calls made with it."""


class NotThere(BricksError):
    """The object is not there (404), or was replaced by another one of its name."""

    exit_code = 65


class AlreadyThere(BricksError):
    """An object of that name is there already (409 on create)."""

    exit_code = 65


class Changed(BricksError):
    """Somebody else changed the object since it was read (409 on a write): read it again."""

    exit_code = 75


class Refused(BricksError):
    """The server says that the object cannot be (400, 422)."""

    exit_code = 78


class Cluster:
    """One namespace of a cluster. Safe to use from many threads.

    Every call has a timeout. Beside the classes above, all raise ClusterUnavailable when the server does not answer, is
    too busy or fails (429, 5xx), and ClusterDenied when it refuses us (401, 403) or does not know the kind.
    """

    namespace: str

    def get(self, kind: str, name: str) -> Object:
        """The object. NotThere."""
        raise NotImplementedError

    def list(self, kind: str, *, labels: Mapping[str, str] | None = None) -> list[Object]:
        """All objects with these labels, page by page; each has its apiVersion and kind."""
        raise NotImplementedError

    def create(self, obj: Object) -> Object:
        """Create it in this namespace. AlreadyThere, Refused."""
        raise NotImplementedError

    def write_status(self, obj: Object) -> Object:
        """Replace the status of an object as it was read (its resourceVersion is sent). Changed, NotThere, Refused."""
        raise NotImplementedError

    def patch(self, kind: str, name: str, change: Object) -> Object:
        """Merge a change (RFC 7386) into an object. NotThere, Refused, Changed."""
        raise NotImplementedError

    def delete(self, kind: str, name: str, *, uid: str | None = None, foreground: bool = True) -> None:
        """Delete it and what belongs to it; one that is not there, or has another uid by now, is as good as deleted."""
        raise NotImplementedError

    def logs(self, pod: str, container: str, *, follow: bool = False, tail_lines: int | None = None) -> Iterator[str]:
        """The lines a container wrote, as they come. NotThere: it has not started."""
        raise NotImplementedError

    def tell(self, about: Object, reason: str, message: str, *, warning: bool = False) -> None:
        """Write an Event about an object; the same one again is counted, not repeated."""
        raise NotImplementedError

    def knows(self, kind: str) -> bool:
        """Whether the server has this kind (its CRD is installed)."""
        raise NotImplementedError

    def version(self) -> str:
        """The server's version, such as v1.33.1."""
        raise NotImplementedError


def connect(context: str | None = None, namespace: str | None = None) -> Cluster:
    """The cluster that the kubeconfig or, inside a pod, the service account names.

    `namespace`: None takes the context's, or the pod's own. ClusterUnavailable: no cluster is configured.
    """
    raise NotImplementedError
