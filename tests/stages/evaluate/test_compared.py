"""Other checkpoints beside ours: of runs, folders or the store; known by their weights, refused if they do not fit."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from bricks_core.errors import DataError, SpecError
from bricks_core.models.beside import PROVENANCE
from bricks_core.models.stdit2 import STDiT2
from bricks_core.models.weights import save_config, save_weights
from bricks_core.spec.evaluate import Sample
from bricks_core.spec.latents import Encoders
from bricks_core.stages.evaluate import stage
from bricks_core.stages.evaluate.asked import asked_samples
from bricks_core.stages.evaluate.compared import compared_models
from tests.stages.evaluate.conftest import MAX_TOKENS, TEXT_WIDTH

OURS = {"codec": {"kind": "patch-dct"}, "text": {"kind": "hashed-words"}}
IDS = {"codec_id": "patch-dct:1", "text_id": "hashed-words:1"}


def checkpoint(folder, *, seed=1, text_width=TEXT_WIDTH, hidden_size=48, **told):
    """A folder as `bricks checkpoint export` writes it, of a network of another size than the run's."""
    folder.mkdir(parents=True)
    torch.manual_seed(seed)
    model = STDiT2(hidden_size, 1, 2, caption_channels=text_width, model_max_length=MAX_TOKENS, input_sq_size=32)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    save_weights(model, folder / "weights.safetensors")
    save_config(model, folder / "config.json")
    if told:
        encoders = Encoders.model_validate(told).model_dump(mode="json")
        (folder / PROVENANCE).write_text(json.dumps({"encoders": encoders}), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def run(finished_in, tmp_path_factory):
    return finished_in(tmp_path_factory.mktemp("compared"), ["A red square"])


def asking(run, *names, **fingerprints):
    spec = run.spec.model_copy(update={"compare": list(names)})
    return spec, replace(run.work(spec), fingerprints={f"compare.{name}": of for name, of in fingerprints.items()})


def keys_of(run, *names, **fingerprints):
    spec, work = asking(run, *names, **fingerprints)
    return {each.id for each in asked_samples(spec, work) if each.of}


def test_a_folder_is_sampled_beside_ours_with_the_same_prompts_and_seeds(finished, tmp_path):
    run = finished(["A red square"], num_seeds=2, weights=["ema"], num_checkpoints=2)
    place = str(checkpoint(tmp_path / "theirs", **OURS, **IDS))
    spec, work = asking(run, place)
    stage.run(spec, work)
    _, work = asking(run, place)
    rows = [row for row in stage.join(spec, work).tables["samples"] if row.of]
    assert [(row.of, row.step, row.weights) for row in rows] == [(place, 0, "raw")] * 2
    assert {row.seed_index for row in rows} == {0, 1}
    assert all(run.store.head(work.prefix + row.video_key) for row in rows)
    assert isinstance(rows[0], Sample)


def test_its_weights_are_in_the_key_of_a_sample_and_its_place_is_not(run, tmp_path):
    first = checkpoint(tmp_path / "first", **OURS, **IDS)
    same = checkpoint(tmp_path / "same", **OURS, **IDS)
    other = checkpoint(tmp_path / "other", seed=2, **OURS, **IDS)
    assert keys_of(run, str(first)) == keys_of(run, str(same))
    assert keys_of(run, str(first)).isdisjoint(keys_of(run, str(other)))
    save_weights_of(other, first)
    assert keys_of(run, str(first), **{str(first): "changed"}) == keys_of(run, str(other))


def save_weights_of(source, target):
    (target / "weights.safetensors").write_bytes((source / "weights.safetensors").read_bytes())


def test_a_checkpoint_of_a_run_has_the_samples_that_the_run_has_of_it(run):
    folder = run.work().inputs["train"].prefix + "checkpoints/step-000040/"
    spec, work = asking(run, "first@40", **{"first@40": f"{folder}ema.safetensors"})
    (model,) = compared_models(spec, work).values()
    assert (model.step, model.weights, model.weights_of) == (40, "ema", f"{folder}ema.safetensors")
    assert sum(each.numel() for each in model.load(torch.device("cpu")).parameters()) > 0
    every = spec.model_copy(update={"num_checkpoints": 9, "compare": []})
    own = {each.id for each in asked_samples(every, run.work(every))}
    assert keys_of(run, "first@40", **{"first@40": f"{folder}ema.safetensors"}) < own


def test_a_run_whose_checkpoint_is_gone_is_told_of(run):
    folder = run.work().inputs["train"].prefix + "checkpoints/step-000041/"
    with pytest.raises(DataError, match=r"is no checkpoint of its training any more: name another in evaluate.compare"):
        keys_of(run, "first@41", **{"first@41": f"{folder}ema.safetensors"})


def test_a_folder_of_the_store_is_taken_as_training_takes_it(run, tmp_path):
    place = checkpoint(tmp_path / "theirs", **OURS, **IDS)
    for file in place.iterdir():
        run.store.put_file(f"weights/theirs/{file.name}", file)
    assert keys_of(run, "weights/theirs") == keys_of(run, str(place))
    run.store.delete(["weights/theirs/config.json"])
    with pytest.raises(SpecError, match=r"has no weights/theirs/config.json, so the network's shape is not known"):
        keys_of(run, "weights/theirs")


@pytest.mark.parametrize(
    ("told", "theirs"),
    [
        (OURS | IDS | {"codec_id": "patch-dct:2"}, "latents of patch-dct:2"),
        (OURS | {"codec": {"kind": "sd-vae", "model": "x"}}, "latents of sd-vae"),
        (OURS | IDS | {"text_id": "t5:x"}, "caption features of t5:x"),
    ],
)
def test_a_checkpoint_that_goes_with_something_else_is_refused_before_anything_is_sampled(run, tmp_path, told, theirs):
    place = str(checkpoint(tmp_path / "theirs", **told))
    with pytest.raises(SpecError, match=f"was trained on {theirs}, and this run's are of") as refused:
        keys_of(run, place)
    assert str(refused.value).startswith(f"evaluate.compare names {place}")


def test_of_one_that_does_not_say_what_it_goes_with_the_width_of_captions_is_looked_at(run, tmp_path, caplog):
    assert keys_of(run, str(checkpoint(tmp_path / "bare")))
    assert "does not say what it goes with: it is taken to be this run's" in caplog.text
    with pytest.raises(SpecError, match="reads caption features of width 64, and this run's are of 4096"):
        keys_of(run, str(checkpoint(tmp_path / "narrow", text_width=64)))


def test_what_is_no_model_is_refused_with_the_sentences_that_generate_has(run, tmp_path):
    with pytest.raises(SpecError, match=r"evaluate.compare: There is no model .*nowhere: nothing is there\."):
        keys_of(run, str(tmp_path / "nowhere"))
    place = checkpoint(tmp_path / "theirs")
    (place / "config.json").unlink()
    with pytest.raises(SpecError, match=r"has no config.json beside weights.safetensors"):
        keys_of(run, str(place))
