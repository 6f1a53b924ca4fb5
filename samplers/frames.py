"""Noise frames: alpha, sigma and lambda of the time t, and their inverses.

The state is ``x = alpha*x_0 + sigma*eps`` and ``lambda = log(alpha/sigma)``. A frame is two things put together: a
*scaling*, which gives alpha and sigma from lambda alone (variance preserving, flow, or alpha = 1), and a *time map*
between t and lambda. All numbers are float64 numpy; a scalar in gives a scalar out. ``lambda`` is +inf where sigma is 0
and -inf where alpha is 0; both ends map back to their times.

>>> frame = flow()
>>> float(frame.alpha(0.25)), float(frame.sigma(0.25))
(0.75, 0.25)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from .errors import OptionError, ScheduleError, check_choice
from .times import CosineTime, DiscreteTime, FlowTime, Interpolation, LinearVPTime, SigmaTime, TimeMap

Scaling = Literal["vp", "flow", "unit"]
Array = Any  # numpy float64 scalar or array


@dataclass(frozen=True)
class Frame:
    """A noise schedule in one scaling of the state.

    Attributes:
        scaling: ``"vp"`` (alpha^2 + sigma^2 = 1), ``"flow"`` (alpha + sigma = 1) or ``"unit"`` (alpha = 1).
        time: the map between t and lambda, with its domain ``[t_min, t_max]`` and the ends ``t_T``, ``t_0`` that grids
            use by default.
    """

    scaling: Scaling
    time: TimeMap

    def __post_init__(self) -> None:
        check_choice("scaling", self.scaling, ("vp", "flow", "unit"))

    # of the time
    def lambda_(self, t: Array) -> Array:
        """Half the log signal-to-noise ratio at time ``t``; falls with t."""
        return self.time.lambda_(np.asarray(t, np.float64))[()]

    def alpha(self, t: Array) -> Array:
        """The signal's scale at time ``t``."""
        return self.alpha_of_lambda(self.lambda_(t))

    def sigma(self, t: Array) -> Array:
        """The noise's scale at time ``t``."""
        return self.sigma_of_lambda(self.lambda_(t))

    # of lambda
    def alpha_of_lambda(self, lambda_: Array) -> Array:
        """The signal's scale at ``lambda_``."""
        lam = np.asarray(lambda_, np.float64)
        if self.scaling == "unit":
            return np.ones_like(lam)[()]
        if self.scaling == "flow":
            return np.exp(-np.logaddexp(0.0, -lam))[()]
        return np.exp(-0.5 * np.logaddexp(0.0, -2.0 * lam))[()]

    def sigma_of_lambda(self, lambda_: Array) -> Array:
        """The noise's scale at ``lambda_``."""
        lam = np.asarray(lambda_, np.float64)
        if self.scaling == "unit":
            return np.exp(-lam)[()]
        if self.scaling == "flow":
            return np.exp(-np.logaddexp(0.0, lam))[()]
        return np.exp(-0.5 * np.logaddexp(0.0, 2.0 * lam))[()]

    # inverses
    def t_of_lambda(self, lambda_: Array) -> Array:
        """The time at which lambda has the given value."""
        return self.time.t(np.asarray(lambda_, np.float64))[()]

    def lambda_of_sigma(self, sigma: Array) -> Array:
        """lambda from sigma; raises ScheduleError where no state has that sigma."""
        s = np.asarray(sigma, np.float64)
        top = np.inf if self.scaling == "unit" else 1.0
        if not np.all((s >= 0) & (s <= top)):
            raise ScheduleError(f"sigma {sigma!r} is outside 0..{top:g}, the range of a {self.scaling} frame")
        with np.errstate(divide="ignore"):
            if self.scaling == "unit":
                return -np.log(s)[()]
            if self.scaling == "flow":
                return (np.log1p(-s) - np.log(s))[()]
            return (0.5 * (np.log1p(-s) + np.log1p(s)) - np.log(s))[()]

    def alpha_of_sigma(self, sigma: Array) -> Array:
        """alpha from sigma, by the scaling alone and without passing through a logarithm."""
        s = np.asarray(sigma, np.float64)
        if self.scaling == "unit":
            return np.ones_like(s)[()]
        return (1.0 - s if self.scaling == "flow" else np.sqrt((1.0 - s) * (1.0 + s)))[()]

    def t_of_sigma(self, sigma: Array) -> Array:
        """The time at which sigma has the given value."""
        return self.t_of_lambda(self.lambda_of_sigma(sigma))

    def t_of_alpha(self, alpha: Array) -> Array:
        """The time at which alpha has the given value; raises ScheduleError in an alpha = 1 frame."""
        a = np.asarray(alpha, np.float64)
        if self.scaling == "unit":
            raise ScheduleError("alpha is 1 at every time of this frame; use t_of_sigma or t_of_lambda")
        if not np.all((a >= 0) & (a <= 1)):
            raise ScheduleError(f"alpha {alpha!r} is outside 0..1")
        with np.errstate(divide="ignore"):
            if self.scaling == "flow":
                return self.t_of_lambda(np.log(a) - np.log1p(-a))
            return self.t_of_lambda(np.log(a) - 0.5 * (np.log1p(-a) + np.log1p(a)))

    # the coordinate of Karras and exponential grids
    def level_of_lambda(self, lambda_: Array) -> Array:
        """The host's sigma: sigma/alpha, but sigma itself in a flow frame (finite at pure noise)."""
        return self.sigma_of_lambda(lambda_) if self.scaling == "flow" else np.exp(-np.asarray(lambda_, np.float64))[()]

    def lambda_of_level(self, level: Array) -> Array:
        """Inverse of ``level_of_lambda``."""
        with np.errstate(divide="ignore"):
            return self.lambda_of_sigma(level) if self.scaling == "flow" else -np.log(np.asarray(level, np.float64))[()]

    def unit_alpha(self) -> Frame:
        """The same schedule with alpha = 1: states divided by alpha, sigma replaced by sigma/alpha.

        This is the frame in which ComfyUI and k-diffusion run noise- and v-prediction models.
        """
        return replace(self, scaling="unit")


def edm() -> Frame:
    """The frame of EDM and k-diffusion: alpha = 1, t = sigma (Karras et al. 2022). No model time of its own."""
    return Frame("unit", SigmaTime())


def flow() -> Frame:
    """Rectified flow: alpha = 1 - t, sigma = t, t from 0 (data) to 1 (noise)."""
    return Frame("flow", FlowTime())


def linear_vp(beta_0: float = 0.1, beta_1: float = 20.0) -> Frame:
    """Continuous variance-preserving schedule with beta(t) linear from ``beta_0`` to ``beta_1`` (Song et al. 2021)."""
    return Frame("vp", LinearVPTime(beta_0, beta_1))


def cosine_vp(s: float = 0.008, *, normalized: bool = True) -> Frame:
    """Continuous cosine schedule (Nichol and Dhariwal 2021): alpha = cos((t+s)/(1+s) pi/2).

    ``normalized`` divides by the value at t = 0 so that alpha(0) = 1 (DPM-Solver does, DEIS does not).
    Grids start at t = 0.9946 by default, as the official solvers do: alpha is 0 at t = 1.
    """
    return Frame("vp", CosineTime(s, normalized))


def discrete_vp(
    alphas_cumprod: Any = None, *, betas: Any = None, interpolation: Interpolation = "log_alpha",
    min_lambda: float | None = None,
) -> Frame:
    """A discrete VP schedule of N training steps, step i at t = (i+1)/N.

    Args:
        alphas_cumprod: N falling values of alpha^2 in (0, 1); or give ``betas`` instead.
        betas: N values in (0, 1); alpha^2 is the running product of 1 - beta.
        interpolation: between the steps, ``"log_alpha"`` linear in t (DPM-Solver, UniPC) or ``"alpha_squared"`` (DEIS).
        min_lambda: cuts off the first, noisiest steps with lambda below it (the official solvers use -5.1, which only
            cosine tables reach); None keeps all.

    Raises:
        ScheduleError: not one-dimensional, not falling, or a value outside (0, 1). Zero-terminal-SNR tables end in 0:
            clamp that last value, as ComfyUI does, to 4.8973451890853435e-08.
    """
    if (alphas_cumprod is None) == (betas is None):
        raise OptionError("give either alphas_cumprod or betas, and not both")
    if betas is not None:
        alphas_cumprod = np.cumprod(1.0 - np.asarray(betas, np.float64))
    return Frame("vp", DiscreteTime.from_alphas_cumprod(alphas_cumprod, interpolation, min_lambda))
