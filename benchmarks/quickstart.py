"""How long the quickstart takes, stage by stage, and how far the held-out loss falls: what `make demo` promises.

    python -m benchmarks.quickstart [--save] [--store FOLDER] [--run FILE]

Runs the whole of it in an empty store, about six minutes on two cores. With --store, tells of a run that was made
there: its times are those of the manifests, so they are true only if no stage was interrupted or shared.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks.record import flags, keep
from bricks_core.pipeline.points import read_pointer
from bricks_core.spec.run import load_run
from bricks_core.spec.stages import STAGES
from bricks_core.spec.train import HeldOutRow
from bricks_core.storage.artifacts import Artifact, open_artifact
from bricks_core.storage.places import open_store
from bricks_core.storage.store import Store

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Run it, or look at a run; print the JSON, and with --save keep it under benchmarks/results."""
    parser = flags(__doc__)
    parser.add_argument("--store", default="", help="a store in which it has run already")
    parser.add_argument("--run", type=Path, default=ROOT / "k8s/runs/quickstart.yaml")
    asked = parser.parse_args()
    name = load_run(asked.run).name
    if asked.store:
        found = results(open_store(asked.store), name)
    else:
        with tempfile.TemporaryDirectory(prefix="bricks-") as folder:
            subprocess.run([sys.executable, "examples/make_films.py", "examples/films"], cwd=ROOT, check=True)
            subprocess.run(
                [sys.executable, "-m", "jobs.bricks", "run", str(asked.run), "--store", folder], cwd=ROOT, check=True
            )
            found = results(open_store(folder), name)
    keep(name, found, save=asked.save)


def results(store: Store, name: str) -> dict[str, Any]:
    """Seconds and counts of every stage, and the held-out loss over the steps."""
    artifacts = {stage: artifact_of(store, name, stage) for stage in STAGES}
    manifests = [artifact.manifest for artifact in artifacts.values()]
    stages_s = {m.stage: round((m.finished_at - m.started_at).total_seconds(), 1) for m in manifests}
    return {
        # A sum, so that a run whose first stages were there already is told as if they had not been.
        "whole_s": round(sum(stages_s.values()), 1),
        "stages_s": stages_s,
        "counts": {m.stage: m.counts for m in manifests},
        "held_out_loss": held_out(artifacts["train"]),
    }


def artifact_of(store: Store, name: str, stage: str) -> Artifact:
    pointer = read_pointer(store, name, stage)
    artifact = open_artifact(store, stage, pointer.digest) if pointer else None
    if artifact is None:
        raise SystemExit(f"{store.uri} has no finished {stage} of run {name}: run it there first.")
    return artifact


def held_out(train: Artifact) -> dict[str, dict[str, float]]:
    """Weights -> step -> loss, the mean over bins and then over buckets, as the report has it."""
    losses: dict[tuple[str, int], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in train.rows("held_out", HeldOutRow):
        losses[row.weights, row.step][row.bucket].append(row.loss)
    found: dict[str, dict[str, float]] = {"raw": {}, "ema": {}}
    for (weights, step), by_bucket in sorted(losses.items()):
        means = [sum(each) / len(each) for each in by_bucket.values()]
        found[weights][str(step)] = round(sum(means) / len(means), 4)
    return found


if __name__ == "__main__":
    main()
