"""From sums over samples to the statistics l, s, b of DPM-Solver-v3 (Zheng et al., arXiv 2310.13268, sec. 3 and app. C).

In ``X = x/alpha``, with D the x_0 prediction and T its derivative along the ODE ``dX/dlambda = D - X``, the method needs

    l = 1 - E[v (dD/dX) v],   f = (1 - l) X - D,   f' = -(1 - l)(X - D) - l' X - T,
    s = Cov(f, f')/Var(f),    b = E f' - s E f,

where l' is the slope of l over lambda. All of it is a function of ten sums per noise level, so one pass over the samples is
enough, its memory does not grow, and the sums of two runs can be added. They are sums of X and ``Y = D - k X``, k = 0 in the
noisy half and 1 in the other: f is a small difference of X and D where they are nearly equal, and of X and X - D where X is
nearly all noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

NAMES = ("vJv", "X", "Y", "T", "XX", "XY", "YY", "XT", "YT", "vv")  # v: the probe of the Jacobian J
CONSTANT = 1e-8  # relative variance of f below which the slope of f over f means nothing


class Derived(NamedTuple):
    """``l``, its slope ``l_d``, ``s`` and ``b`` [N+1, ...], and ``moments`` [N+1, 4, ...]: E f, E f', E f^2, E f f'."""

    l: torch.Tensor
    l_d: torch.Tensor
    s: torch.Tensor
    b: torch.Tensor
    moments: torch.Tensor


def part_of_x(lambda_: float | np.ndarray) -> Any:
    """The k of ``Y = D - k X`` at ``lambda_``."""
    return np.where(np.asarray(lambda_) >= 0, 1.0, 0.0)[()]


def terms_of(
    lambda_: float, X: torch.Tensor, D: torch.Tensor, T: torch.Tensor, v: torch.Tensor, Jv: torch.Tensor, axes: Sequence[int]
) -> torch.Tensor:
    """The ten sums [10, ...] of one batch [B, ...] in float64, summed over the batch and ``axes``, which stay as 1."""
    X, D, T, v, Jv = (q.double() for q in (X, D, T, v, Jv))
    Y = D - part_of_x(lambda_) * X
    products = (v * Jv, X, Y, T, X * X, X * Y, Y * Y, X * T, Y * T, v * v)
    return torch.stack([q.sum((0, *axes), keepdim=True)[0] for q in products])


def derive(lambda_: np.ndarray, sums: torch.Tensor, terms: int, smoothing: int = 0) -> Derived:
    """The statistics from ``sums`` [N+1, 10, ...] over ``terms`` terms each, at the rising ``lambda_`` [N+1].

    Where f hardly varies, the model is linear there: s is 0 and b is E f'. ``smoothing``: see ``slope_of``.
    """
    vJv, vv = sums[:, 0], sums[:, 9]
    X, Y, T, XX, XY, YY, XT, YT = (sums[:, i] / terms for i in range(1, 9))
    l = 1 - vJv / vv
    l_d = slope_of(lambda_, l, smoothing)
    k = torch.from_numpy(part_of_x(lambda_)).reshape(-1, *(1,) * (l.ndim - 1))
    a = 1 - l
    p, q = a - k, a * (1 - k) + l_d  # f = pX - Y, f' = -qX + aY - T
    f, f_d = p * X - Y, -q * X + a * Y - T
    ff = p * p * XX - 2 * p * XY + YY
    ff_d = -p * q * XX + (p * a + q) * XY - p * XT - a * YY + YT
    variance = ff - f * f
    distance, size = (1 - k) * (XX - 2 * XY) + YY, k * (XX + 2 * XY) + YY  # E(X - D)^2, E D^2
    varies = variance > CONSTANT * torch.minimum(distance, size)  # f goes from D to X - D as the noise falls
    s = torch.where(varies, (ff_d - f * f_d) / torch.where(varies, variance, 1.0), 0.0)
    return Derived(l, l_d, s, f_d - s * f, torch.stack([f, f_d, ff, ff_d], 1))


def slope_of(lambda_: np.ndarray, l: torch.Tensor, smoothing: int) -> torch.Tensor:
    """The slope of ``l`` [N+1, ...] over lambda: central differences, then a moving mean over as far as ``smoothing`` points of
    a uniform grid reach on either side, cut off at the ends.

    Published is 5, for draws that are new at every level. With the same draws at all levels l is smooth by itself, and the
    mean only blurs it: on wide grids enough to spoil b.
    """
    slope, cells = np.gradient(l.numpy(), lambda_, axis=0), len(lambda_) - 1
    reach = (smoothing + 0.5) * (lambda_[-1] - lambda_[0]) / cells
    means = [slope[np.abs(lambda_ - centre) < reach].mean(0) for centre in lambda_]
    return torch.from_numpy(np.stack(means))
