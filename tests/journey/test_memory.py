"""Memory of a stage does not grow with the number of videos."""

import resource
import shutil
import subprocess
import sys

import pytest

STAGES = ["ingest", "clip", "score", "caption", "latents"]

# The child's own peak, in bytes, after its stages; its children's decoders are counted apart.
PROGRAM = """
import resource, sys
from pathlib import Path
from bricks_core.pipeline.local import run_path
from bricks_core.spec.run import load_run
from bricks_core.storage.places import open_store
stages = sys.argv[2:]
for stage in stages:
    run_path(load_run(Path(sys.argv[1])), open_store("bricks-store"), stage)
    own, children = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(stage, own, children)
"""


def peaks_kb(runner):
    command = [sys.executable, "-c", PROGRAM, "tiny.yaml", *STAGES]
    done = subprocess.run(command, cwd=runner.folder, capture_output=True, encoding="utf-8", check=True)
    return {stage: (int(own), int(children)) for stage, own, children in map(str.split, done.stdout.splitlines())}


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(resource, "RUSAGE_CHILDREN"), reason="needs getrusage")
def test_the_peak_with_sixteen_videos_is_that_with_four(new_runner, films, tmp_path):
    peaks = []
    for num_videos in (4, 16):
        folder = tmp_path / str(num_videos)
        folder.mkdir()
        for number in range(num_videos):
            shutil.copy(films / f"film_0{number % 3}.mp4", folder / f"{number}.mp4")
            # Other bytes, same film: a copy would be the same video.
            with (folder / f"{number}.mp4").open("ab") as file:
                file.write(b"\0\0\0\x0cfree" + number.to_bytes(4, "big"))
        peaks.append(peaks_kb(new_runner(sources=[str(folder)])))
    few, many = peaks
    grown_kb = {stage: [b - a for a, b in zip(few[stage], many[stage], strict=True)] for stage in STAGES}
    assert all(max(grown) < 24 * 1024 for grown in grown_kb.values()), grown_kb
