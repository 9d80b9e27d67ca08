"""Which samples a step takes, and what is random about them."""

from __future__ import annotations

import itertools
import threading
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bricks_core.errors import SpecError
from bricks_core.spec.train import Constant, MaskRatios, Phase, TrainBucket
from bricks_core.stages.train.dataloader import Loader, Plan, Prefetched, Purpose, randomness, strategies
from bricks_core.storage.shards import Packs
from tests.stages.train.conftest import CLIPS, IMAGES, small_spec
from tests.stages.train.latents_made_up import made_up_rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("latents")


@pytest.fixture(scope="module")
def rows(folder):
    return made_up_rows(folder)


@pytest.fixture(scope="module")
def packs(folder):
    return Packs(lambda key: folder / key)


def of_phase(*buckets, steps=200, **changes):
    return small_spec(
        phases=[Phase(name="only", steps=steps, buckets=list(buckets), schedule=Constant(lr=1e-3))], **changes
    )


def facts(step_samples):
    """Everything about the samples of a step, their noise included."""
    return [
        (each.row.id, each.begin, each.timestep, each.drop, each.frame_mask, each.noise.standard_normal(3).tolist())
        for samples in step_samples
        for each in samples
    ]


# ---------------------------------------------------------------------------------------------------- which clips


@pytest.mark.parametrize("num_frames", [5, 33])
def test_where_latents_join_frames_every_window_is_a_clip_s_beginning(tmp_path, num_frames):
    rows, packs = made_up_rows(tmp_path, time_stride=4), Packs(lambda key: tmp_path / key)
    assert min(row.num_frames for row in rows if row.kind == "video") == 33  # 9 latents
    bucket = TrainBucket(num_frames=num_frames, resolution="64x48", batch_size=4)
    loader, plan = Loader(Plan(of_phase(bucket), rows), packs), Plan(of_phase(bucket), rows)
    for step in range(6):
        [samples] = plan.samples(step)
        [batch] = loader.micro_batches(step)
        assert {sample.begin for sample in samples} == {0}
        assert batch.latents.shape == (4, 1 + (num_frames - 1) // 4, 4, 8, 6)
        assert batch.noise.shape == (4, 4, 1 + (num_frames - 1) // 4, 8, 6)
        assert batch.sizes["num_frames"].tolist() == [num_frames] * 4
        for sample, latents in zip(samples, batch.latents, strict=True):
            np.testing.assert_array_equal(latents.numpy(), packs.window(sample.row, 0, num_frames))


def test_a_batch_brings_the_empty_caption(rows, packs):
    [batch] = Loader(Plan(of_phase(CLIPS), rows), packs).micro_batches(0)
    assert batch.empty_text.tolist() == [[1.0] * 24]


def test_names_captions_and_the_order_of_the_table_change_no_sample(rows):
    renamed = [
        row.model_copy(update={"video_id": f"other-{place}", "clip_id": str(place), "caption": "", "pack": "x"})
        for place, row in enumerate(reversed(rows))
    ]
    before, after = (Plan(of_phase(CLIPS, IMAGES), each) for each in (rows, renamed))
    for step in range(20):
        assert facts(before.samples(step)) == facts(after.samples(step))


@settings(deadline=None, max_examples=30)
@given(steps=st.lists(st.integers(0, 199), min_size=1, max_size=8))
def test_a_step_is_a_function_of_its_number_whatever_was_asked_before(rows, steps):
    spec = of_phase(IMAGES, CLIPS)
    asked = Plan(spec, rows)
    for step in steps:
        assert facts(asked.samples(step)) == facts(Plan(spec, rows).samples(step))


def test_the_order_of_the_table_makes_no_difference(rows):
    spec = of_phase(CLIPS)
    assert facts(Plan(spec, rows).samples(7)) == facts(Plan(spec, rows[::-1]).samples(7))


def test_every_clip_comes_once_before_any_comes_again(rows):
    plan = Plan(of_phase(CLIPS), rows)
    taken = [sample.row.id for step in range(9) for sample in plan.samples(step)[0]]
    epochs = [taken[first : first + 12] for first in range(0, 36, 12)]
    assert all(len(set(epoch)) == 12 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_a_batch_larger_than_the_data_takes_every_clip_equally_often(rows):
    plan = Plan(of_phase(TrainBucket(num_frames=1, resolution="64x48", batch_size=36)), rows)
    assert set(Counter(sample.row.id for sample in plan.samples(0)[0]).values()) == {3}


def test_another_seed_takes_another_order(rows):
    orders = {
        tuple(sample.row.id for sample in Plan(of_phase(CLIPS, seed=seed), rows).samples(0)[0]) for seed in range(5)
    }
    assert len(orders) == 5


def test_held_out_clips_are_never_trained_on(rows):
    plan = Plan(of_phase(IMAGES, CLIPS), rows)
    splits = {sample.row.split for step in range(50) for samples in plan.samples(step) for sample in samples}
    assert splits == {"train"}


def test_a_batch_has_one_shape_and_every_shape_has_its_share_of_turns(tmp_path):
    rows = made_up_rows(tmp_path, num_clips=18, num_held_out=0, sizes=((6, 8), (4, 10), (5, 9)))
    rows = [row for row in rows if row.latent_height != 4 or row.clip_id in ("clip-1", "clip-4")]
    plan = Plan(of_phase(TrainBucket(num_frames=4, resolution="48x64", batch_size=2), steps=700), rows)
    turns, taken = Counter(), Counter()
    for step in range(700):
        [samples] = plan.samples(step)
        [shape] = {sample.row.latent_height for sample in samples}
        turns[shape] += 1
        taken.update(sample.row.id for sample in samples)
    assert turns[6] == pytest.approx(300, rel=0.2)
    assert turns[5] == pytest.approx(300, rel=0.2)
    assert turns[4] == pytest.approx(100, rel=0.3)
    assert len(taken) == 14
    assert min(taken.values()) > 0.6 * max(taken.values())


def test_a_clip_is_usable_when_it_has_the_frames_the_interval_spans(rows):
    assert CLIPS.num_frames_spanned == 7
    longest = TrainBucket(num_frames=6, resolution="64x48", frame_interval=2, batch_size=1)
    assert longest.num_frames_spanned == 11
    plan = Plan(of_phase(longest), rows)
    assert {sample.row.num_frames for step in range(30) for sample in plan.samples(step)[0]} == {11}


@pytest.mark.parametrize(
    ("bucket", "words"),
    [
        (
            TrainBucket(num_frames=7, resolution="64x48", frame_interval=2, batch_size=1),
            "Of 12, 12 are shorter than the 13",
        ),
        (TrainBucket(num_frames=2, resolution="360p", batch_size=1), "12 have no latents of 360p (there is 64x48)"),
    ],
)
def test_a_bucket_that_no_clip_fits_is_named_with_the_reasons_and_how_to_mend_it(rows, bucket, words):
    with pytest.raises(SpecError) as raised:
        Plan(of_phase(IMAGES, bucket), rows)
    assert raised.value.exit_code == 78
    assert f"train.phases.0.buckets.1 ({bucket.name})" in str(raised.value)
    assert words in str(raised.value)
    assert "Take fewer num_frames" in str(raised.value)


def test_a_bucket_of_images_without_images_says_where_images_come_from(rows):
    with pytest.raises(SpecError, match=r"set latents\.images to true"):
        Plan(of_phase(IMAGES), [row for row in rows if row.kind == "video"])


# -------------------------------------------------------------------------------------------------- what is random


def test_the_shares_of_all_processes_are_the_samples_of_one(rows, packs):
    spec = of_phase(IMAGES, CLIPS)
    [alone] = [batch for batch in Loader(Plan(spec, rows), packs).micro_batches(5) if batch.bucket == 1]
    shares = [
        batch
        for rank in range(2)
        for batch in Loader(Plan(spec, rows), packs, rank=rank, world_size=2).micro_batches(5)
        if batch.bucket == 1
    ]
    assert [len(share) for share in shares] == [2, 2]
    for name in ("latents", "noise", "timestep", "drop"):
        together = torch.stack([getattr(share, name) for share in shares], dim=1).flatten(0, 1)
        assert torch.equal(together, getattr(alone, name)), name


def test_streams_of_randomness_differ_by_rank_step_bucket_phase_and_sample(rows, packs):
    mixed = Phase(name="mixed", steps=4, buckets=[IMAGES, CLIPS], schedule=Constant(lr=1e-3))
    spec = small_spec(phases=[mixed, mixed.model_copy(update={"name": "again"})])
    seen = [
        batch.noise[sample].flatten()[:8].numpy().tobytes()
        for rank in range(2)
        for step in range(8)
        for batch in Loader(Plan(spec, rows), packs, rank=rank, world_size=2).micro_batches(step)
        for sample in range(len(batch))
    ]
    assert len(seen) == len(set(seen)) == 8 * 6


@settings(deadline=None, max_examples=50)
@given(
    places=st.lists(
        st.tuples(*[st.integers(0, 2**31 - 1)] * 4, st.sampled_from(list(Purpose))), min_size=2, max_size=6, unique=True
    ),
    seed=st.integers(0, 2**70),
)
def test_every_place_has_random_numbers_of_its_own_and_always_the_same(places, seed):
    def draw(place):
        phase, bucket, step, sample, purpose = place
        return tuple(randomness(seed, purpose, phase=phase, bucket=bucket, step=step, sample=sample).random(3))

    drawn = [draw(place) for place in places]
    assert len(set(drawn)) == len(places)
    assert drawn == [draw(place) for place in places]


def test_windows_begin_anywhere_they_fit_and_nowhere_else(rows):
    plan = Plan(of_phase(CLIPS), rows)
    begins = {}
    for step in range(200):
        for sample in plan.samples(step)[0]:
            begins.setdefault(sample.row.num_frames, Counter())[sample.begin] += 1
    assert {frames: set(found) for frames, found in begins.items()} == {
        9: {0, 1, 2},
        10: {0, 1, 2, 3},
        11: {0, 1, 2, 3, 4},
    }
    assert all(min(found.values()) > 0.5 * max(found.values()) for found in begins.values())


def test_timesteps_captions_and_masks_are_drawn_as_often_as_the_run_says(rows):
    ratios = MaskRatios(**dict.fromkeys(MaskRatios.model_fields, 0.0) | {"image_head": 0.5})
    plan = Plan(of_phase(CLIPS, steps=500, caption_dropout=0.25, mask_ratios=ratios), rows)
    samples = [sample for step in range(500) for sample in plan.samples(step)[0]]
    timesteps = np.array([sample.timestep for sample in samples])
    assert timesteps.min() >= 0
    assert timesteps.max() <= 999
    assert np.histogram(timesteps, bins=4, range=(0, 1000))[0] == pytest.approx([500] * 4, rel=0.15)
    assert np.mean([sample.drop for sample in samples]) == pytest.approx(0.25, abs=0.03)
    masks = Counter(tuple(sample.frame_mask) for sample in samples)
    assert set(masks) == {(True, True, True, True), (False, True, True, True)}
    assert masks[False, True, True, True] == pytest.approx(1000, rel=0.1)


def test_what_the_mask_ratios_leave_over_has_no_mask():
    assert strategies(MaskRatios())["mask_no"] == pytest.approx(0.75)
    assert sum(strategies(MaskRatios()).values()) == pytest.approx(1)


def test_images_and_runs_without_mask_ratios_have_no_masks(rows):
    assert {sample.frame_mask for sample in Plan(of_phase(IMAGES), rows).samples(0)[0]} == {None}
    assert {sample.frame_mask for sample in Plan(of_phase(CLIPS, mask_ratios=None), rows).samples(0)[0]} == {None}


# --------------------------------------------------------------------------------------------------------- batches


def test_a_batch_holds_every_k_th_frame_from_where_each_window_begins(rows, packs):
    plan = Plan(of_phase(CLIPS), rows)
    [batch] = Loader(plan, packs).micro_batches(3)
    for place, sample in enumerate(plan.samples(3)[0]):
        whole = packs.window(sample.row, 0, sample.row.num_frames)
        frames = [sample.begin + 2 * frame for frame in range(4)]
        assert np.array_equal(batch.latents[place].numpy(), whole[frames])


def test_the_network_is_told_the_rate_that_results_and_120_for_images(rows, packs):
    images, clips = Loader(Plan(of_phase(IMAGES, CLIPS), rows), packs).micro_batches(0)
    assert images.sizes["fps"].tolist() == [120.0] * 2
    assert clips.sizes["fps"].tolist() == [6.0] * 4
    assert clips.sizes["num_frames"].tolist() == [4.0] * 4
    assert clips.sizes["height"].tolist() == [64.0] * 4
    assert clips.sizes["width"].tolist() == [48.0] * 4
    assert clips.sizes["ar"].tolist() == pytest.approx([64 / 48] * 4)


def test_captions_are_padded_to_the_longest_of_the_batch_and_the_mask_says_what_is_caption(rows, packs):
    plan = Plan(of_phase(CLIPS), rows)
    [batch] = Loader(plan, packs).micro_batches(1)
    lengths = [sample.row.num_tokens for sample in plan.samples(1)[0]]
    assert batch.text.shape[1] == max(lengths)
    assert batch.text_mask.sum(dim=1).tolist() == lengths
    assert not batch.text[~batch.text_mask].any()
    for place, sample in enumerate(plan.samples(1)[0]):
        assert np.array_equal(batch.text[place, : lengths[place]].numpy(), packs.text(sample.row))


def test_micro_batches_hold_the_samples_of_the_whole_batch_in_order(rows, packs):
    [whole] = Loader(Plan(of_phase(CLIPS), rows), packs).micro_batches(2)
    cut = Loader(Plan(of_phase(CLIPS.model_copy(update={"micro_batch_size": 3})), rows), packs).micro_batches(2)
    assert [len(batch) for batch in cut] == [3, 1]
    assert torch.equal(torch.cat([batch.noise for batch in cut]), whole.noise)
    assert torch.equal(torch.cat([batch.latents for batch in cut]), whole.latents)


def test_a_batch_that_the_processes_cannot_share_equally_is_refused(rows, packs):
    with pytest.raises(SpecError, match=r"train\.phases\.0\.buckets\.1\.batch_size is 4, .* multiple of 3"):
        Loader(Plan(of_phase(IMAGES.model_copy(update={"batch_size": 3}), CLIPS), rows), packs, world_size=3)


def test_batches_made_ahead_are_the_same_and_in_order(rows, packs):
    loader = Loader(Plan(of_phase(IMAGES, CLIPS), rows), packs)
    with loader.prefetched(3, 9) as ahead:
        for step, batches in zip(itertools.count(3), ahead, strict=False):
            for ours, theirs in zip(batches, loader.micro_batches(step), strict=True):
                assert torch.equal(ours.noise, theirs.noise)
                assert torch.equal(ours.latents, theirs.latents)
    assert step == 8


def test_what_goes_wrong_in_the_thread_is_raised_where_the_batch_is_taken():
    def make(number):
        if number == 2:
            raise SpecError("the second is missing")
        return number

    with Prefetched(make, range(5), depth=2) as ahead:
        assert [next(ahead), next(ahead)] == [0, 1]
        with pytest.raises(SpecError, match="the second is missing"):
            next(ahead)


def test_the_thread_makes_no_more_than_it_should_keep_and_ends_with_its_context():
    made = []
    with Prefetched(lambda number: made.append(number) or number, range(1000), depth=2) as ahead:
        assert next(ahead) == 0
    assert len(made) <= 5
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]
