"""Shares of claims that are kept: by kind, next to chance, with intervals over prompts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bricks_core.errors import DataError
from bricks_core.judge.facts import Claim, facts
from bricks_core.judge.kept import Verdict, scene_of, verdicts
from bricks_core.stages.evaluate.measures.adherence import ALL, adherence, chance, change, shares_kept

RED, BLUE, LEFT = (
    Claim("colours", "red", ("red",)),
    Claim("colours", "blue", ("blue",)),
    Claim("direction", "to the left"),
)


def test_shares_are_of_the_claims_that_could_be_told():
    found = shares_kept([[Verdict(RED, True), Verdict(BLUE, False), Verdict(LEFT, None)], [Verdict(LEFT, True)], []])
    np.testing.assert_array_equal(found["colours"], [0.5, np.nan, np.nan])
    np.testing.assert_array_equal(found["direction"], [np.nan, 1, np.nan])
    np.testing.assert_array_equal(found[ALL], [0.5, 1, np.nan])
    assert np.isnan(found["camera"]).all()


@pytest.fixture(scope="module")
def drawn(drawing):
    """(prompts, scenes): four samples each of two prompts, that keep what they say."""
    prompts, scenes = [], []
    for ground, way, dx in (("green", "right", 8), ("blue", "left", -8)):
        for seed in range(4):
            mover = drawing.Mover("red", x=20 if dx > 0 else 120, dx=dx)
            prompts.append(f"One red car drives to the {way} on a {ground} ground in daylight.")
            scenes.append(scene_of(drawing.scene([mover], num_frames=16, ground=ground, seed=seed)[::2], 6.0))
    return prompts, scenes


def figures(prompts, scenes):
    claims = [facts(prompt).claims for prompt in prompts]
    kept = shares_kept([verdicts(each, scene) for each, scene in zip(claims, scenes, strict=True)])
    return adherence(kept, prompts, chance(claims, scenes))


def test_what_the_prompts_share_is_kept_by_chance_and_what_they_do_not_is_above_it(drawn):
    found = figures(*drawn)
    assert "camera" not in found
    assert found["ground"].kept.value == found["direction"].kept.value == found["colours"].kept.value == 1
    assert found["ground"].chance.value == found["direction"].chance.value == 0
    assert found["ground"].is_above_chance
    assert found["colours"].chance.value == found["light"].chance.value == 1
    assert not found["colours"].is_above_chance
    assert found["ground"].kept.num == 2
    assert found["ground"].num_samples == 8


def test_samples_of_other_prompts_are_at_chance(drawn):
    prompts, scenes = drawn
    found = figures(prompts, [*scenes[2:4], *scenes[4:6], *scenes[:2], *scenes[6:]])
    assert found["ground"].kept.value == 0.5
    assert not found["ground"].is_above_chance


def test_chance_takes_another_prompt(drawn):
    prompts, scenes = drawn
    found = figures(prompts[:4], scenes[:4])
    assert found["ground"].kept.value == 1
    assert found["ground"].chance is None
    assert not found["ground"].is_above_chance
    with pytest.raises(DataError, match="give each sample"):
        chance([[RED]], [])


def test_the_same_claims_are_the_same_prompt(drawn):
    _, scenes = drawn
    twice = [[RED], [replace(RED)]]
    assert np.isnan(chance(twice, scenes[:2])["colours"]).all()


def test_a_change_is_of_the_pairs_that_could_be_told():
    tuned = shares_kept([[Verdict(RED, True)], [Verdict(RED, True)], [Verdict(RED, True)], [Verdict(LEFT, True)]])
    base = shares_kept([[Verdict(RED, False)], [Verdict(RED, False)], [Verdict(RED, None)], [Verdict(LEFT, None)]])
    found = change(tuned, base, ["a", "b", "c", "d"])
    assert {*found} == {"colours", ALL}
    assert (found["colours"].value, found["colours"].num) == (1, 2)
    assert change(tuned, tuned, ["a", "b", "c", "d"])["colours"].value == 0
