"""Teleportation as a start transform: smaller errors, the same bits, every solver after it, and what is refused."""

import logging

import pytest
import torch
from fewstep.samplers import Recipe, frames, grids, make_plan, run
from fewstep.samplers.analytic import GaussianMixture, start_noise
from fewstep.samplers.calibration import store
from fewstep.samplers.calibration.moments_file import calibration_of, moments_of
from fewstep.samplers.errors import CalibrationError, OptionError, ScheduleError
from fewstep.samplers.moments import ChannelMoments
from fewstep.samplers.shortened import tail
from fewstep.samplers.teleport import gaussian_denoiser, jump
from latents import KINDS, SHAPE, measured, shifted
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode


def mixture(frame, scale, seed=0):
    return GaussianMixture.make(seed).denoiser(frame, scale)


def of_mixture(seed=0, weights="w_cond"):
    model = GaussianMixture.make(seed)
    w = getattr(model, weights)
    mean = w @ model.mu
    return ChannelMoments(mean, torch.diag(w @ model.s**2) + (model.mu.T * w) @ model.mu - torch.outer(mean, mean))


def error(plan, frame, scale, exact, x):
    return float((run(plan, mixture(frame, scale), x) - exact).square().mean().sqrt())


@pytest.mark.parametrize(("scale", "mode", "sigma_skip"), [(1.0, "mean", 4.0), (7.5, "guided", 8.0), (7.5, "anchored", 8.0)])
def test_fewer_or_equal_calls_and_a_smaller_error(scale, mode, sigma_skip):
    """On the testbed's mixture, errors to a solution in 800 steps: regrid by a factor, the tail with fewer evaluations."""
    frame, x = frames.edm(), start_noise(1) * 80
    moments = calibration_of(of_mixture(), of_mixture(weights="w_uncond"))
    grid = grids.karras(frame, 10, end="zero", t_T=80.0, t_0=0.002)
    exact = run(make_plan("unipc", frame, grids.karras(frame, 800, end="zero", t_T=80.0, t_0=0.002), order=3), mixture(frame, scale), x)
    base = Recipe("dpm_solver_multistep", {"order": 2})
    plain = error(base.resolve(frame, grid), frame, scale, exact, x)
    options = {"moments": moments, "mode": mode, "skip": "sigma", "sigma_skip": sigma_skip, "guidance_scale": scale}
    fine = base.started("teleport", rest="regrid", **options).resolve(frame, grid)
    short = base.started("teleport", rest="tail", **options).resolve(frame, grid)
    assert fine.nfe == 10 + (mode == "anchored") and short.nfe < 9
    assert error(fine, frame, scale, exact, x) < 0.4 * plain
    if scale == 1.0:
        assert error(short, frame, scale, exact, x) < 1.1 * plain


def test_skip_by_fraction_by_measurement_and_by_sigma():
    frame, moments = frames.edm(), measured("channel")
    grid = grids.karras(frame, 8, end="zero", t_T=80.0, t_0=0.03)

    def first(moments=moments, on=grid, **options):
        plan = Recipe("ddim").started("teleport", moments=moments, mode="mean", **options).resolve(on.frame, on)
        return plan.nodes[0].sigma if plan.start else None

    spread = moments_of(moments).covariance.diagonal().mean() ** 0.5
    assert first() == pytest.approx(float(8 * spread), rel=1e-12) and first(skip="fraction") == grid.sigma[2]
    assert first(skip="fraction", fraction=0.5) == grid.sigma[4] and first(skip="fraction", fraction=0.9) == grid.sigma[7]
    assert first(skip="sigma", sigma_skip=5.0) == 5.0
    known = store.Calibration("moments", moments.tensors, {**moments.meta, "range": {"mean": 3.0, "anchored": 1.5}})
    assert first(known) == pytest.approx(3.0, rel=1e-12)
    flow = grids.uniform_t(frames.flow(), 8, end="zero")
    assert first(known, flow) == pytest.approx(0.75, rel=1e-12)  # rho = 3


@pytest.mark.parametrize(("options", "sigmas"), [
    ({"skip": "sigma", "sigma_skip": 5.0}, [3.0, 1.0, 0.0]), ({"skip": "auto"}, [80.0, 3.0, 0.0]),
    ({"skip": "fraction", "fraction": 0.0}, [80.0, 3.0, 0.0])])
def test_a_run_with_nothing_to_jump_over_is_left_alone_and_says_so(caplog, options, sigmas):
    moments = measured("channel")
    moments = store.Calibration("moments", moments.tensors, {**moments.meta, "range": {"mean": None}})
    with caplog.at_level(logging.WARNING, "fewstep"):
        plan = Recipe("ddim").started("teleport", moments=moments, mode="mean", **options).resolve(frames.edm(), sigmas)
    assert plan.start is None and [n.sigma for n in plan.nodes] == sigmas
    assert "no teleportation" in caplog.text


@pytest.mark.parametrize(("options", "kind", "words"), [
    ({"skip": "sigma"}, OptionError, "sigma_skip is 0.0"), ({"skip": "sigma", "sigma_skip": -1.0}, OptionError, "above 0"),
    ({"skip": "sigma", "sigma_skip": 80.0}, OptionError, "below 80"),
    ({"skip": "sigma", "sigma_skip": float("nan")}, OptionError, "nan"),
    ({"skip": "sigma", "sigma_skip": 0.5}, ScheduleError, "no sigma below 0.5"),
    ({"fraction": 1.0}, OptionError, "fraction is 1.0"), ({"mode": "men"}, OptionError, "did you mean 'mean'"),
    ({"mode": "guided"}, CalibrationError, "unconditional model"), ({"rest": "none"}, OptionError, "tail, regrid"),
    ({"moments": store.Calibration("ratios", {})}, CalibrationError, "ratios"),
    ({"moments": 3}, CalibrationError, "not int"), ({"moments": "none.safetensors"}, CalibrationError, "no calibration file"),
])
def test_refusals(options, kind, words):
    with pytest.raises(kind, match=words):
        Recipe("ddim").started("teleport", **{"moments": measured("channel"), **options}).resolve(frames.edm(), [80.0, 20.0, 5.0, 1.0])


def test_a_draw_needs_a_full_run():
    recipe = Recipe("ddim").started("teleport", moments=measured("channel"), start="draw")
    with pytest.raises(OptionError, match="draw"):
        recipe.resolve(frames.edm(), [40.0, 20.0, 5.0, 1.0])


@pytest.mark.parametrize("mode", ["mean", "anchored", "guided"])
@pytest.mark.parametrize("start_with", ["ode", "draw"])
def test_facts_and_determinism(mode, start_with):
    own = moments_of(measured("fourier"))
    moments, frame = calibration_of(own, shifted(own)), frames.edm()
    recipe = Recipe("dpm_solver_sde_multistep").started("teleport", moments=moments, mode=mode, start=start_with, skip="fraction", rest="tail", guidance_scale=3.0)
    plan = recipe.resolve(frame, grids.karras(frame, 8, end="zero", t_T=80.0, t_0=0.03))
    calls, seen = [], []

    def denoiser(x, sigma):
        calls.append(float(sigma[0]))
        return x / (1 + sigma.reshape(-1, 1, 1, 1) ** 2)

    x = (start_noise(1, (2, *SHAPE)) * 80).float()
    kept = x.clone()
    first = run(plan, denoiser, x, seed=3, callback=lambda p: seen.append((p.index, p.total)))
    assert len(calls) == plan.nfe == 6 + (mode == "anchored") and torch.equal(x, kept)
    assert seen == [(i, plan.nfe) for i in range(plan.nfe)] and calls[0] == pytest.approx(80.0 if mode == "anchored" else plan.nodes[0].sigma)
    assert torch.equal(run(plan, denoiser, x, seed=3), first)
    assert f"{mode} jump to sigma" in plan.describe() and f"{plan.nfe} evaluations" in plan.describe()
    with pytest.raises(OptionError, match="save the calibration"):
        recipe.to_json()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("mode", "how"), [("mean", "ode"), ("anchored", "draw"), ("guided", "draw")])
def test_a_jump_holds_no_more_than_it_says(kind, mode, how):
    """Bytes of states alive while it runs, the caller's included, and the plan's figure with them."""
    own = moments_of(measured(kind))
    recipe = Recipe("ddim").started("teleport", moments=calibration_of(own, own), mode=mode, start=how)
    plan = recipe.resolve(frames.edm(), [80.0, 20.0, 5.0, 1.0])
    x, live, peak = torch.zeros(64, *SHAPE), {}, []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.untyped_storage().nbytes() * 2 >= x.nbytes:
                storage = out.untyped_storage()
                live[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
            peak.append(sum(size for ref, size in live.values() if not ref.expired()) / x.nbytes)
            return out

    with Watch():
        plan.start(x, lambda y, node: y * 0.5)
    assert 2 < max(peak) + 1 <= plan.start.latents + 0.5 and plan.peak_latents >= plan.start.latents


@pytest.mark.parametrize("solver", ["unipc", "deis_ab", "dpm_solver_singlestep", "dpm_solver_adaptive", "ipndm"])
def test_every_solver_goes_on_after_a_jump(solver):
    """On Gaussian data nothing is lost by it: the result is the exact solution's as far as the solver is exact after the jump."""
    frame, moments = frames.edm(), measured("channel")
    grid = grids.karras(frame, 24, end="stop", t_T=80.0, t_0=0.1)
    plan = Recipe(solver, {"basis": "log_rho"} if solver == "deis_ab" else {}).started("teleport", moments=moments, mode="mean", skip="sigma", sigma_skip=3.0).resolve(frame, grid)
    x = start_noise(1, (2, *SHAPE)) * 80
    end = run(plan, gaussian_denoiser(moments_of(moments), lambda s: 1.0), x)
    assert float((end - jump(x, 1.0, 80.0, 1.0, 0.1, moments_of(moments))).abs().max()) < 0.03


def test_a_jump_composes_with_correctors():
    frame, moments = frames.edm(), measured("channel")
    grid = grids.karras(frame, 10, end="zero", t_T=80.0, t_0=0.03)
    plan = Recipe("dpm_solver_multistep").corrected("unic").started("teleport", moments=moments, rest="tail").resolve(frame, grid)
    tail_only = Recipe("dpm_solver_multistep").corrected("unic").resolve(frame, tail(grid, plan.nodes[0].sigma))
    assert plan.nfe == tail_only.nfe + 1 and [s.carry.m for s in plan.stages] == [s.carry.m for s in tail_only.stages]


@pytest.mark.parametrize("solver", ["consistency", "tcd"])
def test_step_distilled_models_do_not_jump(solver):
    with pytest.raises(OptionError, match="step-distilled"):
        Recipe(solver).started("teleport", moments="m.safetensors")
