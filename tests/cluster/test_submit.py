"""Runs handed in to a cluster, changed, looked at and stopped, from the command line."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from bricks_core.cluster.runs import merge_patch
from bricks_core.pipeline.points import Pointer, point
from bricks_core.storage.places import open_store
from tests.cluster.command_line import NAMESPACE, at, without_cluster
from tests.kubernetes.access import service_account
from tests.kubernetes.patches import merge


def stored(server, name="small"):
    return server.cluster(NAMESPACE).get("BrickRun", name)


def tell_status(server, name="small", **status):
    """Write what the controller would."""
    cluster = server.cluster(NAMESPACE)
    cluster.write_status(cluster.get("BrickRun", name) | {"status": status})


def condition(kind, status, reason, message):
    return {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": "2026-11-24T12:00:00Z",
    }


RUNNING = {
    "phase": "Running",
    "currentStage": "train",
    "progress": "1200/24000 steps, 3 h 20 min left",
    "observedGeneration": 1,
    "conditions": [condition("Accepted", "True", "Accepted", "The run file can be used.")],
    "stages": [
        {
            "name": "ingest",
            "state": "Done",
            "attempt": 1,
            "output": {"uri": "s3://b/artifacts/ingest/1", "digest": "1"},
        },
        {
            "name": "train",
            "state": "Running",
            "attempt": 2,
            "reason": "Running",
            "message": "4 of 4 nodes run.",
            "progress": {"done": 1200, "total": 24000, "unit": "steps", "perHour": "6840 steps/h", "eta": "3 h 20 min"},
        },
        {"name": "evaluate", "state": "Pending"},
    ],
}


def test_a_run_is_created_as_its_file_says_and_nothing_more(bricks, double):
    said = bricks("submit", bricks.run_file(), "--set", "clip.min_frames=31")
    assert "Run small is created in namespace bricks." in said.out
    assert "bricks status small --cluster" in said.out
    spec = stored(double)["spec"]
    assert spec["clip"] == {"min_frames": 31}
    assert "score" not in spec, "defaults are the controller's to fill in, by its version"


def test_the_address_of_whoever_is_told_is_left_out_and_where_to_write_it_is_said(bricks, double, capsys):
    file = bricks.run_file(notify="https://example.org/secret")
    said = bricks("submit", file)
    told = capsys.readouterr().err
    assert "spec.notify is left out" in told
    assert "notify.existingSecret" in told
    assert "secret" not in str([change.object for change in double.storage.history])
    assert "secret" not in said.out + told.replace("existingSecret", "").replace("a Secret", "")
    bricks("submit", bricks.run_file())
    assert "notify" not in capsys.readouterr().err


def test_a_run_may_be_handed_in_without_starting(bricks, double):
    bricks("submit", bricks.run_file(), "--suspend")
    assert stored(double)["spec"]["suspend"] is True
    assert "goes on" in bricks("resume", "small").out
    assert stored(double)["spec"]["suspend"] is False
    assert "not suspended" in bricks("resume", "small").out


def test_the_same_file_again_changes_nothing(bricks, double):
    file = bricks.run_file()
    bricks("submit", file)
    before = stored(double)
    assert "nothing is different" in bricks("submit", file).out
    assert stored(double) == before


def test_a_changed_file_changes_the_run_and_says_which_stages_are_asked_anew(bricks, double):
    bricks("submit", bricks.run_file(clip={"min_frames": 31, "crf": 20}))
    said = bricks("submit", bricks.run_file(clip={"min_frames": 40}, tracking={"wandb": "off"}))
    assert "clip.crf: 20 → 18" in said.out
    assert "clip.min_frames: 31 → 40" in said.out
    assert "made anew, but for what the store has: clip, score, caption, latents, train, evaluate." in said.out
    spec = stored(double)["spec"]
    assert (spec["clip"], spec["tracking"]) == ({"min_frames": 40}, {"wandb": "off"})


def test_what_only_says_how_makes_nothing_anew(bricks, double):
    bricks("submit", bricks.run_file())
    said = bricks("submit", bricks.run_file(caption={"concurrency": 3}))
    assert "nothing runs again, but what a changed limit had stopped" in said.out


def test_what_changes_no_answer_runs_nothing_again(bricks, double):
    bricks("submit", bricks.run_file())
    said = bricks("submit", bricks.run_file(gates=[{"metric": "held_out.loss.ema", "at_most": 1}]))
    assert "nothing runs again" in said.out
    assert stored(double)["spec"]["gates"] == [{"metric": "held_out.loss.ema", "at_most": 1.0}]


def test_a_change_that_somebody_else_makes_meanwhile_is_not_overwritten(bricks, double):
    bricks("submit", bricks.run_file())
    changed_once = []

    def change_first(request):
        if request.verb == "patch" and not changed_once:
            changed_once.append(request)
            double.cluster(NAMESPACE).patch("BrickRun", "small", {"spec": {"suspend": True}})

    double.faults.append(change_first)
    said = bricks("submit", bricks.run_file(clip={"min_frames": 40}))
    assert changed_once
    assert "suspend: True → False" in said.out, "it is told, because it was read again"
    assert stored(double)["spec"]["clip"] == {"min_frames": 40}


def test_a_wrong_file_is_told_before_any_cluster_is_asked(tmp_path, monkeypatch):
    terminal = without_cluster(tmp_path, monkeypatch)
    said = terminal("submit", terminal.run_file(captoin={}), code=78)
    assert 'did you mean "caption"?' in said.error


def test_a_cancelled_run_is_not_revived(bricks, double):
    file = bricks.run_file()
    bricks("submit", file)
    said = bricks("cancel", "small", "--yes")
    assert "artifact is kept" in said.out
    assert stored(double)["spec"]["cancel"] is True
    assert "is cancelled already" in bricks("cancel", "small").out
    assert "kubectl delete brickrun small" in bricks("submit", file, code=65).error


def test_a_run_that_was_cancelled_while_it_was_suspended_is_not_offered_to_be_resumed(bricks, double):
    bricks("submit", bricks.run_file(), "--suspend")
    bricks("cancel", "small", "--yes")
    tell_status(double, phase="Cancelled", conditions=[condition("Finished", "True", "Cancelled", "It was cancelled.")])
    assert "bricks resume" not in bricks("status", "small", "--cluster").out
    assert "cancelled, for good: there is nothing to resume" in bricks("resume", "small", code=65).error
    assert "cancelled, for good: there is nothing to stop" in bricks("suspend", "small", code=65).error


def test_a_run_that_failed_or_was_cancelled_begins_again_with_each_retry(bricks, double):
    bricks("submit", bricks.run_file())
    tell_status(double, phase="Failed", conditions=[condition("Finished", "True", "Failed", "All tries are spent.")])
    assert "bricks retry small" in bricks("status", "small", "--cluster").out
    assert "Run small (failed) begins again where it stopped" in bricks("retry", "small").out
    first = stored(double)["metadata"]["annotations"]
    assert set(first) == {"bricks.dev/retry"}
    bricks("retry", "small")
    assert stored(double)["metadata"]["annotations"] != first, "each has a fresh value"
    tell_status(double, phase="Running", conditions=[condition("Finished", "False", "Unfinished", "clip is not done.")])
    bricks("cancel", "small", "--yes")
    tell_status(double, phase="Cancelled", conditions=[condition("Finished", "True", "Cancelled", "It was cancelled.")])
    bricks("retry", "small")
    assert stored(double)["spec"]["cancel"] is False


@pytest.mark.parametrize(
    ("phase", "reason", "says"),
    [
        ("Running", "", "not at its end (Running): it is tried again by itself"),
        ("Suspended", "", "not at its end (Suspended): bricks resume goes on with it"),
        ("Succeeded", "Succeeded", "bricks retry small --renew does again what the installed version makes otherwise"),
        ("Failed", "SpecInvalid", "cannot be used: mend it, and submit it"),
    ],
)
def test_a_run_with_nothing_to_try_again_is_told_so(bricks, double, phase, reason, says):
    bricks("submit", bricks.run_file())
    tell_status(
        double, phase=phase, conditions=[condition("Finished", "True" if reason else "False", reason or "No", "So.")]
    )
    assert says in bricks("retry", "small", code=65).error
    assert "annotations" not in stored(double)["metadata"]


def test_a_run_is_renewed_whatever_it_is_at(bricks, double):
    bricks("submit", bricks.run_file())
    newer = "Bricks 2 would do again: clip (version 3, now 4)."
    pinned = {
        "config": "small-began-1",
        "codeVersion": "1.0",
        "since": "2026-11-28T04:10:00Z",
        "stages": [{"name": "clip", "version": 3, "image": "example.org/bricks-clip:1.0"}],
    }
    told = [condition("UpToDate", "False", "NewerVersion", newer)]
    tell_status(double, phase="Running", currentStage="clip", pinned=pinned, conditions=told)
    said = bricks("status", "small", "--cluster").out
    assert "It goes by Bricks 1.0 since 2026-11-28T04:10:00Z, clip with image example.org/bricks-clip:1.0." in said
    assert newer in said
    assert "bricks retry small --renew" in said
    bricks("retry", "small", "--renew")
    assert set(stored(double)["metadata"]["annotations"]) == {"bricks.dev/retry", "bricks.dev/renew"}


def test_a_run_that_is_at_its_end_cannot_be_stopped(bricks, double):
    bricks("submit", bricks.run_file())
    tell_status(double, phase="Succeeded", conditions=[condition("Finished", "True", "Succeeded", "All is done.")])
    assert "at its end already (Succeeded)" in bricks("suspend", "small", code=65).error


@pytest.mark.parametrize("command", [["cancel", "smal"], ["suspend", "smal"], ["resume", "smal"], ["status", "smal"]])
def test_a_run_that_is_not_there_is_told_with_the_nearest_one(bricks, command):
    bricks("submit", bricks.run_file())
    said = bricks(*command, code=65)
    assert 'no BrickRun smal in namespace bricks (did you mean "small"?)' in said.error


@pytest.mark.parametrize(
    "command",
    [
        ["submit", "small.yaml"],
        ["status"],
        ["status", "--cluster"],
        ["logs", "small", "train"],
        ["cancel", "small"],
        ["suspend", "small"],
        ["resume", "small"],
        ["doctor"],
    ],
)
def test_without_a_cluster_each_command_says_so_and_ends_with_69(command, tmp_path, monkeypatch):
    terminal = without_cluster(tmp_path, monkeypatch)
    terminal.run_file()
    said = terminal(*command, code=69)
    assert "o cluster" in said.error
    assert "\n" not in said.error
    assert said.out == ""


def test_a_cluster_that_does_not_answer_is_told_with_its_address(bricks, double, tmp_path):
    config = yaml.safe_load((tmp_path / "kubeconfig").read_text(encoding="utf-8"))
    config["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:9"
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config), encoding="utf-8")
    assert "https://127.0.0.1:9 does not answer" in bricks("status", "--cluster", code=69).error


def test_a_cluster_without_brickrun_says_what_brings_it(bricks, double):
    crds = double.storage.resource("apiextensions.k8s.io", "customresourcedefinitions")
    with double.storage.lock:
        double.storage.delete(crds, "", "brickruns.bricks.dev")
        double.settle()
    assert "the chart's CRD" in bricks("submit", bricks.run_file(), code=78).error


def test_a_user_without_rights_is_told_which_verb_is_missing(double, tmp_path, monkeypatch):
    terminal = at(double, tmp_path, monkeypatch, service_account(NAMESPACE, "nobody"))
    assert '"create" on "brickruns.bricks.dev"' in terminal("submit", terminal.run_file(), code=78).error


def test_status_shows_where_every_run_is_and_why_it_waits(bricks, double):
    bricks("submit", bricks.run_file())
    bricks("submit", bricks.run_file("other"))
    tell_status(double, **RUNNING)
    said = bricks("status")
    (small,) = [line for line in said.out.splitlines() if line.split()[:1] == ["small"]]
    assert "Running" in small
    assert "1200/24000 steps, 3 h 20 min left" in small
    assert "4 of 4 nodes run." in small
    (other,) = [line for line in said.out.splitlines() if line.split()[:1] == ["other"]]
    assert "bricks doctor" in other, "the controller has not looked at it"


def test_status_of_one_run_shows_its_stages_and_what_to_do_next(bricks, double):
    bricks("submit", bricks.run_file())
    tell_status(double, **RUNNING)
    said = bricks("status", "small")
    assert "Run small in namespace bricks: Running" in said.out
    (train,) = [line for line in said.out.splitlines() if line.split()[:1] == ["train"]]
    assert "1200/24000 steps, 6840 steps/h, 3 h 20 min left" in train
    assert "bricks logs small train --follow" in said.out
    assert "s3://b/artifacts/ingest/1" in said.out


def test_status_with_a_local_store_asks_no_cluster_unless_it_is_told_to(bricks, double, tmp_path):
    pointer = Pointer(stage="ingest", digest="1" * 32, cache_key="1" * 32, spec={}, inputs={})
    point("mine", open_store(str(tmp_path / "bricks-store")), pointer)
    bricks("submit", bricks.run_file())
    double.requests.clear()
    assert "mine" in bricks("status").out
    assert double.requests == []
    assert "small" in bricks("status", "--cluster").out
    assert "small" in bricks("status", "small").out, "a name that the store does not know is the cluster's"


def test_waiting_for_a_run_tells_each_change_and_ends_well_only_if_it_did(bricks, double):
    thread, said = bricks.background("submit", bricks.run_file(), "--wait", "--every", "0.1")
    for _ in range(200):
        if any(request.verb == "get" for request in double.requests):
            break
        thread.join(0.05)
    tell_status(double, **RUNNING)
    seen = len(double.requests)
    for _ in range(200):
        if len(double.requests) > seen + 3:
            break
        thread.join(0.05)
    failed = condition("Finished", "True", "Failed", "train: the run file is wrong.")
    tell_status(double, phase="Failed", conditions=[failed, condition("Succeeded", "False", "Failed", "no")])
    thread.join(30)
    assert said[0].code == 65
    assert "Running, train running: 4 of 4 nodes run." in said[0].out
    assert "the run file is wrong" in said[0].error


def test_waiting_gives_up_when_its_time_is_up_and_says_that_the_run_goes_on(bricks):
    said = bricks("submit", bricks.run_file(), "--wait", "--timeout", "0.2s", "--every", "0.1", code=75)
    assert "goes on in the cluster" in said.error


VALUES = st.recursive(
    st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)
DOCUMENTS = st.dictionaries(st.sampled_from("abcd"), VALUES, max_size=4)


@given(DOCUMENTS, DOCUMENTS)
def test_a_merge_patch_makes_one_document_of_the_other(before, after):
    assert merge(before, merge_patch(before, after)) == after


@pytest.mark.parametrize("name", ["", "a b", "x=1,y", "a/../b", "UPPER", "-a", "a" * 64])
@pytest.mark.parametrize("command", ["status", "suspend", "resume", "cancel", "logs"])
def test_what_cannot_be_a_runs_name_is_refused(bricks, double, command, name):
    arguments = [command, *(["--"] if name.startswith("-") else []), name, *(["train"] if command == "logs" else [])]
    assert "cannot be the name of a run" in bricks(*arguments, code=64).error
    assert not [request for request in double.requests if request.resource in ("brickruns", "pods")]


def test_what_cannot_be_a_namespace_is_refused(bricks):
    assert "cannot be the name of a namespace" in bricks("status", "-n", "no such", code=64).error
