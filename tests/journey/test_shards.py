"""Stages alone, in shards, over S3: the same artifacts as one process leaves in a folder."""

import json

import boto3
import pytest

from tests.journey.tiny_run import STAGES, artifacts

SHARDED = STAGES[:5]


@pytest.fixture
def keys(s3):
    return {
        "AWS_ENDPOINT_URL": s3,
        "AWS_ACCESS_KEY_ID": "bricks",
        "AWS_SECRET_ACCESS_KEY": "bricks-on-loopback",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def artifacts_in_bucket(endpoint, prefix):
    client = boto3.client("s3", endpoint_url=endpoint)
    found = {}
    for page in client.get_paginator("list_objects_v2").paginate(Bucket="bricks-test", Prefix=f"{prefix}/artifacts/"):
        for entry in page.get("Contents", []):
            if entry["Key"].endswith("/manifest.json"):
                manifest = json.loads(client.get_object(Bucket="bricks-test", Key=entry["Key"])["Body"].read())
                for fact in ("started_at", "finished_at", "host"):
                    del manifest[fact]
                found[f"{manifest['stage']}/{manifest['digest']}"] = manifest
    return found


def test_shards_over_s3_leave_what_one_process_leaves_in_a_folder(finished, runner, s3, keys):
    store = ["--run", "tiny.yaml", "--store", "s3://bricks-test/shards"]
    for stage in SHARDED:
        for shard in ("1", "0"):
            runner(f"jobs.{stage}", *store, "--shard", shard, "--num-shards", "2", **keys)
        early = runner(f"jobs.{stage}", *store, "--commit", **keys)
        assert early.out.startswith(f"artifacts/{stage}/")
    for stage in STAGES[5:]:
        runner(f"jobs.{stage}", *store, **keys)
    assert artifacts_in_bucket(s3, "shards") == artifacts(finished.folder / "bricks-store")


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
