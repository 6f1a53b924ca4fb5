"""Teleportation on the analytic mixture: mean-square error to the exact end, against the base solver with the same evaluations.

    python -m fewstep.benchmarks.teleportation

Moments and range are measured with the guidance that is sampled with, from noise that the comparison does not use. A jump to
the measured range before `regrid` or `tail`; the number of steps is chosen so that every column takes the same evaluations.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..samplers import run
from ..samplers.analytic import GaussianMixture
from ..samplers.calibration.moments import from_denoiser, measure_range
from .mixture_cells import BASES, GRIDS, GUIDANCES, NFES, Cell, exact_end, grid_of, mse, place, report, starts

WAYS = {f"{mode}, {rest}": (mode, rest) for mode in ("anchored", "mean") for rest in ("regrid", "tail")}
BY = ("NFE",)


def cells() -> Iterator[Cell]:
    """One for each grid, guidance, number of evaluations and base solver."""
    model, like = GaussianMixture.make(0), torch.zeros(4, 4, 8, 8, dtype=torch.float64)
    for name in GRIDS:
        frame, start = GRIDS[name][0], starts(name)
        for guidance in GUIDANCES:
            denoiser = model.denoiser(frame, guidance)
            moments = from_denoiser(denoiser, frame, like, kind="channel", samples=16, seed=500)
            moments = measure_range(denoiser, frame, moments, like, samples=8, seed=600, tolerance=0.02)
            exact = exact_end(name, denoiser, start)
            for nfe in NFES:
                for base, recipe in BASES.items():
                    jumps = (recipe.started("teleport", moments=moments, mode=mode, rest=rest) for mode, rest in WAYS.values())
                    errors = {}
                    for way, chosen in zip(("plain", *WAYS), (recipe, *jumps), strict=True):
                        plans = (chosen.resolve(frame, grid_of(name, steps)) for steps in range(max(nfe - 2, 3), 4 * nfe))
                        plan = next(plan for plan in plans if plan.nfe == nfe)
                        errors[way] = mse(run(plan, denoiser, start), exact)
                    yield Cell(place(name, guidance, nfe, base=base), {"plain": errors.pop("plain")}, errors)


if __name__ == "__main__":
    print(report(cells(), BY))
