"""The reduced schemas are those of the published CRDs."""

import json
from pathlib import Path

import pytest

from tests.schemas.reduce import CRDS, SOURCES, reduced

PUBLISHED = Path(__file__).parents[3] / "shared/schemas"


@pytest.mark.parametrize("name", SOURCES)
def test_a_reduced_schema_is_what_the_published_file_gives(name):
    if not PUBLISHED.is_dir():
        pytest.skip("The published CRDs are not beside this clone: README.md says where they come from.")
    (file,) = PUBLISHED.rglob(name)
    kind = reduced(file)
    assert json.loads((CRDS / f"{kind['kind'].lower()}.json").read_text(encoding="utf-8")) == kind


@pytest.mark.parametrize("file", sorted(CRDS.glob("*.json")), ids=lambda file: file.stem)
def test_a_reduced_schema_names_its_source_and_refuses_what_it_does_not_know(file):
    kind = json.loads(file.read_text(encoding="utf-8"))
    assert kind["source"].startswith("https://github.com/")
    assert kind["schema"]["additionalProperties"] is False
    assert not [text for text in texts(kind["schema"]) if len(text) > 60 and " " in text], "it describes"


def texts(schema):
    if isinstance(schema, dict):
        for key, value in schema.items():
            yield key
            yield from texts(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from texts(value)
    elif isinstance(schema, str):
        yield schema
