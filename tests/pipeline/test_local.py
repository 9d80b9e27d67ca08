"""How processes that work as one come to the end of a stage."""

import pytest

from bricks_core.errors import StoreDenied, StoreUnavailable, TryLater
from bricks_core.pipeline import local
from bricks_core.pipeline.resolve import Address
from bricks_core.spec.stages import STAGES
from bricks_core.spec.train import TrainSpec

STAGE = STAGES["train"]
ADDRESS = Address(STAGE, TrainSpec.model_construct(), "d", {})


def finds(monkeypatch, *answers):
    """What looks for the manifest find, one after another."""
    left = list(answers)

    def find(store, stage, digest):
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(local, "find_manifest", find)
    monkeypatch.setattr(local, "WAIT_FOR_COMMIT_S", 0.0)
    return left


def test_a_process_that_waits_for_the_first_ones_commit_outlasts_a_store_that_is_away(monkeypatch):
    left = finds(monkeypatch, StoreUnavailable("away"), None, TryLater("busy"), None, "the manifest")
    assert local._wait_for_commit(None, ADDRESS) == "the manifest"
    assert left == []


def test_it_does_not_wait_for_a_store_that_refuses_it(monkeypatch):
    finds(monkeypatch, None, StoreDenied("no"))
    with pytest.raises(StoreDenied):
        local._wait_for_commit(None, ADDRESS)
