"""The manifests in k8s/: fresh, sound, and what the reference's run needs; and `bricks render`, which writes them."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import jobs.render
from bricks_core.cluster.manifests import manifest, objects, plain_task
from bricks_core.errors import BricksError, SpecError, UsageError
from bricks_core.spec.cluster import ClusterProfile, load_profile
from bricks_core.spec.run import BrickRun, load_run
from bricks_core.spec.stages import STAGES
from jobs.entry_point import commands
from tests.cluster.strategies import QUICKSTART
from tests.schemas import documents, valid
from tests.schemas.pods import amount, pods_of

ROOT = Path(__file__).parents[2]
OURS = sorted([*ROOT.glob("k8s/*.yaml"), *ROOT.glob("k8s/cluster/*.yaml"), *ROOT.glob("k8s/runs/*.yaml")])
PROFILES = [file for file in OURS if file.stem.startswith("profile-")]


def generator():
    spec = importlib.util.spec_from_file_location("generate_k8s", ROOT / "k8s/generate.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


GENERATED = generator().FILES


def read(name):
    return {each["kind"]: each for each in documents((ROOT / f"k8s/{name}.yaml").read_text(encoding="utf-8"))}


@pytest.mark.parametrize("file", GENERATED)
def test_a_manifest_is_what_its_run_and_profile_give(file):
    assert (ROOT / file).read_text(encoding="utf-8") == GENERATED[file].text(file), "run: python k8s/generate.py"


@pytest.mark.parametrize("file", GENERATED)
def test_the_command_in_a_manifest_s_head_makes_it(file, render):
    text = (ROOT / file).read_text(encoding="utf-8")
    (command,) = [line.removeprefix("#   ") for line in text.splitlines() if line.startswith("#   bricks render")]
    arguments, _, target = command.removeprefix("bricks render ").partition(" > ")
    assert target == file
    assert documents(render(*arguments.split())) == documents(text)


def test_every_stage_and_nothing_else_has_a_manifest():
    stages = {f"k8s/{name}.yaml" for name in STAGES} - {"k8s/train.yaml"}
    assert set(GENERATED) == stages | {"k8s/train-64f.yaml", "k8s/train-32f.yaml", "k8s/preflight.yaml"}
    assert {str(file.relative_to(ROOT)) for file in ROOT.glob("k8s/*.yaml")} == set(GENERATED)


@pytest.mark.parametrize("file", [file for file in OURS if file not in PROFILES], ids=lambda file: file.stem)
def test_every_object_in_k8s_is_valid(file):
    found = documents(file.read_text(encoding="utf-8"))
    assert found
    for each in found:
        valid(each)


@pytest.mark.parametrize("file", PROFILES, ids=lambda file: file.stem)
def test_every_profile_can_be_read_and_renders_every_stage(file):
    profile = load_profile(file)
    for stage in STAGES:
        made = objects(plain_task(QUICKSTART, stage, profile))
        assert made, stage
        for each in made:
            valid(each)


@pytest.mark.parametrize("name", ["train-64f", "train-32f"])
def test_training_asks_for_32_gpus_in_4_pods_with_rdma_shared_memory_and_nvme(name):
    job = read(name)["PyTorchJob"]
    ((_, template),) = pods_of(job)
    (main,) = template["spec"]["containers"]
    worker = job["spec"]["pytorchReplicaSpecs"]["Worker"]
    assert list(job["spec"]["pytorchReplicaSpecs"]) == ["Worker"]
    limits = main["resources"]["limits"]
    assert worker["replicas"] == 4
    assert worker["replicas"] * int(limits["nvidia.com/gpu"]) == 32
    assert job["spec"]["nprocPerNode"] == "8"
    assert int(limits["rdma/rdma_shared_device_a"]) >= 1
    volumes = {each["name"]: each for each in template["spec"]["volumes"]}
    mounts = {each["mountPath"]: volumes[each["name"]] for each in main["volumeMounts"]}
    assert mounts["/dev/shm"]["emptyDir"]["medium"] == "Memory"
    assert amount(mounts["/dev/shm"]["emptyDir"]["sizeLimit"]) < amount(limits["memory"])
    scratch = mounts["/scratch"]["ephemeral"]["volumeClaimTemplate"]["spec"]
    (nvme,) = documents((ROOT / "k8s/cluster/storage-nvme.yaml").read_text(encoding="utf-8"))
    assert scratch["storageClassName"] == nvme["metadata"]["name"] == "local-nvme"
    environment = {each["name"]: each.get("value") for each in main["env"]}
    assert environment["NCCL_NET"] == "IB"
    assert environment["BRICKS_RDMA"] == "1"


@pytest.mark.parametrize("name", ["train-64f", "train-32f"])
def test_training_ends_in_time_frees_its_gpus_goes_by_itself_and_resumes_when_it_is_restarted(name):
    job = read(name)["PyTorchJob"]
    policy = job["spec"]["runPolicy"]
    assert policy["cleanPodPolicy"] == "Running"
    hours = {"train-64f": 31.8, "train-32f": 5.3}[name]  # the reference's, on as many GPUs
    assert 1.5 * hours * 3600 < policy["activeDeadlineSeconds"] < 4 * hours * 3600
    assert policy["ttlSecondsAfterFinished"] >= 24 * 3600
    # A container that is started again runs the same command on the same store, and goes on from the last checkpoint.
    assert job["spec"]["pytorchReplicaSpecs"]["Worker"]["restartPolicy"] == "OnFailure"
    assert policy["backoffLimit"] >= 4
    ((_, template),) = pods_of(job)
    assert template["spec"]["terminationGracePeriodSeconds"] >= 600


def phases(name):
    config = read(name)["ConfigMap"]
    return BrickRun.model_validate(yaml.safe_load(config["data"]["run.yaml"])).spec.train.phases


def test_the_64_frame_model_is_trained_in_the_reference_s_two_phases_in_one_job():
    first, second = phases("train-64f")
    assert [(each.num_frames, each.resolution) for each in first.buckets] == [(16, "360p")]
    assert [each.num_frames for each in second.buckets] == [1, 32, 64]
    assert {each.resolution for each in second.buckets} == {"360p"}
    for phase in (first, second):
        schedule = phase.schedule
        assert (schedule.kind, schedule.lr, schedule.warmup_steps) == ("cosine_constant", 1e-5, 500)
    for bucket in (*first.buckets, *second.buckets):
        assert bucket.batch_size % 32 == 0


def test_the_32_frame_model_is_trained_in_the_reference_s_one_cycle():
    (phase,) = phases("train-32f")
    assert [(each.num_frames, each.resolution, each.batch_size) for each in phase.buckets] == [(32, "360p", 128)]
    schedule = phase.schedule
    assert (schedule.kind, schedule.min_lr, schedule.max_lr, schedule.lr) == ("one_cycle", 1e-7, 1e-4, 1e-5)
    assert (schedule.warmup_steps, schedule.cooldown_steps, phase.steps) == (1500, 2500, 4000)


def test_the_preflight_runs_on_the_nodes_of_the_training_and_only_looks():
    preflight, training = read("preflight")["PyTorchJob"], read("train-64f")["PyTorchJob"]
    ((_, looks),), ((_, trains),) = pods_of(preflight), pods_of(training)
    (main,), (other,) = looks["spec"]["containers"], trains["spec"]["containers"]
    assert main["command"] + main["args"] == ["bricks-train", "--preflight-only", "--run", "/etc/bricks/run.yaml"]
    assert main["resources"] == other["resources"]
    assert looks["spec"]["volumes"] == trains["spec"]["volumes"]
    assert preflight["spec"]["pytorchReplicaSpecs"]["Worker"]["replicas"] == 4
    assert preflight["spec"]["pytorchReplicaSpecs"]["Worker"]["restartPolicy"] == "Never"
    assert preflight["spec"]["runPolicy"]["activeDeadlineSeconds"] <= 3600
    assert looks["metadata"]["labels"]["bricks.dev/stage"] == "preflight"
    thresholds = yaml.safe_load(read("preflight")["ConfigMap"]["data"]["preflight.yaml"])
    assert thresholds["nodeBusGbps"] > 0
    assert thresholds["clusterBusGbps"] > 0


def test_kueue_covers_all_that_the_training_asks_for():
    queues = documents((ROOT / "k8s/cluster/queues.yaml").read_text(encoding="utf-8"))
    (queue,) = [each for each in queues if each["kind"] == "ClusterQueue" and each["metadata"]["name"] == "bricks-gpu"]
    (group,) = queue["spec"]["resourceGroups"]
    ((_, template),) = pods_of(read("train-64f")["PyTorchJob"])
    asked = template["spec"]["containers"][0]["resources"]["requests"]
    quota = {each["name"]: amount(each["nominalQuota"]) for each in group["flavors"][0]["resources"]}
    assert set(asked) == set(group["coveredResources"]) == set(quota)
    assert [name for name, value in asked.items() if 4 * amount(value) > quota[name]] == []


# --- bricks render


@pytest.fixture
def render(capsys, monkeypatch):
    """render("FILE", "--stage", "clip"): what `bricks render` prints, in this process."""
    monkeypatch.chdir(ROOT)

    def call(*arguments):
        app = commands(None)
        app.command()(jobs.render.render)
        app(list(arguments), standalone_mode=False)
        return capsys.readouterr().out

    return call


def test_no_manifest_has_the_address_of_whoever_is_told_and_where_to_write_it_is_said(tmp_path, capsys):
    document = QUICKSTART.model_dump(mode="json")
    document["spec"]["notify"] = "https://example.org/T0P"
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    app = commands(None)
    app.command()(jobs.render.render)
    for stage in STAGES:
        app([str(tmp_path / "run.yaml"), "--stage", stage], standalone_mode=False)
        told = capsys.readouterr()
        assert "T0P" not in told.out + told.err
        assert "the chart's notify.existingSecret" in told.err
        assert documents(told.out)


def test_the_module_is_a_program_of_its_own():
    command = [sys.executable, "-m", "jobs.render", "k8s/runs/quickstart.yaml", "--stage", "clips"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", cwd=ROOT, check=False)
    assert (done.returncode, done.stdout) == (64, "")
    assert done.stderr.startswith('render: There is no stage "clips" (did you mean "clip"?)')


def test_a_rendered_stage_can_be_applied_and_says_how_it_was_made(render):
    text = render(
        *("k8s/runs/quickstart.yaml", "--stage", "clip", "--namespace", "films", "--name", "cuts", "--image", "mine:1"),
        *("--set", "cluster.stages.clip.shards=3", "--profile", "k8s/cluster/profile-single-gpu.yaml"),
    )
    config, job = documents(text)
    for each in (config, job):
        valid(each)
        assert each["metadata"]["namespace"] == "films"
    assert job["metadata"]["name"] == "cuts"
    assert job["spec"]["completions"] == 3
    assert job["spec"]["template"]["spec"]["containers"][0]["image"] == "mine:1"
    assert "#   kubectl apply -f FILE\n" in text
    lines = text.splitlines()
    assert "--set cluster.stages.clip.shards=3" in lines[lines.index("# Not written by hand. This makes it:") + 1]


WRONG = [
    (["k8s/runs/quickstart.yaml"], 64, "Say which stage"),
    (["k8s/runs/quickstart.yaml", "--stage", "clip", "--preflight"], 64, "Say which stage"),
    (["k8s/runs/quickstart.yaml", "--stage", "clips"], 64, 'did you mean "clip"?'),
    (["k8s/runs/quickstart.yaml", "--stage", "clip", "-n", "Not Ok"], 64, "name of a namespace"),
    (["k8s/runs/quickstart.yaml", "--stage", "clip", "--image", "https://registry.example.org/clip"], 64, "no image"),
    (["k8s/runs/quickstart.yaml", "--stage", "clip", "--name", "Cuts"], 64, "Cuts cannot be a workload's name"),
    (["nowhere.yaml", "--stage", "clip"], 78, "nowhere.yaml is not there"),
    (["k8s/runs/quickstart.yaml", "--stage", "clip", "--profile", "no.yaml"], 78, "no.yaml is not there"),
    (["k8s/runs/quickstart.yaml", "--stage", "clip", "--profile", "k8s/clip.yaml"], 78, "cannot be read as YAML"),
]


@pytest.mark.parametrize(("arguments", "code", "said"), WRONG)
def test_what_cannot_be_rendered_is_told_in_a_sentence(render, arguments, code, said):
    with pytest.raises(BricksError) as told:
        render(*arguments)
    assert said in str(told.value)
    assert told.value.exit_code == code


def test_a_run_without_the_stage_is_told_so():
    document = QUICKSTART.model_dump(mode="json")
    document["spec"]["train"] = document["spec"]["evaluate"] = None
    with pytest.raises(SpecError, match=r"no spec\.train"):
        plain_task(BrickRun.model_validate(document), "train", ClusterProfile())


def test_a_name_longer_than_a_pod_s_can_be_is_refused():
    with pytest.raises(UsageError, match="at most 52"):
        plain_task(QUICKSTART, "train", ClusterProfile(), name="a" * 53)


def test_a_head_names_the_secrets_operators_and_queues_that_must_be_there():
    profile = ClusterProfile.model_validate(
        {
            "store": {"uri": "s3://bucket/bricks", "secret": "our-s3"},
            "secrets": {"caption": "our-openai", "tracking": "our-wandb", "hub": "our-hub"},
            "queues": {"cpu": "slow", "gpu": "fast"},
            "train": {"nodes": 2, "launcher": "trainjob"},
        }
    )

    def head(stage):
        text = manifest(plain_task(QUICKSTART, stage, profile))
        return text.partition("\n\n")[0]

    assert "Secret our-openai: OPENAI_API_KEY" in head("caption")
    assert "our-openai" not in head("train")
    assert "Kubeflow Trainer 2.2 or later" in head("train")
    assert "LocalQueue fast" in head("train")
    assert "LocalQueue slow" in head("clip")
    assert "Secret our-wandb: WANDB_API_KEY" in head("evaluate")
    assert "ingest and clip done" in head("score")
    assert " done, in the same store" not in head("ingest")


def test_the_example_runs_are_those_of_the_manifests():
    for file in GENERATED.values():
        assert load_run(ROOT / file.run).spec.train is not None
