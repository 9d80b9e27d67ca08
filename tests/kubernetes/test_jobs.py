"""The double's Job controller where the real server at hand (1.20) knows less: Indexed Jobs and what came after.

Each test names the enhancement (github.com/kubernetes/enhancements) that says so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bricks_core.cluster.api import Cluster, Refused
from tests.kubernetes.double import Double
from tests.kubernetes.jobs import INDEX, TRACKING, ranges
from tests.kubernetes.test_contract import bind, conditions, job

Object = dict[str, Any]
IGNORE_DISRUPTION = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
DISRUPTED = [{"type": "DisruptionTarget", "status": "True"}]
End = Callable[..., None]


@pytest.fixture
def cluster(double: Double) -> Cluster:
    return double.cluster("bricks")


@pytest.fixture
def end(double: Double, cluster: Cluster) -> End:
    """End the live pod of an index (or any) with an exit code."""

    def ends(index: int | None, code: int, **status: Any) -> None:
        pod = next(pod for pod in cluster.list("Pod") if is_live(pod) and index in (None, index_of(pod)))
        terminated = {"terminated": {"exitCode": code}}
        containers = [
            {"name": "main", "image": "x", "imageID": "", "ready": False, "restartCount": 0, "state": terminated}
        ]
        phase = "Failed" if code else "Succeeded"
        pod["status"] |= {"phase": phase, "containerStatuses": containers, **status}
        cluster.write_status(pod)

    return ends


def is_live(pod: Object) -> bool:
    return pod["status"]["phase"] in ("Pending", "Running")


def index_of(pod: Object) -> int | None:
    text = pod["metadata"].get("annotations", {}).get(INDEX)
    return None if text is None else int(text)


def indexed(completions: int, **spec: Any) -> Object:
    return job("a", completionMode="Indexed", completions=completions, **{"parallelism": completions, **spec})


def live(cluster: Cluster) -> list[int | None]:
    return sorted((index_of(pod) for pod in cluster.list("Pod") if is_live(pod)), key=str)


def status(cluster: Cluster) -> Object:
    return cluster.get("Job", "a")["status"]


def test_each_index_has_a_pod_that_knows_it(cluster: Cluster) -> None:
    """KEP-2214; the label is of KEP-4017."""
    cluster.create(indexed(2))
    pods = sorted(cluster.list("Pod"), key=lambda pod: str(index_of(pod)))
    assert [pod["spec"]["hostname"] for pod in pods] == ["a-0", "a-1"]
    assert [pod["metadata"]["labels"][INDEX] for pod in pods] == ["0", "1"]
    assert pods[0]["metadata"]["generateName"] == "a-0-"
    assert pods[0]["metadata"]["finalizers"] == [TRACKING]  # KEP-2307
    (variable,) = pods[0]["spec"]["containers"][0]["env"]
    assert variable["name"] == "JOB_COMPLETION_INDEX"
    assert INDEX in variable["valueFrom"]["fieldRef"]["fieldPath"]


def test_no_more_run_at_once_than_are_wanted_and_each_index_is_done_once(cluster: Cluster, end: End) -> None:
    """KEP-2214."""
    cluster.create(indexed(4, parallelism=2))
    assert live(cluster) == [0, 1]
    end(1, 0)
    assert live(cluster) == [0, 2]
    end(0, 0)
    end(3, 0)
    assert status(cluster)["completedIndexes"] == "0,1,3"
    end(2, 0)
    assert status(cluster)["completedIndexes"] == "0-3"
    assert conditions(cluster.get("Job", "a"))["Complete"]["reason"] == "CompletionsReached"
    assert len(cluster.list("Pod")) == 4


def test_an_index_that_fails_is_tried_again_until_all_have_failed_too_often(cluster: Cluster, end: End) -> None:
    """KEP-2214: without a limit per index there is one for all."""
    cluster.create(indexed(2, backoffLimit=1))
    end(0, 1)
    assert live(cluster) == [0, 1]
    end(1, 1)
    assert conditions(cluster.get("Job", "a"))["Failed"]["reason"] == "BackoffLimitExceeded"
    assert live(cluster) == []


def test_with_a_limit_per_index_the_others_go_on_and_the_job_fails_at_its_end(cluster: Cluster, end: End) -> None:
    """KEP-3850."""
    cluster.create(indexed(3, parallelism=1, backoffLimitPerIndex=1))
    assert cluster.get("Job", "a")["spec"]["backoffLimit"] == 2147483647
    end(0, 1)
    end(0, 1)
    assert status(cluster)["failedIndexes"] == "0"
    end(1, 0)
    end(2, 0)
    found = status(cluster)
    assert (found["completedIndexes"], found["failedIndexes"], found["failed"]) == ("1,2", "0", 2)
    assert conditions(cluster.get("Job", "a"))["Failed"]["reason"] == "FailedIndexes"


def test_too_many_failed_indexes_end_it_at_once(cluster: Cluster, end: End) -> None:
    """KEP-3850."""
    cluster.create(indexed(4, backoffLimitPerIndex=0, maxFailedIndexes=1))
    end(0, 1)
    end(1, 1)
    assert conditions(cluster.get("Job", "a"))["Failed"]["reason"] == "MaxFailedIndexesExceeded"
    assert live(cluster) == []


def policy(*rules: Object) -> Object:
    return {"podFailurePolicy": {"rules": [IGNORE_DISRUPTION, *rules]}}


def codes(action: str, *values: int) -> Object:
    return {"action": action, "onExitCodes": {"containerName": "main", "operator": "In", "values": list(values)}}


def test_an_exit_code_can_fail_the_job(cluster: Cluster, end: End) -> None:
    """KEP-3329; its message names the pod and the rule."""
    cluster.create(indexed(3, backoffLimitPerIndex=5, **policy(codes("FailJob", 64, 78))))
    end(1, 78)
    failed = conditions(cluster.get("Job", "a"))["Failed"]
    assert failed["reason"] == "PodFailurePolicy"
    assert "Container main for pod bricks/a-1-" in failed["message"]
    assert "failed with exit code 78 matching FailJob rule at index 1" in failed["message"]


def test_an_exit_code_can_fail_its_index(cluster: Cluster, end: End) -> None:
    """KEP-3850."""
    cluster.create(indexed(2, backoffLimitPerIndex=5, **policy(codes("FailIndex", 65))))
    end(0, 65)
    assert status(cluster)["failedIndexes"] == "0"
    assert live(cluster) == [1]


def test_a_disrupted_pod_is_replaced_and_not_counted_whatever_its_exit_code(cluster: Cluster, end: End) -> None:
    """KEP-3329: the first rule that matches."""
    cluster.create(indexed(1, backoffLimitPerIndex=0, **policy(codes("FailJob", 143))))
    for _ in range(3):
        end(0, 143, conditions=DISRUPTED)
    assert status(cluster).get("failed", 0) == 0
    assert live(cluster) == [0]
    end(0, 0)
    assert "Complete" in conditions(cluster.get("Job", "a"))


@pytest.mark.parametrize(("replaces", "num_live"), [("TerminatingOrFailed", 2), ("Failed", 1)])
def test_when_a_pod_that_is_being_deleted_is_replaced(
    double: Double, cluster: Cluster, end: End, replaces: str, num_live: int
) -> None:
    """KEP-3939."""
    cluster.create(indexed(1, podReplacementPolicy=replaces))
    (pod,) = cluster.list("Pod")
    name = pod["metadata"]["name"]
    bind(double.api(), "/api/v1/namespaces/bricks/pods", name)
    cluster.delete("Pod", name)
    assert len([each for each in cluster.list("Pod") if is_live(each)]) == num_live
    assert status(cluster)["terminating"] == 1
    going = cluster.get("Pod", name)
    going["status"]["phase"] = "Failed"
    cluster.write_status(going)
    assert status(cluster)["failed"] == 1
    assert live(cluster) == [0]


def test_a_suspended_job_has_no_pods_and_forgets_when_it_started(cluster: Cluster, end: End) -> None:
    """KEP-2232."""
    cluster.create(indexed(2, suspend=True, activeDeadlineSeconds=60))
    assert cluster.list("Pod") == []
    assert conditions(cluster.get("Job", "a"))["Suspended"]["reason"] == "JobSuspended"
    cluster.patch("Job", "a", {"spec": {"suspend": False}})
    assert live(cluster) == [0, 1]
    end(0, 0)
    cluster.patch("Job", "a", {"spec": {"suspend": True}})
    assert live(cluster) == []
    assert "startTime" not in status(cluster)
    assert status(cluster).get("failed", 0) == 0
    cluster.patch("Job", "a", {"spec": {"suspend": False}})
    assert live(cluster) == [1]


def test_a_deadline_counts_from_the_start_and_not_while_suspended(double: Double, cluster: Cluster) -> None:
    """KEP-2232."""
    cluster.create(indexed(1, suspend=True, activeDeadlineSeconds=60))
    double.advance(600)
    cluster.patch("Job", "a", {"spec": {"suspend": False}})
    double.advance(59)
    assert live(cluster) == [0]
    double.advance(2)
    assert conditions(cluster.get("Job", "a"))["Failed"]["reason"] == "DeadlineExceeded"
    assert live(cluster) == []


def test_while_pods_are_still_going_the_end_is_only_announced(double: Double, cluster: Cluster, end: End) -> None:
    """KEP-3998 and KEP-3939: FailureTarget first, Failed when the last pod has ended."""
    cluster.create(indexed(2, backoffLimitPerIndex=9, **policy(codes("FailJob", 64))))
    other = next(pod for pod in cluster.list("Pod") if index_of(pod) == 1)["metadata"]["name"]
    bind(double.api(), "/api/v1/namespaces/bricks/pods", other)
    end(0, 64)
    assert set(conditions(cluster.get("Job", "a"))) == {"FailureTarget"}
    assert cluster.get("Pod", other)["metadata"]["deletionTimestamp"]
    pod = cluster.get("Pod", other)
    pod["status"]["phase"] = "Failed"
    cluster.write_status(pod)
    assert set(conditions(cluster.get("Job", "a"))) == {"FailureTarget", "Failed"}


def test_a_finished_job_goes_after_its_time_with_its_pods(double: Double, cluster: Cluster, end: End) -> None:
    """KEP-592."""
    cluster.create(indexed(1, ttlSecondsAfterFinished=100))
    end(0, 0)
    double.advance(99)
    assert cluster.list("Job")
    double.advance(2)
    assert cluster.list("Job") == cluster.list("Pod") == []


def test_what_ended_while_nobody_looked_is_counted_all_the_same(double: Double, cluster: Cluster, end: End) -> None:
    """KEP-2307: the finalizer keeps a pod until it is counted."""
    cluster.create(indexed(2))
    with double.hold():
        end(0, 0)
        name = next(pod for pod in cluster.list("Pod") if index_of(pod) == 0)["metadata"]["name"]
        cluster.delete("Pod", name)
        assert cluster.get("Pod", name)["metadata"]["deletionTimestamp"]
    assert name not in {pod["metadata"]["name"] for pod in cluster.list("Pod")}
    assert status(cluster)["completedIndexes"] == "0"
    assert live(cluster) == [1]


def test_a_plain_job_without_completions_is_a_queue_of_work(cluster: Cluster, end: End) -> None:
    """The Job's own documentation: one success, and no pod is made any more."""
    cluster.create(job("a", parallelism=2))
    end(None, 0)
    assert "Complete" not in conditions(cluster.get("Job", "a"))
    assert len(live(cluster)) == 1
    end(None, 0)
    assert "Complete" in conditions(cluster.get("Job", "a"))


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (
            {"completionMode": "Indexed", "parallelism": 2},
            "spec.completions: Required value: when completion mode is Indexed",
        ),
        ({"completionMode": "Nope"}, 'spec.completionMode: Unsupported value: "Nope"'),
        ({"backoffLimitPerIndex": 1}, "spec.backoffLimitPerIndex: Invalid value: 1: requires indexed completion mode"),
        ({"maxFailedIndexes": 1}, "spec.backoffLimitPerIndex: Required value: when maxFailedIndexes is specified"),
        (
            {"completionMode": "Indexed", "completions": 1, **policy(codes("FailIndex", 65))},
            'action: Invalid value: "FailIndex": requires the backoffLimitPerIndex to be set',
        ),
        ({**policy(codes("Restart", 65))}, 'action: Unsupported value: "Restart"'),
        ({**policy(), "podReplacementPolicy": "TerminatingOrFailed"}, 'supported values: "Failed"'),
        ({"podFailurePolicy": {"rules": [{"action": "Ignore"}]}}, "OnPodConditions is required"),
    ],
)
def test_fields_that_need_each_other_are_held_together(cluster: Cluster, spec: Object, says: str) -> None:
    """pkg/apis/batch/validation of Kubernetes 1.33, in its words."""
    with pytest.raises(Refused) as raised:
        cluster.create(job("a", **spec))
    assert says in str(raised.value)


def test_a_misspelt_field_is_refused(cluster: Cluster) -> None:
    with pytest.raises(Refused, match=r'unknown field "spec\.paralelism"'):
        cluster.create(job("a", paralelism=2))


def test_an_indexed_name_leaves_room_for_the_index(cluster: Cluster) -> None:
    long = indexed(1001)
    long["metadata"]["name"] = "a" * 60
    with pytest.raises(Refused, match="will not able to create pod with invalid DNS label"):
        cluster.create(long)


@pytest.mark.parametrize(
    ("numbers", "text"),
    [(set(), ""), ({3}, "3"), ({1, 2}, "1,2"), ({1, 3, 4, 5, 7}, "1,3-5,7"), ({0, 1, 2, 9, 10}, "0-2,9,10")],
)
def test_indexes_are_written_as_ranges(numbers: set[int], text: str) -> None:
    assert ranges(numbers) == text
