"""An evaluation that a CI asks for: a Job made of a run file and a commit, and what it came to.

The Job's name says what it is (suite, commit, attempt), so a CI that asks twice for the same work gets the same Job.
Its run is one of its own that goes on from the trained run's answers (spec.inputs_of), and asks for this commit's own
evaluation (evaluate.code): nothing that somebody else relies on is replaced, and what another commit sampled is not
taken for this one's (docs/ci-evaluation.md).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bricks_core.cluster.launcher import Object, Task
from bricks_core.cluster.manifests import objects
from bricks_core.cluster.run_file import as_yaml
from bricks_core.cluster.runs import checked
from bricks_core.errors import SpecError, UsageError
from bricks_core.pipeline.resolve import finished
from bricks_core.report.read import read_report
from bricks_core.spec.cluster import ClusterProfile
from bricks_core.spec.manifest import Manifest
from bricks_core.spec.run import BrickRun
from bricks_core.storage.artifacts import Artifact
from bricks_core.storage.store import Store

STAGE = "evaluate"
COMMIT_ANNOTATION = "bricks.dev/commit"
SUITE_ANNOTATION = "bricks.dev/suite"
MAX_SUITE = 12
KEPT_FOR_S = 86_400
"""A finished Job, its logs and its run file stay a day; the report is in the store."""
_SHA = re.compile(r"[0-9a-f]{7,64}")
_SUITE = re.compile(rf"[a-z0-9]([-a-z0-9]{{0,{MAX_SUITE - 2}}}[a-z0-9])?")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Asked:
    """What is to be evaluated."""

    run: BrickRun
    profile: ClusterProfile
    sha: str
    """The commit, at least its first seven digits."""
    suite: str = "default"
    """Names the evaluation, where a CI wants several of one commit."""
    attempt: int = 1
    image_digest: str = ""
    """Of the evaluate image: sha256:…; empty: as the profile says."""
    namespace: str = ""
    """Empty: whatever kubectl's context says."""
    any_code: bool = False
    """Take the answer of another commit if there is one."""


@dataclass(frozen=True)
class EvaluationJob:
    """A rendered file, read back."""

    run: BrickRun
    workload: Object
    config: Object
    store_uri: str

    @property
    def name(self) -> str:
        return str(self.workload["metadata"]["name"])

    @property
    def namespace(self) -> str | None:
        return self.workload["metadata"].get("namespace")

    @property
    def sha(self) -> str:
        return str(self.workload["metadata"].get("annotations", {}).get(COMMIT_ANNOTATION, ""))

    @property
    def suite(self) -> str:
        return str(self.workload["metadata"].get("annotations", {}).get(SUITE_ANNOTATION, "")) or self.run.name


@dataclass(frozen=True)
class Report:
    """An evaluation that is in the store."""

    manifest: Manifest
    key: str
    """Of its page, from the store's root."""
    numbers: dict[str, Any]


def render(asked: Asked) -> str:
    """The YAML of the Job and of what it needs. The same arguments give the same bytes.

    Raises:
        UsageError: the commit, the suite or the digest is none.
        SpecError: the run has no evaluate, or no train, section.
    """
    _check(asked)
    run, annotations = _run_of(asked), {COMMIT_ANNOTATION: asked.sha, SUITE_ANNOTATION: asked.suite}
    profile = asked.profile
    if asked.image_digest:
        digests = profile.images.digests | {STAGE: asked.image_digest}
        profile = profile.model_copy(update={"images": profile.images.model_copy(update={"digests": digests})})
    task = Task(run, STAGE, profile, asked.attempt, name=f"{run.name}-r{asked.attempt}")
    rendered = objects(task, asked.namespace)
    workload = rendered[-1]
    workload["metadata"]["annotations"] |= annotations
    workload["spec"]["ttlSecondsAfterFinished"] = KEPT_FOR_S
    return "---\n".join(as_yaml(each) for each in rendered)


def load_evaluation(file: Path) -> EvaluationJob:
    """Read what `render` wrote.

    Raises:
        SpecError: the file is something else.
    """
    try:
        documents = [each for each in yaml.safe_load_all(file.read_text(encoding="utf-8")) if isinstance(each, dict)]
    except FileNotFoundError:
        raise SpecError(f"{file} is not there: write it with bricks ci render … > {file}.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SpecError(f"{file} cannot be read as YAML: {' '.join(str(error).split())}.") from None
    by_kind = {str(each.get("kind")): each for each in documents}
    try:
        workload, config = by_kind["Job"], by_kind["ConfigMap"]
        run = BrickRun.model_validate(yaml.safe_load(config["data"]["run.yaml"]))
        (container,) = workload["spec"]["template"]["spec"]["containers"]
        store = next(each["value"] for each in container["env"] if each["name"] == "BRICKS_STORE")
        workload["metadata"]["name"]
    except (AttributeError, KeyError, TypeError, ValueError, StopIteration, yaml.YAMLError):
        raise SpecError(f"{file} holds no evaluation as bricks ci render writes one: render it again.") from None
    return EvaluationJob(run, workload, config, store)


def find_report(run: BrickRun, store: Store) -> Report | None:
    """The run's evaluation as it is in the store; None while there is none.

    Raises:
        DataError: it is there and cannot be read, or was altered.
    """
    answer = finished(run, store).get(STAGE)
    if answer is None:
        return None
    manifest = answer[1]
    artifact = Artifact(store, manifest)
    return Report(manifest, f"{artifact.prefix}report/index.html", read_report(artifact))


def _run_of(asked: Asked) -> BrickRun:
    """The run that the Job works for: named after the commit, going on from the run in the file."""
    run = asked.run
    run.stage_spec("train")
    evaluate = run.stage_spec(STAGE)
    if not asked.any_code:
        evaluate = evaluate.model_copy(update={"code": asked.sha})
    spec = run.spec.model_copy(update={"inputs_of": run.spec.inputs_of or run.name, "evaluate": evaluate})
    metadata = run.metadata.model_copy(update={"name": f"eval-{asked.sha[:12]}-{asked.suite}"})
    # Read anew: a copy is not checked, and the name has rules.
    return BrickRun.model_validate(run.model_copy(update={"metadata": metadata, "spec": spec}).model_dump(mode="json"))


def _check(asked: Asked) -> None:
    if not _SHA.fullmatch(asked.sha):
        raise UsageError(f'--sha "{asked.sha}" is no commit: 7 to 64 digits of 0-9a-f, as git rev-parse HEAD says it.')
    if not _SUITE.fullmatch(asked.suite):
        raise UsageError(
            f'--suite "{asked.suite}" cannot be part of a name: at most {MAX_SUITE} lower-case letters, digits and '
            "dashes, such as smoke."
        )
    if asked.namespace:
        checked(asked.namespace, "namespace")
    if asked.image_digest and not _DIGEST.fullmatch(asked.image_digest):
        raise UsageError(f'--image-digest "{asked.image_digest}" is none: write sha256: and 64 digits of 0-9a-f.')
