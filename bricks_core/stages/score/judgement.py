"""Which clips are kept, once all are measured: thresholds, percentiles of this data set, repetitions, and the split."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from bricks_core.spec.score import Filter, Score, ScoreSpec
from bricks_core.stages.score.duplicates import near_duplicates
from bricks_core.stages.score.motion import HASH_SHARES
from bricks_core.stages.score.split import held_out_videos

BLACK = "black"
WHITE = "white"
PLAIN = "a title card or an empty picture"
HELD = "one picture held still"
STILL = "too still"
STILLEST = "among the stillest of this data set"
BLURRED = "among the most blurred of this data set"
REPEATED = "repeats another clip"


def reasons_alone(spec: Filter, score: Score) -> list[str]:
    """The reasons to drop a clip that lie in itself; the one that says most comes first."""
    is_video = score.kind == "video"
    held = {
        BLACK: score.brightness < spec.min_brightness,
        WHITE: score.brightness > spec.max_brightness,
        PLAIN: score.plain_share > spec.max_plain_share,
        HELD: is_video and score.duplicate_frame_share > spec.max_duplicate_frame_share,
        STILL: is_video and score.motion < spec.min_motion,
    }
    return [reason for reason, holds in held.items() if holds]


Side = Literal["train", "held_out"]


class Said(NamedTuple):
    """What a table says of the split of a clip: nothing, where empty."""

    split: Literal["", "train", "held_out"]
    video_id: str
    """What it was cut from."""


class Judgement:
    """Add every clip's score, judge, then ask for each. Keeps some dozen bytes of a clip (hashes and a few numbers)."""

    def __init__(
        self, spec: ScoreSpec, said: Mapping[str, Said] | None = None, before: Mapping[str, Side] | None = None
    ):
        """`said`: what tables say, by the id of clip or image. `before`: the sides that videos came on before."""
        self._spec = spec
        self._before = before or {}
        self._said = said or {}
        self._is_image = bytearray()
        self._ids: list[str] = []
        self._places: dict[str, int] = {}
        self._videos: list[str] = []
        self._motion, self._sharpness = array("d"), array("d")
        self._num_frames, self._hashes = array("q"), array("Q")
        self._reasons: dict[int, list[str]] = {}
        self._repeats: dict[int, int] = {}
        self._held_out: frozenset[str] = frozenset()
        self._drawn: dict[str, Side] = {}
        self.depends_on_before = False
        """Whether the lot would have fallen otherwise without `before`."""

    def add(self, score: Score) -> None:
        """The next clip."""
        place = self._places[score.id] = len(self._ids)
        self._ids.append(score.id)
        said = self._said.get(score.id)
        self._videos.append((said.video_id if said else "") or score.video_id)
        self._is_image.append(score.kind == "image")
        self._motion.append(score.motion)
        self._sharpness.append(score.sharpness)
        self._num_frames.append(score.num_frames)
        self._hashes.extend(int(each, 16) for each in score.perceptual_hash)
        if reasons := reasons_alone(self._spec.filter, score):
            self._reasons[place] = reasons

    def judge(self) -> None:
        """Decide about all of them, in an order that does not depend on theirs."""
        self._drop_below(STILLEST, self._motion, self._spec.filter.min_motion_percentile)
        self._drop_below(BLURRED, self._sharpness, self._spec.filter.min_sharpness_percentile)
        if self._spec.filter.max_near_duplicate_distance is not None:
            self._drop_repetitions(self._spec.filter.max_near_duplicate_distance)
        # A video of which a table has told a side is there as a whole, and takes no part in the lot.
        told: dict[str, bool] = {}
        for each, video in zip(self._ids, self._videos, strict=True):
            if (said := self._said.get(each)) and said.split:
                told[video] = told.get(video, False) or said.split == "held_out"
        videos = Counter(self._videos[place] for place in self._kept() if self._videos[place] not in told)
        alike = [(self._videos[one], self._videos[other]) for one, other in self._repeats.items()]
        before = {video: side == "held_out" for video, side in self._before.items() if video in videos}
        lot = (videos, alike, self._spec.held_out_share, self._spec.split_seed)
        drawn = held_out_videos(*lot, before)
        self.depends_on_before = drawn != held_out_videos(*lot)
        self._drawn = {video: "held_out" if video in drawn else "train" for video in videos}
        self._held_out = drawn | {video for video, is_held_out in told.items() if is_held_out}

    def of(self, score: Score) -> Score:
        """An added clip's row with what was decided."""
        place = self._places[score.id]
        reasons = self._reasons.get(place, [])
        repeated = self._repeats.get(place)
        return score.model_copy(
            update={
                "state": "dropped" if reasons else "kept",
                "reasons": reasons,
                "duplicate_of": "" if repeated is None else self._ids[repeated],
                "split": self._side(place),
            }
        )

    def sides(self) -> dict[str, Side]:
        """The side of every video that took part in the lot."""
        return dict(self._drawn)

    def counts(self) -> dict[str, int]:
        """How many are kept, and dropped for which first reason: these add up to all."""
        kept = self._kept()
        dropped = Counter(f"dropped: {reasons[0]}" for reasons in self._reasons.values())
        held_out = sum(self._side(place) == "held_out" for place in kept)
        images = {"of these images": num} if (num := sum(self._is_image[place] for place in kept)) else {}
        return {"kept": len(kept), **images, "of these held out": held_out, **dict(sorted(dropped.items()))}

    def _side(self, place: int) -> Side:
        said = self._said.get(self._ids[place])
        if said and said.split:
            return said.split
        return "held_out" if self._videos[place] in self._held_out else "train"

    def _kept(self) -> list[int]:
        return [place for place in range(len(self._ids)) if place not in self._reasons]

    def _drop_below(self, reason: str, numbers: array[float], percentile: float) -> None:
        """The percentile is over clips without a reason of their own: title cards must not use it up."""
        kept = [place for place in self._kept() if not self._is_image[place]]
        if not percentile or not kept:
            return
        values = np.frombuffer(numbers, np.float64)
        least = np.percentile(values[kept], percentile)
        for place in np.flatnonzero((values < least) & ~np.frombuffer(self._is_image, bool)).tolist():
            self._reasons.setdefault(place, []).append(reason)

    def _drop_repetitions(self, max_distance: float) -> None:
        """Among what is kept so far: black clips and cards all look alike, and a dropped clip keeps no other out."""
        for is_image in (False, True):  # a picture repeats no clip: it is shown for longer, or it is another thing
            kept = [place for place in self._kept() if bool(self._is_image[place]) == is_image]
            if kept:
                self._drop_repetitions_of(np.array(sorted(kept, key=self._ids.__getitem__), np.int64), max_distance)

    def _drop_repetitions_of(self, kept: npt.NDArray[np.int64], max_distance: float) -> None:
        hashes: npt.NDArray[np.uint64] = np.frombuffer(self._hashes, np.uint64).reshape(-1, len(HASH_SHARES))
        repeats = near_duplicates(
            hashes[kept],
            np.frombuffer(self._num_frames, np.int64)[kept],
            np.frombuffer(self._sharpness, np.float64)[kept],
            max_distance,
        )
        for place, repeated in zip(kept.tolist(), repeats.tolist(), strict=True):
            if repeated >= 0:
                self._reasons[place] = [REPEATED]
                self._repeats[place] = int(kept[repeated])
