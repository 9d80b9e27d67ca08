"""Which clips are encoded together."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bricks_core.errors import SpecError
from bricks_core.spec.latents import LatentsSpec
from bricks_core.stages.latents.groups import Source, group
from bricks_core.video.buckets import resolution

MB = 1 << 20
SPEC = LatentsSpec(resolutions=["144p", "96x160"], pack_bytes=2 * MB)


def source(number: int, **changes) -> Source:
    facts = {
        "id": f"{number:016x}",
        "clip_id": f"{number:016x}",
        "video_id": "0" * 16,
        "key": f"clips/{number:016x}.mp4",
        "num_frames": 20,
        "height_px": 360,
        "width_px": 640,
        "fps": 25.0,
        "num_words": 20,
        "kind": "video",
        "split": "train",
    }
    return Source(**{**facts, **changes})


sources = st.lists(
    st.builds(
        source,
        st.integers(0, 10**6),
        num_frames=st.integers(1, 200),
        height_px=st.sampled_from([90, 120, 144, 360, 720]),
        width_px=st.sampled_from([90, 120, 256, 640]),
        num_words=st.integers(0, 300),
        kind=st.sampled_from(["video", "image"]),
        split=st.sampled_from(["train", "held_out"]),
    ),
    max_size=30,
    unique_by=lambda each: each.id,
)


@settings(max_examples=60, deadline=None)
@given(sources)
def test_every_source_is_in_one_group_for_every_resolution_it_is_large_enough_for(some):
    for name, num_pixels in (("144p", 36864), ("96x160", 96 * 160)):
        groups = [each for each in group(some, SPEC).groups if each.shape.resolution == name]
        found = [each.id for pack in groups for each in pack.sources]
        wanted = [each.id for each in some if each.height_px * each.width_px >= 0.8 * num_pixels]
        assert sorted(found) == sorted(wanted)
        assert group(some, SPEC).num_too_small[name] == len(some) - len(wanted)


@settings(max_examples=60, deadline=None)
@given(sources)
def test_a_group_has_one_shape_one_kind_and_one_side_of_the_split(some):
    for each in group(some, SPEC).groups:
        assert {(one.kind, one.split) for one in each.sources} == {(each.shape.kind, each.shape.split)}
        if each.shape.resolution == "96x160":
            assert each.shape.size == ("96x160", 96, 160)
        else:
            aspects = {resolution("144p").size_for(one.height_px, one.width_px) for one in each.sources}
            assert aspects == {each.shape.size}


@settings(max_examples=60, deadline=None)
@given(sources)
def test_a_pack_is_no_larger_than_asked_unless_one_clip_is(some):
    for each in group(some, SPEC).groups:
        size = each.shape.size
        latents = sum(one.num_frames * 4 * size.latent_height * size.latent_width * 2 for one in each.sources)
        assert latents <= SPEC.pack_bytes or len(each.sources) == 1


@settings(max_examples=60, deadline=None)
@given(sources, st.randoms())
def test_the_order_of_the_tables_does_not_matter(some, dice: random.Random):
    shuffled = some.copy()
    dice.shuffle(shuffled)
    assert group(shuffled, SPEC) == group(some, SPEC)


@settings(max_examples=60, deadline=None)
@given(sources)
def test_ids_differ_and_can_be_dealt_to_shards(some):
    ids = [each.id for each in group(some, SPEC).groups]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch("[0-9a-f]{16}", each) for each in ids)


def test_another_clip_changes_the_groups_of_its_shape_and_no_others():
    wide = [source(number) for number in range(5)]
    tall = source(9, height_px=640, width_px=360)
    before = {each.id for each in group(wide, SPEC).groups if each.shape.resolution == "144p"}
    after = {each.id for each in group([*wide, tall], SPEC).groups if each.shape.resolution == "144p"}
    assert before < after
    assert len(after - before) == 1


def test_a_resolution_named_twice_is_encoded_once():
    once = LatentsSpec(resolutions=["96x160"])
    assert group([source(1)], once.model_copy(update={"resolutions": ["96x160"] * 2})) == group([source(1)], once)


def test_an_unknown_resolution_is_refused_with_the_nearest_one():
    with pytest.raises(SpecError, match=r"144q.*144p"):
        group([source(1)], LatentsSpec(resolutions=["144q"]))
