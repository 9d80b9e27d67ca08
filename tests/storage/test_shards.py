"""Packs of latents, written and read."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bricks_core.errors import AlteredObject, DataError, TryLater
from bricks_core.spec.latents import Latent
from bricks_core.storage.shards import HEADING, Packs, PackWriter, one_encoder
from bricks_core.storage.tables import read_rows, write_rows


@dataclass
class Written:
    """A pack with what was put into it."""

    path: Path
    rows: list[Latent]
    latents: list[np.ndarray]
    texts: list[np.ndarray]

    def packs(self, **encoders: str) -> Packs:
        return Packs(lambda key: self.path.parent / key, **encoders)


def row(index: int, num_frames: int, latents_offset: int, text_offset: int, num_tokens: int, **changes) -> Latent:
    facts = {
        "id": f"{index:016x}",
        "clip_id": f"{index:016x}",
        "video_id": "0" * 16,
        "kind": "video" if num_frames > 1 else "image",
        "split": "train",
        "resolution": "24x40",
        "aspect": "24x40",
        "height_px": 24,
        "width_px": 40,
        "num_frames": num_frames,
        "time_stride": 1,
        "latent_channels": 4,
        "latent_height": 3,
        "latent_width": 5,
        "fps": 12.5,
        "item": f"{index:032x}",
        "text_item": "0" * 32,
        "pack": "one.bin",
        "latents_offset_bytes": latents_offset,
        "text_pack": "one.bin",
        "text_offset_bytes": text_offset,
        "num_tokens": num_tokens,
        "empty_text_pack": "one.bin",
        "empty_text_offset_bytes": text_offset,
        "num_empty_tokens": num_tokens,
        "text_width": 16,
        "caption": "Bricks fall.",
        "caption_by": "measured",
        "codec": "patch-dct:1",
        "text_encoder": "hashed-words:1:16:200",
    }
    return Latent(**{**facts, **changes})


def write(path: Path, shapes: list[tuple[int, int]], seed: int = 0, chunk: int = 4) -> Written:
    """A pack of clips of (num_frames, num_tokens) each, with random numbers."""
    rng = np.random.default_rng(seed)
    written = Written(path, [], [], [])
    with PackWriter(path) as pack:
        for index, (num_frames, num_tokens) in enumerate(shapes):
            latents = rng.standard_normal((num_frames, 4, 3, 5)).astype(np.float32)
            text = rng.standard_normal((num_tokens, 16)).astype(np.float32)
            chunks = (latents[at : at + chunk] for at in range(0, num_frames, chunk))
            where = pack.add_latents(chunks, num_frames, 3, 5)
            written.rows.append(row(index, num_frames, where, pack.add_text(text), num_tokens))
            written.latents.append(latents.astype(np.float16))
            written.texts.append(text.astype(np.float16))
    return written


@pytest.fixture
def pack(tmp_path: Path) -> Written:
    return write(tmp_path / "one.bin", [(17, 9), (1, 1), (40, 200), (20, 31)])


def test_every_window_and_every_text_comes_back_as_float16(tmp_path_factory):
    written = write(tmp_path_factory.mktemp("packs") / "one.bin", [(17, 9), (1, 1), (40, 200)])
    packs = written.packs()

    @settings(deadline=None, max_examples=60)
    @given(st.data())
    def any_window(data):
        index = data.draw(st.integers(0, 2))
        each = written.rows[index]
        interval = data.draw(st.integers(1, 5))
        num_frames = data.draw(st.integers(1, (each.num_frames - 1) // interval + 1))
        begin = data.draw(st.integers(0, each.num_frames - 1 - (num_frames - 1) * interval))
        window = packs.window(each, begin, num_frames, interval)
        expected = written.latents[index][[begin + interval * i for i in range(num_frames)]]
        assert window.dtype == np.float16
        np.testing.assert_array_equal(window, expected)
        np.testing.assert_array_equal(packs.text(each), written.texts[index])

    any_window()


def test_a_window_is_a_copy_that_outlives_its_pack(pack):
    packs = pack.packs()
    window = packs.window(pack.rows[0], 3, 4)
    packs.close()
    pack.path.unlink()
    np.testing.assert_array_equal(window, pack.latents[0][3:7])
    window[:] = 0


def test_a_window_goes_straight_into_a_batch(pack):
    batch = np.zeros((2, 8, 4, 3, 5), np.float16)
    packs = pack.packs()
    packs.window(pack.rows[0], 1, 8, 2, out=batch[1])
    np.testing.assert_array_equal(batch[1], pack.latents[0][1:16:2])
    assert not batch[0].any()
    with pytest.raises(DataError, match=r"a piece of \(3, 4, 3, 5\) does not fit a place of \(8, 4, 3, 5\)"):
        packs.window(pack.rows[0], 0, 3, out=batch[0])


@pytest.fixture
def joined(tmp_path: Path) -> tuple[Packs, Latent, np.ndarray]:
    """A clip of 17 frames by a codec that joins four after the first: 5 latents of 16 channels."""
    latents = np.random.default_rng(0).standard_normal((5, 16, 3, 5)).astype(np.float16)
    with PackWriter(tmp_path / "one.bin") as pack:
        where = pack.add_latents([latents[:2], latents[2:]], 5, 3, 5, 16)
        text, empty = pack.add_text(np.ones((7, 16))), pack.add_text(np.full((2, 16), 0.5))
        with pytest.raises(DataError, match=r"\(4, 3, 5\) do not fit a clip of \(16, 3, 5\)"):
            pack.add_latents([latents[:, :4]], 5, 3, 5, 16)
    changes = {"time_stride": 4, "latent_channels": 16, "empty_text_offset_bytes": empty, "num_empty_tokens": 2}
    return Packs(lambda key: tmp_path / key), row(0, 17, where, text, 7, **changes), latents


@pytest.mark.parametrize(("num_frames", "num_latents"), [(1, 1), (5, 2), (13, 4), (17, 5)])
def test_where_latents_join_frames_a_window_is_a_clip_s_beginning(joined, num_frames, num_latents):
    packs, each, latents = joined
    assert each.num_latents == 5
    np.testing.assert_array_equal(packs.window(each, 0, num_frames), latents[:num_latents])


@pytest.mark.parametrize(("begin", "num_frames", "interval"), [(4, 5, 1), (0, 4, 1), (0, 5, 2), (0, 16, 1)])
def test_where_latents_join_frames_any_other_window_is_refused(joined, begin, num_frames, interval):
    packs, each, _ = joined
    with pytest.raises(DataError, match=r"a window of them begins at frame 0 and has 1, 5, 9 \.\.\. frames"):
        packs.window(each, begin, num_frames, interval)


def test_features_of_captions_lie_in_packs_of_their_own(tmp_path):
    pieces = {
        "latents.bin": np.ones((1, 4, 3, 5)),
        "text.bin": np.full((2, 16), 2.0),
        "empty.bin": np.full((1, 16), 3.0),
    }
    for name, numbers in pieces.items():
        with PackWriter(tmp_path / name) as pack:
            if name == "latents.bin":
                pack.add_latents([numbers], 1, 3, 5)
            else:
                pack.add_text(numbers)
    where = {"pack": "latents.bin", "text_pack": "text.bin", "empty_text_pack": "empty.bin", "num_empty_tokens": 1}
    each, packs = row(0, 1, 64, 64, 2, **where), Packs(lambda key: tmp_path / key)
    np.testing.assert_array_equal(packs.window(each, 0, 1), pieces["latents.bin"])
    np.testing.assert_array_equal(packs.text(each), pieces["text.bin"])
    np.testing.assert_array_equal(packs.empty_text(each), pieces["empty.bin"])


def test_the_empty_caption_is_in_a_pack_too(joined):
    packs, each, _ = joined
    np.testing.assert_array_equal(packs.empty_text(each), np.full((2, 16), 0.5, np.float16))
    np.testing.assert_array_equal(packs.text(each), np.ones((7, 16), np.float16))


@pytest.mark.parametrize(
    ("begin", "num_frames", "interval"), [(-1, 2, 1), (0, 18, 1), (15, 3, 1), (1, 9, 2), (0, 0, 1)]
)
def test_a_window_outside_its_clip_is_refused(pack, begin, num_frames, interval):
    with pytest.raises(DataError, match=r"has 17 frames: .* not inside it"):
        pack.packs().window(pack.rows[0], begin, num_frames, interval)


def test_the_same_pieces_make_the_same_bytes_whatever_the_chunks(tmp_path):
    shapes = [(17, 9), (1, 1), (40, 20)]
    one = write(tmp_path / "one.bin", shapes, chunk=1)
    two = write(tmp_path / "two.bin", shapes, chunk=16)
    assert one.path.read_bytes() == two.path.read_bytes()
    assert [each.latents_offset_bytes for each in one.rows] == [each.latents_offset_bytes for each in two.rows]


def test_the_format_is_the_one_its_heading_promises(tmp_path):
    # Pinned: a pack of another layout must carry another heading, or old packs would be misread.
    with PackWriter(tmp_path / "one.bin") as pack:
        pack.add_latents([np.arange(2 * 4 * 3 * 5).reshape(2, 4, 3, 5)], 2, 3, 5)
        pack.add_text(np.arange(3 * 16).reshape(3, 16) / 7)
    assert (
        hashlib.sha256((tmp_path / "one.bin").read_bytes()).hexdigest()
        == "8ff774498d30a4610e6c88ce328b31cca7f273496e06d814244c9cef0e4561c5"
    )


def test_every_piece_begins_at_a_multiple_of_64_bytes_and_frames_follow_each_other(pack):
    data = pack.path.read_bytes()
    assert data[:64] == HEADING
    for each, latents, text in zip(pack.rows, pack.latents, pack.texts, strict=True):
        assert each.latents_offset_bytes % 64 == 0
        assert each.text_offset_bytes % 64 == 0
        assert data[each.latents_offset_bytes :].startswith(latents.astype("<f2").tobytes())
        assert data[each.text_offset_bytes :].startswith(text.astype("<f2").tobytes())


def test_a_caption_that_comes_twice_is_stored_once(tmp_path):
    with PackWriter(tmp_path / "one.bin") as pack:
        text = np.ones((3, 16), np.float32)
        first = pack.add_text(text)
        other = pack.add_text(np.ones((2, 24), np.float32))  # as many numbers, another shape
        assert pack.add_text(text.copy()) == first != other
        pack.add_latents([np.zeros((2, 4, 3, 5))], 2, 3, 5)
        size = pack.size_bytes
        assert pack.add_text(text) == first
        assert pack.size_bytes == size


def test_the_index_survives_parquet(pack, tmp_path):
    table = tmp_path / "latents.parquet"
    write_rows(table, Latent, pack.rows)
    packs = pack.packs()
    for each, latents in zip(read_rows(table, Latent), pack.latents, strict=True):
        np.testing.assert_array_equal(packs.window(each, 0, each.num_frames), latents)


def test_latents_that_do_not_fit_their_clip_are_not_written(tmp_path):
    with PackWriter(tmp_path / "one.bin") as pack:
        with pytest.raises(DataError, match="5 frames came as latents of 3 frames"):
            pack.add_latents([np.zeros((3, 4, 3, 5))], 5, 3, 5)
        with pytest.raises(DataError, match=r"\(4, 3, 6\) do not fit a clip of \(4, 3, 5\)"):
            pack.add_latents([np.zeros((1, 4, 3, 6))], 1, 3, 5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 70000.0])
def test_numbers_that_float16_cannot_hold_are_not_written(tmp_path, bad):
    latents, text = np.zeros((1, 4, 3, 5)), np.zeros((2, 16))
    latents[0, 1, 2, 3] = text[1, 2] = bad
    with PackWriter(tmp_path / "one.bin") as pack:
        with pytest.raises(DataError, match=r"one\.bin: a number is not finite in float16"):
            pack.add_latents([latents], 1, 3, 5)
        with pytest.raises(DataError, match="not finite in float16"):
            pack.add_text(text)


@pytest.mark.parametrize("kept", [0, 10, 64, 5000])
def test_a_truncated_pack_is_named(pack, kept):
    pack.path.write_bytes(pack.path.read_bytes()[:kept])
    packs = pack.packs()
    with pytest.raises(AlteredObject, match=r"^one\.bin is ") as error:
        packs.window(pack.rows[2], 30, 10)
    assert error.value.key == "one.bin"


def test_a_pack_that_is_not_there_is_named(pack):
    pack.path.unlink()
    with pytest.raises(AlteredObject, match=r"one\.bin cannot be read \(No such file"):
        pack.packs().text(pack.rows[0])


def test_another_file_in_place_of_a_pack_is_named(pack):
    pack.path.write_bytes(b"<html>" * 10000)
    with pytest.raises(AlteredObject, match=r"one\.bin is no pack of latents"):
        pack.packs().window(pack.rows[0], 0, 1)


@pytest.mark.parametrize(
    "changes", [{"latents_offset_bytes": 0}, {"latents_offset_bytes": 65}, {"latent_height": 4000}]
)
def test_an_index_that_is_not_the_packs_is_noticed(pack, changes):
    with pytest.raises(AlteredObject, match=r"one\.bin is damaged or not the pack of its index"):
        pack.packs().window(pack.rows[0].model_copy(update=changes), 0, 2)


def test_latents_of_another_encoder_are_refused_with_both_names(pack):
    good = pack.packs(codec="patch-dct:1", text_encoder="hashed-words:1:16:200")
    good.window(pack.rows[0], 0, 1)
    with pytest.raises(DataError, match="made by patch-dct:1, here sd-vae:x is expected"):
        pack.packs(codec="sd-vae:x").window(pack.rows[0], 0, 1)
    with pytest.raises(DataError, match="caption features of 0000000000000000 were made by hashed-words"):
        pack.packs(text_encoder="t5:x").text(pack.rows[0])


def test_rows_of_two_encoders_are_not_one_data_set(pack):
    assert one_encoder(pack.rows) == ("patch-dct:1", "hashed-words:1:16:200")
    mixed = [*pack.rows, pack.rows[0].model_copy(update={"codec": "sd-vae:x"})]
    with pytest.raises(DataError, match=r"Latents of 2 different encoders .*\(patch-dct:1 and .*; sd-vae:x and "):
        one_encoder(mixed)
    with pytest.raises(DataError, match="Latents of 0 different encoders"):
        one_encoder([])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="This system has no /dev/full, a disk that is always full.")
def test_a_full_disk_is_said_in_a_sentence():
    pack = PackWriter(Path("/dev/full"))
    with pytest.raises(TryLater, match="the disk is full"):
        pack.add_latents([np.ones((10000, 4, 3, 5))], 10000, 3, 5)
    with pytest.raises(TryLater, match="the disk is full"):  # what is still buffered
        pack.close()


def test_reading_packs_takes_no_torch():
    code = "import sys, bricks_core.storage.shards; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
