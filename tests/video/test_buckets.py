"""Sizes and lengths of buckets, the reference's table of them, and what clips can use."""

from itertools import pairwise
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bricks_core.errors import SpecError
from bricks_core.video.buckets import (
    BucketCoverage,
    ClipSize,
    Size,
    coverage,
    frame_indices,
    num_begins,
    resolution,
    usable,
)

CLASSES = ["144p", "256", "240p", "360p", "512", "480p", "720p", "1024", "1080p", "4k"]


class Bucket(NamedTuple):
    num_frames: int
    resolution: str
    frame_interval: int = 1


def test_the_tables_are_the_references(golden_json):
    golden = golden_json("aspect_ratios")
    assert golden
    for name, table in golden.items():
        ours = resolution(name)
        assert ours.num_pixels == table["pixels"]
        assert [(size.aspect, [size.height_px, size.width_px]) for size in ours.sizes] == list(table["ratios"].items())


@pytest.mark.parametrize(
    ("name", "height", "width", "size"),
    [
        ("360p", 720, 1280, Size("0.56", 360, 640)),
        ("360p", 1080, 1920, Size("0.56", 360, 640)),
        ("240p", 1920, 1080, Size("1.78", 426, 240)),
        ("480p", 500, 500, Size("1.00", 640, 640)),
        ("144p", 100, 1000, Size("0.38", 117, 312)),
        ("96x160", 720, 1280, Size("96x160", 96, 160)),
    ],
)
def test_a_clip_gets_the_size_of_the_nearest_ratio(name, height, width, size):
    assert resolution(name).size_for(height, width) == size


@given(st.sampled_from(CLASSES), st.integers(16, 4000), st.integers(16, 4000))
def test_no_other_size_of_a_class_is_nearer(name, height, width):
    sizes = resolution(name).sizes
    distances = [abs(height / width - float(size.aspect)) for size in sizes]
    assert sizes.index(resolution(name).size_for(height, width)) == distances.index(min(distances))


def test_latents_round_down():
    size = resolution("240p").size_for(240, 426)
    assert (size.height_px, size.width_px, size.latent_height, size.latent_width) == (240, 426, 30, 53)


@pytest.mark.parametrize(
    ("name", "words"),
    [("360", 'no resolution "360"'), ("480P", 'did you mean "480p"'), ("96x", "96x160"), ("8x16", "at least 16")],
)
def test_a_resolution_that_is_none_is_refused(name, words):
    with pytest.raises(SpecError, match=words):
        resolution(name)


@given(st.integers(1, 400), st.integers(1, 70), st.integers(1, 9))
def test_a_sample_is_evenly_spaced_and_within_its_clip(num_frames, bucket_frames, interval):
    begins = num_begins(num_frames, bucket_frames, interval)
    assert usable(num_frames, bucket_frames, interval) == (begins > 0)
    for begin in {0, begins - 1} & set(range(begins)):
        indices = frame_indices(begin, bucket_frames, interval)
        assert len(indices) == bucket_frames
        assert {b - a for a, b in pairwise(indices)} <= {interval}
        assert 0 <= indices[0] <= indices[-1] < num_frames
    if begins:
        assert frame_indices(begins - 1, bucket_frames, interval)[-1] == num_frames - 1  # and one more would be outside


@pytest.mark.parametrize(("num_frames", "fits"), [(61, True), (60, False)])
def test_sixteen_frames_four_apart_need_sixty_one(num_frames, fits):
    assert usable(num_frames, 16, 4) is fits


def test_coverage_counts_each_clip_once_a_bucket_and_says_why_not():
    clips = [
        ClipSize(200, 720, 1280),  # fits all
        ClipSize(40, 720, 1280),  # too short for 64
        ClipSize(200, 240, 426),  # too small for 480p
        ClipSize(20, 240, 426),  # too short for 64 and 32, too small for 480p
        ClipSize(1, 48, 64),  # too small even for the images
    ]
    buckets = [Bucket(1, "240p"), Bucket(32, "480p"), Bucket(64, "240p", 2), Bucket(64, "96x160")]
    found = coverage(iter(clips), buckets)
    assert found.buckets == (
        BucketCoverage(1, "240p", 1, num_usable=4, num_too_short=0, num_too_small=1),
        BucketCoverage(32, "480p", 1, num_usable=2, num_too_short=2, num_too_small=1),
        BucketCoverage(64, "240p", 2, num_usable=2, num_too_short=3, num_too_small=0),
        BucketCoverage(64, "96x160", 1, num_usable=2, num_too_short=3, num_too_small=0),
    )
    assert (found.num_clips, found.num_unused) == (5, 1)
    assert (found.num_unused_too_short, found.num_unused_too_small) == (0, 1)


def test_a_clip_no_bucket_can_use_is_counted_by_its_reason():
    buckets = [Bucket(16, "144p", 4), Bucket(32, "360p")]
    clips = [ClipSize(20, 720, 1280), ClipSize(200, 72, 128), ClipSize(31, 90, 160), ClipSize(40, 144, 256)]
    found = coverage(clips, buckets)
    # The last is long enough for 360p only, and large enough for 144p only: neither reason alone.
    assert (found.num_unused, found.num_unused_too_short, found.num_unused_too_small) == (4, 2, 2)


@given(
    st.lists(st.tuples(st.integers(1, 300), st.integers(16, 2000), st.integers(16, 2000)), max_size=30),
    st.lists(st.tuples(st.integers(1, 64), st.sampled_from(CLASSES), st.integers(1, 5)), min_size=1, max_size=4),
)
def test_every_clip_is_accounted_for(clips, buckets):
    found = coverage((ClipSize(*each) for each in clips), [Bucket(*each) for each in buckets])
    for bucket in found.buckets:
        assert bucket.num_usable + bucket.num_too_short + bucket.num_too_small == len(clips)
    assert found.num_unused <= len(clips) - max(bucket.num_usable for bucket in found.buckets)
