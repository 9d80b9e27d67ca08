"""Somebody is told of a run's end, and the address is told nobody."""

import hashlib
import json
import logging
from pathlib import Path

import pytest
import yaml

from bricks_core.errors import CapReached, DataError, SpecError, Stopped, TryLater
from bricks_core.pipeline import notify as notifications
from bricks_core.pipeline.local import run_path
from bricks_core.pipeline.notify import message, notifies, notify
from bricks_core.pipeline.plan import Step
from bricks_core.spec.manifest import Manifest, StoredObject
from bricks_core.spec.run import load_run
from bricks_core.spec.stages import STAGES
from bricks_core.storage.folder import FolderStore
from tests.listener import SECRET, listener


@pytest.fixture
def server():
    with listener() as found:
        yield found


@pytest.fixture
def told(caplog):
    caplog.set_level(logging.DEBUG)
    return lambda: "\n".join(
        record.getMessage() for record in caplog.records if record.name != "urllib3.connectionpool"
    )


def ends(outcome, *steps):
    """A run_path that hears of these steps, then returns or raises."""

    def run_path(run, store, stop_after=None, *, tell, wait=True):
        for step in steps:
            tell(step)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    return run_path


def manifest(stage, **counts):
    return Manifest.model_construct(stage=stage, digest="d" * 32, counts=counts)


CLIP = Step(STAGES["clip"], "to run", ["first time"])
EVALUATE = Step(STAGES["evaluate"], "to run", ["first time"])


def asked(server, run_of, tmp_path, outcome, *steps):
    run = run_of(tmp_path / "films")
    run = run.model_copy(
        update={"spec": type(run.spec).model_validate(run.spec.model_dump() | {"notify": server.address})}
    )
    store = FolderStore(str(tmp_path / "store"), tmp_path / "store")
    if isinstance(outcome, BaseException):
        with pytest.raises(type(outcome)):
            notifies(ends(outcome, *steps))(run, store)
    else:
        assert notifies(ends(outcome, *steps))(run, store) == outcome
    return server.posted


def test_a_run_that_is_done_is_told_with_what_its_last_stage_made(server, run_of, tmp_path):
    ((path, said),) = asked(server, run_of, tmp_path, {"clip": manifest("clip", clips=3, dropped_shots=1)}, CLIP)
    assert path == f"/{SECRET}"
    assert said.pop("at").endswith("Z")
    assert said == {
        "run": "films",
        "event": "finished",
        "stage": "clip",
        "summary": "3 clips, 1 dropped shots",
        "store": str(tmp_path / "store"),
        "text": "Run films is finished (clip): 3 clips, 1 dropped shots",
    }


@pytest.mark.parametrize(
    ("error", "event", "summary"),
    [
        (DataError("Nothing is left."), "failed", "Nothing is left."),
        (CapReached("caption.max_calls, 5, is reached."), "cap", "caption.max_calls, 5, is reached."),
        (KeyError(SECRET), "failed", "A bug in Bricks."),
    ],
)
def test_a_run_that_fails_or_meets_a_cap_is_told_with_the_reason(server, run_of, tmp_path, error, event, summary):
    ((_, said),) = asked(server, run_of, tmp_path, error, CLIP)
    assert (said["event"], said["stage"], said["summary"]) == (event, "clip", summary)


def test_an_evaluation_is_told_with_its_headline(server, run_of, tmp_path):
    report = tmp_path / "store" / "artifacts" / "evaluate" / ("d" * 32) / "report"
    report.mkdir(parents=True)
    changes = [
        {"weights": "ema", "improvement_percent": 12.34, "num_clips": 0},
        {"weights": "ema", "improvement_percent": 99.0, "num_clips": 8},
    ]
    numbers = json.dumps({"verdict": {"title": "Keep"}, "held_out": {"changes": changes}}).encode()
    (report / "report.json").write_bytes(numbers)
    stored = StoredObject(key="report/report.json", size_bytes=len(numbers), sha256=hashlib.sha256(numbers).hexdigest())
    evaluated = manifest("evaluate", samples=4).model_copy(update={"objects": [stored]})
    ((_, said),) = asked(server, run_of, tmp_path, {"evaluate": evaluated}, CLIP, EVALUATE)
    assert (said["event"], said["summary"]) == ("verdict", "Keep; held-out loss -12.3 % (ema); 4 samples")


@pytest.mark.parametrize(
    ("outcome", "steps"),
    [({"clip": manifest("clip")}, [Step(STAGES["clip"], "cached", [])]), (Stopped(2), [CLIP]), (TryLater("busy"), [])],
)
def test_of_what_was_found_done_or_stopped_or_never_begun_nothing_is_told(server, run_of, tmp_path, outcome, steps):
    assert asked(server, run_of, tmp_path, outcome, *steps) == []


def test_a_newline_at_the_end_of_the_variable_is_none_of_the_address(server, run_of, tmp_path, monkeypatch):
    """A Secret that was made of a file has one."""
    monkeypatch.setenv("BRICKS_NOTIFY_URL", server.address + "\n")
    store = FolderStore(str(tmp_path / "store"), tmp_path / "store")
    notifies(ends({"clip": manifest("clip")}, CLIP))(run_of(tmp_path / "films"), store)
    assert [path for path, _ in server.posted] == [f"/{SECRET}"]


def test_slack_gets_its_own_form(monkeypatch):
    sent = []

    class Pool:
        def __init__(self, retries): ...
        def __enter__(self):
            return self

        def __exit__(self, *_): ...
        def request(self, method, address, *, body, **_):
            sent.append(json.loads(body))
            return type("Answer", (), {"status": 200})

    monkeypatch.setattr(
        notifications.urllib3, "PoolManager", Pool
    )  # their host is what counts, and is not asked by a test
    notify(f"https://hooks.slack.com/services/{SECRET}", message("films", "cap", "caption", "für 東京", "s3://b/p"))
    assert sent == [{"text": "Run films has met a cap (caption): für 東京"}]


@pytest.mark.parametrize(
    ("answers", "num_posts", "warning"),
    [
        ([500, 503, 200], 3, ""),
        ([500], 3, "its server answers 500"),
        ([404], 1, "its server answers 404"),
        ([302], 1, "its server answers 302"),
        ([0], 3, "its server cannot be reached: ReadTimeoutError"),
    ],
)
def test_a_server_that_does_not_take_it_is_told_once_and_never_its_address(
    server, told, monkeypatch, answers, num_posts, warning
):
    if answers == [0]:
        monkeypatch.setattr(notifications, "TRY_TIMEOUT_S", 0.3)
    server.answers = answers
    notify(server.address, message("films", "finished", "clip", "", "store"))
    assert len(server.posted) == num_posts
    assert warning in told()
    assert told().count("Nobody was notified") == bool(warning)
    assert SECRET not in told()


def test_an_address_that_nobody_listens_on_ends_nothing(told, monkeypatch):
    notify(f"http://127.0.0.1:9/{SECRET}", message("films", "finished", "clip", "", "store"))
    assert "cannot be reached" in told()
    assert SECRET not in told()


def test_a_run_waits_no_longer_than_the_limit(server, told, monkeypatch):
    monkeypatch.setattr(notifications, "LIMIT_S", 0.05)
    server.answers = [0]
    notify(server.address, message("films", "finished", "clip", "", "store"))
    assert "it did not answer in time" in told()


def test_the_environment_names_the_address_and_the_run_file_overrules_it(server, run_of, tmp_path, monkeypatch):
    monkeypatch.setenv("BRICKS_NOTIFY_URL", server.address + "/env")
    run, store = run_of(tmp_path / "films"), FolderStore(str(tmp_path / "store"), tmp_path / "store")
    done = {"clip": manifest("clip")}
    notifies(ends(done, CLIP))(run, store)
    asked(server, run_of, tmp_path, done, CLIP)
    assert [path for path, _ in server.posted] == [f"/{SECRET}/env", f"/{SECRET}"]


@pytest.mark.parametrize("wrong", [SECRET, f"ftp://host/{SECRET}", f"https:///{SECRET}", f"http://h:99999/{SECRET}"])
def test_what_is_no_address_is_refused_before_anything_begins_and_not_repeated(run_of, tmp_path, monkeypatch, wrong):
    file = write(tmp_path, {"notify": wrong})
    with pytest.raises(SpecError, match=r"spec\.notify: this is no address to notify: write https") as caught:
        load_run(file)
    assert SECRET not in str(caught.value)
    monkeypatch.setenv("BRICKS_NOTIFY_URL", wrong)
    with pytest.raises(SpecError, match="BRICKS_NOTIFY_URL: this is no address") as caught:
        notifies(ends({}, CLIP))(run_of(tmp_path), FolderStore("s", tmp_path))
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("field", ["notify=", "spec.notify=", "notify.url=", "notify={"])
def test_set_does_not_take_the_address_as_processes_are_seen_by_all(tmp_path, field):
    with pytest.raises(SpecError, match="set BRICKS_NOTIFY_URL instead") as caught:
        load_run(write(tmp_path, {}), [f"{field}https://example.org/{SECRET}"])
    assert SECRET not in str(caught.value)


def test_no_file_of_a_run_and_no_dump_has_the_address(server, told, drawn_films, tmp_path, capfd):
    file = write(tmp_path, {"notify": server.address, "ingest": {"sources": [str(drawn_films)]}})
    run, store = load_run(file), FolderStore(str(tmp_path / "store"), tmp_path / "store")
    assert SECRET not in repr(run) + str(run) + run.model_dump_json() + str(run.model_dump())
    notifies(run_path)(run, store, "clip")
    assert [said["event"] for _, said in server.posted] == ["finished"]
    files = [each for each in (tmp_path / "store").rglob("*") if each.is_file()]
    assert files
    assert [each for each in files if SECRET.encode() in each.read_bytes()] == []
    assert SECRET not in told() + "".join(capfd.readouterr())


def write(folder: Path, spec: dict) -> Path:
    document = {"apiVersion": "bricks.dev/v1alpha1", "kind": "BrickRun", "metadata": {"name": "films"}}
    (folder / "run.yaml").write_text(
        yaml.safe_dump(document | {"spec": {"ingest": {"sources": ["films"]}} | spec}), encoding="utf-8"
    )
    return folder / "run.yaml"
