"""What tests of several packages need: the golden vectors (tests/golden/README.md) and the network they belong to."""

from __future__ import annotations

import io
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.golden_vectors import Vectors, tensors_of, text_of


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """A command that runs in the test's own process sets up logging for good: not for the tests after it."""
    loggers = [logging.getLogger(), logging.getLogger("bricks")]
    before = [(each.level, each.handlers[:]) for each in loggers]
    yield
    for logger, (level, handlers) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.handlers[:] = handlers


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict[str, Vectors]]:
    """golden("forward")["d_xmask"]["in.x"]: the tensors of one file by case and name; "" where a file has no cases."""
    return tensors_of


@pytest.fixture(scope="session")
def golden_json() -> Callable[[str], Any]:
    return lambda file: json.loads(text_of(file))


@pytest.fixture
def small_model(golden: Callable[[str], dict[str, Vectors]], golden_json: Callable[[str], Any]) -> Any:
    """The small network of the golden vectors, fresh for every test, with its weights loaded strictly."""
    from bricks_core.models.stdit2 import STDiT2
    from bricks_core.models.weights import shape_of

    model = STDiT2(**shape_of(golden_json("small_config")))
    model.load_state_dict(golden("small_model")[""], strict=True)
    return model.eval()


@pytest.fixture(scope="session")
def tiny_vae() -> Callable[..., Path]:
    """tiny_vae(folder, seed=0, **config): diffusers' real AutoencoderKL at its real depth (it shrinks by 8), with few
    channels and random weights, saved to the folder."""
    import torch
    from diffusers import AutoencoderKL

    def save(folder: Path, seed: int = 0, max_shard_size: str = "1GB", **config: Any) -> Path:
        small = {
            "block_out_channels": (8, 8, 8, 8),
            "down_block_types": ("DownEncoderBlock2D",) * 4,
            "up_block_types": ("UpDecoderBlock2D",) * 4,
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "latent_channels": 4,
            "sample_size": 32,
        }
        torch.manual_seed(seed)
        AutoencoderKL(**{**small, **config}).save_pretrained(folder, max_shard_size=max_shard_size)
        return folder

    return save


@pytest.fixture(scope="session")
def tiny_t5() -> Callable[..., Path]:
    """tiny_t5(folder, seed=0): transformers' real T5 encoder, 32 wide, with random weights, and a sentencepiece model
    trained on the spot, in the layout of T5's published folders."""
    import sentencepiece
    import torch
    from transformers import T5Config, T5EncoderModel

    sentences = [
        "A red brick car drives to the left.",
        "Two bricks fall on blue ground, and a small figure walks slowly to the right of the yellow house.",
    ]

    def save(folder: Path, seed: int = 0) -> Path:
        pieces = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences * 20),
            model_writer=pieces,
            vocab_size=60,
            hard_vocab_limit=False,
            model_type="unigram",
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            num_threads=1,
            minloglevel=2,
        )
        torch.manual_seed(seed)
        gated = {"feed_forward_proj": "gated-gelu"}
        config = T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, **gated)
        T5EncoderModel(config).save_pretrained(folder)
        (folder / "spiece.model").write_bytes(pieces.getvalue())
        (folder / "tokenizer_config.json").write_text(
            json.dumps({"tokenizer_class": "T5Tokenizer", "extra_ids": 0}), encoding="utf-8"
        )
        return folder

    return save


@pytest.fixture(scope="session")
def tiny_wan(tiny_t5: Callable[..., Path]) -> Callable[..., Path]:
    """tiny_wan(folder, seed=0): a whole pipeline of Wan but for its transformer, as it is published: diffusers' real
    autoencoder in vae/, transformers' real umT5 in text_encoder/, its tokenizer in tokenizer/; random weights."""
    import torch
    from diffusers import AutoencoderKLWan
    from transformers import AutoTokenizer, UMT5Config, UMT5EncoderModel

    def save(folder: Path, seed: int = 0, **changes: Any) -> Path:
        torch.manual_seed(seed)
        shape = {"base_dim": 8, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1} | changes
        AutoencoderKLWan(**shape).save_pretrained(folder / "vae")
        AutoTokenizer.from_pretrained(tiny_t5(folder / "t5")).save_pretrained(folder / "tokenizer")
        shutil.rmtree(folder / "t5")
        config = UMT5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
        UMT5EncoderModel(config).save_pretrained(folder / "text_encoder")
        return folder

    return save


@pytest.fixture
def wandb_records() -> Callable[[Path], list[Any]]:
    """wandb_records(folder): the records of the one offline run below a folder.

    Its file is 7 bytes and then LevelDB's log: blocks of 32 KiB, pieces with heads of 7 bytes.
    """
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    def read(folder: Path) -> list[Any]:
        wandb.teardown()  # finish() leaves the last block to W&B's own process, which writes it when it ends
        (file,) = folder.glob("wandb/offline-run-*/*.wandb")
        data, position, message, found = file.read_bytes(), 7, b"", []
        assert data[:4] == b":W&B"
        while position + 7 <= len(data):
            left_in_block = 32768 - position % 32768
            if left_in_block < 7:
                position += left_in_block
                continue
            size, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
            message += data[position + 7 : position + 7 + size]
            position += 7 + size
            if kind in (1, 4):  # whole, or its last piece
                found.append(Record.FromString(message))
                message = b""
        return found

    return read


@pytest.fixture
def wandb_history(wandb_records: Callable[[Path], list[Any]]) -> Callable[[Path], list[dict[str, Any]]]:
    """wandb_history(folder): what was logged to the one offline run below a folder, call by call."""
    return lambda folder: [
        {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in wandb_records(folder)
        if record.WhichOneof("record_type") == "history"
    ]
