"""What a store does when things go wrong: nothing half-written is ever seen, and one sentence says what to do.

The faults are real (a full disk, another user, a killed writer or server), or put between us and a real server.
"""

from __future__ import annotations

import errno
import itertools
import multiprocessing
import os
import random
import resource
import socket
import stat
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bricks_core.errors import BricksError, NoSuchObject, SpecError, StoreDenied, StoreUnavailable, TryLater
from bricks_core.storage import folder as folder_module
from bricks_core.storage import s3 as s3_module
from bricks_core.storage.places import list_source, open_store
from bricks_core.storage.store import Store
from tests.storage.between import Between, BreakOff, Forget, Hold, LoseTheAnswer, Refuse

MIB = 1 << 20
FORK = multiprocessing.get_context("fork")


def keys(store: Store) -> list[str]:
    return [entry.key for entry in store.list()]


def hidden_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob(".*") if path.is_file()]


def wait_until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.002)


# ---------------------------------------------------------------- killed writers


def test_a_writer_killed_in_the_middle_of_a_file_leaves_nothing_to_see(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    store.put("videos/other", b"")
    os.mkfifo(tmp_path / "slow film")
    writer = FORK.Process(target=lambda: store.put_file("videos/film", tmp_path / "slow film"))
    writer.start()
    with (tmp_path / "slow film").open("wb") as source:
        source.write(b"x" * 3 * MIB)
        wait_until(lambda: any(path.stat().st_size >= MIB for path in hidden_files(tmp_path)))
        writer.kill()
        writer.join()
    assert (keys(store), store.head("videos/film")) == (["videos/other"], None)
    assert len(hidden_files(tmp_path)) == 1
    assert store.sweep() == 0, "it could still be somebody's"
    assert store.sweep(idle_s=-1) == 1
    assert hidden_files(tmp_path) == []
    assert keys(store) == ["videos/other"]


def test_an_object_is_whole_whenever_its_writer_is_killed(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    contents = [b"a" * 2 * MIB, b"b" * 3 * MIB]
    store.put("film", contents[0])
    chance = random.Random(0)

    def write_for_ever() -> None:
        while True:
            for content in contents:
                store.put("film", content)

    for _ in range(8):
        writer = FORK.Process(target=write_for_ever)
        writer.start()
        time.sleep(chance.uniform(0, 0.08))
        writer.kill()
        writer.join()
        assert store.get("film") in contents
        assert keys(store) == ["film"]


def test_a_writer_killed_before_its_upload_is_complete_leaves_nothing_to_see(between: Between, tmp_path: Path) -> None:
    store = between.open_store()
    with (tmp_path / "film").open("wb") as file:
        file.truncate(33 * MIB)
    between.faults = (
        Hold() if "uploadId=" in path and method == "POST" else None for method, path, _ in between.requests
    )
    writer = FORK.Process(target=lambda: store.put_file("film", tmp_path / "film"))
    writer.start()
    assert between.held.wait(60), "the upload was not made in parts"
    writer.kill()
    writer.join()
    between.faults = iter(())
    assert (keys(store), store.head("film")) == ([], None)
    if "BRICKS_TEST_S3" in os.environ:  # moto says of every upload that it began in 2010
        assert store.sweep() == 0, "it could still be somebody's"
    assert store.sweep(idle_s=-60) == 1
    assert store.sweep(idle_s=-60) == 0


# ---------------------------------------------------------------- folders


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("Mounting a tiny disk needs root (and CAP_SYS_ADMIN).")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder everybody can reach (pytest's own are private to their user)."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@pytest.fixture
def as_nobody(all_at_once: Callable[..., list[Any]]) -> Callable[[Callable[[], Any]], Any]:
    """Call a function as a user without rights, in another process."""

    def call(work: Callable[[], Any]) -> Any:
        def drop_rights_and_work(_: int) -> Any:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            return work()

        return all_at_once(1, drop_rights_and_work)[0]

    return call


def test_a_full_disk_is_told_and_nothing_is_lost(tiny_disk: Path, tmp_path: Path) -> None:
    store = open_store(str(tiny_disk / "store"))
    store.put("small", b"kept")
    (tmp_path / "film").write_bytes(b"x" * 2 * MIB)
    for put in (
        lambda: store.put("large", b"x" * 2 * MIB),
        lambda: store.put("large", b"x" * 2 * MIB, if_absent=True),
        lambda: store.put("small", b"x" * 2 * MIB),
        lambda: store.put_file("large", tmp_path / "film"),
    ):
        with pytest.raises(TryLater, match="the disk is full") as caught:
            put()
        assert caught.value.exit_code == 75
    assert (keys(store), store.get("small")) == (["small"], b"kept")
    assert hidden_files(tiny_disk) == []
    assert store.put("after", b"x" * 100_000)


def test_a_full_scratch_disk_is_told(tiny_disk: Path, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(f"s3://bricks-test/{uuid.uuid4().hex}")
    store.put("film", b"x" * 2 * MIB)
    monkeypatch.setattr(tempfile, "tempdir", str(tiny_disk))
    with pytest.raises(TryLater, match=f"{tiny_disk}.*the disk is full"), store.local("film"):
        pytest.fail("it was handed out")
    assert list(tiny_disk.iterdir()) == []


def test_a_file_larger_than_is_allowed_is_told(tmp_path: Path, all_at_once: Callable[..., list[Any]]) -> None:
    store = open_store(str(tmp_path / "store"))
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]

    def put(_: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, hard))
        store.put("large", b"x" * 2 * MIB)

    with pytest.raises(Exception, match=r"StoreDenied.*ulimit -f.*78"):
        all_at_once(1, put)
    assert keys(store) == []
    assert hidden_files(tmp_path) == []


def test_a_read_only_disk_is_told(tiny_disk: Path) -> None:
    store = open_store(str(tiny_disk / "store"))
    store.put("a", b"here")
    subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)
    for change in (lambda: store.put("b", b""), lambda: store.put("a", b""), lambda: store.delete(["a"])):
        with pytest.raises(StoreDenied, match="the file system is read-only") as caught:
            change()
        assert caught.value.exit_code == 78
    assert store.get("a") == b"here"


def test_a_folder_that_is_not_ours_may_be_read_and_not_written(
    open_folder: Path, as_nobody: Callable[[Callable[[], Any]], Any]
) -> None:
    store = open_store(str(open_folder / "store"))
    store.put("a", b"here")
    open_folder.joinpath("store").chmod(0o555)
    assert as_nobody(lambda: (store.get("a"), keys(store))) == (b"here", ["a"])
    for change in (lambda: store.put("b", b""), lambda: store.delete(["a"])):
        with pytest.raises(Exception, match=r"StoreDenied.*has no permission.*chmod.*78"):
            as_nobody(change)
    assert keys(store) == ["a"]


def test_a_folder_that_may_not_be_read_is_told(
    open_folder: Path, as_nobody: Callable[[Callable[[], Any]], Any]
) -> None:
    store = open_store(str(open_folder / "store"))
    store.put("a/b", b"here")
    (open_folder / "store" / "a").chmod(0o000)
    for read in (lambda: store.get("a/b"), lambda: keys(store), lambda: list(list_source(f"{open_folder}/store"))):
        with pytest.raises(Exception, match=r"StoreDenied.*has no permission"):
            as_nobody(read)
    (open_folder / "store" / "a").chmod(0o755)


def test_one_unreadable_file_of_a_source_is_named_and_the_rest_goes_on(
    open_folder: Path, as_nobody: Callable[[Callable[[], Any]], Any]
) -> None:
    (open_folder / "locked.mp4").write_bytes(b"film")
    (open_folder / "locked.mp4").chmod(0o000)
    (open_folder / "open.mp4").write_bytes(b"film")

    def look() -> tuple[list[str], str]:
        locked, free = list_source(str(open_folder))
        assert free.sha256()
        with pytest.raises(StoreDenied, match=r"locked\.mp4.*no permission"):
            locked.sha256()
        return locked.name, free.name

    assert as_nobody(look) == ("locked.mp4", "open.mp4")


def test_a_store_whose_parent_is_missing_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"disk-not-mounted is no folder\. Make it \(or mount it\)"):
        open_store(str(tmp_path / "disk-not-mounted" / "store"))


def test_a_store_whose_disk_goes_away_says_so(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    store = open_store(str(tmp_path / "disk" / "store"))
    (tmp_path / "disk").rmdir()
    with pytest.raises(StoreDenied, match="Was something unmounted"):
        store.put("a", b"")


def test_a_store_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store").touch()
    with pytest.raises(SpecError, match="is a file: give a folder"):
        open_store(str(tmp_path / "store"))


def test_a_key_cannot_be_the_folder_of_another(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.put("a/b", b"")
    store.put("c", b"")
    for key in ("a", "c/d", "c/d/e"):
        with pytest.raises(SpecError, match="in the way"):
            store.put(key, b"")
        assert store.head(key) is None
        with pytest.raises(NoSuchObject):
            store.get(key)
    assert keys(store) == ["a/b", "c"]
    assert hidden_files(tmp_path) == []


@pytest.mark.parametrize("missing", [["_link"], ["_link", "_rename_no_replace"]])
def test_one_writer_wins_on_file_systems_without_links(
    tmp_path: Path, missing: list[str], monkeypatch: pytest.MonkeyPatch, all_at_once: Callable[..., list[Any]]
) -> None:
    def not_here(*_: Any) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    for way in missing:
        monkeypatch.setattr(folder_module, way, not_here)
    store = open_store(str(tmp_path / "store"))
    together = FORK.Barrier(16)

    def write(index: int) -> list[bool]:
        won = []
        for lap in range(5):
            together.wait()
            won.append(store.put(f"race/{lap}", b"%d" % index, if_absent=True))
        return won

    results = all_at_once(16, write)
    for lap in range(5):
        winners = [index for index, won in enumerate(results) if won[lap]]
        assert len(winners) == 1
        assert store.get(f"race/{lap}") == b"%d" % winners[0]
    assert len(keys(store)) == 5


def test_objects_have_the_mode_the_user_asked_for(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    before = os.umask(0o027)
    try:
        store.put("a/b", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o640


# ---------------------------------------------------------------- S3


@pytest.mark.parametrize(
    ("status", "code", "kind", "says"),
    [
        (403, "SignatureDoesNotMatch", StoreDenied, "the keys are wrong.*AWS_ACCESS_KEY_ID"),
        (403, "InvalidAccessKeyId", StoreDenied, "the keys are wrong.*AWS_ACCESS_KEY_ID"),
        (400, "ExpiredToken", StoreDenied, "no longer valid"),
        (403, "AccessDenied", StoreDenied, "may not do that.*policy"),
        (403, "RequestTimeTooSkewed", StoreUnavailable, "clock"),
        (403, "QuotaExceeded", TryLater, "quota"),
        (507, "InsufficientStorage", TryLater, "full"),
        (404, "NoSuchBucket", StoreDenied, "There is no bucket bricks-test at http"),
        (400, "AuthorizationHeaderMalformed", StoreDenied, "AWS_REGION"),
        (429, "TooManyRequests", TryLater, "slower pace"),
        (503, "SlowDown", TryLater, "slower pace"),
        (500, "InternalError", StoreUnavailable, "the server fails"),
        (503, "ServiceUnavailable", StoreUnavailable, "the server fails"),
        (501, "NotImplemented", StoreDenied, "does not know how"),
        (418, "SomethingNew", StoreDenied, "SomethingNew: It is so"),
    ],
)
def test_what_the_server_refuses_is_told_in_one_sentence(
    between: Between, tmp_path: Path, status: int, code: str, kind: type[BricksError], says: str
) -> None:
    store = between.open_store()
    (tmp_path / "small").write_bytes(b"x")
    with (tmp_path / "large").open("wb") as large:
        large.truncate(17 * MIB)
    for use in (
        lambda: store.get("a"),
        lambda: store.put("a", b""),
        lambda: store.put("a", b"", if_absent=True),
        lambda: store.put_file("a", tmp_path / "small"),
        lambda: store.put_file("a", tmp_path / "large"),
        lambda: keys(store),
        lambda: store.delete(["a"]),
    ):
        between.faults = itertools.repeat(Refuse(status, code))
        with pytest.raises(kind, match=says) as caught:
            use()
        text = str(caught.value)
        assert "\n" not in text
        assert os.environ["AWS_SECRET_ACCESS_KEY"] not in text
    between.faults = iter(())
    assert keys(store) == []


@pytest.mark.parametrize(("status", "kind"), [(403, StoreDenied), (503, StoreUnavailable), (429, TryLater)])
def test_an_answer_without_words_is_understood_by_its_number(
    between: Between, status: int, kind: type[BricksError]
) -> None:
    store = between.open_store()
    between.faults = itertools.repeat(Refuse(status, ""))
    with pytest.raises(kind):
        store.head("a")
    with pytest.raises(kind), store.local("a"):
        pytest.fail("it was handed out")


def test_a_passing_fault_is_retried_and_not_noticed(between: Between) -> None:
    store = between.open_store(num_attempts=3)
    store.put("a", b"here" * MIB)
    for fault in (Refuse(503, "SlowDown"), Refuse(500, "InternalError"), LoseTheAnswer(), BreakOff()):
        between.faults = iter([fault])
        assert store.get("a") == b"here" * MIB
        between.faults = iter([None, fault])  # the first asks for the size
        with store.local("a") as path:
            assert path.read_bytes() == b"here" * MIB


def test_forked_processes_do_not_share_a_connection(between: Between, all_at_once: Callable[..., list[Any]]) -> None:
    """Unlike moto's, this server keeps connections open, so that there is one to share."""
    store = between.open_store()
    for index in range(4):
        store.put(f"{index}", b"%d" % index)
    together = FORK.Barrier(4)

    def read(index: int) -> set[bytes]:
        together.wait()
        return {store.get(f"{index}") for _ in range(20)}

    assert all_at_once(4, read) == [{b"0"}, {b"1"}, {b"2"}, {b"3"}]


def test_a_conflict_of_two_writers_is_asked_again(between: Between) -> None:
    store = between.open_store()
    between.faults = iter([Refuse(409, "ConditionalRequestConflict")] * 3)
    assert store.put("manifest.json", b"mine", if_absent=True) is True
    assert store.get("manifest.json") == b"mine"


def test_a_winner_who_never_got_the_answer_knows_that_it_won(between: Between) -> None:
    store = between.open_store(num_attempts=3)
    between.faults = iter([LoseTheAnswer()])
    assert store.put("manifest.json", b"mine", if_absent=True) is True
    between.faults = iter([LoseTheAnswer()])
    assert store.put("manifest.json", b"mine", if_absent=True) is False, "equal content is not enough"


@pytest.mark.skipif("BRICKS_TEST_S3" in os.environ, reason="A server that checks signatures notices the change.")
def test_a_server_that_ignores_the_condition_is_refused(between: Between) -> None:
    store = open_store(between.open_store().uri)  # a new one: it has not been probed
    between.faults = itertools.repeat(Forget("If-None-Match"))
    with pytest.raises(StoreDenied, match="ignores If-None-Match"):
        store.put("manifest.json", b"mine", if_absent=True)
    between.faults = iter(())
    assert keys(store) == []


def test_a_server_that_dies_is_told_and_work_goes_on_when_it_is_back(
    s3_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3_server.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3_server.endpoint)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    store = open_store("s3://bricks-test/stage")
    store.put("a", b"before")
    s3_server.kill()
    (tmp_path / "film").write_bytes(b"x" * 17 * MIB)
    for use in (lambda: store.put("b", b""), lambda: store.get("a"), lambda: store.put_file("c", tmp_path / "film")):
        with pytest.raises(StoreUnavailable, match=f"{s3_server.endpoint}: nothing answers") as caught:
            use()
        assert caught.value.exit_code == 69
    s3_server.start()
    assert store.put("b", b"after")
    assert store.get("b") == b"after"


@pytest.mark.parametrize("accepts", [False, True])
def test_a_server_that_keeps_silent_is_told(monkeypatch: pytest.MonkeyPatch, accepts: bool) -> None:
    monkeypatch.setattr(s3_module, "CONNECT_TIMEOUT_S", 0.2)
    monkeypatch.setattr(s3_module, "READ_TIMEOUT_S", 0.2)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(10 if accepts else 0)
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{server.getsockname()[1]}")
        waiting = [] if accepts else [socket.create_connection(server.getsockname())]  # nobody else fits into the queue
        with pytest.raises(StoreUnavailable, match=r"nothing answers|the connection broke"):
            open_store("s3://bricks-test/x").get("a")
        for each in waiting:
            each.close()


def test_a_bucket_that_is_not_there_is_named(s3: str) -> None:
    store = open_store("s3://no-such-bucket/stage")
    for use in (
        lambda: store.get("a"),
        lambda: store.head("a"),
        lambda: store.put("a", b""),
        lambda: store.put("a", b"", if_absent=True),
        lambda: keys(store),
        lambda: store.delete(["a"]),
        lambda: store.sha256("a"),
        lambda: store.local("a").__enter__(),
        lambda: list(list_source("s3://no-such-bucket/films")),
    ):
        with pytest.raises(StoreDenied, match=f"There is no bucket no-such-bucket at {s3}") as caught:
            use()
        assert caught.value.exit_code == 78


def test_missing_keys_are_asked_for(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StoreDenied, match=r"no keys were found\. Set AWS_ACCESS_KEY_ID"):
        open_store("s3://bricks-test/x").get("a")


@pytest.mark.skipif("BRICKS_TEST_S3" not in os.environ, reason="moto lets any key in: `make test-s3` tries this.")
@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_keys_are_refused_by_a_real_server(s3: str, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "wrong")
    store = open_store("s3://bricks-test/x")
    for use in (lambda: store.get("a"), lambda: store.put("a", b""), lambda: keys(store), lambda: store.head("a")):
        with pytest.raises(StoreDenied):
            use()


def test_a_profile_or_an_endpoint_that_is_none_is_told(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("AWS_PROFILE", "nowhere")
        with pytest.raises(StoreDenied, match="nowhere"):
            open_store("s3://bricks-test/x").get("a")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "no address")
    with pytest.raises(SpecError, match="Correct AWS_ENDPOINT_URL_S3"):
        open_store("s3://bricks-test/x").get("a")
