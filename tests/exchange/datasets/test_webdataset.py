"""Shards that the real webdataset library reads, of a limited size, the same bytes every time."""

import glob
import json

import pandas as pd
import webdataset

from bricks_core.exchange.datasets.dataset import Dataset


def read(pattern):
    shards = sorted(glob.glob(str(pattern)))
    return list(webdataset.WebDataset(shards, shardshuffle=False))


def test_the_library_reads_every_sample_with_its_caption_and_facts(export, store, tmp_path):
    export(tmp_path / "out", "webdataset")
    dataset = Dataset.of(store, "films")
    wanted = {sample.id: sample for sample in dataset.samples()}
    found = {}
    for split in ("train", "held_out"):
        for sample in read(tmp_path / "out" / f"{split}-*.tar"):
            found[sample["__key__"]] = sample
            facts = json.loads(sample["json"])
            assert facts["split"] == split == wanted[sample["__key__"]].split
    assert set(found) == set(wanted)
    for each, sample in found.items():
        suffix = "mp4" if wanted[each].kind == "video" else "jpg"
        assert sample["txt"].decode() == wanted[each].text
        with dataset.clip.local(wanted[each].key) as file:
            assert sample[suffix] == file.read_bytes()
        facts = json.loads(sample["json"])
        assert (facts["licence"], facts["num_frames"], facts["fps"]) == (
            wanted[each].licence,
            wanted[each].num_frames,
            12.0 if suffix == "mp4" else None,
        )


def test_a_shard_is_no_larger_than_asked_and_the_list_says_what_is_in_it(export, tmp_path):
    export(tmp_path / "out", "webdataset", shard_bytes=40_000)
    listed = json.loads((tmp_path / "out" / "shards.json").read_text(encoding="utf-8"))
    assert len(listed) > 2
    for shard in listed:
        file = tmp_path / "out" / shard["file"]
        assert file.stat().st_size == shard["size_bytes"]
        samples = read(file)
        assert len(samples) == shard["num_samples"]
        # A tar ends in blocks of zeros, filled up to 10 KiB; a sample alone may be larger than a shard.
        assert file.stat().st_size <= 40_000 + 10_240 or len(samples) == 1


def test_the_same_dataset_makes_the_same_bytes(export, tmp_path):
    for name in ("one", "two"):
        export(tmp_path / name, "webdataset", shard_bytes=40_000)
    shards = {file.name: file.read_bytes() for file in (tmp_path / "one").glob("*.tar")}
    assert {file.name: file.read_bytes() for file in (tmp_path / "two").glob("*.tar")} == shards


def test_finished_shards_are_not_written_again_and_broken_ones_are(export, tmp_path, capsys):
    out = tmp_path / "out"
    export(out, "webdataset", shard_bytes=40_000)
    before = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in sorted(out.glob("*.tar"))}
    broken = next(iter(before))
    broken.write_bytes(b"broken")
    capsys.readouterr()
    export(out, "webdataset", shard_bytes=40_000)
    assert f"1 shard written, {len(before) - 1} were there" in capsys.readouterr().out
    assert {file: file.read_bytes() for file in before} == {file: data for file, (_, data) in before.items()}
    assert [file for file, (time, _) in before.items() if file.stat().st_mtime_ns != time] == [broken]


def test_larger_shards_leave_no_smaller_ones_behind(export, tmp_path):
    out = tmp_path / "out"
    export(out, "webdataset", shard_bytes=40_000)
    export(out, "webdataset")
    assert sorted(file.name for file in out.glob("*.tar")) == ["held_out-000000.tar", "train-000000.tar"]
    ids = [sample["__key__"] for sample in read(out / "*.tar")]
    assert pd.Series(ids).is_unique
    assert len(ids) == 10
