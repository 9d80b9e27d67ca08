"""The CRD, judged by Kubernetes' own code where that was built (kubernetes_code.py); and so is what test_crd.py says.

It admits the schema and its rules, whose cost it bounds, and says of every object what we say of it.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings

from bricks_core.controller.crd import crd
from bricks_core.controller.status import RunStatus
from tests.controller.kubernetes_code import JUDGE
from tests.controller.test_crd import ACCEPTED, REFUSED, RUN_FILES, SMALLEST, Object, documents, refusals

pytestmark = pytest.mark.skipif(
    not JUDGE.exists(), reason="Kubernetes' own code is not built: python -m tests.controller.kubernetes_code"
)


def judged(folder: Path, cases: list[tuple[Object, Object | None]]) -> list[list[str]]:
    """What Kubernetes says of each object, which replaces another one or none."""
    (folder / "crd.json").write_text(json.dumps(crd()), encoding="utf-8")
    lines = (json.dumps({"object": new, "old": old}) + "\n" for new, old in cases)
    (folder / "objects.jsonl").write_text("".join(lines), encoding="utf-8")
    asked = subprocess.run(
        [JUDGE, folder / "crd.json", folder / "objects.jsonl"], capture_output=True, encoding="utf-8", timeout=300
    )
    assert asked.returncode == 0, asked.stderr
    return [json.loads(line) for line in asked.stdout.splitlines()]


def test_run_files_and_a_status_are_right(tmp_path):
    written = [(yaml.safe_load(file.read_text(encoding="utf-8")), None) for file in RUN_FILES]
    reported = SMALLEST | {"status": RunStatus(phase="Running", current_stage="clip").written()}
    assert judged(tmp_path, [*written, (reported, None)]) == [[]] * (len(written) + 1)


def test_every_rule_refuses_what_it_should_in_our_words(tmp_path):
    said = judged(tmp_path, [(new, old) for _, new, old in REFUSED])
    for (message, _, _), (only,) in zip(REFUSED, said, strict=True):
        assert message in only
    assert judged(tmp_path, [(new, old) for _, new, old in ACCEPTED]) == [[]] * len(ACCEPTED)


def test_of_any_run_file_it_says_what_our_tests_say(tmp_path):
    drawn: list[tuple[Object, Object | None]] = []

    @settings(max_examples=500, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(documents())
    def draw(document: Object) -> None:
        drawn.append((document, None))

    draw()
    for (document, _), said in zip(drawn, judged(tmp_path, drawn), strict=True):
        assert bool(said) == bool(refusals(document)), (said, document)
