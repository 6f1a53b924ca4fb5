"""Jumps: exact on Gaussian data, the same in every frame, and refused where the moments do not fit."""

import itertools
import math

import pytest
import torch
from fewstep.samplers import Recipe, frames, grids, make_plan, run
from fewstep.samplers.analytic import start_noise
from fewstep.samplers.calibration import store
from fewstep.samplers.calibration.moments import from_latents
from fewstep.samplers.calibration.moments_file import calibration_of, moments_of
from fewstep.samplers.errors import CalibrationError
from fewstep.samplers.grids import node_at_lambda
from fewstep.samplers.moments import ChannelMoments, FourierMoments, LowRankMoments
from fewstep.samplers.spectra import whole_spectrum
from fewstep.samplers.teleport import anchored_jump, gaussian_denoiser, guided_jump, jump
from latents import FRAMES, KINDS, SHAPE, correlated, measured, shifted


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
