"""An evaluation that is shared between shards: each sample is made once, and one of them joins."""

from __future__ import annotations

import shutil
import threading
from collections import Counter

import pytest

from bricks_core.errors import TryLater
from bricks_core.pipeline.local import run_alone, run_path
from bricks_core.spec.items import Item, ItemKey
from bricks_core.stages.evaluate import audit, samples
from bricks_core.stages.evaluate import stage as evaluate
from bricks_core.storage.places import open_store
from tests.journey.tiny_run import TINY

SPEC = {
    "score": {"filter": {"min_motion": 0, "max_near_duplicate_distance": None, "max_plain_share": 1.0}},
    "latents": {"resolutions": ["48x80"]},
    "train": TINY["spec"]["train"] | {"phases": TINY["spec"]["train"]["phases"][:1]},
    "evaluate": TINY["spec"]["evaluate"]
    | {"prompts": ["A red thing moves.", "A blue thing moves.", "Night."], "num_frames": 1, "batch_size": 1}
    | {"audit_guidance": [1.0, 4.0], "num_seeds": 2},
    "tracking": {"wandb": "off"},
}


@pytest.fixture(scope="module")
def run(drawn_films, run_of):
    return run_of(drawn_films, **SPEC)


@pytest.fixture(scope="module")
def trained(run, tmp_path_factory):
    """The folder of a store in which the run is trained."""
    folder = tmp_path_factory.mktemp("trained") / "store"
    run_path(run, open_store(str(folder)), "train")
    return folder


@pytest.fixture
def store(trained, tmp_path):
    return open_store(str(shutil.copytree(trained, tmp_path / "store")))


@pytest.fixture
def made(monkeypatch):
    """How often each sample and each part of the audit is made, and how often they are joined."""
    found, lock = Counter(), threading.Lock()

    def counted(name, of):
        def do(*given):
            with lock:
                found[name(*given)] += 1
            return of(*given)

        return do

    monkeypatch.setattr(samples, "keep_sample", counted(lambda work, spec, each, *_: each.id, samples.keep_sample))
    for part in ("sample", "predict"):
        do = getattr(audit._Auditor, part)
        monkeypatch.setattr(audit._Auditor, part, counted(lambda self, each: each.id, do))
    monkeypatch.setattr(evaluate, "join", counted(lambda spec, work: "join", evaluate.join))
    return found


def test_shards_make_each_sample_once_and_leave_what_one_process_leaves(run, store, trained, tmp_path, made):
    whole = run_alone(run, open_store(str(shutil.copytree(trained, tmp_path / "whole"))), "evaluate")
    at_once = Counter(made)
    made.clear()
    ends, shares = [], []
    for shard in (1, 0, 2):
        before = set(made)
        ends.append(run_alone(run, store, "evaluate", shard=shard, num_shards=3))
        shares.append(len(set(made) - before))
    assert made == at_once
    assert set(made.values()) == {1}
    assert all(shares)
    *early, last = ends
    assert early == [None, None]
    assert (last.digest, last.objects, last.tables, last.counts) == (
        whole.digest,
        whole.objects,
        whole.tables,
        whole.counts,
    )


def test_a_commit_before_all_samples_are_there_says_so(run, store):
    run_alone(run, store, "evaluate", shard=0, num_shards=3)
    with pytest.raises(TryLater, match="items are not done yet: run their shards first"):
        run_alone(run, store, "evaluate", commit=True)


def test_shards_of_two_runs_at_the_same_time_make_nothing_twice_and_one_of_them_joins(run, store, made):
    other = run.model_copy(update={"metadata": run.metadata.model_copy(update={"name": "other"})})
    run_path(other, store, "train")
    ends, errors = {}, []

    def work(name, run, shard):
        try:
            ends[name, shard] = run_alone(run, open_store(store.uri), "evaluate", shard=shard, num_shards=2)
        except BaseException as error:
            errors.append(error)

    threads = [
        threading.Thread(target=work, args=(name, each, shard))
        for name, each in (("films", run), ("other", other))
        for shard in range(2)
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert errors == []
    assert set(made.values()) == {1}
    assert made["join"] == 1
    assert len({end.digest for end in ends.values() if end is not None}) == 1


def test_what_samples_cost_is_in_their_records(run, store):
    run_alone(run, store, "evaluate")
    for kind in ("sample", "guidance"):
        keys = [entry.key for entry in store.list(f"items/{kind}/") if entry.key.endswith(".json")]
        assert keys
        for key in keys:
            item = Item.opened(store.get(key), ItemKey(kind, key.rpartition("/")[2].removesuffix(".json")))
            assert item.cost["seconds"] > 0
