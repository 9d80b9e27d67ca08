"""How fast to learn at which step, and the optimizer that does.

Learning rates as in the reference's two fine-tunings; numbers in brackets are sections of the specification,
docs/stdit2.md.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from bricks_core.spec.train import Constant, CosineConstant, OneCycle, Schedule, TrainSpec


def learning_rate(schedule: Schedule, step: int) -> float:
    """The rate of the step before which `step` steps of the phase were done.  [18]"""
    match schedule:
        case Constant():
            return schedule.lr
        case CosineConstant():
            # Reaches lr in the last step of the warm-up, where OneCycle reaches max_lr in the first step after it.
            if step >= schedule.warmup_steps:
                return schedule.lr
            return _cosine(schedule.min_lr, schedule.lr, (step + 1) / schedule.warmup_steps)
        case OneCycle():
            if step < schedule.warmup_steps:
                return _cosine(schedule.min_lr, schedule.max_lr, step / schedule.warmup_steps)
            since = step - schedule.warmup_steps
            if since < schedule.cooldown_steps:
                return _cosine(schedule.max_lr, schedule.lr, since / schedule.cooldown_steps)
            return schedule.lr


def _cosine(begin: float, end: float, share: float) -> float:
    """From `begin` (share 0) to `end` (share 1) along half a wave."""
    return begin + (end - begin) * 0.5 * (1 - math.cos(math.pi * share))


def make_optimizer(model: nn.Module, spec: TrainSpec) -> torch.optim.AdamW:
    """AdamW (arXiv:1711.05101) over everything that trains. The rate of a step is set before it.  [17]

    Fused: one pass over the weights instead of a dozen, on CPU and GPU alike; tested against the golden trajectory.
    """
    return torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=0.0,
        betas=(spec.beta1, spec.beta2),
        eps=1e-8,
        weight_decay=spec.weight_decay,
        fused=True,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Use this rate from the next step on."""
    for group in optimizer.param_groups:
        group["lr"] = rate
