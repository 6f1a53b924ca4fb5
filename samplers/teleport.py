"""Analytical teleportation: one linear map in place of the first, noisiest steps (Wang and Vastola, arXiv 2412.09726).

At high noise a trained denoiser is almost that of one Gaussian N(mu, S) with the data's mean and covariance. For a Gaussian
the probability-flow ODE has a closed solution: from (alpha0, sigma0) to (alpha1, sigma1), along an eigen-direction of S of
variance l,

    x1 = alpha1 mu + k(l) (x - alpha0 mu),    k(l) = sqrt((alpha1^2 l + sigma1^2) / (alpha0^2 l + sigma0^2)).

It is finite at pure noise (alpha0 = 0), exact for Gaussian data, and two jumps make one. States are those of the sampler:
latents in the model's own scaling.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from .calibration.moments_file import moments_of
from .calibration.store import Calibration, resolve
from .errors import OptionError, check_choice, check_range
from .grids import Grid, Node, node_at_lambda
from .lincomb import accumulation_dtype
from .moments import Moments, pixel_variance
from .shortened import regrid, tail
from .start import NodeDenoiser, StartTransform

Mode = Literal["anchored", "mean", "guided"]
Skip = Literal["auto", "fraction", "sigma"]
Rest = Literal["tail", "regrid"]
Start = Literal["ode", "draw"]
FULL = 1e-5  # a run that starts this near to the model's most noise is a full one (the host's own tolerance)
UNMEASURED = 8.0  # where anchored jumps are within 0.05 sigma of the truth on the testbed at guidance 7.5
QUADRATURE = 160  # nodes: 1e-13 of the result over a range of noise of 1e5

log = logging.getLogger("fewstep")


def jump(x: torch.Tensor, alpha0: float, sigma0: float, alpha1: float, sigma1: float, moments: Moments) -> torch.Tensor:
    """The state [B, ...] at (alpha1, sigma1) on the trajectory through ``x`` at (alpha0, sigma0), for data of ``moments``.

    Raises CalibrationError where the moments do not describe states of this shape.
    """
    fitted, wide = moments.fit(x.shape), _wide(x)
    centre = fitted.centre(wide)
    moved = fitted.apply(wide - alpha0 * centre, _gain(fitted.values, alpha0, sigma0, alpha1, sigma1))
    return (moved + alpha1 * centre).to(x.dtype)


def anchored_jump(
    x: torch.Tensor, denoised: torch.Tensor, alpha0: float, sigma0: float, alpha1: float, sigma1: float, moments: Moments
) -> torch.Tensor:
    """The jump whose mean is the one that the model's own prediction ``denoised`` at ``x`` implies; only the covariance is used.

    Along variance l the implied mean is ``mu = D - (l alpha0/sigma0^2)(x - alpha0 D)``, which gives
    ``x1 = alpha1 D + (k (1 + l alpha0^2/sigma0^2) - alpha0 alpha1 l/sigma0^2)(x - alpha0 D)``: DDIM for l = 0, and finite at
    alpha0 = 0, where D is the mean itself.
    """
    fitted, wide, centre = moments.fit(x.shape), _wide(x), _wide(denoised)
    k, share = _gain(fitted.values, alpha0, sigma0, alpha1, sigma1), fitted.values * (alpha0 / sigma0**2)
    moved = fitted.apply(wide - alpha0 * centre, k * (1.0 + alpha0 * share) - alpha1 * share)
    return (moved + alpha1 * centre).to(x.dtype)


def guided_jump(
    x: torch.Tensor, alpha0: float, sigma0: float, alpha1: float, sigma1: float, moments: Moments, unconditional: Moments,
    guidance_scale: float,
) -> torch.Tensor:
    """The jump under guidance of two Gaussians, exact where their covariances have the same eigen-directions.

    With g the guidance scale and ``P(a, s) = (a^2 l_u + s^2)^((1-g)/2) (a^2 l_c + s^2)^(g/2)``, ``P(rho) = P(1, rho)``:
    ``x1 = P1/P0 x + P1 int_{rho1}^{rho0} s ((1-g) mu_u/(l_u + s^2) + g mu_c/(l_c + s^2)) / P(s) ds``. With equal covariances
    it is ``jump`` with the mean ``mu_u + g (mu_c - mu_u)``.
    """
    fitted, other, wide = moments.fit(x.shape), unconditional.fit(x.shape), _wide(x)
    l_c, l_u, g = fitted.values, fitted.in_basis(other), guidance_scale

    def log_power(a: float, s: float) -> torch.Tensor:
        return 0.5 * ((1.0 - g) * (a * a * l_u + s * s).log() + g * (a * a * l_c + s * s).log())

    end = log_power(alpha1, sigma1)
    result = fitted.apply(wide, (end - log_power(alpha0, sigma0)).exp())
    # s = rho1 u/(1 - u) turns pure noise (rho0 infinite) into an end like any other
    rho1, last = sigma1 / alpha1, alpha1 * sigma0 / (alpha1 * sigma0 + alpha0 * sigma1)
    places, weights = np.polynomial.legendre.leggauss(QUADRATURE)
    integrals = torch.zeros_like(l_c), torch.zeros_like(l_c)
    for place, weight in zip((last - 0.5) / 2 * places + (last + 0.5) / 2, (last - 0.5) / 2 * weights, strict=True):
        s = rho1 * place / (1.0 - place)
        common = weight * rho1 / (1.0 - place) ** 2 * s * (end - log_power(1.0, s)).exp()
        for integral, variance, share in zip(integrals, (l_c, l_u), (g, 1.0 - g), strict=True):
            integral += share * common / (variance + s * s)
    for part, integral in zip((fitted, other), integrals, strict=True):
        result = result + fitted.apply(part.centre(wide).expand(1, *x.shape[1:]), integral)
    return result.to(x.dtype)


def gaussian_denoiser(moments: Moments, alpha: Callable[[float], float]) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """``D(x, sigma) -> x_0`` of Gaussian data, the same sigma for the whole batch: for plots, probes and tests.

    ``D = mu + alpha S (alpha^2 S + sigma^2)^-1 (x - alpha mu)``; ``alpha`` gives it from sigma (``frame.alpha_of_sigma``).
    """

    def denoise(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        s = float(sigma.flatten()[0])
        a, fitted, wide = float(alpha(s)), moments.fit(x.shape), _wide(x)
        centre = fitted.centre(wide)
        values = fitted.values
        return (centre + fitted.apply(wide - a * centre, a * values / (a * a * values + s * s))).to(x.dtype)

    return denoise


@dataclass(frozen=True, eq=False)
class GaussianJump:
    """The start transform; see ``teleport`` for the options."""

    source: Node
    target: Node
    moments: Moments
    mode: Mode = "mean"
    start: Start = "ode"
    unconditional: Moments | None = None
    guidance_scale: float = 1.0

    @property
    def nfe(self) -> int:
        return int(self.mode == "anchored")

    latents = 8  # at most (fourier, anchored, draw): states, differences, spectra and what is added up

    def __str__(self) -> str:
        return f"{self.mode} jump to sigma {self.target.sigma:.6g} by {self.moments.kind} moments"

    def __call__(self, x: torch.Tensor, denoise: NodeDenoiser) -> torch.Tensor:
        moments = self.moments.fit(x.shape)  # what does not fit is said before the model runs
        at, to = (self.source.alpha, self.source.sigma), (self.target.alpha, self.target.sigma)
        denoised = denoise(x, self.source) if self.mode == "anchored" else None
        if denoised is not None and self.start == "ode":
            return anchored_jump(x, denoised, *at, *to, moments)
        if self.start == "draw":  # the jump of the unit noise, from where nothing of the picture is left
            unit = _wide(x) / math.hypot(*at)
            if denoised is not None:
                return _anchored_draw(x, unit, denoised, at, to, moments)
            at, start = (0.0, 1.0), unit
        else:
            start = x
        if self.unconditional is not None:
            return guided_jump(start, *at, *to, moments, self.unconditional, self.guidance_scale).to(x.dtype)
        return jump(start, *at, *to, moments).to(x.dtype)


def _anchored_draw(
    x: torch.Tensor, unit: torch.Tensor, denoised: torch.Tensor, at: tuple[float, float], to: tuple[float, float],
    moments: Moments,
) -> torch.Tensor:
    wide = _wide(denoised)
    mean = wide - moments.apply(_wide(x) - at[0] * wide, moments.values * (at[0] / at[1] ** 2))
    spread = moments.apply(unit, _gain(moments.values, 0.0, 1.0, *to))
    return (to[0] * mean + spread).to(x.dtype)


def teleport(
    grid: Grid, *, moments: str | Calibration, mode: Mode = "anchored", skip: Skip = "auto", sigma_skip: float = 0.0,
    fraction: float = 0.25, rest: Rest = "regrid", start: Start = "ode", guidance_scale: float = 1.0,
) -> tuple[StartTransform | None, Grid]:
    """The jump and the grid that is left.

    Args:
        moments: a calibration of purpose "moments", or its reference.
        mode: ``mean`` uses the stored mean; ``guided`` those with and without the prompt, at ``guidance_scale``; ``anchored``
            lets one evaluation at the start, with all guidance inside, say the mean.
        skip: where the jump ends. ``sigma``: at ``sigma_skip``. ``fraction``: at the node after that share of the steps.
            ``auto``: at the lowest noise at which the jump was measured to hold (``calibration.moments.measure_range``); for
            moments without that measurement where sigma/alpha is 8 standard deviations of a latent's numbers.
        sigma_skip: in the grid's own sigma; only for ``skip="sigma"``.
        fraction: 0 to 0.9; 0.15 to 0.3 is usual.
        rest: ``tail`` keeps the grid's remaining nodes and saves their evaluations; ``regrid`` spends all of the grid's steps
            between the jump's end and the grid's.
        start: ``ode`` follows the trajectory of the given state; ``draw`` gives a new sample of the Gaussian at the jump's end
            from the same noise, with the brightness that models with a finite last sigma lose. Only for full runs.
        guidance_scale: only for ``mode="guided"``.

    Returns (None, the grid) and says so in the log where a run starts below the jump's end (a partial denoise).

    Raises:
        OptionError: sigma_skip not inside a full run, a draw in a partial one.
        ScheduleError: the grid has no sigma below the jump's end.
        CalibrationError: no such moments, or they lack what the mode needs.
    """
    for name, given, known in (
        ("mode", mode, ("anchored", "mean", "guided")), ("skip", skip, ("auto", "fraction", "sigma")),
        ("rest", rest, ("tail", "regrid")), ("start", start, ("ode", "draw")),
    ):
        check_choice(f"teleport: {name}", given, known)
    check_range("teleport: fraction", fraction, 0.0, 0.9)
    check_range("teleport: guidance_scale", guidance_scale, 0.0, 1000.0)
    calibration = resolve(moments, "moments")
    end = _jump_end(grid, calibration, mode, skip, sigma_skip, fraction)
    if end is None or end >= grid.sigma[0]:
        where = f"the run starts at sigma {grid.sigma[0]:.6g}, the jump " + (
            "was measured to hold nowhere" if end is None else f"would end at {end:.6g}")
        log.warning("FewStep: no teleportation: %s; the whole grid is sampled", where)
        return None, grid
    if start == "draw" and not _is_full(grid):
        raise OptionError(
            f"start 'draw' makes a new sample from noise alone, but this run starts at sigma {grid.sigma[0]:.6g}, below the "
            "model's most, where the picture is part of the state: use start 'ode'"
        )
    left = (tail if rest == "tail" else regrid)(grid, end)
    guided = moments_of(calibration, unconditional=True) if mode == "guided" else None
    transform = GaussianJump(grid.node(0), left.node(0), moments_of(calibration), mode, start, guided, guidance_scale)
    return transform, left


def _jump_end(
    grid: Grid, calibration: Calibration, mode: str, skip: str, sigma_skip: float, fraction: float
) -> float | None:
    """The sigma at which the jump ends; None where it was measured to hold nowhere."""
    if skip == "sigma":
        if not sigma_skip > 0 or (sigma_skip >= grid.sigma[0] and _is_full(grid)):
            raise OptionError(
                f"sigma_skip is {sigma_skip!r}, expected a number above 0 and below {grid.sigma[0]:.6g}, where this run starts"
            )
        return float(sigma_skip)
    measured = calibration.meta.get("range", {})
    if skip == "auto":
        rho = measured[mode] if mode in measured else UNMEASURED * math.sqrt(pixel_variance(moments_of(calibration)))
        return node_at_lambda(grid.frame, -math.log(rho)).sigma if rho else None
    steps = min(int(fraction * grid.steps + 0.5), grid.steps - 1)
    return float(grid.sigma[steps])


def _is_full(grid: Grid) -> bool:
    """Whether the grid starts at the schedule's most noise."""
    return bool(grid.sigma[0] >= (1.0 - FULL) * float(grid.frame.sigma(grid.frame.time.t_T)))


def _gain(values: torch.Tensor, alpha0: float, sigma0: float, alpha1: float, sigma1: float) -> torch.Tensor:
    return ((alpha1**2 * values + sigma1**2) / (alpha0**2 * values + sigma0**2)).sqrt()


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x.to(accumulation_dtype(x.dtype))
