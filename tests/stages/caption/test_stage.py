"""The caption stage from kept clips to its table, by measuring and by asking."""

import io
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
from PIL import Image as Picture

from bricks_core.errors import SpecError, TryLater
from bricks_core.spec.caption import Caption, CaptionSpec
from bricks_core.spec.score import Filter, ScoreSpec
from bricks_core.stages.caption import stage
from bricks_core.storage.artifacts import open_artifact

ASKED = CaptionSpec(provider="openai", model="eyes-1", max_retries=1, concurrency=3)
EVERYTHING = {"min_motion": 0, "min_brightness": 0, "max_plain_share": 1, "max_duplicate_frame_share": 1}


@pytest.fixture
def films(drawing):
    """Two films of three clips each that move."""
    movers = [drawing.Mover("red", dx=5), drawing.Mover("blue", dx=-5, x=120), drawing.Mover("white", dy=-3, dx=0)]
    return {
        film: [drawing.scene([mover], num_frames=18, seed=10 * n + k) for k, mover in enumerate(movers)]
        for n, film in enumerate(["one", "two"])
    }


@pytest.fixture
def clips(drawing, folder_store, tmp_path, films):
    """Scores of their clips; returns the clips' ids by name."""
    return scored(drawing, folder_store, tmp_path, films)


def scored(drawing, store, folder, films, **filters):
    ids = drawing.put_clips(store, films, folder)
    spec = ScoreSpec(filter=Filter(**{"max_near_duplicate_distance": 0, **filters}))
    drawing.finish(drawing.work_on(store, "score", spec, "5" * 32))
    return ids


def captions(store, digest="d"):
    return list(open_artifact(store, "caption", digest * 32).rows("captions", Caption))


def by_kind(rows, clip):
    return {row.kind: row for row in rows if row.clip_id == clip}


def test_every_kept_clip_and_its_image_has_a_caption_by_measuring(drawing, folder_store, clips):
    manifest = drawing.finish(drawing.work_on(folder_store, "caption", CaptionSpec()))
    rows = captions(folder_store)
    assert [row.id for row in rows] == sorted(row.id for row in rows)
    assert {row.clip_id for row in rows} == set(clips.values())
    assert {row.by for row in rows} == {"measured"}
    pair = by_kind(rows, clips["one/0"])
    assert "One red thing moves to the right." in pair["video"].text
    assert "One red thing is on the left." in pair["image"].text
    assert pair["video"].num_words == len(pair["video"].text.split())
    assert manifest.counts == {"ok": 12}


def test_a_dropped_clip_has_no_caption(drawing, folder_store, tmp_path):
    moving = drawing.scene([drawing.Mover(dx=5)])
    ids = scored(drawing, folder_store, tmp_path, {"film": [moving, drawing.plain("black")]})
    drawing.finish(drawing.work_on(folder_store, "caption", CaptionSpec()))
    assert {row.clip_id for row in captions(folder_store)} == {ids["film/0"]}


def test_what_shows_nothing_or_does_not_move_has_a_status_instead(drawing, folder_store, tmp_path, server):
    films = {"film": [drawing.plain("black"), drawing.scene(hold=24), drawing.scene([drawing.Mover(dx=5)])]}
    ids = scored(drawing, folder_store, tmp_path, films, **EVERYTHING)
    for spec, digest in ((CaptionSpec(), "d"), (ASKED, "e")):
        drawing.finish(drawing.work_on(folder_store, "caption", spec, digest * 32))
        rows = captions(folder_store, digest)
        statuses = {name: [by_kind(rows, ids[name])[kind].status for kind in ("video", "image")] for name in ids}
        assert statuses == {
            "film/0": ["not_enough_information", "not_enough_information"],
            "film/1": ["single_image", "ok"],
            "film/2": ["ok", "ok"],
        }
        assert all(row.reason for row in rows if row.status != "ok")
        assert all(not row.text for row in rows if row.status != "ok")
    # The model was asked only about what can be described: the two images, and the one clip.
    assert len(server.questions) == 3


def test_a_clip_is_shown_as_its_frames_and_its_image_alone(drawing, folder_store, clips, server, replies):
    spec = ASKED.model_copy(update={"max_side_px": 64, "frame_shares": [0.1, 0.9]})
    manifest = drawing.finish(drawing.work_on(folder_store, "caption", spec))
    asked = {len(question.jpegs): question for question in server.questions}
    assert sorted(len(question.jpegs) for question in server.questions) == [1] * 6 + [2] * 6
    assert "10% and 90%" in asked[2].prompt
    assert "one picture" in asked[1].prompt
    assert [Picture.open(io.BytesIO(jpeg)).size for jpeg in asked[2].jpegs] == [(64, 38)] * 2
    assert manifest.counts == {"ok": 12, "prompt tokens": 12 * 900, "output tokens": 12 * 40}
    assert {(row.by, row.text, row.prompt_tokens) for row in captions(folder_store)} == {
        ("eyes-1-2026", replies.SENTENCES, 900)
    }


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("No movement.", "no_movement"),
        ("Single image", "single_image"),
        ("Not enough information", "not_enough_information"),
        ("I'm sorry, I can't help with that.", "rejected"),
        ("A video of a man who walks to the left.", "rejected"),
        ("Caption failed", "rejected"),
        ("", "failed"),
        (None, "failed"),
    ],
)
def test_the_gate_judges_what_the_model_says(drawing, folder_store, tmp_path, server, replies, text, status):
    scored(drawing, folder_store, tmp_path, {"film": [drawing.scene([drawing.Mover(dx=5)])]})
    server.answer = lambda *_: replies.said(text)
    manifest = drawing.finish(drawing.work_on(folder_store, "caption", ASKED))
    rows = captions(folder_store)
    assert [row.status for row in rows] == [status, status]
    assert all(row.reason for row in rows)
    assert [row.text for row in rows] == [text or ""] * 2
    assert manifest.counts[status.replace("_", " ")] == 2
    assert manifest.counts["ok"] == 0


def test_a_refusal_is_one_clips_matter_and_the_others_go_on(drawing, folder_store, clips, server, replies):
    server.answer = lambda _, number: (
        replies.said(None, refusal="No.") if number == 5 else replies.said(replies.SENTENCES)
    )
    manifest = drawing.finish(drawing.work_on(folder_store, "caption", ASKED))
    (row,) = [row for row in captions(folder_store) if row.status != "ok"]
    assert (row.status, row.reason) == ("failed", "the model refused: No.")
    assert (manifest.counts["ok"], manifest.counts["failed"]) == (11, 1)


def test_as_many_calls_as_asked_for_are_in_flight_and_no_more(drawing, folder_store, clips, server, replies):
    together = threading.Barrier(3)

    def answer(question, number):
        if 2 <= number < 5:  # after the first clip alone, three calls at once, or this waits in vain
            together.wait(timeout=20)
        return replies.said(replies.SENTENCES)

    server.answer = answer
    stage.run(ASKED, drawing.work_on(folder_store, "caption", ASKED))
    assert server.most_at_once == 3


def test_a_cap_on_calls_stops_with_what_is_done_kept_and_the_next_run_goes_on(drawing, folder_store, clips, server):
    spec = ASKED.model_copy(update={"max_calls": 5})
    for num_asked in (5, 10):
        work = drawing.work_on(folder_store, "caption", spec)
        with pytest.raises(TryLater, match=r"max_calls, 5, is reached with [1-6] clips left") as told:
            stage.run(spec, work)
        assert told.value.exit_code == 75
        assert len(server.questions) == num_asked
        assert num_answers(folder_store) == num_asked
    drawing.finish(drawing.work_on(folder_store, "caption", spec))
    assert len(server.questions) == 12
    assert len({question.pictures for question in server.questions}) == 12


def num_answers(store):
    return sum(1 for _ in store.list("items/answer/"))


def test_what_was_asked_is_not_asked_again_whatever_else_is_another_now(drawing, folder_store, clips, server):
    drawing.finish(drawing.work_on(folder_store, "caption", ASKED))
    assert len(server.questions) == 12
    how = {"concurrency": 1, "max_calls": 2, "max_retries": 1}
    drawing.finish(drawing.work_on(folder_store, "caption", ASKED.model_copy(update=how), "e" * 32))
    gate = {"frame_shares": [0.2, 0.5, 0.8]}
    drawing.finish(drawing.work_on(folder_store, "caption", ASKED.model_copy(update=gate), "f" * 32))
    assert len(server.questions) == 12
    # Other shares show other frames; the images are the same.
    shares = {"frame_shares": [0.1, 0.4, 0.9]}
    drawing.finish(drawing.work_on(folder_store, "caption", ASKED.model_copy(update=shares), "a" * 32))
    assert len(server.questions) == 18
    # The prompt says how many sentences there may be.
    fewer = {"max_sentences": 3}
    drawing.finish(drawing.work_on(folder_store, "caption", ASKED.model_copy(update=fewer), "b" * 32))
    assert len(server.questions) == 30


def test_a_clip_that_is_known_to_move_is_decoded_once(drawing, folder_store, clips, server, monkeypatch):
    """The filter has told that it moves: it is not measured again, and what was decoded to choose from is shown."""
    for name in ("see", "read_rgb"):
        monkeypatch.setattr(f"bricks_core.stages.caption.asking.{name}", lambda *_: pytest.fail("it is decoded again"))
    drawing.finish(drawing.work_on(folder_store, "caption", ASKED))
    assert len(server.questions) == 12


@pytest.mark.parametrize("provider", ["openai", "measured"])
def test_a_commit_tells_every_task_once(drawing, folder_store, clips, server, monkeypatch, provider):
    spec = CaptionSpec(provider=provider, model="eyes-1")
    made = drawing.finish(drawing.work_on(folder_store, "caption", spec))
    told = []
    kept_media = stage.kept_media
    monkeypatch.setattr(stage, "kept_media", lambda work: [told.append(task) or task for task in kept_media(work)])
    work = drawing.work_on(folder_store, "caption", spec, "e" * 32)
    assert work.pending(stage.tasks(spec, work)) == []
    again = work.commit(stage.join(spec, work))
    assert len(told) == len(clips)
    assert again.counts == made.counts
    assert again.num_items == made.num_items


def test_a_clip_more_is_asked_about_alone(drawing, folder_store, films, server, tmp_path):
    scored(drawing, folder_store, tmp_path, films)
    drawing.finish(drawing.work_on(folder_store, "caption", ASKED))
    before = len(server.questions)
    for stage_name in ("clip", "score"):
        folder_store.delete([entry.key for entry in folder_store.list(f"artifacts/{stage_name}/")])
    more = films | {"four": [drawing.scene([drawing.Mover("yellow", dy=-2)], seed=9, num_frames=20)]}
    scored(drawing, folder_store, tmp_path, more)
    drawing.finish(drawing.work_on(folder_store, "caption", ASKED, "e" * 32))
    assert len(server.questions) - before == 2


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_or_model_costs_one_call(drawing, folder_store, clips, server, replies, status):
    server.answer = lambda *_: replies.failed(status, "no")
    with pytest.raises(SpecError):
        stage.run(ASKED, drawing.work_on(folder_store, "caption", ASKED))
    assert len(server.questions) == 1


def test_a_rate_limit_in_the_middle_keeps_what_is_done(drawing, folder_store, clips, server, replies):
    server.answer = lambda _, number: (
        replies.said(replies.SENTENCES) if number < 6 else replies.failed(429, "slow down")
    )
    work = drawing.work_on(folder_store, "caption", ASKED)
    with pytest.raises(TryLater, match="slow down"):
        stage.run(ASKED, work)
    done = num_answers(folder_store)
    assert done >= 1
    server.answer = lambda *_: replies.said(replies.SENTENCES)
    before = len(server.questions)
    manifest = drawing.finish(drawing.work_on(folder_store, "caption", ASKED))
    assert len(server.questions) - before == 12 - done
    assert manifest.counts["ok"] == 12


CHILD = """
import importlib.util, sys
at = importlib.util.spec_from_file_location("drawing", sys.argv[1])
drawing = importlib.util.module_from_spec(at)
at.loader.exec_module(drawing)
from bricks_core.spec.caption import CaptionSpec
from bricks_core.stages.caption import stage
from bricks_core.storage.places import open_store
spec = CaptionSpec.model_validate_json(sys.argv[3])
stage.run(spec, drawing.work_on(open_store(sys.argv[2]), "caption", spec))
"""


def test_killed_in_the_middle_only_the_call_in_flight_is_made_again(
    drawing, folder_store, clips, server, replies, tmp_path
):
    spec = ASKED.model_copy(update={"concurrency": 1})
    reached, over = threading.Event(), threading.Event()

    def answer(question, number):
        if number == 7:
            reached.set()
            over.wait(timeout=30)
        return replies.said(f"A person numbered {question.pictures[:6]} walks over a green field to the right.")

    server.answer = answer
    drawn = str(Path(__file__).parents[1] / "conftest.py")
    command = [sys.executable, "-c", textwrap.dedent(CHILD), drawn, folder_store.uri, spec.model_dump_json()]
    with subprocess.Popen(command) as child:
        assert reached.wait(timeout=60)
        child.kill()
    over.set()
    work = drawing.work_on(folder_store, "caption", spec)
    assert num_answers(folder_store) == 7
    drawing.finish(work)
    times = [[each.pictures for each in server.questions].count(each.pictures) for each in server.questions[:7]]
    assert times == [1] * 7  # what was answered is never asked about again
    assert len(server.questions) == 8 + 5
    # And what is there now is what a run without a kill leaves.
    whole = drawing.finish(drawing.work_on(folder_store, "caption", spec, "e" * 32))
    assert captions(folder_store) == captions(folder_store, "e")
    assert whole.counts["ok"] == 12


def test_shards_leave_the_same_table_as_one_process(drawing, folder_store, clips):
    whole = drawing.finish(drawing.work_on(folder_store, "caption", CaptionSpec()))
    for shard in range(3):
        work = drawing.work_on(folder_store, "caption", CaptionSpec(), "e" * 32, shard=shard, num_shards=3)
        stage.run(CaptionSpec(), work)
    parts = drawing.finish(drawing.work_on(folder_store, "caption", CaptionSpec(), "e" * 32))
    assert [each.sha256 for each in whole.objects] == [each.sha256 for each in parts.objects]
