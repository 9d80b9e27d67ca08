"""Look at every file of the sources: decode it once from end to end, and say what it is or why it is no use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from bricks_core.spec.ingest import IngestSpec, Video, VideoState
from bricks_core.spec.manifest import content_id
from bricks_core.stages.ingest.sources import FoundFile, find_files, is_beside_films
from bricks_core.storage.in_order import in_order
from bricks_core.storage.os_errors import told
from bricks_core.storage.work import Joined, Work
from bricks_core.video.isolate import Crash, Isolation
from bricks_core.video.probe import Facts, probe

COUNTED = {"beside": "beside them: no films, by their names"}


def items(spec: IngestSpec, work: Work) -> Iterator[FoundFile]:
    """One item per file, whatever it is."""
    return find_files(spec)


def run(spec: IngestSpec, work: Work) -> None:
    """Probe the files, as many at once as there are CPUs, each in a process of its own."""
    with Isolation(silence_s=spec.decode_timeout_s, memory_bytes=spec.decode_memory_bytes) as isolation:

        def look(found: FoundFile) -> None:
            video = _look(found, spec, isolation)
            work.done(found.id, {"videos": [video]}, note=found.file.name)

        isolation.each(look, work.todo(items(spec, work), unit="files"))


def join(spec: IngestSpec, work: Work) -> Joined:
    """One row per file. Of files with the same content the first stays a video, the others say whose copy they are."""
    places = {source.path: place for place, source in reversed(list(enumerate(spec.sources)))}
    firsts: dict[str, tuple[int, str, str]] = {}
    for video in work.part_rows("videos", Video):
        here = (places[video.source], video.name, video.source)
        firsts[video.id] = min(here, firsts.get(video.id, here))

    def rows() -> Iterator[Video]:
        for video in work.part_rows("videos", Video):
            _, name, source = firsts[video.id]
            yield video if (video.name, video.source) == (name, source) else _copy_of(video, name, source)

    states = Counter(COUNTED.get(video.state, video.state) for video in rows())
    return Joined({"videos": in_order(rows(), Video)}, counts=dict(sorted(states.items())))


def _look(found: FoundFile, spec: IngestSpec, isolation: Isolation) -> Video:
    file = found.file
    with file.local() as path, told(path, "read"):
        try:
            facts = Facts("unreadable") if is_beside_films(file.name) else isolation.call(probe, path)
        except Crash as crash:
            facts = Facts("unreadable", str(crash))
        sha256 = file.sha256()
    state, reason = _judged(facts, spec)
    if is_beside_films(file.name):
        state, reason = "beside", f"It is no film by its name: {Path(file.name).suffix} files lie beside films."
    return Video(
        id=sha256[:16],
        name=file.name,
        source=found.source.path,
        licence=found.source.licence,
        credit=found.source.credit,
        sha256=sha256,
        size_bytes=file.size_bytes,
        state=state,
        reason=reason,
        container=facts.container,
        codec=facts.codec,
        pixel_format=facts.pixel_format,
        stream_index=facts.stream_index,
        width_px=facts.width_px,
        height_px=facts.height_px,
        rotation_deg=facts.rotation_deg,
        num_frames=facts.num_frames,
        num_corrupt_frames=facts.num_damaged_frames,
        fps=facts.fps,
        variable_frame_rate=facts.variable_frame_rate,
        duration_s=facts.duration_s,
        colour_primaries=facts.colour_primaries,
        colour_transfer=facts.colour_transfer,
        colour_range=facts.colour_range,
        hdr=facts.hdr,
    )


def _judged(facts: Facts, spec: IngestSpec) -> tuple[VideoState, str]:
    if facts.state == "unreadable":
        return "unreadable", facts.reason
    if min(facts.width_px, facts.height_px) < spec.min_side_px:
        size = f"{facts.width_px}x{facts.height_px}"
        return "unusable", f"It is too small: {size} pixels, its shorter side is below {spec.min_side_px}."
    if facts.num_damaged_frames == facts.num_frames:
        return "unusable", facts.reason
    return facts.state, facts.reason


def _copy_of(video: Video, name: str, source: str) -> Video:
    return video.model_copy(
        update={
            "id": content_id(video.sha256, video.source, video.name),
            "state": "unusable",
            "reason": f"It has the same content as {name} in {source}, which is used.",
        }
    )
