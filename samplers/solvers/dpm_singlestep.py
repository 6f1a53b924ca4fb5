"""DPM-Solver and DPM-Solver++ singlestep (Lu et al., arXiv 2206.00927 and 2211.01095)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from ..errors import OptionError, check_choice, check_integer
from ..grids import Grid, Node, node_at_lambda
from ..plan import IDENTITY, Plan, Row, Stage
from ..sparse import stages_of
from .exponential import Prediction, Step, check_prediction, check_thresholding, psi, stage_kind, step_from
from .exponential import denoise_to_zero as add_denoise_to_zero

Allocation = Literal["fast", "fixed"]
SinglestepType = Literal["dpmsolver", "taylor"]
Inner = Literal["grid", "lambda"]


def allocate(nfe: int, order: int, allocation: str = "fast") -> list[int]:
    """Orders of the outer steps for a budget of ``nfe`` evaluations ("DPM-Solver-fast", appendix of 2206.00927).

    ``"fixed"`` uses one order throughout and drops a rest.
    """
    check_choice("allocation", allocation, ("fast", "fixed"))
    if allocation == "fixed":
        if nfe < order:
            raise OptionError(f"{nfe} evaluations are fewer than one step of order {order} takes")
        return [order] * (nfe // order)
    if order == 3:
        tail = {0: [2, 1], 1: [1], 2: [2]}[nfe % 3]
        return [3] * ((nfe - sum(tail)) // 3) + tail
    return [order] * (nfe // order) + [1] * (nfe % order)


def inner_rows(
    source: Node, target: Node, nodes: Sequence[Node], first: int, prediction: Prediction, solver_type: str
) -> tuple[list[Row], Row]:
    """Rows of one singlestep update from ``source`` to ``target``; its outputs are stored from index ``first`` on.

    Args:
        nodes: the inner nodes (none, one or two: the order is one more).
        solver_type: ``dpmsolver`` or ``taylor``, see DPM-Solver++ appendix B.

    Returns:
        The rows that predict the inner states, and the row of the step itself.
    """
    step = step_from(source, target, prediction)
    if not nodes:
        return [], step.row({}, newest=first)
    r = [(node.lambda_ - source.lambda_) / step.h for node in nodes]
    p = psi(step.g, 3)
    inner = [Step.between(source, nodes[0], prediction).row({}, newest=first)]
    if len(nodes) == 1:
        w = p[0] / 2 if solver_type == "dpmsolver" else p[1]
        return inner, step.row({first + 1: w / r[0]}, newest=first)
    sub = Step.between(source, nodes[1], prediction)
    inner.append(sub.row({first + 1: r[1] / r[0] * psi(sub.g, 2)[1]}, newest=first))
    if solver_type == "dpmsolver":
        return inner, step.row({first + 2: p[1] / r[1]}, newest=first)
    # D1 = (r2 E1 - r1 E2)/(r2 - r1), D2 = 2 (E2 - E1)/(r2 - r1), E_k = (m_k - m_s)/r_k
    d = r[1] - r[0]
    weights = {first + 1: (p[1] * r[1] - 2 * p[2]) / (d * r[0]), first + 2: (2 * p[2] - p[1] * r[0]) / (d * r[1])}
    return inner, step.row(weights, newest=first)


def step_stages(
    source: Node, target: Node, nodes: Sequence[Node], first: int, prediction: Prediction, solver_type: str, step: int
) -> list[Stage]:
    """The stages of one singlestep update; see ``inner_rows``."""
    inner, carry = inner_rows(source, target, nodes, first, prediction, solver_type)
    predicts = [IDENTITY, *inner]
    places = [source, *nodes]
    carries = [IDENTITY] * len(nodes) + [carry]
    return [
        Stage(place, c, p, stage_kind(place, prediction), step)
        for place, p, c in zip(places, predicts, carries, strict=True)
    ]


def dpm_solver_singlestep(
    grid: Grid, *, order: int = 3, prediction: Prediction = "data", solver_type: SinglestepType = "dpmsolver",
    allocation: Allocation = "fast", inner: Inner = "grid", thresholding: bool = False, denoise_to_zero: bool = False,
) -> Plan:
    """Singlestep DPM-Solver(++); ``grid.steps`` counts evaluations, not outer steps.

    Args:
        order: 1, 2 or 3.
        solver_type: ``dpmsolver`` or ``taylor``, as published.
        allocation: ``fast`` spends the whole budget (the last steps have lower order), ``fixed`` uses one order.
        inner: ``grid`` takes every order-th node of the grid as outer nodes and the nodes between as inner ones, as
            published. ``lambda`` uses only the grid's first and last positive sigma: outer nodes uniform in lambda
            between them and inner ones at 1/2, or 1/3 and 2/3 (the published ``logSNR``; k-diffusion's ``dpm_fast``).
        thresholding, denoise_to_zero: as in ``dpm_solver_multistep``.
    """
    check_prediction(prediction)
    check_choice("solver_type", solver_type, ("dpmsolver", "taylor"))
    check_choice("inner", inner, ("grid", "lambda"))
    check_integer("order", order, 1, 3)
    outer, orders, between = _nodes(grid, order, allocation, inner)

    def step(i: int, first: int) -> list[Stage]:
        inner_nodes = between(i)[: orders[i] - 1]
        return step_stages(outer[i], outer[i + 1], inner_nodes, first, prediction, solver_type, i)

    plan = Plan(stages_of(orders, step), tuple(outer), hooks=check_thresholding(thresholding, prediction))
    return add_denoise_to_zero(plan, denoise_to_zero)


def _nodes(grid: Grid, order: int, allocation: str, inner: str) -> tuple[list[Node], list[int], Callable[[int], Sequence[Node]]]:
    """Outer nodes, their steps' orders, and the inner nodes of a step.

    A step that touches pure noise or sigma = 0 has no finite lambda to divide and is of order 1; a grid that ends at
    sigma 0 spends its last evaluation on that step.
    """
    nodes = grid.nodes
    head = 1 if math.isinf(nodes[0].lambda_) else 0
    tail = 1 if grid.end == "zero" and grid.steps > head else 0
    budget = grid.steps - head - tail
    orders = allocate(budget, order, allocation) if budget > 0 else []
    if inner == "grid" and sum(orders) < budget:
        raise OptionError(
            f"allocation 'fixed' of order {order} cannot use {budget} inner evaluations: give a grid whose steps it divides, "
            "allocation='fast', or inner='lambda'"
        )
    ends = nodes[head], nodes[-1 - tail]
    if inner == "lambda" and orders:
        lambdas = np.linspace(ends[0].lambda_, ends[1].lambda_, len(orders) + 1)
        middle = [ends[0], *(node_at_lambda(grid.frame, float(v)) for v in lambdas[1:-1]), ends[1]]
    else:
        middle = [nodes[head + int(c)] for c in np.cumsum([0, *orders])]
    outer = [*nodes[:head], *middle, *([nodes[-1]] if tail else [])]
    all_orders = [1] * head + orders + [1] * tail

    def between(i: int) -> Sequence[Node]:
        p = all_orders[i]
        if p == 1:
            return []
        if inner == "grid":
            start = head + sum(orders[: i - head])
            return nodes[start + 1 : start + p]
        low, high = outer[i].lambda_, outer[i + 1].lambda_
        return [node_at_lambda(grid.frame, low + (high - low) * j / p) for j in range(1, p)]

    return outer, all_orders, between
