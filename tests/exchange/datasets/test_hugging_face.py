"""A folder that the real datasets library loads, with a card that the hub's own classes read."""

import hashlib
import shlex
import subprocess
import sys

import pytest
from huggingface_hub import DatasetCard

from bricks_core.exchange.datasets.data_card import Contents, card_head
from bricks_core.exchange.datasets.dataset import Dataset


@pytest.fixture
def load(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    def loaded(folder, **settings):
        found = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"), **settings)
        column = "image" if "image" in next(iter(found.values())).features else "video"
        kind = datasets.Image if column == "image" else datasets.Video
        return found.cast_column(column, kind(decode=False))

    return loaded


def test_the_screens_command_loads_a_folder_of_any_name(export, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    export(tmp_path / 'it\'s "mine", ünd 2', "hugging-face")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "load_dataset" in line]
    python, *arguments = shlex.split(line)
    assert python == "python"
    ended = subprocess.run([sys.executable, *arguments], capture_output=True, encoding="utf-8", check=True)
    assert "DatasetDict" in ended.stdout


def test_the_library_loads_clips_and_images_with_both_sides_of_the_split(export, store, load, tmp_path):
    out = tmp_path / "out"
    export(out, "hugging-face")
    samples = {sample.id: sample for sample in Dataset.of(store, "films").samples()}
    found = {}
    for column, settings in (("video", {}), ("image", {"data_dir": "images"})):
        loaded = load(out, **settings)
        assert set(loaded) == {"train", "validation"}
        for split, rows in loaded.items():
            for row in rows:
                found[row["id"]] = row
                with open(row[column]["path"], "rb") as file:
                    assert hashlib.sha256(file.read()).hexdigest() == samples[row["id"]].sha256
                assert samples[row["id"]].split == {"train": "train", "validation": "held_out"}[split]
    assert set(found) == set(samples)
    for each, sample in samples.items():
        row = found[each]
        assert (row["text"], row["licence"], row["credit"]) == (sample.text, sample.licence, sample.credit)
        assert row["consent"] == sample.consent
        assert (row["num_frames"], row["height"], row["width"]) == (sample.num_frames, 96, 160)
        assert row["fps"] == (12.0 if sample.kind == "video" else None)


def test_the_card_says_counts_licences_settings_and_what_was_dropped(export, tmp_path):
    export(tmp_path / "out", "hugging-face")
    card = DatasetCard.load(tmp_path / "out" / "README.md")
    assert card.data.task_categories == ["text-to-video"]
    assert card.data.size_categories == ["n<1K"]
    assert (card.data.license, card.data.license_name) == ("other", "several")
    text = card.text
    assert "5 clips (" in text
    assert "**Several licences hold here**" in text
    assert '| CC-BY-4.0 | Ann "Brick" Maker, Oslo | signed, 2026 | 8 |' in text
    assert "| unknown | - | unknown | 2 |" in text
    assert "Whether those who made 2 of them, or are seen in them, agree is **not known**" in text
    assert "The licence of 2 of them is **not known**" in text
    assert "preset: ultrafast" in text
    assert "| clip | dropped: " in text
    assert str(tmp_path) not in text


@pytest.mark.parametrize(
    ("licences", "head"),
    [
        (["CC-BY-4.0"], {"license": "cc-by-4.0"}),
        (["unknown"], {"license": "unknown"}),
        (["House rules"], {"license": "other", "license_name": "House rules", "license_link": "README.md"}),
        (
            ["CC0-1.0", "unknown"],
            {"license": "other", "license_name": "several", "license_link": "README.md"},
        ),
    ],
)
def test_a_licence_is_what_was_said_and_never_a_guess(licences, head):
    counted = Contents()
    for licence in licences:
        counted.num["video", "train"] += 1
        counted.rights[licence, "", "unknown"] += 1
    assert {key: value for key, value in card_head("name", counted).items() if key.startswith("license")} == head


def test_a_dataset_of_images_alone_is_one_of_images():
    counted = Contents()
    counted.num["image", "train"] = 3
    counted.rights["CC0-1.0", "", "unknown"] = 3
    head = card_head("name", counted)
    assert head["task_categories"] == ["text-to-image"]
    assert head["configs"][0]["data_files"] == [{"split": "train", "path": "images/train/**"}]
