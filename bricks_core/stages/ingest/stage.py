"""Look at every file of the sources: decode it once from end to end, and say what it is or why it is no use.

What a file is depends on its content alone, so that a renamed, moved or copied one is not decoded again. Names,
licences and what tables say are joined on at the end, and so is what the run's settings make of it. What was taken down
is not looked at, whatever it is called.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, TypeAdapter, ValidationError

from bricks_core.errors import CorruptManifest
from bricks_core.spec.ingest import Given, IngestSpec, Video, VideoState
from bricks_core.spec.items import ItemKey, Recipe, recipe
from bricks_core.spec.manifest import Try, content_id
from bricks_core.stages.ingest.picture import probe_picture
from bricks_core.stages.ingest.sources import FoundFile, find_files, with_rows
from bricks_core.storage.in_order import in_order
from bricks_core.storage.items import digest_of, seconds_since
from bricks_core.storage.media_table import TableRow
from bricks_core.storage.os_errors import told
from bricks_core.storage.store import SourceFile
from bricks_core.storage.takedowns import Takedown, Takedowns
from bricks_core.storage.work import Joined, Work
from bricks_core.video.isolate import Crash, Isolation, LimitReached
from bricks_core.video.probe import Facts, probe

COUNTED = {"beside": "beside them: no films, by their names"}
LIMITS = {"silence_s": "decode_timeout_s", "memory_bytes": "decode_memory_bytes"}
"""The settings that the limits on a decoder come from."""
_MD5 = re.compile(r"etag:[0-9a-f]{32}(-[0-9]+)?-[0-9]+")
_FACTS = TypeAdapter(Facts)


class Content(BaseModel):
    """What a source object holds."""

    sha256: str


@dataclass(frozen=True)
class FileTask:
    """A file to look at; or a table's row that is of no use, with nothing to be done."""

    id: str
    keys: tuple[ItemKey, ...]
    found: FoundFile
    sha256: str = ""
    """Of its content; empty while nobody has read it."""


def tasks(spec: IngestSpec, work: Work) -> Iterator[FileTask]:
    """Every file, whatever it is, and every row of a table, in the order of the run file."""
    found = list(find_files(spec))
    contents = _contents(found, work)
    taken_down = Takedowns.of(work.store)
    for each in found:
        place = (each.source.path, each.row, each.file.name if each.file is not None else "")
        task_id = content_id("ingest", *place, each.fingerprint)
        if each.file is None:
            yield FileTask(task_id, (), each)
            continue
        sha256 = contents.get(each.fingerprint) or contents.get(each.file.uri, "")
        keys = [_content(each).key] if not each.fingerprint.startswith("sha256:") else []
        if sha256 and not each.is_beside and taken_down.of_file(sha256) is None:
            keys.append(_probed(each, sha256).key)
        yield FileTask(task_id, tuple(keys), each, sha256)


def run(spec: IngestSpec, work: Work) -> None:
    """Probe the files, as many at once as there are CPUs, each in a process of its own."""
    taken_down = Takedowns.of(work.store)
    with Isolation(silence_s=spec.decode_timeout_s, memory_bytes=spec.decode_memory_bytes) as isolation:

        def look(task: FileTask) -> None:
            found, file = task.found, task.found.file
            assert file is not None
            with file.local() as path, told(path, "read"):
                sha256 = task.sha256 or file.sha256()
                if not found.fingerprint.startswith("sha256:"):
                    work.items.put(_content(found), Content(sha256=sha256))
                if not found.is_beside and taken_down.of_file(sha256) is None:
                    _probe(found, sha256, path, isolation, spec, work)
            work.progress.advance(note=file.name)

        work.share(work.todo(tasks(spec, work), unit="files"), look, isolation.each)


def _probe(found: FoundFile, sha256: str, path: Path, isolation: Isolation, spec: IngestSpec, work: Work) -> None:
    """Decode a file and keep what it is, unless that is known: of an object whose content was not known before it was
    read, it may be."""
    probed = _probed(found, sha256)
    if work.items.get(probed.key) is not None:
        return
    began_s = time.monotonic()
    try:
        facts = isolation.call(probe_picture if found.kind == "image" else probe, path)
    except LimitReached as limit:
        name = f"ingest.{LIMITS[limit.limit]}"
        work.tried(probed.key, str(limit), {name: limits(spec)[name]})
        return
    except Crash as crash:
        facts = Facts("unreadable", str(crash))
    work.items.put(probed, asdict(facts), cost=seconds_since(began_s))


def join(spec: IngestSpec, work: Work) -> Joined:
    """One row per file. Of files with the same content the first stays a video, the others say whose copy they are."""
    all_tasks = list(tasks(spec, work))
    keys = [key for task in all_tasks for key in task.keys]
    there = work.items.load(keys)
    tries = work.items.tries([key for key in keys if key not in there])
    places = {source.path: place for place, source in reversed(list(enumerate(spec.sources)))}
    taken_down = Takedowns.of(work.store)

    def all_rows() -> Iterator[tuple[Video, Given | None]]:
        return _rows(all_tasks, spec, work, tries, taken_down)

    firsts: dict[str, _Place] = {}
    refused = []
    for video, _ in all_rows():
        if video.state == "refused":
            refused.append(video.sha256)
            continue
        here = _Place(places[video.source], video.row, video.name, video.source)
        firsts[video.id] = min(here, firsts.get(video.id, here))

    def is_first(video: Video) -> bool:
        return video.state == "refused" or firsts[video.id][1:] == (video.row, video.name, video.source)

    def rows() -> Iterator[Video]:
        for video, _ in all_rows():
            yield video if is_first(video) else _copy_of(video, firsts[video.id])

    def given() -> Iterator[Given]:
        for video, said in all_rows():
            if said is not None and is_first(video):
                yield said

    states = Counter(COUNTED.get(video.state, video.state) for video in rows())
    return Joined(
        {"videos": in_order(rows(), Video), "given": in_order(given(), Given)},
        items=[key for key in keys if key in there],
        counts=dict(sorted(states.items())),
        depends_on={"refused": digest_of(refused)} if refused else {},
        pending=sorted(tries.values(), key=lambda each: each.key),
    )


def limits(spec: IngestSpec) -> dict[str, float]:
    """What a decoder is given; under other limits a film that wanted more is tried again."""
    return {f"ingest.{name}": float(getattr(spec, name)) for name in LIMITS.values()}


def _contents(found: Sequence[FoundFile], work: Work) -> dict[str, str]:
    """sha256 of the files' contents, as far as it is known without reading them: by fingerprint, or by address."""
    known = {each.fingerprint: each.fingerprint.removeprefix("sha256:") for each in found}
    unread = [each for each in found if each.file is not None and not each.fingerprint.startswith("sha256:")]
    there = work.items.load(_content(each).key for each in unread)
    for each in unread:
        assert each.file is not None
        key = _content(each).key
        by = each.fingerprint if _MD5.fullmatch(each.fingerprint) else each.file.uri
        known.pop(each.fingerprint, None)
        if key in there:
            known[by] = work.items.answer(key, Content).sha256
    return known


def _content(found: FoundFile) -> Recipe:
    """An ETag that is made of MD5s, and a size, name a content wherever it lies; any other only where it lies."""
    assert found.file is not None
    if _MD5.fullmatch(found.fingerprint):
        return recipe("content", etag=found.fingerprint)
    return recipe("content", etag=found.fingerprint, uri=found.file.uri)


def _probed(found: FoundFile, sha256: str) -> Recipe:
    return recipe("picture" if found.kind == "image" else "film", sha256=sha256)


class _Place(NamedTuple):
    """Where a video stands: the first of equal ones is used."""

    source: int
    row: int
    name: str
    path: str


def _rows(
    all_tasks: Sequence[FileTask], spec: IngestSpec, work: Work, tries: dict[ItemKey, Try], taken_down: Takedowns
) -> Iterator[tuple[Video, Given | None]]:
    """What is known of every file, with what a table says of it."""
    by_found = {id(task.found): task for task in all_tasks}
    for found, row in with_rows(task.found for task in all_tasks):
        if found.file is None:
            yield _no_file(found, by_found[id(found)].id), None
            continue
        sha256 = by_found[id(found)].sha256
        mark = taken_down.of_file(sha256, row.video_id if row is not None else "")
        facts = _facts(found, sha256, work, tries) if mark is None else Facts("unreadable")
        video = _video(found, found.file, row, sha256, facts, spec)
        if mark is not None:
            video = _refused(video, mark)
        yield video, row.given(video.id) if row is not None and video.state == "ok" else None


def _facts(found: FoundFile, sha256: str, work: Work, tries: dict[ItemKey, Try]) -> Facts:
    if found.is_beside:
        return Facts("unreadable")
    key = _probed(found, sha256).key
    if key in tries:
        return Facts("unreadable", tries[key].reason)
    try:
        return _FACTS.validate_python(work.items.need(key).answer)
    except ValidationError as error:
        raise CorruptManifest(f"{key.record} says nothing of a file: {error.errors()[0]['msg']}.") from None


def _video(
    found: FoundFile, file: SourceFile, row: TableRow | None, sha256: str, facts: Facts, spec: IngestSpec
) -> Video:
    state, reason = _judged(facts, spec)
    if found.is_beside:
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
        consent=(row.consent if row is not None else "") or found.source.consent,
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


def _no_file(found: FoundFile, row_id: str) -> Video:
    """A table's row that is of no use."""
    return Video(
        id=row_id,
        kind="clip",
        name="",
        source=found.source.path,
        row=found.row,
        licence=found.source.licence,
        credit=found.source.credit,
        consent=found.source.consent,
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


def _refused(video: Video, mark: Takedown) -> Video:
    """A file that was taken down. Under an id of its own: the content may be here several times."""
    named = content_id("refused", video.sha256, video.source, video.name, video.row)
    return video.model_copy(update={"id": named, "state": "refused", "reason": mark.reason})


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
