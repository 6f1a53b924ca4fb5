"""Dynamic compensation: against the published rule written out, in every frame, and what it refuses. Golden data: test_golden."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from fewstep.samplers import Recipe, frames, grids, load_plan, run, save_plan
from fewstep.samplers.analytic import GaussianMixture, start_noise
from fewstep.samplers.calibration.moments import from_denoiser
from fewstep.samplers.calibration.statistics import Statistics
from fewstep.samplers.correctors.compensation import dynamic_compensation
from fewstep.samplers.correctors.dualfast import dualfast
from fewstep.samplers.correctors.unic import unic
from fewstep.samplers.errors import CalibrationWarning, OptionError, PlanError

VP = frames.discrete_vp(betas=np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
SCALINGS = {name: replace(VP, scaling=name) for name in ("vp", "unit", "flow")}
MODEL = GaussianMixture.make(0)
RATIOS = (1.0, 1.0, 1.12, 0.83, 1.21, 0.9)


def statistics():
    """A number per channel, smooth in lambda."""
    lam, shape = np.linspace(-4, 5, 40), (1, 4, 1, 1)
    t = torch.from_numpy(lam).reshape(-1, 1, 1, 1)
    c = torch.arange(1.0, 5.0, dtype=torch.float64).reshape(shape)
    return Statistics(lam, torch.sigmoid(-t - 0.2 * c), 0.1 * torch.sin(t + c), 0.05 * torch.cos(t * c))


SOLVERS = [
    ("ddim", {}), ("ddim", {"prediction": "eps"}), ("ddim", {"prediction": "flow"}),
    ("dpm_solver_multistep", {"order": 2}), ("dpm_solver_multistep", {"order": 3, "prediction": "noise"}),
    ("deis_ab", {"basis": "t"}), ("deis_ab", {"basis": "log_rho", "ab_order": 3}), ("ipndm", {"order": 3}),
    ("unipc", {"order": 3}), ("unipc", {"order": 2, "prediction": "noise", "variant": "bh1"}), ("unipc", {"order": 2, "corrector": False}),
    ("unipc", {"order": 2, "disable_corrector": (0, 2)}), ("unipc", {"order": 2, "denoise_to_zero": True}),
    ("dpm_solver_multistep", {"denoise_to_zero": True}), ("dpm_solver_v3", {"order": 3, "corrector": "none"}),
    ("dpm_solver_v3", {"order": 2, "corrector": "full"}),
]


def recipe_of(solver, options):
    return Recipe(solver, {**options, **({"statistics": statistics()} if solver == "dpm_solver_v3" else {})})


def grid_of(frame, end="stop", steps=6):
    return grids.uniform_t(frame, steps, end=end, t_T=0.99, t_0=0.05)


def lagrange(times, values, t):
    return sum(
        v * math.prod((t - b) / (a - b) for j, b in enumerate(times) if j != k) for k, (a, v) in enumerate(zip(times, values, strict=True))
    )


def by_the_rule(plan, ratios, d, denoiser, x):
    """The published loop: before each step the newest stored output is overwritten; the corrector's newest is not."""
    outputs, start, steps = {}, x, len(plan.nodes) - 1

    def apply(row, x):
        total = sum((c * outputs[j] for j, c in row.m.items()), row.x * x + row.x_T * start)
        return total if row.offset is None else total + row.offset

    def compensate(newest):
        if newest < steps and ratios[newest] != 1:
            past = [newest - i for i in range(d + 1)]
            times = [plan.nodes[i].t for i in past]
            t = ratios[newest] * times[0] + (1 - ratios[newest]) * times[1]
            outputs[newest] = lagrange(times, [outputs[i] for i in past], t)

    for k, stage in enumerate(plan.stages):
        corrects = not stage.predict.is_identity
        if corrects:
            compensate(k - 1)
        y = apply(stage.predict, x)
        p, q = stage.store
        outputs[k] = p * y + q * denoiser(y, torch.full((len(x),), stage.node.sigma, dtype=torch.float64))
        if not corrects and not stage.carry.is_identity:
            compensate(k)
        x = y if stage.carry is stage.predict and corrects else apply(stage.carry, x)
    if not plan.final.is_identity:
        compensate(len(plan.stages) - 1)
    return apply(plan.final, x)


@pytest.mark.parametrize(
    ("solver", "options", "end"), [(*s, end) for s in SOLVERS for end in ("stop", "zero") if end == "stop" or "denoise_to_zero" not in s[1]], ids=str)
def test_folded_rows_are_the_published_rule(solver, options, end):
    frame = SCALINGS["unit"]
    grid, base = grid_of(frame, end), recipe_of(solver, options)
    x, denoiser = start_noise(1) * grid.sigma[0], MODEL.denoiser(frame, 3.0)
    plan = base.resolve(frame, grid)
    tried = False
    for d, ratios in ((2, RATIOS), (1, (1.0, 0.9, *RATIOS[2:])), (3, (1.0, 1.0, 1.0, *RATIOS[3:]))):
        if solver == "dpm_solver_v3" and end == "zero":
            ratios = (*ratios[:-1], 1.0)  # its last output is an x_0, the ones before are not
        changed = base.corrected("dynamic_compensation", ratios=ratios, dc_order=d).resolve(frame, grid)
        result = run(changed, denoiser, x)
        wanted = by_the_rule(plan, ratios, d, denoiser, x)
        torch.testing.assert_close(result, wanted, rtol=0, atol=1e-10 * float(wanted.abs().max()))
        tried |= float((result - run(plan, denoiser, x)).abs().max()) > 1e-3
        assert changed.nfe == plan.nfe and changed.order is None and changed.biased == plan.biased
    assert tried, "compensation did nothing"


@pytest.mark.parametrize("make", [unic, lambda plan, **o: plan], ids=["corrected", "plain"])
def test_ratios_of_one_leave_the_plan_as_it_is(make):
    plan = make(Recipe("dpm_solver_multistep").resolve(VP, grid_of(VP)))
    assert dynamic_compensation(plan, ratios=[1.0] * 6) is plan


@pytest.mark.parametrize("end", ["stop", "zero"])
@pytest.mark.parametrize(("solver", "options"), SOLVERS[:12], ids=str)
def test_the_same_samples_in_every_frame(solver, options, end):
    results = {}
    for name, frame in SCALINGS.items():
        grid = grid_of(frame, end)
        plan = Recipe(solver, options).corrected("dynamic_compensation", ratios=RATIOS).resolve(frame, grid)
        first, last = grid.node(0), plan.nodes[-1]
        result = run(plan, MODEL.denoiser(frame, 3.0), start_noise(2) * math.hypot(first.alpha, first.sigma))
        results[name] = result / math.hypot(last.alpha, last.sigma)
    for name in ("unit", "flow"):
        torch.testing.assert_close(results[name], results["vp"], rtol=0, atol=1e-9)


@pytest.mark.parametrize("sigmas", [[1.0, 0.9, 0.7, 0.45, 0.2, 0.1, 0.0], [1.0, 0.9, 0.7, 0.45, 0.2, 0.1, 0.05]])
def test_flow_from_pure_noise(sigmas):
    frame = frames.flow()
    data = [Recipe("dpm_solver_multistep"), Recipe("unipc", {"order": 3}), Recipe("ddim", {"prediction": "flow"}), Recipe("dpm_solver_multistep").corrected("unic")]
    noise = [Recipe("deis_ab"), Recipe("ipndm"), Recipe("unipc", {"prediction": "noise"}), Recipe("ddim", {"prediction": "eps"})]
    for recipe, ratios in [*((r, RATIOS) for r in data), *((r, (1.0, *RATIOS[:-1])) for r in noise)]:
        base = recipe.resolve(frame, sigmas)
        plan = dynamic_compensation(base, ratios=ratios)
        x = start_noise(1)
        torch.testing.assert_close(
            run(plan, MODEL.denoiser(frame, 3.0), x), by_the_rule(base, ratios, 2, MODEL.denoiser(frame, 3.0), x), rtol=0, atol=1e-11)
    with pytest.raises(OptionError, match="only the steps 4, 5, 6 have"):
        dynamic_compensation(Recipe("deis_ab").resolve(frame, sigmas), ratios=RATIOS)


def test_time_is_the_models_own():
    """An affine map of the time changes nothing, another map does: the weights are those of (t* - t_j)/(t_k - t_j)."""
    sigmas = [14.0, 8.0, 4.0, 2.0, 1.0, 0.5, 0.1]
    discrete, level = SCALINGS["unit"], frames.edm()
    plans = [dynamic_compensation(Recipe("ddim").resolve(f, sigmas), ratios=[1, 1, 0.8, 1, 1, 1]) for f in (discrete, level)]
    for frame, plan in zip((discrete, level), plans, strict=True):
        t = [float(frame.t_of_sigma(s)) for s in sigmas[2::-1]]
        at = 0.8 * t[0] + 0.2 * t[1]
        gain = plan.stages[2].carry.m[2] + plan.stages[2].carry.m[1] + plan.stages[2].carry.m[0]  # the weights sum to 1
        for k, j in enumerate((2, 1, 0)):
            assert plan.stages[2].carry.m[j] / gain == pytest.approx(lagrange(t, np.eye(3)[k], at), rel=1e-9)
    assert abs(plans[0].stages[2].carry.m[2] - plans[1].stages[2].carry.m[2]) > 1e-2


def run_all(plans, frame, scale=3.0):
    x = start_noise(4) * plans[0].nodes[0].sigma
    return [run(plan, MODEL.denoiser(frame, scale), x) for plan in plans]


def test_a_corrector_given_later_corrects_below_the_compensation():
    frame = SCALINGS["unit"]
    grid, base = grid_of(frame), Recipe("dpm_solver_multistep")
    before = base.corrected("unic", order=3).corrected("dynamic_compensation", ratios=RATIOS)
    after = base.corrected("dynamic_compensation", ratios=RATIOS).corrected("unic", order=3)
    one, other = run_all([r.resolve(frame, grid) for r in (before, after)], frame)
    assert torch.equal(one, other)


@pytest.mark.parametrize("scope", ["all", "leading"])
@pytest.mark.parametrize("tau", ["first", "previous"])
@pytest.mark.parametrize("solver", ["unipc", "dpm_solver_multistep", "deis_ab"])
def test_dualfast_acts_on_the_models_outputs_whatever_the_order(solver, tau, scope):
    frame = SCALINGS["unit"]
    grid, mix = grid_of(frame), {"c_max": 0.3, "tau": tau, "scope": scope}
    base = Recipe(solver).resolve(frame, grid)
    plans = [
        dynamic_compensation(dualfast(base, **mix), ratios=RATIOS), dualfast(dynamic_compensation(base, ratios=RATIOS), **mix),
    ]
    one, other = run_all(plans, frame)
    assert torch.equal(one, other) and plans[0].biased
    if scope == "leading":
        return
    first, mixed = [], MODEL.denoiser(frame, 3.0)

    def denoiser(x, sigma):  # DualFast as a wrapped model, in the alpha = 1 frame
        s = sigma.reshape(-1, 1, 1, 1)
        D = mixed(x, sigma)
        eps = (x - D) / s
        earlier = first[0 if tau == "first" else -1] if first else eps
        first.append(eps)
        c = 0.3 * (1 - float(frame.t_of_sigma(float(sigma[0]))) / plans[0].nodes[0].t)
        return D - s * c * (eps - earlier)

    wanted = by_the_rule(base, RATIOS, 2, denoiser, start_noise(4) * base.nodes[0].sigma)
    torch.testing.assert_close(one, wanted, rtol=0, atol=1e-10 * float(wanted.abs().max()))


def test_time_shift_comes_after():
    frame = SCALINGS["unit"]
    recipe = Recipe("unipc").corrected("dynamic_compensation", ratios=RATIOS)
    plain, shifted, same = run_all([
        r.resolve(frame, grid_of(frame)) for r in (
            recipe, recipe.corrected("time_shift", window=60, cutoff=100.0), recipe.corrected("time_shift", window=0))
    ], frame)
    assert torch.equal(plain, same) and 1e-6 < (plain - shifted).abs().max() < 5
    with pytest.raises(OptionError, match="put it before"):
        recipe.corrected("time_shift").corrected("dynamic_compensation", ratios=RATIOS).resolve(frame, grid_of(frame))


@pytest.mark.parametrize("corrector", [("dynamic_compensation", {"ratios": RATIOS}), ("dualfast", {"c_max": 0.3}), ("dualfast", {"c_max": 0.3, "tau": "previous"})], ids=str)
def test_after_a_jump_the_first_state_is_where_it_lands(corrector):
    frame, denoiser = SCALINGS["unit"], MODEL.denoiser(SCALINGS["unit"], 1.0)
    moments = from_denoiser(denoiser, frame, torch.zeros(2, 4, 4, 4, dtype=torch.float64), kind="channel", samples=4, seed=1)
    grid = grid_of(frame, "zero")
    recipe = Recipe("unipc").corrected(corrector[0], **corrector[1]).started("teleport", moments=moments, skip="sigma", sigma_skip=5.0, rest="regrid")
    plan = recipe.resolve(frame, grid)
    x = start_noise(1, (2, 4, 4, 4)) * grid.sigma[0]
    landed = plan.start(x, lambda y, node: denoiser(y, torch.full((len(y),), node.sigma, dtype=torch.float64)))
    assert (landed - x).abs().max() > 1
    torch.testing.assert_close(run(plan, denoiser, x), run(replace(plan, start=None), denoiser, landed), rtol=0, atol=1e-12)


def test_files_keep_the_numbers_and_what_they_are(tmp_path):
    frame = SCALINGS["unit"]
    plan = dynamic_compensation(Recipe("unipc", {"order": 3}).resolve(frame, grid_of(frame)), ratios=RATIOS)
    save_plan(plan, tmp_path / "plan.json")
    again = load_plan(tmp_path / "plan.json")
    assert torch.equal(*run_all([plan, again], frame)) and again.describe() == plan.describe()
    for change in (unic, dynamic_compensation):
        with pytest.raises(PlanError, match=r"read from a file|use it once"):
            change(again, **({"ratios": RATIOS} if change is dynamic_compensation else {}))


def test_recipes_are_json():
    recipe = Recipe("unipc").corrected("dynamic_compensation", ratios=[1, 1, 0.9], dc_order=2)
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert Recipe("unipc").corrected("dynamic_compensation", guidance=6.0).resolve(VP, grid_of(VP, steps=6)).nfe == 6


@pytest.mark.parametrize(("options", "error", "words"), [
    ({"ratios": [1.0] * 5}, OptionError, "5 ratios were given for 6 steps"), ({"ratios": []}, OptionError, "0 ratios"),
    ({"ratios": [1, 1, math.nan, 1, 1, 1]}, OptionError, "hold nan"), ({"ratios": [1, 1, "a", 1, 1, 1]}, OptionError, "hold 'a'"),
    ({"ratios": [1, 0.9, 1, 1, 1, 1]}, OptionError, r"ratio 2 is 0\.9, expected 1.*only the steps 3, 4, 5, 6 have"),
    ({"ratios": [0.9, 1, 1, 1, 1, 1], "dc_order": 1}, OptionError, "ratio 1 is"), ({"ratios": RATIOS, "dc_order": 0}, OptionError, "dc_order is 0"),
    ({}, OptionError, "sd21 needs the guidance scale"), ({"guidance": math.nan}, OptionError, "guidance is nan"),
])
def test_bad_options_are_named(options, error, words):
    with pytest.raises(error, match=words):
        dynamic_compensation(Recipe("ddim").resolve(VP, grid_of(VP)), **options)


def test_plans_that_cannot_be_compensated():
    frame = SCALINGS["unit"]
    for solver, options in (("deis_rk", {}), ("dpm_solver_singlestep", {"order": 2}), ("pndm", {})):
        with pytest.raises(PlanError, match="one evaluation per step"):
            dynamic_compensation(Recipe(solver, options).resolve(frame, grid_of(frame)), ratios=RATIOS)
    for solver in ("dpm_solver_sde_multistep", "consistency", "tcd"):
        with pytest.raises(PlanError, match="adds noise"):
            dynamic_compensation(Recipe(solver).resolve(frame, grid_of(frame)), ratios=RATIOS)
    with pytest.raises(PlanError, match="give the solver prediction='x_0'"):
        dynamic_compensation(Recipe("ddim", {"prediction": "v"}).resolve(frame, grid_of(frame)), ratios=RATIOS)
    plan = Recipe("ddim").resolve(frame, grid_of(frame))
    with pytest.raises(PlanError, match="use it once"):
        dynamic_compensation(dynamic_compensation(plan, ratios=RATIOS), ratios=RATIOS)
    nodes = [plan.nodes[1]._replace(t=plan.nodes[0].t) if i == 1 else node for i, node in enumerate(plan.nodes)]
    with pytest.raises(PlanError, match="model's time"):
        dynamic_compensation(replace(plan, nodes=tuple(nodes)), ratios=RATIOS)
    with pytest.raises(OptionError, match="chooses its steps while running"):
        Recipe("dpm_solver_adaptive").corrected("dynamic_compensation", ratios=RATIOS).resolve(frame, grid_of(frame))


def test_the_published_polynomial_warns_outside_its_range():
    for steps, guidance in ((4, 7.5), (30, 7.5), (8, 0.0), (8, 20.0)):
        with pytest.warns(CalibrationWarning, match="fitted for 5 to 20 steps"):
            dynamic_compensation(Recipe("ddim").resolve(VP, grid_of(VP, steps=steps)), guidance=guidance)
    with pytest.raises(OptionError, match="steps of the ratio polynomial is 2"):
        dynamic_compensation(Recipe("ddim").resolve(VP, grid_of(VP, steps=2)), guidance=7.5, dc_order=1)
