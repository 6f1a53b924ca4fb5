"""SA-Solver: its integrals, its one draw a step, where it adds noise, and UniPC as its limit. Peers' numbers: test_golden.py."""

import math

import numpy as np
import pytest
import torch
from fewstep.samplers import Recipe, frames, grids, make_plan, run
from fewstep.samplers.analytic import GaussianMixture, start_noise
from fewstep.samplers.facts import constant_run
from fewstep.samplers.solvers.sa_solver import adams_row
from scipy import integrate

EDM = frames.edm()
EVERYWHERE = {"sde_start": math.inf, "sde_end": 0.0}


@pytest.mark.parametrize("tau", [0.0, 0.6, 1.0, 3.0])
@pytest.mark.parametrize("ages", [(0,), (0, 1), (0, 1, 2), (0, 1, 2, 3), (-1,), (-1, 0), (-1, 0, 1), (-1, 0, 1, 2)])
def test_a_row_integrates_polynomials_against_the_exponential(ages, tau):
    """Equations 14 and 17 by quadrature: int (1 + tau^2) e^((1 + tau^2)(u - lambda_t)) u^k du, k below the number of outputs."""
    lam = np.array([-1.3, -0.9, -0.2, 0.1, 0.9])
    grid = grids.from_sigmas(frames.flow(), frames.flow().sigma_of_lambda(lam))
    outputs = [3 - age for age in ages]
    row = adams_row(grid, 3, outputs, tau, 1.0, False)
    factor = 1 + tau * tau
    for k in range(len(ages)):
        exact, _ = integrate.quad(lambda u, k=k: factor * math.exp(factor * (u - lam[4])) * u**k, lam[3], lam[4], epsabs=1e-13)
        got = sum(c * lam[j] ** k for j, c in row.m.items()) / grid.node(4).alpha
        assert got == pytest.approx(exact, abs=1e-12)
    h = lam[4] - lam[3]
    assert row.x == pytest.approx(grid.sigma[4] / grid.sigma[3] * math.exp(-tau * tau * h), rel=1e-14)
    noise = 0.0 if row.noise is None else row.noise.coefficient
    assert noise**2 == pytest.approx(grid.sigma[4] ** 2 * (1 - math.exp(-2 * tau * tau * h)), rel=1e-13)


@pytest.mark.parametrize("h", [1e-8, 1e-5, 1e-2])
def test_tiny_steps_have_the_weights_of_plain_adams_methods(h):
    """(1 + tau^2) h times Adams-Bashforth's and Adams-Moulton's weights, to the order of h^2."""
    grid = grids.from_sigmas(EDM, EDM.sigma_of_lambda(-0.5 + h * np.arange(6)))
    for outputs, weights in (([4, 3, 2, 1], (55, -59, 37, -9)), ([5, 4, 3, 2], (9, 19, -5, 1))):
        row = adams_row(grid, 4, outputs, 1.0, 1.0, False)
        for j, w in zip(outputs, weights, strict=True):
            assert row.m[j] == pytest.approx(2 * h * w / 24, abs=30 * h * h + 1e-14)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_without_noise_it_is_unipc_bh1(order):
    """On a grid that stops; into sigma 0 UniPC counts the last step among those of lower order and this one does not."""
    grid = grids.karras(EDM, 8, end="stop", t_T=14.6, t_0=0.03)
    ours = make_plan("sa_solver", EDM, grid, predictor_order=order, corrector_order=order + 1, tau=0.0)
    theirs = make_plan("unipc", EDM, grid, order=order, variant="bh1")
    for a, b in zip(ours.stages, theirs.stages, strict=True):
        for one, other in ((a.predict, b.predict), (a.carry, b.carry)):
            assert one.x == other.x and dict(one.m) == pytest.approx(dict(other.m), abs=1e-12)
    assert not ours.stochastic and dict(ours.final.m) == pytest.approx(dict(theirs.final.m), abs=1e-12)


def test_a_corrector_adds_its_predictors_noise():
    """The plan of one row a step does what the algorithm says: predict, evaluate, correct from the same state with the same draw."""
    grid = grids.karras(EDM, 6, end="stop", t_T=14.6, t_0=0.1)
    options = {"predictor_order": 2, "corrector_order": 3, "tau": 0.8, "lower_order_final": False}
    plan = make_plan("sa_solver", EDM, grid, **options, **EVERYWHERE)
    denoiser, draws = GaussianMixture.make(0).denoiser(EDM), [start_noise(7 + k) for k in range(6)]
    x = y = start_noise(1) * grid.sigma[0]
    outputs = []

    def step(i, used, x):
        row = adams_row(grid, i, used, 0.8, 1.0, True)
        return row.x * x + sum(c * outputs[j] for j, c in row.m.items()) + row.noise.coefficient * draws[i]

    for i in range(6):
        outputs.append(denoiser(y, torch.tensor([grid.sigma[i]])))
        if i:
            x = step(i - 1, [i, i - 1, i - 2][: i + 1], x)
        y = step(i, [i, i - 1][: i + 1], x)
    result = run(plan, denoiser, start_noise(1) * grid.sigma[0], noise=draws)
    torch.testing.assert_close(result, y, rtol=0, atol=1e-12)
    assert all(s.predict.is_identity for s in plan.stages) and len(plan.noise_terms) == 6


def test_noise_is_added_in_the_steps_that_end_inside_the_interval():
    sigmas = [14.0, 6.0, 4.0, 2.0, 0.8, 0.2, 0.0]
    for frame in (EDM, frames.flow(), frames.linear_vp()):
        grid = grids.from_sigmas(frame, frame.sigma_of_lambda(np.append(-np.log(sigmas[:-1]), math.inf)))
        for start, end, wanted in ((5.0, 0.5, [1, 2, 3]), (math.inf, 0.0, [0, 1, 2, 3, 4]), (0.15, 0.1, []), (5.0, 3.0, [1])):
            plan = make_plan("sa_solver", frame, grid, sde_start=start, sde_end=end)
            assert [i for i, s in enumerate(plan.stages) if s.carry.noise is not None] == wanted
            assert plan.stochastic == bool(wanted) and not plan.biased
            assert plan.order is None or not wanted


def test_from_pure_noise_the_old_noise_is_replaced():
    plan = make_plan("sa_solver", frames.flow(), [1.0, 0.7, 0.4, 0.0], sde_start=10.0)
    row = plan.stages[0].carry
    assert row.x == 0 and dict(row.m) == {0: pytest.approx(0.3)} and row.noise.coefficient == 0.7
    assert not plan.biased


@pytest.mark.parametrize(("orders", "weak_order"), [((1, 0), 1), ((2, 0), 2), ((1, 2), 2), ((3, 4), 2)])
def test_it_approaches_the_law_of_gaussian_data(orders, weak_order):
    """Exact variance after a plan on unit Gaussian data: every state is a vector over the start and the draws."""
    errors = []
    for steps in (80, 160):
        grid = grids.exponential(EDM, steps, end="stop", t_T=20.0, t_0=0.1)
        plan = make_plan("sa_solver", EDM, grid, predictor_order=orders[0], corrector_order=orders[1], lower_order_final=False, **EVERYWHERE)
        x, outputs = np.zeros(steps + 1), []
        x[0] = math.sqrt(1 + 400)
        for k, stage in enumerate(plan.stages):
            outputs.append(x / (1 + stage.node.sigma**2))
            row = stage.carry
            x = row.x * x + sum(c * outputs[j] for j, c in row.m.items())
            x[k + 1] += row.noise.coefficient
        errors.append(abs(float(np.sum(x**2)) - 1.01))
    assert math.log2(errors[0] / errors[1]) > weak_order - 0.2 and errors[1] < 0.05


def test_s_noise_scales_what_is_added():
    grid = grids.karras(EDM, 5, end="stop", t_T=14.6, t_0=0.5)
    plain, louder = (make_plan("sa_solver", EDM, grid, s_noise=s) for s in (1.0, 1.1))
    for a, b in zip(plain.noise_terms, louder.noise_terms, strict=True):
        assert b.coefficient == pytest.approx(1.1 * a.coefficient) and (a.start, a.stop) == (b.start, b.stop)
    assert louder.biased and not plain.biased
    silent = make_plan("sa_solver", EDM, grid, s_noise=0.0)
    assert not silent.stochastic and silent.biased
    assert constant_run(silent)["x_0"] == pytest.approx(1.0)


def test_a_recipe_keeps_an_open_interval():
    recipe = Recipe("sa_solver", {"sde_start": math.inf, "tau": 0.5})
    assert Recipe.from_json(recipe.to_json()) == recipe
