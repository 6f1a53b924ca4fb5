"""The calibrations that ship with the demo models, as methods: each on its own noise levels, or on those it is free to choose."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from ..samplers import Recipe, run
from ..samplers.calibration import store
from ..samplers.errors import CalibrationWarning, FewStepError
from ..samplers.grids import Grid, from_sigmas
from ..samplers.solvers.fitted import fitted_grid
from .methods import Method, Unfit
from .problems import Denoiser, Problem

CALIBRATIONS = Path(__file__).resolve().parents[1] / "demo" / "calibration"
PACKAGE = "fewstep, calibrated"
FREE = ("trailing", "uniform_t", "uniform_lambda", "karras")  # for files that hold on any noise levels
BASE = Recipe("unipc", {"order": 2})  # of teleportation


def methods(problem: Problem, guidance: float) -> Iterator[Method]:
    """One for each file that was made for this demo model and guidance; its grids are named after the file."""
    store.add_folder(CALIBRATIONS)
    for file in store.list_files():
        path = store.find(file)
        if path.is_relative_to(CALIBRATIONS) and f"-{problem.prediction}-" in file:
            found = store.read(path)
            if found.meta.get("guidance") == guidance:
                yield _method(found, store.reference_of(path))


def _method(found: store.Calibration, reference: str) -> Method:
    name, recipe = _recipe(found, reference)
    kinds = ("own",) if "sigmas" in found.meta else FREE

    def sample(problem: Problem, denoiser: Denoiser, grid: str, steps: int) -> torch.Tensor:
        own = _grid(found, problem, grid.split()[0], steps)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", CalibrationWarning)
                plan = recipe.resolve(problem.frame, own)
            return run(plan, denoiser, problem.noise * own.node(0).sigma)
        except FewStepError as error:
            raise Unfit from error

    return Method(PACKAGE, name, lambda problem: [f"{kind} {reference}" for kind in kinds], sample, calibrated=True)


def _recipe(found: store.Calibration, reference: str) -> tuple[str, Recipe]:
    if found.purpose == "plan":
        return "fitted plan", Recipe("fitted_plan", {"calibration": reference})
    if found.purpose == "statistics":
        return "DPM-Solver-v3", Recipe("dpm_solver_v3", {"statistics": reference})
    if found.purpose == "moments":
        return "UniPC-2 + teleportation", BASE.started("teleport", moments=reference, mode="mean", rest="regrid")
    base = Recipe.from_json(found.meta["recipe"])
    return f"{base.solver} + compensation", base.corrected("dynamic_compensation", ratios=reference)


def _grid(found: store.Calibration, problem: Problem, kind: str, steps: int) -> Grid:
    if kind != "own":
        return from_sigmas(problem.frame, problem.sigmas(kind, steps))
    if steps != found.meta["steps"]:
        raise Unfit
    return fitted_grid(found, problem.frame) if found.purpose == "plan" else from_sigmas(problem.frame, found.meta["sigmas"])
