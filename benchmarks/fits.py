"""Plans fitted to an analytic mixture, as methods: on other noise than the comparison's, at the guidance that is sampled with."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import torch

from ..samplers import Recipe, run
from ..samplers.analytic import start_noise
from ..samplers.calibration.fitted_plan import fit
from ..samplers.errors import CalibrationError
from ..samplers.grids import from_sigmas
from ..samplers.plan import Plan
from .fitted import BATCH, FITS, HELD_OUT, SAMPLES
from .methods import Method, Unfit
from .problems import Denoiser, Problem
from .shipped import PACKAGE

STEPS = (4, 5, 6, 8, 10)
GRIDS = {"noise": ("trailing", "quadratic_t"), "flow": ("trailing", "beta")}  # to start from
SEED = 700


def methods(problem: Problem, guidance: float) -> Iterator[Method]:
    """The joint fit from DPM-Solver++ 2M; it applies at ``STEPS`` alone, and not where the fit finds no gain."""

    @cache
    def plan(grid: str, steps: int) -> Plan:
        if steps not in STEPS:
            raise Unfit
        start = from_sigmas(problem.frame, problem.sigmas(grid, steps))
        noise = start_noise(SEED, (SAMPLES, *problem.noise.shape[1:])) * start.node(0).sigma
        try:
            made = fit(problem.make(guidance), start, noise, batch=BATCH, held_out=HELD_OUT, settings=FITS["joint"])
        except CalibrationError as error:
            raise Unfit from error
        found = Recipe("fitted_plan", {"calibration": made}).resolve(problem.frame, made.meta["sigmas"])
        assert isinstance(found, Plan)
        return found

    def sample(problem: Problem, denoiser: Denoiser, grid: str, steps: int) -> torch.Tensor:
        fitted = plan(grid, steps)
        return run(fitted, denoiser, problem.noise * fitted.nodes[0].sigma)

    grids = GRIDS["flow" if problem.flow else "noise"]
    yield Method(PACKAGE, "fitted plan", lambda _: grids, sample, calibrated=True, count=lambda _, *place: plan(*place).nfe)
