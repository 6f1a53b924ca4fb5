"""A time map known only at points: the time that a host's continuous model tells its network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import ScheduleError
from .times import Array, check_domain, piecewise

T_0 = 1e-3  # the time of the least noise; times above 0 keep roots and powers of it defined


@dataclass(frozen=True, eq=False)
class TabulatedTime:
    """lambda piecewise linear in t between points; t runs from 0.001 to 1 and is affine in the network's label.

    Attributes:
        knots: rising times in 0.001..1.
        lambdas: lambda at each, falling.
        labels: (lowest, highest) label.
    """

    knots: np.ndarray
    lambdas: np.ndarray
    labels: tuple[float, float]

    is_model_time = True
    t_min = t_0 = T_0
    t_max = t_T = 1.0

    @classmethod
    def from_points(cls, labels: Any, lambdas: Any) -> TabulatedTime:
        """From the network's labels, rising with the noise, and lambda at each.

        Raises ScheduleError unless there are at least 2 finite points, labels rising and lambdas falling.
        """
        label, lam = np.asarray(labels, np.float64), np.asarray(lambdas, np.float64)
        if label.ndim != 1 or label.shape != lam.shape or len(label) < 2 or not np.all(np.isfinite([label, lam])):
            raise ScheduleError(f"a table of times needs at least 2 finite points, got shapes {label.shape} and {lam.shape}")
        if not np.all(np.diff(label) > 0) or not np.all(np.diff(lam) < 0):
            raise ScheduleError("a table of times needs labels that rise with the noise and lambdas that fall")
        t = T_0 + (1.0 - T_0) * (label - label[0]) / (label[-1] - label[0])
        return cls(t, lam, (float(label[0]), float(label[-1])))

    def lambda_(self, t: Array) -> Array:
        check_domain("tabulated time", t, T_0, 1.0)
        return piecewise(t, self.knots, self.lambdas)

    def t(self, lambda_: Array) -> Array:
        inside = np.clip(lambda_, self.lambdas[-1], self.lambdas[0])
        return piecewise(inside, self.lambdas[::-1], self.knots[::-1])

    def dlambda(self, t: Array) -> Array:
        """The slope of the piece, at a knot of the one on the noisier side."""
        i = np.clip(np.searchsorted(self.knots, t, side="right") - 1, 0, len(self.knots) - 2)
        return (self.lambdas[i + 1] - self.lambdas[i]) / (self.knots[i + 1] - self.knots[i])

    def model_time(self, t: Array) -> Array:
        low, high = self.labels
        return low + (high - low) * (t - T_0) / (1.0 - T_0)

    def t_of_model_time(self, label: Array) -> Array:
        low, high = self.labels
        return T_0 + (1.0 - T_0) * (label - low) / (high - low)
