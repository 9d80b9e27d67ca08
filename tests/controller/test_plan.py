"""What the controller does next: every row of the table of exit codes, and everything else that a run can come to.

`plan` is pure, so these tests make up the world; what launchers see in real objects is tests/cluster's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import pytest

from bricks_core.cluster.launcher import (
    CACHE_KEY_ANNOTATION,
    CIRCUMSTANCES_ANNOTATION,
    Failure,
    Observation,
    Owner,
    Task,
)
from bricks_core.cluster.launchers import launcher_for
from bricks_core.controller.heartbeats import Heartbeat
from bricks_core.controller.plan import Child, Create, Delete, Plan, Point, Trouble, World, outdated, plan
from bricks_core.controller.report import Event, events, report
from bricks_core.controller.retries import RULES, Try, wait_s
from bricks_core.controller.same_work import OtherChild
from bricks_core.controller.status import RunStatus, StageStatus
from bricks_core.errors import SpecError
from bricks_core.pipeline.points import Pointer
from bricks_core.pipeline.resolve import Address
from bricks_core.spec.cluster import ClusterProfile
from bricks_core.spec.manifest import Manifest, artifact_digest, cache_key
from bricks_core.spec.manifest import Try as FailedTry
from bricks_core.spec.run import BrickRun, run_of
from bricks_core.spec.stages import STAGES
from bricks_core.spec.strict import what_of
from tests.controller.town import TRAIN

Object = dict[str, Any]
NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
DATA_STAGES = ["ingest", "clip", "score", "caption", "latents"]


@dataclass
class Case:
    """A run, what is finished of it, and its children; `plan` and `status` say what comes of it."""

    spec: Object = field(default_factory=dict)
    done: list[str] = field(default_factory=list)
    children: list[Child] = field(default_factory=list)
    profile: ClusterProfile = field(default_factory=ClusterProfile)
    facts: Object = field(default_factory=dict)
    """Of the World, where they differ."""

    @property
    def raw(self) -> Object:
        return {
            "apiVersion": "bricks.dev/v1alpha1",
            "kind": "BrickRun",
            "metadata": {"name": "demo", "uid": "u1", "generation": 3, "resourceVersion": "9"},
            "spec": {"ingest": {"sources": [{"path": "s3://films/all"}]}} | self.spec,
        }

    @property
    def run(self) -> BrickRun:
        return run_of(self.raw)

    def task(self, stage: str) -> Task:
        return Task(self.run, stage, self.profile, owner=Owner("demo", "u1"))

    def child(
        self,
        stage: str,
        attempt: int,
        seen: Observation,
        *,
        ended_s_ago: float = 3600,
        ran_s: float = 60,
        **metadata: Any,
    ) -> Case:
        """The same with one child more, made for what the run asks now."""
        task = self.task(stage)
        notes = {CACHE_KEY_ANNOTATION: task.cache_key, CIRCUMSTANCES_ANNOTATION: task.circumstances}
        ended = NOW - timedelta(seconds=ended_s_ago)
        begun = ended - timedelta(seconds=ran_s)
        name = f"demo-{stage}-a{attempt}"
        workload = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {
                "name": name,
                "uid": f"uid-{name}",
                "creationTimestamp": stamp(begun),
                "annotations": notes,
            }
            | metadata,
            "spec": {"completions": 2},
        }
        if seen.state in ("failed", "succeeded"):
            kind = "Failed" if seen.state == "failed" else "Complete"
            told = {"type": kind, "status": "True", "lastTransitionTime": stamp(ended)}
            workload["status"] = {"conditions": [told]}
        return replace(self, children=[*self.children, Child(workload, stage, attempt, seen)])

    def world(self) -> World:
        facts: Object = {
            "raw": self.raw,
            "now": NOW,
            "profile": self.profile,
            "run": self.run,
            "children": self.children,
            "finished": {name: artifact(self.run, name) for name in self.done},
            "pointed": {name: artifact(self.run, name)[0].pointer() for name in self.done},
            "others": (),
        }
        return World(**facts | self.facts)

    def plan(self) -> Plan:
        return plan(self.world(), launcher_for)

    def status(self, before: RunStatus | None = None) -> RunStatus:
        return report(self.world(), self.plan(), before or RunStatus())

    def stage(self, name: str) -> StageStatus:
        return next(stage for stage in self.status().stages if stage.name == name)

    @property
    def creates(self) -> list[str]:
        """Names of the workloads that are to be created."""
        return [action.objects[-1]["metadata"]["name"] for action in self.plan().actions if isinstance(action, Create)]

    @property
    def deletes(self) -> list[tuple[str, str]]:
        return [(action.name, action.reason) for action in self.plan().actions if isinstance(action, Delete)]

    def condition(self, kind: Any) -> tuple[str, str]:
        found = self.status().condition(kind)
        assert found is not None
        return found.status, found.reason


def stamp(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")


def digest_of(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:32]


def artifact(run: BrickRun, name: str) -> tuple[Address, Manifest]:
    digest = digest_of(name)
    manifest = Manifest(
        stage=name,
        stage_version=1,
        digest=digest,
        spec={},
        inputs={},
        code_version="1",
        tables={},
        counts={"clips": 1234},
        started_at=NOW,
        finished_at=NOW,
    )
    return Address(STAGES[name], run.stage_spec(name), digest, {}), manifest


def failed(code: int | None, *, reason: str = "BackoffLimitExceeded", **facts: Any) -> Observation:
    return Observation("failed", reason, f"It ended with {code}.", Failure(code, **facts), num_failed=1)


RUNNING = Observation("running", "Running", "1 of 2 shards are done, 1 run.", num_active=1, num_succeeded=1)
QUEUED = Observation(
    "waiting", "Queued", "couldn't assign flavors to pod set main: insufficient quota for nvidia.com/gpu"
)
SUCCEEDED = Observation("succeeded", "Succeeded", "It is done.", num_succeeded=2)


NO_PODS = Observation("waiting", "NoPods", "Job has no pods yet.")


def other(
    run: str, state: Literal["live", "succeeded"], *, s_ago: float, left: tuple[Pointer, Manifest] | None = None
) -> OtherChild:
    """A child of another run that does what ours would."""
    return OtherChild(run, f"{run}-ingest-a1", NOW - timedelta(seconds=s_ago), state, left)


def left_by(run: str) -> tuple[Pointer, Manifest]:
    """What another run's ingest has left that was asked for the same."""
    spec, outside = Case().run.spec.ingest, {"sources": "as they were"}
    key = cache_key(STAGES["ingest"], what_of(spec), outside)
    told = spec.model_dump(mode="json")
    pointer = Pointer(stage="ingest", digest=key, cache_key=key, spec=told, inputs=outside)
    return pointer, artifact(Case().run, "ingest")[1].model_copy(update={"digest": key, "cache_key": key})


def stopped_by(pointer: Pointer, manifest: Manifest, timeout_s: float) -> tuple[str, Manifest]:
    """The same where a film took too long: its digest, and its manifest."""
    stopped = FailedTry(kind="film", key="0" * 32, reason="slow", limits={"ingest.decode_timeout_s": timeout_s})
    digest = artifact_digest(pointer.cache_key, {"pending": [stopped.model_dump(exclude={"reason"})]})
    return digest, manifest.model_copy(update={"digest": digest, "pending": [stopped]})


# --- from nothing to the end


def test_a_new_run_begins_with_the_run_file_and_its_first_stage() -> None:
    actions = Case().plan().actions
    assert [type(action) for action in actions] == [Create]
    (create,) = actions
    assert isinstance(create, Create)
    assert [obj["kind"] for obj in create.objects] == ["ConfigMap", "Job"]
    assert create.objects[-1]["metadata"]["name"] == "demo-ingest-a1"
    for obj in create.objects:
        (owner,) = obj["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["name"], owner["uid"], owner["controller"]) == ("BrickRun", "demo", "u1", True)


def test_what_the_store_has_is_skipped_and_pointed_to() -> None:
    case = Case(done=["ingest", "clip"])
    case.facts = {"pointed": {"ingest": artifact(case.run, "ingest")[0].pointer()}}
    point, create = case.plan().actions
    assert isinstance(point, Point)
    assert point.address.digest == digest_of("clip")
    assert isinstance(create, Create)
    assert create.task.workload_name == "demo-score-a1"


def test_a_run_without_training_ends_well_before_it() -> None:
    case = Case(done=DATA_STAGES)
    assert case.plan().actions == []
    assert case.status().phase == "Succeeded"
    assert [stage.name for stage in case.status().stages] == DATA_STAGES
    assert case.condition("Succeeded") == ("True", "Succeeded")
    assert case.condition("Finished") == ("True", "Succeeded")
    assert case.condition("Running") == ("False", "Finished")


def test_a_run_that_trains_goes_on_to_training() -> None:
    case = Case(spec={"train": TRAIN, "latents": {"resolutions": ["144p"]}}, done=DATA_STAGES)
    assert case.creates == ["demo-train-a1"]


def test_while_a_child_lives_nothing_is_begun() -> None:
    case = Case().child("ingest", 1, RUNNING)
    assert case.plan().actions == []
    assert case.status().phase == "Running"
    assert case.stage("ingest").shards_done == 1
    assert case.condition("Running") == ("True", "Running")
    assert case.plan().again_s == 20


def test_a_child_deleted_by_its_time_to_live_is_not_missed_once_its_artifact_is_there() -> None:
    case = Case(done=["ingest"])
    assert case.creates == ["demo-clip-a1"]
    assert case.stage("ingest").state == "Done"
    assert case.stage("ingest").output is not None


def test_an_artifact_is_believed_before_the_job_that_failed() -> None:
    case = Case(done=["ingest"]).child("ingest", 1, failed(137))
    assert case.creates == ["demo-clip-a1"]
    assert case.stage("ingest").state == "Done"


def test_a_child_that_waits_to_do_what_is_done_is_taken_out_of_its_queue() -> None:
    assert Case(done=["ingest"]).child("ingest", 2, QUEUED).deletes == [("demo-ingest-a2", "AlreadyDone")]
    assert Case(done=["ingest"]).child("ingest", 2, RUNNING).deletes == []


def test_a_run_that_is_being_deleted_is_left_alone() -> None:
    case = Case()
    raw = case.raw
    raw["metadata"]["deletionTimestamp"] = stamp(NOW)
    assert plan(replace(case.world(), raw=raw), launcher_for).actions == []


# --- how tries end

VERDICTS: Mapping[str, list[int | None]] = {
    "never": [64, 78, 65],
    "once": [70],
    "counted": [69, 75, 77, 137, 1, 2, 139, 134, 255, None],
    "free": [143, 130],
}
CASES = [(verdict, code) for verdict, codes in VERDICTS.items() for code in codes]


@pytest.mark.parametrize(("verdict", "code"), CASES)
def test_every_exit_code_has_its_consequence(verdict: str, code: int | None) -> None:
    once = Case().child("ingest", 1, failed(code))
    twice = once.child("ingest", 2, failed(code))
    thrice = twice.child("ingest", 3, failed(code))
    over = {"never": [True, True, True], "once": [False, True, True], "counted": [False, False, True]}
    for case, is_over, attempt in zip((once, twice, thrice), over.get(verdict, [False] * 3), (1, 2, 3), strict=True):
        assert case.creates == ([] if is_over else [f"demo-ingest-a{attempt + 1}"])
        status = case.status()
        assert (status.phase == "Failed") is is_over
        assert case.condition("Finished") == (("True", "Failed") if is_over else ("False", "Unfinished"))
        if is_over:
            assert case.condition("Succeeded")[0] == "False"
            assert case.stage("ingest").state == "Failed"
            assert case.stage("ingest").finished_at == stamp(NOW - timedelta(hours=1))


def test_the_table_names_every_way_to_end_once() -> None:
    codes = [code for rule in RULES for code in rule.codes]
    assert len(codes) == len(set(codes))
    assert {rule.verdict for rule in RULES} == {"free", "never", "once", "counted"}
    assert not RULES[-1].codes


def test_being_stopped_from_outside_costs_no_try_whatever_the_code() -> None:
    case = Case()
    for attempt in range(1, 9):
        case = case.child("ingest", attempt, failed(137, disrupted=True))
    assert case.creates == ["demo-ingest-a9"]
    again = case.child("ingest", 9, failed(137)).child("ingest", 10, failed(137))
    assert again.creates == ["demo-ingest-a11"]
    assert again.child("ingest", 11, failed(137)).status().phase == "Failed"


def test_a_stage_whose_time_is_up_is_not_stopped_from_outside() -> None:
    case = Case()
    for attempt in (1, 2, 3):
        case = case.child("ingest", attempt, failed(143, reason="DeadlineExceeded"))
    assert case.status().phase == "Failed"
    assert "spec.cluster.stages.ingest.deadline_s" in case.stage("ingest").message


def test_more_tries_may_be_given_by_the_run() -> None:
    case = Case(spec={"cluster": {"attempts": 1}}).child("ingest", 1, failed(137))
    assert case.status().phase == "Failed"
    more = replace(case, spec={"cluster": {"attempts": 2}})
    assert more.creates == ["demo-ingest-a2"]


def test_other_circumstances_begin_a_budget_of_their_own() -> None:
    case = Case()
    for attempt in (1, 2, 3):
        case = case.child("ingest", attempt, failed(137))
    assert case.creates == []
    roomier = replace(case, spec={"cluster": {"stages": {"ingest": {"memory": "32Gi"}}}})
    assert roomier.creates == ["demo-ingest-a4"]


def test_a_failed_child_deleted_by_hand_gives_its_try_back() -> None:
    case = Case().child("ingest", 1, failed(137)).child("ingest", 2, failed(137)).child("ingest", 3, failed(137))
    assert case.creates == []
    assert replace(case, children=case.children[1:]).creates == ["demo-ingest-a4"]


def test_a_node_that_failed_its_preflight_is_not_asked_again() -> None:
    case = Case(spec={"train": TRAIN, "latents": {"resolutions": ["144p"]}}, done=DATA_STAGES)
    case = case.child("train", 1, failed(77, bad_nodes=("gpu-7",)))
    (create,) = [action for action in case.plan().actions if isinstance(action, Create)]
    assert create.task.excluded_nodes == ("gpu-7",)
    assert "gpu-7" in str(create.objects[-1]["spec"]["template"]["spec"]["affinity"])


def test_a_job_that_is_complete_without_an_artifact_is_a_failed_try() -> None:
    soon = Case().child("ingest", 1, SUCCEEDED, ended_s_ago=59)
    assert soon.creates == []
    assert soon.plan().again_s == pytest.approx(1)
    assert soon.stage("ingest").reason == "NoManifest"
    late = Case().child("ingest", 1, SUCCEEDED, ended_s_ago=60)
    assert late.creates == ["demo-ingest-a2"]
    thrice = late.child("ingest", 2, SUCCEEDED).child("ingest", 3, SUCCEEDED)
    assert thrice.status().phase == "Failed"
    assert thrice.condition("Succeeded") == ("False", "NoManifest")


def test_tries_wait_longer_and_longer_and_not_after_a_long_run() -> None:
    def tries(*ran_s: float) -> list[Try]:
        begun = NOW
        return [Try(i + 1, "", Failure(137), begun, begun + timedelta(seconds=each)) for i, each in enumerate(ran_s)]

    waits = [wait_s(tries(*[30.0] * num)) for num in range(1, 10)]
    assert waits == [10, 20, 40, 80, 160, 320, 600, 600, 600]
    assert wait_s(tries(30, 30, 30, 7200)) == 10
    assert wait_s(tries(30, 7200, 30)) == 10


def test_between_two_tries_the_status_says_why_and_until_when() -> None:
    case = Case().child("ingest", 1, failed(137), ended_s_ago=4)
    assert case.creates == []
    assert case.plan().again_s == pytest.approx(6)
    stage = case.stage("ingest")
    assert (stage.state, stage.reason, stage.tries_used) == ("Waiting", "Killed", 1)
    assert "12:00:06 UTC" in stage.message
    assert "1 of 3 tries" in stage.message
    assert "spec.cluster.stages.ingest.memory" in stage.message
    assert case.status().phase == "Pending"


# --- when somebody changes their mind


def test_a_suspended_run_stops_what_lives_and_begins_nothing() -> None:
    case = Case(spec={"suspend": True}, done=["ingest"]).child("clip", 1, RUNNING)
    assert case.deletes == [("demo-clip-a1", "Stopping")]
    assert case.creates == []
    going = Case(spec={"suspend": True}, done=["ingest"])
    going = going.child("clip", 1, RUNNING, deletionTimestamp=stamp(NOW))
    assert going.plan().actions == []
    assert going.condition("Running") == ("False", "Stopping")
    still = Case(spec={"suspend": True}, done=["ingest"])
    assert still.plan().actions == []
    assert still.status().phase == "Suspended"
    assert still.condition("Succeeded") == ("Unknown", "Suspended")
    assert still.condition("Finished") == ("False", "Unfinished")


def test_a_resumed_run_goes_on_with_its_first_try() -> None:
    assert Case(done=["ingest"]).creates == ["demo-clip-a1"]


def test_a_cancelled_run_is_finished_once_its_pods_are_gone() -> None:
    live = Case(spec={"cancel": True}).child("ingest", 1, RUNNING)
    assert live.deletes == [("demo-ingest-a1", "Stopping")]
    assert live.condition("Finished") == ("False", "Unfinished")
    gone = Case(spec={"cancel": True})
    assert gone.plan().actions == []
    assert gone.status().phase == "Cancelled"
    assert gone.condition("Succeeded") == ("False", "Cancelled")
    assert gone.condition("Finished") == ("True", "Cancelled")


def test_what_is_done_stays_done_when_it_is_cancelled_afterwards() -> None:
    assert Case(spec={"cancel": True}, done=DATA_STAGES).status().phase == "Succeeded"


def test_a_child_with_another_cache_key_is_stopped_and_made_anew() -> None:
    case = Case(done=["ingest"]).child("clip", 1, RUNNING)
    changed = replace(case, spec={"clip": {"min_frames": 20}})
    assert changed.deletes == [("demo-clip-a1", "SettingsChanged")]
    assert changed.creates == []
    going = replace(case, spec={"clip": {"min_frames": 20}}, children=[])
    assert going.creates == ["demo-clip-a1"]


def test_a_child_of_a_later_stage_is_stopped_when_an_earlier_one_is_to_do() -> None:
    assert Case(done=["ingest"]).child("score", 1, RUNNING).deletes == [("demo-score-a1", "SettingsChanged")]


def test_a_change_that_changes_no_answer_disturbs_nothing() -> None:
    case = Case(done=["ingest"]).child("clip", 1, RUNNING)
    for spec in ({"cluster": {"attempts": 9}}, {"tracking": {"wandb": "off"}}, {"latents": {"resolutions": ["144p"]}}):
        assert replace(case, spec=spec).plan().actions == []


HOWS: list[Object] = [
    {"ingest": {"sources": [{"path": "s3://films/all"}], "decode_timeout_s": 99}},
    {"caption": {"concurrency": 3}},
    {"latents": {"pack_bytes": 1 << 26}},
]


@pytest.mark.parametrize("spec", HOWS)
def test_a_change_of_how_stops_nothing_that_runs_and_gives_a_stage_that_failed_its_tries_back(spec: Object) -> None:
    (stage,) = spec
    before = Case(done=[name for name in DATA_STAGES if DATA_STAGES.index(name) < DATA_STAGES.index(stage)])
    assert replace(before.child(stage, 1, RUNNING), spec=spec).plan().actions == []
    failing = before.child(stage, 1, failed(1)).child(stage, 2, failed(1)).child(stage, 3, failed(1))
    assert failing.creates == []
    assert replace(failing, spec=spec).creates == [f"demo-{stage}-a4"]


def test_a_limit_that_was_raised_begins_a_stage_again_that_had_ended_well() -> None:
    """What the store has is not called finished then; that its last try left something is no failure."""
    case = Case().child("ingest", 1, SUCCEEDED)
    assert replace(case, spec=HOWS[0]).creates == ["demo-ingest-a2"]


def test_items_of_an_earlier_version_are_told_and_renewed_when_somebody_asks() -> None:
    case = Case(done=["ingest", "clip"])
    assert outdated(case.world()) == ()
    address, manifest = artifact(case.run, "clip")
    mixed = manifest.model_copy(update={"item_versions": {"clip": {"1": 40, "2": 12}}})
    case.facts["finished"] = {"ingest": artifact(case.run, "ingest"), "clip": (address, mixed)}
    assert outdated(case.world()) == ("clip",)


def test_a_live_child_of_a_controller_that_wrote_no_cache_key_is_left_alone() -> None:
    case = Case().child("ingest", 1, RUNNING)
    del case.children[0].workload["metadata"]["annotations"][CACHE_KEY_ANNOTATION]
    assert case.plan().actions == []
    assert case.status().phase == "Running"


def test_of_two_live_children_the_newer_one_stays() -> None:
    case = Case().child("ingest", 1, RUNNING).child("ingest", 2, RUNNING)
    assert case.deletes == [("demo-ingest-a1", "Duplicate")]


def test_the_next_try_waits_until_the_last_ones_pods_are_gone() -> None:
    case = Case().child("ingest", 1, RUNNING, deletionTimestamp=stamp(NOW))
    assert case.creates == []
    assert case.stage("ingest").reason == "Stopping"


@pytest.mark.parametrize("left_s", [-1, 1])
def test_the_next_try_waits_for_pods_that_a_failed_job_s_operator_still_stops(left_s: int) -> None:
    case = Case().child("ingest", 1, failed(75))
    until = NOW + timedelta(seconds=left_s)
    case = replace(case, children=[replace(case.children[0], pods_until=until)])
    assert case.creates == ([] if left_s > 0 else ["demo-ingest-a2"])
    assert case.stage("ingest").reason == ("Stopping" if left_s > 0 else "Creating")
    assert case.stage("ingest").state == "Waiting"


def test_a_run_file_that_cannot_be_used_says_so_and_begins_nothing() -> None:
    case = Case()
    with pytest.raises(SpecError) as error:
        run_of(case.raw | {"spec": {"ingest": {"sources": []}, "cilp": {}}})
    case.facts = {"run": None, "mistakes": str(error.value)}
    assert case.plan().actions == []
    status = case.status()
    assert status.phase == "Failed"
    accepted = status.condition("Accepted")
    assert accepted is not None
    assert (accepted.status, accepted.reason) == ("False", "SpecInvalid")
    assert 'unknown key "spec.cilp" (did you mean "clip"?)' in accepted.message
    assert case.condition("Finished") == ("True", "SpecInvalid")


def test_a_mistake_and_what_to_do_about_it_are_two_sentences() -> None:
    for mistakes in ("metadata.name: String should have at most 30 characters", "spec.clip is wrong."):
        accepted = Case(facts={"run": None, "mistakes": mistakes}).status().condition("Accepted")
        assert accepted is not None
        assert accepted.message == f"{mistakes.rstrip('.')}. Mend the run file and apply it again."


def test_what_runs_goes_on_while_the_run_file_cannot_be_used() -> None:
    case = Case(facts={"run": None, "mistakes": "spec.clip is wrong."}).child("ingest", 1, RUNNING)
    assert case.plan().actions == []
    assert case.condition("Finished") == ("False", "SpecInvalid")


@pytest.mark.parametrize("stop", ["cancel", "suspend"])
def test_a_run_file_that_cannot_be_used_can_still_be_stopped(stop: str) -> None:
    case = Case(spec={stop: True}, facts={"run": None, "mistakes": "spec.clip is wrong."}).child("ingest", 1, RUNNING)
    assert case.deletes == [("demo-ingest-a1", "Stopping")]


# --- what several runs ask for


def test_whether_another_run_has_the_same_work_is_asked_before_a_child_is_made_and_not_otherwise() -> None:
    case = Case(facts={"others": None})
    asked = case.plan()
    assert asked.actions == []
    assert asked.asks is not None
    assert asked.asks.stage == "ingest"
    assert case.child("ingest", 1, RUNNING).plan().asks is None
    assert replace(case, done=DATA_STAGES).plan().asks is None
    assert replace(case, spec={"suspend": True}).plan().asks is None


def test_nothing_is_begun_that_another_runs_live_child_has_and_the_status_says_whose() -> None:
    theirs = [other("b", "live", s_ago=5), other("a", "live", s_ago=9)]
    case = Case(facts={"others": theirs})
    assert case.plan().actions == []
    assert case.plan().again_s == 20
    stage = case.stage("ingest")
    assert (stage.state, stage.reason) == ("Waiting", "SameWork")
    assert "run a has the same work under way (a-ingest-a1)" in stage.message
    assert case.condition("Running") == ("False", "SameWork")
    assert case.condition("Finished") == ("False", "Unfinished")
    assert replace(case, spec={"cancel": True}).status().phase == "Cancelled"


@pytest.mark.parametrize(("s_ago", "gives_way"), [(11, True), (9, False)])
def test_of_two_that_were_made_at_the_same_moment_the_younger_gives_way(s_ago: float, gives_way: bool) -> None:
    case = Case(facts={"others": [other("z", "live", s_ago=s_ago)]})
    case = case.child("ingest", 1, NO_PODS, ended_s_ago=0, ran_s=10)
    assert case.deletes == ([("demo-ingest-a1", "SameWork")] if gives_way else [])


def test_of_the_same_second_the_name_decides() -> None:
    for name, gives_way in (("a", True), ("z", False)):
        case = Case(facts={"others": [other(name, "live", s_ago=10)]})
        case = case.child("ingest", 1, NO_PODS, ended_s_ago=0, ran_s=10)
        assert case.deletes == ([("demo-ingest-a1", "SameWork")] if gives_way else [])


@pytest.mark.parametrize("seen", [RUNNING, replace(NO_PODS, num_active=1), replace(NO_PODS, num_succeeded=1)])
def test_a_child_that_has_begun_does_not_give_way(seen: Observation) -> None:
    case = Case(facts={"others": [other("a", "live", s_ago=99)]})
    assert case.child("ingest", 1, seen, ended_s_ago=0, ran_s=10).plan().actions == []


def test_a_child_that_has_waited_for_a_while_does_not_give_way_and_nobody_is_asked_for() -> None:
    case = Case(facts={"others": None}).child("ingest", 1, NO_PODS, ended_s_ago=0, ran_s=60)
    assert case.plan().asks is None
    young = Case(facts={"others": None}).child("ingest", 1, NO_PODS, ended_s_ago=0, ran_s=59)
    assert young.plan().asks is not None


def test_what_another_run_has_made_since_this_one_asked_is_taken() -> None:
    done = other("a", "succeeded", s_ago=50, left=left_by("a"))
    for asked_s_ago, takes in ((3600, True), (50, True), (41, True), (39, False)):
        case = Case(facts={"others": [done], "asked_at": NOW - timedelta(seconds=asked_s_ago)})
        actions = case.plan().actions
        assert [type(action) for action in actions] == [Point if takes else Create], asked_s_ago
        if isinstance(actions[0], Point):
            pointer = actions[0].address.pointer()
            assert pointer == left_by("a")[0].model_copy(update={"spec": pointer.spec})
            assert case.stage("ingest").reason == "SameWork"


def test_what_is_not_what_this_run_would_have_made_is_not_taken() -> None:
    pointer, manifest = left_by("a")
    pending, with_tries = stopped_by(pointer, manifest, 1.0)
    lefts: dict[str, tuple[Pointer, Manifest] | None] = {
        "nothing": None,
        "another key": (pointer.model_copy(update={"cache_key": "0" * 32}), manifest),
        "made of what its run had before": (pointer.model_copy(update={"digest": "0" * 32}), manifest),
        "a limit is another here": (pointer.model_copy(update={"digest": pending}), with_tries),
    }
    for what, left in lefts.items():
        case = Case(facts={"others": [other("a", "succeeded", s_ago=9, left=left)], "asked_at": NOW})
        assert case.creates == ["demo-ingest-a1"], what


def test_what_a_limit_stopped_in_another_run_is_taken_as_it_is_by_one_with_the_same_limit() -> None:
    pointer, manifest = left_by("a")
    digest, with_tries = stopped_by(pointer, manifest, Case().run.spec.ingest.decode_timeout_s)
    left = pointer.model_copy(update={"digest": digest}), with_tries
    case = Case(facts={"others": [other("a", "succeeded", s_ago=9, left=left)], "asked_at": NOW})
    assert [type(action) for action in case.plan().actions] == [Point]


def test_what_the_run_points_to_already_is_not_taken_again() -> None:
    """It was damaged since, or the like: made anew."""
    left = left_by("a")
    case = Case(facts={"others": [other("a", "succeeded", s_ago=9, left=left)], "asked_at": NOW})
    (taken,) = case.plan().actions
    assert isinstance(taken, Point)
    case.facts["pointed"] = {"ingest": taken.address.pointer()}
    assert case.creates == ["demo-ingest-a1"]


# --- what is in the way


def test_kueues_words_are_shown_as_they_are() -> None:
    case = Case().child("ingest", 1, QUEUED)
    assert case.stage("ingest").message == QUEUED.message
    running = case.status().condition("Running")
    assert running is not None
    assert (running.status, running.reason, running.message) == ("False", "Queued", QUEUED.message)
    assert case.status().phase == "Pending"


def test_a_cluster_without_the_operator_is_told_what_to_install() -> None:
    profile = ClusterProfile.model_validate({"train": {"nodes": 4, "launcher": "pytorchjob"}})
    case = Case({"train": TRAIN, "latents": {"resolutions": ["144p"]}}, DATA_STAGES, profile=profile)
    assert case.plan().actions == []
    assert case.condition("Degraded") == ("True", "KindMissing")
    assert "Training Operator" in case.stage("train").message
    case.facts = {"kinds": frozenset({"Job", "PyTorchJob"})}
    assert case.creates == ["demo-train-a1"]
    assert case.condition("Degraded") == ("False", "AsExpected")


def test_a_name_that_somebody_else_has_is_told_and_never_touched() -> None:
    case = Case(facts={"trouble": Trouble("NameTaken", "There is a Job demo-ingest-a1 that is not this run's.")})
    assert case.plan().actions == []
    assert case.condition("Degraded") == ("True", "NameTaken")
    assert case.stage("ingest").reason == "NameTaken"


def test_without_the_store_nothing_is_begun_and_nothing_is_called_done() -> None:
    trouble = {"finished": None, "trouble": Trouble("StoreUnavailable", "s3://x does not answer.")}
    before = Case(done=["ingest"]).child("clip", 1, RUNNING).status()
    case = Case(facts=trouble).child("clip", 1, RUNNING)
    assert case.plan().actions == []
    status = case.status(before)
    assert [stage.state for stage in status.stages[:2]] == ["Done", "Running"]
    degraded = status.condition("Degraded")
    assert degraded is not None
    assert (degraded.status, degraded.reason) == ("True", "StoreUnavailable")
    assert case.status(RunStatus()).condition("Succeeded") is not None
    assert case.status(RunStatus()).phase == "Pending"


def test_without_the_store_a_suspended_run_still_stops() -> None:
    case = Case(spec={"suspend": True}, facts={"finished": None, "trouble": Trouble("StoreUnavailable", "")})
    assert case.child("ingest", 1, RUNNING).deletes == [("demo-ingest-a1", "Stopping")]


def test_a_cancelled_run_is_over_although_its_store_is_gone() -> None:
    away = {"finished": None, "trouble": Trouble("StoreDenied", "There is no bucket x.")}
    case = Case(spec={"cancel": True}, facts=away)
    assert case.child("ingest", 1, RUNNING).condition("Finished")[0] == "Unknown"
    assert case.condition("Finished") == ("True", "Cancelled")
    assert case.status().phase == "Cancelled"
    done = Case(done=[*DATA_STAGES]).status()
    assert case.status(done).phase == "Succeeded"
    unseen = replace(case, facts=away | {"knows_children": False})
    assert unseen.condition("Finished")[0] == "Unknown"


# --- what is said


def test_a_status_that_was_deleted_is_the_same_again_but_for_since_when() -> None:
    case = Case(done=["ingest"]).child("clip", 1, RUNNING)
    first = case.status()
    case.facts = {"now": NOW + timedelta(hours=1)}
    assert case.status(first) == first
    lost = case.status(RunStatus())
    assert lost.stages == first.stages
    assert {each.last_transition_time for each in lost.conditions} == {stamp(NOW + timedelta(hours=1))}


def test_a_condition_keeps_its_time_while_its_status_is_the_same() -> None:
    before = Case(done=["ingest"]).child("clip", 1, QUEUED).status()
    later = Case(done=["ingest"], facts={"now": NOW + timedelta(minutes=5)}).child("clip", 1, RUNNING).status(before)
    times = {each.type: each.last_transition_time for each in later.conditions}
    assert times.pop("Running") == stamp(NOW + timedelta(minutes=5))
    assert set(times.values()) == {stamp(NOW)}


def test_an_event_tells_each_change_of_a_reason_once() -> None:
    queued = Case(done=["ingest"]).child("clip", 1, QUEUED)
    running = Case(done=["ingest"]).child("clip", 1, RUNNING)
    assert [event.reason for event in events(RunStatus(), queued.status())] == ["StageDone", "Queued"]
    assert events(queued.status(), running.status()) == [Event("Running", RUNNING.message)]
    assert events(running.status(), running.status()) == []
    over = Case(done=["ingest"]).child("clip", 1, failed(64))
    told = events(running.status(), over.status())
    assert [(event.reason, event.is_warning) for event in told] == [("WrongSpec", True), ("Failed", True)]


def test_progress_is_told_with_a_pace_and_an_end() -> None:
    begun = NOW - timedelta(minutes=10)
    beats = [
        Heartbeat("running", 100, 400, "clips", "a.mp4", 0.5, NOW),
        Heartbeat("done", 300, 300, "clips", "", 0.5, NOW - timedelta(minutes=1)),
        Heartbeat("running", 9, 9, "clips", "of an earlier try", 9.0, begun - timedelta(hours=1)),
    ]
    case = Case(facts={"heartbeats": beats}).child("ingest", 1, RUNNING, ended_s_ago=0, ran_s=600)
    progress = case.stage("ingest").progress
    assert progress is not None
    assert (progress.done, progress.total, progress.unit) == (400, 700, "clips")
    assert (progress.per_hour, progress.eta_s, progress.eta) == ("1800 clips/h", 600, "10 min")
    assert case.status().progress == "400/700 clips, 10 min left"
    alone = replace(case, facts={"heartbeats": beats[:1]})
    half = alone.stage("ingest").progress
    assert half is not None
    assert (half.done, half.total) == (100, 800)  # the other shard has not begun, and is taken to be like this one


@pytest.mark.parametrize(
    ("done", "rate", "eta_s", "eta"),
    [(12, 0.5, 0, "0 s"), (1, 1e-300, None, ""), (1, float("inf"), 0, "0 s")],
)
def test_a_heartbeat_that_cannot_be_right_is_no_fault_of_the_controller(
    done: int, rate: float, eta_s: int | None, eta: str
) -> None:
    beats = [Heartbeat("running", done, 10, "clips", "", rate, NOW)] * 2
    case = Case(facts={"heartbeats": beats}).child("ingest", 1, RUNNING, ended_s_ago=0, ran_s=600)
    progress = case.stage("ingest").progress
    assert progress is not None
    assert (progress.eta_s, progress.eta) == (eta_s, eta)


def test_the_status_does_not_grow_with_shards_nor_with_what_is_said() -> None:
    loud = replace(QUEUED, message="no " * 10_000)
    beats = [Heartbeat("running", 1, 10, "clips" * 99, "n" * 9999, 0.1, NOW)] * 5000
    case = Case(facts={"heartbeats": beats}).child("ingest", 1, loud)
    assert len(case.status().model_dump_json()) < 20_000
