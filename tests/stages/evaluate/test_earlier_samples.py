"""Samples of an earlier version: they stay for the run that had begun with it, and its report is whole."""

from dataclasses import replace

from bricks_core.spec.items import KINDS
from bricks_core.stages.evaluate import stage
from bricks_core.storage.artifacts import problems


def test_a_report_of_samples_of_two_versions_is_whole_and_lies_at_an_address_of_its_own(finished, monkeypatch):
    run = finished(prompts=["A red square"])
    stage.run(run.spec, run.work())
    records = [entry.key for entry in run.store.list("items/sample/") if entry.key.endswith(".json")]
    run.store.delete(records[:1])
    monkeypatch.setitem(KINDS, "sample", replace(KINDS["sample"], version=2))

    def going_on():
        work = run.work()
        work.items.keep({"sample": [1]})
        return work

    stage.run(run.spec, going_on())
    work = going_on()
    mixed = work.commit(stage.join(run.spec, work))
    assert mixed.item_versions == {"sample": {1: len(records) - 1, 2: 1}}
    assert mixed.digest != mixed.cache_key
    assert problems(run.store, mixed, thorough=True) == []
    assert run.store.head(f"{work.prefix}report/timings.js") is not None
    assert not list(run.store.list(f"artifacts/evaluate/{mixed.cache_key}/"))
    pure = run.evaluate().manifest
    assert (pure.digest, pure.item_versions) == (mixed.cache_key, {})
