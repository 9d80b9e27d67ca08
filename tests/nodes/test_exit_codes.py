"""Which of many ends is told."""

from __future__ import annotations

import random
import signal

import pytest

from bricks_core.nodes.exit_codes import NOT_TRIED_AGAIN, End, decisive, described, exit_code, for_this_node, weight


@pytest.mark.parametrize(("returned", "code"), [(0, 0), (65, 65), (1, 1), (-9, 137), (-15, 143), (-6, 134), (-11, 139)])
def test_a_process_killed_by_a_signal_ends_with_128_and_its_number(returned, code):
    assert exit_code(returned) == code


@pytest.mark.parametrize(
    ("codes", "code"),
    [
        ([75, 65, 75, 75], 65),  # one met damaged data, the others lost it
        ([75, 75, 137, 75], 137),  # one was killed
        ([143, 78], 78),  # one was wrong, and another was told to stop for it
        ([75, 143], 143),  # told to stop, and its neighbour lost it
        ([70, 137], 70),  # the first of two faults
        ([137, 70], 137),
        ([77, 70, 75], 77),
        ([75, 75], 75),
        ([0, 75], 75),
        ([0, 0], 0),
        ([], 0),
    ],
)
def test_the_end_that_explains_the_others_is_told(codes, code):
    assert decisive(End(each) for each in codes).code == code


def test_the_order_in_which_neighbours_are_lost_changes_nothing():
    codes = [75] * 6 + [64]
    for _ in range(20):
        random.shuffle(codes)
        assert decisive(End(each) for each in codes).code == 64


def test_what_would_only_come_again_is_not_tried_again_and_what_may_pass_is():
    assert {64, 65, 77, 78, 130, 143} == NOT_TRIED_AGAIN
    assert not NOT_TRIED_AGAIN & {69, 70, 75, 134, 137, 139, 1}


@pytest.mark.parametrize("code", [64, 65, 78, 143, 130])
def test_what_is_as_true_of_every_node_ends_all_with_the_same_code(code):
    assert for_this_node(End(code, "So it is.", 0), 1) == End(code, "So it is.", 0)


@pytest.mark.parametrize("code", [77, 137, 70, 69, 75, 1])
def test_another_nodes_own_fault_leaves_this_one_to_try_again_and_is_told(code):
    here = for_this_node(End(code, "Its disk is full.", 3), 1)
    assert here.code == 75
    assert "Node 3" in here.sentence
    assert str(code) in here.sentence
    assert "Its disk is full." in here.sentence


def test_a_node_keeps_its_own_end():
    assert for_this_node(End(77, "A GPU is broken.", 2), 2) == End(77, "A GPU is broken.", 2)


def test_an_end_is_the_same_after_its_way_to_another_node():
    end = End(65, 'A "table" is damaged: Größe.', 3)
    assert End.from_json(end.to_json()) == end


def test_a_lost_neighbour_explains_less_than_any_other_bad_end():
    assert all(weight(code) > weight(75) > weight(0) for code in (64, 65, 69, 70, 77, 78, 130, 137, 143))


def test_an_end_is_described_by_its_own_sentence_else_by_its_signal_or_number():
    assert described(78, {"message": {"message": "No such weights."}}) == "No such weights."
    assert "SIGKILL" in described(-signal.SIGKILL, {"message": "<NONE>"})
    assert "out of memory" in described(-signal.SIGKILL, None)
    assert "3" in described(3, None)
