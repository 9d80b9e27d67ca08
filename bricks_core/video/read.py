"""Frames of any film, upright and in right colours, counted as the decoder delivers them.

Frames are counted in presentation order and never found by time: a first timestamp that is not 0, an edit list or a
variable rate make `round(t * fps)` another frame. One thread decodes a file: several threads hide damage (of one test
file with bit errors, two threads flag 11 frames of 90 as corrupt, one thread 48), and files in parallel are faster.
"""

from __future__ import annotations

import errno
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import ColorRange, Colorspace, ColorTrc

from bricks_core.errors import DataError
from bricks_core.video import colour
from bricks_core.video.isolate import sign_of_life

Pixels = npt.NDArray[np.uint8]

# Left to itself the library prints decoders' complaints to standard error; what matters of them is in Frame.is_damaged.
av.logging.set_level(None)

# FFmpeg's names. What is left out would open other files (hls, dash, concat), or call a text or a picture a film.
_CONTAINERS = (
    *("mov", "matroska", "webm", "avi", "gif", "mpegts", "mpeg", "mpegvideo", "flv", "live_flv", "asf", "ogg", "mxf"),
    *("ivf", "nut", "rm", "dv", "apng", "h264", "hevc", "obu", "m4v", "yuv4mpegpipe", "wtv", "swf", "roq", "bink"),
)

_MATRIX_BT709, _MATRIX_BT2020 = 1, (9, 10)
_MATRICES_OF_BT601 = (4, 5, 6)
_UNSPECIFIED = 2


@dataclass(frozen=True)
class Frame:
    """One frame of a film, not yet converted to anything."""

    index: int
    """Counted from 0 in the order the decoder delivers."""
    pts: int
    """Time since the first frame, in units of `time_base` seconds; always rising."""
    time_base: Fraction
    duration: int
    """How long the frame is shown, as far as the file says; in units of `time_base`."""
    is_damaged: bool
    """The decoder calls it corrupt, failed just before it, or it rests on such a frame."""
    rotation_deg: int
    """Counter-clockwise turn that brings the stored picture upright: 0, 90, 180 or 270."""
    picture: av.VideoFrame
    """As stored."""

    @property
    def time_s(self) -> float:
        return float(self.pts * self.time_base)

    @property
    def width_px(self) -> int:
        """Upright."""
        return int(self.picture.height if self.rotation_deg % 180 else self.picture.width)

    @property
    def height_px(self) -> int:
        """Upright."""
        return int(self.picture.width if self.rotation_deg % 180 else self.picture.height)

    @property
    def is_hdr(self) -> bool:
        return self.picture.color_trc in (ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67)

    def rgb(self) -> Pixels:
        """(height_px, width_px, 3) in 0..255, upright, BT.709; high dynamic range is tone-mapped."""
        return self._turned(to_rgb(self.picture))

    def small_bgr(self, width_px: int, height_px: int) -> Pixels:
        """(height_px, width_px, 3), averaged down as stored (not turned, not tone-mapped): for measuring."""
        small = self.picture.reformat(
            width_px,
            height_px,
            "bgr24",
            src_colorspace=colour_matrix(self.picture),
            src_color_range=_range(self.picture),
            interpolation="AREA",
            threads=1,
        )
        return np.asarray(small.to_ndarray())

    def luma(self) -> Pixels:
        """(height_px, width_px) in 0..255, upright; full range, so that black is 0 and white 255 for every film."""
        if self.is_hdr:
            r, g, b = np.moveaxis(self.rgb().astype(np.float32), -1, 0)
            return np.asarray(np.rint(0.2126 * r + 0.7152 * g + 0.0722 * b), np.uint8)
        grey = self.picture.reformat(
            format="gray", src_color_range=_range(self.picture), dst_color_range=ColorRange.JPEG, threads=1
        )
        return self._turned(np.asarray(grey.to_ndarray()))

    def _turned(self, picture: Pixels) -> Pixels:
        return np.ascontiguousarray(np.rot90(picture, self.rotation_deg // 90))


def frames(path: Path | str, *, stream_index: int | None = None) -> Generator[Frame, None, None]:
    """All frames of a film's largest video stream (or of the one given), in order.

    What the decoder cannot make sense of is skipped, and the frames after it are damaged until a sound key frame.
    The file is closed when the iterator ends or is closed: an iterator left early wants `contextlib.closing`.

    Raises:
        DataError: the file is no film. It says why in `probe.probe`.
    """
    # Close here, not in the garbage collector: left to it, PyAV's containers pile up (pyav.org, "Caveats").
    with open_film(path) as container:
        stream = video_stream(container, stream_index)
        if stream is None:
            raise DataError(f"{Path(path).name} has no video stream.")
        stream.codec_context.thread_count = 1
        stream.thread_type = "NONE"
        yield from _decoded(container, stream)


def read_rgb(path: Path | str, indices: Iterable[int] | None = None) -> Pixels:
    """Chosen frames of a film (all when none are chosen), in the order asked for. (num_frames, height, width, 3)

    Raises:
        DataError: the film has no such frame, or is no film.
    """
    if indices is None:
        with closing(frames(path)) as film:
            pictures = [frame.rgb() for frame in film]
        if not pictures:
            raise DataError(f"{Path(path).name} has no frame that can be decoded.")
        return np.stack(pictures)
    wanted = list(indices)
    last, chosen = max(wanted, default=-1), set(wanted)
    found: dict[int, Pixels] = {}
    with closing(frames(path)) as film:
        for frame in film:
            if frame.index in chosen:
                found[frame.index] = frame.rgb()
            if frame.index >= last:
                break
    missing = [index for index in wanted if index not in found]
    if missing:
        raise DataError(f"{Path(path).name} has no frame {missing[0]}.")
    return np.stack([found[index] for index in wanted])


def open_film(path: Path | str) -> av.container.InputContainer:
    """Open a film, and nothing else that FFmpeg can open: no playlist that names other files or addresses, no text.

    Raises:
        DataError: it is no film.
        OSError: it cannot be read.
    """
    options = {"format_whitelist": ",".join(_CONTAINERS), "protocol_whitelist": "file"}
    try:
        return av.open(str(path), metadata_errors="replace", options=options)
    except (av.FFmpegError, ValueError) as error:
        _raise_if_out_of_memory(error)
        if isinstance(error, OSError):
            raise
        raise DataError(f"{Path(path).name} is not a video in any format known here.") from None


def video_stream(container: av.container.InputContainer, index: int | None = None) -> av.VideoStream | None:
    """The stream of that index, or the one with most pixels that is no cover picture; None when there is none."""
    streams = [each for each in container.streams.video if index in (None, each.index)]
    if index is None:
        streams = [each for each in streams if not each.disposition & each.disposition.attached_pic]
    return max(streams, key=lambda each: each.width * each.height, default=None)


def to_rgb(picture: av.VideoFrame) -> Pixels:
    """A decoded picture as (height, width, 3) in 0..255, BT.709, as stored: not turned."""
    if picture.color_trc in (ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67):
        deep = picture.reformat(
            format="rgb48le", src_colorspace=colour_matrix(picture), src_color_range=_range(picture), threads=1
        )
        curve: colour.HdrCurve = "pq" if picture.color_trc == ColorTrc.SMPTE2084 else "hlg"
        return colour.tone_mapped(np.asarray(deep.to_ndarray()), curve)
    flat = picture.reformat(
        format="rgb24", src_colorspace=colour_matrix(picture), src_color_range=_range(picture), threads=1
    )
    return np.asarray(flat.to_ndarray())


def colour_matrix(picture: av.VideoFrame) -> Colorspace:
    """A picture's YUV matrix; where the file is silent, what players assume: BT.709 from 720 lines on, else BT.601."""
    if picture.colorspace in _MATRIX_BT2020:
        return Colorspace.BT2020
    if picture.colorspace in _MATRICES_OF_BT601:
        return Colorspace.ITU601
    if picture.colorspace == _MATRIX_BT709 or max(picture.width, picture.height) >= 1280:
        return Colorspace.ITU709
    return Colorspace.ITU709 if min(picture.width, picture.height) >= 720 else Colorspace.ITU601


def is_full_range(picture: av.VideoFrame) -> bool:
    """Whether black is 0 rather than 16."""
    name = picture.format.name
    return picture.color_range == ColorRange.JPEG or name.startswith("yuvj") or picture.format.is_rgb


def _range(picture: av.VideoFrame) -> ColorRange:
    return ColorRange.JPEG if is_full_range(picture) else ColorRange.MPEG


def _decoded(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[Frame]:
    clock = _Clock(stream)
    index, broken = 0, False
    for pictures, failed in _packets(container, stream):
        # Damage spreads through every frame that is predicted from a damaged one: up to the next sound key frame.
        broken |= failed
        for picture in pictures:
            if picture.is_corrupt:
                broken = True
            elif picture.key_frame and not failed:
                broken = False
            pts, duration = clock.tell(picture)
            rotation_deg = round(picture.rotation / 90) * 90 % 360
            sign_of_life()
            yield Frame(index, pts, clock.time_base, duration, broken, rotation_deg, picture)
            index += 1
        del pictures


def _packets(
    container: av.container.InputContainer, stream: av.VideoStream
) -> Iterator[tuple[list[av.VideoFrame], bool]]:
    """Per packet: the pictures it gave, and whether the decoder failed on it."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except (av.FFmpegError, ValueError, OSError) as error:
            _raise_if_out_of_memory(error)
            yield [], True  # the rest of the file cannot be taken apart
            yield _flushed(stream), True
            return
        try:
            pictures = list(stream.decode(packet))
        except av.EOFError:
            return
        except (av.FFmpegError, ValueError) as error:
            _raise_if_out_of_memory(error)
            yield [], True
        else:
            yield pictures, False


def _flushed(stream: av.VideoStream) -> list[av.VideoFrame]:
    try:
        return list(stream.decode(None))
    except (av.FFmpegError, ValueError):
        return []


def _raise_if_out_of_memory(error: Exception) -> None:
    if getattr(error, "errno", None) == errno.ENOMEM:
        raise MemoryError from error


class _Clock:
    """Timestamps that always rise: from the file where it has them, else one usual step on."""

    def __init__(self, stream: av.VideoStream):
        self.time_base = stream.time_base or Fraction(1, 1000)
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        self._step = max(1, round(1 / (rate * self.time_base)))
        self._first: int | None = None
        self._last = -1

    def tell(self, picture: av.VideoFrame) -> tuple[int, int]:
        """(pts since the first frame, duration) of the next picture."""
        pts = picture.pts
        if self._first is None:
            self._first = pts or 0
            self._last = 0
            return 0, int(picture.duration or self._step)
        now = self._last + self._step if pts is None else pts - self._first
        self._last = now if now > self._last else self._last + 1
        return self._last, int(picture.duration or self._step)
