"""What a run may ask of a cluster, what a cluster's profile says, and the words when either is wrong."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from bricks_core.errors import SpecError
from bricks_core.pipeline.plan import make_plan
from bricks_core.spec.cluster import (
    ClusterProfile,
    ClusterSettings,
    DnsLabel,
    Images,
    PreflightProfile,
    Quantity,
    StoreProfile,
    load_preflight,
    load_profile,
)
from bricks_core.spec.run import load_run
from bricks_core.spec.stages import STAGES
from bricks_core.storage.places import open_store

ROOT = Path(__file__).parents[2]
CLAIMED = {"uri": "file:///store/bricks", "claim": "bricks-store"}


@pytest.fixture
def profile_file(tmp_path):
    def write(document):
        file = tmp_path / "profile.yaml"
        file.write_text(document if isinstance(document, str) else yaml.safe_dump(document), encoding="utf-8")
        return file

    return write


def wrong(file):
    with pytest.raises(SpecError) as caught:
        load_profile(file)
    assert caught.value.exit_code == 78
    return str(caught.value)


# ------------------------------------------------------------------------------------------------------ of a run file


def test_a_run_that_says_nothing_leaves_everything_to_the_cluster():
    settings = ClusterSettings()
    assert settings.model_dump(exclude={"attempts", "stages"}) == dict.fromkeys(
        ("nodes", "gpus_per_node", "launcher", "queue", "priority_class")
    )
    assert (settings.attempts, settings.stages) == (3, {})


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_can_be_given_what_it_needs(stage):
    settings = ClusterSettings.model_validate({"stages": {stage: {"memory": "16Gi", "cpu": "500m", "gpus": 1}}})
    assert settings.stages[stage].memory == "16Gi"  # type: ignore[index]
    assert settings.stages[stage].shards is None  # type: ignore[index]


@pytest.mark.parametrize(
    "given",
    [
        {"nodes": 0},
        {"gpus_per_node": 17},
        {"launcher": "mpijob"},
        {"attempts": 0},
        {"stages": {"trian": {}}},
        {"stages": {"clip": {"shards": 0}}},
        {"stages": {"clip": {"memory": "16 GB"}}},
        {"stages": {"clip": {"deadline_s": 59}}},
        {"gpusPerNode": 8},
    ],
)
def test_what_no_cluster_can_do_is_refused(given):
    with pytest.raises(ValidationError):
        ClusterSettings.model_validate(given)


def test_no_queue_is_said_by_an_empty_one_and_is_not_the_same_as_the_profiles():
    assert ClusterSettings(queue="").queue == ""
    assert ClusterSettings().queue is None


@pytest.mark.parametrize("name", ["Upper", "-a", "a-", "a_b", "a b", "a" * 254, "a.", "ä"])
def test_a_name_that_kubernetes_would_refuse_is_refused_here(name):
    with pytest.raises(ValidationError):
        TypeAdapter(DnsLabel).validate_python(name)


@given(st.from_regex(r"[1-9][0-9]{0,6}(\.[0-9]{1,3})?(m|k|Ki|M|Mi|G|Gi|T|Ti)?", fullmatch=True))
def test_amounts_are_written_as_kubernetes_writes_them(amount):
    assert TypeAdapter(Quantity).validate_python(amount) == amount
    for other in (amount + "B", "-" + amount, amount + " ", "about " + amount, amount.replace(amount[0], "x", 1)):
        with pytest.raises(ValidationError):
            TypeAdapter(Quantity).validate_python(other)


# --------------------------------------------------------------------------------------------------------- of a profile


def test_the_smallest_profile_is_an_empty_file(profile_file):
    assert load_profile(profile_file("")) == ClusterProfile()


@pytest.mark.parametrize("file", sorted((ROOT / "k8s" / "cluster").glob("profile-*.yaml")), ids=lambda file: file.stem)
def test_the_committed_profiles_can_be_read(file):
    profile = load_profile(file)
    again = profile.model_dump(mode="json", by_alias=True)
    assert ClusterProfile.model_validate(again) == profile


def test_a_profile_is_written_in_camel_case_as_the_charts_values_are(profile_file):
    profile = load_profile(profile_file({"train": {"gpusPerNode": 8, "scratchStorageClass": "nvme"}}))
    assert (profile.train.gpus_per_node, profile.train.scratch_storage_class) == (8, "nvme")
    assert profile.model_dump(by_alias=True)["train"]["gpusPerNode"] == 8


def test_every_mistake_is_told_with_its_place(profile_file):
    said = wrong(profile_file({"train": {"nodes": 0, "launcher": "mpi"}, "stagess": {}}))
    assert len(said.splitlines()) == 3
    for place in ("train.nodes", "train.launcher", "stagess"):
        assert f"profile.yaml: {place}: " in said


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", "cannot be read as YAML"),
        ("- a\n- b\n", "holds no ClusterProfile"),
        ("words", "holds no ClusterProfile"),
        ("apiVersion: bricks.dev/v1alpha1\nkind: BrickRun\nspec: {}\n", "holds no ClusterProfile"),
        ("images: {registry: https://registry.example.org/you}", "images.registry: "),
        ("secrets: {caption: Bricks_Caption}", "secrets.caption: "),
        ("trian: {}", "trian: unknown key"),
    ],
)
def test_a_file_that_cannot_be_a_profile_says_why(profile_file, text, words):
    assert words in wrong(profile_file(text))


def test_a_profile_that_is_not_there_is_said_not_to_be(tmp_path):
    assert "is not there" in wrong(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    "given",
    [
        {"uri": "file:///store/bricks"},
        {"uri": "s3://bucket/prefix", "claim": "bricks-store"},
        {"uri": "file:///data", "claim": "bricks-store"},
    ],
)
def test_a_store_that_pods_cannot_reach_is_refused(given):
    with pytest.raises(ValidationError, match="claim"):
        StoreProfile.model_validate(given)


def test_a_store_is_s3_or_a_claim():
    assert StoreProfile.model_validate(CLAIMED).claim == "bricks-store"
    assert StoreProfile.model_validate({"uri": "s3://bucket/prefix"}).claim == ""


def test_an_image_is_named_by_its_stage_and_a_digest_wins_over_a_tag():
    images = Images(registry="registry.example.org/team/", tag="1.2", digests={"train": "sha256:" + "0" * 64})
    assert images.of("clip") == "registry.example.org/team/bricks-clip:1.2"
    assert images.of("train") == "registry.example.org/team/bricks-train@sha256:" + "0" * 64


@pytest.mark.parametrize("name", ["WANDB_API_KEY", "HF_TOKEN", "AWS_ACCESS_KEY_ID", "aws_secret_key", "MY_PASSWORD"])
@pytest.mark.parametrize("place", ["env", "nccl"])
def test_a_secret_is_not_taken_as_a_plain_variable(name, place):
    given = {"env": {name: "x"}} if place == "env" else {"train": {"nccl": {name: "x"}}}
    with pytest.raises(ValidationError, match="looks like a secret"):
        ClusterProfile.model_validate(given)


def test_plain_variables_are_taken_and_what_is_no_name_is_not():
    assert ClusterProfile(env={"HF_HUB_OFFLINE": "1"}).env == {"HF_HUB_OFFLINE": "1"}
    with pytest.raises(ValidationError, match="no variable's name"):
        ClusterProfile(env={"A-B": "1"})


def test_what_a_profile_leaves_out_of_the_stages_is_the_usual(profile_file):
    usual = ClusterProfile()
    profile = load_profile(profile_file({"stages": {"clip": {"memory": "32Gi", "deadlineS": 600}}}))
    assert profile.stage("clip") == usual.stage("clip").model_copy(update={"memory": "32Gi", "deadline_s": 600})
    assert profile.stage("score") == usual.stage("score")
    assert usual.stage("latents").gpus == 1
    assert ClusterProfile.model_validate(profile.model_dump(by_alias=True)) == profile


def test_thresholds_are_read_from_beside_a_run_file_and_are_the_usual_where_there_are_none(tmp_path):
    file = tmp_path / "preflight.yaml"
    assert load_preflight(file) == PreflightProfile()
    file.write_text("nodeBusGbps: 380\n", encoding="utf-8")
    assert load_preflight(file).node_bus_gbps == 380
    file.write_text("node_bus: 380\n", encoding="utf-8")
    with pytest.raises(SpecError, match=r"preflight.yaml: node_bus: "):
        load_preflight(file)


# ------------------------------------------------------------------------------------------------- the reference's runs


@pytest.mark.parametrize("name", ["text2bricks-64f", "text2bricks-32f"])
def test_every_batch_of_the_references_runs_divides_by_their_gpus(name):
    run = load_run(ROOT / "k8s" / "runs" / f"{name}.yaml")
    cluster = run.spec.cluster
    assert (cluster.nodes, cluster.gpus_per_node) == (4, 8)
    assert run.spec.train is not None
    batches = [bucket.batch_size for phase in run.spec.train.phases for bucket in phase.buckets]
    assert [batch % 32 for batch in batches] == [0] * len(batches)


def test_the_two_runs_share_all_that_comes_before_training():
    one, two = (load_run(ROOT / "k8s" / "runs" / f"text2bricks-{name}.yaml") for name in ("64f", "32f"))
    for stage in ("ingest", "clip", "score", "caption", "latents"):
        assert one.stage_spec(stage) == two.stage_spec(stage)


def test_the_evaluation_asks_for_what_the_run_trained_and_something_else_of_it():
    run, other = (load_run(ROOT / "k8s" / "runs" / f"{name}.yaml") for name in ("text2bricks-64f", "evaluate"))
    for stage in ("ingest", "clip", "score", "caption", "latents", "train"):
        assert run.stage_spec(stage) == other.stage_spec(stage)
    assert run.spec.evaluate != other.spec.evaluate


@pytest.mark.parametrize("file", sorted((ROOT / "k8s" / "runs").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_run_file_can_be_planned_once_its_films_are_there(file, tmp_path):
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "one.mp4").write_bytes(b"film")
    run = load_run(file, [f"ingest.sources.0.path={tmp_path}/films"])
    steps = make_plan(run, open_store(str(tmp_path / "store")))
    assert [step.stage.name for step in steps] == list(STAGES)
    assert {step.state for step in steps} == {"to run"}
