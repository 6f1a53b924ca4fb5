"""Derivatives of a denoiser in X = x/alpha: by forward differentiation, by differences, or not at all."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from ..engine import Denoiser
from ..errors import CalibrationError
from ..frames import Frame

Derivative = Literal["auto", "jvp", "difference", "stein"]
EVALUATIONS = {"auto": 5, "jvp": 5, "difference": 5, "stein": 3}  # per state; a Jacobian-vector product costs two and a half
TRIAL = 5  # evaluations per state that "auto" spends on its choice
AGREES = 0.25  # relative difference up to which a Jacobian-vector product passes for right


class Response(NamedTuple):
    """What the model says at one noise level: D, its slope T along the ODE, the probe v and its image J v, all [B, ...]."""

    D: torch.Tensor
    T: torch.Tensor
    v: torch.Tensor
    Jv: torch.Tensor


@dataclass(frozen=True)
class Model:
    """A denoiser as a function of X and lambda.

    Attributes:
        table: rising lambdas of a model that rounds the noise level to a table; None: continuous.
        width: step of differences in X, in units of its noise.
        reach: step of differences in lambda.
    """

    denoiser: Denoiser
    frame: Frame
    table: np.ndarray | None = None
    width: float = 0.03
    reach: float = 0.005

    def __call__(self, X: torch.Tensor, lambda_: float) -> torch.Tensor:
        x, sigma = self._given(X, lambda_)
        return self.denoiser(x, sigma)

    def respond(self, X: torch.Tensor, lambda_: float, z: torch.Tensor, v: torch.Tensor, how: Derivative) -> Response:
        """The model at ``X = x_0 + e^-lambda z`` [B, ...] with random signs ``v``; ``how`` is not "auto"."""
        if how == "jvp":
            with _differentiable():
                D, Jv = self._jvp(X, lambda_, v, 0.0)
                T = self._jvp(X, lambda_, D - X, 1.0)[1] if self.table is None else self._slope(X, lambda_, D)
            return Response(D, T, v, Jv)
        D = self(X, lambda_)
        if how == "stein":  # by Gaussian integration by parts E z eps = l, so z (z - eps) stands for v J v
            return Response(D, self._slope(X, lambda_, D), z, z - (X - D) * math.exp(lambda_))
        return Response(D, self._slope(X, lambda_, D), v, self._difference(X, lambda_, v))

    def agrees(self, X: torch.Tensor, lambda_: float, v: torch.Tensor) -> bool:
        """Whether forward differentiation works here: some kernels refuse it, and code that detaches gives zeros."""
        try:
            with _differentiable():
                product = self._jvp(X, lambda_, v, 0.0)[1]
        except (RuntimeError, NotImplementedError):
            return False
        difference = self._difference(X, lambda_, v)
        return float((product - difference).norm()) <= AGREES * float(difference.norm())

    def _given(self, X: torch.Tensor, lambda_: float) -> tuple[torch.Tensor, torch.Tensor]:
        alpha, sigma = float(self.frame.alpha_of_lambda(lambda_)), float(self.frame.sigma_of_lambda(lambda_))
        dtype = torch.float64 if X.dtype == torch.float64 else torch.float32
        return X * alpha, torch.full((len(X),), sigma, dtype=dtype, device=X.device)

    def _jvp(self, X: torch.Tensor, lambda_: float, direction: torch.Tensor, rate: float) -> tuple[torch.Tensor, torch.Tensor]:
        """(D, derivative along ``direction`` in X and ``rate`` in lambda)."""
        x, sigma = self._given(X, lambda_)
        alpha, level = float(self.frame.alpha_of_lambda(lambda_)), float(self.frame.sigma_of_lambda(lambda_))
        # d log alpha/d lambda of the scaling; log sigma = log alpha - lambda
        drift = {"unit": 0.0, "vp": level * level, "flow": level}[self.frame.scaling]
        tangents = (direction * alpha + x * (drift * rate), torch.full_like(sigma, level * (drift - 1.0) * rate))
        answer: Any = torch.func.jvp(self.denoiser, (x, sigma), tangents)
        return answer[0], answer[1]

    def _difference(self, X: torch.Tensor, lambda_: float, v: torch.Tensor) -> torch.Tensor:
        h = self.width * math.exp(-lambda_)
        return (self(X + h * v, lambda_) - self(X - h * v, lambda_)) / (2 * h)

    def _slope(self, X: torch.Tensor, lambda_: float, D: torch.Tensor) -> torch.Tensor:
        low, high = self._neighbours(lambda_)
        ends = [self(X + (lam - lambda_) * (D - X), lam) for lam in (low, high)]
        return (ends[1] - ends[0]) / (high - low)

    def _neighbours(self, lambda_: float) -> tuple[float, float]:
        """The noise levels on either side for differences; of a table its own entries, between which the model jumps."""
        if self.table is None:
            return lambda_ - self.reach, lambda_ + self.reach
        below = int(np.searchsorted(self.table, lambda_ - self.reach, side="right")) - 1
        above = int(np.searchsorted(self.table, lambda_ + self.reach, side="left"))
        return float(self.table[max(below, 0)]), float(self.table[min(above, len(self.table) - 1)])


@contextmanager
def _differentiable() -> Iterator[None]:
    """Attention without fused kernels, which have no forward derivative; and without torch's warnings about its own code."""
    try:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        attention: Any = sdpa_kernel(SDPBackend.MATH)
    except ImportError:  # torch before 2.3
        attention = torch.backends.cuda.sdp_kernel(enable_flash=False, enable_math=True, enable_mem_efficient=False)
    with attention, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def table_of(frame: Frame) -> np.ndarray:
    """Rising lambdas of a discrete model's training steps; raises CalibrationError for a continuous one."""
    knots = frame.time.knots
    if knots is None or len(knots) < 3:
        raise CalibrationError("rounded=True is for models with a table of noise levels; this frame is continuous")
    return np.sort(np.asarray(frame.lambda_(knots), np.float64))
