"""PNDM: iPNDM's weights after a pseudo Runge-Kutta start (Liu et al., arXiv 2202.09778): S-PNDM and F-PNDM."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

from ..errors import OptionError, check_integer
from ..grids import Grid, Node
from ..plan import IDENTITY, Plan, Row, Stage
from ..sparse import stages_of
from ..times import DiscreteTime
from .deis import IPNDM_WEIGHTS
from .exponential import Step

RUNGE_KUTTA_STEPS = {2: 1, 4: 3}


def pndm(grid: Grid, *, order: int = 4) -> Plan:
    """DDIM steps on a combination of noise predictions; the first steps gather the history by a Runge-Kutta scheme.

    Args:
        order: 4 is F-PNDM (three steps of four evaluations first, then one each), 2 is S-PNDM (one step of two).

    The middle of a Runge-Kutta step lies half-way in the model's time, on a training step where the model has a table. A step
    from pure noise, where a noise prediction says nothing, is DDIM on x_0 and comes before the start; one to sigma 0 is DDIM
    on the latest prediction alone.
    """
    check_integer("order", order, 2, 4)
    if order == 3:
        raise OptionError("PNDM is published with order 2 (S-PNDM) and 4 (F-PNDM), not 3")
    begin = int(grid.node(0).alpha == 0)  # the first step with a noise prediction
    start = begin + RUNGE_KUTTA_STEPS[order]
    to_zero = grid.steps - 1 if grid.end == "zero" else grid.steps
    counts = [order if begin <= i < min(start, to_zero) else 1 for i in range(grid.steps)]
    firsts = [0, *accumulate(counts)]  # the first output of every step

    def step(i: int, first: int) -> Sequence[Stage]:
        source, target = grid.node(i), grid.node(i + 1)
        if i < begin:
            return (Stage(source, Step.between(source, target, "data").row({}, newest=first), step=i),)
        if i >= to_zero:
            return (_stage(source, _ddim(source, target, {first: 1.0}), i),)
        if i >= start:
            weights = zip(reversed(firsts[begin : i + 1]), IPNDM_WEIGHTS[order - 1], strict=False)
            return (_stage(source, _ddim(source, target, dict(weights)), i),)
        return _runge_kutta(grid, source, target, first, order, i)

    return Plan(stages_of(counts, step), grid.nodes)


def _stage(node: Node, carry: Row, step: int, predict: Row = IDENTITY) -> Stage:
    return Stage(node, carry, predict, "eps", step)


def _ddim(source: Node, target: Node, weights: dict[int, float]) -> Row:
    """The DDIM transfer on a combination of noise predictions."""
    step = Step.between(source, target, "noise")
    gain = target.sigma - source.sigma * step.A
    return Row(x=step.A, m={j: gain * w for j, w in weights.items()})


def _runge_kutta(grid: Grid, source: Node, target: Node, first: int, order: int, step: int) -> list[Stage]:
    if order == 2:
        mean = _ddim(source, target, {first: 0.5, first + 1: 0.5})
        return [_stage(source, IDENTITY, step), _stage(target, mean, step, _ddim(source, target, {first: 1.0}))]
    middle = _middle(grid, source, target)
    whole = {first: 1 / 6, first + 1: 1 / 3, first + 2: 1 / 3, first + 3: 1 / 6}
    return [
        _stage(source, IDENTITY, step),
        _stage(middle, IDENTITY, step, _ddim(source, middle, {first: 1.0})),
        _stage(middle, IDENTITY, step, _ddim(source, middle, {first + 1: 1.0})),
        _stage(target, _ddim(source, target, whole), step, _ddim(source, target, {first + 2: 1.0})),
    ]


def _middle(grid: Grid, source: Node, target: Node) -> Node:
    frame, t = grid.frame, 0.5 * (source.t + target.t)
    if isinstance(frame.time, DiscreteTime):
        # down to a training step; rounding must not turn a whole label into the one below
        t = float(frame.time.t_of_model_time(math.floor(float(frame.time.model_time(t)) + 1e-6)))
    lambda_ = float(frame.lambda_(t))
    return Node(t, float(frame.alpha_of_lambda(lambda_)), float(frame.sigma_of_lambda(lambda_)), lambda_)
