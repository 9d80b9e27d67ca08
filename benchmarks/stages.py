"""How much every stage gets done in a second, on films drawn for it, each as its own job does it.

    python -m benchmarks.stages [--save] [--films 4]

The measure that all are held against is decoding: the frames/s of one process that decodes the same films and does
nothing else, in the same run. A data stage that looks at each frame once cannot be faster per core.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import yaml

from benchmarks.record import flags, keep
from bricks_core.pipeline.points import read_pointer
from bricks_core.spec.clip import Clip
from bricks_core.spec.stages import STAGES
from bricks_core.storage.artifacts import open_artifact
from bricks_core.storage.places import open_store
from bricks_core.storage.store import Store
from bricks_core.video.read import frames

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Draw films, run every stage of a small run as a program of its own, and count."""
    parser = flags(__doc__)
    parser.add_argument("--films", type=int, default=4)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bricks-") as name:
        folder = Path(name)
        films = ["examples/make_films.py", str(folder / "films"), "--films", str(arguments.films)]
        subprocess.run([sys.executable, *films], cwd=ROOT, check=True, capture_output=True)
        file = folder / "run.yaml"
        file.write_text(yaml.safe_dump(small_run(folder / "films")), encoding="utf-8")
        num_frames, decoding_s = decode(folder / "films")
        seconds = {stage: run_stage(stage, file, folder) for stage in STAGES}
        rates = rates_of(open_store(str(folder / "store")), seconds, num_frames)
    decoding = num_frames / decoding_s
    for each in rates.values():
        if "frames_per_s" in each:
            each["x_decoding"] = round(each["frames_per_s"] / decoding, 3)
    found = {"num_films": arguments.films, "decoding_frames_per_s": round(decoding, 1), "stages": rates}
    keep("stages", found, save=arguments.save)


def small_run(films: Path) -> dict[str, Any]:
    """The quickstart's run with few steps."""
    document: dict[str, Any] = yaml.safe_load((ROOT / "k8s/runs/quickstart.yaml").read_text(encoding="utf-8"))
    spec = document["spec"]
    spec["ingest"]["sources"] = [str(films)]
    spec["tracking"] = {"wandb": "off"}
    for phase in spec["train"]["phases"]:
        phase["steps"] = 60
        phase["schedule"] = {"kind": "constant", "lr": 1e-3}
    spec["train"]["held_out"]["every_steps"] = spec["train"]["checkpoint_every_steps"] = 120
    spec["evaluate"]["num_checkpoints"] = 2
    return document


def decode(folder: Path) -> tuple[int, float]:
    """Frames of all films, and the seconds that decoding them alone takes."""
    begun = time.perf_counter()
    num_frames = 0
    for film in sorted(folder.glob("*.mp4")):
        with closing(frames(film)) as found:
            num_frames += sum(1 for _ in found)
    return num_frames, time.perf_counter() - begun


def run_stage(stage: str, file: Path, folder: Path) -> float:
    """Seconds of one stage's job, its start included."""
    begun = time.perf_counter()
    command = [sys.executable, "-m", f"jobs.{stage}", "--run", str(file), "--store", str(folder / "store")]
    subprocess.run(command, cwd=ROOT, env=os.environ | {"BRICKS_COMMIT": "benchmark"}, check=True, capture_output=True)
    return time.perf_counter() - begun


def rates_of(store: Store, seconds: dict[str, float], num_frames: int) -> dict[str, dict[str, float]]:
    """What was done a second, in each stage's own units."""
    counts: dict[str, dict[str, int]] = {}
    num_clip_frames = num_clips = 0
    for stage in STAGES:
        pointer = read_pointer(store, "quickstart", stage)
        assert pointer is not None
        artifact = open_artifact(store, stage, pointer.digest)
        counts[stage] = artifact.manifest.counts
        if stage == "clip":
            for clip in artifact.rows("clips", Clip):
                num_clips += 1
                num_clip_frames += clip.num_frames
    done = {
        "ingest": {"frames": num_frames, "videos": counts["ingest"]["ok"]},
        "clip": {"frames": num_frames, "clips": num_clips},
        "score": {"frames": num_clip_frames, "clips": num_clips},
        "caption": {"captions": counts["caption"]["ok"]},
        "latents": {"frames": counts["latents"]["frames"]},
        "train": {"steps": counts["train"]["steps"], "samples": counts["train"]["samples"]},
        "evaluate": {"samples": counts["evaluate"]["samples"]},
    }
    return {
        stage: {"took_s": round(seconds[stage], 2)}
        | {f"{unit}_per_s": round(number / seconds[stage], 2) for unit, number in each.items()}
        for stage, each in done.items()
    }


if __name__ == "__main__":
    main()
