"""Every object that the chart makes is one that an API server takes, and its pods may do no more than they must."""

from typing import Any

import pytest

from tests.chart.chart import NAMES, S3, of_kind, pods, profile, render, rendered
from tests.schemas import valid

OBJECTS = {
    f"{name}: {each['kind']} {each['metadata']['name']}": each
    for name in NAMES
    for each in rendered(name)
    if each["kind"] != "CustomResourceDefinition" or name == "own-s3-values"
}


@pytest.mark.parametrize("what", OBJECTS)
def test_is_valid_and_restricted(what: str) -> None:
    valid(OBJECTS[what])


@pytest.mark.parametrize("name", NAMES)
def test_no_object_stands_twice_and_all_stand_in_the_release_s_namespace(name: str) -> None:
    names = [(each["kind"], each["metadata"]["name"]) for each in rendered(name)]
    assert len(names) == len(set(names))
    for each in rendered(name):
        wide = each["kind"] in ("ClusterRole", "CustomResourceDefinition")
        assert ("namespace" in each["metadata"]) is not wide, each["metadata"]["name"]
        assert wide or each["metadata"]["namespace"] == "studio"


@pytest.mark.parametrize("name", NAMES)
def test_everything_carries_the_common_labels(name: str) -> None:
    for each in rendered(name):
        if each["metadata"]["name"].endswith("-more"):  # extraObjects are the user's own
            continue
        labels = each["metadata"]["labels"]
        assert labels["app.kubernetes.io/part-of"] == "bricks"
        assert labels["app.kubernetes.io/managed-by"] == "Helm"
        assert labels["helm.sh/chart"] == "bricks-0.1.0"
        if name == "everything-values":
            assert labels["team"] == "pictures"


def test_nothing_outside_the_namespace_is_made_where_that_is_not_wanted() -> None:
    assert {each["kind"] for each in rendered("bare-values")} == {"ConfigMap", "ServiceAccount"}


def controller(objects: list[Any]) -> Any:
    (deployment,) = of_kind(objects, "Deployment")
    return deployment["spec"]["template"]["spec"]


def test_there_is_one_controller_and_never_two_for_a_moment() -> None:
    (deployment,) = of_kind(render(S3), "Deployment")
    assert deployment["spec"]["replicas"] == 1
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}


def test_the_controller_is_started_as_its_command_line_takes_it() -> None:
    import typer
    from typer.testing import CliRunner

    from jobs.controller import app

    (container,) = controller(render(S3))["containers"]
    assert container["command"] == ["bricks-controller"]
    told = CliRunner().invoke(app, [*container["args"], "--help"])
    assert told.exit_code == 0, told.output
    flags = {option for each in typer.main.get_command(app).params for option in each.opts}
    assert {each.partition("=")[0] for each in container["args"]} <= flags
    port = next(each for each in container["ports"] if each["name"] == "health")["containerPort"]
    assert f"--health-port={port}" in container["args"]
    for probe in ("livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"] == {"path": "/healthz", "port": "health"}


def test_the_profile_is_where_the_controller_looks_for_it() -> None:
    spec = controller(render(S3))
    (container,) = spec["containers"]
    folder = next(each["mountPath"] for each in container["volumeMounts"] if each["name"] == "profile")
    assert f"--profile={folder}/profile.yaml" in container["args"]
    volume = next(each for each in spec["volumes"] if each["name"] == "profile")
    assert volume["configMap"]["name"] == "bricks-profile"


@pytest.mark.parametrize("name", [name for name in NAMES if name != "bare-values"])
def test_the_controller_and_the_test_reach_the_store_as_stages_do(name: str) -> None:
    store = profile(rendered(name)).store
    for pod in pods(rendered(name)):
        (container,) = pod["spec"]["containers"]
        env = {each["name"]: each.get("value") for each in container["env"]}
        assert env["BRICKS_STORE"] == store.uri
        assert env.get("AWS_ENDPOINT_URL_S3", "") == store.endpoint
        assert env.get("AWS_REGION", "") == store.region
        claims = [
            each["persistentVolumeClaim"]["claimName"]
            for each in pod["spec"]["volumes"]
            if "persistentVolumeClaim" in each
        ]
        assert claims == ([store.claim] if store.claim else [])


def test_a_pod_that_helm_test_starts_is_gone_when_it_went_well() -> None:
    (pod,) = of_kind(render(S3), "Pod")
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    assert "hook-succeeded" in pod["metadata"]["annotations"]["helm.sh/hook-delete-policy"]
    assert pod["spec"]["restartPolicy"] == "Never"


def test_the_test_s_command_is_one_of_ours() -> None:
    from typer.testing import CliRunner

    from jobs.bricks import app

    (pod,) = of_kind(render(S3), "Pod")
    command = pod["spec"]["containers"][0]["command"]
    assert command[0] == "bricks"
    told = CliRunner().invoke(app, [*command[1:], "--help"])
    assert told.exit_code == 0, told.output
