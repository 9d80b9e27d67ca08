"""When the world fails under a stage: one sentence, the documented exit code, nothing lost, and it goes on."""

import os
import subprocess
import sys
import time

import pytest

from tests.journey.tiny_run import artifacts, differing, timeless


def one_sentence(ended, *words):
    """The last line on standard error is our sentence, and there is no trace."""
    assert "Traceback" not in ended.err
    sentence = ended.err.strip().splitlines()[-1]
    assert sentence.startswith("bricks: ")
    for word in words:
        assert word in sentence
    return sentence


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 1.5 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    options = "size=1500k,mode=777"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("a full disk needs the right to mount a small one (root)")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.slow
def test_a_full_disk_is_told_and_more_room_lets_the_run_go_on(finished, runner, small_disk):
    store = small_disk / "store"
    ended = runner.bricks("run", "tiny.yaml", "--store", str(store), code=75)
    one_sentence(ended, "full")
    subprocess.run(["mount", "-o", "remount,size=400m", small_disk], check=True)
    runner.bricks("run", "tiny.yaml", "--store", str(store))
    assert differing(store, finished.folder / "bricks-store") == []


def test_a_finished_run_is_done_in_a_store_that_cannot_be_written_and_work_there_is_refused(runner, small_disk):
    store = small_disk / "store"
    runner.bricks("run", "tiny.yaml", "--store", str(store), "--until", "ingest")
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    ended = runner.bricks("run", "tiny.yaml", "--store", str(store), "--until", "ingest")
    assert "Run tiny is done up to ingest" in ended.out
    ended = runner.bricks("run", "tiny.yaml", "--store", str(store), code=78)
    one_sentence(ended, "Run tiny is not done (clip: first time), and the store", str(store), "read-only")


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone can become somebody without permission")
def test_a_store_without_permission_is_told(runner, tmp_path):
    store = tmp_path / "store"
    store.mkdir(mode=0o555)
    for folder in (runner.folder, *tmp_path.parents):
        if folder.stat().st_uid == os.geteuid() and folder.name:
            folder.chmod(folder.stat().st_mode | 0o055)
    # Imported before the user changes: the new one may not be able to read where Python is installed.
    code = (
        "import os, sys, jobs.bricks\n"
        "from bricks_core.pipeline import local, notify, screen\n"
        "from bricks_core.storage import folder\n"
        "os.setgid(65534)\nos.setuid(65534)\n"
        f"sys.argv = ['bricks', 'run', {str(runner.run_file)!r}, '--store', {str(store)!r}]\n"
        "jobs.bricks.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, encoding="utf-8", cwd=runner.folder, check=False
    )
    assert done.returncode == 78, done.stderr
    assert "Traceback" not in done.stderr
    assert str(store) in done.stderr


@pytest.mark.slow
def test_s3_going_down_in_the_middle_of_a_stage_loses_nothing(finished, runner, s3_server):
    keys = s3_server.environment
    store = ["--store", "s3://bricks-test/down"]
    # Four tries of a minute each are patience that a test does not need.
    process = runner.start("jobs.bricks", "run", "tiny.yaml", *store, **keys, AWS_MAX_ATTEMPTS="1")
    while not any(key.endswith(".json") for key in s3_server.keys("down/items/clip/")):
        assert process.poll() is None
        time.sleep(0.05)
    s3_server.pause()
    _, err = process.communicate(timeout=300)
    assert process.returncode == 69, err
    assert "Traceback" not in err
    s3_server.resume()
    runner.bricks("run", "tiny.yaml", *store, **keys)
    manifests = (text for key, text in s3_server.objects("down/artifacts/").items() if key.endswith("/manifest.json"))
    assert timeless(manifests) == artifacts(finished.folder / "bricks-store")


def test_a_bucket_that_no_clip_fits_is_told_before_any_step(runner):
    changes = ["--set", "train.phases.1.buckets.1.num_frames=400"]
    ended = runner.bricks("run", "tiny.yaml", *changes, code=78)
    one_sentence(ended, "400", "48x80")
    plan = runner.bricks("plan", "tiny.yaml", *changes).out
    assert "400 frames, every 2 at 48x80" in plan
    # Once the run file is mended, everything before training is still there.
    assert runner.bricks("run", "tiny.yaml").err.count("found done") == 5


def test_a_bucket_of_a_resolution_that_is_not_encoded_is_told(runner):
    change = "train.phases.0.buckets.0.resolution=64x64"
    ended = runner.bricks("run", "tiny.yaml", "--set", change, code=78)
    one_sentence(ended, "64x64", "48x80")


def test_a_source_without_a_single_film_is_told(new_runner, tmp_path):
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "diary.mp4").write_text("no film", encoding="utf-8")
    ended = new_runner(sources=[str(folder)]).bricks("run", "tiny.yaml", code=65)
    one_sentence(ended)
