"""What launchers say of a workload: as operators, schedulers and Kueue write statuses, in one sentence of ours."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bricks_core.cluster.launcher import Failure, Task
from bricks_core.cluster.launchers import TRAINERS, launcher_for
from tests.cluster.test_launchers import PROFILE, run_with

CONTAINERS = {"Job": "main", "PyTorchJob": "pytorch", "TrainJob": "node"}
INDEX = {
    "Job": "batch.kubernetes.io/job-completion-index",
    "PyTorchJob": "training.kubeflow.org/replica-index",
    "TrainJob": "batch.kubernetes.io/job-completion-index",
}
DONE = {"Job": "Complete", "PyTorchJob": "Succeeded", "TrainJob": "Complete"}
KINDS = {"pytorchjob": "PyTorchJob", "trainjob": "TrainJob", "job": "Job"}


def clip(shards=4):
    """A launcher and its workload, as just created."""
    run = run_with(stages={"clip": {"shards": shards}})
    launcher = launcher_for(run, PROFILE, "clip")
    return launcher, launcher.render(Task(run, "clip", PROFILE))[-1]


def train(launcher="pytorchjob", nodes=2, **cluster):
    run = run_with(nodes=nodes, launcher=launcher, **cluster)
    return TRAINERS[launcher], TRAINERS[launcher].render(Task(run, "train", PROFILE))[-1]


def status(workload, *conditions, **fields):
    """The workload with this status; a condition is its type, or (type, reason, message)."""
    written = [
        dict(zip(("type", "reason", "message"), (each,) if isinstance(each, str) else each, strict=False))
        | {"status": "True"}
        for each in conditions
    ]
    return workload | {"status": {"conditions": written, "startTime": "2026-11-24T10:00:00Z"} | fields}


def pod(kind="Job", index=0, *, name="", made="10:00:00", node="node-1", phase="Running", state=None, **status):
    """A pod of a workload; `state` of its main container."""
    own = {"name": CONTAINERS[kind], "state": state or {"running": {}}}
    return {
        "metadata": {
            "name": name or f"pod-{index}",
            "labels": {INDEX[kind]: str(index)},
            "creationTimestamp": f"2026-11-24T{made}Z",
        },
        "spec": {"nodeName": node},
        "status": {"phase": phase, "containerStatuses": [own]} | status,
    }


def ended(code, kind="Job", index=0, *, at="11:00:00", said="", disrupted=False, **fields):
    state = {"terminated": {"exitCode": code, "finishedAt": f"2026-11-24T{at}Z", "message": said}}
    conditions = (
        [{"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}] if disrupted else []
    )
    return pod(kind, index, phase="Failed" if code else "Succeeded", state=state, conditions=conditions, **fields)


def pending(*, reason="Unschedulable", message="", **fields):
    scheduled = {"type": "PodScheduled", "status": "False", "reason": reason, "message": message}
    return pod(phase="Pending", state={"waiting": {}}, conditions=[scheduled], **fields)


def waiting(reason, message="", **fields):
    return pod(phase="Pending", state={"waiting": {"reason": reason, "message": message}}, **fields)


# --- done


@pytest.mark.parametrize("name", TRAINERS)
def test_a_workload_whose_condition_says_so_is_done(name):
    launcher, workload = train(name)
    seen = launcher.observe(status(workload, DONE[KINDS[name]]), [])
    assert (seen.state, seen.reason) == ("succeeded", "Succeeded")


def test_what_is_only_on_its_way_is_not_done_yet():
    launcher, job = clip()
    for interim in ("SuccessCriteriaMet", "FailureTarget"):
        assert launcher.observe(status(job, interim, active=1), [pod()]).state == "running"


def test_a_condition_that_is_false_says_nothing():
    launcher, job = clip()
    over = job | {"status": {"active": 1, "conditions": [{"type": "Failed", "status": "False"}]}}
    assert launcher.observe(over, [pod()]).state == "running"


# --- running


def test_shards_are_counted():
    launcher, job = clip(shards=16)
    seen = launcher.observe(
        status(job, active=4, succeeded=11, failed=1), [pod(index=i) for i in range(4)] + [ended(0, index=9)]
    )
    assert (seen.state, seen.message) == ("running", "11 of 16 shards are done, 4 run.")
    assert (seen.num_active, seen.num_succeeded, seen.num_failed) == (4, 11, 1)


def test_shards_run_although_others_wait_and_it_says_why_those_do():
    launcher, job = clip()
    seen = launcher.observe(status(job, active=2), [pod(index=0), pending(index=1, message="0/3 nodes are available.")])
    assert seen.state == "running"
    assert "1 run. No node fits pod pod-1: 0/3 nodes are available." in seen.message


def test_shards_that_are_done_need_not_be_shown():
    launcher, job = clip(shards=16)
    seen = launcher.observe(status(job, active=1, succeeded=15, completedIndexes="0-14"), [pod(index=15)])
    assert (seen.state, seen.message) == ("running", "15 of 16 shards are done, 1 run.")
    seen = launcher.observe(status(job, active=0, succeeded=16, completedIndexes="0-15"), [])
    assert (seen.state, seen.reason, seen.message) == ("running", "Running", "16 of 16 shards are done.")


@pytest.mark.parametrize("name", TRAINERS)
def test_pods_that_have_ended_well_are_not_taken_for_starting_until_the_condition_says_so(name):
    launcher, workload = train(name, nodes=2)
    kind = KINDS[name]
    seen = launcher.observe(status(workload, "Running"), [ended(0, kind, 0), ended(0, kind, 1)])
    assert (seen.state, seen.reason, seen.message) == ("running", "Running", "2 of 2 nodes have ended well.")


@pytest.mark.parametrize("name", TRAINERS)
def test_nodes_run_only_when_all_do(name):
    launcher, workload = train(name, nodes=2)
    kind = KINDS[name]
    one, two = pod(kind, 0), pod(kind, 1)
    assert launcher.observe(status(workload, "Running"), [one, two]).state == "running"
    missing = pending(kind=kind, index=1, message="0/4 nodes are available: 4 Insufficient nvidia.com/gpu.")
    seen = launcher.observe(status(workload, "Running"), [one, missing])
    assert (seen.state, seen.reason) == ("waiting", "Unschedulable")
    assert seen.message.startswith("1 of 2 nodes run and wait for the others. No node fits pod pod-1: 0/4 nodes")


def test_counts_of_nodes_come_from_the_operator_s_own_status():
    launcher, workload = train("pytorchjob")
    counts = {"replicaStatuses": {"Worker": {"active": 1, "succeeded": 2, "failed": 3}}}
    seen = launcher.observe(status(workload, "Running", **counts), [])
    assert (seen.num_active, seen.num_succeeded, seen.num_failed) == (1, 2, 3)


def test_nodes_of_a_trainjob_are_its_pods_as_its_status_counts_the_one_job_of_them_all():
    launcher, workload = train("trainjob", nodes=4)
    counts = {"jobsStatus": [{"name": "node", "active": 0, "ready": 1, "succeeded": 0, "failed": 0, "suspended": 0}]}
    pods = [ended(0, "TrainJob", 0), ended(75, "TrainJob", 1), pod("TrainJob", 2), pod("TrainJob", 3, phase="Pending")]
    seen = launcher.observe(status(workload, **counts), pods)
    assert (seen.num_active, seen.num_succeeded, seen.num_failed) == (2, 1, 1)


# --- waiting


def test_nobody_has_taken_it_up():
    for name, operator in (("pytorchjob", "Training Operator 1.9"), ("trainjob", "Kubeflow Trainer 2.2")):
        launcher, workload = train(name)
        seen = launcher.observe(workload, [])
        assert (seen.state, seen.reason) == ("waiting", "NoOperator")
        assert operator in seen.message
        assert "set spec.cluster.launcher to job" in seen.message
    launcher, job = clip()
    assert launcher.observe(job, []).reason == "NoOperator"
    assert "spec.cluster.launcher" not in launcher.observe(job, []).message


def test_it_was_taken_up_and_has_no_pods():
    launcher, job = clip()
    seen = launcher.observe(status(job), [])
    assert (seen.state, seen.reason) == ("waiting", "NoPods")
    assert f"kubectl describe job {job['metadata']['name']}" in seen.message


UNSCHEDULABLE = [
    ("0/4 nodes are available: 4 Insufficient rdma/ib.", "as soon as there is room"),
    ("0/4 nodes are available: 4 node(s) had untolerated taint {dedicated: gpu}.", "tolerations or gpuTolerations"),
    ("0/4 nodes are available: 4 node(s) didn't match Pod's node affinity/selector.", "gpuNodeSelector"),
    ('persistentvolumeclaim "films" not found', "kubectl get pvc"),
]


@pytest.mark.parametrize(("said", "advice"), UNSCHEDULABLE)
def test_the_scheduler_s_words_are_told_with_what_to_do(said, advice):
    launcher, job = clip()
    seen = launcher.observe(status(job, active=1), [pending(message=said)])
    assert (seen.state, seen.reason) == ("waiting", "Unschedulable")
    assert said in seen.message
    assert advice in seen.message


@pytest.mark.parametrize("reason", ["ImagePullBackOff", "ErrImagePull", "InvalidImageName"])
def test_an_image_that_cannot_be_fetched_is_named(reason):
    launcher, job = clip()
    said = 'Back-off pulling image "ghcr.io/bricks/bricks-clip:0.1.0"'
    seen = launcher.observe(status(job, active=1), [waiting(reason, said)])
    assert (seen.state, seen.reason) == ("waiting", "ImagePull")
    assert said in seen.message
    assert "images.pullSecrets" in seen.message


def test_a_missing_secret_is_named():
    launcher, job = clip()
    seen = launcher.observe(
        status(job, active=1), [waiting("CreateContainerConfigError", 'secret "bricks-s3" not found')]
    )
    assert (seen.state, seen.reason) == ("waiting", "CreateContainerConfigError")
    assert 'secret "bricks-s3" not found. If a Secret or ConfigMap is missing, create it' in seen.message


def test_a_pod_that_is_only_starting_is_said_to():
    launcher, job = clip()
    seen = launcher.observe(status(job, active=1), [waiting("ContainerCreating")])
    assert (seen.state, seen.reason) == ("waiting", "Starting")


def test_a_pod_that_a_lost_node_does_not_let_go_of_is_named_with_what_to_do():
    launcher, job = clip()
    lost = pod(node="node-7", conditions=[{"type": "DisruptionTarget", "status": "True"}])
    lost["metadata"]["deletionTimestamp"] = "2026-11-24T11:00:00Z"
    seen = launcher.observe(status(job, active=0), [lost])
    assert (seen.state, seen.reason) == ("waiting", "Stopping")
    assert "Pod pod-0 on node node-7 is being stopped" in seen.message
    assert "kubectl delete node node-7" in seen.message


def test_a_pod_that_starts_over_and_over_is_told_with_its_code():
    launcher, workload = train(nodes=1)
    again = waiting("CrashLoopBackOff", kind="PyTorchJob")
    again["status"]["containerStatuses"][0]["lastState"] = {"terminated": {"exitCode": 70}}
    seen = launcher.observe(status(workload, "Restarting"), [again])
    assert (seen.reason, seen.state) == ("Restarting", "waiting")
    assert "ended with 70" in seen.message


# --- Kueue


def admission(*conditions, **status):
    written = [
        {"type": kind, "status": value, "reason": reason, "message": message}
        for kind, value, reason, message in conditions
    ]
    return {"kind": "Workload", "spec": {"active": True}, "status": {"conditions": written} | status}


def suspended(name="pytorchjob", queue="bricks-gpu"):
    launcher, workload = train(name, queue=queue)
    spec = workload["spec"]
    spec = spec | ({"runPolicy": spec["runPolicy"] | {"suspend": True}} if name == "pytorchjob" else {"suspend": True})
    return launcher, status(workload | {"spec": spec}, "Suspended")


NO_ROOM = "couldn't assign flavors to pod set worker: insufficient unused quota for nvidia.com/gpu in flavor h100"


@pytest.mark.parametrize("name", TRAINERS)
def test_kueue_s_words_are_told_as_they_are(name):
    launcher, workload = suspended(name)
    seen = launcher.observe(workload, [], admission(("QuotaReserved", "False", "Pending", NO_ROOM)))
    assert (seen.state, seen.reason) == ("waiting", "Queued")
    assert f"waits in queue bricks-gpu: {NO_ROOM}." in seen.message


def test_kueue_that_took_it_back_is_told_with_why():
    launcher, workload = suspended()
    evicted = ("Evicted", "True", "Preempted", "Preempted to accommodate a higher priority Workload")
    seen = launcher.observe(workload, [], admission(("QuotaReserved", "False", "Pending", NO_ROOM), evicted))
    assert "was stopped (Preempted): Preempted to accommodate a higher priority Workload." in seen.message


def test_kueue_that_waits_for_a_check_says_which():
    launcher, workload = suspended()
    checks = [{"name": "provisioning", "state": "Pending", "message": "4 machines are being made"}]
    reserved = admission(("QuotaReserved", "True", "QuotaReserved", ""), admissionChecks=checks)
    assert "provisioning: 4 machines are being made." in launcher.observe(workload, [], reserved).message


def test_kueue_that_has_not_seen_it_or_was_told_to_leave_it_is_said():
    launcher, workload = suspended()
    assert "integrations.frameworks" in launcher.observe(workload, [], None).message
    seen = launcher.observe(workload, [], admission() | {"spec": {"active": False}})
    assert seen.reason == "Deactivated"


def test_suspended_without_a_queue_is_somebody_s_doing():
    launcher, workload = suspended(queue="")
    seen = launcher.observe(workload, [], None)
    assert (seen.state, seen.reason) == ("waiting", "Suspended")


# --- failed


def failed(workload, reason="BackoffLimitExceeded", message=""):
    return status(workload, ("Failed", reason, message), failed=1)


def test_the_failed_pod_s_code_node_and_last_line_are_told():
    launcher, job = clip()
    said = "reading\nbricks-clip: s3://films has no film in it.\n"
    seen = launcher.observe(failed(job, "PodFailurePolicy"), [ended(65, said=said), ended(0, index=1)])
    assert (seen.state, seen.reason) == ("failed", "PodFailurePolicy")
    assert seen.failure == Failure(65)
    assert "pod pod-0 on node node-1 ended with 65." in seen.message
    assert seen.message.endswith("Its last line: bricks-clip: s3://films has no film in it.")


def test_other_containers_of_a_pod_may_end_as_they_like():
    launcher, job = clip()
    mesh = ended(69)
    mesh["status"]["containerStatuses"].insert(0, {"name": "istio-proxy", "state": {"terminated": {"exitCode": 137}}})
    assert launcher.observe(failed(job), [mesh]).failure == Failure(69)


@pytest.mark.parametrize(
    ("codes", "decisive"),
    [
        ({0: (1, "10:00:00"), 1: (78, "10:00:09")}, 78),
        ({0: (65, "10:00:09"), 1: (69, "10:00:00")}, 65),
        ({0: (77, "10:00:09"), 1: (70, "10:00:00")}, 77),
        ({0: (70, "10:00:09"), 1: (75, "10:00:00")}, 75),
        ({0: (143, "10:00:00"), 1: (70, "10:00:09")}, 70),
        ({0: (137, "10:00:00"), 1: (64, "10:00:09")}, 64),
    ],
)
def test_of_several_ends_the_one_that_tells_most_decides_and_then_the_first(codes, decisive):
    launcher, workload = train(nodes=2)
    pods = [ended(code, "PyTorchJob", index, at=at) for index, (code, at) in codes.items()]
    assert launcher.observe(failed(workload), pods).failure.exit_code == decisive


def test_only_the_newest_pod_of_an_index_counts():
    launcher, job = clip()
    pods = [ended(137, name="b", made="12:00:00"), ended(64, name="a", made="10:00:00")]
    assert launcher.observe(failed(job), pods).failure == Failure(137)


def test_what_a_shard_failed_with_before_it_was_done_explains_nothing():
    launcher, job = clip(shards=4)
    pods = [ended(137, index=0, at="10:00:00"), ended(1, index=3, at="11:00:00")]
    assert launcher.observe(failed(job), pods).failure == Failure(137)
    done = failed(job)
    done["status"]["completedIndexes"] = "0-1,2"
    assert launcher.observe(done, pods).failure == Failure(1)


@pytest.mark.parametrize("name", TRAINERS)
def test_nodes_that_failed_their_preflight_are_named(name):
    launcher, workload = train(name, nodes=3)
    kind = KINDS[name]
    pods = [ended(77, kind, 2, node="node-7"), ended(77, kind, 0, node="node-3"), ended(75, kind, 1, node="node-1")]
    seen = launcher.observe(failed(workload), pods)
    assert seen.failure == Failure(77, bad_nodes=("node-3", "node-7"))


@pytest.mark.parametrize("code", [143, 137, 1])
def test_a_pod_that_was_taken_away_is_no_fault_of_its_own(code):
    launcher, workload = train(nodes=1)
    seen = launcher.observe(failed(workload), [ended(code, "PyTorchJob", disrupted=True, node="node-4")])
    assert seen.failure == Failure(code, disrupted=True)
    assert "stopped from outside: pod pod-0 on node node-4 was taken away" in seen.message


def test_nodes_that_fall_because_one_was_taken_away_are_no_fault_either():
    launcher, workload = train(nodes=2)
    pods = [ended(143, "PyTorchJob", 0, disrupted=True, at="10:00:00"), ended(1, "PyTorchJob", 1, at="10:00:05")]
    assert launcher.observe(failed(workload), pods).failure.disrupted


def test_a_run_file_that_is_wrong_stays_wrong_although_a_node_was_taken_away():
    launcher, workload = train(nodes=2)
    pods = [ended(143, "PyTorchJob", 0, disrupted=True), ended(78, "PyTorchJob", 1)]
    assert launcher.observe(failed(workload), pods).failure == Failure(78)


def test_a_shard_that_fails_is_not_excused_by_another_that_was_taken_away():
    launcher, job = clip()
    pods = [ended(143, index=0, disrupted=True), ended(70, index=1)]
    assert launcher.observe(failed(job), pods).failure == Failure(70)


def test_a_pod_of_a_node_that_vanished_has_no_code_and_no_fault():
    launcher, workload = train(nodes=1)
    lost = pod("PyTorchJob", phase="Failed", conditions=[{"type": "DisruptionTarget", "status": "True"}])
    lost["status"]["containerStatuses"] = []
    assert launcher.observe(failed(workload), [lost]).failure == Failure(None, disrupted=True)


def test_a_pod_that_filled_more_disk_than_it_may_is_at_fault_itself():
    launcher, job = clip()
    full = ended(137, said="cutting")
    said = 'Usage of EmptyDir volume "scratch" exceeds the limit "20Gi".'
    full["status"] |= {"reason": "Evicted", "message": said}
    seen = launcher.observe(failed(job), [full])
    assert seen.failure == Failure(137)
    assert seen.message.endswith(said)


@pytest.mark.parametrize("code", [0, 130, 143])
def test_a_pod_that_filled_its_disk_and_left_when_told_to_was_not_stopped_from_outside(code):
    launcher, job = clip()
    full = ended(code)
    full["status"] |= {"phase": "Failed", "reason": "Evicted", "message": "Pod ephemeral local storage usage exceeds."}
    assert launcher.observe(failed(job), [full]).failure == Failure(137)


def test_a_pod_that_its_node_did_not_let_in_is_told_with_the_node_s_words():
    launcher, job = clip()
    said = "Allocate failed due to no healthy devices present; cannot allocate unhealthy devices rdma/ib"
    refused = pod(phase="Failed", reason="UnexpectedAdmissionError", message=said)
    refused["status"]["containerStatuses"] = []
    seen = launcher.observe(failed(job), [refused])
    assert seen.failure == Failure(None)
    assert f"pod pod-0 on node node-1 never ran. {said}" in seen.message


def test_pods_that_are_being_deleted_were_stopped():
    launcher, workload = train(nodes=1)
    going = ended(143, "PyTorchJob")
    going["metadata"]["deletionTimestamp"] = "2026-11-24T11:00:00Z"
    assert launcher.observe(failed(workload), [going]).failure == Failure(143, disrupted=True)


def test_a_deadline_is_nobody_else_s_fault():
    launcher, job = clip()
    seen = launcher.observe(
        failed(job, "DeadlineExceeded", "Job was active longer than specified deadline"), [ended(143)]
    )
    assert (seen.reason, seen.failure) == ("DeadlineExceeded", Failure(None))
    assert seen.message.endswith("Job was active longer than specified deadline.")


def test_the_training_operator_tells_a_deadline_in_its_message_alone():
    launcher, workload = train()
    said = "Job quickstart-train-a1 has failed because it was active longer than specified deadline"
    seen = launcher.observe(failed(workload, "PyTorchJobFailed", said), [ended(143, "PyTorchJob")])
    assert (seen.reason, seen.failure) == ("DeadlineExceeded", Failure(None))


def test_a_failure_without_pods_is_told_with_the_operator_s_words():
    launcher, workload = train("trainjob")
    seen = launcher.observe(failed(workload, "TrainingRuntimeNotSupported", "The referenced runtime is not there"), [])
    assert (seen.reason, seen.failure) == ("TrainingRuntimeNotSupported", Failure(None))
    assert "none of its pods is left to say why. The referenced runtime is not there." in seen.message


# --- whatever it sees

WORKLOADS = {name: train(name) for name in TRAINERS} | {"clip": clip()}
CODES = st.sampled_from([0, 1, 64, 65, 69, 70, 75, 77, 78, 130, 134, 137, 139, 143])


@st.composite
def some_pods(draw, kind):
    pods = []
    for number in range(draw(st.integers(0, 5))):
        index = draw(st.integers(0, 2))
        made = f"10:00:0{draw(st.integers(0, 9))}"
        how = draw(st.sampled_from(["runs", "ended", "pending", "waits", "bare"]))
        common = {"kind": kind, "index": index, "name": f"pod-{number}", "made": made}
        if how == "runs":
            one = pod(**common)
        elif how == "ended":
            one = ended(draw(CODES), **common, disrupted=draw(st.booleans()), at=f"11:00:0{draw(st.integers(0, 9))}")
        elif how == "pending":
            one = pending(**common, message=draw(st.text(max_size=20)))
        elif how == "waits":
            one = waiting(draw(st.sampled_from(["", "ErrImagePull", "CrashLoopBackOff"])), **common)
        else:
            one = {"metadata": {"name": f"pod-{number}"}}
        if draw(st.booleans()):
            one["metadata"]["deletionTimestamp"] = "2026-11-24T12:00:00Z"
        pods.append(one)
    return pods


@settings(max_examples=150, deadline=None)
@given(data=st.data(), name=st.sampled_from([*TRAINERS, "clip"]))
def test_whatever_pods_say_something_is_told_and_a_failure_names_why(data, name):
    launcher, workload = WORKLOADS[name]
    kind = workload["kind"]
    kinds = data.draw(st.lists(st.sampled_from(["Failed", DONE[kind], "Running", "Suspended"]), max_size=2))
    seen_by_operator = data.draw(st.booleans())
    pods = data.draw(some_pods(kind))
    seen = launcher.observe(status(workload, *kinds) if seen_by_operator else workload, pods)
    assert seen.message.endswith((".", "`", "?", "!")) or seen.failure
    assert seen.reason.isalpha()
    assert (seen.failure is not None) == (seen.state == "failed")
    if seen.state == "failed" and seen.failure.exit_code is not None:
        codes = [
            each["state"]["terminated"]["exitCode"]
            for one in pods
            for each in one.get("status", {}).get("containerStatuses", [])
            if "terminated" in each["state"]
        ]
        assert seen.failure.exit_code in codes
