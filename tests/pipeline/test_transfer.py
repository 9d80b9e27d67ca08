"""bricks store copy: the same run goes on in another store, nothing wrong goes over, and a kill loses nothing."""

from __future__ import annotations

import copy
import hashlib
import multiprocessing
import os
import shutil
import signal

import pytest
from typer.testing import CliRunner

from bricks_core.errors import AlteredObject, DataError, Stopped, TryLater, UsageError
from bricks_core.pipeline.local import run_path
from bricks_core.pipeline.plan import make_plan
from bricks_core.pipeline.points import point, read_points
from bricks_core.pipeline.transfer import copy_run, words_of
from bricks_core.spec.items import Item, ItemKey
from bricks_core.stages.train import stage as train
from bricks_core.storage.artifacts import find_manifest, open_artifact, problems
from bricks_core.storage.claims import Claims
from bricks_core.storage.folder import FolderStore
from bricks_core.storage.places import open_store
from bricks_core.storage.trainings import begun, trainings_of
from jobs.store import app
from tests.journey.tiny_run import TINY
from tests.s3_server import BUCKET, S3Server

EVERY_CLIP = {"min_motion": 0, "max_near_duplicate_distance": None, "max_plain_share": 1.0}
TRAIN = {
    name: TINY["spec"]["train"][name]
    for name in ("model", "precision", "checkpoint_every_steps", "log_every_steps", "held_out")
} | {"phases": TINY["spec"]["train"]["phases"][:1]}


class User:
    """Somebody with two films, a run of them, and a store."""

    def __init__(self, folder, films, run_of):
        self.folder, self.films, self._run_of = folder, films, run_of
        self.store = open_store(str(folder / "store"))

    def run(self, name="films", films=None, **spec):
        sections = {
            "score": {"filter": EVERY_CLIP, "held_out_share": 0.3},
            "latents": {"resolutions": ["48x80"]},
            "train": TRAIN,
            "tracking": {"wandb": "off"},
        }
        return self._run_of(films or self.films, name, **(sections | spec))

    def go(self, store=None, until="train", **spec):
        return run_path(self.run(**spec), store or self.store, until)

    def other(self, name="other"):
        return open_store(str(self.folder / name))

    def path(self, key, store="store"):
        return self.folder / store / key


@pytest.fixture(scope="module")
def trained(tmp_path_factory, drawn_films, run_of):
    """A run up to its training. Not to be changed."""
    user = User(tmp_path_factory.mktemp("trained"), drawn_films, run_of)
    user.go()
    return user


@pytest.fixture
def user(trained, tmp_path, run_of):
    shutil.copytree(trained.folder, tmp_path / "user")
    return User(tmp_path / "user", trained.films, run_of)


@pytest.fixture(scope="module")
def s3_server():
    server = S3Server()
    server.start()
    yield server
    server.kill()


@pytest.fixture(params=["folder", "s3"])
def target(request, tmp_path, monkeypatch):
    if request.param == "folder":
        return open_store(str(tmp_path / "target"))
    for name, value in request.getfixturevalue("s3_server").environment.items():
        monkeypatch.setenv(name, value)
    return open_store(f"s3://{BUCKET}/{tmp_path.name}")


def objects(store, prefix=""):
    return {entry.key: store.get(entry.key) for entry in store.list(prefix) if "/status/" not in entry.key}


def keys(store, prefix=""):
    return [entry.key for entry in store.list(prefix)]


def untimed(store):
    """All but when it was pointed to what, and by which set."""
    return {key: data for key, data in objects(store).items() if "/points/" not in key}


def is_consistent(store):
    """Whether whatever says that something is whole is right."""
    for key in keys(store, "artifacts/"):
        if key.endswith("/manifest.json"):
            _, stage, digest, _ = key.split("/")
            assert problems(store, find_manifest(store, stage, digest), items=True, thorough=True) == []
    for run in {key.split("/")[1] for key in keys(store, "runs/")}:
        for pointer in read_points(store, run).stages.values():
            open_artifact(store, pointer.stage, pointer.digest)
        for training in trainings_of(store, run):
            for record in training.records.values():
                assert all(store.sha256(file.key) == file.sha256 for file in record.files)
    for key in keys(store, "items/"):
        if key.endswith(".json"):
            _, kind, _, name = key.removesuffix(".json").split("/")
            item = Item.opened(store.get(key), ItemKey(kind, name))
            assert all(store.sha256(file.key) == file.sha256 for file in item.objects)
    return True


# --------------------------------------------------------------------------------------------------------- it goes on


@pytest.mark.parametrize("with_items", [False, True])
def test_the_same_run_is_found_done_in_the_other_store_and_writes_nothing(user, target, with_items):
    copied = copy_run(user.store, target, "films", with_items=with_items)
    assert (copied.num_artifacts, copied.num_states) == (6, 3)
    assert is_consistent(target)
    assert {step.state for step in make_plan(user.run(), target, "train", thorough=True)} == {"cached"}
    before = objects(target)
    user.go(target)
    assert objects(target) == before
    if with_items:
        assert untimed(target) == untimed(user.store)


def test_what_is_there_is_not_sent_again_nor_by_another_machine(user, target, monkeypatch, tmp_path):
    first = copy_run(user.store, target, "films", with_items=True)
    assert first.num_there == 0
    for cache in ("here", "elsewhere"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / cache))
        again = copy_run(user.store, target, "films", with_items=True)
        assert (again.num_sent, again.sent_bytes, again.num_there) == (0, 0, first.num_sent)
    assert len(keys(target, "runs/films/points/")) == 1


def test_it_can_be_seen_beforehand_and_nothing_is_written(user):
    told = copy_run(user.store, user.other(), "films", dry_run=True)
    assert not user.path("", "other").exists()
    done = copy_run(user.store, user.other(), "films")
    assert (told.num_sent, told.sent_bytes, told.num_artifacts) == (done.num_sent, done.sent_bytes, done.num_artifacts)


@pytest.mark.parametrize("with_items", [False, True])
def test_where_the_films_lie_elsewhere_they_are_read_and_nothing_of_them_is_made_again(user, with_items):
    copy_run(user.store, user.other(), "films", with_items=with_items)
    moved = user.folder / "moved"
    shutil.copytree(user.films, moved)
    before = set(keys(user.other(), "items/"))
    user.go(user.other(), films=moved)
    assert set(keys(user.other(), "items/")) == before


def test_answers_under_other_settings_go_over_with_items_alone(user):
    before = set(keys(user.store, "items/"))
    user.go(until="caption", caption={"frame_shares": [0.3, 0.7]})
    new = set(keys(user.store, "items/")) - before
    user.go(until="caption")  # and back
    assert new
    copy_run(user.store, user.other("without"), "films")
    assert new.isdisjoint(keys(user.other("without")))
    copy_run(user.store, user.other("with"), "films", with_items=True)
    assert new <= set(keys(user.other("with")))
    assert is_consistent(user.other("with"))


def test_of_two_runs_only_the_one_that_is_asked_for_goes_over(user, tmp_path, drawn_films):
    lone = tmp_path / "lone"
    lone.mkdir()
    shutil.copy(drawn_films / "two.mp4", lone)
    mine = user.folder / "mine"
    mine.mkdir()
    shutil.copy(drawn_films / "one.mp4", mine)
    store = user.other("shared")
    user.go(store, until="latents", name="mine", films=mine)
    own = set(keys(store, "artifacts/")) | set(keys(store, "items/"))
    user.go(store, until="latents", name="lone", films=lone)
    copy_run(store, user.other("copy"), "mine", with_items=True)
    there = keys(user.other("copy"))
    assert {key for key in there if not key.startswith("runs/")} == own
    assert {key.split("/")[1] for key in there if key.startswith("runs/")} == {"mine"}


def test_a_training_that_was_stopped_goes_on_there_with_the_same_weights(user, monkeypatch):
    longer = copy.deepcopy(TRAIN)
    longer["phases"][0]["steps"] = 10
    with monkeypatch.context() as patch:
        save = train.Training._save

        def save_and_stop(training, step, *, is_wanted):
            save(training, step, is_wanted=is_wanted)
            if step == 6:
                raise Stopped(15)

        patch.setattr(train.Training, "_save", save_and_stop)
        with pytest.raises(Stopped):
            user.go(train=longer)
    steps = [0, 3, 4, 6]
    copied = copy_run(user.store, user.other(), "films")
    assert copied.num_states == len(steps)
    assert begun(user.other(), "films") == begun(user.store, "films")
    assert list(next(trainings_of(user.other(), "films")).records) == steps

    began = []
    monkeypatch.setattr(
        train.Training,
        "_begin_at",
        lambda self, record, go=train.Training._begin_at: (began.append(record), go(self, record)),
    )
    there, here = user.go(user.other(), train=longer), user.go(train=longer)
    assert [record.step for record in began] == [6, 6]
    assert there["train"].objects == here["train"].objects


def test_weights_of_the_store_that_the_training_begins_with_go_over(user):
    weights = next(key for key in keys(user.store, "trainings/") if key.endswith("/weights.safetensors"))
    user.store.put("weights/mine/model.safetensors", user.store.get(weights))
    user.go(train=TRAIN | {"init_from": "weights/mine"})
    copy_run(user.store, user.other(), "films")
    assert user.other().get("weights/mine/model.safetensors") == user.store.get(weights)


def test_a_state_of_another_run_that_it_goes_on_from_goes_over_without_that_run(user):
    user.go(name="next", train=TRAIN | {"continue_from": "films@4"})
    copy_run(user.store, user.other(), "next")
    assert {
        step.state
        for step in make_plan(user.run(name="next", train=TRAIN | {"continue_from": "films@4"}), user.other(), "train")
    } == {"cached"}
    assert keys(user.other(), "runs/films/points/") == []


# ---------------------------------------------------------------------------------------------------- nothing is lost


class Killed(FolderStore):
    """A store whose process is killed when it has written so many objects."""

    left = 10**9

    def put(self, key, data, *, if_absent=False):
        self._count()
        return super().put(key, data, if_absent=if_absent)

    def put_file(self, key, path):
        self._count()
        return super().put_file(key, path)

    def _count(self):
        self.left -= 1
        if self.left < 0:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95, 1.0])
def test_killed_at_any_moment_it_leaves_a_consistent_store_and_the_next_call_ends_it(user, share):
    whole = copy_run(user.store, user.other("whole"), "films", with_items=True)
    num_writes = whole.num_sent + 4  # sides, trainings, the run file and points
    killed = Killed(str(user.folder / "other"), user.folder / "other")
    killed.left = 1 + round(share * (num_writes - 1))  # the first is the claim
    process = multiprocessing.get_context("fork").Process(
        target=copy_run, args=(user.store, killed, "films"), kwargs={"with_items": True}
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert is_consistent(user.other())
    assert keys(user.other(), "runs/films/points/") == []
    again = copy_run(user.store, user.other(), "films", with_items=True)
    assert again.num_sent + again.num_there == whole.num_sent
    assert share < 0.5 or again.num_there > again.num_sent
    assert untimed(user.other()) == untimed(user.other("whole"))
    assert read_points(user.other(), "films").stages == read_points(user.store, "films").stages


@pytest.mark.parametrize("how", ["altered", "missing"])
def test_what_is_altered_here_is_named_and_neither_it_nor_what_names_it_goes_over(user, how):
    pack = next(key for key in keys(user.store, "items/pack/"))
    if how == "missing":
        user.path(pack).unlink()
    else:
        data = user.path(pack).read_bytes()
        user.path(pack).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(AlteredObject) as told:
        copy_run(user.store, user.other(), "films", with_items=True)
    assert told.value.key == pack
    assert "bricks run of films mends it" in str(told.value)
    assert pack not in keys(user.other())
    assert not any(key.endswith("manifest.json") for key in keys(user.other(), "artifacts/latents/"))
    assert is_consistent(user.other())
    user.go()
    copy_run(user.store, user.other(), "films", with_items=True)
    assert is_consistent(user.other())
    assert {step.state for step in make_plan(user.run(), user.other(), "train")} == {"cached"}


def test_bytes_that_change_on_their_way_do_not_stay(user, monkeypatch):
    pack = next(key for key in keys(user.store, "items/pack/"))
    put_file = FolderStore.put_file

    def put_another(store, key, path):
        if key == pack:
            other = user.folder / "another"
            other.write_bytes(b"another")
            path = other
        return put_file(store, key, path)

    monkeypatch.setattr(FolderStore, "put_file", put_another)
    with pytest.raises(AlteredObject, match=pack):
        copy_run(user.store, user.other(), "films")
    assert pack not in keys(user.other())


def test_what_was_altered_there_is_sent_again(user):
    copy_run(user.store, user.other(), "films")
    clip = next(key for key in keys(user.other(), "items/clip/") if key.endswith(".mp4"))
    user.path(clip, "other").write_bytes(b"damaged")
    assert copy_run(user.store, user.other(), "films").num_sent == 1
    assert is_consistent(user.other())


def test_a_damaged_record_of_an_item_stays_behind(user):
    record = next(key for key in keys(user.store, "items/measures/"))
    user.path(record).write_bytes(b"{}")
    copy_run(user.store, user.other(), "films", with_items=True)
    assert record not in keys(user.other())


# ----------------------------------------------------------------------------------------------- the other store's own


def test_from_a_laptop_to_a_cluster_and_back(user):
    copy_run(user.store, user.other("cluster"), "films")
    user.go(user.other("cluster"), until="caption", caption={"max_sentences": 4})
    gone_on = read_points(user.other("cluster"), "films").stages
    assert gone_on != read_points(user.store, "films").stages

    again = copy_run(user.store, user.other("cluster"), "films")
    assert again.is_behind
    assert read_points(user.other("cluster"), "films").stages == gone_on

    back = copy_run(user.other("cluster"), user.store, "films", with_items=True)
    assert not back.is_behind
    assert read_points(user.store, "films").stages == gone_on


def test_what_the_other_store_has_made_itself_stays_if_it_is_whole(user):
    user.go(user.other())
    before = untimed(user.other())
    copied = copy_run(user.store, user.other(), "films", with_items=True)
    assert len(copied.theirs) >= 6
    assert {
        key: data for key, data in untimed(user.other()).items() if key in before and "trainings.json" not in key
    } == {key: data for key, data in before.items() if "trainings.json" not in key}
    assert is_consistent(user.other())

    index = next(key for key in keys(user.other(), "artifacts/clip/") if key.endswith("/clips.parquet"))
    user.path(index, "other").unlink()
    copy_run(user.store, user.other(), "films")
    assert is_consistent(user.other())


def test_nobody_is_disturbed_who_is_at_the_run_there_and_who_is_at_it_here_is_told(user):
    with Claims(user.other(), "bricks run films") as claims:
        claims.take("run/films")
        with pytest.raises(TryLater, match=r"films is under way in .*other: bricks run films"):
            copy_run(user.store, user.other(), "films")
    with Claims(user.store, "bricks run films") as claims:
        claims.take("run/films")
        copied = copy_run(user.store, user.other(), "films")
    assert copied.holder.startswith("bricks run films (process")
    told = "\n".join(words_of(copied, "there", with_items=False, dry_run=False))
    assert "under way: bricks run films" in told
    assert keys(user.other(), "claims/") == []


def test_sides_and_trainings_that_only_the_other_store_knows_stay(user):
    copy_run(user.store, user.other(), "films")
    sides = user.path("runs/films/sides.json", "other")
    digest = hashlib.sha256(b"a film").hexdigest()
    text = sides.read_text(encoding="utf-8")
    sides.write_text(text.replace('"sides": {', f'"sides": {{"{digest}": "held_out",'), encoding="utf-8")
    pointers = read_points(user.other(), "films").stages
    point("films", user.other(), pointers["ingest"].model_copy(update={"digest": "ab"}))
    copy_run(user.store, user.other(), "films")
    assert digest in sides.read_text(encoding="utf-8")


# -------------------------------------------------------------------------------------------------------- what is told


def test_a_run_that_is_not_there_and_the_same_store_are_told(user):
    with pytest.raises(DataError, match=r'no run film \(did you mean "films"\?\)'):
        copy_run(user.store, user.other(), "film")
    assert not user.path("", "other").exists()
    (user.folder / "link").symlink_to(user.folder / "store")
    for uri in (user.store.uri, f"{user.store.uri}/", f"file://{user.store.uri}", str(user.folder / "link")):
        with pytest.raises(UsageError, match="are the same store"):
            copy_run(user.store, open_store(uri), "films")
    assert keys(user.store, "claims/") == []


def test_the_end_says_what_came_of_it_and_how_to_go_on(user):
    user.go(name="begun", until="caption")

    def told(run, *more):
        arguments = ["copy", run, "--to", str(user.folder / "a b"), "--store", user.store.uri, *more]
        ended = CliRunner().invoke(app, arguments)
        assert ended.exit_code == 0, ended.output
        assert f"bricks run FILE --store '{user.folder}/a b'" in ended.output or "--dry-run" in more
        return ended.output

    assert "would be sent" in told("films", "--dry-run")
    assert "Run films: 6 artifacts, 3 states of trainings." in told("films")
    assert "Not finished: latents, train. What is done of it stays here, unless you add --with items." in told("begun")
    assert "Not finished" not in told("begun", "--with", "items")
