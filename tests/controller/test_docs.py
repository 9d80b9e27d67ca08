"""docs/controller.md says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from bricks_core.controller.retries import DEADLINE, DISRUPTED, NO_MANIFEST, RULES, Rule

PAGE = (Path(__file__).parents[2] / "docs" / "controller.md").read_text(encoding="utf-8")


def row(codes: str, rule: Rule) -> str:
    return f"| {codes} | {rule.verdict} | {rule.reason} |"


def test_the_page_has_every_row_of_the_table_of_exit_codes_and_no_other() -> None:
    wanted = [row(", ".join(map(str, sorted(rule.codes))) or "any other, or none", rule) for rule in RULES]
    wanted += [
        row("any, when its pod was taken away", DISRUPTED),
        row("any, when its time was up", DEADLINE),
        row("0, and no artifact after 60 s", NO_MANIFEST),
    ]
    table = re.search(r"\| exit code \| next try \| reason \|\n\|---\|---\|---\|\n((?:\|.*\n)+)", PAGE)
    assert table is not None
    assert table[1].splitlines() == wanted


def test_the_page_tells_every_reason_that_the_controller_gives() -> None:
    package = Path(__file__).parents[2] / "bricks_core" / "controller"
    code = "\n".join((package / f"{name}.py").read_text(encoding="utf-8") for name in ("plan", "reconcile", "report"))
    given = set(re.findall(r'Trouble\(\s*"(\w+)"', code))
    given |= set(re.findall(r'conditions\.add\("\w+", "\w+", "(\w+)"', code))
    assert {"NameTaken", "KindMissing", "SpecInvalid", "Unfinished"} <= given
    assert {reason for reason in given if not re.search(rf"\b{reason}\b", PAGE)} == set()
