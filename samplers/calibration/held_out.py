"""Whether a calibration helps: errors of plans to a many-step solution, from noise that the calibration has not seen."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from ..engine import Denoiser, run
from ..grids import Grid, from_sigmas
from ..plan import Plan
from ..solvers.unipc import unipc

REFINE = 12  # steps of the solution compared with, for each of a plan's


def refined(grid: Grid, factor: int = REFINE) -> Grid:
    """The grid with every step divided, evenly in lambda; a first step from pure noise evenly in sigma, and a last one to sigma
    0 down to the frame's least noise."""
    frame, sigmas = grid.frame, [float(grid.sigma[0])]
    for i in range(grid.steps):
        a, b = float(grid.lambda_[i]), float(grid.lambda_[i + 1])
        if not np.isfinite(a):
            sigmas += np.linspace(grid.sigma[i], grid.sigma[i + 1], factor + 1)[1:].tolist()
            continue
        end = b if np.isfinite(b) else float(frame.lambda_(frame.time.t_0))
        if end > a:
            sigmas += frame.sigma_of_lambda(np.linspace(a, end, factor + 1)[1:]).tolist()
        if np.isfinite(b):
            sigmas[-1] = float(grid.sigma[i + 1])
        else:
            sigmas.append(0.0)
    return from_sigmas(frame, sigmas)


def cost(plans: Mapping[str, Plan], grid: Grid, batch: int, factor: int = REFINE) -> int:
    """Evaluations of ``errors``, one for each sample of a batch."""
    return batch * (refined(grid, factor).steps + sum(plan.nfe for plan in plans.values()))


def errors(
    plans: Mapping[str, Plan], denoiser: Denoiser, grid: Grid, start: torch.Tensor, factor: int = REFINE
) -> dict[str, float]:
    """Mean-square difference of each plan's result to the many-step solution from ``start`` [B, ...] at the grid's first node."""
    exact = run(unipc(refined(grid, factor), order=2), denoiser, start).double()
    return {name: float((run(plan, denoiser, start).double() - exact).square().mean()) for name, plan in plans.items()}
