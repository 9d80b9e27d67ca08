"""How prompts are written down."""

from __future__ import annotations

from pathlib import Path

import pytest

from bricks_core.diffusion.conditions import Condition
from bricks_core.diffusion.prompts import Prompt, loop_texts, parse_prompt, read_prompts
from bricks_core.errors import UsageError
from bricks_core.models.caption_cleaning import clean_caption


def test_texts_of_loops_are_what_the_reference_makes_of_them(golden_json):
    stored = golden_json("mask_strategy")["prompt_loops"]
    assert stored
    for case in stored:
        texts = loop_texts(case["prompt"], case["num_loop"])
        assert [clean_caption(text) for text in texts] == case["texts"], case["prompt"]


def test_what_stands_in_brackets_at_the_end_is_what_the_reference_reads(golden_json):
    stored = golden_json("mask_strategy")["json_suffix"]
    assert stored
    for case in stored:
        prompt, info = parse_prompt(case["prompt"]), case["info"]
        assert prompt.text == case["text"]
        paths = tuple(path.strip() for path in info.get("reference_path", "").split(";") if path.strip())
        assert prompt.references == (paths or None)
        assert (prompt.conditions is not None) == ("mask_strategy" in info)


def test_a_prompt_brings_several_references_and_conditions():
    line = 'A cliff {"reference_path": "a.png; https://b.org/c.mp4", "mask_strategy": "0;0,1,0,-1,1"}'
    assert parse_prompt(line) == Prompt(
        "A cliff", ("a.png", "https://b.org/c.mp4"), (Condition(), Condition(reference=1, target_start=-1))
    )


def test_brackets_that_do_not_end_the_line_belong_to_the_text():
    assert parse_prompt("A {red} car [of bricks]") == Prompt("A {red} car [of bricks]")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("A {red}", "is no JSON"),
        ('A {"mask_stategy": "0"}', '(did you mean "mask_strategy"?)'),
        ('A {"mask_strategy": 0}', "must be a text"),
        ('A {"mask_strategy": "zero"}', '"zero" in the mask strategy'),
        ('A {"mask_strategy": ' * 20_000 + "}", "is no JSON"),
        ("A \udcff", "is not UTF-8 text"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(line: str, said: str):
    with pytest.raises(UsageError) as refused:
        parse_prompt(line)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("|0|a|0|b", "loops must rise"),
        ("|0|a|x|b", "loops must rise"),
        ("|0|a|2", "take turns"),
        ("|0|a|5|b", "ask for --loops 6"),
        (f"|0|a|{'9' * 5000}|b", "take turns"),
    ],
)
def test_loops_that_cannot_be_meant_are_refused(text: str, said: str):
    with pytest.raises(UsageError) as refused:
        loop_texts(text, 3)
    assert said in str(refused.value)


def test_a_file_has_a_prompt_on_each_line(tmp_path: Path):
    file = tmp_path / "prompts.txt"
    file.write_text('\ufeffA red car\n\n  A cliff{"mask_strategy": "0"}\r\n|0|a|1|b', encoding="utf-8")
    assert read_prompts(file) == [
        Prompt("A red car"),
        Prompt("A cliff", conditions=(Condition(),)),
        Prompt("|0|a|1|b"),
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\n \n", "holds no prompt"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"A car\nA {red}", "line 2: What stands in brackets"),
        (None, "No such file"),
    ],
)
def test_a_file_without_prompts_is_refused_with_its_name(tmp_path: Path, content: bytes | None, said: str):
    file = tmp_path / "prompts.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UsageError) as refused:
        read_prompts(file)
    assert str(file) in str(refused.value)
    assert said in str(refused.value)


def test_a_file_that_has_no_end_is_not_read_until_memory_is_full():
    with pytest.raises(UsageError, match="/dev/zero holds more than 67,108,864 bytes"):
        read_prompts(Path("/dev/zero"))
