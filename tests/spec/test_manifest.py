"""Cache keys: the same work has the same one, other work another."""

from hypothesis import given
from hypothesis import strategies as st

from bricks_core.spec.clip import ClipSpec
from bricks_core.spec.manifest import artifact_digest, cache_key, content_id
from bricks_core.spec.stages import STAGES, until
from bricks_core.spec.strict import what_of

CLIP = STAGES["clip"]


def key_of(spec, inputs):
    return cache_key(CLIP, what_of(spec), inputs)


def test_the_same_work_has_the_same_key():
    assert key_of(ClipSpec(), {"ingest": "a"}) == key_of(ClipSpec(crf=18), {"ingest": "a"})


@given(crf=st.integers(0, 51).filter(lambda crf: crf != 18))
def test_another_setting_is_other_work(crf):
    assert key_of(ClipSpec(crf=crf), {}) != key_of(ClipSpec(), {})


def test_another_input_is_other_work():
    assert key_of(ClipSpec(), {"ingest": "a"}) != key_of(ClipSpec(), {"ingest": "b"})


def test_an_artifact_lies_under_its_key_unless_it_depends_on_more():
    key = key_of(ClipSpec(), {})
    assert artifact_digest(key, {}) == key
    assert len({artifact_digest(key, {"sides": side}) for side in ("a", "b")} | {key}) == 3


def test_a_key_never_changes_by_accident():
    # A change here moves every artifact in every store: raise SCHEMA_VERSION or a stage's version, and mean it.
    assert key_of(ClipSpec(), {"ingest": "a"}) == "a40e70f25b46e1c03d8a9794ac606fc8"
    assert key_of(ClipSpec(crf=20), {"ingest": "a"}) == "05b6d7ebf9e5fdcc42c4196d9c9740df"


@given(st.lists(st.text(), min_size=1), st.lists(st.text(), min_size=1))
def test_ids_of_different_things_differ(one, other):
    assert (content_id(*one) == content_id(*other)) == (one == other)


def test_every_stage_reads_only_stages_before_it():
    for place, stage in enumerate(until(None)):
        assert set(stage.needs) <= {each.name for each in until(None)[:place]}
