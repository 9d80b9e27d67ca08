"""Run files of earlier versions are read, and mean what they meant, or are refused with what to write instead."""

from __future__ import annotations

import json

import pytest
import yaml

from bricks_core.errors import SpecError
from bricks_core.spec.earlier import GONE
from bricks_core.spec.run import BrickRun, load_run, run_of
from tests.earlier.forms import FOLDER, RUN_FILE_FIELDS, ever_known, run_file_fields

RUN_FILES = FOLDER / "run_files"


def test_a_field_that_any_version_has_known_is_known_or_has_a_sentence():
    assert run_file_fields() | GONE.keys() == ever_known(), (
        "A field of the run file is new: python -m tests.earlier.forms keeps it. Or one is gone: write in "
        "spec/earlier.py what to write instead, since files and BrickRuns have it."
    )
    assert ever_known() == set(RUN_FILE_FIELDS.read_text(encoding="utf-8").split())


@pytest.mark.parametrize("version", [1, 2])
def test_a_file_means_what_it_meant_to_the_version_that_resolved_it(version):
    """run.json says every default as it was then."""
    then = json.loads((FOLDER / f"stored/run/{version}.json").read_text(encoding="utf-8"))
    now = load_run(RUN_FILES / "tiny.yaml").model_dump(mode="json")
    assert list(changed(then, now)) == [], "a default is another one now: tell it in docs/run-file.md, and here"


def changed(then, now, place=""):
    """Where a value is not what it was; what was not there then may be anything."""
    if isinstance(then, dict) and isinstance(now, dict):
        for name, each in then.items():
            yield from changed(each, now.get(name), f"{place}.{name}")
    elif isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        for number, each in enumerate(then):
            yield from changed(each, now[number], f"{place}.{number}")
    elif then != now:
        yield f"{place}: {then} → {now}"


def test_a_run_file_that_an_earlier_version_resolved_is_a_run_file():
    for file in sorted((FOLDER / "stored/run").glob("*.json")):
        assert BrickRun.model_validate_json(file.read_text(encoding="utf-8")) == load_run(RUN_FILES / "tiny.yaml")


def test_a_field_whose_numbers_mean_something_else_now_is_refused_with_what_to_write():
    with pytest.raises(SpecError) as caught:
        load_run(RUN_FILES / "first.yaml")
    assert str(caught.value).removeprefix(f"{RUN_FILES / 'first.yaml'}: ") == GONE["spec.clip.content_threshold"]


def test_the_rest_of_the_first_run_file_is_read(tmp_path):
    document = yaml.safe_load((RUN_FILES / "first.yaml").read_text(encoding="utf-8"))
    del document["spec"]["clip"]
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    assert load_run(tmp_path / "run.yaml").spec.train.model.family == "stdit2"  # which was not written then


def test_a_brickrun_with_a_field_that_is_gone_is_refused_with_the_same_sentence():
    document = yaml.safe_load((RUN_FILES / "first.yaml").read_text(encoding="utf-8"))
    with pytest.raises(SpecError) as caught:
        run_of(document)
    assert str(caught.value) == GONE["spec.clip.content_threshold"]


def test_a_brickrun_with_a_field_of_a_later_version_is_refused_with_its_place():
    document = yaml.safe_load((RUN_FILES / "tiny.yaml").read_text(encoding="utf-8"))
    document["spec"]["train"]["of_tomorrow"] = 1
    with pytest.raises(SpecError, match=r'unknown key "spec\.train\.of_tomorrow"'):
        run_of(document)
