"""DEIS Adams-Bashforth forms and iPNDM (Zhang and Chen, arXiv 2204.13902).

In ``rho = sigma/alpha`` and ``v = x/alpha`` the ODE is ``dv/drho = eps``; a step is ``v' = v + sum_j c_j eps_{i-j}``
with ``c_j`` the integral of a Lagrange basis polynomial in t, rho, log rho, or the time of one linear schedule.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from ..errors import OptionError, ScheduleError, check_choice, check_integer
from ..frames import Frame
from ..grids import Grid
from ..plan import Plan, Row, Stage
from ..sparse import stages_of
from .dpm_multistep import require_steps
from .exponential import stage_kind, step_from, usable_history

Basis = Literal["t", "rho", "log_rho", "linear_t"]
Quadrature = Literal["exact", "official"]

IPNDM_WEIGHTS = (
    (1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
# the linear schedule, ln(1 + rho^2) = LINEAR * t^2/2 + START * t, that has rho 0.002 at t = 0.001 and rho 80 at t = 1
_ENDS = math.log1p(0.002**2), math.log1p(80.0**2)
_LINEAR = 2 * (_ENDS[1] - _ENDS[0] / 1e-3) / (1 - 1e-3)
_START = _ENDS[1] - _LINEAR / 2
_GAUSS_NODES, _GAUSS_WEIGHTS = np.polynomial.legendre.leggauss(80)


def lagrange_basis(nodes: np.ndarray, j: int, u: np.ndarray) -> np.ndarray:
    """The j-th Lagrange basis polynomial on ``nodes`` at ``u``."""
    value = np.ones_like(u)
    for k, node in enumerate(nodes):
        if k != j:
            value = value * (u - node) / (nodes[j] - node)
    return value


def ab_weights(grid: Grid, i: int, order: int, basis: str, quadrature: str) -> list[float]:
    """[c_0, ..., c_order] of the step from node i to i+1, newest output first; they sum to rho_{i+1} - rho_i.

    Args:
        order: degree of the polynomial (DEIS's ab_order).
        basis: the variable it is a polynomial of.
        quadrature: ``exact`` by 80-point Gauss-Legendre in log rho (between a discrete schedule's knots, as its t has
            kinks there), ``official`` by the 10,000-point left sums of the authors' code.
    """
    frame, recent = grid.frame, slice(i - order, i + 1)
    nodes = (grid.t[recent] if basis == "t" else variable(frame, grid.lambda_[recent], basis))[::-1]
    if quadrature == "official":
        points, weight = _official_points(grid, i, basis)
        return [float(np.sum(weight * lagrange_basis(nodes, j, points))) for j in range(order + 1)]
    lam, weight = _gauss_points(frame, float(grid.lambda_[i]), float(grid.lambda_[i + 1]), basis)
    u = variable(frame, lam, basis)
    return [float(np.sum(weight * lagrange_basis(nodes, j, u))) for j in range(order + 1)]


def variable(frame: Frame, lam: np.ndarray, basis: str) -> np.ndarray:
    """The variable of the polynomials at half log signal-to-noise ratios ``lam``."""
    if basis == "t":
        return np.asarray(frame.t_of_lambda(lam))
    if basis == "log_rho":
        return -lam
    rho: np.ndarray = np.exp(-lam)
    if basis == "rho":
        return rho
    t: np.ndarray = (np.sqrt(_START**2 + 2 * _LINEAR * np.log1p(rho**2)) - _START) / _LINEAR
    return t


def _gauss_points(frame: Frame, start: float, stop: float, basis: str) -> tuple[np.ndarray, np.ndarray]:
    """lambda and weights with ``sum weight*f = int f drho`` over lambda in start..stop."""
    edges = np.array([start, stop])
    knots = getattr(frame.time, "knots", None)
    if basis == "t" and knots is not None:
        inside = frame.lambda_(knots)
        edges = np.concatenate([[start], np.sort(inside[(inside > start) & (inside < stop)]), [stop]])
    # a step across many knots has many short pieces, each smooth: few points suffice there
    x, w = (_GAUSS_NODES, _GAUSS_WEIGHTS) if len(edges) < 8 else np.polynomial.legendre.leggauss(8)
    half = np.diff(edges)[:, None] / 2
    lam = (edges[:-1, None] + half * (1 + x)).ravel()
    return lam, (half * w).ravel() * -np.exp(-lam)


def _official_points(grid: Grid, i: int, basis: str) -> tuple[np.ndarray, np.ndarray]:
    """The authors' sum: 10,000 left ends, in the network's time for basis t, in rho for basis rho."""
    frame, share = grid.frame, np.arange(10_000) / 10_000
    if basis not in ("t", "rho"):
        raise OptionError(f"quadrature='official' exists for basis t and rho only; {basis} is not in the official code")
    if basis == "rho":
        start, stop = math.exp(-grid.lambda_[i]), math.exp(-grid.lambda_[i + 1])
        return start + (stop - start) * share, np.full(10_000, (stop - start) / 10_000)
    t = grid.t[i] + (grid.t[i + 1] - grid.t[i]) * share
    # drho/dt = -rho dlambda/dt, and dlambda/dt = (dlog alpha/dt)/sigma^2 of the VP state
    rate = -np.exp(-frame.lambda_(t)) * frame.time.dlambda(t)
    return t, rate * (grid.t[i + 1] - grid.t[i]) / 10_000


def deis_ab(
    grid: Grid, *, ab_order: int = 2, basis: Basis = "t", quadrature: Quadrature = "exact",
) -> Plan:
    """DEIS multistep: tAB (``basis="t"``), rhoAB or log-rho AB (diffusers' form), one evaluation per step.

    Args:
        ab_order: degree of the polynomial, 0 (DDIM) to 3; the method converges with order ab_order + 1 and needs that
            many steps. There is no lower order at the end, but a last step to sigma 0 is exact.
        basis: t needs a schedule with a time of the model's own; linear_t, ComfyUI's form, takes that of the linear schedule
            with rho from 0.002 to 80 for every model; rho extrapolates badly over long steps.
        quadrature: ``official`` reproduces the authors' 10,000-point sums, off by 1e-4; for comparisons only.
    """
    check_integer("ab_order", ab_order, 0, 3)
    check_choice("basis", basis, get_args(Basis))
    check_choice("quadrature", quadrature, ("exact", "official"))
    require_steps(grid, ab_order + 1)
    if basis == "t" and not grid.frame.time.is_model_time:
        raise ScheduleError(
            "basis 't' needs the model's time of each sigma, which this frame has not: use basis 'log_rho' or 'linear_t', "
            "or a frame with a schedule such as discrete_vp(...).unit_alpha()"
        )

    def step(i: int, first: int) -> tuple[Stage]:
        node, target = grid.node(i), grid.node(i + 1)
        if target.sigma == 0 or node.alpha == 0:
            row = step_from(node, target, "noise").row({}, newest=i)
        else:
            order = usable_history(grid, i, min(i, ab_order) + 1) - 1
            weights = ab_weights(grid, i, order, basis, quadrature)
            row = Row(x=target.alpha / node.alpha, m={i - j: target.alpha * c for j, c in enumerate(weights)})
        return (Stage(node, row, kind=stage_kind(node, "noise"), step=i),)

    return Plan(stages_of([1] * grid.steps, step), grid.nodes)


def combined_ddim(grid: Grid, weights: Sequence[Sequence[float]]) -> Plan:
    """DDIM with eps replaced by fixed combinations of the last ones: ``weights[k - 1]``, newest first, where k may be used."""

    def step(i: int, first: int) -> tuple[Stage]:
        node = grid.node(i)
        linear = step_from(node, grid.node(i + 1), "noise")
        used = 1 if linear.first_order_only else usable_history(grid, i, min(len(weights), i + 1))
        gain = float(linear.row({}, newest=0).m.get(0, 0.0))
        row = Row(x=linear.A, m={i - j: gain * w for j, w in enumerate(weights[used - 1])})
        return (Stage(node, row, kind=stage_kind(node, "noise"), step=i),)

    return Plan(stages_of([1] * grid.steps, step), grid.nodes)


def ipndm(grid: Grid, *, order: int = 4) -> Plan:
    """iPNDM: DDIM with eps replaced by a fixed Adams-Bashforth combination of order 1 to 4; meant for uniform grids."""
    check_integer("order", order, 1, 4)
    require_steps(grid, order)
    return combined_ddim(grid, IPNDM_WEIGHTS[:order])
