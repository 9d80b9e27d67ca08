"""One look at one run, on the double over HTTP: what it finds in its way, and what it leaves alone."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import pytest

from bricks_core.controller.reconcile import is_settled
from tests.controller.town import Town, run_object, town
from tests.kubernetes.access import User

Object = dict[str, Any]


def job(name: str, **metadata: Any) -> Object:
    """A Job of somebody else."""
    pod = {"restartPolicy": "Never", "containers": [{"name": "main", "image": "busybox"}]}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": "bricks"} | metadata,
        "spec": {"template": {"metadata": {}, "spec": pod}},
    }


def degraded(here: Town) -> tuple[str, str, str]:
    found = here.condition("Degraded")
    return found["status"], found["reason"], found["message"]


def test_somebody_elses_job_under_our_name_is_told_and_left_alone() -> None:
    with town() as here:
        theirs = here.server.make(job("tiny-ingest-a1"))
        controller = here.controller()
        assert controller.reconcile("tiny") is not None
        status, reason, message = degraded(here)
        assert (status, reason) == ("True", "NameTaken")
        assert "Job tiny-ingest-a1" in message
        there = here.server.cluster().get("Job", "tiny-ingest-a1")
        assert (there["spec"], there["metadata"]["uid"]) == (theirs["spec"], theirs["metadata"]["uid"])
        here.server.cluster().delete("Job", "tiny-ingest-a1", foreground=False)
        controller.reconcile("tiny")
        assert degraded(here)[:2] == ("False", "AsExpected")
        assert here.jobs()[0]["metadata"]["ownerReferences"][0]["name"] == "tiny"


def test_a_config_map_that_is_not_ours_keeps_the_pods_from_being_made() -> None:
    with town() as here:
        here.controller().reconcile("tiny")
        ours = here.server.cluster().list("ConfigMap")[0]
        here.server.cluster().delete("Job", "tiny-ingest-a1", foreground=False)
        here.server.cluster().delete("ConfigMap", ours["metadata"]["name"], foreground=False)
        meta = {"name": ours["metadata"]["name"], "namespace": "bricks"}
        here.server.make({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": ours["data"]})
        here.controller().reconcile("tiny")
        assert degraded(here)[:2] == ("True", "NameTaken")
        assert here.jobs() == []


def test_a_config_map_that_was_altered_is_told() -> None:
    with town() as here:
        here.controller().reconcile("tiny")
        ours = here.server.cluster().list("ConfigMap")[0]
        here.server.cluster().delete("Job", "tiny-ingest-a1", foreground=False)
        here.server.cluster().delete("ConfigMap", ours["metadata"]["name"], foreground=False)
        kept = {key: ours["metadata"][key] for key in ("name", "namespace", "ownerReferences")}
        here.server.make({"apiVersion": "v1", "kind": "ConfigMap", "metadata": kept, "data": {"run.yaml": "other"}})
        here.controller().reconcile("tiny")
        assert degraded(here)[:2] == ("True", "Altered")
        assert here.jobs() == []


def test_children_of_an_earlier_run_of_the_same_name_are_not_ours() -> None:
    with town() as here, here.server.hold():
        here.controller().reconcile("tiny")
        here.server.cluster().delete("BrickRun", "tiny", foreground=False)
        here.run = here.server.make(run_object())
        here.controller().reconcile("tiny")
        assert degraded(here)[:2] == ("True", "NameTaken")


def test_a_run_that_has_succeeded_is_read_and_no_more() -> None:
    with town() as here:
        controller = here.controller()
        here.come_to_rest(controller)
        run = here.server.cluster().get("BrickRun", "tiny")
        assert is_settled(run)
        assert controller.runs() == []
        here.server.requests.clear()
        assert controller.reconcile("tiny") is None
        assert {request.verb for request in here.server.requests} == {"get", "list"}
        changed = run | {"metadata": run["metadata"] | {"generation": run["metadata"]["generation"] + 1}}
        assert not is_settled(changed)


def test_nothing_new_to_say_is_not_said() -> None:
    with town() as here:
        controller = here.controller()
        controller.reconcile("tiny")
        here.executor.step()
        controller.reconcile("tiny")
        here.server.requests.clear()
        for _ in range(3):
            controller.reconcile("tiny")
        assert {request.verb for request in here.server.requests} == {"get", "list"}


def test_of_a_child_nothing_is_changed_but_the_note_of_how_it_ended() -> None:
    """Least of all its spec.suspend, which is Kueue's."""
    with town([137]) as here:
        controller = here.controller()
        controller.reconcile("tiny")
        here.executor.step()
        here.ask(suspend=True)
        controller.reconcile("tiny")
        here.ask(suspend=False)
        here.come_to_rest(controller)
        asked = [request for request in here.server.requests if request.resource == "jobs"]
        assert {request.verb for request in asked} == {"list", "create", "delete", "patch"}
        changes = [request.body["metadata"] for request in asked if request.verb == "patch"]
        assert [set(change) for change in changes] == [{"uid", "annotations"}]
        assert [set(change["annotations"]) for change in changes] == [{"bricks.dev/ended"}]


def test_a_pod_that_outlives_its_failed_job_is_waited_for_but_not_when_its_node_is_lost() -> None:
    """As the Training Operator leaves them: it calls a job failed, and only then stops the other pods."""
    with town([75]) as here:
        controller = here.controller()
        for _ in range(2):
            controller.reconcile("tiny")
            here.executor.step()
        pod = here.server.cluster().list("Pod")[0]
        labels, spec = pod["metadata"]["labels"], pod["spec"] | {"terminationGracePeriodSeconds": 900}
        metadata = {
            "name": "other",
            "namespace": "bricks",
            "labels": labels,
            "finalizers": ["tests/writes-a-checkpoint"],
        }
        here.server.make({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
        here.server.cluster().delete("Pod", "other", foreground=False)
        gone_by = here.server.cluster().get("Pod", "other")["metadata"]["deletionTimestamp"]
        here.server.advance(100)
        controller.reconcile("tiny")
        assert [job["metadata"]["name"] for job in here.jobs()] == ["tiny-ingest-a1"]
        assert here.status()["stages"][0]["reason"] == "Stopping"
        left_s = datetime.fromisoformat(gone_by).timestamp() - here.server.clock.now()
        here.server.advance(left_s + 61)
        controller.reconcile("tiny")
        assert len(here.jobs()) == 2


def test_of_thousands_of_shards_those_that_are_done_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bricks_core.controller.reconcile.MANY_PODS", 1)
    with town() as here:
        here.ask(cluster={"stages": {"ingest": {"shards": 3, "parallelism": 1}}})
        controller = here.controller()
        controller.reconcile("tiny")
        for _ in range(3):
            here.executor.step()
        assert {pod["status"]["phase"] for pod in here.server.cluster().list("Pod")} > {"Succeeded"}
        here.server.requests.clear()
        controller.reconcile("tiny")
        asked = [request for request in here.server.requests if request.resource == "pods"]
        assert {request.query.get("fieldSelector") for request in asked} == {"status.phase!=Succeeded"}
        here.come_to_rest(controller)
        assert here.status()["phase"] == "Succeeded"


def test_how_a_try_ended_is_known_when_its_pods_are_gone() -> None:
    """Three tries that were stopped from outside, on nodes that went away with their pods: none is spent."""
    with town([143, 143, 143, 143, 64]) as here:
        controller = here.controller()
        for _ in range(40):
            controller.reconcile("tiny")
            here.executor.step()
            here.server.advance(100)
            for pod in here.server.cluster().list("Pod"):
                newest = max(job["metadata"]["name"] for job in here.jobs())
                if pod["status"]["phase"] == "Failed" and not pod["metadata"]["name"].startswith(newest):
                    here.server.cluster().delete("Pod", pod["metadata"]["name"], foreground=False)
        assert len(here.jobs()) == 5
        stage = here.status()["stages"][0]
        assert (stage["reason"], stage["triesUsed"], here.status()["phase"]) == ("WrongSpec", 1, "Failed")
        for pod in here.server.cluster().list("Pod"):
            here.server.cluster().delete("Pod", pod["metadata"]["name"], foreground=False)
        controller.reconcile("tiny")
        assert here.status()["stages"][0]["reason"] == "WrongSpec"
        assert len(here.jobs()) == 5


def test_suspending_spends_no_try_and_resuming_begins_the_same_one() -> None:
    with town() as here:
        controller = here.controller()
        controller.reconcile("tiny")
        here.executor.step()
        first = here.jobs()[0]["metadata"]
        here.ask(suspend=True)
        controller.reconcile("tiny")
        assert here.condition("Running")["reason"] == "Stopping"
        here.executor.step()
        controller.reconcile("tiny")
        assert (here.status()["phase"], here.jobs()) == ("Suspended", [])
        here.ask(suspend=False)
        controller.reconcile("tiny")
        second = here.jobs()[0]["metadata"]
        assert (second["name"], second["uid"] != first["uid"]) == ("tiny-ingest-a1", True)
        here.come_to_rest(controller)
        assert here.status()["phase"] == "Succeeded"


def test_a_changed_run_file_is_answered_anew() -> None:
    with town() as here:
        controller = here.controller()
        for _ in range(2):
            controller.reconcile("tiny")
            here.executor.step()
            here.executor.step()
        assert here.status()["stages"][0]["state"] == "Done"
        here.ask(clip={"min_frames": 20})
        here.come_to_rest(controller)
        assert here.status()["phase"] == "Succeeded"
        clips = list((here.folder / "store" / "artifacts" / "clip").glob("*/manifest.json"))
        assert [json.loads(clip.read_text(encoding="utf-8"))["spec"]["min_frames"] for clip in clips].count(20) == 1
        assert next(stage["attempt"] for stage in here.status()["stages"]) == 1  # ingest was not asked again


def test_an_account_without_rights_is_told_which_one_it_lacks() -> None:
    with town() as here:
        rules = [
            {"apiGroups": ["bricks.dev"], "resources": ["brickruns", "brickruns/status"], "verbs": ["*"]},
            {"apiGroups": [""], "resources": ["configmaps", "events", "pods"], "verbs": ["*"]},
            {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["get", "list"]},
        ]
        meta = {"name": "weak", "namespace": "bricks"}
        here.server.make({"apiVersion": RBAC, "kind": "Role", "metadata": meta, "rules": rules})
        here.server.make(
            {
                "apiVersion": RBAC,
                "kind": "RoleBinding",
                "metadata": meta,
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "weak"},
                "subjects": [{"kind": "User", "name": "weak", "apiGroup": "rbac.authorization.k8s.io"}],
            }
        )
        here.user = User("weak", ("system:authenticated",))
        assert here.controller().reconcile("tiny") is not None
        status, reason, message = degraded(here)
        assert (status, reason) == ("True", "ClusterDenied")
        assert '"create" on "jobs.batch"' in message
        assert here.condition("Succeeded")["status"] == "Unknown"


def test_a_fault_of_ours_is_told_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    with town() as here:
        controller = here.controller()
        controller.profile = None  # type: ignore[assignment]
        assert controller.reconcile("tiny") is not None
        assert degraded(here)[1] == "ControllerFault"
        assert "a fault of ours" in caplog.text
        here.come_to_rest(here.controller())
        assert degraded(here)[1] == "AsExpected"


def test_waits_grow_while_nothing_can_be_done() -> None:
    with town() as here:
        controller = here.controller()
        waits = []
        for _ in range(12):
            waits.append(here.look_away(controller))
        assert all(0.5 * 2**i <= wait <= 2**i for i, wait in enumerate(waits[:8]))
        assert max(waits) <= 300
        controller.reconcile("tiny")
        assert here.look_away(controller) <= 1


def test_progress_comes_from_the_heartbeats_in_the_store() -> None:
    with town() as here:
        controller = here.controller()
        controller.reconcile("tiny")
        here.executor.step()
        beat = {"stage": "ingest", "state": "running", "done": 30, "total": 40, "unit": "films", "note": "b.mp4"}
        told = json.dumps(beat | {"rate_per_s": 0.5, "time": here.server.clock.stamp()}).encode()
        here.store.put("runs/tiny/status/ingest.json", told)
        here.store.put("runs/tiny/status/ingest-0.json", b"not JSON")
        controller.reconcile("tiny")
        assert here.status()["progress"] == "30/40 films, 20 s left"
        assert here.status()["stages"][0]["progress"]["perHour"] == "1800 films/h"


RBAC = "rbac.authorization.k8s.io/v1"
