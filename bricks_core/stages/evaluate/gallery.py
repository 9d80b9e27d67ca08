"""A few clips to look at, kept and dropped, chosen so that they speak for the whole data set.

The choice is by hashes of ids, so it is the same every time; only the chosen are held in memory.
"""

from __future__ import annotations

import heapq
import io
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field

import cv2
import numpy as np
from PIL import Image as Pictures

from bricks_core.report.facts import kind_of
from bricks_core.report.page import Exhibit
from bricks_core.spec.caption import Caption
from bricks_core.spec.clip import Clip, Image
from bricks_core.spec.manifest import StoredObject, content_id
from bricks_core.spec.score import Score
from bricks_core.storage.scratch import scratch
from bricks_core.storage.work import Work
from bricks_core.video.read import Pixels, frames
from bricks_core.video.write import jpeg

NUM_KEPT, NUM_DROPPED = 24, 12
THUMBNAIL_WIDTH_PX = 320
THUMBNAIL_QUALITY = 82


@dataclass
class Spread:
    """At most `size` clips, from as many different groups (videos, or reasons) as there are, in bounded memory."""

    size: int
    _groups: dict[str, list[tuple[int, str, Score]]] = field(default_factory=dict)

    def add(self, group: str, score: Score) -> None:
        rank = int(content_id("exhibit", score.id), 16)
        held = self._groups.setdefault(group, [])
        # Negated: heapq keeps the smallest on top, and the largest is the one to go.
        entry = (-rank, score.id, score)
        if len(held) < self.size:
            heapq.heappush(held, entry)
        else:
            heapq.heappushpop(held, entry)
        if len(self._groups) > self.size:
            del self._groups[max(self._groups, key=_place)]

    def chosen(self) -> list[Score]:
        """One of each group, then a second of each, until there are enough."""
        queues = [sorted(self._groups[group], reverse=True) for group in sorted(self._groups, key=_place)]
        found: list[Score] = []
        for turn in range(self.size):
            found += [queue[turn][2] for queue in queues if turn < len(queue)]
        return found[: self.size]


def exhibits(work: Work) -> tuple[list[Exhibit], list[StoredObject]]:
    """The chosen clips with captions and thumbnails, and the thumbnails' objects."""
    kept, dropped = Spread(NUM_KEPT), Spread(NUM_DROPPED)
    for score in work.rows("score", "scores", Score):
        if score.state == "kept":
            kept.add(score.video_id, score)
        else:
            dropped.add(kind_of(score.reasons[0]) if score.reasons else "", score)
    shown = {
        score.id: Exhibit(
            clip_id=score.id,
            video_id=score.video_id,
            kept=score.state == "kept",
            held_out=score.state == "kept" and score.split == "held_out",
            reasons=score.reasons if score.state == "dropped" else [],
            motion=score.motion,
        )
        for score in [*kept.chosen(), *dropped.chosen()]
    }
    _add_captions(shown, work.rows("caption", "captions", Caption))
    objects = list(_add_thumbnails(shown, work))
    return list(shown.values()), objects


def _add_captions(shown: dict[str, Exhibit], captions: Iterable[Caption]) -> None:
    for caption in captions:
        if caption.kind == "video" and (exhibit := shown.get(caption.clip_id)):
            exhibit.caption = caption.text if caption.status == "ok" else caption.reason
            exhibit.caption_by, exhibit.caption_status = caption.by, caption.status


def _add_thumbnails(shown: dict[str, Exhibit], work: Work) -> Iterator[StoredObject]:
    clips = {clip.id: clip for clip in work.rows("clip", "clips", Clip) if clip.id in shown}
    images = {image.clip_id: image for image in work.rows("clip", "images", Image) if image.clip_id in shown}
    with scratch() as folder:
        file = folder / "thumbnail.jpg"
        for exhibit in shown.values():
            clip = clips.get(exhibit.clip_id)
            if clip is None:
                continue
            exhibit.seconds = clip.num_frames / clip.fps if clip.fps else 0.0
            picture = thumbnail(_picture(work, clip, images.get(clip.id)))
            exhibit.height_px, exhibit.width_px = picture.shape[:2]
            file.write_bytes(jpeg(picture, THUMBNAIL_QUALITY))
            stored = work.put_file(f"report/clips/{clip.id}.jpg", file)
            exhibit.key = stored.key
            yield stored


def _picture(work: Work, clip: Clip, image: Image | None) -> Pixels:
    """The clip's middle frame: the clip stage has it as an image."""
    if image is not None:
        with work.local("clip", image.key, sha256=image.sha256) as path:
            return picture_of(path.read_bytes())
    with work.local("clip", clip.key, sha256=clip.sha256) as path, closing(frames(path)) as film:
        for frame in film:
            if frame.index >= clip.num_frames // 2:
                return frame.rgb()
    return np.zeros((clip.height_px, clip.width_px, 3), np.uint8)


def picture_of(data: bytes) -> Pixels:
    """A JPEG or PNG as (height, width, 3) in 0..255."""
    with Pictures.open(io.BytesIO(data)) as opened:
        return np.asarray(opened.convert("RGB"))


def thumbnail(picture: Pixels) -> Pixels:
    """The picture, no wider than a thumbnail."""
    height, width = picture.shape[:2]
    if width <= THUMBNAIL_WIDTH_PX:
        return picture
    size = (THUMBNAIL_WIDTH_PX, max(1, round(height * THUMBNAIL_WIDTH_PX / width)))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA))


def _place(group: str) -> str:
    return content_id("group", group)
