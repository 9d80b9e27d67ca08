"""No pod can read a Secret that it does not need, and no account a Secret at all."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bricks_core.cluster.launcher import Owner, Task
from bricks_core.cluster.launchers import launcher_for
from bricks_core.spec.run import load_run
from tests.chart.chart import NAMES, S3, Object, of_kind, pods, profile, render, rendered, values_of
from tests.schemas.pods import pods_of

RUN = Path(__file__).parents[2] / "k8s" / "runs" / "text2bricks-64f.yaml"
STAGES = ("ingest", "clip", "score", "caption", "latents", "train", "evaluate")
NEEDS = {
    "ingest": {"s3"},
    "clip": {"s3"},
    "score": {"s3"},
    "caption": {"s3", "vision"},
    "latents": {"s3", "hub"},
    "train": {"s3", "wandb", "hub"},
    "evaluate": {"s3", "wandb", "hub"},
}
"""Of the Secrets in ci/everything-values.yaml."""


def secrets_of(value: Any) -> Iterator[str]:
    """Names of the Secrets that a pod's containers or volumes read."""
    if isinstance(value, list):
        for each in value:
            yield from secrets_of(each)
    elif isinstance(value, dict):
        for key, each in value.items():
            if key in ("secretRef", "secretKeyRef"):
                yield each["name"]
            elif key == "secret" and isinstance(each, dict):
                yield each.get("secretName") or each["name"]
            elif key != "imagePullSecrets":
                yield from secrets_of(each)


def children(name: str, stage: str) -> list[Object]:
    """What the controller renders for a stage, with the profile of a file of values."""
    task = Task(load_run(RUN), stage, profile(rendered(name)), owner=Owner("text2bricks-64f", "1234"))
    return launcher_for(task.run, task.profile, stage).render(task)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_reads_the_secrets_it_needs_and_no_other(stage: str) -> None:
    found = [set(secrets_of(pod["spec"])) for each in children("everything-values", stage) for _, pod in pods_of(each)]
    assert found
    for secrets in found:
        assert secrets == NEEDS[stage]


@pytest.mark.parametrize("stage", STAGES)
def test_without_secrets_in_the_values_a_stage_reads_none(stage: str) -> None:
    assert [list(secrets_of(each)) for each in children("irsa-values", stage) if list(secrets_of(each))] == []


@pytest.mark.parametrize("name", NAMES)
def test_the_controller_reads_the_store_s_secret_and_the_address_to_notify_and_the_test_the_first_alone(
    name: str,
) -> None:
    store = profile(rendered(name)).store.secret
    notify = values_of(name).get("notify", {}).get("existingSecret")
    for pod in pods(rendered(name)):
        is_controller = pod["metadata"]["labels"]["app.kubernetes.io/component"] == "controller"
        wanted = {store, notify} if is_controller else {store}
        assert set(secrets_of(pod["spec"])) == wanted - {None, ""}


def test_the_address_to_notify_is_one_variable_of_the_controller_and_stands_nowhere_else() -> None:
    objects = render(S3 | {"notify": {"existingSecret": "chat"}})
    (pod,) = [each["spec"]["template"]["spec"] for each in of_kind(objects, "Deployment")]
    (given,) = [each for each in pod["containers"][0]["env"] if "NOTIFY" in each["name"]]
    assert given == {
        "name": "BRICKS_NOTIFY_URL",
        "valueFrom": {"secretKeyRef": {"name": "chat", "key": "BRICKS_NOTIFY_URL"}},
    }
    assert [str(each).count("chat") for each in objects if "chat" in str(each)] == [1]
    for stage in STAGES:
        task = Task(load_run(RUN), stage, profile(objects), owner=Owner("text2bricks-64f", "1234"))
        assert "NOTIFY" not in str(launcher_for(task.run, task.profile, stage).render(task))


@pytest.mark.parametrize("name", NAMES)
def test_the_chart_makes_no_secret(name: str) -> None:
    assert of_kind(rendered(name), "Secret") == []


@pytest.mark.parametrize("name", NAMES)
def test_no_role_of_the_chart_may_see_secrets(name: str) -> None:
    roles = [*of_kind(rendered(name), "Role"), *of_kind(rendered(name), "ClusterRole")]
    for role in roles:
        for rule in role["rules"]:
            assert "*" not in rule["apiGroups"] + rule["resources"] + rule["verbs"]
            assert not {"secrets", "serviceaccounts", "roles", "rolebindings"} & {
                each.partition("/")[0] for each in rule["resources"]
            }


@pytest.mark.parametrize("name", NAMES)
def test_the_stages_account_has_no_rights_and_its_token_is_in_no_pod(name: str) -> None:
    made = profile(rendered(name))
    bound = {
        subject["name"]
        for kind in ("RoleBinding", "ClusterRoleBinding")
        for each in of_kind(rendered(name), kind)
        for subject in each["subjects"]
    }
    assert made.service_account not in bound
    assert "default" not in bound
    for account in of_kind(rendered(name), "ServiceAccount"):
        assert account["automountServiceAccountToken"] is False
    for stage in STAGES:
        for each in children(name, stage):
            for _, pod in pods_of(each):
                assert pod["spec"]["serviceAccountName"] == made.service_account
                assert pod["spec"]["automountServiceAccountToken"] is False


@pytest.mark.parametrize("name", NAMES)
def test_no_key_stands_in_a_config_map(name: str) -> None:
    for each in of_kind(rendered(name), "ConfigMap"):
        text = str(each["data"])
        assert "AWS_SECRET_ACCESS_KEY" not in text
        assert "API_KEY" not in text
