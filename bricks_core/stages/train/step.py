"""One step of training: noise in, loss, gradients of all micro-batches, one update of weights and EMA.

Numbers in brackets are sections of the specification, docs/stdit2.md.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from bricks_core.diffusion.batch import MicroBatch
from bricks_core.diffusion.families import family_of
from bricks_core.diffusion.loss import Losses as SampleLosses
from bricks_core.errors import DataError
from bricks_core.spec.train import TrainSpec
from bricks_core.stages.train.ema import EMA
from bricks_core.stages.train.losses import Losses
from bricks_core.stages.train.optimizer import make_optimizer, set_learning_rate
from bricks_core.stages.train.parallel import Processes


class Trainer:
    """A network being trained, with all that changes with it."""

    def __init__(self, spec: TrainSpec, model: ModelMixin, everyone: Processes):
        self.spec, self.everyone = spec, everyone
        self.model = model.to(everyone.device)
        if spec.activation_checkpointing:
            self.model.enable_gradient_checkpointing()
        self.ema = EMA(self.model, spec.ema_horizon_share)
        self.optimizer = make_optimizer(self.model, spec)
        self.num_steps_done = 0
        self.num_updates = 0
        """Of weights, moments and EMA: more than the steps done, where it goes on from another training."""
        self.gradient_norm = torch.zeros((), device=everyone.device)
        self._family = family_of(spec.model)
        self._wrapped = everyone.wrapped(self.model).train()
        self._sums = self._no_sums(1)
        self._done: list[tuple[Tensor, Tensor]] = []
        self._first_broken = torch.full((), -1, dtype=torch.int64, device=everyone.device)

    def step(self, micro_batches: Sequence[MicroBatch], total_weight: int, num_buckets: int, rate: float) -> None:
        """Learn from a step's samples, whose weights add up to `total_weight` over all processes.

        Every sample (or every frame, see TrainSpec.loss_weight) counts the same, whichever bucket, micro-batch or
        process it is in. The reference averaged the means of its processes, so that an image among 256 counted a
        sixty-fourth of a clip among 4.
        """
        self._sums = self._no_sums(num_buckets)
        set_learning_rate(self.optimizer, rate)
        self.optimizer.zero_grad()
        for place, cpu_batch in enumerate(micro_batches):
            batch = cpu_batch.to(self.everyone.device)
            with self._gradients_summed(place == len(micro_batches) - 1):
                losses = self._family.loss(self._wrapped, batch, self.spec.precision)
                # The gradients of processes are averaged, so each must be larger by their number.
                weight = self.spec.weight(int(batch.sizes["num_frames"][0]))
                (losses.loss.sum() * (weight * self.everyone.world_size / total_weight)).backward()
            self._count(batch, losses)
        parameters = [each for group in self.optimizer.param_groups for each in group["params"]]
        # Scaled by max / (norm + 1e-6) where that is below 1, as in the reference [17].
        self.gradient_norm = torch.nn.utils.clip_grad_norm_(parameters, self.spec.gradient_clip)
        self._watch()
        self.optimizer.step()
        self._done.append((self._sums, self.gradient_norm))
        self.num_steps_done += 1
        self.num_updates += 1
        self.ema.update(self.model, self.num_updates)

    def check_finite(self) -> None:
        """Raise DataError if a loss or gradient was not finite since the last check.

        Found in the step itself without making a GPU wait, asked for before anything is logged or written.
        """
        step = int(self._first_broken)
        if step >= 0:
            raise DataError(
                f"Training broke down at step {step}: its loss or gradient is not a finite number. The checkpoint "
                "before is whole, but the same settings will end here again: lower the learning rate or gradient_clip, "
                "or set precision to float32."
            )

    def losses(self) -> Losses | None:
        """Of the steps since this was last asked, over all processes; all must ask. None: there were none.

        The steps must have as many buckets, as those of one phase have.
        """
        if not self._done:
            return None
        sums, norms = (torch.stack(each) for each in zip(*self._done, strict=True))
        self._done = []
        return Losses(self.everyone.summed(sums).cpu(), norms.double().cpu())

    def _gradients_summed(self, now: bool) -> AbstractContextManager[None]:
        wrapped = self._wrapped
        if now or not isinstance(wrapped, torch.nn.parallel.DistributedDataParallel):
            return contextlib.nullcontext()
        waiting: AbstractContextManager[None] = wrapped.no_sync()
        return waiting

    def _count(self, batch: MicroBatch, losses: SampleLosses) -> None:
        # float64 holds sums of float32 losses without rounding, so the order of adding them up makes no difference.
        each = torch.stack([losses.loss, losses.mse, losses.vb, torch.ones_like(losses.loss)]).detach().double()
        self._sums[batch.bucket] += each.sum(dim=1)

    def _watch(self) -> None:
        broken = ~(torch.isfinite(self.gradient_norm) & torch.isfinite(self._sums).all())
        found = torch.where(broken, self.num_steps_done, -1)
        self._first_broken = torch.where(self._first_broken < 0, found, self._first_broken)

    def _no_sums(self, num_buckets: int) -> Tensor:
        return torch.zeros((num_buckets, 4), dtype=torch.float64, device=self.everyone.device)
