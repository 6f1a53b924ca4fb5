"""Compensation ratios as a calibration: the fine trajectory, the search, and whether it helps on noise it has not seen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ..correctors.compensation import compensable
from ..engine import Denoiser
from ..errors import CalibrationError, PlanError, check_integer
from ..grids import Grid
from ..plan import Plan
from ..recipe import Recipe
from ..solvers.ddim import ddim
from ..solvers.unipc import unipc
from .held_out import REFINE, refined
from .job import Job, Keeper
from .ratios import clock_of
from .search_ratios import DEFAULT, Search, Settings, check_search, official_trajectory, step_of
from .store import Calibration
from .walk import Model, follow

OFFICIAL_STEPS = 200


def cost(
    recipe: Recipe, grid: Grid, samples: int, held_out: int, settings: Settings = DEFAULT, *, refine: int = REFINE
) -> int:
    """Evaluations of the denoiser that ``calibrate_ratios`` takes, known beforehand (with method "auto" the most it may take).

    One of a batch counts as many as it has samples; of guidance both halves count as one; a gradient counts as two more.
    """
    plan = _plan(recipe, grid)
    fine = refined(grid, refine).steps
    steps = len(plan.nodes) - 1
    free = compensable(plan, settings.dc_order)
    looks = sum(settings.cost(settings.method != "line") for i in free if step_of(plan, i).evaluates)
    followed = fine * (samples + held_out) if settings.rule == "interpolated" else OFFICIAL_STEPS * samples + fine * held_out
    return followed + samples * (steps + looks) + 2 * plan.nfe * held_out


def calibrate_ratios(
    denoiser: Denoiser | Sequence[Denoiser], recipe: Recipe, grid: Grid, starts: torch.Tensor, held_out: torch.Tensor, *,
    guidance: float, settings: Settings = DEFAULT, refine: int = REFINE, batch: int | None = None,
    job: Job | None = None,
) -> Calibration:
    """Searches the compensation ratios of a solver on a grid.

    Args:
        denoiser: ``D(x, sigma [B]) -> x_0`` in the grid's frame, guidance included. Several: batch j uses entry j modulo their
            number (prompts). Of the gradient methods it must not detach its result.
        recipe: a multistep solver with its other correctors, without compensation, time shift or a start transform.
        starts: states [S, ...] at the grid's first node to search on, float32 or float64; 10 are usual. See ``draw_starts``.
        held_out: states [H, ...] of other noise, at least 2, on which the gain is measured.
        guidance: the denoiser's guidance scale, for the file.
        refine: steps of the fine solution for each of the grid's.
        batch: states per call of the denoiser; None: all.
        job: progress and resumption; its ``total`` should be ``cost(...)``.

    Returns:
        Calibration for "ratios". ``ratios`` are the recommended ones: those found, or all 1 where they do not bring the held-out
        ends nearer to the fine solution than the plain solver does, by more than the standard error of that gain; ``searched``
        are those found. ``meta["gain"]`` has both mean-square errors, ``meta["helps"]`` says which it was.

    Raises:
        PlanError, OptionError: a recipe that cannot be compensated.
        CalibrationError: no starts, NaN from the model (it says where), a model without gradients where they are needed.
    """
    plan = _plan(recipe, grid)
    check_integer("refine", refine, 1, 1000)
    if len(starts) < 1 or len(held_out) < 2 or starts.shape[1:] != held_out.shape[1:]:
        raise CalibrationError(
            f"the search needs at least one start and two held-out starts of one size, got shapes {list(starts.shape)} and "
            f"{list(held_out.shape)}"
        )
    job = job or Job(cost(recipe, grid, len(starts), len(held_out), settings, refine=refine), {})
    with job, torch.inference_mode(False), torch.no_grad():
        keeper, model = Keeper(job), Model(denoiser, batch or max(len(starts), len(held_out)))
        starts, held_out, count = starts.clone(), held_out.clone(), len(starts)
        fine = refined(grid, refine)
        nodes = [int(np.flatnonzero(fine.sigma == sigma)[0]) for sigma in grid.sigma[1:]]
        if settings.rule == "interpolated":
            states = follow(unipc(fine), model, torch.cat([starts, held_out]), set(nodes), keeper, "fine")
            targets, exact = [states[k][:count] for k in nodes], states[nodes[-1]][count:]
        else:
            labelled, chosen = official_trajectory(grid.frame, plan.nodes, OFFICIAL_STEPS)
            states = follow(ddim(labelled), model, starts, set(chosen), keeper, "trajectory")
            exact = follow(unipc(fine), model, held_out, {fine.steps}, keeper, "fine")[fine.steps]
            targets = [states[k] for k in chosen]
        found = Search(plan, model, starts, targets, settings, keeper).run()
        changed = recipe.corrected("dynamic_compensation", ratios=found, dc_order=settings.dc_order).resolve(grid.frame, grid)
        errors = {}
        for name, tried in {"plain": plan, "calibrated": changed}.items():
            assert isinstance(tried, Plan)
            end = follow(tried, model, held_out, {tried.nfe}, keeper, name)[tried.nfe]
            errors[name] = (end - exact).double().square().flatten(1).mean(1).cpu()
    better = errors["plain"] - errors["calibrated"]
    helps = bool(better.mean() > better.std() / len(better) ** 0.5)  # more than chance among so few starts
    searched = torch.tensor(found, dtype=torch.float64)
    return Calibration("ratios", {"ratios": searched.clone() if helps else torch.ones_like(searched), "searched": searched}, {
        "method": "dynamic_compensation", "form": "list", "dc_order": settings.dc_order, "rule": settings.rule,
        "steps": len(found), "clock": clock_of(plan.nodes), "sigmas": [float(s) for s in grid.sigma],
        "scaling": grid.frame.scaling, "recipe": recipe.to_json(), "guidance": float(guidance), "samples": len(starts),
        "held_out": len(held_out), "shape": list(starts.shape[1:]), "helps": helps,
        "gain": {name: float(error.mean()) for name, error in errors.items()},
    })


def _plan(recipe: Recipe, grid: Grid) -> Plan:
    if recipe.start is not None:
        raise PlanError("search the ratios without the start transform, on the noise levels that it leaves")
    if any(name == "dynamic_compensation" for name, _ in recipe.correctors):
        raise PlanError("the recipe is compensated already: search the ratios for the solver below it")
    plan = recipe.resolve(grid.frame, grid)
    if not isinstance(plan, Plan):
        raise PlanError(f"{recipe.solver} chooses its steps while running; ratios belong to fixed ones")
    check_search(plan)
    return plan
