"""What a run began with, as it is kept, and what a newer version of the code makes of it."""

from __future__ import annotations

import gzip
import json
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bricks_core.cluster.launcher import Owner, Task
from bricks_core.cluster.launchers import launcher_for
from bricks_core.cluster.pin import Pin, kept
from bricks_core.cluster.run_file import pin_file, run_file
from bricks_core.cluster.runs import retry
from bricks_core.controller.reconcile import is_settled
from bricks_core.errors import DataError
from bricks_core.spec.cluster import ClusterProfile
from bricks_core.spec.run import run_of
from bricks_core.spec.stages import STAGES
from tests.controller.town import PROFILE, Town, run_object, town
from tests.kubernetes.double import Double

Object = dict[str, Any]
LEAVES = st.integers(0, 3) | st.sampled_from(["a", "b"]) | st.none()
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("klmn"), inner, max_size=3),
    max_leaves=8,
)
SPECS = st.dictionaries(st.sampled_from("klmn"), VALUES, max_size=4)


def raw(**spec: Any) -> Object:
    found = run_object(**spec)
    return found | {"metadata": found["metadata"] | {"uid": "u1", "generation": 1}}


def pin(obj: Object, profile: ClusterProfile = PROFILE) -> Pin:
    return Pin.of_now(obj, run_of(obj), profile, "2026-11-30T10:00:00Z")


# --- the spec with its defaults


def with_defaults(written: Any, defaults: Any) -> Any:
    """A spec as a version resolves it, whose defaults these are."""
    if isinstance(written, dict) and isinstance(defaults, dict):
        return defaults | {name: with_defaults(each, defaults.get(name)) for name, each in written.items()}
    return written


@given(SPECS, SPECS)
def test_what_is_not_edited_is_as_it_was_resolved(written: Object, defaults: Object) -> None:
    resolved = with_defaults(written, defaults)
    assert kept(written, written, resolved) == resolved


@given(SPECS, SPECS, SPECS)
def test_what_is_written_now_is_so_and_what_is_taken_out_is_gone(
    now: Object, written: Object, defaults: Object
) -> None:
    found = kept(now, written, with_defaults(written, defaults))
    for name, value in now.items():
        assert isinstance(value, dict | list) or found[name] == value or (name in written and written[name] == value)
    assert not {name for name in written if name not in now} & found.keys()


def test_an_edit_leaves_the_defaults_of_all_that_it_does_not_name() -> None:
    written = {"clip": {"crf": 20}, "train": {"phases": [{"name": "one"}]}}
    resolved = {
        "clip": {"crf": 20, "preset": "of before"},
        "train": {"phases": [{"name": "one", "steps": 3}], "log": 5},
        "score": {"limit": 1},
    }
    assert kept(written | {"clip": {"crf": 21}}, written, resolved) == resolved | {
        "clip": {"crf": 21, "preset": "of before"}
    }
    assert kept({"clip": {"crf": 20}}, written, resolved) == {"clip": resolved["clip"], "score": {"limit": 1}}
    longer = {"phases": [{"name": "one"}, {"name": "two"}]}
    assert kept(written | {"train": longer}, written, resolved)["train"] == longer | {"log": 5}


def test_another_kind_of_thing_has_other_defaults() -> None:
    resolved = {"codec": {"kind": "vae", "model": "of before", "scale": 2}}
    now = {"codec": {"kind": "dct"}}
    assert kept(now, {"codec": {"kind": "vae"}}, resolved) == now


def test_what_is_kept_is_read_as_it_was_and_what_is_damaged_is_not() -> None:
    first = pin(raw(clip={"min_frames": 20}))
    data = first.data() | {"metadata": {"name": "somewhere"}}
    again = Pin.read(data)
    assert again == first
    assert again is not None
    assert again.config == "somewhere"
    assert list(again.resolved) == list(first.resolved), "the run file is written in this order"
    assert again.run_of(raw(clip={"min_frames": 20}))[0] == run_of(raw(clip={"min_frames": 20}))
    assert Pin.read(data | {"binaryData": {"settings.json.gz": "AAAA"}}) is None
    assert Pin.read(data | {"data": {}}) is None


def test_nothing_that_is_kept_or_that_pods_read_has_the_address_of_whoever_is_told() -> None:
    """Of a BrickRun that was stored when it still could have one, edits included."""
    secret = {"notify": "https://example.org/secret"}
    first = pin(raw(**secret, clip={"min_frames": 20}))
    edited = raw(**secret, clip={"min_frames": 21})
    later = first.followed(pin(edited), edited)
    adopted = first.adopted(edited["spec"])
    for each in (first, later, adopted):
        assert "example.org" not in json.dumps([each.written, each.resolved])
        run, spec = each.run_of(edited)
        assert "example.org" not in json.dumps(spec)
        owner = Owner("tiny", "u1")
        for task in (Task(run, "clip", PROFILE, owner=owner, pin=each, spec=spec), Task(run, "clip", PROFILE)):
            told = [run_file(task), *([pin_file(task)] if task.pin else [])]
            told += launcher_for(run, PROFILE, "clip").render(task)
            assert "example.org" not in json.dumps(told)


def test_what_a_newer_version_adds_to_it_is_left_out_and_nonsense_is_no_pin() -> None:
    first = pin(raw())
    data = first.data() | {"metadata": {"name": "somewhere"}}
    plain = json.loads(data["data"]["pin.json"])

    def with_plain(**changes: Any) -> Object:
        return data | {"data": {"pin.json": json.dumps(plain | changes)}}

    assert Pin.read(with_plain(weather="fine")) == first
    for nonsense in ({"generation": "many"}, {"versions": [1]}, {"images": {"clip": {}}}, {"kinds": None}):
        assert Pin.read(with_plain(**nonsense)) is None, nonsense
    bomb = b64encode(gzip.compress(b'{"written": {}, "resolved": "' + b" " * (64 << 20) + b'"}')).decode()
    assert Pin.read(data | {"binaryData": {"settings.json.gz": bomb}}) is None
    assert Pin.read(data | {"binaryData": {"settings.json.gz": data["binaryData"]["settings.json.gz"][:40]}}) is None


def test_a_default_that_is_another_one_later_is_not_for_a_run_that_has_begun() -> None:
    first = pin(raw())
    before = replace(first, resolved=first.resolved | {"clip": first.resolved["clip"] | {"crf": 33}})
    run, spec = before.run_of(raw())
    assert run.spec.clip.crf == 33
    assert spec is not None
    edited, _ = before.run_of(raw(clip={"min_frames": 20}))
    assert (edited.spec.clip.crf, edited.spec.clip.min_frames) == (33, 20)


def test_settings_that_this_version_does_not_know_are_left_to_the_file() -> None:
    first = pin(raw())
    strange = replace(first, resolved=first.resolved | {"clip": {"of_a_later_version": 1}})
    assert strange.run_of(raw()) == (run_of(raw()), None)


# --- a run, and versions that come and go


@contextmanager
def raised(*names: str, by: int = 1) -> Iterator[None]:
    """Code of a later version, which makes something else in these stages."""
    before = dict(STAGES)
    STAGES.update({name: replace(STAGES[name], version=STAGES[name].version + by) for name in names})
    try:
        yield
    finally:
        STAGES.update(before)


def made(here: Town) -> dict[str, int]:
    """How many children each stage ever had."""
    found: dict[str, int] = {}
    for change in here.server.storage.history:
        if change.type == "ADDED" and change.resource.plural == "jobs":
            stage = change.object["metadata"]["labels"]["bricks.dev/stage"]
            found[stage] = found.get(stage, 0) + 1
    return found


def until_succeeded(here: Town) -> None:
    for _ in range(40):
        here.controller().reconcile("tiny")
        here.executor.step()
        here.server.advance(100)
    assert here.status()["phase"] == "Succeeded"


def until_done(here: Town, *names: str) -> None:
    """Brought on by new controllers, of a version that has raised these stages; pods are of the version they began
    with."""
    for _ in range(60):
        with raised(*names):
            here.controller().reconcile("tiny")
        if here.condition("Finished").get("status") == "True":
            return
        here.executor.step()
        here.server.advance(100)
    raise AssertionError(here.status())


@pytest.mark.parametrize(
    "names",
    [[name for name in STAGES if name != "clip"], list(STAGES)],
)
def test_what_is_finished_stays_finished_and_the_rest_is_made_by_the_version_that_the_run_began_with(
    names: list[str],
) -> None:
    with town() as here:
        controller = here.controller()
        while here.status().get("currentStage") != "score":
            controller.reconcile("tiny")
            here.executor.step()
        until_done(here, *names)
        assert here.status()["phase"] == "Succeeded"
        assert made(here) == dict.fromkeys(("ingest", "clip", "score", "caption", "latents"), 1)
        told = here.condition("UpToDate")
        assert (told["status"], told["reason"]) == ("False", "NewerVersion")
        assert f"ingest {STAGES['ingest'].version} → {STAGES['ingest'].version + 1}" in told["message"]
        here.controller().reconcile("tiny")
        assert here.condition("UpToDate")["status"] == "True"
        here.check_end()


def test_a_run_that_goes_back_to_an_earlier_version_keeps_what_the_later_one_made() -> None:
    with town() as here:
        with raised("ingest", "score"):
            controller = here.controller()
            while here.status().get("currentStage") != "caption":
                controller.reconcile("tiny")
                here.executor.step()
        controller = here.controller()
        controller.reconcile("tiny")
        assert made(here)["score"] == 1
        assert here.status()["currentStage"] == "caption"


def test_what_somebody_asks_to_be_renewed_is_done_again_once_and_never_by_a_later_upgrade() -> None:
    with town() as here:
        until_done(here)
        with pytest.raises(DataError, match="has succeeded"):
            retry(here.server.cluster(), "tiny")
        retry(here.server.cluster(), "tiny", renew=True)
        assert not is_settled(here.server.cluster().get("BrickRun", "tiny"))
        with raised("score"):
            until_succeeded(here)
            assert here.condition("UpToDate")["status"] == "True"
            assert is_settled(here.server.cluster().get("BrickRun", "tiny"))
        again = {"ingest": 1, "clip": 1} | dict.fromkeys(("score", "caption", "latents"), 2)
        assert made(here) == again
        here.lose_status()
        until_done(here, "score", "caption")
        assert made(here) == again
        assert here.condition("UpToDate")["status"] == "False"


def test_renewing_a_run_under_way_replaces_what_a_newer_version_makes_otherwise_and_nothing_else() -> None:
    with town() as here:
        controller = here.controller()
        while here.status().get("currentStage") != "caption":
            controller.reconcile("tiny")
            here.executor.step()
        (before,) = [job for job in here.jobs() if "caption" in job["metadata"]["name"]]
        retry(here.server.cluster(), "tiny", renew=True)
        here.controller().reconcile("tiny")
        (same,) = [job for job in here.jobs() if "caption" in job["metadata"]["name"]]
        assert same["metadata"]["uid"] == before["metadata"]["uid"], "this version makes nothing of it otherwise"
        retry(here.server.cluster(), "tiny", renew=True)
        with raised("score"):
            until_succeeded(here)
        assert made(here) == {"ingest": 1, "clip": 1, "score": 2, "caption": 2, "latents": 1}


def test_a_run_suspended_over_an_upgrade_goes_on_with_the_images_that_it_began_with() -> None:
    with town() as here:
        here.controller().reconcile("tiny")
        here.ask(suspend=True)
        here.controller().reconcile("tiny")
        here.executor.step()
        here.controller().reconcile("tiny")
        assert here.jobs() == []
        here.lose_status()
        here.ask(suspend=False)
        newer = here.controller()
        newer.profile = PROFILE.model_copy(update={"images": PROFILE.images.model_copy(update={"tag": "9.9.9"})})
        newer.reconcile("tiny")
        (job,) = here.jobs()
        assert job["spec"]["template"]["spec"]["containers"][0]["image"] == PROFILE.images.of("ingest")


def test_a_tag_that_is_moved_is_not_followed_by_a_later_try() -> None:
    digest = "sha256:" + "a" * 64
    with town([137]) as here:
        controller = here.controller()
        controller.reconcile("tiny")
        here.executor.step()
        here.executor.step()
        tell_image(here.server, f"ghcr.io/bricks/bricks-ingest@{digest}")
        here.come_to_rest(controller)
        images = {
            job["metadata"]["name"]: job["spec"]["template"]["spec"]["containers"][0]["image"] for job in here.jobs()
        }
        assert images["tiny-ingest-a1"] == PROFILE.images.of("ingest")
        assert images["tiny-ingest-a2"] == f"ghcr.io/bricks/bricks-ingest@{digest}"


def tell_image(server: Double, image_id: str) -> None:
    """A node says what it has fetched."""
    kind = server.storage.resource("", "pods")
    assert kind is not None

    def change(pod: Object) -> Object:
        told = [each | {"imageID": image_id} for each in pod["status"]["containerStatuses"]]
        return pod | {"status": pod["status"] | {"containerStatuses": told}}

    with server.storage.lock:
        for pod in server.storage.all(kind, "bricks"):
            server.storage.update(kind, "bricks", pod["metadata"]["name"], change, "status")


def test_children_of_a_controller_that_kept_nothing_go_on_and_their_failures_count_until_the_file_is_edited() -> None:
    with town([64]) as here:
        controller = here.controller()
        for _ in range(3):
            controller.reconcile("tiny")
            here.executor.step()
        controller.reconcile("tiny")
        assert here.status()["phase"] == "Failed"
        forget_marks(here)
        here.lose_status()
        newer = here.controller()
        newer.profile = PROFILE.model_copy(update={"priority_class": "other"})
        newer.reconcile("tiny")
        assert (here.status()["phase"], made(here)) == ("Failed", {"ingest": 1})
        here.ask(ingest={"sources": run_object()["spec"]["ingest"]["sources"], "decode_timeout_s": 99})
        newer.reconcile("tiny")
        assert made(here) == {"ingest": 2}


def forget_marks(here: Town) -> None:
    """As a controller of before leaves it: no ConfigMap of what the run began with, and children that say less."""
    cluster = here.server.cluster()
    for config in cluster.list("ConfigMap"):
        if "binaryData" in config:
            cluster.delete("ConfigMap", config["metadata"]["name"], foreground=False)
    for job in cluster.list("Job"):
        marks = [f"bricks.dev/{name}" for name in ("generation", "version", "circumstances", "work")]
        cluster.patch("Job", job["metadata"]["name"], {"metadata": {"annotations": dict.fromkeys(marks)}})


def test_a_run_that_is_tried_again_has_the_rest_made_by_the_version_of_now_from_what_it_had() -> None:
    with town([0, 0, 64]) as here:
        until_done(here)
        assert (here.status()["phase"], here.status()["currentStage"]) == ("Failed", "score")
        until_done(here, "ingest", "score")
        assert made(here)["score"] == 1
        retry(here.server.cluster(), "tiny")
        with raised("ingest", "score"):
            for _ in range(30):
                here.controller().reconcile("tiny")
                here.executor.step()
                here.server.advance(100)
            assert here.status()["phase"] == "Succeeded"
            assert here.condition("UpToDate")["message"].startswith("Bricks")
        assert made(here) == {"ingest": 1, "clip": 1, "score": 2, "caption": 1, "latents": 1}
        (score,) = (here.folder / "store" / "artifacts" / "score").glob("*/manifest.json")
        assert json.loads(score.read_text(encoding="utf-8"))["stage_version"] == STAGES["score"].version + 1


def test_a_child_at_work_is_left_alone_although_what_it_reads_is_not_found_any_more() -> None:
    """Whatever keeps a later version from finding it: the child found it when it began."""
    with town() as here:
        controller = here.controller()
        while here.status().get("currentStage") != "score":
            controller.reconcile("tiny")
            here.executor.step()
        controller.reconcile("tiny")
        before = made(here)
        for points in (here.folder / "store" / "runs" / "tiny" / "points").glob("*.json"):
            points.unlink()
        with raised("ingest"):
            here.controller().reconcile("tiny")
        assert made(here) == before
        assert [job["metadata"]["name"] for job in here.jobs() if "deletionTimestamp" in job["metadata"]] == []
        assert here.status()["currentStage"] == "score"
