"""Which videos are kept from training, to measure the loss on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from bricks_core.spec.manifest import canonical_json


def held_out_videos(
    num_clips: Mapping[str, int],
    alike: Iterable[tuple[str, str]],
    share: float,
    seed: int,
    before: Mapping[str, bool] | None = None,
) -> frozenset[str]:
    """The held-out ones among videos, given with the number of clips each has that are kept.

    `before`: whether a video was held out, of those that were drawn before. They stay on their side, whatever comes
    or goes, and what shows the same thing as one of them joins it.

    A video's lot is drawn from its id and the seed alone. Videos that show the same thing (`alike`, in pairs) go
    together, unless all of them do: as the repetitions themselves are dropped, a split through them still has nothing
    on both sides. With two videos or more and a share above 0, either side has at least one. What holds more than twice
    the share of all clips, or half of them, is trained on: with few videos the lot would else keep the largest from
    training.
    """
    videos = sorted(num_clips)
    if share <= 0:
        return frozenset()
    told = {video: before[video] for video in videos if before and video in before}
    groups = _together(videos, alike)
    if len(groups) < 2:
        groups = [[video] for video in videos]
    sides = [_side_before(group, told) for group in groups]
    held_out = {
        video for group, side in zip(groups, sides, strict=True) if side for video in group if video not in told
    }
    held_out |= {video for video, is_held_out in told.items() if is_held_out}
    new = [group for group, side in zip(groups, sides, strict=True) if side is None]
    if len(videos) < 2 or not new:
        return frozenset(held_out)
    sizes = [sum(num_clips[video] for video in group) for group in groups]
    size_of = {group[0]: size for group, size in zip(groups, sizes, strict=True)}
    largest = min(sum(sizes) / 2, max(2 * share * sum(sizes), min(sizes)))
    by_lot = sorted((_lot(seed, group[0]), group) for group in new if size_of[group[0]] <= largest)
    num_held_out = sum(lot < share for lot, _ in by_lot)
    if not held_out:
        num_held_out = max(1, num_held_out)
    if len(by_lot) == len(groups):
        num_held_out = min(num_held_out, len(by_lot) - 1)
    return frozenset(held_out | {video for _, group in by_lot[:num_held_out] for video in group})


def _side_before(group: list[str], told: Mapping[str, bool]) -> bool | None:
    """Where videos that show the same thing have been; None: they are all new. Of two sides training wins: what was
    trained on cannot be measured on."""
    sides = [told[video] for video in group if video in told]
    return all(sides) if sides else None


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
