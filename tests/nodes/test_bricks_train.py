"""bricks-train, as far as it starts no training: what is wrong is told at once, and with the right code."""

from __future__ import annotations

import socket
import threading
import time

import pytest
import torch
from safetensors.torch import save_file

from bricks_core.errors import TryLater, UsageError
from bricks_core.nodes import meeting
from bricks_core.nodes.meeting import Meeting, address_here, node_rank, rendezvous, wait_for_host
from tests.nodes.two_nodes import DEADLINE_S, free_port, wait_until


def test_a_wrong_run_file_ends_with_64_and_every_mistakes_sentence_before_any_process_starts(new_nodes):
    nodes = new_nodes()
    nodes.run["spec"]["train"] |= {"precison": "float32", "log_every_steps": 0}
    nodes.write()
    node = nodes.start("--verbose", BRICKS_PROCESSES="2", LOGLEVEL="INFO")
    assert node.ended() == 64
    told = node.told.splitlines()
    assert len(told) == 2, node.told
    assert any("precison" in line and "precision" in line for line in told)
    assert any("log_every_steps" in line for line in told)


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        (["--run", "none.yaml"], {}, "none.yaml is not there"),
        (["--nodes", "2"], {}, "give --rendezvous HOST:PORT"),
        (["--nodes", "2", "--node-rank", "2"], {}, "nodes count from 0"),
        (["--rendezvous", "here:many"], {}, "no host:port"),
        (["--rendezvous-id", "../up"], {}, "--rendezvous-id"),
        (["--preflight-only", "--no-preflight"], {}, "ask for nothing"),
        (["--store", "ftp://somewhere"], {}, "no place known here"),
        (["--set", "train.seed=often"], {}, "train.seed"),
        (["--proceses", "2"], {}, "--proceses"),
        ([], {"BRICKS_NODES": "many"}, "BRICKS_NODES"),
    ],
)
def test_a_flag_that_cannot_be_meant_ends_with_64_and_a_sentence(new_nodes, arguments, environment, words):
    nodes = shared(new_nodes)
    node = nodes.start(*arguments, **({"BRICKS_NODES": "1"} | environment))
    assert node.ended() == 64, node.told
    assert words in node.told
    assert "Traceback" not in node.told


def test_a_wrong_preflight_file_ends_with_64(new_nodes):
    nodes = new_nodes()
    nodes.preflight = {"maxByte": 5}
    nodes.write()
    node = nodes.start()
    assert node.ended() == 64
    assert "preflight.yaml: maxByte" in node.told


def test_weights_of_another_size_end_with_78_told_once_and_processes_are_not_started_again(new_nodes):
    nodes = new_nodes()
    weights = nodes.folder / "small.safetensors"
    save_file({"x_embedder.proj.weight": torch.zeros(3, 3)}, weights)
    nodes.run["spec"]["train"]["init_from"] = str(weights)
    nodes.write()
    node = nodes.start("--no-preflight", BRICKS_PROCESSES="2", BRICKS_MAX_RESTARTS="3")
    assert node.ended() == 78, node.told
    sentence = [line for line in node.told.splitlines() if line.startswith("bricks_train:")]
    assert len(sentence) == 1
    assert "small.safetensors" in sentence[0]
    assert node.told.count("failed (exitcode: 78)") == 1, "torchrun's word for every try that failed"
    assert "go on from the last checkpoint" not in node.told
    assert nodes.checkpoints() == []


def test_a_process_that_is_not_the_first_ends_after_the_commit(new_nodes):
    """Training Operator 1.9 ends all pods of a job when one has ended well."""
    nodes = new_nodes()
    nodes.run["spec"]["train"]["phases"][1:] = []
    nodes.run["spec"]["train"]["phases"][0]["steps"] = 1
    nodes.write()

    other = nodes.start_entry_point("jobs.train", "--verbose", RANK="1")
    # Started without the others it does all the work, and still leaves the commit to the first.
    wait_until(lambda: "waiting for the first process" in other.told, nodes.last_words)
    assert other.process.poll() is None
    assert list(nodes.store.glob("artifacts/train/*/manifest.json")) == []
    first = nodes.start_entry_point("jobs.train", RANK="0")
    assert [first.ended(), other.ended()] == [0, 0], nodes.last_words()
    assert len(list(nodes.store.glob("artifacts/train/*/manifest.json"))) == 1


def test_a_node_that_is_at_fault_has_ended_before_those_that_are_not_so_that_its_code_is_seen(new_nodes):
    """Training Operator 1.9 removes all pods that run when one has failed, and their exit codes are gone with them."""
    nodes, port = new_nodes(), free_port()
    first = nodes.start("--preflight-only", rank=0, count=2, port=port, BRICKS_GPUS="1")
    other = nodes.start("--preflight-only", rank=1, count=2, port=port)
    wait_until(lambda: first.process.poll() or other.process.poll(), nodes.last_words)
    assert other.process.poll() is None
    assert [first.ended(), other.ended()] == [77, 75], nodes.last_words()


# ------------------------------------------------------------------------------------------------------------ meeting


@pytest.mark.parametrize(
    ("given", "environment", "rank"),
    [
        (3, {"JOB_COMPLETION_INDEX": "1"}, 3),
        (None, {"JOB_COMPLETION_INDEX": "1", "PET_NODE_RANK": "2"}, 1),
        (None, {"PET_NODE_RANK": "2"}, 2),
        (None, {}, 0),
    ],
)
def test_a_nodes_place_is_as_given_else_as_the_pod_says(given, environment, rank):
    assert node_rank(given, environment) == rank


def test_a_place_that_is_no_number_is_refused():
    with pytest.raises(UsageError, match="JOB_COMPLETION_INDEX"):
        node_rank(None, {"JOB_COMPLETION_INDEX": "first"})


@pytest.mark.parametrize(
    ("given", "environment", "place"),
    [
        ("a:1", {"PET_RDZV_ENDPOINT": "b:2"}, ("a", 1)),
        ("", {"PET_RDZV_ENDPOINT": "b:2", "PET_MASTER_ADDR": "c"}, ("b", 2)),
        ("", {"PET_MASTER_ADDR": "c", "PET_MASTER_PORT": "3"}, ("c", 3)),
        ("", {"PET_MASTER_ADDR": "c"}, ("c", 29400)),
        ("node-0.train", {}, ("node-0.train", 29400)),
        ("[fd00::1]:29400", {}, ("fd00::1", 29400)),
        ("", {}, ("", 0)),
    ],
)
def test_nodes_meet_where_it_is_given_else_where_the_operator_says(given, environment, place):
    assert rendezvous(given, environment) == place


@pytest.mark.parametrize("wrong", ["a:b", "a:0", ":5", "a:70000"])
def test_a_meeting_place_that_is_none_is_refused(wrong):
    with pytest.raises(UsageError, match="no host:port"):
        rendezvous(wrong, {})


def test_a_first_node_that_never_comes_is_told():
    with pytest.raises(TryLater, match=r"127\.0\.0\.1:\d+ does not answer.*the first node is not up"):
        wait_for_host(Meeting(2, 1, 1, "127.0.0.1", free_port()), timeout_s=0)


def test_a_first_node_whose_name_does_not_resolve_yet_is_told():
    with pytest.raises(TryLater, match="the first node is not up"):
        wait_for_host(Meeting(2, 1, 1, "no-such-pod.invalid", 29400), timeout_s=0)


def test_a_first_node_that_comes_late_is_waited_for():
    port = free_port()

    def come() -> None:
        time.sleep(0.3)
        listening.listen()

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", port))
        threading.Thread(target=come).start()
        assert wait_for_host(Meeting(2, 1, 1, "127.0.0.1", port)) is None
        listening.settimeout(DEADLINE_S)
        listening.accept()[0].close()


def test_a_node_is_reached_at_the_address_from_which_it_speaks_to_the_first():
    assert address_here(Meeting(2, 1, 1, "127.0.0.1", 29400)) == "127.0.0.1"


def resolving(names):
    """socket.getaddrinfo, where `names` have what is answered for them, one look after the other."""
    real = socket.getaddrinfo

    def look_up(host, *args, **kwargs):
        if host not in names:
            return real(host, *args, **kwargs)
        answers = names[host]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if answer is None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return real(answer, *args, **kwargs)

    return look_up


def test_a_first_node_that_begins_before_its_name_is_known_waits_for_it(monkeypatch):
    monkeypatch.setattr(meeting, "LOOK_AGAIN_S", 0.01)
    monkeypatch.setattr(socket, "getaddrinfo", resolving({"job-0.job": [None, None, "127.0.0.1"]}))
    assert address_here(Meeting(2, 1, 0, "job-0.job", 29400)) == "127.0.0.1"


def test_a_node_that_cannot_name_the_first_tells_an_address_and_not_a_name_that_others_may_not_know(monkeypatch):
    monkeypatch.setattr(meeting, "NAMED_WITHIN_S", 0.0)
    monkeypatch.setattr(meeting, "LOOK_AGAIN_S", 0.01)
    monkeypatch.setattr(meeting, "ELSEWHERE", "127.0.0.1")
    monkeypatch.setattr(socket, "getaddrinfo", resolving({"job-0.job": [None]}))
    assert address_here(Meeting(2, 1, 0, "job-0.job", 29400)) == "127.0.0.1"


def test_processes_have_most_of_the_grace_period_for_their_checkpoint_and_the_node_the_rest():
    assert Meeting(grace_s=900).stop_timeout_s == 890
    assert Meeting(grace_s=10).stop_timeout_s == 5


def shared(new_nodes):
    """One folder for all tests that start nothing."""
    if not hasattr(new_nodes, "shared"):
        new_nodes.shared = new_nodes()
    return new_nodes.shared
