"""What a person sees of the runs in a cluster."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from bricks_core.cluster.launcher import Object
from bricks_core.cluster.runs import Submitted, condition, current_stage, why_so
from bricks_core.pipeline import layout
from bricks_core.spec.stages import STAGES

_COLOURS = {
    "Succeeded": "green",
    "Done": "green",
    "Running": "yellow",
    "Waiting": "yellow",
    "Suspended": "yellow",
    "Failed": "red",
    "Cancelled": "red",
}


def runs_screen(runs: list[Object], namespace: str, context: str | None = None) -> None:
    """All BrickRuns of a namespace: where each is, and why it waits."""
    console = _console()
    if not runs:
        console.print(f"There are no runs in namespace {namespace}: bricks submit FILE makes one.", soft_wrap=True)
        return
    grid = _grid("run", "phase", "stage", "progress", "age", "why")
    for run in sorted(runs, key=lambda each: str(each["metadata"].get("creationTimestamp")), reverse=True):
        status = run.get("status") or {}
        stage = current_stage(run) or {}
        finished = condition(run, "Finished").get("status") == "True"
        why = why_so(run) if finished else str(stage.get("message") or why_so(run) or _nobody_looked(run))
        grid.add_row(
            run["metadata"]["name"],
            _coloured(status.get("phase") or "Pending"),
            str(status.get("currentStage") or ""),
            str(status.get("progress") or ""),
            _age(run["metadata"].get("creationTimestamp")),
            why,
        )
    console.print(grid)


def run_screen(run: Object, namespace: str, flags: str = "") -> None:
    """One BrickRun: its stages, and what to do next."""
    console, name, status = _console(), run["metadata"]["name"], run.get("status") or {}
    phase = status.get("phase") or "Pending"
    console.print(
        Text.assemble(f"Run {name} in namespace {namespace}: ", _coloured(phase)), soft_wrap=True, highlight=False
    )
    why = why_so(run) or str((current_stage(run) or {}).get("message") or _nobody_looked(run))
    if why:
        console.print(why, soft_wrap=True, highlight=False, markup=False)
    for each in _begun(run):
        console.print(each, soft_wrap=True, highlight=False, markup=False)
    grid = _grid("stage", "state", "try", "progress", "what")
    for stage in status.get("stages") or []:
        grid.add_row(
            str(stage.get("name", "")),
            _coloured(str(stage.get("state") or "Pending")),
            str(stage.get("attempt") or ""),
            _progress(stage),
            _what(stage, why),
        )
    if grid.row_count:
        console.print(grid)
    next_commands(_what_next(run, flags), console)


def submitted_screen(name: str, namespace: str, came: Submitted, flags: str = "") -> None:
    """What came of handing in a run, and how to see what becomes of it."""
    console = _console()
    match came.what:
        case "created":
            console.print(f"Run {name} is created in namespace {namespace}.", soft_wrap=True, highlight=False)
        case "unchanged":
            console.print(f"Run {name} is there already, and nothing is different.", soft_wrap=True, highlight=False)
        case "changed":
            console.print(f"Run {name} is changed:", soft_wrap=True, highlight=False)
            for each in came.changes:
                console.print(f"  {each}", soft_wrap=True, highlight=False, markup=False)
            console.print(_what_runs_again(came), soft_wrap=True, highlight=False)
    next_commands(
        [
            (f"bricks status {name} --cluster{flags}", "how far it is, and why it waits"),
            (f"bricks logs {name} ingest --follow{flags}", "what a stage writes"),
            (
                f"kubectl wait --for=condition=Finished brickrun/{name} --timeout=168h --namespace {namespace}",
                "until it has ended, well or not",
            ),
        ],
        console,
    )


def _what_runs_again(came: Submitted) -> str:
    if came.reruns:
        return f"To be made anew, but for what the store has: {', '.join(came.reruns)}."
    # A stage's field that changes no answer may be a limit.
    limits = any(change.partition(".")[0] in STAGES for change in came.changes)
    said = "No answer is another one: nothing runs again"
    return f"{said}, but what a changed limit had stopped." if limits else f"{said}."


def next_commands(commands: list[tuple[str, str]], console: Console | None = None) -> None:
    """Commands to go on with, and what each is for."""
    if not commands:
        return
    console = console or _console()
    console.print("\nNext", style="bold")
    for command, what in commands:
        console.print(f"  {command}", highlight=False, soft_wrap=True, markup=False)
        console.print(f"      {what}", style="dim", highlight=False, soft_wrap=True, markup=False)


def _what_next(run: Object, flags: str) -> list[tuple[str, str]]:
    name, spec = run["metadata"]["name"], run["spec"]
    stage = current_stage(run)
    phase = (run.get("status") or {}).get("phase")
    commands = []
    if stage and stage.get("attempt"):
        follow = " --follow" if stage.get("state") == "Running" else ""
        commands.append((f"bricks logs {name} {stage['name']}{follow}{flags}", "what its pods write"))
    if (phase == "Suspended" or spec.get("suspend")) and not spec.get("cancel"):
        commands.append((f"bricks resume {name}{flags}", "go on from the last finished item"))
    if phase == "Failed":
        commands.append(
            (f"bricks submit FILE{flags}", "when it is mended: a changed file starts its stage's tries anew")
        )
    if phase in ("Failed", "Cancelled") and condition(run, "Finished").get("reason") != "SpecInvalid":
        commands.append((f"bricks retry {name}{flags}", "begin it again as it is, with the images of now"))
    if condition(run, "UpToDate").get("status") == "False":
        commands.append((f"bricks retry {name} --renew{flags}", "do again what the installed version makes otherwise"))
    if not phase:
        commands.append((f"bricks doctor{flags}", "whether the controller is running, and the rest"))
    return commands


def _begun(run: Object) -> list[str]:
    """What a run goes by, and what a newer version would do again."""
    status = run.get("status") or {}
    pinned = status.get("pinned") or {}
    told = []
    if pinned.get("codeVersion"):
        current = status.get("currentStage")
        image = next((each.get("image") for each in pinned.get("stages") or [] if each.get("name") == current), "")
        with_image = f", {current} with image {image}" if image else ""
        told.append(f"It goes by Bricks {pinned['codeVersion']} since {pinned.get('since', '?')}{with_image}.")
    newer = condition(run, "UpToDate")
    if newer.get("status") == "False":
        told.append(str(newer.get("message") or ""))
    return told


def _what(stage: dict[str, Any], said: str) -> str:
    """What a stage left, or why it is as it is; in a word, where that was said already."""
    message = str(stage.get("message") or "")
    return str((stage.get("output") or {}).get("uri") or (stage.get("reason") if message == said else message) or "")


def _progress(stage: dict[str, Any]) -> str:
    """How far a stage is, in a line."""
    told = stage.get("progress") or {}
    if not told or stage.get("state") == "Done":
        return ""
    parts = [f"{told.get('done', 0)}/{told.get('total', 0)} {told.get('unit', '')}".strip(), told.get("perHour")]
    parts += [f"{told['eta']} left" if told.get("eta") else "", told.get("note")]
    return ", ".join(str(part) for part in parts if part)


def _nobody_looked(run: Object) -> str:
    if run.get("status"):
        return ""
    return "The controller has not looked at it yet. If it stays so, it is not running: bricks doctor."


def _age(created: str | None) -> str:
    if not created:
        return ""
    seconds = (datetime.now(UTC) - datetime.fromisoformat(created)).total_seconds()
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def _coloured(state: str) -> Text:
    return Text(state, _COLOURS.get(state, "dim"))


def _grid(*columns: str) -> Grid:
    return layout.grid(*columns, whole=("run", "phase", "stage", "state", "age", "try"))


def _console() -> Console:
    # A pipe or a log file has no width, and addresses must not be broken in two there.
    return Console(width=None if sys.stdout.isatty() else 160)
