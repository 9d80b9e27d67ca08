"""Trainings whose states lie in their artifact, as before trainings/ was there, are never begun anew in silence."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bricks_core.pipeline.plan import make_plan, plan_stage
from bricks_core.pipeline.points import Pointer, point
from bricks_core.pipeline.resolve import Address, Resolver
from bricks_core.spec.latents import LatentsSpec
from bricks_core.spec.run import BrickRun
from bricks_core.spec.stages import STAGES
from bricks_core.stages.train.stage import run as train
from bricks_core.storage.artifacts import open_artifact
from bricks_core.storage.places import open_store
from tests.stages.train.conftest import small_spec
from tests.stages.train.latents_made_up import LATENTS_DIGEST, made_up_latents, state_folder, train_work

FILES = ("weights.safetensors", "ema.safetensors", "config.json", "state.json", "rows.json")


def run_of(spec):
    document = {
        "apiVersion": "bricks.dev/v1alpha1",
        "kind": "BrickRun",
        "metadata": {"name": "films"},
        "spec": {
            "ingest": {"sources": ["films"]},
            "latents": {"resolutions": ["64x48"]},
            "train": spec.model_dump(mode="json"),
        },
    }
    return BrickRun.model_validate(document)


@pytest.fixture
def store(tmp_path):
    store = open_store(str(tmp_path / "store"))
    made_up_latents(store, tmp_path / "scratch")
    return store


def address_of(store, spec):
    """Where a training of the made-up latents lies or will lie."""
    return step_of(store, spec).address


def step_of(store, spec):
    run = run_of(spec)
    latents = Address(STAGES["latents"], LatentsSpec(), LATENTS_DIGEST, {})
    found = {"latents": (latents, open_artifact(store, "latents", LATENTS_DIGEST).manifest)}
    return plan_stage(run, store, Resolver(run, store), STAGES["train"], found)


def leave(store, digest, name, step, files=None):
    """A state as an earlier version left it. `files`: contents by name."""
    folder = f"checkpoints/{name}/"
    files = files or dict.fromkeys(FILES, b"what was in it")
    listed = []
    for file, data in files.items():
        store.put(f"artifacts/train/{digest}/{folder}{file}", data)
        sha256 = store.sha256(f"artifacts/train/{digest}/{folder}{file}")
        listed.append({"key": folder + file, "size_bytes": len(data), "sha256": sha256})
    record = {"step": step, "phase": "images", "planned": name.startswith("step"), "files": listed}
    store.put(f"artifacts/train/{digest}/{folder}checkpoint.json", json.dumps(record).encode())
    return f"artifacts/train/{digest}/{folder}".rstrip("/")


def test_a_plan_says_what_an_unfinished_one_has_done_and_how_to_take_its_weights(store):
    spec = small_spec()
    digest = address_of(store, spec).cache_key
    leave(store, digest, "step-000000", 0)
    leave(store, digest, "step-000003", 3)
    newest = leave(store, digest, "stopped-000005", 5)
    assert step_of(store, spec).why == [
        "first time",
        "begins at step 0: an earlier version of Bricks has done 5 steps and kept them in another form; "
        f"train.init_from: {newest} takes their weights, without the optimizer",
    ]


def test_of_states_that_are_damaged_or_gone_none_is_named(store):
    spec = small_spec()
    digest = address_of(store, spec).cache_key
    whole = leave(store, digest, "step-000003", 3)
    gone = leave(store, digest, "step-000006", 6)
    store.delete([f"{gone}/weights.safetensors"])
    store.put(f"artifacts/train/{digest}/checkpoints/step-000007/checkpoint.json", b"\xff{")
    assert f"init_from: {whole} takes" in step_of(store, spec).why[-1]


def test_before_the_first_step_there_is_nothing_to_take(store):
    spec = small_spec()
    leave(store, address_of(store, spec).cache_key, "step-000000", 0)
    assert step_of(store, spec).why == ["first time"]


def test_a_finished_one_with_other_settings_is_named_where_the_run_points_to_it(store):
    before = small_spec(seed=1)
    digest = address_of(store, before).cache_key
    folder = leave(store, digest, "step-000008", 8)
    told = before.model_dump(mode="json")
    point("films", store, Pointer(stage="train", digest=digest, cache_key=digest, spec=told, inputs={}))
    assert f"init_from: {folder} takes" in step_of(store, small_spec()).why[-1]


def test_one_that_a_run_of_schema_1_had_begun_is_named(store):
    folder = leave(store, "5c" * 16, "step-000003", 3)
    pointer = {"stage": "train", "digest": "5c" * 16, "spec": {}, "inputs": {}}
    store.put("runs/films/wanted/train.json", json.dumps(pointer).encode())
    assert f"init_from: {folder} takes" in step_of(store, small_spec()).why[-1]


@pytest.mark.parametrize("pointer", [b"", b"[]", b'{"digest": "../../runs"}', b"\xff"])
def test_a_damaged_pointer_leads_nowhere(store, pointer):
    store.put("runs/films/wanted/train.json", pointer)
    assert step_of(store, small_spec()).why == ["first time"]


def test_a_run_of_schema_1_that_is_not_upgraded_is_told_to_be(store, tmp_path):
    (tmp_path / "films").mkdir()
    run = run_of(small_spec())
    run = run.model_copy(update={"spec": run.spec.model_copy(update={"ingest": ingest_of(tmp_path / "films")})})
    pointer = {"stage": "ingest", "digest": "5c" * 16, "spec": {}, "inputs": {}}
    store.put("runs/films/ingest.json", json.dumps(pointer).encode())
    assert make_plan(run, store)[0].why == [
        "done by an earlier version of Bricks: bricks store upgrade, before this run, makes use of that"
    ]


def ingest_of(folder):
    return run_of(small_spec()).spec.ingest.model_validate({"sources": [str(folder)]})


@pytest.fixture
def trained_before(store, tmp_path):
    """A training of three steps whose states are as an earlier version left them; the folder of the last."""
    other = open_store(str(tmp_path / "other"))
    made_up_latents(other, tmp_path / "scratch-2")
    spec = small_spec(phases=small_spec().phases[:1])
    work = train_work(other, spec)
    train(spec, work)
    files = {file.name: file.read_bytes() for file in state_folder(work, spec, 3).iterdir()}
    del files["losses.safetensors"], files["checkpoint.json"]
    return leave(store, address_of(store, small_spec()).cache_key, "step-000003", 3, files)


def test_a_training_that_begins_anew_says_so_in_its_log(store, trained_before, caplog):
    spec = small_spec(phases=small_spec().phases[:1])
    work = train_work(store, spec, digest=Path(trained_before).parts[2])
    work.run = run_of(spec)
    with caplog.at_level(logging.WARNING, "bricks"):
        train(spec, work)
        train(spec, work)  # finds its own states
    told = [record.getMessage() for record in caplog.records if "earlier version" in record.getMessage()]
    assert told == [
        "train: begins at step 0: an earlier version of Bricks has done 3 steps and kept them in another form; "
        f"train.init_from: {trained_before} takes their weights, without the optimizer."
    ]


def test_with_init_from_it_begins_with_the_weights_that_were_trained(store, trained_before, caplog):
    spec = small_spec(phases=small_spec().phases[:1], init_from=trained_before)
    work = train_work(store, spec, digest=Path(trained_before).parts[2])
    work.run = run_of(spec)
    with caplog.at_level(logging.WARNING, "bricks"):
        train(spec, work)
    assert "earlier version" not in caplog.text
    was = load_file(Path(store.uri) / trained_before / "weights.safetensors")
    now = load_file(state_folder(work, spec, 0) / "weights.safetensors")
    assert was.keys() == now.keys()
    assert all(torch.equal(was[name], now[name]) for name in was)


def test_once_there_are_states_of_today_it_goes_on_from_these(store, trained_before):
    spec = small_spec()
    whole = small_spec(phases=spec.phases[:1])
    train(whole, train_work(store, whole))
    assert step_of(store, spec).why[-1] == "goes on from step 3 of 8"
