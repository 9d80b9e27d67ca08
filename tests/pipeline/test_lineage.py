"""bricks lineage: from a checkpoint to every film, from a clip and a film to every checkpoint and report."""

import json
import shutil

import numpy as np
import pytest

from bricks_core.errors import DataError, UsageError
from bricks_core.pipeline.lineage import CheckpointLineage, ClipLineage, SourceLineage, lineage
from bricks_core.pipeline.lineage_screen import lineage_json, lineage_screen
from bricks_core.pipeline.points import read_points
from bricks_core.spec.clip import Clip, Image
from bricks_core.spec.ingest import Video
from bricks_core.storage.artifacts import open_artifact
from bricks_core.storage.trainings import begin, keyed
from bricks_core.video.write import write_mp4
from tests.drawn_shots import HEIGHT, WIDTH, shot
from tests.pipeline.test_takedown import EVERY_CLIP, FILMS, SPEC, User


@pytest.fixture(scope="module")
def user(tmp_path_factory, run_of):
    """Two runs with a film in common, and a training of each: the second goes on from the first."""
    user = User(tmp_path_factory.mktemp("user"), run_of)
    user.films.mkdir()
    for name, seeds in FILMS.items():
        still = [np.full((20, HEIGHT, WIDTH, 3), 20, np.uint8)]
        write_mp4(user.films / name, np.concatenate([shot(seed) for seed in seeds] + still), 12, crf=24)
    sources = [{"path": str(user.films), "licence": "CC-BY-4.0", "credit": "Ann", "consent": "signed"}]
    user.go(ingest={"sources": sources}, score={"filter": EVERY_CLIP, "held_out_share": 0.4})
    folder = user.train()
    user.evaluate()
    (user.folder / "more").mkdir()
    shutil.copy(user.films / "one.mp4", user.folder / "more" / "renamed.mp4")
    user.go("more", films=user.folder / "more", score={"filter": EVERY_CLIP, "held_out_share": 0.0})
    latents = read_points(user.store, "more").stages["latents"].digest
    inputs = keyed(open_artifact(user.store, "latents", latents).manifest, {"continue_from": folder})
    begin(user.store, "more", SPEC.model_copy(update={"continue_from": "films@3"}), inputs, latents)
    user.go("without", "clip")
    return user


def video(user, name):
    return next(row for row in user.rows("ingest", "videos", Video) if row.name == name)


def test_a_checkpoint_leads_to_its_films_with_licence_credit_and_consent(user, capsys):
    found = lineage(user.store, "films@3")
    assert isinstance(found, CheckpointLineage)
    assert (found.step, found.num_steps, found.finished, found.runs) == (3, SPEC.num_steps, False, ["films"])
    assert {(each.sha256, each.licence[0], each.credit[0], each.consent[0]) for each in found.films} == {
        (video(user, name).sha256, "CC-BY-4.0", "Ann", "signed") for name in FILMS
    }
    assert sum(each.num_train for each in found.films) == found.num_clips
    assert {bool(each.num_train) != bool(each.num_held_out) for each in found.films} == {True}
    assert found.captions_by.keys() == {"measured"}
    assert found.codec == ["patch-dct:1"]
    assert list(found.digests) == ["ingest", "clip", "score", "caption", "latents"]
    lineage_screen(found)
    told = capsys.readouterr().out
    assert "step 3 of 9, of a training that is not finished" in told
    assert "one.mp4" in told


def test_a_training_is_found_by_its_folder_and_by_the_run_alone(user):
    by_run = lineage(user.store, "films")
    assert (by_run.step, by_run.folder) == (3, lineage(user.store, "films@3").folder)
    for name in (by_run.folder, by_run.folder.split("/step")[0], by_run.training[: len("trainings/") + 10]):
        assert lineage(user.store, name).folder.split("/")[:1] == ["trainings"]


def test_before_the_first_step_it_has_learnt_nothing(user, capsys):
    lineage_screen(lineage(user.store, "films@0"))
    assert "step 0 of 9, of a training that is not finished, which has learnt nothing yet" in capsys.readouterr().out


def test_a_clip_leads_to_its_film_its_caption_its_latents_and_all_that_learnt_from_it(user, capsys):
    film = video(user, "one.mp4")
    row = next(row for row in user.rows("clip", "clips", Clip) if row.video_id == film.id)
    found = lineage(user.store, row.id)
    assert isinstance(found, ClipLineage)
    assert found.film.sha256 == film.sha256
    assert (found.first_frame, found.end_frame, found.sha256) == (row.first_frame, row.end_frame, row.sha256)
    assert found.seconds == (row.first_frame / 12, row.end_frame / 12)
    assert {(each.kind, each.by, each.status) for each in found.captions} == {
        ("video", "measured", "ok"),
        ("image", "measured", "ok"),
    }
    assert {each.kind for each in found.latents} == {"video", "image"}
    assert {run for each in found.trainings for run in each.runs} == {"films", "more"}
    assert [each.artifact for each in found.evaluations] == ["evaluate/" + "e" * 12]
    lineage_screen(found)
    assert "renamed.mp4" in capsys.readouterr().out


def test_a_clip_is_found_by_its_file_and_its_sha256_and_a_picture_by_its_id(user):
    row = user.rows("clip", "clips", Clip)[0]
    assert lineage(user.store, row.key).clip == lineage(user.store, row.sha256).clip == row.id
    image = user.rows("clip", "images", Image)[0]
    found = lineage(user.store, image.id)
    assert (found.kind, found.first_frame) == ("image", image.frame)
    assert {each.kind for each in found.latents} == {"image"}


@pytest.mark.parametrize("name", ["one.mp4", "renamed.mp4", "PATH", "SHA256", "DIGITS", "ID"])
def test_a_film_of_two_runs_is_found_in_both_whatever_it_is_called(user, name):
    film = video(user, "one.mp4")
    meant = {"PATH": str(user.films / "one.mp4"), "SHA256": film.sha256, "DIGITS": film.sha256[:9], "ID": film.id}
    found = lineage(user.store, meant.get(name, name))
    assert isinstance(found, SourceLineage)
    (one,) = found.films
    assert (one.sha256, one.runs, len(one.names)) == (film.sha256, ["films", "more", "without"], 2)
    assert len(one.clips) == 2
    assert {run for each in found.trainings for run in each.runs if each.learnt} >= {"more"}


def test_a_training_learnt_what_its_base_had_learnt(user):
    learner = next(name for name in FILMS if lineage(user.store, name).films[0].num_train and name != "one.mp4")
    sides = {run: each for each in lineage(user.store, learner).trainings for run in each.runs}
    assert sides["films"].learnt
    assert sides["films"].through == ""
    assert sides["more"].learnt
    assert sides["more"].through == sides["films"].name


def test_what_a_run_had_once_is_told_apart_from_what_it_has(user, tmp_path, run_of):
    shutil.copytree(user.folder, tmp_path / "user")
    own = User(tmp_path / "user", run_of, user.films)
    (tmp_path / "fewer").mkdir()
    shutil.copy(user.films / "two.mp4", tmp_path / "fewer")
    own.go("more", "ingest", tmp_path / "fewer")
    (film,) = lineage(own.store, "one.mp4").films
    assert (film.runs, film.runs_before) == (["films", "without"], ["more"])


@pytest.mark.parametrize("wanted", ["films@3", "one.mp4", "CLIP"])
def test_programs_get_everything_as_json(user, wanted):
    name = user.rows("clip", "clips", Clip)[0].id if wanted == "CLIP" else wanted
    told = json.loads(lineage_json(lineage(user.store, name)))
    assert told["about"] == {"films@3": "checkpoint", "one.mp4": "source", "CLIP": "clip"}[wanted]


@pytest.mark.parametrize(
    ("wanted", "error", "told"),
    [
        ("oen.mp4", DataError, 'knows no checkpoint, clip or film oen.mp4 .did you mean "one.mp4"'),
        ("without", DataError, "Run without has begun no training, so it has no checkpoint"),
        ("films@4", UsageError, "films has no checkpoint of step 4; it has 0, 3"),
        ("films@last", UsageError, "films@last: write RUN@STEP, such as films@4000"),
        ("trainings/abcdef0123", DataError, "has no training whose key begins with abcdef0123"),
        ("filmz@3", DataError, 'has no run filmz with a training .did you mean "films"'),
        ("0123456789abcdef", DataError, "knows no checkpoint, clip or film 0123456789abcdef"),
    ],
)
def test_what_is_not_there_is_told_with_what_may_be_meant(user, wanted, error, told):
    with pytest.raises(error, match=told):
        lineage(user.store, wanted)
