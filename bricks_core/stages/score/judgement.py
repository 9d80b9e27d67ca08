"""Which clips are kept, once all are measured: thresholds, percentiles of this data set, repetitions, and the split."""

from __future__ import annotations

from array import array
from collections import Counter

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
    held = {
        BLACK: score.brightness < spec.min_brightness,
        WHITE: score.brightness > spec.max_brightness,
        PLAIN: score.plain_share > spec.max_plain_share,
        HELD: score.duplicate_frame_share > spec.max_duplicate_frame_share,
        STILL: score.motion < spec.min_motion,
    }
    return [reason for reason, holds in held.items() if holds]


class Judgement:
    """Add every clip's score, judge, then ask for each. Keeps some dozen bytes of a clip (hashes and a few numbers)."""

    def __init__(self, spec: ScoreSpec):
        self._spec = spec
        self._ids: list[str] = []
        self._places: dict[str, int] = {}
        self._videos: list[str] = []
        self._motion, self._sharpness = array("d"), array("d")
        self._num_frames, self._hashes = array("q"), array("Q")
        self._reasons: dict[int, list[str]] = {}
        self._repeats: dict[int, int] = {}
        self._held_out: frozenset[str] = frozenset()

    def add(self, score: Score) -> None:
        """The next clip."""
        place = self._places[score.id] = len(self._ids)
        self._ids.append(score.id)
        self._videos.append(score.video_id)
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
        self._drop_repetitions()
        videos = Counter(self._videos[place] for place in self._kept())
        alike = [(self._videos[one], self._videos[other]) for one, other in self._repeats.items()]
        self._held_out = held_out_videos(videos, alike, self._spec.held_out_share, self._spec.split_seed)

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
                "split": "held_out" if score.video_id in self._held_out else "train",
            }
        )

    def counts(self) -> dict[str, int]:
        """How many are kept, and dropped for which first reason: these add up to all."""
        kept = self._kept()
        dropped = Counter(f"dropped: {reasons[0]}" for reasons in self._reasons.values())
        held_out = sum(self._videos[place] in self._held_out for place in kept)
        return {"kept": len(kept), "of these held out": held_out, **dict(sorted(dropped.items()))}

    def _kept(self) -> list[int]:
        return [place for place in range(len(self._ids)) if place not in self._reasons]

    def _drop_below(self, reason: str, numbers: array[float], percentile: float) -> None:
        """The percentile is over clips without a reason of their own: title cards must not use it up."""
        kept = self._kept()
        if not percentile or not kept:
            return
        values = np.frombuffer(numbers, np.float64)
        least = np.percentile(values[kept], percentile)
        for place in np.flatnonzero(values < least).tolist():
            self._reasons.setdefault(place, []).append(reason)

    def _drop_repetitions(self) -> None:
        """Among what is kept so far: black clips and cards all look alike, and a dropped clip keeps no other out."""
        kept = np.array(sorted(self._kept(), key=self._ids.__getitem__), np.int64)
        if not len(kept):
            return
        hashes: npt.NDArray[np.uint64] = np.frombuffer(self._hashes, np.uint64).reshape(-1, len(HASH_SHARES))
        repeats = near_duplicates(
            hashes[kept],
            np.frombuffer(self._num_frames, np.int64)[kept],
            np.frombuffer(self._sharpness, np.float64)[kept],
            self._spec.filter.max_near_duplicate_distance,
        )
        for place, repeated in zip(kept.tolist(), repeats.tolist(), strict=True):
            if repeated >= 0:
                self._reasons[place] = [REPEATED]
                self._repeats[place] = int(kept[repeated])
