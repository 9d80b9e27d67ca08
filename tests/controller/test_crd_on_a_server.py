"""The kind BrickRun as an API server keeps it: the double, and Kubernetes 1.20.2 where its start script is at hand.

Neither evaluates rules in CEL; test_crd.py has those.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from bricks_core.controller.crd import COLUMNS, crd
from bricks_core.controller.status import Condition, RunStatus
from bricks_core.errors import SpecError
from bricks_core.spec.earlier import GONE
from bricks_core.spec.run import run_of
from tests.kubernetes.double import Double
from tests.kubernetes.raw import APPLY, Answered, Api, eventually
from tests.kubernetes.real import namespace_of, real_server

ROOT = Path(__file__).parents[2]
RUN_FILES = sorted((ROOT / "k8s" / "runs").glob("*.yaml"))
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
Object = dict[str, Any]

pytestmark = pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning")


@pytest.fixture(scope="module", params=["double", "1.20.2"])
def api(request: pytest.FixtureRequest) -> Iterator[Api]:
    """A server that has been given the CRD."""
    if request.param == "double":
        with Double(crds=[crd()]) as double:
            yield double.api()
        return
    api = real_server().api()
    _take_away(api)  # another test's, of the same server
    api.post(CRDS, crd())
    eventually(lambda: api.get("/apis/bricks.dev/v1alpha1"))
    yield api
    _take_away(api)


def _take_away(api: Api) -> None:
    """Delete the CRD and wait until it is gone, with all runs."""

    def gone() -> bool:
        try:
            api.delete(f"{CRDS}/brickruns.bricks.dev")
        except Answered as answer:
            return answer.status == 404
        return False

    eventually(gone)


@pytest.fixture
def runs(api: Api) -> Iterator[str]:
    """Where the runs of a namespace are."""
    with namespace_of(api) as namespace:
        yield f"/apis/bricks.dev/v1alpha1/namespaces/{namespace}/brickruns"


@pytest.fixture
def real(api: Api) -> Api:
    if api.get("/version")["gitVersion"] != "v1.20.2":
        pytest.skip("only the real server does this")
    return api


def document(name: str = "quickstart") -> Object:
    return yaml.safe_load((ROOT / "k8s" / "runs" / f"{name}.yaml").read_text(encoding="utf-8"))


def test_the_schema_is_admitted_as_structural(real):
    status = real.get(f"{CRDS}/brickruns.bricks.dev")["status"]
    conditions = {each["type"]: each["status"] for each in status["conditions"]}
    assert conditions["Established"] == "True"
    assert conditions["NamesAccepted"] == "True"
    assert "NonStructuralSchema" not in conditions


@pytest.mark.parametrize("file", RUN_FILES, ids=lambda file: file.stem)
def test_every_run_file_is_kept_as_it_was_written_without_a_default_or_a_loss(api, runs, file):
    wanted = yaml.safe_load(file.read_text(encoding="utf-8"))
    kept = api.post(runs, wanted)
    assert kept["spec"] == wanted["spec"]
    assert kept["metadata"]["generation"] == 1
    assert "status" not in kept


def test_it_can_be_applied_from_the_server_side_twice(api, runs):
    wanted = document()
    for _ in range(2):
        kept = api.patch(f"{runs}/quickstart", wanted, APPLY, fieldManager="test")
    assert kept["spec"] == wanted["spec"]
    assert kept["metadata"]["generation"] == 1


def test_a_key_that_is_none_is_not_kept(api, runs):
    wanted = document()
    wanted["spec"]["captoin"] = {"provider": "openai"}
    wanted["spec"]["train"]["phases"][0]["stepps"] = 4
    kept = api.post(runs, wanted)
    assert kept["spec"] == document()["spec"]


def test_an_address_to_notify_is_not_kept(api, runs):
    wanted = document()
    wanted["spec"]["notify"] = "https://example.org/secret"
    kept = api.post(runs, wanted)
    assert "secret" not in json.dumps(kept)
    assert "secret" not in json.dumps(api.get(f"{runs}/quickstart"))


def test_a_field_of_an_earlier_version_is_kept_for_whoever_says_what_to_write_instead(api, runs):
    """A server with rules in CEL refuses it when it is written, and keeps what it has stored."""
    wanted = document()
    wanted["spec"]["clip"] = {"content_threshold": 27}
    with pytest.raises(SpecError) as caught:
        run_of(api.post(runs, wanted))
    assert str(caught.value) == GONE["spec.clip.content_threshold"]


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (["cluster"], {"launcher": "mpijob"}, "launcher"),
        (["cluster"], {"nodes": 0}, "nodes"),
        (["clip"], {"preset": "placebo"}, "preset"),
        (["train", "phases", 0, "steps"], 0, "steps"),
        (["train", "phases", 0, "buckets"], [], "buckets"),
        (["ingest", "sources"], ["films"], "sources"),
        (["evaluate", "prompts"], "a text", "prompts"),
        (["suspend"], "yes", "suspend"),
    ],
)
def test_a_value_that_cannot_be_is_refused_and_its_place_told(api, runs, path, value, said):
    wanted = document()
    place = wanted["spec"]
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    with pytest.raises(Answered) as refused:
        api.post(runs, wanted)
    assert refused.value.status == 422
    assert said in refused.value.body["message"]


def test_null_is_said_where_it_means_something(api, runs):
    wanted = document()
    wanted["spec"]["cluster"] = {"launcher": None, "nodes": None}
    wanted["spec"]["train"]["mask_ratios"] = None
    assert api.post(runs, wanted)["metadata"]["name"] == "quickstart"


def test_a_status_is_written_beside_the_run_and_changes_no_generation(api, runs):
    kept = api.post(runs, document())
    condition = Condition(
        type="Accepted", status="True", last_transition_time="2026-11-24T14:00:00Z", reason="Ok", message="…"
    )
    kept["status"] = RunStatus(phase="Running", current_stage="clip", conditions=[condition]).written()
    kept["spec"]["suspend"] = True
    written = api.put(f"{runs}/quickstart/status", kept)
    assert written["status"]["phase"] == "Running"
    assert "suspend" not in written["spec"]
    assert written["metadata"]["generation"] == 1

    written["status"] = {"phase": "Failed"}
    written["spec"]["suspend"] = True
    changed = api.put(f"{runs}/quickstart", written)
    assert changed["status"]["phase"] == "Running"
    assert changed["metadata"]["generation"] == 2


def test_a_status_that_is_none_of_ours_is_refused(api, runs):
    kept = api.post(runs, document())
    kept["status"] = {"phase": "Lost"}
    with pytest.raises(Answered) as refused:
        api.put(f"{runs}/quickstart/status", kept)
    assert refused.value.status == 422


def test_columns_are_those_of_kubectl_get(real, runs):
    kept = real.post(runs, document())
    kept["status"] = RunStatus(phase="Running", current_stage="clip", progress="3/9 clips").written()
    real.put(f"{runs}/quickstart/status", kept)
    response = real._pool.request(  # a table is another answer to the same question
        "GET",
        f"{real.url}{runs}",
        headers={
            "Authorization": f"Bearer {real.token}",
            "Accept": "application/json;as=Table;v=v1;g=meta.k8s.io",
        },
    )
    table = response.json()
    names = [column["name"] for column in table["columnDefinitions"]]
    assert names == ["Name", *(column[0] for column in COLUMNS)]
    cells = dict(zip(names, table["rows"][0]["cells"], strict=True))
    assert (cells["Phase"], cells["Stage"], cells["Progress"]) == ("Running", "clip", "3/9 clips")


def test_kubectl_explain_has_our_words(real):
    def published() -> Object:
        definitions = real.get("/openapi/v2")["definitions"]
        return definitions["dev.bricks.v1alpha1.BrickRun"]["properties"]["spec"]["properties"]

    frames = eventually(published)["clip"]["properties"]["max_frames"]
    assert frames == {"description": "A longer shot is split into even pieces.", "type": "integer", "minimum": 2}
