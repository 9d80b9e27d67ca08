"""Tensors in files, read and written one by one."""

from __future__ import annotations

import json
import math
import os
import pickle
import zipfile

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from bricks_core.errors import DataError
from bricks_core.models.tensor_files import (
    DTYPES,
    Heading,
    file_kind,
    open_tensors,
    safetensors_bytes,
    write_safetensors,
)

NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(lambda n: n != "__metadata__")
SHAPES = st.lists(st.integers(0, 5), max_size=4).map(tuple)


def made(heading: Heading, seed: int) -> torch.Tensor:
    """A tensor of any type with any bits: also infinities, and what is no number."""
    generator = torch.Generator().manual_seed(seed)
    if heading.dtype == torch.bool:
        return torch.randint(0, 2, heading.shape, generator=generator, dtype=torch.bool)
    raw = torch.randint(0, 256, (heading.size_bytes,), generator=generator, dtype=torch.uint8)
    return raw.view(heading.dtype).reshape(heading.shape)


def bits(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).tolist())


@st.composite
def states(draw):
    headings = draw(st.dictionaries(NAMES, st.builds(Heading, st.sampled_from(list(DTYPES.values())), SHAPES)))
    return {name: made(heading, number) for number, (name, heading) in enumerate(headings.items())}


def headings_of(state) -> dict[str, Heading]:
    return {name: Heading(tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items()}


@settings(deadline=None, max_examples=60)
@given(states())
def test_a_file_is_written_as_safetensors_itself_writes_it_and_read_back_bit_by_bit(tmp_path_factory, state):
    file = tmp_path_factory.mktemp("any") / "any.safetensors"
    write_safetensors(file, headings_of(state), state.__getitem__)
    assert file.read_bytes() == save(state, {"format": "pt"})
    assert file.stat().st_size == safetensors_bytes(headings_of(state))
    again = open_tensors(file)
    assert again.headings == headings_of(state)
    assert again.numbers == sum(tensor.numel() for tensor in state.values())
    assert {name: bits(again.read(name)) for name in again.headings} == {name: bits(t) for name, t in state.items()}


def test_tensors_are_asked_for_one_by_one_and_cast_as_they_are_written(tmp_path):
    asked = []
    state = {"b": torch.arange(6.0).reshape(2, 3).T, "a": torch.ones(2)}

    def read(name):
        asked.append(name)
        return state[name]

    headings = {"b": Heading(torch.bfloat16, (3, 2)), "a": Heading(torch.float64, (2,))}
    write_safetensors(tmp_path / "cast", headings, read, asked.append)
    assert asked == ["a", "a", "b", "b"]
    again = open_tensors(tmp_path / "cast")
    assert torch.equal(again.read("b"), state["b"].bfloat16())
    assert torch.equal(again.read("a"), state["a"].double())


SMALL = {"first": torch.arange(12.0), "middle": torch.arange(8.0).reshape(2, 4), "third": torch.ones(5)}


def test_a_file_cut_anywhere_is_refused_and_the_tensor_it_is_cut_in_is_named(tmp_path):
    file, whole = tmp_path / "cut.safetensors", save(SMALL)
    head = 8 + int.from_bytes(whole[:8], "little")
    begins = [head, head + 48, head + 80]  # 12, 8 and 5 numbers of four bytes
    for cut in range(len(whole)):
        file.write_bytes(whole[:cut])
        with pytest.raises(DataError) as raised:
            open_tensors(file)
        told = str(raised.value)
        assert str(file) in told
        if cut >= head:
            number = sum(cut >= begin for begin in begins)
            where = f"within {list(SMALL)[number - 1]}, tensor {number} of 3"
            assert f"it ends at byte {cut}, {where}; {len(whole)} bytes are due" in told
        elif cut > 8:
            assert f"ends within its own heading, at byte {cut} of {head}" in told


def header(entries, data: bytes) -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(begin, end, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "is empty: it was not written to its end"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 3073157592\n",
            "pointer.* 3,073,157,592 bytes",
        ),
        (b"\n<!DOCTYPE html><html>Sign in</html>", "is a web page, not weights"),
        (b"no weights at all", r"is no safetensors file and none of torch's: it begins with b'no weigh'"),
        (header({"a": entry(0, 8)}, bytes(11)), "3 bytes follow its last tensor"),
        (
            header({"a": entry(0, 8), "b": entry(12, 20)}, bytes(20)),
            "puts b at byte 12 of the data, where byte 8 is due",
        ),
        (header({"a": entry(0, 8, (3,))}, bytes(8)), r"gives a 8 bytes, its shape \[3\] needs 12"),
        (header({"a": entry(0, 16, dtype="C64")}, bytes(16)), "holds tensors of type 'C64', which no network here has"),
        (header({"a": 1}, b""), "its heading is no list of tensors"),
        (header([], b"")[:8] + b"{]", "its heading is no list of tensors"),
        (b"\xff" * 4 + bytes(4) + b"{" + b" " * 20, "is no safetensors file"),
        (b"\xff\xff" + bytes(6) + b"{" + b" " * 20, "it ends within its own heading"),
    ],
)
def test_a_file_that_is_something_else_or_damaged_is_told_for_what_it_is(tmp_path, content, why):
    (tmp_path / "weights.safetensors").write_bytes(content)
    with pytest.raises(DataError, match=why):
        open_tensors(tmp_path / "weights.safetensors")


@pytest.mark.parametrize("length", [256 + 0x80, 256 + ord("<")])
def test_a_heading_whose_length_looks_like_the_beginning_of_something_else_is_a_heading(tmp_path, length):
    text = json.dumps({"a": entry(0, 8)}).encode().ljust(length)
    (tmp_path / "any.safetensors").write_bytes(length.to_bytes(8, "little") + text + bytes(8))
    assert torch.equal(open_tensors(tmp_path / "any.safetensors").read("a"), torch.zeros(2))


# -------------------------------------------------------------------------------------------------------------- shards


def sharded(folder, weight_map, **shards):
    for name, state in shards.items():
        save_file(state, folder / f"{name}.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
    return index


def test_shards_under_an_index_are_one(tmp_path):
    one, two = {"a": torch.ones(2)}, {"b": torch.zeros(3), "unlisted": torch.zeros(1)}
    index = sharded(tmp_path, {"b": "two.safetensors", "a": "one.safetensors"}, one=one, two=two)
    tensors = open_tensors(index)
    assert list(tensors.headings) == ["b", "a"]
    assert torch.equal(tensors.read("a"), one["a"])
    assert [file.name for file in tensors.files] == [index.name, "one.safetensors", "two.safetensors"]


@pytest.mark.parametrize(
    ("weight_map", "why"),
    [
        (
            {"a": "one.safetensors", "b": "gone.safetensors"},
            "names gone.safetensors for b, but that shard is not there",
        ),
        ({"a": "one.safetensors", "b": "one.safetensors"}, "says that b is in one.safetensors, but it is not"),
        ({"a": "../one.safetensors"}, "puts a in '../one.safetensors', which is no file beside it"),
        ({"a": 3}, "puts a in 3"),
        ({}, "names no tensor"),
        ([], "is no index of shards|names no tensor"),
    ],
)
def test_an_index_and_shards_that_do_not_belong_together_are_refused(tmp_path, weight_map, why):
    index = sharded(tmp_path, weight_map, one={"a": torch.ones(2)})
    with pytest.raises(DataError, match=why):
        open_tensors(index)


def test_an_index_that_is_none_is_refused(tmp_path):
    for content in ("", "<html>", "[1]", '{"weights": {}}'):
        (tmp_path / "model.safetensors.index.json").write_text(content, encoding="utf-8")
        with pytest.raises(DataError, match="is no index of shards"):
            open_tensors(tmp_path / "model.safetensors.index.json")


# ------------------------------------------------------------------------------------------------------------- pickles


class Harmful:
    """What a checkpoint must never be able to do."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_in_it_is_refused_and_nothing_of_it_is_run(tmp_path, zipped):
    state = {"weight": torch.ones(2), "other": Harmful(tmp_path / "was_run")}
    file = tmp_path / "model.pt"
    torch.save(state, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(DataError, match=r"wants \w+\.mkdir to be run while it is read.*Nothing of it was run"):
        open_tensors(file)
    assert not (tmp_path / "was_run").exists()
    torch.load(file, weights_only=False)  # the file is as harmful as it claims
    assert (tmp_path / "was_run").exists()


def test_a_pickle_that_is_not_of_torch_is_refused_and_not_run_either(tmp_path):
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        (tmp_path / "model.pt").write_bytes(pickle.dumps(Harmful(tmp_path / "was_run"), protocol))
        with pytest.raises(DataError, match=r"model\.pt"):
            open_tensors(tmp_path / "model.pt")
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_what_torch_saved_is_read_also_from_within_a_trainers_wrapper(tmp_path, zipped, wrapper):
    state = {"a": torch.randn(3, 4, dtype=torch.bfloat16), "b": torch.randn(4, 3).T}
    found = state if wrapper is None else {wrapper: state, "epoch": 3}
    torch.save(found, tmp_path / "model.pth", _use_new_zipfile_serialization=zipped)
    tensors = open_tensors(tmp_path / "model.pth")
    assert tensors.headings == headings_of(state)
    assert all(torch.equal(tensors.read(name), tensor) for name, tensor in state.items())


@pytest.mark.parametrize(
    "saved", [3, [torch.ones(1)], {}, {"a": 1}, {1: torch.ones(1)}, {"a": torch.ones(2).to_sparse()}]
)
def test_a_pickle_without_tensors_by_name_is_refused(tmp_path, saved):
    torch.save(saved, tmp_path / "model.pt")
    with pytest.raises(DataError, match=r"holds no tensors by name|not a plain tensor by name"):
        open_tensors(tmp_path / "model.pt")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_cut_anywhere_is_refused(tmp_path, zipped):
    file = tmp_path / "model.pt"
    torch.save({"a": torch.ones(100)}, file, _use_new_zipfile_serialization=zipped)
    whole = file.read_bytes()
    assert zipfile.is_zipfile(file) is zipped
    for cut in range(2, len(whole) - 1, max(1, len(whole) // 40)):
        file.write_bytes(whole[:cut])
        with pytest.raises(DataError, match=r"model\.pt"):
            open_tensors(file)


def test_a_file_that_changes_under_a_reader_is_told_of(tmp_path):
    file = tmp_path / "model.safetensors"
    save_file(SMALL, file)
    tensors = open_tensors(file)
    os.truncate(file, 100)
    with pytest.raises(DataError, match="third cannot be read"):
        tensors.read("third")


def test_what_a_file_is_is_seen_in_its_first_bytes_whatever_its_name(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "x.safetensors")
    save_file({"a": torch.ones(1)}, tmp_path / "x.pt")
    assert file_kind(tmp_path / "x.safetensors") == "pickle"
    assert file_kind(tmp_path / "x.pt") == "safetensors"
    assert torch.equal(open_tensors(tmp_path / "x.pt").read("a"), torch.ones(1))
    with pytest.raises(DataError, match=r"is called safetensors, but torch.save wrote it: rename it to x\.pt"):
        open_tensors(tmp_path / "x.safetensors")


def test_numbers_and_bytes_are_counted():
    heading = Heading(torch.bfloat16, (2, 3, 4))
    assert (heading.numbers, heading.size_bytes) == (math.prod((2, 3, 4)), 48)
