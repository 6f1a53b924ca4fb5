"""DPM-Solver-12 and -23 with adaptive step size (Lu et al., arXiv 2206.00927, appendix C): a plan made while it runs.

The step size depends on the data, so this is the one solver that reads the device in its loop, once per attempt.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..errors import OptionError, check_choice, check_integer
from ..grids import Grid, Node, node_at_lambda
from ..hooks import Hook
from ..plan import IDENTITY, Stage
from .dpm_singlestep import SinglestepType, inner_rows, step_stages
from .exponential import Prediction, check_prediction, check_thresholding, stage_kind, step_from

if TYPE_CHECKING:
    from ..engine import Engine
    from ..recipe import Recipe
    from ..start import StartTransform


@dataclass(frozen=True, eq=False)
class AdaptivePlan:
    """Generates singlestep stages between the grid's two ends; accepted steps are those whose error estimate is small.

    ``nfe`` and ``peak_latents`` are not known ahead (None). See ``dpm_solver_adaptive`` for the arguments.
    """

    grid: Grid
    order: int
    prediction: Prediction
    solver_type: str
    h_init: float
    atol: float
    rtol: float
    theta: float
    t_err: float
    hooks: tuple[Hook, ...]
    recipe: Recipe | None = None
    start: StartTransform | None = None

    nfe = None
    peak_latents = None
    stochastic = False
    biased = False

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The ends between which steps are chosen (with the exact first and last steps' nodes)."""
        return self.grid.nodes

    def describe(self) -> str:
        """Says what is known before the run."""
        name = self.recipe.label if self.recipe else "dpm_solver_adaptive"
        return (
            f"{name}: order {self.order}, step size chosen while running; "
            f"sigma {self.grid.sigma[0]:.6g} to {self.grid.sigma[-1]:.6g}, atol {self.atol:g}, rtol {self.rtol:g}"
        )

    def generate(self, engine: Engine) -> Iterator[Stage]:
        """Yields stages; reads the error of each attempt from the device."""
        nodes = self.grid.nodes
        if math.isinf(nodes[0].lambda_):
            yield self._single(nodes[0], nodes[1], engine)
            nodes = nodes[1:]
        inner = nodes[:-1] if self.grid.end == "zero" else nodes
        if len(inner) > 1:
            yield from self._adapt(inner[0], inner[-1], engine)
        if inner and inner[-1] is not nodes[-1]:
            yield self._single(inner[-1], nodes[-1], engine)

    def _single(self, source: Node, target: Node, engine: Engine) -> Stage:
        k = engine.evaluations
        row = step_from(source, target, self.prediction).row({}, newest=k)
        return Stage(source, row, kind=stage_kind(source, self.prediction))

    def _adapt(self, source: Node, end: Node, engine: Engine) -> Iterator[Stage]:
        h, previous, step = self.h_init, engine.x.clone(), 0
        time = self.grid.frame.time
        higher, lower = torch.empty_like(engine.x), torch.empty_like(engine.x)
        while abs(source.t - end.t) > self.t_err:
            target = node_at_lambda(self.grid.frame, source.lambda_ + h)
            first = engine.evaluations
            inner = [
                node_at_lambda(self.grid.frame, source.lambda_ + h * j / self.order) for j in range(1, self.order)
            ]
            stages = step_stages(source, target, inner, first, self.prediction, self.solver_type, step)
            for stage in stages:
                # the step itself is only taken when its error is known
                yield Stage(stage.node, IDENTITY, stage.predict, stage.kind, step)
            engine.combine(stages[-1].carry, higher)
            low_row = inner_rows(source, target, inner[:-1], first, self.prediction, self.solver_type)[1]
            engine.combine(low_row, lower)
            error = _error(higher, lower, previous, self.atol, self.rtol)
            if error <= 1.0:
                # the caller's start, which is the state until the first step, is not ours to write to
                engine.x, higher = higher, (torch.empty_like(higher) if step == 0 else engine.x)
                previous.copy_(lower)
                source = Node(target.t, target.alpha, target.sigma, float(time.lambda_(np.asarray(target.t))))
                step += 1
            engine.free(range(first, engine.evaluations))
            # the official code rounds this factor to float32, which decides the number of evaluations
            factor = float(np.float32(error ** (-1.0 / self.order))) if error > 0 else math.inf
            h = min(self.theta * h * factor, end.lambda_ - source.lambda_)


def _error(higher: torch.Tensor, lower: torch.Tensor, previous: torch.Tensor, atol: float, rtol: float) -> float:
    """The largest error of a sample: root mean square of the difference over its tolerance."""
    delta = torch.maximum(lower.abs(), previous.abs()).mul_(rtol).clamp_(min=atol)
    scaled = (higher - lower).div_(delta).flatten(1)
    scaled = scaled if scaled.dtype == torch.float64 else scaled.float()
    return float(scaled.square().mean(1).sqrt().max())


def dpm_solver_adaptive(
    grid: Grid, *, order: int = 3, prediction: Prediction = "data", solver_type: SinglestepType = "dpmsolver",
    h_init: float = 0.05, atol: float = 0.0078, rtol: float = 0.05, theta: float = 0.9, t_err: float = 1e-5,
    thresholding: bool = False,
) -> AdaptivePlan:
    """DPM-Solver-12 (order 2) or DPM-Solver-23 (order 3): the grid gives only the ends, the error the steps.

    Args:
        order: 2 or 3, the order of the higher of the two solutions.
        h_init: first step, in lambda.
        atol, rtol: tolerances per element; 0.0078 is 2/256, one grey level of an image in -1..1.
        theta: safety factor of the step size, in (0, 1].
        t_err: distance from the end, in t, at which it counts as reached.
        solver_type, thresholding: as in ``dpm_solver_singlestep``.

    The whole batch shares one step size, so here a sample does depend on its neighbours.
    """
    check_prediction(prediction)
    check_choice("solver_type", solver_type, ("dpmsolver", "taylor"))
    check_integer("order", order, 2, 3)
    for name, value in {"h_init": h_init, "atol": atol, "t_err": t_err}.items():
        if not 0 < value < math.inf:
            raise OptionError(f"{name} is {value!r}, expected a positive number")
    if not 0 <= rtol < math.inf or not 0 < theta <= 1:
        raise OptionError(f"rtol is {rtol!r} and theta {theta!r}, expected rtol >= 0 and 0 < theta <= 1")
    hooks = check_thresholding(thresholding, prediction)
    return AdaptivePlan(grid, order, prediction, solver_type, h_init, atol, rtol, theta, t_err, hooks)
