"""Who may speak to whom, by the rules of NetworkPolicy: what no policy that selects a pod allows is refused."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from bricks_core.cluster.launcher import Task
from bricks_core.cluster.metadata import labels
from bricks_core.spec.cluster import ClusterProfile
from bricks_core.spec.run import load_run
from tests.chart.chart import NAMES, S3, Object, of_kind, render, rendered
from tests.chart.test_values import merged

STAGES = ("ingest", "clip", "score", "caption", "latents", "train", "evaluate", "preflight")
DECODING = ("ingest", "clip", "score")
API_SERVER = ("10.96.0.1", 443), ("10.0.0.10", 6443)
METADATA = ("169.254.169.254", 80)
"""Where a cloud's nodes give out their credentials."""
INTERNET = ("52.216.0.1", 443)


@dataclass(frozen=True)
class Peer:
    """The other end: an address, or a pod."""

    address: str = ""
    namespace: str = "studio"
    labels: dict[str, str] = field(default_factory=dict)


NAME_SERVER = Peer(namespace="kube-system", labels={"k8s-app": "kube-dns"})


@cache
def stage(name: str) -> dict[str, str]:
    """Labels that a stage's pods have."""
    run = load_run(Path(__file__).parents[2] / "k8s" / "runs" / "text2bricks-64f.yaml")
    alone = name == "preflight"
    return labels(Task(run, "train" if alone else name, ClusterProfile(), preflight_only=alone))


def selects(selector: Object, its: dict[str, str]) -> bool:
    for key, value in selector.get("matchLabels", {}).items():
        if its.get(key) != value:
            return False
    for each in selector.get("matchExpressions", []):
        there, values = its.get(each["key"]), each.get("values", [])
        good = {"In": there in values, "NotIn": there not in values, "Exists": there is not None}
        good["DoesNotExist"] = there is None
        if not good[each["operator"]]:
            return False
    return True


def policies_of(objects: list[Object], pod: dict[str, str], direction: str) -> Iterator[Object]:
    for each in of_kind(objects, "NetworkPolicy"):
        if direction in each["spec"]["policyTypes"] and selects(each["spec"]["podSelector"], pod):
            yield each["spec"]


def is_peer(rule: Object, peer: Peer) -> bool:
    block = rule.get("ipBlock")
    if block:
        if not peer.address:
            return False
        address = ipaddress.ip_address(peer.address)
        excepted = any(address in ipaddress.ip_network(each) for each in block.get("except", []))
        return address in ipaddress.ip_network(block["cidr"]) and not excepted
    if peer.address:
        return False
    if "namespaceSelector" in rule:
        if not selects(rule["namespaceSelector"], {"kubernetes.io/metadata.name": peer.namespace}):
            return False
    elif peer.namespace != "studio":
        return False
    return selects(rule.get("podSelector", {}), peer.labels)


def may(objects: list[Object], pod: dict[str, str], direction: str, peer: Peer, port: int, over: str = "TCP") -> bool:
    """Whether a pod with these labels may send to (Egress) or hear from (Ingress) a peer."""
    policies = list(policies_of(objects, pod, direction))
    if not policies:
        return True  # nobody says anything about it
    ends = {"Egress": ("egress", "to"), "Ingress": ("ingress", "from")}[direction]
    for rule in (rule for each in policies for rule in each.get(ends[0], [])):
        ports = rule.get("ports", [])
        if ports and not any(each.get("protocol", "TCP") == over and each["port"] == port for each in ports):
            continue
        if ends[1] not in rule or any(is_peer(each, peer) for each in rule[ends[1]]):
            return True
    return False


def may_send(objects: list[Object], name: str, where: tuple[str, int]) -> bool:
    return may(objects, stage(name), "Egress", Peer(where[0]), where[1])


GUARDED = [name for name in NAMES if name != "bare-values"]


@pytest.mark.parametrize("name", GUARDED)
@pytest.mark.parametrize("which", STAGES)
def test_no_stage_reaches_the_api_server_or_a_node_s_credentials(name: str, which: str) -> None:
    for where in (*API_SERVER, METADATA):
        assert not may_send(rendered(name), which, where), where


@pytest.mark.parametrize("name", GUARDED)
@pytest.mark.parametrize("which", STAGES)
def test_every_stage_reaches_name_servers_and_no_other_service_of_the_cluster(name: str, which: str) -> None:
    for over in ("UDP", "TCP"):
        assert may(rendered(name), stage(which), "Egress", NAME_SERVER, 53, over)
    assert not may(rendered(name), stage(which), "Egress", NAME_SERVER, 443)
    assert not may(rendered(name), stage(which), "Egress", Peer(namespace="vault"), 8200)


@pytest.mark.parametrize("name", GUARDED)
@pytest.mark.parametrize("which", STAGES)
def test_nobody_speaks_to_a_stage_but_training_pods_to_each_other(name: str, which: str) -> None:
    trains = which in ("train", "preflight")
    for peer, is_heard in ((Peer(labels=stage("train")), trains), (Peer(labels=stage("clip")), False)):
        for port in (22, 29400, 45678):
            assert may(rendered(name), stage(which), "Ingress", peer, port) is is_heard
            assert may(rendered(name), stage(which), "Egress", peer, port) is is_heard
    assert not may(rendered(name), stage(which), "Ingress", Peer(labels=stage("train"), namespace="other"), 29400)
    assert not may(rendered(name), stage(which), "Ingress", Peer("10.1.1.1"), 29400)


@pytest.mark.parametrize("name", GUARDED)
def test_the_controller_reaches_the_api_server_and_hears_nobody(name: str) -> None:
    (pod,) = [each["spec"]["template"]["metadata"]["labels"] for each in of_kind(rendered(name), "Deployment")]
    for where, port in API_SERVER:
        assert may(rendered(name), pod, "Egress", Peer(where), port)
    assert may(rendered(name), pod, "Egress", NAME_SERVER, 53, "UDP")
    assert not may(rendered(name), pod, "Ingress", Peer(labels=stage("clip")), 8080)
    (test,) = [each["metadata"]["labels"] for each in of_kind(rendered(name), "Pod")]
    assert may(rendered(name), test, "Egress", Peer(API_SERVER[0][0]), 443)


def test_the_controller_alone_reaches_the_internet_to_tell_of_an_end_and_only_where_that_is_asked_for() -> None:
    inside = merged(S3, {"storage": {"s3": {"endpoint": "http://rgw.ceph.svc:80"}}, "networkPolicy": {"hub": False}})
    inside = merged(inside, {"networkPolicy": {"apiServer": {"cidrs": ["10.96.0.1/32"]}}})
    for asked in (False, True):
        objects = render(merged(inside, {"notify": {"existingSecret": "chat" if asked else ""}}))
        (controller,) = [each["spec"]["template"]["metadata"]["labels"] for each in of_kind(objects, "Deployment")]
        (test,) = [each["metadata"]["labels"] for each in of_kind(objects, "Pod")]
        assert may(objects, controller, "Egress", Peer(INTERNET[0]), INTERNET[1]) is asked
        assert not may(objects, controller, "Egress", Peer(METADATA[0]), METADATA[1])
        assert not may(objects, test, "Egress", Peer(INTERNET[0]), INTERNET[1])
        assert not any(may_send(objects, which, INTERNET) for which in STAGES)


def test_amazon_s_s3_is_on_the_internet() -> None:
    for which in STAGES:
        assert may_send(render(S3), which, INTERNET)
        assert not may_send(render(S3), which, (INTERNET[0], 80))
    assert may_send(render(S3), "clip", ("2600:1f18::1", 443))
    assert not may_send(render(S3), "clip", ("fd00::1", 443))


@pytest.mark.parametrize("which", DECODING)
def test_with_a_volume_a_stage_that_decodes_reaches_nothing(which: str) -> None:
    assert not may_send(rendered("values-kind"), which, INTERNET)


@pytest.mark.parametrize(
    ("endpoint", "cidrs", "reached", "not_reached"),
    [
        ("http://rgw.ceph.svc:7480", [], [Peer(namespace="ceph")], [Peer("52.216.0.1"), Peer(namespace="vault")]),
        ("http://rgw.ceph.svc.cluster.local", [], [Peer(namespace="ceph")], [Peer("10.0.0.5")]),
        ("http://store:7480", [], [Peer(namespace="studio")], [Peer(namespace="ceph")]),
        ("http://10.20.30.40:7480", [], [Peer("10.20.30.40")], [Peer("10.20.30.41"), Peer("52.216.0.1")]),
        ("http://s3.studio.lan:7480", ["10.9.0.0/16"], [Peer("10.9.1.2")], [Peer("10.8.1.2"), Peer("52.216.0.1")]),
        ("http://s3.example.org:7480", [], [Peer("52.216.0.1")], [Peer("10.9.1.2")]),
    ],
)
def test_stages_and_controller_reach_the_store_and_only_it(
    endpoint: str, cidrs: list[str], reached: list[Peer], not_reached: list[Peer]
) -> None:
    values = {"storage": {"s3": {"endpoint": endpoint}}, "networkPolicy": {"store": {"cidrs": cidrs}}}
    objects = render(merged(S3, values))
    (controller,) = [each["spec"]["template"]["metadata"]["labels"] for each in of_kind(objects, "Deployment")]
    for pod in (stage("clip"), controller):
        for peer in reached:
            assert may(objects, pod, "Egress", peer, 7480)
        for peer in not_reached:
            assert not may(objects, pod, "Egress", peer, 7480)


def test_weights_are_fetched_by_those_who_need_them_where_that_is_wanted() -> None:
    inside: dict[str, Any] = {"storage": {"s3": {"endpoint": "http://rgw.ceph.svc"}}}
    for hub in (True, False):
        objects = render(merged(S3, inside | {"networkPolicy": {"hub": hub}}))
        for which in STAGES:
            wanted = hub and which in ("latents", "train", "evaluate")
            assert may_send(objects, which, INTERNET) is wanted, which


def test_numbers_are_sent_by_those_who_have_some_where_there_is_a_key() -> None:
    values = {"storage": {"s3": {"endpoint": "http://rgw.ceph.svc"}}, "networkPolicy": {"hub": False}}
    objects = render(merged(S3, values | {"secrets": {"tracking": "wandb"}}))
    for which in STAGES:
        assert may_send(objects, which, INTERNET) is (which in ("train", "evaluate"))


def test_captions_are_asked_for_on_the_internet_or_where_the_values_say() -> None:
    inside = {"storage": {"s3": {"endpoint": "http://rgw.ceph.svc"}}, "secrets": {"caption": "key"}}
    objects = render(merged(S3, inside))
    assert may_send(objects, "caption", INTERNET)
    vision = [{"to": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "vision"}}}]}]
    objects = render(merged(S3, inside | {"networkPolicy": {"caption": vision}}))
    assert not may_send(objects, "caption", INTERNET)
    assert may(objects, stage("caption"), "Egress", Peer(namespace="vision"), 8000)
    assert not may(objects, stage("clip"), "Egress", Peer(namespace="vision"), 8000)


def test_without_policies_there_are_none() -> None:
    assert of_kind(rendered("bare-values"), "NetworkPolicy") == []
