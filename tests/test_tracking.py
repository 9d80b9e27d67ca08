"""W&B gets a copy of the numbers, or it does not; the run goes on either way."""

import json
import logging
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bricks_core import tracking
from bricks_core.spec.run import BrickRun
from bricks_core.tracking import open_tracker, tracking_folder
from tests.wandb_server import WandbServer


@pytest.fixture(autouse=True)
def _no_account(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))


def a_run(wandb: str) -> BrickRun:
    return BrickRun.model_validate(
        {
            "apiVersion": "bricks.dev/v1alpha1",
            "kind": "BrickRun",
            "metadata": {"name": "walk"},
            "spec": {"ingest": {"sources": ["films"]}, "tracking": {"wandb": wandb, "wandb_project": "toys"}},
        }
    )


def numbers_of(rows: list[dict]) -> list[dict]:
    return [{key: value for key, value in row.items() if not key.startswith("_")} for row in rows]


def test_offline_the_numbers_in_the_file_are_the_numbers_that_were_logged_to_the_last_bit(tmp_path, wandb_history):
    logged = [(step, {"train/loss": math.pi / (step + 1), "train/learning_rate": 1e-7 * step}) for step in range(5)]
    tracker = open_tracker(a_run("offline"), "train", tmp_path)
    for step, numbers in logged:
        tracker.log(step, numbers)
    tracker.finish()
    assert numbers_of(wandb_history(tmp_path)) == [{"step": step, **numbers} for step, numbers in logged]


def test_after_a_resume_earlier_steps_are_logged_again_and_none_is_dropped(tmp_path, wandb_history):
    tracker = open_tracker(a_run("offline"), "train", tmp_path)
    for step in (0, 10, 20, 10, 20, 30):
        tracker.log(step, {"loss": float(step)})
    tracker.finish()
    assert [row["step"] for row in wandb_history(tmp_path)] == [0, 10, 20, 10, 20, 30]


KILLED = """
import os, sys, time
from pathlib import Path
from bricks_core.tracking import open_tracker
from tests.test_tracking import a_run
tracker = open_tracker(a_run("offline"), "train", Path(sys.argv[1]), digest="a" * 32)
for step in range(int(sys.argv[2])):
    tracker.log(step, {"loss": 1 / (step + 1)})
(file,) = Path(sys.argv[1]).glob("wandb/offline-run-*/*.wandb")
while step > 100 and file.stat().st_size <= 7:
    time.sleep(0.05)
os.kill(os.getpid(), 9)
"""


def test_offline_a_stage_that_was_killed_and_started_again_is_synced_as_one_run(tmp_path):
    place, root = tmp_path / "store", Path(__file__).parents[1]
    for num_steps in (3, 2000):  # of the first, nothing reaches the disk
        ended = subprocess.run([sys.executable, "-c", KILLED, str(place), str(num_steps)], cwd=root, check=False)
        assert ended.returncode == -9
    tracker = open_tracker(a_run("offline"), "train", place, digest="a" * 32)
    for step in (5000, 5001):
        tracker.log(step, {"loss": 0.5})
    tracker.finish()
    open_tracker(a_run("offline"), "evaluate", place, digest="b" * 32).finish()
    tracking._wandb().teardown()  # its own process writes the last block

    folders = sorted(map(str, place.glob("wandb/offline-run-*")))
    with WandbServer() as server:
        env = os.environ | {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "k" * 40, "WANDB_ERROR_REPORTING": "false"}
        command = [sys.executable, "-m", "wandb", "sync", *folders]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, encoding="utf-8", check=False)
    assert "ERROR" not in done.stderr, done.stderr
    assert set(server.histories) == {f"train-{'a' * 16}", f"evaluate-{'b' * 16}"}
    steps = [line["step"] for line in server.histories[f"train-{'a' * 16}"]]
    assert len(steps) > 100
    assert steps == [*range(len(steps) - 2), 5000, 5001]


def test_pictures_are_copied_so_that_theirs_may_go(tmp_path, wandb_history):
    picture = tmp_path / "panel.png"
    Image.fromarray(np.full((8, 8, 3), 200, np.uint8)).save(picture)
    tracker = open_tracker(a_run("offline"), "evaluate", tmp_path)
    tracker.image(250, "panels/0", picture, "a red car")
    picture.unlink()
    tracker.finish()
    (row,) = wandb_history(tmp_path)
    assert row["step"] == 250
    (copy,) = tmp_path.glob("wandb/offline-run-*/files/media/images/**/*.png")
    with Image.open(copy) as image:
        assert np.array(image).mean() == 200


def test_the_file_says_which_run_and_stage_it_is_of(tmp_path, wandb_records):
    open_tracker(a_run("offline"), "train", tmp_path).finish()
    (run,) = [record.run for record in wandb_records(tmp_path) if record.WhichOneof("record_type") == "run"]
    assert (run.project, run.display_name, run.run_group, run.job_type) == ("toys", "walk-train", "walk", "train")
    assert {each.key: json.loads(each.value_json) for each in run.config.update}["metadata"]["name"] == "walk"


def test_off_leaves_nothing(tmp_path):
    tracker = open_tracker(a_run("off"), "train", tmp_path)
    tracker.log(0, {"loss": 1.0})
    tracker.finish()
    assert not tracker.active
    assert not (tmp_path / "wandb").exists()


def test_auto_without_a_key_writes_files(tmp_path, wandb_history):
    tracker = open_tracker(a_run("auto"), "train", tmp_path)
    tracker.log(0, {"loss": 1.0})
    tracker.finish()
    assert numbers_of(wandb_history(tmp_path)) == [{"step": 0, "loss": 1.0}]


def test_auto_obeys_wandbs_own_switch(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert not open_tracker(a_run("auto"), "train", tmp_path).active


@pytest.mark.parametrize(("host", "found"), [("api.wandb.ai", True), ("wandb.example.org", False)])
def test_a_key_in_netrc_counts_for_its_own_server_only(tmp_path, host, found):
    (tmp_path / "netrc").write_text(f"machine {host}\n  login user\n  password {'k' * 40}\n", encoding="utf-8")
    (tmp_path / "netrc").chmod(0o600)
    assert tracking.logged_in() is found


def test_a_key_in_the_environment_counts(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    assert tracking.logged_in()


def test_a_server_that_is_away_makes_it_offline_and_is_told_once(tmp_path, monkeypatch, caplog, wandb_history):
    # A key, and a port that nobody listens on.
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(tracking, "INIT_TIMEOUT_S", 1.0)
    with caplog.at_level(logging.WARNING, "bricks"):
        tracker = open_tracker(a_run("auto"), "train", tmp_path)
        tracker.log(1, {"loss": 0.5})
        tracker.finish()
    assert numbers_of(wandb_history(tmp_path)) == [{"step": 1, "loss": 0.5}]
    assert len([record for record in caplog.records if record.name == "bricks"]) == 1
    assert "k" * 40 not in caplog.text


def test_a_failure_in_the_middle_is_told_once_and_ends_nothing(tmp_path, caplog):
    tracker = open_tracker(a_run("offline"), "train", tmp_path)
    with caplog.at_level(logging.WARNING, "bricks"):
        tracker.image(0, "panels/0", tmp_path / "not there.png")
        tracker.log(1, {"loss": 0.5})
        tracker.finish()
    assert not tracker.active
    assert len([record for record in caplog.records if record.name == "bricks"]) == 1


def test_a_folder_that_cannot_be_made_is_told_and_ends_nothing(tmp_path, caplog):
    (tmp_path / "file").write_text("", encoding="utf-8")
    tracker = open_tracker(a_run("offline"), "train", tmp_path / "file" / "below")
    tracker.log(0, {"loss": 1.0})
    assert not tracker.active
    assert "goes on without it" in caplog.text


def test_files_lie_in_the_stores_folder_or_in_the_working_directory_for_a_bucket(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert tracking_folder("some/store") == Path("some/store")
    assert tracking_folder("file:///some/store") == Path("/some/store")
    assert tracking_folder("s3://bucket/prefix") == tmp_path
