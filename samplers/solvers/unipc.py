"""UniPC (Zhao et al., arXiv 2302.04867): UniP predictor, and UniC corrector on top (see ``correctors.unic``)."""

from __future__ import annotations

from collections.abc import Sequence

from ..correctors.unic import Variant, check_variant, unic, unified_weights
from ..errors import check_integer
from ..grids import Grid
from ..plan import Plan, Row, Stage
from ..sparse import stages_of
from .dpm_multistep import require_steps, step_orders
from .exponential import (
    Prediction,
    check_prediction,
    check_thresholding,
    stage_kind,
    step_from,
    usable_history,
)
from .exponential import denoise_to_zero as add_denoise_to_zero


def unip_row(grid: Grid, i: int, order: int, prediction: Prediction, variant: Variant) -> Row:
    """UniP's update from node i to node i+1 through at most ``order`` outputs."""
    step = step_from(grid.node(i), grid.node(i + 1), prediction)
    order = 1 if step.first_order_only else usable_history(grid, i, order)
    positions = [float(grid.lambda_[i - k] - grid.lambda_[i]) / step.h for k in range(1, order)]
    weights = unified_weights(step.g, positions, variant, corrector=False)
    return step.row({i - k - 1: w / r for k, (w, r) in enumerate(zip(weights, positions, strict=True))}, newest=i)


def unipc(
    grid: Grid, *, order: int = 2, variant: Variant = "bh2", prediction: Prediction = "data",
    lower_order_final: bool = True, corrector: bool = True, disable_corrector: Sequence[int] = (),
    thresholding: bool = False, denoise_to_zero: bool = False,
) -> Plan:
    """UniPC of order 1 to 6, one evaluation per step; the corrector re-uses the next step's evaluation.

    Args:
        order: of the predictor; with the corrector the method converges with one order more. Above 4 the weights are
            large. Needs at least that many steps.
        variant: ``bh1`` and ``bh2`` as published; ``vary_coeff`` with exact weights; ``vary_coeff_official`` reproduces
            the official code, whose corrector sums only a part and falls to order 1.
        prediction: ``data`` (x_0) or ``noise`` (eps).
        lower_order_final: the last step is of order 1, the one before of order 2 and so on, for any number of steps.
        corrector: False leaves the predictor UniP alone.
        disable_corrector: 0-based steps without corrector; (0,) often helps at large guidance.
        thresholding, denoise_to_zero: as in ``dpm_solver_multistep``.
    """
    check_prediction(prediction)
    check_variant(variant)
    check_integer("order", order, 1, 6)
    require_steps(grid, order)
    orders = step_orders(grid.steps, order, lower_order_final)

    def step(i: int, first: int) -> tuple[Stage]:
        node, row = grid.node(i), unip_row(grid, i, orders[i], prediction, variant)
        return (Stage(node, row, kind=stage_kind(node, prediction), step=i),)

    plan = Plan(stages_of([1] * grid.steps, step), grid.nodes, hooks=check_thresholding(thresholding, prediction))
    if corrector:
        plan = unic(plan, order=order, variant=variant, disable=disable_corrector, lower_order_final=lower_order_final)
    return add_denoise_to_zero(plan, denoise_to_zero)
