"""What all exponential integrators in lambda share: the exact linear part of a step, and the psi functions.

A step from node s to node t with ``h = lambda_t - lambda_s`` reads

    ``x_t = A x_s + G * sum_k psi_k(g) h^k (d/dlambda)^k m(lambda_s)``,    ``psi_k(g) = g phi_{k+1}(g)``,

with m the x_0 prediction ("data") or the noise prediction ("noise"):

=====  =======  ==================  ============
       g        A                   G
=====  =======  ==================  ============
data   -h       sigma_t/sigma_s     -alpha_t
noise  +h       alpha_t/alpha_s     -sigma_t
=====  =======  ==================  ============

(UniPC, eq. 3 and 8 of arXiv 2302.04867; DPM-Solver++ writes p_1 = |psi_0|, p_2 = |psi_1|, p_3 = |psi_2|.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..errors import OptionError, PlanError, check_choice
from ..grids import Grid, Node
from ..hooks import DynamicThresholding, Hook
from ..plan import IDENTITY, NoiseTerm, Plan, Row, Stage

Prediction = Literal["data", "noise"]
KIND = {"data": "x_0", "noise": "eps"}


def psi(g: float, count: int) -> list[float]:
    """[psi_0(g), ..., psi_{count-1}(g)]: psi_0 = expm1(g), psi_k = psi_{k-1}/g - 1/k!; a series where that would cancel."""
    if abs(g) < 1.0:
        # psi_k = sum_{j>=1} g^j / (j+k)!
        return [math.fsum(g**j / math.factorial(j + k) for j in range(1, 20)) for k in range(count)]
    values = [math.expm1(g)]
    for k in range(1, count):
        values.append(values[-1] / g - 1.0 / math.factorial(k))
    return values


@dataclass(frozen=True)
class Step:
    """The exact linear part of one step; ``first_order_only`` where lambda is infinite at one end."""

    source: Node
    target: Node
    prediction: Prediction
    A: float
    G: float
    h: float

    @classmethod
    def between(cls, source: Node, target: Node, prediction: Prediction) -> Step:
        """The step from ``source`` to ``target``; source.alpha may only be 0 for data prediction."""
        h = target.lambda_ - source.lambda_
        if prediction == "data":
            return cls(source, target, prediction, target.sigma / source.sigma, -target.alpha, h)
        return cls(source, target, prediction, target.alpha / source.alpha, -target.sigma, h)

    @property
    def first_order_only(self) -> bool:
        """Whether only the order-1 row exists (it starts at pure noise or ends at sigma = 0)."""
        return not math.isfinite(self.h)

    @property
    def g(self) -> float:
        """The argument of the psi functions."""
        return -self.h if self.prediction == "data" else self.h

    def row(self, m: Mapping[int, float], newest: int, noise: NoiseTerm | None = None) -> Row:
        """The row with weights ``m`` (before the gain G) on outputs; ``newest`` gets psi_0 minus their sum.

        The first weight is computed from the step's ends, not from psi_0, so that a constant is kept to rounding and
        the limits sigma_t = 0 and alpha_s = 0 need no special case.
        """
        s, t = self.source, self.target
        if self.prediction == "data":
            first = t.alpha - s.alpha * self.A  # G psi_0 = -alpha_t expm1(-h)
            if math.isfinite(self.h):
                first = -t.alpha * math.expm1(-self.h)
        else:
            first = t.sigma - s.sigma * self.A if not math.isfinite(self.h) else -t.sigma * math.expm1(self.h)
        weights = {j: self.G * w for j, w in m.items()}
        weights[newest] = weights.get(newest, 0.0) + first - math.fsum(weights.values())
        return Row(x=self.A, m=weights, noise=noise)


def lagrange_weights(positions: Sequence[float], targets: Sequence[float]) -> list[float]:
    """Solves sum_j positions_j^(k-1) w_j = targets_k, k = 1..n (n = len(positions)), in float64."""
    if not positions:
        return []
    matrix = np.vander(np.asarray(positions, np.float64), increasing=True).T
    try:
        return [float(w) for w in np.linalg.solve(matrix, np.asarray(targets, np.float64))]
    except np.linalg.LinAlgError as error:
        raise PlanError(f"two nodes of a step coincide, so its weights have no solution: {list(positions)}") from error


def check_thresholding(thresholding: bool, prediction: str) -> tuple[Hook, ...]:
    """The hooks for the ``thresholding`` option; refuses it together with noise prediction."""
    if not thresholding:
        return ()
    if prediction != "data":
        raise OptionError("thresholding acts on x_0; use prediction='data' with it")
    return (DynamicThresholding(),)


def check_prediction(prediction: str) -> None:
    """Raises OptionError unless ``prediction`` is data or noise."""
    check_choice("prediction", prediction, ("data", "noise"))


def stage_kind(node: Node, prediction: str) -> str:
    """What is stored at ``node``: at pure noise (alpha 0) the noise prediction says nothing about x_0, so x_0 is."""
    return "x_0" if node.alpha == 0 else KIND[prediction]


def step_from(source: Node, target: Node, prediction: Prediction) -> Step:
    """As ``Step.between``, but by x_0 where the source is pure noise."""
    return Step.between(source, target, "data" if source.alpha == 0 else prediction)


def denoise_to_zero(plan: Plan, enabled: bool = True) -> Plan:
    """Adds one evaluation at the last node whose x_0 prediction is the result (NFE + 1).

    Raises OptionError on a grid that ends at sigma = 0: there the last step already gives x_0.
    """
    if not enabled:
        return plan
    if plan.nodes[-1].sigma == 0:
        raise OptionError("denoise_to_zero needs a grid with end='stop'; this one already ends at sigma 0")
    last = Stage(plan.nodes[-1], predict=plan.final, carry=Row(m={len(plan.stages): 1.0}), step=plan.stages[-1].step + 1)
    return plan.with_stages((*plan.stages, last), IDENTITY)


def usable_history(grid: Grid, i: int, wanted: int) -> int:
    """How many of the newest ``wanted`` nodes up to node i a polynomial may pass through: those with finite lambda."""
    count = 0
    while count < wanted and i - count >= 0 and math.isfinite(grid.lambda_[i - count]):
        count += 1
    return count
