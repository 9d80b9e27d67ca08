"""A question is asked once: over processes, shards and runs, kills included, and whatever the clip is called."""

import json
import os
import subprocess
import sys
import textwrap
import threading
from collections import Counter
from pathlib import Path

import pytest

from bricks_core.errors import SpecError, TryLater
from bricks_core.progress import Progress
from bricks_core.spec.caption import Caption, CaptionSpec
from bricks_core.spec.clip import Clip, ClipSpec, Image
from bricks_core.spec.items import recipe
from bricks_core.spec.manifest import content_id
from bricks_core.spec.score import Filter, ScoreSpec
from bricks_core.spec.stages import STAGES
from bricks_core.stages.caption import stage
from bricks_core.stages.caption.sources import STRETCH_FRAMES, Recipes, kept_media
from bricks_core.storage.artifacts import open_artifact
from bricks_core.storage.places import open_store
from bricks_core.storage.work import Joined, Work
from bricks_core.video.write import write_mp4
from tests.s3_server import BUCKET, S3Server

ASKED = CaptionSpec(provider="openai", model="eyes-1", max_retries=1, concurrency=2)
ALL = Filter(max_near_duplicate_distance=None)


@pytest.fixture
def films(drawing):
    """Three films of four clips each."""
    movers = [drawing.Mover(dx=5), drawing.Mover("blue", dx=-5, x=120), drawing.Mover("white", dy=-3, dx=0)]
    movers.append(drawing.Mover("yellow", dx=3, dy=2, y=30))
    return {
        film: [drawing.scene([mover], num_frames=18, seed=10 * n + k) for k, mover in enumerate(movers)]
        for n, film in enumerate(["one", "two", "three"])
    }


@pytest.fixture(params=["folder", "s3"])
def store(request, tmp_path, monkeypatch):
    """An empty store, in a folder and in a bucket."""
    if request.param == "folder":
        yield open_store(str(tmp_path / "store"))
        return
    server = S3Server()
    server.start()
    try:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield open_store(f"s3://{BUCKET}/shared")
    finally:
        server.kill()


def finish_inputs(drawing, store, folder, films):
    drawing.put_clips(store, films, folder)
    drawing.finish(drawing.work_on(store, "score", ScoreSpec(filter=ALL), "5" * 32))


def asked(server):
    """How often each question was asked, by its words and pictures."""
    return Counter((question.prompt, question.pictures) for question in server.questions)


CHILD = """
import importlib.util, json, sys
at = importlib.util.spec_from_file_location("drawing", sys.argv[1])
drawing = importlib.util.module_from_spec(at)
at.loader.exec_module(drawing)
from bricks_core.spec.caption import CaptionSpec
from bricks_core.stages.caption import stage
from bricks_core.storage.places import open_store
spec = CaptionSpec.model_validate_json(sys.argv[3])
stage.run(spec, drawing.work_on(open_store(sys.argv[2]), "caption", spec, **json.loads(sys.argv[4])))
"""


def start(store, spec=ASKED, **settings):
    drawn = str(Path(__file__).parents[1] / "conftest.py")
    arguments = [drawn, store.uri, spec.model_dump_json(), json.dumps(settings)]
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(CHILD), *arguments], env=os.environ)


def test_processes_runs_and_shards_at_the_same_time_ask_every_question_once(drawing, store, films, server, tmp_path):
    finish_inputs(drawing, store, tmp_path, films)
    other = ASKED.model_copy(update={"concurrency": 1, "max_retries": 2})
    children = [
        start(store),
        start(store, other, digest="e" * 32),
        *(start(store, digest="f" * 32, shard=shard, num_shards=2) for shard in range(2)),
    ]
    assert [child.wait(timeout=300) for child in children] == [0] * 4
    assert set(asked(server).values()) == {1}
    assert len(server.questions) == 24
    assert list(store.list("claims/")) == []
    manifest = drawing.finish(drawing.work_on(store, "caption", ASKED))
    assert len(server.questions) == 24
    assert manifest.counts["ok"] == 24


def test_when_one_of_two_is_killed_only_what_it_had_in_flight_is_asked_twice(
    drawing, store, films, server, replies, tmp_path
):
    finish_inputs(drawing, store, tmp_path, films)
    reached, over = threading.Event(), threading.Event()

    def answer(question, number):
        if number >= 6 and not over.is_set():
            reached.set()
            over.wait(timeout=60)
        return replies.said(replies.SENTENCES)

    server.answer = answer
    first = start(store)
    assert reached.wait(timeout=60)
    second = start(store)  # finds a part done, and a part in the hands of somebody who dies
    first.kill()
    first.wait()
    over.set()
    assert second.wait(timeout=300) == 0
    times = asked(server)
    assert len(times) == 24
    assert sum(times.values()) <= 24 + ASKED.concurrency
    assert max(times.values()) <= 2


def cut_again(store, folder, clips_of):
    """Replace the clip artifact by one whose clips were cut by another encoder, from films of other names.

    `clips_of`: the pictures of every clip, by its id.
    """
    artifact = open_artifact(store, "clip", "c" * 32)
    clips = {clip.id: clip for clip in artifact.rows("clips", Clip)}
    images = list(artifact.rows("images", Image))
    store.delete([entry.key for entry in store.list("artifacts/")])
    ingest = Work(store, STAGES["ingest"], ClipSpec(), "1" * 32, {}, {}, Progress("ingest"))
    ingest.commit(Joined({"videos": [], "given": []}))
    work = Work(store, STAGES["clip"], ClipSpec(crf=40), "c" * 32, {"ingest": "1" * 32}, {}, Progress("clip"))
    renamed, keys = [], []
    for clip in clips.values():
        file = folder / f"{clip.id}-again.mp4"
        write_mp4(file, clips_of[clip.id], 24, crf=40)
        made = recipe("clip", source=clip.source_sha256, span=[clip.first_frame, clip.end_frame], crf=40)
        stored = work.items.put_file(made.key, file, ".mp4")
        assert stored.sha256 != clip.sha256
        work.items.put(made, {}, [stored])
        keys.append(made.key)
        about = {
            "key": stored.key,
            "sha256": stored.sha256,
            "size_bytes": stored.size_bytes,
            "item": "/".join(made.key),
        }
        about |= {"id": content_id("other", clip.id), "video_id": content_id("other", clip.video_id)}
        renamed.append(clip.model_copy(update=about))
    others = [
        image.model_copy(
            update={
                "id": content_id("other", image.id),
                "clip_id": content_id("other", image.clip_id),
                "video_id": content_id("other", image.video_id),
            }
        )
        for image in images
    ]
    tables = {"clips": sorted(renamed, key=lambda row: row.id), "images": sorted(others, key=lambda row: row.id)}
    work.commit(Joined({"shots": [], **tables}, keys))


def test_clips_cut_again_of_films_renamed_ask_and_look_at_nothing(
    drawing, folder_store, films, server, tmp_path, monkeypatch
):
    ids = drawing.put_clips(folder_store, films, tmp_path)
    drawing.finish(drawing.work_on(folder_store, "score", ScoreSpec(filter=ALL), "5" * 32))
    drawing.finish(drawing.work_on(folder_store, "caption", ASKED))
    before = list(open_artifact(folder_store, "caption", "d" * 32).rows("captions", Caption))
    pictures = {ids[f"{film}/{place}"]: clip for film, clips in films.items() for place, clip in enumerate(clips)}
    cut_again(folder_store, tmp_path, pictures)
    drawing.finish(drawing.work_on(folder_store, "score", ScoreSpec(filter=ALL), "5" * 32))
    monkeypatch.delenv("OPENAI_API_KEY")  # nobody is even greeted
    drawing.finish(drawing.work_on(folder_store, "caption", ASKED, "e" * 32))
    assert len(server.questions) == 24
    after = list(open_artifact(folder_store, "caption", "e" * 32).rows("captions", Caption))
    assert {row.id for row in after} == {content_id("other", row.id) for row in before}
    assert Counter((row.kind, row.status, row.text) for row in after) == Counter(
        (row.kind, row.status, row.text) for row in before
    )


def test_a_changed_filter_asks_only_about_what_it_kept_first_now(drawing, folder_store, films, server, tmp_path):
    drawing.put_clips(folder_store, films, tmp_path)
    few = Filter(max_near_duplicate_distance=None, min_motion_percentile=50)
    drawing.finish(drawing.work_on(folder_store, "score", ScoreSpec(filter=few), "5" * 32))
    first = drawing.finish(drawing.work_on(folder_store, "caption", ASKED))
    num_first = len(server.questions)
    assert 0 < num_first == first.tables["captions"].num_rows < 24
    folder_store.delete([entry.key for entry in folder_store.list("artifacts/score/")])
    drawing.finish(drawing.work_on(folder_store, "score", ScoreSpec(filter=ALL), "5" * 32))
    drawing.finish(drawing.work_on(folder_store, "caption", ASKED, "e" * 32))
    assert len(server.questions) == 24
    assert set(asked(server).values()) == {1}


def test_rules_that_the_prompt_does_not_tell_of_judge_anew_and_ask_nothing(
    drawing, folder_store, films, server, tmp_path, monkeypatch
):
    finish_inputs(drawing, folder_store, tmp_path, {"one": films["one"]})
    assert drawing.finish(drawing.work_on(folder_store, "caption", ASKED)).counts["ok"] == 8
    monkeypatch.setattr("bricks_core.stages.caption.gate.MIN_WORDS", 100)
    manifest = drawing.finish(drawing.work_on(folder_store, "caption", ASKED, "e" * 32))
    assert (manifest.counts["ok"], manifest.counts["rejected"]) == (0, 8)
    assert len(server.questions) == 8


def test_a_cap_is_reached_without_looking_at_clips_that_nobody_will_be_asked_about(
    drawing, folder_store, films, server, tmp_path
):
    finish_inputs(drawing, folder_store, tmp_path, films)
    spec = ASKED.model_copy(update={"max_calls": 2, "concurrency": 1})
    with pytest.raises(TryLater, match="max_calls, 2, is reached with 11 clips left"):
        stage.run(spec, drawing.work_on(folder_store, "caption", spec))
    assert len(server.questions) == 2
    assert sum(1 for _ in folder_store.list("items/sight/")) == 1
    assert list(folder_store.list("claims/")) == []


def test_answers_of_another_model_prove_nothing_of_this_one(drawing, folder_store, films, server, replies, tmp_path):
    finish_inputs(drawing, folder_store, tmp_path, {"one": films["one"]})
    drawing.finish(drawing.work_on(folder_store, "caption", ASKED))
    server.answer = lambda *_: replies.failed(400, "this model takes no pictures")
    blind = ASKED.model_copy(update={"model": "blind-1"})
    with pytest.raises(SpecError, match="takes no pictures"):
        stage.run(blind, drawing.work_on(folder_store, "caption", blind, "e" * 32))
    assert len(server.questions) == 8 + 1


def test_the_same_question_is_claimed_alike_whatever_clip_it_is_asked_of(drawing, folder_store, films, tmp_path):
    finish_inputs(drawing, folder_store, tmp_path, {"one": films["one"]})
    recipes = Recipes.of(ASKED)
    (task, *_) = kept_media(drawing.work_on(folder_store, "caption", ASKED))
    assert len(recipes.stretches(task)) == 1
    longer = task._replace(end_frame=task.end_frame + 1, image_frame=task.image_frame + STRETCH_FRAMES, clip_id="x")
    assert recipes.stretches(task)[0] in recipes.stretches(longer)
    assert len(recipes.stretches(longer)) == 2
    assert recipes.stretches(task._replace(source="0" * 64)) != recipes.stretches(task)
