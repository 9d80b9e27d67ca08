"""The report of a training that is stopped or under way, from the checkpoints that it has.

It reads beside whoever trains and writes nothing that they read: a train artifact and one of evaluate, each at an
address of its own, that no run points to. Samples are items, so that the evaluation of the finished one finds them.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

from bricks_core.errors import AlteredObject, DataError, NoSuchObject, TryLater
from bricks_core.pipeline.began import earlier_versions
from bricks_core.pipeline.plan import Step, plan_stage
from bricks_core.pipeline.resolve import Address, Found, Resolver
from bricks_core.pipeline.trained import unfinished
from bricks_core.progress import Progress
from bricks_core.spec.manifest import Manifest
from bricks_core.spec.run import BrickRun
from bricks_core.spec.stages import STAGES, until
from bricks_core.spec.train import TrainSpec
from bricks_core.storage.artifacts import find_manifest, open_artifact
from bricks_core.storage.claim import Holder
from bricks_core.storage.claims import Claims
from bricks_core.storage.items import Items
from bricks_core.storage.store import Store
from bricks_core.storage.trainings import ROOT, begun_by_another_version, keyed
from bricks_core.storage.work import Work

log = logging.getLogger("bricks")

NUM_TRIES = 3


def evaluate_so_far(
    run: BrickRun,
    store: Store,
    *,
    tell: Callable[[Step], None] = lambda step: None,
    only: Collection[int] | None = None,
) -> dict[str, Manifest]:
    """Evaluate what there is of a run's training. Returns the manifests by stage; of a training that is finished, those
    that the run has. `only`: as if no other checkpoints were there than those after so many steps.

    Raises:
        SpecError: the run file has no such sections.
        DataError: the stages before are not finished, or no step is kept yet.
        TryLater: checkpoints are taken away faster than they can be read.
    """
    for _ in range(NUM_TRIES):
        try:
            return _evaluate(run, store, tell, only)
        except (AlteredObject, NoSuchObject) as error:
            if not error.key.startswith(ROOT):
                raise
            # Where the training was stopped once it leaves a checkpoint that goes when it has gone on.
            log.warning("%s Looking again at what there is.", error)
    raise TryLater(f"The checkpoints of run {run.name} go while they are read, or are damaged: start again later.")


def address_of_training(run: BrickRun, store: Store) -> tuple[Resolver, Found, Address]:
    """The stages before a run's training, which are done, and where the training lies or will lie.

    Raises:
        SpecError: the run file has no sections for training and evaluation.
        DataError: the stages before are not finished.
    """
    for name in ("train", "evaluate"):
        run.stage_spec(name)  # said before anything is looked for
    # Sources are taken to be as they were when the run looked at them: whoever trains reads that.
    resolver, found = Resolver(run, store, frozen=True), Found()
    if not resolver.has_looked_at(STAGES["ingest"], run.spec.ingest):  # they may be out of reach here
        raise DataError(f"Run {run.name} has not ingested these sources into {store.uri}: there is no training of it.")
    for stage in until("latents"):
        step = plan_stage(run, store, resolver, stage, found, items=False)
        if step.state != "cached" or step.address is None or step.manifest is None:
            raise DataError(
                f"{stage.name} of run {run.name} is not done with these settings ({'; '.join(step.why[:3])}): there is "
                "no training of it to look at."
            )
        found[stage.name] = step.address, step.manifest
    train = STAGES["train"]
    address = resolver.address(train, found)
    assert isinstance(address.spec, TrainSpec)
    inputs = keyed(found["latents"][1], outside(address))
    if (other := begun_by_another_version(store, run.name, address.spec, inputs)) is not None:
        # Its states are what that version made of them, and so is what is told of them.
        address = resolver.address(replace(train, version=other.begun.version), found)
    return resolver, found, address


def _evaluate(
    run: BrickRun, store: Store, tell: Callable[[Step], None], only: Collection[int] | None
) -> dict[str, Manifest]:
    resolver, found, address = address_of_training(run, store)
    evaluate = STAGES["evaluate"]
    with Claims(store, f"evaluation of run {run.name} so far") as claims:
        manifest = resolver.find(address) if only is None else None
        if manifest is None:
            work = _work(run, store, address, claims)
            manifest = work.commit(stage_module("train").join_so_far(address.spec, work, only))
        found["train"] = replace(address, digest=manifest.digest), manifest
        num_steps = TrainSpec.model_validate(manifest.spec).num_steps
        how_far = unfinished(manifest.counts["steps"], num_steps) or "the training is finished"
        address = resolver.address(evaluate, found)
        done = resolver.find(address)
        tell(Step(evaluate, "cached" if done else "to run", [how_far], address, done))
        if done is None:
            done = _sampled(_work(run, store, address, claims), address)
        found["evaluate"] = address, done
    return {name: each for name, (_, each) in found.items()}


def _sampled(work: Work, address: Address) -> Manifest:
    def theirs() -> Manifest | None:
        return find_manifest(work.store, "evaluate", address.digest)

    def told(holder: Holder) -> None:
        log.info("evaluate: the same is being made by %s. Waiting for it.", holder)

    batch = f"evaluate/{address.digest}"
    is_mine = work.claims.take_or_wait(batch, lambda: theirs() is not None, told)
    try:
        if (done := theirs()) is not None:
            return done
        module = stage_module("evaluate")
        with work.progress:
            module.run(address.spec, work)
        return work.commit(module.join(address.spec, work))
    finally:
        if is_mine:
            work.claims.release(batch)


def _work(run: BrickRun, store: Store, address: Address, claims: Claims) -> Work:
    """A working place that tells nobody: neither the run's status nor W&B are of this."""
    needs = {name: address.inputs[name] for name in address.stage.needs}
    items = Items(store)
    items.keep(earlier_versions(store, run.name, address.stage))
    return Work(
        store,
        address.stage,
        address.spec,
        address.cache_key or address.digest,
        address.inputs,
        {name: open_artifact(store, name, digest) for name, digest in needs.items()},
        Progress(address.stage.name),
        run=untracked(run),
        fingerprints=outside(address),
        items=items,
        claims=claims,
    )


def untracked(run: BrickRun) -> BrickRun:
    """The same run, of which W&B hears nothing."""
    tracking = run.spec.tracking.model_copy(update={"wandb": "off"})
    return run.model_copy(update={"spec": run.spec.model_copy(update={"tracking": tracking})})


def outside(address: Address) -> dict[str, str]:
    """Fingerprints of what lies outside the store."""
    return {name: each for name, each in address.inputs.items() if name not in address.stage.needs}


def stage_module(stage: str) -> Any:
    """What a stage does; loaded only here, as it may need torch."""
    return importlib.import_module(f"bricks_core.stages.{stage}.stage")
