"""Somebody is told of a run's end on a cluster, once, and the address is told nobody."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from bricks_core.cluster.runs import retry
from bricks_core.controller.notices import Notices, ending
from bricks_core.controller.reconcile import Reconciler, is_settled
from bricks_core.controller.status import Condition, RunStatus, StageStatus, Untold
from bricks_core.errors import ClusterUnavailable
from tests.controller.test_shell import is_finished, process, until
from tests.controller.town import ATTEMPTS, PROFILE, Town, run_object, town
from tests.listener import SECRET, Listener, listener

Object = dict[str, Any]
DONE = [("finished", "latents")]
FAILED = [("failed", "ingest")]


@pytest.fixture
def server() -> Iterator[Listener]:
    with listener() as found:
        yield found


@contextmanager
def told_by(server: Listener, codes: list[int] | None = None) -> Iterator[Town]:
    """A town whose controllers tell that server."""
    with town(codes) as here:
        here.address = server.address
        yield here


def untold(here: Town) -> Object | None:
    found: Object | None = here.status().get("untold")
    return found


# --- once


def test_a_run_that_is_done_is_told_once_with_what_its_last_stage_made(server: Listener) -> None:
    with told_by(server) as here:
        here.come_to_rest(here.controller())
        for _ in range(2):
            here.controller().reconcile("tiny")
        ((path, said),) = server.posted
        assert path == f"/{SECRET}"
        assert said.pop("at").endswith("Z")
        assert said == {
            "run": "tiny",
            "event": "finished",
            "stage": "latents",
            "summary": "2 items",
            "store": here.store.uri,
            "text": "Run tiny is finished (latents): 2 items",
        }
        assert untold(here) is None
        assert is_settled(here.server.cluster().get("BrickRun", "tiny"))


def test_a_run_that_has_failed_for_good_is_told_once_for_each_time_that_it_was_begun(server: Listener) -> None:
    with told_by(server, [65]) as here:
        here.come_to_rest(here.controller())
        here.controller().reconcile("tiny")
        assert server.events == FAILED
        assert server.posted[0][1]["summary"] == here.condition("Finished")["message"]
        here.codes[:] = [65]
        retry(here.server.cluster(), "tiny")
        here.controller().reconcile("tiny")
        here.come_to_rest(here.controller())
        assert server.events == [*FAILED, *FAILED]
        retry(here.server.cluster(), "tiny")
        here.controller().reconcile("tiny")
        here.come_to_rest(here.controller())
        assert server.events == [*FAILED, *FAILED, *DONE]


def test_tries_that_are_followed_by_another_are_no_end(server: Listener) -> None:
    with told_by(server, [75] * (ATTEMPTS - 1)) as here:
        here.come_to_rest(here.controller())
        assert server.events == DONE


def test_an_end_is_told_whenever_the_controller_dies_and_twice_only_between_the_answer_and_its_note(
    server: Listener,
) -> None:
    """At each call of the look that finds the end, before and after it took effect."""
    num_told = []
    for effect in ("kill before", "kill after"):
        for call in range(1, 100):
            server.posted.clear()
            with told_by(server, [65]) as here:
                controller = here.controller()
                for _ in range(2):
                    controller.reconcile("tiny")
                    here.executor.step()
                here.look(controller, {call: effect})
                was_struck = here.num_calls >= call
                here.come_to_rest(here.controller())
                here.controller().reconcile("tiny")
                num_told.append(len(server.posted))
                assert untold(here) is None
            if not was_struck:
                break
    assert min(num_told) == 1
    assert num_told.count(2) == 1, "killed before the mark was taken away, and told already"
    assert max(num_told) == 2


def test_a_controller_that_finds_an_end_untold_tells_it(server: Listener) -> None:
    with told_by(server) as here:
        left: list[str] = []
        here.come_to_rest(reconciler(here, left.append))
        assert untold(here) == {"event": "finished", "stage": "latents"}
        assert left == ["tiny"]
        assert not is_settled(here.server.cluster().get("BrickRun", "tiny"))
        again = here.controller()
        assert again.runs() == ["tiny"]
        again.reconcile("tiny")
        assert server.events == DONE
        assert untold(here) is None
        assert again.runs() == []


def reconciler(here: Town, untold: Any) -> Reconciler:
    return Reconciler(here.server.cluster(), here.store, PROFILE, untold=untold, now=here.controller()._now)


def test_what_could_not_be_noted_is_not_told_again(server: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    with told_by(server) as here:
        here.come_to_rest(reconciler(here, lambda name: None))
        cluster = here.server.cluster()
        notices = Notices(cluster, here.store, server.address)

        def away(obj: Object) -> Object:
            raise ClusterUnavailable("The cluster does not answer.")

        monkeypatch.setattr(cluster, "write_status", away)
        assert notices.tell("tiny") is not None
        monkeypatch.undo()
        assert notices.tell("tiny") is None
        assert server.events == DONE
        assert untold(here) is None


def test_without_an_address_nothing_is_marked_and_a_mark_of_before_is_taken_away(server: Listener) -> None:
    with told_by(server) as here:
        here.come_to_rest(reconciler(here, lambda name: None))
        here.address = ""
        assert untold(here) is not None
        here.controller().reconcile("tiny")
        assert untold(here) is None
        assert is_settled(here.server.cluster().get("BrickRun", "tiny"))
        assert server.posted == []


# --- never


def test_a_run_that_is_found_done_when_it_is_handed_in_is_not_told(server: Listener) -> None:
    with town() as here:
        here.come_to_rest(here.controller())
        here.server.cluster().delete("BrickRun", "tiny", foreground=False)
        here.server.settle()
        here.run = here.server.make(run_object())
        here.address = server.address
        here.come_to_rest(here.controller())
        assert here.status()["phase"] == "Succeeded"
        assert server.posted == []


def test_nothing_is_told_of_what_a_person_stops_but_of_what_comes_after(server: Listener) -> None:
    with told_by(server) as here:
        controller = here.controller()
        controller.reconcile("tiny")
        for spec in ({"suspend": True}, {"suspend": False, "cancel": True}):
            here.ask(**spec)
            for _ in range(3):
                controller.reconcile("tiny")
                here.executor.step()
        assert here.status()["phase"] == "Cancelled"
        assert server.posted == []
        retry(here.server.cluster(), "tiny")
        controller.reconcile("tiny")
        here.come_to_rest(controller)
        assert server.events == DONE


def test_an_end_that_was_there_before_anybody_was_to_be_told_stays_untold(server: Listener) -> None:
    with town([65]) as here:
        here.come_to_rest(here.controller())
        here.address = server.address
        here.controller().reconcile("tiny")
        assert server.posted == []


# --- what is told


def status(finished: str, reason: str, message: str = "", current: str = "", **stages: str) -> RunStatus:
    condition = Condition.model_validate(
        {"type": "Finished", "status": finished, "lastTransitionTime": "2026-11-24T12:00:00Z", "reason": reason}
        | {"message": message}
    )
    members = [StageStatus.model_validate({"name": name, "state": state}) for name, state in stages.items()]
    return RunStatus(conditions=[condition], current_stage=current, stages=members)


CAP = "caption, try 3: a service it needs is too busy. caption.max_calls, 5, is reached with 2 clips left to caption."


@pytest.mark.parametrize(
    ("now", "wanted"),
    [
        (status("True", "Succeeded", train="Done", evaluate="Done"), Untold(event="verdict", stage="evaluate")),
        (status("True", "Succeeded", train="Done"), Untold(event="finished", stage="train")),
        (status("True", "Failed", "Killed.", current="clip"), Untold(event="failed", stage="clip")),
        (status("True", "Failed", CAP, current="caption"), Untold(event="cap", stage="caption")),
        (status("True", "SpecInvalid", "Wrong."), Untold(event="failed")),
        (status("True", "Cancelled"), None),
        (status("False", "Unfinished"), None),
    ],
)
def test_an_end_is_a_verdict_a_cap_a_failure_or_all_that_was_asked_for(now: RunStatus, wanted: Untold | None) -> None:
    before = status("False", "Unfinished", train="Running", evaluate="Pending")
    assert ending(before, now, is_stopped=now.conditions[0].reason == "Cancelled") == wanted
    assert ending(RunStatus(), now, is_stopped=False) is None
    assert ending(status("True", "Failed"), now, is_stopped=False) is None


def test_where_the_evaluation_was_there_before_the_rest_is_what_is_told() -> None:
    before = status("False", "Unfinished", train="Running", evaluate="Done")
    now = status("True", "Succeeded", train="Done", evaluate="Done")
    assert ending(before, now, is_stopped=False) == Untold(event="finished", stage="train")


def test_a_run_file_that_cannot_be_used_any_more_is_told_without_a_stage(server: Listener) -> None:
    with town() as here:
        here.come_to_rest(reconciler(here, lambda name: None))
        cluster = here.server.cluster()
        raw = cluster.get("BrickRun", "tiny")
        told = {name: value for name, value in raw["status"].items() if name != "currentStage"}
        cluster.write_status(raw | {"status": told | {"untold": {"event": "failed"}}})
        Notices(cluster, here.store, server.address).tell("tiny")
        assert server.posted[0][1]["text"].startswith("Run tiny failed: ")


# --- whose server does not answer


def test_no_look_waits_for_a_server_that_does_not_answer(server: Listener) -> None:
    server.answers = [0]
    with town() as here:
        cluster = here.server.cluster()
        notices = Notices(cluster, here.store, server.address)
        looks = reconciler(here, notices.add)
        notices.start()
        here.come_to_rest(looks)
        until(lambda: server.posted)
        assert looks.reconcile("tiny") is None
        assert untold(here) is not None, "the server still has it in hand"
        server.answers = [200]
        server.over.set()
        until(lambda: untold(here) is None)
        notices.stop()
        assert not notices.is_alive()


def test_a_server_that_refuses_is_given_up_with_one_warning(server: Listener, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "bricks")
    server.answers = [404]
    with told_by(server) as here:
        here.come_to_rest(here.controller())
        here.controller().reconcile("tiny")
        assert untold(here) is None
        assert len(server.posted) == 1
        assert caplog.text.count("Nobody was notified") == 1


# --- the address is a secret


def test_no_object_of_the_cluster_no_file_of_the_store_and_no_line_of_the_log_has_the_address(
    server: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "bricks")
    with told_by(server, [137]) as here:
        here.come_to_rest(here.controller())
        assert server.events == DONE
        everything = json.dumps([change.object for change in here.server.storage.history])
        assert "tiny-latents-a1" in everything
        assert SECRET not in everything
        files = [each.read_bytes() for each in (here.folder / "store").rglob("*") if each.is_file()]
        assert files
        assert not any(SECRET.encode() in each for each in files)
        told = [record.getMessage() for record in caplog.records if record.name.startswith("bricks")]
        assert told
        assert SECRET not in "\n".join(told)


def test_the_program_tells_at_the_address_of_its_environment_and_never_says_it(
    server: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRICKS_NOTIFY_URL", server.address)
    with town() as here, process(here, "--resync-s=1", "--verbose") as program:
        here.executor.ends = lambda stage, attempt: 65
        until(lambda: is_finished(here) and untold(here) is None and server.posted, here.executor.step)
        program.terminate()
        _, said = program.communicate()
        assert program.returncode == 0
        assert server.events == FAILED
        assert "created Job" in said
        assert SECRET not in said


def test_an_address_that_is_none_ends_the_program_and_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRICKS_NOTIFY_URL", SECRET)
    with town() as here, process(here, "--once") as program:
        _, said = program.communicate()
        assert program.returncode == 78
        assert "BRICKS_NOTIFY_URL: this is no address to notify" in said
        assert SECRET not in said
        assert here.jobs() == []


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("ERROR", "kopf")
