"""An evaluation in Markdown: for the comment that a CI keeps on a pull request, and for its summary page.

What comes from a run file or from pods is shown as text: a prompt can neither call somebody (@name) nor bring markup.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from bricks_core.cluster.evaluation import EvaluationJob, Report
from bricks_core.report.gates import Judged, Measured, Outcome

MAX_PROMPTS = 24
MAX_TEXT = 300
MAX_REASON = 2000
"""Why there is no verdict: a pod's last line may be long, and is what helps."""
MAX_OTHERS = 12
_SIGNS = {"passed": "✅", "failed": "❌", "unknown": "❔"}


def marker(suite: str) -> str:
    """The first line of the comment, which nobody sees: by it the comment is found again, one for each suite."""
    return f"<!-- bricks-evaluation: {suite} -->"


def verdict_comment(job: EvaluationJob, report: Report, verdict: Outcome, store_uri: str, web: str = "") -> str:
    """The comment on an evaluation that has a report. `web`: where the store is to be seen in a browser."""
    sign, word = ("✅", "passed") if verdict.passed else ("❌", "not passed")
    if not verdict.gates:
        sign, word = "ℹ️", "done"
    lines = [
        marker(job.suite),
        f"### {sign} Evaluation {job.suite} of {_commit(job)}: {word}",
        "",
        *([f"Verdict: {_plain(verdict.verdict)}", ""] if verdict.verdict else []),
        _plain(verdict.words),
        "",
        "| metric | base | this | delta | gate |",
        "|---|--:|--:|--:|---|",
        *map(_gate_row, verdict.gates),
        *(_row(each, "") for each in verdict.others[:MAX_OTHERS]),
        "",
        *_how_measured(report, verdict),
        *_where(report, store_uri, web),
        *_whose_code(job, report),
        *_prompts(report),
    ]
    return "\n".join(lines) + "\n"


def no_verdict_comment(job: EvaluationJob, why: str) -> str:
    """The comment on an evaluation that left no report."""
    return "\n".join(
        [
            marker(job.suite),
            f"### ⚠️ Evaluation {job.suite} of {_commit(job)}: no verdict",
            "",
            _plain(why, MAX_REASON),
            "",
            "This says nothing about the commit: the evaluation itself did not come to its end.",
            "",
        ]
    )


def _gate_row(judged: Judged) -> str:
    said = f"{_SIGNS[judged.judgement]} {judged.bounds}"
    return _row(judged.measured, f"{said}; not in the report" if judged.judgement == "unknown" else said)


def _row(measured: Measured, gate: str) -> str:
    delta = measured.delta
    change = "—" if delta is None or not math.isfinite(delta) else f"{delta:+.1%}".replace("-", "−")
    return f"| `{measured.metric}` | {_number(measured.base)} | {_number(measured.value)} | {change} | {gate} |"


def _how_measured(report: Report, verdict: Outcome) -> Iterator[str]:
    held_out = report.numbers.get("held_out") or {}
    counts = [each.num_clips for each in [*(each.measured for each in verdict.gates), *verdict.others]]
    clips = f", {max(counts)} clips of a bucket at most" if any(counts) else ""
    if held_out.get("changes"):
        step = held_out.get("last_step", "?")
        yield (
            f"Base is the model before the first step, this is after step {step}: mean loss on held-out films{clips}. "
            "Timesteps and noise are the same for both, so a difference comes from the weights; with few clips, a "
            "small one says little."
        )
    else:
        yield "No clip was held out, so there is no held-out loss."
    yield ""


def _where(report: Report, store_uri: str, web: str) -> Iterator[str]:
    page = f"{store_uri.rstrip('/')}/{report.key}"
    if web:
        yield f"[The whole report]({web.rstrip('/')}/{report.key}), `{_code(page)}`"
    else:
        yield f"The whole report: `{_code(page)}`"
    yield ""


def _whose_code(job: EvaluationJob, report: Report) -> Iterator[str]:
    """Whether the commit itself was evaluated: an image may be of another, an answer older."""
    made_by, _, commit = report.manifest.code_version.partition("+")
    base = commit.removesuffix("-dirty")
    is_this = bool(base) and job.sha[: len(base)] == base[: len(job.sha)]  # one of them may be shortened
    if is_this and base == commit:
        return
    asked = job.run.spec.evaluate.code if job.run.spec.evaluate else ""
    if is_this:
        why = "this commit with changes that are in none"
    elif asked:
        why = "the image is not of this commit"
    else:
        why = "the same was evaluated before (--any-code)"
    known = f"`{_code(commit)}`" if commit else f"version {_plain(made_by)}"
    yield f"⚠️ The samples were made by {known}: {why}."
    yield ""


def _prompts(report: Report) -> Iterator[str]:
    settings = (report.numbers.get("settings") or {}).get("evaluate") or {}
    prompts = [str(each) for each in settings.get("prompts") or []]
    if prompts:
        yield f"<details><summary>Prompts ({len(prompts)})</summary>"
        yield ""
        yield from (f"{place}. {_plain(prompt)}" for place, prompt in enumerate(prompts[:MAX_PROMPTS], 1))
        yield ""
        yield "</details>"


def _commit(job: EvaluationJob) -> str:
    return f"`{_code(job.sha[:12])}`" if job.sha else "this commit"


def _number(value: float | None) -> str:
    if value is None:
        return "—"
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) < 1e15 else f"{value:.4g}"


def _plain(text: str, most: int = MAX_TEXT) -> str:
    """A text on one line that Markdown takes for nothing but text."""
    line = " ".join(text.split())
    line = line if len(line) <= most else line[: most - 1] + "…"
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # A zero-width joiner after @ and # keeps a name from being called and an issue from being linked.
    return re.sub(r"([\\`*_\[\]|~!])", r"\\\1", line).replace("@", "@\u200d").replace("#", "#\u200d")


def _code(text: str) -> str:
    return re.sub(r"[`\n\r|]", "", text)
