"""Where shots end: cuts, fades and dissolves, and damage.

Three measures of one pass over the film, on small pictures (about 2 CPU ms a frame beside decoding):

- a *strong cut*: what the motion from the last picture cannot explain stands out on one side at least. Explosions, whip
  pans and fast action change everything all the time, but most of it moves; a new shot does not.
- a *jump cut*, on the same set: PySceneDetect's AdaptiveDetector (content change against its neighbours), where motion
  does not explain the change either, which is how its false alarms on held pictures are told.
- a *gradual transition*: pictures that are a blend of the one some frames before and the one some frames after.

A false cut costs little, a clip with a cut in it teaches the model to cut: when in doubt, cut.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from scenedetect import FrameTimecode
from scenedetect.detectors import AdaptiveDetector

from bricks_core.video.read import Frame, Pixels

Floats = npt.NDArray[np.float32]

WIDTH_PX, HEIGHT_PX = 256, 144
_FLOW_PX = (160, 90)
_THUMB_PX = (32, 18)

# Chosen on the developer films; on a plateau: 9 to 14 and 1.6 to 2 find the same cuts in all of them.
CUT_THRESHOLD = 12.0
_STRONG_SHARE, _STRONG_SHARE_FROM = 0.6, 4.0
_STANDS_OUT = 2.0
_NEIGHBOURS = 4
_JUMP_SHARE, _JUMP_FROM = 0.15, 2.0
_REFINE = 2

_BLEND_LAGS = (4, 6, 9, 13)
_BLEND_CHANGE = 18.0
_BLEND_RESIDUALS = ((0.45, 0.25), (0.6, 0.35))
_BLEND_CHANGED = 10.0
_BLEND_UNEXPLAINED = 0.6
_BLEND_MARGIN = 2

_PLAIN_CONTRAST = 1.5


class Shot(NamedTuple):
    """Frames [first_frame, end_frame) of a film, and why they are no clip if they are none."""

    first_frame: int
    end_frame: int
    reason: str = ""

    @property
    def num_frames(self) -> int:
        return self.end_frame - self.first_frame


@dataclass(frozen=True)
class Measured:
    """What one pass over a film saw. All arrays have num_frames entries; a frame's change is against the one before."""

    residual: Floats
    """Mean change of a pixel (of 255) that motion does not explain."""
    contrast: Floats
    """Mean distance of luma from its mean."""
    is_jump: npt.NDArray[np.bool_]
    """AdaptiveDetector's cuts."""
    is_blend: npt.NDArray[np.bool_]
    """Inside a fade or dissolve."""
    is_damaged: npt.NDArray[np.bool_]

    @property
    def num_frames(self) -> int:
        return len(self.residual)


def measure(film: Iterable[Frame], *, adaptive_threshold: float = 3.0) -> Measured:
    """One pass over a film's frames; keeps some small pictures and a few numbers a frame."""
    flow = _Flow()
    change, blends, jumps = _Change(flow), _Blends(flow), _Jumps(adaptive_threshold)
    damaged = []
    for frame in film:
        picture = frame.small_bgr(WIDTH_PX, HEIGHT_PX)
        small = _Small.of(picture)
        change.add(small)
        blends.add(small)
        jumps.add(picture)
        damaged.append(frame.is_damaged)
    num_frames = len(damaged)
    return Measured(
        residual=np.asarray(change.residual, np.float32),
        contrast=np.asarray(change.contrast, np.float32),
        is_jump=_marked(num_frames, jumps.cuts),
        is_blend=blends.marked(num_frames),
        is_damaged=np.asarray(damaged, bool),
    )


def find_cuts(measured: Measured, *, cut_threshold: float = CUT_THRESHOLD) -> list[int]:
    """First frames of new shots, rising."""
    residual, contrast = measured.residual, measured.contrast
    num_frames = measured.num_frames
    cuts = set()
    for frame in range(1, num_frames):
        before = residual[max(1, frame - _NEIGHBOURS) : frame].max(initial=0)
        after = residual[frame + 1 : frame + 1 + _NEIGHBOURS].max(initial=0)
        share = residual[frame] / (3 + (contrast[frame] + contrast[frame - 1]) / 2)
        is_large = residual[frame] >= cut_threshold or (
            share >= _STRONG_SHARE and residual[frame] >= _STRONG_SHARE_FROM
        )
        # Against the calmer side only: a cut out of an explosion, or into one, is a cut.
        if is_large and residual[frame] > _STANDS_OUT * (1.5 + min(before, after)):
            cuts.add(frame)
    for jump in map(int, np.flatnonzero(measured.is_jump)):
        around = range(max(1, jump - _REFINE), min(num_frames, jump + _REFINE + 1))
        frame = max(around, key=lambda each: float(residual[each]))
        share = residual[frame] / (3 + (contrast[frame] + contrast[frame - 1]) / 2)
        if (
            residual[frame] >= _JUMP_FROM
            and share >= _JUMP_SHARE
            and not measured.is_blend[frame - 1 : frame + 1].all()
        ):
            cuts.add(frame)
    return sorted(cuts)


def find_shots(measured: Measured, *, cut_threshold: float = CUT_THRESHOLD) -> list[Shot]:
    """The film from end to end as shots: what can be a clip, and what cannot, with the reason."""
    kinds: list[Literal["", "damaged", "blend"]] = [
        "damaged" if damaged else "blend" if blend else ""
        for damaged, blend in zip(measured.is_damaged, measured.is_blend, strict=True)
    ]
    cuts = set(find_cuts(measured, cut_threshold=cut_threshold))
    shots = []
    first = 0
    for frame in range(1, measured.num_frames + 1):
        ends = frame == measured.num_frames or kinds[frame] != kinds[first]
        if ends or (frame in cuts and kinds[first] != "damaged"):
            shots.append(Shot(first, frame, _reason(kinds[first], measured.contrast[first:frame])))
            first = frame
    return shots


def split_shots(shots: Iterable[Shot], *, min_frames: int, max_frames: int) -> Iterator[Shot]:
    """Shots of clip length: long ones split into even pieces, short ones with the reason why they are none."""
    for shot in shots:
        if shot.reason:
            yield shot
        elif shot.num_frames < min_frames:
            yield shot._replace(reason=f"too short: {shot.num_frames} frames of at least {min_frames}")
        else:
            yield from _split_evenly(shot, max_frames)


def _split_evenly(shot: Shot, max_frames: int) -> Iterator[Shot]:
    num_pieces = -(-shot.num_frames // max_frames)
    ends = [shot.first_frame + shot.num_frames * piece // num_pieces for piece in range(num_pieces + 1)]
    for first, end in pairwise(ends):
        yield Shot(first, end)


def _reason(kind: str, contrast: Floats) -> str:
    if kind == "damaged":
        return "damaged in the file"
    if kind == "blend":
        return "inside a fade or dissolve"
    if contrast.max(initial=0) < _PLAIN_CONTRAST:
        return "nothing to see: one plain colour throughout"
    return ""


class _Flow:
    """What of a picture cannot be explained by motion from another one.

    Optical flow by OpenCV's DIS (Kroeger et al., arXiv:1603.03590); the one picture is moved along it and compared.
    """

    def __init__(self) -> None:
        self._flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
        self._y, self._x = np.mgrid[0 : _FLOW_PX[1], 0 : _FLOW_PX[0]].astype(np.float32)

    def unexplained(self, before: _Small, after: _Small) -> float:
        """Mean change of a pixel and channel that is left, of 255."""
        flow = self._flow.calc(after.grey, before.grey, np.zeros((*after.grey.shape, 2), np.float32))
        moved = cv2.remap(
            before.bgr,
            self._x + flow[..., 0],
            self._y + flow[..., 1],
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )
        return float(cv2.absdiff(moved, after.bgr).mean())


class _Small(NamedTuple):
    """A picture at the size that flow is computed on."""

    bgr: Pixels
    grey: Pixels

    @classmethod
    def of(cls, picture: Pixels) -> _Small:
        bgr = np.asarray(cv2.resize(picture, _FLOW_PX, interpolation=cv2.INTER_AREA), np.uint8)
        return cls(bgr, np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY), np.uint8))


class _Change:
    """How much of each picture the motion from the last one does not explain."""

    def __init__(self, flow: _Flow) -> None:
        self.residual: list[float] = []
        self.contrast: list[float] = []
        self._flow = flow
        self._last: _Small | None = None

    def add(self, small: _Small) -> None:
        self.contrast.append(float(np.abs(small.grey - small.grey.mean()).mean()))
        self.residual.append(0.0 if self._last is None else self._flow.unexplained(self._last, small))
        self._last = small


class _Jumps:
    """PySceneDetect's AdaptiveDetector, fed by hand so that the film is decoded once; cuts however near each other."""

    def __init__(self, adaptive_threshold: float):
        self.cuts: list[int] = []
        self._detector = AdaptiveDetector(adaptive_threshold=adaptive_threshold, min_scene_len=1)
        self._num_frames = 0

    def add(self, picture: Pixels) -> None:
        # The rate means nothing here: it is a way to hand over a frame's number.
        found = self._detector.process_frame(FrameTimecode(self._num_frames, 25.0), picture)
        self.cuts += [each.frame_num for each in found]
        self._num_frames += 1


class _Blends:
    """Fades and dissolves: a picture M = a A + (1 - a) B of the pictures A some frames before and B as many after.

    With a falling from A to B, what the blend does not explain small against the difference of A and B, and what motion
    from A to B does not explain large: a thing that moves is half way between two places at a third one, not half at
    both, but where everything is blurred the two look alike.
    """

    def __init__(self, flow: _Flow) -> None:
        self._places: list[tuple[int, int]] = []
        self._flow = flow
        self._thumbs: deque[Floats] = deque(maxlen=2 * max(_BLEND_LAGS) + 1)
        self._smalls: deque[_Small] = deque(maxlen=2 * max(_BLEND_LAGS) + 1)
        self._num_frames = 0

    def add(self, small: _Small) -> None:
        thumb = cv2.resize(small.bgr, _THUMB_PX, interpolation=cv2.INTER_AREA)
        self._thumbs.append(thumb.astype(np.float32).ravel())
        self._smalls.append(small)
        self._num_frames += 1
        for lag in _BLEND_LAGS:
            middle = self._num_frames - 1 - lag
            if middle - lag >= 0 and (reach := self._blend(lag)) and not self._is_motion(lag):
                before, after = reach
                self._places.append((middle - before - _BLEND_MARGIN, middle + after + 1 + _BLEND_MARGIN))

    def marked(self, num_frames: int) -> npt.NDArray[np.bool_]:
        marks = np.zeros(num_frames, bool)
        for first, end in self._places:
            marks[max(0, first) : end] = True
        return marks

    def _is_motion(self, lag: int) -> bool:
        before, after = self._smalls[-1 - 2 * lag], self._smalls[-1]
        change = float(cv2.absdiff(before.bgr, after.bgr).mean())
        return self._flow.unexplained(before, after) < _BLEND_UNEXPLAINED * change

    def _blend(self, lag: int) -> tuple[int, int] | None:
        """How far a transition reaches before and after the picture `lag` before the newest; None if it is in none."""
        before, after = self._thumbs[-1 - 2 * lag], self._thumbs[-1]
        change = before - after
        power = float(change @ change)
        if power < _BLEND_CHANGE**2 * len(change):
            return None
        # A transition changes the picture in most places, a thing that moves in few.
        changed = float((np.abs(change).reshape(-1, 3).mean(axis=1) > _BLEND_CHANGED).mean())
        allowed = max((residual for least, residual in _BLEND_RESIDUALS if changed >= least), default=0.0)
        half = (lag + 1) // 2
        shares = []
        for place in (-1 - lag - half, -1 - lag, -1 - lag + half):
            rest = self._thumbs[place] - after
            share = float(rest @ change) / power
            rest = rest - share * change
            if float(rest @ rest) >= allowed**2 * power:
                return None
            shares.append(share)
        early, middle, late = shares
        if not (0.3 < middle < 0.7 and 1.1 > early > middle + 0.1 and middle > late + 0.1 and late > -0.1):
            return None
        return lag if early < 0.9 else half, lag if late > 0.1 else half


def _marked(num_frames: int, places: Sequence[int]) -> npt.NDArray[np.bool_]:
    marks = np.zeros(num_frames, bool)
    marks[list(places)] = True
    return marks
