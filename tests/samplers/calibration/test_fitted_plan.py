"""Fitted plans: what they represent exactly, what least squares and refinement reach, resumption, and refusals."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from fewstep.samplers import Recipe, frames, grids, make_plan, run
from fewstep.samplers.analytic import GaussianMixture, start_noise
from fewstep.samplers.calibration import store
from fewstep.samplers.calibration.fitted_plan import FitSettings, cost, fit, settings_from
from fewstep.samplers.calibration.job import Job
from fewstep.samplers.calibration.joint import Joint, slopes_cost, trace
from fewstep.samplers.calibration.refine import Refinement
from fewstep.samplers.calibration.samples import Samples
from fewstep.samplers.calibration.stagewise import fit_plan, solve_weights, teacher_grid
from fewstep.samplers.calibration.tableau import Tableau
from fewstep.samplers.calibration.unrolled import Unrolled, uncorrelated
from fewstep.samplers.errors import CalibrationError, PlanError
from fewstep.samplers.predictions import change_frame
from fewstep.samplers.solvers.fitted import fitted_grid, trial_grid

SD = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
FRAMES = {
    "unit": frames.discrete_vp(SD).unit_alpha(), "vp": frames.discrete_vp(SD), "flow": frames.flow(), "edm": frames.edm(),
}
MODEL = GaussianMixture.make(0)
SOLVERS = [
    ("ddim", {}), ("ddim", {"prediction": "eps"}), ("dpm_solver_multistep", {"order": 3}), ("unipc", {"order": 3}),
    ("deis_ab", {}), ("ipndm", {}), ("dpm_solver_multistep", {"prediction": "noise"}), ("dpm_solver_singlestep", {"order": 2}),
]
B = 6


def grid_of(name, steps, end="zero"):
    frame = FRAMES[name]
    return grids.uniform_lambda(frame, steps, end=end, **({"t_T": 14.6, "t_0": 0.03} if name == "edm" else {"t_T": 0.99}))


def starts(grid, count, seed=0, size=(4, 2, 2)):
    return start_noise(seed, (count, *size)) * grid.sigma[0]


def mixture_fit(settings, steps=5, guidance=3.0, count=5 * B, **more):
    grid = grids.karras(FRAMES["edm"], steps, end="zero", t_T=14.6, t_0=0.03)
    return fit(MODEL.denoiser(FRAMES["edm"], guidance), grid, starts(grid, count), batch=B, held_out=2 * B, settings=settings, **more)


QUICK = FitSettings(teacher_steps=40, joint=Joint(rounds=0), refinement=Refinement(iterations=24, checks=4, rate=0.03))
JOINT = FitSettings(teacher_steps=40, joint=Joint(rounds=4, parts=1))


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


class Stop(Exception):
    pass


@pytest.mark.parametrize("relaxation", [0.0, 0.02])
def test_an_interrupted_fit_ends_with_the_same_bits(tmp_path, relaxation):
    settings = replace(QUICK, joint=Joint(rounds=3), refinement=replace(QUICK.refinement, iterations=8, relaxation=relaxation))
    counted = []
    whole = mixture_fit(settings, job=Job(1, {}, report=lambda done, total, curves: counted.append(done)))
    for stop in (2, 7, 10, 12, 14, 19, len(counted) - 1):  # in the teacher, both least squares, the refinement, the judgement
        partial, calls = tmp_path / f"{stop}.partial", []

        def interrupt(done, total, curves, calls=calls, stop=stop):
            calls.append(done)
            if len(calls) == stop:
                raise Stop

        with pytest.raises(Stop):
            mixture_fit(settings, job=Job(1, {}, partial=partial, report=interrupt))
        again = []
        resumed = mixture_fit(settings, job=Job(1, {}, partial=partial, report=lambda done, total, curves, again=again: again.append(done)))
        assert again == counted[stop:] and resumed.meta == whole.meta
        assert all(torch.equal(resumed.tensors[name], tensor) for name, tensor in whole.tensors.items())


def test_the_cost_is_known_beforehand_and_counts_calls():
    calls = []
    grid = grids.karras(FRAMES["edm"], 5, end="zero", t_T=14.6, t_0=0.03)
    guided = MODEL.denoiser(FRAMES["edm"], 3.0)

    def denoiser(x, sigma):
        calls.append(len(x))
        return guided(x, sigma)

    for settings in (replace(JOINT, joint=Joint(rounds=3, patience=9)), replace(QUICK, refinement=Refinement(iterations=0)), replace(QUICK, refinement=Refinement(iterations=8, checks=2, patience=9, checkpointing=False))):
        calls.clear()
        job = Job(1, {})
        fit(denoiser, grid, starts(grid, 5 * B), batch=B, held_out=2 * B, settings=settings, job=job)
        planned = cost(grid, 5 * B, B, 2 * B, settings)
        # the first level is the model's highest: until it moves, its slope takes one side only
        spared = settings.joint.rounds * settings.joint.batches(3 * B, B) * B * grid.steps
        assert job.done == planned and planned - spared <= sum(calls) <= planned
        assert settings.joint.rounds or sum(calls) == planned


def test_a_fit_in_inference_mode_is_the_same():
    settings = replace(QUICK, refinement=replace(QUICK.refinement, iterations=4))
    expected = mixture_fit(settings)
    with torch.inference_mode():
        got = mixture_fit(settings)
    assert all(torch.equal(got.tensors[name], tensor) for name, tensor in expected.tensors.items())


def test_files_recipes_and_grids(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_folders", [tmp_path])
    made = mixture_fit(replace(QUICK, refinement=replace(QUICK.refinement, iterations=60)))
    reference = store.save(made, tmp_path / "five.safetensors")
    recipe = Recipe("fitted_plan", {"calibration": reference})
    frame = FRAMES["edm"]
    grid = fitted_grid(reference, frame)
    rounded = torch.tensor(grid.sigma, dtype=torch.float32)
    plan = Recipe.from_json(recipe.to_json()).resolve(frame, rounded)
    x = starts(grid, 2)
    direct = make_plan("fitted_plan", frame, grid, calibration=made)
    torch.testing.assert_close(run(plan, MODEL.denoiser(frame), x), run(direct, MODEL.denoiser(frame), x), rtol=0, atol=0)
    assert plan.order is None and plan.nfe == 5 and plan.biased and plan.peak_latents < 10 and "five.safetensors" in plan.describe()
    vp = FRAMES["vp"]
    there = change_frame(x, frame, vp, grid.lambda_[0])
    moved = recipe.resolve(vp, fitted_grid(reference, vp))
    torch.testing.assert_close(run(moved, MODEL.denoiser(vp), there), run(direct, MODEL.denoiser(frame), x), rtol=0, atol=1e-10)
    for wrong, words in (([14.6, 3.0, 1.0, 0.0], r"5 steps \[14\.6, .*given are \[14\.6, 3, 1, 0\].*SIGMAS of the fitted"), (grid.sigma[1:], "denoise"), (grid.sigma * 1.001, "SIGMAS")):
        with pytest.raises(CalibrationError, match=words):
            recipe.resolve(frame, wrong)
    with pytest.raises(CalibrationError, match="needs the reference"):
        make_plan("fitted_plan", frame, grid)
    with pytest.raises(CalibrationError, match="holds ratios"):
        store.save(store.Calibration("ratios", {}), tmp_path / "r.safetensors")
        make_plan("fitted_plan", frame, grid, calibration="r.safetensors")
    with pytest.raises(CalibrationError, match="lacks 'told'"):
        make_plan("fitted_plan", frame, grid, calibration=replace(made, tensors={"sigma": made.tensors["sigma"]}))
    with pytest.raises(CalibrationError, match=r"'x' has shape \(2,\)"):
        make_plan("fitted_plan", frame, grid, calibration=replace(made, tensors={**made.tensors, "x": torch.ones(2)}))


def test_a_flow_plan_from_pure_noise_has_no_place_where_alpha_is_1():
    frame = FRAMES["flow"]
    grid = grids.uniform_t(frame, 4, end="zero", t_0=0.25)
    settings = FitSettings(teacher_steps=40, refinement=Refinement(iterations=0))
    made = fit(MODEL.denoiser(frame, 3.0), grid, starts(grid, 4 * B), batch=B, held_out=B, settings=settings)
    assert trial_grid(made).frame.scaling == "flow" and trial_grid(made).sigma[0] == 1.0
    with pytest.raises(CalibrationError, match="starts at pure noise"):
        fitted_grid(made, FRAMES["edm"])
    fitted_grid(made, FRAMES["vp"])


def test_no_gain_is_refused():
    """Least squares cannot beat a plan that is exact already: the denoiser of a single point."""
    frame = FRAMES["edm"]
    grid = grids.karras(frame, 4, end="zero", t_T=14.6, t_0=0.03)
    with pytest.raises(CalibrationError, match="no gain on 6 held-out samples"):
        fit(lambda x, s: torch.zeros_like(x), grid, starts(grid, 3 * B), batch=B, held_out=B, settings=QUICK)


def test_bad_input_is_named():
    frame = FRAMES["edm"]
    grid = grids.karras(frame, 4, end="zero", t_T=14.6, t_0=0.03)
    denoiser, states = MODEL.denoiser(frame), torch.randn(5, 2, 4, 2, 2, dtype=torch.float64)
    with pytest.raises(CalibrationError, match="whole batches of 6"):
        mixture_fit(QUICK, count=5 * B + 1)
    with pytest.raises(CalibrationError, match="2 samples cannot fit order 3"):
        fit_plan(denoiser, states, grid)
    with pytest.raises(CalibrationError, match="4 teacher states"):
        fit_plan(denoiser, states[1:], grid)
    for options, words in (({"order": 5}, "order is 5"), ({"order": 1, "ridge": 2.0}, "ridge is 2")):
        with pytest.raises(ValueError, match=words):
            fit_plan(denoiser, states, grid, **options)
    with pytest.raises(CalibrationError, match="fine solution of samples 0 to 5 failed"):
        fit(lambda x, s: x / 0, grid, starts(grid, 3 * B), batch=B, held_out=B, settings=QUICK)
    with pytest.raises(CalibrationError, match="NaN or infinity at sigma 14.6, in step 0"):
        fit_plan(lambda x, s: x * float("nan"), states, grid, order=1)
    with pytest.raises(ValueError, match="iterations is -1"):
        Refinement(iterations=-1)
    with pytest.raises(ValueError, match="teacher steps is 3"):
        mixture_fit(replace(QUICK, teacher_steps=3))


def test_each_epoch_draws_every_sample_once_at_its_own_row():
    samples = Samples(lambda x, s: x, 12, 4)
    for epoch in (0, 1):
        rows = samples.mixed(epoch, seed=3)
        assert sorted(rows.flatten().tolist()) == list(range(12))
        assert torch.equal(rows % 4, torch.arange(4).expand(3, 4))
    assert not torch.equal(samples.mixed(0, 3), samples.mixed(1, 3))
