"""What a film really is: every frame decoded and counted, because headers and decoders both keep quiet about damage."""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import av
from av.video.reformatter import ColorPrimaries, ColorRange, ColorTrc

from bricks_core.errors import DataError
from bricks_core.video.read import Frame, colour_matrix, frames, is_full_range, open_film, video_stream

State = Literal["ok", "damaged", "unreadable"]

_MATRIX_NAMES = {"ITU709": "bt709", "ITU601": "bt601", "BT2020": "bt2020"}
# A file whose header promises this much more than can be decoded was cut off, even if no decoder complains.
_MISSING_S, _MISSING_SHARE = 1.0, 0.05


@dataclass(frozen=True)
class Facts:
    """A film as found. With state unreadable only `reason` says anything."""

    state: State
    """damaged: some frames can be trusted, not all."""
    reason: str = ""
    """Why it is not ok: one sentence."""
    container: str = ""
    codec: str = ""
    pixel_format: str = ""
    stream_index: int = -1
    """The video stream with most pixels, cover pictures apart."""
    stored_width_px: int = 0
    stored_height_px: int = 0
    width_px: int = 0
    """Upright, that is, after rotation."""
    height_px: int = 0
    rotation_deg: int = 0
    """Counter-clockwise, from stored to upright."""
    num_frames: int = 0
    """Frames a decoder delivers, damaged ones included."""
    num_damaged_frames: int = 0
    """Called corrupt by the decoder, or resting on such a frame."""
    first_damaged_frame: int = -1
    fps: float = 0.0
    """Mean rate, from timestamps."""
    variable_frame_rate: bool = False
    start_s: float = 0.0
    """The first timestamp in the file."""
    duration_s: float = 0.0
    """From the first frame's start to the last one's end."""
    colour_primaries: str = ""
    colour_transfer: str = ""
    colour_matrix: str = ""
    """As used here: what players assume where the file is silent."""
    colour_range: str = ""
    hdr: bool = False


def probe(path: Path | str) -> Facts:
    """Decode a film from end to end and say what it is. Never raises for what is in the file.

    Costs a full decode on one thread: about 2 ms a frame of 720p H.264.

    Raises:
        OSError: the file cannot be read.
    """
    path = Path(path)
    if path.stat().st_size == 0:
        return Facts("unreadable", "The file is empty.")
    try:
        open_film(path).close()
    except DataError:
        return Facts("unreadable", _not_a_video(path))
    try:
        header = _header(path)
        counted = _Count()
        for frame in frames(path, stream_index=header.stream_index):
            counted.add(frame)
    except DataError as error:
        return Facts("unreadable", str(error))
    if counted.num_frames == 0 or counted.first is None:
        return Facts("unreadable", "Not one frame can be decoded.")
    return _facts(header, counted, _missing_bytes(path))


@dataclass(frozen=True)
class _Header:
    container: str
    codec: str
    stream_index: int
    num_frames: int
    duration_s: float
    start_s: float
    fps: float


class _Count:
    """What is remembered of the frames: counts, and how often each gap between timestamps came."""

    def __init__(self) -> None:
        self.num_frames = 0
        self.num_damaged = 0
        self.first_damaged = -1
        self.first: Frame | None = None
        self.last_pts = self.last_duration = 0
        self.gaps: Counter[int] = Counter()

    def add(self, frame: Frame) -> None:
        if self.first is None:
            self.first = frame
        else:
            self.gaps[frame.pts - self.last_pts] += 1
        if frame.is_damaged:
            self.num_damaged += 1
            self.first_damaged = frame.index if self.first_damaged < 0 else self.first_damaged
        self.last_pts, self.last_duration = frame.pts, frame.duration
        self.num_frames += 1

    def is_variable(self) -> bool:
        """Whether frames are shown for clearly different times; a tick of rounding (41, 42, 41 ms) does not count."""
        if not self.gaps:
            return False
        usual = statistics.median_low(self.gaps.elements())
        return any(abs(gap - usual) > max(1, 0.2 * usual) for gap in self.gaps)


def _facts(header: _Header, counted: _Count, missing_bytes: int) -> Facts:
    frame = counted.first
    assert frame is not None
    picture = frame.picture
    ticks_s = float(frame.time_base)
    # Exact before it is rounded: 25 is to be 25.0.
    fps = float((counted.num_frames - 1) / (counted.last_pts * frame.time_base)) if counted.last_pts else header.fps
    duration_s = (counted.last_pts + counted.last_duration) * ticks_s
    reason = _damage(header, counted, duration_s, missing_bytes)
    return Facts(
        state="damaged" if reason else "ok",
        reason=reason,
        container=header.container,
        codec=header.codec,
        pixel_format=picture.format.name,
        stream_index=header.stream_index,
        stored_width_px=picture.width,
        stored_height_px=picture.height,
        width_px=frame.width_px,
        height_px=frame.height_px,
        rotation_deg=frame.rotation_deg,
        num_frames=counted.num_frames,
        num_damaged_frames=counted.num_damaged,
        first_damaged_frame=counted.first_damaged,
        fps=fps,
        variable_frame_rate=counted.is_variable(),
        start_s=header.start_s,
        duration_s=duration_s,
        colour_primaries=_name(ColorPrimaries, picture.color_primaries),
        colour_transfer=_name(ColorTrc, picture.color_trc),
        colour_matrix="rgb" if picture.format.is_rgb else _MATRIX_NAMES[colour_matrix(picture).name],
        colour_range="full" if is_full_range(picture) else "limited",
        hdr=frame.is_hdr,
    )


def _damage(header: _Header, counted: _Count, duration_s: float, missing_bytes: int) -> str:
    promised = f" of {header.num_frames} promised" if header.num_frames > counted.num_frames else ""
    found = f"{counted.num_frames} frames{promised} can be decoded"
    if counted.num_damaged:
        return (
            f"It is damaged: {found}, {counted.num_damaged} of them damaged, "
            f"the first is frame {counted.first_damaged}."
        )
    if missing_bytes:
        return f"Its end is missing ({missing_bytes} bytes): {found}."
    missing_s = header.duration_s - duration_s
    if missing_s > max(_MISSING_S, _MISSING_SHARE * header.duration_s):
        return f"Its end is missing: it says {header.duration_s:.1f} s, but {found}, {duration_s:.1f} s."
    return ""


def _header(path: Path) -> _Header:
    with open_film(path) as container:
        stream = video_stream(container)
        if stream is None:
            raise DataError(f"It has no video stream{' (only sound)' if container.streams.audio else ''}.")
        time_base = stream.time_base or 0
        duration_s = float((stream.duration or 0) * time_base)
        if not duration_s and len(container.streams) == 1:
            duration_s = (container.duration or 0) / av.time_base
        return _Header(
            container=container.format.name,
            codec=stream.codec_context.name,
            stream_index=stream.index,
            num_frames=stream.frames,
            duration_s=duration_s,
            start_s=float((stream.start_time or 0) * time_base),
            fps=float(stream.average_rate or 0),
        )


def _not_a_video(path: Path) -> str:
    with path.open("rb") as file:
        beginning = file.read(4096)
    if beginning.lstrip()[:1] == b"<":
        return "It is not a video: it begins like a web page."
    if beginning[4:8] == b"ftyp":
        boxes, _ = _boxes(path)
        if b"moov" not in boxes:
            return "Its index (moov) is missing: it was cut off while it was written or downloaded."
        return "Its index (moov) cannot be read: the file is damaged."
    return "It is not a video in any format known here."


def _boxes(path: Path) -> tuple[set[bytes], int]:
    """Names of the top-level boxes of an MP4 or QuickTime file, and where the last one ends.

    ISO/IEC 14496-12 section 4.2.
    """
    names: set[bytes] = set()
    size_bytes = path.stat().st_size
    place = 0
    with path.open("rb") as file:
        while place + 8 <= size_bytes:
            file.seek(place)
            size, name = int.from_bytes(file.read(4), "big"), file.read(4)
            if size == 1:
                size = int.from_bytes(file.read(8), "big")
            names.add(name)
            if size == 0:  # up to the end of the file
                return names, size_bytes
            if size < 8:
                break
            place += size
    return names, place


def _missing_bytes(path: Path) -> int:
    """How much of an MP4, QuickTime or AVI file its own lengths say is not there."""
    with path.open("rb") as file:
        beginning = file.read(12)
    end = 0
    if beginning[4:8] == b"ftyp":
        end = _boxes(path)[1]
    elif beginning[:4] == b"RIFF":
        end = 8 + int.from_bytes(beginning[4:8], "little")
    return max(0, end - path.stat().st_size)


def _name(kinds: type[ColorPrimaries | ColorTrc | ColorRange], value: int) -> str:
    try:
        return kinds(value).name.lower()
    except ValueError:
        return "unspecified"
