"""An evaluation's Job on its way, and the report on what it came to: wherever it ended, there is one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bricks_core.cluster.api import AlreadyThere, Changed, Cluster, NotThere, Refused
from bricks_core.cluster.comment import no_verdict_comment, verdict_comment
from bricks_core.cluster.evaluation import STAGE, EvaluationJob, Report, find_report
from bricks_core.cluster.launcher import Object
from bricks_core.cluster.logs import Wanted, follow_logs
from bricks_core.cluster.pod import STORE_FOLDER
from bricks_core.cluster.wait import Ended, Tell, observe, wait_for_workload
from bricks_core.errors import BricksError, ClusterDenied, ClusterUnavailable
from bricks_core.report.gates import Outcome, judge
from bricks_core.storage.places import open_store
from bricks_core.storage.store import Store

LAST_LINES_S = 10.0
"""The Job is at its end before its last lines are read."""


@dataclass(frozen=True)
class Result:
    """What an evaluation came to."""

    words: str
    markdown: str
    verdict: Outcome | None
    """None: there is no report, so that it says nothing about the commit."""


def wait_for_evaluation(
    connect: Callable[[], Cluster],
    job: EvaluationJob,
    *,
    timeout_s: float,
    every_s: float,
    logs: bool,
    tell: Tell,
) -> Ended:
    """Wait for the Job's end, with its lines where they are wanted. See wait_for_workload."""
    reader: list[threading.Thread] = []

    def seen(workload: Object) -> None:
        _adopt(connect(), job, workload)
        if logs:
            reader.append(threading.Thread(target=_print_logs, args=(connect, job, tell), daemon=True))
            reader[0].start()

    ended = wait_for_workload(connect, job.workload, timeout_s=timeout_s, tell=tell, every_s=every_s, seen=seen)
    for thread in reader:
        thread.join(LAST_LINES_S)
    return ended


def report_on(job: EvaluationJob, store_uri: str, connect: Callable[[], Cluster], web: str = "") -> Result:
    """The report on an evaluation: its verdict, or why there is none.

    What is in the store is the verdict, whatever became of the Job since. Only where there is nothing is the cluster
    asked why; and where that cannot be asked either, that is said.
    """
    try:
        report = find_report(job.run, _store_of(store_uri))
    except BricksError as error:
        return _no_verdict(job, f"The report cannot be read: {error}")
    if report is None:
        return _no_verdict(job, f"{store_uri} holds no report of it. {why_no_report(job, connect)}")
    return _verdict(job, report, store_uri, web)


def why_no_report(job: EvaluationJob, connect: Callable[[], Cluster]) -> str:
    """What the cluster knows of a Job that left no report."""
    try:
        cluster = connect()
        workload = cluster.get("Job", job.name)
        seen = observe(cluster, workload)
    except NotThere:
        return f"Job {job.name} is not there: it was never created, or deleted, or its time after the end is up."
    except (ClusterUnavailable, ClusterDenied) as error:
        return f"What became of its Job cannot be asked: {error}"
    match seen.state:
        case "succeeded":
            return (
                f"Job {job.name} is complete, so it wrote to another store, or had another run file: compare "
                "BRICKS_STORE in the Job with --store."
            )
        case "failed":
            return seen.message
    return f"Job {job.name} is not at its end yet: {seen.message}"


def _verdict(job: EvaluationJob, report: Report, store_uri: str, web: str) -> Result:
    verdict = judge(report.numbers, job.run.spec.gates)
    return Result(verdict.words, verdict_comment(job, report, verdict, store_uri, web), verdict)


def _no_verdict(job: EvaluationJob, why: str) -> Result:
    return Result(f"Evaluation {job.name} has no verdict. {why}", no_verdict_comment(job, why), None)


def _store_of(uri: str) -> Store:
    # A claim's place inside the pods (StoreProfile); elsewhere it is mounted somewhere else, or nowhere.
    if uri.startswith(f"file://{STORE_FOLDER}") and not Path(uri.removeprefix("file://")).is_dir():
        raise ClusterUnavailable(
            f"{uri} is a volume of the cluster, and is not mounted here: give its place here as --store, or run "
            "this in a pod that mounts it."
        )
    return open_store(uri)


def _adopt(cluster: Cluster, job: EvaluationJob, workload: Object) -> None:
    """Let the run file's ConfigMap go when its Job does. Where we may not, it stays, which harms nobody."""
    name, meta = job.config["metadata"]["name"], workload["metadata"]
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": meta["name"], "uid": meta["uid"]}
    try:
        there = cluster.get("ConfigMap", name)["metadata"]
        owners = there.get("ownerReferences") or []
        if all(each["uid"] != meta["uid"] for each in owners):
            version = {"resourceVersion": there["resourceVersion"]}
            cluster.patch("ConfigMap", name, {"metadata": version | {"ownerReferences": [*owners, owner]}})
    except (NotThere, Changed, Refused, AlreadyThere, ClusterDenied, ClusterUnavailable):
        return


def _print_logs(connect: Callable[[], Cluster], job: EvaluationJob, tell: Tell) -> None:
    attempt = int(job.workload["metadata"]["labels"]["bricks.dev/attempt"])
    try:
        for line in follow_logs(connect(), Wanted(job.run.name, STAGE, attempt)):
            tell(line)
    except BricksError as error:
        tell(f"(no more lines: {error})")
