"""The CustomResourceDefinition: what an API server says of a run file before the controller sees it.

The schema is held against the run file's own contract in both directions. Rules in CEL are evaluated by a library for
CEL. That this is what Kubernetes says, test_crd_by_kubernetes.py holds.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import cel
import jsonschema
import kubernetes_validate
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from bricks_core.controller.crd import COLUMNS, crd, crd_yaml, schema
from bricks_core.controller.status import Child, Condition, Output, RunStatus, StageProgress, StageStatus, Untold
from bricks_core.spec.earlier import GONE
from bricks_core.spec.run import BrickRun, load_run

ROOT = Path(__file__).parents[2]
RUN_FILES = sorted((ROOT / "k8s" / "runs").glob("*.yaml"))
Object = dict[str, Any]
SCHEMA = schema()

SMALLEST: Object = {
    "apiVersion": "bricks.dev/v1alpha1",
    "kind": "BrickRun",
    "metadata": {"name": "small"},
    "spec": {"ingest": {"sources": [{"path": "films"}]}},
}
PHASE: Object = {
    "name": "one",
    "steps": 3,
    "buckets": [{"num_frames": 1, "resolution": "360p", "batch_size": 1}],
    "schedule": {"kind": "constant", "lr": 1e-4},
}


# ------------------------------------------------------------------------------------ what an API server would say


def strict(node: Any) -> Any:
    """A structural schema as a server applies it with strict field validation: a key that is not there is refused."""
    if isinstance(node, list):
        return [strict(each) for each in node]
    if not isinstance(node, dict):
        return node
    made = {name: strict(each) for name, each in node.items() if name not in ("nullable", "description")}
    for name in ("minimum", "maximum"):
        exclusive = "exclusive" + name.capitalize()
        if made.get(exclusive) is True:
            made[exclusive] = made.pop(name)
    if isinstance(node.get("properties"), dict) and node.get("type") == "object":
        made["additionalProperties"] = False
    return {"anyOf": [made, {"type": "null"}]} if node.get("nullable") is True else made


@cache
def validator() -> jsonschema.Draft202012Validator:
    document = strict(SCHEMA)
    document["properties"]["metadata"] = {"type": "object"}  # a server knows more of it than a CRD may say
    return jsonschema.Draft202012Validator(document)


@cache
def compiled(rule: str) -> Any:
    return cel.compile(rule)


def broken_rules(new: Any, old: Any = None, node: Object | None = None) -> Iterator[str]:
    """The messages of the CEL rules that an object breaks, as a server evaluates them: at every place that is there."""
    node = node or SCHEMA
    if new is None:
        return
    for rule in node.get("x-kubernetes-validations", []):
        asked = "oldSelf" not in rule["rule"] or old is not None
        if asked and compiled(rule["rule"]).execute({"self": new, "oldSelf": old}) is not True:
            yield rule["message"]
    for name, child in node.get("properties", {}).items():
        if name in new:
            yield from broken_rules(new[name], (old or {}).get(name), child)
    for each in new if node["type"] == "array" else []:
        yield from broken_rules(each, None, node["items"])


def refusals(document: Object, old: Object | None = None) -> list[str]:
    """What a server says against an object: of its schema, and only if that is right, of its rules."""
    wrong = [f"{error.json_path}: {error.message}" for error in validator().iter_errors(document)]
    return wrong or list(broken_rules(document, old))


def changed(base: Object, path: str, value: Any) -> Object:
    """A copy with one place set, as in spec.train.phases.0.steps."""
    made = copy.deepcopy(base)
    *way, last = path.split(".")
    place: Any = made
    for name in way:
        place = place[int(name)] if isinstance(place, list) else place.setdefault(name, {})
    place[int(last) if isinstance(place, list) else last] = value
    return made


# ------------------------------------------------------------------------------------------------------------ the file


def test_the_committed_file_is_what_the_contract_makes():
    committed = ROOT / "helm" / "bricks" / "files" / "brickruns.yaml"
    assert committed.read_text(encoding="utf-8") == crd_yaml(), (
        f"write it again: bricks schema --crd > {committed.relative_to(ROOT)}"
    )
    assert yaml.safe_load(crd_yaml()) == crd()


@pytest.mark.parametrize("version", ["1.33", "1.34", "1.35", "1.36", "1.37"])
def test_kubernetes_knows_every_key_of_it(version):
    kubernetes_validate.validate(crd(), version, strict=True)


def test_it_fits_the_annotation_in_which_kubectl_apply_keeps_a_copy():
    assert len(json.dumps(crd())) < 128 << 10  # all annotations together may have 256 KiB


def places(node: Object, path: str = "") -> Iterator[tuple[str, Object]]:
    yield path, node
    for name, child in node.get("properties", {}).items():
        yield from places(child, f"{path}.{name}")
    if "items" in node:
        yield from places(node["items"], f"{path}[]")


def test_the_schema_is_structural_and_stores_nothing_that_was_not_written():
    allowed = {
        "type", "description", "nullable", "enum", "format", "pattern", "minLength", "maxLength", "minimum", "maximum",
        "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "items", "minItems", "maxItems", "properties", "required",
        "x-kubernetes-list-type", "x-kubernetes-list-map-keys", "x-kubernetes-validations",
    }  # fmt: skip
    for path, node in places(SCHEMA):
        assert node["type"] in ("object", "array", "string", "integer", "number", "boolean"), path
        assert node.keys() <= allowed, path
        assert (node["type"] == "object") == ("properties" in node), path
        assert node.keys() & {"exclusiveMinimum"} == set() or (node["exclusiveMinimum"] is True and "minimum" in node)


def test_every_list_and_text_has_a_bound_so_that_the_cost_of_rules_has_one():
    for path, node in places(SCHEMA):
        if node["type"] == "array":
            assert 0 < node["maxItems"] <= 1024, path
        if node["type"] == "string":
            assert "enum" in node or 0 < node["maxLength"] <= 4096, path


def test_every_setting_of_a_run_is_there_and_nothing_else():
    def names(node: Object, definitions: Object) -> Iterator[str]:
        if "$ref" in node:
            node = definitions[node["$ref"].rpartition("/")[2]]
        for each in [*node.get("anyOf", []), *node.get("oneOf", []), *[node[k] for k in ("items",) if k in node]]:
            yield from names(each, definitions)
        for name, child in node.get("properties", {}).items():
            yield name
            yield from names(child, definitions)

    document = BrickRun.model_json_schema()
    wanted = set(names(document["properties"]["spec"], document["$defs"]))
    spec = SCHEMA["properties"]["spec"]
    there = {path.rpartition(".")[2].rstrip("[]") for path, _ in places(spec, ".spec")}
    stages = set(spec["properties"]["cluster"]["properties"]["stages"]["properties"])
    shared = {"shards", "parallelism", "cpu", "memory", "scratch", "gpus", "deadline_s"}
    earlier = {path.rpartition(".")[2] for path in GONE}
    assert there == (wanted | stages | shared | {"spec"} | earlier) - {"notify"}


def test_the_address_of_whoever_is_told_is_no_part_of_it_as_all_could_read_it_who_read_runs():
    document = changed(SMALLEST, "spec.notify", "https://example.org/secret")
    assert BrickRun.model_validate(document).spec.notify is not None
    (said,) = refusals(document)
    assert "'notify' was unexpected" in said
    assert "notify" not in SCHEMA["properties"]["spec"]["properties"]


@pytest.mark.parametrize("path", GONE)
def test_a_field_of_an_earlier_version_is_there_to_be_refused_with_what_to_write_instead(path):
    found = {place.replace("[]", ""): node for place, node in places(SCHEMA)}[f".{path}"]
    assert GONE[path] in found["description"]


def test_columns_point_into_the_schema():
    known = {path for path, _ in places(SCHEMA)}
    for name, _, path, _ in COLUMNS:
        field, _, condition = path.partition("[?")
        assert field in known or field == ".metadata.creationTimestamp", name
        assert not condition or f"{field}[].{condition.rpartition('.')[2]}" in known, name


# -------------------------------------------------------------------------------------------- runs, as users write them


@pytest.mark.parametrize("file", RUN_FILES, ids=lambda file: file.stem)
def test_every_run_file_here_is_accepted_as_written_and_with_all_defaults(file):
    run = load_run(file)
    for document in (
        yaml.safe_load(file.read_text(encoding="utf-8")),
        run.model_dump(mode="json"),
        run.model_dump(mode="json", exclude_unset=True),
    ):
        assert refusals(document) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.captoin", {}),
        ("spec.clip", {"min_frame": 3}),
        ("spec.cluster", {"stages": {"trian": {}}}),
        ("spec.train", {"phases": [PHASE | {"stepps": 3}]}),
        ("spec.train", {"phases": []}),
        ("spec.train", {"phases": [PHASE | {"schedule": {"kind": "constant"}}]}),
        ("spec.clip", {"crf": 52}),
        ("spec.clip", {"crf": None}),
        ("spec.clip", {"preset": "placebo"}),
        ("spec.clip", {"cut_threshold": 0}),
        ("spec.score", {"held_out_share": 1}),
        ("spec.cluster", {"nodes": 0}),
        ("spec.cluster", {"launcher": "mpijob"}),
        ("spec.cluster", {"stages": {"clip": {"memory": "lots"}}}),
        ("spec.train", {"phases": [PHASE], "model": {"hidden_size": 100}}),
        ("spec.suspend", "yes"),
        ("spec", {}),
    ],
)
def test_the_schema_refuses(path, value):
    document = changed(SMALLEST, path, value)
    assert list(validator().iter_errors(document))
    with pytest.raises(ValidationError):
        BrickRun.model_validate_json(json.dumps(document), strict=True)


def test_a_source_is_a_mapping_on_a_cluster_where_a_laptop_also_takes_a_bare_path():
    document = changed(SMALLEST, "spec.ingest.sources", ["films"])
    assert BrickRun.model_validate(document).model_dump(mode="json", exclude_unset=True) == SMALLEST
    assert refusals(document)


def test_the_cluster_section_that_the_run_files_page_shows_is_accepted():
    page = (ROOT / "docs" / "run-file.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    document = SMALLEST | {"spec": SMALLEST["spec"] | yaml.safe_load(shown)}
    assert refusals(document) == []
    assert BrickRun.model_validate(document).spec.cluster.stages["clip"].shards == 64


# ---------------------------------------------------------------------------------------------------------------- rules

TRAINED = changed(SMALLEST, "spec.train", {"phases": [PHASE]})
BUCKET = "spec.train.phases.0.buckets.0"
CYCLE = {"kind": "one_cycle", "max_lr": 1e-3, "lr": 1e-5, "warmup_steps": 1, "cooldown_steps": 1}
EVALUATE = {"prompts": ["a"], "resolution": "9p"}
CANCELLED = changed(SMALLEST, "spec.cancel", True)

REFUSED: list[tuple[str, Object, Object | None]] = [
    ("metadata.name must be", changed(SMALLEST, "metadata.name", "a" * 31), None),
    ("metadata.name must be", changed(SMALLEST, "metadata.name", "9-lives"), None),
    ("metadata.name must be", changed(SMALLEST, "metadata.name", "a.b"), None),
    ("metadata.name must be", changed(SMALLEST, "metadata.name", "dash-"), None),
    ("a bucket's resolution is not encoded", changed(TRAINED, "spec.latents", {"resolutions": ["240p"]}), None),
    ("a bucket's resolution is not encoded", changed(TRAINED, f"{BUCKET}.resolution", "9p"), None),
    ("evaluate.resolution is not encoded", changed(SMALLEST, "spec.evaluate", EVALUATE), None),
    ("max_frames is too near", changed(SMALLEST, "spec.clip", {"min_frames": 101}), None),
    ("provider openai needs a model", changed(SMALLEST, "spec.caption", {"provider": "openai"}), None),
    ("every kind but patch-dct needs one", changed(SMALLEST, "spec.latents.codec", {"kind": "sd-vae"}), None),
    ("every kind but hashed-words needs one", changed(SMALLEST, "spec.latents.text", {"kind": "t5"}), None),
    ("content_threshold is clip.cut_threshold now", changed(SMALLEST, "spec.clip", {"content_threshold": 27}), None),
    ("two phases have the same name", changed(SMALLEST, "spec.train", {"phases": [PHASE, PHASE]}), None),
    ("constant has no", changed(TRAINED, "spec.train.phases.0.schedule.warmup_steps", 3), None),
    ("cosine_constant needs", changed(TRAINED, "spec.train.phases.0.schedule.kind", "cosine_constant"), None),
    (
        "cosine_constant has no max_lr",
        changed(TRAINED, "spec.train.phases.0.schedule", CYCLE | {"kind": "cosine_constant"}),
        None,
    ),
    ("one_cycle needs max_lr", changed(TRAINED, "spec.train.phases.0.schedule.kind", "one_cycle"), None),
    ("stdit2 has no num_layers", changed(TRAINED, "spec.train.model", {"num_layers": 2}), None),
    ("wan has no hidden_size", changed(TRAINED, "spec.train.model", {"family": "wan", "hidden_size": 96}), None),
]  # fmt: skip

ACCEPTED: list[tuple[str, Object, Object | None]] = [
    ("a name of 30", changed(SMALLEST, "metadata.name", "a" * 29 + "9"), None),
    ("a name of one letter", changed(SMALLEST, "metadata.name", "a"), None),
    ("cancelled", CANCELLED, SMALLEST),
    ("still cancelled", changed(CANCELLED, "spec.suspend", True), CANCELLED),
    ("not cancelled, said", changed(SMALLEST, "spec.cancel", False), SMALLEST),
    ("begun again by bricks retry", changed(CANCELLED, "spec.cancel", False), CANCELLED),
    ("suspended and resumed", SMALLEST, changed(SMALLEST, "spec.suspend", True)),
    ("a bucket at the default resolution", TRAINED, None),
    ("a stage that is null", changed(changed(SMALLEST, "spec.train", None), "spec.evaluate", None), None),
    ("sections that are empty", changed(changed(SMALLEST, "spec.latents", {}), "spec.caption", {}), None),
    ("the shortest longest clip", changed(SMALLEST, "spec.clip", {"min_frames": 100, "max_frames": 199}), None),
    ("a model for openai", changed(SMALLEST, "spec.caption", {"provider": "openai", "model": "any"}), None),
    ("a codec with a model", changed(SMALLEST, "spec.latents.codec", {"kind": "sd-vae", "model": "a/b"}), None),
    ("two phases", changed(SMALLEST, "spec.train", {"phases": [PHASE, PHASE | {"name": "two"}]}), None),
    ("a cycle", changed(TRAINED, "spec.train.phases.0.schedule", CYCLE), None),
    ("stdit2 without its name", changed(TRAINED, "spec.train.model", {"hidden_size": 96, "num_heads": 4}), None),
]


@pytest.mark.parametrize(("message", "document", "old"), REFUSED)
def test_a_rule_refuses_and_says_how_to_mend_it(message, document, old):
    (said,) = refusals(document, old)
    assert message in said
    if old is None:
        with pytest.raises(ValidationError):
            BrickRun.model_validate(document)


@pytest.mark.parametrize(("_", "document", "old"), ACCEPTED, ids=[each[0] for each in ACCEPTED])
def test_rules_accept(_, document, old):
    assert refusals(document, old) == []
    BrickRun.model_validate(document)


def test_every_rule_is_seen_to_refuse_something():
    rules = {rule["message"] for _, node in places(SCHEMA) for rule in node.get("x-kubernetes-validations", [])}
    seen = {said for _, document, old in REFUSED for said in refusals(document, old)}
    assert rules == seen


def test_a_run_file_is_accepted_again_when_nothing_in_it_changed():
    for file in RUN_FILES:
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
        assert refusals(document, document) == []


# ---------------------------------------------------------------------------------- against the contract, in both ways

WRITTEN = [load_run(file).model_dump(mode="json") for file in RUN_FILES]
"""The run files with every default written out: wherever something can be changed, it is there."""


def in_bounds(node: Object) -> st.SearchStrategy[Any]:
    """Values of a place's type, mostly such that its schema accepts them, often at its bounds."""
    kind = node["type"]
    low, high = node.get("minimum"), node.get("maximum")
    if "enum" in node:
        values: st.SearchStrategy[Any] = st.sampled_from([*node["enum"], "no such word"])
    elif kind == "boolean":
        values = st.booleans()
    elif kind == "integer":
        edges = [edge + step for edge in (low, high) if edge is not None for step in (-1, 0, 1)]
        values = st.sampled_from([*edges, 1, 12, 16, 96, 1000])
    elif kind == "number":
        edges = [edge + step for edge in (low, high) if edge is not None for step in (-0.5, 0, 1e-9)]
        values = st.sampled_from([*edges, 0.0, 0.5, 1, 2.25, 1e-7])
    elif kind == "string":
        texts = ["", "x", "360p", "96x160", "9p", "64Gi", "500m", "a.b-c", "2026-11-24T14:00:00Z", "held_out.loss.raw"]
        values = st.sampled_from(texts)
    elif kind == "array":
        values = st.lists(in_bounds(node["items"]), max_size=3)
    else:
        required = {name: in_bounds(node["properties"][name]) for name in node.get("required", [])}
        optional = {name: in_bounds(each) for name, each in node["properties"].items() if name not in required}
        values = st.fixed_dictionaries(required, optional=optional)
    return st.one_of(values, values, st.none()) if node.get("nullable") else values


ANYTHING = (None, "x", 3, 2.5, True, {}, [])


@st.composite
def documents(draw: st.DrawFn) -> Object:
    """A run file, with some of its places changed, emptied or left out."""
    document = copy.deepcopy(draw(st.sampled_from(WRITTEN)))
    for _ in range(draw(st.integers(1, 4))):
        node, place = SCHEMA["properties"]["spec"], document["spec"]
        while True:
            if isinstance(place, list):
                if not place:
                    break
                key: Any = draw(st.integers(0, len(place) - 1))
                child = node["items"]
            else:
                key = draw(st.sampled_from(sorted(node["properties"])))
                child = node["properties"][key]
            there = key in place if isinstance(place, dict) else True
            inside = there and {dict: "properties", list: "items"}.get(type(place[key]), "") in child
            if inside and draw(st.integers(0, 5)) > 0:
                node, place = child, place[key]
                continue
            if draw(st.integers(0, 5)) == 0 and there:
                del place[key]
            else:
                values = in_bounds(child) if draw(st.integers(0, 7)) else st.sampled_from(ANYTHING)
                place[key] = copy.deepcopy(draw(values))
            break
    return document


def accepted(document: Object, **how: bool) -> BrickRun | None:
    try:
        return BrickRun.model_validate_json(json.dumps(document), **how)
    except ValidationError:
        return None


def has_a_bare_source(document: Object) -> bool:
    ingest = document["spec"].get("ingest")
    sources = ingest.get("sources") if isinstance(ingest, dict) else None
    return isinstance(sources, list) and any(isinstance(each, str) for each in sources)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(documents())
def test_what_the_contract_accepts_the_cluster_accepts_and_what_the_cluster_refuses_the_contract_refuses(document):
    run = accepted(document)
    if run is not None:
        assert refusals(run.model_dump(mode="json")) == []
        assert refusals(run.model_dump(mode="json", exclude_unset=True)) == []
    # Strictly: a laptop reads "16" as a number too, and Kubernetes does not. Nor does it take a text for a source.
    if refusals(document) and not has_a_bare_source(document):
        assert accepted(document, strict=True) is None


# --------------------------------------------------------------------------------------------------------------- status


def test_a_status_as_the_controller_writes_it_is_accepted():
    time = "2026-11-24T14:00:00Z"
    progress = StageProgress(
        done=3, total=9, unit="clips", per_hour="5400 clips/h", eta_s=60, eta="1 min", told_at=time
    )
    stage = StageStatus(
        name="clip",
        state="Running",
        attempt=2,
        child=Child(kind="Job", name="demo-clip-a2", uid="1"),
        output=Output(uri="s3://bucket/a", digest="0" * 32),
        started_at=time,
        progress=progress,
    )
    condition = Condition(type="Accepted", status="True", last_transition_time=time, reason="Ok", message="")
    untold = Untold(event="verdict", stage="evaluate")
    whole = RunStatus(phase="Running", stages=[stage], conditions=[condition], untold=untold)
    for status in (RunStatus(), whole):
        assert refusals(SMALLEST | {"status": status.written()}) == []
    assert refusals(SMALLEST | {"status": {"phase": "Lost"}})


def test_the_lists_of_a_status_are_merged_by_name():
    status = SCHEMA["properties"]["status"]["properties"]
    for name, key in (("conditions", "type"), ("stages", "name")):
        assert status[name]["x-kubernetes-list-type"] == "map"
        assert status[name]["x-kubernetes-list-map-keys"] == [key]
        assert key in status[name]["items"]["required"]
