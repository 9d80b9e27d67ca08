"""What is encoded, under which keys, and what goes into a pack together."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bricks_core.errors import SpecError
from bricks_core.progress import Progress
from bricks_core.spec.caption import Caption
from bricks_core.spec.items import ItemKey
from bricks_core.spec.latents import CodecSpec, LatentsSpec, TextSpec
from bricks_core.stages.latents.packing import packs
from bricks_core.stages.latents.sources import Captions, LatentTask, Plan, Recipes, Source, TextTask
from bricks_core.video.buckets import resolution

MB = 1 << 20
SPEC = LatentsSpec(resolutions=["144p", "96x160"], pack_bytes=2 * MB)
RECIPES = Recipes.of(SPEC, {})


def source(number: int, **changes) -> Source:
    facts = {
        "id": f"{number:016x}",
        "clip_id": f"{number:016x}",
        "video_id": "0" * 16,
        "key": f"items/clip/00/{number:032x}.00000000.mp4",
        "sha256": "0" * 64,
        "item": f"clip/{number:032x}",
        "num_frames": 20,
        "height_px": 360,
        "width_px": 640,
        "fps": 25.0,
        "text": RECIPES.text(f"Text {number % 7}.").key.key,
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
        kind=st.sampled_from(["video", "image"]),
        split=st.sampled_from(["train", "held_out"]),
    ),
    max_size=30,
    unique_by=lambda each: each.id,
)


def latents(some, spec=SPEC) -> list[LatentTask]:
    plan = Plan.of(some, spec, Recipes.of(spec, {}))
    tasks = plan.tasks(Captions([], RECIPES), RECIPES)
    return [each for each in tasks if isinstance(each, LatentTask)]


@settings(max_examples=60, deadline=None)
@given(sources)
def test_every_source_is_encoded_once_at_every_resolution_it_is_large_enough_for(some):
    plan = Plan.of(some, SPEC, RECIPES)
    for name, num_pixels in (("144p", 36864), ("96x160", 96 * 160)):
        found = [each.source.id for each in plan.sized if each.resolution == name]
        wanted = [each.id for each in some if each.height_px * each.width_px >= 0.8 * num_pixels]
        assert sorted(found) == sorted(wanted)
        assert plan.num_too_small[name] == len(some) - len(wanted)
    assert {each.key for each in latents(some)} == {each.key for each in plan.sized}


@settings(max_examples=60, deadline=None)
@given(sources)
def test_a_size_has_the_aspect_nearest_to_the_source_s(some):
    for each in Plan.of(some, SPEC, RECIPES).sized:
        wanted = resolution(each.resolution).size_for(each.source.height_px, each.source.width_px)
        assert each.size == wanted
        if each.resolution == "96x160":
            assert each.size == ("96x160", 96, 160)


@settings(max_examples=60, deadline=None)
@given(sources, st.randoms())
def test_the_order_of_the_tables_does_not_matter(some, dice: random.Random):
    shuffled = some.copy()
    dice.shuffle(shuffled)
    assert latents(shuffled) == latents(some)


@settings(max_examples=60, deadline=None)
@given(sources, st.integers(1, 9))
def test_ids_differ_and_are_dealt_to_shards_by_whole_batches(some, num_shards):
    tasks = latents(some)
    assert len({each.id for each in tasks}) == len(tasks)
    shards: dict[str, set[int]] = {}
    for each in tasks:
        # What Work.is_mine asks.
        shards.setdefault(each.key.key[:2], set()).add(int(each.id[:8], 16) % num_shards)
    assert all(len(each) == 1 for each in shards.values())


def test_256_batches_are_dealt_evenly():
    tasks = [TextTask(ItemKey("text", f"{number:02x}" * 16), "", 0) for number in range(256)]
    assert set(Counter(int(each.id[:8], 16) % 4 for each in tasks).values()) == {64}


# ------------------------------------------------------------------------------------------------------------- keys


@settings(max_examples=60, deadline=None)
@given(sources)
def test_names_sides_of_the_split_captions_and_files_are_in_no_key(some):
    others = [
        each._replace(
            id=each.id[::-1],
            clip_id="x",
            video_id="y",
            split="train" if each.split == "held_out" else "held_out",
            text="0" * 32,
            key="items/clip/ff/another.mp4",
            sha256="1" * 64,
            fps=1.0,
        )
        for each in some
    ]
    assert [each.key for each in latents(others)] == [each.key for each in latents(some)]


@pytest.mark.parametrize(
    "changes",
    [
        {"item": "clip/" + "f" * 32},
        {"item": "file/" + f"{1:032x}"},
        {"num_frames": 21},
        {"kind": "image"},
        {"height_px": 640, "width_px": 360},
    ],
)
def test_another_clip_length_kind_or_size_is_another_item(changes):
    def keys(each: Source) -> list[ItemKey]:
        return [task.key for task in latents([each], LatentsSpec(resolutions=["144p"]))]

    assert keys(source(1)) != keys(source(1, **changes))


def test_how_chunks_and_packs_are_made_is_in_no_key_and_what_encodes_is():
    usual = Recipes.of(LatentsSpec(), {})
    how = LatentsSpec(pack_bytes=1 << 20, codec=CodecSpec(chunk_frames=3), images=False, min_scale=0.1)
    assert Recipes.of(how, {}) == usual
    vae = Recipes.of(LatentsSpec(codec=CodecSpec(kind="sd-vae", model="a")), {})
    assert (vae.codec, vae.encoder) == ({"kind": "sd-vae", "model": "a"}, usual.encoder)
    short = Recipes.of(LatentsSpec(text=TextSpec(max_tokens=9)), {})
    assert (short.codec, short.encoder) == (usual.codec, {"max_tokens": 9})
    assert short.text("A car.").key != usual.text("A car.").key != usual.text("A cat.").key


def test_keys_are_those_that_stores_have_already():
    # Pinned: with another key for the same work, every clip of every store would be encoded again.
    (task,) = latents([source(1)], LatentsSpec(resolutions=["96x160"]))
    assert task.key == ("latent", "60962e4387f1f457ebf7c0fddabcd78b")
    assert RECIPES.text("A car.").key == ("text", "37add3d4f40c9bf7af0b698fe72e226a")


def test_where_a_codec_joins_frames_those_it_leaves_out_are_in_no_key():
    spec = LatentsSpec(codec=CodecSpec(kind="wan-vae", model="a"), resolutions=["96x160"])
    keys = [latents([source(1, num_frames=num)], spec)[0].key for num in (17, 18, 20, 21)]
    assert keys[0] == keys[1] == keys[2] != keys[3]


def test_equal_captions_are_one_text_and_the_empty_one_is_always_there():
    rows = [
        Caption(id=source(number).id, clip_id="", kind="video", status="ok", text=text, num_words=2, by="")
        for number, text in enumerate(["A car.", "A car.", "A cat."])
    ]
    captions = Captions(rows, RECIPES)
    some = [source(number, text=captions.text_key(source(number).id)) for number in range(3)]
    tasks = [each for each in Plan.of(some, SPEC, RECIPES).tasks(captions, RECIPES) if isinstance(each, TextTask)]
    assert sorted(captions.text(each.caption_id)[0] for each in tasks) == ["", "A car.", "A cat."]
    assert {each.key for each in tasks} == {RECIPES.text(text).key for text in ("", "A car.", "A cat.")}


def test_a_resolution_named_twice_is_encoded_once():
    once = LatentsSpec(resolutions=["96x160"])
    twice = once.model_copy(update={"resolutions": ["96x160"] * 2})
    assert Plan.of([source(1)], twice, RECIPES) == Plan.of([source(1)], once, RECIPES)


def test_an_unknown_resolution_is_refused_with_the_nearest_one():
    with pytest.raises(SpecError, match=r"144q.*144p"):
        Plan.of([source(1)], LatentsSpec(resolutions=["144q"]), RECIPES)


# ------------------------------------------------------------------------------------------------------------ packs


class Alone:
    """Claims of whoever has everything to himself: counts what is held."""

    def __init__(self) -> None:
        self.held: Counter[str] = Counter()

    def take(self, batch: str) -> None:
        self.held[batch] += 1

    def release(self, batch: str) -> None:
        self.held[batch] -= 1

    def lost(self, batch: str) -> bool:
        return False


def packed(tasks, spec=SPEC) -> Iterator[list]:
    claims, done = Alone(), set()
    items = SimpleNamespace(load=lambda keys: done.intersection(keys))
    work = SimpleNamespace(claims=claims, items=items, progress=Progress("latents"))
    for pack in packs(work, tasks, spec, lambda each: each.size):
        assert all(claims.held[f"latent/{each.key.key[:2]}"] > 0 for each in pack)
        yield pack
        done.update(each.key for each in pack)
    assert not +claims.held


@settings(max_examples=60, deadline=None)
@given(sources)
def test_every_task_is_in_one_pack_of_its_shape_and_claimed_until_the_pack_is_stored(some):
    tasks = latents(some)
    found = list(packed(tasks))
    assert sorted(each.key for pack in found for each in pack) == sorted(each.key for each in tasks)
    for pack in found:
        assert len({each.size for each in pack}) == 1
        assert pack == sorted(pack, key=lambda each: each.key)


@settings(max_examples=60, deadline=None)
@given(sources)
def test_a_pack_is_no_larger_than_asked_unless_one_clip_is(some):
    for pack in packed(latents(some)):
        size = pack[0].size
        num_bytes = sum(each.source.num_frames * 4 * size.latent_height * size.latent_width * 2 for each in pack)
        assert num_bytes <= SPEC.pack_bytes or len(pack) == 1


def test_who_fails_gives_back_what_it_has_claimed():
    claims = Alone()
    items = SimpleNamespace(load=lambda keys: set())
    work = SimpleNamespace(claims=claims, items=items, progress=Progress("latents"))
    coming = packs(work, latents([source(number) for number in range(40)]), SPEC, lambda each: each.size)
    next(coming)
    assert +claims.held
    coming.close()
    assert not +claims.held
