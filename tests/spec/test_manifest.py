"""An artifact's address: the same question has the same one, another question another."""

from hypothesis import given
from hypothesis import strategies as st

from bricks_core.spec.clip import ClipSpec
from bricks_core.spec.manifest import artifact_digest, content_id
from bricks_core.spec.stages import STAGES, until

CLIP = STAGES["clip"]


def test_the_same_question_has_the_same_address():
    assert artifact_digest(CLIP, ClipSpec(), {"ingest": "a"}) == artifact_digest(
        CLIP, ClipSpec(crf=18), {"ingest": "a"}
    )


@given(crf=st.integers(0, 51).filter(lambda crf: crf != 18))
def test_another_setting_is_another_question(crf):
    assert artifact_digest(CLIP, ClipSpec(crf=crf), {}) != artifact_digest(CLIP, ClipSpec(), {})


def test_another_input_is_another_question():
    assert artifact_digest(CLIP, ClipSpec(), {"ingest": "a"}) != artifact_digest(CLIP, ClipSpec(), {"ingest": "b"})


def test_an_address_never_changes_by_accident():
    # A change here moves every artifact in every store: raise SCHEMA_VERSION or a stage's version, and mean it.
    assert artifact_digest(CLIP, ClipSpec(), {"ingest": "a"}) == "dad7a06be4d62ab2acbd8a6f044a8ce6"


@given(st.lists(st.text(), min_size=1), st.lists(st.text(), min_size=1))
def test_ids_of_different_things_differ(one, other):
    assert (content_id(*one) == content_id(*other)) == (one == other)


def test_every_stage_reads_only_stages_before_it():
    for place, stage in enumerate(until(None)):
        assert set(stage.needs) <= {each.name for each in until(None)[:place]}
