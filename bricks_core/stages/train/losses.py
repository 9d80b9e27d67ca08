"""What every step has come to, and the rows that a run wants of it.

A state keeps the losses of all steps before it, one by one, so that any interval of logging can be had of them later.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bricks_core.spec.train import BucketLossRow, StepRow, TrainSpec


class Losses(NamedTuple):
    """Of some steps that follow each other in one phase."""

    sums: Tensor
    """(steps, buckets, 4) float64: loss, mse and vb summed over samples, and the number of samples."""
    gradient_norm: Tensor
    """(steps,) float64, before it was clipped."""


class History:
    """The losses of every step of a training so far."""

    def __init__(self) -> None:
        self._phases: list[list[Losses]] = []

    def add(self, phase: int, losses: Losses) -> None:
        """Take in what follows. `phase`: its number, from 0."""
        while len(self._phases) <= phase:
            self._phases.append([])
        self._phases[phase].append(losses)

    def save(self, file: Path) -> None:
        tensors = {"num_phases": torch.tensor(len(self._phases))}
        for phase, kept in enumerate(self._phases):
            if kept:
                whole = joined(kept)
                self._phases[phase] = [whole]
                tensors |= {
                    f"sums.{phase}": whole.sums.contiguous(),
                    f"gradient_norm.{phase}": whole.gradient_norm.contiguous(),
                }
        save_file(tensors, file, metadata={"format": "pt"})

    @classmethod
    def load(cls, file: Path) -> History:
        tensors, made = load_file(file), cls()
        for phase in range(int(tensors["num_phases"])):
            if f"sums.{phase}" in tensors:
                made.add(phase, Losses(tensors[f"sums.{phase}"], tensors[f"gradient_norm.{phase}"]))
        return made

    def rows(self, spec: TrainSpec) -> Iterator[tuple[StepRow, list[BucketLossRow]]]:
        """What is logged: the first step, every `log_every_steps`, and the last of every phase, with all before it."""
        begin = 0
        for phase, kept in enumerate(self._phases):
            if not kept:
                continue
            whole, first = joined(kept), 0
            for place in range(len(whole.sums)):
                if is_logged(spec, phase, begin + place, place):
                    yield logged(spec, phase, begin + place, place, _part(whole, first, place + 1))
                    first = place + 1
            begin += len(whole.sums)

    def last(self, spec: TrainSpec, phase: int, step: int, step_in_phase: int) -> list[Losses]:
        """Those up to a step that no row tells of yet: those that the next row begins with."""
        num = 0
        while num <= step_in_phase and not is_logged(spec, phase, step - num, step_in_phase - num):
            num += 1
        end = step_in_phase + 1
        return [_part(joined(self._phases[phase]), end - num, end)] if num else []


def is_logged(spec: TrainSpec, phase: int, step: int, step_in_phase: int) -> bool:
    """Whether a row tells of a step. Both count from 0."""
    is_last = step_in_phase == spec.phases[phase].steps - 1
    return step == 0 or (step + 1) % spec.log_every_steps == 0 or is_last


def logged(
    spec: TrainSpec, phase: int, step: int, step_in_phase: int, since: Losses
) -> tuple[StepRow, list[BucketLossRow]]:
    """A step's rows, with the losses since the row before."""
    of_phase = spec.phases[phase]
    by_bucket = _in_order(since.sums)
    loss, mse, vb, count = _in_order(by_bucket).tolist()
    row = StepRow(
        id=f"{step:08d}",
        step=step,
        phase=of_phase.name,
        loss=loss / count,
        mse=mse / count,
        vb=vb / count,
        learning_rate=of_phase.schedule.rate(step_in_phase),
        gradient_norm=float(since.gradient_norm[-1]),
        num_samples=round(count),
    )
    named = sorted(zip([bucket.name for bucket in of_phase.buckets], by_bucket.tolist(), strict=True))
    return row, [
        BucketLossRow(id=f"{step:08d}/{bucket}", step=step, bucket=bucket, loss=sums[0] / sums[3])
        for bucket, sums in named
    ]


def _in_order(numbers: Tensor) -> Tensor:
    """The sum over the first dimension, one after the other, so that it is the same however many there are at once."""
    return numbers.cumsum(0)[-1]


def joined(some: list[Losses]) -> Losses:
    """One after the other."""
    return Losses(torch.cat([each.sums for each in some]), torch.cat([each.gradient_norm for each in some]))


def _part(losses: Losses, begin: int, end: int) -> Losses:
    return Losses(losses.sums[begin:end], losses.gradient_norm[begin:end])
