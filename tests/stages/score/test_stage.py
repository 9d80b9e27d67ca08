"""The score stage from clips to its table."""

import pytest

from bricks_core.errors import DataError
from bricks_core.spec.manifest import content_id
from bricks_core.spec.run import BrickRun
from bricks_core.spec.score import Filter, Score, ScoreSpec
from bricks_core.stages.score import stage
from bricks_core.storage.artifacts import open_artifact
from bricks_core.storage.tables import write_rows


@pytest.fixture
def films(drawing):
    scene, mover = drawing.scene, drawing.Mover
    walk = scene([mover()], seed=1)
    return {
        "one": [walk, drawing.plain("black"), scene(hold=24, seed=2), drawing.plain("white")],
        "two": [scene([mover("blue", dy=-2, dx=0)], ground="grey", seed=3, num_frames=30), walk[:20]],
        "three": [scene([mover("white", dx=2)], light=0.25, background="black", seed=4, jitter_px=0.3)],
    }


def rows_of(store, digest="d"):
    return list(open_artifact(store, "score", digest * 32).rows("scores", Score))


def test_clips_get_scores_reasons_and_a_side(drawing, films, folder_store, tmp_path):
    ids = drawing.put_clips(folder_store, films, tmp_path)
    manifest = drawing.finish(drawing.work_on(folder_store, "score", ScoreSpec(), shard=0))
    rows = {row.id: row for row in rows_of(folder_store)}
    names = {clip: name for name, clip in ids.items()}
    assert list(rows) == sorted(ids.values())
    assert {names[row.id]: row.reasons[:1] for row in rows.values()} == {
        "one/0": [],
        "one/1": ["black"],
        "one/2": ["one picture held still"],
        "one/3": ["white"],
        "two/0": [],
        "two/1": ["repeats another clip"],
        "three/0": [],
    }
    assert rows[ids["two/1"]].duplicate_of == ids["one/0"]
    # one and two repeat each other, so they are on one side; three is alone and has less than half of the clips.
    assert {row.video_id for row in rows.values() if row.split == "held_out"} == {content_id("video", "three")}
    assert manifest.counts == {
        "kept": 3,
        "of these held out": 1,
        "dropped: black": 1,
        "dropped: one picture held still": 1,
        "dropped: repeats another clip": 1,
        "dropped: white": 1,
    }


def test_a_dark_clip_in_which_a_small_thing_moves_is_not_still(drawing, folder_store, tmp_path):
    dark = drawing.scene([drawing.Mover("white", side=10, dx=3)], light=0.2, background="black")
    drawing.put_clips(folder_store, {"dark": [dark]}, tmp_path)
    drawing.finish(drawing.work_on(folder_store, "score", ScoreSpec()))
    (row,) = rows_of(folder_store)
    assert row.brightness < 30
    assert row.reasons == []


def test_the_same_clips_give_the_same_table_whoever_measures_them(drawing, films, folder_store, tmp_path):
    drawing.put_clips(folder_store, films, tmp_path)
    whole = drawing.finish(drawing.work_on(folder_store, "score", ScoreSpec()))
    for shard in (2, 0, 1):
        stage.run(ScoreSpec(), drawing.work_on(folder_store, "score", ScoreSpec(), "e" * 32, shard=shard, num_shards=3))
    parts = drawing.finish(drawing.work_on(folder_store, "score", ScoreSpec(), "e" * 32))
    assert [each.sha256 for each in whole.objects] == [each.sha256 for each in parts.objects]
    assert rows_of(folder_store) == rows_of(folder_store, "e")


def test_a_clip_is_measured_once_whatever_it_is_called_and_judged_by(drawing, films, folder_store, tmp_path):
    drawing.put_clips(folder_store, films, tmp_path)
    drawing.finish(drawing.work_on(folder_store, "score", ScoreSpec()))
    before = [entry.key for entry in folder_store.list("items/measures/")]
    other = ScoreSpec(filter=Filter(min_motion=60), split_seed=9)
    work = drawing.work_on(folder_store, "score", other, "e" * 32)
    assert work.pending(stage.tasks(other, work)) == []
    assert drawing.finish(work).counts["dropped: too still"] == 4
    assert [entry.key for entry in folder_store.list("items/measures/")] == before


def test_a_clip_that_is_not_what_its_row_says_is_named():
    task = stage.ScoreTask("0" * 32, "clip", "clip/0", "items/clip/clip.mp4", "", 30, 24.0, "film")
    with pytest.raises(DataError, match=r"items/clip/clip.mp4 has 0 frames, its row says 30"):
        stage.measure_clip(task, [])


def sides(store, manifest):
    rows = open_artifact(store, "score", manifest.digest).rows("scores", Score)
    return {row.video_id: row.split for row in rows}


def test_a_film_more_moves_no_film_of_the_run_to_the_other_side(drawing, folder_store, tmp_path):
    """Whatever film is added, and whichever of two films was held out."""
    run = BrickRun.model_validate(
        {
            "apiVersion": "bricks.dev/v1alpha1",
            "kind": "BrickRun",
            "metadata": {"name": "test"},
            "spec": {"ingest": {"sources": ["films"]}},
        }
    )
    scenes = {str(n): [drawing.scene([drawing.Mover(dx=3, y=10 * n)], seed=n, num_frames=16)] for n in range(6)}
    before = {}
    for num_films in range(2, 7):
        for entry in list(folder_store.list("artifacts/clip/")):  # the clip stage, with a film more
            folder_store.delete([entry.key])
        drawing.put_clips(folder_store, dict(list(scenes.items())[:num_films]), tmp_path)
        digest = f"{num_films:032x}"
        now = sides(folder_store, drawing.finish(drawing.work_on(folder_store, "score", ScoreSpec(), digest, run=run)))
        assert before.items() <= now.items()
        before = now
    assert set(before.values()) == {"train", "held_out"}
    afresh = sides(folder_store, drawing.finish(drawing.work_on(folder_store, "score", ScoreSpec(), "f" * 32)))
    asked = ScoreSpec(split_seed=5)
    moved = sides(folder_store, drawing.finish(drawing.work_on(folder_store, "score", asked, "a" * 32, run=run)))
    drawn = sides(folder_store, drawing.finish(drawing.work_on(folder_store, "score", asked, "b" * 32)))
    assert moved == drawn, "another seed asks for another lot"
    assert afresh.keys() == before.keys()


def test_no_clips_at_all_give_an_empty_table(drawing, folder_store, tmp_path):
    drawing.put_clips(folder_store, {}, tmp_path)
    manifest = drawing.finish(drawing.work_on(folder_store, "score", ScoreSpec()))
    assert manifest.tables["scores"].num_rows == 0


def test_judging_many_clips_keeps_their_rows_out_of_memory(drawing, folder_store, tmp_path):
    """The table of a joined stage is a stream: taking one row does not need the others."""
    drawing.put_clips(folder_store, {"a": [drawing.scene([drawing.Mover()])]}, tmp_path)
    work = drawing.work_on(folder_store, "score", ScoreSpec())
    stage.run(ScoreSpec(), work)
    rows = stage.join(ScoreSpec(), work).tables["scores"]
    assert iter(rows) is rows
    assert write_rows(tmp_path / "scores.parquet", Score, rows) == 1
