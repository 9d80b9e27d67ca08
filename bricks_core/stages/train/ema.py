"""The moving average of the weights: smoother than the last step's, and what is usually shown.

The reference's decay of 0.9999 was still two thirds base model after its 4,000 steps. Here the horizon grows with the
run: at any step, the average looks back over the same share of the steps done so far, so it is never the beginning's
weights, and at the end its horizon is that share of the whole run. This is the power-function EMA of arXiv:2312.02696
section 3.1, eq. 2 and 3: decay (1 - 1/t)^(1/share) at step t, which is 0 at the first.

Our own lines instead of torch.optim.swa_utils: its AveragedModel counts its updates on the device and asks for the
count at every step, which makes a GPU wait; and the count would be kept beside the step that says the same.
"""

from __future__ import annotations

import copy

import torch
from torch import nn


def decay_at(num_updates: int, horizon_share: float) -> float:
    """The share of the average that is kept in update `num_updates` (the first is 1)."""
    return float((1.0 - 1.0 / num_updates) ** (1.0 / horizon_share))


class EMA:
    """A copy of a network whose trained weights are averages over the steps. Buffers stay as they are."""

    def __init__(self, model: nn.Module, horizon_share: float):
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self._horizon_share = horizon_share
        self._names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]

    @torch.no_grad()
    def update(self, model: nn.Module, num_updates: int) -> None:
        """Take in the weights that step number `num_updates` (the first is 1) has left."""
        averages, weights = dict(self.model.named_parameters()), dict(model.named_parameters())
        torch._foreach_lerp_(
            [averages[name] for name in self._names],
            [weights[name].detach() for name in self._names],
            1.0 - decay_at(num_updates, self._horizon_share),
        )
