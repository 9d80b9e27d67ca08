"""What was trained stays trained: longer runs, further phases and other intervals go on from it, bit for bit."""

from __future__ import annotations

import signal
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from bricks_core.errors import SpecError, Stopped
from bricks_core.pipeline.garbage import collect
from bricks_core.pipeline.points import Pointer, point
from bricks_core.spec.manifest import artifact_digest
from bricks_core.spec.run import BrickRun
from bricks_core.spec.stages import STAGES
from bricks_core.spec.train import Constant, HeldOutSpec, OneCycle, Phase, TrainSpec
from bricks_core.stages.train import stage
from bricks_core.stages.train.step import Trainer
from bricks_core.storage.store import Store
from bricks_core.storage.trainings import Trajectory, begin, begun, continued, forget, keyed
from tests.journey.tiny_run import TINY
from tests.stages.train.apart import train_apart
from tests.stages.train.conftest import CLIPS, IMAGES, small_spec
from tests.stages.train.latents_made_up import LATENTS_DIGEST, made_up_latents, state_folder, train_work

SHORT = small_spec()
"""Phases of 3 and 5 steps."""


def with_phases(*steps: int, spec: TrainSpec = SHORT) -> TrainSpec:
    """The same phases with other numbers of steps; a third one has images alone."""
    third = Phase(name="third", steps=1, buckets=[IMAGES], schedule=Constant(lr=5e-4))
    phases = [*spec.phases, third][: len(steps)]
    phases = [phase.model_copy(update={"steps": num}) for phase, num in zip(phases, steps, strict=True)]
    return spec.model_copy(update={"phases": phases})


def with_intervals(log: int, checkpoint: int, held_out: int) -> TrainSpec:
    changed = SHORT.held_out.model_copy(update={"every_steps": held_out})
    return small_spec(log_every_steps=log, checkpoint_every_steps=checkpoint, held_out=changed)


@pytest.fixture
def counted(monkeypatch):
    """The steps that are done, by their numbers."""
    steps: list[int] = []
    step = Trainer.step

    def counting(self, *arguments):
        steps.append(self.num_steps_done)
        step(self, *arguments)

    monkeypatch.setattr(Trainer, "step", counting)
    return steps


def done(store: Store, spec: TrainSpec):
    """Train and commit. -> everything that a run has of it: its tables, and the tensors of its checkpoints"""
    work = train_work(store, spec)
    stage.run(spec, work)
    joined = stage.join(spec, work)
    work.commit(joined)
    tables = {name: list(rows) for name, rows in joined.tables.items()}
    tensors = {}
    for row in tables["checkpoints"]:
        for key in (row.weights_key, row.ema_key):
            with store.local(key) as file:
                tensors[row.step, key.rpartition("/")[2]] = file.read_bytes()
    return tables, tensors


def _slow(*values):
    """One case more of what a quick one tells already."""
    return pytest.param(*values, marks=pytest.mark.slow)


LONGER = {
    "the last phase longer": with_phases(3, 9),
    "a further phase": with_phases(3, 5, 4),
    "both": with_phases(3, 7, 2),
    "only the first phase longer": with_phases(6, 5),
}


@pytest.mark.parametrize(
    "name", [_slow(name) if name in ("both", "only the first phase longer") else name for name in LONGER]
)
def test_a_longer_training_goes_on_and_is_equal_to_one_that_was_asked_for_at_once(new_store, counted, name):
    longer = LONGER[name]
    at_once = done(new_store(), longer)
    store = new_store()
    short = done(store, SHORT)
    counted.clear()
    assert done(store, longer) == at_once
    common = 3 if name == "only the first phase longer" else 8
    assert counted == list(range(common, longer.num_steps))
    assert done(store, SHORT) == short
    assert len(counted) == longer.num_steps - common


@pytest.mark.parametrize("intervals", [_slow((1, 1, 1)), (3, 2, 3), (100, 100, 100), _slow((2, 4, 2))])
def test_other_intervals_leave_what_they_would_have_left_at_once(new_store, counted, intervals):
    wanted = with_intervals(*intervals)
    at_once = done(new_store(), wanted)
    store = new_store()
    done(store, SHORT)
    counted.clear()
    assert done(store, wanted) == at_once
    if intervals[1:] == (100, 100):
        assert not counted  # fewer are wanted than are there


def test_a_shorter_training_is_found_in_a_longer_one(new_store, counted):
    shorter = with_phases(3, 3)
    at_once = done(new_store(), shorter)
    store = new_store()
    done(store, SHORT)
    counted.clear()
    assert done(store, shorter) == at_once
    assert counted == []


@pytest.mark.parametrize("write", [_slow(2), 5, _slow(9)])
def test_killed_on_the_way_it_is_equal_too(new_store, write):
    longer = LONGER["both"]
    at_once = done(new_store(), longer)
    store = new_store()
    assert train_apart(store.uri, SHORT) == 0
    assert train_apart(store.uri, longer, at=("write", write)) == -signal.SIGKILL
    assert train_apart(store.uri, longer, at=("step", 3)) == -signal.SIGKILL
    assert train_apart(store.uri, longer) == 0
    assert done(store, longer) == at_once


def test_a_schedule_that_differs_only_in_what_comes_goes_on_and_one_that_differs_before_does_not(new_store, counted):
    def cycled(steps, **changes):
        cycle = OneCycle(**({"max_lr": 1e-3, "lr": 1e-4, "warmup_steps": 4, "cooldown_steps": 2} | changes))
        return small_spec(phases=[Phase(name="one", steps=steps, buckets=[IMAGES], schedule=cycle)])

    store = new_store()
    done(store, cycled(4))
    counted.clear()
    colder = cycled(7, lr=5e-5, cooldown_steps=3)
    at_once = done(new_store(), colder)
    counted.clear()
    assert done(store, colder) == at_once
    assert counted == [4, 5, 6]
    counted.clear()
    done(store, cycled(7, warmup_steps=3))
    assert counted == list(range(7))


def test_measured_on_more_clips_nothing_is_trained_again(new_store, counted):
    store = new_store()
    done(store, SHORT)
    more = small_spec(held_out=HeldOutSpec(every_steps=4, num_samples=4, num_timestep_bins=2, timesteps_per_bin=1))
    at_once = done(new_store(), more)
    counted.clear()
    assert done(store, more) == at_once
    assert counted == [
        3
    ]  # to the state at 4, of which no checkpoint is kept; those at 0 and 8 are measured as they are


def test_two_trainings_of_other_data_share_nothing():
    latents = {"latents": "a" * 32}
    one, other = Trajectory(SHORT, latents), Trajectory(SHORT, {"latents": "b" * 32})
    assert all(one.folder(step) != other.folder(step) for step in range(9))
    assert one.batch != other.batch
    assert Trajectory(with_phases(3, 9), latents).batch == one.batch


# ----------------------------------------------------------------------------------------------- going on from another


def continuing(store: Store, text: str, **changes) -> tuple[TrainSpec, dict[str, str]]:
    """A training that goes on from another run's, and what its work is told of what lies outside."""
    spec = small_spec(continue_from=text, **changes)
    return spec, {"continue_from": continued(store, "second", spec)}


@pytest.fixture
def first(new_store):
    """A store where run `first` has trained."""
    store = new_store()
    done(store, SHORT)
    work = train_work(store, SHORT)
    begin(store, "first", SHORT, keyed(work.inputs["latents"].manifest, {}), LATENTS_DIGEST)
    return store


def test_it_takes_weights_average_and_optimizer_onto_other_data_and_another_rate(first, tmp_path):
    made_up_latents(first, tmp_path / "scratch", num_clips=8, digest="0" * 31 + "7")
    one = Phase(name="another", steps=2, buckets=[CLIPS], schedule=Constant(lr=1e-4))
    spec, outside = continuing(first, "first", phases=[one])
    work = train_work(first, spec, latents="0" * 31 + "7")
    work.fingerprints = outside
    stage.run(spec, work)
    last, begun_at = state_folder(train_work(first, SHORT), SHORT, 8), state_folder(work, spec, 0)
    for name in ("weights.safetensors", "ema.safetensors"):
        assert (begun_at / name).read_bytes() == (last / name).read_bytes()
    before, after = (load_file(place / "optimizer.safetensors") for place in (last, state_folder(work, spec, 2)))
    assert (int(before["num_updates"]), int(after["num_updates"])) == (8, 10)
    # Two steps of Adam with beta2 0.999 change the second moments by little: they were not begun anew.
    moments = [name for name in before if name.startswith("exp_avg_sq.")]
    ours = torch.cat([after[name].flatten() for name in moments])
    theirs = torch.cat([before[name].flatten() for name in moments])
    assert float((ours - theirs).norm()) < 0.5 * float(theirs.norm())


def test_the_state_it_goes_on_from_is_the_one_that_was_named_or_the_newest_when_it_began(first):
    _, outside = continuing(first, "first@3")
    assert "/step-000003-" in outside["continue_from"]
    newest, outside = continuing(first, "first")
    assert "/step-000008-" in outside["continue_from"]
    begin(first, "second", newest, {"latents": "x", **outside}, LATENTS_DIGEST)
    longer = with_phases(3, 9)
    done(first, longer)
    begin(first, "first", longer, keyed(train_work(first, longer).inputs["latents"].manifest, {}), LATENTS_DIGEST)
    assert continued(first, "second", newest) == outside["continue_from"]
    assert (
        continued(first, "second", newest.model_copy(update={"phases": with_phases(3, 7).phases}))
        == outside["continue_from"]
    )
    assert "/step-000012-" in continued(first, "third", newest)


def test_a_training_that_another_version_began_stops_and_names_the_ways_to_go_on(new_store, counted, monkeypatch):
    store = new_store()
    work = train_work(store, SHORT)
    work.run = BrickRun.model_validate(TINY)
    step = Trainer.step

    def told_to_stop(self, *arguments):
        step(self, *arguments)
        if self.num_steps_done == 4:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", told_to_stop)
        with pytest.raises(Stopped):
            stage.run(SHORT, work)
    monkeypatch.setitem(STAGES, "train", replace(STAGES["train"], version=99))
    counted.clear()
    with pytest.raises(SpecError, match=r"\(train 2, here 99\) and has done 4 of 8 .*tiny@4.*bricks run --renew"):
        stage.run(SHORT, work)
    assert counted == []
    onwards = small_spec(continue_from="tiny@4")
    there = train_work(store, onwards)
    there.run, there.fingerprints = work.run, {"continue_from": continued(store, "tiny", onwards)}
    stage.run(onwards, there)
    assert len(counted) == 8
    forget(store, "tiny")
    counted.clear()
    renewed = train_work(store, SHORT)  # by the version of now
    renewed.run = work.run
    stage.run(SHORT, renewed)
    assert counted == list(range(8))


def test_gc_keeps_the_states_of_the_training_that_a_run_has_begun_last_and_sweeps_those_of_others(first, counted):
    latents = Pointer(stage="latents", digest=LATENTS_DIGEST, cache_key=LATENTS_DIGEST, spec={}, inputs={})
    point("first", first, latents)
    other = small_spec(seed=7)
    done(first, other)
    garbage = collect(first, delete=True, keep_days=0)
    assert garbage.rest["states of trainings"].num == 4 * 6 + 2
    counted.clear()
    done(first, with_phases(3, 9))
    assert counted == [8, 9, 10, 11]
    counted.clear()
    done(first, other)
    assert counted == list(range(8))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("first@4", r"no such state of run first with its optimizer; it has those after steps 3, 8: name one"),
        ("nobody", r"no such state of run nobody with its optimizer; it has none, or leave continue_from out"),
        ("first@", r"write RUN or RUN@STEP, such as first@4000"),
        ("a/b", r"write RUN or RUN@STEP"),
    ],
)
def test_a_state_that_is_not_there_is_refused_with_those_that_are(first, text, words):
    with pytest.raises(SpecError, match=words):
        continuing(first, text)


def test_another_network_cannot_go_on_from_it(first):
    spec, outside = continuing(first, "first", model=SHORT.model.model_copy(update={"hidden_size": 48}))
    work = train_work(first, spec)
    work.fingerprints = outside
    with pytest.raises(SpecError, match="whose network is another than train"):
        stage.run(spec, work)


def test_what_a_run_has_begun_is_kept_once(first):
    assert [each.trajectory().spec for each in begun(first, "first")] == [SHORT]
    begin(first, "first", SHORT, begun(first, "first")[0].inputs, LATENTS_DIGEST)
    assert len(begun(first, "first")) == 1
    assert begun(first, "nobody") == []


def test_the_artifacts_of_two_intervals_lie_beside_each_other():
    one, other = (artifact_digest("0" * 32, spec.shown) for spec in (SHORT, with_intervals(1, 1, 1)))
    assert one != other
    assert artifact_digest("0" * 32, TrainSpec(phases=SHORT.phases).shown) == "0" * 32
