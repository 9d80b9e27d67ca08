"""How processes that work as one come to the end of a stage."""

from dataclasses import replace
from pathlib import Path

import pytest

from bricks_core.errors import StoreDenied, StoreUnavailable, TryLater
from bricks_core.pipeline import local
from bricks_core.pipeline.local import run_path
from bricks_core.pipeline.plan import make_plan
from bricks_core.pipeline.resolve import Address
from bricks_core.spec.items import KINDS
from bricks_core.spec.stages import STAGES
from bricks_core.spec.train import TrainSpec
from bricks_core.storage.artifacts import artifact_prefix
from bricks_core.storage.folder import FolderStore

STAGE = STAGES["train"]
ADDRESS = Address(STAGE, TrainSpec.model_construct(), "d", {})


def finds(monkeypatch, *answers):
    """What looks for the manifest find, one after another."""
    left = list(answers)

    def find(store, stage, digest):
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(local, "find_manifest", find)
    monkeypatch.setattr(local, "WAIT_FOR_COMMIT_S", 0.0)
    return left


def test_a_process_that_waits_for_the_first_ones_commit_outlasts_a_store_that_is_away(monkeypatch):
    left = finds(monkeypatch, StoreUnavailable("away"), None, TryLater("busy"), None, "the manifest")
    assert local._wait_for_commit(None, ADDRESS) == "the manifest"
    assert left == []


def test_it_does_not_wait_for_a_store_that_refuses_it(monkeypatch):
    finds(monkeypatch, None, StoreDenied("no"))
    with pytest.raises(StoreDenied):
        local._wait_for_commit(None, ADDRESS)


class NotWritable(FolderStore):
    """A store that cannot be written, and why."""

    why = StoreDenied("Cannot write that: the file system is read-only.")

    def put(self, key, data, *, if_absent=False):
        raise self.why

    def put_file(self, key, path):
        raise self.why

    def delete(self, keys):
        raise self.why


@pytest.fixture
def done(drawn_films, run_of, tmp_path):
    """A run up to score, its manifests, and its store, which can be written and no more."""
    run, root = run_of(drawn_films), tmp_path / "store"
    return run, run_path(run, FolderStore(str(root), root), "score"), NotWritable(str(root), root)


@pytest.mark.parametrize("why", [NotWritable.why, TryLater("Cannot write that: the disk is full.")])
def test_a_finished_run_is_found_done_in_a_store_that_cannot_be_written(done, why, monkeypatch):
    run, manifests, store = done
    monkeypatch.setattr(NotWritable, "why", why)
    for wait in (True, False):
        told = []
        assert run_path(run, store, "score", tell=told.append, wait=wait) == manifests
        assert [(step.stage.name, step.state) for step in told] == [(name, "cached") for name in manifests]


def raised(monkeypatch, what):
    """A later version of Bricks: of the score stage's tables, or of the function that measures a clip."""
    if what == "stage":
        monkeypatch.setitem(STAGES, "score", replace(STAGES["score"], version=99))
    else:
        monkeypatch.setitem(KINDS, "measures", replace(KINDS["measures"], version=99))


@pytest.mark.parametrize(("what", "words"), [("stage", "score 3 → 99"), ("kind", "measures 1 → 99")])
def test_what_a_run_has_finished_stays_finished_for_it_under_a_later_version_until_it_is_renewed(
    done, what, words, monkeypatch
):
    run, manifests, store = done
    store = FolderStore(store.uri, Path(store.uri))
    raised(monkeypatch, what)
    assert run_path(run, store, "score") == manifests
    steps = make_plan(run, store, "score")
    assert [step.state for step in steps] == ["cached"] * 3
    assert [step.why for step in steps] == [[], [], [f"{words} since it was finished: --renew makes it anew"]]
    renewed = run_path(run, store, "score", renew=True)
    assert renewed["clip"] == manifests["clip"]
    assert renewed["score"].digest != manifests["score"].digest
    assert max(renewed["score"].stage_version, *renewed["score"].kind_versions.values(), 0) == 99
    assert run_path(run, store, "score") == renewed
    assert [step.why for step in make_plan(run, store, "score")] == [[]] * 3


def test_tables_that_an_earlier_version_wrote_are_written_by_this_one_once_they_are_damaged(done, monkeypatch):
    run, manifests, store = done
    store = FolderStore(store.uri, Path(store.uri))
    raised(monkeypatch, "stage")
    score = manifests["score"]
    (Path(store.uri) / artifact_prefix("score", score.digest) / "scores.parquet").write_bytes(b"altered")
    assert make_plan(run, store, "score")[2].state == "broken"
    mended = run_path(run, store, "score")["score"]
    assert (mended.stage_version, mended.item_versions) == (99, {})
    assert mended.digest != score.digest


def test_work_to_do_in_a_store_that_cannot_be_written_is_refused_with_what_it_is(done, run_of, drawn_films):
    run, _, store = done

    def refused(other, until="score"):
        with pytest.raises(StoreDenied) as caught:
            run_path(other, store, until)
        end = f", and the store {store.uri} cannot be written. Cannot write that: the file system is read-only."
        assert str(caught.value).endswith(end)
        return str(caught.value).removesuffix(end)

    assert refused(run, "caption") == "Run films is not done (caption: first time)"
    assert refused(run_of(drawn_films, clip={"crf": 30})).startswith("Run films is not done (clip: clip.crf: ")
    only = "Of run {0} only runs/{0}/ is to be written: its settings, and what it points to"
    assert refused(run_of(drawn_films, name="other")) == only.format("other")
    assert refused(run_of(drawn_films, ingest={"decode_timeout_s": 240})) == only.format("films")
