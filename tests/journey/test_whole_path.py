"""From films to a report with one command, and again for nothing."""

import re
import shutil

import pytest
import yaml

from tests.journey.tiny_run import STAGES, artifacts


def written(store):
    return {file: file.stat().st_mtime_ns for file in store.rglob("*") if file.is_file()}


def states(plan):
    return dict(re.findall(r"^ ?(\w+) +(cached|to run|broken) ", plan, re.M))


def test_every_stage_leaves_an_artifact_and_the_screen_says_where(finished):
    screen = (finished.folder / "screen.txt").read_text(encoding="utf-8")
    assert {key.partition("/")[0] for key in artifacts(finished.folder / "bricks-store")} == set(STAGES)
    report = re.search(r"Report +(\S+index\.html)", screen)
    assert (finished.folder / report[1]).exists()
    assert all(key in screen for key in artifacts(finished.folder / "bricks-store"))
    assert re.search(r"Held-out loss, raw +[\d.]+ at step 0 → [\d.]+ at step 9", screen)
    assert "Verdict        Not enough evidence. " in screen
    assert "bricks show tiny/caption" in screen


def test_a_second_run_finds_everything_done_and_writes_nothing_but_its_own_record(finished):
    store = finished.folder / "bricks-store"
    before = written(store)
    ended = finished.bricks("run", "tiny.yaml")
    assert ended.err.count("found done") == len(STAGES)
    changed = {file for file, time in written(store).items() if before.get(file) != time}
    assert changed <= {store / "runs/tiny/run.json"}


def test_the_plan_of_a_finished_run_is_all_cached_and_shows_bucket_coverage(finished):
    plan = finished.bricks("plan", "tiny.yaml").out
    assert states(plan) == dict.fromkeys(STAGES, "cached")
    assert re.search(r"images at 48x80 +\d+ of \d+", plan)
    assert re.search(r"\d+ clips fit no bucket", plan)


def test_a_caption_setting_re_runs_caption_and_what_follows_and_nothing_before(finished):
    plan = finished.bricks("plan", "tiny.yaml", "--set", "caption.max_sentences=4").out
    assert states(plan) == dict.fromkeys(STAGES[:3], "cached") | dict.fromkeys(STAGES[3:], "to run")
    assert "caption.max_sentences: 5 → 4" in plan
    assert "caption may change" in plan


def test_a_training_setting_re_runs_training_alone(finished):
    plan = finished.bricks("plan", "tiny.yaml", "--set", "train.phases.1.steps=6").out
    assert states(plan) == dict.fromkeys(STAGES[:5], "cached") | dict.fromkeys(STAGES[5:], "to run")
    assert "train.phases.1.steps: 5 → 6" in plan


def test_another_run_with_the_same_question_shares_the_artifacts(finished, tiny):
    (finished.folder / "other.yaml").write_text(tiny(name="other"), encoding="utf-8")
    assert states(finished.bricks("plan", "other.yaml").out) == dict.fromkeys(STAGES, "cached")


def test_the_last_screen_tells_the_verdict_and_the_gates_and_gate_makes_them_the_exit_code(finished, tiny):
    def gated(*gates):
        document = yaml.safe_load(tiny(name="tiny"))
        document["spec"]["gates"] = list(gates)
        (finished.folder / "gated.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
        return "gated.yaml"

    kept = {"metric": "dataset.num_kept", "at_least": 1}
    never = {"metric": "held_out.loss.ema", "at_most": 0.0}
    screen = finished.bricks("run", gated(kept), "--gate").out
    assert "Verdict        Not enough evidence. " in screen
    assert "Gates          The gate is passed." in screen
    failed = finished.bricks("run", gated(kept, never), "--gate", code=1)
    assert "1 of 2 gates are not passed: held_out.loss.ema (failed)" in failed.err
    assert "1 of 2 gates are not passed" in finished.bricks("run", gated(kept, never)).out
    assert "write spec.gates" in finished.bricks("run", "tiny.yaml", "--gate", code=64).err
    assert "leave --until out" in finished.bricks("run", gated(kept), "--gate", "--until", "train", code=64).err


def test_a_film_added_to_the_folder_is_noticed(new_runner, films, tmp_path):
    folder = tmp_path / "films"
    folder.mkdir()
    shutil.copy(films / "film_00.mp4", folder)
    runner = new_runner(sources=[str(folder)])
    runner.bricks("run", "tiny.yaml", "--until", "clip")
    shutil.copy(films / "film_01.mp4", folder)
    plan = runner.bricks("plan", "tiny.yaml", "--until", "clip").out
    assert states(plan) == {"ingest": "to run", "clip": "to run"}
    assert "sources changed" in plan


def test_until_stops_early_and_the_next_run_goes_on(runner):
    screen = runner.bricks("run", "tiny.yaml", "--until", "score").out
    assert "Run tiny is done up to score" in screen
    assert "bricks show tiny/score" in screen
    assert "go on with the stages that are left" in screen
    assert runner.bricks("show", "tiny/caption", code=65).err.endswith("has no run tiny with a finished caption.\n")
    ended = runner.bricks("run", "tiny.yaml", "--until", "caption")
    assert ended.err.count("found done") == 3


def test_a_command_left_out_is_the_help_and_a_wrong_one_is_a_sentence(runner):
    told = runner.bricks("dataset", code=64).err
    assert told.startswith("Usage:")
    assert "--help." not in told
    assert "'exprot'. Did you mean 'export'? Try" in runner.bricks("dataset", "exprot", code=64).err


def test_what_cannot_be_used_is_on_the_last_screen_and_its_reason_in_the_artifacts(new_runner, films, tmp_path):
    folder = tmp_path / "films"
    folder.mkdir()
    shutil.copy(films / "film_00.mp4", folder)
    (folder / "page.mp4").write_text("<html>not found</html>", encoding="utf-8")
    runner = new_runner(sources=[str(folder)])
    screen = runner.bricks("run", "tiny.yaml", "--until", "ingest").out
    assert re.search(r"bricks show tiny/ingest\n +why 1 of the files cannot be used", screen)
    shown = runner.bricks("show", "tiny/ingest").out
    (reason,) = re.findall(r"^unreadable +page\.mp4: (.+)$", shown, re.M)
    assert reason.endswith(".")


def test_a_run_file_without_train_is_told_what_going_on_takes(runner):
    file = runner.folder / "tiny.yaml"
    whole = yaml.safe_load(file.read_text(encoding="utf-8"))
    for section in ("train", "evaluate"):
        whole["spec"].pop(section)
    file.write_text(yaml.safe_dump(whole), encoding="utf-8")
    screen = runner.bricks("run", "tiny.yaml", "--until", "ingest", "--store", "my store").out
    assert "bricks run tiny.yaml --store 'my store'\n" in screen
    assert "left, once the run file has spec.train and spec.evaluate: k8s/runs/quickstart.yaml shows how" in screen


def test_status_show_and_gc_tell_what_is_there(finished):
    status = finished.bricks("status").out
    assert len(re.findall(r"\bdone\b", status)) == len(STAGES)
    shown = finished.bricks("show", "tiny/clip", "--thorough").out
    assert "rows of Clip" in shown
    assert "Every object is there" in shown
    assert "Nothing to delete: 7 artifacts" in finished.bricks("gc").out


def test_gc_deletes_what_no_run_reaches_and_nothing_else(runner):
    runner.bricks("run", "tiny.yaml", "--until", "clip")
    runner.bricks("run", "tiny.yaml", "--until", "clip", "--set", "clip.crf=30")
    store = runner.folder / "bricks-store"
    assert len(artifacts(store)) == 3
    assert "Nothing to delete" in runner.bricks("gc").out  # all of it is young
    told = runner.bricks("gc", "--keep-days", "0").out
    assert re.search(r"clip artifacts +1 ", told)
    assert "bricks gc --delete --keep-days 0 deletes them." in told
    assert len(artifacts(store)) == 3
    runner.bricks("gc", "--delete", "--keep-days", "0")
    assert len(artifacts(store)) == 2
    plan = runner.bricks("plan", "tiny.yaml", "--until", "clip", "--set", "clip.crf=30").out
    assert states(plan) == {"ingest": "cached", "clip": "cached"}


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["rn"], 64, "run"),
        (["run", "nowhere.yaml"], 78, "nowhere.yaml is not there"),
        (["run", "tiny.yaml", "--set", "clip.min_frame=3"], 78, 'did you mean "min_frames"'),
        (["run", "tiny.yaml", "--until", "trian"], 64, 'did you mean "train"'),
        (["run", "tiny.yaml", "--set", "ingest.sources.0.path=no/such/folder"], 78, "no/such/folder"),
        (["run", "tiny.yaml", "--store", "ftp://somewhere"], 78, "s3://bucket/prefix"),
        (["show", "tiny/clip", "--store", "empty"], 65, "tiny"),
        (["show", "nonsense"], 64, "RUN/STAGE"),
        (["status", "tinny", "--store", "empty"], 65, "tinny"),
    ],
)
def test_wrong_input_is_a_sentence_and_an_exit_code(runner, arguments, code, words):
    ended = runner.bricks(*arguments, code=code)
    assert words in ended.err
    assert "Traceback" not in ended.err
    assert len(ended.err.strip().splitlines()) <= 2
