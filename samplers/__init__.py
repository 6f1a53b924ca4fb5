"""FewStep's sampling core: a solver is data.

A pure function makes a *plan* of coefficients from a noise frame and a step grid; one *engine* runs every plan.

>>> import torch
>>> from fewstep.samplers import frames, grids, make_plan, run
>>> frame = frames.edm()
>>> grid = grids.karras(frame, 6, end="zero", t_T=80.0, t_0=0.02)
>>> plan = make_plan("unipc", frame, grid, order=2)
>>> denoiser = lambda x, sigma: x / (1 + sigma.reshape(-1, 1, 1, 1) ** 2)  # exact for unit Gaussian data
>>> x = run(plan, denoiser, torch.randn(2, 4, 8, 8) * grid.sigma[0])
>>> x.shape, plan.nfe
(torch.Size([2, 4, 8, 8]), 6)
"""

from . import errors, frames, grids, predictions
from .engine import Progress, run
from .noise import BrownianNoise, GaussianNoise, GivenNoise
from .plan import Plan, Row, Stage
from .plan_io import load_plan, save_plan
from .recipe import Recipe, make_plan
from .registry import solver_names, solver_options

__all__ = [
    "BrownianNoise", "GaussianNoise", "GivenNoise", "Plan", "Progress", "Recipe", "Row", "Stage", "errors", "frames",
    "grids", "load_plan", "make_plan", "predictions", "run", "save_plan", "solver_names", "solver_options",
]
