"""The rules that every caption keeps."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bricks_core.spec.caption import CaptionSpec
from bricks_core.stages.caption.gate import judge, num_sentences, tidied

SPEC = CaptionSpec()
GOOD = "A man in a red coat crosses a green field to the right. The evening sun stands low behind him."


def status(text, **settings):
    return judge(text, CaptionSpec(**settings))[0]


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        "Dr. J. Smith walks 2.5 metres to the left, e.g. towards a door.",
        "An unframed door stands open while a framework of beams is imagined by nobody.",
        "A legionary with a videographer's camera waits at the third door.",
        "The first of three horses looks up, then the second one follows to the right.",
        "Two women sit at a café; one says: “No!” The other laughs.",
    ],
)
def test_a_plain_description_passes(text):
    assert judge(text, SPEC) == ("ok", "")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Not enough information", "not_enough_information"),
        ("Not enough information.", "not_enough_information"),
        ("Single image", "single_image"),
        ('"SINGLE IMAGE."', "single_image"),
        ("no movement", "no_movement"),
        ("  No   movement.\n", "no_movement"),
    ],
)
def test_the_three_exact_answers_are_statuses(answer, expected):
    assert status(answer) == expected


def test_a_sentence_that_only_holds_such_an_answer_is_a_description():
    assert status("A woman sits at a window; there is no movement but the rain.") == "ok"


@given(
    word=st.sampled_from(SPEC.forbidden_words),
    ending=st.sampled_from(["", "s", "es", "'s", "’s"]),
    change=st.sampled_from([str.lower, str.upper, str.title]),
    after=st.sampled_from([" ", ".", ",", "-like ", ")", "\n"]),
)
def test_a_forbidden_word_is_found_in_any_case_plural_and_place(word, ending, change, after):
    text = f"A man walks past (a {change(word + ending)}{after} and then a tree to the left"
    verdict, reason = judge(text, SPEC)
    assert verdict == "rejected"
    assert "forbidden word" in reason


@pytest.mark.parametrize("text", ["stop  motion", "Stop-Motion", "stopmotion", "stop\nmotions"])
def test_a_forbidden_phrase_is_found_however_it_is_joined(text):
    assert status(f"A man made in {text} walks to the left.") == "rejected"


@given(st.text(alphabet="abcdefghij", min_size=1, max_size=6), st.text(alphabet="abcdefghij", min_size=1, max_size=6))
def test_only_whole_words_are_forbidden(before, after):
    verdict, _ = judge(f"A man sees {before}frame and frame{after}q and walks to the left.", SPEC)
    assert verdict == "ok"


def test_words_that_end_in_y_have_their_plural_too():
    assert status("A man walks past many bodies to the left.", forbidden_words=["body"]) == "rejected"


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I am sorry, I cannot describe this.",
        "I’m unable to view the pictures you sent me.",
        "I can't assist with identifying people in these.",
        "As an AI language model, I see a man who walks to the left.",
        "Please provide the pictures and I will gladly describe them.",
        "Unfortunately I could not determine what is going on here.",
    ],
)
def test_a_refusal_is_rejected(text):
    verdict, reason = judge(text, SPEC)
    assert verdict == "rejected"
    assert "refused" in reason


@pytest.mark.parametrize(
    "text",
    [
        "Caption failed",
        "Captioning failed: timeout while waiting",
        "Error: API request failed, internal server error.",
        "Sure! A man walks to the left over a field.",
        "Here is a detailed description: a man walks to the left.",
        "Caption: a man walks to the left over a field.",
        "A man walks to the left <|endoftext|> over a field.",
        "null",
        "N/A",
    ],
)
def test_what_is_left_over_of_a_program_is_rejected(text):
    assert status(text) == "rejected"


@pytest.mark.parametrize(
    "text",
    [
        "In the first picture a man stands, in the second picture he walks away.",
        "A man stands at a door. In the last one he is gone.",
        "Across all three stills a man walks to the left.",
        "- A man stands at a door and waits",
        "1. A man stands at a door and waits",
    ],
)
def test_going_through_the_pictures_one_by_one_is_rejected(text):
    verdict, reason = judge(text, SPEC)
    assert verdict == "rejected"
    assert "one by one" in reason


@given(st.integers(1, 12))
def test_more_sentences_than_allowed_are_rejected(count):
    text = " ".join(["The man walks on."] * count)
    assert num_sentences(text) == count
    assert status(text) == ("ok" if count <= 5 else "rejected")


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("He stops… Then he runs!", 2),
        ("He weighs 2.5 kg.", 1),
        ("Mr. Smith meets Mrs. Jones.", 1),
        ("“Stop!” he calls. She stops.", 3),
        ("He walks", 1),
        ("", 0),
        ("...", 0),
    ],
)
def test_sentences_are_counted_as_a_reader_does(text, count):
    assert num_sentences(text) == count


def test_too_short_and_too_long_are_rejected():
    assert status("A man.") == "rejected"
    assert status("A man walks " + "on and on " * 100) == "rejected"


@given(st.text())
def test_any_text_whatever_gets_a_status_and_a_reason(text):
    verdict, reason = judge(text, SPEC)
    assert verdict in ("ok", "rejected", "failed", "single_image", "no_movement", "not_enough_information")
    assert (verdict == "ok") == (reason == "")


@given(st.text())
def test_tidying_twice_changes_nothing_more(text):
    once = tidied(text)
    assert tidied(once) in (once, once[1:-1].strip())
    assert "\n" not in once


@pytest.mark.parametrize("text", ["", " ", "\n\t", '""'])
def test_an_empty_answer_has_failed(text):
    assert judge(text, SPEC) == ("failed", "the answer is empty")
