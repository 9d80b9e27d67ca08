"""What is measured of samples whose frames are known, against real clips of a store."""

import re

import numpy as np
import pytest

from bricks_core.judge.kept import scene_of
from bricks_core.judge.measured import video_sentences
from bricks_core.models.vae import PatchDct
from bricks_core.report.evidence import Evidence, Losses, Rise, with_measures
from bricks_core.report.intervals import Interval
from bricks_core.spec.evaluate import Sample
from bricks_core.spec.latents import Latent
from bricks_core.spec.manifest import content_id
from bricks_core.stages.evaluate.looks import checkpoints_of
from bricks_core.stages.evaluate.measured import measured
from bricks_core.stages.evaluate.measures import motion
from bricks_core.stages.evaluate.samples import to_pixels
from bricks_core.storage.scratch import scratch
from bricks_core.video.write import write_mp4
from tests.stages.evaluate.conftest import finish_inputs
from tests.stages.evaluate.measures.looks import FPS, NUM_FRAMES, clips_of

CODEC = PatchDct()
PLAIN = "One red thing moves to the right on a green ground in daylight."


def as_decoded(clip):
    return to_pixels(CODEC.decode(CODEC.encode(clip)))


@pytest.fixture(scope="session")
def looks():
    """Of brick films 0 to 3 the clips as the codec decodes them; and of a plain one, farther away, as they are."""
    bricks = {f"brick {index}": np.stack([*map(as_decoded, clips_of("brick", index))]) for index in range(4)}
    return bricks | {"plain 0": clips_of("plain", 0)}


@pytest.fixture(scope="module")
def store(looks, tmp_path_factory):
    """A store with one film to train on and two that are held out."""
    films = {name: list(looks[name]) for name in ("brick 0", "brick 1", "brick 2")}
    return finish_inputs(tmp_path_factory.mktemp("planted"), films, ["any"], fps=FPS, num_held_out=2)


def encoded(run, film, split):
    """Places within a film of its clips that have latents."""
    ids = {row.clip_id for row in run.work().rows("latents", "latents", Latent) if row.kind == "video"}
    ids &= {row.clip_id for row in run.work().rows("latents", "latents", Latent) if row.split == split}
    return [place for place in range(6) if content_id("clip", film, place) in ids]


def spec_of(run, **more):
    return run.spec.model_copy(update={"num_frames": NUM_FRAMES, "fps": FPS, "resolution": "96x160", **more})


def planted(run, clips, step, prompts=None, prompt_set="style", first=0, **more):
    """Samples that show these clips, one of each prompt, written where the report has them."""
    work, rows = run.work(), []
    for number, frames in enumerate(clips):
        prompt = prompts[number] if prompts else f"prompt {number}"
        row_id = content_id("planted", first + number, step, prompt_set, str(more))
        key = f"report/samples/{row_id}.mp4"
        with scratch() as folder:
            write_mp4(folder / "sample.mp4", frames, FPS)
            run.store.put_file(work.prefix + key, folder / "sample.mp4")
        rows.append(
            Sample(
                id=row_id, prompt_index=first + number, prompt=prompt, step=step, weights="ema", seed=42, video_key=key,
                strip_key="", prompt_set=prompt_set, **more,
            )
        )  # fmt: skip
    return rows


@pytest.fixture(scope="module")
def prompts(looks):
    """What is to be seen in the tuned samples."""
    return [video_sentences(scene_of(clip, FPS)) for clip in looks["brick 3"]]


@pytest.fixture(scope="module")
def found(store, looks, prompts):
    """Base samples are plain scenes; tuned ones are of another brick film, and say what their prompts say."""
    samples = planted(store, looks["plain 0"], 0, prompts) + planted(store, looks["brick 3"], 60, prompts)
    return measured(spec_of(store), store.work(), samples, None, "ema")


def test_samples_in_the_style_of_the_films_stand_near_these(store, found):
    style = found.measures.tuned.style
    assert style.position.value > 0.6
    num_clips = sum(len(encoded(store, film, "held_out")) for film in ("brick 1", "brick 2"))
    assert (style.num_films, style.num_clips) == (2, num_clips)
    assert style.tuned_to_real.value < style.base_to_real.value


def test_samples_that_show_what_their_prompts_say_keep_it_above_chance_and_more_than_the_base(found):
    kept = found.measures.tuned.kept("style")
    assert kept.tuned.value > 0.9
    assert kept.gain.low > 0
    assert kept.change.low > 0
    assert kept.base.value < kept.tuned.value
    assert {each.kind for each in found.measures.tuned.adherence} >= {"all", "ground", "light", "colours"}


def test_motion_is_the_mean_of_the_samples_own_and_stands_next_to_that_of_held_out_clips(found, looks):
    amount = next(each for each in found.measures.tuned.motion if each.name == "amount")
    own = [motion.measure(clip, FPS).amount for clip in looks["brick 3"]]
    assert amount.tuned.value == pytest.approx(np.mean(own), rel=0.15), "an mp4 lies between"
    assert amount.tuned.num == len(own)
    assert amount.real.num == 2, "films"


def test_what_copies_nothing_is_not_called_a_copy(found):
    content = found.measures.memorisation.parts[0]
    assert (content.part, content.num, content.of) == ("content", 0, 6)
    assert found.measures.memorisation.repeats == []
    assert found.pictures == {}


def test_a_training_clip_in_a_mirror_is_found_and_shown_next_to_it(store, looks, prompts):
    tuned, place = looks["brick 3"].copy(), encoded(store, "brick 0", "train")[0]
    tuned[2] = looks["brick 0"][place][:, :, ::-1]
    samples = planted(store, looks["plain 0"], 0, prompts) + planted(store, tuned, 40, prompts)
    got = measured(spec_of(store), store.work(), samples, None, "ema")
    copies = got.measures.memorisation
    assert copies.parts[0].num == 1
    (pair,) = [each for each in copies.pairs if each.part == "content"]
    assert (pair.clip, pair.mirrored) == (content_id("clip", "brick 0", place), True)
    assert pair.prompt == prompts[2]
    assert {pair.sample_picture, pair.clip_picture} <= got.pictures.keys()
    assert got.pictures[pair.clip_picture][:2] == b"\xff\xd8", "a JPEG"


def test_the_evidence_is_of_the_checkpoint_with_the_least_held_out_loss(store, looks, prompts):
    samples = planted(store, looks["plain 0"], 0, prompts)
    for step, clips in ((20, looks["brick 3"]), (60, looks["plain 0"])):
        samples += planted(store, clips, step, prompts)
    fall = [Rise(step, 0, Interval(by, by - 0.01, by + 0.01, 5)) for step, by in ((20, -0.4), (60, -0.2))]
    losses = Losses([0, 20, 60], 1.0, 10, 5, fall, None, None, None)
    got = measured(spec_of(store), store.work(), samples, losses, "ema").measures
    assert (got.tuned.step, [each.step for each in got.others]) == (20, [60])
    evidence = with_measures(Evidence(False, losses, 1, 1), got)
    assert evidence.style == got.tuned.style.position
    assert evidence.adherence.chance == got.tuned.kept("style").chance.value
    assert (evidence.num_prompts, evidence.num_samples) == (6, 6)
    assert evidence.ability is None, "no plain prompts"


def test_plain_prompts_are_about_ability_alone(store, looks, prompts, found):
    plain = [PLAIN] * 3 + ["Two blue things move to the left on a yellow ground at night."] * 3
    samples = []
    for step, clips in ((0, looks["plain 0"]), (60, looks["brick 3"])):
        samples += planted(store, clips, step, prompts)
        samples += planted(store, clips, step, plain, "plain", first=6)
    got = measured(spec_of(store), store.work(), samples, None, "ema").measures
    assert got.num_prompts == {"style": 6, "plain": 6}
    assert got.tuned.style == found.measures.tuned.style
    assert got.memorisation.parts[0].of == 6
    evidence = with_measures(Evidence(False, None, 1, 1), got)
    assert evidence.ability.tuned == got.tuned.kept("plain").tuned
    assert evidence.num_samples == 6


def test_a_held_out_clip_that_repeats_a_training_clip_voids_the_loss(looks, tmp_path, prompts):
    films = {"brick 0": list(looks["brick 0"]), "brick 1": list(looks["brick 1"]), "other": list(looks["brick 0"])}
    run = finish_inputs(tmp_path, films, ["any"], fps=FPS, num_held_out=2)
    samples = planted(run, looks["plain 0"], 0, prompts) + planted(run, looks["brick 3"], 60, prompts)
    got = measured(spec_of(run), run.work(), samples, None, "ema").measures
    places = set(encoded(run, "other", "held_out")) & set(encoded(run, "brick 0", "train"))
    pairs = [(content_id("clip", "other", place), content_id("clip", "brick 0", place)) for place in places]
    assert got.memorisation.repeats == sorted(pairs)
    assert with_measures(Evidence(False, None, 1, 1), got).repeats == sorted(pairs)


def test_what_cannot_be_measured_is_said_with_the_reason(looks, tmp_path):
    films = {"brick 0": list(looks["brick 0"]), "brick 1": list(looks["brick 1"])}
    run = finish_inputs(tmp_path, films, ["any"], fps=FPS)
    samples = planted(run, looks["plain 0"][:, :1], 0) + planted(run, looks["brick 3"][:, :1], 60)
    got = measured(spec_of(run, num_frames=1), run.work(), samples, None, "ema").measures
    assert got.tuned.style is None
    assert "films" in got.missing["style"]
    assert got.tuned.adherence == []
    assert "names a colour" in got.missing["facts of the run's prompts"]
    assert got.tuned.motion == []
    assert got.missing["motion"] == "a single frame does not move"
    assert got.missing["copies: motion"] == "no sample moves"


def test_clips_that_are_shorter_than_a_sample_are_none_to_compare_with(store, looks, prompts):
    samples = planted(store, looks["plain 0"], 0, prompts) + planted(store, looks["brick 3"], 60, prompts)
    got = measured(spec_of(store, num_frames=9), store.work(), samples, None, "ema").measures
    assert re.fullmatch(r"all \d+ are shorter than a sample", got.missing["held-out clips"])
    assert got.tuned.style is None
    assert got.memorisation is None
    assert got.tuned.motion, "is measured, with nothing beside it"
    assert all(each.real is None for each in got.tuned.motion)


def test_a_checkpoint_that_was_sampled_in_part_only_is_not_compared(store, looks, prompts):
    base = planted(store, looks["plain 0"], 0, prompts)
    part, whole = planted(store, looks["brick 3"][:5], 20, prompts), planted(store, looks["brick 3"], 60, prompts)
    _, own, compared = checkpoints_of([*base, *part, *whole], "ema")
    assert ([each.step for each in own], compared) == ([60], [])
    other = [each.model_copy(update={"of": "friend@9"}) for each in part]
    _, own, (theirs,) = checkpoints_of([*base, *whole, *other], "ema")
    assert (theirs.name, len(theirs.samples)) == ("friend@9", 5)
    _, own, _ = checkpoints_of(base, "ema")
    assert own == []
