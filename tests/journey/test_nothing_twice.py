"""What a change costs: the new item and nothing else. Decodes and encodes are counted where they happen."""

from __future__ import annotations

import functools
import importlib
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from bricks_core.models.text_encoder import HashedWords
from bricks_core.models.vae import PatchDct
from bricks_core.pipeline.garbage import collect
from bricks_core.pipeline.local import run_path
from bricks_core.pipeline.plan import make_plan
from bricks_core.spec.run import load_run
from bricks_core.storage.places import open_store
from bricks_core.video import read
from bricks_core.video.isolate import Isolation

DATA = "latents"
"""The last of the data stages."""


@pytest.fixture
def counted(monkeypatch) -> Counter[str]:
    """Calls, by what is called: work in processes of its own (probe, find_shots, cut), decodes here, and encoders."""
    num: Counter[str] = Counter()

    def count(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def called(*arguments: Any, **settings: Any) -> Any:
            num[name] += 1
            return function(*arguments, **settings)

        return called

    call = Isolation.call

    def call_apart(self: Isolation, function: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
        num[function.__name__] += 1
        return call(self, function, *arguments, **settings)

    monkeypatch.setattr(Isolation, "call", call_apart)
    for stage in ("ingest", "clip", "score", "caption", "latents"):  # they take the functions by name
        importlib.import_module(f"bricks_core.stages.{stage}.stage")
    for name in ("frames", "read_rgb"):
        original = getattr(read, name)
        wrapped = count("decode", original)
        for module in [module for key, module in sys.modules.items() if key.startswith("bricks_core.")]:
            if getattr(module, name, None) is original:
                monkeypatch.setattr(module, name, wrapped)
    monkeypatch.setattr(PatchDct, "encode", count("encode", PatchDct.encode))
    monkeypatch.setattr(HashedWords, "encode", count("encode text", HashedWords.encode))
    return num


@dataclass
class User:
    """Somebody with films, a run file and a store."""

    folder: Path
    counted: Counter[str]
    document: dict[str, Any]
    films: Path = field(init=False)

    def __post_init__(self) -> None:
        self.films = self.folder / "films"
        self.films.mkdir()

    @property
    def store(self):
        return open_store(str(self.folder / "store"))

    def load(self, *overrides: str):
        file = self.folder / "run.yaml"
        file.write_text(yaml.safe_dump(self.document), encoding="utf-8")
        return load_run(file, list(overrides))

    def run(self, *overrides: str, until: str = DATA) -> Counter[str]:
        """Run, and say what was computed for it."""
        self.counted.clear()
        run_path(self.load(*overrides), self.store, until)
        return Counter(self.counted)

    def sweep(self) -> None:
        collect(self.store, delete=True, keep_days=14)

    def sides(self) -> dict[str, str]:
        from bricks_core.pipeline.points import read_pointer
        from bricks_core.spec.score import Score
        from bricks_core.storage.artifacts import open_artifact

        digest = read_pointer(self.store, "tiny", "score").digest
        return {row.video_id: row.split for row in open_artifact(self.store, "score", digest).rows("scores", Score)}


@pytest.fixture
def user(tiny, films, tmp_path, monkeypatch, counted) -> User:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    user = User(tmp_path, counted, yaml.safe_load(tiny(sources=["films"])))
    for name in ("film_00.mp4", "film_01.mp4"):
        shutil.copy(films / name, user.films / name)
    first = user.run()
    assert first["probe"] == first["find_shots"] == 2
    assert min(first["cut"], first["decode"], first["encode"], first["encode text"]) > 0
    return user


NOTHING: Counter[str] = Counter()
ALL = {"min_motion": 0, "max_near_duplicate_distance": None, "max_plain_share": 1.0, "max_duplicate_frame_share": 1.0}
"""A filter that keeps every clip."""


def test_one_film_more_costs_what_it_costs_alone(user, films):
    user.document["spec"]["score"] = {"held_out_share": 0.3, "filter": ALL}
    user.run()
    before = user.sides()
    shutil.copy(films / "film_02.mp4", user.films)
    cost = user.run()
    assert before.items() <= user.sides().items()
    user.sweep()
    assert user.run() == NOTHING
    shutil.rmtree(user.folder / "store")
    for name in ("film_00.mp4", "film_01.mp4"):
        (user.films / name).unlink()
    alone = user.run()
    assert alone.pop("encode text") >= cost.pop("encode text") > 0, "a text that another film has is not encoded again"
    assert cost == alone


def test_names_places_licences_and_what_is_only_how_cost_nothing(user):
    (user.films / "film_00.mp4").rename(user.films / "the first.mp4")
    assert user.run() == NOTHING
    user.films = user.films.rename(user.folder / "elsewhere")
    user.document["spec"]["ingest"]["sources"] = [{"path": "elsewhere", "licence": "CC-BY-4.0", "credit": "A. Maker"}]
    user.sweep()
    assert user.run() == NOTHING
    (user.films / "deep").mkdir()
    (user.films / "film_01.mp4").rename(user.films / "deep/film_01.mp4")
    how = ("ingest.decode_timeout_s=999", "caption.concurrency=2", "caption.max_calls=9", "latents.pack_bytes=99999")
    assert user.run(*how) == NOTHING
    user.document["metadata"]["name"] = "another"
    assert user.run() == NOTHING


def test_another_filter_split_or_length_of_clips_decodes_no_clip_that_is_there(user):
    assert user.run("score.filter.min_motion=20") == NOTHING
    assert user.run("score.split_seed=7", "score.held_out_share=0.5") == NOTHING
    user.sweep()
    assert user.run() == NOTHING, "gone and come back"
    longer = user.run("clip.min_frames=30", until="score")
    assert longer == NOTHING, "fewer clips of the same shots"


def test_a_film_that_is_gone_and_comes_back_costs_nothing(user):
    film = (user.films / "film_01.mp4").rename(user.folder / "film_01.mp4")
    before = user.sides()
    assert user.run() == NOTHING
    user.sweep()
    film.rename(user.films / "film_01.mp4")
    assert user.run() == NOTHING
    assert user.sides() == before


def test_another_encoder_of_clips_searches_no_film_and_looks_for_no_caption_again(user):
    cost = user.run("clip.crf=30", until="caption")
    assert (cost["probe"], cost["find_shots"], cost["cut"]) == (0, 0, 2)
    assert user.run(until="caption") == NOTHING


def test_a_damaged_file_is_made_again_alone(user):
    key = next(entry.key for entry in user.store.list("items/clip/") if entry.key.endswith(".mp4"))
    data = user.store.get(key)
    user.store.put(key, data[: len(data) // 2])
    cost = user.run()
    assert (cost["probe"], cost["find_shots"], cost["cut"]) == (0, 0, 1)
    assert cost["encode"] == cost["encode text"] == 0
    assert user.store.get(key) == data


def test_a_plan_says_what_is_pending_and_why(user):
    steps = make_plan(user.load("clip.crf=30"), user.store, DATA)
    assert [step.state for step in steps] == ["cached", *["to run"] * 4]
    assert steps[1].why == ["clip.crf: 18 → 30"]
    assert steps[2].why == ["clip may change"]
    assert [step.state for step in make_plan(user.load("caption.concurrency=2"), user.store, DATA)] == ["cached"] * 5
