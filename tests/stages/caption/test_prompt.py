"""What the vision model is asked."""

from hypothesis import given
from hypothesis import strategies as st

from bricks_core.spec.caption import CaptionSpec
from bricks_core.stages.caption import prompt
from bricks_core.stages.caption.gate import ANSWERS, judge

SPEC = CaptionSpec()


@given(st.lists(st.integers(0, 100), min_size=1, max_size=6, unique=True).map(sorted))
def test_the_numbers_it_says_are_the_numbers_of_the_spec(percents):
    text = prompt.video_prompt(CaptionSpec(frame_shares=[percent / 100 for percent in percents]))
    assert [int(word.strip("%,")) for word in text.split() if "%" in word] == percents


def test_it_asks_for_the_three_exact_answers():
    text = prompt.video_prompt(SPEC).lower()
    assert all(f"answer exactly: {answer}" in text for answer in ANSWERS)


def test_the_image_has_a_prompt_of_its_own_without_time():
    text = prompt.image_prompt(SPEC)
    assert "%" not in text
    assert "Single image" not in text
    assert "Not enough information" in text


@given(st.integers(1, 30))
def test_both_say_the_rules_of_the_spec(max_sentences):
    spec = CaptionSpec(max_sentences=max_sentences, forbidden_words=["gizmo"], style_words=["claymation"])
    for text in (prompt.video_prompt(spec), prompt.image_prompt(spec)):
        number = (["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"][max_sentences - 1]
                  if max_sentences <= 10 else str(max_sentences))  # fmt: skip
        assert f"at most {number} sentences" in text
        assert "gizmo" in text
        assert "claymation" in text


def test_without_words_to_forbid_it_does_not_speak_of_any():
    text = prompt.video_prompt(CaptionSpec(forbidden_words=[], style_words=[]))
    assert "Never use" not in text
    assert "style" not in text


def test_its_examples_keep_the_rules_themselves():
    examples = [line.removeprefix("- ") for line in prompt.video_prompt(SPEC).splitlines() if line.startswith("- ")][
        -3:
    ]
    assert all(len(example.split()) > 40 for example in examples)
    assert [judge(example, SPEC) for example in examples] == [("ok", "")] * 3
