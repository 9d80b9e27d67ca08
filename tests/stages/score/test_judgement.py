"""Repetitions, reasons, percentiles and the held-out split, on numbers alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bricks_core.spec.manifest import content_id
from bricks_core.spec.score import Filter, Score, ScoreSpec
from bricks_core.stages.score.duplicates import near_duplicates
from bricks_core.stages.score.judgement import Judgement, Said, reasons_alone
from bricks_core.stages.score.split import held_out_videos


def score(name="a", video="film", **numbers):
    good = {
        "num_frames": 48, "motion": 40.0, "motion_x": 0.0, "motion_y": 0.0, "camera_x": 0.0, "camera_y": 0.0,
        "sharpness": 300.0, "brightness": 120.0, "contrast": 40.0, "plain_share": 0.1, "duplicate_frame_share": 0.5,
        "picture_fps": 12.0,
    }  # fmt: skip
    dice = np.random.default_rng(abs(hash(name)) % 2**32 if not name.isalnum() else int.from_bytes(name.encode()[:8]))
    hashes = [f"{value:016x}" for value in dice.integers(0, 2**63, 3)]
    given = {"perceptual_hash": hashes, **good, **numbers}
    return Score(id=name, video_id=video, state="kept", reasons=[], split="train", **given)


def judged(scores, **settings):
    judgement = Judgement(ScoreSpec(**settings))
    for each in scores:
        judgement.add(each)
    judgement.judge()
    return {each.id: judgement.of(each) for each in scores}, judgement.counts()


@pytest.mark.parametrize(
    ("numbers", "reason"),
    [
        ({"brightness": 7.9}, "black"),
        ({"brightness": 247.1}, "white"),
        ({"plain_share": 0.81}, "a title card or an empty picture"),
        ({"motion": 7.9}, "too still"),
        ({"duplicate_frame_share": 0.91}, "one picture held still"),
    ],
)
def test_every_threshold_has_its_reason(numbers, reason):
    assert reasons_alone(Filter(), score(**numbers)) == [reason]
    assert reasons_alone(Filter(), score()) == []


def test_a_dropped_clip_carries_every_reason_and_is_counted_under_the_first():
    rows, counts = judged([score("a", brightness=0.0, motion=0.0, plain_share=1.0), score("b")])
    assert rows["a"].reasons == ["black", "a title card or an empty picture", "too still"]
    assert (rows["a"].state, rows["b"].state) == ("dropped", "kept")
    assert counts == {"kept": 1, "of these held out": 0, "dropped: black": 1}


def test_scores_are_kept_whatever_is_decided():
    clip = score("a", brightness=0.0)
    rows, _ = judged([clip])
    decided = {"state", "reasons", "duplicate_of", "split"}
    assert rows["a"].model_dump(exclude=decided) == clip.model_dump(exclude=decided)


def test_a_percentile_drops_that_share_of_the_clips_without_another_reason():
    lively = [score(f"l{n}", motion=20.0 + n) for n in range(20)]
    still = [score(f"s{n}", motion=0.0) for n in range(30)]
    rows, counts = judged(still + lively, filter=Filter(min_motion_percentile=25))
    stillest = {name for name, row in rows.items() if row.reasons == ["among the stillest of this data set"]}
    assert stillest == {f"l{n}" for n in range(5)}
    assert counts["dropped: too still"] == 30


def test_of_two_that_repeat_each_other_the_longer_stays_and_of_equally_long_the_sharper():
    one = score("a", num_frames=50).perceptual_hash
    rows, counts = judged([
        score("a", num_frames=50, perceptual_hash=one),
        score("b", num_frames=60, perceptual_hash=one),
        score("c", num_frames=60, perceptual_hash=one, sharpness=400.0),
    ])  # fmt: skip
    assert {name: row.duplicate_of for name, row in rows.items()} == {"a": "c", "b": "c", "c": ""}
    assert rows["a"].reasons == ["repeats another clip"]
    assert counts["dropped: repeats another clip"] == 2


def test_a_dropped_clip_keeps_no_other_out():
    one = score("a").perceptual_hash
    rows, _ = judged([
        score("a", num_frames=90, perceptual_hash=one, motion=1.0),
        score("b", num_frames=30, perceptual_hash=one),
    ])  # fmt: skip
    assert rows["b"].state == "kept"


def bits(*counts):
    """A clip's hashes, with so many bits set."""
    return [2**count - 1 for count in counts]


def test_the_mean_distance_of_the_three_hashes_decides():
    hashes = np.array([bits(0, 0, 0), bits(30, 0, 0), bits(0, 31, 31)], np.uint64)
    same = np.array([20, 20, 20]), np.array([1.0, 1.0, 1.0])
    assert near_duplicates(hashes, *same, 10).tolist() == [-1, 0, -1]
    assert near_duplicates(hashes, *same, 9.9).tolist() == [-1, -1, -1]


@given(
    data=st.lists(
        st.tuples(st.tuples(*[st.integers(0, 63)] * 3), st.integers(15, 20), st.integers(1, 3)), min_size=1, max_size=30
    ),
    distance=st.floats(0, 3),
)
def test_what_stays_has_no_repetition_and_what_goes_repeats_something_better_that_stays(data, distance):
    hashes = np.array([each for each, _, _ in data], np.uint64)
    lengths = np.array([length for _, length, _ in data])
    sharpness = np.array([float(sharp) for _, _, sharp in data])
    repeats = near_duplicates(hashes, lengths, sharpness, distance)

    def apart(one, other):
        return np.bitwise_count(hashes[one] ^ hashes[other]).mean()

    stay = np.flatnonzero(repeats < 0)
    assert all(apart(one, other) > distance for one in stay for other in stay if one != other)
    for clip in np.flatnonzero(repeats >= 0):
        assert repeats[repeats[clip]] == -1
        assert apart(clip, repeats[clip]) <= distance
        assert (lengths[clip], sharpness[clip]) <= (lengths[repeats[clip]], sharpness[repeats[clip]])


def test_more_clips_than_one_block_are_compared_with_all_others():
    dice = np.random.default_rng(0)
    hashes = dice.integers(0, 2**63, (700, 3)).astype(np.uint64)
    hashes[650] = hashes[20]
    repeats = near_duplicates(hashes, np.full(700, 20), np.ones(700), 10)
    assert np.flatnonzero(repeats >= 0).tolist() == [650]
    assert repeats[650] == 20


VIDEOS = [content_id("film", n) for n in range(200)]


@given(
    num_clips=st.dictionaries(st.sampled_from(VIDEOS), st.integers(1, 40), min_size=2, max_size=40),
    share=st.floats(0.001, 0.99),
    seed=st.integers(0, 5),
    data=st.data(),
)
def test_with_two_videos_or_more_both_sides_have_one(num_clips, share, seed, data):
    videos = st.sampled_from(sorted(num_clips))
    alike = data.draw(st.lists(st.tuples(videos, videos), max_size=10))
    held_out = held_out_videos(num_clips, alike, share, seed)
    assert 0 < len(held_out) < len(num_clips)
    assert held_out == held_out_videos(dict(reversed(num_clips.items())), alike[::-1], share, seed)


def test_no_video_is_held_out_when_none_is_asked_for_or_there_is_only_one():
    assert held_out_videos({"a": 3, "b": 3}, [], 0, 0) == frozenset()
    assert held_out_videos({"a": 3}, [], 0.5, 0) == frozenset()


def test_the_share_holds_over_many_videos_and_another_seed_draws_others():
    many = dict.fromkeys(VIDEOS, 1)
    first, second = (held_out_videos(many, [], 0.25, seed) for seed in (0, 1))
    assert 30 < len(first) < 70
    assert first != second


@given(
    num_clips=st.dictionaries(st.sampled_from(VIDEOS[:40]), st.integers(1, 30), min_size=2, max_size=12),
    more=st.dictionaries(st.sampled_from(VIDEOS[40:]), st.integers(1, 60), min_size=1, max_size=8),
    gone=st.sets(st.sampled_from(VIDEOS[:40]), max_size=6),
    share=st.floats(0.02, 0.6),
    seed=st.integers(0, 1000),
    data=st.data(),
)
def test_what_was_drawn_stays_on_its_side_whatever_comes_or_goes(num_clips, more, gone, share, seed, data):
    first = held_out_videos(num_clips, [], share, seed)
    before = {video: video in first for video in num_clips}
    left = {video: num for video, num in (num_clips | more).items() if video not in gone}
    videos = st.sampled_from(sorted(left))
    alike = data.draw(st.lists(st.tuples(videos, videos), max_size=6))
    now = held_out_videos(left, alike, share, seed, before)
    assert {video for video in now if video in before} == first - gone
    assert now <= left.keys()


def test_a_new_film_that_shows_what_a_drawn_one_shows_joins_it():
    before = {VIDEOS[0]: True, VIDEOS[1]: False, VIDEOS[2]: False}
    films = dict.fromkeys(VIDEOS[:6], 1)
    alike = [(VIDEOS[0], VIDEOS[4]), (VIDEOS[1], VIDEOS[5])]
    held_out = held_out_videos(films, alike, 0.2, 3, before)
    assert {VIDEOS[0], VIDEOS[4]} <= held_out
    assert VIDEOS[5] not in held_out


def test_more_videos_bring_no_held_out_one_into_training():
    few = held_out_videos(dict.fromkeys(VIDEOS[:100], 1), [], 0.2, 0)
    many = held_out_videos(dict.fromkeys(VIDEOS, 1), [], 0.2, 0)
    assert few
    assert few <= many


def test_videos_that_show_the_same_are_on_one_side():
    alike = [(VIDEOS[n], VIDEOS[n + 1]) for n in range(0, 60, 2)]
    held_out = held_out_videos(dict.fromkeys(VIDEOS, 1), alike, 0.3, 0)
    assert all((one in held_out) == (other in held_out) for one, other in alike)


@given(share=st.floats(0.05, 0.45), seed=st.integers(0, 50))
def test_a_video_that_alone_is_more_than_twice_the_share_is_trained_on(share, seed):
    num_clips = {VIDEOS[n]: 2 for n in range(30)} | {VIDEOS[50]: 60}
    assert (VIDEOS[50] in held_out_videos(num_clips, [], share, seed)) <= (2 * share * 120 >= 60)


def test_a_video_with_most_of_the_clips_is_trained_on():
    num_clips = {VIDEOS[n]: 1 for n in range(10)}
    for large in list(num_clips):
        assert large not in held_out_videos({**num_clips, large: 20}, [], 0.9, 0)


def test_the_split_is_told_of_every_clip_of_the_video_also_of_dropped_ones():
    rows, counts = judged([score("a", "one"), score("b", "two"), score("c", "one", motion=0.0), score("d", "two")])
    sides = {row.video_id: row.split for row in rows.values()}
    assert sorted(sides.values()) == ["held_out", "train"]
    assert all(sides[row.video_id] == row.split for row in rows.values())
    assert counts["of these held out"] == sum(row.split == "held_out" and row.state == "kept" for row in rows.values())


def test_nothing_at_all_is_judged_without_complaint():
    assert judged([]) == ({}, {"kept": 0, "of these held out": 0})


def judged_as_told(scores, said, **settings):
    judgement = Judgement(ScoreSpec(**settings), said)
    for each in scores:
        judgement.add(each)
    judgement.judge()
    return {each.id: judgement.of(each).split for each in scores}


def test_a_side_that_a_table_tells_stays_whatever_the_lot_would_be():
    scores = [score(f"c{n}", f"v{n}") for n in range(40)]
    said = {f"c{n}": Said("held_out" if n % 2 else "train", "") for n in range(40)}
    for seed in range(3):
        sides = judged_as_told(scores, said, split_seed=seed, held_out_share=0.5)
        assert sides == {each: told.split for each, told in said.items()}
    assert judged_as_told(scores, said, held_out_share=0) == {each: told.split for each, told in said.items()}


def test_clips_that_a_table_says_were_cut_from_one_video_are_drawn_together():
    scores = [score(f"c{n}", f"file{n}") for n in range(60)]
    said = {f"c{n}": Said("", f"film{n // 6}") for n in range(60)}
    sides = judged_as_told(scores, said, held_out_share=0.3)
    by_film = {}
    for each, told in said.items():
        by_film.setdefault(told.video_id, set()).add(sides[each])
    assert all(len(found) == 1 for found in by_film.values())
    assert {"train", "held_out"} == set().union(*by_film.values())


def test_a_clip_whose_side_is_not_told_never_trains_on_a_film_that_is_held_out():
    scores = [score("told", "a"), score("open", "b"), score("other", "c")]
    said = {"told": Said("held_out", "film"), "open": Said("", "film"), "other": Said("train", "else")}
    assert judged_as_told(scores, said) == {"told": "held_out", "open": "held_out", "other": "train"}


def test_images_are_asked_for_no_motion_and_repeat_only_each_other():
    image = {"kind": "image", "num_frames": 1, "motion": 0.0, "duplicate_frame_share": 0.0, "picture_fps": 0.0}
    hashes = ["00ff00ff00ff00ff"] * 3
    rows, counts = judged(
        [
            score("clip", perceptual_hash=hashes),
            score("same", perceptual_hash=hashes, **image),
            score("copy", perceptual_hash=hashes, sharpness=10.0, **image),
            score("dark", brightness=1.0, **image),
        ],
        filter=Filter(min_motion_percentile=50),
    )
    assert {name: row.reasons for name, row in rows.items()} == {
        "clip": [],
        "same": [],
        "copy": ["repeats another clip"],
        "dark": ["black"],
    }
    assert (counts["kept"], counts["of these images"]) == (2, 1)


def test_without_a_distance_nothing_is_a_repetition():
    twins = [score("a", perceptual_hash=["0" * 16] * 3), score("b", perceptual_hash=["0" * 16] * 3)]
    assert judged(twins, filter=Filter(max_near_duplicate_distance=0))[1]["kept"] == 1
    assert judged(twins, filter=Filter(max_near_duplicate_distance=None))[1]["kept"] == 2
