"""Where things come from, and what came of them: a checkpoint's films, a clip's whole way, a film's checkpoints.

Read from what stands in manifests and tables (of these the columns that are needed), never from items or files: the
answer takes seconds at 24,000 clips. Whatever lies in the store counts, also what no run points to any more.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from pydantic import ValidationError

from bricks_core.errors import DataError, UsageError, nearest
from bricks_core.pipeline.points import Points, run_names
from bricks_core.pipeline.trained import Trained, TrainedState, find_trained, is_run_with_training
from bricks_core.spec.manifest import SCHEMA_VERSION, Manifest
from bricks_core.spec.stages import STAGES
from bricks_core.spec.train import TrainSpec
from bricks_core.storage.artifacts import MANIFEST, Artifact
from bricks_core.storage.store import Store
from bricks_core.storage.tables import read_where
from bricks_core.storage.takedowns import Side, Takedown, Takedowns
from bricks_core.storage.trainings import COMMIT, ROOT, begun

_ID = re.compile(r"[0-9a-f]{16}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FOLDER = re.compile(rf"({ROOT}[0-9a-f]{{32}}/)step-([0-9]+)-[0-9a-f]+/{re.escape(COMMIT)}")
_MIN_DIGITS = 8
"""Of a sha256, to name it by its first digits."""
UNKNOWN = "unknown"


@dataclass
class Film:
    """What was given: a film, or a clip or picture that a table named."""

    sha256: str
    names: list[str]
    """As source/name; a film may have several."""
    kind: str
    licence: list[str]
    credit: list[str]
    consent: list[str]
    """As the tables have them: several where runs say different things."""
    runs: list[str] = field(default_factory=list)
    runs_before: list[str] = field(default_factory=list)
    """That had it once, and point to other tables now."""
    clips: list[str] = field(default_factory=list)
    """Ids of clips, and of pictures that stand for themselves."""
    num_train: int = 0
    num_held_out: int = 0
    """Clips (of a picture that stands for itself, the picture) by side, of what is asked about."""
    taken_down: str = ""
    """When and why; empty: it was not."""


@dataclass
class Training:
    """States of one trajectory, and whose they are."""

    name: str
    """trainings/KEY of its last phase, or of an earlier version train/DIGEST."""
    places: list[str]
    latents: str
    """Digest of the artifact that it reads."""
    runs: list[str]
    artifacts: list[str]
    """Digests of train."""
    steps: list[int]
    num_steps: int
    base: str
    """What it began with; empty: random weights."""
    sides: list[Side] = field(default_factory=list)
    """Where what is asked about was; of what a base learnt, where it was for that."""
    through: str = ""
    """The base by which alone it learnt what is asked about."""

    @property
    def learnt(self) -> bool:
        return "train" in self.sides


@dataclass
class Evaluation:
    """An evaluation of data, or of checkpoints, that hold what is asked about."""

    artifact: str
    runs: list[str]
    shows: bool
    """Whether its report has a picture of it."""


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
        return ledger.of_checkpoint(wanted)
    if (found := ledger.of_clip(wanted)) is not None:
        return found
    films = ledger.find_films(wanted)
    if not films:
        raise DataError(_unknown(ledger, wanted))
    return ledger.of_films(wanted, films)


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


class Ledger:
    """What a store's manifests and tables say, each read once."""

    def __init__(self, store: Store):
        self.store = store
        self._rows: dict[tuple[str, str, str], list[dict[str, Any]]] = {}

    # ------------------------------------------------------------------------------------------- manifests and points

    @cached_property
    def artifacts(self) -> dict[str, dict[str, Artifact]]:
        """By stage, then digest: all of today's schema that can be read."""
        keys = [entry.key for entry in self.store.list("artifacts/") if entry.key.endswith(f"/{MANIFEST}")]
        found: dict[str, dict[str, Artifact]] = {name: {} for name in STAGES}
        for key, data in self.store.get_many([key for key in keys if key.count("/") == 3]):
            with suppress(ValidationError):
                manifest = Manifest.model_validate_json(data or b"")
                if manifest.schema_version == SCHEMA_VERSION and key.split("/")[1:3] == [
                    manifest.stage,
                    manifest.digest,
                ]:
                    found[manifest.stage][manifest.digest] = Artifact(self.store, manifest)
        return found

    @cached_property
    def points(self) -> dict[str, list[Points]]:
        """Sets by run, the oldest first."""
        found: dict[str, list[Points]] = {name: [] for name in run_names(self.store)}
        keys = [
            entry.key for entry in self.store.list("runs/") if re.search(r"^runs/[^/]+/points/\d{8}\.json$", entry.key)
        ]
        for key, data in self.store.get_many(keys):
            with suppress(ValidationError):
                found[key.split("/")[1]].append(Points.model_validate_json(data or b""))
        return found

    @cached_property
    def takedowns(self) -> Takedowns:
        return Takedowns.of(self.store)

    def runs_of(self, stage: str, digests: Collection[str]) -> tuple[list[str], list[str]]:
        """Runs that point to one of these artifacts: now, and only before."""
        now, before = set(), set()
        for run, sets in self.points.items():
            pointers = [each.stages.get(stage) for each in sets]
            if pointers and pointers[-1] is not None and pointers[-1].digest in digests:
                now.add(run)
            elif any(pointer is not None and pointer.digest in digests for pointer in pointers):
                before.add(run)
        return sorted(now), sorted(before - now)

    def rows(self, artifact: Artifact, table: str, names: list[str], **wanted: Collection[str]) -> list[dict[str, Any]]:
        """Some columns of a table's rows: see `read_where`."""
        manifest = artifact.manifest
        if table not in manifest.tables:
            return []
        with artifact.local(manifest.tables[table].key) as file:
            return read_where(file, names, **wanted)

    # ---------------------------------------------------------------------------------------------------------- films

    _VIDEO = ["id", "sha256", "name", "source", "kind", "licence", "credit", "consent", "state", "fps"]

    def videos(self, **wanted: Collection[str]) -> Iterator[dict[str, Any]]:
        """Rows of what was given, each with the artifact that has it; without what is no film."""
        for digest, artifact in self.artifacts["ingest"].items():
            for row in self.rows(artifact, "videos", self._VIDEO, **wanted):
                if row["sha256"] and row["state"] != "beside":
                    yield row | {"ingest": digest}

    def find_films(self, wanted: str) -> set[str]:
        """sha256 of the films that a name means; none: there is no such film. Marks of what was taken down know names,
        too."""
        if _SHA256.fullmatch(wanted):
            there = {row["sha256"] for row in self.videos(sha256=[wanted])}
            return there or ({wanted} if wanted in self.takedowns.marks else set())
        found = {row["sha256"] for row in self.videos(id=[wanted])} if _ID.fullmatch(wanted) else set()
        wanted_name = wanted.rstrip("/")
        for row in [] if found else self.videos():
            whole, name = full_name(row), row["name"]
            if wanted_name in (name, whole, name.rpartition("/")[2]) or _begins_so(row["sha256"], wanted):
                found.add(row["sha256"])
        for mark in self.takedowns.marks.values():
            short = {name.rpartition("/")[2] for name in mark.names}
            if wanted_name in {*mark.names, *short, mark.video_id} or _begins_so(mark.sha256, wanted):
                found.add(mark.sha256)
        return found

    def films(self, shas: Collection[str]) -> dict[str, Film]:
        """What is known of contents, by sha256."""
        found: dict[str, Film] = {}
        places: dict[str, set[str]] = defaultdict(set)
        for row in self.videos(sha256=shas):
            film = found.setdefault(row["sha256"], Film(row["sha256"], [], row["kind"], [], [], []))
            for have, new in (
                (film.names, full_name(row)),
                (film.licence, row["licence"] or UNKNOWN),
                (film.credit, row["credit"]),
                (film.consent, row["consent"] or UNKNOWN),
            ):
                if new and new not in have:
                    have.append(new)
            places[row["sha256"]].add(row["ingest"])
        for sha in shas:
            mark = self.takedowns.marks.get(sha)
            if mark is not None:
                film = found.setdefault(sha, Film(sha, [], "film", [], [], []))
                film.names = film.names or list(mark.names)
                film.taken_down = f"{mark.at:%Y-%m-%d}{f': {mark.why}' if mark.why else ''}"
        for sha, film in found.items():
            film.runs, film.runs_before = self.runs_of("ingest", places[sha])
        return found

    def of_films(self, wanted: str, shas: set[str]) -> SourceLineage:
        films = self.films(shas)
        clips: dict[str, dict[str, set[str]]] = {}
        for digest, artifact in self.artifacts["clip"].items():
            rows = self.rows(artifact, "clips", ["id", "source_sha256"], source_sha256=shas)
            images = self.rows(artifact, "images", ["id", "clip_id", "source_sha256"], source_sha256=shas)
            rows += [row for row in images if row["id"] == row["clip_id"]]
            by_film = clips.setdefault(digest, defaultdict(set))
            for row in rows:
                by_film[row["source_sha256"]].add(row["id"])
        for sha, film in films.items():
            film.clips = sorted({each for by_film in clips.values() for each in by_film.get(sha, ())})
        ids = {digest: {each for some in by_film.values() for each in some} for digest, by_film in clips.items()}
        sides, used = self._sides(ids)
        for film in films.values():
            film.num_train = len({each for each in film.clips if "train" in used.get(each, ())})
            film.num_held_out = len({each for each in film.clips if "held_out" in used.get(each, ())})
        for sha in shas:
            if (mark := self.takedowns.marks.get(sha)) is not None:
                for digest, told in mark.latents.items():
                    sides[digest] = sorted({*sides.get(digest, []), *told})
        shown = {each for film in films.values() for each in film.clips}
        trainings = self.learners(sides)
        return SourceLineage(wanted, list(films.values()), trainings, self._evaluations(ids, trainings, shown))

    def _sides(self, ids: dict[str, set[str]]) -> tuple[dict[str, list[Side]], dict[str, set[Side]]]:
        """Of clips by the artifact that has them: the sides on which artifacts of latents have some of them, and the
        sides of each."""
        sides: dict[str, list[Side]] = {}
        used: dict[str, set[Side]] = defaultdict(set)
        for digest, artifact in self.artifacts["latents"].items():
            wanted = ids.get(artifact.manifest.inputs.get("clip", ""), set())
            rows = self.rows(artifact, "latents", ["clip_id", "split"], clip_id=wanted) if wanted else []
            if rows:
                sides[digest] = sorted({row["split"] for row in rows})
            for row in rows:
                used[row["clip_id"]].add(row["split"])
        return sides, used

    # ----------------------------------------------------------------------------------------------------------- clips

    _CLIP = ["id", "video_id", "first_frame", "end_frame", "fps", "key", "sha256", "source_sha256", "item"]
    _IMAGE = ["id", "clip_id", "video_id", "frame", "key", "sha256", "source_sha256", "item"]

    def of_clip(self, wanted: str) -> ClipLineage | None:
        """None: there is no such clip or picture."""
        columns = _clip_columns(wanted)
        rows: dict[str, list[dict[str, Any]]] = {}
        kind: Literal["clip", "image"] = "clip"
        for kind in ("clip", "image") if columns else ():
            names = self._CLIP if kind == "clip" else self._IMAGE
            for digest, artifact in self.artifacts["clip"].items():
                if found := self.rows(artifact, f"{kind}s", names, **columns):
                    rows[digest] = found
            if rows:
                break
        if not rows:
            return None
        ids = {row["id"] for found in rows.values() for row in found}
        if len(ids) > 1:
            raise UsageError(
                f"{wanted} is the file of {len(ids)} clips: name one, such as {', '.join(sorted(ids)[:5])}."
            )
        row = next(iter(rows.values()))[0]
        clip_id = row["id"]
        owner = clip_id if kind == "clip" else row["clip_id"]
        by_clip = {digest: {owner} for digest in rows}
        film = self.films({row["source_sha256"]}).get(row["source_sha256"])
        first, end = (row["first_frame"], row["end_frame"]) if kind == "clip" else (row["frame"], row["frame"] + 1)
        rate = next((each["fps"] for each in self.videos(sha256=[row["source_sha256"]]) if each["fps"]), 0.0)
        latents = self._latents_of(clip_id, kind, by_clip)
        sides, _ = self._sides(by_clip)
        trainings = self.learners(sides)
        return ClipLineage(
            clip=clip_id,
            kind=kind,
            film=film,
            first_frame=first,
            end_frame=end,
            seconds=(first / rate, end / rate) if rate else None,
            file=row["key"],
            sha256=row["sha256"],
            state=self._states_of(owner, by_clip),
            captions=self._captions_of({clip_id, owner}, by_clip),
            latents=latents,
            trainings=trainings,
            evaluations=self._evaluations(by_clip, trainings, {clip_id}),
        )

    def _states_of(self, clip_id: str, by_clip: Collection[str]) -> list[str]:
        found: dict[str, None] = {}
        for artifact in self.artifacts["score"].values():
            if artifact.manifest.inputs.get("clip") in by_clip:
                for row in self.rows(artifact, "scores", ["id", "state", "reasons", "split"], id=[clip_id]):
                    why = "; ".join(each.rstrip(".") for each in row["reasons"])
                    found[f"dropped: {why}" if row["state"] == "dropped" else f"kept, {row['split']}"] = None
        return list(found)

    def _captions_of(self, ids: set[str], by_clip: Collection[str]) -> list[CaptionOf]:
        found: dict[tuple[str, str, str], CaptionOf] = {}
        for artifact in self.artifacts["caption"].values():
            if artifact.manifest.inputs.get("clip") in by_clip:
                names = ["kind", "by", "status", "text", "reason"]
                for row in self.rows(artifact, "captions", names, id=ids, clip_id=ids):
                    text = row["text"] or row["reason"] or ""
                    found[row["kind"], row["by"], text] = CaptionOf(row["kind"], row["by"], row["status"], text)
        return list(found.values())

    def _latents_of(self, clip_id: str, kind: str, by_clip: dict[str, set[str]]) -> list[LatentOf]:
        found: dict[tuple[str, ...], LatentOf] = {}
        for artifact in self.artifacts["latents"].values():
            wanted = by_clip.get(artifact.manifest.inputs.get("clip", ""))
            names = ["kind", "split", "resolution", "item", "codec", "caption"]
            for row in self.rows(artifact, "latents", names, clip_id=wanted) if wanted else []:
                if kind == "image" and row["kind"] != "image":
                    continue
                each = LatentOf(row["kind"], row["split"], row["resolution"], row["item"], row["codec"], row["caption"])
                found[each.item, each.side, each.caption] = each
        return list(found.values())

    # ------------------------------------------------------------------------------------------------------- trainings

    @cached_property
    def trainings(self) -> list[Training]:
        """Every training that a run has begun, or that an artifact tells of."""
        found: dict[tuple[str, ...], Training] = {}
        for run in self.points:
            for each in begun(self.store, run):
                spec = _train_spec(each.spec)
                base = each.inputs.get("continue_from", "") or str(each.spec.get("init_from", ""))
                key = (each.latents, *sorted(each.places))
                if key not in found:
                    name = each.places[-1].rstrip("/") if each.places else f"{ROOT}?"
                    steps = spec.num_steps if spec is not None else 0
                    found[key] = Training(name, list(each.places), each.latents, [], [], [], steps, base)
                found[key].runs.append(run)
        for digest, artifact in self.artifacts["train"].items():
            self._add_artifact(found, digest, artifact.manifest)
        states: dict[str, set[int]] = defaultdict(set)
        for entry in self.store.list(ROOT):
            if match := _FOLDER.fullmatch(entry.key):
                states[match[1]].add(int(match[2]))
        for training in found.values():
            there = {step for place in training.places for step in states[place]}
            training.steps = sorted({*training.steps, *(step for step in there if step <= training.num_steps)})
            training.runs = sorted({*training.runs, *self.runs_of("train", training.artifacts)[0]})
        return list(found.values())

    def _add_artifact(self, found: dict[tuple[str, ...], Training], digest: str, manifest: Manifest) -> None:
        places = {"/".join(each.key.split("/")[:2]) + "/" for each in manifest.objects if each.key.startswith(ROOT)}
        latents, spec = manifest.inputs.get("latents", ""), _train_spec(manifest.spec)
        own = next(
            (each for each in found.values() if places and each.latents == latents and places <= {*each.places}), None
        )
        if own is None:
            base = manifest.inputs.get("continue_from", "") or str(manifest.spec.get("init_from", ""))
            num_steps = spec.num_steps if spec is not None else manifest.counts.get("steps", 0)
            own = Training(f"train/{digest[:12]}", sorted(places), latents, [], [], [], num_steps, base)
            found[latents, digest] = own
            if not places:  # of an earlier version, with its states inside
                own.steps = [row["step"] for row in self.rows(self.artifacts["train"][digest], "checkpoints", ["step"])]
        own.artifacts.append(digest)

    def base_of(self, training: Training) -> Training | None:
        """The training of this store that it began with a state of; None: it did not."""
        place = "/".join(training.base.split("/")[:2]) + "/" if training.base.startswith(ROOT) else None
        digest = training.base.split("/")[2] if training.base.startswith("artifacts/train/") else None
        for each in self.trainings:
            if each is not training and (place in each.places or digest in each.artifacts):
                return each
        return None

    def learners(self, sides: dict[str, list[Side]]) -> list[Training]:
        """Trainings on these latents, and those that began with one of them."""
        found: list[Training] = []
        for training in self.trainings:
            own = list(sides.get(training.latents, ()))
            through, seen = "", training
            bases = {id(training)}
            while "train" not in own and (base := self.base_of(seen)) is not None and id(base) not in bases:
                bases.add(id(base))
                if "train" in sides.get(base.latents, ()):
                    own, through = [*own, "train"], base.name
                seen = base
            if own:
                told = vars(training) | {"sides": sorted(set(own)), "through": through}
                found.append(Training(**told))
        return sorted(found, key=lambda each: (not each.learnt, each.name))

    def _evaluations(
        self, by_clip: dict[str, set[str]], trainings: Iterable[Training], shown: set[str]
    ) -> list[Evaluation]:
        """Those of these trainings, or of data with these clips; a report's files are named after what they show."""
        digests = {digest for each in trainings for digest in each.artifacts}
        found = []
        for digest, artifact in self.artifacts["evaluate"].items():
            inputs, keys = artifact.manifest.inputs, artifact.manifest.objects
            has_clip = bool(by_clip.get(inputs.get("clip", "")))
            if not has_clip and inputs.get("train") not in digests:
                continue
            shows = any(part in shown for each in keys for part in re.findall(r"[0-9a-f]{16}", each.key))
            found.append(Evaluation(f"evaluate/{digest[:12]}", self.runs_of("evaluate", [digest])[0], shows))
        return found

    # ----------------------------------------------------------------------------------------------------- checkpoints

    def of_checkpoint(self, wanted: str) -> CheckpointLineage:
        name, step = _step_of(wanted)
        if name.startswith(ROOT):
            training, step = self._by_folder(name)
            folder = next(
                entry.key.removesuffix(COMMIT)
                for place in training.places
                for entry in self.store.list(place)
                if (match := _FOLDER.fullmatch(entry.key)) and int(match[2]) == step
            )
        else:
            trained = find_trained(self.store, name)
            state = trained.state(step)
            folder, step = state.files["raw"].key.rpartition("/")[0] + "/", state.step
            training = self._of_state(trained, state, folder)
        return self._told(wanted, training, step, folder)

    def _by_folder(self, name: str) -> tuple[Training, int]:
        """Of trainings/KEY[/step-…], by the first digits too."""
        parts = name.rstrip("/").split("/")
        prefix = f"{ROOT}{parts[1]}"
        fits = [each for each in self.trainings if any(place.startswith(prefix) for place in each.places)]
        if not fits or len(parts[1]) < _MIN_DIGITS:
            raise DataError(f"{self.store.uri} has no training whose key begins with {parts[1]}, of 8 digits or more.")
        steps = fits[0].steps
        step = int(parts[2].split("-")[1]) if len(parts) > 2 and parts[2].count("-") else max(steps, default=-1)
        if step not in steps:
            raise DataError(f"{name} has no state of step {step}; it has {', '.join(map(str, steps)) or 'none'}.")
        return fits[0], step

    def _of_state(self, trained: Trained, state: TrainedState, folder: str) -> Training:
        place = "/".join(folder.split("/")[:2]) + "/"
        digest = folder.split("/")[2] if folder.startswith("artifacts/") else ""
        fits = [each for each in self.trainings if place in each.places or digest in each.artifacts]
        exact = [each for each in fits if each.latents == trained.latents]
        if not fits:
            raise DataError(f"{folder} belongs to no training that a run of {self.store.uri} tells of.")
        return (exact or fits)[0]

    def _told(self, wanted: str, training: Training, step: int, folder: str) -> CheckpointLineage:
        bases: list[Training] = []
        base = self.base_of(training)
        while base is not None and base not in bases:
            bases.append(base)
            base = self.base_of(base)
        data = [each for each in [training, *bases] if each is training or each.latents != training.latents]
        found = [self._data_of(each.latents) for each in data]
        films: dict[str, Film] = {}
        for part in found:
            for film in part.films:
                same = films.setdefault(film.sha256, film)
                if same is not film:
                    same.num_train += film.num_train
        marks = [
            mark.sha256
            for mark in self.takedowns.marks.values()
            if any("train" in mark.latents.get(each.latents, ()) for each in [training, *bases])
        ]
        own, chain = found[0], self._chain(training)
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

    def _chain(self, training: Training) -> dict[str, Artifact]:
        """The artifacts that a training was made from, by stage."""
        found: dict[str, Artifact] = {}
        wanted = {"latents": training.latents}
        if training.artifacts:
            wanted["train"] = training.artifacts[0]
        while wanted:
            stage, digest = wanted.popitem()
            artifact = self.artifacts[stage].get(digest) if stage in STAGES else None
            if artifact is not None and stage not in found:
                found[stage] = artifact
                wanted |= artifact.manifest.inputs
        return {stage: found[stage] for stage in STAGES if stage in found}

    def _data_of(self, latents: str) -> _Data:
        """What a training on these latents learns from."""
        artifact = self.artifacts["latents"].get(latents)
        if artifact is None:
            return _Data()
        names = ["clip_id", "video_id", "kind", "split", "caption_by", "codec", "text_encoder", "caption"]
        data, sides = _Data(), defaultdict(set)
        counted = set()
        for row in self.rows(artifact, "latents", names):
            sides[row["video_id"], row["split"]].add(row["clip_id"])
            if (one := (row["clip_id"], row["kind"], row["caption"])) not in counted:  # once, however many sizes
                counted.add(one)
                data.num[row["kind"], row["split"]] += 1
                data.writers[row["caption_by"]] += row["split"] == "train"
            for have, new in ((data.codec, row["codec"]), (data.encoder, row["text_encoder"])):
                if new not in have:
                    have.append(new)
        ids = {video for video, _ in sides}
        clips = self.artifacts["clip"].get(artifact.manifest.inputs.get("clip", ""))
        ingest = self.artifacts["ingest"].get(clips.manifest.inputs.get("ingest", "") if clips is not None else "")
        for row in self.rows(ingest, "videos", self._VIDEO, id=ids) if ingest is not None and ids else []:
            data.films.append(
                Film(
                    row["sha256"],
                    [full_name(row)],
                    row["kind"],
                    [row["licence"] or UNKNOWN],
                    [row["credit"]] if row["credit"] else [],
                    [row["consent"] or UNKNOWN],
                    num_train=len(sides[row["id"], "train"]),
                    num_held_out=len(sides[row["id"], "held_out"]),
                )
            )
        return data


@dataclass
class _Data:
    films: list[Film] = field(default_factory=list)
    num: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Clips and pictures by kind and side."""
    writers: Counter[str] = field(default_factory=Counter)
    codec: list[str] = field(default_factory=list)
    encoder: list[str] = field(default_factory=list)


def marks_of(ledger: Ledger, shas: Iterable[str]) -> list[Takedown]:
    """The marks of contents that were taken down."""
    return [ledger.takedowns.marks[sha] for sha in shas if sha in ledger.takedowns.marks]


def full_name(row: dict[str, Any]) -> str:
    """source/name, as a person finds the file: of a source that is the file itself, the source."""
    source, name = str(row["source"]).rstrip("/"), str(row["name"])
    if name.startswith("/") or "://" in name:
        return name
    return source if source.rpartition("/")[2] == name else f"{source}/{name}"


def _begins_so(sha256: str, wanted: str) -> bool:
    return len(wanted) >= _MIN_DIGITS and sha256.startswith(wanted)


def _clip_columns(wanted: str) -> dict[str, list[str]]:
    """Which columns of clips a name may be in."""
    if _ID.fullmatch(wanted):
        return {"id": [wanted]}
    if _SHA256.fullmatch(wanted):
        return {"sha256": [wanted]}
    return {"key": [wanted]} if wanted.startswith(("items/", "artifacts/clip/")) else {}


def _step_of(wanted: str) -> tuple[str, int | None]:
    name, at, step = wanted.partition("@")
    if at and not step.isdigit():
        raise UsageError(f"{wanted}: write RUN@STEP, such as {name}@4000.")
    return name, int(step) if at else None


def _train_spec(spec: dict[str, Any]) -> TrainSpec | None:
    try:
        return TrainSpec.model_validate(spec)
    except ValidationError:
        return None
