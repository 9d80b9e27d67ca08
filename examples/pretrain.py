"""Make examples/world again from nothing: films, autoencoder, captions, network. An evening on two cores.

    python examples/pretrain.py WORK_FOLDER [--films 96] [--autoencoder-steps 8700] [--set KEY=VALUE ...]

Everything but the autoencoder (autoencoder.py) is a `bricks run`, of the run files in examples/world:

    films/         the plain world (make_films.py --look plain), and brick-films/, which the autoencoder alone sees
    vae/           the autoencoder
    table.csv      the clips with captions: as measured, and for half of them the sentence that their film was made from
    bricks-store/  the run `world`, whose network is examples/world's
    base/          vae/ and transformer/ in float16, to be put into examples/world

--set changes a setting of the run `world`, as `bricks run --set` does.

Stopped at any moment, the same command goes on.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RUNS = HERE / "world"
SEED, BRICK_SEED = 100, 200
TABLE = "table.csv"


def call(*command: str | Path, cwd: Path) -> None:
    """Run a program; when it fails, so does this one, with its exit code."""
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=os.environ)
    if done.returncode:
        raise SystemExit(done.returncode)


def bricks(*arguments: str | Path, cwd: Path) -> None:
    call(Path(sys.executable).with_name("bricks"), *arguments, cwd=cwd)


def films(work: Path, num_films: int) -> None:
    shape = ("--scenes", "16", "--height", "120", "--photos", "20", "26")
    plain = ("--look", "plain", "--films", str(num_films), "--seed", str(SEED))
    call(sys.executable, HERE / "make_films.py", "films", *plain, *shape, cwd=work)
    bricks_too = ("--films", str(max(1, num_films // 2)), "--seed", str(BRICK_SEED), "--height", "120")
    call(sys.executable, HERE / "make_films.py", "brick-films", *bricks_too, cwd=work)


def autoencoder(work: Path, num_steps: int) -> None:
    if not (work / "vae" / "config.json").exists():
        places = ("films", "brick-films")
        call(sys.executable, HERE / "autoencoder.py", "vae", *places, "--steps", str(num_steps), cwd=work)


def table(work: Path) -> None:
    """Clips with captions: of every second clip the sentence of its scene, of all others what was measured."""
    bricks("run", RUNS / "captions.yaml", "--until", "caption", cwd=work)
    bricks("dataset", "export", "world-captions", "--format", "open-sora", "--out", "clips", cwd=work)
    with (work / "clips" / "meta.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    scenes: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        row["file"] = f"clips/{row['file']}"
        is_clip, chosen = int(row["num_frames"]) > 1, int(row["id"], 16) % 2 == 0
        if is_clip and chosen:
            name = row["video_name"]
            if name not in scenes:
                truth = (work / "films" / name).with_suffix(".json").read_text(encoding="utf-8")
                scenes[name] = json.loads(truth)["scenes"]
            middle = (int(row["first_frame"]) + int(row["end_frame"])) // 2
            row["text"] = next(each["description"] for each in scenes[name] if each["start"] <= middle < each["end"])
            row["caption_by"] = "truth"
    aside = work / f".{TABLE}.part"
    with aside.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    aside.replace(work / TABLE)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Make the base model of examples/world again.")
    parser.add_argument("work", type=Path, help="folder for all that is made on the way; some 3 GB")
    parser.add_argument("--films", type=int, default=96)
    parser.add_argument("--autoencoder-steps", type=int, default=8700)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the run")
    given = parser.parse_args(argv)
    work: Path = given.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    films(work, given.films)
    autoencoder(work, given.autoencoder_steps)
    table(work)
    changes = [part for each in given.set for part in ("--set", each)]
    bricks("run", RUNS / "world.yaml", "--until", "train", *changes, cwd=work)
    layout = ("--format", "diffusers", "--dtype", "float16", "--vae", "vae")
    bricks("checkpoint", "export", "world", *layout, "--out", "base", "--force", cwd=work)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
