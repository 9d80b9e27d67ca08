"""What a person sees of lineage, and of what is or would be taken down."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict

from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from bricks_core.pipeline import layout
from bricks_core.pipeline.affected import Affected
from bricks_core.pipeline.ledger import Evaluation, Film, Training
from bricks_core.pipeline.lineage import CheckpointLineage, ClipLineage, Lineage, SourceLineage
from bricks_core.pipeline.trained import in_words
from bricks_core.spec.items import KINDS
from bricks_core.storage.store import Store

MOST_ROWS = 50
"""Films, clips and trainings shown of each; --json has all."""


def lineage_screen(found: Lineage) -> None:
    """The answer as tables."""
    console = layout.console()
    match found:
        case CheckpointLineage():
            _checkpoint(console, found)
        case ClipLineage():
            _clip(console, found)
        case SourceLineage():
            _source(console, found)


def lineage_json(found: Lineage) -> str:
    """The answer for programs; `about` says which of the three it is."""
    about = {CheckpointLineage: "checkpoint", ClipLineage: "clip", SourceLineage: "source"}[type(found)]
    return json.dumps({"about": about} | asdict(found), indent=1, ensure_ascii=False)


def _checkpoint(console: Console, found: CheckpointLineage) -> None:
    done = "" if found.step == found.num_steps else f" of {found.num_steps:,}"
    done += "" if found.artifacts else ", of a training that is not finished"
    done += ", which has learnt nothing yet" if found.step == 0 else ""
    told = {
        "checkpoint": f"{found.checkpoint}, step {found.step:,}{done}",
        "weights": found.folder,
        "training": ", ".join([found.training, *found.artifacts]),
        "runs": ", ".join(found.runs),
        "began with": found.base + (f" (after {', then '.join(found.bases)})" if found.bases else ""),
        "learnt from": f"{found.num_clips:,} clips and {found.num_images:,} pictures; "
        f"measured on {found.num_held_out:,} that were held out",
        "captions by": ", ".join(f"{writer} ({num:,})" for writer, num in found.captions_by.items() if num),
        "codec": ", ".join(found.codec),
        "encoder": ", ".join(found.encoder),
        "code": "; ".join(f"{version}: {stages}" for version, stages in _by_version(found.code_version).items()),
        "artifacts": ", ".join(f"{stage}/{digest[:12]}" for stage, digest in found.digests.items()),
    }
    console.print(layout.facts(told))
    console.print(f"\nFilms ({len(found.films):,})", style="bold")
    for each in _films(console, found.films):
        console.print(each)
    if found.taken_down:
        line = f"It learnt from what was taken down since, so withdraw it: {', '.join(found.taken_down)}."
        console.print(line, style="red", soft_wrap=True, highlight=False)


def _clip(console: Console, found: ClipLineage) -> None:
    seconds = f", {found.seconds[0]:.2f} to {found.seconds[1]:.2f} s" if found.seconds else ""
    film = found.film
    told = {
        found.kind: found.clip,
        "film": ", ".join(film.names) if film else "not known any more",
        "place": f"frames {found.first_frame:,} to {found.end_frame - 1:,}{seconds}",
        "sha256": f"{film.sha256} (the film's)" if film else "—",
        "licence": ", ".join(film.licence) if film else "—",
        "credit": ", ".join(film.credit) if film else "—",
        "consent": ", ".join(film.consent) if film else "—",
        "runs": ", ".join(film.runs) if film else "—",
        "file": found.file,
        "filter": "\n".join(found.state),
        "caption": "\n".join(f"{each.kind}, by {each.by}, {each.status}: {each.text}" for each in found.captions),
        "latents": "\n".join(
            f"{each.kind}, {each.resolution}, {each.side}: items/latent/{each.item[:2]}/{each.item} by {each.codec}"
            for each in found.latents
        ),
    }
    console.print(layout.facts(told))
    if film is not None and film.taken_down:
        console.print(f"Its film was taken down: {film.taken_down}.", style="red", soft_wrap=True, highlight=False)
    _trainings(console, found.trainings)
    _evaluations(console, found.evaluations)


def _source(console: Console, found: SourceLineage) -> None:
    for each in _films(console, found.films, with_runs=True):
        console.print(each)
    for film in found.films[:MOST_ROWS]:
        told = {"sha256": film.sha256, "names": "\n".join(film.names)}
        told |= {"taken down": film.taken_down} if film.taken_down else {}
        shown = ", ".join(film.clips[:MOST_ROWS])
        more = f" … and {len(film.clips) - MOST_ROWS:,} more" if len(film.clips) > MOST_ROWS else ""
        console.print(layout.facts(told | {f"clips ({len(film.clips):,})": shown + more}))
    _trainings(console, found.trainings)
    _evaluations(console, found.evaluations)


def takedown_screen(affected: Affected, store: Store, wanted: str, *, deleted: bool, withdrawn: bool) -> None:
    """What goes, or went, with a film, what is to be withdrawn, and what nobody can know from here."""
    console, mark = layout.console(), affected.mark
    if affected.films:
        for each in _films(console, affected.films, with_sides=False):
            console.print(each)
    told = {"sha256": mark.sha256, "runs": ", ".join(affected.runs)}
    if mark.files:
        told["also refused"] = f"{len(mark.files):,} clips and pictures cut from it, as files of their own"
    console.print(layout.facts(told))
    grid = layout.grid("what", "number", "files", "size")
    for kind, keys in affected.items.items():
        size = layout.in_bytes(affected.num_bytes.get(kind, 0))
        grid.add_row(KINDS[kind].what, f"{len(keys):,}", f"{affected.num_files.get(kind, 0):,}", size)
    stages = Counter(stage for stage, _ in affected.holding)
    for stage, num in stages.items():
        grid.add_row(f"{stage} artifacts, its rows", f"{num:,}", "", "")
    shared = sum(1 for keys in affected.packs.values() if keys)
    if affected.packs:
        grid.add_row("packs with something of it", f"{len(affected.packs):,}", f"{shared:,} shared", "")
    if affected.evaluations:
        grid.add_row("reports that may show it", f"{len(affected.evaluations):,}", "", "")
    if not affected.is_empty:
        console.print(grid)
    lines(console, _takedown_lines(affected, deleted=deleted, withdrawn=withdrawn))
    if not deleted:
        flags = f" --store {shlex.quote(store.uri)}" if store.uri != "bricks-store" else ""
        console.print(
            f"\nbricks takedown {shlex.quote(wanted)} --delete{flags}", markup=False, highlight=False, soft_wrap=True
        )
        console.print("  deletes this for good, and refuses its content in every later run", style="dim")


def _takedown_lines(affected: Affected, *, deleted: bool, withdrawn: bool) -> Iterator[str]:
    mark = affected.mark
    if affected.is_empty:
        yield "Nothing of it is in the store." if not deleted else "Nothing of it was in the store."
    elif deleted:
        yield "All of this is deleted. Whatever shared a pack with it was copied as it was."
    if deleted:
        yield f"{mark.key} refuses its content from now on, whatever it is called."
    learners = [each for each in affected.trainings if each.learnt]
    for each in learners:
        whose = f" of run{'s' if len(each.runs) != 1 else ''} {', '.join(each.runs)}" if each.runs else ""
        base = f", through {each.through}" if each.through else ""
        learnt = [step for step in each.steps if step or each.through]
        steps = f"checkpoints at steps {in_words(learnt)}" if learnt else "no checkpoint left"
        verb = "Withdrawn" if withdrawn else "To withdraw"
        yield f"{verb}: {each.name}{whose}, which learnt from it{base}: {steps}."
    if learners and not withdrawn:
        yield f"With --withdraw these go, too, and {len(affected.samples):,} samples and measurements of theirs."
    for report in affected.reports:
        whose = f" of run{'s' if len(report.runs) != 1 else ''} {', '.join(report.runs)}" if report.runs else ""
        verb = "Deleted with them" if withdrawn else "Would go with them"
        yield f"{verb}: {report.artifact}{whose}, a report that shows samples of theirs."
    for each in affected.trainings:
        if not each.learnt:
            yield f"Not to withdraw: {each.name} has not learnt from it, only its held-out loss was measured on it."
    yield (
        "What nobody can know from here: datasets and checkpoints that were exported, films made by `bricks generate`, "
        "copies in other stores (call this there, too), and what went to W&B."
    )


def _films(
    console: Console, films: Sequence[Film], *, with_sides: bool = True, with_runs: bool = False
) -> Iterator[Grid | str]:
    """The films, and how many of the clips of each were learnt from and held out. A narrow terminal leaves out what
    --json has."""
    is_narrow = console.width < layout.NARROW
    rows = [_film(film) for film in films[:MOST_ROWS]]
    columns = ["film", "sha256", "licence", "credit", "consent", "learnt", "held out", "runs"]
    unwanted = {"sha256", "credit", "runs"} if is_narrow else set()
    unwanted |= set() if with_sides else {"learnt", "held out"}
    unwanted |= set() if with_runs else {"runs"}
    shown = [column for column in columns if column not in unwanted]
    grid = layout.grid(*shown, whole=set(shown) - {"film", "runs", "credit"})
    for row in rows:
        grid.add_row(*(Text(row[column]) for column in shown))
    yield grid
    if len(films) > MOST_ROWS:
        yield f"… and {len(films) - MOST_ROWS:,} more: --json has all"


def _film(film: Film) -> dict[str, str]:
    name = film.names[0] if film.names else "—"
    more = f" (and {len(film.names) - 1} names more)" if len(film.names) > 1 else ""
    return {
        "film": name + more + ("\ntaken down" if film.taken_down else ""),
        "sha256": film.sha256[:12],
        "licence": "\n".join(film.licence) or "—",
        "credit": "\n".join(film.credit) or "—",
        "consent": "\n".join(film.consent) or "—",
        "learnt": f"{film.num_train:,}",
        "held out": f"{film.num_held_out:,}",
        "runs": "\n".join([*film.runs, *(f"{run} (before)" for run in film.runs_before)]) or "—",
    }


def _trainings(console: Console, trainings: Sequence[Training]) -> None:
    if not trainings:
        console.print("\nNo training learnt from it.", highlight=False)
        return
    console.print("\nTrainings", style="bold")
    grid = layout.grid("training", "runs", "it was", "checkpoints at steps")
    for each in trainings[:MOST_ROWS]:
        side = "learnt from" if each.learnt else "held out, measured on"
        side += f", in its base {each.through}" if each.through else ""
        names = "\n".join([each.name, *(f"train/{digest[:12]}" for digest in each.artifacts)])
        grid.add_row(*map(Text, (names, "\n".join(each.runs) or "—", side, in_words(each.steps) or "none")))
    console.print(grid)


def _evaluations(console: Console, evaluations: Sequence[Evaluation]) -> None:
    if evaluations:
        console.print("\nEvaluations", style="bold")
        grid = layout.grid("evaluation", "runs", "its report")
        for each in evaluations[:MOST_ROWS]:
            shows = "shows it" if each.shows else "tells of its data"
            grid.add_row(*map(Text, (each.artifact, "\n".join(each.runs) or "—", shows)))
        console.print(grid)


def _by_version(versions: dict[str, str]) -> dict[str, str]:
    found: dict[str, list[str]] = {}
    for stage, version in versions.items():
        found.setdefault(version, []).append(stage)
    return {version: " ".join(stages) for version, stages in found.items()}


def lines(console: Console, told: Iterable[str]) -> None:
    """Sentences, each on a line of its own."""
    for line in told:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
