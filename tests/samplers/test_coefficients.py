"""Coefficients apart from the engine: closed forms, row sums, exactness on polynomials, extreme steps, validation."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from fewstep.samplers import Plan, Row, Stage, frames, grids, make_plan, run
from fewstep.samplers.analytic import GaussianMixture
from fewstep.samplers.errors import OptionError
from fewstep.samplers.facts import constant_run
from fewstep.samplers.solvers.deis import variable
from fewstep.samplers.solvers.deis_rk import TABLEAUS
from fewstep.samplers.solvers.dpm_singlestep import allocate
from fewstep.samplers.solvers.exponential import psi
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate

FRAMES = {"vp": frames.linear_vp(), "edm": frames.edm(), "flow": frames.flow()}
CASES = [
    ("ddim", {}), ("ddim", {"prediction": "eps"}), ("ddim", {"prediction": "v"}), ("dpm_solver_multistep", {"order": 3}),
    ("dpm_solver_multistep", {"order": 2, "prediction": "noise"}), ("dpm_solver_multistep", {"order": 3, "solver_type": "exact"}),
    ("dpm_solver_singlestep", {"order": 3}), ("dpm_solver_singlestep", {"order": 2, "prediction": "noise", "inner": "lambda"}),
    ("unipc", {"order": 3}), ("unipc", {"order": 2, "prediction": "noise", "variant": "bh1"}), ("unipc", {"order": 2, "variant": "vary_coeff"}),
    ("dpm_solver_v3", {"order": 3}), ("dpm_solver_v3", {"order": 2, "corrector": "none"}), ("deis_ab", {"basis": "rho"}), ("deis_ab", {"basis": "log_rho"}), ("deis_ab", {"basis": "linear_t"}), ("deis_rk", {"tableau": "3vdh"}), ("ipndm", {"order": 3}), ("gradient_estimation", {"gamma": 2.4}),
    ("dpm_solver_sde_multistep", {"order": 3}), ("dpm_solver_sde_singlestep", {}), ("ddim", {"eta": 0.7}),
    ("sa_solver", {}), ("sa_solver", {"tau": 0.0}), ("sa_solver", {"tau": 2.0, "predictor_order": 4, "corrector_order": 2, "sde_start": 1e9, "sde_end": 0.0}),
]


@st.composite
def lambda_grids(draw):
    """3 to 9 nodes with steps from 1e-6 to 6 in lambda; with or without a final zero."""
    steps = draw(st.lists(st.floats(-6, 0.78), min_size=3, max_size=8))
    lam = np.cumsum([draw(st.floats(-5, 2)), *(10.0**s for s in steps)])
    return np.append(lam, math.inf) if draw(st.booleans()) else lam


def rounding(plan):
    """Bound of the result's rounding error for states of size alpha + sigma: a running error analysis of the rows."""
    unit = 2.0**-52

    def apply(row, x):
        parts = [(abs(row.x), x), *((abs(c), outputs[j]) for j, c in row.m.items()), (abs(row.noise.coefficient) if row.noise else 0.0, (1.0, 0.0))]
        size = sum(c * v for c, (v, _) in parts)
        return size, sum(c * e for c, (_, e) in parts) + 8 * unit * size

    x, outputs = (plan.nodes[0].alpha + plan.nodes[0].sigma, 0.0), []
    for stage in plan.stages:
        y = apply(stage.predict, x)
        p, q = map(abs, stage.store)
        outputs.append((2.0 if stage.kind != "flow" else 4.0, p * y[1] + 4 * unit * (p * y[0] + q)))
        x = apply(stage.carry, x)
    return apply(plan.final, x)[1]


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
@settings(max_examples=25, deadline=None)
@given(lam=lambda_grids())
def test_any_grid_gives_a_finite_plan_that_keeps_constants(name, options, lam):
    for frame in FRAMES.values():
        sigma = frame.sigma_of_lambda(lam)
        if np.any(np.diff(sigma) >= 0):
            continue  # two nodes rounded to one sigma
        plan = make_plan(name, frame, sigma, **options)
        # rounding grows with the largest weight (extrapolation from a tiny to a long step) and, in eps forms, 1/sigma
        end, result = plan.nodes[-1], constant_run(plan)
        assert abs(result["x_0"] - end.alpha) < 10 * rounding(plan)
        noise = math.hypot(*(value for key, value in result.items() if key != "x_0"))
        assert abs(noise - end.sigma) < 10 * rounding(plan)
        assert plan.describe().count("\n") > plan.nfe


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
@pytest.mark.parametrize(("name", "options", "quantity"), [
    ("dpm_solver_multistep", {"order": 2, "solver_type": "taylor"}, "x_0"), ("dpm_solver_multistep", {"order": 3, "solver_type": "exact"}, "x_0"),
    ("dpm_solver_multistep", {"order": 2, "solver_type": "taylor", "prediction": "noise"}, "eps"),
    ("unipc", {"order": 3}, "x_0"), ("unipc", {"order": 2, "variant": "vary_coeff"}, "x_0"), ("unipc", {"order": 3, "prediction": "noise"}, "eps"),
    ("dpm_solver_singlestep", {"order": 2, "solver_type": "taylor"}, "x_0"), ("dpm_solver_singlestep", {"order": 3, "solver_type": "taylor"}, "x_0"),
    ("dpm_solver_singlestep", {"order": 3}, "x_0"), ("deis_ab", {"basis": "log_rho", "ab_order": 2}, "eps"),
], ids=str)
@settings(max_examples=15, deadline=None)
@given(slope=st.floats(-2, 2), offset=st.floats(-2, 2), gaps=st.lists(st.floats(0.05, 1.5), min_size=6, max_size=6))
def test_an_output_affine_in_lambda_is_integrated_exactly(frame, name, options, quantity, slope, offset, gaps):
    """A multistep method knows one output only in its first step: that one is so short that its error (h^2) vanishes."""
    single = name == "dpm_solver_singlestep"
    lam = np.cumsum([-1.5, *([] if single else [1e-5]), *gaps])
    body = {"allocation": "fixed"} if single else {"lower_order_final": False} if name != "deis_ab" else {}
    plan = make_plan(name, frame, frame.sigma_of_lambda(lam), **options, **body)
    x0 = 0.7 * float(frame.sigma_of_lambda(lam[0]))

    def output(x, sigma):  # the denoiser whose x_0 (or eps) is offset + slope*lambda, whatever x
        value = offset + slope * float(frame.lambda_of_sigma(float(sigma[0])))
        if quantity == "eps":
            return (x - float(sigma[0]) * value) / float(frame.alpha_of_sigma(float(sigma[0])))
        return torch.full_like(x, value)

    result = run(plan, output, torch.full((1, 1), x0, dtype=torch.float64)) / plan.nodes[-1].alpha
    # in v = x/alpha: dv/dlambda = D - v = -exp(-lambda) eps
    unit = x0 / float(frame.alpha_of_lambda(lam[0]))
    a, b = lam[0], plan.nodes[-1].lambda_
    if quantity == "x_0":
        exact = unit * math.exp(a - b) + integrate.quad(lambda u: math.exp(u - b) * (offset + slope * u), a, b, epsabs=1e-13)[0]
    else:
        exact = unit - integrate.quad(lambda u: math.exp(-u) * (offset + slope * u), a, b, epsabs=1e-13)[0]
    assert float(result) == pytest.approx(exact, abs=2e-9 * (1 + abs(exact)))


@pytest.mark.parametrize("g", [-700.0, -30.0, -2.0, -1.0, -0.99, -0.1, -1e-3, -1e-8, 1e-8, 1e-3, 0.5, 0.99, 1.0, 3.0, 30.0])
def test_psi_against_rational_arithmetic(g):
    exact = Fraction(g)
    total, term, k = Fraction(0), Fraction(1), 0
    if abs(g) < 40:
        while k < 160:
            k += 1
            term = term * exact / k
            total += term
        reference = [total]
        for j in range(1, 6):
            reference.append(reference[-1] / exact - Fraction(1, math.factorial(j)))
    else:
        reference = [Fraction(-1)]
        for j in range(1, 6):
            reference.append(reference[-1] / exact - Fraction(1, math.factorial(j)))
    for value, wanted in zip(psi(g, 6), reference, strict=True):
        assert value == pytest.approx(float(wanted), rel=1e-11, abs=0)


DETERMINISTIC = [
    c for c in CASES if not c[0].startswith("dpm_solver_sde") and "eta" not in c[1] and (c[0] != "sa_solver" or c[1].get("tau") == 0)
]


@pytest.mark.parametrize("h", [1e-8, 1e-5, 1e-2])
@pytest.mark.parametrize(("name", "options"), DETERMINISTIC, ids=str)
def test_tiny_steps_follow_the_exact_solution_to_rounding(name, options, h):
    """Unit Gaussian data: v' = v sqrt((1+rho'^2)/(1+rho^2)); every method's error over 6 steps is at most of order h^2."""
    frame = frames.edm()
    plan = make_plan(name, frame, frame.sigma_of_lambda(-1.0 + h * np.arange(7)), **options)
    x = torch.tensor([[1.3]], dtype=torch.float64)
    result = float(run(plan, lambda y, s: y / (1 + s.reshape(-1, 1) ** 2), x))
    first, last = plan.nodes[0].sigma, plan.nodes[-1].sigma
    assert abs(result - 1.3 * math.sqrt((1 + last**2) / (1 + first**2))) < 2e-15 + (6 * h) ** 2


@pytest.mark.parametrize("lam", [[-15.0, -5.0, 5.0, 15.0], [-18.0, -12.0, -6.0, 0.0, 6.0, 12.0, 18.0], [-1.0, -1.0 + 1e-8, 1.0, 12.0]])
@pytest.mark.parametrize(("name", "options"), DETERMINISTIC, ids=str)
def test_huge_steps_keep_a_constant(name, options, lam):
    frame = frames.edm()
    plan = make_plan(name, frame, frame.sigma_of_lambda(lam), **options)
    z = torch.tensor([[0.7]], dtype=torch.float64)
    result = float(run(plan, lambda y, s: torch.full_like(y, 0.4), 0.4 + plan.nodes[0].sigma * z))
    assert abs(result - 0.4 - 0.7 * plan.nodes[-1].sigma) < rounding(plan)


def test_order_two_closed_form():
    """DPM-Solver++ 2M written out from the paper (algorithm 2), in the VP frame."""
    frame = frames.linear_vp()
    grid = grids.uniform_t(frame, 4, end="stop")
    plan = make_plan("dpm_solver_multistep", frame, grid, lower_order_final=False)
    i = 2
    s, t = plan.nodes[i], plan.nodes[i + 1]
    h, r = t.lambda_ - s.lambda_, (s.lambda_ - plan.nodes[i - 1].lambda_) / (t.lambda_ - s.lambda_)
    row = plan.stages[i].carry
    assert row.x == pytest.approx(t.sigma / s.sigma, rel=1e-15)
    assert row.m[i] == pytest.approx(-t.alpha * math.expm1(-h) * (1 + 1 / (2 * r)), rel=1e-14)
    assert row.m[i - 1] == pytest.approx(t.alpha * math.expm1(-h) / (2 * r), rel=1e-14)


def test_bh1_bh2_and_exact_weights_agree_where_a_system_is_solved():
    frame = frames.edm()
    grid = grids.karras(frame, 8, end="stop", t_T=14.6, t_0=0.03)
    rows = [make_plan("unipc", frame, grid, order=3, variant=v).stages[4] for v in ("bh1", "bh2", "vary_coeff")]
    for other in rows[1:]:
        for name in ("predict", "carry"):
            assert dict(getattr(other, name).m) == pytest.approx(dict(getattr(rows[0], name).m), abs=1e-12)


def test_disabling_the_corrector_everywhere_gives_the_predictor():
    frame, x = frames.edm(), torch.randn(1, 4, 4, 4, dtype=torch.float64)
    grid = grids.karras(frame, 6, end="zero", t_T=14.6, t_0=0.03)
    plans = [make_plan("unipc", frame, grid, order=3, **o) for o in ({"disable_corrector": tuple(range(6))}, {"corrector": False})]
    a, b = (run(p, lambda y, s: torch.tanh(y), x) for p in plans)
    torch.testing.assert_close(a, b, rtol=0, atol=1e-14)


def test_the_linear_time_of_deis_has_its_ends():
    """The schedule of the EDM code base, from rho 0.002 at t = 0.001 to 80 at 1 (Karras et al. 2022, table 1 for VP)."""
    at = variable(frames.edm(), -np.log([0.002, 80.0]), "linear_t")
    np.testing.assert_allclose(at, [0.001, 1.0], rtol=1e-12)


@pytest.mark.parametrize("basis", ["t", "rho", "log_rho", "linear_t"])
@pytest.mark.parametrize("frame", [frames.linear_vp(), frames.flow(), frames.discrete_vp(betas=np.linspace(1e-4, 0.02, 1000)).unit_alpha()], ids=str)
def test_deis_weights_sum_to_the_step_and_integrate_polynomials(basis, frame):
    grid = grids.uniform_t(frame, 6, end="stop", t_T=0.9)
    plan = make_plan("deis_ab", frame, grid, ab_order=3, basis=basis)
    for i, stage in enumerate(plan.stages):
        s, t = plan.nodes[i], plan.nodes[i + 1]
        weights = {j: c / t.alpha for j, c in stage.carry.m.items()}
        assert sum(weights.values()) == pytest.approx(t.rho - s.rho, rel=1e-12)
        if basis == "rho":
            for power in range(len(weights)):
                exact = (t.rho ** (power + 1) - s.rho ** (power + 1)) / (power + 1)
                total = sum(c * plan.nodes[j].rho ** power for j, c in weights.items())
                assert total == pytest.approx(exact, rel=1e-9)


def test_deis_order_0_is_ddim():
    frame = frames.linear_vp()
    grid = grids.uniform_t(frame, 5, end="stop")
    for plan in (make_plan("deis_ab", frame, grid, ab_order=0), make_plan("ipndm", frame, grid, order=1)):
        for a, b in zip(plan.stages, make_plan("ddim", frame, grid, prediction="eps").stages, strict=True):
            assert a.carry.x == pytest.approx(b.carry.x, rel=1e-13) and dict(a.carry.m) == pytest.approx(dict(b.carry.m), rel=1e-10)


@pytest.mark.parametrize("gamma", [1.0, 1.7, 2.0])
def test_gradient_estimation_is_eulers_method_with_an_extrapolated_slope(gamma):
    """Permenter and Yuan, algorithm 2 with their two-term update, written out in sigma."""
    sigmas = [9.0, 5.0, 2.5, 1.0, 0.3, 0.0]
    model = GaussianMixture.make(4).denoiser(frames.edm(), 2.0)
    x = start = 9.0 * torch.randn(2, 4, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    old = None
    for sigma, following in itertools.pairwise(sigmas):
        slope = (x - model(x, torch.full((2,), sigma, dtype=torch.float64))) / sigma
        last = following == 0.0 or old is None
        x = x + (following - sigma) * (slope if last else gamma * slope + (1 - gamma) * old)
        old = slope
    plan = make_plan("gradient_estimation", frames.edm(), sigmas, gamma=gamma)
    torch.testing.assert_close(run(plan, model, start), x, rtol=0, atol=1e-12)
    with pytest.raises(OptionError, match="gamma"):
        make_plan("gradient_estimation", frames.edm(), sigmas, gamma=5.5)


@pytest.mark.parametrize("name", TABLEAUS)
def test_runge_kutta_order_conditions(name):
    """Butcher's conditions up to order 4 in rational arithmetic (Hairer, Norsett, Wanner I, table II.2.2)."""
    t = TABLEAUS[name]
    a = [(), *list(t.a)]
    s = range(len(t.b))
    assert [sum(row) for row in a] == list(t.c)
    A = lambda i, j: a[i][j] if j < len(a[i]) else Fraction(0)  # noqa: E731
    conditions = {
        1: [(sum(t.b), 1)], 2: [(sum(b * c for b, c in zip(t.b, t.c, strict=True)), Fraction(1, 2))],
        3: [(sum(t.b[i] * t.c[i] ** 2 for i in s), Fraction(1, 3)), (sum(t.b[i] * A(i, j) * t.c[j] for i in s for j in s), Fraction(1, 6))],
        4: [
            (sum(t.b[i] * t.c[i] ** 3 for i in s), Fraction(1, 4)),
            (sum(t.b[i] * t.c[i] * A(i, j) * t.c[j] for i in s for j in s), Fraction(1, 8)),
            (sum(t.b[i] * A(i, j) * t.c[j] ** 2 for i in s for j in s), Fraction(1, 12)),
            (sum(t.b[i] * A(i, j) * A(j, k) * t.c[k] for i in s for j in s for k in s), Fraction(1, 24)),
        ],
    }
    for order in range(1, int(name[0]) + 1):
        assert all(left == right for left, right in conditions[order]), order


@pytest.mark.parametrize(("nfe", "order", "wanted"), [
    (9, 3, [3, 3, 2, 1]), (10, 3, [3, 3, 3, 1]), (11, 3, [3, 3, 3, 2]), (1, 3, [1]), (2, 3, [2]), (3, 3, [2, 1]), (7, 2, [2, 2, 2, 1]), (4, 1, [1] * 4),
])
def test_allocations_of_the_paper(nfe, order, wanted):
    assert allocate(nfe, order) == wanted


def test_pure_noise_and_zero_ends_take_their_limits():
    frame, x = frames.flow(), torch.randn(2, 4, 4, 4, dtype=torch.float64)
    for name, options in [*CASES, ("deis_ab", {"basis": "t"}), ("dpm_solver_adaptive", {})]:
        plan = make_plan(name, frame, [1.0, 0.8, 0.55, 0.3, 0.1, 0.0], **options)
        result = run(plan, lambda y, s: torch.full_like(y, 0.25), x, seed=0)
        torch.testing.assert_close(result, torch.full_like(x, 0.25), rtol=0, atol=1e-12, msg=name)
    one = make_plan("unipc", frame, [1.0, 0.0], order=1)
    assert one.nfe == 1 and dict(one.final.m) == {0: 1.0} and not one.final.reads_x


@pytest.mark.parametrize("sigmas", [[1.0, 0.0], [1.0, 0.4], [0.6, 0.0], [1.0, 0.5, 0.0], [0.6, 0.2]])
@pytest.mark.parametrize(("name", "options"), [
    ("ddim", {"prediction": "eps"}), ("dpm_solver_multistep", {"order": 1}), ("dpm_solver_singlestep", {}),
    ("dpm_solver_singlestep", {"inner": "lambda", "prediction": "noise"}), ("dpm_solver_adaptive", {}), ("unipc", {"order": 1}),
    ("deis_ab", {"ab_order": 0}), ("deis_rk", {"tableau": "4rk"}), ("ipndm", {"order": 1}), ("gradient_estimation", {}),
    ("sa_solver", {"tau": 0.0}),
], ids=str)
def test_one_and_two_steps_touch_both_ends(name, options, sigmas):
    z = torch.randn(2, 4, 4, 4, dtype=torch.float64)
    plan = make_plan(name, frames.flow(), sigmas, **options)
    result = run(plan, lambda y, s: torch.full_like(y, 0.25), sigmas[0] * z + (1 - sigmas[0]) * 0.25)
    torch.testing.assert_close(result, sigmas[-1] * z + (1 - sigmas[-1]) * 0.25, rtol=0, atol=1e-12)


def test_bias_is_seen():
    frame = frames.edm()
    grid = grids.karras(frame, 5, end="stop", t_T=14.6, t_0=0.5)
    assert make_plan("dpm_solver_sde_multistep", frame, grid, s_noise=1.1).biased
    assert not make_plan("dpm_solver_sde_multistep", frame, grid).biased
    assert not make_plan("unipc", frame, grid, denoise_to_zero=True).biased
    node, end = grid.node(0), grid.node(5)
    assert Plan((Stage(node, Row(x=end.sigma / node.sigma, m={0: 0.9})),), (node, end)).biased
