"""What is missing or altered in an artifact is noticed, named and rebuilt, never used."""

import shutil

import pytest

from tests.journey.tiny_run import KINDS, STAGES, Runner, differing


@pytest.fixture
def copied(finished, tmp_path):
    """A finished run of one's own."""
    shutil.copytree(finished.folder, tmp_path / "copy")
    return Runner(tmp_path / "copy", tmp_path / "copy/tiny.yaml")


def objects(store, stage):
    """The objects of a stage's artifact, but for its manifest and the records, and the files of its items."""
    files = sorted(file for file in (store / "artifacts" / stage).rglob("*") if file.is_file())
    files = [file for file in files if file.name not in ("manifest.json", "records.parquet", "timings.js")]
    items = [file for kind in KINDS[stage] for file in sorted((store / "items" / kind).rglob("*")) if file.is_file()]
    return files + [file for file in items if file.suffix != ".json"]


def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    file.write_bytes(data)


def test_one_altered_object_of_every_stage_is_named_and_rebuilt(finished, copied):
    store = copied.folder / "bricks-store"
    altered = [objects(store, stage)[-1 if KINDS[stage] else 1] for stage in STAGES]
    assert sum("items" in file.parts for file in altered) == 3
    for file in altered:
        flip(file)
    ended = copied.bricks("run", "tiny.yaml")
    for file in altered:
        assert str(file.relative_to(store)) in ended.err
    assert differing(store, finished.folder / "bricks-store") == []
    assert "to run" not in copied.bricks("plan", "tiny.yaml").out


def test_a_missing_object_and_a_missing_table_are_named_and_rebuilt(finished, copied):
    store = copied.folder / "bricks-store"
    missing = [
        next(file for file in objects(store, "clip") if file.suffix == suffix) for suffix in (".mp4", ".parquet")
    ]
    for file in missing:
        file.unlink()
    ended = copied.bricks("run", "tiny.yaml", "--until", "clip")
    for file in missing:
        assert f"{file.relative_to(store)} is missing" in ended.err
    assert differing(store, finished.folder / "bricks-store") == []


@pytest.mark.parametrize("text", ["", "{", "[1, 2]"])
def test_a_corrupt_manifest_is_named_and_rebuilt(finished, copied, text):
    store = copied.folder / "bricks-store"
    manifest = next((store / "artifacts/score").rglob("manifest.json"))
    manifest.write_text(text, encoding="utf-8")
    shown = copied.bricks("show", "tiny/score", code=65)
    assert "manifest.json is no manifest" in shown.err
    ended = copied.bricks("run", "tiny.yaml")
    assert "manifest.json is no manifest" in ended.err
    assert differing(store, finished.folder / "bricks-store") == []
