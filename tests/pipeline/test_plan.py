"""What is finished, where it lies, and what is to be done: for whoever has the store, and not always the sources."""

import json
from datetime import UTC, datetime

import pytest

from bricks_core.errors import DataError
from bricks_core.pipeline.plan import make_plan
from bricks_core.pipeline.points import Pointer, point, points_place, read_pointer, read_points
from bricks_core.pipeline.resolve import Resolver, address_alone, finished, outside_inputs, pending_again
from bricks_core.spec.manifest import Manifest, Try, artifact_digest, cache_key
from bricks_core.spec.run import BrickRun
from bricks_core.spec.stages import STAGES
from bricks_core.spec.strict import what_of
from bricks_core.storage.artifacts import MANIFEST, artifact_prefix
from bricks_core.storage.places import open_store

SOURCES = {"sources": "as they were"}


def run_named(name="far", **sections):
    spec = {"ingest": {"sources": [{"path": "s3://somebody/else"}]}} | sections
    return BrickRun.model_validate(
        {"apiVersion": "bricks.dev/v1alpha1", "kind": "BrickRun", "metadata": {"name": name}, "spec": spec}
    )


def finish(store, run, stage, inputs, *, keyed=None, depends_on=None, **facts):
    """Leave what a finished stage leaves, as far as resolving looks: its manifest, and the run's pointer.

    `keyed`: the inputs as they are in the key, where that is another thing than their digests.
    """
    spec = run.stage_spec(stage)
    key = cache_key(STAGES[stage], what_of(spec), inputs if keyed is None else keyed)
    digest = artifact_digest(key, depends_on or {})
    told = spec.model_dump(mode="json")
    now = datetime.now(UTC)
    manifest = Manifest(
        stage=stage,
        stage_version=STAGES[stage].version,
        digest=digest,
        cache_key=key,
        spec=told,
        inputs=inputs,
        code_version="0",
        tables={},
        started_at=now,
        finished_at=now,
        **facts,
    )
    store.put(artifact_prefix(stage, digest) + MANIFEST, manifest.model_dump_json().encode())
    point(run.name, store, Pointer(stage=stage, digest=digest, cache_key=key, spec=told, inputs=inputs))
    return digest


def finish_data_stages(store, run, **latents):
    """All up to the latents; returns their digests."""
    done = {"ingest": finish(store, run, "ingest", SOURCES)}
    for stage in ("clip", "score", "caption", "latents"):
        inputs = {need: done[need] for need in STAGES[stage].needs} | outside_inputs(run.stage_spec(stage))
        done[stage] = finish(store, run, stage, inputs, **(latents if stage == "latents" else {}))
    return done


def digests(found):
    return {name: address.digest for name, (address, _) in found.items()}


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path / "store"))


def test_a_run_that_nobody_ingested_has_nothing_finished(store):
    assert finished(run_named(), store) == {}


def test_stages_are_finished_up_to_the_first_whose_manifest_is_not_there(store):
    run = run_named()
    ingest = finish(store, run, "ingest", SOURCES)
    clip = finish(store, run, "clip", {"ingest": ingest})
    assert digests(finished(run, store)) == {"ingest": ingest, "clip": clip}


def test_a_changed_setting_leaves_finished_what_comes_before_it(store):
    run = run_named()
    ingest = finish(store, run, "ingest", SOURCES)
    finish(store, run, "clip", {"ingest": ingest})
    assert list(finished(run_named(clip={"min_frames": 31}), store)) == ["ingest"]
    assert list(finished(run_named(ingest={"sources": [{"path": "s3://others"}]}), store)) == []


def test_a_setting_that_only_says_how_leaves_all_finished(store):
    done = finish_data_stages(store, run_named())
    source = {"sources": [{"path": "s3://somebody/else"}]}
    how = {
        "ingest": source | {"decode_timeout_s": 7},
        "caption": {"concurrency": 3},
        "latents": {"pack_bytes": 1 << 20},
    }
    assert digests(finished(run_named(**how), store)) == done


def test_a_run_goes_on_from_the_artifacts_of_the_run_that_it_names(store):
    run = run_named()
    ingest = finish(store, run, "ingest", SOURCES)
    clip = finish(store, run, "clip", {"ingest": ingest})
    heir = run_named("heir", inputs_of="far", clip={"min_frames": 31})
    assert list(finished(run_named("heir"), store)) == []
    assert list(finished(heir, store)) == ["ingest"]
    assert address_alone(heir, store, "clip").inputs == {"ingest": ingest}
    assert digests(finished(run_named("heir", inputs_of="far"), store)) == {"ingest": ingest, "clip": clip}
    own = finish(store, heir, "ingest", {"sources": "another time"})
    assert address_alone(heir, store, "clip").inputs == {"ingest": own}, "its own comes first"


def test_what_another_run_made_is_found_by_the_same_key(store):
    run, other = run_named(), run_named("other")
    ingest = finish(store, run, "ingest", SOURCES)
    finish(store, run, "clip", {"ingest": ingest})
    finish(store, other, "ingest", SOURCES)
    assert list(finished(other, store)) == ["ingest", "clip"]


def test_what_was_made_of_more_than_its_key_tells_is_found_by_the_run_that_points_to_it_alone(store):
    run, other = run_named(), run_named("other")
    ingest = finish(store, run, "ingest", SOURCES)
    clip = finish(store, run, "clip", {"ingest": ingest})
    score = finish(store, run, "score", {"ingest": ingest, "clip": clip}, depends_on={"sides": "drawn before"})
    finish(store, other, "ingest", SOURCES)
    assert digests(finished(run, store))["score"] == score
    assert list(finished(other, store)) == ["ingest", "clip"]


def test_a_pointer_without_its_manifest_is_not_finished(store):
    run = run_named()
    digest = finish(store, run, "ingest", SOURCES)
    store.delete([artifact_prefix("ingest", digest) + MANIFEST])
    assert finished(run, store) == {}


@pytest.mark.parametrize("text", [b"", b"{}", b"no JSON"])
def test_what_is_no_manifest_is_not_finished_for_whoever_watches(store, text):
    run = run_named()
    digest = finish(store, run, "ingest", SOURCES)
    store.put(artifact_prefix("ingest", digest) + MANIFEST, text)
    assert finished(run, store) == {}


def stopped(**limits):
    return Try(kind="film", key="0" * 32, reason="It took too long.", limits=limits)


def test_what_a_limit_stopped_is_finished_until_that_limit_is_another(store):
    source = {"sources": [{"path": "s3://somebody/else"}], "decode_timeout_s": 5}
    run = run_named(ingest=source)
    tries = [stopped(**{"ingest.decode_timeout_s": 5.0})]
    finish(store, run, "ingest", SOURCES, depends_on={"pending": "that film"}, pending=tries)
    assert list(finished(run, store)) == ["ingest"]
    other_how = run_named(ingest=source | {"decode_memory_bytes": 1 << 30})
    assert list(finished(other_how, store)) == ["ingest"]
    raised = run_named(ingest=source | {"decode_timeout_s": 9})
    assert list(finished(raised, store)) == []


def test_only_what_a_changed_limit_stopped_is_tried_again(store):
    run = run_named(ingest={"sources": [{"path": "s3://somebody/else"}], "decode_timeout_s": 9})
    short, low = stopped(**{"ingest.decode_timeout_s": 5.0}), stopped(**{"ingest.decode_timeout_s": 9.0})
    digest = finish(store, run, "ingest", SOURCES, pending=[short, low])
    manifest = Manifest.model_validate_json(store.get(artifact_prefix("ingest", digest) + MANIFEST))
    assert pending_again(run, manifest) == [short]


def test_a_training_is_found_by_what_it_reads_of_the_latents_and_not_by_their_artifact(store):
    run = run_named(train=TRAIN)
    done = finish_data_stages(store, run, read_as={"train": "these latents"})
    train = finish(store, run, "train", {"latents": done["latents"]}, keyed={"latents": "these latents"})
    # Another artifact of the same latents: licences and names are joined on when tables are made.
    other = run_named("other", train=TRAIN)
    finish(store, other, "ingest", {"sources": "renamed"})
    ingest = read_pointer(store, "other", "ingest").digest
    clip = finish(store, other, "clip", {"ingest": ingest})
    score = finish(store, other, "score", {"ingest": ingest, "clip": clip})
    caption = finish(store, other, "caption", {"ingest": ingest, "clip": clip, "score": score})
    inputs = {"clip": clip, "score": score, "caption": caption}
    latents = finish(store, other, "latents", inputs, read_as={"train": "these latents"})
    assert latents != done["latents"]
    found = finished(other, store)
    assert found["train"][0].digest == train
    assert found["train"][0].inputs == {"latents": latents}


def test_a_later_stage_needs_no_look_at_weights_that_an_earlier_one_read(store, tmp_path):
    weights = tmp_path / "vae"
    weights.mkdir()
    (weights / "config.json").write_text(json.dumps({"a": 1}), encoding="utf-8")
    run = run_named(latents={"codec": {"kind": "sd-vae", "model": str(weights)}}, train=TRAIN)
    done = finish_data_stages(store, run)
    assert "codec.model" in read_pointer(store, "far", "latents").inputs
    (weights / "config.json").unlink()
    weights.rmdir()
    assert address_alone(run, store, "train").inputs["latents"] == done["latents"]
    assert finished(run, store)["latents"][0].digest == done["latents"]


def test_a_later_stage_of_a_run_that_was_never_ingested_is_refused(store, tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"never opened here")
    with pytest.raises(DataError, match="has not ingested"):
        address_alone(run_named(ingest={"sources": [{"path": str(tmp_path / "a.mp4")}]}), store, "clip")


def test_a_stage_whose_inputs_are_not_finished_is_refused(store):
    run = run_named()
    finish(store, run, "ingest", SOURCES)
    with pytest.raises(DataError, match="clip is not finished"):
        address_alone(run, store, "score")


def test_what_a_run_points_to_is_one_set_and_says_what_is_stale(store):
    run = run_named()
    done = finish_data_stages(store, run)
    points = read_points(store, "far")
    assert {name: pointer.digest for name, pointer in points.stages.items()} == done
    assert points.stale() == {}
    clip = finish(store, run_named(clip={"min_frames": 31}), "clip", {"ingest": done["ingest"]})
    points = read_points(store, "far")
    assert points.stages["clip"].digest == clip
    assert points.stale() == {
        "score": "clip has changed since",
        "caption": "clip has changed since",
        "latents": "clip has changed since",
    }


def test_a_point_that_says_nothing_new_is_not_written(store):
    run = run_named()
    finish(store, run, "ingest", SOURCES)
    before = [entry.key for entry in store.list(points_place("far"))]
    point("far", store, read_pointer(store, "far", "ingest"))
    assert [entry.key for entry in store.list(points_place("far"))] == before


def test_of_two_that_point_at_the_same_time_neither_loses_the_others_word(store, monkeypatch):
    run = run_named()
    ingest = finish(store, run, "ingest", SOURCES)
    pointers = [
        Pointer(stage=name, digest="c" * 32, cache_key="c" * 32, spec={}, inputs={"ingest": ingest})
        for name in ("clip", "score")
    ]
    really, second = store.put, [pointers[1]]

    def put(key, data, **flags):
        if second:  # another one writes between the first one's reading and its writing
            point("far", store, second.pop())
        return really(key, data, **flags)

    monkeypatch.setattr(store, "put", put)
    point("far", store, pointers[0])
    assert set(read_points(store, "far").stages) == {"ingest", "clip", "score"}


def test_a_set_that_cannot_be_read_is_passed_over(store):
    run = run_named()
    digest = finish(store, run, "ingest", SOURCES)
    store.put(f"{points_place('far')}00000009.json", b"half a se")
    store.put(f"{points_place('far')}notes.txt", b"of somebody")
    assert read_pointer(store, "far", "ingest").digest == digest


ELSEWHERE = (
    b'{"stages": {"clip": {"stage": "clip", "digest": "../../items", "cache_key": "", "spec": {}, "inputs": {}}}}'
)


@pytest.mark.parametrize("text", [b"", b"half a se", b"[]", b'{"number": 1e99}', b'{"stages": {"clip": 3}}', ELSEWHERE])
def test_a_run_goes_on_from_a_set_that_cannot_be_read(store, text):
    finish(store, run_named(), "ingest", SOURCES)
    store.put(f"{points_place('far')}00000009.json", text)
    pointer = Pointer(stage="clip", digest="b" * 32, cache_key="b" * 32, spec={}, inputs={})
    point("far", store, pointer)
    points = read_points(store, "far")
    assert (points.number, set(points.stages)) == (10, {"ingest", "clip"})


def test_a_run_with_nothing_to_do_writes_a_set_anew_only_behind_one_that_cannot_be_read(store):
    pointer = Pointer(stage="clip", digest="b" * 32, cache_key="b" * 32, spec={}, inputs={})
    point("far", store, pointer)
    point("far", store, pointer)
    assert [entry.key[-13:] for entry in store.list(points_place("far"))] == ["00000001.json"]
    store.put(f"{points_place('far')}00000002.json", b"half a se")
    point("far", store, pointer)
    assert read_points(store, "far").number == 3


def test_a_set_with_the_last_number_is_a_sentence(store):
    finish(store, run_named(), "ingest", SOURCES)
    store.put(f"{points_place('far')}99999999.json", b"of somebody")
    with pytest.raises(DataError, match=r"99999999\.json has the last number there is"):
        point("far", store, Pointer(stage="clip", digest="b" * 32, cache_key="b" * 32, spec={}, inputs={}))


def test_a_how_is_no_reason_to_run(store, tmp_path):
    film = tmp_path / "a.mp4"
    film.write_bytes(b"never opened here")
    source = {"sources": [{"path": str(film)}]}
    run = run_named(ingest=source)
    ingest = finish(store, run, "ingest", outside_inputs(run.spec.ingest))
    finish(store, run, "clip", {"ingest": ingest})
    film.write_bytes(b"another")
    changed = run_named(ingest=source | {"decode_timeout_s": 60}, clip={"min_frames": 31}, score={"held_out_share": 0})
    assert [step.why for step in make_plan(changed, store, "clip")] == [
        ["sources changed"],
        ["clip.min_frames: 15 → 31"],
    ]


def test_a_plan_says_what_is_there_and_why_the_rest_is_to_be_made(store, tmp_path):
    films = tmp_path / "films"
    films.mkdir()
    (films / "a.mp4").write_bytes(b"never opened here")
    source = {"sources": [{"path": str(films)}]}
    run = run_named(ingest=source)
    assert [(step.state, step.why) for step in make_plan(run, store, "clip")] == [
        ("to run", ["first time"]),
        ("to run", ["ingest may change"]),
    ]
    ingest = finish(store, run, "ingest", outside_inputs(run.spec.ingest))
    finish(store, run, "clip", {"ingest": ingest})
    assert [step.state for step in make_plan(run, store, "clip")] == ["cached", "cached"]
    changed = run_named(ingest=source, clip={"min_frames": 31})
    assert [(step.state, step.why) for step in make_plan(changed, store, "clip")] == [
        ("cached", []),
        ("to run", ["clip.min_frames: 15 → 31"]),
    ]
    (films / "b.mp4").write_bytes(b"nor this")
    first = make_plan(run, store, "clip")[0]
    assert (first.state, first.why) == ("to run", ["sources changed"])
    assert Resolver(run, store).address(STAGES["ingest"], {}).digest != ingest
    assert Resolver(run, store, frozen=True).address(STAGES["ingest"], {}).digest == ingest


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
