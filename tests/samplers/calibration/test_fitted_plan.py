"""Fitted plans: what least squares and refinement reach."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from fewstep.samplers import grids, make_plan, run
from fewstep.samplers.calibration.fitted_plan import FitSettings, fit, settings_from
from fewstep.samplers.calibration.joint import Joint, slopes_cost, trace
from fewstep.samplers.calibration.samples import Samples
from fewstep.samplers.calibration.stagewise import fit_plan, solve_weights, teacher_grid
from fewstep.samplers.calibration.tableau import Tableau
from fewstep.samplers.calibration.unrolled import Unrolled, uncorrelated
from fewstep.samplers.solvers.fitted import fitted_grid
from fits import FRAMES, JOINT, MODEL, QUICK, B, grid_of, mixture_fit, starts


def test_least_squares_reach_the_teacher_on_a_linear_denoiser():
    """Gaussian data: D is linear in x, so two outputs span the next state and order 2 is exact."""
    frame = FRAMES["edm"]
    grid = grids.karras(frame, 5, end="stop", t_T=14.6, t_0=0.03)
    spread, x = 0.5, starts(grid, 4)
    states = torch.stack([x * float(((s**2 + spread**2) / (grid.sigma[0] ** 2 + spread**2)) ** 0.5) for s in grid.sigma])

    def denoiser(y, sigma):
        return y * (spread**2 / (spread**2 + sigma.reshape(-1, 1, 1, 1) ** 2))

    fitted, report = fit_plan(denoiser, states, grid, order=2, ridge=0.0, constrained=False)
    torch.testing.assert_close(run(fitted.plan(), denoiser, x), states[-1], rtol=1e-6, atol=1e-6)
    assert max(report["after"]) < 1e-12 < min(report["before"])


@pytest.mark.parametrize("steps", [4, 5, 8])
@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_least_squares_beat_2m_on_other_seeds(steps, guidance):
    frame, exact = FRAMES["edm"], 400
    grid = grids.karras(frame, steps, end="stop", t_T=14.6, t_0=0.03)
    denoiser = MODEL.denoiser(frame, guidance)
    fine, marks = teacher_grid(grid, exact)
    fine_plan = make_plan("dpm_solver_multistep", frame, fine)
    x, seen = starts(grid, 16, 5), []
    run(fine_plan, denoiser, x, callback=lambda p: seen.append(p.x.clone()))
    states = torch.stack([x, *(seen[m - 1] for m in marks[1:])])
    fitted, _ = fit_plan(denoiser, states, grid)
    other = starts(grid, 32, 6)
    target = run(fine_plan, denoiser, other)
    errors = [float((run(plan, denoiser, other) - target).square().flatten(1).mean(1).median())
              for plan in (fitted.plan(), make_plan("dpm_solver_multistep", frame, grid))]
    assert errors[0] < 0.7 * errors[1]


def test_constrained_weights_keep_a_constant_and_vanishing_outputs_keep_2m():
    grid = grids.karras(FRAMES["edm"], 4, end="zero", t_T=14.6, t_0=0.03)
    states = torch.randn(5, 4, 4, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    fitted, _ = fit_plan(lambda y, s: torch.ones_like(y), states, grid)  # every output equal: nothing to learn from
    plain = make_plan("dpm_solver_multistep", grid.frame, grid, lower_order_final=False)
    for own, row in zip(fitted.plan().stages, plain.stages, strict=True):
        assert dict(own.carry.m) == pytest.approx(dict(row.carry.m), abs=1e-12)
    learned, _ = fit_plan(MODEL.denoiser(grid.frame), states, grid)
    assert not learned.plan().biased and learned.plan().nfe == 4
    prior = torch.tensor([0.3, 0.4], dtype=torch.float64)
    assert torch.equal(solve_weights(torch.zeros(3, 3, dtype=torch.float64), prior, 0.1), prior)


def errors_of(made, guidance=3.0, steps=5):
    """(the fitted plan's error, DPM-Solver++ 2M's) on noise that no fit has seen."""
    frame, denoiser = FRAMES["edm"], MODEL.denoiser(FRAMES["edm"], guidance)
    grid = grids.karras(frame, steps, end="zero", t_T=14.6, t_0=0.03)
    x = starts(grid, 24, seed=9)
    fine = grids.uniform_lambda(frame, 300, end="zero", t_T=14.6, t_0=0.002)
    target = run(make_plan("dpm_solver_multistep", frame, fine), denoiser, x)
    plans = make_plan("fitted_plan", frame, fitted_grid(made, frame), calibration=made), make_plan("dpm_solver_multistep", frame, grid)
    return [float((run(plan, denoiser, x) - target).square().mean()) for plan in plans]


def test_joint_least_squares_gain_where_the_stagewise_stop_without_gradients():
    inner = MODEL.denoiser(FRAMES["edm"], 3.0)

    def no_gradients(x, sigma):
        assert not x.requires_grad
        return inner(x, sigma)

    grid = grids.karras(FRAMES["edm"], 5, end="zero", t_T=14.6, t_0=0.03)
    made = fit(no_gradients, grid, starts(grid, 5 * B), batch=B, held_out=2 * B, settings=JOINT)
    gain = made.meta["gain"]
    assert gain["calibrated"]["mean"] < 0.5 * min(gain["stagewise"]["mean"], gain["plain"]["mean"])
    np.testing.assert_allclose(made.meta["sigmas"], grid.sigma, rtol=1e-14)
    fitted, plain = errors_of(made)
    assert fitted < 0.1 * plain


def test_joint_least_squares_find_a_linear_models_solution():
    """Gaussian data: D is linear in x, so some plan of 3 steps is exact for all starts: quadratic convergence to it."""
    frame = FRAMES["edm"]
    grid = grids.karras(frame, 3, end="stop", t_T=14.6, t_0=0.03)
    spread, x = 0.5, starts(grid, 3 * B)
    settings = FitSettings(order=0, teacher_steps=400, joint=Joint(rounds=8, parts=1))
    made = fit(lambda y, s: y * (spread**2 / (spread**2 + s.reshape(-1, 1, 1, 1) ** 2)), grid, x, batch=B, held_out=B, settings=settings)
    assert made.meta["gain"]["plain"]["mean"] > 1e-4 and made.meta["gain"]["calibrated"]["mean"] < 1e-12


def test_a_run_with_one_number_changed_is_that_run_and_evaluates_only_what_changes():
    grid = grid_of("flow", 4)
    start = Tableau.from_plan(make_plan("unipc", grid.frame, grid), grid.frame)
    calls, inner = [], MODEL.denoiser(grid.frame, 2.0)

    def denoiser(x, sigma):
        calls.append(1)
        return inner(x, sigma)

    samples, x = Samples(denoiser, 3, 3), starts(grid, 3)
    outputs = torch.randn(4, 50, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    unrolled = Unrolled(start, uncorrelated(outputs, start.gain, consistent=False), times=False)
    count = sum(unrolled.sizes)
    theta = 0.05 * torch.randn(count, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    unrolled.project(theta)
    base = trace(samples, x, unrolled.numbers(theta))
    calls.clear()
    for i in torch.nonzero(unrolled.moving).flatten().tolist():
        other = theta.clone()
        other[i] -= 1e-3
        numbers, before = unrolled.numbers(other), len(calls)
        end = trace(samples, x, numbers, base).states[-1]
        assert len(calls) - before <= 4
        torch.testing.assert_close(end, run(unrolled.tableau(other).plan(), inner, x), rtol=0, atol=1e-12)
        assert not torch.equal(end, base.states[-1])
    told = 4 + 3 + 2 + 1  # evaluations after a change of each told level; a slope takes them from two sides
    assert len(calls) + told == slopes_cost(4)


def test_refinement_gains_where_least_squares_stop_and_says_by_how_much():
    made = mixture_fit(replace(QUICK, refinement=replace(QUICK.refinement, iterations=60)))
    gain = made.meta["gain"]
    assert gain["calibrated"]["mean"] < 0.6 * min(gain["stagewise"]["mean"], gain["plain"]["mean"])
    fitted, plain = errors_of(made)
    assert fitted < 0.2 * plain
    assert settings_from(made.meta["settings"]) == replace(QUICK, refinement=replace(QUICK.refinement, iterations=60))
