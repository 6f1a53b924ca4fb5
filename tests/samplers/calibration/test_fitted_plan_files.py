"""Fitted plans: resumption, cost, files, and refusals."""

from dataclasses import replace

import pytest
import torch
from fewstep.samplers import Recipe, grids, make_plan, run
from fewstep.samplers.calibration import store
from fewstep.samplers.calibration.fitted_plan import FitSettings, cost, fit
from fewstep.samplers.calibration.job import Job
from fewstep.samplers.calibration.joint import Joint
from fewstep.samplers.calibration.refine import Refinement
from fewstep.samplers.calibration.samples import Samples
from fewstep.samplers.calibration.stagewise import fit_plan
from fewstep.samplers.errors import CalibrationError
from fewstep.samplers.predictions import change_frame
from fewstep.samplers.solvers.fitted import fitted_grid, trial_grid
from fits import FRAMES, JOINT, MODEL, QUICK, B, mixture_fit, starts


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
