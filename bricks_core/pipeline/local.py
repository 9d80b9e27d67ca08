"""Stages run here: one of them, a shard of one, or the whole path."""

from __future__ import annotations

import importlib
import json
import logging
import os
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

from bricks_core.errors import AlteredObject, BricksError, CorruptManifest, DataError, StoreUnavailable, TryLater
from bricks_core.pipeline.plan import Address, Step, addresses, make_plan, point
from bricks_core.progress import Progress
from bricks_core.spec.manifest import Manifest
from bricks_core.spec.run import BrickRun
from bricks_core.storage.artifacts import Artifact, find_manifest, open_artifact, problems, reopen
from bricks_core.storage.store import Store
from bricks_core.storage.work import Work

log = logging.getLogger("bricks")

MAX_REPAIRS = 3
WAIT_FOR_COMMIT_S = 2.0


def run_path(
    run: BrickRun, store: Store, stop_after: str | None = None, *, tell: Callable[[Step], None] = lambda step: None
) -> dict[str, Manifest]:
    """Run every stage that is not done, in order, mending what is broken on the way. Returns the manifests by stage.

    `tell` hears of every stage before it runs or is found done.
    """
    store.put(f"runs/{run.name}/run.json", run.model_dump_json(indent=1).encode())
    for _ in range(MAX_REPAIRS):
        try:
            return _run_once(run, store, stop_after, tell)
        except (AlteredObject, CorruptManifest) as error:
            # Seen only when it was read, in the middle of a later stage: look at everything again, and mend.
            log.warning("%s Looking for its artifact, to rebuild what is broken.", error)
            _mend_all(run, store, stop_after)
    raise DataError(f"{store.uri} alters what is written to it: broken again after {MAX_REPAIRS} repairs.")


def run_alone(
    run: BrickRun, store: Store, stage: str, *, shard: int = 0, num_shards: int = 1, commit: bool = False
) -> Manifest | None:
    """Run one stage of a run, or one shard of it. Returns the manifest once the stage is done, else None.

    Whoever finds no item missing at its end joins and commits: of several shards the last one, whichever it is. A call
    with `commit` does only that.

    Raises:
        DataError: an input is not finished.
        TryLater: `commit`, and parts are missing.
    """
    address = addresses(run, store, stage, frozen=stage != "ingest")[-1]
    if commit:
        return _commit(run, store, address)
    done = _find_sound(run, store, address)
    if done is not None:
        log.info("%s: found done at %s", stage, address.prefix)
        return done
    work = _work(run, store, address, shard, num_shards)
    with work.progress:
        _module(stage).run(address.spec, work)
    if not _is_first():
        return _wait_for_commit(store, address)
    if num_shards > 1 and (missing := _missing(run, store, address)):
        log.info("%s: shard %d is done; %d items are left to other shards", stage, shard, len(missing))
        return None
    return _commit(run, store, address, work.started_at)


def mend(store: Store, step: Step) -> None:
    """Make a broken artifact unfinished again, saying what is wrong with it."""
    for each in step.wrong[:10]:
        log.warning("%s", each)
    if len(step.wrong) > 10:
        log.warning("… and %d more.", len(step.wrong) - 10)
    wrong = [each.key for each in step.wrong if isinstance(each, AlteredObject)]
    num_items = reopen(store, step.address.stage.name, step.address.digest, wrong)
    log.warning("%s: rebuilding it: %d items and its tables.", step.address.stage.name, num_items)


def _run_once(run: BrickRun, store: Store, stop_after: str | None, tell: Callable[[Step], None]) -> dict[str, Manifest]:
    manifests = {}
    for step in make_plan(run, store, stop_after):
        name = step.address.stage.name
        tell(step)
        if step.state == "broken":
            mend(store, step)
        if step.state == "cached" and step.manifest is not None:
            manifests[name] = step.manifest
            point(run.name, store, step.address)
            continue
        work = _work(run, store, step.address)
        with work.progress:
            _module(name).run(step.address.spec, work)
        manifests[name] = _commit(run, store, step.address, work.started_at)
    return manifests


def _mend_all(run: BrickRun, store: Store, stop_after: str | None) -> None:
    for step in make_plan(run, store, stop_after, thorough=True):
        if step.state == "broken":
            mend(store, step)


def _find_sound(run: BrickRun, store: Store, address: Address) -> Manifest | None:
    """The stage's manifest if it is done and nothing of it is broken; what is broken is made unfinished again."""
    try:
        manifest = find_manifest(store, address.stage.name, address.digest)
        wrong: list[Any] = problems(store, manifest) if manifest else []
    except CorruptManifest as error:
        manifest, wrong = None, [error]
    if wrong:
        mend(store, Step(address, "broken", [], wrong=wrong))
        return None
    if manifest is not None:
        point(run.name, store, address)
    return manifest


def _work(run: BrickRun, store: Store, address: Address, shard: int = 0, num_shards: int = 1) -> Work:
    digests = {name: address.inputs[name] for name in address.stage.needs}
    inputs: dict[str, Artifact] = {name: open_artifact(store, name, digest) for name, digest in digests.items()}
    name = address.stage.name if num_shards == 1 else f"{address.stage.name}-{shard}"

    def heartbeat(state: dict[str, object]) -> None:
        if not _is_first():
            return
        try:
            store.put(f"runs/{run.name}/status/{name}.json", json.dumps(state).encode())
        except BricksError as error:  # a status that cannot be told must not end the work it tells of
            log.debug("no status: %s", error)

    # Says what this run is after, before it is there, so that garbage collection leaves work under way alone.
    wanted = address.pointer().model_dump_json(indent=1).encode()
    store.put(f"runs/{run.name}/wanted/{address.stage.name}.json", wanted)
    return Work(
        store=store,
        stage=address.stage,
        spec=address.spec,
        digest=address.digest,
        input_digests=address.inputs,
        inputs=inputs,
        progress=Progress(name, heartbeat),
        shard=shard,
        num_shards=num_shards,
        run=run,
    )


def _is_first() -> bool:
    """Whether this is the process that tells and commits, of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def _commit(run: BrickRun, store: Store, address: Address, started_at: datetime | None = None) -> Manifest:
    """Join the parts and write the manifest, unless it is there. `started_at`: when the work began, if it was here."""
    name = address.stage.name
    manifest = find_manifest(store, name, address.digest)
    if manifest is None:
        work = _work(run, store, address)
        work.started_at = started_at or work.started_at
        module = _module(name)
        if missing := _missing(run, store, address):
            raise TryLater(
                f"{name}: {len(missing)} items are not done yet (such as {missing[0]}): run their shards first."
            )
        joined = module.join(address.spec, work)
        manifest = work.commit(joined.tables, objects=joined.objects, counts=joined.counts)
    point(run.name, store, address)
    return manifest


def _missing(run: BrickRun, store: Store, address: Address) -> list[str]:
    """Items of all shards that are not done."""
    if not address.stage.sharded:
        return []
    work = _work(run, store, address)
    return work.missing([item.id for item in _module(address.stage.name).items(address.spec, work)])


def _wait_for_commit(store: Store, address: Address) -> Manifest:
    """The manifest, once the first process has written it.

    A launcher may call a job done, and end all its pods, as soon as one of them ends (Training Operator 1.9 with an
    elastic policy): so none ends before the artifact is there. If the first process fails, torchrun ends this one.
    """
    log.debug("%s: waiting for the first process to commit", address.stage.name)
    while True:
        try:
            manifest = find_manifest(store, address.stage.name, address.digest)
        except (StoreUnavailable, TryLater) as error:
            # The first process may be through with its own tries at any moment. If it gives up, all are told to.
            log.debug("%s: %s", address.stage.name, error)
            manifest = None
        if manifest is not None:
            return manifest
        time.sleep(WAIT_FOR_COMMIT_S)


def _module(stage: str) -> Any:
    return importlib.import_module(f"bricks_core.stages.{stage}.stage")
