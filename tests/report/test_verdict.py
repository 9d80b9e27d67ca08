"""The rule of the verdict, on planted numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bricks_core.report.evidence import Copies, Evidence, Kept, Losses, losses_of, repeats_of
from bricks_core.report.intervals import Interval
from bricks_core.report.verdict import FLOOR, verdict_of
from bricks_core.spec.score import Score
from bricks_core.spec.train import ClipLossRow

STEPS = (0, 250, 500, 750, 1000)


def rows(
    held_out: dict[int, float],
    train: dict[int, float] | None = None,
    *,
    num_clips: int = 16,
    num_films: int = 4,
    noise: float = 0.01,
) -> list[ClipLossRow]:
    """Clips whose losses have these means; a clip's own difficulty stays, and `noise` is added at every step."""
    rng = np.random.default_rng(0)
    found = []
    for split, means in (("held_out", held_out), ("train", train or {})):
        difficulty = rng.uniform(0.5, 1.5, num_clips)
        difficulty /= difficulty.mean()
        for step, mean in means.items():
            for clip in range(num_clips):
                loss = float(mean * difficulty[clip] * (1 + noise * rng.standard_normal()))
                found.append(
                    ClipLossRow(
                        id=f"{step}/{split}/{clip}", step=step, weights="ema", bucket="8f", split=split, loss=loss,
                        clip_id=f"{split}-{clip}", video_id=f"{split}-film-{clip % num_films}", mse=loss,
                    )
                )  # fmt: skip
    return found


def losses(*means: float, train: tuple[float, ...] = (), **kind) -> Losses:
    found = losses_of(
        rows(dict(zip(STEPS, means, strict=True)), dict(zip(STEPS, train, strict=False)), **kind), weights="ema"
    )
    assert found is not None
    return found


def sure(value: float, half: float = 0.05) -> Interval:
    return Interval(value, value - half, value + half, 24)


GOOD = Evidence(
    base_is_random=False,
    losses=losses(0.10, 0.080, 0.070, 0.0650, 0.0649),
    num_prompts=24,
    num_samples=96,
    adherence=Kept(sure(0.5), sure(0.8), sure(0.3), chance=0.2),
    ability=Kept(sure(0.8), sure(0.78), sure(-0.02), chance=0.2),
    style=sure(0.8),
    copies=Copies(0, 96, Interval(0.0, 0.0, 0.03, 24), expected=0.02),
)


def word(evidence: Evidence) -> str:
    return verdict_of(evidence).word


def test_a_run_that_learns_and_has_come_to_rest_is_to_be_kept():
    verdict = verdict_of(GOOD)
    assert (verdict.word, verdict.step) == ("keep", 1000)
    assert verdict.reasons[0].startswith("The held-out loss fell by 35")
    assert not verdict.unknown


def test_a_loss_that_is_still_falling_asks_for_more_steps():
    falling = replace(GOOD, losses=losses(0.10, 0.09, 0.08, 0.07, 0.06))
    assert word(falling) == "train longer"
    assert "still falling" in verdict_of(falling).reasons[0]


def test_nothing_learnt_is_noise_and_not_a_gain():
    for means in [(0.1, 0.1, 0.1, 0.1, 0.1), (0.1, 0.0999, 0.0999, 0.0998, 0.0998)]:
        verdict = verdict_of(replace(GOOD, losses=losses(*means)))
        assert verdict.word == "train longer"
        assert "noise" in verdict.reasons[0]


def test_a_loss_that_rises_after_its_least_is_overfitting_and_names_the_step_before():
    overfitted = replace(GOOD, losses=losses(0.10, 0.07, 0.08, 0.09, 0.095, train=(0.10, 0.06, 0.04, 0.02, 0.01)))
    verdict = verdict_of(overfitted)
    assert (verdict.word, verdict.step) == ("overfitting", 250)
    assert verdict.title == "Overfitting: take step 250"
    assert "Clips of training gained" in verdict.reasons[1]


def test_a_loss_that_only_rises_is_worse_than_base():
    assert word(replace(GOOD, losses=losses(0.10, 0.11, 0.12, 0.13, 0.14))) == "worse than base"


def test_samples_that_lose_what_the_base_could_do_are_worse_however_the_loss_fell():
    """As with captions that are shuffled among the clips: the look is learnt, and what words mean is lost."""
    shuffled = replace(GOOD, ability=Kept(sure(0.8), sure(0.4), sure(-0.4), chance=0.2))
    assert word(shuffled) == "worse than base"
    null_broken = replace(
        GOOD, adherence=Kept(sure(0.5), sure(0.3), sure(-0.2), chance=0.2), weak_null="The null branch is weak."
    )
    verdict = verdict_of(null_broken)
    assert verdict.word == "worse than base"
    assert "The null branch is weak." in verdict.reasons


def test_samples_that_are_clips_of_training_are_overfitting_though_the_loss_fell():
    copied = replace(GOOD, copies=Copies(30, 96, Interval(0.31, 0.2, 0.42, 24), expected=0.02))
    verdict = verdict_of(copied)
    assert verdict.word == "overfitting"
    assert verdict.reasons[0].startswith("30 of 96 samples repeat clips of training")


def test_samples_that_look_as_before_ask_for_more_steps():
    assert word(replace(GOOD, style=Interval(0.05, -0.05, 0.15, 24))) == "train longer"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"losses": None}, "No held-out loss"),
        ({"losses": None, "is_measured": True}, "an earlier version kept no losses of single clips"),
        ({"losses": losses(0.10, 0.08, 0.07, 0.065, 0.065, num_clips=1, num_films=1)}, "1 clip from 1 film"),
        ({"losses": losses(0.10, 0.08, 0.07, 0.065, 0.065, num_films=2)}, "16 clips from 2 films"),
        ({"repeats": [("a", "b")]}, "repeats one of training (a is b)"),
        ({"num_samples": 4}, "4 in all"),
        ({"base_is_random": True, "adherence": None}, "random weights"),
    ],
)
def test_below_the_floor_nothing_is_concluded(changes, said):
    verdict = verdict_of(replace(GOOD, **changes))
    assert verdict.word == "not enough evidence"
    assert verdict.step is None
    assert any(said in reason for reason in verdict.reasons)
    assert verdict.advice


def test_every_lack_says_what_to_do():
    few_and_random = replace(
        GOOD, losses=losses(0.10, 0.08, 0.07, 0.065, 0.065, num_films=2), base_is_random=True, adherence=None
    )
    advice = verdict_of(few_and_random).advice
    assert "score.held_out_share" in advice
    assert "train.init_from" in advice


def test_without_the_base_models_clips_no_later_step_stands_for_it():
    found = rows({250: 0.08, 500: 0.07})
    assert losses_of(found, "ema") is None


def test_a_random_beginning_is_judged_by_what_samples_keep_of_their_prompts():
    scratch = replace(GOOD, base_is_random=True, ability=None)
    assert word(scratch) == "keep"
    by_luck = replace(scratch, adherence=Kept(None, sure(0.22), None, chance=0.2))
    assert word(by_luck) == "train longer"


@pytest.mark.parametrize(("apart", "wanted"), [(1.0, "train longer"), (0.97, "train longer"), (0.8, "keep")])
def test_a_random_beginning_is_no_success_while_its_samples_are_told_from_held_out_clips(apart, wanted):
    """Blotches in the words' colours keep more of their prompts than luck does."""
    scratch = replace(GOOD, base_is_random=True, ability=None, told_from_real=Interval(apart, 0.4, 1.0, 3))
    assert word(scratch) == wanted
    assert word(replace(scratch, base_is_random=False)) == "keep"


def test_what_was_not_measured_is_told():
    loss_alone = replace(GOOD, adherence=None, ability=None, style=None, copies=None)
    assert verdict_of(loss_alone).word == "keep"
    assert len(verdict_of(loss_alone).unknown) == 4


def score(clip: str, split: str, hashes: list[int], state: str = "kept") -> Score:
    numbers = {name: 0.0 for name, field in Score.model_fields.items() if field.annotation is float}
    return Score(
        id=clip, video_id="v", num_frames=48, split=split, state=state, reasons=[],
        perceptual_hash=[f"{each:016x}" for each in hashes], **numbers,
    )  # fmt: skip


def test_held_out_clips_that_repeat_clips_of_training_are_found_and_others_on_the_set_are_not():
    shown = [0x0F0F0F0F0F0F0F0F, 0x1234567812345678, 0xFFFF0000FFFF0000]
    encoded_again = [each ^ 0b11 for each in shown]
    elsewhere = [each ^ 0xFFFF for each in shown]
    rows = [
        score("learnt", "train", shown),
        score("dropped", "train", elsewhere, state="dropped"),
        score("same", "held_out", shown),
        score("again", "held_out", encoded_again),
        score("other", "held_out", elsewhere),
    ]
    assert repeats_of(rows) == [("same", "learnt"), ("again", "learnt")]
    assert repeats_of(rows[2:]) == []


def test_the_floor_is_met_exactly():
    least = losses(0.10, 0.08, 0.07, 0.0650, 0.0649, num_clips=FLOOR.clips, num_films=FLOOR.films)
    assert word(replace(GOOD, losses=least, num_samples=FLOOR.samples, num_prompts=FLOOR.prompts)) == "keep"


def test_with_the_same_losses_at_every_step_the_verdict_is_noise_in_nineteen_of_twenty_repetitions():
    wrong = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        found = []
        for step in STEPS:
            for clip in range(16):
                loss = 0.1 * (1 + 0.03 * rng.standard_normal())
                found.append(
                    ClipLossRow(
                        id=f"{step}/{clip}", step=step, weights="ema", bucket="8f", split="held_out", loss=loss,
                        clip_id=str(clip), video_id=str(clip % 4), mse=loss,
                    )
                )  # fmt: skip
        wrong += verdict_of(replace(GOOD, losses=losses_of(found, "ema"))).word != "train longer"
    assert wrong <= 10
