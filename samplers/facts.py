"""Facts about a plan, found by running its rows symbolically against a constant denoiser."""

from __future__ import annotations

import math
from typing import Any

import torch

from .plan import Coefficient, Plan, Row

Vector = dict[str, Any]  # coefficients on "x_0", "eps" and each draw of noise


def constant_run(plan: Plan) -> Vector:
    """The result as a combination of the constant x_0, the start's noise, and the draws, when D is always x_0."""
    start: Vector = {"x_0": plan.nodes[0].alpha, "eps": plan.nodes[0].sigma}
    x, draws = start, 0
    outputs: dict[int, Vector] = {}

    def apply(row: Row) -> Vector:
        nonlocal draws
        total: Vector = {}
        terms = [(row.x, x), (row.x_T, start), *((c, outputs[j]) for j, c in row.m.items())]
        if row.noise is not None:
            draws += 1
            terms.append((float(row.noise.coefficient), {f"xi_{draws}": 1.0}))
        if row.offset is not None:
            terms.append((1.0, {"offset": row.offset.double()}))
        for c, vector in terms:
            for key, value in vector.items():
                total[key] = total.get(key, 0.0) + _number(c) * value
        return total

    for k, stage in enumerate(plan.stages):
        y = apply(stage.predict)
        p, q = map(_number, stage.store)
        outputs[k] = {key: p * y.get(key, 0.0) + (q if key == "x_0" else 0.0) for key in {*y, "x_0"}}
        x = y if stage.carry is stage.predict else apply(stage.carry)
    return x if plan.final.is_identity else apply(plan.final)


def bias(plan: Plan) -> float:
    """How far the plan is from keeping the law of a constant x_0.

    With D = x_0 the result should be ``alpha x_0 + sigma z`` at the last node, z of unit variance. Returns the larger
    of the two relative errors, of the mean and of the standard deviation (relative to alpha where sigma is 0).
    """
    end, result = plan.nodes[-1], constant_run(plan)
    alpha, sigma = (1.0, 0.0) if gives_x_0(plan) else (end.alpha, end.sigma)
    mean = _largest(result.get("x_0", 0.0) - alpha) / alpha
    spread = math.sqrt(sum(_largest(v) ** 2 for key, v in result.items() if key != "x_0"))
    return max(mean, abs(spread - sigma) / (sigma or alpha))


def gives_x_0(plan: Plan) -> bool:
    """Whether the plan's result is the last x_0 prediction itself (denoise to zero)."""
    last = plan.stages[-1].carry
    return (
        plan.final.is_identity and not last.reads_x and last.noise is None
        and dict(last.m) == {len(plan.stages) - 1: 1.0} and plan.stages[-1].kind == "x_0"
    )


def _number(c: Coefficient) -> Any:
    return c.double() if isinstance(c, torch.Tensor) else float(c)


def _largest(value: Any) -> float:
    return float(value.abs().max()) if isinstance(value, torch.Tensor) else abs(value)
