"""Whatever happens to the controller and around it, a run comes to the same end: killed, doubled, refused, held up."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.controller.town import town
from tests.kubernetes.double import Double, Fault, Request

EFFECTS = (
    "kill before",
    "kill after",
    "another controller",
    "pods go on",
    "time passes",
    "store away",
    "store busy",
)
FAULTS = (
    *(Fault(status=status) for status in (409, 404, 410, 429, 500, 503)),
    Fault(drop="before"),
    Fault(drop="after"),
)
CODES = (0, 0, 0, 1, 69, 75, 137, 143, 143, 70, 65)
strikes = st.dictionaries(st.integers(1, 24), st.sampled_from(EFFECTS), max_size=3)
looks = st.tuples(st.just("look"), strikes)
faults = st.tuples(st.just("fault"), st.tuples(st.integers(1, 12), st.sampled_from(FAULTS)))
others = st.sampled_from([("pods", None), ("time", None), ("suspend", None), ("resume", None), ("status", None)])
moves = st.lists(st.one_of(looks, looks, faults, others), min_size=4, max_size=24)


def strike_requests(server: Double, after: int, fault: Fault) -> None:
    """The controller's so many-th request from now on goes wrong."""
    left = [after]

    def hook(request: Request) -> Fault | None:
        left[0] -= 1
        return fault if left[0] == 0 else None

    server.faults.append(hook)


# Shrinking takes minutes here; a failure says its moves, and how to have them again.
@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
@given(moves, st.lists(st.sampled_from(CODES), max_size=8))
def test_whatever_happens_a_run_comes_to_the_end_that_its_tries_deserve(moves: list[Any], codes: list[int]) -> None:
    with town(list(codes)) as struck:
        controller = struck.controller()
        for move, what in moves:
            match move:
                case "look":
                    controller = struck.look(controller, what)
                case "fault":
                    strike_requests(struck.server, *what)
                case "pods":
                    struck.executor.step()
                case "time":
                    struck.server.advance(300)
                case "suspend" | "resume":
                    struck.server.faults.clear()
                    struck.ask(suspend=move == "suspend")
                case "status":
                    struck.lose_status()
            struck.check()
        struck.server.faults.clear()
        struck.ask(suspend=False)
        struck.come_to_rest(controller)
        struck.check_end()


def test_killed_after_every_single_call_it_leaves_what_it_would_have_left() -> None:
    """One run, and a controller that dies at the next call, then at the one after it, and so on through every look."""
    with town([137, 0, 143]) as struck:
        controller, num_kills, call = struck.controller(), 0, 1
        for _ in range(600):
            if struck.condition("Finished").get("status") == "True":
                break
            before = controller
            controller = struck.look(controller, {call: "kill after"})
            if controller is before:  # it came through the whole look: the next one begins at its first call again
                call = 1
                struck.executor.step()
                struck.server.advance(100)
            else:
                num_kills, call = num_kills + 1, call + 1
        assert num_kills > 100
        struck.check_end()


@pytest.mark.parametrize("codes", [[75, 0, 143], [143, 137, 1, 143, 137, 137, 137, 137]])
def test_two_controllers_that_take_turns_at_every_call_make_one_of_each(codes: list[int]) -> None:
    with town(list(codes)) as struck:
        controller = struck.controller()
        for _ in range(8):
            struck.look(controller, dict.fromkeys(range(1, 30, 2), "another controller"))
            struck.executor.step()
            struck.server.advance(100)
        struck.come_to_rest(controller)
        struck.check_end()
