"""A table is checked row by row, and becomes a run that uses its clips as they are."""

import csv
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from bricks_core.errors import DataError, SpecError, UsageError
from bricks_core.exchange.datasets.bring_in import check_table, write_run_file
from bricks_core.progress import Progress
from bricks_core.spec.caption import Caption
from bricks_core.spec.clip import Clip, Image
from bricks_core.spec.ingest import Video
from bricks_core.spec.run import load_run
from bricks_core.spec.score import Score
from bricks_core.storage.artifacts import open_artifact
from bricks_core.storage.places import open_store
from bricks_core.video.write import jpeg, write_mp4

ROOT = Path(__file__).parents[3]


def checked(table):
    with Progress("import") as progress:
        return check_table(str(table), progress)


@pytest.fixture
def clips(tools, tmp_path):
    """A folder with two clips and a picture, of nobody's making."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    for seed, name in ((11, "walk.mp4"), (12, "drive.MP4")):
        write_mp4(folder / name, tools.shot(seed, 24 - seed), 8)
    (folder / "house.png").write_bytes(jpeg(tools.shot(13)[0]))
    return folder


def table_of(file, rows, columns=("path", "text", "num_frames", "height", "width")):
    with file.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened)
        writer.writerows([columns, *rows])
    return file


@pytest.fixture
def theirs(clips, tmp_path):
    """As Open-Sora's tools write it: whole paths, no column of ours."""
    rows = [
        [clips / "walk.mp4", "A red square crosses.", 13, 96, 160],
        [clips / "drive.MP4", "A video of a lego car.", 12, 96, 160],
        [clips / "house.png", "A house, \"mine\",\non a hill.", 1, 96, 160],
    ]  # fmt: skip
    return table_of(tmp_path / "meta.csv", rows)


def rows_of(store, manifests_of_run, stage, table, row):
    from bricks_core.pipeline.points import read_pointer

    pointer = read_pointer(store, manifests_of_run, stage)
    return list(open_artifact(store, stage, pointer.digest).rows(table, row))


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_open_soras_own_table_becomes_clips_as_they_are(theirs, clips, tools, tmp_path, suffix):
    table = theirs
    if suffix == ".parquet":
        table = theirs.with_suffix(".parquet")
        pd.read_csv(theirs).to_parquet(table)
    found = checked(table)
    assert (found.num_rows, found.num_clips, found.num_images, found.problems) == (3, 2, 1, [])
    assert dict(found.splits) == {"to be drawn": 3}
    write_run_file(tmp_path / "theirs.yaml", "theirs", str(table))
    store = open_store(str(tmp_path / "new-store"))
    tools.run_file(tmp_path / "theirs.yaml", store)
    videos = {row.name: row for row in rows_of(store, "theirs", "ingest", "videos", Video)}
    assert {Path(name).name: (row.kind, row.state, row.licence) for name, row in videos.items()} == {
        "walk.mp4": ("clip", "ok", "unknown"),
        "drive.MP4": ("clip", "ok", "unknown"),
        "house.png": ("image", "ok", "unknown"),
    }
    taken = {row.id: row for row in rows_of(store, "theirs", "clip", "clips", Clip)}
    assert {(row.num_frames, row.fps, row.width_px, row.height_px) for row in taken.values()} == {
        (13, 8.0, 160, 96),
        (12, 8.0, 160, 96),
    }
    for name in ("walk.mp4", "drive.MP4"):
        row = taken[videos[str(clips / name)].id]
        assert row.sha256 == videos[str(clips / name)].sha256
        assert row.key.endswith(".mp4")
    (image,) = rows_of(store, "theirs", "clip", "images", Image)
    assert image.clip_id == image.id
    assert image.key.startswith("items/file/")
    assert image.key.endswith(".png")
    scores = {row.id: row for row in rows_of(store, "theirs", "score", "scores", Score)}
    assert {each: (row.kind, row.state) for each, row in scores.items()} == {
        **dict.fromkeys(taken, ("video", "kept")),
        image.id: ("image", "kept"),
    }
    assert {row.split for row in scores.values()} == {"train", "held_out"}
    captions = {row.id: row for row in rows_of(store, "theirs", "caption", "captions", Caption)}
    assert captions[image.id].text == 'A house, "mine",\non a hill.'
    assert {row.status for row in captions.values()} == {"ok"}
    lego = captions[videos[str(clips / "drive.MP4")].id]
    assert lego.reason.startswith("kept as it was given: it has a forbidden word")
    assert captions[videos[str(clips / "walk.mp4")].id].reason == ""


def test_every_row_that_cannot_be_used_is_a_sentence_with_its_number(clips, tmp_path):
    table = table_of(
        tmp_path / "meta.csv",
        [
            [clips / "walk.mp4", "A red square\ncrosses.", 13, "train"],
            [clips / "gone.mp4", "A car.", 13, "train"],
            [clips / "drive.MP4", "  ", 13, "train"],
            [clips / "walk.mp4", "Another caption.", 13, "train"],
            ["", "No file.", 13, "train"],
            [clips / "house.png", "A house.", "many", "train"],
            [clips / "house.png", "A house.", 1, "left"],
            [clips / "house.png", "A house."],
            [clips / "notes.txt", "Notes.", 1, "train"],
        ],
        ["path", "text", "num_frames", "split"],
    )
    with table.open("ab") as opened:
        opened.write(f"{clips}/house.png,Une fa\u00e7ade.,1,train\n".encode("latin-1"))
    found = checked(table)
    assert (found.num_fine, found.num_rows) == (1, 10)
    assert [problem.replace(str(clips), "X") for problem in found.problems] == [
        "Row 2 (line 4): X/gone.mp4 is not there.",
        "Row 3 (line 5) has no caption: X/drive.MP4 would be left out.",
        "Row 4 (line 6) is the same as row 1: both have X/walk.mp4.",
        "Row 5 (line 7) names no file: its path is empty.",
        "Row 6 (line 8): num_frames is 'many', which is no number.",
        "Row 7 (line 9): split is 'left'; write train or held_out, or nothing to have it drawn.",
        "Row 8 (line 10) has 2 fields, the header has 4.",
        "Row 9 (line 11): X/notes.txt has neither a video's (.avi .mkv .mov .mp4) nor an image's "
        "(.bmp .jpeg .jpg .pgm .png .ppm .tif .tiff .webp) ending.",
        "Row 10 (line 12) is not UTF-8: save the table as UTF-8.",
    ]


def test_what_ingest_finds_wrong_with_a_row_is_in_its_table_and_costs_only_that_row(clips, tools, tmp_path):
    (clips / "page.mp4").write_text("<html>not found</html>", encoding="utf-8")
    whole = (clips / "walk.mp4").read_bytes()
    (clips / "cut.mp4").write_bytes(whole[: len(whole) - 300])
    (clips / "text.jpg").write_text("no picture", encoding="utf-8")
    write_mp4(clips / "one.mp4", tools.shot(14, 1), 8)
    names = ["walk.mp4", "page.mp4", "cut.mp4", "text.jpg", "one.mp4", "gone.mp4", "house.png"]
    rows = [[name, "A thing moves over the ground.", "0" * 64 if name == "house.png" else ""] for name in names]
    table = table_of(clips / "meta.csv", rows, ["path", "text", "sha256"])
    write_run_file(tmp_path / "run.yaml", "theirs", str(table))
    store = open_store(str(tmp_path / "new-store"))
    tools.run_file(tmp_path / "run.yaml", store)
    found = {row.row: row for row in rows_of(store, "theirs", "ingest", "videos", Video)}
    told = [(names[number - 1], found[number].state, found[number].reason) for number in sorted(found)]
    assert told[0] == ("walk.mp4", "ok", "")
    assert told[1] == ("page.mp4", "unreadable", "It is not a video: it begins like a web page.")
    assert told[2][1] in {"unusable", "unreadable"}
    assert told[3][1:] == ("unreadable", "It is not a picture in any format known here.")
    assert told[4][1:] == ("unusable", "It has one frame: give it as a picture, such as .png.")
    assert told[5][1:] == ("unreadable", "Row 6 (line 7): gone.mp4 is not there.")
    assert told[6][1] == "unusable"
    assert "its sha256 differs" in told[6][2]
    assert len(rows_of(store, "theirs", "clip", "clips", Clip)) == 1


def test_a_changed_caption_and_a_changed_clip_are_both_noticed(theirs, clips, tools, tmp_path):
    from bricks_core.pipeline.plan import make_plan

    write_run_file(tmp_path / "run.yaml", "theirs", str(theirs))
    store = open_store(str(tmp_path / "new-store"))
    tools.run_file(tmp_path / "run.yaml", store)
    run = load_run(tmp_path / "run.yaml")
    assert {step.state for step in make_plan(run, store, "caption")} == {"cached"}
    write_mp4(clips / "walk.mp4", tools.shot(20, 14), 8)
    assert make_plan(run, store, "ingest")[0].why == ["sources changed"]
    tools.run_file(tmp_path / "run.yaml", store)
    theirs.write_text(
        theirs.read_text(encoding="utf-8").replace("A red square crosses.", "A blue square crosses."), encoding="utf-8"
    )
    assert make_plan(run, store, "ingest")[0].why == ["sources changed"]
    tools.run_file(tmp_path / "run.yaml", store)
    assert "A blue square crosses." in {row.text for row in rows_of(store, "theirs", "caption", "captions", Caption)}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "has no column path"),
        (b"file_path,text\n", "has no column path"),
        (b"path;text\na.mp4;b\n", "is not separated by commas"),
        ("path,text\n".encode("utf-16"), "is not UTF-8"),
        (b"path,caption\na.mp4,b\n", "has no column text"),
        (b"path,text\n", "It has no rows"),
        (b"path,text\na.mp4,b\n", "Row 1 \\(line 2\\): a.mp4 is not there"),
        (b'path,text\na.mp4,"never closed\n', "Row 1 \\(line 2\\): unexpected end of data"),
    ],
)
def test_a_table_that_is_none_is_a_sentence(tmp_path, content, words):
    (tmp_path / "meta.csv").write_bytes(content)
    with pytest.raises(DataError, match=words):
        checked(tmp_path / "meta.csv")


def test_a_parquet_file_that_is_none_and_a_name_that_is_none(tmp_path):
    (tmp_path / "meta.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match="is no Parquet table"):
        checked(tmp_path / "meta.parquet")
    with pytest.raises(UsageError, match=r"ends in \.csv or \.parquet"):
        checked(tmp_path)
    with pytest.raises(SpecError, match="is not there"):
        checked(tmp_path / "nowhere.csv")


def test_a_run_file_is_not_written_over_another(theirs, tmp_path):
    out = tmp_path / "run.yaml"
    out.write_text("mine", encoding="utf-8")
    with pytest.raises(SpecError, match="is there already"):
        write_run_file(out, "theirs", str(theirs))
    assert out.read_text(encoding="utf-8") == "mine"
    out.unlink()
    write_run_file(out, "theirs", str(theirs))
    write_run_file(out, "theirs", str(theirs))
    assert load_run(out).spec.caption.provider == "given"
    with pytest.raises(UsageError, match="lower-case"):
        write_run_file(tmp_path / "other.yaml", "My Clips", str(theirs))


def test_a_run_file_does_not_replace_what_is_no_file(theirs, tmp_path):
    (tmp_path / "folder").mkdir()
    for out in (tmp_path / "folder", Path("/dev/zero")):  # which has no end
        with pytest.raises(SpecError, match="is there already"):
            write_run_file(out, "theirs", str(theirs))
    assert list((tmp_path / "folder").iterdir()) == []


def bricks(*arguments, cwd):
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from jobs.dataset import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, str(ROOT), *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )


def test_the_door_takes_a_user_there_and_back(store, theirs, tmp_path):
    ended = bricks("import", theirs, "--name", "theirs", "--out", "theirs.yaml", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "3 of 3 rows of" in ended.stdout
    assert "bricks run theirs.yaml --until caption" in ended.stdout
    ended = bricks("export", "films", "--format", "open-sora", "--out", "out", "--store", store.uri, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "out/meta.csv" in ended.stdout
    for arguments, code, words in (
        (["export", "nothing", "--format", "open-sora", "--out", "x", "--store", store.uri], 65, "has no run nothing"),
        (["export", "films", "--format", "tfrecord", "--out", "x"], 64, "open-sora"),
        (["import", "nowhere.csv", "--name", "a", "--out", "a.yaml"], 78, "nowhere.csv is not there"),
    ):
        ended = bricks(*arguments, cwd=tmp_path)
        assert ended.returncode == code
        assert words in ended.stderr
        assert "Traceback" not in ended.stderr
