"""Real clips keep what is said of them, others do so by chance, and what is altered is lost and nothing else."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import cv2
import numpy as np
import pytest

from bricks_core.errors import DataError
from bricks_core.judge.facts import KINDS, Claim, facts
from bricks_core.judge.kept import Measured, Verdict, scene_of, verdicts
from tests.judge.filmed import FPS

TEXTS = {"sentence": lambda scene: scene.sentence, "caption": lambda scene: scene.caption}
CEILING = {"ground": 0.9, "light": 0.9, "colours": 0.9, "direction": 0.85}
CHANCE = {"ground": 0.3, "light": 0.65, "colours": 0.6, "direction": 0.35}
"""Up to which a sample of another prompt keeps its claims: grounds are of seven colours and lights of four kinds."""


def share(judged: list[Verdict], kind: str = "") -> float:
    told = [each.kept for each in judged if each.kept is not None and kind in ("", each.claim.kind)]
    return float(np.mean(told)) if told else float("nan")


def claims_of(scene, text):
    return facts(TEXTS[text](scene)).claims


def all_judged(filmed, text, altered=lambda sample: sample):
    """Of all scenes, each by its own text."""
    return [
        verdict for each in filmed for verdict in verdicts(claims_of(each, text), scene_of(altered(each.sample), FPS))
    ]


@pytest.fixture(scope="session")
def own(filmed):
    return {
        text: [each for scene in filmed for each in verdicts(claims_of(scene, text), scene.measured)] for text in TEXTS
    }


@pytest.fixture(scope="session")
def of_others(filmed):
    """Each text judged by all other scenes of its look."""
    return {
        text: [
            verdict
            for scene in filmed
            for other in filmed
            if other is not scene and other.look == scene.look
            for verdict in verdicts(claims_of(scene, text), other.measured)
        ]
        for text in TEXTS
    }


@pytest.mark.parametrize("kind", CEILING)
@pytest.mark.parametrize("text", TEXTS)
def test_a_real_clip_keeps_what_is_said_of_it_and_another_one_does_by_chance(own, of_others, text, kind):
    assert share(own[text], kind) >= CEILING[kind]
    assert share(of_others[text], kind) <= CHANCE[kind]


def test_cameras_and_numbers_are_told_more_often_than_by_chance(own, of_others):
    for text, kind, more in (("sentence", "camera", 0.5), ("sentence", "count", 0.15), ("caption", "camera", 0.1)):
        assert share(own[text], kind) >= share(of_others[text], kind) + more


@pytest.mark.parametrize(
    ("altered", "least"),
    [
        (lambda sample: np.stack([cv2.GaussianBlur(each, (0, 0), 1.0) for each in sample]), 0.95),
        (lambda sample: np.clip(sample + np.random.default_rng(0).normal(0, 8, sample.shape), 0, 255), 0.95),
        (lambda sample: sample * 0.93, 0.95),
    ],
    ids=["blur", "noise", "darker"],
)
def test_blur_and_noise_move_it_little(filmed, own, altered, least):
    some = filmed[::3]
    judged = all_judged(some, "caption", lambda sample: altered(sample).astype(np.uint8))
    before = [each for scene in some for each in verdicts(claims_of(scene, "caption"), scene.measured)]
    assert share(judged) >= least * share(before)


OTHER = {
    "ground": {"green": "red", "yellow": "blue", "grey": "yellow", "white": "red", "red": "green", "blue": "yellow"},
    "direction": {"to the left": "to the right", "to the right": "to the left", "up": "to the left"},
    "light": {"day": "night", "night": "day", "sunset": "night", "mist": "night"},
    "colours": dict.fromkeys(("red", "yellow", "blue", "white", "orange"), "purple"),
    "camera": {"to the left": "to the right", "to the right": "to the left"},
}


@pytest.mark.parametrize("kind", OTHER)
def test_the_more_facts_are_swapped_the_less_is_kept_and_only_of_their_kind(filmed, kind):
    """Swapped in the prompt, in a quarter, a half and all of the sentences."""
    seen = [(scene, claims_of(scene, "sentence")) for scene in filmed]
    seen = [each for each in seen if any(claim.kind == kind and claim.value in OTHER[kind] for claim in each[1])]
    kept = {}
    for part in (0, 0.25, 0.5, 1):
        swapped = [
            (scene, [_swapped(claim, kind) for claim in claims] if place < part * len(seen) else claims)
            for place, (scene, claims) in enumerate(seen)
        ]
        judged = [verdict for scene, claims in swapped for verdict in verdicts(claims, scene.measured)]
        kept[part] = {each: share(judged, each) for each in KINDS}
    falling = [kept[part][kind] for part in (0, 0.25, 0.5, 1)]
    assert all(one > other for one, other in pairwise(falling)), falling
    assert falling[-1] < 0.2
    for other in set(KINDS) - {kind}:
        assert len({str(kept[part][other]) for part in kept}) == 1


def _swapped(claim: Claim, kind: str) -> Claim:
    if claim.kind != kind or claim.value not in OTHER[kind]:
        return claim
    value = OTHER[kind][claim.value]
    return replace(claim, value=value, kept_by=(value,) if claim.kept_by else ())


def test_a_fact_that_is_dropped_from_the_prompt_leaves_the_others_as_they_were(filmed):
    for scene in filmed[:8]:
        claims = claims_of(scene, "sentence")
        whole = verdicts(claims, scene.measured)
        for place in range(len(claims)):
            assert verdicts([*claims[:place], *claims[place + 1 :]], scene.measured) == [
                *whole[:place],
                *whole[place + 1 :],
            ]


def test_frames_in_another_order_lose_the_direction_and_little_else(filmed):
    crossing = [scene for scene in filmed if scene.kind in ("drive", "walk", "launch")]
    order = [3, 6, 1, 4, 7, 0, 5, 2]
    before = [each for scene in crossing for each in verdicts(claims_of(scene, "sentence"), scene.measured)]
    after = all_judged(crossing, "sentence", lambda sample: sample[order])
    backwards = all_judged(crossing, "sentence", lambda sample: sample[::-1])
    assert share(after, "direction") < share(before, "direction") - 0.25
    assert share(backwards, "direction") < 0.1
    for kind in ("ground", "light", "colours"):
        assert share(after, kind) >= share(before, kind) - 0.05


def kept(claim, sample):
    return Measured().judged([claim], sample, FPS)[0].kept


def test_what_is_said_to_move_and_does_not_is_not_kept_and_its_number_cannot_be_told(filmed):
    still = np.repeat(next(scene for scene in filmed if scene.kind == "walk").sample[:1], 8, axis=0)
    assert kept(Claim("direction", "to the left"), still) is False
    assert kept(Claim("direction", "in place"), still) is False
    assert kept(Claim("direction", "up and down"), still) is False
    assert kept(Claim("count", "one"), still) is None
    assert kept(Claim("camera", "still"), still) is True
    assert kept(Claim("camera", "to the left"), still) is False


def test_of_a_single_frame_nothing_is_told_that_takes_two(filmed):
    frame = filmed[0].sample[:1]
    for claim in (Claim("direction", "up"), Claim("camera", "still"), Claim("count", "one")):
        assert kept(claim, frame) is None
    assert kept(Claim("light", "bright"), frame) is not None


def test_a_camera_that_moves_does_not_make_things_move(drawing):
    pan = drawing.scene(pan_px=4)[::4]
    assert kept(Claim("camera", "to the right"), pan)
    assert not kept(Claim("camera", "to the left"), pan)
    assert not kept(Claim("camera", "still"), pan)
    assert not kept(Claim("direction", "to the left"), pan)


@pytest.mark.parametrize(("way", "is_kept"), [("up and to the right", True), ("up", True), ("to the left", False)])
def test_a_way_is_kept_by_one_an_eighth_of_a_turn_off(drawing, way, is_kept):
    rising = drawing.scene([drawing.Mover("red", 20, 75, 8, -6)], num_frames=16)[::2]
    assert kept(Claim("direction", way), rising) == is_kept


def test_a_black_sample_keeps_nothing_but_the_dark(filmed):
    black = np.zeros((8, 96, 160, 3), np.uint8)
    claims = facts("One red car drives to the left on a yellow ground at night.").claims
    assert [each.claim.kind for each in Measured().judged(claims, black, FPS) if each.kept] == ["light"]


@pytest.mark.parametrize("seed", range(3))
def test_a_sample_of_nothing_but_noise_is_judged_too(seed):
    dice = np.random.default_rng(seed)
    claims = facts("One red car drives to the left on a yellow ground at night. The camera stands still.").claims
    lights = dice.integers(0, 256, (8, 1, 1, 1))
    for frames in (dice.integers(0, 256, (8, 96, 160, 3)), np.broadcast_to(lights, (8, 96, 160, 3))):
        assert len(Measured().judged(claims, frames.astype(np.uint8), FPS)) == len(claims)
    flashing = np.repeat(np.array([10, 200] * 4, np.uint8), 96 * 160 * 3).reshape(8, 96, 160, 3)
    assert len(Measured().judged(claims, flashing, FPS)) == len(claims)


@pytest.mark.parametrize(
    ("frames", "fps"),
    [
        (np.zeros((8, 96, 160), np.uint8), 6.0),
        (np.zeros((0, 96, 160, 3), np.uint8), 6.0),
        (np.zeros((8, 96, 160, 3), np.float32), 6.0),
        (np.zeros((8, 96, 160, 3), np.uint8), 0.0),
        (np.zeros((8, 96, 160, 3), np.uint8), float("nan")),
    ],
)
def test_what_is_no_sample_is_refused_with_a_sentence(frames, fps):
    with pytest.raises(DataError, match="A clip"):
        scene_of(frames, fps)
