"""What Open-Sora 1.1 does with a table of clips: its frames, buckets and batches."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bricks_core.errors import SpecError
from bricks_core.video.buckets import ClipSize, Size, resolution
from bricks_core.video.open_sora import BatchSampler, Bucket, Buckets, begins, frames_from, tally
from tests.golden_vectors import every_entry

MIXED = {
    "144p": {1: (1.0, 3), 16: (1.0, 2)},
    "240p": {1: (0.6, 2), 8: (0.7, 3), 24: (0.5, 2)},
    "360p": {1: (0.5, 2), 16: (0.5, 1)},
}
CLIPS = st.lists(
    st.builds(ClipSize, st.sampled_from([1, 1, 9, 17, 40]), st.integers(90, 700), st.integers(90, 700)), max_size=40
)


def config_of(stored):
    return {name: {int(frames): tuple(entry) for frames, entry in lengths.items()} for name, lengths in stored.items()}


def clips_of(stored):
    assert [clip["id"] for clip in stored] == list(range(len(stored)))
    return [ClipSize(clip["num_frames"], clip["height"], clip["width"]) for clip in stored]


# -------------------------------------------------------------------------------------------------------------- frames


@every_entry("frame_indices")
def test_the_frames_taken_are_the_reference_s(case, golden_json):
    expected = golden_json("frame_indices")[case]
    total, num_frames, interval = (expected[name] for name in ("total_frames", "num_frames", "frame_interval"))
    places = begins(total, num_frames, interval)
    assert [places[0], places[-1]] == expected["begin_range_inclusive"]
    assert expected["begin"] in places
    if "error" in expected:
        with pytest.raises(ValueError, match="too few"):
            frames_from(expected["begin"], total, num_frames, interval)
    else:
        assert frames_from(expected["begin"], total, num_frames, interval) == expected["indices"]


@given(st.integers(1, 300), st.integers(1, 64), st.integers(1, 5), st.data())
def test_frames_are_inside_their_clip_and_rise(total, num_frames, interval, data):
    begin = data.draw(st.sampled_from(begins(total, num_frames, interval)))
    if total - begin < num_frames:
        with pytest.raises(ValueError, match="too few"):
            frames_from(begin, total, num_frames, interval)
    else:
        frames = frames_from(begin, total, num_frames, interval)
        assert len(frames) == num_frames
        assert begin == frames[0] <= frames[-1] < total
        assert frames == sorted(set(frames))


# ------------------------------------------------------------------------------------------------------------- buckets


@every_entry("buckets", "configs")
def test_buckets_are_numbered_as_the_reference_s(case, golden_json):
    stored = golden_json("buckets")["configs"][case]
    buckets = Buckets(config_of(stored["bucket_config"]))
    assert buckets.num_buckets == stored["num_bucket"]
    assert {f"{name}|{frames}": number for (name, frames), number in buckets.number.items()} == stored["bucket_index"]


@every_entry("buckets", "configs")
def test_every_clip_gets_the_reference_s_bucket(case, golden_json):
    golden = golden_json("buckets")
    stored = golden["configs"][case]
    buckets = Buckets(config_of(stored["bucket_config"]), stored["frame_interval"])
    assert stored["assignment"]
    for seed, expected in stored["assignment"].items():
        found = buckets.of_table(clips_of(golden["clips"]), int(seed))
        assert [row_of(bucket) for bucket in found] == expected, seed


def row_of(bucket: Bucket | None) -> list | None:
    if bucket is None:
        return None
    name, frames, size, batch_size = bucket
    return [name, frames, size.aspect, frames, size.height_px, size.width_px, batch_size]


def test_a_table_s_chances_change_with_the_epoch_as_with_the_seed():
    clips = [ClipSize(40, 720, 1280)] * 60
    buckets = Buckets(MIXED)
    assert buckets.of_table(clips, seed=7, epoch=5) == buckets.of_table(clips, seed=12)
    assert buckets.of_table(clips, seed=7, epoch=5) != buckets.of_table(clips, seed=7)


@pytest.mark.parametrize(
    ("num_frames", "height", "width", "expected"),
    [
        (65, 720, 1280, Bucket("360p", 16, Size("0.56", 360, 640), 1)),
        (64, 720, 1280, Bucket("240p", 8, Size("0.56", 240, 426), 2)),
        (33, 720, 1280, Bucket("240p", 8, Size("0.56", 240, 426), 2)),
        (32, 720, 1280, None),
        (200, 320, 576, Bucket("360p", 16, Size("0.56", 360, 640), 1)),  # just four fifths of 360p's pixels
        (200, 319, 576, Bucket("240p", 8, Size("0.56", 240, 426), 2)),
        (1, 720, 1280, Bucket("240p", 1, Size("0.56", 240, 426), 4)),  # 360p takes no images
        (200, 100, 100, None),
    ],
)
def test_a_clip_needs_more_frames_than_length_times_interval_and_four_fifths_of_the_pixels(
    num_frames, height, width, expected
):
    buckets = Buckets({"240p": {1: (1.0, 4), 8: (1.0, 2)}, "360p": {16: (1.0, 1)}}, frame_interval=4)
    assert buckets.of(ClipSize(num_frames, height, width), seed=0) == expected


def test_a_probability_of_0_sends_clips_to_a_smaller_resolution():
    buckets = Buckets({"480p": {16: (0.0, None)}, "360p": {16: (1.0, 2)}})
    found = buckets.of_table([ClipSize(17, 720, 1280)] * 20, seed=1)
    assert {bucket.resolution for bucket in found} == {"360p"}


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"360P": {1: (1.0, 1)}}, 'did you mean "360p"'),
        ({"360p": {1: (1.5, 1)}}, r"\(1.5, 1\): it needs the probability"),
        ({"360p": {1: (0.5, None)}}, r"\(0.5, None\): .* a batch size"),
    ],
)
def test_buckets_that_cannot_be_are_refused(config, sentence):
    with pytest.raises(SpecError, match=sentence):
        Buckets(config)


# ------------------------------------------------------------------------------------------------------------- batches


@every_entry("batch_sampler", "cases")
def test_every_rank_gets_the_reference_s_batches(case, golden_json):
    golden = golden_json("batch_sampler")
    stored = golden["cases"][case]
    assert len(stored["batches_per_rank"]) == stored["world_size"]
    for rank, expected in enumerate(stored["batches_per_rank"]):
        sampler = BatchSampler(
            clips_of(golden["clips"]),
            Buckets(config_of(stored["bucket_config"]), stored["frame_interval"]),
            seed=stored["seed"],
            rank=rank,
            num_ranks=stored["world_size"],
            shuffle=stored["shuffle"],
            drop_last=stored["drop_last"],
        )
        sampler.set_epoch(stored["epoch"])
        num_steps = stored["resume_after_steps"]
        sampler.load_state_dict(sampler.state_dict(num_steps))
        assert len(sampler) == num_steps + len(expected)
        assert list(sampler) == expected


def epochs(clips, num_ranks=1, state=None, **options):
    """The batches of every rank, step by step, to the end of the epoch: [step][rank]."""
    samplers = [
        BatchSampler(clips, Buckets(MIXED), rank=rank, num_ranks=num_ranks, **options) for rank in range(num_ranks)
    ]
    for sampler in samplers:
        if state:
            sampler.load_state_dict(state)
    return list(zip(*samplers, strict=True))


@settings(max_examples=40, deadline=None)
@given(CLIPS, st.integers(1, 4), st.integers(1, 4), st.booleans(), st.data())
def test_an_epoch_can_be_resumed_after_any_step_with_another_number_of_ranks(clips, before, after, drop_last, data):
    whole = epochs(clips, before, drop_last=drop_last)
    num_steps = data.draw(st.integers(0, len(whole)))
    state = BatchSampler(clips, Buckets(MIXED), num_ranks=before, drop_last=drop_last).state_dict(num_steps)
    resumed = epochs(clips, after, state, drop_last=drop_last)
    assert resumed == epochs(clips, after, drop_last=drop_last)[num_steps * before // after :]
    if before == after:
        assert resumed == whole[num_steps:]


@settings(max_examples=40, deadline=None)
@given(CLIPS, st.integers(1, 4), st.booleans())
def test_every_batch_has_one_shape_its_bucket_s_size_and_no_row_twice_in_an_epoch(clips, num_ranks, shuffle):
    batches = [batch for step in epochs(clips, num_ranks, shuffle=shuffle) for batch in step]
    for batch in batches:
        [(num_frames, height, width)] = {tuple(map(int, each.split("-")[1:])) for each in batch}
        [name] = [name for name in MIXED if (height, width) in {each[1:] for each in resolution(name).sizes}]
        assert len(batch) == MIXED[name][num_frames][1]
    rows = Counter(each.split("-")[0] for batch in batches for each in batch)
    assert set(rows.values()) <= {1}


def test_with_drop_last_off_no_row_of_a_bucket_is_left_out():
    clips = [ClipSize(17, 144, 256)] * 5
    of_all = [each for [batch] in epochs(clips, drop_last=False) for each in batch]
    assert Counter(each.split("-")[0] for each in of_all) == {"0": 2, "1": 1, "2": 1, "3": 1, "4": 1}
    assert len(epochs(clips, drop_last=True)) == 2


def test_an_epoch_after_its_end_is_followed_by_the_next():
    clips = [ClipSize(17, 144, 256)] * 20
    sampler = BatchSampler(clips, Buckets(MIXED))
    first, second = list(sampler), list(sampler)
    assert first != second
    sampler.set_epoch(1)
    assert list(sampler) == second
    assert sampler.state_dict(0) == {"seed": 42, "epoch": 2, "last_micro_batch_access_index": 0}


# -------------------------------------------------------------------------------------------------------------- counts


def test_a_tally_says_what_each_bucket_gets_and_how_many_clips_none():
    clips = [
        *[ClipSize(17, 720, 1280)] * 3,
        ClipSize(17, 1280, 720),
        *[ClipSize(1, 200, 200)] * 5,
        ClipSize(17, 90, 90),  # too small
        ClipSize(16, 720, 1280),  # too short
    ]
    found = tally(clips, Buckets({"144p": {1: (1.0, 2)}, "360p": {16: (1.0, 2)}}))
    assert [
        (*each.bucket[:2], each.bucket.size.aspect, each.num_clips, each.num_batches) for each in found.buckets
    ] == [
        ("360p", 16, "0.56", 3, 1),
        ("360p", 16, "1.78", 1, 0),
        ("144p", 1, "1.00", 5, 2),
    ]
    assert (found.num_clips, found.num_unused, found.num_batches) == (11, 2, 3)


@settings(max_examples=40, deadline=None)
@given(CLIPS, st.integers(0, 3))
def test_a_tally_counts_every_clip_once_and_the_batches_of_its_epoch(clips, epoch):
    found = tally(clips, Buckets(MIXED), epoch=epoch)
    assert sum(each.num_clips for each in found.buckets) + found.num_unused == found.num_clips == len(clips)
    sampler = BatchSampler(clips, Buckets(MIXED))
    sampler.set_epoch(epoch)
    assert len(sampler) == found.num_batches == len(list(sampler))
