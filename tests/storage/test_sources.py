"""A source is somebody else's folder or bucket: its files by name, the same of both."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import boto3
import pytest

from bricks_core.errors import SpecError
from bricks_core.storage.places import list_source
from bricks_core.storage.store import SourceFile

FILMS = {
    "b.mp4": b"second",
    "a/one.mp4": b"first",
    "a/deep/er/two.MOV": b"third",
    "a-b.mp4": b"",
    "ü ber/straße 1.mp4": b"fifth",
    ".DS_Store": b"hidden",
    "a/.hidden.mp4": b"hidden",
    ".git/film.mp4": b"hidden",
}
SEEN = sorted(name for name in FILMS if not name.startswith(".") and "/." not in name)

Maker = Callable[[dict[str, bytes]], str]


@pytest.fixture
def make_source(place: str) -> Maker:
    """make_source(files) -> the address of a source with these files in it."""

    def make(files: dict[str, bytes]) -> str:
        for name, content in files.items():
            if place.startswith("s3://"):
                bucket, _, prefix = place.removeprefix("s3://").partition("/")
                boto3.client("s3").put_object(Bucket=bucket, Key=f"{prefix}/{name}", Body=content)
            else:
                path = Path(place, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        return place

    return make


def by_name(uri: str) -> dict[str, SourceFile]:
    return {file.name: file for file in list_source(uri)}


def test_a_folder_is_listed_with_all_its_folders_sorted_and_without_what_is_hidden(make_source: Maker) -> None:
    source = make_source(FILMS)
    assert [file.name for file in list_source(source)] == SEEN
    assert [file.name for file in list_source(source + "/")] == SEEN
    for name, file in by_name(source).items():
        assert file.size_bytes == len(FILMS[name])
        assert file.sha256() == hashlib.sha256(FILMS[name]).hexdigest()
        with file.local() as path:
            assert path.read_bytes() == FILMS[name]
            assert path.suffix == Path(name).suffix


def test_a_source_may_be_one_file(make_source: Maker) -> None:
    source = make_source(FILMS)
    assert list(by_name(f"{source}/a/one.mp4")) == ["one.mp4"]
    assert list(by_name(f"{source}/a")) == ["deep/er/two.MOV", "one.mp4"]


def test_a_fingerprint_changes_with_the_content_and_with_nothing_else(make_source: Maker) -> None:
    source = make_source({"a.mp4": b"one", "b.mp4": b"one"})
    before = {name: file.fingerprint() for name, file in by_name(source).items()}
    make_source({"a.mp4": b"two", "b.mp4": b"one"})
    after = {name: file.fingerprint() for name, file in by_name(source).items()}
    assert before["a.mp4"] != after["a.mp4"]
    assert before["b.mp4"] == after["b.mp4"]


def test_a_source_that_is_not_there_is_named(make_source: Maker) -> None:
    with pytest.raises(SpecError, match="is not there"):
        list(list_source(make_source(FILMS) + "/nowhere"))


def test_a_folder_may_hold_anything(tmp_path: Path) -> None:
    (tmp_path / "film.mp4").write_bytes(b"film")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "film.mp4").symlink_to(tmp_path / "film.mp4")
    (tmp_path / "a" / "ring").symlink_to(tmp_path)
    (tmp_path / "gone.mp4").symlink_to(tmp_path / "missing")
    os.mkfifo(tmp_path / "pipe")
    Path(os.fsdecode(bytes(tmp_path) + b"/not-utf8-\xff.mp4")).write_bytes(b"odd")
    files = by_name(str(tmp_path))
    assert list(files) == ["a/film.mp4", "film.mp4", "not-utf8-\\xff.mp4"]
    with files["not-utf8-\\xff.mp4"].local() as path:
        assert path.read_bytes() == b"odd"


def test_an_empty_folder_is_an_empty_source(tmp_path: Path) -> None:
    assert list(list_source(str(tmp_path))) == []
