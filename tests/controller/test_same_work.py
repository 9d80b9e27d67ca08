"""Runs that ask for the same at the same time: on the double, one child for each stage, whoever looks when."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from bricks_core.cluster.launcher import STAGE_LABEL, Task
from bricks_core.cluster.screen import run_screen, runs_screen
from bricks_core.controller.reconcile import Reconciler
from bricks_core.pipeline.points import read_points
from bricks_core.storage.store import Store
from tests.controller.town import STAGES, Town, run_object, town

Object = dict[str, Any]


def hand_in(here: Town, *names: str, **spec: Any) -> None:
    for name in names:
        run = run_object(**spec)
        here.server.make(run | {"metadata": run["metadata"] | {"name": name}})


def status(here: Town, name: str) -> Object:
    found: Object = here.server.cluster().get("BrickRun", name).get("status") or {}
    return found


def first_stage(here: Town, name: str) -> Object:
    found: Object = status(here, name)["stages"][0]
    return found


def names_of_jobs(here: Town) -> list[str]:
    return sorted(job["metadata"]["name"] for job in here.jobs())


def made(here: Town) -> Counter[str]:
    """How many Jobs were ever created, by stage."""
    return Counter(
        change.object["metadata"]["labels"][STAGE_LABEL]
        for change in here.server.storage.history
        if change.type == "ADDED" and change.resource.plural == "jobs"
    )


def bring_to_end(here: Town, controllers: list[Reconciler], names: list[str]) -> None:
    for round_ in range(60):
        for number, name in enumerate(names):
            controllers[(number + round_) % len(controllers)].reconcile(name)
        if all(status(here, name).get("phase") == "Succeeded" for name in names):
            return
        here.executor.step()
        here.server.advance(30)
    raise AssertionError({name: status(here, name).get("phase") for name in names})


def test_forty_runs_of_the_same_that_are_handed_in_at_once_start_one_child_for_each_stage() -> None:
    with town() as here:
        names = ["tiny", *(f"again-{number:02d}" for number in range(39))]
        hand_in(here, *names[1:])
        controller = here.controller()
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(controller.reconcile, names))
        assert len(here.jobs()) == 1
        (worker,) = {job["metadata"]["labels"]["bricks.dev/run"] for job in here.jobs()}
        for name in names:
            if name != worker:
                assert first_stage(here, name)["reason"] == "SameWork"
                assert f"run {worker} has the same work under way" in first_stage(here, name)["message"]
        bring_to_end(here, [controller], names)
        assert made(here) == dict.fromkeys(STAGES, 1)
        assert all(count == 1 for count in here.executor.num_commits.values())
        sets = [
            {stage: pointer.digest for stage, pointer in read_points(here.store, name).stages.items()} for name in names
        ]
        assert all(each == sets[0] for each in sets)
        assert set(sets[0]) == set(STAGES)
        assert not any(read_points(here.store, name).stale() for name in names)


def test_a_controller_that_begins_in_the_middle_makes_no_child_more() -> None:
    with town() as here:
        names = ["tiny", "b", "c"]
        hand_in(here, *names[1:])
        for _ in range(60):
            for name in names:
                here.controller().reconcile(name)  # a new process each time, which remembers nothing
            here.executor.step()
            here.server.advance(30)
        assert {status(here, name)["phase"] for name in names} == {"Succeeded"}
        assert made(here) == dict.fromkeys(STAGES, 1)


@pytest.mark.parametrize("end", ["suspend", "cancel", "delete", "fail"])
def test_when_the_run_that_works_stops_another_goes_on(end: str) -> None:
    with town([65] if end == "fail" else []) as here:
        hand_in(here, "b", "c")
        controller = here.controller()
        for name in ("tiny", "b", "c"):
            controller.reconcile(name)
        assert names_of_jobs(here) == ["tiny-ingest-a1"]
        if end == "delete":
            here.server.cluster().delete("BrickRun", "tiny", foreground=False)
        elif end == "fail":
            here.executor.step()
            here.executor.step()
        else:
            here.ask(**{end: True})
        for _ in range(3):
            controller.reconcile("tiny")
            here.executor.step() if end != "fail" else None
        controller.reconcile("b")
        controller.reconcile("c")
        live = [name for name in names_of_jobs(here) if not name.startswith("tiny")]
        assert live == ["b-ingest-a1"]
        assert "run b has the same work under way" in first_stage(here, "c")["message"]
        bring_to_end(here, [controller], ["b", "c"])


def test_a_run_that_asks_after_the_sources_were_looked_at_looks_for_itself() -> None:
    """A film may have come meanwhile."""
    with town() as here:
        controller = here.controller()
        controller.reconcile("tiny")
        here.server.advance(60)
        hand_in(here, "late")
        controller.reconcile("late")
        assert first_stage(here, "late")["reason"] == "SameWork"
        bring_to_end(here, [controller], ["tiny", "late"])
        assert made(here) == dict.fromkeys(STAGES, 1) | {"ingest": 2}


def test_a_run_that_asks_for_something_else_does_not_wait() -> None:
    with town() as here:
        hand_in(here, "other", ingest={"sources": [{"path": "/somewhere/else"}]})
        hand_in(here, "how", ingest=run_object()["spec"]["ingest"] | {"decode_timeout_s": 7})
        controller = here.controller()
        for name in ("tiny", "other", "how"):
            controller.reconcile(name)
        assert names_of_jobs(here) == ["other-ingest-a1", "tiny-ingest-a1"]
        assert first_stage(here, "how")["reason"] == "SameWork"


def test_two_controllers_that_make_the_same_at_the_same_moment_leave_one() -> None:
    """Each has looked before the other creates; the one whose child is the younger takes it away again."""
    with town() as here:
        hand_in(here, "b")
        both = threading.Barrier(2, timeout=60)
        controllers = [here.controller(), here.controller()]

        def looked(reconciler: Reconciler) -> None:
            asked = reconciler._others

            def others(raw: Object, task: Task) -> Any:
                found = asked(raw, task)
                if not both.broken and not here.jobs():
                    both.wait()
                return found

            reconciler._others = others  # type: ignore[method-assign]

        for each in controllers:
            looked(each)
        names = ("tiny", "b")
        with here.server.hold():
            with ThreadPoolExecutor(2) as pool:
                list(pool.map(lambda pair: pair[0].reconcile(pair[1]), zip(controllers, names, strict=True)))
            assert made(here) == {"ingest": 2}
            for each, name in zip(controllers, names, strict=True):
                each.reconcile(name)
        assert len(here.jobs()) == 1
        bring_to_end(here, controllers, list(names))
        assert made(here) == dict.fromkeys(STAGES, 1) | {"ingest": 2}


def test_bricks_status_says_which_run_is_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    with town() as here:
        hand_in(here, "b")
        controller = here.controller()
        for name in ("tiny", "b"):
            controller.reconcile(name)
        runs = here.server.cluster().list("BrickRun")
        said = "ingest: run tiny has the same work under way (tiny-ingest-a1)"
        run_screen(next(run for run in runs if run["metadata"]["name"] == "b"), "bricks")
        assert said in capsys.readouterr().out
        runs_screen(runs, "bricks")
        assert "run tiny has the same work" in " ".join(capsys.readouterr().out.split())


class Counted:
    """A store whose calls are noted."""

    def __init__(self, store: Store):
        self._store, self.calls = store, list[tuple[str, str]]()

    def __getattr__(self, name: str) -> Any:
        there = getattr(self._store, name)
        if not callable(there):
            return there

        def call(key: str, *args: Any, **flags: Any) -> Any:
            self.calls.append((name, key.rpartition("/")[2]))
            return there(key, *args, **flags)

        return call


def test_a_look_where_nothing_has_changed_reads_one_set_of_points_and_no_manifest_again() -> None:
    with town() as here:
        controller = here.controller()
        for _ in range(5):
            controller.reconcile("tiny")
            here.executor.step()
        done = [stage["name"] for stage in status(here, "tiny")["stages"] if stage["state"] == "Done"]
        assert done == ["ingest", "clip"]
        controller.reconcile("tiny")
        store = controller.store = Counted(here.store)  # type: ignore[assignment]
        controller.reconcile("tiny")
        assert store.calls[:4] == [
            ("list", ""),
            ("get", "00000002.json"),
            ("head", "manifest.json"),
            ("head", "manifest.json"),
        ]
        assert {name for name, _ in store.calls[4:]} <= {"head"}


def test_a_look_at_a_run_where_nothing_has_changed_makes_three_calls() -> None:
    with town() as here:
        hand_in(here, "b")
        controller = here.controller()
        controller.reconcile("tiny")
        controller.reconcile("b")
        here.executor.step()
        controller.reconcile("tiny")
        here.server.requests.clear()
        controller.reconcile("tiny")
        assert [request.resource for request in here.server.requests] == ["brickruns", "jobs", "pods"]
        here.server.requests.clear()
        controller.reconcile("b")
        asked = [(request.verb, request.resource) for request in here.server.requests]
        assert asked == [("get", "brickruns"), ("list", "jobs"), ("list", "jobs")]
