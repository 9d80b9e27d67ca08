"""Tables of clips and images, as people and programs write them."""

import os

import pandas as pd
import pytest

from bricks_core.errors import DataError
from bricks_core.storage.media_table import MediaTable, is_table, listed


@pytest.fixture
def folder(tmp_path):
    for name in ("clips/a.mp4", "clips/b.mov", "images/c.jpg", "elsewhere/d.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


def test_a_table_as_a_spreadsheet_saves_it_with_a_mark_and_empty_lines(folder):
    (folder / "meta.csv").write_bytes(
        "\ufeffPath, Text ,License\r\nclips/a.mp4,Une façade.,CC0-1.0\r\n\r\nclips/b.mov,,\r\n".encode()
    )
    rows = list(MediaTable(str(folder / "meta.csv")).rows())
    assert [(row.number, row.line, row.names, row.text, row.licence) for row in rows] == [
        (1, 2, ("clips/a.mp4",), "Une façade.", "CC0-1.0"),
        (2, 4, ("clips/b.mov",), "", ""),
    ]


def test_a_table_as_pandas_saves_it_with_an_index_and_counts_that_became_floats(folder):
    frame = pd.DataFrame(
        {"path": ["clips/a.mp4", "images/c.jpg"], "text": ["One.", None], "num_frames": [24, None], "fps": [24.0, None]}
    )
    frame.to_csv(folder / "meta.csv")
    frame.to_parquet(folder / "meta.parquet")
    for name in ("meta.csv", "meta.parquet"):
        rows = list(MediaTable(str(folder / name)).rows())
        assert [(row.kind, row.text, row.num_frames, row.problem) for row in rows] == [
            ("clip", "One.", 24, ""),
            ("image", "", -1, ""),
        ]


def test_the_relative_file_is_found_before_the_path_it_had_when_it_was_written(folder):
    table = folder / "meta.csv"
    table.write_text(
        "path,file\n"
        f"/old/place/clips/a.mp4,clips/a.mp4\n"
        f"{folder}/elsewhere/d.mp4,clips/gone.mp4\n"
        f"{folder}/clips/b.mov,clips/a.mp4\n"
        "/old/place/x.mp4,clips/x.mp4\n",
        encoding="utf-8",
    )
    found = list(MediaTable(str(table)).files())
    assert [file and file.uri for _, file in found] == [
        f"{folder}/clips/a.mp4",
        f"{folder}/elsewhere/d.mp4",
        f"{folder}/clips/a.mp4",
        None,
    ]
    assert found[3][0].problem == "Row 4 (line 5): neither clips/x.mp4 nor /old/place/x.mp4 is there."
    names = [file.name for _, file in found if file]
    assert [file.uri for file in MediaTable(str(table)).named(names)] == [file.uri for _, file in found if file]


def test_a_path_that_is_not_beside_the_table_is_tried_from_the_working_folder_as_open_sora_does(folder, monkeypatch):
    (folder / "tables").mkdir()
    (folder / "tables" / "meta.csv").write_text("path\nclips/a.mp4\n", encoding="utf-8")
    monkeypatch.chdir(folder)
    ((_, file),) = MediaTable("tables/meta.csv").files()
    assert file.name == str(folder / "clips/a.mp4")
    monkeypatch.chdir(folder / "tables")
    assert [each.uri for each in MediaTable("meta.csv").named([file.name])] == [file.uri]


@pytest.mark.parametrize(
    ("told", "split"),
    [("train", "train"), ("held_out", "held_out"), ("Validation", "held_out"), (" test ", "held_out"), ("", "")],
)
def test_splits_have_the_names_that_people_give_them(folder, told, split):
    (folder / "meta.csv").write_text(f"path,split\nclips/a.mp4,{told}\n", encoding="utf-8")
    assert [(row.split, row.problem) for row in MediaTable(str(folder / "meta.csv")).rows()] == [(split, "")]


@pytest.mark.parametrize(
    "name", ["x" * 300 + ".mp4", "a\0b.mp4", "clips", "~nobody-has-this-name/a.mp4", "ftp://x/a.mp4"]
)
def test_a_path_that_no_file_can_have_is_a_row_with_a_problem(folder, name):
    pd.DataFrame({"path": [name], "text": ["A."]}).to_parquet(folder / "meta.parquet")
    ((row, file),) = MediaTable(str(folder / "meta.parquet")).files()
    assert file is None
    assert row.problem.startswith("Row 1")


def test_a_source_that_is_a_table_is_made_of_the_table_and_the_files_it_names(folder):
    (folder / "meta.csv").write_text("path\nclips/a.mp4\nclips/gone.mp4\nimages/c.jpg\n", encoding="utf-8")
    assert [os.path.basename(file.uri) for file in listed(str(folder / "meta.csv"))] == ["meta.csv", "a.mp4", "c.jpg"]
    assert [file.name for file in listed(str(folder / "clips"))] == ["a.mp4", "b.mov"]


def test_a_folder_with_the_name_of_a_table_is_a_folder(tmp_path):
    (tmp_path / "films.csv").mkdir()
    assert not is_table(str(tmp_path / "films.csv"))
    assert is_table("s3://bucket/META.CSV")


@pytest.mark.parametrize("captions", [["A.", "B."], b"A."])
def test_captions_that_are_no_texts_are_not_taken_for_texts(folder, captions):
    pd.DataFrame({"path": ["clips/a.mp4"], "text": [captions]}).to_parquet(folder / "meta.parquet")
    with pytest.raises(DataError, match=r"column text holds (list|binary).*, not texts: save it as strings"):
        list(MediaTable(str(folder / "meta.parquet")).rows())
