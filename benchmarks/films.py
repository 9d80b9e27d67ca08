"""How fast films are probed, searched for shots and cut, and how many labelled cuts are found.

    python -m benchmarks.films [--save] [--truth truth.json] [FILM ...]

Without films, three are drawn by examples/make_films.py. Labels come from --truth (one JSON: file name -> cuts,
gradual) or, film by film, from a JSON of the same name beside it. One process, one thread: CPU time per source frame.

A cut counts as found within two frames, one detection per cut; detections inside a labelled fade or dissolve (two
frames more on either side) are not counted against us. A clip is dirty with a labelled cut in it, or more than a frame
of a labelled transition.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import cv2

from benchmarks.record import flags, keep
from bricks_core.spec.clip import ClipSpec
from bricks_core.stages.clip.cut import cut
from bricks_core.stages.clip.scenes import Shot, find_cuts, find_shots, measure, split_shots
from bricks_core.video.probe import probe
from bricks_core.video.read import frames

ROOT = Path(__file__).parents[1]
WITHIN = 2


def main() -> None:
    """Measure, print the JSON, and with --save keep it under benchmarks/results."""
    parser = flags(__doc__)
    parser.add_argument("films", nargs="*", type=Path, metavar="FILM")
    parser.add_argument("--truth", type=Path, help="labels of all films in one file")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory(prefix="bricks-") as folder:
        films = arguments.films or drawn(Path(folder) / "films")
        labels = json.loads(arguments.truth.read_text(encoding="utf-8")) if arguments.truth else {}
        results = measured(films, labels, Path(folder))
    described = "drawn by examples/make_films.py" if not arguments.films else [film.name for film in films]
    keep("films", {"films": described, "results": results}, save=arguments.save)


def drawn(folder: Path) -> list[Path]:
    """Three generated films, with their labels."""
    command = [sys.executable, str(ROOT / "examples" / "make_films.py"), str(folder), "--films", "3"]
    subprocess.run(command, check=True, capture_output=True)
    return sorted(folder.glob("*.mp4"))


def measured(films: list[Path], labels: dict[str, Any], scratch: Path) -> dict[str, float | int]:
    """CPU milliseconds per frame of each step, and the counts of what was found."""
    spec = ClipSpec()
    cpu_s = {"probe": 0.0, "find_shots": 0.0, "cut": 0.0}
    counts: Counter[str] = Counter()
    for film in films:
        start = time.process_time()
        facts = probe(film)
        cpu_s["probe"] += time.process_time() - start
        if facts.state != "ok":
            counts["films_left_out"] += 1
            continue
        start = time.process_time()
        with closing(frames(film)) as source:
            seen = measure(source, adaptive_threshold=spec.adaptive_threshold)
        shots = list(split_shots(find_shots(seen), min_frames=spec.min_frames, max_frames=spec.max_frames))
        cpu_s["find_shots"] += time.process_time() - start
        clips = [shot for shot in shots if not shot.reason]
        start = time.process_time()
        for clip in cut(film, clips, scratch, crf=spec.crf, preset=spec.preset):
            clip.file.unlink()
        cpu_s["cut"] += time.process_time() - start
        counts["films"] += 1
        counts["frames"] += facts.num_frames
        counts["frames_in_clips"] += sum(clip.num_frames for clip in clips)
        counts["clips"] += len(clips)
        truth = _truth(film, labels)
        if truth is not None:
            counts.update(compared(find_cuts(seen), clips, truth))
    num_frames = max(1, counts["frames"])
    speed = {f"{step}_cpu_ms_per_frame": round(1000 * seconds / num_frames, 2) for step, seconds in cpu_s.items()}
    return speed | dict(counts) | _rates(counts)


def compared(found: list[int], clips: list[Shot], truth: dict[str, Any]) -> dict[str, int]:
    """Counts of cuts and clips against the labels of one film."""
    transitions = [(each["start"], each["end"]) for each in truth.get("gradual", [])]
    rest = list(found)
    num_found = 0
    for label in truth["cuts"]:
        near = [each for each in rest if abs(each - label) <= WITHIN]
        if near:
            rest.remove(min(near, key=lambda each: abs(each - label)))
            num_found += 1
    false = [each for each in rest if not any(a - WITHIN <= each < b + WITHIN for a, b in transitions)]

    def is_dirty(clip: Shot) -> bool:
        first, end = clip.first_frame, clip.end_frame
        return any(first < label < end for label in truth["cuts"]) or any(
            first < b - 1 and end > a + 1 for a, b in transitions
        )

    return {
        "cuts_labelled": len(truth["cuts"]),
        "cuts_found": num_found,
        "cuts_false": len(false),
        "clips_labelled": len(clips),
        "clips_dirty": sum(map(is_dirty, clips)),
    }


def _truth(film: Path, labels: dict[str, Any]) -> dict[str, Any] | None:
    beside = film.with_suffix(".json")
    found = labels.get(film.name) or (json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else None)
    return found if found and "cuts" in found else None


def _rates(counts: Counter[str]) -> dict[str, float]:
    if not counts["cuts_labelled"]:
        return {}
    recall = counts["cuts_found"] / counts["cuts_labelled"]
    precision = counts["cuts_found"] / max(1, counts["cuts_found"] + counts["cuts_false"])
    values = {
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / max(1e-9, precision + recall),
        "dirty_share": counts["clips_dirty"] / max(1, counts["clips_labelled"]),
        "kept_share": counts["frames_in_clips"] / max(1, counts["frames"]),
    }
    return {name: round(value, 4) for name, value in values.items()}


if __name__ == "__main__":
    main()
