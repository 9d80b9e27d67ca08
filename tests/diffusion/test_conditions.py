"""Given frames: from wishes and from Open-Sora's strings to latents and a mask."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bricks_core.diffusion.conditions import (
    Condition,
    apply_conditions,
    connection,
    edit,
    end_image,
    extension,
    mask_strategy,
    parse_mask_strategy,
    start_image,
)
from bricks_core.errors import UsageError

T = 8


def clip(num_frames: int, first: float = 0) -> torch.Tensor:
    """(4, num_frames, 2, 3) latents, each frame full of its own number."""
    return torch.arange(first, first + num_frames)[None, :, None, None].expand(4, -1, 2, 3).float()


def applied(conditions, references, loop=0):
    """What a sample of noise (all -1) and its mask look like, frame by frame."""
    z, mask = apply_conditions(torch.full((1, 4, T, 2, 3), -1.0), [references], [conditions], loop)
    assert (z == z[:, :1, :, :1, :1]).all()
    return z[0, 0, :, 0, 0].tolist(), mask[0].tolist()


def test_strings_are_parsed_as_the_reference_does(golden_json):
    stored = golden_json("mask_strategy")["parse"]
    assert stored
    for text, groups in stored.items():
        parsed = parse_mask_strategy(text)
        names = ("loop", "reference", "reference_start", "target_start", "num_frames", "edit_ratio")
        assert [[getattr(each, name) for name in names] for each in parsed] == [
            [float(field) for field in group] for group in groups
        ], text


def test_strings_are_applied_as_the_reference_does(golden, golden_json):
    cases = golden("mask_strategy")
    references = [cases[""][name] for name in sorted(cases[""])]
    strategies = golden_json("mask_strategy")["strategies_in_order"]
    loops = [case for case in cases if case]
    assert len(loops) >= len(strategies)
    for case in loops:
        index, loop = case.split("/loop")
        z, mask = apply_conditions(
            cases[case]["in.z"], [references], [parse_mask_strategy(strategies[int(index)])], int(loop)
        )
        assert torch.equal(z, cases[case]["out.z"]), case
        assert torch.equal(mask, cases[case]["out.mask"]), case


def test_a_start_image_is_kept_and_the_rest_is_made():
    assert applied([start_image()], [clip(1, 7)]) == ([7, -1, -1, -1, -1, -1, -1, -1], [0, 1, 1, 1, 1, 1, 1, 1])


def test_an_end_image_is_the_last_frame():
    assert applied([end_image()], [clip(1, 7)]) == ([-1, -1, -1, -1, -1, -1, -1, 7], [1, 1, 1, 1, 1, 1, 1, 0])


def test_a_connection_begins_with_one_clips_end_and_ends_with_the_others_beginning():
    frames, mask = applied(connection(2), [clip(5, 10), clip(6, 20)])
    assert frames == [13, 14, -1, -1, -1, -1, 20, 21]
    assert mask == [0, 0, 1, 1, 1, 1, 0, 0]


def test_an_extension_begins_with_a_clips_last_frames_in_its_loop_only():
    condition = extension(3, loop=1)
    assert applied([condition], [clip(5, 10)], loop=1)[0] == [12, 13, 14, -1, -1, -1, -1, -1]
    assert applied([condition], [clip(5, 10)], loop=0) == ([-1] * T, [1] * T)


def test_an_edit_begins_every_frame_at_its_ratio():
    frames, mask = applied([edit(0.25, T)], [clip(T)])
    assert frames == list(range(T))
    assert mask == [0.25] * T


def test_where_conditions_meet_the_later_one_wins():
    frames, mask = applied(
        [Condition(0, num_frames=3), Condition(1, target_start=1, edit_ratio=0.5)], [clip(3), clip(1, 9)]
    )
    assert frames[:3] == [0, 9, 2]
    assert mask[:4] == [0, 0.5, 0, 1]


def test_every_sample_of_a_batch_has_its_own_conditions_and_what_is_given_is_not_changed():
    z, reference = torch.zeros(2, 4, T, 2, 3), clip(1, 7)
    made, mask = apply_conditions(z, [[reference], []], [[start_image()], []])
    assert mask.tolist() == [[0] + [1] * 7, [1] * 8]
    assert made[0, :, 0].eq(7).all()
    assert not made[1].any()
    assert not z.any()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x", '"x" in the mask strategy "x" is no whole number: field 0 of a group is loop'),
        ("0,0,0.5", "field 2 of a group is reference_start"),
        ("0,0,0,0,1,much", '"much" in the mask strategy "0,0,0,0,1,much" is no number'),
        ("0,0,0,0,1,1.5", "edit ratio lies between 0"),
        ("0,0,0,0,1,nan", "edit ratio lies between 0"),
        ("0,0,0,0,0", "at least one frame"),
        ("0,-1", "counted from 0"),
        ("0;", '"" in the mask strategy "0;" is no whole number'),
        ("0,0,0,0,1,0,0", "has 7 fields; there are loop, reference"),
    ],
)
def test_a_string_that_is_no_mask_strategy_is_refused_with_its_place(text: str, said: str):
    with pytest.raises(UsageError) as refused:
        parse_mask_strategy(text)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        (Condition(reference=1), "wants reference 1, and there are 1"),
        (Condition(reference_start=5), "begins at frame 5 of its reference, which has 5 latent frames: -5 to 4"),
        (Condition(reference_start=-6), "begins at frame -6 of its reference"),
        (Condition(target_start=8), "begins at frame 8 of the sample, which has 8 latent frames: -8 to 7"),
        (Condition(num_frames=6), "past the end of its reference, which has 5 latent frames"),
        (Condition(target_start=7, num_frames=2), "past the end of the sample, which has 8 latent frames"),
    ],
)
def test_a_frame_or_a_reference_that_is_not_there_is_refused(condition: Condition, said: str):
    with pytest.raises(UsageError) as refused:
        applied([condition], [clip(5)])
    assert said in str(refused.value)


def test_a_reference_of_another_size_is_refused():
    with pytest.raises(UsageError, match="all but the frames"):
        applied([start_image()], [torch.zeros(4, 1, 3, 2)])


@given(
    st.lists(
        st.builds(
            Condition,
            st.integers(0, 9),
            st.integers(-99, 99),
            st.integers(-99, 99),
            st.integers(1, 99),
            st.floats(0, 1),
            st.integers(0, 9),
        )
    )
)
def test_a_string_that_was_written_is_read_again(conditions: list[Condition]):
    assert list(parse_mask_strategy(mask_strategy(conditions))) == conditions


@given(data=st.data())
def test_what_is_masked_is_exactly_what_was_given(data):
    length = data.draw(st.integers(1, T))
    place, taken = data.draw(st.integers(0, T - length)), data.draw(st.integers(0, T - length))
    condition = Condition(0, taken - T, place - T, length)
    frames, mask = applied([condition], [clip(T)])
    assert [index for index in range(T) if mask[index] == 0] == list(range(place, place + length))
    assert frames[place : place + length] == list(range(taken, taken + length))
