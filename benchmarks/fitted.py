"""Fitted plans on the analytic mixtures: mean-square error to the exact end, against their base with the same evaluations.

    python -m fewstep.benchmarks.fitted

Each plan is fitted to other noise than the comparison's, with the guidance that is sampled with, from DPM-Solver++ 2M on the
same grid. Where the fit finds no gain on its held-out noise it refuses, and the base stands in the row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from ..samplers import Recipe, grids, make_plan, run
from ..samplers.analytic import GaussianMixture, start_noise
from ..samplers.calibration.fitted_plan import FitSettings, fit
from ..samplers.calibration.joint import Joint
from ..samplers.errors import CalibrationError
from .dpm_solver_v3 import BASES, GRIDS, mse
from .tables import markdown

NFES = (5, 6, 8, 10)
TEACHER = 150  # steps; some plans of 10 steps come within 1e-6 of the solution
FITS = {
    "stagewise": FitSettings(teacher_steps=TEACHER, joint=Joint(rounds=0)), "joint": FitSettings(teacher_steps=TEACHER),
}
SEEDS = (1, 2)  # of the comparison's noise


class Row(NamedTuple):
    """Mean-square errors of one mixture, grid, guidance and number of evaluations, by solver; ``refused`` fits are the base."""

    mixture: int
    grid: str
    guidance: float
    nfe: int
    errors: dict[str, float]
    refused: tuple[str, ...]


def rows(
    nfes: Sequence[int] = NFES, guidances: Sequence[float] = (1.0, 3.0, 7.5), mixtures: Sequence[int] = (0, 11),
    grid_names: Sequence[str] = tuple(GRIDS), samples: int = 64, batch: int = 16,
) -> Iterator[Row]:
    """One row for each mixture, grid, guidance and number of evaluations; a quarter of ``samples`` judges the fits."""
    for mixture in mixtures:
        model = GaussianMixture.make(mixture)
        for name in grid_names:
            frame, kind, ends = GRIDS[name]
            fine = grids.GRIDS[kind](frame, 1500, end="zero", **ends)
            start = torch.cat([start_noise(seed) for seed in SEEDS]) * fine.sigma[0]
            own = start_noise(700, (samples, 4, 8, 8)) * fine.sigma[0]
            for guidance in guidances:
                denoiser = model.denoiser(frame, guidance)
                exact = run(make_plan("unipc", frame, fine, order=3), denoiser, start)
                for nfe in nfes:
                    grid = grids.GRIDS[kind](frame, nfe, end="zero", **ends)
                    plans = {base: recipe.resolve(frame, grid) for base, recipe in BASES.items()}
                    errors = {base: mse(run(plan, denoiser, start), exact) for base, plan in plans.items()}
                    refused = []
                    for kind_of_fit, settings in FITS.items():
                        try:
                            made = fit(denoiser, grid, own, batch=batch, held_out=samples // 4, settings=settings)
                        except CalibrationError:
                            refused.append(kind_of_fit)
                            errors[kind_of_fit] = errors[next(iter(BASES))]
                            continue
                        plan = Recipe("fitted_plan", {"calibration": made}).resolve(frame, made.meta["sigmas"])
                        errors[kind_of_fit] = mse(run(plan, denoiser, start), exact)
                    yield Row(mixture, name, guidance, nfe, errors, tuple(refused))


def table(found: Sequence[Row]) -> str:
    """Per guidance and number of evaluations the geometric means over mixtures and grids: of the bases' errors, and of each
    fit's share of the better base; in brackets how many cells are worse than it."""
    head = ["guidance", "NFE", *BASES, *(f"{name} / better base (worse)" for name in FITS), "cells"]
    lines = []
    for guidance, nfe in sorted({(row.guidance, row.nfe) for row in found}):
        cells = [row for row in found if (row.guidance, row.nfe) == (guidance, nfe)]
        line = [f"{guidance:g}", str(nfe), *(f"{geometric_mean([row.errors[base] for row in cells]):.2g}" for base in BASES)]
        for name in FITS:
            shares = [row.errors[name] / min(row.errors[base] for base in BASES) for row in cells]
            line.append(f"{geometric_mean(shares):.2g} ({sum(share > 1 for share in shares)})")
        lines.append([*line, str(len(cells))])
    return markdown(head, lines)


def geometric_mean(values: Sequence[float]) -> float:
    """Of positive values."""
    return math.exp(sum(map(math.log, values)) / len(values))


def main() -> None:
    """Prints the table."""
    print(table(list(rows())))


if __name__ == "__main__":
    main()
