"""Which videos are kept from training, to measure the loss on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from bricks_core.spec.manifest import canonical_json


def held_out_videos(
    num_clips: Mapping[str, int], alike: Iterable[tuple[str, str]], share: float, seed: int
) -> frozenset[str]:
    """The held-out ones among videos, given with the number of clips each has that are kept.

    A video's lot is drawn from its id and the seed alone, so that more videos never bring a held-out one into training.
    Videos that show the same thing (`alike`, in pairs) go together, unless all of them do: as the repetitions
    themselves are dropped, a split through them still has nothing on both sides. With two videos or more and a share
    above 0, either side has at least one. What holds more than twice the share of all clips, or half of them, is
    trained on: with few videos the lot would else keep the largest from training.
    """
    videos = sorted(num_clips)
    if share <= 0 or len(videos) < 2:
        return frozenset()
    groups = _together(videos, alike)
    if len(groups) < 2:
        groups = [[video] for video in videos]
    sizes = [sum(num_clips[video] for video in group) for group in groups]
    largest = min(sum(sizes) / 2, max(2 * share * sum(sizes), min(sizes)))
    by_lot = sorted((_lot(seed, group[0]), group) for group, size in zip(groups, sizes, strict=True) if size <= largest)
    num_held_out = max(1, sum(lot < share for lot, _ in by_lot))
    if len(by_lot) == len(groups):
        num_held_out = min(num_held_out, len(by_lot) - 1)
    return frozenset(video for _, group in by_lot[:num_held_out] for video in group)


def _lot(seed: int, video: str) -> float:
    """Evenly between 0 and 1, the same for ever."""
    return int.from_bytes(hashlib.sha256(canonical_json([seed, video])).digest()[:8]) / 2**64


def _together(videos: list[str], alike: Iterable[tuple[str, str]]) -> list[list[str]]:
    """Connected videos in one list, sorted; every video is in one."""
    leader = {video: video for video in videos}

    def lead(video: str) -> str:
        while leader[video] != video:
            leader[video] = leader[leader[video]]
            video = leader[video]
        return video

    for one, other in alike:
        if one in leader and other in leader:
            first, second = sorted((lead(one), lead(other)))
            leader[second] = first
    groups: dict[str, list[str]] = {}
    for video in videos:
        groups.setdefault(lead(video), []).append(video)
    return list(groups.values())
