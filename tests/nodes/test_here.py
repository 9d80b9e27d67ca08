"""How many processes train on this machine, and what is left of them in the one that waited."""

from __future__ import annotations

import json
import os
import signal

import pytest
import torch

from bricks_core.errors import UsageError
from bricks_core.nodes import here
from bricks_core.spec.run import BrickRun
from tests.journey.tiny_run import TINY


def run_with(*batch_sizes):
    document = json.loads(json.dumps(TINY))
    phase = document["spec"]["train"]["phases"][0]
    buckets = [{"num_frames": 1 + 4 * place, "batch_size": size} for place, size in enumerate(batch_sizes)]
    phase["buckets"] = [phase["buckets"][0] | each for each in buckets]
    document["spec"]["train"]["phases"] = [phase]
    return BrickRun.model_validate(document)


@pytest.mark.parametrize(
    ("num_gpus", "batch_sizes", "num_processes"),
    [(0, [4], 1), (1, [4], 1), (2, [4], 2), (8, [8, 16], 8), (8, [4, 6], 2), (3, [8], 2), (8, [1], 1), (2, [128], 2)],
)
def test_there_is_a_process_for_each_gpu_as_far_as_batches_can_be_shared(
    monkeypatch, caplog, num_gpus, batch_sizes, num_processes
):
    monkeypatch.delenv("BRICKS_PROCESSES", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    assert here._num_processes(run_with(*batch_sizes)) == num_processes
    assert ("every batch_size" in caplog.text) == (num_processes < num_gpus)


def test_another_number_can_be_asked_for_and_one_of_several_starts_none(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setenv("BRICKS_PROCESSES", "3")
    assert here._num_processes(run_with(6)) == 3
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert here._num_processes(run_with(6)) == 1


@pytest.mark.parametrize("wanted", ["0", "-1", "many", "1.5"])
def test_what_is_no_number_of_processes_is_refused(monkeypatch, wanted):
    monkeypatch.setenv("BRICKS_PROCESSES", wanted)
    with pytest.raises(UsageError, match="BRICKS_PROCESSES"):
        here._num_processes(run_with(4))


def test_signals_and_environment_are_afterwards_what_they_were():
    before, handlers = dict(os.environ), [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with here._as_before():
        os.environ["OMP_NUM_THREADS"] = "77"
        signal.signal(signal.SIGTERM, lambda *_: None)
    assert dict(os.environ) == before
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers
