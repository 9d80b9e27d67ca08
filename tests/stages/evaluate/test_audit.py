"""The audit of guidance as a part of the stage: what it asks for, makes and finds, on the miniature of a run."""

from collections import Counter

import numpy as np
import pytest
import torch

from bricks_core.spec.evaluate import Sample
from bricks_core.spec.train import CheckpointRow
from bricks_core.stages.evaluate import audit as under_test
from bricks_core.stages.evaluate.audit import TIMESTEPS, asked_audit, audit_of, make_audit, stretches_of
from bricks_core.stages.evaluate.samples import make_samples
from bricks_core.storage.artifacts import Artifact
from bricks_core.video.read import read_rgb

SCALES = [0.0, 1.0, 4.0, 7.0]


@pytest.fixture
def audited(finished):
    """A run whose audit is made."""
    run = finished(audit_guidance=SCALES, num_seeds=1)
    make_audit(run.spec, run.work())
    return run


def items_of(run):
    """The digests of the items' files."""
    files = (each.key for each in run.store.list("items/guidance/"))
    return {key: run.store.sha256(key) for key in files if not key.endswith(".json")}


def test_it_asks_for_samples_at_every_scale_and_for_predictions_of_the_base_and_the_last_checkpoint(finished):
    run = finished(audit_guidance=SCALES)
    asked = list(asked_audit(run.spec, run.work()))
    assert [(each.step, each.weights, each.guidance) for each in asked] == [
        (step, "ema", scale) for step in (0, 60) for scale in (*SCALES, None)
    ]
    assert len({each.id for each in asked}) == len(asked)


def test_without_scales_nothing_is_asked_and_there_is_no_audit(finished):
    run = finished(audit_guidance=[])
    assert list(asked_audit(run.spec, run.work())) == []
    make_audit(run.spec, run.work())
    assert audit_of(run.spec, run.work()) == (None, [])


def test_what_else_is_sampled_changes_no_part_and_what_a_sample_is_made_of_changes_those_that_show_it(finished):
    run = finished(audit_guidance=SCALES)

    def ids(**changes):
        spec = run.spec.model_copy(update=changes)
        return {each.guidance: each.id for each in asked_audit(spec, run.work(spec)) if each.step == 60}

    usual = ids()
    for name, other in (("num_seeds", 9), ("num_checkpoints", 2), ("guidance_scale", 3.0), ("plain_prompts", [])):
        assert ids(**{name: other}) == usual
    assert ids(audit_guidance=[1.0]) == {scale: usual[scale] for scale in (1.0, None)}
    steps = ids(num_sampling_steps=3)
    assert steps[None] == usual[None]
    assert all(steps[scale] != usual[scale] for scale in SCALES)
    for name, other in (("seed", 1), ("num_frames", 3), ("sampler", "iddpm")):
        assert set(ids(**{name: other}).values()).isdisjoint(usual.values())


def test_the_audit_has_samples_losses_and_files_beside_the_page(audited):
    work = audited.work()
    found, objects = audit_of(audited.spec, work)
    assert [(each.step, each.weights, len(each.bins)) for each in found.checkpoints] == [(0, "ema", 5), (60, "ema", 5)]
    assert (found.num_clips, found.num_films, found.reason, found.finding) == (2, 1, "", "")
    for each in found.checkpoints:
        assert [one.first_timestep for one in each.bins] == [0, 200, 400, 600, 800]
        assert all(one.loss_caption > 0 and one.norm_ratio.value > 0 for one in each.bins)
    assert [(row.step, row.guidance, row.prompt_index) for row in found.rows] == [
        (step, scale, index) for step in (0, 60) for scale in SCALES for index in range(2)
    ]
    assert [(each.step, each.guidance, each.roughness.num) for each in found.scales] == [
        (step, scale, 2) for step in (0, 60) for scale in SCALES
    ]
    assert found.roughness_real.value > 0.5  # the miniature's latents are noise
    keys = {each.key for each in objects}
    assert keys == {key for row in found.rows for key in (row.video_key, row.strip_key)}
    with work.store.local(work.prefix + found.rows[0].video_key) as file:
        assert read_rgb(file).shape == (4, 32, 48, 3)


def test_at_the_scale_of_the_run_it_shows_the_run_s_own_samples(audited):
    make_samples(audited.spec, audited.work())
    artifact = audited.evaluate()
    found, _ = audit_of(audited.spec, audited.work())
    last = {row.prompt_index: row for row in found.rows if (row.step, row.guidance) == (60, 7.0)}
    for sample in artifact.rows("samples", Sample):
        if (sample.step, sample.weights, sample.prompt_set) == (60, "ema", "style"):
            frames = []
            for prefix, key in (
                (artifact.prefix, sample.video_key),
                (audited.work().prefix, last[sample.prompt_index].video_key),
            ):
                with audited.store.local(prefix + key) as file:
                    frames.append(read_rgb(file))
            np.testing.assert_array_equal(*frames)


def test_it_goes_on_where_it_was_stopped_and_comes_out_the_same(finished_in, tmp_path, monkeypatch):
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
    whole, stopped = (finished_in(tmp_path / name, audit_guidance=SCALES) for name in ("whole", "stopped"))
    make_audit(whole.spec, whole.work())
    sampled = Counter()
    sample = under_test._Auditor.sample

    def sometimes(self, asked):
        sampled[asked.id] += 1
        if len(sampled) == 3 and sampled.total() == 3:
            raise KeyboardInterrupt
        sample(self, asked)

    monkeypatch.setattr(under_test._Auditor, "sample", sometimes)
    with pytest.raises(KeyboardInterrupt):
        make_audit(stopped.spec, stopped.work())
    make_audit(stopped.spec, stopped.work())
    assert items_of(stopped) == items_of(whole)
    assert sorted(sampled.values()) == [1] * 7 + [2]
    assert audit_of(stopped.spec, stopped.work())[0] == audit_of(whole.spec, whole.work())[0]
    make_audit(stopped.spec, stopped.work())
    assert sampled.total() == 9


def test_shards_share_the_parts_and_none_makes_one_twice(finished):
    run, made = finished(audit_guidance=SCALES), []
    for shard in range(3):
        work = run.work()
        work.shard, work.num_shards = shard, 3
        before = set(items_of(run))
        make_audit(run.spec, work)
        made.append(set(items_of(run)) - before)
    assert sum(map(len, made)) == len(items_of(run)) == 2 * len(SCALES) * 2 * 2
    assert len(audit_of(run.spec, run.work())[0].rows) == 2 * len(SCALES) * 2


def test_every_checkpoint_sees_the_same_clips_and_noise(finished, monkeypatch):
    run, seen = finished(audit_guidance=[1.0]), []
    family = under_test.family_of(run.run.spec.train.model)
    predict = type(family).predict

    def watched(self, network, latents, noise, timestep, *rest):
        seen.append((latents.clone(), noise.clone(), timestep.clone()))
        return predict(self, network, latents, noise, timestep, *rest)

    monkeypatch.setattr(type(family), "predict", watched)
    make_audit(run.spec, run.work())
    first, second = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    assert len(first) == len(second) == 2
    for a, b in zip(first, second, strict=True):
        assert all(torch.equal(*pair) for pair in zip(a, b, strict=True))
        assert a[2].tolist() == list(TIMESTEPS)
        assert not torch.equal(a[1][0], a[1][1])
    assert not torch.equal(first[0][1], first[1][1])


def test_the_wrong_caption_is_another_one(finished):
    run = finished(audit_guidance=[1.0])
    stretches, _ = stretches_of(run.spec, run.work())
    assert len(stretches) == 2
    assert all(each.other.caption != each.row.caption for each in stretches)
    assert all(each.row.split == "held_out" and each.row.kind == "video" for each in stretches)
    assert [(each.begin, each.interval) for each in stretches] == [(3, 3)] * 2  # of 16 frames the middle ten


def test_clips_that_all_have_one_caption_are_held_against_their_own(finished):
    run = finished(audit_guidance=[1.0], caption=lambda number: "A red square.")
    make_audit(run.spec, run.work())
    found, _ = audit_of(run.spec, run.work())
    assert all(one.shared is None and one.loss_other == one.loss_caption for one in found.checkpoints[0].bins)


def test_without_held_out_clips_samples_are_shown_and_it_says_why_there_is_no_more(finished):
    run = finished(audit_guidance=[0.0, 1.0], held_out=False)
    make_audit(run.spec, run.work())
    found, _ = audit_of(run.spec, run.work())
    assert (found.checkpoints, found.num_clips, found.roughness_real) == ([], 0, None)
    assert found.reason == "There are no held-out videos to make predictions for."
    assert len(found.rows) == 8


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"num_frames": 99}, "All 2 held-out clips are shorter than a sample"),
        ({"resolution": "64x96"}, "There are no held-out videos of 64x96"),
    ],
)
def test_clips_that_are_too_short_or_of_another_size_are_named(finished, changes, reason):
    run = finished(audit_guidance=[1.0])
    spec = run.spec.model_copy(update=changes)
    stretches, told = stretches_of(spec, run.work(spec))
    assert stretches == []
    assert told.startswith(reason)


def test_images_are_audited_as_images(finished):
    run = finished(audit_guidance=[1.0], num_frames=1)
    make_audit(run.spec, run.work())
    found, _ = audit_of(run.spec, run.work())
    assert found.num_clips == 2
    assert all(np.isfinite(one.loss_null) for each in found.checkpoints for one in each.bins)


def test_clips_lie_in_few_packs_and_are_spread_over_films(finished, monkeypatch):
    run = finished(audit_guidance=[1.0], num_films=3, pack_size=1)
    monkeypatch.setattr(under_test, "MAX_PACKS", 1)
    stretches, _ = stretches_of(run.spec, run.work())
    assert len(stretches) == 1


def test_a_training_of_which_only_the_base_is_there_is_audited_once(finished, monkeypatch):
    run = finished(audit_guidance=[1.0])
    rows = Artifact.rows

    def only_the_base(self, table, row):
        return (each for each in rows(self, table, row) if row is not CheckpointRow or each.step == 0)

    monkeypatch.setattr(Artifact, "rows", only_the_base)
    assert [(each.step, each.guidance) for each in asked_audit(run.spec, run.work())] == [(0, 1.0), (0, None)]
