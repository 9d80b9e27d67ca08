"""The held-out loss, and what neighbouring frames are worth in it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bricks_core.models.stdit2 import STDiT2
from bricks_core.spec.train import IMAGE_FPS, HeldOutRow, TrainSpec
from bricks_core.stages.train.held_out import HeldOut, neighbours_gain
from bricks_core.stages.train.parallel import Processes
from bricks_core.storage.shards import Packs
from tests.stages.train.conftest import CLIPS, IMAGES, small_spec
from tests.stages.train.latents_made_up import MAX_TOKENS, TEXT_WIDTH, made_up_rows

ALONE = Processes(0, 1, torch.device("cpu"))


def held_out(folder, spec: TrainSpec, **kind) -> HeldOut:
    return HeldOut(spec, made_up_rows(folder, **kind), Packs(lambda key: folder / key), ALONE)


def network(spec: TrainSpec) -> STDiT2:
    torch.manual_seed(0)
    size = spec.model.model_dump(exclude={"family", "input_sq_size_px"})
    model = STDiT2(**size, caption_channels=TEXT_WIDTH, model_max_length=MAX_TOKENS).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


class Watched(torch.nn.Module):
    """A network that remembers what it was told of the frames."""

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.model, self.told = model, []

    def forward(self, x, *rest, **sizes):
        self.told.append((x.shape[2], float(sizes["num_frames"][0]), float(sizes["fps"][0])))
        return self.model(x, *rest, **sizes)


def test_frames_are_also_measured_alone_of_clips_and_of_the_weights_that_count(tmp_path):
    spec = small_spec()
    measured, model = held_out(tmp_path, spec), network(spec)
    rows = measured.measure(model, "ema", 8, [CLIPS.name, IMAGES.name]).rows
    rows += measured.measure(model, "raw", 8, [CLIPS.name]).rows
    for row in rows:
        is_measured = row.weights == "ema" and row.bucket == CLIPS.name
        assert (row.mse_alone > 0) == is_measured
        if is_measured:
            assert row.mse_alone != row.mse


def test_a_frame_alone_is_told_as_an_image_where_images_were_trained_on(tmp_path):
    model = Watched(network(small_spec()))
    held_out(tmp_path, small_spec()).measure(model, "ema", 8, [CLIPS.name])
    assert {told for told in model.told if told[0] == 1} == {(1, 1.0, IMAGE_FPS)}


def test_a_frame_alone_is_told_as_a_clip_of_one_where_none_were(tmp_path):
    spec = small_spec(phases=[phase.model_copy(update={"buckets": [CLIPS]}) for phase in small_spec().phases])
    model = Watched(network(spec))
    held_out(tmp_path, spec).measure(model, "ema", 8, [CLIPS.name])
    rates = {fps for num_latents, _, fps in model.told if num_latents == CLIPS.num_frames}
    assert {told for told in model.told if told[0] == 1} == {(1, 1.0, fps) for fps in rates}


def test_a_codec_that_joins_frames_has_no_single_frames_to_measure(tmp_path):
    spec = small_spec()
    clips = CLIPS.model_copy(update={"num_frames": 9, "frame_interval": 1})
    spec = small_spec(phases=[phase.model_copy(update={"buckets": [clips]}) for phase in spec.phases])
    rows = held_out(tmp_path, spec, time_stride=4).measure(network(spec), "ema", 8, [clips.name]).rows
    assert [row.mse_alone for row in rows] == [0.0] * len(rows)


def test_clips_have_their_own_losses_whose_mean_is_the_held_out_loss(tmp_path):
    spec = small_spec()
    found = held_out(tmp_path, spec).measure(network(spec), "ema", 8, [CLIPS.name])
    mine = [each for each in found.clips if each.split == "held_out"]
    assert len(mine) == found.rows[0].num_samples == 2
    assert np.mean([each.loss for each in mine]) == pytest.approx(np.mean([each.loss for each in found.rows]))


def test_as_many_clips_of_training_are_measured_with_the_noise_of_the_held_out_ones(tmp_path):
    spec = small_spec()
    measured, model = held_out(tmp_path, spec), network(spec)
    found = measured.measure(model, "ema", 8, [CLIPS.name]).clips
    learnt = [each for each in found if each.split == "train"]
    assert len(learnt) == 2
    assert not {each.clip_id for each in learnt} & {each.clip_id for each in found if each.split == "held_out"}
    assert not [each for each in measured.measure(model, "raw", 8, [CLIPS.name]).clips if each.split == "train"]

    class Deaf(torch.nn.Module):
        """Answers 0 whatever it sees, so that its error is the noise's own size."""

        def forward(self, x, *rest, **sizes):
            return torch.zeros(x.shape[0], 2 * x.shape[1], *x.shape[2:])

    by_side = {"train": [], "held_out": []}
    for each in measured.measure(Deaf(), "ema", 8, [CLIPS.name]).clips:
        by_side[each.split].append(each.mse)
    assert by_side["train"] == pytest.approx(by_side["held_out"])


def row(first: int, mse: float, alone: float) -> HeldOutRow:
    shape = {"step": 0, "weights": "ema", "bucket": "8f", "vb": 0.0, "num_samples": 1}
    return HeldOutRow(
        id=str(first), first_timestep=first, end_timestep=first + 200, loss=mse, mse=mse, mse_alone=alone, **shape
    )


def test_the_gain_of_neighbours_is_the_share_of_the_loss_alone_that_they_save():
    rows = [row(0, 0.3, 0.4), row(200, 0.1, 0.1), row(800, 0.5, 1.0)]
    assert neighbours_gain(rows, 0, 400) == pytest.approx(0.2)
    assert neighbours_gain(rows) == pytest.approx(0.4)
    assert neighbours_gain([row(0, 0.3, 0.0)]) is None
