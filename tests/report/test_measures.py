"""Measures in report.json, on the page and in report.md: the same numbers everywhere."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import jsonschema
import pytest

from bricks_core.report.evidence import with_measures
from bricks_core.report.facts import Change
from bricks_core.report.files import report_json
from bricks_core.report.gates import judge
from bricks_core.report.intervals import Interval
from bricks_core.report.markdown import WIDTH, report_md
from bricks_core.report.page import Picture, Player, Prompt, page_of, tiles
from bricks_core.report.schema import report_schema
from bricks_core.report.verdict import verdict_of
from bricks_core.spec.gates import Gate
from tests.report.planted import kept, measures, model, some_facts

ROOT = Path(__file__).parents[2]
PANEL = Picture("report/panels/prompt-00.jpg", 900, 200, "A panel.")


class Section(HTMLParser):
    """Values of <data> in the section of measures, and the words outside them, charts, and what measures are."""

    def __init__(self, html: str):
        super().__init__()
        self.values, self.words, self.tips, self._inside = [], [], [], []
        begin = html.index('<section id="measures"')
        self.feed(html[begin : html.index("</section>", begin)])

    def handle_starttag(self, tag, attrs):
        if tag not in ("img", "meta", "link", "br"):
            self._inside.append(tag)
        if tag == "data":
            self.values.append(json.loads(dict(attrs)["value"]))

    def handle_endtag(self, tag):
        while self._inside.pop() != tag:
            pass

    def handle_data(self, text):
        if "title" in self._inside:
            self.tips.append(text)
        elif not {"data", "svg", "dl"} & set(self._inside):
            self.words.append(text)


def page(facts):
    players = [Player("report/samples/a.mp4", "base", 0, "a.jpg"), Player("report/samples/b.mp4", "ema", 9, "b.jpg")]
    steps = [{"step": 0, "label": "step 0", "base": "a.mp4"}, {"step": 9, "label": "step 9", "ema": "b.mp4"}]
    return page_of(facts, [Prompt("A red car", players, steps, PANEL)], None, [])


def numbers_in(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return {number for each in value for number in numbers_in(each)}
    return {value} if isinstance(value, int | float) and not isinstance(value, bool) else set()


def texts_in(value):
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list):
        return [text for each in value for text in texts_in(each)]
    return [value] if isinstance(value, str) else []


@pytest.fixture(scope="module")
def facts():
    return some_facts(measures())


def test_every_figure_on_the_page_is_in_the_report(facts):
    told = json.loads(report_json(facts))["measures"]
    section = Section(page(facts))
    assert len(section.values) > 200
    assert set(section.values) <= numbers_in(told)


def test_no_number_stands_on_the_page_that_is_not_marked_as_a_figure_or_part_of_a_text_of_the_report(facts):
    told = json.loads(report_json(facts))["measures"]
    known = " ".join(texts_in(told)) + " 95 % step 1,200 step 2,000"
    for text in Section(page(facts)).words:
        for number in re.findall(r"\d[\d,.]*", text):
            assert number.rstrip(".,") in known, text


def test_tips_of_charts_are_roundings_of_figures(facts):
    told = numbers_in(json.loads(report_json(facts))["measures"])
    rounded = {f"{number:.3g}" for number in told}
    tips = [tip for tip in Section(page(facts)).tips if "(" in tip]
    assert len(tips) > 40
    for tip in tips:
        assert set(re.findall(r"-?\d+\.?\d*(?:e-\d+)?", tip.rpartition("(")[2])) <= rounded, tip


def test_the_schema_is_the_committed_one_and_the_report_keeps_to_it(facts):
    schema = report_schema()
    assert (ROOT / "docs/report.schema.json").read_text(encoding="utf-8") == schema, "make generated writes it again"
    validator = jsonschema.Draft202012Validator(json.loads(schema))
    validator.validate(json.loads(report_json(facts)))
    validator.validate(json.loads(report_json(some_facts())))
    unsure = replace(model(), adherence=[replace(kept("style")[0], tuned=Interval(0.5, 0, float("inf"), 1))])
    told = json.loads(report_json(some_facts(measures(tuned=unsure))))
    assert told["measures"]["tuned"]["adherence"][0]["tuned"]["high"] is None
    validator.validate(told)
    told["measures"]["tuned"]["adherence"][0]["kind"] = 3
    with pytest.raises(jsonschema.ValidationError):
        validator.validate(told)


def test_the_text_is_narrow_and_begins_with_the_verdict(facts):
    text = report_md(facts)
    assert text.startswith(f"# {verdict_of(facts.evidence).title}\n")
    assert max(map(len, text.splitlines())) <= WIDTH
    assert "| all        | 55 % (48–62) | 81 % (74–88) |   31 % |" in text
    assert "Samples stand at 0.87 (0.76 to 0.98)" in text
    assert "pictures are not seen" in " ".join(text.split())


def test_without_measures_the_text_and_the_page_tell_of_none():
    facts = some_facts()
    assert "## Samples" not in report_md(facts)
    assert 'id="measures"' not in page(facts)
    assert json.loads(report_json(facts))["measures"] is None


def test_what_has_no_interval_is_shown_without_one_and_what_was_not_measured_as_a_dash():
    alone = Interval(0.5, float("-inf"), float("inf"), 1)
    bare = replace(kept("style")[0], tuned=alone, base=None, chance=None, gain=None, change=None)
    tuned = replace(model(), adherence=[bare], style=None, motion=[])
    facts = some_facts(measures(tuned=tuned, others=[], drift=[], memorisation=None, audit=None))
    html = page(facts)
    assert "inf" not in html[html.index('<section id="measures"') : html.index('<section id="learning"')].lower()
    assert "of one alone" in html
    assert "| all  |    – |  50 % |      – |      – |" in report_md(facts)


def test_what_users_write_is_no_markup():
    told = measures(others=[model("x", "<img src=x onerror=alert(1)>")], missing={"<b>what</b>": "<script>"})
    html = page(some_facts(told))
    assert "<img src=x" not in html
    assert "<b>what</b>" not in html
    assert "<script>:" not in html


def test_the_evidence_has_the_numbers_of_the_measures(facts):
    evidence, told = facts.evidence, facts.measures
    assert evidence.adherence.tuned == told.tuned.kept("style").tuned
    assert evidence.ability.change == told.tuned.kept("plain").change
    assert evidence.style == told.tuned.style.position
    assert (evidence.copies.num, evidence.copies.of) == (3, 144)
    assert (evidence.num_prompts, evidence.num_samples) == (36, 144)
    assert verdict_of(evidence).unknown == []
    weak = with_measures(evidence, measures(audit=replace(told.audit, finding="The null branch is weak.")))
    assert "The null branch is weak." in verdict_of(weak).reasons


def test_of_a_single_prompt_nothing_is_concluded(facts):
    bare = [replace(each, chance=None, gain=None) for each in kept("style")]
    evidence = with_measures(facts.evidence, measures(tuned=replace(model(), adherence=bare)))
    assert evidence.adherence is None
    assert "facts of prompts" in verdict_of(evidence).unknown


@pytest.mark.parametrize(
    ("gate", "judgement"),
    [
        ({"metric": "adherence", "at_least": 0.8}, "passed"),
        ({"metric": "adherence", "at_least_of_base": 1.5}, "failed"),
        ({"metric": "ability", "at_least_of_base": 0.9}, "passed"),
        ({"metric": "style.position", "at_least": 0.9}, "failed"),
        ({"metric": "copies.share", "at_most": 0.05}, "passed"),
    ],
)
def test_gates_are_held_against_the_same_numbers(facts, gate, judgement):
    assert judge(json.loads(report_json(facts)), [Gate(**gate)]).gates[0].judgement == judgement


def test_what_was_not_measured_passes_no_gate():
    gates = [Gate(metric=name, at_least=0) for name in ("adherence", "ability", "style.position", "copies.share")]
    told = judge(json.loads(report_json(some_facts())), gates).gates
    assert {each.judgement for each in told} == {"unknown"}


def test_a_position_has_no_base():
    with pytest.raises(ValueError, match=r"style\.position has no base"):
        Gate(metric="style.position", at_least_of_base=1)


@pytest.mark.parametrize(("is_random", "apart", "style"), [(True, 1.0, "main"), (False, 1.0, "main good")])
def test_a_fallen_loss_is_green_only_where_it_is_a_gain(facts, is_random, apart, style):
    shown = replace(
        facts,
        held_out=replace(facts.held_out, changes=[Change(facts.weights, "", 1.0, 0.1, 24)]),
        evidence=replace(
            facts.evidence,
            base_is_random=is_random,
            told_from_real=Interval(apart, 0.4, 1.0, 3),
            style=Interval(0.1, -0.1, 0.2, 3),
        ),
    )
    assert verdict_of(shown.evidence).word == "train longer"
    assert tiles(shown, 2)[0].style == style
