"""DPM-Solver-v3 on the analytic mixtures: mean-square error to the exact end, against its base with the same evaluations.

    python -m fewstep.benchmarks.dpm_solver_v3 [--levels 120] [--samples 32]

The statistics are measured with the guidance that is sampled with, on the model's own many-step samples of other noise than the
comparison's. ``v3`` is the solver with this pack's defaults; ``v3, published`` has order 3 without and 2 with guidance, the
corrector of the authors' settings (only without large guidance) and no bound on s.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator
from typing import Any

from ..samplers import Recipe, make_plan, run
from ..samplers.analytic import GaussianMixture, start_noise
from ..samplers.calibration.measure_statistics import lambda_grid, measure_statistics
from ..samplers.errors import CalibrationWarning
from .mixture_cells import BASES, GRIDS, GUIDANCES, MIXTURES, NFES, Cell, exact_end, grid_of, mse, place, report, starts

LEVELS, SAMPLES = 120, 32
BY = ("guidance", "NFE")


def calibrated(statistics: Any, guidance: float) -> dict[str, Recipe]:
    """The solvers that use the statistics."""
    published: dict[str, Any] = {
        "order": 3 if guidance == 1 else 2, "corrector": "full" if guidance < 5 else "none", "c_pseudo": True, "s_max": 0.0,
    }
    return {
        "v3": Recipe("dpm_solver_v3", {"statistics": statistics}),
        "v3, published": Recipe("dpm_solver_v3", {"statistics": statistics, **published}),
    }


def cells(levels: int = LEVELS, samples: int = SAMPLES) -> Iterator[Cell]:
    """One for each mixture, grid, guidance and number of evaluations; statistics of so many noise levels and samples."""
    for mixture in MIXTURES:
        model = GaussianMixture.make(mixture)
        for name in GRIDS:
            frame, first, start = GRIDS[name][0], grid_of(name, 200), starts(name)
            own = start_noise(700, (samples, 4, 8, 8)) * first.sigma[0]
            for guidance in GUIDANCES:
                denoiser = model.denoiser(frame, guidance)
                clean = run(make_plan("unipc", frame, first), denoiser, own)
                statistics = measure_statistics(
                    denoiser, frame, clean, lambda_grid(frame, levels), guidance=guidance, batch=samples, seed=800
                )
                exact = exact_end(name, denoiser, start)
                for nfe in NFES:
                    solvers = {**BASES, **calibrated(statistics, guidance)}
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore", CalibrationWarning)
                        plans = {solver: recipe.resolve(frame, grid_of(name, nfe)) for solver, recipe in solvers.items()}
                    assert all(plan.nfe == nfe for plan in plans.values())
                    errors = {solver: mse(run(plan, denoiser, start), exact) for solver, plan in plans.items()}
                    where = place(name, guidance, nfe, mixture=str(mixture))
                    yield Cell(where, {base: errors.pop(base) for base in BASES}, errors)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--levels", type=int, default=LEVELS)
    parser.add_argument("--samples", type=int, default=SAMPLES)
    args = parser.parse_args()
    print(report(cells(args.levels, args.samples), BY))
