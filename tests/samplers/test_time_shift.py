"""Time shift: frames, windows, batches, no host reads, and what it refuses. The golden data are in test_golden."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from fewstep.samplers import Recipe, frames, grids, run
from fewstep.samplers.analytic import GaussianMixture, start_noise
from fewstep.samplers.errors import OptionError, PlanError
from host_reads import HostReads

VP = frames.discrete_vp(betas=np.linspace(1e-4, 0.02, 1000))
SCALINGS = {name: replace(VP, scaling=name) for name in ("vp", "unit", "flow")}
MODEL = GaussianMixture.make(0, scale=0.2)
SOLVERS = [
    ("ddim", {}), ("ddim", {"prediction": "eps"}), ("dpm_solver_multistep", {"order": 2}),
    ("dpm_solver_multistep", {"order": 3, "prediction": "noise"}), ("unipc", {"order": 3}), ("deis_ab", {"basis": "log_rho"}),
    ("deis_ab", {"basis": "t"}), ("ipndm", {"order": 3}), ("pndm", {"order": 4}), ("pndm", {"order": 2}),
    ("dpm_solver_singlestep", {"order": 2}), ("deis_rk", {"tableau": "2heun"}),
]
WIRINGS = ("paper", "target", "label")


def grid_of(frame, steps=6, end="stop"):
    return grids.uniform_t(frame, steps, end=end, t_T=0.95, t_0=0.02)


def sample(recipe, frame, end="stop", noise=None, told=None):
    grid = grid_of(frame, end=end)
    node = grid.node(0)
    start = 0.9 * start_noise(3) if noise is None else noise
    norm = (node.alpha**2 + node.sigma**2) ** 0.5  # the same variance-preserving state in every frame

    def denoiser(x, sigma):
        if told is not None:
            told.append(frame.lambda_of_sigma(sigma.numpy()))
        return MODEL.denoiser(frame, 2.0)(x, sigma)

    plan = recipe.resolve(frame, grid)
    result = run(plan, denoiser, start * norm)
    last = plan.nodes[-1]
    return plan, result / (last.alpha**2 + last.sigma**2) ** 0.5


def shifted(solver, options, wiring, **more):
    more = {"window": 20, "cutoff": 100.0, **more}
    return Recipe(solver, options).corrected("time_shift", wiring=wiring, **more)


@pytest.mark.parametrize("wiring", WIRINGS)
@pytest.mark.parametrize(("solver", "options"), SOLVERS)
def test_the_same_samples_in_every_frame(solver, options, wiring):
    told = {name: [] for name in SCALINGS}
    results = {name: sample(shifted(solver, options, wiring), frame, told=told[name]) for name, frame in SCALINGS.items()}
    base = sample(Recipe(solver, options), VP)[1]
    for name, (_, result) in results.items():
        np.testing.assert_allclose(np.stack(told[name]), np.stack(told["vp"]), rtol=0, atol=1e-9, err_msg=name)
        torch.testing.assert_close(result, results["vp"][1], rtol=0, atol=1e-10)
        assert (result - base).abs().max() > 1e-5, "the shift did nothing"


def test_the_solver_wiring_in_two_frames():
    recipe = shifted("dpm_solver_multistep", {"order": 2, "prediction": "noise"}, "dpm_solver")
    for end in ("stop", "zero"):
        vp, unit = (sample(recipe, SCALINGS[name], end=end)[1] for name in ("vp", "unit"))
        torch.testing.assert_close(vp, unit, rtol=0, atol=1e-10)


@pytest.mark.parametrize("wiring", (*WIRINGS, "dpm_solver"))
def test_a_narrow_window_is_the_base_sampler(wiring):
    options = {"order": 2, "prediction": "noise"}
    base = sample(Recipe("dpm_solver_multistep", options), VP)
    for window in (0, 1) if wiring != "label" else (0,):
        plan, result = sample(shifted("dpm_solver_multistep", options, wiring, window=window), VP)
        assert torch.equal(result, base[1]) and plan.nfe == base[0].nfe


@pytest.mark.parametrize("wiring", WIRINGS)
def test_every_sample_chooses_for_itself(wiring):
    recipe = shifted("unipc", {}, wiring)
    noise = start_noise(3) * torch.tensor([0.85, 1.0]).reshape(2, 1, 1, 1)
    told = []
    both = sample(recipe, VP, noise=noise, told=told)[1]
    alone = torch.cat([sample(recipe, VP, noise=noise[i : i + 1])[1] for i in range(2)])
    torch.testing.assert_close(both, alone, rtol=0, atol=1e-12)
    assert any(abs(pair[0] - pair[1]) > 1e-3 for pair in told) == (wiring != "target")  # target tells the model nominal times


def test_choices_stay_forward_when_clamped():
    told = []
    sample(shifted("ddim", {}, "paper", window=900), VP, told=told)
    nodes = grid_of(VP).lambda_
    for k, pair in enumerate(told[1:], 1):
        assert np.all((pair > nodes[k - 1]) & (pair < nodes[k + 1]))


@pytest.mark.parametrize("make", [frames.flow, frames.edm, frames.linear_vp])
@pytest.mark.parametrize("wiring", WIRINGS)
def test_continuous_models_have_levels_too(make, wiring):
    frame = make()
    grid = grids.karras(frame, 7, end="zero", t_T=20.0, t_0=0.05) if make is frames.edm else grids.uniform_t(
        frame, 7, end="zero", t_T=frame.time.t_T, t_0=0.05)
    recipe = shifted("dpm_solver_multistep", {}, wiring)
    result = run(recipe.resolve(frame, grid), MODEL.denoiser(frame), start_noise(1) * grid.sigma[0])
    base = run(Recipe("dpm_solver_multistep").resolve(frame, grid), MODEL.denoiser(frame), start_noise(1) * grid.sigma[0])
    assert torch.isfinite(result).all() and 1e-6 < (result - base).abs().max() < 1.0


@pytest.mark.parametrize("wiring", (*WIRINGS, "dpm_solver"))
def test_the_choice_stays_on_the_device(wiring):
    recipe = shifted("dpm_solver_multistep", {"order": 2, "prediction": "noise"}, wiring)
    frame = SCALINGS["unit"]
    grid = grid_of(frame)
    plan = recipe.resolve(frame, grid)
    denoiser = lambda x, sigma: x / (1 + sigma.reshape(-1, 1, 1, 1) ** 2)  # noqa: E731
    x = start_noise(1).float() * grid.sigma[0]
    with HostReads() as reads:
        run(plan, denoiser, x)
    assert reads.count == 1  # the check after the loop


def test_facts_and_text():
    plan = shifted("dpm_solver_multistep", {}, "paper").resolve(VP, grid_of(VP))
    base = Recipe("dpm_solver_multistep").resolve(VP, grid_of(VP))
    assert plan.late and plan.nfe == base.nfe and not plan.biased
    assert base.peak_latents < plan.peak_latents <= base.peak_latents + 2
    assert "* depends on the data" in plan.describe()
    with pytest.raises(PlanError, match="depend on the data cannot be saved"):
        from fewstep.samplers.plan_io import plan_to_data

        plan_to_data(plan, {})


def test_refusals():
    grid = grid_of(VP)
    for change, words in [
        ({"window": -1}, "window is -1"), ({"window": 1.5}, "window is 1.5"), ({"cutoff": 1000.0}, "cutoff is 1000.0"),
        ({"cutoff": -1.0}, "cutoff is -1.0"), ({"cutoff": float("nan")}, "cutoff is nan"),
    ]:
        with pytest.raises(OptionError, match=words):
            shifted("ddim", {}, "paper", **change).resolve(VP, grid)
    with pytest.raises(OptionError, match="wiring"):
        shifted("ddim", {}, "other")
    with pytest.raises(PlanError, match="order 2 with prediction='noise'"):
        shifted("unipc", {}, "dpm_solver").resolve(VP, grid)
    with pytest.raises(PlanError, match="inner='grid'"):
        shifted("dpm_solver_singlestep", {"inner": "lambda", "order": 2}, "paper").resolve(VP, grid)
    with pytest.raises(OptionError, match="put it before"):
        shifted("dpm_solver_multistep", {}, "paper").corrected("unic").resolve(VP, grid)
    with pytest.raises(OptionError, match="chooses its steps while running"):
        shifted("dpm_solver_adaptive", {}, "paper").resolve(VP, grid)
