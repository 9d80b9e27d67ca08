"""Captions to features: what the transformer reads through cross-attention.

L is a caption's own number of rows, its end row included: features are stored and trained on at their real length.

Three encoders behind one interface:
- `T5`: the encoder half of T5 (arXiv:1910.10683), as Open-Sora 1.1 uses it: at most 200 tokens, 4096 wide in size XXL;
- `UMT5`: that of umT5 (arXiv:2304.09151), as Wan uses it: many languages, at most 512 tokens, as wide in size XXL;
- `HashedWords`: built in, no weights: a hashed vector per word, of the same width.
"""

from __future__ import annotations

import functools
import hashlib
import html
import re
import unicodedata
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch

from bricks_core.errors import DataError
from bricks_core.models.pretrained import DTYPES, explained, frozen, name_of, part_of, weights_digest
from bricks_core.spec.latents import TextSpec


class TextEncoder(ABC):
    """Captions -> features. `id` says what made them; features of one id are never mixed with those of another."""

    id: str
    width: int

    @abstractmethod
    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """Captions -> for each its float32 (L, width), 1 <= L <= max_tokens; a longer caption loses its end."""


def load_text_encoder(spec: TextSpec, device: torch.device | str = "cpu") -> TextEncoder:
    """The encoder that the run file asks for. Raises SpecError or ServiceUnavailable when its weights cannot be had."""
    if spec.kind == "t5":
        return T5(spec.model, spec.revision, spec.dtype, spec.max_tokens, device)
    if spec.kind == "umt5":
        return UMT5(spec.model, spec.revision, spec.dtype, spec.max_tokens, device)
    return HashedWords(spec.max_tokens)


class T5(TextEncoder):
    """transformers' T5EncoderModel and its tokenizer, from their own folder or hub id, or a whole pipeline's.

    Captions are taken as they are: Open-Sora cleans prompts, not training captions (stdit2.md section 10).
    """

    kind = "t5"

    def __init__(
        self,
        model: str,
        revision: str = "",
        dtype: str = "float32",
        max_tokens: int = 200,
        device: torch.device | str = "cpu",
        batch_size: int = 8,
    ):
        self.device, self.max_tokens, self.batch_size = torch.device(device), max_tokens, batch_size
        self.tokenizer: Any
        with explained(f"The text encoder {self.kind}", model):
            self.tokenizer, network = self._load(model, revision or "main", DTYPES[dtype])
        self.width = int(network.config.d_model)
        self.id = f"{self.kind}:{name_of(model)}:{weights_digest(network)}:{dtype}:{max_tokens}"
        self.network = frozen(network, self.device)

    @staticmethod
    def _load(model: str, revision: str, dtype: torch.dtype) -> tuple[Any, Any]:
        from transformers import AutoTokenizer, T5EncoderModel  # seconds that the built-in encoder does without

        tokenizer = AutoTokenizer.from_pretrained(model, revision=revision, subfolder=part_of(model, "tokenizer"))
        place = part_of(model, "text_encoder")
        return tokenizer, T5EncoderModel.from_pretrained(model, revision=revision, subfolder=place, dtype=dtype)

    @torch.no_grad()
    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """See TextEncoder. Raises DataError when the type overflows, as float16 may."""
        features: list[np.ndarray] = []
        for start in range(0, len(texts), self.batch_size):
            tokens = self.tokenizer(
                texts[start : start + self.batch_size],
                max_length=self.max_tokens,
                truncation=True,
                padding="longest",
                add_special_tokens=True,
                return_tensors="pt",
            ).to(self.device)
            last = self.network(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
            lengths = tokens.attention_mask.sum(dim=1).tolist()
            features += [row[:length].float().cpu().numpy() for row, length in zip(last, lengths, strict=True)]
        for text, rows in zip(texts, features, strict=True):
            if not np.isfinite(rows).all():
                raise DataError(
                    f"{self.id} overflows on the caption {text[:60]!r}: set latents.text.dtype to bfloat16 or float32."
                )
        return features


class UMT5(T5):
    """transformers' UMT5EncoderModel and its tokenizer, from their own folder or a whole pipeline's.

    Captions and prompts alike are mended and their white space is made single blanks, as Wan was trained.
    """

    kind = "umt5"

    @staticmethod
    def _load(model: str, revision: str, dtype: torch.dtype) -> tuple[Any, Any]:
        from transformers import AutoTokenizer, UMT5EncoderModel

        tokenizer = AutoTokenizer.from_pretrained(model, revision=revision, subfolder=part_of(model, "tokenizer"))
        place = part_of(model, "text_encoder")
        network = UMT5EncoderModel.from_pretrained(model, revision=revision, subfolder=place, dtype=dtype)
        # Releases of transformers that go by the published config leave the encoder's words at 0, and say nothing
        # (huggingface/transformers pull request 43880).
        network.encoder.set_input_embeddings(network.shared)
        return tokenizer, network

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """See TextEncoder. Raises DataError when the type overflows, as float16 may."""
        return super().encode([_mended(text) for text in texts])


def _mended(text: str) -> str:
    """Broken Unicode and HTML's escapes made letters, single blanks: "a&amp;amp;b  c" -> "a&b c"."""
    import ftfy

    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


# How much of a word's row is the word itself, its pieces, and each of the words before and after it; and how much of
# the end row says that it is one. With the neighbours at 0.3 "a red car on blue ground" and "a blue car on red ground"
# differ, though they have the same words and cross-attention has no order; and a word still looks like itself
# elsewhere (cosine 0.85 and more).
_WORD, _PIECES, _NEIGHBOUR, _END_MARK = 0.5, 1.0, 0.3, 0.5
_PIECE_LENGTHS = (3, 4, 5)
# Root mean square of every row. An optimizer step moves each weight of the network's first layer by about the learning
# rate, so what it says of a word by up to rate x width x size: with smaller rows, words keep their meaning at higher
# rates. After some 340 steps of the quickstart's pictures at a rate of 3e-3, other clips' captions made the loss at
# timestep 850 29 % higher with rows of size 1 and 37 % with a fifth; at 1e-3, after 440, 35 % and 43 %.
_SIZE = 0.2
_END = "\N{END OF TEXT}"
# Scripts written without spaces go letter by letter: Han, kana, Thai, Lao, Khmer, Burmese.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_WORDS = re.compile(rf"[{_UNSPACED}]|(?:(?![{_UNSPACED}])\w)+(?:'\w+)*")


class HashedWords(TextEncoder):
    """A row for each word, and an end row; the same on every machine, nothing to load.

    A word's vector is the sum of hashed sign vectors of itself and of its letter groups (as in fastText,
    arXiv:1607.04606), so "walk" and "walking" are near and "walk" and "table" are not; each row has also a share of the
    word before and the word after, turned so that they are told from the word itself. The end row is the mean of the
    words: the caption in one vector, as an end-of-sentence token learns to be. Every row has a root mean square of 0.2.
    """

    def __init__(self, max_tokens: int = 200, width: int = 4096):
        if width % 8:
            raise ValueError(f"HashedWords draws signs in bytes: a width of {width} is no multiple of 8.")
        self.max_tokens, self.width = max_tokens, width
        self.id = f"hashed-words:2:{width}:{max_tokens}"

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """See TextEncoder."""
        return [self._rows(words_of(text)[: self.max_tokens - 1]) for text in texts]

    def _rows(self, words: list[str]) -> np.ndarray:
        end = _signs(_END, self.width).astype(np.float32)
        if not words:
            return _SIZE * end[None]
        own = np.stack([_word_vector(word, self.width) for word in words])
        rows = own.copy()
        # A roll is a rotation that costs nothing; the two directions differ, and neither is the identity.
        rows[1:] += _NEIGHBOUR * np.roll(own[:-1], self.width // 3, axis=1)
        rows[:-1] += _NEIGHBOUR * np.roll(own[1:], -(self.width // 3), axis=1)
        return np.stack([_SIZE * _unit(row) for row in [*rows, _unit(own.mean(axis=0)) + _END_MARK * end]])


def words_of(text: str) -> list[str]:
    """The words of a caption, lower case, without punctuation: "A red-brick car!" -> a, red, brick, car."""
    return _WORDS.findall(unicodedata.normalize("NFKC", text).casefold().replace("\u2019", "'"))


@functools.lru_cache(maxsize=4096)
def _word_vector(word: str, width: int) -> np.ndarray:
    """float32 (width,) with unit mean square."""
    marked = f"<{word}>"
    pieces = [marked[at : at + n] for n in _PIECE_LENGTHS for at in range(len(marked) - n + 1)]
    vector = _WORD * _unit(_signs(word, width).astype(np.float32))
    if len(word) > 1 and pieces:
        # Whole numbers until here: the sum is exact in any order.
        together = np.sum([_signs(f"piece {each}", width) for each in pieces], axis=0)
        vector = vector + _PIECES * _unit(together.astype(np.float32))
    return _unit(vector)


def _signs(name: str, width: int) -> np.ndarray:
    """int32 (width,) of -1 and 1, drawn by SHAKE-256 (FIPS 202) from the name: Python's hash() differs every run."""
    bits = np.unpackbits(np.frombuffer(hashlib.shake_256(name.encode()).digest(width // 8), np.uint8))
    return bits.astype(np.int32) * 2 - 1


def _unit(vector: np.ndarray) -> np.ndarray:
    """The vector at unit mean square, as float32."""
    size = np.sqrt(np.mean(np.square(vector, dtype=np.float64)))
    return (vector / np.float32(size)).astype(np.float32)
