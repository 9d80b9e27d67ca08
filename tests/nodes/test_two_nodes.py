"""Two nodes of two processes train as one, whatever happens to them on the way."""

from __future__ import annotations

import json
import os
import re
import signal
from dataclasses import dataclass, field

import pytest

from tests.journey.tiny_run import artifacts, differing
from tests.nodes.two_nodes import Nodes, free_port

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def undisturbed(new_nodes):
    """One node of four processes, left alone."""
    nodes = new_nodes()
    assert nodes.start("--no-preflight", BRICKS_PROCESSES="4").ended() == 0, nodes.last_words()
    return nodes


@dataclass
class Journey:
    """What came of two nodes, one trouble after the other in the same run."""

    nodes: Nodes
    codes: dict[str, list[int]] = field(default_factory=dict)
    told: dict[str, str] = field(default_factory=dict)
    left: dict[str, list[str]] = field(default_factory=dict)


@pytest.fixture(scope="module")
def journey(new_nodes):
    """A process is killed, then a whole node, then a node is told to stop, then both are started again to the end."""
    nodes, port = new_nodes(), free_port()
    journey = Journey(nodes)
    first, second = nodes.start_two(port=port)

    nodes.wait_for_checkpoint("step-000020")
    os.kill(second.workers()[1], signal.SIGKILL)
    nodes.wait_for_checkpoint("step-000040")
    journey.told["a process was killed"] = first.told + second.told
    assert first.process.poll() is None, nodes.last_words()
    assert second.process.poll() is None, nodes.last_words()

    second.process.kill()
    journey.codes["a node was killed"] = [second.ended()]
    replacement = nodes.start(rank=1, count=2, port=port, BRICKS_PROCESSES="2")
    nodes.wait_for_checkpoint("step-000060")
    assert first.process.poll() is None, nodes.last_words()

    replacement.process.terminate()
    journey.codes["a node was told to stop"] = [first.ended(), replacement.ended()]
    journey.told["a node was told to stop"] = first.told + replacement.told
    journey.left["a node was told to stop"] = nodes.checkpoints()

    again = nodes.start_two()
    journey.codes["started again"] = [node.ended() for node in again]
    journey.told["started again"] = again[0].told + again[1].told
    return journey


def test_a_process_that_is_killed_is_started_again_with_all_others_from_the_last_checkpoint(journey):
    told = journey.told["a process was killed"]
    assert "killed by SIGKILL" in told
    assert re.search(r"train: continuing from step [2-9][0-9], trainings/", told)


def test_a_node_that_is_killed_takes_its_processes_along_and_its_replacement_is_let_in(journey):
    assert journey.codes["a node was killed"] == [-signal.SIGKILL]


def test_a_node_that_is_told_to_stop_has_all_write_a_checkpoint_and_end_with_143(journey):
    assert journey.codes["a node was told to stop"] == [143, 143], journey.told["a node was told to stop"]
    assert int(journey.left["a node was told to stop"][-1].partition("-")[2]) > 60


def test_the_next_start_goes_on_from_that_checkpoint_to_the_end(journey):
    assert journey.codes["started again"] == [0, 0], journey.told["started again"]
    stopped = int(journey.left["a node was told to stop"][-1].partition("-")[2])
    assert f"train: continuing from step {stopped}, trainings/" in journey.told["started again"]


def test_after_all_that_every_loss_weight_and_row_is_that_of_the_undisturbed_run(journey, undisturbed):
    assert any(address.startswith("train/") for address in artifacts(undisturbed.store))
    assert differing(undisturbed.store, journey.nodes.store) == []


def test_each_node_told_where_the_artifact_is_once(journey):
    address = next(address for address in artifacts(journey.nodes.store) if address.startswith("train/"))
    assert journey.told["started again"].count(f"artifacts/{address}\n") == 2


def test_the_preflight_of_both_nodes_is_in_the_store(journey):
    folder = journey.nodes.store / "runs/nodes/preflight"
    report = json.loads((folder / "preflight.json").read_text(encoding="utf-8"))
    assert report["fit"]
    assert report["exit_codes"] == [0, 0]
    assert [node["node_name"] for node in report["nodes"]] == ["machine-0", "machine-1"]
    for rank, node in enumerate(report["nodes"]):
        assert json.loads((folder / f"node-{rank}.json").read_text(encoding="utf-8")) == node
        states = {check["name"]: check["state"] for check in node["checks"]}
        assert states == {
            "clock": "passed",
            "GPUs": "left out",
            "lockable memory": "left out",
            "RDMA devices": "left out",
            "verbs library": "left out",
            "free disk": "passed",
            "shared memory": "passed",
            "store": "passed",
            "node all-reduce": "passed",
            "cluster all-reduce": "passed",
        }
        assert {sweep["scope"] for sweep in node["sweeps"]} == {"node", "cluster"}


def test_no_probe_of_the_preflight_is_left_in_the_store(journey):
    assert list((journey.nodes.store / "runs/nodes/preflight").glob("probe-*")) == []
