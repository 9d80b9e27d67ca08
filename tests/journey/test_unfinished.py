"""What can be done with a training that is stopped, killed or under way, through the real command line."""

from __future__ import annotations

import json
import re
import shutil
import signal
import time

import pytest
import yaml

from bricks_core.generate.outputs import settings_of
from bricks_core.storage.places import open_store
from bricks_core.storage.trainings import trainings_of
from tests.journey.tiny_run import Runner, artifacts

pytestmark = pytest.mark.slow

PROMPT = ("--prompt", "A red thing moves.", "--steps", "2")


@pytest.fixture(scope="module")
def user(finished, tmp_path_factory) -> Runner:
    """A user with the tiny run, who would train it for very long."""
    folder = tmp_path_factory.mktemp("unfinished") / "run"
    shutil.copytree(finished.folder, folder)
    document = yaml.safe_load((folder / "tiny.yaml").read_text(encoding="utf-8"))
    for name, steps in (("long.yaml", 4991), ("end.yaml", 21)):
        document["spec"]["train"]["phases"][1]["steps"] = steps
        (folder / name).write_text(yaml.safe_dump(document), encoding="utf-8")
    return Runner(folder, folder / "long.yaml")


def states(user: Runner) -> list[int]:
    store = open_store(str(user.folder / "bricks-store"))
    return list(next(trainings_of(store, "tiny")).records)


def until_there(user: Runner, step: int, process) -> None:
    """Wait until a state after so many steps or more is there."""
    while max(states(user)) < step:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def sampled(user: Runner, out: str) -> int:
    """Generate from it. -> the step that was taken"""
    generated = user.bricks("generate", "tiny", *PROMPT, "--out", f"{out}/films")
    settings = settings_of(user.folder / f"{out}/films/001-a-red-thing-moves.mp4")
    assert settings["training"] in generated.err
    assert settings["training"].endswith("of 4,995 steps are done")
    assert settings["model"]["weights"] == "ema"
    return settings["model"]["step"]


def reported(user: Runner) -> int:
    """Evaluate it. -> steps done as the page tells them"""
    so_far = user.bricks("run", "long.yaml", "--so-far")
    report = user.folder / so_far.out.rpartition("Report so far  ")[2].splitlines()[0]
    done = json.loads((report.parent / "report.json").read_text(encoding="utf-8"))["training"]["num_steps"]
    words = f"The training is not finished: {done:,} of 4,995 steps are done."
    assert words in report.read_text(encoding="utf-8")
    return done


def test_under_way_stopped_and_killed_it_is_used_and_nothing_of_it_is_disturbed(user, finished):
    process = user.start("jobs.bricks", "run", "long.yaml", "--until", "train")
    until_there(user, 12, process)
    step = sampled(user, "under-way")
    assert 12 <= step <= reported(user)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 143
    stopped = max(states(user))
    assert stopped == sampled(user, "stopped") == reported(user)
    assert "training    not finished: " in user.bricks("checkpoint", "show", "tiny").out
    exported = user.bricks("checkpoint", "export", "tiny", "--format", "open-sora-hub", "--out", "hub").out
    assert f"tiny, step {stopped}, EMA weights" in exported
    process = user.start("jobs.bricks", "run", "long.yaml", "--until", "train")
    until_there(user, stopped + 3, process)
    process.kill()
    process.communicate()
    killed = max(states(user))
    assert sampled(user, "killed") == killed
    assert f"{killed:,} of 4,995 steps are kept" in " ".join(user.bricks("status").out.split())
    # Nothing of the reports so far is what the run has: its artifacts are those of before.
    before = artifacts(finished.folder / "bricks-store")
    store = open_store(str(user.folder / "bricks-store"))
    points = json.loads(store.get(list(store.list("runs/tiny/points/"))[-1].key))["stages"]
    assert {f"{name}/{each['digest']}" for name, each in points.items()} == set(before)
    refused = user.bricks("generate", "tiny", *PROMPT, "--step", "5", code=64).err
    assert "it has 0, 3, 4, 6, 9, 12, " in refused
    assert refused.rstrip().endswith(f"{killed}.")
    # What was exported of it tells what it goes with: no flag is needed.
    provenance = json.loads((user.folder / "hub/provenance.json").read_text(encoding="utf-8"))
    user.bricks("generate", "hub", *PROMPT, "--frames", "4", "--size", "48x80", "--out", "again")
    settings = settings_of(user.folder / "again/001-a-red-thing-moves.mp4")
    assert settings["training"] == provenance["training"]
    assert settings["model"]["weights"] == "ema"


def test_the_finished_training_takes_the_samples_that_were_made_on_the_way(user):
    so_far = user.bricks("run", "end.yaml", "--so-far")
    assert "not finished: 24 of 25 steps are done" in so_far.out
    before = set((user.folder / "bricks-store/items/sample").rglob("*.json"))
    ended = user.bricks("run", "end.yaml")
    assert "Run tiny is done" in ended.out
    made = set((user.folder / "bricks-store/items/sample").rglob("*.json")) - before
    assert len(made) == 4  # two prompts, raw and EMA, after the last step: the base model's are found
    again = user.bricks("run", "end.yaml", "--so-far")
    assert "The training of run tiny is finished." in again.out


def test_a_follower_that_is_stopped_leaves_the_report_of_what_it_has_sampled(user):
    user.bricks("run", "long.yaml", "--until", "latents")  # the name means this one from here on
    every = ("--every", "0.1", "--set", "evaluate.num_checkpoints=5000")
    process = user.start("jobs.bricks", "evaluate", "tiny", "--follow", *every)
    said = ""
    # The newest first, and those of the base model are there: so these are the last.
    while not re.search(r"step 3: 2/2 samples.* step 3 raw\n", said):
        assert process.poll() is None, said
        said += process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate()
    assert process.returncode == 143, err
    # The run has begun two trainings by now, of which the other one is at its end.
    store = open_store(str(user.folder / "bricks-store"))
    newest = max(max(begun.records) for begun in trainings_of(store, "tiny"))
    assert f"Training tiny: {newest:,} of 4,995 steps are kept. Nobody is at it just now" in said
    assert f"The training of run tiny is not finished: {newest:,} of 4,995 steps are done." in " ".join(out.split())
    report = user.folder / out.rpartition("Report so far  ")[2].splitlines()[0]
    assert json.loads((report.parent / "report.json").read_text(encoding="utf-8"))["training"]["num_steps"] == newest
