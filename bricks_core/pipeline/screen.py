"""What a person sees: the plan, the end of a run, how far runs are, what an artifact holds."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich import box
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from bricks_core.errors import CorruptManifest, DataError, NoSuchObject, UsageError, nearest
from bricks_core.pipeline import layout
from bricks_core.pipeline.began import mixed_in_words
from bricks_core.pipeline.compact import Compacted
from bricks_core.pipeline.coverage import bucket_coverage
from bricks_core.pipeline.find import find_artifact
from bricks_core.pipeline.garbage import KEEP_DAYS, Garbage, Swept
from bricks_core.pipeline.pending import TRY_AGAIN, in_short, limits_of, to_try_again
from bricks_core.pipeline.plan import Step
from bricks_core.pipeline.points import Pointer, read_points, run_names
from bricks_core.pipeline.trained import kept_so_far, unfinished
from bricks_core.pipeline.upgrade import Upgraded
from bricks_core.report.gates import Outcome, judge
from bricks_core.report.read import read_report
from bricks_core.spec.ingest import Video
from bricks_core.spec.items import KINDS, ItemKey
from bricks_core.spec.manifest import SCHEMA_VERSION, Manifest, Try
from bricks_core.spec.run import BrickRun
from bricks_core.spec.stages import STAGES, Stage
from bricks_core.spec.train import HeldOutRow, TrainSpec
from bricks_core.storage.artifacts import Artifact, artifact_prefix, find_manifest, open_artifact, problems
from bricks_core.storage.claims import Claims
from bricks_core.storage.items import Items
from bricks_core.storage.store import Store
from bricks_core.storage.tables import read_columns, read_head

NUM_REASONS = 20
"""How many an artifact's screen has at least room for."""
MIN_ROW_WIDTH = 20
"""Characters of a table's row, in its head."""


def announce(step: Step) -> None:
    """A line before each stage of a run."""
    name = step.stage.name
    if step.state == "cached":
        _errors().print(f"[green]✓[/] {name:9} found done", highlight=False)
    else:
        # One line, however narrow, as it lies among those of a log. A reason may hold what looks like markup.
        line = Text.assemble(("▸", "bold"), f" {name:9} {'; '.join(step.why[:3])}")
        _errors().print(line, highlight=False, soft_wrap=True)


def plan_screen(
    run: BrickRun,
    store: Store,
    steps: list[Step],
    file: Path | None = None,
    overrides: Sequence[str] = (),
    until: str | None = None,
) -> None:
    """The stages as cached or to run, with why; how many clips each training bucket can use; and the command that
    does it, for the `file` and the `overrides` that were given."""
    grid = layout.grid("stage", "state", "why", "artifact")
    colours = {"cached": "green", "to run": "yellow", "broken": "red"}
    for step in steps:
        what = "\n".join(step.why)
        if step.state == "cached" and step.manifest:
            what = "\n".join(filter(None, [_counts(step.manifest.counts), in_short(step.manifest.pending), *step.why]))
        where = step.address.digest[:12] if step.address is not None else "—"
        grid.add_row(step.stage.name, Text(step.state, colours[step.state]), what, where)
    console = layout.console()
    console.print(f"Run {run.name} in {store.uri}", highlight=False)
    console.print(grid)
    if any(step.state != "cached" for step in steps):
        console.print(
            "Whatever runs takes the items that are there: nothing is decoded, asked of a model or encoded twice.",
            style="dim",
            highlight=False,
        )
    if run.spec.train is not None:
        _coverage_screen(console, run, store, steps)
    if file is not None and any(step.state != "cached" for step in steps):
        command = f"bricks run {_flags(file, overrides, store)}{f' --until {until}' if until else ''}"
        _next_screen(console, [(command, "do it")])


def final_screen(
    file: Path, run: BrickRun, store: Store, manifests: dict[str, Manifest], overrides: Sequence[str] = ()
) -> Outcome | None:
    """What was made and where, and what to do next, with the `overrides` that were given. What came of the run's gates
    is told and returned; None: it was not evaluated."""
    grid = layout.grid("stage", "what was made", "where")
    for name, manifest in manifests.items():
        grid.add_row(name, _counts(manifest.counts), artifact_prefix(name, manifest.digest))
    console = layout.console()
    console.print()
    last = list(manifests)[-1]
    how_far = "" if len(manifests) == len(STAGES) else f" up to {last}"
    console.print(f"Run {run.name} is done{how_far}, in {store.uri}", highlight=False, style="bold")
    console.print(grid)
    for name, manifest in manifests.items():
        if num := len(manifest.pending):
            are, them = ("is", "it") if num == 1 else ("are", "them")
            show = f"bricks show {run.name}/{name}{_store_flag(store)}"
            line = f"{num:,} of {name} {are} pending: a limit stopped {them}; {show} tells why."
            console.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)
    if "train" in manifests:
        _held_out_screen(console, Artifact(store, manifests["train"]))
    outcome = None
    if "evaluate" in manifests:
        outcome = _verdict_screen(console, run, Artifact(store, manifests["evaluate"]))
        report = f"{artifact_prefix('evaluate', manifests['evaluate'].digest)}report/index.html"
        console.print(f"\nReport  {_join(store.uri, report)}", highlight=False, soft_wrap=True)
    flag = _store_flag(store)
    look = "caption" if "caption" in manifests else last
    nexts = [(f"bricks show {run.name}/{look}{flag}", "look into an artifact")]
    if again := to_try_again(each for manifest in manifests.values() for each in manifest.pending):
        nexts.append((f"bricks run {_flags(file, [*overrides, *again], store)}", TRY_AGAIN))
    counts = manifests["ingest"].counts
    if num_unused := counts.get("unreadable", 0) + counts.get("unusable", 0):
        nexts.append((f"bricks show {run.name}/ingest{flag}", f"why {num_unused:,} of the files cannot be used"))
    if how_far:
        lacking = [f"spec.{name}" for name in ("train", "evaluate") if getattr(run.spec, name) is None]
        when = f", once the run file has {' and '.join(lacking)}: k8s/runs/quickstart.yaml shows how" if lacking else ""
        nexts.append(
            (f"bricks run {_flags(file, overrides, store)}", f"go on with the stages that are left{when}"),
        )
    else:
        change = _flags(file, [*overrides, "caption.max_sentences=4"], store)
        nexts.append((f"bricks plan {change}", "see what a change would run again"))
        nexts.append((f"bricks run my.yaml{flag}", f"your own films: copy {file} and change spec.ingest.sources"))
    _next_screen(console, nexts)
    return outcome


def so_far_screen(run: BrickRun, store: Store, manifests: dict[str, Manifest]) -> Outcome:
    """What was found of a training that may not be finished, and where its report is. Returns what came of the run's
    gates."""
    train, spec = manifests["train"], TrainSpec.model_validate(manifests["train"].spec)
    console, how_far = layout.console(), unfinished(train.counts["steps"], spec.num_steps)
    line = f"\nThe training of run {run.name} is {how_far or 'finished'}."
    console.print(line, style="bold", highlight=False, soft_wrap=True)
    _held_out_screen(console, Artifact(store, train))
    outcome = _verdict_screen(console, run, Artifact(store, manifests["evaluate"]))
    report = f"{artifact_prefix('evaluate', manifests['evaluate'].digest)}report/index.html"
    name = "Report so far" if how_far else "Report"
    console.print(f"\n{name}  {_join(store.uri, report)}", highlight=False, soft_wrap=True)
    if how_far:
        line = f"It is of now: the run does not point to it, and bricks gc takes it after {KEEP_DAYS:g} days."
        console.print(line, style="dim", highlight=False, soft_wrap=True)
    return outcome


def status_screen(store: Store, name: str | None) -> None:
    """Every run's stages: done (with what is pending in it), stale with why, running (as they last told), or pending;
    and who is at a run now."""
    runs = [name] if name else run_names(store)
    if not runs:
        layout.console().print(f"{store.uri} holds no runs yet: bricks run k8s/runs/quickstart.yaml makes one.")
        return
    grid = layout.grid("run", "stage", "state", "what")
    claims, at_work, nexts = Claims(store), [], []
    renewable: list[str] = []
    for run in runs:
        known, stopped = False, list[Try]()
        points = read_points(store, run)
        stale = points.stale()
        for stage in STAGES.values():
            pointer, why = points.stages.get(stage.name), stale.get(stage.name)
            manifest = _manifest_of(store, pointer) if pointer is not None and why is None else None
            tries = manifest.pending if manifest is not None else []
            older = mixed_in_words(manifest) if manifest is not None else []
            note = why or "; ".join(filter(None, [in_short(tries), *older]))
            state, what = _stage_status(store, run, stage, pointer, note, is_stale=why is not None)
            renewable += [f"{run}/{stage.name}"] if older else []
            if stage.name == "train" and (kept := kept_so_far(store, run)):
                begun = Text("begun", "yellow")
                state, what = (begun, kept) if state.plain == "pending" else (state, f"{what}\n{kept}")
            stopped += tries
            known = known or state.plain != "pending"
            grid.add_row(run if stage.name == "ingest" else "", stage.name, state, what)
        if name and not known and name not in run_names(store):
            raise DataError(f"{store.uri} has no run {name}{nearest(name, run_names(store))}.")
        if (holder := claims.holder(f"run/{run}")) is not None:
            at_work.append(f"Run {run} is under way: {holder}.")
        elif again := to_try_again(stopped):
            nexts.append((f"bricks run {_flags(Path('FILE'), again, store)}", f"{TRY_AGAIN}, of run {run}"))
    console = layout.console()
    console.print(grid)
    for line in at_work:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if renewable:
        line = f"Begun with an earlier version of Bricks: {', '.join(renewable)}. bricks run --renew makes that anew."
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if nexts:
        _next_screen(console, nexts)


def artifact_screen(store: Store, wanted: str, num_rows: int, thorough: bool) -> None:
    """An artifact's facts, counts and table heads, and whether all its objects are what was committed. Or what made
    an item, of which the record's or a file's key is given."""
    if wanted.startswith("items/"):
        _item_screen(store, wanted)
        return
    stage, digest = find_artifact(store, wanted)
    artifact = open_artifact(store, stage, digest, earlier=True)
    manifest = artifact.manifest
    console = layout.console()
    own_bytes = sum(stored.size_bytes for stored in manifest.objects)
    told = {
        "artifact": artifact.prefix,
        "made": f"{manifest.finished_at:%Y-%m-%d %H:%M:%S} UTC by bricks {manifest.code_version}",
        "inputs": ", ".join(f"{name}/{each[:12]}" for name, each in manifest.inputs.items()),
        "objects": f"{len(manifest.objects):,}, {layout.in_bytes(own_bytes)}",
    }
    if manifest.num_items:
        files = f", {manifest.num_item_objects:,} files, {layout.in_bytes(manifest.item_bytes)}"
        told["items"] = f"{manifest.num_items:,}{files if manifest.num_item_objects else ''}"
    if older := mixed_in_words(manifest):
        told["versions"] = f"{'; '.join(older)}: bricks run --renew makes the older ones anew"
    console.print(layout.facts(told | {"counts": _counts(manifest.counts)}))
    if manifest.schema_version < SCHEMA_VERSION:
        console.print(
            "It was made by an earlier version of Bricks: bricks store upgrade makes use of what it holds.",
            style="yellow",
            soft_wrap=True,
        )
    for name, table in manifest.tables.items():
        console.print(f"\n{name}: {table.num_rows:,} rows of {table.row}", style="bold", highlight=False)
        if num_rows and table.num_rows:
            with artifact.local(table.key) as file:
                for part in _head(read_head(file, num_rows), console.width):
                    console.print(part)
        if STAGES[stage].tables.get(name) is Video:
            _reasons_screen(console, artifact, max(num_rows, NUM_REASONS))
    _pending_screen(console, store, manifest, max(num_rows, NUM_REASONS))
    wrong = problems(store, manifest, thorough=thorough)
    if wrong:
        listed = "\n".join(str(each) for each in wrong[:20])
        raise DataError(
            f"{len(wrong)} objects are not what was committed; the next bricks run rebuilds them.\n{listed}"
        )
    if manifest.num_item_objects and not thorough:
        whole = "Its own objects are what its manifest says; --thorough reads the files of its items, too."
    else:
        whole = "Every object is there, and is what was committed."
    console.print(f"\n{whole}", style="green", soft_wrap=True)


def _item_screen(store: Store, wanted: str) -> None:
    """What an item was made of, and what came out."""
    match = re.match(r"items/([a-z]+)/[0-9a-f]{2}/([0-9a-f]{32})", wanted)
    if match is None or match[1] not in KINDS:
        raise UsageError(
            f"{wanted} is no item's key: write items/KIND/XX/KEY as a table's row has it. The kinds are "
            f"{', '.join(KINDS)}; packs are shared by items of latent and text."
        )
    item = Items(store).get(ItemKey(match[1], match[2]))
    if item is None:
        raise DataError(f"{store.uri} has no record of {match[0]}.")
    cost = ", ".join(f"{number:g} {what.replace('_', ' ')}" for what, number in item.cost.items())
    told = {
        "item": f"{item.kind}/{item.key} ({KINDS[item.kind].what})",
        "made": " by ".join(filter(None, [f"with bricks {item.code_version}", item.by])),
        "took": cost or "—",
        "files": "\n".join(f"{each.key}, {layout.in_bytes(each.size_bytes)}" for each in item.objects) or "—",
        "made of": _yaml(item.made_of),
        "answer": _yaml(item.answer),
    }
    layout.console().print(layout.facts(told))


def _yaml(value: dict[str, Any]) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True).strip() if value else "—"


def garbage_screen(garbage: Garbage, *, deleted: bool, command: str = "bricks gc --delete") -> None:
    """What was, or would be, deleted, and what it cost to make; `command` deletes it."""
    console = layout.console()
    rows: list[tuple[str, Swept]] = [(KINDS[kind].what, each) for kind, each in garbage.items.items() if kind in KINDS]
    rows += [("packs", each) for kind, each in garbage.items.items() if kind not in KINDS]
    rows += [(f"{stage} artifacts", each) for stage, each in garbage.artifacts.items()]
    words = {
        "tries": "tries",
        "states of trainings": "files of training states",
        "points": "what runs pointed to",
        "tables": "tables from before packs were compacted",
        "claims": "claims of the dead",
    }
    rows += [(words[what], each) for what, each in garbage.rest.items()]
    if rows:
        console.print(_swept_grid(rows))
    size = layout.in_bytes(garbage.size_bytes)
    in_use = f"{garbage.num_artifacts:,} artifacts and {garbage.num_items:,} items are in use."
    if not rows:
        console.print(f"Nothing to delete: {in_use}", highlight=False, soft_wrap=True)
    elif deleted:
        console.print(f"Deleted these, {size}; {in_use}", highlight=False, soft_wrap=True)
    else:
        console.print(f"These, {size}, are reached by nothing; {in_use}", highlight=False, soft_wrap=True)
        console.print(f"{command} deletes them.", markup=False, highlight=False, soft_wrap=True)
    if garbage.paid:
        paid = [
            (KINDS[kind].what if kind in KINDS else f"{kind} artifacts", each) for kind, each in garbage.paid.items()
        ]
        console.print("\nKept, though nothing reaches them: they cost money (--paid takes them, too)", style="bold")
        console.print(_swept_grid(paid))


def garbage_command(store: Store, *, paid: bool, keep_days: float) -> str:
    """What deletes what was found with these flags."""
    days = "" if keep_days == KEEP_DAYS else f" --keep-days {keep_days:g}"
    return f"bricks gc --delete{' --paid' if paid else ''}{days}{_store_flag(store)}"


def upgrade_screen(upgraded: Upgraded, *, dry_run: bool) -> None:
    """What items were made of a store's earlier artifacts, and what was left, with why."""
    console = layout.console()
    if not upgraded.num_artifacts and not upgraded.left:
        console.print("Nothing to upgrade: the store holds no artifacts of an earlier version.", soft_wrap=True)
        return
    would = "would be made" if dry_run else "made"
    grid = layout.grid("items", would, "there already")
    for kind in KINDS:
        if upgraded.made[kind] or upgraded.there[kind]:
            grid.add_row(KINDS[kind].what, f"{upgraded.made[kind]:,}", f"{upgraded.there[kind]:,}")
    console.print(f"{upgraded.num_artifacts:,} artifacts of an earlier version", style="bold", highlight=False)
    console.print(grid)
    if upgraded.left:
        grid = layout.grid("left as it is", "number", "why")
        for (what, why), number in sorted(upgraded.left.items()):
            grid.add_row(what, f"{number:,}", why)
        console.print(grid)
    if upgraded.runs:
        runs = ", ".join(upgraded.runs)
        console.print(f"Runs that can be looked at as before: {runs}.", markup=False, highlight=False, soft_wrap=True)
    if not dry_run:
        console.print("bricks run of the same files goes on from here.", soft_wrap=True)


def compact_screen(done: Compacted, *, dry_run: bool) -> None:
    """How many packs became how many."""
    console, copied = layout.console(), layout.in_bytes(done.copied_bytes)
    if not done.is_changed:
        packs = f"{done.num_after:,} pack{'s' if done.num_after != 1 else ''}, {layout.in_bytes(done.num_bytes)}"
        console.print(f"Nothing to compact: {done.prefix} leads to {packs}.", highlight=False, soft_wrap=True)
        return
    copied += " would be copied" if dry_run else " copied"
    packs = f"{done.num_before:,} packs → {done.num_after:,}"
    console.print(f"{packs}, {copied}, nothing encoded.", highlight=False, soft_wrap=True)
    if not dry_run:
        console.print(
            f"The old packs stay while anybody may read them: bricks gc takes them after {KEEP_DAYS:g} days.",
            highlight=False,
            soft_wrap=True,
        )


def _swept_grid(rows: list[tuple[str, Swept]]) -> Grid:
    grid = layout.grid("what", "number", "size", "cost to make")
    for what, swept in rows:
        grid.add_row(what, f"{swept.num:,}", layout.in_bytes(swept.size_bytes), _cost(swept))
    return grid


def _cost(swept: Swept) -> str:
    """Such as '3.2 h, 1,200 calls'."""
    cost = dict(swept.cost)
    words = [_duration(cost.pop("seconds"))] if cost.get("seconds") else []
    words += [f"{amount:,.0f} {name}" for name, amount in sorted(cost.items()) if amount]
    if not words:
        return "not known" if swept.is_lower_bound else "—"
    return ("at least " if swept.is_lower_bound else "") + ", ".join(words)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


def _flags(file: Path, overrides: Sequence[str], store: Store) -> str:
    """What a command needs to mean the same: the file, what of it was overridden, and the store."""
    sets = "".join(f" --set {shlex.quote(each)}" for each in overrides)
    return f"{shlex.quote(str(file))}{sets}{_store_flag(store)}"


def _store_flag(store: Store) -> str:
    return "" if store.uri == "bricks-store" else f" --store {shlex.quote(store.uri)}"


def _next_screen(console: Console, nexts: Iterable[tuple[str, str]]) -> None:
    console.print("\nNext", style="bold")
    for command, what in nexts:
        console.print(f"  {command}", markup=False, highlight=False, soft_wrap=True)
        console.print(f"      {what}", style="dim", markup=False, highlight=False, soft_wrap=True)


def _pending_screen(console: Console, store: Store, manifest: Manifest, most: int) -> None:
    """What a limit stopped, and why."""
    if not manifest.pending:
        return
    title = f"\n{len(manifest.pending):,} pending: a limit stopped them, and they are tried again when it is another"
    console.print(title, style="bold", highlight=False, soft_wrap=True)
    for each in manifest.pending[:most]:
        line = f"{each.kind}/{each.key[:12]}  {each.reason} ({limits_of(each)})"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if len(manifest.pending) > most:
        more = f"... and {len(manifest.pending) - most:,} more: --rows {len(manifest.pending)} shows all."
        console.print(more, highlight=False, soft_wrap=True)
    if again := to_try_again(manifest.pending):
        _next_screen(console, [(f"bricks run {_flags(Path('FILE'), again, store)}", TRY_AGAIN)])


def _coverage_screen(console: Console, run: BrickRun, store: Store, steps: list[Step]) -> None:
    found = bucket_coverage(run, store, steps)
    if found is None:
        console.print("How many clips each training bucket can use is known once the clip stage is done.", style="dim")
        return
    stage, counted = found
    title = "kept clips" if stage == "score" else "clips, before the filter"
    grid = layout.grid("training bucket", "clips it can use", "too short", "too small")
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
    with ingest.local(ingest.manifest.tables["videos"].key) as file:
        rows = read_columns(file, ["name", "state", "reason"])
        with_reason = [row for row in rows if row["reason"]]
    for row in with_reason[:most]:
        text = f"{row['name']}: {row['reason']}" if row["name"] else row["reason"]
        console.print(f"{row['state']:11}{text}", markup=False, highlight=False, soft_wrap=True)
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


def _verdict_screen(console: Console, run: BrickRun, evaluate: Artifact) -> Outcome:
    """The report's verdict, and what came of the run's gates."""
    outcome = judge(read_report(evaluate), run.spec.gates)
    if outcome.verdict:
        console.print(f"Verdict        {outcome.verdict}", markup=False, highlight=False, soft_wrap=True)
    if outcome.gates:
        style = "green" if outcome.passed else "red"
        console.print(f"Gates          {outcome.words}", style=style, markup=False, highlight=False, soft_wrap=True)
    return outcome


def _manifest_of(store: Store, pointer: Pointer) -> Manifest | None:
    """None also where it cannot be read: bricks show says what is wrong with it."""
    try:
        return find_manifest(store, pointer.stage, pointer.digest, earlier=True)
    except CorruptManifest:
        return None


def _stage_status(
    store: Store, run: str, stage: Stage, pointer: Pointer | None, note: str, *, is_stale: bool
) -> tuple[Text, str]:
    beats = sorted(_heartbeats(store, run, stage.name), key=lambda beat: str(beat.get("time", "")))
    if pointer is not None and not any(beat.get("state") == "running" for beat in beats):
        where = f"{stage.name}/{pointer.digest[:12]}"
        state = Text("stale", "yellow") if is_stale else Text("done", "green")
        return state, f"{note}: {where}" if note else where
    if not beats:
        return Text("pending", "dim"), ""
    done, total = (sum(int(beat.get(key, 0)) for beat in beats) for key in ("done", "total"))
    last = beats[-1]
    told = f", {last['note']}" if last.get("note") else ""
    return (
        Text(str(last.get("state", "?")), "yellow"),
        f"{done}/{total} {last.get('unit', 'items')}{told}, as of {last.get('time', '?')}",
    )


def _heartbeats(store: Store, run: str, stage: str) -> Iterator[dict[str, Any]]:
    for entry in store.list(f"runs/{run}/status/{stage}"):
        name = entry.key.rpartition("/")[2].removesuffix(".json")
        if name == stage or name.removeprefix(f"{stage}-").isdigit():
            try:
                yield json.loads(store.get(entry.key))
            except (NoSuchObject, ValueError):
                continue


def _head(dumped: list[dict[str, Any]], width: int) -> Iterator[Grid]:
    """A table's first rows, turned on their side; as many beside each other as leave each a readable width."""
    names = list(dumped[0])[1:]
    name_width = max(map(len, names), default=0)
    at_once = max(1, (width - name_width - 3) // (MIN_ROW_WIDTH + 3))
    for first in range(0, len(dumped), at_once):
        rows = dumped[first : first + at_once]
        grid = Grid(box=box.SIMPLE, pad_edge=False)
        grid.add_column("", style="dim", no_wrap=True, min_width=name_width)
        row_width = (width - name_width - 3) // len(rows) - 3
        for row in rows:
            most = min(40, max(row_width, MIN_ROW_WIDTH))
            grid.add_column(Text(str(row["id"])), max_width=most, overflow="ellipsis", no_wrap=True)
        for name in names:
            grid.add_row(name, *(Text(_cell(row[name])) for row in rows))
        yield grid


def _cell(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _counts(counts: dict[str, int]) -> str:
    return "\n".join(f"{number:,} {what}" for what, number in counts.items()) or "—"


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _join(uri: str, key: str) -> str:
    return f"{uri.rstrip('/')}/{key}"


def _errors() -> Console:
    return Console(stderr=True)
