"""Open-Sora's folder: read by pandas as its loader does, whatever captions hold, and back without loss."""

import csv
import math
import shutil
import tempfile
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bricks_core.errors import DataError, UsageError
from bricks_core.exchange.datasets.bring_in import check_table, write_run_file
from bricks_core.exchange.datasets.dataset import Dataset
from bricks_core.exchange.datasets.open_sora import write_csv
from bricks_core.pipeline.local import run_path
from bricks_core.progress import Progress
from bricks_core.spec.caption import Caption
from bricks_core.spec.latents import Latent, LatentsSpec
from bricks_core.spec.run import load_run
from bricks_core.storage.artifacts import open_artifact
from bricks_core.storage.media_table import MediaTable
from bricks_core.video.read import read_rgb


def rows_of(table):
    with table.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_table_has_open_soras_columns_in_its_meanings(export, tmp_path, capsys):
    export(tmp_path / "out")
    table = pd.read_csv(tmp_path / "out" / "meta.csv")
    assert list(table.columns[:8]) == [
        "path", "text", "num_frames", "height", "width", "aspect_ratio", "fps", "resolution",
    ]  # fmt: skip
    assert len(table) == 10
    assert table["path"].is_unique
    for row in table.itertuples():
        assert Path(row.path).is_absolute()
        assert (row.height, row.width, row.resolution) == (96, 160, 96 * 160)
        assert row.aspect_ratio == 96 / 160
        if row.path.endswith(".mp4"):
            assert (len(read_rgb(row.path)), row.fps) == (row.num_frames, 12.0)
        else:
            assert row.path.endswith(".jpg")
            assert row.num_frames == 1
            assert math.isnan(row.fps)
    assert (table["num_frames"] == 1).sum() == 5
    screen = capsys.readouterr().out
    assert "5 clips and 5 images" in screen
    assert str(tmp_path / "out" / "meta.csv") in screen
    assert "bricks dataset import" in screen


def test_only_what_was_kept_and_has_an_accepted_caption_is_exported(export, store, tmp_path):
    export(tmp_path / "out")
    dataset = Dataset.of(store, "films")
    captions = {row.id: row for row in dataset.caption.rows("captions", Caption)}
    exported = {row["id"]: row for row in rows_of(tmp_path / "out" / "meta.csv")}
    assert set(exported) == {row.id for row in captions.values() if row.status == "ok"}
    assert all(exported[each]["text"] == captions[each].text for each in exported)
    assert dataset.clip.manifest.counts["clips"] == 5


def test_licence_credit_origin_and_split_stay_with_every_row(export, tmp_path):
    export(tmp_path / "out")
    rows = rows_of(tmp_path / "out" / "meta.csv")
    by_video = {row["video_name"]: row for row in rows}
    assert (by_video["one.mp4"]["licence"], by_video["one.mp4"]["credit"]) == ("CC-BY-4.0", 'Ann "Brick" Maker, Oslo')
    assert by_video["one.mp4"]["consent"] == "signed, 2026"
    assert by_video["three, and a half.mp4"]["licence"] == "unknown"
    clips = {row["id"]: row for row in rows if row["fps"]}
    for row in rows:
        clip = clips[row["clip_id"]]
        assert int(clip["first_frame"]) <= int(row["first_frame"]) < int(row["end_frame"]) <= int(clip["end_frame"])
        assert row["split"] == clip["split"]
    assert {row["split"] for row in rows} == {"train", "held_out"}


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
AWKWARD = ['a "quoted" word, and\na second line', "\r", "\r\n", "'", ";\t|", "\ufeff", "…", '"', ",", "\\"]
awkward = st.sampled_from(AWKWARD)


@given(st.lists(st.one_of(texts, awkward, st.tuples(texts, awkward).map("".join)), min_size=1, max_size=5))
def test_any_caption_comes_back_from_the_csv_module_from_pandas_and_from_our_own_reader(captions):
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder, "meta.csv")
        rows = [{"path": f"/{place}.mp4", "text": f"A{text}"} for place, text in enumerate(captions)]
        write_csv(table, ["path", "text"], rows)
        wanted = [row["text"] for row in rows]
        assert [row["text"] for row in rows_of(table)] == wanted
        assert [row.text for row in MediaTable(str(table)).rows()] == wanted
        assert pd.read_csv(table)["text"].tolist() == wanted


def media(folder):
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.suffix in {".mp4", ".jpg"}
    }


def without_path(table):
    return [{key: value for key, value in row.items() if key != "path"} for row in rows_of(table)]


def test_run_export_import_run_export_loses_nothing(export, store, tools, tmp_path):
    export(tmp_path / "first")
    moved = tmp_path / "elsewhere" / "dataset"
    shutil.copytree(tmp_path / "first", moved)
    shutil.rmtree(tmp_path / "first")
    with Progress("import") as progress:
        checked = check_table(str(moved / "meta.csv"), progress)
    assert (checked.num_clips, checked.num_images, checked.problems) == (5, 5, [])
    write_run_file(tmp_path / "again.yaml", "again", str(moved / "meta.csv"))
    tools.run_file(tmp_path / "again.yaml", store)
    export(tmp_path / "second", run="again")
    assert without_path(tmp_path / "second" / "meta.csv") == without_path(moved / "meta.csv")
    assert media(tmp_path / "second") == media(moved)
    assert len(media(moved)) == 10


def test_an_imported_dataset_is_encoded_for_training_as_the_run_it_came_from(export, store, made, tools, tmp_path):
    export(tmp_path / "out")
    write_run_file(tmp_path / "again.yaml", "again", str(tmp_path / "out" / "meta.csv"))
    encoded = []
    for run in (tools.film_run(made / "films"), load_run(tmp_path / "again.yaml")):
        latents = LatentsSpec(resolutions=["48x80"])
        run = run.model_copy(update={"spec": run.spec.model_copy(update={"latents": latents})})
        manifest = run_path(run, store, "latents")["latents"]
        artifact = open_artifact(store, "latents", manifest.digest)
        rows = list(artifact.rows("latents", Latent))
        assert len(rows) == 10
        # Which pack, and which video an id stands for, are the store's business; a file that was given is another item
        # than one that was cut; and an image whose clip was not exported stands for itself.
        elsewhere = {name for name in Latent.model_fields if name.endswith(("pack", "offset_bytes"))}
        elsewhere |= {"id", "item", "video_id", "clip_id"}
        encoded.append([(row.model_dump_json(exclude=elsewhere), _latents(artifact, row)) for row in rows])
    assert sorted(encoded[0]) == sorted(encoded[1])


def _latents(artifact, row):
    num_bytes = 2 * row.num_frames * 4 * row.latent_height * row.latent_width
    with artifact.local(row.pack) as pack:
        return pack.read_bytes()[row.latents_offset_bytes : row.latents_offset_bytes + num_bytes]


def test_a_run_without_captions_or_without_a_name_is_a_sentence(export, store, tools, made, tmp_path):
    with pytest.raises(DataError, match=r'has no run flims \(did you mean "films"\?\)\. It has: films\.'):
        export(tmp_path / "out", run="flims")
    with pytest.raises(UsageError, match="give its name alone, such as films"):
        export(tmp_path / "out", run="films/caption")
    store.delete([entry.key for entry in store.list("runs/films/points/")])
    with pytest.raises(DataError, match="Run films has no captions yet"):
        export(tmp_path / "out")
    assert not (tmp_path / "out").exists()
