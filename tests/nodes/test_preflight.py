"""What a node must be able to do before it trains, and what becomes of one that cannot."""

from __future__ import annotations

import json
import os
import resource
import subprocess
from pathlib import Path

import pytest
import torch

from bricks_core.nodes import checks, gpus
from bricks_core.nodes.all_reduce import at_fault, sizes
from bricks_core.nodes.clocks import clock_check
from bricks_core.nodes.preflight import _guilty
from bricks_core.nodes.report import Check, NodeReport, Report, table, verdicts
from bricks_core.spec.cluster import PreflightProfile
from bricks_core.storage.places import open_store
from tests.nodes.flights import Place, fly
from tests.nodes.two_nodes import free_port

HUGE = 1 << 60
MACHINES = [Place(0, 2), Place(1, 2)]


@pytest.fixture
def store(tmp_path):
    return str(tmp_path / "store")


def codes(outcomes):
    return [sorted({outcome.code for outcome in node}) for node in outcomes]


def reports(store):
    folder = Path(store) / "runs/tiny/preflight"
    return json.loads((folder / "preflight.json").read_text(encoding="utf-8"))["nodes"]


def checks_of(node):
    return {check["name"]: check for check in node["checks"]}


# ------------------------------------------------------------------------------------------------------- several nodes


def test_nodes_that_are_fit_pass_and_the_first_process_says_so(store):
    outcomes = fly(store, MACHINES, node_bus_gbps=1e-6, cluster_bus_gbps=1e-6)
    assert codes(outcomes) == [[0], [0]]
    assert [bool(outcome.said) for node in outcomes for outcome in node] == [True, False, False, False]
    assert "All nodes are fit." in outcomes[0][0].said
    for node in reports(store):
        found = checks_of(node)
        assert found["cluster all-reduce"]["measured"] >= found["cluster all-reduce"]["wanted"]
        assert found["node all-reduce"]["state"] == "passed"
        for sweep in node["sweeps"]:
            count = sweep["num_processes"]
            expected = sweep["num_bytes"] / sweep["seconds"] * 2 * (count - 1) / count / 1e9
            assert sweep["bus_gbps"] == pytest.approx(expected)
        assert {sweep["num_processes"] for sweep in node["sweeps"]} == {2, 4}
    assert list((Path(store) / "runs/tiny/preflight").glob("probe-*")) == []


def test_a_node_whose_clock_is_off_asks_for_another_and_the_fit_one_tries_later(store):
    outcomes = fly(store, [Place(0, 1), Place(1, 1, skew_s=-42)])
    assert codes(outcomes) == [[75], [77]]
    assert "42.0 s behind the other nodes'" in outcomes[1][0].sentence
    assert "chrony" in outcomes[1][0].sentence
    assert "This node is fit" in outcomes[0][0].sentence
    assert "machine-1" in outcomes[0][0].sentence
    first, second = reports(store)
    assert checks_of(first)["clock"]["state"] == "passed"
    assert checks_of(second)["clock"]["measured"] == pytest.approx(-42, abs=1)
    assert checks_of(second)["all-reduce"]["state"] == "left out", "no use in measuring what will not train"


def test_a_first_node_whose_clock_is_off_is_the_one_to_go(store):
    outcomes = fly(store, [Place(0, 1, skew_s=42), Place(1, 1), Place(2, 1)])
    assert codes(outcomes) == [[77], [75], [75]]
    assert "42.0 s ahead of the other nodes'" in outcomes[0][0].sentence


def test_a_node_without_room_asks_for_another_with_all_its_processes(store):
    outcomes = fly(store, [Place(0, 1), Place(1, 2, changes={"free_disk_bytes": HUGE})])
    assert codes(outcomes) == [[75], [77]]
    assert "TMPDIR" in outcomes[1][0].sentence


def test_a_network_slower_than_wanted_is_a_wrong_setting_and_not_one_nodes_fault(store):
    outcomes = fly(store, [Place(0, 1), Place(1, 1), Place(2, 1)], cluster_bus_gbps=1e9)
    assert codes(outcomes) == [[78], [78], [78]]
    assert "NET/Socket" in outcomes[0][0].sentence
    assert "preflight.clusterBusGbps" in outcomes[0][0].sentence


def test_a_node_slow_within_itself_asks_for_another(store):
    outcomes = fly(store, [Place(0, 2), Place(1, 2, changes={"node_bus_gbps": 1e9})])
    assert codes(outcomes) == [[75], [77]]
    assert "inside this node" in outcomes[1][0].sentence
    assert "preflight.nodeBusGbps" in outcomes[1][0].sentence


def test_two_nodes_that_say_they_are_the_same_one_are_refused(store):
    outcomes = fly(store, [Place(0, 1), Place(0, 1)])
    assert codes(outcomes) == [[78], [78]]
    assert "--node-rank of its own" in outcomes[0][0].sentence


def test_what_is_wrong_on_every_node_is_a_wrong_setting(store):
    outcomes = fly(store, [Place(0, 1), Place(1, 1)], shm_bytes=HUGE)
    assert codes(outcomes) == [[78], [78]]
    assert "medium Memory" in outcomes[0][0].sentence


def test_one_process_alone_leaves_out_what_takes_several(store):
    (outcome,) = fly(store, [Place()])[0]
    assert outcome.code == 0
    found = checks_of(reports(store)[0])
    assert {name for name, check in found.items() if check["state"] == "left out"} == {
        "clock",
        "GPUs",
        "lockable memory",
        "RDMA devices",
        "verbs library",
        "node all-reduce",
        "cluster all-reduce",
    }


def test_gpus_that_are_asked_for_and_not_there_ask_for_another_node(store):
    if torch.cuda.device_count():
        pytest.skip("This machine has GPUs.")
    (outcome,) = fly(store, [Place(num_gpus=8)])[0]
    assert outcome.code == 77
    assert "8 GPUs are asked for and 0 can be seen" in outcome.sentence


# --------------------------------------------------------------------------------------------------------------- store


def test_a_store_that_takes_writes_passes(store):
    check = checks.store_write(open_store(store), "tiny", 0)
    assert (check.state, check.exit_code) == ("passed", 0)
    assert list(Path(store).rglob("probe-*")) == []


@pytest.fixture
def read_only(tmp_path):
    """A folder that takes no writes, for root too."""
    folder = tmp_path / "read-only"
    (folder / "store").mkdir(parents=True)
    if os.geteuid():
        (folder / "store").chmod(0o555)
        yield str(folder / "store")
        (folder / "store").chmod(0o755)
        return
    mount = ["mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", str(folder / "store")]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("Mounting needs CAP_SYS_ADMIN.")
    yield str(folder / "store")
    subprocess.run(["umount", "--lazy", str(folder / "store")], check=True)


def test_a_store_that_may_not_be_written_is_a_wrong_setting_of_all(store, read_only):
    outcomes = fly(read_only, [Place(0, 1), Place(1, 1)])
    assert codes(outcomes) == [[78], [78]]
    assert f"{read_only} cannot be written" in outcomes[1][0].sentence


def test_a_store_that_is_away_is_told_as_such(monkeypatch):
    address = {"AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{free_port()}", "AWS_REGION": "us-east-1"}
    for name, value in (address | {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}).items():
        monkeypatch.setenv(name, value)
    check = checks.store_write(open_store("s3://bricks-test/nowhere"), "tiny", 0)
    assert (check.state, check.exit_code) == ("failed", 69)
    assert "s3://bricks-test/nowhere cannot be written" in check.sentence


# ---------------------------------------------------------------------------------------------------------- one measure


def test_a_measure_whose_threshold_is_0_is_left_out():
    nothing = PreflightProfile(free_disk_bytes=0, shm_bytes=0, clock_skew_s=0)
    found = [checks.free_disk(nothing), checks.shared_memory(nothing), clock_check(99, 2, nothing)]
    found.append(checks.lockable_memory(nothing, rdma=False))
    assert [check.state for check in found] == ["left out"] * 4


def test_without_rdma_nothing_is_asked_of_it():
    profile = PreflightProfile()
    found = [checks.lockable_memory(profile, rdma=False), checks.rdma_devices(rdma=False)]
    assert [check.state for check in [*found, checks.verbs_library(rdma=False)]] == ["left out"] * 3


def test_rdma_wants_memory_locked_without_limit_and_says_how(tmp_path):
    powerless = tmp_path / "status"
    powerless.write_text("Name:\tpython\nCapEff:\t0000000000000000\n", encoding="utf-8")
    check = checks.lockable_memory(PreflightProfile(), rdma=True, limit=8 << 20, status=powerless)
    assert (check.state, check.exit_code) == ("failed", 78)
    assert "LimitMEMLOCK=infinity" in check.sentence
    assert "train.rdma.memlock: root" in check.sentence
    limit = resource.RLIM_INFINITY
    assert checks.lockable_memory(PreflightProfile(), rdma=True, limit=limit, status=powerless).state == "passed"
    enough = PreflightProfile(memlock_bytes=1 << 20)
    assert checks.lockable_memory(enough, rdma=True, limit=8 << 20, status=powerless).state == "passed"


def test_the_right_to_lock_memory_stands_for_any_limit_where_it_is_effective(tmp_path):
    root = tmp_path / "status"
    root.write_text("CapInh:\t0000000000000000\nCapEff:\t0000000000004000\n", encoding="utf-8")
    assert checks.lockable_memory(PreflightProfile(), rdma=True, limit=1 << 16, status=root).state == "passed"
    root.write_text("CapBnd:\t0000000000004000\nCapEff:\t0000000000000000\n", encoding="utf-8")
    assert checks.lockable_memory(PreflightProfile(), rdma=True, limit=1 << 16, status=root).state == "failed"


def test_rdma_without_a_device_or_its_library_says_what_to_ask_for(tmp_path, monkeypatch):
    check = checks.rdma_devices(rdma=True, place=tmp_path)
    assert (check.state, check.exit_code) == ("failed", 78)
    assert "train.rdma.resources" in check.sentence
    (tmp_path / "uverbs0").touch()
    assert checks.rdma_devices(rdma=True, place=tmp_path).state == "passed"
    monkeypatch.setenv("NCCL_IB_DISABLE", "1")
    assert "NCCL_IB_DISABLE=1" in checks.rdma_devices(rdma=True, place=tmp_path).sentence


def test_a_verbs_library_is_loaded_and_not_only_looked_for():
    check = checks.verbs_library(rdma=True, names=["libm.so.6"])
    assert check.state == "passed"
    check = checks.verbs_library(rdma=True, names=["libno-such-verbs.so.1"])
    assert (check.state, check.exit_code) == ("failed", 78)
    assert "libibverbs1" in check.sentence


GPU = """<gpu id="0"><uuid>GPU-{uuid}</uuid>
<ecc_errors><volatile><sram_correctable>5</sram_correctable><dram_uncorrectable>{now}</dram_uncorrectable></volatile>
<aggregate><dram_uncorrectable>7</dram_uncorrectable></aggregate></ecc_errors>
<remapped_rows><remapped_row_corr>1</remapped_row_corr><remapped_row_pending>{pending}</remapped_row_pending>
<remapped_row_failure>{failure}</remapped_row_failure></remapped_rows></gpu>"""


def smi(*found):
    well = {"now": "0", "pending": "No", "failure": "No"}
    listed = "".join(GPU.format(uuid=index, **(well | each)) for index, each in enumerate(found))
    return f"<nvidia_smi_log>{listed}</nvidia_smi_log>"


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ([{}, {}], None),
        ([{"now": "N/A", "pending": "N/A", "failure": "N/A"}], None),
        ([{}, {"pending": "Yes"}], r"GPU 1 \(GPU-1\) has memory rows that wait to be remapped"),
        ([{"failure": "Yes"}], r"GPU 0 \(GPU-0\) could not remap a row"),
        ([{}, {}, {"now": "3"}], r"GPU 2 \(GPU-2\) had 3 uncorrectable memory errors"),
    ],
)
def test_a_gpu_that_its_driver_knows_to_be_damaged_asks_for_another_node(found, words):
    number, health = gpus.gpus(len(found), seen=len(found), told=smi(*found))
    assert number.state == "passed"
    if words is None:
        assert health.state == "passed"
    else:
        assert (health.state, health.exit_code) == ("failed", 77)
        with pytest.raises(AssertionError, match=words):
            raise AssertionError(health.sentence)


def test_a_driver_that_cannot_be_asked_is_left_out_and_said():
    assert gpus.gpus(1, seen=1, told="<half")[1].state == "left out"


# ------------------------------------------------------------------------------------------------------------- verdicts


def failed(name, code):
    return Check(name=name, state="failed", exit_code=code, sentence=f"{name} is wrong.")


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([[], []], [0, 0]),
        ([[failed("clock", 77)], []], [77, 75]),
        ([[failed("memory", 78)], [failed("memory", 78)]], [78, 78]),
        ([[failed("memory", 78)], []], [77, 75]),  # the others have it right: it is the node
        ([[failed("memory", 78)], [failed("shm", 78)]], [77, 77]),
        ([[failed("store", 69)], [failed("store", 69)]], [69, 69]),
        ([[failed("store", 69)], []], [69, 75]),
        ([[failed("store", 69), failed("clock", 77)], []], [77, 75]),
        ([[failed("store", 78)]], [78]),
        ([[failed("clock", 77), failed("memory", 78)], [failed("memory", 78)]], [78, 78]),
    ],
)
def test_what_follows_for_each_node(found, expected):
    nodes = [NodeReport(node_rank=rank, node_name=f"m{rank}", checks=each) for rank, each in enumerate(found)]
    assert [verdict.code for verdict in verdicts(nodes)] == expected


@pytest.mark.parametrize(
    ("pairs", "nodes"),
    [
        ([9, 9, 9, 9], set()),
        ([1, 9, 9, 1], {0}),
        ([9, 1, 1, 9], {2}),
        ([1, 1, 1, 1], set()),  # the network, and no node
        ([9, 1, 9, 9], {1, 2}),  # one of two, and nobody can tell which
        ([1, 1, 9], {1}),
    ],
)
def test_the_node_that_makes_all_slow_is_the_one_that_is_slow_with_both_neighbours(pairs, nodes):
    assert at_fault(pairs, 5) == nodes


def test_of_two_nodes_one_is_at_fault_only_where_tcp_is_shut_out():
    assert _guilty(2, [], 5, rdma=True) == {0: 77, 1: 77}
    assert _guilty(2, [], 5, rdma=False) == {0: 78, 1: 78}
    assert _guilty(3, [1, 1, 1], 5, rdma=True) == {0: 78, 1: 78, 2: 78}
    assert _guilty(3, [1, 9, 1], 5, rdma=True) == {0: 77}


def test_a_sweep_ends_with_the_largest_size_and_spares_a_cpu():
    assert sizes(1 << 30, torch.device("cuda"))[-1] == 1 << 30
    assert sizes(1 << 30, torch.device("cpu"))[-1] == 16 << 20
    assert sizes(1 << 20, torch.device("cpu")) == [1 << 17, 1 << 20]


def test_the_table_names_every_node_and_how_to_mend_what_failed():
    node = NodeReport(node_rank=3, node_name="gpu-7", checks=[failed("clock", 77)])
    text = table(Report(run="tiny", time="now", fit=False, exit_codes=[77], nodes=[node]))
    assert "Node 3 (gpu-7)" in text
    assert "clock is wrong." in text
    assert "Not fit to train." in text


# ------------------------------------------------------------------------------------------------------- bricks-train


def test_alone_the_preflight_ends_0_with_a_table_and_trains_nothing(new_nodes):
    nodes = new_nodes()
    node = nodes.start("--preflight-only")
    assert node.ended() == 0, node.told
    assert "All nodes are fit." in node.told
    assert nodes.checkpoints() == []


def test_a_node_that_is_not_fit_ends_with_77_and_its_processes_are_not_started_again(new_nodes):
    nodes = new_nodes()
    nodes.preflight |= {"nodeBusGbps": 1e9}
    nodes.write()
    node = nodes.start(BRICKS_PROCESSES="2", BRICKS_MAX_RESTARTS="3")
    assert node.ended() == 77, node.told
    assert node.told.count("preflight.nodeBusGbps") == 2, "in the table, and as the last word"
    assert node.told.splitlines()[-1].startswith("bricks_train: Process")
    assert nodes.checkpoints() == []
