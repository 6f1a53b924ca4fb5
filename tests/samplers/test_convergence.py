"""Errors against the exact ODE solution (scipy, 1e-12) fall with each method's order; frames do not matter."""

import math

import numpy as np
import pytest
import torch
from fewstep.samplers import Recipe, frames, grids, make_plan, run
from fewstep.samplers.analytic import GaussianMixture, start_noise
from fewstep.samplers.correctors.unic import unic
from scipy.integrate import solve_ivp

MODEL = GaussianMixture.make(0)
SHAPE = (1, 4, 3, 3)
LAM = (-1.2, 2.2)  # smooth enough at the step sizes used here for the slopes to show
AC = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
FRAMES = {"vp": frames.linear_vp(), "edm": frames.edm(), "flow": frames.flow()}


def start(frame):
    """A state on its way: the same one in every frame."""
    lam, unit = LAM[0], frames.edm()
    x = start_noise(3, SHAPE) * float(unit.sigma_of_lambda(lam)) + MODEL.mu[2].reshape(4, 1, 1)
    return x * float(frame.alpha_of_lambda(lam))


@pytest.fixture(scope="module")
def exact():
    """End states in the alpha = 1 frame for guidance 1 and 7.5: dv/dlambda = D - v."""
    solutions = {}
    for scale in (1.0, 7.5):
        denoiser = MODEL.denoiser(frames.edm(), scale)

        def slope(lam, v, denoiser=denoiser):
            x = torch.from_numpy(v).reshape(SHAPE)
            return (denoiser(x, torch.tensor([math.exp(-lam)], dtype=torch.float64)) - x).reshape(-1).numpy()

        solution = solve_ivp(slope, LAM, start(frames.edm()).reshape(-1).numpy(), method="DOP853", rtol=1e-12, atol=1e-12)
        solutions[scale] = torch.from_numpy(solution.y[:, -1]).reshape(SHAPE)
    return solutions


def grid_with_start_up(frame, steps):
    """Uniform in lambda after steps that double: a multistep method's low-order start leaves no error to speak of."""
    sizes = np.concatenate([2.0 ** np.arange(-24, 0), np.ones(steps)])
    lam = LAM[0] + (LAM[1] - LAM[0]) * np.concatenate([[0], np.cumsum(sizes) / sizes.sum()])
    lam[-1] = LAM[1]
    return grids.from_sigmas(frame, frame.sigma_of_lambda(lam))


METHODS = [  # (solver, options, published order of the body)
    ("ddim", {}, 1), ("dpm_solver_multistep", {"order": 2}, 2), ("dpm_solver_multistep", {"order": 2, "solver_type": "taylor"}, 2),
    ("dpm_solver_multistep", {"order": 3}, 2), ("dpm_solver_multistep", {"order": 3, "solver_type": "exact"}, 3),
    ("dpm_solver_multistep", {"order": 2, "prediction": "noise"}, 2),
    ("dpm_solver_singlestep", {"order": 2, "allocation": "fixed"}, 2), ("dpm_solver_singlestep", {"order": 3, "allocation": "fixed"}, 3),
    ("dpm_solver_singlestep", {"order": 3, "allocation": "fixed", "solver_type": "taylor", "prediction": "noise"}, 3),
    ("unipc", {"order": 1}, 2), ("unipc", {"order": 2}, 3), ("unipc", {"order": 3}, 4), ("unipc", {"order": 3, "prediction": "noise"}, 4),
    ("sa_solver", {"tau": 0.0}, 4), ("sa_solver", {"tau": 0.0, "predictor_order": 1, "corrector_order": 4}, 2),
    ("sa_solver", {"tau": 0.0, "predictor_order": 3, "corrector_order": 2}, 2),
    ("sa_solver", {"tau": 0.0, "predictor_order": 2, "corrector_order": 3, "simple_order_2": False}, 3),
    ("sa_solver", {"tau": 0.0, "predictor_order": 4, "corrector_order": 0}, 4),
    ("sa_solver", {"tau": 0.0, "predictor_order": 1, "corrector_order": 1}, 1),
    ("unipc", {"order": 2, "corrector": False, "variant": "bh1"}, 2), ("unipc", {"order": 3, "corrector": False}, 3),
    ("unipc", {"order": 2, "variant": "vary_coeff"}, 3), ("unipc", {"order": 2, "variant": "vary_coeff_official"}, 1),
    ("deis_ab", {"ab_order": 1, "basis": "rho"}, 2), ("deis_ab", {"ab_order": 2, "basis": "log_rho"}, 3),
    ("deis_ab", {"ab_order": 2, "basis": "linear_t"}, 3),
    ("deis_rk", {"tableau": "2heun"}, 2), ("deis_rk", {"tableau": "3kutta"}, 3), ("deis_rk", {"tableau": "4rk"}, 4),
]


@pytest.mark.parametrize("scale", [1.0, 7.5])
@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
@pytest.mark.parametrize(("name", "options", "order"), METHODS, ids=str)
def test_convergence_order(name, options, order, frame, scale, exact):
    alpha = float(frame.alpha_of_lambda(LAM[1]))
    steps = (96, 192) if order < 4 else (48, 96)
    errors = []
    for n in steps:
        body = {**options, **({"lower_order_final": False} if name in ("unipc", "sa_solver", "dpm_solver_multistep") else {})}
        plan = make_plan(name, frame, grid_with_start_up(frame, n), **body)
        errors.append(float((run(plan, MODEL.denoiser(frame, scale), start(frame)) / alpha - exact[scale]).norm()))
    slope = math.log2(errors[0] / errors[1])
    assert slope > order - 0.35, f"errors {errors}, slope {slope:.2f}"
    if name != "dpm_solver_multistep" or order == 2:
        assert slope < order + 0.75
    assert Recipe(name, options).resolve(frame, grid_with_start_up(frame, 24)).order == order


@pytest.mark.parametrize("scale", [1.0, 7.5])
@pytest.mark.parametrize(("name", "options"), [
    ("ddim", {}), ("dpm_solver_multistep", {"order": 3}), ("dpm_solver_multistep", {"order": 2, "prediction": "noise"}),
    ("dpm_solver_singlestep", {"order": 3}), ("unipc", {"order": 3}), ("unipc", {"order": 2, "prediction": "noise"}),
    ("deis_ab", {"basis": "log_rho"}), ("deis_ab", {"basis": "linear_t"}), ("deis_ab", {"basis": "rho", "ab_order": 3}),
    ("deis_rk", {}), ("ipndm", {}), ("gradient_estimation", {}),
    ("ddim", {"eta": 1.0}), ("dpm_solver_sde_multistep", {"order": 3}), ("dpm_solver_sde_singlestep", {}),
    ("sa_solver", {}), ("sa_solver", {"tau": 0.0}), ("sa_solver", {"tau": 1.4, "predictor_order": 2, "sde_start": 1e9, "sde_end": 0.0}),
], ids=str)
def test_the_same_plan_in_every_frame_gives_the_same_samples(name, options, scale):
    lam = np.append(np.linspace(-2.0, 3.0, 9), math.inf)
    results = []
    for frame in FRAMES.values():
        plan = make_plan(name, frame, frame.sigma_of_lambda(lam), **options)
        x = start_noise(1) * float(frame.sigma_of_lambda(lam[0]))
        results.append(run(plan, MODEL.denoiser(frame, scale), x, seed=0))
        assert plan.nodes[-1].alpha == 1.0
    for other in results[1:]:
        assert float((other - results[0]).abs().max()) < 1e-10 * float(results[0].abs().max())


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
def test_host_grids_converge_to_the_exact_end(frame, exact):
    """Every frame's own solution approaches the same exact one (here at sigma > 0), so lambda is right in each."""
    alpha = float(frame.alpha_of_lambda(LAM[1]))
    plan = make_plan("unipc", frame, grid_with_start_up(frame, 96), order=3, lower_order_final=False)
    result = run(plan, MODEL.denoiser(frame), start(frame)) / alpha
    assert float((result - exact[1.0]).abs().max()) < 3e-6


def test_tab_in_the_models_time_converges_on_a_discrete_schedule(exact):
    frame = frames.discrete_vp(AC).unit_alpha()
    errors = []
    for n in (48, 96):
        plan = make_plan("deis_ab", frame, grid_with_start_up(frame, n), ab_order=2, basis="t")
        errors.append(float((run(plan, MODEL.denoiser(frame), start(frame)) - exact[1.0]).norm()))
    assert errors[1] < 2e-4 and math.log2(errors[0] / errors[1]) > 2.5


def test_unic_raises_the_order_of_any_multistep_predictor(exact):
    frame = FRAMES["edm"]
    errors = {}
    for n in (96, 192):
        for name, options, order in (("dpm_solver_multistep", {"lower_order_final": False}, 2), ("ddim", {}, 1)):
            plan = make_plan(name, frame, grid_with_start_up(frame, n), **options)
            corrected = unic(plan, order=order, lower_order_final=False)
            assert corrected.nfe == plan.nfe
            errors[name, n] = float((run(corrected, MODEL.denoiser(frame), start(frame)) - exact[1.0]).norm())
    assert math.log2(errors["dpm_solver_multistep", 96] / errors["dpm_solver_multistep", 192]) > 2.6
    assert math.log2(errors["ddim", 96] / errors["ddim", 192]) > 1.65


def variance_of_the_result(plan, start):
    """Exact variance after a plan on unit Gaussian data, D = y/(1+sigma^2): the state as a vector over start and draws."""
    draws = sum(row.noise is not None for row in plan.rows())
    x, outputs, used = np.zeros(draws + 1), [], 0
    x[0] = start

    def apply(row, x):
        nonlocal used
        y = row.x * x + sum(c * outputs[j] for j, c in row.m.items())
        if row.noise is not None:
            used += 1
            y = y + row.noise.coefficient * np.eye(draws + 1)[used]
        return y

    for stage in plan.stages:
        y = apply(stage.predict, x)
        outputs.append(y / (1 + stage.node.sigma**2))
        x = apply(stage.carry, x)
    return float(np.sum(apply(plan.final, x) ** 2))


@pytest.mark.parametrize(("order", "weak_order"), [(1, 1), (2, 2), (3, 2)])
def test_sde_forms_approach_the_law_of_gaussian_data(order, weak_order):
    frame, errors = frames.edm(), []
    for steps in (80, 160):
        grid = grids.exponential(frame, steps, end="stop", t_T=20.0, t_0=0.1)
        plan = make_plan("dpm_solver_sde_multistep", frame, grid, order=order)
        errors.append(abs(variance_of_the_result(plan, math.sqrt(1 + 400)) - (1 + 0.01)))
    assert math.log2(errors[0] / errors[1]) > weak_order - 0.2 and errors[1] < 0.05


def test_the_sde_without_noise_is_the_ode_plan():
    frame = frames.edm()
    grid = grids.karras(frame, 40, end="zero", t_T=20.0, t_0=0.01)
    ode = make_plan("dpm_solver_sde_multistep", frame, grid, order=2, eta=0.0)
    two_m = make_plan("dpm_solver_multistep", frame, grid, lower_order_final=False)
    for a, b in zip(ode.stages, two_m.stages, strict=True):
        assert a.carry.x == pytest.approx(b.carry.x, abs=1e-15)
        assert dict(a.carry.m.items()) == pytest.approx(dict(b.carry.m), abs=1e-14)
    assert not ode.stochastic
