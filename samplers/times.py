"""Time maps: lambda of the model's time t, and back. Each is one schedule's formula, exact at both ends in float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from .errors import OptionError, ScheduleError, check_choice

Interpolation = Literal["log_alpha", "alpha_squared"]
Array = Any


class TimeMap(Protocol):
    """What a frame needs of a schedule. ``t`` rises with the noise; lambda falls with it."""

    @property
    def t_T(self) -> float: ...
    @property
    def t_0(self) -> float: ...
    @property
    def t_min(self) -> float: ...
    @property
    def t_max(self) -> float: ...
    @property
    def is_model_time(self) -> bool: ...
    @property
    def knots(self) -> np.ndarray | None: ...  # times at which lambda(t) has a kink
    def lambda_(self, t: Array) -> Array: ...
    def t(self, lambda_: Array) -> Array: ...
    def dlambda(self, t: Array) -> Array: ...
    def model_time(self, t: Array) -> Array: ...
    def t_of_model_time(self, label: Array) -> Array: ...


class _SameLabel:
    """For schedules whose network is told t itself."""

    is_model_time = True
    knots: np.ndarray | None = None

    def model_time(self, t: Array) -> Array:
        return t

    def t_of_model_time(self, label: Array) -> Array:
        return label


def lambda_of_log_alpha(log_alpha: Array) -> Array:
    """lambda = log alpha - log sqrt(1 - alpha^2) of a VP state; NaN where log_alpha > 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return log_alpha - 0.5 * np.log(-np.expm1(2.0 * log_alpha))


def log_alpha_of_lambda(lambda_: Array) -> Array:
    """log alpha of a VP state: -log(1 + exp(-2 lambda))/2."""
    return -0.5 * np.logaddexp(0.0, -2.0 * lambda_)


def check_domain(name: str, t: Array, low: float, high: float) -> None:
    """Raises ScheduleError unless every time lies in low..high."""
    if not np.all((t >= low) & (t <= high)):
        raise ScheduleError(f"time {np.asarray(t).tolist()!r} is outside {low:g}..{high:g}, the range of a {name}")


@dataclass(frozen=True)
class SigmaTime(_SameLabel):
    """t = sigma with alpha = 1."""

    t_T: float = 80.0
    t_0: float = 0.002
    t_min: float = 0.0
    t_max: float = float("inf")
    is_model_time = False

    def lambda_(self, t: Array) -> Array:
        check_domain("sigma time", t, 0.0, np.inf)
        with np.errstate(divide="ignore"):
            return -np.log(t)

    def t(self, lambda_: Array) -> Array:
        return np.exp(-lambda_)

    def dlambda(self, t: Array) -> Array:
        return -1.0 / t


@dataclass(frozen=True)
class FlowTime(_SameLabel):
    """t = sigma, alpha = 1 - t."""

    t_T: float = 1.0
    t_0: float = 1e-3
    t_min: float = 0.0
    t_max: float = 1.0

    def lambda_(self, t: Array) -> Array:
        check_domain("flow time", t, 0.0, 1.0)
        with np.errstate(divide="ignore"):
            return np.log1p(-t) - np.log(t)

    def t(self, lambda_: Array) -> Array:
        return np.exp(-np.logaddexp(0.0, lambda_))

    def dlambda(self, t: Array) -> Array:
        return -1.0 / (t * (1.0 - t))


@dataclass(frozen=True)
class LinearVPTime(_SameLabel):
    """log alpha = -(beta_1 - beta_0) t^2/4 - beta_0 t/2."""

    beta_0: float = 0.1
    beta_1: float = 20.0
    t_T: float = 1.0
    t_0: float = 1e-3
    t_min: float = 0.0
    t_max: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.beta_0 <= self.beta_1 < np.inf:
            raise OptionError(f"beta_0 {self.beta_0} and beta_1 {self.beta_1}: expected 0 < beta_0 <= beta_1")

    def lambda_(self, t: Array) -> Array:
        check_domain("linear VP schedule", t, 0.0, 1.0)
        return lambda_of_log_alpha(-0.25 * t**2 * (self.beta_1 - self.beta_0) - 0.5 * t * self.beta_0)

    def t(self, lambda_: Array) -> Array:
        # the root in the form that does not cancel when log alpha is near 0
        loss, half = -log_alpha_of_lambda(lambda_), 0.5 * self.beta_0
        return 2.0 * loss / (half + np.sqrt(half**2 + (self.beta_1 - self.beta_0) * loss))

    def dlambda(self, t: Array) -> Array:
        return -0.5 * (self.beta_0 + (self.beta_1 - self.beta_0) * t) * (1.0 + np.exp(2.0 * self.lambda_(t)))


@dataclass(frozen=True)
class CosineTime(_SameLabel):
    """alpha = cos((t+s)/(1+s) pi/2), divided by its value at 0 if ``normalized``."""

    s: float = 0.008
    normalized: bool = True
    t_T: float = 0.9946
    t_0: float = 1e-3
    t_min: float = 0.0
    t_max: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.s < np.inf:
            raise OptionError(f"cosine offset s is {self.s}, expected a positive number")

    def _angle(self, t: Array) -> Array:
        return (t + self.s) / (1.0 + self.s) * (np.pi / 2)

    def lambda_(self, t: Array) -> Array:
        check_domain("cosine schedule", t, 0.0, 1.0)
        angle, start = self._angle(t), self._angle(0.0)
        if not self.normalized:
            return np.log(np.cos(angle)) - np.log(np.sin(angle))
        # cos a / cos b = 1 - 2 sin((a+b)/2) sin((a-b)/2) / cos b keeps the digits near t = 0; the quotient is better at 1
        near = np.log1p(-np.minimum(2 * np.sin((angle + start) / 2) * np.sin((angle - start) / 2) / np.cos(start), 0.9))
        return lambda_of_log_alpha(np.where(angle < 0.8, near, np.log(np.cos(angle) / np.cos(start))))

    def t(self, lambda_: Array) -> Array:
        if not self.normalized:
            return np.arctan(np.exp(-lambda_)) * 2 / np.pi * (1.0 + self.s) - self.s
        start = self._angle(0.0)
        loss = -np.expm1(log_alpha_of_lambda(lambda_))  # 1 - alpha
        # sin^2(a/2) = (1 - cos a)/2 with cos a = alpha cos b: well conditioned where arccos is not
        half = np.sqrt(np.sin(start / 2) ** 2 + 0.5 * np.cos(start) * loss)
        return np.clip(2 * np.arcsin(half) * 2 / np.pi * (1.0 + self.s) - self.s, 0.0, 1.0)

    def dlambda(self, t: Array) -> Array:
        rate = -np.tan(self._angle(t)) * (np.pi / 2) / (1.0 + self.s)  # d log alpha / dt
        return rate * (1.0 + np.exp(2.0 * self.lambda_(t)))


@dataclass(frozen=True, eq=False)
class DiscreteTime:
    """N training steps at t = (i+1)/N, piecewise linear in between and continued linearly outside.

    ``values`` is log alpha or alpha^2 at the kept steps, by ``interpolation``. The network's label is t*N - 1.
    """

    values: np.ndarray
    steps: int
    interpolation: Interpolation

    is_model_time = True

    @classmethod
    def from_alphas_cumprod(
        cls, alphas_cumprod: Any, interpolation: Interpolation, min_lambda: float | None
    ) -> DiscreteTime:
        """Checks the table and builds the map; see ``frames.discrete_vp``."""
        check_choice("interpolation", interpolation, ("log_alpha", "alpha_squared"))
        table = np.asarray(alphas_cumprod, np.float64)
        if table.ndim != 1 or len(table) < 2:
            raise ScheduleError(f"alphas_cumprod has shape {table.shape}, expected one dimension and at least 2 values")
        if not np.all((table > 0) & (table < 1)):
            bad = int(np.argmin((table > 0) & (table < 1)))
            raise ScheduleError(
                f"alphas_cumprod[{bad}] is {table[bad]!r}, expected a value between 0 and 1; a zero-terminal-SNR table "
                "ends in 0: clamp that value to 4.8973451890853435e-08"
            )
        if not np.all(np.diff(table) < 0):
            bad = int(np.argmax(np.diff(table) >= 0))
            raise ScheduleError(
                f"alphas_cumprod must fall: [{bad}] is {table[bad]!r}, [{bad + 1}] is {table[bad + 1]!r}; "
                "reverse the table if it starts with the noisiest step"
            )
        values = np.clip(table, 1e-07, 1 - 1e-07) if interpolation == "alpha_squared" else 0.5 * np.log(table)
        if min_lambda is not None:
            keep = lambda_of_log_alpha(0.5 * np.log(table)) >= min_lambda
            if keep.sum() < 2:
                raise ScheduleError(f"min_lambda {min_lambda} leaves fewer than 2 of the {len(table)} training steps")
            values = values[keep]
        return cls(values, len(table), interpolation)

    @property
    def t_min(self) -> float:
        return 1.0 / self.steps

    @property
    def t_max(self) -> float:
        return len(self.values) / self.steps

    @property
    def t_T(self) -> float:
        return self.t_max

    @property
    def t_0(self) -> float:
        return self.t_min

    @property
    def knots(self) -> np.ndarray:
        return np.arange(1, len(self.values) + 1) / self.steps

    def lambda_(self, t: Array) -> Array:
        value = piecewise(t, self.knots, self.values)
        lambda_ = lambda_of_log_alpha(value if self.interpolation == "log_alpha" else 0.5 * np.log(value))
        if np.any(np.isnan(lambda_)):
            raise ScheduleError(
                f"time {np.asarray(t).tolist()!r} lies too far outside {self.t_min:g}..{self.t_max:g}: "
                "the table, continued linearly, has no alpha there"
            )
        return lambda_

    def t(self, lambda_: Array) -> Array:
        log_alpha = log_alpha_of_lambda(lambda_)
        value = log_alpha if self.interpolation == "log_alpha" else np.exp(2 * log_alpha)
        return piecewise(value, self.values[::-1], self.knots[::-1])

    def dlambda(self, t: Array) -> Array:
        """The derivative; at a training step that of the piece on the noisier side."""
        label = self.model_time(t)
        i = np.floor(np.where(np.abs(label - np.round(label)) < 1e-9, np.round(label), label)).astype(int)
        i = np.clip(i, 0, len(self.values) - 2)
        slope = (self.values[i + 1] - self.values[i]) * self.steps
        if self.interpolation == "alpha_squared":
            slope = 0.5 * slope / np.exp(2.0 * log_alpha_of_lambda(self.lambda_(t)))
        return slope * (1.0 + np.exp(2.0 * self.lambda_(t)))

    def model_time(self, t: Array) -> Array:
        return t * self.steps - 1.0

    def t_of_model_time(self, label: Array) -> Array:
        return (label + 1.0) / self.steps


def piecewise(x: Array, xs: np.ndarray, ys: np.ndarray) -> Array:
    """Piecewise-linear interpolation through (xs, ys), xs rising, continued linearly outside."""
    i = np.clip(np.searchsorted(xs, x, side="right") - 1, 0, len(xs) - 2)
    x0, x1, y0, y1 = xs[i], xs[i + 1], ys[i], ys[i + 1]
    # from the nearer end, so that both end values come back exactly
    left = y0 + (x - x0) * (y1 - y0) / (x1 - x0)
    right = y1 - (x1 - x) * (y1 - y0) / (x1 - x0)
    return np.where(x - x0 <= x1 - x, left, right)
