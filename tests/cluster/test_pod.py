"""A stage's pod: what it may do, what it is given, and what it is not shown."""

import os

import boto3
import pytest
from hypothesis import given, settings

from bricks_core.cluster.launcher import Task
from bricks_core.errors import SpecError
from bricks_core.spec.cluster import ClusterProfile, load_profile
from bricks_core.spec.stages import STAGES
from tests.cluster.strategies import QUICKSTART, SHARDED, tasks
from tests.cluster.test_launchers import PROFILE, container, environment, pod, profile_with, run_with
from tests.schemas.pods import amount

SECRETS = profile_with(
    store={"uri": "s3://bucket/bricks", "secret": "s3"},
    secrets={"caption": "openai", "tracking": "wandb", "hub": "hugging-face"},
)
NEEDED = {
    "ingest": {"s3"},
    "clip": {"s3"},
    "score": {"s3"},
    "caption": {"s3", "openai"},
    "latents": {"s3", "hugging-face"},
    "train": {"s3", "wandb", "hugging-face"},
    "evaluate": {"s3", "wandb", "hugging-face"},
}


def secrets(task):
    return {each["secretRef"]["name"] for each in container(task).get("envFrom", [])}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_reads_the_secrets_it_needs_and_no_other(stage):
    assert secrets(Task(QUICKSTART, stage, SECRETS)) == NEEDED[stage]


def test_a_preflight_reads_the_store_s_secret_alone():
    assert secrets(Task(QUICKSTART, "train", SECRETS, preflight_only=True)) == {"s3"}


@settings(max_examples=30, deadline=None)
@given(task=tasks)
def test_a_secret_is_reached_only_by_the_name_of_its_secret(task):
    main = container(task)
    assert all(set(each) == {"secretRef"} for each in main.get("envFrom", []))
    assert not [each for each in main["env"] if "secretKeyRef" in each.get("valueFrom", {})]
    assert not [volume for volume in pod(task)["spec"]["volumes"] if {"secret", "projected"} & set(volume)]


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD"])
def test_a_secret_in_the_profile_s_environment_is_refused(name):
    with pytest.raises(ValueError, match="looks like a secret"):
        profile_with(env={name: "sk-123"})


def test_a_name_that_no_variable_can_have_is_refused_with_its_place(tmp_path):
    file = tmp_path / "profile.yaml"
    file.write_text("env: {not-a-name: x}\n", encoding="utf-8")
    with pytest.raises(SpecError, match=r"profile\.yaml.*'not-a-name'"):
        load_profile(file)


@pytest.mark.parametrize("stage", STAGES)
def test_no_pod_is_given_a_token_a_capability_or_a_root_it_can_write_to(stage):
    task = Task(QUICKSTART, stage, PROFILE)
    spec, main = pod(task)["spec"], container(task)
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] == 65532
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["securityContext"]["fsGroupChangePolicy"] == "OnRootMismatch"
    assert main["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert main["terminationMessagePolicy"] == "FallbackToLogsOnError"


@pytest.mark.parametrize("stage", [*SHARDED, "evaluate"])
def test_a_pod_that_decodes_is_bounded_in_memory_disk_time_and_processes(stage):
    from bricks_core.cluster.launchers import launcher_for

    task = Task(QUICKSTART, stage, PROFILE)
    limits = container(task)["resources"]["limits"]
    assert amount(limits["memory"]) > 0
    assert amount(limits["ephemeral-storage"]) > 0
    assert all("sizeLimit" in each["emptyDir"] for each in pod(task)["spec"]["volumes"] if "emptyDir" in each)
    assert int(environment(task)["BRICKS_MAX_PROCESSES"]) > 0
    job = launcher_for(task.run, PROFILE, stage).render(task)[-1]
    assert job["spec"]["activeDeadlineSeconds"] == 86_400


@pytest.mark.parametrize(("cpu", "cores"), [("4", "4"), ("500m", "1"), ("1500m", "2"), ("2.5", "3")])
def test_a_pod_works_with_as_many_threads_as_it_asked_for_cores(cpu, cores):
    told = environment(Task(run_with(stages={"clip": {"cpu": cpu}}), "clip", PROFILE))
    assert (told["BRICKS_CPUS"], told["OMP_NUM_THREADS"]) == (cores, cores)
    other = profile_with(env={"OMP_NUM_THREADS": "7"})
    assert environment(Task(QUICKSTART, "clip", other))["OMP_NUM_THREADS"] == "7"
    assert "OMP_NUM_THREADS" not in environment(Task(QUICKSTART, "train", PROFILE))


def test_memlock_by_root_is_the_one_exception_and_only_for_training():
    root = profile_with(train={"rdma": {"memlock": "root", "resources": {"rdma/ib": 1}}}, hostUsers=False)
    spec = pod(Task(QUICKSTART, "train", root))["spec"]
    assert (spec["securityContext"]["runAsUser"], spec["securityContext"]["runAsNonRoot"]) == (0, False)
    assert spec["containers"][0]["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["IPC_LOCK"]}
    assert "hostUsers" not in spec
    other = pod(Task(QUICKSTART, "clip", root))["spec"]
    assert other["securityContext"]["runAsUser"] == 65532
    assert other["hostUsers"] is False


def test_the_host_s_network_is_for_training_and_then_cluster_names_are_still_found():
    profile = profile_with(train={"rdma": {"hostNetwork": True}}, hostUsers=False)
    spec = pod(Task(QUICKSTART, "train", profile))["spec"]
    assert (spec["hostNetwork"], spec["dnsPolicy"]) == (True, "ClusterFirstWithHostNet")
    assert "hostUsers" not in spec
    assert "hostNetwork" not in pod(Task(QUICKSTART, "latents", profile))["spec"]


def test_devices_are_asked_for_by_the_cluster_s_own_names():
    rails = {f"nvidia.com/resibp{number}s0": 1 for number in (24, 64, 79, 94, 154, 192, 206, 220)}
    networks = {"k8s.v1.cni.cncf.io/networks": "rail-0,rail-1"}
    topology = {"kueue.x-k8s.io/podset-preferred-topology": "rack"}
    profile = profile_with(
        train={
            "gpuResource": "nvidia.com/gpu.shared",
            "rdma": {"resources": rails, "podAnnotations": networks},
            "topology": topology,
        }
    )
    task = Task(run_with(gpus_per_node=8), "train", profile)
    resources = container(task)["resources"]
    for name, count in (rails | {"nvidia.com/gpu.shared": 8}).items():
        assert resources["limits"][name] == resources["requests"][name] == str(count)
    assert pod(task)["metadata"]["annotations"] == networks | topology
    assert "annotations" not in pod(Task(QUICKSTART, "latents", profile))["metadata"]


def test_training_s_scratch_is_a_volume_of_local_nvme_or_a_folder_of_the_node():
    def scratch(**train):
        task = Task(QUICKSTART, "train", profile_with(train={"scratch": "2Ti"} | train))
        (volume,) = [each for each in pod(task)["spec"]["volumes"] if each["name"] == "scratch"]
        return volume, container(task)["resources"]["requests"]["ephemeral-storage"]

    volume, own_disk = scratch(scratchStorageClass="local-nvme")
    claim = volume["ephemeral"]["volumeClaimTemplate"]["spec"]
    assert claim["storageClassName"] == "local-nvme"
    assert claim["resources"]["requests"]["storage"] == "2Ti"
    assert own_disk == "2Gi"
    volume, own_disk = scratch()
    assert volume["emptyDir"]["sizeLimit"] == own_disk == "2Ti"


def test_training_has_shared_memory_and_the_others_have_not():
    (shm,) = [each for each in pod(Task(QUICKSTART, "train", PROFILE))["spec"]["volumes"] if each["name"] == "shm"]
    assert shm["emptyDir"] == {"medium": "Memory", "sizeLimit": "16Gi"}
    mounts = {each["name"]: each["mountPath"] for each in container(Task(QUICKSTART, "train", PROFILE))["volumeMounts"]}
    assert mounts == {"config": "/etc/bricks", "scratch": "/scratch", "tmp": "/tmp", "shm": "/dev/shm"}
    assert "shm" not in [each["name"] for each in pod(Task(QUICKSTART, "latents", PROFILE))["spec"]["volumes"]]


def test_a_store_on_a_volume_is_mounted_and_one_in_s3_is_told_of():
    claim = Task(QUICKSTART, "clip", profile_with(store={"uri": "file:///store/bricks", "claim": "films"}))
    assert {"name": "store", "mountPath": "/store"} in container(claim)["volumeMounts"]
    assert {"name": "store", "persistentVolumeClaim": {"claimName": "films"}} in pod(claim)["spec"]["volumes"]
    assert environment(claim)["BRICKS_STORE"] == "file:///store/bricks"
    assert "AWS_REGION" not in environment(claim)
    s3 = profile_with(store={"uri": "s3://bucket/bricks", "endpoint": "https://s3.example.org", "region": "eu"})
    told = environment(Task(QUICKSTART, "clip", s3))
    assert told["BRICKS_STORE"] == "s3://bucket/bricks"
    assert (told["AWS_ENDPOINT_URL_S3"], told["AWS_REGION"]) == ("https://s3.example.org", "eu")


def test_the_store_s_endpoint_is_not_asked_for_a_role(monkeypatch):
    """A web identity is exchanged at STS, which is not where the store is."""
    s3 = profile_with(store={"uri": "s3://bucket/bricks", "endpoint": "https://s3.example.org", "region": "eu-west-1"})
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    for name, value in environment(Task(QUICKSTART, "clip", s3)).items():
        if name.startswith("AWS_"):
            monkeypatch.setenv(name, value)
    session = boto3.Session(region_name="eu-west-1")
    endpoints = {name: session.client(name).meta.endpoint_url for name in ("s3", "sts")}
    assert endpoints == {"s3": "https://s3.example.org", "sts": "https://sts.eu-west-1.amazonaws.com"}


def test_nodes_that_failed_are_left_out_by_name_and_the_profile_s_hosts_of_training_alone():
    profile = profile_with(train={"excludeNodes": ["host-9"]})

    def left_out(stage, excluded=()):
        affinity = pod(Task(QUICKSTART, stage, profile, excluded_nodes=excluded))["spec"].get("affinity")
        if affinity is None:
            return [], []
        (term,) = affinity["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
        hosts, nodes = term.get("matchExpressions", []), term.get("matchFields", [])
        assert {(each["key"], each["operator"]) for each in hosts} <= {("kubernetes.io/hostname", "NotIn")}
        assert {(each["key"], each["operator"]) for each in nodes} <= {("metadata.name", "NotIn")}
        assert all(len(each["values"]) == 1 for each in nodes), "Kubernetes takes one value of a field"
        return [each for every in hosts for each in every["values"]], [each["values"][0] for each in nodes]

    assert left_out("train", ("node-3", "node-1")) == (["host-9"], ["node-1", "node-3"])
    assert left_out("train") == (["host-9"], [])
    assert left_out("clip", ("node-3",)) == ([], ["node-3"])
    assert left_out("clip") == ([], [])


def test_a_pod_that_asked_for_no_gpu_sees_none_although_its_node_would_show_it_all():
    without = profile_with(stages={"latents": {"gpus": 0}}, train={"gpusPerNode": 0})
    told = [environment(Task(QUICKSTART, stage, without)) for stage in ("latents", "train")]
    assert [each["NVIDIA_VISIBLE_DEVICES"] for each in told] == ["void", "void"]
    assert "NVIDIA_VISIBLE_DEVICES" not in environment(Task(QUICKSTART, "latents", profile_with()))
    assert "NVIDIA_VISIBLE_DEVICES" not in environment(Task(QUICKSTART, "clip", profile_with()))


def test_pods_with_gpus_go_where_gpus_are():
    profile = profile_with(
        nodeSelector={"pool": "bricks"},
        gpuNodeSelector={"gpu": "h100"},
        tolerations=[{"key": "batch", "operator": "Exists"}],
        gpuTolerations=[{"key": "nvidia.com/gpu", "operator": "Exists"}],
    )
    with_gpu, without = (
        pod(Task(QUICKSTART, stage, profile))["spec"]
        for stage in ("train", "clip")  # train asks for one
    )
    assert with_gpu["nodeSelector"] == {"pool": "bricks", "gpu": "h100"}
    assert without["nodeSelector"] == {"pool": "bricks"}
    assert [each["key"] for each in with_gpu["tolerations"]] == ["batch", "nvidia.com/gpu"]
    assert [each["key"] for each in without["tolerations"]] == ["batch"]


def test_what_the_run_asks_for_wins_over_the_profile():
    asked = {"clip": {"cpu": "7", "memory": "9Gi", "scratch": "11Gi", "gpus": 1}, "train": {"memory": "99Gi"}}
    run = run_with(gpus_per_node=2, priority_class="first", stages=asked)
    profile = profile_with(priorityClass="last")
    clip = container(Task(run, "clip", profile))["resources"]
    assert clip["requests"] == {"cpu": "7", "memory": "9Gi", "ephemeral-storage": "11Gi", "nvidia.com/gpu": "1"}
    train = container(Task(run, "train", profile))["resources"]["limits"]
    assert (train["memory"], train["nvidia.com/gpu"]) == ("99Gi", "2")
    assert pod(Task(run, "clip", profile))["spec"]["priorityClassName"] == "first"
    assert pod(Task(run_with(priority_class=""), "clip", profile))["spec"].get("priorityClassName") is None
    assert pod(Task(QUICKSTART, "clip", profile))["spec"]["priorityClassName"] == "last"


def test_the_image_is_the_stage_s_own_and_is_told_to_it_for_provenance():
    digest = f"sha256:{'0' * 64}"
    profile = profile_with(images={"registry": "r.example/b/", "tag": "t", "digests": {"train": digest}})
    assert container(Task(QUICKSTART, "clip", profile))["image"] == "r.example/b/bricks-clip:t"
    task = Task(QUICKSTART, "train", profile)
    assert container(task)["image"] == environment(task)["BRICKS_IMAGE"] == f"r.example/b/bricks-train@{digest}"
    assert container(Task(QUICKSTART, "train", profile, image="mine:1"))["image"] == "mine:1"


def test_what_the_profile_sets_never_replaces_what_a_pod_must_be_told():
    profile = ClusterProfile.model_validate(
        {
            "env": {"BRICKS_STORE": "elsewhere", "HTTPS_PROXY": "http://proxy:3128", "NCCL_DEBUG": "INFO"},
            "train": {"nccl": {"NCCL_DEBUG": "WARN"}},
        }
    )
    told = environment(Task(QUICKSTART, "train", profile))
    assert told["BRICKS_STORE"] == "s3://bricks/artifacts"
    assert told["HTTPS_PROXY"] == "http://proxy:3128"
    assert told["NCCL_DEBUG"] == "WARN"
    assert environment(Task(QUICKSTART, "clip", profile))["NCCL_DEBUG"] == "INFO"
