"""What a store's manifests and tables say, each read once, and of tables the columns that are needed: never items or
files. Whatever lies in the store counts, also what no run points to any more.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pydantic import ValidationError

from bricks_core.errors import AlteredObject, CorruptManifest, NoSuchObject
from bricks_core.pipeline.compared import compared_states
from bricks_core.pipeline.points import Points, run_names
from bricks_core.spec.manifest import SCHEMA_VERSION, Manifest
from bricks_core.spec.stages import STAGES
from bricks_core.spec.train import TrainSpec
from bricks_core.storage.artifacts import MANIFEST, Artifact
from bricks_core.storage.store import Store
from bricks_core.storage.tables import read_where
from bricks_core.storage.takedowns import Side, Takedowns
from bricks_core.storage.trainings import COMMIT, ROOT, begun

ID = re.compile(r"[0-9a-f]{16}")
SHA256 = re.compile(r"[0-9a-f]{64}")
STATE = re.compile(rf"({ROOT}[0-9a-f]{{32}}/)step-([0-9]+)-[0-9a-f]+/{re.escape(COMMIT)}")
MIN_DIGITS = 8
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
class Data:
    films: list[Film] = field(default_factory=list)
    num: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Clips and pictures by kind and side."""
    writers: Counter[str] = field(default_factory=Counter)
    codec: list[str] = field(default_factory=list)
    encoder: list[str] = field(default_factory=list)


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
        try:
            with artifact.local(manifest.tables[table].key) as file:
                return read_where(file, names, **wanted)
        except (NoSuchObject, AlteredObject, CorruptManifest) as error:
            raise AlteredObject(
                artifact.full(manifest.tables[table].key),
                f"cannot be read, so not all that is to be told is known ({error}): bricks run of a run that has it "
                f"mends it; of an artifact that nobody needs any more, delete {artifact.prefix}{MANIFEST}.",
            ) from None

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
        if SHA256.fullmatch(wanted):
            there = {row["sha256"] for row in self.videos(sha256=[wanted])}
            return there or ({wanted} if wanted in self.takedowns.marks else set())
        found = {row["sha256"] for row in self.videos(id=[wanted])} if ID.fullmatch(wanted) else set()
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

    def sides(self, ids: dict[str, set[str]]) -> tuple[dict[str, list[Side]], dict[str, set[Side]]]:
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
            if match := STATE.fullmatch(entry.key):
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

    def evaluations(
        self, by_clip: dict[str, set[str]], trainings: Iterable[Training], shown: set[str]
    ) -> list[Evaluation]:
        """Those of these trainings, or that compare with them, or of data with these clips; a report's files are named
        after what they show."""
        trainings = list(trainings)
        digests = {digest for each in trainings for digest in each.artifacts}
        places = tuple(place for each in trainings for place in each.places)
        found = []
        for digest, artifact in self.artifacts["evaluate"].items():
            inputs, keys = artifact.manifest.inputs, artifact.manifest.objects
            has_clip = bool(by_clip.get(inputs.get("clip", "")))
            is_compared = any(state.startswith(places) for state in compared_states(inputs))
            if not has_clip and not is_compared and inputs.get("train") not in digests:
                continue
            shows = any(part in shown for each in keys for part in re.findall(r"[0-9a-f]{16}", each.key))
            found.append(Evaluation(f"evaluate/{digest[:12]}", self.runs_of("evaluate", [digest])[0], shows))
        return found

    def data_of(self, latents: str) -> Data:
        """What a training on these latents learns from."""
        artifact = self.artifacts["latents"].get(latents)
        if artifact is None:
            return Data()
        names = ["clip_id", "video_id", "kind", "split", "caption_by", "codec", "text_encoder", "caption"]
        data, sides = Data(), defaultdict(set)
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


def full_name(row: dict[str, Any]) -> str:
    """source/name, as a person finds the file: of a source that is the file itself, the source."""
    source, name = str(row["source"]).rstrip("/"), str(row["name"])
    if name.startswith("/") or "://" in name:
        return name
    return source if source.rpartition("/")[2] == name else f"{source}/{name}"


def _begins_so(sha256: str, wanted: str) -> bool:
    return len(wanted) >= MIN_DIGITS and sha256.startswith(wanted)


def _train_spec(spec: dict[str, Any]) -> TrainSpec | None:
    try:
        return TrainSpec.model_validate(spec)
    except ValidationError:
        return None
