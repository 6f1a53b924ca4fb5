"""DPM-Solver-v3 on the analytic mixtures: mean-square error to the exact end, against its base with the same evaluations.

    python -m fewstep.benchmarks.dpm_solver_v3

The statistics are measured with the guidance that is sampled with, on the model's own many-step samples of other noise than the
comparison's. ``v3`` is the solver with this pack's defaults; ``v3, published`` has order 3 without and 2 with guidance, the
corrector of the authors' settings (only without large guidance) and no bound on s.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

from ..samplers import Recipe, frames, grids, make_plan, run
from ..samplers.analytic import GaussianMixture, start_noise
from ..samplers.calibration.measure_statistics import lambda_grid, measure_statistics
from ..samplers.errors import CalibrationWarning
from .tables import markdown

GRIDS = {
    "EDM, Karras from 80": (frames.edm(), "karras", {"t_T": 80.0, "t_0": 0.002}),
    "VP, uniform t": (frames.linear_vp(), "uniform_t", {}),
    "VP, uniform lambda": (frames.linear_vp(), "uniform_lambda", {}),
    "flow, uniform t": (frames.flow(), "uniform_t", {}),
}
BASES = {
    "DPM-Solver++ 2M": Recipe("dpm_solver_multistep", {"order": 2, "lower_order_final": "always"}),
    "UniPC-2": Recipe("unipc", {"order": 2}),
}


class Row(NamedTuple):
    """Mean-square errors by solver."""

    mixture: int
    grid: str
    guidance: float
    nfe: int
    errors: dict[str, float]


def calibrated(statistics: Any, guidance: float) -> dict[str, Recipe]:
    """The solvers that use the statistics."""
    published: dict[str, Any] = {
        "order": 3 if guidance == 1 else 2, "corrector": "full" if guidance < 5 else "none", "c_pseudo": True, "s_max": 0.0,
    }
    return {
        "v3": Recipe("dpm_solver_v3", {"statistics": statistics}),
        "v3, published": Recipe("dpm_solver_v3", {"statistics": statistics, **published}),
    }


def rows(
    nfes: Sequence[int] = (5, 6, 8, 10), guidances: Sequence[float] = (1.0, 3.0, 7.5), mixtures: Sequence[int] = (0, 11),
    noise_seeds: Sequence[int] = (1, 2), grid_names: Sequence[str] = tuple(GRIDS), points: int = 120, samples: int = 32,
) -> Iterator[Row]:
    """One row for each mixture, grid, guidance and number of evaluations."""
    for mixture in mixtures:
        model = GaussianMixture.make(mixture)
        for name in grid_names:
            frame, kind, ends = GRIDS[name]
            first = grids.GRIDS[kind](frame, 200, end="zero", **ends)
            start = torch.cat([start_noise(seed) for seed in noise_seeds]) * first.sigma[0]
            for guidance in guidances:
                denoiser = model.denoiser(frame, guidance)
                own = start_noise(700, (samples, 4, 8, 8)) * first.sigma[0]
                clean = run(make_plan("unipc", frame, first), denoiser, own)
                statistics = measure_statistics(
                    denoiser, frame, clean, lambda_grid(frame, points), guidance=guidance, batch=samples, seed=800
                )
                fine = grids.GRIDS[kind](frame, 1500, end="zero", **ends)
                exact = run(make_plan("unipc", frame, fine, order=3), denoiser, start)
                for nfe in nfes:
                    grid = grids.GRIDS[kind](frame, nfe, end="zero", **ends)
                    solvers = {**BASES, **calibrated(statistics, guidance)}
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore", CalibrationWarning)
                        plans = {solver: recipe.resolve(frame, grid) for solver, recipe in solvers.items()}
                    assert all(plan.nfe == nfe for plan in plans.values())
                    yield Row(mixture, name, guidance, nfe, {k: mse(run(p, denoiser, start), exact) for k, p in plans.items()})


def mse(a: torch.Tensor, b: torch.Tensor) -> float:
    """Mean-square difference."""
    return float((a - b).square().mean())


def table(found: Sequence[Row]) -> str:
    """The rows as Markdown; in brackets the ratio to the better base, below 1 a gain."""
    names = list(found[0].errors)
    head = ["mixture", "grid", "guidance", "NFE", *names]
    lines = []
    for row in found:
        base = min(row.errors[name] for name in BASES)
        cells = [str(row.mixture), row.grid, f"{row.guidance:g}", str(row.nfe)]
        cells += [f"{e:.2g}" + ("" if name in BASES else f" (x{e / base:.2g})") for name, e in row.errors.items()]
        lines.append(cells)
    return markdown(head, lines)


if __name__ == "__main__":
    print(table(list(rows())))
