"""Look at every file of the sources: decode it once from end to end, and say what it is or why it is no use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from bricks_core.spec.ingest import Given, IngestSpec, Video, VideoState
from bricks_core.spec.manifest import content_id
from bricks_core.stages.ingest.picture import probe_picture
from bricks_core.stages.ingest.sources import FoundFile, find_files, is_beside_films, with_rows
from bricks_core.storage.in_order import in_order
from bricks_core.storage.media_table import TableRow
from bricks_core.storage.os_errors import told
from bricks_core.storage.store import SourceFile
from bricks_core.storage.work import Joined, Work
from bricks_core.video.isolate import Crash, Isolation
from bricks_core.video.probe import Facts, probe

COUNTED = {"beside": "beside them: no films, by their names"}


def items(spec: IngestSpec, work: Work) -> Iterator[FoundFile]:
    """One item per file, whatever it is, and per row of a table."""
    return find_files(spec)


def run(spec: IngestSpec, work: Work) -> None:
    """Probe the files, as many at once as there are CPUs, each in a process of its own."""
    with Isolation(silence_s=spec.decode_timeout_s, memory_bytes=spec.decode_memory_bytes) as isolation:

        def look(each: tuple[FoundFile, TableRow | None]) -> None:
            found, row = each
            if found.file is None:
                work.done(found.id, {"videos": [_no_file(found)]})
                return
            video = _look(found, found.file, row, spec, isolation)
            given = [row.given(video.id)] if row is not None and video.state == "ok" else []
            work.done(found.id, {"videos": [video], "given": [*given]}, note=found.file.name)

        isolation.each(look, with_rows(work.todo(items(spec, work), unit="files")))


def join(spec: IngestSpec, work: Work) -> Joined:
    """One row per file. Of files with the same content the first stays a video, the others say whose copy they are."""
    places = {source.path: place for place, source in reversed(list(enumerate(spec.sources)))}
    firsts: dict[str, _Place] = {}
    for video in work.part_rows("videos", Video):
        here = _Place(places[video.source], video.row, video.name, video.source)
        firsts[video.id] = min(here, firsts.get(video.id, here))

    def is_first(video: Video) -> bool:
        return firsts[video.id][1:] == (video.row, video.name, video.source)

    def rows() -> Iterator[Video]:
        for video in work.part_rows("videos", Video):
            yield video if is_first(video) else _copy_of(video, firsts[video.id])

    def given() -> Iterator[Given]:
        for part in work.parts():
            for each in part.rows.get("given", ()):
                if is_first(Video.model_validate(part.rows["videos"][0])):
                    yield Given.model_validate(each)

    states = Counter(COUNTED.get(video.state, video.state) for video in rows())
    return Joined(
        {"videos": in_order(rows(), Video), "given": in_order(given(), Given)}, counts=dict(sorted(states.items()))
    )


class _Place(NamedTuple):
    """Where a video stands: the first of equal ones is used."""

    source: int
    row: int
    name: str
    path: str


def _look(found: FoundFile, file: SourceFile, row: TableRow | None, spec: IngestSpec, isolation: Isolation) -> Video:
    is_beside = row is None and is_beside_films(file.name)
    with file.local() as path, told(path, "read"):
        try:
            look_into = probe_picture if row is not None and row.kind == "image" else probe
            facts = Facts("unreadable") if is_beside else isolation.call(look_into, path)
        except Crash as crash:
            facts = Facts("unreadable", str(crash))
        sha256 = file.sha256()
    state, reason = _judged(facts, spec)
    if is_beside:
        suffix = file.name[file.name.rindex(".") :]
        state, reason = "beside", f"It is no film by its name: {suffix} files lie beside films."
    if row is not None:
        state, reason = _judged_row(row, facts, sha256, state, reason)
    return Video(
        id=(row.id if row is not None else "") or sha256[:16],
        kind="film" if row is None else row.kind,
        name=file.name,
        source=found.source.path,
        row=found.row,
        licence=(row.licence if row is not None else "") or found.source.licence,
        credit=(row.credit if row is not None else "") or found.source.credit,
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


def _no_file(found: FoundFile) -> Video:
    """A table's row that is of no use."""
    return Video(
        id=found.id,
        kind="clip",
        name="",
        source=found.source.path,
        row=found.row,
        licence=found.source.licence,
        credit=found.source.credit,
        sha256="",
        size_bytes=0,
        state="unreadable",
        reason=found.problem,
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


def _judged_row(row: TableRow, facts: Facts, sha256: str, state: VideoState, reason: str) -> tuple[VideoState, str]:
    """What is to be used whole must be whole, and what its row says."""
    if row.sha256 and row.sha256 != sha256:
        return "unusable", (
            f"{row.place}: it is not the file that the table was written for (its sha256 differs). If you changed it, "
            "take the column sha256 out of the table."
        )
    if state == "damaged":
        return "unusable", reason
    if state == "ok" and row.kind == "clip" and facts.num_frames < 2:
        return "unusable", "It has one frame: give it as a picture, such as .png."
    return state, reason


def _copy_of(video: Video, first: _Place) -> Video:
    if video.row and first.path == video.source:
        what = f"the same content, or the same id, as row {first.row}"
    else:
        what = f"the same content as {first.name} in {first.path}"
    named_by = [video.row] if video.row else []
    return video.model_copy(
        update={
            "id": content_id(video.sha256, video.source, video.name, *named_by),
            "state": "unusable",
            "reason": f"It has {what}, which is used.",
        }
    )
