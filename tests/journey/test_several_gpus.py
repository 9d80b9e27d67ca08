"""bricks run where several processes train: it ends as with one, whatever happens to them."""

from __future__ import annotations

import os
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.journey.tiny_run import Runner, differing

pytestmark = pytest.mark.slow

TWO = {"BRICKS_PROCESSES": "2"}
LONG = ("--set", "train.phases.1.steps=2000", "--set", "train.held_out.every_steps=2000")
DEADLINE_S = 240.0


@pytest.fixture(scope="module")
def encoded(new_runner):
    """A run up to its latents. Not to be changed."""
    runner = new_runner()
    runner.bricks("run", "tiny.yaml", "--until", "latents")
    return runner


@pytest.fixture
def user(encoded, tmp_path):
    shutil.copytree(encoded.folder, tmp_path / "user")
    return Runner(tmp_path / "user", tmp_path / "user" / "tiny.yaml")


@pytest.fixture
def long(user):
    """A long training under way, with its first checkpoints."""
    process = user.start("jobs.bricks", "run", "tiny.yaml", "--until", "train", *LONG, **TWO)
    wait_until(lambda: len(checkpoints(user)) > 4 or process.poll() is not None)
    assert process.poll() is None, process.communicate()
    workers = workers_of(process)
    assert len(workers) == 2
    yield user, process, workers
    for each in [process.pid, *workers]:
        with suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)


def wait_until(true):
    until_s = time.monotonic() + DEADLINE_S
    while not true():
        assert time.monotonic() < until_s
        time.sleep(0.05)


def checkpoints(user):
    return list((user.folder / "bricks-store").glob("trainings/*/*/checkpoint.json"))


def workers_of(process):
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="utf-8").split()
    return [int(each) for each in children if b"jobs.train_process" in Path(f"/proc/{each}/cmdline").read_bytes()]


def is_running(pid):
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] not in "ZX"
    return False


def claims(user):
    return list((user.folder / "bricks-store").glob("claims/*/*"))


def test_two_processes_train_as_bricks_train_has_them_do_and_nothing_else_is_said(user, tmp_path):
    shutil.copytree(user.folder / "bricks-store", tmp_path / "other")
    ended = user.bricks("run", "tiny.yaml", "--until", "train", **TWO)
    assert "train: 2 processes" in ended.err
    assert not any(line.startswith("artifacts/train/") for line in ended.out.splitlines())
    assert claims(user) == []
    other = ("--run", "tiny.yaml", "--store", str(tmp_path / "other"), "--no-preflight")
    user("jobs.bricks_train", *other, **TWO)
    assert differing(user.folder / "bricks-store", tmp_path / "other") == []
    again = user.bricks("run", "tiny.yaml", "--until", "train", **TWO)
    assert "processes" not in again.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_is_stopped_with_a_checkpoint_and_goes_on_from_there(long, number):
    user, process, workers = long
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.send_signal(number)
    _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 128 + number, err
    assert err.splitlines()[-1] == "bricks: Stopped. What was finished is kept: the same command continues."
    assert "Traceback" not in err
    assert not any(is_running(each) for each in workers)
    assert claims(user) == []
    last = max(int(file.parent.name.split("-")[1]) for file in checkpoints(user))
    ended = user.bricks("run", "tiny.yaml", "--until", "train", "--set", f"train.phases.1.steps={last + 1}", **TWO)
    assert f"train: continuing from step {last}, " in ended.err


def test_when_it_is_killed_no_process_is_left(long):
    _, process, workers = long
    process.kill()
    wait_until(lambda: not any(is_running(each) for each in workers))


def test_when_a_process_is_killed_it_is_told_and_the_same_command_goes_on(long):
    user, process, workers = long
    os.kill(workers[1], signal.SIGKILL)
    _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 128 + signal.SIGKILL, err
    assert "killed by SIGKILL" in err.splitlines()[-1]
    assert not any(is_running(each) for each in workers)
    assert [each for each in claims(user) if each.parent.name == "run"] == []


def test_weights_that_do_not_fit_end_with_78_and_one_sentence(user):
    weights = user.folder / "small.safetensors"
    save_file({"x_embedder.proj.weight": torch.zeros(3, 3)}, weights)
    ended = user.bricks("run", "tiny.yaml", "--set", f"train.init_from={weights}", code=78, **TWO)
    told = [line for line in ended.err.splitlines() if line.startswith("bricks:")]
    assert len(told) == 1
    assert "small.safetensors" in told[0]


def test_a_pack_that_is_damaged_meanwhile_is_mended_and_training_goes_on(user):
    pack = max((user.folder / "bricks-store").glob("items/pack/*/*.bin"), key=lambda each: each.stat().st_size)
    data = pack.read_bytes()
    (user.folder / "damage.py").write_text(
        "import pathlib, runpy, sys\n"
        "from bricks_core.nodes import here\n"
        "launch = here.launch\n"
        "def damaged(*arguments):\n"
        f"    pack = pathlib.Path({str(pack)!r})\n"
        "    if not pathlib.Path('done').exists():\n"
        "        pathlib.Path('done').touch()\n"
        "        data = pack.read_bytes()\n"
        "        pack.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))\n"
        "    launch(*arguments)\n"
        "here.launch = damaged\n"
        "from jobs.bricks import main\n"
        "main()\n",
        encoding="utf-8",
    )
    ended = user("damage", "run", "tiny.yaml", "--until", "train", PYTHONPATH=f"{user.folder}:{os.getcwd()}", **TWO)
    assert ended.err.count("train: 2 processes") == 2
    assert "rebuilding" in ended.err
    assert pack.read_bytes() == data
