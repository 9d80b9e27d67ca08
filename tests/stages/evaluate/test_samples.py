"""Samples: the same noise for every checkpoint, kept one by one, and the same whoever shares their batch."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from bricks_core.diffusion.family_stdit2 import STDiT2Family
from bricks_core.errors import SpecError
from bricks_core.models.text_encoder import HashedWords
from bricks_core.models.vae import PatchDct
from bricks_core.models.weights import load_network
from bricks_core.spec.evaluate import EvaluateSpec, Sample
from bricks_core.stages.evaluate import stage
from bricks_core.stages.evaluate.asked import chosen_steps, noise_of
from bricks_core.stages.evaluate.samples import (
    STRIP_FRAMES,
    Captions,
    _Batch,
    _Source,
    frame_of,
    sampling_of,
    shared,
    size_of,
    strip_of,
    strip_places,
    to_pixels,
)
from bricks_core.video.probe import probe
from bricks_core.video.read import read_rgb

PROMPTS = ["A red square", "A blue square that moves to the left", "Two yellow squares at night"]


@pytest.fixture
def model(finished):
    run = finished(PROMPTS)
    work = run.work()
    folder = "checkpoints/step-000040"
    with (
        work.local("train", f"{folder}/weights.safetensors") as file,
        work.local("train", f"{folder}/config.json") as config,
    ):
        return load_network(file, config), run.spec


def test_a_sample_does_not_depend_on_who_shares_its_batch(model):
    network, spec = model
    captions = Captions.of(HashedWords(16), PROMPTS)

    def sampled(indices):
        prompts = captions.of_prompts(indices, torch.device("cpu"))
        noise = [noise_of(spec.seed, index) for index in indices]
        return STDiT2Family().sample(network, prompts, frame_of(spec, PatchDct()), noise, sampling_of(spec))

    together = sampled([0, 1, 2])
    alone = torch.cat([sampled([index]) for index in range(3)])
    # Sums in another order differ in their last bits, which guidance and the first steps enlarge.
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-4 * alone.abs().max().item())
    assert not torch.allclose(alone[0], alone[1], atol=0.1)


def test_noise_belongs_to_the_seed_and_the_prompts_number():
    def draw(seed, index):
        return torch.randn(8, generator=noise_of(seed, index))

    assert torch.equal(draw(42, 3), draw(42, 3))
    assert not torch.equal(draw(42, 3), draw(42, 4))
    assert not torch.equal(draw(42, 3), draw(43, 3))


def test_prompts_are_as_fine_as_training_saw_them():
    encoder = HashedWords(16)
    captions = Captions.of(encoder, ["Red.", "A blue square moves."])
    assert captions.features.shape == (2, 1, 5, 4096)
    assert captions.mask.tolist() == [[1, 1, 0, 0, 0], [1, 1, 1, 1, 1]]
    for shown, encoded in ((captions.features[0, 0, :2], "Red."), (captions.empty, "")):
        np.testing.assert_array_equal(shown.numpy(), encoder.encode([encoded])[0].astype(np.float16))


def test_a_video_has_the_frames_size_and_rate_that_were_asked_for(finished):
    run = finished()
    artifact = run.evaluate()
    (sample,) = [
        row for row in artifact.rows("samples", Sample) if (row.prompt_index, row.step, row.weights) == (1, 60, "ema")
    ]
    assert sample.prompt == run.spec.prompts[1]
    with artifact.local(sample.video_key) as file:
        film = read_rgb(file)
        assert film.shape == (4, 32, 48, 3)
        assert probe(file).fps == pytest.approx(8)
    with artifact.local(sample.strip_key) as file:
        strip = np.asarray(Image.open(io.BytesIO(file.read_bytes())))
    assert strip.shape == (32, 4 * 48, 3)
    # The same pictures, but for two lossy encodings.
    assert np.abs(np.concatenate(list(film), axis=1).astype(int) - strip).mean() < 16


def test_before_the_first_step_one_sample_stands_for_raw_and_ema(finished):
    artifact = finished().evaluate()
    made = sorted((row.step, row.weights, row.prompt_index) for row in artifact.rows("samples", Sample))
    assert made == sorted(
        [(0, "raw", 0), (0, "raw", 1)] + [(s, w, p) for s in (20, 60) for w in ("raw", "ema") for p in (0, 1)]
    )


def test_only_the_weights_that_are_asked_for_are_sampled(finished):
    artifact = finished(weights=["ema"]).evaluate()
    assert {row.weights for row in artifact.rows("samples", Sample)} == {"ema"}


def test_finished_samples_are_found_again_and_only_what_is_missing_is_made(finished):
    run = finished()
    stage.run(run.spec, run.work())
    prefix = "items/sample/"
    before = {entry.key: (entry.etag, run.store.sha256(entry.key)) for entry in run.store.list(prefix)}
    lost = sorted(key for key in before if key.endswith(".json"))[3]
    run.store.delete([lost])
    stage.run(run.spec, run.work())
    after = {entry.key: (entry.etag, run.store.sha256(entry.key)) for entry in run.store.list(prefix)}
    assert before.keys() == after.keys()
    # A record also tells how long it took.
    assert all(before[key][1] == after[key][1] for key in before if not key.endswith(".json"))
    touched = {key for key in before if before[key][0] != after[key][0]}
    assert len(touched) == 3  # the record, the video, the strip
    assert lost in touched


def test_a_single_picture_can_be_sampled_too(finished):
    run = finished(num_frames=1, sampler="iddpm", num_sampling_steps=3)
    artifact = run.evaluate()
    with artifact.local(next(artifact.rows("samples", Sample)).video_key) as file:
        assert read_rgb(file).shape == (1, 32, 48, 3)


def test_an_aspect_that_the_resolution_lacks_is_refused_with_those_it_has():
    spec = EvaluateSpec(prompts=["x"], resolution="144p", aspect="0.57")
    with pytest.raises(SpecError, match=r"0\.57 is none of 144p's: .*0\.56"):
        size_of(spec)
    assert size_of(EvaluateSpec(prompts=["x"], resolution="144p"))[1:] == (144, 256)


@given(st.lists(st.integers(0, 100_000), min_size=1, max_size=60), st.integers(2, 12))
def test_chosen_checkpoints_are_first_last_and_some_between(steps, at_most):
    chosen = chosen_steps(steps, at_most)
    assert chosen == sorted(set(chosen))
    assert set(chosen) <= set(steps)
    assert (chosen[0], chosen[-1]) == (min(steps), max(steps))
    assert len(chosen) <= at_most
    assert len(set(steps)) > at_most or chosen == sorted(set(steps))


def test_evenly_spaced_checkpoints_are_taken_evenly():
    assert chosen_steps(range(0, 4001, 250), 5) == [0, 1000, 2000, 3000, 4000]


@given(st.integers(1, 200))
def test_a_strip_shows_the_first_and_the_last_frame_and_at_most_eight(num_frames):
    places = strip_places(num_frames)
    assert (places[0], places[-1]) == (0, num_frames - 1)
    assert len(places) == len(set(places)) == min(num_frames, STRIP_FRAMES)


def test_large_frames_are_made_smaller_in_a_strip_and_keep_their_shape():
    strip = strip_of(np.zeros((3, 360, 640, 3), np.uint8))
    assert strip.shape == (180, 3 * 320, 3)


def test_pixels_outside_the_range_are_clamped_not_wrapped():
    pixels = torch.tensor([-1.5, -1.0, 0.0, 1.0, 2.0]).reshape(1, 1, 1, 5).expand(1, 3, 1, 5)
    assert to_pixels(pixels)[0, 0, :, 0].tolist() == [0, 0, 128, 255, 255]


@given(st.lists(st.tuples(st.integers(1, 8), st.sampled_from([1, 16, 64])), max_size=60), st.integers(1, 12))
def test_shards_share_all_batches_as_neighbours_and_about_evenly(sizes, num_shards):
    batches = [_Batch(_Source(f"{number}", "", frames), [None] * num) for number, (num, frames) in enumerate(sizes)]
    shares = [shared(batches, shard, num_shards) for shard in range(num_shards)]
    assert [each for share in shares for each in share] == batches
    largest, total = max((each.num_frames for each in batches), default=0), sum(each.num_frames for each in batches)
    for share in shares:
        assert abs(sum(each.num_frames for each in share) - total / num_shards) <= largest
