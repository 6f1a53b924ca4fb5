"""DualFast: as a wrapped model, the leading scope written out, in every frame, and what it refuses. Golden data: test_golden."""

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from fewstep.samplers import Recipe, frames, grids, load_plan, run, save_plan
from fewstep.samplers.analytic import GaussianMixture, start_noise
from fewstep.samplers.calibration.statistics import Statistics
from fewstep.samplers.correctors.dualfast import dualfast
from fewstep.samplers.correctors.unic import unic
from fewstep.samplers.errors import OptionError, PlanError
from fewstep.samplers.facts import bias

VP = frames.discrete_vp(betas=np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
SCALINGS = {name: replace(VP, scaling=name) for name in ("vp", "unit", "flow")}
MODEL = GaussianMixture.make(0)
SOLVERS = [
    ("ddim", {}), ("ddim", {"prediction": "eps"}), ("ddim", {"prediction": "v"}), ("dpm_solver_multistep", {"order": 2}),
    ("dpm_solver_multistep", {"order": 3, "prediction": "noise"}), ("dpm_solver_singlestep", {"order": 3}),
    ("dpm_solver_singlestep", {"order": 2, "prediction": "noise"}), ("deis_ab", {"basis": "t"}), ("deis_rk", {"tableau": "3kutta"}),
    ("ipndm", {}), ("pndm", {"order": 2}), ("unipc", {"order": 3}), ("unipc", {"order": 2, "prediction": "noise"}),
    ("unipc", {"order": 2, "disable_corrector": (1,)}),
]
STEPS = 7


def grid_of(frame, end="stop", steps=STEPS):
    return grids.uniform_t(frame, steps, end=end, t_T=0.99, t_0=0.05)


def wrapped(frame, tau, c, told=None):
    """The model that mixes: what DualFast of scope all means."""
    model, seen = MODEL.denoiser(frame, 3.0), []

    def denoiser(x, sigma):
        s = float(sigma[0])
        a = float(frame.alpha_of_sigma(s))
        D = model(x, sigma)
        eps = (x - a * D) / s
        earlier = seen[0 if tau == "first" else -1] if seen else eps
        seen.append(eps)
        return D - s / a * c[len(seen) - 1] * (eps - earlier) if len(seen) > 1 else D

    return denoiser


def strengths(plan, c_max=0.3):
    return [c_max * (1 - s.node.t / plan.nodes[0].t) for s in plan.stages]


@pytest.mark.parametrize("end", ["stop", "zero"])
@pytest.mark.parametrize("tau", ["first", "previous"])
@pytest.mark.parametrize(("solver", "options"), SOLVERS, ids=str)
def test_scope_all_is_a_wrapped_model(solver, options, tau, end):
    frame = SCALINGS["unit"]
    grid = grid_of(frame, end)
    x = start_noise(1) * grid.sigma[0]
    base = Recipe(solver, options).resolve(frame, grid)
    for skip in (True, False):
        plan = Recipe(solver, options).corrected("dualfast", c_max=0.3, tau=tau, skip_last=skip).resolve(frame, grid)
        c = strengths(base)
        if skip and end == "zero":
            c[-1] = 0.0
        wanted = run(base, wrapped(frame, tau, c), x)
        torch.testing.assert_close(run(plan, MODEL.denoiser(frame, 3.0), x), wanted, rtol=0, atol=1e-9 * float(wanted.abs().max()))
    assert plan.nfe == base.nfe and plan.biased and plan.order is None
    assert bias(plan) < 1e-9, "a constant denoiser is still integrated exactly"


def test_v3_mixes_before_its_own_output():
    lam = np.linspace(-4, 5, 40)
    t, c = torch.from_numpy(lam).reshape(-1, 1, 1, 1), torch.arange(1.0, 5.0, dtype=torch.float64).reshape(1, 4, 1, 1)
    known = Statistics(lam, torch.sigmoid(-t - 0.2 * c), 0.1 * torch.sin(t + c), 0.05 * torch.cos(t * c))
    frame = SCALINGS["unit"]
    for corrector in ("none", "full"):
        recipe = Recipe("dpm_solver_v3", {"statistics": known, "corrector": corrector})
        base = recipe.resolve(frame, grid_of(frame))
        plan = recipe.corrected("dualfast", c_max=0.3).resolve(frame, grid_of(frame))
        x = start_noise(1) * plan.nodes[0].sigma
        wanted = run(base, wrapped(frame, "first", strengths(base)), x)
        torch.testing.assert_close(run(plan, MODEL.denoiser(frame, 3.0), x), wanted, rtol=0, atol=1e-10 * float(wanted.abs().max()))
        for refused in ({"tau": "previous"}, {"scope": "leading"}):
            with pytest.raises(PlanError, match="scope 'all' and tau 'first' alone"):
                dualfast(base, **refused)


def leading(plan, tau, c, model, x):
    """Steps of the base plan with w0 (m' - m) added, w0 from the table of order-1 weights; states given to the model kept."""
    nodes, outputs, eps, start, kinds = plan.nodes, {}, [], x, [s.kind for s in plan.stages]
    ahead = plan.stages[0].carry.is_identity and len({s.step for s in plan.stages}) == len(plan.stages)

    def apply(row, x, source, target):
        if row.is_identity:
            return x
        total = sum((w * outputs[j] for j, w in row.m.items()), row.x * x + row.x_T * start)
        s, k = plan.stages[source].node, kinds[source]
        h = target.lambda_ - s.lambda_
        delta = c[source] * (eps[source] - eps[0 if tau == "first" else source - 1])
        if k == "eps":
            return total - target.sigma * math.expm1(h) * delta
        assert k == "x_0"
        return total - target.alpha * math.expm1(-h) * (-s.sigma / s.alpha) * delta

    first = 0
    for k, stage in enumerate(plan.stages):
        if not ahead and (k == 0 or stage.step != plan.stages[k - 1].step):
            first = k
        source = k - 1 if ahead else first
        y = apply(stage.predict, x, source, stage.node)
        D = model(y, torch.full((len(x),), stage.node.sigma, dtype=torch.float64))
        eps.append((y - stage.node.alpha * D) / stage.node.sigma)
        p, q = stage.store
        outputs[k] = p * y + q * D
        x = y if stage.carry is stage.predict and k else apply(stage.carry, x, source, stage.node if ahead else nodes[stage.step + 1])
    return apply(plan.final, x, len(plan.stages) - 1, nodes[-1])


@pytest.mark.parametrize("tau", ["first", "previous"])
@pytest.mark.parametrize(("solver", "options"), [s for s in SOLVERS if s[1].get("prediction") != "v"], ids=str)
def test_scope_leading_mixes_the_first_order_term_alone(solver, options, tau):
    frame = VP
    grid = grid_of(frame)
    base = Recipe(solver, options).resolve(frame, grid)
    plan = dualfast(base, c_max=0.3, tau=tau, scope="leading")
    c = [0.0, *strengths(base)[1:]]
    wanted = leading(base, tau, c, MODEL.denoiser(frame, 3.0), start_noise(1))
    got = run(plan, MODEL.denoiser(frame, 3.0), start_noise(1))
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-9 * float(wanted.abs().max()))
    assert bias(plan) < 1e-9 and (got - run(base, MODEL.denoiser(frame, 3.0), start_noise(1))).abs().max() > 1e-3


@pytest.mark.parametrize("end", ["stop", "zero"])
@pytest.mark.parametrize("prediction", ["x_0", "eps", "v", "flow"])
@pytest.mark.parametrize("tau", ["first", "previous"])
def test_scopes_agree_for_order_one(tau, prediction, end):
    frame = SCALINGS["unit"]
    base = Recipe("ddim", {"prediction": prediction}).resolve(frame, grid_of(frame, end))
    x = start_noise(1) * base.nodes[0].sigma
    one, other = (run(dualfast(base, c_max=0.4, tau=tau, scope=scope), MODEL.denoiser(frame, 3.0), x) for scope in ("all", "leading"))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-11 * float(one.abs().max()))


@pytest.mark.parametrize("scope", ["all", "leading"])
@pytest.mark.parametrize("tau", ["first", "previous"])
@pytest.mark.parametrize(("solver", "options"), SOLVERS, ids=str)
def test_the_same_samples_in_every_frame(solver, options, tau, scope):
    results = {}
    for name, frame in SCALINGS.items():
        plan = Recipe(solver, options).corrected("dualfast", c_max=0.3, tau=tau, scope=scope).resolve(frame, grid_of(frame, "zero"))
        node = plan.nodes[0]
        results[name] = run(plan, MODEL.denoiser(frame, 3.0), start_noise(2) * math.hypot(node.alpha, node.sigma))
    for name in ("unit", "flow"):
        torch.testing.assert_close(results[name], results["vp"], rtol=0, atol=1e-9)


@pytest.mark.parametrize("scope", ["all", "leading"])
@pytest.mark.parametrize("tau", ["first", "previous"])
@pytest.mark.parametrize(("solver", "options"), [("ddim", {}), ("dpm_solver_multistep", {}), ("unipc", {}), ("deis_ab", {}), ("unipc", {"prediction": "noise"})], ids=str)
def test_flow_from_pure_noise(solver, options, tau, scope):
    """At alpha 0 the first noise prediction is the start itself; all of it is the limit of starts near there."""
    frame, sigmas = frames.flow(), [0.9, 0.7, 0.45, 0.2, 0.05]
    recipe = Recipe(solver, options).corrected("dualfast", c_max=0.3, tau=tau, scope=scope)
    pure = run(recipe.resolve(frame, [1.0, *sigmas]), MODEL.denoiser(frame, 3.0), start_noise(1))
    if scope == "all":
        base = Recipe(solver, options).resolve(frame, [1.0, *sigmas])
        model, seen = MODEL.denoiser(frame, 3.0), []

        def denoiser(x, sigma):
            s = float(sigma[0])
            D = model(x, sigma)
            seen.append((x - (1 - s) * D) / s)
            k = len(seen) - 1
            return D if k == 0 else D - s / (1 - s) * 0.3 * (1 - s) * (seen[k] - seen[0 if tau == "first" else k - 1])

        torch.testing.assert_close(pure, run(base, denoiser, start_noise(1)), rtol=0, atol=1e-11)
    elif solver == "ddim":
        near = run(recipe.resolve(frame, [1.0 - 1e-9, *sigmas]), MODEL.denoiser(frame, 3.0), start_noise(1))
        torch.testing.assert_close(pure, near, rtol=0, atol=1e-6)
    assert torch.isfinite(pure).all()


def test_no_strength_is_no_change():
    base = Recipe("unipc").resolve(VP, grid_of(VP))
    assert dualfast(base, c_max=0.0) is base and dualfast(base, c=[0.7] + [0.0] * (STEPS - 1)) is base


def test_the_first_evaluation_is_not_mixed():
    base = Recipe("ddim").resolve(VP, grid_of(VP))
    one, other = (dualfast(base, c=[first, *[0.2] * (STEPS - 1)]) for first in (0.0, 0.4))
    assert one.describe() == other.describe() and dict(one.stages[0].carry.m) == dict(base.stages[0].carry.m)


def test_schedules_of_the_strength():
    plan = Recipe("ddim", {"prediction": "eps"}).resolve(VP, grid_of(VP))
    t = np.array([s.node.t for s in plan.stages])
    wanted = {
        "linear": 0.3 + (0.1 - 0.3) * t / t[0], "constant": np.full(STEPS, 0.3), "step": 0.1 + 0.2 * np.arange(STEPS) / (STEPS - 1),
    }
    for schedule, c in wanted.items():
        mixed = dualfast(plan, c_max=0.3, c_min=0.1, schedule=schedule)
        for k in range(1, STEPS):  # noise outputs: their own column is scaled by 1 + c
            assert mixed.stages[k].carry.m[k] / plan.stages[k].carry.m[k] == pytest.approx(1 + c[k], rel=1e-12)


def test_a_linear_denoiser_shows_that_the_ode_is_another():
    frame = frames.linear_vp()

    def denoiser(x, sigma):  # exact for unit Gaussian data: the state does not change
        return (1 - sigma.reshape(-1, 1, 1, 1) ** 2).sqrt() * x

    def error(steps, change):
        plan = change(Recipe("ddim").resolve(frame, grids.uniform_t(frame, steps, end="stop")))
        x = start_noise(1)
        return float((run(plan, denoiser, x) - x).abs().max())

    plain, mixed = ([error(steps, change) for steps in (50, 400)] for change in (lambda p: p, lambda p: dualfast(p, c_max=0.3)))
    assert plain[1] < plain[0] / 6 and mixed[1] > 0.05


def test_grain_is_skipped_where_the_last_prediction_is_the_picture():
    for recipe, frame, end in (
        (Recipe("unipc"), SCALINGS["unit"], "zero"), (Recipe("ddim"), SCALINGS["flow"], "zero"),
        (Recipe("unipc", {"denoise_to_zero": True}), VP, "stop"),
    ):
        plan = recipe.resolve(frame, grid_of(frame, end))
        skipped, mixed = (dualfast(plan, c_max=0.3, skip_last=skip) for skip in (True, False))
        assert skipped.stages[-1].mix is None and mixed.stages[-1].mix is not None
        result = [plan.stages[-1].carry if plan.final.is_identity else plan.final for plan in (skipped, mixed)]
        assert not result[0].reads_start and result[1].reads_start


def test_memory_is_two_states_more():
    frame = SCALINGS["unit"]
    for recipe in (Recipe("dpm_solver_multistep"), Recipe("dpm_solver_multistep", {"prediction": "noise"}), Recipe("unipc")):
        base = recipe.resolve(frame, grid_of(frame, steps=12))
        plan = dualfast(base)
        assert base.peak_latents < plan.peak_latents <= base.peak_latents + 2
        assert plan.start_last_read == (12 if recipe.solver == "unipc" else 11) * (base.stages[1].kind == "x_0") - (base.stages[1].kind == "eps")
    assert dualfast(Recipe("dpm_solver_multistep").resolve(frame, grid_of(frame, steps=12)), tau="previous").peak_latents > 12


def test_correctors_given_later_go_below():
    base = Recipe("dpm_solver_multistep").resolve(VP, grid_of(VP))
    one, other = unic(dualfast(base, c_max=0.3)), dualfast(unic(base), c_max=0.3)
    x = start_noise(1)
    assert torch.equal(*(run(plan, MODEL.denoiser(VP, 3.0), x) for plan in (one, other)))


@pytest.mark.parametrize("wiring", ["paper", "target", "label"])
@pytest.mark.parametrize(("solver", "options"), [("ddim", {}), ("unipc", {"order": 2}), ("ipndm", {"order": 2})], ids=str)
def test_time_shift_mixes_at_the_relabelled_level(solver, options, wiring):
    frame = SCALINGS["unit"]
    shift = {"window": 60, "cutoff": 50.0, "wiring": wiring}
    base = Recipe(solver, options)
    plan = base.corrected("dualfast", c_max=0.3).corrected("time_shift", **shift).resolve(frame, grid_of(frame))
    x, model, seen = start_noise(3) * plan.nodes[0].sigma, MODEL.denoiser(frame), []

    def denoiser(x, sigma):  # per sample: each is told a level of its own
        s = sigma.reshape(-1, 1, 1, 1)
        D = model(x, sigma)
        eps = (x - D) / s
        seen.append(eps)
        c = 0.3 * (1 - torch.from_numpy(frame.t_of_sigma(sigma.numpy())).reshape(s.shape) / plan.nodes[0].t)
        return D - s * c * (eps - seen[0]) if len(seen) > 1 else D

    wanted = run(base.corrected("time_shift", **shift).resolve(frame, grid_of(frame)), denoiser, x)
    got = run(plan, model, x)
    if (solver, wiring) in (("ddim", "paper"), ("ddim", "target")):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-10 * float(wanted.abs().max()))
    else:  # older outputs count at their nominal times
        unmixed = run(base.corrected("time_shift", **shift).resolve(frame, grid_of(frame)), model, x)
        assert (got - wanted).abs().mean() < 0.1 * (unmixed - wanted).abs().mean()


def test_files_keep_the_numbers_and_the_bias(tmp_path):
    plan = Recipe("unipc").corrected("dualfast", c_max=0.3).resolve(VP, grid_of(VP))
    for name in ("plan.json", "plan.safetensors"):
        save_plan(plan, tmp_path / name)
        again = load_plan(tmp_path / name)
        assert again.biased and again.describe() == plan.describe()
        assert torch.equal(*(run(p, MODEL.denoiser(VP), start_noise(1)) for p in (plan, again)))
    with pytest.raises(PlanError, match="read from a file"):
        unic(again)


@pytest.mark.parametrize(("options", "error", "words"), [
    ({"c_max": math.nan}, OptionError, "c_max is nan"), ({"c_max": 1.5}, OptionError, "c_max is 1.5"), ({"c_min": -2.0}, OptionError, "c_min is -2"),
    ({"c": [0.1] * 3}, OptionError, "3 strengths for 7 evaluations"), ({"c": [0.0] * 6 + [math.inf]}, OptionError, r"c\[6\] is inf"),
    ({"schedule": "cosine"}, OptionError, "schedule is 'cosine'"), ({"tau": "last"}, OptionError, "tau is 'last'"), ({"scope": "none"}, OptionError, "scope is 'none'"),
])
def test_bad_options_are_named(options, error, words):
    with pytest.raises(error, match=words):
        dualfast(Recipe("unipc").resolve(VP, grid_of(VP)), **options)


def test_refusals_and_warnings():
    grid = grid_of(VP)
    with pytest.raises(PlanError, match="adds noise"):
        dualfast(Recipe("dpm_solver_sde_multistep").resolve(VP, grid))
    assert dualfast(Recipe("dpm_solver_sde_multistep", {"eta": 0.0}).resolve(VP, grid)).biased
    plan = Recipe("unipc").resolve(VP, grid)
    with pytest.raises(PlanError, match="use it once"):
        dualfast(dualfast(plan))
    with pytest.warns(UserWarning, match="above 0.5"):
        dualfast(plan, c_max=0.6)
    with pytest.warns(UserWarning, match="c_min 0.3 above c_max 0.1"):
        dualfast(plan, c_min=0.3)
    with pytest.warns(UserWarning, match="no effect on a plan with a single evaluation"):
        single = Recipe("ddim").resolve(VP, grid_of(VP, steps=1))
        assert dualfast(single) is single
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dualfast(plan, c_max=0.5)
    with pytest.raises(OptionError, match="chooses its steps while running"):
        Recipe("dpm_solver_adaptive").corrected("dualfast").resolve(VP, grid)
