"""What a person sees after an export or an import: what was made, what was left out, and what to do next."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

from rich.console import Console

from bricks_core.exchange.datasets.bring_in import Checked
from bricks_core.exchange.datasets.data_card import Contents
from bricks_core.exchange.datasets.dataset import Dataset
from bricks_core.exchange.datasets.export_folder import ExportFolder
from bricks_core.exchange.licences import UNKNOWN


def exported_screen(dataset: Dataset, counted: Contents, folder: ExportFolder, what: str, table: Path) -> None:
    """The end of an export."""
    console = _console()
    clips, images = counted.of_kind("video"), counted.of_kind("image")
    held_out = counted.of_split("held_out")
    console.print(f"Run {dataset.run} as {what}: {_clips_and_images(clips, images)}, {held_out:,} of them held out")
    there = f", {folder.num_there:,} were there" if folder.num_there else ""
    files = ("shard" if what == "webdataset" else "file") + ("" if folder.num_written == 1 else "s")
    size = f"{counted.num_bytes / 1e6:,.1f} MB of clips and images"
    console.print(f"  {folder.num_written:,} {files} written{there}: {size}")
    console.print(f"  {table}")
    licences = ", ".join(sorted(f"{licence} ({_of(counted, licence):,})" for licence in counted.licences))
    console.print(f"  licences: {licences}")
    if UNKNOWN in counted.licences:
        console.print("  Whose licence is unknown, nobody may pass on: tell it in spec.ingest.sources, and run again.")
    flag = "" if dataset.store.uri == "bricks-store" else f" --store {shlex.quote(dataset.store.uri)}"
    nexts = [(f"bricks show {dataset.run}/{stage}{flag}", why) for stage, why in _left_out(dataset)]
    quoted = shlex.quote(str(table))
    match what:
        case "open-sora":
            nexts.append((f"bricks dataset import {quoted} --name mine --out mine.yaml", "the way back"))
        case "webdataset":
            shards = shlex.quote(str(folder.path / folder.about["shards"][0]["file"]))
            nexts.append((f"tar -tf {shards}", "look at it; webdataset.WebDataset reads it"))
        case "hugging-face":
            code = f"import datasets; print(datasets.load_dataset({json.dumps(str(folder.path), ensure_ascii=False)}))"
            nexts.append((f"python -c {shlex.quote(code)}", "look at it"))
    _print_nexts(console, nexts)


def imported_screen(checked: Checked, name: str, out: Path) -> None:
    """The end of an import."""
    console = _console()
    for problem in checked.problems:
        console.print(problem)
    if checked.num_problems > len(checked.problems):
        console.print(f"... and {checked.num_problems - len(checked.problems):,} more rows like these.")
    what = _clips_and_images(checked.num_clips, checked.num_images)
    size = f"{checked.num_bytes / 1e6:,.1f} MB"
    console.print(f"{checked.num_fine:,} of {checked.num_rows:,} rows of {checked.table} can be used: {what}, {size}")
    for title, counted in (("split", checked.splits), ("licences", checked.licences)):
        console.print(f"  {title}: {', '.join(f'{each} ({num:,})' for each, num in sorted(counted.items()))}")
    console.print(f"  {out}")
    quoted = shlex.quote(str(out))
    nexts = [
        (f"bricks run {quoted} --until caption", "decode and measure them; what cannot be decoded gets a reason"),
        (f"bricks show {name}/ingest", "look at what was taken, once that is done"),
    ]
    _print_nexts(console, nexts)


def _left_out(dataset: Dataset) -> list[tuple[str, str]]:
    """Where to look for what is not in the dataset, if anything is."""
    dropped = sum(num for what, num in dataset.score.manifest.counts.items() if what.startswith("dropped: "))
    counts = {what: num for what, num in dataset.caption.manifest.counts.items() if "tokens" not in what}
    refused = sum(num for what, num in counts.items() if what != "ok" and not what.startswith("of the ok"))
    found = []
    if dropped:
        found.append(("score", f"the filter left out {dropped:,} clip{'' if dropped == 1 else 's'}"))
    if refused:
        found.append(("caption", f"{refused:,} caption{' was' if refused == 1 else 's were'} not accepted"))
    return found


def _of(counted: Contents, licence: str) -> int:
    return sum(num for (each, _, _), num in counted.rights.items() if each == licence)


def _clips_and_images(num_clips: int, num_images: int) -> str:
    parts = [
        f"{num:,} {thing}{'' if num == 1 else 's'}"
        for num, thing in ((num_clips, "clip"), (num_images, "image"))
        if num or thing == "clip"
    ]
    return " and ".join(parts)


def _print_nexts(console: Console, nexts: list[tuple[str, str]]) -> None:
    console.print("\nNext")
    for command, what in nexts:
        console.print(f"  {command}")
        console.print(f"      {what}", style="dim")


def _console() -> Console:
    # Plain text: names and paths are not to be broken in two, nor brackets in them taken for colours.
    return Console(width=None if sys.stdout.isatty() else 140, markup=False, highlight=False, soft_wrap=True)
