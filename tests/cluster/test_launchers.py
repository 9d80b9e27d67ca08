"""What launchers render: for any run and any cluster, something that a strict API server takes, and always the same."""

import json
from dataclasses import replace

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bricks_core.cluster.indexed_job import IndexedJob
from bricks_core.cluster.launcher import Owner, Task
from bricks_core.cluster.launchers import TRAINERS, launcher_for, launcher_of
from bricks_core.errors import SpecError
from bricks_core.spec.cluster import ClusterProfile
from bricks_core.spec.run import BrickRun
from bricks_core.spec.stages import STAGES
from tests.cluster.strategies import QUICKSTART, SHARDED, tasks
from tests.schemas import valid
from tests.schemas.pods import pods_of

OWNER = Owner("quickstart", "11111111-2222-3333-4444-555555555555")
PROFILE = ClusterProfile()


def run_with(**cluster):
    document = QUICKSTART.model_dump(mode="json")
    document["spec"]["cluster"] = cluster
    return BrickRun.model_validate(document)


def profile_with(**changes):
    return ClusterProfile.model_validate(changes)


def rendered(task):
    return launcher_for(task.run, task.profile, task.stage).render(task)


def workload(task):
    return rendered(task)[-1]


def pod(task):
    ((_, template),) = [each for obj in rendered(task) for each in pods_of(obj)]
    return template


def container(task):
    return pod(task)["spec"]["containers"][0]


def allowed(task):
    rdma = task.profile.train.rdma
    asked = {"root-memlock": rdma.memlock == "root", "host-network": rdma.host_network}
    return [name for name, wanted in asked.items() if wanted and task.stage == "train"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(task=tasks, launcher=st.sampled_from(sorted(TRAINERS)), versions=st.sampled_from([["1.33"], ["1.35"], ["1.37"]]))
def test_whatever_is_rendered_is_valid_and_always_the_same(task, launcher, versions):
    chosen = TRAINERS[launcher] if task.stage == "train" else IndexedJob()
    objects = chosen.render(task)
    for each in objects:
        valid(each, versions=versions, allow=allowed(task))
        for key in (task.run.name, "bricks"):
            assert key in each["metadata"]["labels"].values()
        references = each["metadata"].get("ownerReferences", [])
        assert [reference["uid"] for reference in references] == ([task.owner.uid] if task.owner else [])
    copy = replace(
        task,
        run=BrickRun.model_validate(task.run.model_dump(mode="json")),
        profile=ClusterProfile.model_validate(task.profile.model_dump(mode="json", by_alias=True)),
    )
    assert json.dumps(chosen.render(copy)) == json.dumps(objects)
    assert json.loads(json.dumps(objects)) == objects
    made = objects[-1]
    assert (made["apiVersion"], made["kind"]) == (chosen.api_version, chosen.kind)
    assert made["metadata"]["name"] == task.workload_name


@settings(max_examples=30, deadline=None)
@given(task=tasks)
def test_the_run_in_the_config_map_is_the_run(task):
    config = rendered(task)[0]
    read = BrickRun.model_validate(yaml.safe_load(config["data"]["run.yaml"]))
    for stage in STAGES:
        assert read.stage_spec(stage) == task.run.stage_spec(stage)
    assert read.spec.cluster == task.run.spec.cluster
    assert read.name == task.run.name
    assert config["immutable"] is True


def test_the_config_map_is_shared_by_tries_and_stages_and_changes_with_what_is_in_it():
    def name(**changes):
        return rendered(Task(**{"run": QUICKSTART, "stage": "clip", "profile": PROFILE, "owner": OWNER} | changes))[0]

    first = name()
    assert name(attempt=2) == first
    assert name(stage="train") == first
    stopped = QUICKSTART.model_copy(update={"spec": QUICKSTART.spec.model_copy(update={"suspend": True})})
    annotated = QUICKSTART.model_copy(
        update={"metadata": QUICKSTART.metadata.model_copy(update={"annotations": {"a": "b"}})}
    )
    assert name(run=stopped) == first
    assert name(run=annotated) == first
    others = [
        name(run=run_with(nodes=2)),
        name(profile=profile_with(preflight={"shmBytes": 1})),
        name(owner=Owner("quickstart", "another")),
    ]
    assert len({each["metadata"]["name"] for each in [first, *others]}) == 4


def test_a_run_too_large_for_a_config_map_is_refused_in_a_sentence():
    document = QUICKSTART.model_dump(mode="json")
    document["spec"]["evaluate"]["prompts"] = ["A brick. " * 200] * 600
    with pytest.raises(SpecError, match=r"is \d+ bytes long, and a cluster's ConfigMap holds 1000000"):
        rendered(Task(BrickRun.model_validate(document), "clip", PROFILE))


@pytest.mark.parametrize("stage", SHARDED)
def test_a_sharded_stage_is_an_indexed_job_with_a_pod_for_every_shard(stage):
    job = workload(Task(run_with(stages={stage: {"shards": 300, "parallelism": 40}}), stage, PROFILE))
    assert job["kind"] == "Job"
    assert job["spec"]["completionMode"] == "Indexed"
    assert (job["spec"]["completions"], job["spec"]["parallelism"]) == (300, 40)
    ((_, template),) = pods_of(job)
    main = template["spec"]["containers"][0]
    assert main["command"] == ["python", "-m", f"jobs.{stage}"]
    assert main["args"] == ["--run", "/etc/bricks/run.yaml", "--num-shards", "300"]


def test_a_stage_that_has_no_shards_is_one_pod_whatever_is_asked():
    job = workload(Task(run_with(stages={"train": {"shards": 5}}), "train", PROFILE))
    assert job["spec"]["completions"] == 1
    assert container(Task(QUICKSTART, "train", PROFILE))["args"] == ["--run", "/etc/bricks/run.yaml"]


def test_samples_are_made_by_one_pod_with_a_gpu_unless_the_run_or_the_profile_asks_for_more():
    job = workload(Task(QUICKSTART, "evaluate", PROFILE))
    assert job["spec"]["completions"] == 1
    profile = profile_with(stages={"evaluate": {"shards": 3, "gpus": 2}})
    shared = Task(QUICKSTART, "evaluate", profile)
    assert workload(shared)["spec"]["completions"] == 3
    assert container(shared)["resources"]["limits"]["nvidia.com/gpu"] == "2"
    run = run_with(stages={"evaluate": {"shards": 5}})
    assert workload(Task(run, "evaluate", profile))["spec"]["completions"] == 5


def test_exit_codes_decide_what_a_job_does():
    rules = workload(Task(QUICKSTART, "clip", PROFILE))["spec"]["podFailurePolicy"]["rules"]
    assert [rule["action"] for rule in rules] == ["Ignore", "FailJob", "FailIndex"]
    assert rules[0]["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert rules[1]["onExitCodes"]["values"] == [64, 78]
    assert rules[2]["onExitCodes"]["values"] == [65]


def test_shards_are_tried_again_alone_and_one_pod_of_the_controller_s_is_left_to_the_controller():
    sharded = workload(Task(QUICKSTART, "clip", PROFILE, owner=OWNER))["spec"]
    assert (sharded["backoffLimitPerIndex"], sharded["maxFailedIndexes"]) == (2, 4)
    assert workload(Task(QUICKSTART, "evaluate", PROFILE, owner=OWNER))["spec"]["backoffLimitPerIndex"] == 0
    assert workload(Task(QUICKSTART, "evaluate", PROFILE))["spec"]["backoffLimitPerIndex"] == 2


def test_what_the_controller_owns_goes_with_its_run_and_what_nobody_owns_goes_by_itself():
    for stage in ("clip", "train"):
        assert "ttlSecondsAfterFinished" not in json.dumps(rendered(Task(QUICKSTART, stage, PROFILE, owner=OWNER)))
    assert workload(Task(QUICKSTART, "clip", PROFILE))["spec"]["ttlSecondsAfterFinished"] == 604_800
    two = Task(run_with(nodes=2, launcher="pytorchjob"), "train", PROFILE)
    assert workload(two)["spec"]["runPolicy"]["ttlSecondsAfterFinished"] == 604_800
    assert "ttlSecondsAfterFinished" not in workload(replace(two, owner=OWNER))["spec"]["runPolicy"]


def test_a_pytorchjob_has_workers_alone_that_meet_over_c10d():
    task = Task(run_with(nodes=4, gpus_per_node=8, launcher="pytorchjob"), "train", PROFILE, owner=OWNER)
    spec = workload(task)["spec"]
    assert spec["nprocPerNode"] == "8"
    assert list(spec["pytorchReplicaSpecs"]) == ["Worker"]
    assert spec["pytorchReplicaSpecs"]["Worker"]["replicas"] == 4
    assert (spec["elasticPolicy"]["minReplicas"], spec["elasticPolicy"]["maxReplicas"]) == (4, 4)
    assert spec["elasticPolicy"]["rdzvBackend"] == "c10d"
    assert spec["runPolicy"]["cleanPodPolicy"] == "Running"
    assert environment(task)["BRICKS_RENDEZVOUS"] == "quickstart-train-a1-worker-0:29400"


def test_a_failed_pytorchjob_is_made_anew_by_the_controller_or_goes_on_in_its_pods():
    two = Task(run_with(nodes=2, launcher="pytorchjob"), "train", PROFILE)
    assert workload(replace(two, owner=OWNER))["spec"]["pytorchReplicaSpecs"]["Worker"]["restartPolicy"] == "Never"
    assert "backoffLimit" not in workload(replace(two, owner=OWNER))["spec"]["runPolicy"]
    alone = workload(two)["spec"]
    assert alone["pytorchReplicaSpecs"]["Worker"]["restartPolicy"] == "OnFailure"
    assert alone["runPolicy"]["backoffLimit"] == (PROFILE.train.max_restarts + 1) * 2


def test_a_trainjob_brings_its_own_runtime():
    task = Task(run_with(nodes=4, gpus_per_node=8, launcher="trainjob"), "train", PROFILE)
    config, runtime, job = rendered(task)
    assert (config["kind"], runtime["kind"], job["kind"]) == ("ConfigMap", "TrainingRuntime", "TrainJob")
    assert job["spec"]["runtimeRef"]["name"] == runtime["metadata"]["name"]
    assert job["spec"]["trainer"] == {"numNodes": 4, "numProcPerNode": 8}
    assert runtime["spec"]["mlPolicy"] == {"numNodes": 4, "torch": {}}
    assert runtime["spec"]["template"]["spec"]["failurePolicy"]["maxRestarts"] == 4
    assert rendered(replace(task, owner=OWNER))[1]["spec"]["template"]["spec"]["failurePolicy"]["maxRestarts"] == 0
    assert environment(task)["BRICKS_RENDEZVOUS"] == "quickstart-train-a1-node-0-0.quickstart-train-a1:29400"


def test_without_an_operator_nodes_meet_at_a_headless_service():
    task = Task(run_with(nodes=4, launcher="job"), "train", PROFILE, owner=OWNER)
    _, service, job = rendered(task)
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert service["metadata"]["name"] == job["spec"]["template"]["spec"]["subdomain"]
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": job["metadata"]["name"]}
    assert (job["spec"]["completions"], job["spec"]["parallelism"]) == (4, 4)
    assert job["spec"]["backoffLimit"] == 0
    assert environment(task)["BRICKS_RENDEZVOUS"] == "quickstart-train-a1-0.quickstart-train-a1:29400"


def environment(task):
    return {each["name"]: each.get("value", each.get("valueFrom")) for each in container(task)["env"]}


RANKS = {
    "pytorchjob": "metadata.labels['training.kubeflow.org/replica-index']",
    "trainjob": "metadata.labels['batch.kubernetes.io/job-completion-index']",
    "job": "metadata.labels['batch.kubernetes.io/job-completion-index']",
}


@pytest.mark.parametrize("launcher", TRAINERS)
def test_bricks_train_is_told_its_place_by_every_launcher(launcher):
    profile = profile_with(train={"graceS": 120, "rdma": {"resources": {"rdma/ib": 1}}, "nccl": {"NCCL_NET": "IB"}})
    task = Task(run_with(nodes=2, gpus_per_node=0, launcher=launcher), "train", profile)
    told = environment(task)
    assert told["BRICKS_NODES"] == "2"
    assert told["BRICKS_PROCESSES"] == "1"
    assert told["BRICKS_RENDEZVOUS_ID"] == "quickstart-train-a1"
    assert told["BRICKS_GRACE_S"] == "120"
    assert told["BRICKS_MAX_RESTARTS"] == "3"
    assert told["BRICKS_RDMA"] == "1"
    assert told["NCCL_NET"] == "IB"
    assert told["BRICKS_NODE_RANK"] == {"fieldRef": {"fieldPath": RANKS[launcher]}}
    assert told["BRICKS_NODE_NAME"] == {"fieldRef": {"fieldPath": "spec.nodeName"}}
    assert container(task)["command"] == ["bricks-train"]
    assert pod(task)["spec"]["terminationGracePeriodSeconds"] == 120


def test_one_node_needs_no_operator_unless_the_run_asks_for_it():
    assert launcher_for(run_with(nodes=1), PROFILE, "train").kind == "Job"
    assert launcher_for(run_with(), PROFILE, "train").kind == "Job"
    assert launcher_for(run_with(nodes=2), PROFILE, "train").kind == "PyTorchJob"
    assert launcher_for(run_with(nodes=1, launcher="trainjob"), PROFILE, "train").kind == "TrainJob"
    assert launcher_for(run_with(nodes=2), profile_with(train={"launcher": "job"}), "train") is TRAINERS["job"]
    assert launcher_for(run_with(nodes=2, launcher="trainjob"), PROFILE, "evaluate").kind == "Job"


@pytest.mark.parametrize("launcher", TRAINERS)
def test_who_made_a_workload_can_be_told_from_it(launcher):
    task = Task(run_with(nodes=2, launcher=launcher), "train", PROFILE)
    assert launcher_of(workload(task)) is TRAINERS[launcher]
    assert type(launcher_of(workload(replace(task, stage="clip")))) is IndexedJob


def test_a_run_s_queue_wins_over_the_cluster_s_and_without_one_kueue_is_not_spoken_to():
    label = "kueue.x-k8s.io/queue-name"
    queues = profile_with(queues={"cpu": "slow", "gpu": "fast"})

    def queue(stage, profile, **cluster):
        made = workload(Task(run_with(**cluster), stage, profile))
        assert "suspend" not in json.dumps(made["spec"])
        ((_, template),) = list(pods_of(made)) or [("", {"metadata": {"labels": {}}})]
        assert label not in template["metadata"]["labels"]
        return made["metadata"]["labels"].get(label)

    assert queue("clip", queues) == "slow"
    assert queue("latents", queues) == "fast"
    assert queue("train", queues, nodes=2) == "fast"
    assert queue("train", queues, nodes=2, launcher="trainjob") == "fast"
    assert queue("train", queues, gpus_per_node=0) == "slow"
    assert queue("clip", queues, queue="mine") == "mine"
    assert queue("clip", queues, queue="") is None
    assert queue("clip", PROFILE) is None


@pytest.mark.parametrize("launcher", TRAINERS)
def test_the_longest_names_still_fit(launcher):
    document = QUICKSTART.model_dump(mode="json")
    document["metadata"]["name"] = "a" * 30
    document["spec"]["cluster"] = {"nodes": 256, "launcher": launcher, "stages": {"caption": {"shards": 10_000}}}
    run = BrickRun.model_validate(document)
    for stage in ("train", "caption", "evaluate"):
        task = Task(run, stage, PROFILE, attempt=99, owner=OWNER)
        made = rendered(task)
        assert made[-1]["metadata"]["name"] == task.workload_name
        for each in made:
            valid(each, versions=["1.37"])
