"""Dynamic compensation and DualFast on the analytic mixture: mean-square error to the exact end, base solver against base solver.

    python -m fewstep.benchmarks.compensation

Ratios are searched on ten starts and judged on sixteen others, both with the guidance that is sampled with; the comparison
uses noise of its own. No method takes more evaluations than its base. "recommended" are the ratios that the calibration
recommends: those found, or 1 where it saw no gain. DualFast's strengths are not fitted.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..samplers import Recipe, make_plan, run
from ..samplers.analytic import GaussianMixture
from ..samplers.calibration.calibrate_ratios import calibrate_ratios
from ..samplers.calibration.held_out import refined
from ..samplers.calibration.search_ratios import Settings, draw_starts
from .mixture_cells import BASES, DDIM, GRIDS, GUIDANCES, NFES, Cell, errors_of, grid_of, place, report

TRIED = {**DDIM, **BASES, "UniPC-3": Recipe("unipc", {"order": 3})}
STRENGTHS = (0.1, 0.3)
BY = ("base", "guidance", "NFE")


def cells() -> Iterator[Cell]:
    """One for each grid, guidance, number of evaluations and base solver."""
    model, like = GaussianMixture.make(0), torch.zeros(4, 8, 8, dtype=torch.float64)
    for name in GRIDS:
        for guidance in GUIDANCES:
            denoiser = model.denoiser(GRIDS[name][0], guidance)
            for nfe in NFES:
                grid = grid_of(name, nfe)
                seeds = ((100, 10), (200, 16), (300, 32))  # first seed, count
                search, held_out, start = (draw_starts(grid, like, *seed) for seed in seeds)
                exact = run(make_plan("unipc", grid.frame, refined(grid, 200)), denoiser, start)
                for base, recipe in TRIED.items():
                    found = calibrate_ratios(
                        denoiser, recipe, grid, search, held_out, guidance=guidance, settings=Settings(method="line"), refine=40)
                    ways = {
                        "plain": recipe,
                        "searched": recipe.corrected("dynamic_compensation", ratios=found.tensors["searched"].tolist()),
                        "recommended": recipe.corrected("dynamic_compensation", ratios=found),
                        **{f"DualFast {c:g}": recipe.corrected("dualfast", c_max=c) for c in STRENGTHS},
                    }
                    errors = errors_of(ways, grid, denoiser, start, exact)
                    yield Cell(place(name, guidance, nfe, base=base), {"plain": errors.pop("plain")}, errors)


if __name__ == "__main__":
    print(report(cells(), BY))
