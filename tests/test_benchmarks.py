"""Benchmarks whose baseline is code of ours are run on something small, so that they are there when they are needed."""

import torch

from benchmarks.stdit2_step import Case, measure


def test_the_plain_network_straight_from_the_specification_agrees_with_ours():
    found = measure(Case("tiny", 1, 3, (7, 8), True, torch.float32), repeats=1)
    assert float(found["largest_difference"]) < 1e-4
