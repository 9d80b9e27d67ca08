"""A follower beside a training: it samples what is committed, and the run's own evaluation finds its samples done."""

from __future__ import annotations

import logging
import shutil
import threading
from collections import Counter
from queue import Queue

import pytest

from bricks_core.errors import DataError, SpecError, Stopped, StoreDenied
from bricks_core.pipeline.find import find_run
from bricks_core.pipeline.follow import Following, Said, evaluate_sampled, follow
from bricks_core.pipeline.local import run_path
from bricks_core.pipeline.so_far import address_of_training
from bricks_core.stages.evaluate import samples
from bricks_core.stages.train import stage as train
from bricks_core.storage.claims import Claims
from bricks_core.storage.places import open_store
from bricks_core.storage.trainings import COMMIT, WEIGHTS, sampling_batch, trainings_of
from tests.journey.tiny_run import TINY

WAIT_S = 120
"""For the other thread, before the test is given up."""
EVERY_CLIP = {"min_motion": 0, "max_near_duplicate_distance": None, "max_plain_share": 1.0}
SPEC = {
    "score": {"filter": EVERY_CLIP, "held_out_share": 0.3},
    "latents": {"resolutions": ["48x80"]},
    # Checkpoints after 0, 1, 2, 3 and 4 steps, of which the evaluation takes 0, 2 and 4.
    "train": TINY["spec"]["train"]
    | {"phases": TINY["spec"]["train"]["phases"][:1], "checkpoint_every_steps": 1}
    | {"held_out": TINY["spec"]["train"]["held_out"] | {"every_steps": 2}},
    "evaluate": {
        "prompts": ["A red thing moves."],
        "num_frames": 1,
        "resolution": "48x80",
        "num_sampling_steps": 2,
        "num_checkpoints": 3,
        "num_seeds": 2,
        "held_out_prompts": 0,
        "plain_prompts": ["A blue thing."],
    },
    "tracking": {"wandb": "off"},
}


@pytest.fixture(scope="module")
def run(drawn_films, run_of):
    return run_of(drawn_films, **SPEC)


@pytest.fixture(scope="module")
def encoded(run, tmp_path_factory):
    """A store in which the run has come up to its latents."""
    folder = tmp_path_factory.mktemp("encoded") / "store"
    run_path(run, open_store(str(folder)), "latents")
    return folder


@pytest.fixture(scope="module")
def at_three(run, encoded, tmp_path_factory):
    """The same, with a training of 4 steps that was stopped after 3."""
    folder = shutil.copytree(encoded, tmp_path_factory.mktemp("at three") / "store")
    save = train.Training._save

    def save_and_stop(training, step, *, is_wanted):
        save(training, step, is_wanted=is_wanted)
        if step == 3:
            raise Stopped(15)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.Training, "_save", save_and_stop)
        with pytest.raises(Stopped):
            run_path(run, open_store(str(folder)), "train")
    return folder


@pytest.fixture
def store(at_three, tmp_path):
    return open_store(str(shutil.copytree(at_three, tmp_path / "store")))


@pytest.fixture
def made(monkeypatch):
    """The samples that are made, as they are made, each as (step, weights, which)."""
    found, keep = [], samples.keep_sample

    def keep_and_tell(work, spec, asked, *rest):
        found.append((asked.step, asked.weights, (asked.prompt_index, asked.seed_index)))
        return keep(work, spec, asked, *rest)

    monkeypatch.setattr(samples, "keep_sample", keep_and_tell)
    return found


@pytest.fixture
def told(caplog):
    """What was said."""
    caplog.set_level(logging.INFO, logger="bricks")
    return lambda: [record.getMessage() for record in caplog.records]


def following(run, store, claims):
    return Following(run, store, claims, *address_of_training(run, store), Said())


def steps_of(made):
    """The steps that were sampled, in their order, each once."""
    return list(dict.fromkeys(step for step, _, _ in made))


def record_of(store, step):
    return next(trainings_of(store, "films")).records[step]


def stop():
    raise Stopped(2)


def test_beside_a_training_it_samples_what_comes_and_the_runs_own_evaluation_finds_all_of_it(
    run, encoded, tmp_path, made, told, monkeypatch
):
    uri = str(shutil.copytree(encoded, tmp_path / "store"))
    look, idle, came = Queue(), Queue(), []

    def pause():
        idle.put(steps_of(made))
        look.get(timeout=WAIT_S)

    def follower():
        try:
            came.append(follow(run, open_store(uri), pause=pause))
        finally:
            idle.put("ended")

    thread = threading.Thread(target=follower, daemon=True)
    thread.start()
    seen, save = [idle.get(timeout=WAIT_S)], train.Training._save

    def save_and_hand_over(training, step, *, is_wanted):
        save(training, step, is_wanted=is_wanted)
        look.put("there is another")
        seen.append(idle.get(timeout=WAIT_S))

    monkeypatch.setattr(train.Training, "_save", save_and_hand_over)
    ended = run_path(run, open_store(uri))
    look.put("it is finished")
    assert idle.get(timeout=WAIT_S) == "ended"
    thread.join(WAIT_S)
    # After each checkpoint what it had sampled by then: never one that the evaluation leaves out.
    assert seen == [[], [0], [0], [0, 2], [0, 2], [0, 2, 4]]
    assert came == [ended]
    assert max(Counter(made).values()) == 1
    everything = {(prompt, seed) for prompt in (0, 1) for seed in (0, 1)}
    of_last = {which for step, weights, which in made if (step, weights) == (4, "ema")}
    assert of_last == everything
    assert len(made) == ended["evaluate"].counts["samples"]
    assert "Skipped, as the run's evaluation leaves them out: 1 (evaluate.num_checkpoints is 3: 0, 2, 4)." in told()


def test_the_newest_checkpoint_is_sampled_first_and_the_older_ones_are_caught_up_with(run, store, made, told):
    with pytest.raises(Stopped):
        follow(run, store, pause=stop)
    assert steps_of(made) == [2, 0]
    assert "Step 2 comes before 0: the newest first." in told()
    assert "Skipped, as the run's evaluation leaves them out: 1, 3 (evaluate.num_checkpoints is 3: 0, 2, 4)." in told()
    words = "Training films: 3 of 4 steps are kept. Nobody is at it just now: waiting until somebody is."
    assert words in told()


def test_another_num_checkpoints_samples_more_and_the_runs_own_evaluation_finds_its_own_among_them(run, store, made):
    evaluate = run.spec.evaluate.model_copy(update={"num_checkpoints": 5})
    more = run.model_copy(update={"spec": run.spec.model_copy(update={"evaluate": evaluate})})
    with pytest.raises(Stopped):
        follow(more, store, pause=stop)
    assert steps_of(made) == [3, 2, 1, 0]
    before = len(made)
    run_path(run, store)
    assert max(Counter(made).values()) == 1
    assert {step for step, _, which in made[before:] if which == (0, 0)} == {4}


@pytest.mark.parametrize("file", [WEIGHTS, COMMIT])
def test_a_torn_checkpoint_is_skipped_until_it_is_mended(run, store, made, told, file):
    record = record_of(store, 2)
    store.delete([record.folder + file])

    def mend():
        assert steps_of(made) == [0]
        run_path(run, store, "train")

    follow(run, store, pause=mend)
    assert max(Counter(made).values()) == 1
    assert set(steps_of(made)) == {0, 2, 4}
    if file == COMMIT:
        assert "Skipped, as the training keeps no checkpoint there any more: 2." in told()
    else:
        key = record.folder + WEIGHTS
        assert f"Skipped step 2: {key} is missing or not what was committed. bricks run mends it." in told()


def test_a_checkpoint_with_other_bytes_of_the_same_size_is_skipped(run, store, made, told):
    key = record_of(store, 2).folder + WEIGHTS
    data = bytearray(store.get(key))
    data[-1] ^= 1
    store.put(key, bytes(data))
    with pytest.raises(Stopped):
        follow(run, store, pause=stop)
    # The other file of that state is whole.
    assert {(step, weights) for step, weights, _ in made if step} == {(2, "ema")}
    assert f"Skipped step 2: {key} is missing or not what was committed. bricks run mends it." in told()


def test_two_followers_share_the_checkpoints(run, store, made):
    with Claims(store) as one, Claims(store) as other:
        first, second = following(run, store, one), following(run, store, other)
        newest = record_of(store, 2).folder + WEIGHTS
        assert one.take(sampling_batch(newest)) is None
        while second.sample_next():
            pass
        assert {(step, weights) for step, weights, _ in made} == {(2, "ema"), (0, "raw")}
        one.release(sampling_batch(newest))
        while first.sample_next():
            pass
    assert {(step, weights) for step, weights, _ in made} == {(2, "ema"), (2, "raw"), (0, "raw")}
    assert max(Counter(made).values()) == 1


@pytest.mark.parametrize("denied", [("trainings/", "runs/"), ("trainings/", "runs/", "claims/")])
def test_it_writes_nothing_that_the_training_reads(run, store, made, monkeypatch, denied):
    for name in ("put", "put_file"):
        write = getattr(store, name)

        def writing(key, *rest, write=write, **more):
            if key.startswith(denied):
                raise StoreDenied(f"{key} must not be written.")
            return write(key, *rest, **more)

        monkeypatch.setattr(store, name, writing)
    monkeypatch.setattr(store, "delete", lambda keys: [each for each in keys if not each.startswith("claims/")] == [])
    with pytest.raises(Stopped):
        follow(run, store, pause=stop)
    assert steps_of(made) == [2, 0]


def test_where_samples_can_be_written_and_a_report_cannot_that_is_told_at_the_end(run, store, monkeypatch):
    run_path(run, store, "train")
    write = store.put_file

    def writing(key, *rest):
        if key.startswith("artifacts/"):
            raise StoreDenied("no.")
        return write(key, *rest)

    monkeypatch.setattr(store, "put_file", writing)
    with pytest.raises(StoreDenied, match="The samples are kept, but no report can be: no"):
        follow(run, store, pause=stop)


def test_stopped_it_leaves_the_report_of_what_it_has_sampled(run, store, made):
    assert evaluate_sampled(run, store) is None
    assert not made
    with pytest.raises(Stopped):
        follow(run, store, pause=stop)
    num_made = len(made)
    left = evaluate_sampled(run, store)
    assert len(made) == num_made
    assert left["train"].counts["steps"] == 2
    assert left["evaluate"].counts["samples"] == 3  # the base model, and step 2 with raw and EMA weights


def test_it_waits_for_the_stages_before_the_training(run, tmp_path, told):
    with pytest.raises(Stopped):
        follow(run, open_store(str(tmp_path / "store")), pause=stop)
    assert any(words.startswith("Run films has not ingested these sources into ") for words in told())


def test_a_run_without_an_evaluation_cannot_be_followed(run, tmp_path):
    run = run.model_copy(update={"spec": run.spec.model_copy(update={"evaluate": None})})
    with pytest.raises(SpecError, match="evaluate"):
        follow(run, open_store(str(tmp_path / "store")), pause=stop)


def test_a_run_is_found_by_its_name_where_bricks_run_has_been_at_it(run, store):
    assert find_run(store, "films", ["evaluate.num_checkpoints=4"]).spec.evaluate.num_checkpoints == 4
    assert find_run(store, "films") == run
    with pytest.raises(DataError, match=r"There is no file film, and .* has no run film \(did you mean \"films\"\?\)"):
        find_run(store, "film")
    with pytest.raises(SpecError, match=r"other\.yaml is not there"):
        find_run(store, "other.yaml")
    store.put("runs/films/run.json", b"{")
    with pytest.raises(DataError, match="cannot be read: name the run's file instead"):
        find_run(store, "films")
    store.delete(["runs/films/run.json"])
    with pytest.raises(DataError, match="keeps no settings of run films"):
        find_run(store, "films")
