"""The tables of the diffusion process, against the reference's and against what they mean."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bricks_core.diffusion.noise_schedule import NoiseSchedule, base_betas, spaced_timesteps
from bricks_core.errors import SpecError
from tests.golden_vectors import every_case


@every_case("diffusion_tables", "timestep_map")
def test_every_table_is_the_reference_s(case, golden):
    tables = golden("diffusion_tables")[case]
    ours = NoiseSchedule.of(len(tables["timestep_map"]))
    assert tables.keys() == {"timestep_map"} | {field.name for field in fields(NoiseSchedule)} - {"timesteps"}
    assert torch.equal(ours.timesteps, tables.pop("timestep_map"))
    for name, table in tables.items():
        torch.testing.assert_close(getattr(ours, name), table, rtol=1e-5, atol=0)


def test_the_betas_of_all_steps_are_the_reference_s(golden):
    stored = golden("diffusion_tables")["base_betas_fp64"]["betas"]
    torch.testing.assert_close(torch.from_numpy(base_betas()), stored, rtol=1e-12, atol=0)


@given(st.integers(1, 1000))
def test_chosen_timesteps_rise_from_the_first_to_the_last(num_steps):
    steps = spaced_timesteps(num_steps)
    assert len(steps) == num_steps
    assert steps[0] == 0
    assert num_steps == 1 or steps[-1] == 999
    assert steps == sorted(set(steps))


@pytest.mark.parametrize("num_steps", [0, -1, 1001])
def test_a_number_of_steps_that_cannot_be_is_refused_with_what_can(num_steps):
    with pytest.raises(SpecError, match="from 1 to 1000"):
        NoiseSchedule.of(num_steps)


def test_fewer_steps_end_at_the_same_noise():
    ours, full = NoiseSchedule.of(30), NoiseSchedule.of()
    torch.testing.assert_close(ours.alphas_cumprod, full.alphas_cumprod[ours.timesteps], rtol=1e-4, atol=0)


def test_noise_can_be_taken_out_again():
    schedule = NoiseSchedule.of()
    x0, noise = torch.randn(3, 4, 2, 4, 4), torch.randn(3, 4, 2, 4, 4)
    step = torch.tensor([0, 300, 700])
    x = schedule.add_noise(x0, noise, step)
    torch.testing.assert_close(schedule.predicted_x0(x, step, noise), x0, rtol=1e-3, atol=1e-3)


def test_noised_latents_keep_unit_variance():
    schedule = NoiseSchedule.of()
    x0, noise = torch.randn(1, 4, 8, 64, 64), torch.randn(1, 4, 8, 64, 64)
    for step in (0, 250, 500, 999):
        assert schedule.add_noise(x0, noise, torch.tensor([step])).std().item() == pytest.approx(1, abs=0.02)


def test_clean_frames_get_the_noise_of_step_0_and_the_others_that_of_their_sample():
    schedule = NoiseSchedule.of()
    x0, noise = torch.randn(2, 4, 3, 4, 4), torch.randn(2, 4, 3, 4, 4)
    step = torch.tensor([999, 500])
    mask = torch.tensor([[True, False, True], [False, True, True]])
    mixed = schedule.add_noise(x0, noise, step, mask)
    noisy, clean = schedule.add_noise(x0, noise, step), schedule.add_noise(x0, noise, torch.zeros(2, dtype=torch.int64))
    for sample in range(2):
        for frame in range(3):
            expected = noisy if mask[sample, frame] else clean
            assert torch.equal(mixed[sample, :, frame], expected[sample, :, frame])


def test_the_variance_lies_between_its_two_bounds():
    schedule = NoiseSchedule.of()
    step = torch.tensor([10, 900])
    smallest = schedule.log_variance(torch.full((2, 4, 1, 1, 1), -1.0), step)[:, 0].flatten()
    largest = schedule.log_variance(torch.full((2, 4, 1, 1, 1), 1.0), step)[:, 0].flatten()
    torch.testing.assert_close(smallest, schedule.posterior_log_variance_clipped[step])
    torch.testing.assert_close(largest, schedule.log_betas[step])
    assert (smallest < largest).all()
