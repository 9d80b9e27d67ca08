"""A status is read as far as it can be, whoever wrote it."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from bricks_core.controller.status import RunStatus, read_status

SINCE = {"lastTransitionTime": "2026-11-24T12:00:00Z", "reason": "So", "message": "It is so."}
RUNNING = {"type": "Running", "status": "True"} | SINCE
WRITTEN = {
    "observedGeneration": 3,
    "phase": "Running",
    "conditions": [{"type": "Succeeded", "status": "False"} | SINCE, RUNNING],
    "stages": [{"name": "ingest", "state": "Done"}, {"name": "clip", "state": "Running"}],
}


def names(status: RunStatus) -> tuple[list[str], list[str]]:
    return [each.type for each in status.conditions], [each.name for each in status.stages]


def test_what_another_version_knows_more_words_for_is_left_out_and_no_more() -> None:
    newer = WRITTEN | {
        "phase": "Dreaming",
        "conditions": [{"type": "Fed", "status": "True"} | SINCE, *WRITTEN["conditions"]],  # type: ignore[misc]
        "stages": [{"name": "ingest", "state": "Polished"}, {"name": "clip", "state": "Running"}, "serve"],
        "weather": "fine",
    }
    status = read_status(newer)
    assert names(status) == (["Succeeded", "Running"], ["clip"])
    assert (status.phase, status.observed_generation) == ("Pending", 3)
    assert newer["phase"] == "Dreaming", "what was given is as it was"


NONSENSE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from([*WRITTEN, "pinned", "currentStage"]), NONSENSE) | NONSENSE)
def test_of_a_status_that_is_damaged_what_is_whole_is_read(damage: Any) -> None:
    damaged = WRITTEN | damage if isinstance(damage, dict) else damage
    status = read_status(damaged)
    whole = read_status(WRITTEN) if isinstance(damage, dict) else RunStatus()
    for name, field in RunStatus.model_fields.items():
        if not isinstance(damage, dict) or field.alias not in damage:
            assert getattr(status, name) == getattr(whole, name), name
