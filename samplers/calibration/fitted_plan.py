"""Fitting a plan to a model: a fine solution, least squares stagewise and joint, refinement, the judgement on held-out seeds."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch

from ..engine import Denoiser
from ..errors import CalibrationError, check_integer
from ..grids import Grid
from ..plan import Plan
from ..solvers.dpm_multistep import dpm_solver_multistep
from .job import Job, Keeper
from .joint import Joint, fit_joint, joint_cost
from .refine import Refinement, final_errors, refine, refine_cost
from .samples import Samples
from .stagewise import fit_stagewise, teacher_cost, teacher_states
from .store import Calibration
from .tableau import Tableau


@dataclass(frozen=True)
class FitSettings:
    """What decides a fit besides the model and the samples.

    Attributes:
        order: outputs that stagewise least squares combines, 1 to the number of steps; 0 leaves that part out.
        constrained, ridge: of the least squares, see ``fit_stagewise``.
        teacher_steps: steps of the fine solution.
        joint: of the least squares for all numbers at once, from the better of the plain and the stagewise plan.
        refinement: of the gradient descent from there, which differentiates the model.
    """

    order: int = 3
    constrained: bool = True
    ridge: float = 1e-4
    teacher_steps: int = 50
    joint: Joint = field(default_factory=Joint)
    refinement: Refinement = field(default_factory=lambda: Refinement(iterations=0))


def cost(grid: Grid, samples: int, batch: int, held_out: int, settings: FitSettings) -> int:
    """Evaluations of the guided model, one per sample and call, known beforehand; backward passes come on top.

    Arguments as for ``fit``.
    """
    least_squares = (samples - held_out) * grid.steps if settings.order else 0
    return (
        teacher_cost(grid, samples, settings.teacher_steps) + least_squares + 3 * grid.steps * held_out
        + joint_cost(grid.steps, samples - held_out, batch, held_out, settings.joint)
        + refine_cost(grid.steps, batch, held_out, settings.refinement)
    )


def fit(
    denoiser: Denoiser, grid: Grid, x: torch.Tensor, *, batch: int, held_out: int, settings: FitSettings | None = None,
    base: Plan | None = None, job: Job | None = None,
) -> Calibration:
    """Fits a plan of the grid's steps to the model and judges it on seeds that it was not fitted to.

    Args:
        denoiser: ``D(x [batch, ...], sigma [batch]) -> x_0``, guidance inside; row i of every batch has the same prompt.
            Differentiable in x unless ``settings.refinement.iterations`` is 0.
        grid: the noise levels to start from; the refined plan has its own (``settings.refinement.times``).
        x: start states [N, ...] at the grid's first node, N a multiple of ``batch``; sample s has prompt ``s % batch``.
        batch: samples per call.
        held_out: how many of the samples, the last ones and a multiple of ``batch``, only judge.
        base: the plan to be better than, and to start from where ``settings.order`` is 0; one evaluation per falling level.
            None: DPM-Solver++(2M).
        job: progress, interruption and resumption; an interrupted fit ends with the same bits.

    Returns:
        A calibration of purpose "plan", whose ``meta["gain"]`` has the held-out mean square and median errors to the fine
        solution of the plain plan, the stagewise and the final one.

    Raises:
        CalibrationError: samples that make no whole batches, too few of them, NaN in the model, or no gain on the held-out
            samples: then the plain plan is as good, and there is nothing to save.
        PlanError: ``base`` cannot be written as a fitted plan.
    """
    settings = settings or FitSettings()
    check_integer("held_out", held_out, batch, max(batch, len(x) - batch))
    plain = Tableau.from_plan(base or dpm_solver_multistep(grid, order=min(2, grid.steps)), grid.frame)
    rest = len(x) - held_out
    every, train, held = Samples(denoiser, len(x), batch), Samples(denoiser, rest, batch), Samples(denoiser, held_out, batch)
    with job or Job(cost(grid, len(x), batch, held_out, settings), {}) as running:
        keeper = Keeper(running)
        states = teacher_states(every, plain.grid, x, settings.teacher_steps, keeper)
        target, target_held = states[-1, :rest], states[-1, rest:]

        def judge(tableau: Tableau, name: str) -> dict[str, float]:
            part = keeper.part(name)
            if not part:
                part = {"errors": final_errors(tableau, held, x[rest:], target_held)}
                keeper.advance(grid.steps * held_out, name, part)
            return {"mean": float(part["errors"].mean()), "median": float(part["errors"].median())}

        gain = {"plain": judge(plain, "plain")}
        best, report = plain, dict[str, list[float]]()
        if settings.order:
            stagewise, report = fit_stagewise(
                train, plain.grid, x[:rest], states[:, :rest], keeper, order=min(settings.order, grid.steps),
                constrained=settings.constrained, ridge=settings.ridge,
            )
            gain["stagewise"] = judge(stagewise, "judged stagewise")
            if gain["stagewise"]["mean"] < gain["plain"]["mean"]:
                best = stagewise
        data = (train, x[:rest], target, held, x[rest:], target_held)
        best = fit_joint(*data, best, settings.joint, keeper)
        refined = refine(*data, best, settings.refinement, keeper)
        gain["calibrated"] = judge(refined, "judged refined")
    if gain["calibrated"]["mean"] >= gain["plain"]["mean"]:
        raise CalibrationError(
            f"no gain on {held_out} held-out samples: error {gain['plain']['mean']:.3g} plain, {gain['calibrated']['mean']:.3g} "
            "fitted. "
            "Nothing is saved; use the plain solver, or fit with more samples, more iterations or another grid"
        )
    meta: dict[str, Any] = {
        "scaling": grid.frame.scaling, "steps": grid.steps, "sigmas": refined.grid.sigma.tolist(), "gain": gain,
        "per_step": report, "samples": len(x), "held_out": held_out, "settings": asdict(settings),
        "base": base.label if base is not None else "dpm_solver_multistep",
    }
    return Calibration("plan", refined.tensors(), meta)


def settings_from(data: dict[str, Any]) -> FitSettings:
    """From the ``settings`` of a calibration's meta."""
    known = {f.name for f in fields(FitSettings)}
    return FitSettings(**{**{k: v for k, v in data.items() if k in known}, "joint": Joint(**data["joint"]),
                          "refinement": Refinement(**data["refinement"])})
