"""Benchmarks whose baseline is code of ours are run on something small, so that they are there when they are needed."""

import torch

from benchmarks.large_store import MEASURES, Large
from benchmarks.stdit2_step import Case, measure


def test_the_plain_network_straight_from_the_specification_agrees_with_ours():
    found = measure(Case("tiny", 1, 3, (7, 8), True, torch.float32), repeats=1)
    assert float(found["largest_difference"]) < 1e-4


def test_a_record_is_read_once_by_a_commit_and_one_new_item_is_found_in_a_few_requests(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    large = Large(tmp_path, 100)
    large.make_sources()
    told = {what: measure(large) for what, measure in MEASURES.items()}
    num_items = 3 * 50  # what was seen of a kept clip, and an answer for it and for its image
    asked = {what: each.get("requests", {}).get("get", 0) for what, each in told.items()}
    assert asked["commit of captions, records at hand"] < 20
    assert asked["records read one at a time, three times"] == 3 * num_items
    assert num_items <= asked["commit of captions by a new process"] < num_items + 20
    assert asked["commit of captions, one more"] < 30
    assert asked["finding 1 new, with the last artifact"] < 10
