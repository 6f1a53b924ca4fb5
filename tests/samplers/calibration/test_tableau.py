"""Plans as tables of numbers: what they represent exactly, and their gradients."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from fewstep.samplers import grids, make_plan, run
from fewstep.samplers.calibration.stagewise import teacher_grid
from fewstep.samplers.calibration.tableau import Tableau
from fewstep.samplers.calibration.unrolled import Unrolled, uncorrelated
from fewstep.samplers.errors import PlanError
from fewstep.samplers.predictions import change_frame
from fits import FRAMES, MODEL, SOLVERS, grid_of, starts


@pytest.mark.parametrize("frame", ["unit", "vp", "flow"])
@pytest.mark.parametrize(("solver", "options"), SOLVERS, ids=str)
def test_every_deterministic_solver_is_a_tableau(frame, solver, options):
    grid = grid_of(frame, 6, "stop")
    plan, x = make_plan(solver, grid.frame, grid, **options), starts(grid, 2)
    denoiser = MODEL.denoiser(grid.frame, 3.0)
    expected, tableau = run(plan, denoiser, x), Tableau.from_plan(plan, grid.frame)
    torch.testing.assert_close(run(tableau.plan(), denoiser, x), expected, rtol=0, atol=1e-11)
    for other in ("unit", "vp", "flow"):
        moved = tableau.in_frame(FRAMES[other])
        there = change_frame(x, grid.frame, FRAMES[other], grid.lambda_[0])
        end = run(moved.plan(), MODEL.denoiser(FRAMES[other], 3.0), there)
        torch.testing.assert_close(change_frame(end, FRAMES[other], grid.frame, grid.lambda_[-1]), expected, rtol=0, atol=1e-10)


def test_told_levels_and_scales_survive_a_change_of_frame():
    grid = grid_of("unit", 4)
    base = Tableau.from_plan(make_plan("dpm_solver_multistep", grid.frame, grid), grid.frame)
    odd = replace(base, told=base.told * np.array([0.6, 1.1, 0.9, 1.0]), scale=np.array([0.7, 1.05, 1.0, 0.9]))
    x = starts(grid, 2)
    expected = run(odd.plan(), MODEL.denoiser(grid.frame), x)
    for other in ("vp", "flow"):
        there = change_frame(x, grid.frame, FRAMES[other], grid.lambda_[0])
        got = run(odd.in_frame(FRAMES[other]).plan(), MODEL.denoiser(FRAMES[other]), there)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize(("make", "words"), [
    (lambda g: make_plan("ddim", g.frame, g, eta=1.0), "adds noise"),
    (lambda g: make_plan("dpm_solver_multistep", g.frame, g, thresholding=True), "acts on the data"),
    (lambda g: make_plan("dpm_solver_adaptive", g.frame, g), "chooses its steps"),
    (lambda g: make_plan("deis_rk", g.frame, g, tableau="2heun"), "falling noise levels"),
])
def test_what_is_no_tableau_is_refused(make, words):
    grid = grid_of("unit", 4, "stop")
    with pytest.raises(PlanError, match=words):
        Tableau.from_plan(make(grid), grid.frame)


def test_the_teachers_grid_contains_the_nodes_and_starts_at_pure_noise():
    for name, grid in {"edm": grid_of("edm", 5), "stop": grid_of("unit", 5, "stop"), "flow": grids.uniform_t(FRAMES["flow"], 5, end="zero", t_0=0.2)}.items():
        fine, marks = teacher_grid(grid, 60)
        np.testing.assert_array_equal(fine.sigma[[0, *marks[1:]]], grid.sigma, name)
        assert 55 <= fine.steps <= 70


@pytest.mark.parametrize("frame", ["unit", "vp", "flow"])
@pytest.mark.parametrize("end", ["zero", "stop"])
def test_the_unrolled_plan_is_the_plan_and_its_gradients_are_right(frame, end):
    grid = grid_of(frame, 4, end)
    start = Tableau.from_plan(make_plan("unipc", grid.frame, grid), grid.frame)
    denoiser, x = MODEL.denoiser(grid.frame, 2.0), starts(grid, 3)
    outputs = torch.randn(4, 50, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for consistent in (False, True):
        unrolled = Unrolled(start, uncorrelated(outputs, start.gain, consistent=consistent), state=not consistent)
        count = sum(unrolled.sizes)
        torch.testing.assert_close(unrolled.run(denoiser, x, torch.zeros(count)), run(start.plan(), denoiser, x), rtol=0, atol=1e-11)
        theta = (0.05 * torch.randn(count, generator=torch.Generator().manual_seed(2), dtype=torch.float64)).requires_grad_()
        plan = unrolled.tableau(theta).plan()
        torch.testing.assert_close(unrolled.run(denoiser, x, theta).detach(), run(plan, denoiser, x), rtol=0, atol=1e-10)
        assert plan.biased != consistent
        loss = unrolled.run(denoiser, x, theta).square().sum()
        (gradient,) = torch.autograd.grad(loss, theta)

        def value(vector, unrolled=unrolled):
            return run(unrolled.tableau(vector).plan(), denoiser, x).square().sum()

        step = 1e-5
        slopes = torch.stack([(value(theta.detach() + step * e) - value(theta.detach() - step * e)) / (2 * step) for e in torch.eye(count)])
        # the slope in a told level is a difference over 5 percent of it
        assert (gradient - slopes).norm() < 0.05 * slopes.norm()
        assert torch.cosine_similarity(gradient, slopes, dim=0) > 0.999


def test_told_levels_beyond_the_models_come_back_to_where_they_have_a_gradient():
    grid = grid_of("flow", 4, "stop")
    start = Tableau.from_plan(make_plan("dpm_solver_multistep", grid.frame, grid), grid.frame)
    bases = uncorrelated(torch.randn(4, 50, generator=torch.Generator().manual_seed(1), dtype=torch.float64), start.gain, consistent=False)
    unrolled = Unrolled(start, bases)
    theta = torch.zeros(sum(unrolled.sizes), dtype=torch.float64)
    theta[4:8] = torch.tensor([2.0, -0.1, 9.0, -30.0], dtype=torch.float64)
    unrolled.project(theta)
    top, low = float(grid.sigma[0]), float(grid.frame.sigma(grid.frame.time.t_0))
    told = unrolled.tableau(theta).told
    np.testing.assert_allclose(told, [top, float(start.told[1]) * np.exp(-0.1), top, low], rtol=1e-8)
    assert np.all(told <= top) and theta[5] == -0.1 and not theta[:4].any() and not theta[8:].any()
    theta.requires_grad_()
    (gradient,) = torch.autograd.grad(unrolled.numbers(theta).told.sum(), theta)
    assert bool((gradient[4:8] > 0).all())
