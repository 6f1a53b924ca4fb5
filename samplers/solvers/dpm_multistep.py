"""DPM-Solver and DPM-Solver++ multistep (Lu et al., arXiv 2206.00927 and 2211.01095), ODE form."""

from __future__ import annotations

import math
from typing import Literal

from ..errors import OptionError, check_choice, check_integer
from ..grids import Grid
from ..plan import Plan, Row, Stage
from ..sparse import stages_of
from .exponential import (
    Prediction,
    check_prediction,
    check_thresholding,
    lagrange_weights,
    psi,
    stage_kind,
    step_from,
    usable_history,
)
from .exponential import denoise_to_zero as add_denoise_to_zero

SolverType = Literal["dpmsolver", "taylor", "exact"]
LowerOrderFinal = bool | Literal["always"]


def difference_weights(order: int, g: float, h: float, gaps: list[float], solver_type: str) -> dict[int, float]:
    """Weights of the older outputs in one multistep update, before the gain G; the newest gets psi_0 minus their sum.

    Args:
        order: outputs used, the newest included.
        g: the step's psi argument; may differ from -h or h (SDE).
        h: the step in lambda.
        gaps: lambda distances between the outputs, newest first; at least ``order - 1`` of them.
        solver_type: ``"dpmsolver"`` (midpoint) and ``"taylor"`` (Heun) as published; ``"exact"`` integrates the
            interpolating polynomial exactly, at any order.

    Returns:
        {age: weight}, age 1 being the output before the newest. The published third order multiplies *half* the second
        derivative by the weight of the full one, so it converges with order 2; ``"exact"`` repairs that.
    """
    if order == 1:
        return {}
    p = psi(g, order)
    if solver_type == "exact":
        positions = [-sum(gaps[: k + 1]) / h for k in range(order - 1)]
        moments = [math.factorial(k) * p[k] for k in range(1, order)]
        weights = lagrange_weights(positions, moments)
        return {k + 1: w / r for k, (w, r) in enumerate(zip(weights, positions, strict=True))}
    r0 = gaps[0] / h
    if order == 2:
        return {1: -(p[0] / 2 if solver_type == "dpmsolver" else p[1]) / r0}
    r1 = gaps[1] / h
    q = r0 / (r0 + r1)
    u = (1 + q) * p[1] + p[2] / (r0 + r1)
    v = q * p[1] + p[2] / (r0 + r1)
    return {1: -u / r0 - v / r1, 2: v / r1}


def step_orders(steps: int, order: int, lower: bool) -> list[int]:
    """Order of each of ``steps`` multistep updates: it grows from 1, and falls to 1 again at the end if ``lower``."""
    orders = [min(order, k) for k in range(1, steps + 1)]
    if lower:
        orders = [min(p, steps + 1 - k) if k >= order else p for k, p in enumerate(orders, 1)]
    return orders


def multistep_row(grid: Grid, i: int, order: int, prediction: Prediction, solver_type: str) -> Row:
    """The update from node i to node i+1 through at most ``order`` outputs."""
    step = step_from(grid.node(i), grid.node(i + 1), prediction)
    order = 1 if step.first_order_only else usable_history(grid, i, order)
    gaps = [grid.lambda_[i - k] - grid.lambda_[i - k - 1] for k in range(order - 1)]
    weights = difference_weights(order, step.g, step.h, [float(gap) for gap in gaps], solver_type)
    return step.row({i - age: w for age, w in weights.items()}, newest=i)


def dpm_solver_multistep(
    grid: Grid, *, order: int = 2, prediction: Prediction = "data", solver_type: SolverType = "dpmsolver",
    lower_order_final: LowerOrderFinal = True, thresholding: bool = False, denoise_to_zero: bool = False,
) -> Plan:
    """DPM-Solver++ (``prediction="data"``) or DPM-Solver (``"noise"``), one evaluation per step.

    Args:
        order: 1 (DDIM), 2 or 3; to 6 with ``solver_type="exact"``. Needs at least that many steps.
        solver_type: ``"dpmsolver"`` or ``"taylor"`` as published (order 3 is the same in both); ``"exact"`` see
            ``difference_weights``.
        lower_order_final: True: below 10 steps the last step is of order 1 and the one before of order 2, as published;
            ``"always"``: for any number of steps, as UniPC and diffusers have it; False: never.
        thresholding: dynamic thresholding of x_0; pixel models and data prediction only.
        denoise_to_zero: one more evaluation at the last node gives x_0; grids with end="stop" only.
    """
    check_prediction(prediction)
    check_choice("solver_type", solver_type, ("dpmsolver", "taylor", "exact"))
    check_integer("order", order, 1, 6 if solver_type == "exact" else 3)
    require_steps(grid, order)
    check_choice("lower_order_final", lower_order_final, (True, False, "always"))
    orders = step_orders(grid.steps, order, lower_order_final == "always" or (lower_order_final and grid.steps < 10))

    def step(i: int, first: int) -> tuple[Stage]:
        node, row = grid.node(i), multistep_row(grid, i, orders[i], prediction, solver_type)
        return (Stage(node, row, kind=stage_kind(node, prediction), step=i),)

    plan = Plan(stages_of([1] * grid.steps, step), grid.nodes, hooks=check_thresholding(thresholding, prediction))
    return add_denoise_to_zero(plan, denoise_to_zero)


def require_steps(grid: Grid, order: int) -> None:
    """Raises OptionError if the grid has fewer steps than a multistep method of this order needs."""
    if grid.steps < order:
        raise OptionError(f"order {order} needs at least {order} steps, the grid has {grid.steps}: lower the order or add steps")
