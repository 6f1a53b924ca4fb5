"""DPM-Solver-v3's plans: exactness where the method promises it, orders, frames, sizes, and what is refused."""

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from fewstep.samplers import Recipe, frames, grids, load_plan, make_plan, run, save_plan
from fewstep.samplers.analytic import GaussianMixture, start_noise
from fewstep.samplers.calibration.statistics import Statistics
from fewstep.samplers.errors import CalibrationError, CalibrationWarning, OptionError, PlanError, ScheduleError
from fewstep.samplers.plan import LazyStages
from host_reads import HostReads
from scipy.integrate import solve_ivp

MODEL = GaussianMixture.make(0)
FRAMES = {"vp": frames.linear_vp(), "edm": frames.edm(), "flow": frames.flow()}
LAM = (-1.2, 2.2)


def smooth(points=60, shape=(4, 1, 1), low=-3.0, high=4.0):
    """Made-up statistics that are smooth in lambda and differ between elements."""
    lam = np.linspace(low, high, points + 1)
    t = torch.from_numpy(lam).reshape(-1, *(1,) * len(shape))
    r = torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return Statistics(lam, torch.sigmoid(-t) * (0.7 + 0.3 * r), 0.4 * r * torch.cos(t + r), 0.3 * r * torch.sin(2 * t))


def constant(l, s, b, points=2, low=-8.0, high=8.0):
    """The same numbers at every level; each is a list of one number per channel."""
    columns = (torch.tensor(v, dtype=torch.float64).reshape(1, -1, 1, 1).repeat(points + 1, 1, 1, 1) for v in (l, s, b))
    return Statistics(np.linspace(low, high, points + 1), *columns)


def integrate(denoiser, start, lam=LAM):
    """The exact end in the alpha = 1 frame: dX/dlambda = D - X."""
    shape = start.shape

    def slope(u, v):
        x = torch.from_numpy(v).reshape(shape)
        return (denoiser(x, torch.full((len(x),), math.exp(-u), dtype=torch.float64)) - x).reshape(-1).numpy()

    solution = solve_ivp(slope, lam, start.reshape(-1).numpy(), method="DOP853", rtol=1e-12, atol=1e-12)
    return torch.from_numpy(solution.y[:, -1]).reshape(shape)


@pytest.mark.parametrize("corrector", ["none", "full"])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
def test_constant_statistics_are_integrated_exactly(frame, order, corrector):
    """D = (1 - l) X - f with f' = s f + b, per channel: closed form, in steps of any size; with b the cells count, squared."""
    l, s, b = [0.9, 0.4, 1.2, 0.05], [-1.5, 0.8, 0.0, 2.0], [0.0, 0.0, 0.0, 0.0]
    error, size = error_with_constant_statistics(frame, l, s, b, 2, order=order, corrector=corrector)
    assert error < 2e-12 * size
    b = [0.3, -0.2, 0.7, 0.1]
    errors = [error_with_constant_statistics(frame, l, s, b, cells, order=order, corrector=corrector)[0] for cells in (200, 400)]
    assert errors[1] < 1e-2 and math.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.1)


def error_with_constant_statistics(frame, l, s, b, cells, **options):
    lt, st, bt = (torch.tensor(v, dtype=torch.float64).reshape(4, 1, 1) for v in (l, s, b))
    lam, f_0 = np.array([-2.0, -1.1, 0.4, 1.0, 2.5]), 0.35

    def f(u):
        rise = torch.where(st == 0, torch.tensor(u - lam[0], dtype=torch.float64), torch.expm1(st * (u - lam[0])) / torch.where(st == 0, 1.0, st))
        return f_0 * torch.exp(st * (u - lam[0])) + bt * rise

    def denoiser(x, sigma):
        u = float(frame.lambda_of_sigma(float(sigma[0])))
        return (1 - lt) * x / float(frame.alpha_of_lambda(u)) - f(u)

    start = start_noise(2, (2, 4, 3, 3))
    plan = make_plan(
        "dpm_solver_v3", frame, frame.sigma_of_lambda(lam), statistics=constant(l, s, b, cells), quadrature="exponential", s_max=0.0, **options)
    x = run(plan, denoiser, start * float(frame.alpha_of_lambda(lam[0]))) / plan.nodes[-1].alpha
    u, weight = np.polynomial.legendre.leggauss(60)  # X' = -l X - f has constant coefficients
    half = (lam[-1] - lam[0]) / 2
    exact = torch.exp(-lt * 2 * half) * start - sum(
        half * w * torch.exp(-lt * half * (1 - v)) * f(lam[0] + half * (1 + v)) for v, w in zip(u, weight, strict=True)
    )
    return float((x - exact).abs().max()), float(exact.abs().max())


def test_a_linear_denoiser_is_exact_up_to_the_quadrature():
    """D = A(lambda) X + c(lambda) lies in the fitted line: l = 1 - A, s = 0, b = -c'. The error falls with the grid, not the steps."""
    frame, errors = frames.edm(), []
    A, c = (lambda u: 1 / (1 + math.exp(-2 * u))), (lambda u: math.sin(u))
    denoiser = lambda x, sigma: A(-math.log(sigma[0])) * x + c(-math.log(sigma[0]))  # noqa: E731
    start = start_noise(3, (1, 1, 2, 2))
    exact = integrate(denoiser, start)
    for points in (100, 200):
        lam = np.linspace(*LAM, points + 1)
        columns = (torch.tensor([g(u) for u in lam], dtype=torch.float64).reshape(-1, 1, 1, 1) for g in (lambda u: 1 - A(u), lambda u: 0.0, lambda u: -math.cos(u)))
        plan = make_plan("dpm_solver_v3", frame, frame.sigma_of_lambda(np.linspace(*LAM, 4)), statistics=Statistics(lam, *columns), order=1)
        errors.append(float((run(plan, denoiser, start) - exact).abs().max()))
    assert errors[1] < 5e-5 and math.log2(errors[0] / errors[1]) > 1.9


@pytest.mark.parametrize("order", [1, 2, 3])
def test_without_statistics_it_is_dpm_solver_pp_with_exact_weights(order):
    frame = frames.edm()
    grid = grids.karras(frame, 7, end="zero", t_T=14.6, t_0=0.03)
    own = make_plan("dpm_solver_v3", frame, grid, order=order, corrector="none")
    published = make_plan("dpm_solver_multistep", frame, grid, order=order, solver_type="exact", lower_order_final="always")
    assert all(stage.kind == "x_0" for stage in own.stages)
    for a, b in zip(own.stages, published.stages, strict=True):
        assert a.carry.x == pytest.approx(b.carry.x, abs=1e-15)
        assert dict(a.carry.m) == pytest.approx(dict(b.carry.m), abs=1e-13)
    assert own.biased is False


def test_degenerated_tends_to_dpm_solver_pp_with_the_square_of_the_cell():
    frame, lam, errors = frames.edm(), np.linspace(*LAM, 6), []
    x = start_noise(1) * frame.sigma_of_lambda(lam[0])
    wanted = run(make_plan("dpm_solver_multistep", frame, frame.sigma_of_lambda(lam), order=3, solver_type="exact", lower_order_final="always"), MODEL.denoiser(frame), x)
    for points in (100, 200, 400):
        plan = make_plan("dpm_solver_v3", frame, frame.sigma_of_lambda(lam), statistics=smooth(points), degenerated=True, order=3, corrector="none")
        errors.append(float((run(plan, MODEL.denoiser(frame), x) - wanted).abs().max()))
    assert [math.log2(a / b) for a, b in itertools.pairwise(errors)] == pytest.approx([2, 2], abs=0.1)
    exponential = make_plan(
        "dpm_solver_v3", frame, frame.sigma_of_lambda(lam), statistics=smooth(5), degenerated=True, order=3, corrector="none", quadrature="exponential")
    assert float((run(exponential, MODEL.denoiser(frame), x) - wanted).abs().max()) < 1e-12


def grid_with_start_up(frame, steps):
    """Uniform in lambda after steps that double: a multistep method's low-order start leaves no error to speak of."""
    sizes = np.concatenate([2.0 ** np.arange(-24, 0), np.ones(steps)])
    lam = LAM[0] + (LAM[1] - LAM[0]) * np.concatenate([[0], np.cumsum(sizes) / sizes.sum()])
    return frame.sigma_of_lambda(lam)


@pytest.fixture(scope="module")
def exact():
    start = start_noise(3, (1, 4, 3, 3)) * math.exp(-LAM[0]) + MODEL.mu[2].reshape(4, 1, 1)
    return start, {scale: integrate(MODEL.denoiser(frames.edm(), scale), start) for scale in (1.0, 7.5)}


@pytest.mark.parametrize("scale", [1.0, 7.5])
@pytest.mark.parametrize(("options", "order"), [
    ({"order": 1}, 1), ({"order": 2}, 2), ({"order": 3}, 3), ({"order": 2, "p_pseudo": True}, 2), ({"order": 1, "corrector": "full", "c_pseudo": True}, 2),
    ({"order": 2, "corrector": "full"}, 2), ({"order": 3, "corrector": "full"}, 3), ({"order": 2, "corrector": "full", "c_pseudo": True}, 2),
], ids=str)
def test_convergence_order_with_smooth_statistics(options, order, scale, exact):
    frame, (start, ends), errors = frames.edm(), exact, []
    for steps in (64, 128):
        plan = make_plan(
            "dpm_solver_v3", frame, grid_with_start_up(frame, steps), statistics=smooth(8192), lower_order_final=False, **{"corrector": "none", **options})
        errors.append(float((run(plan, MODEL.denoiser(frame, scale), start) - ends[scale]).norm()))
    assert order - 0.35 < math.log2(errors[0] / errors[1]) < order + 0.85, errors


@pytest.mark.parametrize(("options", "order"), [({"order": 1, "corrector": "none"}, 1), ({}, 2), ({"order": 3}, 3), ({"order": 1, "c_pseudo": True}, 2)])
def test_the_plan_says_its_order(options, order):
    frame = frames.edm()
    plan = make_plan("dpm_solver_v3", frame, grids.karras(frame, 8, end="zero"), statistics=smooth(low=-5, high=7), **options)
    assert plan.order == order and plan.nfe == 8 and not plan.stochastic


@pytest.mark.parametrize("shape", [(4, 1, 1), (4, 8, 8), (1, 1, 1)], ids=str)
@pytest.mark.parametrize("options", [{}, {"order": 3, "corrector": "none"}, {"order": 3, "c_pseudo": True, "p_pseudo": True}, {"quadrature": "exponential"}], ids=str)
def test_the_same_samples_in_every_frame(options, shape):
    lam, results = np.append(np.linspace(-2.0, 3.0, 8), math.inf), []
    for frame in FRAMES.values():
        plan = make_plan("dpm_solver_v3", frame, frame.sigma_of_lambda(lam), statistics=smooth(shape=shape), **options)
        results.append(run(plan, MODEL.denoiser(frame, 3.0), start_noise(1) * float(frame.sigma_of_lambda(lam[0]))))
    for other in results[1:]:
        assert float((other - results[0]).abs().max()) < 1e-11 * float(results[0].abs().max())


def test_a_flow_model_starts_at_pure_noise_by_one_first_order_step():
    frame = frames.flow()
    plan = make_plan("dpm_solver_v3", frame, [1.0, 0.8, 0.6, 0.4, 0.2, 0.0], statistics=smooth())
    first, second = plan.stages[0], plan.stages[1]
    assert first.kind == "x_0" and second.predict.x == pytest.approx(0.8) and dict(second.predict.m) == pytest.approx({0: 0.2})
    assert second.carry is second.predict, "nothing corrects the step out of pure noise"
    assert all(0 not in (*stage.predict.m, *stage.carry.m) for stage in plan.stages[2:]), "its output is in no polynomial"
    assert torch.isfinite(run(plan, MODEL.denoiser(frame, 4.0), start_noise(1))).all()


def test_half_corrects_the_noisy_half_of_the_models_time():
    frame = frames.linear_vp().unit_alpha()
    grid = grids.uniform_t(frame, 8, end="stop")
    plan = make_plan("dpm_solver_v3", frame, grid, statistics=smooth(low=-6, high=6), corrector="half", c_pseudo=True)
    corrected = [stage.carry is not stage.predict and not stage.carry.is_identity for stage in plan.stages]
    assert corrected == [False, *(t > 0.5 for t in grid.t[1:-1])] and sum(corrected) == 4
    with pytest.raises(OptionError, match="needs the model's time"):
        make_plan("dpm_solver_v3", frames.edm(), [5.0, 2.0, 1.0, 0.5], corrector="half")


# sizes
@pytest.mark.parametrize("shape", [(2, 4, 8, 8), (2, 4, 3, 8, 8), (2, 4, 12), (2, 4)], ids=str)
def test_a_number_per_channel_suits_latents_of_any_rank(shape):
    """Channel by channel the result is that of a model with this channel's numbers alone."""
    frame, known = frames.edm(), smooth()
    sigmas = [12.0, 5.0, 2.0, 0.7, 0.0]
    denoiser = lambda x, sigma: torch.tanh(x / (1 + sigma.reshape(-1, *(1,) * (x.ndim - 1))))  # noqa: E731
    x = start_noise(4, shape) * 12
    whole = run(make_plan("dpm_solver_v3", frame, sigmas, statistics=known), denoiser, x)
    for c in range(4):
        alone = Statistics(known.lambda_, *(getattr(known, name)[:, c : c + 1] for name in "lsb"))
        part = run(make_plan("dpm_solver_v3", frame, sigmas, statistics=alone), denoiser, x[:, c : c + 1])
        torch.testing.assert_close(whole[:, c : c + 1], part, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precision_states_follow_the_float64_run(dtype):
    frame = frames.edm()
    plan = make_plan("dpm_solver_v3", frame, [12.0, 5.0, 2.0, 0.7, 0.0], statistics=smooth())
    x = start_noise(4) * 12
    fine = run(plan, MODEL.denoiser(frame), x)
    coarse = run(plan, lambda y, s: MODEL.denoiser(frame)(y.double(), s.double()).to(dtype), x.to(dtype))
    assert coarse.dtype == dtype
    assert float((coarse.double() - fine).abs().max()) < 8 * torch.finfo(dtype).eps * 12


@pytest.mark.parametrize(("shape", "state"), [((4, 8, 8), (1, 4, 8, 9)), ((3, 1, 1), (1, 4, 8, 8)), ((4, 8, 8), (1, 4, 2, 8, 8)), ((4, 2, 1, 1), (1, 4, 8, 8))], ids=str)
def test_statistics_of_another_size_are_refused_before_the_first_evaluation(shape, state):
    plan = make_plan("dpm_solver_v3", frames.edm(), [5.0, 2.0, 1.0, 0.0], statistics=smooth(shape=shape))
    with pytest.raises(PlanError, match="made for samples of shape"):
        run(plan, lambda x, s: pytest.fail("the model was called"), torch.zeros(state))


def test_full_size_coefficients_are_made_when_they_run_and_not_kept(tmp_path):
    frame, known = frames.edm(), smooth(24, (4, 64, 64))
    sigmas = [12.0, 6.0, 3.0, 1.5, 0.7, 0.3, 0.0]
    plan = make_plan("dpm_solver_v3", frame, sigmas, statistics=known, order=3)
    assert isinstance(plan.stages, LazyStages) and plan.stages[3] is not plan.stages[3]
    assert plan.stages[3].carry.m[1].shape == (4, 64, 64) and not plan.outline[3].carry.m[1].untyped_storage().nbytes() > 8
    kept = make_plan("dpm_solver_v3", frame, sigmas, statistics=smooth(24), order=3)
    assert isinstance(kept.stages, tuple)
    assert (plan.nfe, plan.peak_latents, plan.last_read) == (kept.nfe, kept.peak_latents, kept.last_read)
    denoiser, x = MODEL.denoiser(frame), start_noise(1, (1, 4, 64, 64)) * 12
    result = run(plan, denoiser, x)
    for i, j in ((0, 0), (40, 7)):  # one position alone
        alone = Statistics(known.lambda_, *(getattr(known, name)[..., i : i + 1, j : j + 1] for name in "lsb"))
        part = run(make_plan("dpm_solver_v3", frame, sigmas, statistics=alone, order=3), denoiser, x[..., i : i + 1, j : j + 1])
        torch.testing.assert_close(result[..., i : i + 1, j : j + 1], part, rtol=1e-12, atol=1e-12)
    assert "tensor[4, 64, 64]" in plan.describe()
    save_plan(plan, tmp_path / "plan.safetensors")
    again = load_plan(tmp_path / "plan.safetensors")
    assert torch.equal(run(again, denoiser, x), result)
    stages = plan.stages[1:3]
    assert len(stages) == 2 and stages[0].step == 1 and plan.stages[-1].step == 5


def test_no_host_reads_in_the_loop():
    frame = frames.edm()
    plan = make_plan("dpm_solver_v3", frame, grids.karras(frame, 7, end="zero", t_T=14.6, t_0=0.03), statistics=smooth(low=-3))
    with HostReads() as reads:
        log = []
        run(plan, lambda x, s: x * 0.5, torch.randn(2, 4, 8, 8), callback=lambda p: log.append(reads.count))
    assert log == log[:1] * plan.nfe


# statistics as an option
def test_steps_between_the_levels_of_the_statistics_are_interpolated_and_snapped_if_asked():
    frame, known = frames.edm(), smooth(70)
    on_grid = frame.sigma_of_lambda(known.lambda_[[5, 20, 33, 50, 70]])
    plain, snapped = (make_plan("dpm_solver_v3", frame, on_grid, statistics=known, snap=snap) for snap in (False, True))
    for a, b in zip(plain.rows(), snapped.rows(), strict=True):
        torch.testing.assert_close(a.x, b.x, rtol=1e-12, atol=0)
    off = make_plan("dpm_solver_v3", frame, frame.sigma_of_lambda(known.lambda_[[5, 20, 33, 50]] + 0.03), statistics=known, snap=True)
    np.testing.assert_allclose([n.lambda_ for n in off.nodes], known.lambda_[[5, 20, 33, 50]], atol=1e-12)
    with pytest.raises(ScheduleError, match="steps 1 and 2 snap to one noise level"):
        make_plan("dpm_solver_v3", frame, frame.sigma_of_lambda([-2.0, 0.0, 0.01, 1.0]), statistics=known, snap=True)


def test_a_grid_beyond_the_statistics_holds_their_ends_and_says_so():
    frame = frames.edm()
    known = constant([0.5] * 4, [0.3] * 4, [0.2] * 4, points=20, low=-1.0, high=1.0)
    wide = constant([0.5] * 4, [0.3] * 4, [0.2] * 4, points=60, low=-3.0, high=3.0)
    lam = [-2.95, -1.5, 0.0, 1.4, 2.2]
    with pytest.warns(CalibrationWarning, match="end values are used beyond"):
        beyond = make_plan("dpm_solver_v3", frame, frame.sigma_of_lambda(lam), statistics=known)
    inside = make_plan("dpm_solver_v3", frame, frame.sigma_of_lambda(lam), statistics=wide)
    for a, b in zip(beyond.rows(), inside.rows(), strict=True):
        for j, c in a.m.items():
            torch.testing.assert_close(c, b.m[j], rtol=2e-3, atol=0)  # cells of the same size, counted from another end


def test_steep_statistics_warn_where_the_corrector_may_diverge():
    steep = constant([0.5] * 4, [-9.0, 0.0, 0.0, 0.0], [0.0] * 4, low=-3, high=3)
    sigmas = [10.0, 3.0, 1.0, 0.3]
    with pytest.warns(CalibrationWarning, match="corrector may diverge"):
        make_plan("dpm_solver_v3", frames.edm(), sigmas, statistics=steep)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_plan("dpm_solver_v3", frames.edm(), sigmas, statistics=steep, corrector="none")


@pytest.mark.parametrize(("options", "error", "words"), [
    ({"order": 4}, OptionError, "order is 4"), ({"order": 3, "corrector": "yes"}, OptionError, "corrector is 'yes'"),
    ({"s_max": -1.0}, OptionError, "s_max is -1"), ({"quadrature": "simpson"}, OptionError, "quadrature is 'simpson'"),
    ({"order": 3}, OptionError, "needs at least 3 steps, the grid has 2"), ({"statistics": 3}, CalibrationError, "not int"),
    ({"statistics": "nothing.safetensors"}, CalibrationError, "no calibration file"),
    ({"statistics": constant([1.0], [40.0], [0.0])}, CalibrationError, "ranges over 656, above 200"),
])
def test_bad_options_and_statistics_are_named(options, error, words):
    with pytest.raises(error, match=words):
        make_plan("dpm_solver_v3", frames.edm(), [5.0, 1.0, 0.2], **options)


def test_correctors_that_act_on_predictions_are_refused_with_the_reason():
    recipe = Recipe("dpm_solver_v3", {"statistics": smooth(), "corrector": "none"})
    with pytest.raises(PlanError, match="this plan stores residual"):
        recipe.corrected("unic").resolve(frames.edm(), [5.0, 2.0, 1.0, 0.5, 0.0])
    with pytest.raises(PlanError, match="one coefficient per channel"):
        recipe.corrected("time_shift").resolve(frames.edm(), [5.0, 2.0, 1.0, 0.5, 0.0])
    with pytest.raises(OptionError, match="save the calibration and give its reference"):
        recipe.to_json()
