"""bricks takedown: all that was made of a film goes, whatever it is called, and its content is refused from then on."""

import itertools
import shutil
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from bricks_core.errors import DataError, StoreDenied, TryLater, UsageError
from bricks_core.pipeline.affected import find_affected
from bricks_core.pipeline.compact import compact
from bricks_core.pipeline.garbage import collect
from bricks_core.pipeline.ledger import Ledger
from bricks_core.pipeline.lineage import lineage
from bricks_core.pipeline.lineage_screen import takedown_screen
from bricks_core.pipeline.local import run_path
from bricks_core.pipeline.plan import make_plan
from bricks_core.pipeline.points import Pointer, point, read_points
from bricks_core.pipeline.takedown import take_down
from bricks_core.pipeline.transfer import copy_run, words_of
from bricks_core.spec.caption import Caption
from bricks_core.spec.clip import Clip
from bricks_core.spec.evaluate import Sample
from bricks_core.spec.ingest import Video
from bricks_core.spec.items import recipe
from bricks_core.spec.latents import Latent
from bricks_core.spec.manifest import Manifest, Table
from bricks_core.spec.train import TrainSpec
from bricks_core.storage.artifacts import MANIFEST, artifact_prefix, open_artifact, problems
from bricks_core.storage.claims import Claims
from bricks_core.storage.items import Items
from bricks_core.storage.places import open_store
from bricks_core.storage.shards import Packs
from bricks_core.storage.tables import write_rows
from bricks_core.storage.takedowns import Takedown, Takedowns, put_mark
from bricks_core.storage.trainings import COMMIT, OPTIMIZER, Record, begin, begun, keyed
from bricks_core.video.write import write_mp4
from tests.drawn_shots import HEIGHT, WIDTH, shot
from tests.journey.tiny_run import TINY

LATENTS = {"resolutions": ["48x80"]}
EVERY_CLIP = {"min_motion": 0, "max_near_duplicate_distance": None, "max_plain_share": 1.0}
FILMS = {"one.mp4": (1, 2), "two.mp4": (3,), "three.mp4": (4,)}
SPEC = TrainSpec.model_validate(TINY["spec"]["train"])
STAGES = ("ingest", "clip", "score", "caption", "latents")


class User:
    """Somebody with films, a run of them, and a training that has begun."""

    def __init__(self, folder, run_of, films=None):
        self.folder, self._run_of = folder, run_of
        self.films = films or folder / "films"
        self.store = open_store(str(folder / "store"))

    def run(self, name="films", films=None, **spec):
        sections = {"score": {"filter": EVERY_CLIP}, "latents": LATENTS} | spec
        return self._run_of(films or self.films, name, **sections)

    def go(self, name="films", until="latents", films=None, **spec):
        return run_path(self.run(name, films, **spec), self.store, until)

    def take_down(self, wanted="one.mp4", **settings):
        affected = find_affected(self.store, wanted)
        take_down(self.store, affected, **settings)
        return affected

    def rows(self, stage, table, row, run="films"):
        pointer = read_points(self.store, run).stages[stage]
        return list(open_artifact(self.store, stage, pointer.digest).rows(table, row))

    def train(self, run="films", spec=SPEC):
        """Begin a training, and leave a state of it; its folder."""
        latents = read_points(self.store, run).stages["latents"].digest
        inputs = keyed(open_artifact(self.store, "latents", latents).manifest, {})
        begin(self.store, run, spec, inputs, latents)
        trajectory = begun(self.store, run)[-1].trajectory()
        names = ("weights.safetensors", "ema.safetensors", "config.json", OPTIMIZER)
        for step in (0, 3):
            folder = trajectory.folder(step)
            files = [self._put(folder + name) for name in names]
            record = Record(step=step, phase="images", folder=folder, is_wanted=True, files=files)
            self.store.put(folder + COMMIT, record.model_dump_json().encode())
        return trajectory.folder(3)

    def sample(self, prompt, **made_of):
        """A sample of a prompt; its item's key."""
        items, made = Items(self.store), recipe("sample", prompt=prompt, **made_of)
        (self.folder / "file").write_bytes(prompt.encode())
        return items.put(made, {}, [items.put_file(made.key, self.folder / "file", ".mp4")]).item_key

    def evaluate(self, run="films", digest="e" * 32, samples=(), **more):
        """An evaluation that shows its clips, with these rows of samples; its digest."""
        inputs = {stage: pointer.digest for stage, pointer in read_points(self.store, run).stages.items()} | more
        clip = self.rows("clip", "clips", Clip, run)[0].id
        stored = self._put(artifact_prefix("evaluate", digest) + f"report/clips/{clip}.jpg")
        told = {"stage": "evaluate", "stage_version": 2, "digest": digest, "spec": {}, "inputs": inputs, "tables": {}}
        at = datetime.now(UTC)
        objects = [stored.model_copy(update={"key": f"report/clips/{clip}.jpg"})]
        if samples:
            num_rows = write_rows(self.folder / "samples.parquet", Sample, sorted(samples, key=lambda row: row.id))
            key = artifact_prefix("evaluate", digest) + "samples.parquet"
            table = self.store.put_file(key, self.folder / "samples.parquet")
            objects.append(table.model_copy(update={"key": "samples.parquet"}))
            told["tables"] = {"samples": Table(key="samples.parquet", row="Sample", num_rows=num_rows)}
        manifest = Manifest(**told, code_version="test", objects=objects, started_at=at, finished_at=at)
        self.store.put(artifact_prefix("evaluate", digest) + MANIFEST, manifest.model_dump_json().encode())
        pointer = Pointer(stage="evaluate", digest=digest, cache_key=digest, spec={}, inputs=inputs)
        point(run, self.store, pointer)
        return digest

    def _put(self, key):
        file = self.folder / "file"
        file.write_bytes(key.encode())
        return self.store.put_file(key, file)


@pytest.fixture(scope="module")
def made(tmp_path_factory, run_of):
    """Not to be changed."""
    user = User(tmp_path_factory.mktemp("made"), run_of)
    user.films.mkdir()
    for name, seeds in FILMS.items():
        still = [np.full((20, HEIGHT, WIDTH, 3), 20, np.uint8)]
        write_mp4(user.films / name, np.concatenate([shot(seed) for seed in seeds] + still), 12, crf=24)
    user.go()
    user.train()
    user.evaluate()
    return user


@pytest.fixture
def user(made, run_of, tmp_path):
    shutil.copytree(made.folder, tmp_path / "user")
    return User(tmp_path / "user", run_of, made.films)


def told_of(user, name="one.mp4"):
    """What must be nowhere afterwards: captions of a film, its clips' files, and the bytes of its latents."""
    (video,) = (row for row in user.rows("ingest", "videos", Video) if row.name == name)
    clips = {row.id: row for row in user.rows("clip", "clips", Clip) if row.video_id == video.id}
    captions = [row for row in user.rows("caption", "captions", Caption) if row.clip_id in clips]
    rows = [row for row in user.rows("latents", "latents", Latent) if row.clip_id in clips]
    found = {row.text.encode() for row in captions} | {
        Path(user.store.uri, each.key).read_bytes() for each in clips.values()
    }
    return found | {latents(user, row) for row in rows}


def latents(user, row):
    packs = Packs(lambda key: Path(user.store.uri, key))
    return packs.window(row, 0, row.num_frames).tobytes()


def content(user, without="one.mp4"):
    """All that a training reads of the other films."""
    ids = {row.id for row in user.rows("ingest", "videos", Video) if row.name != without}
    packs = Packs(lambda key: Path(user.store.uri, key))
    return {
        row.id: (latents(user, row), packs.text(row).tobytes(), packs.empty_text(row).tobytes(), row.caption)
        for row in user.rows("latents", "latents", Latent)
        if row.video_id in ids
    }


def holds(user, words):
    """Objects with one of these in them, also as a table has it."""
    found = []
    for file in Path(user.store.uri).rglob("*"):
        if file.is_file():
            data = file.read_bytes()
            if file.suffix == ".parquet":
                data += repr(pq.read_table(file).to_pylist()).encode()
            found += [str(file)] if any(word in data for word in words) else []
    return found


def is_sound(store):
    """Whether every artifact is whole, and gc finds its way."""
    for artifacts in Ledger(store).artifacts.values():
        for artifact in artifacts.values():
            assert problems(store, artifact.manifest, items=True, thorough=True) == []
    collect(store)
    return True


def objects(store):
    return {entry.key: entry.etag for entry in store.list() if not entry.key.startswith("claims/")}


def test_without_delete_it_says_what_would_go_and_writes_nothing(user, capsys):
    before = objects(user.store)
    affected = find_affected(user.store, "one.mp4")
    takedown_screen(affected, user.store, "one.mp4", deleted=False, withdrawn=False)
    assert objects(user.store) == before
    told = capsys.readouterr().out
    assert "clips cut" in told
    assert "To withdraw: trainings/" in told
    assert "What nobody can know from here: datasets and checkpoints that were exported" in told
    assert f"bricks takedown one.mp4 --delete --store {user.store.uri}" in told
    assert {stage for stage, _ in affected.holding} == set(STAGES)
    assert len(affected.items["clip"]) == 2
    assert affected.evaluations == ["e" * 32]


def test_nothing_of_it_is_left_and_all_others_read_as_before(user):
    gone, before = told_of(user), content(user)
    assert holds(user, gone)
    user.take_down(why="asked by Ann")
    assert holds(user, gone) == []
    assert content(user) == before
    assert is_sound(user.store)
    mark = Takedowns.of(user.store).marks.popitem()[1]
    assert (mark.why, len(mark.files)) == ("asked by Ann", 4)
    assert user.store.head(artifact_prefix("evaluate", "e" * 32) + MANIFEST) is None
    assert find_affected(user.store, "one.mp4").is_empty


def test_the_run_goes_on_without_it_and_makes_nothing_else_again(user):
    before = content(user)
    user.take_down()
    items = {key for key in objects(user.store) if key.startswith("items/")}
    states = {step.stage.name: step.state for step in make_plan(user.run(), user.store, "latents")}
    assert states == dict.fromkeys(STAGES, "to run") | {"ingest": "cached"}
    user.go()
    assert content(user) == before
    assert {key for key in objects(user.store) if key.startswith("items/")} == items
    assert {step.state for step in make_plan(user.run(), user.store, "latents")} == {"cached"}
    (row,) = (row for row in user.rows("ingest", "videos", Video) if row.name == "one.mp4")
    assert row.state == "refused"


def test_a_later_run_refuses_it_under_another_name_and_its_clip_as_a_file_of_its_own(user, tmp_path):
    clip = next(row for row in user.rows("clip", "clips", Clip) if row.source_sha256 == sha256_of(user, "one.mp4"))
    (tmp_path / "others").mkdir()
    shutil.copy(user.films / "one.mp4", tmp_path / "others" / "holiday.mp4")
    shutil.copy(user.films / "two.mp4", tmp_path / "others" / "two.mp4")
    shutil.copy(Path(user.store.uri, clip.key), tmp_path / "others" / "cut.mp4")
    (tmp_path / "others.csv").write_text("path,text,video_id\nothers/holiday.mp4,A film.,\n", encoding="utf-8")
    user.take_down(why="asked by Ann")
    for films in (tmp_path / "others", tmp_path / "others.csv"):
        user.go("other", "ingest", films)
        refused = {
            row.name: row.reason for row in user.rows("ingest", "videos", Video, "other") if row.state == "refused"
        }
        assert set(refused) == ({"holiday.mp4", "cut.mp4"} if films.is_dir() else {"others/holiday.mp4"})
        for reason in refused.values():
            assert reason.startswith("It was taken down on 20")
            assert "(asked by Ann): takedowns/" in reason
    assert len([key for key in objects(user.store) if key.startswith("items/film/") and "json" in key]) == 2


def sha256_of(user, name):
    return next(row.sha256 for row in user.rows("ingest", "videos", Video) if row.name == name)


def test_a_table_that_says_it_was_cut_from_it_is_refused_though_its_bytes_are_others(user, tmp_path):
    sha256 = sha256_of(user, "one.mp4")
    shutil.copy(user.films / "three.mp4", tmp_path / "again.mp4")
    with (tmp_path / "again.mp4").open("ab") as file:
        file.write(b"\0" * 8)
    (tmp_path / "clips.csv").write_text(f"path,text,video_id\nagain.mp4,A clip.,{sha256[:16]}\n", encoding="utf-8")
    user.take_down()
    user.go("given", "ingest", tmp_path / "clips.csv")
    assert [row.state for row in user.rows("ingest", "videos", Video, "given")] == ["refused"]


def test_a_film_of_two_runs_goes_from_both(user, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(user.films / "one.mp4", tmp_path / "elsewhere" / "renamed.mp4")
    shutil.copy(user.films / "three.mp4", tmp_path / "elsewhere" / "three.mp4")
    user.go("other", films=tmp_path / "elsewhere", score={"filter": EVERY_CLIP, "held_out_share": 0.5})
    gone, before = told_of(user), content(user)
    affected = user.take_down("renamed.mp4")
    assert affected.runs == ["films", "other"]
    assert {Path(name).name for name in affected.mark.names} == {"one.mp4", "renamed.mp4"}
    assert holds(user, gone) == []
    assert content(user) == before
    assert is_sound(user.store)


def test_a_pack_that_was_compacted_loses_it_too(user):
    compact(user.store, "films")
    gone, before = told_of(user), content(user)
    user.take_down()
    assert holds(user, gone) == []
    assert content(user) == before
    assert is_sound(user.store)
    collect(user.store, delete=True, keep_days=0)
    assert content(user) == before


def test_answers_that_were_paid_for_and_what_no_artifact_has_go_as_well(user):
    sha256 = sha256_of(user, "one.mp4")
    made = recipe("answer", pictures={"source": sha256, "frames": [3]}, prompt="What?", model="m", sampling={})
    other = recipe("answer", pictures={"source": "ab" * 32, "frames": [3]}, prompt="What?", model="m", sampling={})
    text = recipe("text", text="A secret sentence.", encoder={})
    items = Items(user.store)
    for each in (made, other):
        items.put(each, {"text": "A secret sentence." if each is made else "Another."}, by="m", cost={"calls": 1})
    items.put(text, {})
    user.store.put(made.key.attempt, b"{}")
    user.take_down()
    assert user.store.head(made.key.record) is None
    assert user.store.head(made.key.attempt) is None
    assert user.store.head(text.key.record) is None
    assert user.store.head(other.key.record) is not None


def sampled(number, prompt, prompt_set, clip=""):
    """A row of samples."""
    return Sample(
        id=f"{number:016x}", prompt_index=number, prompt=prompt, step=0, weights="ema", seed=1,
        video_key="report/samples/one.mp4", strip_key="report/samples/one.jpg", prompt_set=prompt_set,
        held_out_clip=clip,
    )  # fmt: skip


def test_samples_whose_prompt_was_its_caption_go_and_those_of_others_and_of_what_users_wrote_stay(user, tmp_path):
    names = {row.id: row.name for row in user.rows("ingest", "videos", Video)}
    films = {row.id: names[row.video_id] for row in user.rows("clip", "clips", Clip)}
    captions = {films[row.clip_id]: row for row in user.rows("caption", "captions", Caption)}
    of_its, of_others = captions["one.mp4"], captions["two.mp4"]
    written = next(
        row.text
        for row in user.rows("caption", "captions", Caption)
        if films[row.clip_id] == "one.mp4" and row.text != of_its.text
    )
    gone = user.sample(of_its.text, index=3)
    stay = [user.sample(text, index=3) for text in (of_others.text, written, "A car.")]
    rows = [sampled(0, of_its.text, "held_out", of_its.clip_id)]
    user.evaluate(samples=rows)
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(user.films / "three.mp4", tmp_path / "elsewhere" / "three.mp4")
    user.go("other", films=tmp_path / "elsewhere")
    user.evaluate("other", "f" * 32, [sampled(0, written, "style")])
    files = {entry.key for key in stay for entry in user.store.list(key.place)}
    affected = user.take_down()
    assert affected.items["sample"] == [gone]
    assert len(files) == 2 * len(stay)
    assert {entry.key for entry in user.store.list("items/sample/")} == files
    assert affected.evaluations == ["e" * 32]
    assert user.store.head(artifact_prefix("evaluate", "f" * 32) + MANIFEST) is not None
    assert find_affected(user.store, "one.mp4").is_empty


def test_a_report_of_another_run_that_shows_samples_of_a_training_to_withdraw_is_named_and_goes_with_it(
    user, tmp_path, capsys
):
    folder = user.train()
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(user.films / "three.mp4", tmp_path / "elsewhere" / "three.mp4")
    user.go("other", films=tmp_path / "elsewhere")
    user.evaluate("other", "f" * 32, **{"compare.films@3": f"{folder}ema.safetensors"})
    user.evaluate("other", "d" * 32)
    affected = find_affected(user.store, "one.mp4")
    assert [(each.artifact, each.runs) for each in affected.reports] == [("evaluate/ffffffffffff", [])]
    takedown_screen(affected, user.store, "one.mp4", deleted=False, withdrawn=False)
    told = " ".join(capsys.readouterr().out.split())
    assert "Would go with them: evaluate/ffffffffffff, a report that shows samples of theirs." in told
    take_down(user.store, affected)
    assert user.store.head(artifact_prefix("evaluate", "f" * 32) + MANIFEST) is not None
    user.take_down(withdraw=True)
    assert user.store.head(artifact_prefix("evaluate", "f" * 32) + MANIFEST) is None
    assert user.store.head(artifact_prefix("evaluate", "d" * 32) + MANIFEST) is not None


def test_trainings_stay_unless_they_are_withdrawn(user):
    folder = user.train()
    sample = Items(user.store).put(recipe("sample", weights_of=f"{folder}ema.safetensors", prompt="p"), {}).item_key
    audit = Items(user.store).put(recipe("guidance", weights_of=f"{folder}ema.safetensors", of="samples"), {}).item_key
    affected = user.take_down()
    assert [each.runs for each in affected.learners] == [["films"]]
    assert user.store.head(folder + COMMIT) is not None
    assert lineage(user.store, "films@3").taken_down == [affected.mark.sha256]
    user.take_down(withdraw=True)
    assert list(user.store.list("trainings/")) == []
    assert user.store.head(sample.record) is None
    assert user.store.head(audit.record) is None
    assert begun(user.store, "films") == []
    assert is_sound(user.store)


@pytest.mark.parametrize("is_taken_down", [False, True])
def test_a_plan_advises_to_go_on_from_a_training_but_not_from_one_that_learnt_from_it(user, is_taken_down):
    user.train()
    if is_taken_down:
        user.take_down()
        user.go()
    changed = SPEC.model_copy(update={"seed": 7})
    plan = make_plan(user.run(train=changed.model_dump(mode="json")), user.store, "train")
    (told,) = [each for each in plan[-1].why if "begins at step 0" in each]
    assert ("learnt from what was taken down" in told) == is_taken_down
    assert ("train.continue_from: films@3" in told) != is_taken_down


def test_what_was_only_held_out_is_not_to_be_withdrawn(user, capsys):
    user.go("split", score={"filter": EVERY_CLIP, "held_out_share": 0.5})
    user.train("split")
    sides = {row.video_id: row.split for row in user.rows("latents", "latents", Latent, "split")}
    held_out = next(row for row in user.rows("ingest", "videos", Video) if sides.get(row.id) == "held_out")
    affected = find_affected(user.store, held_out.sha256[:12])
    assert "split" not in {run for each in affected.learners for run in each.runs}
    takedown_screen(affected, user.store, held_out.name, deleted=False, withdrawn=False)
    assert "has not learnt from it, only its held-out loss was measured on it" in capsys.readouterr().out


def test_a_training_that_went_on_from_one_that_learnt_from_it_is_to_be_withdrawn(user, tmp_path):
    folder = user.train()
    (tmp_path / "others").mkdir()
    shutil.copy(user.films / "two.mp4", tmp_path / "others" / "two.mp4")
    user.go("later", films=tmp_path / "others")
    latents = read_points(user.store, "later").stages["latents"].digest
    inputs = keyed(open_artifact(user.store, "latents", latents).manifest, {"continue_from": folder})
    spec = SPEC.model_copy(update={"continue_from": "films@3"})
    begin(user.store, "later", spec, inputs, latents)
    learners = {each.runs[0]: each.through for each in find_affected(user.store, "one.mp4").learners}
    assert learners["films"] == ""
    assert learners["later"].startswith("trainings/")


class Killed(BaseException):
    """As SIGKILL: nobody catches it."""


def dying(uri, survived):
    """A store whose user is killed at a write or deletion."""
    store, left = open_store(uri), [survived]

    def until_killed(do):
        def done(key, *arguments, **settings):
            keys = key if isinstance(key, list) else [key]
            if keys and not keys[0].startswith("claims/"):
                if left[0] <= 0:
                    raise Killed
                left[0] -= 1
            return do(key, *arguments, **settings)

        return done

    store.put, store.put_file, store.delete = map(until_killed, (store.put, store.put_file, store.delete))
    return store


def killed_at(made, run_of, folder, survived):
    """Whether it was killed; nothing is broken then, and the same again ends it."""
    gone, expected = told_of(made), content(made)
    shutil.copytree(made.folder, folder)
    user = User(folder, run_of, made.films)
    store = dying(str(folder / "store"), survived)
    try:
        take_down(store, find_affected(store, "one.mp4"))
    except Killed:
        with pytest.raises(Killed):
            store.put("x", b"")
    else:
        return False
    assert content(user) == expected
    user.take_down("one.mp4")
    assert content(user) == expected
    assert holds(user, gone) == []
    assert is_sound(user.store)
    assert find_affected(user.store, "one.mp4").is_empty
    user.go()
    assert content(user) == expected
    shutil.rmtree(folder)
    return True


@pytest.mark.parametrize("survived", [0, 1, 9, 17, 25])
def test_killed_it_leaves_the_others_readable_and_the_same_command_ends_it(made, run_of, tmp_path, survived):
    assert killed_at(made, run_of, tmp_path / "killed", survived)


@pytest.mark.slow
def test_so_it_is_at_every_write_and_deletion(made, run_of, tmp_path):
    assert next(at for at in itertools.count() if not killed_at(made, run_of, tmp_path / str(at), at)) > 20


def test_while_a_run_of_it_is_under_way_nothing_is_written(user):
    before = objects(user.store)
    with Claims(user.store, "bricks run films") as claims:
        claims.take("run/films")
        with pytest.raises(TryLater, match="in use: bricks run films"):
            user.take_down()
    assert objects(user.store) == before


def test_what_no_run_has_used_can_be_refused_beforehand(user, tmp_path):
    (tmp_path / "new.mp4").write_bytes(b"never seen")
    affected = user.take_down(str(tmp_path / "new.mp4"), why="no consent")
    assert affected.is_empty
    assert Takedowns.of(user.store).of_file(affected.mark.sha256).why == "no consent"


@pytest.mark.parametrize(
    ("wanted", "error", "told"),
    [
        ("oen.mp4", DataError, 'knows no film oen.mp4 .did you mean "one.mp4"'),
        ("films", UsageError, "films is a run, and films are taken down: bricks lineage films names those it has"),
        (
            "CLIP",
            UsageError,
            "is a clip of .*one.mp4, and only whole films are taken down: bricks takedown [0-9a-f]{12}",
        ),
    ],
)
def test_what_is_no_film_is_told_with_what_may_be_meant(user, wanted, error, told):
    if wanted == "CLIP":
        sha256 = sha256_of(user, "one.mp4")
        wanted = next(row.id for row in user.rows("clip", "clips", Clip) if row.source_sha256 == sha256)
    with pytest.raises(error, match=told):
        find_affected(user.store, wanted)


def test_a_name_of_two_contents_must_be_told_apart(user, tmp_path):
    (tmp_path / "others").mkdir()
    shutil.copy(user.films / "two.mp4", tmp_path / "others" / "one.mp4")
    user.go("other", "ingest", tmp_path / "others")
    with pytest.raises(UsageError, match=r"one\.mp4 is the name of 2 contents: name one by its sha256"):
        find_affected(user.store, "one.mp4")
    assert find_affected(user.store, str(user.films / "one.mp4")).mark.sha256 == sha256_of(user, "one.mp4")


def test_in_a_store_that_cannot_be_written_nothing_is_begun(user, monkeypatch):
    affected = find_affected(user.store, "one.mp4")

    def denied(*arguments, **settings):
        raise StoreDenied("It cannot be written.")

    monkeypatch.setattr(user.store, "put", denied)
    before = objects(user.store)
    with pytest.raises(StoreDenied):
        take_down(user.store, affected)
    assert objects(user.store) == before


def test_marks_go_along_to_another_store_and_win_there(user, tmp_path):
    other = open_store(str(tmp_path / "other"))
    copy_run(user.store, other, "films")
    sha256 = user.take_down().mark.sha256
    user.go()
    copied = copy_run(user.store, other, "films")
    assert copied.to_take_down == [sha256]
    assert f"bricks takedown {sha256[:12]} --delete" in "\n".join(
        words_of(copied, "S", with_items=False, dry_run=False)
    )
    assert Takedowns.of(other).marks[sha256].files
    with pytest.raises(DataError, match=r"one\.mp4 was taken down in .*, and run films has it"):
        copy_run(other, user.store, "films")


def test_two_marks_of_one_content_are_one(user):
    early = Takedown(sha256="ab" * 32, at=datetime(2026, 1, 1, tzinfo=UTC), why="first", files=["cd" * 32])
    late = Takedown(sha256="ab" * 32, at=datetime(2026, 2, 1, tzinfo=UTC), why="second", names=["a"])
    for one, other in ((early, late), (late, early)):
        joined = one.joined(other)
        assert (joined.why, joined.names, joined.files) == ("first", ["a"], ["cd" * 32])
        put_mark(user.store, one)
    assert Takedowns.of(user.store).marks["ab" * 32] == joined


def test_a_mark_that_cannot_be_read_stops_whoever_needs_it(user, tmp_path):
    shutil.copytree(user.films, tmp_path / "films")
    user.store.put(f"takedowns/{'ab' * 32}.json", b"{")
    with pytest.raises(DataError, match="says what was taken down and cannot be read"):
        user.go("other", "ingest", tmp_path / "films")
