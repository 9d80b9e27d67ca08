"""Gates: what an evaluation must reach, as the run file says it."""

import pytest
import yaml

from bricks_core.errors import SpecError
from bricks_core.spec.run import load_run
from bricks_core.spec.stages import STAGES

TRAINED = {
    "phases": [
        {
            "name": "only",
            "steps": 3,
            "schedule": {"kind": "constant", "lr": 1e-3},
            "buckets": [{"num_frames": 16, "resolution": "360p", "frame_interval": 2, "batch_size": 2}],
        }
    ]
}


@pytest.fixture
def run_with(tmp_path):
    def load(*gates, **spec):
        document = {
            "apiVersion": "bricks.dev/v1alpha1",
            "kind": "BrickRun",
            "metadata": {"name": "gated"},
            "spec": {
                "ingest": {"sources": ["films"]},
                "latents": {"resolutions": ["360p"]},
                "train": TRAINED,
                "evaluate": {"prompts": ["a brick"]},
                "gates": list(gates),
            }
            | spec,
        }
        file = tmp_path / "run.yaml"
        file.write_text(yaml.safe_dump(document), encoding="utf-8")
        return load_run(file)

    return load


def refused(run_with, *gates):
    with pytest.raises(SpecError) as caught:
        run_with(*gates)
    return str(caught.value)


def test_a_gate_names_a_metric_and_its_bounds(run_with):
    (gate,) = run_with({"metric": "held_out.loss.ema", "at_most_of_base": 0.98, "at_most": 0.2}).spec.gates
    assert (gate.metric, gate.at_most_of_base, gate.at_most, gate.bucket) == ("held_out.loss.ema", 0.98, 0.2, "")


def test_a_gate_may_be_on_one_training_bucket(run_with):
    (gate,) = run_with({"metric": "held_out.loss.raw.16f-360p-every2", "at_most": 1}).spec.gates
    assert gate.bucket == "16f-360p-every2"


@pytest.mark.parametrize(
    ("metric", "near"),
    [
        ("held_out.los.ema", "held_out.loss.ema"),
        ("heldout.loss.raw", "held_out.loss.raw"),
        ("dataset.kept", "dataset.num_kept"),
        ("held_out.loss.emma", "held_out.loss.ema"),
    ],
)
def test_an_unknown_metric_is_refused_with_the_nearest_right_one(run_with, metric, near):
    assert f'did you mean "{near}"?' in refused(run_with, {"metric": metric, "at_most": 1})


def test_a_bucket_that_nothing_is_trained_on_is_refused_with_the_nearest_right_one(run_with):
    said = refused(run_with, {"metric": "held_out.loss.ema.16f-360p", "at_most": 1})
    assert 'did you mean "16f-360p-every2"?' in said


def test_a_gate_that_asks_for_nothing_is_refused(run_with):
    assert "asks for nothing" in refused(run_with, {"metric": "held_out.loss.ema"})


def test_a_count_has_no_base_to_be_compared_with(run_with):
    said = refused(run_with, {"metric": "dataset.num_kept", "at_least_of_base": 0.9})
    assert "no base" in said
    assert "at_least" in said


@pytest.mark.parametrize("bound", [float("nan"), float("inf")])
def test_a_bound_is_a_number_that_can_be_compared_with(run_with, bound):
    assert "gates.0.at_most" in refused(run_with, {"metric": "held_out.loss.ema", "at_most": bound})


def test_gates_are_no_part_of_any_stages_settings(run_with):
    without, gated = run_with(), run_with({"metric": "held_out.loss.ema", "at_most": 1})
    assert [gated.stage_spec(stage) for stage in STAGES] == [without.stage_spec(stage) for stage in STAGES]
