"""Checkpoints of runs beside ours: where they lie is in what an evaluation is made from, and whoever looks finds it."""

from __future__ import annotations

import shutil

import pytest

from bricks_core.errors import BricksError
from bricks_core.pipeline.compared import compared_states
from bricks_core.pipeline.garbage import collect
from bricks_core.pipeline.ledger import Ledger
from bricks_core.pipeline.local import run_path
from bricks_core.pipeline.plan import make_plan
from bricks_core.pipeline.points import read_pointer
from bricks_core.pipeline.resolve import address_alone, finished
from bricks_core.spec.evaluate import Sample, check_encoders
from bricks_core.spec.train import TrainSpec
from bricks_core.storage.artifacts import Artifact, find_manifest, problems
from bricks_core.storage.places import open_store
from bricks_core.storage.trainings import begin, begun, keyed
from tests.journey.tiny_run import TINY

SPEC = {
    "score": {"filter": {"min_motion": 0, "max_near_duplicate_distance": None, "max_plain_share": 1.0}},
    "latents": {"resolutions": ["48x80"]},
    "train": TINY["spec"]["train"] | {"phases": TINY["spec"]["train"]["phases"][:1]},
    "evaluate": TINY["spec"]["evaluate"] | {"prompts": ["A red thing moves."], "num_frames": 1, "weights": ["ema"]},
    "tracking": {"wandb": "off"},
}


def asking(run_of, films, *names):
    train = SPEC["train"] | {"seed": 7}
    return run_of(films, "second", **SPEC | {"train": train, "evaluate": SPEC["evaluate"] | {"compare": list(names)}})


@pytest.fixture(scope="module")
def made(drawn_films, run_of, tmp_path_factory):
    """A store with a run "first", trained, and "second", evaluated beside it; and the manifests of this one."""
    store = open_store(str(tmp_path_factory.mktemp("compared") / "store"))
    run_path(run_of(drawn_films, "first", **SPEC), store, "train")
    return store, run_path(asking(run_of, drawn_films, "first", "first@0"), store)


def test_samples_of_other_runs_are_rows_beside_ours_and_inputs_tell_where_they_lie(made, drawn_films, run_of):
    store, manifests = made
    last = manifests["train"].counts["steps"]
    rows = list(Artifact(store, manifests["evaluate"]).rows("samples", Sample))
    assert sorted((row.of, row.step, row.weights) for row in rows) == [
        ("", 0, "ema"),
        ("", last, "ema"),
        ("first", last, "ema"),
        ("first@0", 0, "ema"),
    ]
    inputs = manifests["evaluate"].inputs
    for name, step in (("first", last), ("first@0", 0)):
        assert inputs[f"compare.{name}"].startswith("trainings/")
        assert f"/step-{step:06d}-" in inputs[f"compare.{name}"]
        assert store.head(inputs[f"compare.{name}"]) is not None
    assert len(compared_states(inputs)) == 2
    # Found done, by whoever plans and by whoever only watches.
    run = asking(run_of, drawn_films, "first", "first@0")
    assert make_plan(run, store)[-1].state == "cached"
    assert finished(run, store).keys() == manifests.keys()


def test_lineage_knows_whose_samples_a_report_shows(made):
    store, manifests = made
    ledger = Ledger(store)
    (first,) = [each for each in ledger.trainings if each.runs == ["first"]]
    (shown,) = ledger.evaluations({}, [first], set())
    assert (shown.artifact, shown.runs) == (f"evaluate/{manifests['evaluate'].digest[:12]}", ["second"])


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("frist", r"there is no model frist: no file or folder .* has no run frist with a training.*first"),
        ("first@9999", r"first has no checkpoint of step 9999; it has 0"),
        ("first@last", r"evaluate.compare is 'first@last': write RUN or RUN@STEP, such as first@4000"),
        ("./nowhere", r"evaluate.compare: there is no model ./nowhere: nothing is there"),
    ],
)
def test_what_is_no_checkpoint_is_refused_by_a_sentence(made, drawn_films, run_of, name, why):
    with pytest.raises(BricksError, match=why):
        address_alone(asking(run_of, drawn_films, name), made[0], "evaluate")


def test_a_wrong_name_is_told_before_anything_is_done(drawn_films, run_of, tmp_path):
    store = open_store(str(tmp_path / "store"))
    with pytest.raises(BricksError, match="has no run frist with a training"):
        run_path(asking(run_of, drawn_films, "frist"), store)
    assert not list(store.list("items/"))


def test_of_a_training_under_way_a_step_must_be_named(made, drawn_films, run_of):
    store, manifests = made
    spec = TrainSpec.model_validate(manifests["train"].spec)
    longer = spec.model_copy(
        update={"phases": [spec.phases[0].model_copy(update={"steps": spec.num_steps + 4}), *spec.phases[1:]]}
    )
    begin(store, "third", longer, keyed(manifests["latents"], {}), manifests["latents"].digest)
    assert begun(store, "third")
    with pytest.raises(BricksError, match=r"names third, whose training is not finished: .*: name one .*third@\d"):
        address_alone(asking(run_of, drawn_films, "third"), store, "evaluate")
    address = address_alone(asking(run_of, drawn_films, "third@0"), store, "evaluate")
    assert "/step-000000-" in address.inputs["compare.third@0"]


def test_a_folder_is_in_the_cache_key_by_its_content(made, drawn_films, run_of, tmp_path):
    run = asking(run_of, drawn_films, str(tmp_path))
    (tmp_path / "weights.safetensors").write_bytes(b"one")
    before = address_alone(run, made[0], "evaluate")
    (tmp_path / "weights.safetensors").write_bytes(b"two, longer")
    after = address_alone(run, made[0], "evaluate")
    assert before.digest != after.digest
    assert before.inputs.keys() == after.inputs.keys() >= {f"compare.{tmp_path}"}


def test_an_evaluation_stays_done_when_the_other_run_is_gone(made, drawn_films, run_of):
    store, manifests = made
    gone = [entry.key for entry in store.list("runs/first/")]
    kept = {key: store.get(key) for key in gone}
    store.delete(gone)
    try:
        run = asking(run_of, drawn_films, "first", "first@0")
        assert address_alone(run, store, "evaluate").digest == manifests["evaluate"].digest
        with pytest.raises(BricksError, match="there is no model first"):
            address_alone(asking(run_of, drawn_films, "first"), store, "evaluate")
    finally:
        for key, data in kept.items():
            store.put(key, data)
    assert read_pointer(store, "first", "train") is not None


def test_gc_keeps_the_checkpoints_that_a_report_compares_with_when_their_own_run_is_gone(made, tmp_path):
    store, manifests = made
    copy = open_store(str(shutil.copytree(store.uri, tmp_path / "store")))
    states = [each for name, each in manifests["evaluate"].inputs.items() if name.startswith("compare.")]
    assert len(states) == 2
    copy.delete([entry.key for entry in copy.list("runs/first/")])
    collect(copy, delete=True, keep_days=0)
    assert all(copy.head(state) is not None for state in states)
    assert problems(copy, find_manifest(copy, "evaluate", manifests["evaluate"].digest), items=True) == []
    copy.delete([entry.key for entry in copy.list("runs/second/")])
    collect(copy, delete=True, keep_days=0)
    assert not any(copy.head(state) is not None for state in states)


def test_codecs_and_text_encoders_must_be_the_same():
    ours = ("patch-dct:1", "t5:large")
    check_encoders("x", ours, ours)
    check_encoders("x", ("patch-dct", "t5"), ours)
    for theirs in (("patch-dct:2", "t5:large"), ("sd-vae", "t5"), ("patch-dct:1", "t5:small")):
        with pytest.raises(BricksError, match=r"evaluate\.compare names x, which was trained on .* this run's are of"):
            check_encoders("x", theirs, ours)
