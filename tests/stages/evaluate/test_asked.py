"""What is asked for: each group of samples once, only where it decides something, and with the same noise."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import create_model

from bricks_core.errors import SpecError
from bricks_core.judge.facts import facts
from bricks_core.spec.evaluate import PLAIN_PROMPTS, EvaluateSpec, Sample
from bricks_core.spec.latents import Latent
from bricks_core.spec.train import HeldOutRow
from bricks_core.stages.evaluate import stage
from bricks_core.stages.evaluate.asked import (
    asked_samples,
    held_out_captions,
    noise_of,
    prompts_of,
    sample_of,
)
from bricks_core.storage.tables import read_rows, write_rows

MORE = {"num_seeds": 2, "held_out_prompts": 2, "plain_prompts": ["One red thing moves up."], "lengths": [2, 8]}
PROMPTS = ["A red square", "A blue square", "A yellow square"]


@pytest.fixture(scope="module")
def more(finished_in, tmp_path_factory):
    return finished_in(tmp_path_factory.mktemp("more"), PROMPTS, **MORE)


def the_asked(run, spec=None):
    return list(asked_samples(spec or run.spec, run.work(spec)))


def test_the_fixed_plain_prompts_are_read_wholly_and_say_nothing_of_bricks():
    assert EvaluateSpec(prompts=["x"]).plain_prompts == list(PLAIN_PROMPTS)
    for prompt in PLAIN_PROMPTS:
        read = facts(prompt)
        assert (read.coverage, read.unread) == (1.0, ())
        assert {"light", "colours", "direction", "count"} <= {claim.kind for claim in read.claims}
        assert not any(word in prompt.lower() for word in ("brick", "lego", "stud", "stop motion"))
    # What one claims is no matter of course in another: else chance would keep it, too.
    assert (
        len({claim.value for prompt in PLAIN_PROMPTS for claim in facts(prompt).claims if claim.kind == "light"}) == 4
    )


def test_every_sample_is_asked_for_once_and_lies_in_a_file_of_its_own(more):
    asked = the_asked(more)
    rows = [sample_of(more.spec, each) for each in asked]
    for names in (
        [each.id for each in asked if each.num_frames == 0],
        [row.id for row in rows],
        [row.video_key for row in rows],
        [row.strip_key for row in rows],
    ):
        assert len(names) == len(set(names))


def test_the_runs_prompts_are_asked_at_every_checkpoint_and_the_rest_only_where_it_decides(more):
    groups = Counter(
        (each.step, each.weights, each.prompt.set, bool(each.seed_index), each.num_frames) for each in the_asked(more)
    )
    # Of the miniature the loss falls to the end, so that the last step is the best one.
    whole = {(0, "raw"), (60, "ema")}
    own = [(0, "raw"), (20, "raw"), (20, "ema"), (60, "raw"), (60, "ema")]
    wanted = {(*at, "style", False, 0): 3 for at in own}
    for at in whole:
        wanted |= {(*at, "style", True, 0): 3, (*at, "held_out", False, 0): 2, (*at, "held_out", True, 0): 2}
        wanted |= {(*at, "plain", False, 0): 1, (*at, "plain", True, 0): 1}
        wanted |= {(*at, "style", False, 2): 2, (*at, "style", False, 8): 2}
    assert groups == wanted


def test_the_step_with_the_lowest_held_out_loss_is_asked_for_everything_too(more):
    work = more.work()
    rows = list(work.rows("train", "held_out", HeldOutRow))
    turned = [row.model_copy(update={"loss": row.loss / 10}) if row.step == 20 else row for row in rows]
    plain = work.rows
    work.rows = lambda stage, table, row: turned if table == "held_out" else plain(stage, table, row)
    steps = Counter(
        each.step for each in asked_samples(more.spec, work) if not (each.num_frames or each.is_on_the_page)
    )
    assert steps.keys() == {0, 20, 60}
    assert len(set(steps.values())) == 1


def test_only_what_was_asked_before_is_asked_without_the_new_settings_and_under_the_same_keys(more):
    spec = more.spec.model_copy(update={"num_seeds": 1, "held_out_prompts": 0, "plain_prompts": [], "lengths": []})
    before = the_asked(more, spec)
    assert all(each.is_on_the_page for each in before)
    assert {each.id for each in before} < {each.id for each in the_asked(more)}
    assert not {"seed_index", "codec"} & before[0].made.made_of.keys()
    # As the first version asked for it: a sample of then is found.
    assert before[0].made.made_of.keys() == {
        "kind", "version", "weights_of", "prompt", "index", "step", "weights", "settings",
    }  # fmt: skip
    assert not before[0].made.made_of["settings"].keys() & MORE.keys()


def test_a_length_that_the_settings_have_anyway_is_no_second_sample(more):
    spec = more.spec.model_copy(update={"lengths": [more.spec.num_frames]})
    asked = the_asked(more, spec)
    assert {each.id for each in asked if each.num_frames} <= {each.id for each in asked if not each.num_frames}


def test_prompts_count_over_the_runs_own_the_held_out_and_the_plain_ones(more):
    prompts = prompts_of(more.spec, more.work())
    assert [each.index for each in prompts] == list(range(6))
    assert [each.set for each in prompts] == ["style"] * 3 + ["held_out"] * 2 + ["plain"]
    held_out = {
        row.clip_id: row.caption for row in more.work().rows("latents", "latents", Latent) if row.split == "held_out"
    }
    assert all(held_out[each.clip] == each.text for each in prompts if each.set == "held_out")
    assert not any(each.clip for each in prompts if each.set != "held_out")


def test_without_held_out_clips_there_are_no_prompts_of_them(finished):
    run = finished(held_out=False, held_out_prompts=4)
    assert [each.set for each in prompts_of(run.spec, run.work())] == ["style", "style"]


@given(st.integers(0, 50), st.integers(0, 5), st.integers(0, 5))
def test_noise_is_of_the_seed_the_prompt_and_the_turn_and_of_nothing_else(index, turn, other):
    def draw(*which):
        return torch.randn(8, generator=noise_of(*which))

    assert torch.equal(draw(42, index, turn), draw(42, index, turn))
    assert torch.equal(draw(42, index, turn), draw(42, index, other)) == (turn == other)
    assert not torch.equal(draw(42, index, turn), draw(42, index + 1, turn))
    # As the first version drew it.
    assert torch.equal(draw(42, index, 0), draw(42, index))


def latent(film, number, text, kind="video", split="held_out"):
    return Latent.model_construct(
        clip_id=f"{film}-{number}", video_id=film, kind=kind, split=split, item=f"item {film} {number}",
        text_item=text, caption=text,
    )  # fmt: skip


@given(
    st.dictionaries(st.text("abcdef", min_size=1, max_size=3), st.integers(1, 6), min_size=1, max_size=6),
    st.integers(0, 20),
    st.randoms(use_true_random=False),
)
def test_held_out_captions_are_spread_over_films_and_do_not_depend_on_the_order_of_rows(films, at_most, dice):
    rows = [latent(film, number, f"{film} {number}") for film, num in films.items() for number in range(num)]
    chosen = held_out_captions(rows, at_most)
    assert len(chosen) == min(at_most, len(rows)) == len(set(chosen))
    dice.shuffle(rows)
    assert held_out_captions(rows, at_most) == chosen
    of_films = Counter(clip.rpartition("-")[0] for clip, _ in chosen)
    for film, num in films.items():  # no film has two more than another that has any left
        assert of_films[film] == num or of_films[film] >= max(of_films.values(), default=0) - 1
    assert held_out_captions(rows, at_most)[: at_most // 2] == held_out_captions(rows, at_most // 2)


def test_held_out_captions_are_each_another_text_and_none_that_is_asked_anyway():
    rows = [latent("a", 0, "Same."), latent("b", 0, "Same."), latent("c", 0, "Known."), latent("d", 0, "Other.")]
    assert sorted(text for _, text in held_out_captions(rows, 9, ["Known."])) == ["Other.", "Same."]


def test_captions_of_training_are_never_asked_and_those_of_images_only_without_videos():
    rows = [latent("a", 0, "Train.", split="train"), latent("b", 0, "Still.", kind="image"), latent("b", 1, "Moves.")]
    assert [text for _, text in held_out_captions(rows, 9)] == ["Moves."]
    assert [text for _, text in held_out_captions(rows[:2], 9)] == ["Still."]


def test_rows_of_a_table_from_before_are_samples_of_the_runs_own_prompts(tmp_path):
    made = ("id", "prompt_index", "prompt", "step", "weights", "seed", "video_key", "strip_key")
    told = {"id": "0" * 16, "prompt_index": 1, "prompt": "x", "step": 20, "weights": "ema", "seed": 42}
    told |= {"video_key": "v.mp4", "strip_key": "s.jpg"}
    fields = {name: (Sample.model_fields[name].annotation, ...) for name in made[1:]}
    before = create_model("Sample", __base__=Sample.__base__, **fields)
    write_rows(tmp_path / "samples.parquet", before, [before(**told)])
    (row,) = read_rows(tmp_path / "samples.parquet", Sample)
    assert (row.prompt_set, row.seed_index, row.of, row.num_frames, row.held_out_clip) == ("style", 0, "", 0, "")


# ------------------------------------------------------------------------------------------------- making what is asked


def files_of(run):
    """Every file of the samples, records without the seconds that they took."""
    return {entry.key: content(run.store, entry.key) for entry in run.store.list("items/sample/")}


def content(store, key):
    if not key.endswith(".json"):
        return store.sha256(key)
    record = json.loads(json.loads(store.get(key))["item"])
    assert record.pop("cost").keys() == {"seconds"}
    return record


def test_a_killed_sampling_goes_on_to_the_same_bytes(finished_in, tmp_path, monkeypatch):
    settings = MORE | {"batch_size": 3, "num_checkpoints": 2, "weights": ["ema"]}
    run = finished_in(tmp_path, PROMPTS, **settings)
    stage.run(run.spec, run.work())
    whole = files_of(run)
    run.store.delete(whole)

    class Killed(BaseException):
        pass

    for num_kept in (4, 5, 7):  # in the middle of a batch and at its end
        work = run.work()
        put, left = work.items.put, [num_kept]

        def put_or_die(*args, put=put, left=left, **more):
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return put(*args, **more)

        monkeypatch.setattr(work.items, "put", put_or_die)
        with pytest.raises(Killed):
            stage.run(run.spec, work)
    assert sum(key.endswith(".json") for key in files_of(run)) == 16
    stage.run(run.spec, run.work())
    assert files_of(run) == whole


@pytest.mark.parametrize("num_shards", [2, 3])
def test_shards_share_the_samples_and_none_is_made_twice(more, tmp_path, finished_in, num_shards):
    run = finished_in(tmp_path, PROMPTS, **MORE | {"batch_size": 2, "num_checkpoints": 2})
    made = Counter()
    for shard in range(num_shards):
        work = replace(run.work(), shard=shard, num_shards=num_shards)
        put = work.items.put
        work.items.put = lambda recipe, *rest, put=put, **more: made.update([recipe.key]) or put(recipe, *rest, **more)
        stage.run(run.spec, work)
    assert set(made.values()) == {1}
    assert made.keys() == {each.made.key for each in the_asked(run)}


def test_the_noise_is_the_same_for_every_checkpoint_and_another_for_every_seed(finished_in, tmp_path, monkeypatch):
    run = finished_in(tmp_path, PROMPTS[:1], num_seeds=2)
    from bricks_core.diffusion.family_stdit2 import STDiT2Family

    seen = []
    sample = STDiT2Family.sample

    def noted(self, network, prompts, frame, generators, sampling):
        seen.append([torch.randn(4, generator=each.clone_state()).tolist() for each in generators])
        return sample(self, network, prompts, frame, generators, sampling)

    monkeypatch.setattr(STDiT2Family, "sample", noted)
    stage.run(run.spec, run.work())
    base, *_, last = [each for each in seen if len(each) == 2]
    assert base == last
    assert base[0] != base[1]
    assert all(each[0] == base[0] for each in seen)


def test_an_encoder_that_cannot_be_had_is_told_before_anything_is_sampled(finished_in, tmp_path):
    (tmp_path / "empty").mkdir()
    run = finished_in(tmp_path, PROMPTS[:1], style_features=str(tmp_path / "empty"))
    with pytest.raises(SpecError, match="empty"):
        stage.run(run.spec, run.work())
    assert not files_of(run)
