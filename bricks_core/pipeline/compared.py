"""Where those checkpoints lie that runs have trained and an evaluation compares ours with.

Of such a one the cache key holds where it lies, which tells what it was made of; of a folder here a fingerprint; of a
key of the store and a hub id its name alone, as of train.init_from. What is in these is in the keys of the samples.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from bricks_core.errors import BricksError, SpecError, nearest
from bricks_core.pipeline.points import read_pointer, run_names
from bricks_core.pipeline.trained import find_trained, is_run_with_training
from bricks_core.spec.evaluate import EvaluateSpec, check_encoders
from bricks_core.spec.run import BrickRun
from bricks_core.spec.train import DEFAULT_WEIGHTS, WanSpec
from bricks_core.storage.artifacts import open_artifact
from bricks_core.storage.store import Store
from bricks_core.storage.tables import read_columns
from bricks_core.storage.trainings import ROOT

_PARTS = ("", ".shift")


def compared(
    store: Store, spec: EvaluateSpec, latents: str, before: Mapping[str, str], *, is_here: bool
) -> dict[str, str]:
    """For every name that is a run's, as compare.NAME: the key of its weights.

    latents  the digest of what this run was trained on; empty: not known yet
    before   what an evaluation with the same settings was made from: it stands where a run's checkpoint is not there
             any more
    is_here  whether folders must be here: they need not be where the run is only watched

    Raises:
        SpecError: there is no such checkpoint, or it goes with another codec or text encoder.
    """
    found: dict[str, str] = {}
    for name in dict.fromkeys(spec.compare):
        if Path(name).expanduser().exists():
            continue
        if name.startswith((".", "/", "~")):
            if is_here:
                raise SpecError(f"evaluate.compare: there is no model {name}: nothing is there.")
            continue
        try:
            of_run = _of_run(store, spec, name, latents)
        except BricksError:
            of_run = {part: before[f"compare.{name}{part}"] for part in _PARTS if f"compare.{name}{part}" in before}
            if not of_run:
                raise
        found |= {f"compare.{name}{part}": each for part, each in of_run.items()}
    return found


def check_compared(run: BrickRun, store: Store) -> None:
    """See before the work of hours that what will be compared with is there.

    Raises SpecError: it is not.
    """
    spec = run.spec.evaluate
    if spec is not None and spec.compare:
        # What this run is to train itself need not be there yet.
        others = [name for name in spec.compare if name.partition("@")[0] != run.name]
        pointer = read_pointer(store, run.name, "evaluate")
        before = pointer.inputs if pointer is not None else {}
        compared(store, spec.model_copy(update={"compare": others}), "", before, is_here=True)


def compared_states(inputs: Mapping[str, str]) -> set[str]:
    """The folders of states that an evaluation was made from beside its own training's."""
    found = (of for name, of in inputs.items() if name.startswith("compare.") and of.startswith(ROOT))
    return {f"{key.rpartition('/')[0]}/" for key in found}


def _of_run(store: Store, spec: EvaluateSpec, name: str, latents: str) -> dict[str, str]:
    """The key of the weights of RUN or RUN@STEP, and of a flow its shift; nothing where it is no run's name."""
    match = re.fullmatch(r"([^@/]+)(?:@(\d+))?", name)
    if match is None:
        if "/" not in name:
            raise SpecError(f"evaluate.compare is {name!r}: write RUN or RUN@STEP, such as first@4000.")
        return {}
    run, step = match[1], int(match[2]) if match[2] else None
    if not is_run_with_training(store, run):
        raise SpecError(
            f"evaluate.compare: there is no model {name}: no file or folder of that name is here, {store.uri} has no "
            f"run {run} with a training{nearest(run, run_names(store))}, and a hub id has the form owner/name."
        )
    trained = find_trained(store, run)
    if step is None and trained.unfinished:
        # Every shard must mean the same one, also while it goes on.
        raise SpecError(
            f"evaluate.compare names {run}, whose training is {trained.unfinished}: name one of its checkpoints, such "
            f"as {run}@{trained.state().step}."
        )
    if latents:
        check_encoders(name, _encoders(store, trained.latents), _encoders(store, latents))
    weights = DEFAULT_WEIGHTS if DEFAULT_WEIGHTS in spec.weights else spec.weights[0]
    shift = {".shift": f"{trained.spec.model.shift:g}"} if isinstance(trained.spec.model, WanSpec) else {}
    return {"": trained.state(step).files[weights].key} | shift


def _encoders(store: Store, latents: str) -> tuple[str, str]:
    """What made the latents and the caption features of a training."""
    artifact = open_artifact(store, "latents", latents, earlier=True)
    with artifact.local(artifact.manifest.tables["latents"].key) as file:
        for row in read_columns(file, ["codec", "text_encoder"]):
            return row["codec"], row["text_encoder"]
    return "", ""
