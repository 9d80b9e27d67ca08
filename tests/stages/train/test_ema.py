"""The moving average of the weights."""

from __future__ import annotations

import pytest
import torch

from bricks_core.models.stdit2 import STDiT2
from bricks_core.stages.train.ema import EMA, decay_at


@pytest.fixture
def model() -> STDiT2:
    return STDiT2(hidden_size=24, depth=1, num_heads=2, caption_channels=8, model_max_length=4)


def shares_of(num_steps: int, horizon_share: float) -> list[float]:
    """How much of the average is the weights of each step; the first is the beginning's."""
    shares = [1.0]
    for step in range(1, num_steps + 1):
        decay = decay_at(step, horizon_share)
        shares = [decay * share for share in shares] + [1 - decay]
    return shares


@pytest.mark.parametrize("num_steps", [1, 2, 10, 400])
def test_the_average_holds_nothing_of_the_base_model_however_short_the_run(num_steps):
    assert shares_of(num_steps, 0.1)[0] == 0


@pytest.mark.parametrize("num_steps", [100, 1000, 4000])
@pytest.mark.parametrize("share", [0.05, 0.1, 0.5])
def test_the_average_looks_back_over_its_share_of_the_run(num_steps, share):
    shares = shares_of(num_steps, share)
    assert sum(shares) == pytest.approx(1)
    mean_age = sum(weight * (num_steps - step) for step, weight in enumerate(shares))
    assert mean_age == pytest.approx(num_steps * share / (1 + share), rel=0.05, abs=1)


def test_with_the_whole_run_as_horizon_it_is_the_plain_mean_of_all_steps():
    assert shares_of(7, 1.0) == pytest.approx([0] + [1 / 7] * 7)


def test_trained_weights_are_averaged_and_the_model_itself_is_left_alone(model):
    ema = EMA(model, 1.0)
    with torch.no_grad():
        for value in (2.0, 4.0, 9.0):
            model.final_layer.linear.bias.fill_(value)
            ema.update(model, {2.0: 1, 4.0: 2, 9.0: 3}[value])
    assert ema.model.final_layer.linear.bias.tolist() == pytest.approx([5.0] * 32)
    assert model.final_layer.linear.bias.tolist() == [9.0] * 32


def test_frozen_weights_and_buffers_stay_as_they_were(model):
    ema = EMA(model, 0.1)
    before = ema.model.rope.freqs.clone(), ema.model.y_embedder.y_embedding.clone()
    with torch.no_grad():
        model.rope.freqs.add_(1)
        model.y_embedder.y_embedding.add_(1)
    ema.update(model, 1)
    assert torch.equal(ema.model.rope.freqs, before[0])
    assert torch.equal(ema.model.y_embedder.y_embedding, before[1])
    assert not any(parameter.requires_grad for parameter in ema.model.parameters())
