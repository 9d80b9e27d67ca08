"""A run goes on under a later version of an item's function: what it has stays, and what is missing is made by that."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bricks_core.errors import CapReached
from bricks_core.pipeline.compact import compact
from bricks_core.pipeline.garbage import collect
from bricks_core.pipeline.local import run_alone, run_path
from bricks_core.pipeline.plan import make_plan
from bricks_core.pipeline.transfer import copy_run
from bricks_core.spec.clip import Clip
from bricks_core.spec.items import KINDS, Item, ItemKey
from bricks_core.spec.latents import Latent
from bricks_core.stages.clip import stage as clip_stage
from bricks_core.storage.artifacts import open_artifact, problems
from bricks_core.storage.began import read_began
from bricks_core.storage.folder import FolderStore
from bricks_core.storage.places import open_store
from jobs.bricks import app

EVERY_CLIP = {"min_motion": 0, "max_near_duplicate_distance": None, "max_plain_share": 1.0}
WHOLE = {
    "score": {"filter": EVERY_CLIP, "held_out_share": 0.3},
    "latents": {"resolutions": ["48x80"]},
    "tracking": {"wandb": "off"},
}
MIXED = {"clip": {1: 1, 2: 2}}
IN_WORDS = "clips cut by version 1 (1) and 2 (2)"


@pytest.fixture
def raised(monkeypatch):
    """raised("clip"): a later version of Bricks, in which the function that cuts clips answers otherwise."""

    def to(*kinds, version=2):
        for kind in kinds:
            monkeypatch.setitem(KINDS, kind, replace(KINDS[kind], version=version))

    return to


class KilledAtTheSecondClip(FolderStore):
    num_clips = 0

    def put(self, key, data, *, if_absent=False):
        if key.startswith("items/clip/"):
            self.num_clips += 1
            if self.num_clips == 2:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().put(key, data, if_absent=if_absent)


def until_killed(run, folder):
    run_path(run, KilledAtTheSecondClip(str(folder), folder), "clip")


@pytest.fixture(scope="module")
def killed_before(drawn_films, run_of, tmp_path_factory):
    """A store in which a run was killed when it had one clip of three. Not to be changed."""
    folder = tmp_path_factory.mktemp("killed") / "store"
    # A process of its own from the first on: a forked one has no fork server of its own to ask for decoders.
    process = multiprocessing.get_context("spawn").Process(target=until_killed, args=(run_of(drawn_films), folder))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    return folder


@pytest.fixture
def killed(killed_before, tmp_path):
    return open_store(str(shutil.copytree(killed_before, tmp_path / "store")))


def clip_files(store):
    """Every file and record of a clip: its bytes and when it was written."""
    place = Path(store.uri, "items/clip")
    return {str(file): (file.read_bytes(), file.stat().st_mtime_ns) for file in place.rglob("*.*")}


def versions(store, kind):
    """How many items there are of each version of a kind's function."""
    records = [entry.key for entry in store.list(f"items/{kind}/") if entry.key.endswith(".json")]
    found = [
        Item.opened(data, ItemKey(kind, key.split("/")[3].removesuffix(".json")))
        for key, data in store.get_many(records)
    ]
    return dict(Counter(item.version for item in found))


def whys(run, store, until="clip"):
    return {step.stage.name: step.why for step in make_plan(run, store, until)}


@pytest.fixture
def num_cut(monkeypatch):
    """How many clips were cut."""
    cut, counted = clip_stage._cut_clips, []

    def counting(shots, *rest):
        counted.extend(shots)
        cut(shots, *rest)

    monkeypatch.setattr(clip_stage, "_cut_clips", counting)
    return lambda: len(counted)


def test_clips_of_a_killed_run_stay_and_the_others_are_cut_by_the_newer_function(
    killed, drawn_films, run_of, raised, num_cut
):
    run, before = run_of(drawn_films), clip_files(killed)
    raised("clip")
    (why,) = (each for each in whys(run, killed)["clip"] if "→" in each)
    assert why == "clip 1 → 2 since it was begun: what is there stays, --renew makes it anew"
    clips = run_path(run, killed, "clip")["clip"]
    assert num_cut() == 2
    assert versions(killed, "clip") == {1: 1, 2: 2} == clips.item_versions["clip"]
    assert before.items() <= clip_files(killed).items()
    artifact = open_artifact(killed, "clip", clips.digest)
    items = {f"{row.kind}/{row.key}" for row in artifact.item_rows()}
    assert {row.item for row in artifact.rows("clips", Clip)} <= items
    assert problems(killed, clips, thorough=True) == []
    assert run_path(run, killed, "clip")["clip"] == clips
    assert whys(run, killed)["clip"] == [f"{IN_WORDS}: --renew makes the older ones anew"]


def test_what_tells_of_such_a_stage_tells_the_versions(killed, drawn_films, run_of, raised):
    raised("clip")
    run_path(run_of(drawn_films), killed, "clip")
    shown = CliRunner().invoke(app, ["show", "films/clip", "--store", killed.uri]).output
    assert f"{IN_WORDS}: bricks run --renew makes the older ones anew" in " ".join(shown.split())
    status = " ".join(CliRunner().invoke(app, ["status", "films", "--store", killed.uri]).output.split())
    assert "clips cut by version 1 (1) and 2 (2)" in status
    assert "Begun with an earlier version of Bricks: films/clip. bricks run --renew makes that anew." in status


def test_another_run_is_not_given_what_is_of_two_versions_and_renew_takes_what_that_one_made(
    killed, drawn_films, run_of, raised, num_cut
):
    raised("clip")
    run = run_of(drawn_films)
    mixed = run_path(run, killed, "clip")["clip"]
    pure = run_path(run_of(drawn_films, name="other"), killed, "clip")["clip"]
    assert (mixed.item_versions, pure.item_versions) == (MIXED, {})
    assert mixed.digest != pure.digest == pure.cache_key == mixed.cache_key
    assert num_cut() == 3, "those two of the newer version were there"
    assert run_path(run, killed, "clip")["clip"] == mixed
    assert run_path(run, killed, "clip", renew=True)["clip"] == pure
    assert num_cut() == 3
    assert run_path(run, killed, "clip")["clip"] == pure
    assert whys(run, killed)["clip"] == []
    assert read_began(killed, "films").stages["clip"].kinds["clip"] == [2]


def test_renew_makes_anew_what_is_older_and_says_so(killed, drawn_films, run_of, raised, num_cut):
    run, told = run_of(drawn_films), []
    raised("clip")
    mixed = run_path(run, killed, "clip")["clip"]
    renewed = run_path(run, killed, "clip", renew=True, tell=told.append)["clip"]
    assert (renewed.item_versions, num_cut(), told[-1].state) == ({}, 3, "to run")
    assert told[-1].why == ["what earlier versions have made of it is made anew"]
    assert renewed.tables.keys() == mixed.tables.keys()


def test_renew_in_the_middle_makes_all_by_the_newer_function(killed, drawn_films, run_of, raised, num_cut):
    raised("clip")
    clips = run_path(run_of(drawn_films), killed, "clip", renew=True)["clip"]
    assert (clips.item_versions, clips.digest, num_cut()) == ({}, clips.cache_key, 3)
    assert versions(killed, "clip") == {1: 1, 2: 3}


def test_a_run_that_goes_on_twice_keeps_what_each_version_has_made(killed, drawn_films, run_of, raised, monkeypatch):
    run = run_of(drawn_films)
    raised("clip")
    cut, turns, is_cut = clip_stage._cut_clips, iter([1]), threading.Event()

    def interrupted(shots, *rest):
        if next(turns, None) is not None:
            cut(shots[:1], *rest)
            is_cut.set()
        is_cut.wait(60)  # several films are cut at once
        raise KeyboardInterrupt

    monkeypatch.setattr(clip_stage, "_cut_clips", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_path(run, killed, "clip")
    monkeypatch.setattr(clip_stage, "_cut_clips", cut)
    raised("clip", version=3)
    assert read_began(killed, "films").stages["clip"].kinds["clip"] == [1, 2]
    assert run_path(run, killed, "clip")["clip"].item_versions == {"clip": {1: 1, 2: 1, 3: 1}}
    assert whys(run, killed)["clip"][0].startswith("clips cut by version 1 (1), 2 (1) and 3 (1): --renew")
    raised("clip", version=4)
    assert whys(run, killed)["clip"] == ["clip 1, 2, 3 → 4 since it was finished: --renew makes it anew"]


def test_a_run_of_a_version_that_kept_nothing_of_what_it_began_with_had_begun_with_the_first(
    killed, drawn_films, run_of, raised
):
    killed.delete(["runs/films/began.json"])
    killed.put("runs/films/status/clip.json", b"{}")  # it is there once one film is done, whichever came first
    raised("clip")
    assert run_path(run_of(drawn_films), killed, "clip")["clip"].item_versions == MIXED


def test_a_clip_that_is_damaged_is_made_by_the_newer_function_and_the_others_stay(killed, drawn_films, run_of, raised):
    run = run_of(drawn_films)
    raised("clip")
    clips = run_path(run, killed, "clip")["clip"]
    rows = open_artifact(killed, "clip", clips.digest).rows("clips", Clip)
    paths = [Path(killed.uri, row.key) for row in rows]
    min(paths, key=lambda path: path.stat().st_mtime_ns).write_bytes(b"damaged")
    mended = run_path(run, killed, "clip")["clip"]
    assert mended.digest == mended.cache_key
    assert mended.item_versions == {}, "all three are of the newer version now"
    assert problems(killed, mended, thorough=True) == []


@pytest.mark.parametrize("alone", [False, True])
def test_of_what_an_earlier_version_finished_and_somebody_damaged_only_that_is_made_again(
    killed, drawn_films, run_of, raised, num_cut, alone
):
    run = run_of(drawn_films)
    before = run_path(run, killed, "clip")["clip"]
    (row, *_) = open_artifact(killed, "clip", before.digest).rows("clips", Clip)
    Path(killed.uri, row.key).write_bytes(b"damaged")
    raised("clip")
    num = num_cut()
    now = run_alone(run, killed, "clip") if alone else run_path(run, killed, "clip")["clip"]
    assert (num_cut() - num, now.item_versions) == (1, {"clip": {1: 2, 2: 1}})
    assert now.cache_key not in (before.cache_key, now.digest), "what the newer version made is not at the older's key"


def test_with_a_film_more_a_finished_run_keeps_all_that_it_has_of_every_kind(
    drawn_films, run_of, raised, tmp_path, num_cut
):
    films = Path(shutil.copytree(drawn_films, tmp_path / "films"))
    more = Path(shutil.move(films / "one.mp4", tmp_path / "more.mp4"))
    run, store = run_of(films, **WHOLE), open_store(str(tmp_path / "store"))
    before = run_path(run, store, "latents")
    kinds = ("film", "shots", "clip", "measures", "description", "latent", "text")
    num_before = {kind: versions(store, kind)[1] for kind in kinds}
    raised(*kinds)
    shutil.move(more, films)
    num = num_cut()
    after = run_path(run, store, "latents")
    assert num_cut() - num == 2
    for kind in kinds:
        assert versions(store, kind)[1] == num_before[kind]
    assert after["ingest"].item_versions == {"film": {1: 1, 2: 1}}
    assert after["clip"].item_versions == {"clip": {1: 1, 2: 2}, "shots": {1: 1, 2: 1}}
    assert after["score"].item_versions == {"measures": {1: 1, 2: 2}}
    assert after["latents"].item_versions["latent"][1] == before["latents"].num_items - num_before["text"]
    latents = open_artifact(store, "latents", after["latents"].digest)
    there = {(row.kind, row.key) for row in latents.item_rows()}
    for row in latents.rows("latents", Latent):
        assert {("latent", row.item), ("text", row.text_item)} <= there

    compact(store, run.name)
    other = open_store(str(tmp_path / "other"))
    copy_run(store, other, run.name, with_items=True)
    for kind in kinds:
        assert versions(other, kind) == versions(store, kind)
    collect(store, delete=True, keep_days=0)
    for each in (store, other):
        assert [step.state for step in make_plan(run, each, "latents", thorough=True)] == ["cached"] * 5
    assert run_path(run, store, "latents")["score"] == after["score"]


def test_an_answer_that_was_paid_for_is_not_paid_for_again(drawn_films, run_of, raised, tmp_path, vision_server):
    store = open_store(str(tmp_path / "store"))
    asked = {"provider": "openai", "model": "a-model", "concurrency": 1}

    def run(**more):
        return run_of(drawn_films, score=WHOLE["score"], caption=asked | more)

    with pytest.raises(CapReached):
        run_path(run(max_calls=2), store, "caption")
    assert len(vision_server.questions) == 2
    raised("answer", "sight")
    captions = run_path(run(), store, "caption")["caption"]
    assert captions.item_versions["answer"] == {1: 2, 2: captions.item_versions["answer"][2]}
    num_answers = sum(captions.item_versions["answer"].values())
    assert len(vision_server.questions) == num_answers == len({each.pictures for each in vision_server.questions})
