"""DPM-Solver-v3 (Zheng et al., arXiv 2310.13268): a multistep exponential integrator fitted to the model.

Three numbers per noise level and channel (or element), measured once per model and guidance scale, choose what is integrated
exactly: l the linear part, s the scale and b the offset of what is left. In ``X = x/alpha`` the stored output is
``M = D - (1 - l) X``; with the integrals of ``v3_integrals`` counted from the step's start s,

    ``X_t = e^-L [ X_s - sum_q T_q c_q - C ]``,    ``sum_q c_q (lambda - lambda_s)^q`` through ``G_j = -e^{-S_j} M_j - B_j``,

which is the paper's form with its offsets telescoped. ``l = 1, s = 0, b = 0`` is DPM-Solver++.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Literal

import numpy as np
import torch

from ..calibration.statistics import Statistics
from ..calibration.store import Calibration
from ..errors import CalibrationWarning, OptionError, ScheduleError, check_choice, check_integer, check_range
from ..grids import Grid
from ..plan import IDENTITY, Coefficient, LazyStages, Plan, Row, Stage
from ..sparse import stages_of
from .dpm_multistep import require_steps
from .exponential import step_from
from .v3_integrals import Integrals, Quadrature, integrals, interpolated

Corrector = Literal["none", "full", "half"]
SMALL = 4096  # numbers in a coefficient up to which all stages are kept; larger ones are made when they run
STEEP = -8.0  # below this s the corrector may diverge


def dpm_solver_v3(
    grid: Grid, *, statistics: Statistics | Calibration | str | None = None, order: int = 2, corrector: Corrector = "full",
    p_pseudo: bool = False, c_pseudo: bool = False, lower_order_final: bool = True, degenerated: bool = False,
    s_max: float = 3.0, per_channel: bool = False, snap: bool = False, quadrature: Quadrature = "trapezoid",
) -> Plan:
    """DPM-Solver-v3, one evaluation per step.

    Args:
        statistics: a reference to a calibration file, or the object; None: l = 1, s = 0, b = 0, which is DPM-Solver++ with
            exact weights, whatever the quadrature.
        order: 1 to 3; needs that many steps. Published are 3 for unguided and 2 for guided models; on this project's test
            models 2 is the better one for both.
        corrector: re-uses each evaluation to correct the step before it; "half" only in the noisy half of the model's time.
        p_pseudo, c_pseudo: the predictor (corrector) takes only the leading divided difference for each derivative;
            c_pseudo also raises the corrector's order by one.
        lower_order_final: the order falls towards the end, for any number of steps.
        degenerated: l = 1, s = 0, b = 0 on the statistics' grid, for comparison.
        s_max: bound of |s|, with b to match; 0: none, as published. Large guidance makes s so steep that the corrector
            diverges; 3 hardly touches unguided models. Statistics without moments, as the official files are, stay as they are.
        per_channel: averages per-element statistics over positions, for latents of another size than theirs.
        snap: moves every step to the nearest noise level of the statistics, as the official code does, instead of
            interpolating them.
        quadrature: of the statistics between their noise levels: "trapezoid" as published, or "exponential", exact for
            constant l and s and b = 0. Both are of second order in the distance of the levels.

    A step that starts at pure noise is of order 1 with l = 1, s = 0, b = 0; a step to sigma 0 is x = D.

    Raises:
        CalibrationError: statistics that cannot be read, do not suit the options, or are degenerate.
        OptionError: an option outside its range, "half" on a grid without the model's time.
        ScheduleError: two steps snapped to one noise level.
    """
    check_integer("order", order, 1, 3)
    check_choice("corrector", corrector, ("none", "full", "half"))
    check_choice("quadrature", quadrature, ("trapezoid", "exponential"))
    check_range("s_max", s_max, 0.0, 1e6)
    require_steps(grid, order)
    known = Statistics.plain() if statistics is None else Statistics.of(statistics)
    quadrature = "exponential" if statistics is None else quadrature
    if per_channel:
        known = known.per_channel()
    if degenerated:
        one = torch.ones_like(known.l)
        known = replace(known, l=one, s=0 * one, b=0 * one, sums=None)
    low, high = (float(v) for v in torch.aminmax(known.s))
    if s_max and max(-low, high) > s_max and known.sums is not None:
        known = known.clamped(s_max)
    if snap and statistics is not None:
        grid = _snapped(grid, known.lambda_)
    if corrector == "half" and not grid.frame.time.is_model_time:
        raise OptionError("corrector 'half' needs the model's time of each sigma, which this frame has not: use full or none")
    known.check_range()
    _warn(grid, known, corrector != "none")
    steps = _Steps(grid, known, order, p_pseudo, c_pseudo, lower_order_final, quadrature)
    corrected = [i > 0 and (corrector == "full" or (corrector == "half" and grid.t[i] > 0.5)) for i in range(grid.steps)]
    def stage(i: int) -> Stage:
        return steps.stage(i, corrector != "none", corrected[i])

    stages: Sequence[Stage] = LazyStages(grid.steps, stage)
    if known.l[0].numel() <= SMALL:
        stages = stages_of([1] * grid.steps, lambda i, first: (stage(i),))
    final = IDENTITY if corrector == "none" or grid.end == "zero" else steps.predictor(grid.steps - 1)
    return Plan(stages, grid.nodes, final)


class _Steps:
    """The rows of the steps of one grid. A full-size row is made when asked for; only the latest integrals are kept."""

    def __init__(
        self, grid: Grid, statistics: Statistics, order: int, p_pseudo: bool, c_pseudo: bool, lower: bool, quadrature: Quadrature
    ) -> None:
        self.grid, self.nodes, self.statistics = grid, grid.nodes, statistics
        self.first = int(self.nodes[0].alpha == 0)  # the first node that a polynomial may pass through
        n = grid.steps
        self.orders = [min(order, i + 1 - self.first, n - i if lower else order) for i in range(n)]
        self.p_pseudo, self.c_pseudo = p_pseudo, c_pseudo
        self.integrals = lru_cache(maxsize=order + 2)(
            lambda i: integrals(statistics, self.nodes[i].lambda_, self.nodes[i + 1].lambda_, order + c_pseudo, quadrature)
        )

    def stage(self, i: int, predicts: bool, corrected: bool) -> Stage:
        """Evaluation ``i``; with a corrector anywhere in the plan each stage ``predicts`` its state from the one before."""
        node, to_zero = self.nodes[i], self.nodes[i + 1].sigma == 0
        predict = self.predictor(i - 1) if predicts and i else IDENTITY
        if to_zero:
            return Stage(node, Row(m={i: 1.0}), predict, step=i)
        carry = (self.corrector(i - 1) if corrected else None) or predict if predicts else self.predictor(i)
        if node.alpha == 0:
            return Stage(node, carry, predict, step=i)
        slope = (interpolated(self.statistics.lambda_, self.statistics.l, np.array([node.lambda_]))[0] - 1) / node.alpha
        p = _coefficient(slope)
        if isinstance(p, float) and p == 0.0:
            return Stage(node, carry, predict, step=i)
        return Stage(node, carry, predict, "residual", i, (p, 1.0))

    def predictor(self, i: int) -> Row:
        """The step from node ``i`` to the next."""
        if i < self.first:
            return step_from(self.nodes[i], self.nodes[i + 1], "data").row({}, newest=i)
        p = self.orders[i]
        return self._row(i, [i - j for j in range(p)], self.p_pseudo)

    def corrector(self, i: int) -> Row | None:
        """The same step once more with the output at its end, or None where the order is too low for that."""
        if i < self.first:
            return None
        c = self.orders[i] + self.c_pseudo
        return self._row(i, [i, i + 1, *(i - j for j in range(1, c - 1))], self.c_pseudo) if c > 1 else None

    def _row(self, i: int, used: Sequence[int], pseudo: bool) -> Row:
        """The step from node ``i`` with the polynomial through the outputs ``used``, node ``i`` first."""
        source, target, step = self.nodes[i], self.nodes[i + 1], self.integrals(i)
        h = target.lambda_ - source.lambda_
        weights = polynomial_weights([(self.nodes[j].lambda_ - source.lambda_) / h for j in used], pseudo)
        scale = torch.exp(-step.L)
        outputs: dict[int, Coefficient] = {}
        offset = -step.C
        for k, j in enumerate(used):
            w = sum((float(weights[q, k]) / h**q * step.T[q] for q in range(len(used))), torch.zeros((), dtype=torch.float64))
            S, B = self._from(i, j)
            outputs[j] = _coefficient(target.alpha * scale * w * torch.exp(-S))
            offset = offset + w * B
        offset = target.alpha * scale * offset
        return Row(
            _coefficient(target.alpha / source.alpha * scale), outputs, offset=offset if bool((offset != 0).any()) else None
        )

    def _from(self, i: int, j: int) -> tuple[torch.Tensor, torch.Tensor]:
        """S and B at node ``j``, at most one step later than the node ``i`` from which they count."""
        if j > i:
            return self.integrals(i).S, self.integrals(i).B
        S = B = torch.zeros((), dtype=torch.float64)
        for k in range(i - 1, j - 1, -1):
            step: Integrals = self.integrals(k)
            S = S - step.S
            B = B - torch.exp(-S) * step.B
        return S, B


def polynomial_weights(positions: Sequence[float], pseudo: bool) -> np.ndarray:
    """``W`` with ``c = W G``: coefficients of 1, r, r^2 ... of the polynomial through values G at ``positions``, the first one 0.

    ``pseudo``: coefficient q is instead the divided difference of the first q + 1 values alone.
    """
    if not pseudo:
        return np.asarray(np.linalg.inv(np.vander(positions, increasing=True)))
    weights = np.zeros((len(positions),) * 2)
    for q in range(len(positions)):
        for k in range(q + 1):
            weights[q, k] = 1.0 / math.prod(positions[k] - positions[m] for m in range(q + 1) if m != k)
    return weights


def _coefficient(c: torch.Tensor) -> Coefficient:
    return float(c) if c.numel() == 1 else c


def _snapped(grid: Grid, lambdas: np.ndarray) -> Grid:
    """The grid with every finite node at the nearest of the statistics' noise levels."""
    inside = np.isfinite(grid.lambda_)
    cells = np.interp(grid.lambda_[inside], lambdas, np.arange(len(lambdas)))
    chosen = np.round(cells).astype(int)  # half to even, as the official code has it
    if len(set(chosen)) < len(chosen):
        i = int(np.argmin(np.diff(chosen)))
        raise ScheduleError(
            f"steps {i} and {i + 1} snap to one noise level of the statistics, which have {len(lambdas)}: use fewer steps, finer "
            "statistics, or snap=False"
        )
    lam, frame = grid.lambda_.copy(), grid.frame
    lam[inside] = lambdas[chosen]
    return Grid(frame, frame.sigma_of_lambda(lam), frame.alpha_of_lambda(lam), lam, frame.t_of_lambda(lam), grid.end)


def _warn(grid: Grid, statistics: Statistics, corrects: bool) -> None:
    lam, known = grid.lambda_[np.isfinite(grid.lambda_)], statistics.lambda_
    cell = (known[-1] - known[0]) / (len(known) - 1)
    if len(lam) and (lam[0] < known[0] - cell or lam[-1] > known[-1] + cell):
        warnings.warn(
            f"the steps reach from lambda {lam[0]:.3f} to {lam[-1]:.3f}, the statistics from {known[0]:.3f} to {known[-1]:.3f}: "
            "their end values are used beyond", CalibrationWarning, stacklevel=3,
        )
    if corrects and float(statistics.s.min()) < STEEP:
        warnings.warn(
            f"s goes down to {float(statistics.s.min()):.1f}; below {STEEP:.0f} the corrector may diverge: leave it out, or set "
            "s_max to 3 (statistics without moments must be measured anew for that)", CalibrationWarning, stacklevel=3,
        )


