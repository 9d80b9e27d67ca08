"""Prompts cleaned as Open-Sora's inference scripts do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bricks_core.models.caption_cleaning import STEPS, clean_caption


def test_a_prompt_cleaned_once_and_twice_is_what_the_reference_makes_of_it(golden_json: Callable[[str], Any]):
    pairs = golden_json("caption_cleaning")
    assert pairs
    for pair in pairs:
        assert clean_caption(pair["raw"], num_passes=1) == pair["once"], pair["raw"]
        assert clean_caption(pair["raw"]) == pair["twice"], pair["raw"]


def test_the_steps_are_numbered_as_in_the_specification():
    assert [int((step.__doc__ or "").split(".")[0]) for step in STEPS] == list(range(1, 19))


@pytest.mark.parametrize(
    ("number", "text", "cleaned"),
    [
        (1, " A%20Red+CAR <Person>", "a red car person"),
        (2, "see http:x and www:/ or a.com.org/b-c/ but me@a.com", "see  and  or  but me@"),
        (3, "<i>bold</i> move by @somebody_1!", "bold move by !"),
        (4, "a\u4e2db\u33ffc\u30a2", "abc\u30a2"),
        (5, "a\u2013\u2014b \u00abc\u201d \u2019d", 'a-b "c" \'d'),
        (6, "a&quot;b&quotc&amp;", "abc;"),
        (7, "at 10.0.0.255 see\\nme 3:45 ", "at   see me "),
        (8, "#1 #1234 #12345 123456 12345", " #1234   12345"),
        (9, "a file.name.png and x.mp4", "a  and "),
        (10, "a\"'b.. c (d) . e", 'a"b  c  d e'),
        (11, "a-b_c-d", "a-b_c-d"),
        (11, "a-b_c-d_e", "a b c d e"),
        (12, " a &amp;lt;b&gt; caf\u00c3\u00a9 ", "a <b> caf\u00e9"),
        (13, "abc123 ab1cd 12ab34 abcd123", "   abcd123"),
        (14, "worldwide free shipping free download click on it jpg images page 3", "    "),
        (15, "1a2b3c d4e", "  d4e"),
        (16, "10x20 1.5\u04452 3\u00d74", "  "),
        (17, "a : b,c.d/e 1,2  f", "a: b, c. d/ e 1,2 f"),
        (18, "'-a red car+'", "a red car"),
        (18, ".com", ""),
        (18, "''", ""),
    ],
)
def test_each_step_does_what_its_number_says(number: int, text: str, cleaned: str):
    assert STEPS[number - 1](text) == cleaned


def test_what_is_no_html_after_all_stays():
    assert clean_caption("a car <![x and a house") == "a car <! x and a house"


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(codec="utf-8") | st.sampled_from("<>&#@.-_/\\\"'%+:;0123456789abc \n"), max_size=80))
def test_any_text_can_be_cleaned(text: str):
    cleaned = clean_caption(text)
    assert cleaned == " ".join(cleaned.split())
