"""The train stage as a whole."""

from __future__ import annotations

import json
import signal
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bricks_core.errors import DataError, SpecError
from bricks_core.models.weights import load_network
from bricks_core.spec.latents import Latent, LatentsSpec
from bricks_core.spec.run import BrickRun
from bricks_core.spec.stages import STAGES
from bricks_core.spec.train import Constant, HeldOutSpec, Phase, STDiT2Spec, TrainBucket
from bricks_core.stages.train import stage
from bricks_core.stages.train.held_out import bins
from bricks_core.storage.artifacts import open_artifact
from bricks_core.storage.places import open_store
from bricks_core.storage.work import Joined, Work
from tests.journey.tiny_run import TINY
from tests.stages.train.conftest import CLIPS, IMAGES, small_spec
from tests.stages.train.latents_made_up import TEXT_WIDTH, made_up_latents, state_folder, train_work


def done(spec, work):
    """Run, join and commit. -> tables by name, and the manifest"""
    stage.run(spec, work)
    joined = stage.join(spec, work)
    manifest = work.commit(joined)
    return {name: list(rows) for name, rows in joined.tables.items()}, manifest


def folder_of(work: Work, step: int) -> Path:
    return state_folder(work, work.spec, step)


@pytest.fixture(scope="module")
def learning(tmp_path_factory):
    """A run long enough to learn the made-up clips, which the caption tells apart."""
    folder = tmp_path_factory.mktemp("learning")
    store = open_store(str(folder / "store"))
    made_up_latents(store, folder / "scratch")
    phase = Phase(name="only", steps=60, buckets=[IMAGES, CLIPS], schedule=Constant(lr=3e-3))
    long = small_spec(
        model=STDiT2Spec(hidden_size=48, depth=1, num_heads=2, input_sq_size_px=64),
        phases=[phase],
        held_out=HeldOutSpec(every_steps=30, num_samples=4, num_timestep_bins=4, timesteps_per_bin=1),
        checkpoint_every_steps=30,
        log_every_steps=10,
    )
    return done(long, train_work(store, long))


def test_training_learns_and_the_held_out_loss_says_so_in_every_bin_of_every_bucket(learning):
    tables, _ = learning
    steps = {row.step: row for row in tables["steps"]}
    assert steps[59].loss < 0.4 * steps[0].loss
    loss = {(row.step, row.weights, row.bucket, row.first_timestep): row.loss for row in tables["held_out"]}
    places = {(weights, bucket, first) for _, weights, bucket, first in loss}
    assert places == {
        (weights, bucket, first)
        for weights in ("raw", "ema")
        for bucket in (IMAGES.name, CLIPS.name)
        for first in (0, 250, 500, 750)
    }
    for place in places:
        assert loss[60, *place] < 0.7 * loss[0, *place], place


def test_before_the_first_step_raw_and_average_are_one_and_later_they_differ(learning):
    tables, _ = learning
    by_weights = {
        weights: {
            (row.step, row.bucket, row.first_timestep): row.loss for row in tables["held_out"] if row.weights == weights
        }
        for weights in ("raw", "ema")
    }
    for place, loss in by_weights["raw"].items():
        assert (by_weights["ema"][place] == loss) == (place[0] == 0)


def test_rows_say_where_training_was(store, spec):
    tables, manifest = done(spec(), train_work(store, spec()))
    assert [row.step for row in tables["steps"]] == [0, 1, 2, 3, 5, 7]
    assert [row.phase for row in tables["steps"]] == ["images"] * 3 + ["mixed"] * 3
    assert [row.num_samples for row in tables["steps"]] == [2, 2, 2, 6, 12, 12]
    assert [row.learning_rate for row in tables["steps"]] == [2e-3] * 3 + [1e-3] * 3
    assert [(row.step, row.bucket) for row in tables["bucket_losses"]][-3:] == [
        (5, CLIPS.name),
        (7, IMAGES.name),
        (7, CLIPS.name),
    ]
    assert sorted({row.step for row in tables["held_out"]}) == [0, 4, 8]
    assert [(row.step, row.phase) for row in tables["checkpoints"]] == [
        (0, "images"),
        (3, "images"),
        (6, "mixed"),
        (8, "mixed"),
    ]
    assert manifest.counts == {
        "steps": 8,
        "samples": 3 * 2 + 5 * 6,
        "checkpoints": 4,
        f"to train on in {IMAGES.name}": 12,
        f"held out in {IMAGES.name}": 4,
        f"to train on in {CLIPS.name}": 12,
        f"held out in {CLIPS.name}": 4,
    }
    for name in tables:
        ids = [row.id for row in tables[name]]
        assert ids == sorted(set(ids)), name


def test_every_object_is_in_the_manifest_and_every_checkpoint_row_names_files_of_it(store, spec):
    work = train_work(store, spec())
    tables, manifest = done(spec(), work)
    listed = {entry.key.removeprefix(work.prefix) for entry in store.list(work.prefix)} - {"manifest.json"}
    listed |= {entry.key for entry in store.list("trainings/") if not entry.key.endswith("/checkpoint.json")}
    assert {*(each.key for each in manifest.objects), manifest.records.key} == listed
    for row in tables["checkpoints"]:
        assert {row.weights_key, row.ema_key, row.state_key} <= listed
        network = load_network(Path(store.uri) / row.ema_key, folder_of(work, row.step) / "config.json")
        assert network.config.caption_channels == TEXT_WIDTH


def test_a_finished_run_is_left_as_it_is(store, spec, monkeypatch):
    work = train_work(store, spec())
    stage.run(spec(), work)
    before = {file: file.stat().st_mtime_ns for file in Path(store.uri).rglob("*")}
    monkeypatch.setattr(stage, "Training", None)  # whoever makes one fails
    stage.run(spec(), work)
    assert {file: file.stat().st_mtime_ns for file in Path(store.uri).rglob("*")} == before


def test_without_held_out_clips_training_says_so_and_goes_on(spec, tmp_path, caplog):
    store = open_store(str(tmp_path / "store"))
    made_up_latents(store, tmp_path / "scratch", num_held_out=0)
    with caplog.at_level("WARNING", logger="bricks"):
        tables, manifest = done(spec(), train_work(store, spec()))
    assert tables["held_out"] == []
    assert len(tables["steps"]) == 6
    for bucket in (IMAGES, CLIPS):
        assert f"no held-out clip fits bucket {bucket.name}" in caplog.text
        assert manifest.counts[f"held out in {bucket.name}"] == 0


def test_a_bucket_that_nothing_fits_ends_the_stage_before_anything_is_written(store, spec):
    hopeless = spec(
        phases=[
            *spec().phases,
            Phase(
                name="hopeless",
                steps=1,
                buckets=[TrainBucket(num_frames=64, resolution="64x48", batch_size=1)],
                schedule=Constant(lr=1),
            ),
        ]
    )
    with pytest.raises(SpecError, match=r"train\.phases\.2\.buckets\.0 \(64f-64x48\): no clips to train on fit"):
        stage.run(hopeless, train_work(store, hopeless))
    assert not [*store.list("artifacts/train"), *store.list("trainings/")]


def test_latents_of_two_codecs_are_refused(store, spec, tmp_path):
    work = train_work(store, spec())
    rows = list(work.rows("latents", "latents", Latent))
    mixed = [rows[0].model_copy(update={"codec": "another"}), *rows[1:]]
    latents = Work(store, STAGES["latents"], LatentsSpec(), "0" * 31 + "9", {}, {}, work.progress)
    latents.commit(Joined({"latents": mixed}))
    work.inputs["latents"] = open_artifact(store, "latents", latents.digest)
    with pytest.raises(DataError, match="2 different encoders"):
        stage.run(spec(), work)


# ------------------------------------------------------------------------------------------------- where it begins


def same(one: Path, other: Path) -> bool:
    ours, theirs = load_file(one), load_file(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_training_begins_with_given_weights_from_a_file_a_folder_or_the_store(store, spec):
    first = train_work(store, spec())
    stage.run(spec(), first)
    last = folder_of(first, 8)
    key = str(last.relative_to(store.uri))
    for number, place in enumerate([str(last / "ema.safetensors"), f"{key}/ema.safetensors", str(last), key]):
        one_step = [spec().phases[0].model_copy(update={"steps": 1})]
        tuned = spec(init_from=place, seed=7, phases=one_step)
        work = train_work(store, tuned, digest=f"{number:031d}a")
        # A folder with both is one of ours: its weights are meant.
        expected = last / ("ema.safetensors" if number < 2 else "weights.safetensors")
        stage.run(tuned, work)
        assert same(folder_of(work, 0) / "weights.safetensors", expected), place


def test_without_weights_it_begins_at_random_by_the_seed(new_store, spec):
    started = []
    for seed in (1, 1, 2):
        short = spec(seed=seed, phases=[Phase(name="one", steps=1, buckets=[IMAGES], schedule=Constant(lr=1e-3))])
        work = train_work(new_store(), short)
        stage.run(short, work)
        started.append(folder_of(work, 0) / "weights.safetensors")
    assert same(started[0], started[1])
    assert not same(started[0], started[2])


@pytest.mark.parametrize("place", ["weights/nowhere.safetensors", "/nowhere/at/all"])
def test_weights_that_are_nowhere_are_said_to_be(store, spec, place):
    with pytest.raises(SpecError, match=f"train.init_from is {place}, which is neither"):
        stage.run(spec(init_from=place), train_work(store, spec(init_from=place)))


def test_weights_of_another_size_are_refused(store, spec):
    work = train_work(store, spec())
    stage.run(spec(), work)
    other = spec(init_from=str(folder_of(work, 8)), model=STDiT2Spec(hidden_size=48, depth=1, num_heads=2))
    with pytest.raises(SpecError, match="does not fit this network"):
        stage.run(other, train_work(store, other, digest="0" * 31 + "c"))


# --------------------------------------------------------------------------------------------------------- details


def test_the_bins_cover_all_timesteps_and_are_asked_about_inside():
    for num_bins, per_bin in ((1, 1), (5, 2), (7, 3), (100, 10)):
        made = bins(HeldOutSpec(num_timestep_bins=num_bins, timesteps_per_bin=per_bin))
        assert [each.first for each in made] == [0, *[each.end for each in made][:-1]]
        assert made[-1].end == 1000
        for each in made:
            assert len(set(each.timesteps)) == per_bin
            assert all(each.first <= timestep < each.end for timestep in each.timesteps)


def test_the_held_out_loss_does_not_depend_on_the_batch_it_is_measured_in(new_store, spec):
    losses = []
    for size in (1, 3, 64):
        changed = spec(held_out=spec().held_out.model_copy(update={"batch_size": size}))
        tables, _ = done(changed, train_work(new_store(), changed))
        losses.append([row.loss for row in tables["held_out"]])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[2] == pytest.approx(losses[0], rel=1e-5)


def test_a_second_signal_is_not_waited_for():
    first, second = [], []
    before = signal.signal(signal.SIGTERM, lambda *_: second.append(True))
    try:
        with stage.StopRequest() as stop:
            assert stop.signal_number == 0
            signal.raise_signal(signal.SIGTERM)
            first.append(stop.signal_number)
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (first, second) == ([signal.SIGTERM], [True])


def test_outside_the_main_thread_signals_are_left_to_others():
    failed = []

    def enter():
        try:
            with stage.StopRequest():
                pass
        except ValueError as error:
            failed.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert not failed


def test_numbers_also_go_to_wandb_and_the_tables_are_the_same_without_it(new_store, spec):
    tables = []
    for number, wandb in enumerate(("off", "offline")):
        store = new_store()
        work = train_work(store, spec())
        document = json.loads(json.dumps(TINY))
        document["spec"]["tracking"] = {"wandb": wandb}
        work.run = BrickRun.model_validate(document)
        tables.append(done(spec(), work)[0]["steps"])
        written = list(Path(store.uri).glob("wandb/offline-run-*/run-*.wandb"))
        assert len(written) == number
    assert tables[0] == tables[1]
    assert b"train/loss" in written[0].read_bytes()
    assert b"held_out/ema" in written[0].read_bytes()


def test_torch_is_left_as_it_was_found(store, spec):
    before = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    stage.run(spec(), train_work(store, spec()))
    assert (torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()) == before
