"""Captions that a table gave, and images that no clip was cut for."""

import numpy as np
import pytest

from bricks_core.progress import Progress
from bricks_core.spec.caption import Caption, CaptionSpec
from bricks_core.spec.clip import Clip, ClipSpec, Image
from bricks_core.spec.ingest import Given, IngestSpec
from bricks_core.spec.items import recipe
from bricks_core.spec.manifest import content_id
from bricks_core.spec.score import Filter, Score, ScoreSpec
from bricks_core.spec.stages import STAGES
from bricks_core.stages.caption import stage
from bricks_core.storage.artifacts import open_artifact
from bricks_core.storage.work import Joined, Work
from bricks_core.video.write import jpeg, write_mp4

TAKEN = CaptionSpec(provider="given")
EVERYTHING = Filter(
    min_motion=0, min_brightness=0, max_plain_share=1, max_duplicate_frame_share=1, max_near_duplicate_distance=None
)


def given(name, kind, text, **settings):
    empty = {"caption_by": "", "split": "", "clip_id": "", "video_id": "", "video_name": ""}
    spans = {"first_frame": -1, "end_frame": -1, "num_frames": -1}
    return Given(id=content_id(name), kind=kind, text=text, **{**empty, **spans, **settings})


@pytest.fixture
def table(drawing, folder_store, tmp_path):
    """table({"name": pictures}, rows): what ingest, clip and score leave of clips and images that a table gave."""

    def put(things, rows):
        ingest = Work(
            folder_store, STAGES["ingest"], IngestSpec(sources=["t.csv"]), "1" * 32, {}, {}, Progress("ingest")
        )
        ingest.commit(Joined({"videos": [], "given": sorted(rows, key=lambda row: row.id)}))
        work = Work(folder_store, STAGES["clip"], ClipSpec(), "c" * 32, {"ingest": "1" * 32}, {}, Progress("clip"))
        clips, images, keys = [], [], []
        for name, pictures in things.items():
            each = content_id(name)
            file = tmp_path / f"{each}.{'mp4' if len(pictures) > 1 else 'jpg'}"
            if len(pictures) > 1:
                write_mp4(file, pictures, 24)
            else:
                file.write_bytes(jpeg(pictures[0]))
            made = recipe("file", sha256=each, suffix=file.suffix)
            stored = work.items.put_file(made.key, file, file.suffix)
            work.items.put(made, {}, [stored])
            keys.append(made.key)
            about = {"key": stored.key, "size_bytes": stored.size_bytes, "sha256": stored.sha256, "video_id": each}
            about |= {"width_px": pictures.shape[2], "height_px": pictures.shape[1]}
            about |= {"source_sha256": each, "item": "/".join(made.key)}
            if len(pictures) > 1:
                span = {"first_frame": 0, "end_frame": len(pictures), "num_frames": len(pictures), "fps": 24.0}
                clips.append(Clip(id=each, **span, **about))
            else:
                images.append(Image(id=each, clip_id=each, frame=0, **about))
        by_id = {"clips": sorted(clips, key=lambda row: row.id), "images": sorted(images, key=lambda row: row.id)}
        work.commit(Joined({"shots": [], **by_id}, keys))
        return drawing.finish(drawing.work_on(folder_store, "score", ScoreSpec(filter=EVERYTHING), "5" * 32))

    return put


def captions(store, digest="d"):
    return {row.id: row for row in open_artifact(store, "caption", digest * 32).rows("captions", Caption)}


def test_given_captions_are_taken_unchanged_and_broken_rules_are_told(drawing, folder_store, table):
    moving = drawing.scene([drawing.Mover(dx=5)], num_frames=12)
    awkward = '  "A lego man",\n\nwalks  to the left. '
    rows = [
        given("plain", "clip", "A red thing moves to the right.", caption_by="Ann"),
        given("awkward", "clip", awkward),
        given("silent", "clip", " \n"),
        given("still", "image", "A red thing stands on green ground."),
    ]
    table({"plain": moving, "awkward": moving, "silent": moving, "still": moving[:1]}, rows)
    manifest = drawing.finish(drawing.work_on(folder_store, "caption", TAKEN))
    found = captions(folder_store)
    told = {name: found[content_id(name)] for name in ("plain", "awkward", "silent", "still")}
    assert {name: (row.kind, row.status, row.text, row.by) for name, row in told.items()} == {
        "plain": ("video", "ok", "A red thing moves to the right.", "Ann"),
        "awkward": ("video", "ok", awkward, "given"),
        "silent": ("video", "not_given", "", "given"),
        "still": ("image", "ok", "A red thing stands on green ground.", "given"),
    }
    assert told["awkward"].reason == 'kept as it was given: it has a forbidden word: "lego"'
    assert told["silent"].reason == "its row has no caption"
    assert manifest.counts == {"ok": 3, "not given": 1, "of the ok ones: given, and against a rule": 1}


def test_a_clip_cut_from_a_film_has_no_given_caption_and_says_so(drawing, folder_store, tmp_path):
    ids = drawing.put_clips(folder_store, {"film": [drawing.scene([drawing.Mover(dx=5)])]}, tmp_path)
    drawing.finish(drawing.work_on(folder_store, "score", ScoreSpec(), "5" * 32))
    drawing.finish(drawing.work_on(folder_store, "caption", TAKEN))
    rows = captions(folder_store)
    assert {row.clip_id for row in rows.values()} == {ids["film/0"]}
    assert {(row.status, row.reason) for row in rows.values()} == {
        ("not_given", "it was cut from a film, and only tables give captions")
    }


def test_shards_leave_the_same_captions_as_one_process(drawing, folder_store, table):
    small = np.zeros((1, 48, 64, 3), np.uint8)
    names = [f"image {number}" for number in range(10)]
    table(dict.fromkeys(names, small), [given(name, "image", f"Caption of {name}.") for name in names])
    whole = drawing.finish(drawing.work_on(folder_store, "caption", TAKEN))
    for shard in (1, 0):
        stage.run(TAKEN, drawing.work_on(folder_store, "caption", TAKEN, "e" * 32, shard=shard, num_shards=2))
    parts = drawing.finish(drawing.work_on(folder_store, "caption", TAKEN, "e" * 32))
    assert [each.sha256 for each in whole.objects] == [each.sha256 for each in parts.objects]
    assert {row.text for row in captions(folder_store).values()} == {f"Caption of {name}." for name in names}


def test_given_clips_and_images_can_have_new_captions_written_by_measuring(drawing, folder_store, table):
    moving = drawing.scene([drawing.Mover(dx=5)], num_frames=18)
    dark = drawing.plain("black", 1)
    table({"clip": moving, "image": moving[:1], "dark": dark}, [])
    drawing.finish(drawing.work_on(folder_store, "caption", CaptionSpec()))
    found = captions(folder_store)
    assert len(found) == 3
    assert "One red thing moves to the right." in found[content_id("clip")].text
    image = found[content_id("image")]
    assert (image.kind, image.status, image.by) == ("image", "ok", "measured")
    assert "green ground in front of a light blue background" in image.text
    assert found[content_id("dark")].status == "not_enough_information"


def test_a_server_is_asked_once_about_a_given_clip_and_once_about_a_given_image(drawing, folder_store, table, server):
    moving = drawing.scene([drawing.Mover(dx=5)], num_frames=18)
    table({"clip": moving, "image": moving[:1]}, [])
    asked = CaptionSpec(provider="openai", model="eyes-1")
    drawing.finish(drawing.work_on(folder_store, "caption", asked))
    assert sorted(len(question.jpegs) for question in server.questions) == [1, 3]
    assert {(row.kind, row.status) for row in captions(folder_store).values()} == {("video", "ok"), ("image", "ok")}


def test_scores_of_given_images_say_that_they_are_images(drawing, folder_store, table):
    table({"image": drawing.scene([drawing.Mover()], num_frames=1)}, [])
    (row,) = open_artifact(folder_store, "score", "5" * 32).rows("scores", Score)
    assert (row.kind, row.num_frames, row.motion, row.state) == ("image", 1, 0.0, "kept")
    assert row.sharpness > 0
    assert 50 < row.brightness < 200
