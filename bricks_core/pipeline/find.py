"""Artifacts and runs by what a person writes."""

from __future__ import annotations

import json
from pathlib import Path

from bricks_core.errors import DataError, NoSuchObject, UsageError, nearest
from bricks_core.pipeline.points import read_pointer, run_names
from bricks_core.spec.run import BrickRun, load_run, run_in
from bricks_core.spec.stages import STAGES, stage_named
from bricks_core.storage.store import Store
from bricks_core.storage.trainings import begun


def parts_of(wanted: str) -> tuple[str, str]:
    """The two parts of RUN/STAGE or STAGE/DIGEST.

    Raises:
        UsageError: it is neither.
    """
    wanted = wanted.removeprefix("artifacts/").rstrip("/")
    first, slash, second = wanted.partition("/")
    if not slash:
        raise UsageError(f"{wanted} names no artifact: write RUN/STAGE, such as quickstart/clip, or STAGE/DIGEST.")
    return first, second


def find_artifact(store: Store, wanted: str) -> tuple[str, str]:
    """The stage and digest that RUN/STAGE or STAGE/DIGEST means."""
    first, second = parts_of(wanted)
    if second in STAGES:
        pointer = read_pointer(store, first, second)
        if pointer is None and second == "train" and begun(store, first):
            raise DataError(
                f"The training of run {first} is not finished: bricks checkpoint show {first} tells of the last "
                f"checkpoint that it has, bricks status {first} which there are."
            )
        if pointer is None:
            names = run_names(store)
            near = "" if first in names else nearest(first, names)
            raise DataError(f"{store.uri} has no run {first} with a finished {second}{near}.")
        return second, pointer.digest
    stage = stage_named(first).name
    digests = {entry.key.split("/")[2] for entry in store.list(f"artifacts/{stage}/{second}")}
    if len(digests) != 1:
        how_many = "no artifact" if not digests else f"{len(digests)} artifacts"
        raise DataError(f"{store.uri} has {how_many} of {stage} whose digest begins with {second}.")
    return stage, digests.pop()


def run_file_key(run: str) -> str:
    """Where the settings of a run lie, as `bricks run` last had them."""
    return f"runs/{run}/run.json"


def find_run(store: Store, wanted: str, overrides: list[str] | None = None) -> BrickRun:
    """The run of a file, or the one of that name that `bricks run` has been at in the store.

    Raises:
        SpecError: its settings cannot be read.
        DataError: there is neither.
    """
    file = Path(wanted)
    if file.is_file() or file.suffix in (".yaml", ".yml", ".json") or len(file.parts) != 1:
        return load_run(file, overrides)
    key = run_file_key(wanted)
    try:
        document = json.loads(store.get(key))
    except NoSuchObject:
        names = run_names(store)
        if wanted in names:
            raise DataError(
                f"{store.uri} keeps no settings of run {wanted}, which bricks run has not been at: name its file."
            ) from None
        raise DataError(
            f"There is no file {wanted}, and {store.uri} has no run {wanted}{nearest(wanted, names)}."
        ) from None
    except ValueError:
        raise DataError(f"{key} in {store.uri} cannot be read: name the run's file instead.") from None
    return run_in(document if isinstance(document, dict) else {}, overrides, key)
