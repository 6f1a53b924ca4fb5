"""Error estimates while sampling, against the run's own states, quadrature, and errors that are known exactly."""

import math

import numpy as np
import pytest
import torch
from fewstep.samplers import Recipe, frames, grids, make_plan, run, solver_names
from fewstep.samplers.analytic import GaussianMixture, start_noise
from fewstep.samplers.calibration.statistics import Statistics
from fewstep.samplers.estimates import POINTS, Estimates
from host_reads import HostReads
from scipy.integrate import quad
from scipy.interpolate import lagrange

MODEL = GaussianMixture.make(0)
FRAMES = {"vp": frames.linear_vp(), "edm": frames.edm(), "flow": frames.flow()}
STEPS = 6


def grid_of(frame, steps=STEPS):
    lam = np.linspace(-1.5, 2.5, steps + 1) ** 3 / 6  # uneven, so that the polynomials matter
    return grids.from_sigmas(frame, frame.sigma_of_lambda(lam))


def size(node):
    return math.hypot(node.alpha, node.sigma)


def rms(x):
    return float(x.square().mean().sqrt())


def watched(plan, frame, x=None, **more):
    """(estimates, states given to the denoiser, what it gave, states after each stage)."""
    given, gave, after, estimates = [], [], [], Estimates(plan)
    denoiser = MODEL.denoiser(frame)

    def noting(y, sigma):
        given.append(y.clone())
        gave.append(denoiser(y, sigma))
        return gave[-1]

    x = start_noise(3) * size(plan.nodes[0]) if x is None else x
    run(plan, noting, x, hooks=[estimates], callback=lambda p: after.append(p.x.clone()), **more)
    return estimates.all(), given, gave, after


def per_channel(points=60):
    lam = np.linspace(-3, 4, points + 1)
    t, r = torch.from_numpy(lam).reshape(-1, 1, 1, 1), torch.linspace(0.1, 0.9, 4, dtype=torch.float64).reshape(4, 1, 1)
    return Statistics(lam, torch.sigmoid(-t) * (0.7 + 0.3 * r), 0.4 * r * torch.cos(t + r), 0.3 * r * torch.sin(2 * t))


@pytest.mark.parametrize("recipe", [
    Recipe("unipc"), Recipe("unipc", {"order": 3, "prediction": "noise", "variant": "vary_coeff"}),
    Recipe("dpm_solver_multistep", {"order": 3}).corrected("unic", order=2), Recipe("dpm_solver_v3"),
    Recipe("unipc").corrected("dualfast"), Recipe("unipc").corrected("dynamic_compensation", ratios=(1.0, 1.0, 0.9, 0.8, 1.1, 1.2)),
    Recipe("dpm_solver_v3", {"statistics": per_channel(), "order": 3}),
], ids=lambda r: f"{r.solver}-{len(r.options)}-{len(r.correctors)}")
@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
def test_a_corrected_step_is_compared_with_the_predicted_state(recipe, frame):
    plan = recipe.resolve(frame, grid_of(frame))
    estimates, given, _, after = watched(plan, frame)
    first = 1 if recipe.solver == "dpm_solver_v3" else 0  # its corrector cannot act on the first step: order 1 as the predictor
    for step in range(first, STEPS - 1):
        expected = rms(after[step + 1] - given[step + 1]) / size(plan.nodes[step + 1])
        assert estimates[step] == pytest.approx(expected, rel=1e-6, abs=1e-12)


def integrated(grid, step, prediction, outputs, values):
    """The exact step of the polynomial through ``values`` at the nodes ``outputs``, less its linear part."""
    lam, source, target = grid.lambda_, grid.node(step), grid.node(step + 1)
    weights = []
    for k in range(len(outputs)):
        basis = lagrange([lam[j] for j in outputs], np.eye(len(outputs))[k])
        sign = 1 if prediction == "data" else -1
        weights.append(quad(lambda u: math.exp(sign * u) * basis(u), source.lambda_, target.lambda_, epsabs=1e-13)[0])  # noqa: B023
    gain = target.sigma if prediction == "data" else -target.alpha
    return sum(gain * w * v for w, v in zip(weights, values, strict=True))


@pytest.mark.parametrize(("solver", "options", "order"), [
    ("dpm_solver_multistep", {"order": 2, "solver_type": "exact"}, 2), ("dpm_solver_multistep", {"order": 3, "solver_type": "exact"}, 3),
    ("dpm_solver_multistep", {"order": 3, "solver_type": "exact", "prediction": "noise"}, 3), ("ddim", {}, 1),
    ("unipc", {"order": 3, "corrector": False, "variant": "vary_coeff"}, 3),
], ids=str)
@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
def test_other_steps_are_compared_with_the_next_lower_order_and_ddim_with_the_next_higher(solver, options, order, frame):
    grid = grid_of(frame)
    plan = make_plan(solver, frame, grid, lower_order_final=False, **options) if order > 1 else make_plan(solver, frame, grid)
    estimates, given, gave, _ = watched(plan, frame)
    assert sorted(estimates) == list(range(1, STEPS))
    prediction = options.get("prediction", "data")
    nodes = [grid.node(i) for i in range(STEPS)]
    outputs = [d if prediction == "data" else (x - n.alpha * d) / n.sigma for x, d, n in zip(given, gave, nodes, strict=True)]
    for step in range(1, STEPS):
        order_here = min(order, step + 1)
        higher = max(2, order_here)
        used = [list(range(step, step - n, -1)) for n in (higher, higher - 1)]
        two = [integrated(grid, step, prediction, js, [outputs[j] for j in js]) for js in used]
        assert estimates[step] == pytest.approx(rms(two[0] - two[1]) / size(grid.node(step + 1)), rel=1e-5)


def test_2m_as_published():
    """x' = ... - alpha' (1 - e^-h) (D + (D - D_old) / (2 r)): the last term is the difference of the orders."""
    frame = frames.edm()
    grid = grid_of(frame)
    estimates, _, gave, _ = watched(make_plan("dpm_solver_multistep", frame, grid, lower_order_final=False), frame)
    h = np.diff(grid.lambda_)
    for i in range(1, STEPS):
        part = -math.expm1(-h[i]) / (2 * h[i - 1] / h[i]) * rms(gave[i] - gave[i - 1])
        assert estimates[i] == pytest.approx(part / size(grid.node(i + 1)), rel=1e-6)


@pytest.mark.parametrize("prediction", ["x_0", "eps", "v", "flow"])
@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
def test_ddims_estimate_is_its_error_where_steps_are_small(frame, prediction):
    """Gaussian data of variance 0.25: a state keeps its place in units of its standard deviation, so the error of each step is known."""
    grid = grid_of(frame, 200)
    plan = make_plan("ddim", frame, grid, prediction=prediction)
    estimates, states = Estimates(plan), [start_noise(3, (1, 4, 8, 8))]

    def denoiser(x, sigma):
        node = min(plan.nodes, key=lambda n: abs(n.sigma - float(sigma[0])))
        return 0.25 * node.alpha / (0.25 * node.alpha**2 + node.sigma**2) * x

    run(plan, denoiser, states[0], hooks=[estimates], callback=lambda p: states.append(p.x.clone()))
    deviations = [math.sqrt(0.25 * n.alpha**2 + n.sigma**2) for n in plan.nodes]
    for step in range(5, 195, 10):
        exact = states[step] * deviations[step + 1] / deviations[step]
        error = rms(states[step + 1] - exact) / size(plan.nodes[step + 1])
        if error > 1e-8:  # where the error passes through 0 the next order is larger
            assert estimates.all()[step] == pytest.approx(error, rel=0.1)


ALL = [
    *(Recipe(n) for n in solver_names() if n not in ("dpm_solver_adaptive", "deis_ab")), Recipe("deis_ab", {"basis": "rho"}),
    Recipe("deis_rk", {"tableau": "4rk"}), Recipe("ddim", {"eta": 1.0}), Recipe("dpm_solver_multistep", {"thresholding": True}),
    Recipe("unipc").corrected("time_shift"), Recipe("ddim").corrected("dualfast"), Recipe("unipc", {"denoise_to_zero": True}),
]
NONE = {"consistency()", "tcd()", "ddim(eta=1.0)", "ddim() + dualfast()"}


@pytest.mark.parametrize("recipe", ALL, ids=lambda r: r.label)
def test_a_run_keeps_its_bits_and_reads_nothing(recipe):
    frame = FRAMES["vp"]
    plan = recipe.resolve(frame, grids.uniform_t(frame, STEPS, end="stop"))
    estimates, x, log = Estimates(plan), torch.randn(2, 4, 2, 8, 8, generator=torch.Generator().manual_seed(2)), []
    denoiser = MODEL.denoiser(frame)
    with HostReads() as reads:
        result = run(plan, denoiser, x, seed=1, hooks=[estimates], callback=lambda p: log.append(reads.count))
    assert log == [0] * plan.nfe, "the loop read a tensor on the host"
    assert torch.equal(result, run(plan, denoiser, x, seed=1))
    found = estimates.all()
    assert found == estimates.known() and all(0 < v < 10 for v in found.values())
    if recipe.label in NONE:
        assert not found
    else:
        assert len(found) >= len(plan.nodes) - 4


def test_a_large_state_is_looked_at_in_a_thousand_points():
    frame = FRAMES["flow"]
    plan = make_plan("unipc", frame, grid_of(frame))
    x = torch.randn(2, 4, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * size(plan.nodes[0])
    estimates, given, _, after = watched(plan, frame, x)
    assert x.numel() > 20 * POINTS
    for step in range(STEPS - 1):
        whole = rms(after[step + 1] - given[step + 1]) / size(plan.nodes[step + 1])
        assert estimates[step] == pytest.approx(whole, rel=0.25) and estimates[step] != pytest.approx(whole, rel=1e-9)


def test_they_are_known_step_by_step_and_forgotten_by_the_next_run():
    frame = frames.edm()
    plan = make_plan("unipc", frame, grid_of(frame))
    estimates, counts = Estimates(plan), []
    for _ in range(2):
        run(plan, MODEL.denoiser(frame), start_noise(1), hooks=[estimates], callback=lambda p: counts.append(len(estimates.known())))
    assert counts == [0, 1, 2, 3, 4, 6] * 2  # with the last evaluation comes the last step's own, which nothing corrects


def test_half_precision_states_are_compared_in_single():
    frame = frames.edm()
    plan = make_plan("unipc", frame, grid_of(frame))
    wide, *_ = watched(plan, frame, start_noise(3) * 2)
    narrow, *_ = watched(plan, frame, (start_noise(3) * 2).bfloat16())
    assert narrow == pytest.approx(wide, rel=0.1, abs=1e-3)  # predictions of size 1 are rounded by 0.002
