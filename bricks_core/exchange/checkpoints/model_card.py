"""The model card of an exported checkpoint, as the hub lays it out: what it learnt from, whose that is, for how long,
and what was measured. Nothing in it is a guess; what is not known is said to be so.
"""

from __future__ import annotations

import json
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from bricks_core.errors import DataError
from bricks_core.exchange.checkpoints.checkpoint import Checkpoint
from bricks_core.exchange.grid import grid
from bricks_core.exchange.licences import UNKNOWN, findings, hub_licence, is_unknown, terms_of
from bricks_core.models.beside import PROVENANCE, read_beside
from bricks_core.pipeline.ledger import Film, Ledger
from bricks_core.pipeline.lineage import CheckpointLineage, of_checkpoint
from bricks_core.pipeline.trained import find_trained
from bricks_core.spec.train import HeldOutRow, TrainSpec, Weights
from bricks_core.storage.store import Store

log = logging.getLogger("bricks")

CARD, LINEAGE = "README.md", "lineage.json"
LIBRARIES = {"diffusers": "diffusers", "open-sora-hub": "open-sora", "open-sora-training": "open-sora"}
MOST_FILMS = 100
"""That the card names; lineage.json has all."""


@dataclass(frozen=True)
class Base:
    """What a training began with."""

    name: str
    """As the run file has it; empty: random weights."""
    hub_id: str = ""
    """Where it was imported from, if that is the hub."""
    licence: str | None = UNKNOWN
    """As the card beside it says; None: there is no base."""


@dataclass(frozen=True)
class Origin:
    """What a store knows of a checkpoint."""

    lineage: CheckpointLineage
    spec: TrainSpec
    held_out: list[HeldOutRow]
    """Empty: nothing was measured, or the training is not finished."""
    base: Base


def origin_of(store: Store, wanted: str, step: int | None, base_licence: str = "") -> Origin | None:
    """What the store knows of RUN or train/DIGEST after `step` steps (None: the last); None: that cannot be read, and
    is told. `base_licence`: what is said of the base, where no card beside it says it."""
    try:
        return _origin_of(store, wanted, step, base_licence)
    except DataError as error:
        log.warning("The card of %s says nothing of its data: %s", wanted, error)
        return None


def _origin_of(store: Store, wanted: str, step: int | None, base_licence: str) -> Origin:
    ledger, trained = Ledger(store), find_trained(store, wanted)
    found = of_checkpoint(ledger, f"{wanted}@{trained.state(step).step}")
    artifacts = (
        each for digest, each in ledger.artifacts["train"].items() if f"train/{digest[:12]}" in found.artifacts
    )
    artifact = next(artifacts, None)
    rows = list(artifact.rows("held_out", HeldOutRow)) if artifact is not None else []
    return Origin(_bare(found), trained.spec, rows, _base_of(store, found.base, base_licence))


def write_card(
    folder: Path,
    checkpoint: Checkpoint,
    format: str,
    weights: Weights | None,
    dtype: str,
    origin: Origin | None,
    licence: str = "",
) -> None:
    """Write README.md and, where the store knows it, lineage.json.

    `licence`: what the model is passed on under; empty: that is not known.
    """
    text = model_card(checkpoint, format, weights, dtype, origin, licence)
    (folder / CARD).write_text(text, encoding="utf-8")
    if origin is not None:
        lineage = json.dumps(asdict(origin.lineage), indent=1, ensure_ascii=False)
        (folder / LINEAGE).write_text(lineage + "\n", encoding="utf-8")


def model_card(
    checkpoint: Checkpoint, format: str, weights: Weights | None, dtype: str, origin: Origin | None, licence: str
) -> str:
    """The whole card: a head that the hub reads, and what a person wants to know."""
    head = yaml.safe_dump(card_head(checkpoint, format, origin, licence), sort_keys=False, allow_unicode=True)
    parts = [f"---\n{head}---\n", f"# {checkpoint.name if origin is not None else checkpoint.origin}\n"]
    parts += [_what_it_is(checkpoint, format, weights, dtype, origin)]
    if origin is None:
        parts += [
            "## What it learnt from\n",
            "Not known from here: it came as files, without the store that made it.\n",
        ]
    else:
        parts += [_data(origin), _rights(origin, licence), _training(origin), _measured(origin, weights)]
    parts += ["## Intended use\n", "To be written by whoever passes it on: what it is for, and what it is not for.\n"]
    if origin is not None:
        parts.append(_lineage(origin))
    return "\n".join(parts)


def card_head(checkpoint: Checkpoint, format: str, origin: Origin | None, licence: str) -> dict[str, Any]:
    """The card's YAML, in the hub's words."""
    head: dict[str, Any] = dict(hub_licence([licence or UNKNOWN]))
    if origin is not None and origin.base.hub_id:
        head["base_model"] = [origin.base.hub_id]
    if origin is not None and origin.lineage.runs:
        head["datasets"] = origin.lineage.runs
    head |= {"pipeline_tag": "text-to-video", "library_name": LIBRARIES[format]}
    return head | {"tags": ["text-to-video", checkpoint.family.name, "bricks"]}


def _what_it_is(checkpoint: Checkpoint, format: str, weights: Weights | None, dtype: str, origin: Origin | None) -> str:
    kind = {"ema": "the EMA weights", "raw": "the weights themselves (no EMA)", None: "weights"}[weights]
    step = f" after step {checkpoint.step:,}" if checkpoint.step is not None else ""
    types = "in the types they had" if dtype == "stored" else dtype
    lines = [f"A text-to-video network ({checkpoint.family.name}): {kind}{step}, {types}, laid out as {format}."]
    if checkpoint.training:
        lines.append(f"**Its training is {checkpoint.training}.**")
    if checkpoint.encoders is not None:
        codec, text = checkpoint.encoders.codec, checkpoint.encoders.text
        told = [f"{part.kind}{f' ({part.model})' if part.model else ''}" for part in (codec, text)]
        lines.append(f"Its latents are those of {told[0]}, its captions are read by {told[1]}.")
    if origin is not None and origin.lineage.taken_down:
        num = len(origin.lineage.taken_down)
        were = "were" if num > 1 else "was"
        lines.append(f"**It learnt from {_films(num)} that {were} taken down since: withdraw it.**")
    return "\n".join(lines) + "\n"


def _data(origin: Origin) -> str:
    found = origin.lineage
    learnt = [film for film in found.films if film.num_train]
    writers = ", ".join(f"{writer} ({num:,})" for writer, num in found.captions_by.items() if num)
    rights: Counter[tuple[str, str, str]] = Counter()
    clips: Counter[tuple[str, str, str]] = Counter()
    for film in learnt:
        whose = _whose(film)
        rights[whose] += 1
        clips[whose] += film.num_train
    rows = [["licence", "credit", "consent", "films", "clips"]]
    rows += [[*whose, f"{num:,}", f"{clips[whose]:,}"] for whose, num in sorted(rights.items())]
    lines = [
        "## What it learnt from",
        "",
        f"{found.num_clips:,} clips and {found.num_images:,} pictures of {len(learnt):,} films"
        f"{', with those of the trainings that it went on from' if found.bases else ''}. "
        f"{found.num_held_out:,} were held out, to measure on. Captions by: {writers or 'nobody'}.",
        "",
        *grid(rows),
        "",
    ]
    names = [["film", "sha256", "clips", "held out"]]
    for film in found.films[:MOST_FILMS]:
        names.append(
            [film.names[0] if film.names else "-", film.sha256, f"{film.num_train:,}", f"{film.num_held_out:,}"]
        )
    more = f"\n{len(found.films) - MOST_FILMS:,} more are in {LINEAGE}.\n" if len(found.films) > MOST_FILMS else ""
    return "\n".join([*lines, *grid(names), more])


def _rights(origin: Origin, licence: str) -> str:
    licences = Counter(film.licence[0] for film in origin.lineage.films if film.num_train)
    lines = ["## Licences", ""]
    base = origin.base
    began = (
        f"It began with {base.name}, whose licence is {base.licence}." if base.name else "It began with random weights."
    )
    lines += [began, ""]
    lines += [f"- {each}" for each in findings(licences, base.licence if base.name else None, licence)]
    unnamed = Counter(film.licence[0] for film in origin.lineage.films if film.num_train and not film.credit)
    for each, num in sorted(unnamed.items()):
        terms = terms_of(each)
        if terms is not None and terms.credit:
            lines.append(f"- {each}, of {_films(num)}, asks to name whose they are, and nobody is named.")
    agreed = [film.consent[0] for film in origin.lineage.films if film.num_train]
    if num := sum(map(is_unknown, agreed)):
        who = "those who made them, or are seen in them, agree"
        lines.append(f"- The consent of {_films(num)} is **not known**: whether {who}.")
    lines += ["", "What is said here follows a small table, and is no legal advice.", ""]
    return "\n".join(lines)


def _training(origin: Origin) -> str:
    spec = origin.spec
    rows = [["phase", "steps", "learning rate", "buckets (frames × resolution, batch)"]]
    for phase in spec.phases:
        buckets = ", ".join(f"{each.num_frames} × {each.resolution}, {each.batch_size}" for each in phase.buckets)
        rows.append([phase.name, f"{phase.steps:,}", f"{phase.schedule.kind}, {phase.schedule.lr:g}", buckets])
    told = spec.model_dump(mode="json") | {"init_from": origin.base.name if spec.init_from else ""}
    settings = yaml.safe_dump({"train": told}, sort_keys=False, allow_unicode=True, width=100)
    lines = ["## How it was trained", "", f"{origin.lineage.step:,} of {spec.num_steps:,} steps.", "", *grid(rows)]
    return "\n".join([*lines, "", "All settings:", "", "```yaml", settings + "```", ""])


def _measured(origin: Origin, weights: Weights | None) -> str:
    """Held-out loss before and after, as the training measured it."""
    lines = ["## Held-out loss", ""]
    which: Weights = weights or "ema"
    rows = [row for row in origin.held_out if row.weights == which and row.step <= origin.lineage.step]
    if not rows:
        why = "no clip was held out" if origin.lineage.finished else "the training is not finished, or held nothing out"
        return "\n".join([*lines, f"Not measured: {why}.", ""])
    losses: dict[tuple[str, int], list[float]] = defaultdict(list)
    for row in rows:
        losses[row.bucket, row.step].append(row.loss)
        losses["all buckets", row.step].append(row.loss)
    first, last = min(row.step for row in rows), max(row.step for row in rows)
    table = [["bucket", f"step {first:,}", f"step {last:,}"]]
    for bucket in sorted({bucket for bucket, _ in losses}, key=lambda name: (name != "all buckets", name)):
        table.append([bucket, _mean(losses[bucket, first]), _mean(losses[bucket, last])])
    kind = "EMA" if which == "ema" else "raw"
    told = (
        f"Mean over timestep bins, on clips that it never saw ({kind} weights). A lower loss alone does not say that "
    )
    told += "its films are good."
    return "\n".join([*lines, told, "", *grid(table), ""])


def _lineage(origin: Origin) -> str:
    found = origin.lineage
    rows = [["what", "which"], ["weights", found.folder], ["training", ", ".join([found.training, *found.artifacts])]]
    rows += [["began with", found.base], ["runs", ", ".join(found.runs)]]
    rows += [[stage, digest] for stage, digest in found.digests.items()]
    rows += [["code", ", ".join(sorted(set(found.code_version.values())))]]
    told = "In the store that made it, `bricks lineage` leads from these to every film and clip."
    return "\n".join(["## Lineage", "", told, "", *grid(rows), ""])


def _base_of(store: Store, name: str, said: str) -> Base:
    """What is known of the base: from the card and the provenance beside it, or from what was said."""
    if name == "random weights":
        return Base("", licence=None)
    folder = Path(name).expanduser()
    folder = folder if folder.is_dir() else folder.parent
    provenance: dict[str, Any] = {}
    if Path(name).expanduser().exists():
        provenance = read_beside(folder / PROVENANCE)
    else:
        for _, data in store.get_many([f"{name.rstrip('/')}/{PROVENANCE}"]):
            provenance = json.loads(data) if data else {}
    source = str(provenance.get("from", ""))
    hub_id = source if provenance.get("revision") else ""
    found = _front_matter(folder / CARD).get("license", "") if Path(name).expanduser().exists() else ""
    shown = name if name.startswith(("trainings/", "artifacts/")) else PurePosixPath(name).name
    return Base(hub_id or shown, hub_id, said or str(found) or UNKNOWN)


def _front_matter(card: Path) -> dict[str, Any]:
    """The head of a card; empty where there is none that can be read."""
    if not card.is_file():
        return {}
    parts = card.read_text(encoding="utf-8", errors="replace").split("---\n", 2)
    try:
        found = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0].strip() else {}
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}


def _bare(found: CheckpointLineage) -> CheckpointLineage:
    """Without where files lie on this machine: that is nobody else's business."""
    base = found.base
    if not base.startswith(("trainings/", "artifacts/")):
        base = PurePosixPath(base).name
    films = [replace(film, names=list(_names(film.names))) for film in found.films]
    return replace(found, films=films, base=base)


def _names(names: Iterable[str]) -> Iterable[str]:
    return dict.fromkeys(PurePosixPath(name).name for name in names)


def _films(num: int) -> str:
    return f"{num:,} film{'s' if num > 1 else ''}"


def _whose(film: Film) -> tuple[str, str, str]:
    return film.licence[0], film.credit[0] if film.credit else "-", film.consent[0]


def _mean(values: list[float]) -> str:
    return f"{sum(values) / len(values):.4f}" if values else "-"
