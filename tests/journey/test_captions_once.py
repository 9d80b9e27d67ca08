"""What is paid for is paid for once: whole runs against a model that counts its questions."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from bricks_core.errors import TryLater
from bricks_core.pipeline.garbage import collect
from bricks_core.pipeline.local import run_path
from bricks_core.pipeline.points import read_pointer
from bricks_core.spec.caption import Caption
from bricks_core.spec.run import load_run
from bricks_core.storage.artifacts import open_artifact
from bricks_core.storage.places import open_store
from bricks_core.storage.store import Store
from tests.chat_server import Server, serving
from tests.journey.tiny_run import Runner

ALL = {"min_motion": 0, "max_near_duplicate_distance": None, "max_plain_share": 1.0, "max_duplicate_frame_share": 1.0}
"""A filter that keeps every clip."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with serving() as told:
        monkeypatch.setenv("OPENAI_BASE_URL", told.url)
        monkeypatch.setenv("OPENAI_API_KEY", "none")
        yield told


@dataclass
class Payer:
    """Somebody with films, a run file, a store, and a model to pay."""

    folder: Path
    server: Server
    document: dict[str, Any]
    films: Path = field(init=False)

    def __post_init__(self) -> None:
        self.films = self.folder / "films"
        self.films.mkdir()
        self.document["spec"]["caption"] = {"provider": "openai", "model": "eyes-1"}
        self.document["spec"]["score"] = {"filter": ALL}

    @property
    def store(self) -> Store:
        return open_store(str(self.folder / "store"))

    def run(self, *overrides: str) -> int:
        """Run up to the captions. Returns the number of calls that it took."""
        before = len(self.server.questions)
        file = self.folder / "run.yaml"
        file.write_text(yaml.safe_dump(self.document), encoding="utf-8")
        try:
            run_path(load_run(file, list(overrides)), self.store, "caption")
        finally:
            self.made = len(self.server.questions) - before
        return self.made

    def sweep(self) -> None:
        """Clear away what no run points to."""
        collect(self.store, delete=True, keep_days=0)

    def captions(self) -> list[Caption]:
        pointer = read_pointer(self.store, self.document["metadata"]["name"], "caption")
        assert pointer is not None
        return list(open_artifact(self.store, "caption", pointer.digest).rows("captions", Caption))

    def num_of(self, kind: str) -> int:
        return sum(row.kind == kind for row in self.captions())


@pytest.fixture
def payer(
    tiny: Callable[..., str], films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server
) -> Payer:
    """Two films are captioned."""
    monkeypatch.chdir(tmp_path)
    payer = Payer(tmp_path, server, yaml.safe_load(tiny(sources=["films"])))
    for name in ("film_00.mp4", "film_01.mp4"):
        shutil.copy(films / name, payer.films / name)
    made = payer.run()
    assert made == sum(row.by == "eyes-1-2026" for row in payer.captions()) > 4
    return payer


def test_a_film_more_pays_for_that_film_alone(payer: Payer, films: Path) -> None:
    before = {row.id: row for row in payer.captions()}
    shutil.copy(films / "film_02.mp4", payer.films)
    made = payer.run()
    new = [row for row in payer.captions() if row.id not in before]
    assert made == sum(row.by == "eyes-1-2026" for row in new) > 0
    assert all(before[row.id] == row for row in payer.captions() if row.id in before)
    (payer.films / "film_02.mp4").unlink()
    assert payer.run() == 0
    payer.sweep()
    shutil.copy(films / "film_02.mp4", payer.films)
    assert payer.run() == 0, "gone, swept, and come back"


def test_names_places_licences_and_limits_pay_nothing(payer: Payer) -> None:
    (payer.films / "film_00.mp4").rename(payer.films / "the first.mp4")
    payer.films.rename(payer.folder / "elsewhere")
    payer.document["spec"]["ingest"]["sources"] = [{"path": "elsewhere", "licence": "CC-BY-4.0", "credit": "A. Maker"}]
    assert payer.run() == 0
    payer.sweep()
    assert payer.run("caption.concurrency=3", "caption.max_calls=2", "caption.max_retries=0") == 0
    payer.document["metadata"]["name"] = "another"
    assert payer.run() == 0


def test_another_encoder_filter_or_split_pays_nothing(payer: Payer) -> None:
    num = len(payer.captions())
    assert payer.run("clip.crf=32") == 0
    payer.sweep()
    assert payer.run("clip.crf=32", "score.split_seed=3", "score.held_out_share=0.5") == 0
    assert payer.run("score.filter.min_motion=0.001") == 0
    assert payer.run("score.filter.min_motion_percentile=60") == 0
    assert len(payer.captions()) < num
    payer.sweep()
    assert payer.run() == 0
    assert len(payer.captions()) == num


def test_an_edited_prompt_pays_for_what_it_is_about(payer: Payer) -> None:
    asked = Counter("video" if len(question.jpegs) > 1 else "image" for question in payer.server.questions)
    assert payer.run("caption.max_sentences=3") == asked.total()
    assert payer.run("caption.frame_shares=[0.1, 0.5, 0.9]") == asked["video"], "the images are shown as before"
    assert payer.run() == 0, "and back again"


def test_a_raised_cap_goes_on_where_the_lower_one_stopped(payer: Payer) -> None:
    total = len(payer.server.questions)
    with pytest.raises(TryLater, match="max_calls, 3, is reached"):
        payer.run("caption.max_sentences=3", "caption.max_calls=3")
    assert payer.made == 3
    assert payer.run("caption.max_sentences=3", "caption.max_calls=1000") == total - 3


def test_two_runs_at_once_pay_for_each_question_once(payer: Payer) -> None:
    before = [question.pictures for question in payer.server.questions]
    for name in ("one", "two"):
        payer.document["metadata"]["name"] = name
        payer.document["spec"]["caption"]["max_sentences"] = 3
        (payer.folder / f"{name}.yaml").write_text(yaml.safe_dump(payer.document), encoding="utf-8")
    key = {"OPENAI_BASE_URL": payer.server.url, "OPENAI_API_KEY": "none"}
    runner = Runner(payer.folder, payer.folder / "one.yaml")
    started = [
        runner.start("jobs.bricks", "run", f"{name}.yaml", "--until", "caption", "--store", "store", **key)
        for name in ("one", "one", "two")
    ]
    for process in started:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, out + err
    after = [question.pictures for question in payer.server.questions]
    assert Counter(after[len(before) :]) == Counter(before)
