"""Captions to features."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoTokenizer, T5EncoderModel, UMT5EncoderModel

from bricks_core.errors import DataError, SpecError
from bricks_core.models.text_encoder import T5, UMT5, HashedWords, load_text_encoder, words_of
from bricks_core.spec.latents import TextSpec

CAPTIONS = [
    "A red brick car drives to the left.",
    "Two bricks fall on blue ground, and a small figure walks slowly to the right of the yellow house.",
    "Snow.",
]


@pytest.fixture(scope="module")
def t5_folder(tiny_t5: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_t5(tmp_path_factory.mktemp("models") / "tiny-t5")


@pytest.fixture(scope="module")
def t5(t5_folder) -> T5:
    return T5(str(t5_folder))


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


# t5


def test_t5_tokenises_as_sentencepiece_does_and_ends_with_the_end_of_sentence(t5, t5_folder):
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(t5_folder / "spiece.model"))
    for caption, features in zip(CAPTIONS, t5.encode(CAPTIONS), strict=True):
        assert features.shape == (len(pieces.encode(caption)) + 1, 32)
        assert t5.tokenizer(caption).input_ids[-1] == 1


def test_t5_features_are_the_last_hidden_states_of_a_padded_and_masked_batch(t5, t5_folder):
    # Open-Sora pads to 200 and masks; the rows of real tokens are the same without the padding.
    network = T5EncoderModel.from_pretrained(t5_folder).eval()
    tokens = t5.tokenizer(CAPTIONS, max_length=200, padding="max_length", truncation=True, return_tensors="pt")
    with torch.no_grad():
        expected = network(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
    for got, want, mask in zip(t5.encode(CAPTIONS), expected, tokens.attention_mask, strict=True):
        np.testing.assert_allclose(got, want[mask.bool()].numpy(), atol=1e-5)


def test_a_captions_t5_features_do_not_depend_on_its_neighbours(t5_folder):
    pairs = T5(str(t5_folder), batch_size=2)
    for together, alone in zip(pairs.encode(CAPTIONS), CAPTIONS, strict=True):
        np.testing.assert_allclose(together, pairs.encode([alone])[0], atol=1e-5)


def test_t5_is_named_by_weights_type_and_length_not_by_where_it_lies(t5, t5_folder, tiny_t5, tmp_path):
    same, other = T5(str(tiny_t5(tmp_path / "tiny-t5"))), T5(str(tiny_t5(tmp_path / "b" / "tiny-t5", seed=1)))
    assert same.id == t5.id
    assert other.id != t5.id
    assert T5(str(t5_folder), max_tokens=5).id != t5.id
    half = load_text_encoder(TextSpec(kind="t5", model=str(t5_folder), dtype="bfloat16"))
    assert half.id != t5.id
    assert half.encode(["Snow."])[0].dtype == np.float32


def test_t5_that_overflows_is_refused_not_stored(tiny_t5, tmp_path):
    folder = tiny_t5(tmp_path / "loud")
    network = T5EncoderModel.from_pretrained(folder)
    with torch.no_grad():
        network.encoder.final_layer_norm.weight.fill_(60000.0)
    network.save_pretrained(folder)
    with pytest.raises(DataError, match=r"overflows on the caption .*set latents.text.dtype"):
        T5(str(folder), dtype="float16").encode(CAPTIONS)


def test_a_missing_t5_folder_is_named(tmp_path):
    with pytest.raises(SpecError, match="nowhere is no folder"):
        T5(str(tmp_path / "nowhere"))


# hashed-words


def test_there_is_a_row_for_each_word_and_an_end_row():
    assert [len(rows) for rows in HashedWords().encode(["", "Snow.", "A red-brick car!"])] == [1, 2, 5]
    assert words_of("A red-brick car’s wheel, Ｔwo  BRICKS; straße 红色的车") == [
        *("a", "red", "brick", "car's", "wheel", "two", "bricks", "strasse"),
        *("红", "色", "的", "车"),
    ]


@settings(deadline=None, max_examples=30)
@given(st.text(max_size=300))
def test_any_text_has_finite_rows_of_one_size(text):
    rows = HashedWords(max_tokens=50).encode([text])[0]
    assert rows.dtype == np.float32
    assert 1 <= len(rows) <= 50
    assert rows.shape[1] == 4096
    np.testing.assert_allclose(np.sqrt(np.square(rows).mean(axis=1)), 0.2, rtol=1e-4)


def test_forms_of_a_word_are_near_each_other_and_other_words_are_not():
    def word(text: str) -> np.ndarray:
        return HashedWords().encode([text])[0][0]

    for a, b in [("walk", "walks"), ("walk", "walking"), ("brick", "bricks"), ("car", "cars")]:
        assert cosine(word(a), word(b)) > 0.3
    for a, b in [("walk", "table"), ("red", "blue"), ("left", "right"), ("up", "down")]:
        assert abs(cosine(word(a), word(b))) < 0.1


def test_a_word_is_itself_in_any_sentence_and_still_tells_its_neighbours():
    one, two = HashedWords().encode(["a red car on blue ground", "a blue car on red ground"])
    assert cosine(one[1], two[4]) > 0.8  # red is red
    assert sorted(words_of("a red car on blue ground")) == sorted(words_of("a blue car on red ground"))
    # Cross-attention sees a set of rows. With equal words the sets would be equal, were it not for the neighbours.
    nearest = [max(cosine(row, other) for other in two[:-1]) for row in one[:-1]]
    assert min(nearest) < 0.95


def test_the_end_row_says_what_the_caption_is_about():
    same, near, far = (
        HashedWords().encode([text])[0][-1]
        for text in ("a red car drives left", "a red car drives right", "snow falls over dark mountains")
    )
    assert cosine(same, near) > 0.7
    assert cosine(same, far) < 0.4


def test_the_same_words_have_the_same_rows_in_every_process():
    code = (
        "import hashlib\n"
        "from bricks_core.models.text_encoder import HashedWords\n"
        "print(hashlib.sha256(HashedWords().encode(['A red brick car.'])[0].tobytes()).hexdigest())"
    )
    # Pinned, so that another machine, Python or NumPy that makes other rows is noticed; the id would have to change.
    expected = "a70434b8ccf41013616a2745b85a7efcd23afbdd375a679c6423d929bf055591"
    for seed in ("0", "1"):
        ran = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            encoding="utf-8",
            check=True,
            env={"PYTHONHASHSEED": seed},
        )
        assert ran.stdout.strip() == expected


def test_width_and_length_are_in_the_name_of_the_features():
    assert HashedWords().width == 4096
    assert len({HashedWords().id, HashedWords(max_tokens=120).id, HashedWords(width=64).id}) == 3
    assert HashedWords(width=64).encode(["snow"])[0].shape == (2, 64)
    with pytest.raises(ValueError, match="no multiple of 8"):
        HashedWords(width=100)


# both


@pytest.mark.parametrize("kind", ["hashed-words", "t5"])
def test_a_caption_longer_than_the_longest_loses_its_end(kind, t5_folder):
    model = str(t5_folder) if kind == "t5" else ""
    short = load_text_encoder(TextSpec(kind=kind, model=model, max_tokens=7))
    long = load_text_encoder(TextSpec(kind=kind, model=model))
    text = CAPTIONS[1]
    assert len(short.encode([text])[0]) == 7
    assert len(long.encode([text])[0]) > 7
    assert len(long.encode([" ".join([text] * 40)])[0]) == 200


@pytest.mark.parametrize("kind", ["hashed-words", "t5"])
def test_no_captions_have_no_features(kind, t5_folder):
    encoder = load_text_encoder(TextSpec(kind=kind, model=str(t5_folder) if kind == "t5" else ""))
    assert encoder.encode([]) == []


# umt5


@pytest.fixture(scope="module")
def wan_folder(tiny_wan, tmp_path_factory) -> Path:
    return tiny_wan(tmp_path_factory.mktemp("models") / "tiny-wan")


def test_umt5_features_are_those_of_diffusers_pipeline_without_the_zeros_behind_them(wan_folder):
    captions = [*CAPTIONS, "", "Two &amp;amp; a\n  half\u00a0bricks\u2019 house \u00c3\u00a9"]
    pipe = WanPipeline(
        tokenizer=AutoTokenizer.from_pretrained(wan_folder / "tokenizer"),
        text_encoder=UMT5EncoderModel.from_pretrained(wan_folder / "text_encoder").eval(),
        vae=AutoencoderKLWan.from_pretrained(wan_folder / "vae"),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )
    with torch.no_grad():
        expected = pipe.encode_prompt(captions, do_classifier_free_guidance=False, max_sequence_length=512)[0]
    encoder = load_text_encoder(TextSpec(kind="umt5", model=str(wan_folder), max_tokens=512))
    for got, want in zip(encoder.encode(captions), expected, strict=True):
        np.testing.assert_allclose(got, want[: len(got)].numpy(), atol=1e-5)
        assert not want[len(got) :].any()


def test_umt5_lies_in_a_whole_pipeline_or_alone(wan_folder, tmp_path):
    alone = tmp_path / "umt5"
    shutil.copytree(wan_folder / "tokenizer", alone)
    shutil.copytree(wan_folder / "text_encoder", alone, dirs_exist_ok=True)
    whole, own = UMT5(str(wan_folder)), UMT5(str(alone))
    assert np.array_equal(whole.encode(CAPTIONS)[1], own.encode(CAPTIONS)[1])
    assert whole.id.startswith("umt5:tiny-wan:")
    assert whole.id.split(":")[2:] == own.id.split(":")[2:]


def test_umt5_s_words_are_those_of_the_file_though_its_config_denies_that_they_are_shared(wan_folder, tmp_path):
    """As the published config does. Some releases of transformers then left the words at 0, and said nothing."""
    whole = shutil.copytree(wan_folder, tmp_path / "wan")
    config = whole / "text_encoder" / "config.json"
    config.write_text(
        json.dumps(json.loads(config.read_text(encoding="utf-8")) | {"tie_word_embeddings": False}), encoding="utf-8"
    )
    encoder = UMT5(str(whole))
    stored = load_file(whole / "text_encoder" / "model.safetensors")["shared.weight"]
    assert torch.equal(encoder.network.get_input_embeddings().weight, stored)
    assert np.array_equal(encoder.encode(CAPTIONS)[0], UMT5(str(wan_folder)).encode(CAPTIONS)[0])


def test_umt5_in_bfloat16_is_another_encoder(wan_folder):
    half = load_text_encoder(TextSpec(kind="umt5", model=str(wan_folder), dtype="bfloat16", max_tokens=512))
    assert half.id != load_text_encoder(TextSpec(kind="umt5", model=str(wan_folder), max_tokens=512)).id
    assert half.encode(["Snow."])[0].dtype == np.float32
