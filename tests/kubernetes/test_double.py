"""What the double has beyond a real server: faults, lost and late events, time, moments in which nothing is settled."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from bricks_core.cluster.api import NotThere
from tests.kubernetes.double import Double, Fault, Request
from tests.kubernetes.raw import APPLY, Answered, eventually
from tests.kubernetes.test_contract import config_map, job, owner

Object = dict[str, Any]
MAPS = "/api/v1/namespaces/bricks/configmaps"


def test_a_fault_strikes_the_requests_that_it_is_meant_for(double: Double) -> None:
    api = double.api()
    double.faults.append(lambda request: Fault(status=500) if request.verb == "create" else None)
    with pytest.raises(Answered, match=r"^500: injected"):
        api.post(MAPS, config_map("a"))
    assert api.get(MAPS)["items"] == []
    assert [(each.verb, each.resource, each.user) for each in double.requests] == [
        ("create", "configmaps", "admin"),
        ("list", "configmaps", "admin"),
    ]


def test_a_connection_can_be_cut_before_or_after_the_write(double: Double) -> None:
    api = double.api()
    for when, left in (("before", 0), ("after", 1)):
        double.faults[:] = [lambda request, when=when: Fault(drop=when) if request.verb == "create" else None]  # type: ignore[misc]
        with pytest.raises(Exception, match=r"Connection aborted|closed connection|EOF occurred"):
            api.post(MAPS, config_map("a"))
        assert len(api.get(MAPS)["items"]) == left


def test_history_that_is_forgotten_ends_watches_and_lists_from_before(double: Double) -> None:
    api = double.api()
    start = api.get(MAPS)["metadata"]["resourceVersion"]
    for name in "abc":
        api.post(MAPS, config_map(name))
    token = api.get(MAPS, limit=1)["metadata"]["continue"]
    double.compact()
    (event,) = api.watch(MAPS, resourceVersion=start)
    assert (event["type"], event["object"]["code"], event["object"]["reason"]) == ("ERROR", 410, "Expired")
    with pytest.raises(Answered, match=r"^410:"):
        api.get(MAPS, limit=1, **{"continue": token})
    now = api.get(MAPS)["metadata"]["resourceVersion"]
    api.post(MAPS, config_map("d"))
    assert next(api.watch(MAPS, resourceVersion=now))["object"]["metadata"]["name"] == "d"


def test_a_watch_that_is_under_way_ends_when_its_place_is_forgotten(double: Double) -> None:
    api = double.api()
    watch = api.watch(MAPS, resourceVersion=api.get(MAPS)["metadata"]["resourceVersion"])
    api.post(MAPS, config_map("a"))
    assert next(watch)["type"] == "ADDED"
    double.break_watches()
    assert list(watch) == []


def test_events_can_be_lost_and_come_out_of_order(double: Double) -> None:
    api = double.api()
    late: list[Object] = []

    def deliver(_: Request, event: Object) -> Iterator[Object]:
        match event["object"]["metadata"]["name"]:
            case "lost":
                return
            case "late":
                late.append(event)
            case _:
                yield from [event, *late]

    double.deliver = deliver
    start = api.get(MAPS)["metadata"]["resourceVersion"]
    for name in ("lost", "late", "now"):
        api.post(MAPS, config_map(name))
    watch = api.watch(MAPS, resourceVersion=start)
    assert [next(watch)["object"]["metadata"]["name"] for _ in range(2)] == ["now", "late"]


def test_while_it_is_held_nothing_is_collected(double: Double) -> None:
    api = double.api()
    parent = api.post(MAPS, config_map("parent"))
    api.post(MAPS, config_map("child", ownerReferences=[owner(parent)]))
    with double.hold():
        api.delete(f"{MAPS}/parent")
        assert len(api.get(MAPS)["items"]) == 1
    assert api.get(MAPS)["items"] == []


def test_initial_events_of_a_watch_end_with_a_bookmark_that_says_so(double: Double) -> None:
    """KEP-3157, which 1.20 does not know."""
    api = double.api()
    api.post(MAPS, config_map("a"))
    watch = api.watch(MAPS, sendInitialEvents="true", resourceVersionMatch="NotOlderThan", allowWatchBookmarks="true")
    first, mark = next(watch), next(watch)
    assert (first["type"], mark["type"]) == ("ADDED", "BOOKMARK")
    assert mark["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}


def test_an_eviction_says_that_the_pod_was_disrupted(double: Double) -> None:
    """KEP-3329: the condition that an eviction leaves."""
    api, pods = double.api(), "/api/v1/namespaces/bricks/pods"
    api.post("/apis/batch/v1/namespaces/bricks/jobs", job("a"))
    (pod,) = api.get(pods)["items"]
    name = pod["metadata"]["name"]
    target = {"apiVersion": "v1", "kind": "Node", "name": "n"}
    api.post(f"{pods}/{name}/binding", {"apiVersion": "v1", "kind": "Binding", "metadata": {}, "target": target})
    api.post(f"{pods}/{name}/eviction", {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}})
    found = api.get(f"{pods}/{name}")
    assert found["metadata"]["deletionTimestamp"]
    assert [each["type"] for each in found["status"]["conditions"]] == ["DisruptionTarget"]


def test_what_is_applied_and_left_out_later_goes(double: Double) -> None:
    """Server-side apply, as far as it is here: one manager, no conflicts."""
    api = double.api()
    first = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"x": "1", "y": "1"}}
    api.patch(f"{MAPS}/a", first, APPLY, fieldManager="helm")
    api.patch(f"{MAPS}/a", {"data": {"other": "1"}})
    second = {**first, "data": {"y": "2"}}
    assert api.patch(f"{MAPS}/a", second, APPLY, fieldManager="helm")["data"] == {"y": "2", "other": "1"}


def test_a_dry_run_leaves_nothing(double: Double) -> None:
    api = double.api()
    assert api.post(MAPS, config_map("a"), dryRun="All")["metadata"]["uid"]
    assert api.get(MAPS)["items"] == []
    with pytest.raises(Answered, match=r"^422:"):
        api.post(MAPS, config_map("Not_A_Name"), dryRun="All")


def test_time_is_the_tests_own(double: Double) -> None:
    before = double.clock.now()
    double.advance(3600)
    made = double.api().post(MAPS, config_map("a"))["metadata"]["creationTimestamp"]
    assert made >= double.clock.stamp(before + 3600)


def test_one_who_counts_on_an_object_of_another_cluster_finds_nothing(double: Double) -> None:
    with Double() as other:
        double.cluster().create(config_map("a"))
        with pytest.raises(NotThere):
            other.cluster().get("ConfigMap", "a")


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_kubectl_finds_its_way(double: Double, tmp_path: Path) -> None:
    env = {**os.environ, "KUBECONFIG": str(double.kubeconfig(tmp_path / "config", namespace="bricks"))}

    def kubectl(*arguments: str, given: Object | None = None) -> str:
        text = yaml.safe_dump(given) if given else None
        done = subprocess.run(
            ["kubectl", *arguments], env=env, input=text, capture_output=True, encoding="utf-8", timeout=120
        )
        return done.stdout + done.stderr

    wanted = job("a", completionMode="Indexed", completions=2, parallelism=2)
    assert kubectl("apply", "-f", "-", given=wanted) == "job.batch/a created\n"
    assert len(kubectl("get", "pods", "-l", "job-name=a", "-o", "name").split()) == 2
    wanted["spec"]["paralelism"] = 3
    assert 'unknown field "spec.paralelism"' in kubectl("apply", "-f", "-", given=wanted)
    assert "Completion Mode:    Indexed" in kubectl("describe", "job", "a")
    assert kubectl("delete", "job", "a") == 'job.batch "a" deleted\n'
    assert eventually(lambda: not double.cluster().list("Pod"))
