"""Jumps: exact on Gaussian data, the same in every frame, and refused where they make no sense."""

import itertools
import logging
import math

import numpy as np
import pytest
import torch
from fewstep.samplers import Recipe, frames, grids, make_plan, run
from fewstep.samplers.analytic import GaussianMixture, start_noise
from fewstep.samplers.calibration import store
from fewstep.samplers.calibration.moments import from_latents
from fewstep.samplers.calibration.moments_file import calibration_of, moments_of
from fewstep.samplers.errors import CalibrationError, OptionError, ScheduleError
from fewstep.samplers.grids import node_at_lambda
from fewstep.samplers.moments import ChannelMoments, FourierMoments, LowRankMoments
from fewstep.samplers.shortened import regrid, tail
from fewstep.samplers.spectra import whole_spectrum
from fewstep.samplers.teleport import anchored_jump, gaussian_denoiser, guided_jump, jump
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

SHAPE = (3, 8, 6)
FRAMES = {"edm": frames.edm(), "vp": frames.linear_vp(), "flow": frames.flow()}
KINDS = ("channel", "fourier", "lowrank")


def correlated(samples, shape=SHAPE, seed=0):
    """Latents with a red spectrum, channels that go together, and a mean."""
    g = torch.Generator().manual_seed(seed)
    white = torch.randn(samples, *shape, generator=g, dtype=torch.float64)
    if len(shape) == 1:
        return white @ (torch.eye(shape[0], dtype=torch.float64) + 0.5) - 0.5
    z = torch.fft.fftn(white, dim=tuple(range(2, white.ndim)))
    far = sum(torch.fft.fftfreq(n).reshape(-1, *(1,) * (len(shape) - 2 - i)) ** 2 for i, n in enumerate(shape[1:]))
    x = torch.fft.ifftn(z / (0.15 + far**0.5), dim=tuple(range(2, white.ndim))).real * 0.4
    mix = torch.eye(shape[0], dtype=torch.float64) + 0.5
    return torch.einsum("ij,bj...->bi...", mix, x) + torch.linspace(-1, 1, shape[0], dtype=torch.float64).reshape(-1, *(1,) * (len(shape) - 1))


def measured(kind, shape=SHAPE, samples=40):
    return from_latents([correlated(samples, shape)], kind=kind, rank=5)


# the map

@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scaling", FRAMES)
def test_a_jump_is_the_solution_for_gaussian_data(kind, scaling):
    """Against a solver with 1000 steps on the exact Gaussian denoiser."""
    frame, moments = FRAMES[scaling], moments_of(measured(kind))
    grid = grids.uniform_lambda(frame, 1000, end="stop", t_0=float(frame.t_of_lambda(-0.5)))
    first, last = grid.node(0), grid.node(1000)
    x = start_noise(1, (2, *SHAPE)) * first.sigma
    exact = run(make_plan("dpm_solver_multistep", frame, grid, order=3, solver_type="exact"), gaussian_denoiser(moments, frame.alpha_of_sigma), x)
    jumped = jump(x, first.alpha, first.sigma, last.alpha, last.sigma, moments)
    assert float((jumped - exact).abs().max() / exact.abs().max()) < 2e-8
    anchor = gaussian_denoiser(moments, frame.alpha_of_sigma)(x, torch.tensor([first.sigma], dtype=torch.float64))
    anchored = anchored_jump(x, anchor, first.alpha, first.sigma, last.alpha, last.sigma, moments)
    assert float((anchored - jumped).abs().max() / jumped.abs().max()) < 1e-9


@pytest.mark.parametrize("kind", KINDS)
def test_identity_and_composition(kind):
    moments = moments_of(measured(kind))
    x, at = start_noise(1, (2, *SHAPE)), grids.Node(1.0, 0.0, 1.0, -math.inf)
    places = [(at.alpha, at.sigma), (0.2, 0.8), (0.45, 0.55)]
    torch.testing.assert_close(jump(x, *places[1], *places[1], moments), x, rtol=0, atol=1e-13)
    torch.testing.assert_close(anchored_jump(x, 0.3 * x, *places[1], *places[1], moments), x, rtol=0, atol=1e-12)
    twice = jump(jump(x, *places[0], *places[1], moments), *places[1], *places[2], moments)
    torch.testing.assert_close(twice, jump(x, *places[0], *places[2], moments), rtol=0, atol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_frames_agree(kind):
    """After division by alpha a jump between two values of lambda is one and the same; a third way for anchored ones."""
    moments, x, denoised = moments_of(measured(kind)), start_noise(2, (2, *SHAPE)), correlated(2, seed=5)
    found = []
    for frame in FRAMES.values():
        a, b = (node_at_lambda(frame, lam) for lam in (-3.0, -1.0))
        given = (moments.centre(x) + a.rho * x) * a.alpha
        for result in (
            jump(given, a.alpha, a.sigma, b.alpha, b.sigma, moments),
            anchored_jump(given, denoised, a.alpha, a.sigma, b.alpha, b.sigma, moments),
            guided_jump(given, a.alpha, a.sigma, b.alpha, b.sigma, moments, shifted(moments), 4.0),
        ):
            found.append(result / b.alpha)
    for i in range(3, len(found)):
        torch.testing.assert_close(found[i], found[i % 3], rtol=0, atol=1e-10)


def shifted(moments):
    """The same directions, another mean and larger variances."""
    if moments.kind == "channel":
        return ChannelMoments(moments.mean - 0.5, moments.covariance * 1.7)
    if moments.kind == "fourier":
        return FourierMoments(moments.mean - 0.5, moments.spectrum * 1.7, moments.sizes)
    return LowRankMoments(moments.mean - 0.5, moments.vectors, moments.eigenvalues * 1.7, moments.residual * 1.7)


@pytest.mark.parametrize(("kind", "scale"), [("channel", 1.0), ("channel", 3.0), ("fourier", 7.5), ("lowrank", 7.5)])
@pytest.mark.parametrize("scaling", FRAMES)
def test_a_guided_jump_is_the_guided_solution(kind, scaling, scale):
    """Two Gaussians of other means and variances, against 400 steps; with equal variances, the plain jump of the guided mean."""
    frame, moments = FRAMES[scaling], moments_of(measured(kind))
    grid = grids.uniform_lambda(frame, 400, end="stop", t_0=float(frame.t_of_lambda(-0.5)))
    a, b = grid.node(0), grid.node(400)
    x = start_noise(1, (2, *SHAPE)) * a.sigma
    cond, uncond = (gaussian_denoiser(m, frame.alpha_of_sigma) for m in (moments, shifted(moments)))
    plan = make_plan("dpm_solver_multistep", frame, grid, order=3, solver_type="exact")
    exact = run(plan, lambda y, s: uncond(y, s) + scale * (cond(y, s) - uncond(y, s)), x)
    jumped = guided_jump(x, a.alpha, a.sigma, b.alpha, b.sigma, moments, shifted(moments), scale)
    assert float((jumped - exact).abs().max() / exact.abs().max()) < 2e-6
    if kind == "channel":
        other = ChannelMoments(moments.mean - 0.5, moments.covariance)
        mean = ChannelMoments(other.mean + scale * (moments.mean - other.mean), moments.covariance)
        torch.testing.assert_close(
            guided_jump(x, 0.0, 1.0, 0.6, 0.4, moments, other, scale), jump(x, 0.0, 1.0, 0.6, 0.4, mean), rtol=0, atol=1e-11)


@pytest.mark.parametrize("scaling", FRAMES)
def test_an_anchored_jump_without_covariance_is_ddim(scaling):
    frame = FRAMES[scaling]
    zero = ChannelMoments(torch.zeros(3), torch.zeros(3, 3))
    a, b = (frame.time.t_T, float(frame.t_of_lambda(-1.0)))
    grid = grids.from_times(frame, [a, b], end="stop")
    x, denoised = start_noise(1, (2, *SHAPE)), start_noise(2, (2, *SHAPE))
    ddim = run(make_plan("ddim", frame, grid), lambda y, s: denoised.clone(), x)
    s, t = grid.nodes
    jumped = anchored_jump(x, denoised, s.alpha, s.sigma, t.alpha, t.sigma, zero)
    assert float((jumped - ddim).abs().max()) < 1e-12


def test_an_anchored_jump_from_pure_noise_is_the_limit_of_the_jumps_near_it():
    moments, x, denoised = moments_of(measured("fourier")), start_noise(1, (2, *SHAPE)), correlated(2, seed=5)
    limit = anchored_jump(x, denoised, 0.0, 1.0, 0.4, 0.6, moments)
    errors = [float((anchored_jump(x, denoised, a, 1 - a, 0.4, 0.6, moments) - limit).abs().max()) for a in (1e-3, 1e-4, 1e-5)]
    assert errors[0] < 0.1 and all(late < 0.11 * early for early, late in itertools.pairwise(errors))


def test_a_draw_has_the_law_of_noisy_data():
    """Mean and covariance of many draws at the jump's end; ``ode`` keeps what the state lacks."""
    latents = correlated(4000, (3,))
    moments = from_latents([latents], kind="channel")
    frame, sigma = frames.edm(), 2.0
    grid = grids.karras(frame, 8, end="zero", t_T=6.0, t_0=0.02)
    top = frames.Frame("unit", frames.SigmaTime(t_T=6.0))
    grid = grids.Grid(top, grid.sigma, grid.alpha, grid.lambda_, grid.t, "zero")
    unit = start_noise(3, (40_000, 3))
    denoise = gaussian_denoiser(moments_of(moments), lambda s: 1.0)
    wanted = moments_of(moments).covariance + sigma**2 * torch.eye(3)
    errors = {}
    for mode in ("mean", "anchored"):
        for how in ("draw", "ode"):
            plan = Recipe("ddim").started("teleport", moments=moments, mode=mode, skip="sigma", sigma_skip=sigma, start=how).resolve(top, grid)
            x = plan.start(unit * math.sqrt(1 + 36), lambda y, node: denoise(y, torch.tensor([node.sigma])))
            errors[mode, how] = float((torch.cov(x.T) - wanted).abs().max() / wanted.max())
    assert errors["mean", "draw"] < 0.02 and errors["mean", "ode"] > 0.02
    assert abs(errors["anchored", "draw"] - errors["mean", "draw"]) < 0.02


# sizes, shapes and precisions

@pytest.mark.parametrize("sizes", [(16, 12), (8, 9), (5, 6), (24, 18)])
def test_fourier_moments_of_another_size_keep_the_channels_variance(sizes):
    moments = moments_of(measured("fourier"))
    other = moments.fit((1, 3, *sizes))
    before, after = (whole_spectrum(m.spectrum, m.sizes[-1]) for m in (moments, other))
    torch.testing.assert_close(after.flatten(0, 1).mean(0).diagonal(), before.flatten(0, 1).mean(0).diagonal(), rtol=1e-12, atol=0)
    torch.testing.assert_close(after[0, 0] / math.prod(sizes), before[0, 0] / 48)
    assert float((after - after.mH).abs().max()) < 1e-12
    # real latents stay real: the multiplied state needs no other half
    x = start_noise(1, (2, 3, *sizes))
    whole = torch.einsum("hwij,bjhw->bihw", after, torch.fft.fft2(x, norm="ortho"))
    back = torch.fft.ifft2(whole, norm="ortho")
    assert float(back.imag.abs().max()) < 1e-12
    torch.testing.assert_close(other.apply(x, other.values), back.real)


def test_the_same_spectrum_at_double_size():
    """A smooth spectrum read off at twice as many frequencies: the even ones are the old ones, up to one factor."""
    moments = moments_of(measured("fourier", (2, 12, 10), 400))
    before, after = (whole_spectrum(m.spectrum, m.sizes[-1]) for m in (moments, moments.fit((1, 2, 24, 20))))
    ratio = (after[::2, ::2, 0, 0] / before[:, :, 0, 0]).real.flatten()[1:]
    assert float(ratio.std() / ratio.mean()) < 1e-12 and 0.8 < float(ratio.mean()) < 1.2


@pytest.mark.parametrize(("kind", "shape"), [("channel", (3, 4, 8, 6)), ("fourier", (3, 4, 8, 6)), ("lowrank", (3, 4, 8, 6)), ("channel", (3,)), ("fourier", (3, 20))])
def test_video_and_flat_latents(kind, shape):
    moments = moments_of(measured(kind, shape))
    x = start_noise(1, (2, *shape)) * 40
    back = jump(jump(x, 1.0, 40.0, 1.0, 3.0, moments), 1.0, 3.0, 1.0, 40.0, moments)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 6e-3), (torch.float16, 1e-3)])
def test_half_precision_states_are_multiplied_in_float32(kind, dtype, tolerance):
    moments = moments_of(measured(kind))
    x = (start_noise(1, (2, *SHAPE)) * 80).to(dtype)
    exact, got = (jump(v, 1.0, 80.0, 1.0, 2.0, moments) for v in (x.double(), x))
    assert got.dtype == dtype
    assert float((got.double() - exact).abs().max() / exact.abs().max()) < tolerance


@pytest.mark.parametrize(("kind", "shape", "words"), [
    ("channel", (1, 4, 8, 6), "3 channels"), ("fourier", (1, 4, 8, 6), "another kind of latent"),
    ("fourier", (1, 3, 5, 8, 6), "picture or video"), ("lowrank", (1, 3, 8, 8), "fourier moments, which fit every size"),
    ("channel", (1, 1, 300), "packed"), ("fourier", (2, 1, 300), "packed"),
])
def test_states_that_the_moments_do_not_describe(kind, shape, words):
    with pytest.raises(CalibrationError, match=words):
        jump(torch.zeros(shape), 1.0, 10.0, 1.0, 2.0, moments_of(measured(kind)))


def test_moments_that_do_not_fit_together():
    eye = torch.eye(4)
    with pytest.raises(CalibrationError, match="not orthonormal"):
        LowRankMoments(torch.zeros(4), eye[:, :2] * 1.1, torch.ones(2), torch.zeros(()))
    with pytest.raises(CalibrationError, match="covariance"):
        ChannelMoments(torch.zeros(3), torch.eye(4))
    with pytest.raises(CalibrationError, match="complex spectrum"):
        FourierMoments(torch.zeros(3), torch.zeros(8, 4, 3, 3, dtype=torch.complex128), (8, 8))
    with pytest.raises(CalibrationError, match="of the unconditional model"):
        moments_of(measured("fourier"), unconditional=True)
    with pytest.raises(CalibrationError, match="kind of moments"):
        moments_of(store.Calibration("moments", {}, {}))


def test_moments_are_saved_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_folders", [tmp_path])
    for kind in KINDS:
        own = moments_of(measured(kind))
        ref = store.save(calibration_of(own, shifted(own), note="x"), tmp_path / f"{kind}.safetensors")
        found = store.load(ref, "moments")
        for unconditional, wanted in ((False, own), (True, shifted(own))):
            read = moments_of(found, unconditional=unconditional)
            assert type(read) is type(wanted)
            torch.testing.assert_close(read.tensors(), wanted.tensors(), rtol=0, atol=0)


# the grid that is left

def test_a_tail_keeps_the_grids_nodes():
    grid = grids.karras(frames.edm(), 8, end="zero", t_T=80.0, t_0=0.03)
    at = tail(grid, float(grid.sigma[3]))
    for name in ("sigma", "alpha", "lambda_", "t"):
        np.testing.assert_array_equal(getattr(at, name), getattr(grid, name)[3:])
    between = tail(grid, 10.0)
    assert between.sigma[0] == 10.0 and between.node(0).lambda_ == pytest.approx(-math.log(10))
    np.testing.assert_array_equal(between.sigma[1:], grid.sigma[grid.sigma < 10])
    # a float32 copy of a node is that node, and no step of 1e-8 is left behind
    assert len(tail(grid, float(np.float32(grid.sigma[3]))).sigma) == len(at.sigma)


@pytest.mark.parametrize(("frame", "name", "more"), [
    ("edm", "karras", {}), ("vp", "uniform_t", {}), ("vp", "quadratic_t", {}), ("vp", "uniform_lambda", {}),
    ("flow", "uniform_t", {}), ("flow", "exponential", {}), ("flow", "karras", {}), ("edm", "exponential", {})])
@pytest.mark.parametrize("end", ["stop", "zero"])
def test_a_regridded_named_grid_is_the_named_grid_from_there_on(frame, name, more, end):
    """With all its steps, from the jump's end to the grid's own."""
    frame = FRAMES[frame]
    stop = float(frame.t_of_lambda(3.0))
    grid = grids.GRIDS[name](frame, 6, end=end, t_0=stop)
    sigma = float(frame.sigma_of_lambda(-0.4))
    found = regrid(grid, sigma)
    wanted = grids.GRIDS[name](frame, 6, end=end, t_0=stop, t_T=float(frame.t_of_lambda(-0.4)))
    assert found.steps == 6
    np.testing.assert_allclose(found.sigma, wanted.sigma, rtol=1e-9)


@pytest.mark.parametrize("sigmas", [[14.6, 9.0, 5.0, 2.9, 1.3, 0.4, 0.0], [0.99, 0.95, 0.7, 0.6, 0.3, 0.0], [9.0, 0.0], [9.0, 2.0]])
@pytest.mark.parametrize("share", [0.9, 0.5])
def test_any_grid_can_be_regridded(sigmas, share):
    grid = grids.from_sigmas(frames.flow() if sigmas[0] < 1 else frames.edm(), sigmas)
    sigma = share * sigmas[0]
    found = regrid(grid, sigma)
    assert (found.steps, found.end, found.sigma[0], found.sigma[-1]) == (grid.steps, grid.end, sigma, grid.sigma[-1])


# as a start transform

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
