"""What a person sees: the plan, the end of a run, how far runs are, what an artifact holds."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from bricks_core.errors import DataError, NoSuchObject, UsageError, nearest
from bricks_core.pipeline.coverage import bucket_coverage
from bricks_core.pipeline.garbage import Garbage
from bricks_core.pipeline.plan import Step
from bricks_core.pipeline.points import read_pointer
from bricks_core.spec.ingest import Video
from bricks_core.spec.manifest import Manifest
from bricks_core.spec.run import BrickRun
from bricks_core.spec.stages import STAGES, Stage, stage_named
from bricks_core.spec.train import HeldOutRow
from bricks_core.storage.artifacts import Artifact, artifact_prefix, open_artifact, problems
from bricks_core.storage.store import Store

NUM_REASONS = 20
"""How many an artifact's screen has at least room for."""


def announce(step: Step) -> None:
    """A line before each stage of a run."""
    name = step.stage.name
    if step.state == "cached":
        _errors().print(f"[green]✓[/] {name:9} found done", highlight=False)
    else:
        _errors().print(f"[bold]▸[/] {name:9} {'; '.join(step.why[:3])}", highlight=False)


def plan_screen(run: BrickRun, store: Store, steps: list[Step]) -> None:
    """The stages as cached or to run, with why; then how many clips each training bucket can use."""
    grid = _grid("stage", "state", "why", "artifact")
    colours = {"cached": "green", "to run": "yellow", "broken": "red"}
    for step in steps:
        what = _counts(step.manifest.counts) if step.state == "cached" and step.manifest else "\n".join(step.why)
        where = step.address.digest[:12] if step.address is not None else "—"
        grid.add_row(step.stage.name, Text(step.state, colours[step.state]), what, where)
    console = _console()
    console.print(f"Run {run.name} in {store.uri}", highlight=False)
    console.print(grid)
    if run.spec.train is not None:
        _coverage_screen(console, run, store, steps)


def final_screen(file: Path, run: BrickRun, store: Store, manifests: dict[str, Manifest]) -> None:
    """What was made and where, and what to do next."""
    grid = _grid("stage", "what was made", "where")
    for name, manifest in manifests.items():
        grid.add_row(name, _counts(manifest.counts), artifact_prefix(name, manifest.digest))
    console = _console()
    console.print()
    last = list(manifests)[-1]
    how_far = "" if len(manifests) == len(STAGES) else f" up to {last}"
    console.print(f"Run {run.name} is done{how_far}, in {store.uri}", highlight=False, style="bold")
    console.print(grid)
    if "train" in manifests:
        _held_out_screen(console, Artifact(store, manifests["train"]))
    if "evaluate" in manifests:
        report = f"{artifact_prefix('evaluate', manifests['evaluate'].digest)}report/index.html"
        console.print(f"\nReport  {_join(store.uri, report)}", highlight=False, soft_wrap=True)
    flag = "" if store.uri == "bricks-store" else f" --store {shlex.quote(store.uri)}"
    console.print("\nNext", style="bold")
    look = "caption" if "caption" in manifests else last
    nexts = [(f"bricks show {run.name}/{look}{flag}", "look into an artifact")]
    counts = manifests["ingest"].counts
    if num_unused := counts.get("unreadable", 0) + counts.get("unusable", 0):
        nexts.append((f"bricks show {run.name}/ingest{flag}", f"why {num_unused:,} of the files cannot be used"))
    quoted = shlex.quote(str(file))
    if how_far:
        lacking = [f"spec.{name}" for name in ("train", "evaluate") if getattr(run.spec, name) is None]
        when = f", once the run file has {' and '.join(lacking)}: k8s/runs/quickstart.yaml has both" if lacking else ""
        nexts.append((f"bricks run {quoted}{flag}", f"go on with the stages that are left{when}"))
    else:
        change = f"bricks plan {quoted} --set caption.max_sentences=4{flag}"
        nexts.append((change, "see what a change would run again"))
        nexts.append((f"bricks run my.yaml{flag}", f"your own films: copy {file} and change spec.ingest.sources"))
    for command, what in nexts:
        console.print(f"  {command}", highlight=False, soft_wrap=True)
        console.print(f"      {what}", style="dim", highlight=False, soft_wrap=True)


def status_screen(store: Store, name: str | None) -> None:
    """Every run's stages: done, running (as they last told), or open."""
    runs = [name] if name else sorted({entry.key.split("/")[1] for entry in store.list("runs/")})
    if not runs:
        _console().print(f"{store.uri} holds no runs yet: bricks run k8s/runs/quickstart.yaml makes one.")
        return
    grid = _grid("run", "stage", "state", "what")
    for run in runs:
        known = False
        for stage in STAGES.values():
            state, what = _stage_status(store, run, stage)
            known = known or state.plain != "open"
            grid.add_row(run if stage.name == "ingest" else "", stage.name, state, what)
        if name and not known:
            raise DataError(f"{store.uri} has no run {name}{nearest(name, run_names(store))}.")
    _console().print(grid)


def artifact_screen(store: Store, wanted: str, num_rows: int, thorough: bool) -> None:
    """An artifact's facts, counts and table heads, and whether all its objects are what its manifest says."""
    stage, digest = find_artifact(store, wanted)
    artifact = open_artifact(store, stage, digest)
    manifest = artifact.manifest
    console = _console()
    facts = Grid(box=None, show_header=False, pad_edge=False)
    total_bytes = sum(stored.size_bytes for stored in manifest.objects)
    for key, value in {
        "artifact": artifact.prefix,
        "made": f"{manifest.finished_at:%Y-%m-%d %H:%M:%S} UTC by bricks {manifest.code_version}",
        "inputs": ", ".join(f"{name}/{each[:12]}" for name, each in manifest.inputs.items()),
        "objects": f"{len(manifest.objects)}, {_bytes(total_bytes)}",
        "counts": _counts(manifest.counts),
    }.items():
        facts.add_row(Text(key, "bold"), value)
    console.print(facts)
    for name, row in STAGES[stage].tables.items():
        table = manifest.tables[name]
        console.print(f"\n{name}: {table.num_rows} rows of {table.row}", style="bold", highlight=False)
        if num_rows and table.num_rows:
            console.print(_head(islice(artifact.rows(name, row), num_rows)))
        if row is Video:
            _reasons_screen(console, artifact, max(num_rows, NUM_REASONS))
    wrong = problems(store, manifest, thorough=thorough)
    if wrong:
        listed = "\n".join(str(each) for each in wrong[:20])
        raise DataError(
            f"{len(wrong)} objects are not what the manifest says; the next bricks run rebuilds them.\n{listed}"
        )
    console.print("\nEvery object is there and has the size and content its manifest says.", style="green")


def garbage_screen(garbage: Garbage, *, deleted: bool) -> None:
    """What was, or would be, deleted."""
    console = _console()
    for prefix, size_bytes in garbage.artifacts.items():
        console.print(f"{_bytes(size_bytes):>10}  {prefix}", highlight=False)
    num = len(garbage.artifacts)
    if deleted:
        console.print(f"Deleted {num} artifacts, {_bytes(garbage.size_bytes)}; {garbage.num_reached} are in use.")
    else:
        console.print(
            f"{num} artifacts, {_bytes(garbage.size_bytes)}, are reached by no run; {garbage.num_reached} are in use."
        )
        if num:
            console.print("bricks gc --delete deletes them.")


def _coverage_screen(console: Console, run: BrickRun, store: Store, steps: list[Step]) -> None:
    found = bucket_coverage(run, store, steps)
    if found is None:
        console.print("How many clips each training bucket can use is known once the clip stage is done.", style="dim")
        return
    stage, counted = found
    title = "kept clips" if stage == "score" else "clips, before the filter"
    grid = _grid("training bucket", "clips it can use", "too short", "too small")
    for bucket in counted.buckets:
        every = f", every {bucket.frame_interval}" if bucket.frame_interval > 1 else ""
        frames = f"{bucket.num_frames} frames{every}" if bucket.num_frames > 1 else "images"
        grid.add_row(
            f"{frames} at {bucket.resolution}",
            Text(f"{bucket.num_usable} of {counted.num_clips}", "" if bucket.num_usable else "red"),
            str(bucket.num_too_short),
            str(bucket.num_too_small),
        )
    console.print(f"Bucket coverage of {counted.num_clips} {title}", style="bold", highlight=False)
    console.print(grid)
    console.print(f"{counted.num_unused} clips fit no bucket.", highlight=False)


def _reasons_screen(console: Console, ingest: Artifact, most: int) -> None:
    """What cannot be used of what was given, or only in part, and why: whole, as the table's head cuts long texts."""
    with_reason = [row for row in ingest.rows("videos", Video) if row.reason]
    for row in with_reason[:most]:
        text = f"{row.name}: {row.reason}" if row.name else row.reason
        console.print(f"{row.state:11}{text}", markup=False, highlight=False, soft_wrap=True)
    if len(with_reason) > most:
        console.print(f"... and {len(with_reason) - most:,} more: --rows {len(with_reason)} shows all.")


def _held_out_screen(console: Console, train: Artifact) -> None:
    """Mean held-out loss before and after, per kind of weights."""
    losses: dict[tuple[str, int], list[float]] = {}
    for row in train.rows("held_out", HeldOutRow):
        losses.setdefault((row.weights, row.step), []).append(row.loss)
    if not losses:
        console.print("\nHeld-out loss  not measured: no clip was held out (score.held_out_share, two videos or more)")
        return
    first, last = min(step for _, step in losses), max(step for _, step in losses)
    console.print()
    for weights in ("raw", "ema"):
        before, after = (_mean(losses[weights, step]) for step in (first, last))
        change = (after - before) / before
        console.print(
            f"Held-out loss, {weights:3}  {before:.4f} at step {first} → {after:.4f} at step {last}  ({change:+.1%})",
            highlight=False,
        )


def _stage_status(store: Store, run: str, stage: Stage) -> tuple[Text, str]:
    pointer = read_pointer(store, run, stage.name)
    beats = sorted(_heartbeats(store, run, stage.name), key=lambda beat: str(beat.get("time", "")))
    if pointer is not None and not any(beat.get("state") == "running" for beat in beats):
        return Text("done", "green"), f"artifacts/{stage.name}/{pointer.digest}"
    if not beats:
        return Text("open", "dim"), ""
    done, total = (sum(int(beat.get(key, 0)) for beat in beats) for key in ("done", "total"))
    last = beats[-1]
    note = f", {last['note']}" if last.get("note") else ""
    return (
        Text(str(last.get("state", "?")), "yellow"),
        f"{done}/{total} {last.get('unit', 'items')}{note}, as of {last.get('time', '?')}",
    )


def _heartbeats(store: Store, run: str, stage: str) -> Iterator[dict[str, Any]]:
    for entry in store.list(f"runs/{run}/status/{stage}"):
        name = entry.key.rpartition("/")[2].removesuffix(".json")
        if name == stage or name.removeprefix(f"{stage}-").isdigit():
            try:
                yield json.loads(store.get(entry.key))
            except (NoSuchObject, ValueError):
                continue


def find_artifact(store: Store, wanted: str) -> tuple[str, str]:
    """The stage and digest that RUN/STAGE or STAGE/DIGEST means."""
    wanted = wanted.removeprefix("artifacts/").rstrip("/")
    first, slash, second = wanted.partition("/")
    if not slash:
        raise UsageError(f"{wanted} names no artifact: write RUN/STAGE, such as quickstart/clip, or STAGE/DIGEST.")
    if second in STAGES:
        pointer = read_pointer(store, first, second)
        if pointer is None:
            names = run_names(store)
            near = "" if first in names else nearest(first, names)
            raise DataError(f"{store.uri} has no run {first} with a finished {second}{near}.")
        return second, pointer.digest
    stage = stage_named(first).name
    digests = {entry.key.split("/")[2] for entry in store.list(f"artifacts/{stage}/{second}")}
    if len(digests) != 1:
        how_many = "no artifact" if not digests else f"{len(digests)} artifacts"
        raise DataError(f"{store.uri} has {how_many} of {stage} whose digest begins with {second}.")
    return stage, digests.pop()


def run_names(store: Store) -> list[str]:
    """All runs of a store."""
    return sorted({entry.key.split("/")[1] for entry in store.list("runs/")})


def _head(rows: Iterable[Any]) -> Grid:
    """A table's first rows, turned on their side where it has many columns."""
    dumped = [row.model_dump() for row in rows]
    grid = Grid(box=box.SIMPLE, pad_edge=False)
    grid.add_column("", style="dim")
    for row in dumped:
        grid.add_column(str(row["id"]), max_width=40, overflow="ellipsis", no_wrap=True)
    for name in list(dumped[0])[1:]:
        grid.add_row(name, *(_cell(row[name]) for row in dumped))
    return grid


def _cell(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _grid(*columns: str) -> Grid:
    grid = Grid(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        grid.add_column(column, overflow="fold")
    return grid


def _counts(counts: dict[str, int]) -> str:
    return "\n".join(f"{number:,} {what}" for what, number in counts.items()) or "—"


def _bytes(size_bytes: int) -> str:
    size = float(size_bytes)
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _join(uri: str, key: str) -> str:
    return f"{uri.rstrip('/')}/{key}"


def _console() -> Console:
    # A pipe or a log file has no width; the artifact paths must not be broken in two there.
    return Console(width=None if sys.stdout.isatty() else 140)


def _errors() -> Console:
    return Console(stderr=True)
