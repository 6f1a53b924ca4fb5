"""UniC: a corrector after any multistep predictor, at no extra evaluation (Zhao et al., arXiv 2302.04867, alg. 1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from ..errors import OptionError, PlanError, check_choice, check_integer
from ..plan import IDENTITY, Plan, Row, Stage
from ..solvers.exponential import KIND, Prediction, Step, lagrange_weights, psi
from ..sparse import SparseStages, stages_of
from .output_maps import under_maps

Variant = Literal["bh1", "bh2", "vary_coeff", "vary_coeff_official"]
VARIANTS = ("bh1", "bh2", "vary_coeff", "vary_coeff_official")


def check_variant(variant: str) -> None:
    """Raises OptionError for a name that is none of the published forms."""
    check_choice("variant", variant, VARIANTS)


def unified_weights(g: float, positions: Sequence[float], variant: str, *, corrector: bool) -> list[float]:
    """Weights w_k of D_k/r_k in a UniP or UniC row, before the gain.

    Args:
        g: psi argument of the step (-h data, +h noise).
        positions: r_k of the other outputs, in units of the step from the source node: negative for older ones; for
            the corrector the last one is 1.
        variant: see ``unipc``. Wherever the linear system is solved B(h) cancels, so bh1 and bh2 differ only in the
            fixed weight 1/2 that the paper sets when there is one unknown.
        corrector: whether the row is UniC's.
    """
    n = len(positions)
    if n == 0:
        return []
    p = psi(g, n + 1)
    if variant == "vary_coeff_official" and corrector:
        return _official_vary_corrector(p, positions)
    if n == 1 and variant in ("bh1", "bh2"):
        return [(g if variant == "bh1" else p[0]) / 2]
    return lagrange_weights(positions, [math.factorial(k) * p[k] for k in range(1, n + 1)])


def _official_vary_corrector(p: list[float], positions: Sequence[float]) -> list[float]:
    """The official vary_coeff corrector: of the exact double sum it takes only a part (unipc.md, trap 1)."""
    n = len(positions)
    if n == 1:
        return [p[1]]
    c = np.array([[r**k / math.factorial(k + 1) for k in range(n)] for r in positions])
    inverse = np.linalg.inv(c)  # [k][j]
    weights = [sum(p[k] * inverse[k - 1][j] for k in range(1, n)) for j in range(n - 1)]
    return [float(w) for w in (*weights, p[n] * inverse[n - 2][n - 1])]


def unic_row(plan: Plan, i: int, order: int, variant: str) -> Row:
    """The corrected update from node i-1 to node i, which uses the output at node i."""
    nodes, kind = plan.nodes, plan.stages[i].kind
    prediction: Prediction = "data" if kind == "x_0" else "noise"
    step = Step.between(nodes[i - 1], nodes[i], prediction)
    older = [j for j in range(i - 2, max(i - 1 - order, -1), -1) if plan.stages[j].node.alpha > 0]
    outputs = [*older, i]
    positions = [(nodes[j].lambda_ - nodes[i - 1].lambda_) / step.h for j in outputs]
    weights = unified_weights(step.g, positions, variant, corrector=True)
    return step.row({j: w / r for j, w, r in zip(outputs, weights, positions, strict=True)}, newest=i - 1)


def unic(
    plan: Plan, *, order: int = 2, variant: Variant = "bh2", disable: Sequence[int] = (), lower_order_final: bool = True,
) -> Plan:
    """Puts UniC of the given order after every step of a one-evaluation-per-step plan but the last.

    Args:
        plan: any multistep plan that stores one kind of output, x_0 or eps.
        order: 1 to 6; start-up steps use as much as there is.
        variant: see ``unipc``.
        disable: 0-based steps that stay uncorrected.
        lower_order_final: the corrector's order also falls towards the end, as UniPC's does.

    Raises:
        PlanError: the plan has inner stages, is already corrected, stores mixed kinds, or adds noise.
        OptionError: a ``disable`` entry is not a step.
    """
    check_variant(variant)
    check_integer("order", order, 1, 6)
    steps = len(plan.nodes) - 1
    bad = [s for s in disable if isinstance(s, bool) or not isinstance(s, int) or not 0 <= s < steps]
    if bad:
        raise OptionError(f"disable_corrector holds {bad[0]!r}, expected step numbers from 0 to {steps - 1}")
    return under_maps(plan, lambda base: _corrected(base, order, variant, disable, lower_order_final))


def _corrected(plan: Plan, order: int, variant: str, disable: Sequence[int], lower_order_final: bool) -> Plan:
    _check_plan(plan)
    steps = len(plan.nodes) - 1

    def corrected(i: int, first: int) -> tuple[Stage]:
        stage = plan.stages[i]
        if i == 0:
            return (Stage(stage.node, carry=IDENTITY, kind=stage.kind, step=0),)
        predict = plan.stages[i - 1].carry
        # corrector of step i (1-based): it needs a finite step, so none right after pure noise
        p = min(order, i, steps + 1 - i if lower_order_final and i >= order else order)
        correct = (i - 1) not in disable and plan.nodes[i - 1].alpha > 0
        carry = unic_row(plan, i, p, variant) if correct else predict
        return (Stage(stage.node, predict=predict, carry=carry, kind=stage.kind, step=i),)

    return plan.with_stages(stages_of([1] * len(plan.stages), corrected), plan.stages[-1].carry)


def _check_plan(plan: Plan) -> None:
    if len(plan.stages) != len(plan.nodes) - 1:
        raise PlanError(
            f"UniC needs one evaluation per step, but this plan has {len(plan.stages)} for {len(plan.nodes) - 1} steps: "
            "use a multistep solver before it"
        )
    if isinstance(plan.stages, SparseStages):
        return  # the plan that it stands for has been checked
    if not plan.final.is_identity or not all(s.predict.is_identity for s in plan.stages):
        raise PlanError("UniC needs a plan without inner stages; this one predicts its own states or is corrected already")
    kinds = {s.kind for s in plan.stages if s.node.alpha > 0}
    if len(kinds) > 1 or not kinds <= set(KIND.values()):
        raise PlanError(f"UniC needs outputs of one kind, x_0 or eps; this plan stores {', '.join(sorted(kinds))}")
    if plan.stochastic:
        raise PlanError("UniC corrects ODE steps; this plan adds noise (set eta, or SA-Solver's tau, to 0)")


__all__ = ["VARIANTS", "Variant", "check_variant", "unic", "unic_row", "unified_weights"]
