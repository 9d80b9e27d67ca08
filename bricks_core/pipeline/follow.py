"""Samples of a training's checkpoints, made elsewhere while it goes on, and its evaluation when it is finished.

What is sampled is what the run's own evaluation will ask for: which checkpoints it takes is known from the beginning,
and where they will lie, so its samples have their keys before there are any weights. Only which step has the lowest
held-out loss is not known before the end. Nothing is written that the training reads.
"""

from __future__ import annotations

import importlib
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeVar

from bricks_core.errors import AlteredObject, BricksError, DataError, NoSuchObject, StoreDenied, StoreUnavailable
from bricks_core.models.beside import CONFIG, STATE
from bricks_core.pipeline.began import earlier_versions
from bricks_core.pipeline.plan import Step
from bricks_core.pipeline.resolve import Address, Found, Resolver
from bricks_core.pipeline.so_far import address_of_training, evaluate_so_far, outside, untracked
from bricks_core.pipeline.trained import in_words
from bricks_core.progress import Progress
from bricks_core.spec.evaluate import EvaluateSpec
from bricks_core.spec.items import ItemKey
from bricks_core.spec.manifest import Manifest
from bricks_core.spec.run import BrickRun
from bricks_core.spec.stages import STAGES
from bricks_core.spec.strict import Row
from bricks_core.spec.train import CheckpointRow, TrainSpec
from bricks_core.storage.artifacts import Artifact, open_artifact
from bricks_core.storage.claims import Claims
from bricks_core.storage.code_version import code_version
from bricks_core.storage.items import Items
from bricks_core.storage.store import Entry, Store
from bricks_core.storage.trainings import EMA, ROOT, WEIGHTS, Record, Trajectory, keyed, sampling_batch
from bricks_core.storage.work import Work

log = logging.getLogger("bricks")
R = TypeVar("R", bound=Row)

EVERY_S = 10.0


class Weights(NamedTuple):
    """A file of weights that is sampled from."""

    step: int
    key: str


Keys = dict[Weights, set[ItemKey]]
"""The samples of each file."""


def follow(
    run: BrickRun,
    store: Store,
    *,
    tell: Callable[[Step], None] = lambda step: None,
    pause: Callable[[], None] = lambda: time.sleep(EVERY_S),
) -> dict[str, Manifest]:
    """Sample the checkpoints of a run's training as they are committed, the newest first, until it is finished; then
    evaluate it. Returns the manifests by stage.

    `pause`: called when there is nothing to do, before looking again.

    Raises:
        SpecError: the run file has no sections for training and evaluation.
        StoreDenied: samples, or in the end the report, cannot be written.
    """
    said = Said()
    with Claims(store, f"bricks evaluate {run.name} --follow") as claims:
        following = Following(run, store, claims, *_begun(run, store, said, pause), said)
        while True:
            try:
                if following.is_at_its_end():
                    break
                if following.sample_next():
                    continue
            except StoreUnavailable as error:
                said.once(f"{error} Looking again until it is back.", logging.WARNING)
            pause()
    try:
        return evaluate_so_far(run, store, tell=tell)
    except StoreDenied as error:
        raise StoreDenied(f"The samples are kept, but no report can be: {error}") from None


def evaluate_sampled(
    run: BrickRun, store: Store, *, tell: Callable[[Step], None] = lambda step: None
) -> dict[str, Manifest] | None:
    """The report of what a follower has sampled that was stopped: of the run's own prompts, once each, at the
    checkpoints of which these are there. None: there is no such checkpoint after the beginning."""
    short = _short(run)
    try:
        place = address_of_training(short, store)
    except DataError:
        return None
    with Claims(store) as claims:
        following = Following(short, store, claims, *place, Said())
        records, left = following.look()
        undone = {each.step for each in left}
        steps = {each.step for each in following.asked(records) if each.step in records} - undone
    return evaluate_so_far(short, store, tell=tell, only=steps) if max(steps, default=0) else None


class Following:
    """One follower of one training."""

    def __init__(
        self,
        run: BrickRun,
        store: Store,
        claims: Claims,
        resolver: Resolver,
        found: Found,
        address: Address,
        said: Said,
    ):
        """`address`: of the training."""
        assert isinstance(address.spec, TrainSpec)
        self._run, self._store, self._claims = run, store, claims
        self._resolver, self._found, self._address, self._said = resolver, found, address, said
        inputs = keyed(found["latents"][1], outside(address))
        self._training = Trajectory(address.spec, inputs, version=address.stage.version)
        self._steps = {self._training.folder(step): step for step in self._training.wanted()}
        self._last = address.spec.num_steps
        spec = run.stage_spec("evaluate")
        assert isinstance(spec, EvaluateSpec)
        self._spec = spec.model_copy(update={"compare": []})  # others' checkpoints do not come while this one trains
        self._inputs = {
            name: open_artifact(store, name, found[name][0].digest)
            for name in STAGES["evaluate"].needs
            if name != "train"
        }
        self._items = Items(store)
        self._items.keep(earlier_versions(store, run.name, STAGES["evaluate"]))
        self._asked: Keys = {}
        self._is_settled = False
        self._broken: dict[int, list[Entry | None]] = {}
        """Checkpoints of which a file is not what was committed, as their files were then."""

    # ---------------------------------------------------------------------------------------------- what there is to do

    def look(self) -> tuple[dict[int, Record], Keys]:
        """The committed checkpoints by step, and the samples that are missing of those that the evaluation takes."""
        records = self._training.records(self._store)
        asked = {each: keys for each, keys in self.asked(records).items() if each.step in records}
        there = self._items.load(key for keys in asked.values() for key in keys)
        return records, {each: keys - there for each, keys in asked.items() if keys - there}

    def asked(self, records: dict[int, Record]) -> Keys:
        """The samples that the run's evaluation will ask for, of checkpoints that are there or will be."""
        if self._is_settled:
            return self._asked
        # Whether raw and EMA weights are the same at the beginning is not known before they are there.
        self._is_settled = 0 in records
        asked: Keys = defaultdict(set)
        for each in _evaluate("asked").asked_samples(self._spec, self._work(records, ())):
            step = self._steps.get(f"{each.weights_key.rpartition('/')[0]}/")
            if step is not None:
                asked[Weights(step, each.weights_key)].update(each.keys)
        self._asked = dict(asked)
        return self._asked

    def is_at_its_end(self) -> bool:
        """Whether the training is finished, and none of its samples is left to whoever follows."""
        is_held = self._claims.holder(self._training.batch) is not None  # asked first: it is committed, then let go
        records, left = self.look()
        is_done = self._resolver.find(self._address) is not None or (self._last in records and not is_held)
        if is_done and left and self._is_evaluated_elsewhere():
            self._said.once("The run's own evaluation is under way: what is left is left to it.")
            return True
        if not is_done:
            self._tell_how_far(records, is_held)
        self._tell_skipped(records)
        return is_done and all(each.step in self._broken for each in left)

    def sample_next(self) -> bool:
        """Sample from the newest checkpoint that nobody else is at. False: there is none."""
        records, left = self.look()
        for each in sorted(left, key=lambda each: (-each.step, each.key)):
            if not self._is_whole(records[each.step]) or not self._take(each):
                continue
            try:
                # Another may have been at it since it was looked at.
                if missing := left[each] - self._items.load(left[each]):
                    if older := {other.step for other in left if other.step < each.step}:
                        self._said.once(f"Step {each.step:,} comes before {in_words(older)}: the newest first.")
                    self._sample(records, each, missing)
                return True
            except (AlteredObject, NoSuchObject) as error:
                if not error.key.startswith(ROOT):
                    raise
                self._tell_broken(records[each.step], error.key)
            finally:
                self._claims.release(sampling_batch(each.key))
        return False

    def _sample(self, records: dict[int, Record], weights: Weights, keys: Collection[ItemKey]) -> None:
        work = self._work(records, [key.key for key in keys], f"step {weights.step}")
        with work.progress:
            _evaluate("samples").make_samples(self._spec, work)

    def _work(self, records: dict[int, Record], mine: Collection[str], name: str = "evaluate") -> Work:
        """A working place in which some samples are asked for. Nothing is committed there, so it has no address."""
        return _Chosen(
            store=self._store,
            stage=STAGES["evaluate"],
            spec=self._spec,
            digest="",
            input_digests={},
            inputs=self._inputs | {"train": self._train(records)},
            progress=Progress(name),
            run=untracked(self._run),
            items=self._items,
            claims=self._claims,
            mine=frozenset(mine),
        )

    def _train(self, records: dict[int, Record]) -> _ToBe:
        """What the training will have left, of which there are these checkpoints."""
        now = datetime.now(UTC)
        manifest = Manifest(
            stage="train",
            stage_version=self._address.stage.version,
            digest=self._address.digest,
            cache_key=self._address.cache_key,
            spec=self._address.spec.model_dump(mode="json"),
            inputs=self._address.inputs,
            code_version=code_version(),
            tables={},
            objects=[file for record in records.values() for file in record.files],
            started_at=now,
            finished_at=now,
        )
        rows = [
            CheckpointRow(
                id=f"step-{step:06d}",
                step=step,
                phase=records[step].phase if step in records else "",
                weights_key=folder + WEIGHTS,
                ema_key=folder + EMA,
                state_key=folder + STATE,
            )
            for folder, step in self._steps.items()
        ]
        return _ToBe(self._store, manifest, rows)

    # --------------------------------------------------------------------------------------------------- what others do

    def _take(self, weights: Weights) -> bool:
        try:
            holder = self._claims.take(sampling_batch(weights.key))
        except StoreDenied as error:
            # A claim only saves work: who may write samples and no claims does without.
            self._said.once(f"Others cannot be told what is sampled here: {error}", logging.WARNING)
            return True
        if holder is not None:
            self._said.once(f"Step {weights.step:,} is being sampled by {holder}.")
        return holder is None

    def _is_evaluated_elsewhere(self) -> bool:
        """Whether the run itself, or another follower, is at the evaluation of the finished training."""
        train = self._address, self._train({}).manifest
        try:
            address = self._resolver.address(STAGES["evaluate"], self._found | {"train": train})
        except BricksError:  # of checkpoints to compare with, which the evaluation itself tells
            return False
        return self._claims.holder(f"evaluate/{address.digest}") is not None

    def _is_whole(self, record: Record) -> bool:
        """Whether the files that are sampled from are there, of their size."""
        files = [record.file(name) for name in (WEIGHTS, EMA, CONFIG)]
        entries = [entry for _, entry in self._store.heads(file.key for file in files)]
        if self._broken.get(record.step) == entries:
            return False
        self._broken.pop(record.step, None)
        for file, entry in zip(files, entries, strict=True):
            if entry is None or entry.size_bytes != file.size_bytes:
                self._tell_broken(record, file.key, entries)
                return False
        return True

    # ----------------------------------------------------------------------------------------------------- what is told

    def _tell_broken(self, record: Record, key: str, entries: list[Entry | None] | None = None) -> None:
        if entries is None:
            names = [record.file(name).key for name in (WEIGHTS, EMA, CONFIG)]
            entries = [entry for _, entry in self._store.heads(names)]
        self._broken[record.step] = entries
        self._said.once(
            f"Skipped step {record.step:,}: {key} is missing or not what was committed. bricks run mends it.",
            logging.WARNING,
        )

    def _tell_how_far(self, records: dict[int, Record], is_held: bool) -> None:
        kept = f"{max(records):,} of {self._last:,} steps are kept" if records else "no checkpoint is there yet"
        waits = "" if is_held else " Nobody is at it just now: waiting until somebody is."
        self._said.once(f"Training {self._run.name}: {kept}.{waits}")

    def _tell_skipped(self, records: dict[int, Record]) -> None:
        """The checkpoints that are not sampled, each once, and why."""
        chosen, newest = {each.step for each in self._asked}, max(records, default=0)
        others = [step for step in records if step not in chosen and step in self._steps.values()]
        if new := self._said.new("others", others):
            at_most = f"evaluate.num_checkpoints is {self._spec.num_checkpoints}: {in_words(chosen)}"
            self._said.once(f"Skipped, as the run's evaluation leaves them out: {in_words(new)} ({at_most}).")
        if new := self._said.new("stops", [step for step in records if step not in self._steps.values()]):
            self._said.once(
                f"Skipped, as a stop or another run has left them, and this run wants none there: {in_words(new)}."
            )
        if new := self._said.new("gone", [step for step in chosen if step < newest and step not in records]):
            self._said.once(f"Skipped, as the training keeps no checkpoint there any more: {in_words(new)}.")


class Said:
    """What a person was told, so that it is told once."""

    def __init__(self) -> None:
        self._words: set[str] = set()
        self._steps: dict[str, set[int]] = defaultdict(set)

    def once(self, words: str, level: int = logging.INFO) -> None:
        if words not in self._words:
            self._words.add(words)
            log.log(level, "%s", words)

    def new(self, kind: str, steps: Collection[int]) -> list[int]:
        """Those of the steps that were not told of yet."""
        new = set(steps) - self._steps[kind]
        self._steps[kind] |= new
        return sorted(new)


@dataclass
class _Chosen(Work):
    """Work of which some tasks are this process's, whatever its shard."""

    mine: frozenset[str] = field(default=frozenset(), kw_only=True)
    """Their ids."""

    def is_mine(self, task: str) -> bool:
        return task in self.mine


@dataclass(frozen=True)
class _ToBe(Artifact):
    """An artifact of train that is not there yet. Of its tables it has the one that is known before."""

    checkpoints: Sequence[CheckpointRow] = ()

    def rows(self, table: str, row: type[R]) -> Iterator[R]:
        yield from (each for each in self.checkpoints if isinstance(each, row))


def _begun(run: BrickRun, store: Store, said: Said, pause: Callable[[], None]) -> tuple[Resolver, Found, Address]:
    """Where the training lies, once the stages before it are done."""
    while True:
        try:
            return address_of_training(run, store)
        except DataError as error:
            said.once(f"{error} Waiting for it.")
        except StoreUnavailable as error:
            said.once(f"{error} Waiting for it.", logging.WARNING)
        pause()


def _short(run: BrickRun) -> BrickRun:
    """The same run, whose evaluation asks for its own prompts alone, once each."""
    spec = run.stage_spec("evaluate")
    assert isinstance(spec, EvaluateSpec)
    short = spec.model_copy(
        update={"num_seeds": 1, "held_out_prompts": 0, "plain_prompts": [], "compare": [], "lengths": []}
    )
    return run.model_copy(update={"spec": run.spec.model_copy(update={"evaluate": short})})


def _evaluate(part: str) -> Any:
    """A part of the stage: what is made of samples comes when the training is finished. Loaded only here: torch."""
    return importlib.import_module(f"bricks_core.stages.evaluate.{part}")
