"""kill -9 at random moments: the artifacts are the same as of an undisturbed run."""

import os
import random
import shutil
import signal
import time

import pytest

from tests.journey.tiny_run import KINDS, STAGES, differing

NUM_KILLS = 20


@pytest.mark.slow
def test_killed_twenty_times_at_random_moments_the_artifacts_are_those_of_an_undisturbed_run(finished, runner):
    """Each try goes on where the last was killed. What time a kill comes at is drawn anew in every run of the test, and
    printed; nothing here depends on it, but a failure can be looked into.
    """
    seed = random.SystemRandom().randrange(1 << 30)
    print(f"kills drawn from seed {seed}")
    dice = random.Random(seed)
    store = runner.folder / "bricks-store"
    num_kills = 0
    while num_kills < NUM_KILLS:
        process = runner.start("jobs.bricks", "run", "tiny.yaml")
        time.sleep(dice.uniform(0.3, 6))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            num_kills += 1
        else:
            process.communicate()
            assert process.returncode == 0
            # It got through between two kills: take a stage's artifact away, and all that its tables are made from.
            stage = dice.choice(STAGES)
            for place in (store / "artifacts" / stage, *(store / "items" / kind for kind in KINDS[stage])):
                shutil.rmtree(place, ignore_errors=True)
    runner.bricks("run", "tiny.yaml")
    assert differing(store, finished.folder / "bricks-store") == []


def test_sigterm_ends_with_143_and_the_next_run_goes_on(finished, runner):
    process = runner.start("jobs.bricks", "run", "tiny.yaml")
    while not list((runner.folder / "bricks-store").glob("items/clip/*/*.json")):
        assert process.poll() is None
        time.sleep(0.02)
    process.terminate()
    _, err = process.communicate()
    assert process.returncode == 143
    assert "the same command continues" in err
    assert "Traceback" not in err
    runner.bricks("run", "tiny.yaml")
    assert differing(runner.folder / "bricks-store", finished.folder / "bricks-store") == []
