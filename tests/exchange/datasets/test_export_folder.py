"""An export can be killed and continued, brought up to date, and never writes into what is not its own."""

import json
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pandas as pd
import pytest

from bricks_core.errors import DataError, SpecError, TryLater
from bricks_core.exchange.datasets.export_folder import claimed
from bricks_core.pipeline.local import run_path

KILLED = """
import os, signal, sys
from pathlib import Path
from bricks_core.exchange.datasets import export_folder
from bricks_core.exchange.datasets.export import export_dataset
from bricks_core.storage.places import open_store
left = [int(sys.argv[4])]
copyfile = export_folder.shutil.copyfile

def copy_and_die(source, aside):
    if left[0] == 0:  # in the middle of a file
        Path(aside).write_bytes(Path(source).read_bytes()[:100])
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    return copyfile(source, aside)

export_folder.shutil.copyfile = copy_and_die
export_dataset(open_store(sys.argv[1]), "films", sys.argv[2], Path(sys.argv[3]))
"""


def files_of(folder):
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and not file.name.startswith(".")
    }


@pytest.mark.parametrize(("what", "table"), [("open-sora", "meta.csv"), ("hugging-face", "README.md")])
def test_a_killed_export_has_no_table_and_the_next_goes_on(export, store, tmp_path, what, table):
    out = tmp_path / "out"
    command = [sys.executable, "-c", textwrap.dedent(KILLED), store.uri, what, str(out), "4"]
    assert subprocess.run(command, capture_output=True, check=False).returncode == -signal.SIGKILL
    assert not (out / table).exists()
    finished = [file for file in out.rglob("*") if file.suffix in {".mp4", ".jpg"}]
    assert 1 <= len(finished) <= 4
    times = {file: file.stat().st_mtime_ns for file in finished}
    finished[0].write_bytes(b"cut off by a full disk")
    export(out, what)
    assert {file.stat().st_mtime_ns == time for file, time in times.items() if file != finished[0]} <= {True}
    export(tmp_path / "undisturbed", what)
    again, whole = files_of(out), files_of(tmp_path / "undisturbed")
    again.pop("meta.csv", None), whole.pop("meta.csv", None)  # they name their folders
    assert again == whole
    assert list(out.rglob(".*.part")) == []


def test_an_export_again_writes_no_file_again(export, tmp_path, capsys):
    export(tmp_path / "out")
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*.*g*")}
    capsys.readouterr()
    export(tmp_path / "out")
    assert "0 files written, 10 were there" in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in before if file.suffix == ".jpg"} == {
        file: time for file, time in before.items() if file.suffix == ".jpg"
    }


def test_an_earlier_export_of_the_run_is_brought_up_to_date(export, store, tools, made, tmp_path):
    out = tmp_path / "out"
    export(out)
    (out / "clips" / "my notes.txt").write_text("mine", encoding="utf-8")
    num_before = len(pd.read_csv(out / "meta.csv"))
    run = tools.film_run(made / "films", forbidden_words=["red thing moves"])
    run_path(run, store, "caption")
    export(out)
    table = pd.read_csv(out / "meta.csv")
    assert 0 < len(table) < num_before
    assert {file.stem for file in out.rglob("*") if file.suffix in {".mp4", ".jpg"}} == set(table["id"])
    assert (out / "clips" / "my notes.txt").read_text(encoding="utf-8") == "mine"


def test_a_table_names_no_file_that_is_gone_wherever_bringing_it_up_to_date_stops(
    export, store, tools, made, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    export(out)
    run_path(tools.film_run(made / "films", forbidden_words=["red thing moves"]), store, "caption")
    unlink, removed = Path.unlink, []

    def unlink_and_look(file, **how):
        unlink(file, **how)
        removed.append(file)
        assert all(Path(path).exists() for path in pd.read_csv(out / "meta.csv")["path"])

    monkeypatch.setattr(Path, "unlink", unlink_and_look)
    export(out)
    assert [file for file in removed if file.parent.parent == out]


def test_an_object_that_is_missing_or_altered_ends_the_export_and_a_run_mends_it(export, store, tools, made, tmp_path):
    place = Path(store.uri)
    for file in (next(place.glob("items/clip/*/*.mp4")), next(place.glob("artifacts/score/*/scores.parquet"))):
        content = file.read_bytes()
        for spoil in (lambda file: file.write_bytes(b"x" * file.stat().st_size), Path.unlink):
            spoil(file)
            with pytest.raises(DataError, match=rf"{file.name} .*bricks run with the run's file makes it again"):
                export(tmp_path / "out")
            assert not (tmp_path / "out" / "meta.csv").exists()
            run_path(tools.film_run(made / "films"), store, "caption")
            assert file.read_bytes() == content
    export(tmp_path / "out")


def test_captions_of_clips_that_the_run_has_left_behind_are_not_exported(export, store, tools, made, tmp_path):
    run = tools.film_run(made / "films")
    clip = run.spec.clip.model_copy(update={"crf": 30})
    run = run.model_copy(update={"spec": run.spec.model_copy(update={"clip": clip})})
    run_path(run, store, "clip")
    with pytest.raises(DataError, match=r"captions of run films are stale \(clip has changed since\).*--until caption"):
        export(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    run_path(run, store, "caption")
    export(tmp_path / "out")


def test_a_folder_with_other_things_is_refused_and_left_alone(export, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("mine", encoding="utf-8")
    with pytest.raises(SpecError, match=r"out holds other things, such as thesis\.tex"):
        export(out)
    assert files_of(out) == {"thesis.tex": b"mine"}
    (tmp_path / "file").write_text("a file", encoding="utf-8")
    with pytest.raises(SpecError, match="file is a file"):
        export(tmp_path / "file")


def test_the_export_of_another_run_or_format_is_refused(export, tmp_path):
    export(tmp_path / "out")
    with pytest.raises(SpecError, match="holds an export of run films as open-sora"):
        export(tmp_path / "out", "webdataset")
    marker = json.loads((tmp_path / "out" / "bricks-export.json").read_text(encoding="utf-8"))
    assert (marker["run"], marker["format"], marker["finished"]) == ("films", "open-sora", True)


def test_two_exports_into_one_folder_do_not_mix(tmp_path):
    with (
        claimed(tmp_path / "out", what="open-sora", run="films"),
        pytest.raises(TryLater, match="Another process is exporting"),
        claimed(tmp_path / "out", what="open-sora", run="films"),
    ):
        raise AssertionError("claimed twice")


def test_a_folder_that_cannot_be_written_is_a_sentence(export, tmp_path):
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    with pytest.raises(SpecError, match="a file is in the way"):
        export(tmp_path / "file" / "out")
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"
