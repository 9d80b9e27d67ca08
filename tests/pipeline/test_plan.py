"""What is finished and what an address is, as somebody sees it who has the store and not the sources."""

import json
from datetime import UTC, datetime

import pytest

from bricks_core.errors import DataError
from bricks_core.pipeline.plan import Pointer, addresses, finished, pointer_key
from bricks_core.spec.manifest import Manifest, artifact_digest
from bricks_core.spec.run import BrickRun
from bricks_core.spec.stages import STAGES
from bricks_core.storage.artifacts import MANIFEST, artifact_prefix
from bricks_core.storage.places import open_store


def run_named(name="far", **sections):
    spec = {"ingest": {"sources": [{"path": "s3://somebody/else"}]}} | sections
    return BrickRun.model_validate(
        {"apiVersion": "bricks.dev/v1alpha1", "kind": "BrickRun", "metadata": {"name": name}, "spec": spec}
    )


def finish(store, run, stage, inputs):
    """Leave what a finished stage leaves, as far as planning looks: its manifest, and the run's pointer."""
    spec = run.stage_spec(stage)
    digest = artifact_digest(STAGES[stage], spec, inputs)
    facts = {"spec": spec.model_dump(mode="json"), "inputs": inputs}
    now = datetime.now(UTC)
    manifest = Manifest(
        stage=stage,
        stage_version=STAGES[stage].version,
        digest=digest,
        code_version="0",
        tables={},
        started_at=now,
        finished_at=now,
        **facts,
    )
    store.put(artifact_prefix(stage, digest) + MANIFEST, manifest.model_dump_json().encode())
    pointer = Pointer(stage=stage, digest=digest, **facts)
    store.put(pointer_key(run.name, stage), pointer.model_dump_json().encode())
    return digest


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path / "store"))


def test_a_run_that_nobody_ingested_has_nothing_finished(store):
    assert finished(run_named(), store) == {}


def test_stages_are_finished_up_to_the_first_whose_manifest_is_not_there(store):
    run = run_named()
    ingest = finish(store, run, "ingest", {"sources": "as they were"})
    clip = finish(store, run, "clip", {"ingest": ingest})
    assert {name: address.digest for name, (address, _) in finished(run, store).items()} == {
        "ingest": ingest,
        "clip": clip,
    }


def test_a_changed_setting_leaves_finished_what_comes_before_it(store):
    run = run_named()
    ingest = finish(store, run, "ingest", {"sources": "as they were"})
    finish(store, run, "clip", {"ingest": ingest})
    assert list(finished(run_named(clip={"min_frames": 31}), store)) == ["ingest"]
    assert list(finished(run_named(ingest={"sources": [{"path": "s3://others"}]}), store)) == []


def test_a_run_goes_on_from_the_answers_of_the_run_that_it_names(store):
    run = run_named()
    ingest = finish(store, run, "ingest", {"sources": "as they were"})
    clip = finish(store, run, "clip", {"ingest": ingest})
    heir = run_named("heir", inputs_of="far", clip={"min_frames": 31})
    assert list(finished(run_named("heir"), store)) == []
    assert list(finished(heir, store)) == ["ingest"]
    assert addresses(heir, store, "clip", frozen=True)[0].digest == ingest
    assert list(finished(run_named("heir", inputs_of="far"), store)) == ["ingest", "clip"]
    finish(store, heir, "ingest", {"sources": "another time"})
    assert addresses(heir, store, "clip", frozen=True)[0].digest not in {ingest, clip}, "its own answer comes first"


def test_what_another_run_made_is_found_by_the_same_question(store):
    run, other = run_named(), run_named("other")
    sources = {"sources": "as they were"}
    ingest = finish(store, run, "ingest", sources)
    finish(store, run, "clip", {"ingest": ingest})
    finish(store, other, "ingest", sources)
    assert list(finished(other, store)) == ["ingest", "clip"]


def test_a_pointer_without_its_manifest_is_not_finished(store):
    run = run_named()
    digest = finish(store, run, "ingest", {"sources": "as they were"})
    store.delete([artifact_prefix("ingest", digest) + MANIFEST])
    assert finished(run, store) == {}


def test_a_later_stage_needs_no_look_at_weights_that_an_earlier_one_read(store, tmp_path):
    weights = tmp_path / "vae"
    weights.mkdir()
    (weights / "config.json").write_text(json.dumps({"a": 1}))
    run = run_named(latents={"codec": {"kind": "sd-vae", "model": str(weights)}}, train=TRAIN)
    ingest = finish(store, run, "ingest", {"sources": "as they were"})
    clip = finish(store, run, "clip", {"ingest": ingest})
    score = finish(store, run, "score", {"ingest": ingest, "clip": clip})
    caption = finish(store, run, "caption", {"ingest": ingest, "clip": clip, "score": score})
    there = addresses(run, store, "latents", frozen=True)[-1]
    assert "codec.model" in there.inputs
    finish(store, run, "latents", {"clip": clip, "score": score, "caption": caption} | there.inputs)
    (weights / "config.json").unlink()
    weights.rmdir()
    for address in (addresses(run, store, "train", frozen=True)[4], finished(run, store)["latents"][0]):
        assert address.digest == there.digest


def test_a_later_stage_of_a_run_that_was_never_ingested_is_refused(store):
    with pytest.raises(DataError, match="has not ingested"):
        addresses(run_named(), store, "clip", frozen=True)


TRAIN = {
    "phases": [
        {
            "name": "one",
            "steps": 1,
            "buckets": [{"num_frames": 1, "resolution": "360p", "batch_size": 1}],
            "schedule": {"kind": "constant", "lr": 1e-5},
        }
    ]
}
