"""Stages run here: one of them, a shard of one, or the whole path. Resolve, plan, do, commit."""

from __future__ import annotations

import importlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from bricks_core.errors import (
    AlteredObject,
    BricksError,
    CorruptManifest,
    DataError,
    StoreDenied,
    StoreUnavailable,
    TryLater,
)
from bricks_core.pipeline.began import begin as begin_stage
from bricks_core.pipeline.began import ended
from bricks_core.pipeline.compared import check_compared
from bricks_core.pipeline.find import run_file_key
from bricks_core.pipeline.plan import Step, make_plan, plan_stage
from bricks_core.pipeline.points import forget, point, read_pointer, read_points
from bricks_core.pipeline.resolve import Address, Found, Resolver, address_alone, pending_again
from bricks_core.progress import Progress
from bricks_core.spec.manifest import Manifest
from bricks_core.spec.run import BrickRun
from bricks_core.spec.stages import until
from bricks_core.spec.train import TrainSpec
from bricks_core.storage.artifacts import Artifact, find_manifest, open_artifact, problems, reopen
from bricks_core.storage.claim import Holder
from bricks_core.storage.claims import Claims
from bricks_core.storage.items import Bundle, Items
from bricks_core.storage.store import Store
from bricks_core.storage.trainings import Trajectory, begin, begun, keyed
from bricks_core.storage.trainings import forget as forget_training
from bricks_core.storage.work import Joined, Work

log = logging.getLogger("bricks")

MAX_REPAIRS = 3
WAIT_FOR_COMMIT_S = 2.0


def run_path(
    run: BrickRun,
    store: Store,
    stop_after: str | None = None,
    *,
    tell: Callable[[Step], None] = lambda step: None,
    wait: bool = True,
    train: Callable[[], None] = lambda: None,
    renew: bool = False,
) -> dict[str, Manifest]:
    """Run every stage that is not done, in order, mending what is broken on the way. Returns the manifests by stage.

    `tell` hears of every stage before it runs or is found done. Where another process is at the same run already, it is
    waited for, and said who it is. A run with nothing to do needs no store that can be written. `renew`: what an
    earlier version of Bricks has finished, and this one would make otherwise, is made anew. `train`: may train
    in processes of its own, to the end of the stage; where it leaves that undone, this process trains.

    Raises:
        TryLater: `wait` is False, and another process is at it; or the disk is full.
        StoreDenied: there is something to do, and the store cannot be written.
    """
    with Claims(store, f"bricks run {run.name}") as claims:
        try:
            holder = _claim(run, claims, wait=wait)
        except (StoreDenied, TryLater) as error:  # a store to read only, or a full disk: is there anything to write?
            return _found_done(run, store, stop_after, tell, error)
        if holder is not None:
            raise TryLater(f"Run {run.name} is under way: {holder}. Leave --no-wait out to wait for it.")
        _keep_run_file(run, store)
        if stop_after in (None, "evaluate"):
            check_compared(run, store)
        for _ in range(MAX_REPAIRS):
            try:
                return _run_once(run, store, stop_after, tell, claims, train, renew=renew)
            except (AlteredObject, CorruptManifest) as error:
                # Seen only when it was read, in the middle of a later stage: look at everything again, and mend.
                log.warning("%s Looking for its artifact, to rebuild what is broken.", error)
                _mend_all(run, store, stop_after)
    raise DataError(f"{store.uri} alters what is written to it: broken again after {MAX_REPAIRS} repairs.")


def _keep_run_file(run: BrickRun, store: Store) -> None:
    """The run's settings, resolved. Written only when they are others, so that nothing to do writes nothing."""
    if not _is_kept(run, store):
        store.put(run_file_key(run.name), _resolved(run))


def _is_kept(run: BrickRun, store: Store) -> bool:
    return store.head(run_file_key(run.name)) is not None and store.get(run_file_key(run.name)) == _resolved(run)


def _resolved(run: BrickRun) -> bytes:
    return run.model_dump_json(indent=1).encode()


def run_alone(
    run: BrickRun, store: Store, stage: str, *, shard: int = 0, num_shards: int = 1, commit: bool = False
) -> Manifest | None:
    """Run one stage of a run, or one shard of it. Returns the manifest once the stage is done, else None.

    Whoever finds nothing pending at its end joins and commits: of several shards the last one, whichever it is. A call
    with `commit` does only that.

    Raises:
        DataError: an input is not finished.
        TryLater: `commit`, and items are missing.
    """
    address = address_alone(run, store, stage)
    if address.made_by and pending_again(run, open_artifact(store, stage, address.digest).manifest):
        address = address_alone(run, store, stage, kept=False)  # what is made now lies where this version looks for it
    with Claims(store, f"{stage} of run {run.name}") as claims:
        if commit:
            return _commit_alone(run, store, address, _work(run, store, address, claims))
        done, is_mended = _find_sound(run, store, address)
        if done is not None:
            log.info("%s: found done at %s", stage, address.prefix)
            return done
        if is_mended:
            address = address_alone(run, store, stage)
        work = _work(run, store, address, claims, shard, num_shards, with_bundles=not is_mended)
        with _dear(work, address) as is_mine:
            if is_mine:
                with work.progress:
                    _module(stage).run(address.spec, work)
            if not _is_first():
                return _wait_for_commit(store, address)
            if num_shards > 1 and (left := _num_pending(address, work)):
                log.info("%s: shard %d is done; %d items are left to other shards", stage, shard, left)
                return None
            return _commit_alone(run, store, address, work)


def mend(store: Store, step: Step) -> None:
    """Make a broken artifact unfinished again, saying what is wrong with it."""
    assert step.address is not None
    for each in step.wrong[:10]:
        log.warning("%s", each)
    if len(step.wrong) > 10:
        log.warning("… and %d more.", len(step.wrong) - 10)
    wrong = [each.key for each in step.wrong if isinstance(each, AlteredObject)]
    items = reopen(store, step.stage.name, step.address.digest, wrong)
    what = f"{len(items)} item{'s' if len(items) > 1 else ''} and its tables" if items else "its tables"
    log.warning("%s: rebuilding %s.", step.stage.name, what)


def _run_once(
    run: BrickRun,
    store: Store,
    stop_after: str | None,
    tell: Callable[[Step], None],
    claims: Claims,
    train: Callable[[], None],
    *,
    renew: bool,
) -> dict[str, Manifest]:
    found = Found()
    for stage in until(stop_after):
        resolver = Resolver(run, store)
        step = plan_stage(run, store, resolver, stage, found, kept=not renew)
        address = step.address
        assert address is not None
        tell(step)
        if renew and step.state != "cached":
            forget(run.name, store, [stage.name])  # whoever looks for it alone does not find what it was, either
            if stage.name == "train":
                forget_training(store, run.name)
        if step.state == "broken":
            mend(store, step)
            address = resolver.address(stage, found, kept=not renew)  # of an earlier version it is not there any more
        if step.state == "cached" and step.manifest is not None:
            manifest = step.manifest
            _is_done(run, store, address, manifest)
        else:
            work = _work(run, store, address, claims, with_bundles=step.state != "broken", renew=renew)
            if stage.name == "train":
                with _dear(work, address) as is_free:
                    pass  # the first of the processes takes it
                if is_free:
                    train()
            with _dear(work, address) as is_mine:
                if is_mine:
                    with work.progress:
                        _module(stage.name).run(address.spec, work)
                manifest = _commit(run, store, address, work)
        found[stage.name] = _at(address, manifest), manifest
    return {name: manifest for name, (_, manifest) in found.items()}


def _is_done(run: BrickRun, store: Store, address: Address, manifest: Manifest) -> None:
    """A stage that is found done is what the run has from here on."""
    point(run.name, store, address.pointer())
    ended(store, run.name, manifest)
    _begun_last(run, store, address)


def _begun_last(run: BrickRun, store: Store, address: Address) -> None:
    """A training that is found done is the one that the run means from here on, if it had begun another since."""
    if isinstance(address.spec, TrainSpec) and begun(store, run.name):
        latents = address.inputs["latents"]
        outside = {name: each for name, each in address.inputs.items() if name not in address.stage.needs}
        inputs = keyed(open_artifact(store, "latents", latents).manifest, outside)
        begin(store, run.name, address.spec, inputs, latents)


def _mend_all(run: BrickRun, store: Store, stop_after: str | None) -> None:
    while True:
        broken = [step for step in make_plan(run, store, stop_after, thorough=True) if step.state == "broken"]
        for step in broken:
            mend(store, step)
        if not broken:
            return


def _claim(run: BrickRun, claims: Claims, *, wait: bool) -> Holder | None:
    """One process at a time is at a run; the others wait for it, or leave: then who is at it is returned."""
    batch = f"run/{run.name}"

    def told(holder: Holder) -> None:
        log.info("Run %s is under way: %s. Waiting for it; --no-wait leaves instead.", run.name, holder)

    if wait:
        claims.take_or_wait(batch, lambda: False, told)
        return None
    return claims.take(batch)


def _found_done(
    run: BrickRun, store: Store, stop_after: str | None, tell: Callable[[Step], None], denied: BricksError
) -> dict[str, Manifest]:
    """A run in a store that cannot be written, if all of it is done. Only looks, so that no claim is needed.

    Raises:
        `denied`, with what is to be written: not all is done.
    """

    def refused(why: str) -> BricksError:
        return type(denied)(f"{why}, and the store {store.uri} cannot be written. {denied}")

    resolver, found = Resolver(run, store), Found()
    for stage in until(stop_after):
        step = plan_stage(run, store, resolver, stage, found)
        if step.state != "cached" or step.address is None or step.manifest is None:
            raise refused(f"Run {run.name} is not done ({stage.name}: {'; '.join(step.why[:3]).rstrip('.')})")
        tell(step)
        found[stage.name] = step.address, step.manifest
    pointers = {name: address.pointer() for name, (address, _) in found.items()}
    if not _is_kept(run, store) or not pointers.items() <= read_points(store, run.name).stages.items():
        raise refused(f"Of run {run.name} only runs/{run.name}/ is to be written: its settings, and what it points to")
    return {name: manifest for name, (_, manifest) in found.items()}


@contextmanager
def _dear(work: Work, address: Address) -> Iterator[bool]:
    """Work that nobody may do twice at the same time: training, and an evaluation that is not shared between shards.
    True: it is ours; False: another has done it meanwhile."""
    if not address.stage.is_dear or work.num_shards > 1 or not _is_first():
        yield True
        return
    with _alone(work, address) as is_mine:
        yield is_mine


@contextmanager
def _alone(work: Work, address: Address) -> Iterator[bool]:
    """A stage's work while nobody else is at it, or False: another has done it meanwhile."""
    name = address.stage.name
    batch = f"{name}/{address.digest}"
    if isinstance(address.spec, TrainSpec):
        batch = Trajectory(address.spec, keyed(work.inputs["latents"].manifest, work.fingerprints)).batch

    def is_done() -> bool:
        return find_manifest(work.store, name, address.digest) is not None

    def told(holder: Holder) -> None:
        log.info("%s: the same is being made by %s. Waiting for it.", name, holder)

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # the other processes would wait for this one, and not for long
        if (holder := work.claims.take(batch)) is not None:
            raise TryLater(f"{name}: the same is being made by {holder}. Start again when it is done.")
        is_mine = True
    else:
        is_mine = work.claims.take_or_wait(batch, is_done, told)
    try:
        yield is_mine
    finally:
        if is_mine:
            work.claims.release(batch)


def _find_sound(run: BrickRun, store: Store, address: Address) -> tuple[Manifest | None, bool]:
    """The stage's manifest if it is done and nothing of it is broken; what is broken is made unfinished again.

    The second: whether it was.
    """
    try:
        manifest = find_manifest(store, address.stage.name, address.digest)
        wrong: list[Any] = problems(store, manifest, items=True) if manifest else []
    except CorruptManifest as error:
        manifest, wrong = None, [error]
    if wrong:
        mend(store, Step(address.stage, "broken", [], address, wrong=wrong))
        return None, True
    if manifest is not None and pending_again(run, manifest):
        return None, False
    if manifest is not None:
        _is_done(run, store, address, manifest)
    return manifest, False


def _work(
    run: BrickRun,
    store: Store,
    address: Address,
    claims: Claims,
    shard: int = 0,
    num_shards: int = 1,
    *,
    with_bundles: bool = True,
    renew: bool = False,
) -> Work:
    """Work that is begun. `renew`: by this version alone."""
    digests = {name: address.inputs[name] for name in address.stage.needs}
    name = address.stage.name if num_shards == 1 else f"{address.stage.name}-{shard}"

    def heartbeat(state: dict[str, object]) -> None:
        if not _is_first():
            return
        try:
            store.put(f"runs/{run.name}/status/{name}.json", json.dumps(state).encode())
        except BricksError as error:  # a status that cannot be told must not end the work it tells of
            log.debug("no status: %s", error)

    items = Items(store, _bundles(run, store, address) if with_bundles else ())
    items.keep(begin_stage(store, run.name, address.stage, renew=renew))
    limits: Callable[[Any], dict[str, float]] = getattr(_module(address.stage.name), "limits", lambda spec: {})
    return Work(
        store=store,
        stage=address.stage,
        spec=address.spec,
        digest=address.cache_key or address.digest,
        input_digests=address.inputs,
        inputs={name: open_artifact(store, name, digest) for name, digest in digests.items()},
        progress=Progress(name, heartbeat),
        shard=shard,
        num_shards=num_shards,
        run=run,
        fingerprints={name: each for name, each in address.inputs.items() if name not in digests},
        items=items,
        limits=limits(address.spec),
        claims=claims,
    )


def _bundles(run: BrickRun, store: Store, address: Address) -> list[Bundle]:
    """The records that this run's last artifact of the stage keeps in one file: most of them are needed again."""
    pointer = read_pointer(store, run.name, address.stage.name)
    if pointer is None:
        return []
    try:
        manifest = find_manifest(store, address.stage.name, pointer.digest)
    except CorruptManifest:
        return []
    return Artifact(store, manifest).bundle() if manifest is not None else []


def _is_first() -> bool:
    """Whether this is the process that tells and commits, of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def _at(address: Address, manifest: Manifest) -> Address:
    """The address, where the artifact really lies."""
    return Address(address.stage, address.spec, manifest.digest, address.inputs, address.cache_key)


def _commit(run: BrickRun, store: Store, address: Address, work: Work) -> Manifest:
    """Join the items and write the manifest, unless it is there."""
    name = address.stage.name
    manifest = find_manifest(store, name, address.digest)
    if manifest is None or pending_again(run, manifest):
        if left := _num_pending(address, work):
            raise TryLater(f"{name}: {left} items are not done yet: run their shards first.")
        joined: Joined = _module(name).join(address.spec, work)
        manifest = work.commit(joined)
    point(run.name, store, _at(address, manifest).pointer())
    ended(store, run.name, manifest)
    return manifest


def _commit_alone(run: BrickRun, store: Store, address: Address, work: Work) -> Manifest:
    """The same, while no other shard joins them, where joining takes long."""
    if not (address.stage.is_dear and address.stage.sharded):
        return _commit(run, store, address, work)
    with _alone(work, address):
        return _commit(run, store, address, work)


def _num_pending(address: Address, work: Work) -> int:
    """Tasks of all shards that are not done."""
    if not address.stage.sharded:
        return 0
    return len(work.pending(_module(address.stage.name).tasks(address.spec, work)))


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
