"""Where things come from, and what came of them: a checkpoint's films, a clip's whole way, a film's checkpoints.

Read from what stands in manifests and tables (see ledger.py): the answer takes seconds at 24,000 clips.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

from bricks_core.errors import DataError, UsageError, nearest
from bricks_core.pipeline.ledger import ID, MIN_DIGITS, SHA256, STATE, Evaluation, Film, Ledger, Training, full_name
from bricks_core.pipeline.points import run_names
from bricks_core.pipeline.trained import Trained, TrainedState, find_trained, is_run_with_training
from bricks_core.spec.stages import STAGES
from bricks_core.storage.artifacts import Artifact
from bricks_core.storage.store import Store
from bricks_core.storage.takedowns import Side
from bricks_core.storage.trainings import COMMIT, ROOT


@dataclass
class CheckpointLineage:
    """From a checkpoint to its films."""

    checkpoint: str
    step: int
    num_steps: int
    finished: bool
    folder: str
    """Where its weights lie."""
    training: str
    artifacts: list[str]
    runs: list[str]
    base: str
    bases: list[str]
    """Trainings that it goes on from, the nearest first; their films are among its films."""
    codec: list[str]
    encoder: list[str]
    captions_by: dict[str, int]
    """Clips and pictures by who wrote their captions."""
    code_version: dict[str, str]
    """By stage: which version of the code made its tables."""
    digests: dict[str, str]
    """Of the artifacts that it was made from, by stage."""
    num_clips: int
    num_images: int
    num_held_out: int
    """Clips and pictures that it was measured on."""
    films: list[Film]
    taken_down: list[str]
    """sha256 of films that it learnt from and that were taken down since, whose rows are gone."""


@dataclass
class CaptionOf:
    kind: str
    by: str
    status: str
    text: str


@dataclass
class LatentOf:
    kind: str
    side: Side
    resolution: str
    item: str
    codec: str
    caption: str


@dataclass
class ClipLineage:
    """A clip's whole way."""

    clip: str
    kind: Literal["clip", "image"]
    film: Film | None
    first_frame: int
    end_frame: int
    seconds: tuple[float, float] | None
    """In its film, where the film's rate is known."""
    file: str
    sha256: str
    state: list[str]
    """kept, or dropped with the reasons: of every filter that judged it."""
    captions: list[CaptionOf]
    latents: list[LatentOf]
    trainings: list[Training]
    evaluations: list[Evaluation]


@dataclass
class SourceLineage:
    """What became of films."""

    wanted: str
    films: list[Film]
    trainings: list[Training]
    evaluations: list[Evaluation]


Lineage = CheckpointLineage | ClipLineage | SourceLineage


def lineage(store: Store, wanted: str) -> Lineage:
    """What a name means, and where it comes from or what came of it.

    `wanted`: RUN, RUN@STEP, train/DIGEST or trainings/KEY[/step-…] for a checkpoint; a clip's or picture's id, its key
    in the store, or the sha256 of its file; else a film: its path or name as the tables have it, its sha256 or the
    first digits of that, or its video_id.

    Raises:
        DataError: there is nothing of that name. UsageError: it means several things.
    """
    ledger = Ledger(store)
    if _names_checkpoint(store, wanted):
        return of_checkpoint(ledger, wanted)
    if (found := of_clip(ledger, wanted)) is not None:
        return found
    films = ledger.find_films(wanted)
    if not films:
        raise DataError(_unknown(ledger, wanted))
    return of_films(ledger, wanted, films)


def _names_checkpoint(store: Store, wanted: str) -> bool:
    run, _, step = wanted.partition("@")
    if wanted.startswith((ROOT, "train/", "artifacts/train/")) or wanted.endswith("/train") or step.isdigit():
        return True
    return "/" not in run and is_run_with_training(store, run)


def _unknown(ledger: Ledger, wanted: str) -> str:
    runs = run_names(ledger.store)
    if wanted in runs:
        return f"Run {wanted} has begun no training, so it has no checkpoint: name one of its films or clips."
    names = [name for row in ledger.videos() for name in (row["name"], full_name(row))]
    near = nearest(wanted, [*runs, *names, *(name.rpartition("/")[2] for name in names)])
    return (
        f"{ledger.store.uri} knows no checkpoint, clip or film {wanted}{near}. Name a RUN, a clip's id, or a film by "
        "its name, sha256 or video_id, as bricks show RUN/ingest has them."
    )


def of_films(ledger: Ledger, wanted: str, shas: set[str]) -> SourceLineage:
    films = ledger.films(shas)
    clips: dict[str, dict[str, set[str]]] = {}
    for digest, artifact in ledger.artifacts["clip"].items():
        rows = ledger.rows(artifact, "clips", ["id", "source_sha256"], source_sha256=shas)
        images = ledger.rows(artifact, "images", ["id", "clip_id", "source_sha256"], source_sha256=shas)
        rows += [row for row in images if row["id"] == row["clip_id"]]
        by_film = clips.setdefault(digest, defaultdict(set))
        for row in rows:
            by_film[row["source_sha256"]].add(row["id"])
    for sha, film in films.items():
        film.clips = sorted({each for by_film in clips.values() for each in by_film.get(sha, ())})
    ids = {digest: {each for some in by_film.values() for each in some} for digest, by_film in clips.items()}
    sides, used = ledger.sides(ids)
    for film in films.values():
        film.num_train = len({each for each in film.clips if "train" in used.get(each, ())})
        film.num_held_out = len({each for each in film.clips if "held_out" in used.get(each, ())})
    for sha in shas:
        if (mark := ledger.takedowns.marks.get(sha)) is not None:
            for digest, told in mark.latents.items():
                sides[digest] = sorted({*sides.get(digest, []), *told})
    shown = {each for film in films.values() for each in film.clips}
    trainings = ledger.learners(sides)
    return SourceLineage(wanted, list(films.values()), trainings, ledger.evaluations(ids, trainings, shown))


_CLIP = ["id", "video_id", "first_frame", "end_frame", "fps", "key", "sha256", "source_sha256", "item"]
_IMAGE = ["id", "clip_id", "video_id", "frame", "key", "sha256", "source_sha256", "item"]


def of_clip(ledger: Ledger, wanted: str) -> ClipLineage | None:
    """None: there is no such clip or picture."""
    columns = _clip_columns(wanted)
    rows: dict[str, list[dict[str, Any]]] = {}
    kind: Literal["clip", "image"] = "clip"
    for kind in ("clip", "image") if columns else ():
        names = _CLIP if kind == "clip" else _IMAGE
        for digest, artifact in ledger.artifacts["clip"].items():
            if found := ledger.rows(artifact, f"{kind}s", names, **columns):
                rows[digest] = found
        if rows:
            break
    if not rows:
        return None
    ids = {row["id"] for found in rows.values() for row in found}
    if len(ids) > 1:
        raise UsageError(f"{wanted} is the file of {len(ids)} clips: name one, such as {', '.join(sorted(ids)[:5])}.")
    row = next(iter(rows.values()))[0]
    clip_id = row["id"]
    owner = clip_id if kind == "clip" else row["clip_id"]
    by_clip = {digest: {owner} for digest in rows}
    film = ledger.films({row["source_sha256"]}).get(row["source_sha256"])
    first, end = (row["first_frame"], row["end_frame"]) if kind == "clip" else (row["frame"], row["frame"] + 1)
    rate = next((each["fps"] for each in ledger.videos(sha256=[row["source_sha256"]]) if each["fps"]), 0.0)
    latents = _latents_of(ledger, clip_id, kind, by_clip)
    sides, _ = ledger.sides(by_clip)
    trainings = ledger.learners(sides)
    return ClipLineage(
        clip=clip_id,
        kind=kind,
        film=film,
        first_frame=first,
        end_frame=end,
        seconds=(first / rate, end / rate) if rate else None,
        file=row["key"],
        sha256=row["sha256"],
        state=_states_of(ledger, owner, by_clip),
        captions=_captions_of(ledger, {clip_id, owner}, by_clip),
        latents=latents,
        trainings=trainings,
        evaluations=ledger.evaluations(by_clip, trainings, {clip_id}),
    )


def _states_of(ledger: Ledger, clip_id: str, by_clip: Collection[str]) -> list[str]:
    found: dict[str, None] = {}
    for artifact in ledger.artifacts["score"].values():
        if artifact.manifest.inputs.get("clip") in by_clip:
            for row in ledger.rows(artifact, "scores", ["id", "state", "reasons", "split"], id=[clip_id]):
                why = "; ".join(each.rstrip(".") for each in row["reasons"])
                found[f"dropped: {why}" if row["state"] == "dropped" else f"kept, {row['split']}"] = None
    return list(found)


def _captions_of(ledger: Ledger, ids: set[str], by_clip: Collection[str]) -> list[CaptionOf]:
    found: dict[tuple[str, str, str], CaptionOf] = {}
    for artifact in ledger.artifacts["caption"].values():
        if artifact.manifest.inputs.get("clip") in by_clip:
            names = ["kind", "by", "status", "text", "reason"]
            for row in ledger.rows(artifact, "captions", names, id=ids, clip_id=ids):
                text = row["text"] or row["reason"] or ""
                found[row["kind"], row["by"], text] = CaptionOf(row["kind"], row["by"], row["status"], text)
    return list(found.values())


def _latents_of(ledger: Ledger, clip_id: str, kind: str, by_clip: dict[str, set[str]]) -> list[LatentOf]:
    found: dict[tuple[str, ...], LatentOf] = {}
    for artifact in ledger.artifacts["latents"].values():
        wanted = by_clip.get(artifact.manifest.inputs.get("clip", ""))
        names = ["kind", "split", "resolution", "item", "codec", "caption"]
        for row in ledger.rows(artifact, "latents", names, clip_id=wanted) if wanted else []:
            if kind == "image" and row["kind"] != "image":
                continue
            each = LatentOf(row["kind"], row["split"], row["resolution"], row["item"], row["codec"], row["caption"])
            found[each.item, each.side, each.caption] = each
    return list(found.values())


def of_checkpoint(ledger: Ledger, wanted: str) -> CheckpointLineage:
    name, step = _step_of(wanted)
    if name.startswith(ROOT):
        training, step = _by_folder(ledger, name)
        folder = next(
            entry.key.removesuffix(COMMIT)
            for place in training.places
            for entry in ledger.store.list(place)
            if (match := STATE.fullmatch(entry.key)) and int(match[2]) == step
        )
    else:
        trained = find_trained(ledger.store, name)
        state = trained.state(step)
        folder, step = state.files["raw"].key.rpartition("/")[0] + "/", state.step
        training = _of_state(ledger, trained, state, folder)
    return _told(ledger, wanted, training, step, folder)


def _by_folder(ledger: Ledger, name: str) -> tuple[Training, int]:
    """Of trainings/KEY[/step-…], by the first digits too."""
    parts = name.rstrip("/").split("/")
    prefix = f"{ROOT}{parts[1]}"
    fits = [each for each in ledger.trainings if any(place.startswith(prefix) for place in each.places)]
    if not fits or len(parts[1]) < MIN_DIGITS:
        raise DataError(f"{ledger.store.uri} has no training whose key begins with {parts[1]}, of 8 digits or more.")
    steps = fits[0].steps
    step = int(parts[2].split("-")[1]) if len(parts) > 2 and parts[2].count("-") else max(steps, default=-1)
    if step not in steps:
        raise DataError(f"{name} has no state of step {step}; it has {', '.join(map(str, steps)) or 'none'}.")
    return fits[0], step


def _of_state(ledger: Ledger, trained: Trained, state: TrainedState, folder: str) -> Training:
    place = "/".join(folder.split("/")[:2]) + "/"
    digest = folder.split("/")[2] if folder.startswith("artifacts/") else ""
    fits = [each for each in ledger.trainings if place in each.places or digest in each.artifacts]
    exact = [each for each in fits if each.latents == trained.latents]
    if not fits:
        raise DataError(f"{folder} belongs to no training that a run of {ledger.store.uri} tells of.")
    return (exact or fits)[0]


def _told(ledger: Ledger, wanted: str, training: Training, step: int, folder: str) -> CheckpointLineage:
    bases: list[Training] = []
    base = ledger.base_of(training)
    while base is not None and base not in bases:
        bases.append(base)
        base = ledger.base_of(base)
    data = [each for each in [training, *bases] if each is training or each.latents != training.latents]
    found = [ledger.data_of(each.latents) for each in data]
    films: dict[str, Film] = {}
    for part in found:
        for film in part.films:
            same = films.setdefault(film.sha256, film)
            if same is not film:
                same.num_train += film.num_train
    marks = [
        mark.sha256
        for mark in ledger.takedowns.marks.values()
        if any("train" in mark.latents.get(each.latents, ()) for each in [training, *bases])
    ]
    own, chain = found[0], _chain(ledger, training)
    return CheckpointLineage(
        checkpoint=wanted,
        step=step,
        num_steps=training.num_steps,
        finished=bool(training.artifacts) and step == training.num_steps,
        folder=folder,
        training=training.name,
        artifacts=[f"train/{digest[:12]}" for digest in training.artifacts],
        runs=training.runs,
        base=training.base or "random weights",
        bases=[each.name for each in bases],
        codec=own.codec,
        encoder=own.encoder,
        captions_by=dict(own.writers.most_common()),
        code_version={stage: each.manifest.code_version for stage, each in chain.items()},
        digests={stage: each.manifest.digest for stage, each in chain.items()},
        num_clips=own.num["video", "train"],
        num_images=own.num["image", "train"],
        num_held_out=own.num["video", "held_out"] + own.num["image", "held_out"],
        films=sorted(films.values(), key=lambda film: (film.names, film.sha256)),
        taken_down=sorted(marks),
    )


def _chain(ledger: Ledger, training: Training) -> dict[str, Artifact]:
    """The artifacts that a training was made from, by stage."""
    found: dict[str, Artifact] = {}
    wanted = {"latents": training.latents}
    if training.artifacts:
        wanted["train"] = training.artifacts[0]
    while wanted:
        stage, digest = wanted.popitem()
        artifact = ledger.artifacts[stage].get(digest) if stage in STAGES else None
        if artifact is not None and stage not in found:
            found[stage] = artifact
            wanted |= artifact.manifest.inputs
    return {stage: found[stage] for stage in STAGES if stage in found}


def _clip_columns(wanted: str) -> dict[str, list[str]]:
    """Which columns of clips a name may be in."""
    if ID.fullmatch(wanted):
        return {"id": [wanted]}
    if SHA256.fullmatch(wanted):
        return {"sha256": [wanted]}
    return {"key": [wanted]} if wanted.startswith(("items/", "artifacts/clip/")) else {}


def _step_of(wanted: str) -> tuple[str, int | None]:
    name, at, step = wanted.partition("@")
    if at and not step.isdigit():
        raise UsageError(f"{wanted}: write RUN@STEP, such as {name}@4000.")
    return name, int(step) if at else None
