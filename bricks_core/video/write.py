"""H.264 films and JPEG pictures. The same pictures make the same bytes, on any number of CPUs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self

import av
import cv2
import numpy as np
import numpy.typing as npt
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc

from bricks_core.errors import DataError
from bricks_core.video.read import Frame, Pixels, colour_matrix, frames, is_full_range, to_rgb

JPEG_QUALITY = 95
_SPC_BT709, _SPC_BT601 = 1, 6  # numbers of ITU-T H.273, as the file stores them


@dataclass(frozen=True)
class Planes:
    """A picture ready for the encoder: Y'CbCr 4:2:0, 8 bit, upright, both sides even."""

    yuv: Pixels
    """(height_px * 3 / 2, width_px): luma, then the two chroma planes, row after row."""
    is_bt709: bool
    """The matrix: BT.709, else BT.601."""
    is_full_range: bool
    primaries: int = ColorPrimaries.BT709
    transfer: int = ColorTrc.BT709

    @property
    def width_px(self) -> int:
        return self.yuv.shape[1]

    @property
    def height_px(self) -> int:
        return self.yuv.shape[0] * 2 // 3


def planes_of(frame: Frame) -> Planes:
    """A decoded frame, upright, without the last row or column where a side is odd.

    Y'CbCr of 8 bits keeps its very values. RGB becomes BT.709, HDR is tone-mapped to it.
    """
    picture = frame.picture
    if picture.format.is_rgb or frame.is_hdr or colour_matrix(picture) == Colorspace.BT2020:
        return planes_of_rgb(np.ascontiguousarray(np.rot90(to_rgb(picture), frame.rotation_deg // 90)))
    full = is_full_range(picture)
    wanted = "yuvj420p" if full else "yuv420p"
    if picture.format.name not in (wanted, "yuv420p"):
        kept = ColorRange.JPEG if full else ColorRange.MPEG
        picture = picture.reformat(
            format=wanted,
            src_colorspace=colour_matrix(picture),
            dst_colorspace=colour_matrix(picture),
            src_color_range=kept,
            dst_color_range=kept,
            threads=1,
        )
    height, width = picture.height & ~1, picture.width & ~1
    turns = frame.rotation_deg // 90
    parts = [
        np.rot90(_plane(picture, 0)[:height, :width], turns),
        np.rot90(_plane(picture, 1)[: height // 2, : width // 2], turns),
        np.rot90(_plane(picture, 2)[: height // 2, : width // 2], turns),
    ]
    upright_width = parts[0].shape[1]
    return Planes(
        np.concatenate([part.reshape(-1) for part in parts]).reshape(-1, upright_width),
        is_bt709=colour_matrix(frame.picture) == Colorspace.ITU709,
        is_full_range=full,
        primaries=frame.picture.color_primaries,
        transfer=frame.picture.color_trc,
    )


def planes_of_rgb(rgb: Pixels) -> Planes:
    """(height, width, 3) in 0..255 -> BT.709, limited range; an odd last row or column is left out."""
    height, width = rgb.shape[0] & ~1, rgb.shape[1] & ~1
    picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb[:height, :width]), format="rgb24").reformat(
        format="yuv420p",
        src_color_range=ColorRange.JPEG,
        dst_colorspace=Colorspace.ITU709,
        dst_color_range=ColorRange.MPEG,
        interpolation="AREA",
        threads=1,
    )
    parts = [_plane(picture, index) for index in range(3)]
    yuv = np.concatenate([part.reshape(-1) for part in parts]).reshape(-1, width)
    return Planes(yuv, is_bt709=True, is_full_range=False)


class Mp4Writer:
    """An H.264 mp4, frame by frame. Use it as a context; at its end the file is read again and its frames counted."""

    def __init__(
        self,
        path: Path,
        *,
        fps: Fraction,
        time_base: Fraction | None = None,
        crf: int = 18,
        preset: str = "veryfast",
        metadata: Mapping[str, str] | None = None,
    ):
        """`fps` is what the header says; `time_base` the unit of the timestamps given to `add` (default: 1 / fps).

        `metadata`: title, artist, comment and the like, as mp4 knows them.
        """
        self.path = path
        self.num_frames = 0
        self._fps = fps.limit_denominator(1_000_000)
        self._time_base = time_base or 1 / self._fps
        # No macroblock tree: x264's code for AVX-512 spreads costs from eight blocks at a time, and where the width is
        # no multiple of 128 pixels the last of a frame are whatever lies in memory behind its motion vectors
        # (mbtree_propagate_list_internal; x264 165, 2025). The same pictures then make one file or another. The code
        # for AVX2 is free of that, but cannot be asked for where there is none. This costs 20 to 48 % more bytes on
        # small films.
        self._options = {"crf": str(crf), "preset": preset, "x264-params": "mbtree=0"}
        self._container = av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"})
        self._container.metadata.update(metadata or {})
        self._stream: av.VideoStream | None = None

    def __enter__(self) -> Self:
        return self

    def add(self, planes: Planes, pts: int, duration: int | None = None) -> None:
        """Write a picture to be shown from `pts` on, in units of the time base; they must rise."""
        if self._stream is None:
            self._stream = self._open(planes)
        picture = av.VideoFrame.from_ndarray(planes.yuv, format="yuvj420p" if planes.is_full_range else "yuv420p")
        picture.pts, picture.time_base = pts, self._time_base
        picture.duration = duration or max(1, round(1 / (self._fps * self._time_base)))
        picture.color_range = ColorRange.JPEG if planes.is_full_range else ColorRange.MPEG
        self._container.mux(self._stream.encode(picture))
        self.num_frames += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()

    def close(self) -> None:
        """End the file, read it again and count.

        Raises:
            DataError: what comes out is not what went in.
        """
        with self._container:
            if self._stream is not None:
                self._container.mux(self._stream.encode(None))
        self._check()

    def abandon(self) -> None:
        """Close the unfinished file; it is not to be used."""
        self._container.close()

    def _open(self, planes: Planes) -> av.VideoStream:
        stream: av.VideoStream = self._container.add_stream("libx264", rate=self._fps, options=self._options)
        stream.width, stream.height = planes.width_px, planes.height_px
        stream.pix_fmt = "yuvj420p" if planes.is_full_range else "yuv420p"
        stream.time_base = self._time_base
        context = stream.codec_context
        context.time_base = self._time_base
        # One thread: x264's output depends on their number, and files in parallel keep all CPUs busy anyway. (Left to
        # itself the library asks for sliced threads, which cost quality.)
        context.thread_count = 1
        context.thread_type = "FRAME"
        context.colorspace = _SPC_BT709 if planes.is_bt709 else _SPC_BT601
        context.color_range = ColorRange.JPEG if planes.is_full_range else ColorRange.MPEG
        context.color_primaries = planes.primaries
        context.color_trc = planes.transfer
        return stream

    def _check(self) -> None:
        num_decoded = num_damaged = 0
        if self.num_frames:
            with closing(frames(self.path)) as film:
                for frame in film:
                    num_decoded += 1
                    num_damaged += frame.is_damaged
        if num_decoded != self.num_frames or num_damaged:
            raise DataError(
                f"{self.path.name} was written wrongly: {self.num_frames} frames went in, {num_decoded} come out, "
                f"{num_damaged} of them damaged."
            )


def write_mp4(
    path: Path,
    video: Pixels | Iterable[Pixels],
    fps: float | Fraction,
    *,
    metadata: Mapping[str, str] | None = None,
    crf: int = 18,
) -> int:
    """Write (num_frames, height, width, 3) uint8 RGB pictures as mp4; returns the number of frames.

    An odd last row or column is left out. `metadata`: title, comment and the like.
    """
    rate = Fraction(fps).limit_denominator(100_000)
    with Mp4Writer(path, fps=rate, crf=crf, metadata=metadata) as film:
        for index, picture in enumerate(video):
            film.add(planes_of_rgb(picture), index)
    return film.num_frames


def jpeg(rgb: Pixels, quality: int = JPEG_QUALITY) -> bytes:
    """A (height, width, 3) uint8 RGB picture as JPEG."""
    done, data = cv2.imencode(".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise DataError(f"A picture of shape {rgb.shape} cannot be written as JPEG.")
    return bytes(data.tobytes())


def _plane(picture: av.VideoFrame, index: int) -> npt.NDArray[np.uint8]:
    """A plane of an 8-bit planar picture in place, without the padding at the end of its rows."""
    plane = picture.planes[index]
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, plane.line_size)
    return rows[:, : plane.width]
