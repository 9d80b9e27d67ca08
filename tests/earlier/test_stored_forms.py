"""What lies in stores and clusters is read by every later version.

`stored/` keeps an example of each form that an object has had, numbered from the first on; `forms.txt` says what the
forms are today. Whoever changes one adds an example, and the reader for what was before, if a default is not enough.
"""

from __future__ import annotations

import json

import pytest
import yaml

from bricks_core.cluster.pin import Pin
from bricks_core.controller.status import read_status
from bricks_core.errors import CorruptManifest
from bricks_core.pipeline.points import Points
from bricks_core.spec.items import Item, ItemKey
from bricks_core.spec.manifest import SCHEMA_VERSION, Manifest, cache_key_then
from bricks_core.spec.run import run_of
from bricks_core.spec.stages import STAGES
from bricks_core.spec.strict import what_of
from bricks_core.storage.artifacts import find_manifest
from bricks_core.storage.places import open_store
from bricks_core.storage.trainings import Begun
from tests.earlier.forms import FOLDER, KEPT, OBJECTS, forms

STORED = FOLDER / "stored"
TINY = yaml.safe_load((FOLDER / "run_files/tiny.yaml").read_text(encoding="utf-8"))
EXAMPLES = sorted(STORED.glob("*/*.json"))


def versions(name):
    return sorted(STORED.glob(f"{name}/*.json"), key=lambda file: int(file.stem))


def read(file):
    """What the reader of today makes of a stored object."""
    name, text = file.parent.name, file.read_text(encoding="utf-8")
    if name == "item":
        return Item.opened(text, ItemKey(*(json.loads(json.loads(text)["item"])[part] for part in ("kind", "key"))))
    return OBJECTS[name].model_validate_json(text)


def test_a_changed_form_comes_with_an_example_and_a_reader_of_what_was_before():
    assert forms() == KEPT.read_text(encoding="utf-8"), (
        "A stored form has changed, and stores hold the one before. Give a new field a default, read what was renamed "
        "or means something else now (storage/earlier.py; of items, raise the kind's version), keep an example of the "
        "new form as the next tests/earlier/stored/<name>/<n>.json, then call python -m tests.earlier.forms."
    )


@pytest.mark.parametrize("name", OBJECTS)
def test_the_last_example_has_every_field_of_today(name):
    last = json.loads(versions(name)[-1].read_text(encoding="utf-8"))
    if name == "item":
        last = json.loads(last["item"])
    assert last.keys() == OBJECTS[name].model_fields.keys()


@pytest.mark.parametrize("name", OBJECTS)
def test_examples_are_numbered_from_the_first_version_on(name):
    assert [int(file.stem) for file in versions(name)] == list(range(1, len(versions(name)) + 1))


@pytest.mark.parametrize(
    "file",
    [each for each in EXAMPLES if each.parent.name in OBJECTS],
    ids=lambda file: f"{file.parent.name}-{file.stem}",
)
def test_every_form_that_was_ever_stored_is_read_and_says_what_it_said(file):
    data = json.loads(file.read_text(encoding="utf-8"))
    if file.parent.name == "item":
        data = json.loads(data["item"])
    told = read(file).model_dump(mode="json")
    assert {field: told[field] for field in data} == data


def test_a_manifest_of_schema_1_can_be_looked_at_and_is_never_built_on(tmp_path):
    store = open_store(str(tmp_path / "store"))
    for file in versions("manifest"):
        data = json.loads(file.read_text(encoding="utf-8"))
        store.put(f"artifacts/train/{data['digest']}/manifest.json", file.read_bytes())
        assert find_manifest(store, "train", data["digest"], earlier=True).spec == data["spec"]
        if data["schema_version"] == SCHEMA_VERSION:
            assert find_manifest(store, "train", data["digest"]) is not None
        else:
            with pytest.raises(CorruptManifest, match="bricks store upgrade, and then bricks run of its file"):
                find_manifest(store, "train", data["digest"])


def test_a_training_that_was_begun_leads_to_the_same_states_as_then():
    for file in versions("trainings"):
        begun = Begun.model_validate_json(file.read_text(encoding="utf-8"))
        assert begun.trajectory().prefixes() == begun.places


def test_a_brickrun_that_a_cluster_keeps_is_the_run_that_it_was():
    for file in versions("brickrun"):
        stored = json.loads(file.read_text(encoding="utf-8"))
        run = run_of(stored)
        assert (run.name, run.spec.cluster.nodes, run.spec.train.phases[1].steps) == ("tiny", 2, 5)
        status = read_status(stored["status"])
        assert (status.phase, status.current_stage, [each.name for each in status.stages]) == (
            "Running",
            "train",
            ["ingest", "train"],
        )


def test_what_a_run_began_with_on_a_cluster_is_read():
    for file in versions("pin"):
        pin = Pin.read(json.loads(file.read_text(encoding="utf-8")))
        assert pin is not None, "a pin of before counts as damaged: give new fields of Pin a default"
        brickrun = json.loads(versions("brickrun")[0].read_text(encoding="utf-8"))
        run, spec = pin.run_of(brickrun)
        assert spec is not None
        assert run == run_of(brickrun)


READ_OF_LATENTS = "c3c81cf456c9520553f37d0b48cb7c81"
"""What stood for the latents in the key of the training, in the store that points/1.json is of."""
VERSIONS = {"ingest": 3, "clip": 3, "score": 3, "caption": 3, "latents": 3, "train": 2, "evaluate": 2}
"""Of its stages."""


@pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)
def test_what_was_finished_then_has_the_key_that_it_had(stage):
    """Of another version of the stage, the key that this one had then: so it is found, and stays finished."""
    points = Points.model_validate_json(versions("points")[0].read_text(encoding="utf-8"))
    pointer = points.stages[stage.name]
    spec = run_of(TINY).stage_spec(stage.name)
    outside = {name: each for name, each in pointer.inputs.items() if name not in STAGES}
    keyed = {need: READ_OF_LATENTS if stage.name == "train" else pointer.inputs[need] for need in stage.key_inputs}
    manifest = Manifest.model_construct(stage=stage.name, stage_version=VERSIONS[stage.name], kind_versions={})
    assert cache_key_then(manifest, what_of(spec), keyed | outside) == pointer.cache_key
    assert what_of(type(spec).model_validate(pointer.spec)) == what_of(spec)
