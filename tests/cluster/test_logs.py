"""bricks logs: what pods wrote, how they ended, and why there is nothing to be read."""

import time

import pytest

from bricks_core.cluster.indexed_job import INDEX_LABEL
from tests.cluster.command_line import NAMESPACE
from tests.cluster.test_submit import condition, tell_status


@pytest.fixture
def stage(double):
    return Stage(double)


class Stage:
    """Makes the Job and pods of a stage, and plays their kubelet by hand."""

    def __init__(self, server):
        self.server = server
        server.controllers.clear()  # nobody but the test makes pods
        self.job = None

    def begin(self, stage="clip", attempt=1, shards=1):
        labels = self.labels(stage, attempt)
        template = {
            "metadata": {"labels": labels},
            "spec": {"restartPolicy": "Never", "containers": [{"name": "main", "image": "i"}]},
        }
        with self.server.hold():
            self.job = self.server.make(
                {
                    "apiVersion": "batch/v1",
                    "kind": "Job",
                    "metadata": {"name": f"small-{stage}-a{attempt}", "namespace": NAMESPACE, "labels": labels},
                    "spec": {
                        "completionMode": "Indexed",
                        "completions": shards,
                        "parallelism": shards,
                        "template": template,
                    },
                }
            )
        return self

    def pod(self, index=0, lines=(), **state):
        """A pod of the Job that has written some lines; state: running={}, terminated={...} or waiting={...}."""
        name = f"{self.job['metadata']['name']}-{index}"
        labels = self.job["metadata"]["labels"] | {INDEX_LABEL: str(index)}
        owner = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "name": self.job["metadata"]["name"],
            "uid": self.job["metadata"]["uid"],
            "controller": True,
        }
        with self.server.hold():
            self.server.make(
                {
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "metadata": {"name": name, "namespace": NAMESPACE, "labels": labels, "ownerReferences": [owner]},
                    "spec": {"containers": [{"name": "main", "image": "i"}]},
                }
            )
        self.is_in(index, **state)
        if "waiting" not in state:
            self.server.logs.begin(NAMESPACE, name, "main")
            self.writes(index, *lines)
        if "terminated" in state:
            self.server.logs.end(NAMESPACE, name, "main")
        return self

    def writes(self, index, *lines):
        for line in lines:
            self.server.logs.write(NAMESPACE, f"{self.job['metadata']['name']}-{index}", "main", line)

    def ends(self, index, code=0):
        self.server.logs.end(NAMESPACE, f"{self.job['metadata']['name']}-{index}", "main")
        self.is_in(index, terminated={"exitCode": code})

    def is_in(self, index, **state):
        code = state.get("terminated", {}).get("exitCode")
        phase = {None: "Running" if "running" in state else "Pending", 0: "Succeeded"}.get(code, "Failed")
        status = {"phase": phase, "containerStatuses": [{"name": "main", "state": state}]}
        self._write("Pod", f"{self.job['metadata']['name']}-{index}", status)

    def is_complete(self):
        self._write(
            "Job", self.job["metadata"]["name"], {"conditions": [condition("Complete", "True", "Done", "Done")]}
        )

    def is_deleted(self):
        cluster = self.server.cluster(NAMESPACE)
        for pod in cluster.list("Pod"):
            cluster.delete("Pod", pod["metadata"]["name"])
        cluster.delete("Job", self.job["metadata"]["name"], foreground=False)

    @staticmethod
    def labels(stage, attempt):
        return {
            "app.kubernetes.io/name": "bricks",
            "bricks.dev/run": "small",
            "bricks.dev/stage": stage,
            "bricks.dev/attempt": str(attempt),
        }

    def _write(self, kind, name, status):
        cluster = self.server.cluster(NAMESPACE)
        with self.server.hold():
            cluster.write_status(cluster.get(kind, name) | {"status": status})


ENDED_WELL = {"exitCode": 0}


def until(said):
    """Wait for something to become so."""
    for _ in range(600):
        if said():
            return
        time.sleep(0.05)
    raise AssertionError("it never became so")


def test_the_lines_of_a_stages_one_pod_are_printed_as_they_are(bricks, stage):
    stage.begin().pod(0, ["one", "two", "three"], terminated=ENDED_WELL)
    assert bricks("logs", "small", "clip").out == "one\ntwo\nthree\n"
    assert bricks("logs", "small", "clip", "--tail", "1").out == "three\n"


def test_the_lines_of_several_pods_say_whose_they_are(bricks, stage):
    stage.begin(shards=2).pod(0, ["first"], terminated=ENDED_WELL).pod(1, ["second"], running={})
    assert bricks("logs", "small", "clip").out == "[clip-0] first\n[clip-1] second\n"
    assert bricks("logs", "small", "clip", "--index", "1").out == "second\n"


def test_the_last_attempt_is_meant_unless_another_is_named(bricks, stage):
    stage.begin(attempt=1).pod(0, ["old"], terminated=ENDED_WELL)
    stage.begin(attempt=2).pod(0, ["new"], terminated=ENDED_WELL)
    assert bricks("logs", "small", "clip").out == "new\n"
    assert bricks("logs", "small", "clip", "--attempt", "1").out == "old\n"


def test_how_a_pod_ended_stands_after_its_lines(bricks, stage):
    ended = {"exitCode": 78, "reason": "Error", "message": "reading\nbricks: clip.min_frames is 0: take 1 or more.\n"}
    stage.begin().pod(0, ["reading"], terminated=ended)
    said = bricks("logs", "small", "clip").out
    assert said == "reading\n(ended with exit code 78: bricks: clip.min_frames is 0: take 1 or more.)\n"


def test_a_pod_killed_for_its_memory_says_so(bricks, stage):
    stage.begin().pod(0, terminated={"exitCode": 137, "reason": "OOMKilled"})
    assert bricks("logs", "small", "clip").out == "(ended with exit code 137, OOMKilled)\n"


def test_a_pod_that_has_not_started_says_why(bricks, stage):
    stage.begin().pod(0, waiting={"reason": "ImagePullBackOff", "message": "no such image"})
    assert "(has written nothing yet: ImagePullBackOff: no such image)" in bricks("logs", "small", "clip").out


def test_logs_that_went_with_their_job_are_told_with_what_the_run_still_knows(bricks, stage, double):
    bricks("submit", bricks.run_file())
    stage.begin().pod(0, ["gone"], terminated=ENDED_WELL).is_deleted()
    said = "clip, try 3: its pod ended with 78: clip.min_frames is 0."
    tell_status(double, stages=[{"name": "clip", "state": "Failed", "message": said}])
    error = bricks("logs", "small", "clip", code=65).error
    assert "its logs with it" in error
    assert said in error


def test_a_stage_that_is_done_says_where_to_look_instead(bricks, double):
    bricks("submit", bricks.run_file())
    tell_status(double, stages=[{"name": "clip", "state": "Done"}])
    assert "bricks show small/clip" in bricks("logs", "small", "clip", code=65).error


def test_a_stage_that_has_not_begun_says_where_the_run_is(bricks, double):
    bricks("submit", bricks.run_file())
    tell_status(
        double,
        currentStage="clip",
        stages=[{"name": "clip", "state": "Running"}, {"name": "train", "state": "Pending"}],
    )
    assert "train of run small has not begun. The run is at clip." in bricks("logs", "small", "train", code=65).error


def test_an_attempt_that_never_was_is_said_not_to_be(bricks, double):
    bricks("submit", bricks.run_file())
    tell_status(double, stages=[{"name": "clip", "state": "Done", "attempt": 2}])
    error = bricks("logs", "small", "clip", "--attempt", "5", code=65).error
    assert error == "There is no attempt 5 of clip of run small: the last is 2."


def test_a_stage_that_the_run_does_not_have_is_not_said_to_come(bricks, double):
    bricks("submit", bricks.run_file())
    tell_status(double, stages=[{"name": "clip", "state": "Done"}, {"name": "latents", "state": "Pending"}])
    assert "Run small has no train" in bricks("logs", "small", "train", code=65).error


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["small", "trian"], 'did you mean "train"?'),
        (["smal", "train"], 'did you mean "small"?'),
    ],
)
def test_a_wrong_name_is_told_with_the_nearest_right_one(bricks, arguments, says):
    bricks("submit", bricks.run_file())
    assert says in bricks("logs", *arguments, code=None).error


def test_following_waits_for_pods_to_start_and_ends_with_their_job(bricks, stage, double):
    stage.begin(shards=2).pod(0, waiting={"reason": "ContainerCreating"})
    thread, said = bricks.background("logs", "small", "clip", "--follow")
    until(lambda: len(double.requests) > 4)
    stage.pod(1, ["from one"], running={})
    double.logs.begin(NAMESPACE, "small-clip-a1-0", "main")
    stage.is_in(0, running={})
    stage.writes(0, "from nought")
    stage.ends(1)
    stage.writes(0, "last")
    stage.ends(0, code=65)
    stage.is_complete()
    thread.join(60)
    assert said[0].code == 0, said[0].error
    lines = said[0].out.splitlines()
    assert any("ContainerCreating" in line for line in lines[:2])
    assert [line for line in lines if line.startswith("[clip-0]")] == [
        "[clip-0] from nought",
        "[clip-0] last",
        "[clip-0] (ended with exit code 65)",
    ]
    assert [line for line in lines if line.startswith("[clip-1]")] == ["[clip-1] from one"]


def test_following_waits_for_a_stage_that_is_still_to_come(bricks, stage, double):
    bricks("submit", bricks.run_file())
    thread, said = bricks.background("logs", "small", "clip", "--follow")
    until(lambda: any(request.resource == "jobs" for request in double.requests))
    stage.begin().pod(0, ["here"], terminated=ENDED_WELL).is_complete()
    thread.join(60)
    assert said[0].out.splitlines()[-1] == "here"


def test_following_a_stage_that_will_never_write_ends_with_the_reason(bricks, double):
    bricks("submit", bricks.run_file())
    tell_status(double, stages=[{"name": "clip", "state": "Done"}])
    assert "bricks show small/clip" in bricks("logs", "small", "clip", "--follow", code=65).error
