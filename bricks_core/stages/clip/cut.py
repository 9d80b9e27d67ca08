"""Shots cut out of a film: every frame of the plan and no other, each written once."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from bricks_core.errors import DataError
from bricks_core.stages.clip.scenes import Shot
from bricks_core.video.read import Frame, frames
from bricks_core.video.write import Mp4Writer, jpeg, planes_of


@dataclass(frozen=True)
class CutClip:
    """A clip on disk, and the picture of its middle frame."""

    shot: Shot
    file: Path
    image_file: Path
    image_frame: int
    """Counted in the film."""
    width_px: int
    height_px: int
    fps: float
    """Mean rate, from timestamps."""


def cut(film: Path, shots: Sequence[Shot], folder: Path, *, crf: int = 18, preset: str = "veryfast") -> list[CutClip]:
    """Write each shot as `folder/<first frame>.mp4`, and its middle frame as `.jpg`, in one pass over the film.

    H.264, upright, the source's size (an odd last row or column left out), its timestamps, no sound. Shots must not
    overlap and must rise. Frames are counted as the decoder delivers them, so the cut is exact.

    Raises:
        DataError: the film is not the one the shots were found in, or a written file does not decode to the plan.
    """
    clips: list[CutClip] = []
    waiting = list(shots)
    writing: _Writing | None = None
    try:
        with closing(frames(film)) as source:
            for frame in source:
                if writing is None:
                    if not waiting:
                        break
                    if frame.index < waiting[0].first_frame:
                        continue
                    writing = _Writing(waiting.pop(0), frame, folder, crf, preset)
                writing.add(frame)
                if frame.index == writing.shot.end_frame - 1:
                    clips.append(writing.close())
                    writing = None
    finally:
        if writing is not None:
            writing.abandon()
    if writing is not None or waiting:
        raise DataError(
            f"{film.name} ended before frame {shots[-1].end_frame}, though it had more when it was measured."
        )
    return clips


class _Writing:
    """One clip while it is written."""

    def __init__(self, shot: Shot, frame: Frame, folder: Path, crf: int, preset: str):
        self.shot = shot
        self._first_pts = self._last_pts = frame.pts
        self._time_base = frame.time_base
        self._file = folder / f"{shot.first_frame:07d}.mp4"
        self._image_frame = (shot.first_frame + shot.end_frame) // 2
        self._size = self._image_size = (0, 0)
        usual_s = frame.duration * frame.time_base
        self._writer = Mp4Writer(
            self._file, fps=Fraction(1) / usual_s, time_base=frame.time_base, crf=crf, preset=preset
        )

    def add(self, frame: Frame) -> None:
        planes = planes_of(frame)
        self._size = planes.width_px, planes.height_px
        self._writer.add(planes, frame.pts - self._first_pts, frame.duration)
        self._last_pts = frame.pts
        if frame.index == self._image_frame:
            rgb = frame.rgb()[: planes.height_px, : planes.width_px]
            self._file.with_suffix(".jpg").write_bytes(jpeg(rgb))

    def close(self) -> CutClip:
        self._writer.close()
        seconds = (self._last_pts - self._first_pts) * self._time_base
        return CutClip(
            shot=self.shot,
            file=self._file,
            image_file=self._file.with_suffix(".jpg"),
            image_frame=self._image_frame,
            width_px=self._size[0],
            height_px=self._size[1],
            fps=float((self.shot.num_frames - 1) / seconds) if seconds else 0.0,
        )

    def abandon(self) -> None:
        self._writer.abandon()
