"""The sigma clock against the methods that it makes of flow models, written out here, and against exact solutions."""

import itertools
import math

import numpy as np
import pytest
import torch
from fewstep.samplers import Recipe, frames, grids, run
from fewstep.samplers.analytic import GaussianMixture, start_noise
from fewstep.samplers.errors import OptionError
from scipy.integrate import quad, solve_ivp

FLOW = frames.flow()
NOISE = start_noise(3, (2, 4, 3, 3))


def denoiser(guidance=2.0):
    return GaussianMixture.make(1).denoiser(FLOW, guidance)


def told(x, sigma):
    return torch.full((len(x),), float(sigma), dtype=torch.float64)


def dpmpp_2m(model, x, sigmas):
    """k-diffusion's sample_dpmpp_2m, which knows sigma alone."""
    old = None
    for i, (s, t) in enumerate(itertools.pairwise(sigmas)):
        denoised = model(x, told(x, s))
        if old is None or t == 0:
            mean = denoised
        else:
            r = math.log(sigmas[i - 1] / s) / math.log(s / t)
            mean = (1 + 1 / (2 * r)) * denoised - 1 / (2 * r) * old
        x, old = t / s * x + (1 - t / s) * mean, denoised
    return x


def ipndm(model, x, sigmas):
    """Adams-Bashforth on the flow's velocity, for even steps, up to order 4; the last step is of order 1."""
    weights, slopes = ((1,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24)), []
    for s, t in itertools.pairwise(sigmas):
        slopes.insert(0, (x - model(x, told(x, s))) / s)
        used = weights[0] if t == 0 else weights[min(len(slopes), 4) - 1]
        x = x + (t - s) * sum(w * d for w, d in zip(used, slopes, strict=False))
    return x


def gradient_estimation(model, x, sigmas):
    """Permenter and Yuan's sampler with gamma 2; the last step is Euler's."""
    old = None
    for s, t in itertools.pairwise(sigmas):
        slope = (x - model(x, told(x, s))) / s
        x, old = x + (t - s) * (slope if old is None or t == 0 else 2 * slope - old), slope
    return x


def deis(model, x, sigmas):
    """ComfyUI's sample_deis: Lagrange polynomials in the time of EDM's VP schedule, integrated over that time."""
    low, high = math.log1p(0.002**2), math.log1p(80**2)
    b = np.linalg.solve([[5e-7, 1e-3], [0.5, 1.0]], [low, high])  # log(1 + sigma^2) = b_0 t^2/2 + b_1 t
    times = [(math.sqrt(b[1] ** 2 + 2 * b[0] * math.log1p(s * s)) - b[1]) / b[0] for s in sigmas]
    slopes = []

    def rate(u):  # dsigma/dt
        grown = math.exp(b[0] * u * u / 2 + b[1] * u)
        return grown * (b[0] * u + b[1]) / (2 * math.sqrt(grown - 1))

    for i, (s, t) in enumerate(itertools.pairwise(sigmas)):
        slopes.insert(0, (x - model(x, told(x, s))) / s)
        used = 1 if t == 0 else min(i + 1, 3)
        nodes, step = times[i : i - used if i >= used else None : -1], t - s
        if used > 1:
            bases = [np.polynomial.Polynomial(np.linalg.solve(np.vander(nodes, increasing=True), row)) for row in np.eye(used)]
            step = [quad(lambda u, p=p: p(u) * rate(u), times[i], times[i + 1], epsabs=1e-14, epsrel=1e-12)[0] for p in bases]
        x = x + sum(w * d for w, d in zip(step if used > 1 else [step], slopes, strict=False))
    return x


@pytest.mark.parametrize("kind", ["uniform_t", "trailing", "beta", "kl_optimal"])
@pytest.mark.parametrize(("solver", "options", "method"), [
    ("dpm_solver_multistep", {"order": 2, "lower_order_final": False}, dpmpp_2m), ("ipndm", {"order": 4}, ipndm),
    ("gradient_estimation", {}, gradient_estimation), ("deis_ab", {"ab_order": 2, "basis": "linear_t"}, deis),
])
def test_it_makes_the_methods_that_know_sigma_alone(kind, solver, options, method):
    grid = grids.GRIDS[kind](FLOW, 7, end="zero")
    recipe = Recipe(solver, options).corrected("sigma_clock")
    mine = run(recipe.resolve(FLOW, grid), denoiser(), NOISE * grid.sigma[0])
    torch.testing.assert_close(mine, method(denoiser(), NOISE * grid.sigma[0], grid.sigma.tolist()), rtol=1e-11, atol=1e-11)
    assert not torch.allclose(mine, run(Recipe(solver, options).resolve(FLOW, grid), denoiser(), NOISE * grid.sigma[0]), rtol=1e-3)


@pytest.mark.parametrize(("solver", "options", "order"), [
    # a first step of order 1 leaves an error of order 2
    ("dpm_solver_multistep", {"order": 2}, 2), ("deis_ab", {"ab_order": 2, "basis": "rho"}, 2),
    ("unipc", {"order": 2, "lower_order_final": False}, 3), ("dpm_solver_singlestep", {"order": 2, "inner": "lambda"}, 2),
])
def test_it_keeps_the_order(solver, options, order):
    model = denoiser(1.0)

    def slope(s, flat):
        x = torch.from_numpy(flat).view(NOISE.shape)
        return ((x - model(x, told(x, s))) / s).flatten().numpy()

    start, stop = 0.9, 0.3
    exact = solve_ivp(slope, (start, stop), NOISE.flatten().numpy(), "DOP853", rtol=1e-12, atol=1e-12).y[:, -1]
    errors = []
    for steps in (60, 120):
        grid = grids.exponential(FLOW, steps, end="stop", t_T=start, t_0=stop)
        plan = Recipe(solver, options).corrected("sigma_clock").resolve(FLOW, grid)
        errors.append(float((run(plan, model, NOISE).flatten() - torch.from_numpy(exact)).square().mean().sqrt()))
    assert math.log2(errors[0] / errors[1]) > order - 0.25, errors


def test_other_frames_have_that_clock_already():
    frame = frames.linear_vp().unit_alpha()
    grid = grids.karras(frame, 6, end="zero")
    recipe = Recipe("unipc", {"order": 3})
    model = GaussianMixture.make(0).denoiser(frame, 2.0)
    both = [run(r.resolve(frame, grid), model, NOISE * grid.sigma[0]) for r in (recipe, recipe.corrected("sigma_clock"))]
    assert torch.equal(*both)


def test_noise_is_refused():
    with pytest.raises(OptionError, match="add no noise"):
        Recipe("ddim", {"eta": 1.0}).corrected("sigma_clock").resolve(FLOW, grids.uniform_t(FLOW, 5, end="zero"))
