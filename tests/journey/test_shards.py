"""Stages alone, in shards, over S3: the same artifacts as one process leaves in a folder."""

import os
import subprocess
import sys

import pytest

from bricks_core.pipeline.plan import differences
from tests.journey.tiny_run import ROOT, STAGES, artifacts, timeless


def manifests(server, prefix):
    objects = server.objects(f"{prefix}/artifacts/")
    return timeless(content for key, content in objects.items() if key.endswith("/manifest.json"))


@pytest.mark.slow
def test_shards_over_s3_leave_what_one_process_leaves_in_a_folder(finished, runner, s3_server):
    keys = s3_server.environment
    store = ["--run", "tiny.yaml", "--store", "s3://bricks-test/shards"]
    for stage in STAGES:
        if stage == "train":
            runner(f"jobs.{stage}", *store, **keys)
            continue
        first, last = (
            runner(f"jobs.{stage}", *store, "--shard", shard, "--num-shards", "2", **keys) for shard in ("1", "0")
        )
        # The first one commits where nothing is left to the other: three films may all fall to one shard.
        assert first.out or "left to other shards" in first.err
        assert last.out.startswith(f"artifacts/{stage}/")
    assert list(differences(manifests(s3_server, "shards"), artifacts(finished.folder / "bricks-store"))) == []


def test_a_shard_that_comes_after_the_end_finds_it_done(runner):
    runner("jobs.ingest", "--run", "tiny.yaml")
    again = runner("jobs.ingest", "--run", "tiny.yaml", "--num-shards", "2", JOB_COMPLETION_INDEX="1")
    assert again.out.startswith("artifacts/ingest/")
    assert runner("jobs.ingest", "--run", "tiny.yaml", "--commit").out == again.out


def test_a_stage_alone_keeps_to_the_processes_it_may_have(runner):
    ended = runner("jobs.ingest", "--run", "tiny.yaml", code=64, BRICKS_MAX_PROCESSES="many")
    assert "BRICKS_MAX_PROCESSES" in ended.err
    code = "import jobs.entry_point as d; d._bound_processes(); print(*d.resource.getrlimit(d.resource.RLIMIT_NPROC))"
    environment = os.environ | {"BRICKS_MAX_PROCESSES": "4096"}
    bounded = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, encoding="utf-8"
    )
    assert bounded.stdout.split() == ["4096", "4096"]


def test_a_commit_before_all_shards_are_done_says_what_is_missing_and_exits_75(runner):
    runner("jobs.ingest", "--run", "tiny.yaml")
    runner("jobs.clip", "--run", "tiny.yaml", "--shard", "0", "--num-shards", "1000")
    ended = runner("jobs.clip", "--run", "tiny.yaml", "--commit", code=75)
    assert "are not done yet" in ended.err


def test_a_stage_whose_input_is_not_there_says_so_and_exits_65(runner):
    ended = runner("jobs.score", "--run", "tiny.yaml", code=65)
    assert "ingest" in ended.err


@pytest.mark.parametrize(
    "arguments", [["--shard", "2", "--num-shards", "2"], ["--num-shards", "0"], ["--shard", "-1"], []]
)
def test_wrong_flags_exit_64(runner, arguments):
    file = [] if not arguments else ["--run", "tiny.yaml"]
    assert runner("jobs.clip", *file, *arguments, code=64).err.startswith("clip: ")
