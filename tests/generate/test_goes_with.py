"""A folder of weights tells what it goes with; flags say otherwise, and what is only guessed is told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from bricks_core.diffusion.model import Choice
from bricks_core.errors import DataError, SpecError
from bricks_core.generate.model import find_model
from bricks_core.generate.outputs import settings_of
from bricks_core.spec.latents import CodecSpec, Encoders, TextSpec
from tests.generate.conftest import SMALL

BUILT_IN = Encoders(codec=CodecSpec(), text=TextSpec(), codec_id="patch-dct:1", text_id="hashed-words:2:4096:200")
T5 = TextSpec(kind="t5", model="some/t5", revision="abc", max_tokens=100)
VAE = CodecSpec(kind="sd-vae", model="some/vae", revision="def")


@pytest.fixture
def telling(model, tmp_path):
    """telling(encoders, training="…"): the small checkpoint in a folder that tells."""

    def made(encoders: Encoders | None, file: str = "provenance.json", **told: str) -> Path:
        folder = tmp_path / "telling"
        shutil.copytree(model, folder, dirs_exist_ok=True)
        said = told | ({"encoders": encoders.model_dump(mode="json")} if encoders else {})
        (folder / file).write_text(json.dumps(said), encoding="utf-8")
        return folder

    return made


def found(folder: Path, *flags: str | None):
    return find_model(str(folder), Choice(None, None, *flags), lambda: None)


@pytest.mark.parametrize("file", ["provenance.json", "state.json"])
def test_a_folder_that_tells_needs_no_flags_and_nothing_is_guessed(generate, telling, tmp_path, small, file):
    (film,) = generate(telling(BUILT_IN, file), *SMALL, "--prompt", "A red car", "--out", tmp_path / "told")
    settings = settings_of(film)
    assert (settings["codec"], settings["text_encoder"]) == ("patch-dct:1", "hashed-words:2:4096:200")
    assert "does not say" not in generate.told
    (flagged,) = small("--prompt", "A red car")
    assert settings["model"]["digest"] == settings_of(flagged)["model"]["digest"]


def test_flags_take_the_place_of_what_is_told(telling):
    folder = telling(Encoders(codec=VAE, text=T5, codec_id="an id", text_id="another"))
    told = found(folder)
    assert (told.codec, told.text.model, told.text.revision) == (VAE, "some/t5", "abc")
    assert (told.codec_id, told.text_id, told.remarks) == ("an id", "another", ())
    assert told.text.max_tokens == 100
    other = found(folder, "other/vae", "hashed-words")
    assert (other.codec.kind, other.codec.model, other.codec.revision) == ("sd-vae", "other/vae", "")
    assert (other.text.kind, other.codec_id, other.text_id) == ("hashed-words", "", "")
    built_in = found(telling(BUILT_IN), "some/vae", "some/t5")
    assert (built_in.codec.kind, built_in.text.kind) == ("sd-vae", "t5")


def test_a_folder_that_does_not_tell_is_guessed_at_and_what_was_taken_is_said(model):
    (remark,) = found(model).remarks
    assert remark.startswith(f"{model} does not say what it goes with. Taken: the codec sd-vae (stabilityai/")
    assert "and the text encoder t5 (" in remark
    (remark,) = found(model, "patch-dct").remarks
    assert "codec" not in remark
    assert found(model, "patch-dct", "hashed-words").remarks == ()


def test_parts_of_a_pipeline_are_taken_before_what_is_told(telling, tmp_path):
    folder = telling(Encoders(codec=VAE, text=T5, codec_id="an id", text_id="another"))
    pipeline = tmp_path / "pipeline"
    shutil.copytree(folder, pipeline / "transformer")
    (pipeline / "transformer/provenance.json").rename(pipeline / "provenance.json")
    (pipeline / "model_index.json").write_text("{}", encoding="utf-8")
    assert found(pipeline).codec == VAE
    (pipeline / "vae").mkdir()
    own = found(pipeline)
    assert (own.codec.model, own.codec_id, own.text.model) == (str(pipeline / "vae"), "", "some/t5")
    (pipeline / "provenance.json").write_text(
        json.dumps({"encoders": BUILT_IN.model_dump(mode="json")}), encoding="utf-8"
    )
    assert found(pipeline).codec.kind == "patch-dct"  # it cannot have been trained on that autoencoder's latents


def test_weights_whose_training_is_not_finished_say_so_and_are_the_same_films_later(generate, telling, tmp_path):
    what = (*SMALL, "--prompt", "A red car", "--out", tmp_path / "out")
    (film,) = generate(telling(BUILT_IN, training="not finished: 5 of 8 steps are done", weights="ema"), *what)
    assert settings_of(film)["training"] == "not finished: 5 of 8 steps are done"
    assert settings_of(film)["model"]["weights"] == "ema"
    assert "telling is not finished: 5 of 8 steps are done." in generate.told
    made = film.stat().st_mtime_ns
    generate(telling(BUILT_IN, weights="ema"), *what)
    assert "is there already" in generate.told
    assert film.stat().st_mtime_ns == made


@pytest.mark.parametrize("text", ["", "[", '{"encoders": 5}', '{"encoders": {"codec": {"kind": "another"}}}'])
def test_what_cannot_be_read_is_named(telling, text):
    folder = telling(None)
    (folder / "provenance.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"provenance\.json"):
        found(folder)


def test_another_codec_than_it_goes_with_is_refused(generate, telling, tmp_path):
    folder = telling(BUILT_IN.model_copy(update={"codec_id": "patch-dct:0"}))
    with pytest.raises(SpecError, match="was trained on latents of patch-dct:0, and patch-dct:1 is here"):
        generate(folder, *SMALL, "--prompt", "A red car", "--out", tmp_path / "out")
