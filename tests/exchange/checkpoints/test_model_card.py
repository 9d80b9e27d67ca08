"""The model card of an exported checkpoint: what it learnt from, whose that is, what was measured, and no guess."""

import json

import pytest
import yaml

from bricks_core.exchange.checkpoints.checkpoint import Checkpoint
from bricks_core.exchange.checkpoints.model_card import Base, Origin, model_card, write_card
from bricks_core.pipeline.ledger import Film
from bricks_core.pipeline.lineage import CheckpointLineage
from bricks_core.spec.latents import CodecSpec, Encoders, TextSpec
from bricks_core.spec.train import HeldOutRow, TrainSpec
from tests.journey.tiny_run import TINY

SPEC = TrainSpec.model_validate(TINY["spec"]["train"])


def film(number, licence, *, credit="Ann", consent="signed", train=2):
    name = f"film-{number}.mp4"
    credits = [credit] if credit else []
    return Film(f"{number:064x}", [name], "film", [licence], credits, [consent], num_train=train, num_held_out=1)


def lineage(*films, taken_down=()):
    return CheckpointLineage(
        checkpoint="tiny@9",
        step=9,
        num_steps=9,
        finished=True,
        folder="trainings/aa/step-000009-bb/",
        training="trainings/aa",
        artifacts=["train/cc"],
        runs=["tiny"],
        base="random weights",
        bases=[],
        codec=["patch-dct:1"],
        encoder=["hashed-words"],
        captions_by={"measured": 4},
        code_version={"train": "0.1.0"},
        digests={"latents": "dd"},
        num_clips=4,
        num_images=4,
        num_held_out=2,
        films=list(films),
        taken_down=list(taken_down),
    )


def held_out(step, loss, weights="ema"):
    told = {"bucket": "4f-48x80", "first_timestep": 0, "end_timestep": 500, "mse": loss, "vb": 0.0, "num_samples": 2}
    return HeldOutRow(id=f"{step} {weights}", step=step, weights=weights, loss=loss, **told)


@pytest.fixture
def checkpoint():
    encoders = Encoders(codec=CodecSpec(), text=TextSpec())
    return Checkpoint("tiny, step 9", "bricks", None, running={"global_step": 9}, model=SPEC.model, encoders=encoders)


def card(checkpoint, origin, licence="", format="diffusers"):
    text = model_card(checkpoint, format, "ema", "stored", origin, licence)
    _, head, body = text.split("---\n", 2)
    return yaml.safe_load(head), body


def origin_of(*films, base=None, rows=(), **told):
    return Origin(lineage(*films, **told), SPEC, list(rows), base or Base("", licence=None))


def test_its_head_is_what_the_hub_reads(checkpoint):
    base = Base("owner/base", hub_id="owner/base", licence="apache-2.0")
    head, _ = card(checkpoint, origin_of(film(1, "CC0-1.0"), base=base), "Apache-2.0")
    assert head == {
        "license": "apache-2.0",
        "base_model": ["owner/base"],
        "datasets": ["tiny"],
        "pipeline_tag": "text-to-video",
        "library_name": "diffusers",
        "tags": ["text-to-video", "stdit2", "bricks"],
    }


def test_a_licence_that_nobody_has_said_is_unknown(checkpoint):
    head, body = card(
        checkpoint, origin_of(film(1, "unknown", consent="unknown"), base=Base("base", licence="unknown"))
    )
    assert head["license"] == "unknown"
    assert "The licence of 1 film is **not known**" in body
    assert "The licence of the base is **not known**" in body
    assert "The consent of 1 film is **not known**" in body


def test_films_that_forbid_commercial_use_on_a_base_that_allows_it_are_told(checkpoint):
    base = Base("base", licence="Apache-2.0")
    _, body = card(checkpoint, origin_of(film(1, "CC-BY-NC-4.0"), film(2, "CC-BY-ND-4.0"), base=base))
    assert "CC-BY-NC-4.0, of 1 film, **forbids commercial use**, and the base is Apache-2.0" in body
    assert "CC-BY-ND-4.0, of 1 film, **forbids passing on what is made from them**" in body


def test_films_that_ask_to_be_credited_and_name_nobody_are_told(checkpoint):
    _, body = card(checkpoint, origin_of(film(1, "CC-BY-4.0", credit=""), film(2, "CC-BY-4.0")))
    assert "CC-BY-4.0, of 1 film, asks to name whose they are, and nobody is named." in body


def test_what_was_only_measured_on_is_no_licence_of_the_model(checkpoint):
    _, body = card(checkpoint, origin_of(film(1, "CC0-1.0"), film(2, "CC-BY-ND-4.0", train=0)))
    assert "forbids" not in body


def test_films_losses_and_lineage_stand_in_it_as_they_were_measured(checkpoint):
    rows = [held_out(0, 1.0), held_out(9, 0.25), held_out(9, 0.75, "raw"), held_out(12, 0.1)]
    _, body = card(checkpoint, origin_of(film(1, "CC0-1.0"), rows=rows))
    assert "4 clips and 4 pictures of 1 films" in body
    assert f"| film-1.mp4 | {1:064x} | 2 | 1 |" in body
    assert "| all buckets | 1.0000 | 0.2500 |" in body
    assert "| mixed | 5 | constant, 0.001 |" in body
    assert "| weights | trainings/aa/step-000009-bb/ |" in body
    assert "the EMA weights after step 9" in body
    assert "To be written by whoever passes it on" in body


def test_one_that_learnt_from_what_was_taken_down_says_so_first(checkpoint):
    _, body = card(checkpoint, origin_of(film(1, "CC0-1.0"), taken_down=["ab" * 32]))
    assert "**It learnt from 1 film that was taken down since: withdraw it.**" in body.partition("##")[0]


def test_where_the_store_is_not_there_it_says_that_nothing_is_known(checkpoint, tmp_path):
    head, body = card(checkpoint, None)
    assert "datasets" not in head
    assert "Not known from here: it came as files" in body
    write_card(tmp_path, checkpoint, "diffusers", "ema", "stored", None)
    assert [each.name for each in tmp_path.iterdir()] == ["README.md"]


def test_all_films_are_in_a_file_beside_it(checkpoint, tmp_path):
    films = [film(number, "CC0-1.0") for number in range(150)]
    write_card(tmp_path, checkpoint, "diffusers", "ema", "stored", origin_of(*films))
    assert "50 more are in lineage.json" in (tmp_path / "README.md").read_text(encoding="utf-8")
    assert len(json.loads((tmp_path / "lineage.json").read_text(encoding="utf-8"))["films"]) == 150
