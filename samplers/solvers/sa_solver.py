"""SA-Solver: stochastic Adams predictor and corrector with data prediction (Xue et al., arXiv 2309.05019).

With ``H = (1 + tau^2) h`` a step solves the SDE whose share of noise is tau^2 exactly but for the integral (eq. 10):

    ``x_t = (sigma_t/sigma_s) e^(-tau^2 h) x_s + alpha_t int (1 + tau^2) e^((1 + tau^2)(u - lambda_t)) D(u) du
    + sigma_t sqrt(1 - e^(-2 tau^2 h)) xi``,

where D becomes the polynomial in lambda through past outputs, and in the corrector through the one at t too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

from ..correctors.unic import unified_weights
from ..errors import OptionError, check_integer, check_range
from ..grids import Grid
from ..plan import IDENTITY, NoiseTerm, Plan, Row, Stage
from ..sparse import stages_of
from .dpm_sde import check_eta
from .exponential import usable_history


def adams_row(grid: Grid, i: int, outputs: Sequence[int], tau: float, s_noise: float, simple_order_2: bool) -> Row:
    """The step from node i to node i+1 through the given outputs, with its noise (eq. 14 and 17).

    Args:
        outputs: i, i-1, ... for a predictor; with i+1 in front, or alone, for a corrector. Into sigma 0 and out of pure noise
            output i alone is read.
        tau: of this step.
        simple_order_2: the weight of a second output is its leading term, ``H/2``.
    """
    s, t = grid.node(i), grid.node(i + 1)
    h = t.lambda_ - s.lambda_
    if t.sigma == 0:
        return Row(m={i: t.alpha})
    if s.alpha == 0:  # the step is infinitely long, so all of the old noise is replaced when tau > 0
        keep = 0.0 if tau else 1.0
        return Row(x=keep * t.sigma / s.sigma, m={i: t.alpha}, noise=NoiseTerm.between(s_noise * t.sigma * (1 - keep), s, t))
    H = (1 + tau * tau) * h
    total = -t.alpha * math.expm1(-H)
    others = [j for j in outputs if j != i]
    if len(others) == len(outputs):
        m = {i + 1: total}
    else:
        positions = [float(grid.lambda_[j] - s.lambda_) / h for j in others]
        weights = unified_weights(-H, positions, "bh1" if simple_order_2 else "vary_coeff", corrector=False)
        m = {j: -t.alpha * w / r for j, w, r in zip(others, weights, positions, strict=True)}
        m[i] = total - math.fsum(m.values())  # keeps a constant to rounding
    noise = s_noise * t.sigma * math.sqrt(-math.expm1(-2 * tau * tau * h))
    return Row(x=t.sigma / s.sigma * math.exp(-tau * tau * h), m=m, noise=NoiseTerm.between(noise, s, t))


def after_correction(row: Row, predicted: Row, corrected: Row) -> Row:
    """``row`` of the corrected state, as a row of the predicted one: they differ by outputs alone, their noise is one draw."""
    keep, m = float(row.x), {j: float(c) for j, c in row.m.items()}
    for j in {*predicted.m, *corrected.m}:
        m[j] = m.get(j, 0.0) + keep * (float(corrected.m.get(j, 0.0)) - float(predicted.m.get(j, 0.0)))
    return Row(keep, m, noise=row.noise)


def sa_solver(
    grid: Grid, *, predictor_order: int = 3, corrector_order: int = 4, tau: float = 1.0, sde_start: float = 10.0,
    sde_end: float = 0.6, s_noise: float = 1.0, simple_order_2: bool = True, lower_order_final: bool = True,
) -> Plan:
    """SA-Solver in PEC mode: one evaluation per step, which also corrects the state that it was made at.

    Args:
        predictor_order: 1 to 4, the outputs that a step is predicted from. Start-up steps use as many as there are.
        corrector_order: 0 (none) to 4, the outputs that it is corrected with, the new one among them. The ODE is then solved
            with order ``min(corrector_order, predictor_order + 1)``.
        tau: 0 to 10, how much noise is renewed where any is: 0 is the ODE, 1 the reverse SDE. ComfyUI calls it eta.
        sde_start, sde_end: noise is renewed in the steps that end at a sigma/alpha (the sigma of an alpha = 1 frame) from
            ``sde_start`` down to ``sde_end``; the others solve the ODE.
        s_noise: factor on the added noise; other than 1 it biases the law of the samples.
        simple_order_2: the weights of order 2 by their leading term (appendix D of the paper, for few steps).
        lower_order_final: the last step above sigma 0 has order 1, the one before order 2 and so on; of the corrector likewise.
            Grids that stop above 0 leave the corrector one order more, as the paper's code does.

    A corrector adds the noise that its predictor added. The corrected state is the predicted one plus outputs then, so that with
    noise the corrector of a step and the predictor of the next are one row, and the plan's state the predicted one.

    Raises:
        OptionError: a number outside its range, or ``sde_end`` above ``sde_start``.
    """
    check_integer("predictor_order", predictor_order, 1, 4)
    check_integer("corrector_order", corrector_order, 0, 4)
    check_range("tau", tau, 0.0, 10.0)
    check_range("sde_start", sde_start, 0.0, math.inf)
    check_range("sde_end", sde_end, 0.0, math.inf)
    check_eta(0.0, s_noise)
    if sde_end > sde_start:
        raise OptionError(f"sde_end is {sde_end!r}, above sde_start {sde_start!r}: give the larger one as sde_start")
    taus = [tau if sde_start >= node.rho >= sde_end else 0.0 for node in grid.nodes[1:]]
    finite = grid.steps - (grid.end == "zero")

    @cache
    def rows(i: int) -> tuple[Row, Row]:
        """The predictor's and the corrector's row of step i, the same where there is no corrector."""
        left = max(finite - i, 1) if lower_order_final else grid.steps
        p, c = min(predictor_order, left), min(corrector_order, left + (grid.end == "stop"))
        past = [i - k for k in range(max(usable_history(grid, i, max(p, c - 1)), 1))]
        predicted = adams_row(grid, i, past[:p], taus[i], s_noise, simple_order_2)
        if c == 0 or grid.node(i).alpha == 0 or (grid.end == "zero" and i + 1 >= finite):  # the step to 0 reads no state
            return predicted, predicted
        return predicted, adams_row(grid, i, [i + 1, *past[: c - 1]], taus[i], s_noise, simple_order_2)

    def corrected(i: int, first: int) -> tuple[Stage]:
        if i == 0:
            return (Stage(grid.node(0), IDENTITY),)
        predicted, carry = rows(i - 1)
        return (Stage(grid.node(i), carry, predicted, step=i),)

    def folded(i: int, first: int) -> tuple[Stage]:
        row = rows(i)[0]
        return (Stage(grid.node(i), after_correction(row, *rows(i - 1)) if i else row, step=i),)

    noisy = s_noise > 0 and any(t and n.sigma for t, n in zip(taus, grid.nodes[1:], strict=True))
    if noisy or corrector_order == 0:
        return Plan(stages_of([1] * grid.steps, folded), grid.nodes)
    return Plan(stages_of([1] * grid.steps, corrected), grid.nodes, rows(grid.steps - 1)[0])
