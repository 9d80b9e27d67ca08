"""What the chart makes of its values, and which values it takes."""

import json
import re
import shlex
from typing import Any

import helm_python as helm
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from bricks_core.spec.cluster import SECRET_NAME, ClusterProfile, load_profile
from bricks_core.spec.run import BrickRun
from helm.generate import SHAPES, read_values, written
from tests.chart.chart import CHART, FILES, NAMES, S3, notes, of_kind, profile, render, rendered, values_of

VALUES = read_values(CHART / "values.yaml")


def set_at(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    for name in reversed(path):
        value = {name: value}
    return value


def merged(a: Any, b: Any) -> Any:
    if isinstance(a, dict) and isinstance(b, dict):
        return a | {key: merged(a[key], b[key]) if key in a else b[key] for key in b}
    return b


@pytest.mark.parametrize("name", NAMES)
def test_every_file_of_values_passes_a_strict_lint(name: str) -> None:
    report = helm.lint(CHART, values_of(name), strict=True)
    assert report["errors"] == []
    assert [each for each in report["messages"] if each["severity"] > 1] == []


def test_the_chart_as_it_is_passes_a_strict_lint() -> None:
    assert helm.lint(CHART, strict=True)["errors"] == []


@pytest.mark.parametrize("name", NAMES)
def test_the_profile_that_the_controller_reads_is_one(name: str) -> None:
    values = values_of(name)
    store = profile(rendered(name)).store
    if values.get("storage", {}).get("mode", "s3") == "s3":
        assert store.uri.startswith(f"s3://{values['storage']['s3']['bucket']}")
        assert store.claim == ""
    else:
        assert store.uri.startswith("file:///store")
        assert store.claim


def test_what_is_left_alone_is_what_the_code_would_take() -> None:
    made = profile(render(S3))
    as_in_code = ClusterProfile(store=made.store)
    assert made == as_in_code


def test_what_is_set_reaches_the_profile() -> None:
    made = profile(rendered("everything-values"))
    assert made.images.of("train").startswith("registry.example.org/video/bricks-train@sha256:fedc")
    assert made.images.of("clip") == "registry.example.org/video/bricks-clip:0.1.0-rc.1"
    assert made.images.pull_secrets == ["registry", "registry-of-all"]
    assert (made.store.uri, made.store.endpoint) == ("s3://films/team/one", "http://rgw.ceph.svc:7480")
    assert (made.store.secret, made.secrets.caption, made.secrets.tracking) == ("s3", "vision", "wandb")
    assert (made.queues.cpu, made.queues.gpu, made.priority_class) == ("cpu", "gpu", "batch")
    assert made.host_users is False
    assert made.node_selector == {"pool": "video"}
    assert made.train.rdma.resources == {"nvidia.com/resibp24s0": 1, "nvidia.com/resibp64s0": 1}
    assert made.train.rdma.memlock == "root"
    assert made.train.exclude_nodes == ["gpu-7"]


def test_a_volume_is_mounted_where_the_profile_says() -> None:
    made = profile(rendered("values-kind"))
    (claim,) = of_kind(rendered("values-kind"), "PersistentVolumeClaim")
    assert (made.store.uri, made.store.claim) == ("file:///store/bricks", claim["metadata"]["name"])
    assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    bare = profile(rendered("bare-values")).store
    assert (bare.uri, bare.claim) == ("file:///store", "films")


def test_a_bucket_that_is_not_named_is_told_in_a_sentence() -> None:
    with pytest.raises(
        helm.HelmRenderError, match=r"storage\.s3\.bucket is empty: name the bucket .* storage\.mode to pvc"
    ):
        render({})


def test_a_bucket_beside_a_volume_is_not_passed_over() -> None:
    with pytest.raises(helm.HelmRenderError, match=r"storage\.mode is pvc and storage\.s3\.bucket is set"):
        render(merged(S3, {"storage": {"mode": "pvc"}}))


@pytest.mark.parametrize(
    "name", ["HF_TOKEN", "openai_api_key", "AWS_ACCESS_KEY_ID", "PASSWORD", "MY_SECRET", "WANDB_MODE"]
)
def test_what_looks_like_a_secret_is_no_environment(name: str) -> None:
    for values in ({"pods": {"env": {name: "x"}}}, {"train": {"nccl": {name: "x"}}}):
        if SECRET_NAME.search(name):
            with pytest.raises(helm.HelmRenderError, match=f"has {name}, which looks like a secret"):
                render(merged(S3, values))
        else:
            profile(render(merged(S3, values)))


@pytest.mark.parametrize("name", ["h100-ib", "single-gpu"])
def test_the_chart_and_bricks_render_have_the_same_examples_of_clusters(name: str) -> None:
    made = profile(rendered(f"values-{name}"))
    example = load_profile(CHART.parents[1] / "k8s" / "cluster" / f"profile-{name}.yaml")
    assert made == example.model_copy(update={"service_account": "bricks-stage"})


def test_an_account_that_is_there_needs_a_name() -> None:
    with pytest.raises(helm.HelmRenderError, match=r"serviceAccounts\.stages\.create is false and its name is empty"):
        render(merged(S3, {"serviceAccounts": {"stages": {"create": False}}}))


# What a user may mistype, and what the message must name: the place, and what is wrong there.
MISTAKES = [
    ({"storge": {}}, "storge"),
    ({"storage": {"s3": {"buckets": "films"}}}, "'/storage/s3': additional properties 'buckets'"),
    ({"train": {"launcher": "pytorch"}}, "'/train/launcher': value must be one of 'pytorchjob', 'trainjob', 'job'"),
    ({"train": {"gpusPerNode": "8"}}, "'/train/gpusPerNode': got string, want null or integer"),
    ({"train": {"gpus_per_node": 8}}, "'/train': additional properties 'gpus_per_node'"),
    ({"train": {"rdma": {"memlock": "rot"}}}, "'/train/rdma/memlock'"),
    ({"stages": {"clips": {}}}, "'/stages': additional properties 'clips'"),
    ({"stages": {"clip": {"memory": "8 GB"}}}, "'/stages/clip/memory'"),
    ({"stages": {"clip": {"shards": 0}}}, "'/stages/clip/shards': minimum: got 0, want 1"),
    ({"secrets": {"captions": "x"}}, "'/secrets': additional properties 'captions'"),
    ({"images": {"digests": {"train": "latest"}}}, "'/images/digests/train'"),
    ({"images": {"pullPolicy": "Sometimes"}}, "'/images/pullPolicy'"),
    ({"controller": {"resource": {}}}, "'/controller': additional properties 'resource'"),
    ({"networkPolicy": {"enabled": "yes"}}, "'/networkPolicy/enabled': got string, want null or boolean"),
    ({"networkPolicy": {"store": {"cidrs": ["10.0.0.1"]}}}, "'/networkPolicy/store/cidrs/0'"),
    ({"storage": {"s3": {"bucket": "s3://films"}}}, "'/storage/s3/bucket'"),
    ({"train": {"nccl": {"NCCL-NET": "IB"}}}, "invalid propertyName 'NCCL-NET'"),
    ({"images": {"registry": "https://registry.example.org/you"}}, "'/images/registry'"),
    ({"secrets": {"caption": "Bricks_Caption"}}, "'/secrets/caption'"),
    ({"crds": {"keep": 1}}, "'/crds/keep': got number, want null or boolean"),
]


@pytest.mark.parametrize(("mistake", "told"), MISTAKES, ids=[str(mistake) for mistake, _ in MISTAKES])
def test_a_mistake_is_told_with_its_place(mistake: dict[str, Any], told: str) -> None:
    with helm.Chart.load(CHART) as chart, pytest.raises(helm.HelmError) as failure:
        chart.validate_schema(merged(S3, mistake))
    assert told in str(failure.value)


def test_only_global_and_what_is_kubernetes_own_may_have_keys_that_we_do_not_know() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))

    def open_places(place: dict[str, Any], path: str) -> list[str]:
        types = place.get("type", [])
        found = [path] if "object" in types and place.get("additionalProperties", True) is True else []
        for name, each in place.get("properties", {}).items():
            found += open_places(each, f"{path}.{name}".lstrip("."))
        for key in ("items", "additionalProperties"):
            if isinstance(place.get(key), dict):
                found += open_places(place[key], f"{path}[]")
        return found

    assert sorted(open_places(schema, "")) == sorted(
        [
            "extraObjects[]",
            "global",
            "controller.affinity",
            "controller.podSecurityContext",
            "controller.securityContext",
        ]
        + [f"controller.extra{each}[]" for each in ("Env", "EnvFrom", "Volumes", "VolumeMounts")]
        + ["controller.tolerations[]", "controller.topologySpreadConstraints[]"]
        + [
            "networkPolicy.caption[]",
            "networkPolicy.controller[]",
            "networkPolicy.stages[]",
            "networkPolicy.dns.peers[]",
        ]
        + ["pods.tolerations[]", "pods.gpuTolerations[]"]
    )


def test_every_shape_is_of_a_value() -> None:
    assert set(SHAPES) <= {value.key for value in VALUES} | {"controller.resources.limits.cpu"}


WITHOUT_CRD = {"crds": {"enabled": False}}
"""It is long, and the same in every test."""
CANNOT_BE_UNSET = {
    "storage.s3.bucket": "name the bucket",
    "serviceAccounts.controller.create": "write the name of the account that is there",
    "serviceAccounts.stages.create": "write the name of the account that is there",
}


@pytest.mark.parametrize("value", VALUES, ids=[value.key for value in VALUES])
def test_any_value_can_be_unset(value: Any) -> None:
    values = merged(merged(S3, WITHOUT_CRD), set_at(value.path, None))
    sentence = CANNOT_BE_UNSET.get(value.key)
    if sentence:
        with pytest.raises(helm.HelmRenderError, match=sentence):
            render(values)
    else:
        profile(render(values))


def test_a_number_is_a_quantity_too() -> None:
    values = merged(S3, helm.parse_set_string("train.cpu=64,stages.clip.cpu=4,stages.clip.memory=8Gi"))
    made = profile(render(values))
    assert (made.train.cpu, made.stages["clip"].cpu, made.stages["clip"].memory) == ("64", "4", "8Gi")


def test_a_chart_above_may_have_globals_of_its_own() -> None:
    made = render(merged(S3, {"global": {"storageClass": "fast", "imagePullSecrets": ["one", {"name": "two"}]}}))
    assert profile(made).images.pull_secrets == ["one", "two"]


def test_what_is_generated_is_fresh() -> None:
    for file, text in written().items():
        assert file.read_text(encoding="utf-8") == text, f"{file.name}: python -m helm.generate"


def test_the_crd_is_the_generated_one() -> None:
    generated = yaml.safe_load((CHART / "files" / "brickruns.yaml").read_text(encoding="utf-8"))
    (crd,) = of_kind(render(S3), "CustomResourceDefinition")
    assert crd["spec"] == generated["spec"]
    assert crd["metadata"]["name"] == generated["metadata"]["name"]
    assert crd["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    (gone,) = of_kind(rendered("own-s3-values"), "CustomResourceDefinition")
    assert "annotations" not in gone["metadata"]
    assert of_kind(rendered("bare-values"), "CustomResourceDefinition") == []


def test_a_changed_profile_rolls_the_controller_and_nothing_else_does() -> None:
    def template(values: dict[str, Any]) -> Any:
        (deployment,) = of_kind(render(merged(S3, values)), "Deployment")
        return deployment["spec"]["template"]

    assert template({}) != template({"train": {"nodes": 4}})
    assert template({}) == template({"networkPolicy": {"hub": False}, "rbac": {"aggregate": False}})


@settings(max_examples=25, deadline=None)
@given(
    name=st.from_regex(r"[a-z0-9]([-a-z0-9]{0,51}[a-z0-9])?", fullmatch=True),
    full=st.just("") | st.from_regex(r"[a-z0-9]([-a-z0-9]{0,48}[a-z0-9])?", fullmatch=True),
    nick=st.just("") | st.from_regex(r"[a-z0-9]([-a-z0-9]{0,48}[a-z0-9])?", fullmatch=True),
    pvc=st.booleans(),
)
def test_names_and_labels_are_good_whatever_the_release_is_called(name: str, full: str, nick: str, pvc: bool) -> None:
    storage = {"mode": "pvc"} if pvc else S3["storage"]
    ci = {"ci": {"create": True}}
    names = {"fullnameOverride": full, "nameOverride": nick, "serviceAccounts": ci}
    objects = render(WITHOUT_CRD | {"storage": storage} | names, name=name)
    for each in objects:
        kind, called = each["kind"], each["metadata"]["name"]
        longest = 253 if kind == "ClusterRole" else 63
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", called), (kind, called)
        assert len(called) <= longest, (kind, called)
        for label, text in each["metadata"]["labels"].items():
            assert len(text) <= 63, label
            assert re.fullmatch(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?", text), label
    profile(objects)
    called = [(each["kind"], each["metadata"]["name"]) for each in objects]
    assert len(called) == len(set(called))


def test_what_a_deployment_selects_by_does_not_change_with_its_values() -> None:
    selectors = {
        json.dumps(each["spec"]["selector"], sort_keys=True)
        for name in NAMES
        for each in of_kind(rendered(name), "Deployment")
    }
    assert len(selectors) == 1
    for name in NAMES:
        for each in of_kind(rendered(name), "Deployment"):
            labels = each["spec"]["template"]["metadata"]["labels"]
            assert each["spec"]["selector"]["matchLabels"].items() <= labels.items()
            assert "app.kubernetes.io/version" not in each["spec"]["selector"]["matchLabels"]


def test_the_chart_s_own_example_of_a_run_is_one() -> None:
    about = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    (example,) = yaml.safe_load(about["annotations"]["artifacthub.io/crdsExamples"])
    BrickRun.model_validate(example)
    for name in ("changes", "crds"):
        assert yaml.safe_load(about["annotations"][f"artifacthub.io/{name}"])


def test_there_are_profiles_for_a_laptop_one_gpu_and_infiniband() -> None:
    assert {file.name for file in FILES} >= {"values-kind.yaml", "values-single-gpu.yaml", "values-h100-ib.yaml"}


def test_the_notes_say_what_to_do_next() -> None:
    told = notes(S3)
    assert "s3://films/bricks" in told
    assert "bricks submit k8s/runs/quickstart.yaml -n studio --set ingest.sources.0.path=s3://films/films" in told
    assert "helm test bricks -n studio" in told
    assert "Mind:" not in told


def test_the_notes_commands_are_ours_and_their_files_are_there() -> None:
    from typer.testing import CliRunner

    from jobs.bricks import app

    for values in (S3, values_of("values-kind"), values_of("bare-values")):
        for line in notes(values).splitlines():
            words = shlex.split(line.strip(), comments=True) if line.startswith("  ") else []
            if words[:1] == ["bricks"]:
                told = CliRunner().invoke(app, [*words[1:], "--help"])
                assert told.exit_code == 0, told.output
            for each in words:
                assert not each.startswith("k8s/") or (CHART.parents[1] / each).is_file(), each


@pytest.mark.parametrize(
    ("values", "warning"),
    [
        ({"storage": {"s3": {"existingSecret": ""}}}, "No storage.s3.existingSecret"),
        ({"train": {"nodes": 4}}, "This cluster has no PyTorchJob"),
        ({"train": {"nodes": 4, "launcher": "trainjob"}}, "This cluster has no TrainJob"),
        ({"kueue": {"queues": {"gpu": "q"}}}, "lists kubeflow.org/pytorchjob under integrations.frameworks"),
        ({"train": {"rdma": {"memlock": "root"}}}, "Namespace studio must enforce the `privileged`"),
        ({"train": {"rdma": {"resources": {"rdma/ib": 1}}}}, "needs LimitMEMLOCK=infinity"),
        ({"storage": {"s3": {"endpoint": "https://s3.studio.lan"}}}, "write it into networkPolicy.store.cidrs"),
    ],
)
def test_the_notes_warn_of(values: dict[str, Any], warning: str) -> None:
    assert warning in notes(merged(S3, values))
    assert warning not in notes(S3)
