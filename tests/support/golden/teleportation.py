"""Analytical teleportation: the official map and trajectories, and the spec's own derivations."""

import json

import numpy as np
import torch
from fewstep.samplers import Recipe, frames, grids
from fewstep.samplers import run as run_plan
from fewstep.samplers.analytic import GaussianMixture
from fewstep.samplers.calibration.affine import AffineFit, combined
from fewstep.samplers.calibration.moments import from_latents
from fewstep.samplers.calibration.moments_file import calibration_of, moments_of
from fewstep.samplers.moments import ChannelMoments, LowRankMoments
from fewstep.samplers.spectra import whole_spectrum
from fewstep.samplers.teleport import anchored_jump, gaussian_denoiser, guided_jump, jump
from safetensors import safe_open

TOLERANCE = 1e-10
FRAMES = {"vp": frames.linear_vp, "flow": frames.flow, "edm": frames.edm}


def accepts(head, settings):
    return head.get("system") == "analytical teleportation"


def run(case):
    name = case.name
    kinds = {"gauss": gauss, "hybrid_heun": heun, "hybrid_stats": statistics, "frame": frame, "stats": regression,
             "guided": guided, "lowrank": lowrank, "fourier": fourier, "anchored": anchored}
    next(check for start, check in kinds.items() if name.startswith(start))(case)


def near(found, expected, tolerance=TOLERANCE):
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * float(expected.abs().max()))


def given(case):
    values = case["eigenvalues"]
    vectors = case["eigenvectors"] if "eigenvectors" in case else torch.eye(len(values), dtype=torch.float64)
    return LowRankMoments(case["mu"], vectors, values, torch.zeros((), dtype=torch.float64))


def gauss(case):
    moments, sigmas, x = given(case), case["sigmas"].tolist(), case["x"]
    near(x[0], case.tensors["x_T"].flatten(1) * sigmas[0])
    denoise = gaussian_denoiser(moments, lambda sigma: 1.0)
    for s, state, score in zip(sigmas, x, case["score"], strict=True):
        near(jump(x[0], 1.0, sigmas[0], 1.0, s, moments), state)
        near((denoise(state, torch.full((len(state),), s, dtype=torch.float64)) - state) / s**2, score)


def frame(case):
    alpha, sigma = case["alpha"].tolist(), case["sigma"].tolist()
    known = FRAMES[case.set["frame"]]()
    np.testing.assert_allclose(known.sigma(np.array(case.set["times"])), sigma, rtol=1e-12)
    for a, s, x in zip(alpha[1:], sigma[1:], case["x"], strict=True):
        near(jump(case["x_start"], alpha[0], sigma[0], a, s, given(case)), x)


def between(case):
    known = FRAMES[case.set["frame"]]()
    times = case.set["times"] if "times" in case.set else case.set["sigmas"]
    return [float(v) for t in times for v in (known.alpha(t), known.sigma(t))]


def regression(case):
    fit = AffineFit("channel", float(case["sigma"]))
    fit.add(case["x"], case["D"])
    moments = combined([fit])
    near(moments.mean, case["mean"])
    near(moments.covariance, case["cov"])


def statistics(case):
    """The mean and covariance of the testbed's conditional mixture; the trajectories that use them name its seed."""
    trajectories = case.name.replace("hybrid_stats_", "hybrid_heun").split("_g")
    with safe_open(case.path, "pt") as file:
        users = [json.loads(text) for name, text in file.metadata().items()
                 if name.startswith(f"{trajectories[0]}_skip") and name.endswith(f"_g{trajectories[1]}")]
    model = GaussianMixture.make(users[0]["mixture_seed"])
    mean = model.w_cond @ model.mu
    near(mean, case["mean"])
    near(torch.diag(model.w_cond @ model.s**2) + (model.mu.T * model.w_cond) @ model.mu - torch.outer(mean, mean), case["cov"])


def heun(case):
    s, sigmas = case.set, case["sigmas"]
    known = frames.edm()
    with safe_open(case.path, "pt") as file:
        mean, cov = (file.get_tensor(f"hybrid_stats_{s['steps']}_g{s['guidance']}.{key}") for key in ("mean", "cov"))
    moments = calibration_of(ChannelMoments(mean, cov))
    start, skip = case.x_T * sigmas[0], s["skip"]
    recipe = Recipe("deis_rk", {"tableau": "2heun"})
    if skip:
        recipe = recipe.started("teleport", moments=moments, mode="mean", rest="tail", skip="sigma", sigma_skip=float(sigmas[skip]))
    plan = recipe.resolve(known, grids.from_sigmas(known, [*sigmas.tolist(), 0.0]))
    assert plan.nfe == s["model_calls"]
    first = start if plan.start is None else plan.start(start, None)
    near(first, case["x_start"])
    near(run_plan(plan, case.model.denoiser(known, s["guidance"]), start), case["x_final"])


def guided(case):
    s = case.set
    own, other = (
        ChannelMoments(*(torch.tensor(v, dtype=torch.float64) for v in ([s[f"mu_{part}"]], [[s[f"l{part}"]]]))) for part in "cu"
    )
    start = case["x_start"][:, None]
    for sigma, x in zip(s["sigmas"][1:], case["x"], strict=True):
        near(guided_jump(start, 1.0, s["sigmas"][0], 1.0, sigma, own, other, s["guidance"])[:, 0], x, 1e-9)


def lowrank(case):
    made = from_latents(case["latents"].split(16), kind="lowrank", rank=case.set["rank"])
    moments = moments_of(made)
    for found, key in ((moments.mean, "mean"), (moments.eigenvalues, "eigenvalues"), (moments.residual, "residual_variance")):
        near(found, case[key])
    signs = (moments.vectors * case["eigenvectors"]).sum(0).sign()
    near(moments.vectors * signs, case["eigenvectors"])
    near(jump(case["x_start"], *between(case), moments), case["x"])


def fourier(case):
    made = from_latents(case["latents"].split(5))
    moments = moments_of(made)
    spectrum = whole_spectrum(moments.spectrum, case["latents"].shape[-1])
    near(moments.mean, case["mean"])
    near(torch.view_as_real(spectrum), torch.stack([case["spectrum_real"], case["spectrum_imag"]], -1))
    near(jump(case["x_start"], *between(case), moments), case["x"])


def anchored(case):
    s0, s1 = case.set["sigmas"]
    moments = ChannelMoments(torch.zeros(4, dtype=torch.float64), case["cov"])
    x, denoised = case["x_start"], case["denoised"]
    near(anchored_jump(x, denoised, 1.0, s0, 1.0, s1, moments), case["x"])
    # a plain jump around the mean that the call implies is the same one
    implied = denoised - torch.einsum("ij,bjhw->bihw", case["cov"] / s0**2, x - denoised)
    near(implied, case["mean"])
    near(jump(x - implied, 1.0, s0, 1.0, s1, moments) + implied, case["x"])
