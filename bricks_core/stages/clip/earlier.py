"""Items of what a clip artifact of schema 1 holds: its clips and images, and the shots, where they can be told."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from bricks_core.spec.clip import ClipSpec
from bricks_core.spec.items import Recipe
from bricks_core.stages.clip import scenes
from bricks_core.stages.clip.stage import Cut as CutAnswer
from bricks_core.stages.clip.stage import Shots, _clip_of, _given_file, _shots_of
from bricks_core.storage.earlier import Cut, Derived, Earlier, Left

TOO_SHORT = "too short: "
REASONS = {
    "damaged in the file",
    "inside a fade or dissolve",
    "nothing to see: one plain colour throughout",
}
"""Of shots that are no clips whatever their length."""
_FILE = ["key", "size_bytes", "sha256", "width_px", "height_px"]


def derived(earlier: Earlier) -> Iterator[Derived | Left]:
    """Clips and images, then shots. Fills `earlier.cuts`."""
    spec = ClipSpec.model_validate(earlier.spec)
    names = ["id", "kind", "name", "sha256", "state", "num_frames"]
    rows = earlier.needs["ingest"].rows("videos", names) if "ingest" in earlier.needs else iter(())
    videos = {row["id"]: row for row in rows if row["state"] in ("ok", "damaged")}
    images: dict[str, dict[str, Any]] = {}
    for row in earlier.rows("images", ["id", "clip_id", "video_id", "frame", *_FILE]):
        video = videos.get(row["video_id"])
        if video is None:
            yield Left("clip", "what it was cut from is not known any more")
        elif video["kind"] == "film":
            images[row["clip_id"]] = row
        else:
            yield _given(row, video, earlier, row["clip_id"])
    for row in earlier.rows("clips", ["id", "video_id", "first_frame", "end_frame", "num_frames", "fps", *_FILE]):
        video = videos.get(row["video_id"])
        if video is None:
            yield Left("clip", "what it was cut from is not known any more")
        elif video["kind"] == "film":
            yield _cut(row, images.get(row["id"]), video, spec, earlier)
        else:
            yield _given(row, video, earlier, row["id"])
    yield from _shots(videos, spec, earlier)


def _cut(
    row: dict[str, Any], image: dict[str, Any] | None, video: dict[str, Any], spec: ClipSpec, earlier: Earlier
) -> Derived | Left:
    made = _clip_of(video["sha256"], scenes.Shot(row["first_frame"], row["end_frame"]), spec)
    file = earlier.file(row["key"])
    picture = earlier.file(image["key"]) if image is not None else None
    if file is None or picture is None or image is None:
        return Left("clip", "its file, or the picture of its middle frame, is gone")
    item = "/".join(made.key)
    sha256, fps = video["sha256"], row["fps"]
    earlier.cuts[row["id"]] = Cut(
        "video", item, sha256, row["first_frame"], row["num_frames"], fps, row["id"], False, file
    )
    earlier.cuts[image["id"]] = Cut("image", item, sha256, image["frame"], 1, 0.0, row["id"], False, picture)
    size = {"width_px": row["width_px"], "height_px": row["height_px"]}
    return Derived(made, CutAnswer(image_frame=image["frame"], fps=fps, **size).model_dump(), (file, picture))


def _given(row: dict[str, Any], video: dict[str, Any], earlier: Earlier, clip_id: str) -> Derived | Left:
    made: Recipe = _given_file(video["sha256"], video["name"])
    file = earlier.file(row["key"])
    if file is None:
        return Left("file", "it is gone from the store")
    is_image = video["kind"] == "image"
    earlier.cuts[row["id"]] = Cut(
        "image" if is_image else "video",
        "/".join(made.key),
        video["sha256"],
        0,
        1 if is_image else row["num_frames"],
        0.0 if is_image else row["fps"],
        clip_id,
        True,
        file,
    )
    return Derived(made, {}, (file,))


def _shots(videos: dict[str, dict[str, Any]], spec: ClipSpec, earlier: Earlier) -> Iterator[Derived | Left]:
    by_video: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in earlier.rows("shots", ["video_id", "first_frame", "end_frame", "state", "reason"]):
        by_video[row["video_id"]].append(row)
    for name, rows in by_video.items():
        video = videos.get(name)
        if video is None or video["kind"] != "film":
            continue
        found = found_shots(rows, video["num_frames"], spec.max_frames)
        if isinstance(found, str):
            yield Left("shots", found)
        else:
            yield Derived(_shots_of(video["sha256"], spec), Shots(shots=found).model_dump())


def found_shots(rows: Sequence[dict[str, Any]], num_frames: int, max_frames: int) -> list[tuple[int, int, str]] | str:
    """A film's shots as they were found, before long ones were split; or why that cannot be told for certain."""
    found: list[tuple[int, int, str]] = []
    for row in sorted(rows, key=lambda row: int(row["first_frame"])):
        if row["first_frame"] != (found[-1][1] if found else 0):
            return "they do not fill their film"
        reason = row["reason"]
        if row["state"] == "clip" or reason.startswith(TOO_SHORT):
            reason = ""
        elif reason not in REASONS:
            return "the film could not be searched or cut, perhaps because of a limit: it is searched again"
        found.append((row["first_frame"], row["end_frame"], reason))
    if not found or found[-1][1] != num_frames:
        return "they do not fill their film"
    if any(_may_be_split(found, first, max_frames) for first in range(len(found))):
        return "whether long ones were split cannot be told: the film is searched again, and no clip is cut again"
    return found


def _may_be_split(shots: Sequence[tuple[int, int, str]], first: int, max_frames: int) -> bool:
    """Whether the shots from this one on look like even pieces of a longer one."""
    for last in range(first, len(shots)):
        begin, end, reason = shots[last]
        if reason or end - begin < max_frames // 2:
            return False
        if last > first:
            whole = scenes.Shot(shots[first][0], end)
            pieces = scenes.split_shots([whole], min_frames=2, max_frames=max_frames)
            if [(piece.first_frame, piece.end_frame) for piece in pieces] == [
                each[:2] for each in shots[first : last + 1]
            ]:
                return True
    return False
