"""The integrals of DPM-Solver-v3 over one step, from statistics known on a grid of noise levels.

Over a step from ``lambda_s``, with ``L = int l``, ``S = int s`` and ``B = int b e^-S`` counted from its start, the solver needs
those three at the end, ``C = int B e^(L+S)``, and the moments ``T_q = int e^(L+S) (lambda - lambda_s)^q``.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
import torch

from ..calibration.statistics import Statistics

Quadrature = Literal["trapezoid", "exponential"]
BLOCK = 65_536  # numbers worked on at once: those of full-size statistics then stay in the processor's cache


class Integrals(NamedTuple):
    """L, S, B, C and T_0, T_1 ... at the step's end; float64, of the shape of one sample's statistics."""

    L: torch.Tensor
    S: torch.Tensor
    B: torch.Tensor
    C: torch.Tensor
    T: tuple[torch.Tensor, ...]


def integrals(statistics: Statistics, start: float, stop: float, powers: int, quadrature: Quadrature) -> Integrals:
    """Over lambda from ``start`` to ``stop``, on the statistics' grid points in between and both ends; ``powers`` moments."""
    lam = _points(statistics.lambda_, start, stop)
    zero = torch.zeros((), dtype=torch.float64)
    so_far = Integrals(zero, zero, zero, zero, (zero,) * powers)
    add = _by_trapezoids if quadrature == "trapezoid" else _by_exponentials
    cells = max(1, BLOCK // statistics.l[0].numel())
    for first in range(0, len(lam) - 1, cells):
        part = lam[first : first + cells + 1]
        l, s, b = (interpolated(statistics.lambda_, getattr(statistics, name), part) for name in "lsb")
        so_far = add(so_far, torch.from_numpy(part - start).reshape(-1, *(1,) * (l.ndim - 1)), l, s, b)
    return so_far


def _points(grid: np.ndarray, start: float, stop: float) -> np.ndarray:
    """``start``, the grid points in between, ``stop``; outside of the grid the points go on at its end's distance."""
    before = np.arange(grid[0], start, -(grid[1] - grid[0]))[:0:-1]
    after = np.arange(grid[-1], stop, grid[-1] - grid[-2])[1:]
    known = np.concatenate([before, grid, after])
    # a point at an end, but for rounding, is that end
    near = 1e-9 * (grid[-1] - grid[0]) / len(grid)
    return np.concatenate([[start], known[(known > start + near) & (known < stop - near)], [stop]])


def interpolated(grid: np.ndarray, values: torch.Tensor, lam: np.ndarray) -> torch.Tensor:
    """``values`` [N+1, ...] interpolated linearly at ``lam``, held beyond the ends; float64."""
    place = np.clip(np.interp(lam, grid, np.arange(len(grid))), 0, len(grid) - 1)
    place = np.where(np.abs(place - np.round(place)) < 1e-9, np.round(place), place)
    i = np.minimum(place.astype(int), len(grid) - 2)
    low, high = values[i[0] : i[-1] + 2].double(), torch.from_numpy(i - i[0])
    share = torch.from_numpy(place - i).reshape(-1, *(1,) * (values.ndim - 1))
    return torch.lerp(low[high], low[high + 1], share)


def _running(start: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
    return torch.cat([start.expand(cells[:1].shape), start + torch.cumsum(cells, 0)])


def _by_trapezoids(so_far: Integrals, u: torch.Tensor, l: torch.Tensor, s: torch.Tensor, b: torch.Tensor) -> Integrals:
    width = u[1:] - u[:-1]

    def cells(y: torch.Tensor) -> torch.Tensor:
        return width * (y[1:] + y[:-1]) / 2

    L, S = _running(so_far.L, cells(l)), _running(so_far.S, cells(s))
    weight = torch.exp(L + S)
    B = _running(so_far.B, cells(b * torch.exp(-S)))
    moments = tuple(T + cells(weight * u**q).sum(0) for q, T in enumerate(so_far.T))
    return Integrals(L[-1], S[-1], B[-1], so_far.C + cells(B * weight).sum(0), moments)


def _by_exponentials(so_far: Integrals, u: torch.Tensor, l: torch.Tensor, s: torch.Tensor, b: torch.Tensor) -> Integrals:
    """Exact where L + S and S are linear within each cell, and b and B too."""
    width = u[1:] - u[:-1]
    L, S = (_running(begun, width * (rate[1:] + rate[:-1]) / 2) for begun, rate in ((so_far.L, l), (so_far.S, s)))
    rise, weight = (L + S)[1:] - (L + S)[:-1], width * torch.exp(L + S)[:-1]
    falling = exponential_moments(S[:-1] - S[1:], 2)
    B = _running(so_far.B, width * torch.exp(-S[:-1]) * (b[:-1] * falling[0] + (b[1:] - b[:-1]) * falling[1]))
    m = exponential_moments(rise, max(2, len(so_far.T)))
    C = so_far.C + (weight * (B[:-1] * m[0] + (B[1:] - B[:-1]) * m[1])).sum(0)
    moments = tuple(
        T + (weight * sum(math.comb(q, j) * u[:-1] ** (q - j) * width**j * m[j] for j in range(q + 1))).sum(0)
        for q, T in enumerate(so_far.T)
    )
    return Integrals(L[-1], S[-1], B[-1], C, moments)


def exponential_moments(d: torch.Tensor, count: int) -> list[torch.Tensor]:
    """[int_0^1 u^j e^(d u) du for j < count]: by recursion, and by a series where that would cancel."""
    small = d.abs() < 1.0
    near, far = torch.where(small, d, 0.0), torch.where(small, 1.0, d)
    top, values = torch.exp(far), [torch.expm1(far) / far]
    for j in range(1, count):
        values.append((top - j * values[-1]) / far)
    # numpy, since there are many short operations: near^i / i!, divided by i + j + 1 for every j at once
    x, j_1 = near.numpy(), np.arange(1, count + 1, dtype=np.float64).reshape(-1, *(1,) * near.ndim)
    term, part, series = np.ones_like(x), np.empty((count, *x.shape)), np.empty((count, *x.shape))
    series[:] = 1.0 / j_1
    for i in range(1, 20):
        term *= x
        term /= i
        series += np.divide(term, j_1 + i, out=part)
    return [torch.where(small, near_0, value) for near_0, value in zip(torch.from_numpy(series), values, strict=True)]
