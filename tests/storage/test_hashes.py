"""The hash cache only ever saves work: what it says is true, and without it everything goes on."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bricks_core.storage import hashes
from bricks_core.storage.hashes import HashCache, file_state, sha256_of_file

NOT_ITS_HASH = "f" * 64


@pytest.fixture
def cache(tmp_path: Path) -> HashCache:
    return HashCache(tmp_path / "cache" / "sha256.sqlite")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "film.mp4"
    path.write_bytes(b"content")
    return path


def true_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_that_did_not_change_is_not_read_again(cache: HashCache, file: Path) -> None:
    cache.remember(str(file), file_state(file.stat()), NOT_ITS_HASH)
    assert sha256_of_file(file, cache) == NOT_ITS_HASH


@pytest.mark.parametrize("change", ["content", "size", "time", "replaced"])
def test_a_file_that_changed_is_read_again(cache: HashCache, file: Path, change: str) -> None:
    cache.remember(str(file), file_state(file.stat()), NOT_ITS_HASH)
    if change == "content":
        file.write_bytes(b"CONTENT")
    elif change == "size":
        file.write_bytes(b"longer content")
    elif change == "time":
        os.utime(file, ns=(1, 1))
    else:
        before = file.stat()
        (file.parent / "other").write_bytes(b"CONTENT")
        os.replace(file.parent / "other", file)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert sha256_of_file(file, cache) == true_hash(file)


def test_a_file_written_a_moment_ago_is_not_remembered(cache: HashCache, file: Path) -> None:
    """Within the grain of the file system's clock a second write would look like none."""
    os.utime(file, (time.time() + 1000, time.time() + 1000))
    sha256_of_file(file, cache)
    assert cache.recall(str(file), file_state(file.stat())) is None


def test_a_file_left_alone_is_remembered(cache: HashCache, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashes, "SETTLED_S", -1000.0)  # as if we had waited
    assert sha256_of_file(file, cache) == true_hash(file)
    assert cache.recall(str(file), file_state(file.stat())) == true_hash(file)
    assert HashCache(cache._path).recall(str(file), file_state(file.stat())) == true_hash(file)


def test_many_processes_share_the_cache(
    cache: HashCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, all_at_once: Callable[..., list[Any]]
) -> None:
    monkeypatch.setattr(hashes, "SETTLED_S", -1000.0)
    files = [tmp_path / f"{index}" for index in range(20)]
    for path in files:
        path.write_text(path.name, encoding="utf-8")
    assert sha256_of_file(files[0], cache) == true_hash(files[0])  # open before the fork
    results = all_at_once(8, lambda _: [sha256_of_file(path, cache) for path in files])
    assert results == [[true_hash(path) for path in files]] * 8
    assert [cache.recall(str(path), file_state(path.stat())) for path in files] == results[0]


def test_a_damaged_cache_is_begun_anew(cache: HashCache, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashes, "SETTLED_S", -1000.0)
    assert cache._path is not None
    cache._path.parent.mkdir()
    cache._path.write_bytes(b"this is no database" * 1000)
    for _ in range(2):
        assert sha256_of_file(file, cache) == true_hash(file)
    assert HashCache(cache._path).recall(str(file), file_state(file.stat())) == true_hash(file)


def test_without_a_place_for_the_cache_hashes_are_computed(tmp_path: Path, file: Path) -> None:
    (tmp_path / "in the way").touch()
    cache = HashCache(tmp_path / "in the way" / "sha256.sqlite")
    for _ in range(2):
        assert sha256_of_file(file, cache) == true_hash(file)


def test_a_name_that_is_not_utf8_is_hashed(cache: HashCache, tmp_path: Path) -> None:
    path = Path(os.fsdecode(bytes(tmp_path) + b"/film-\xff.mp4"))
    path.write_bytes(b"content")
    for _ in range(2):
        assert sha256_of_file(path, cache) == true_hash(path)
