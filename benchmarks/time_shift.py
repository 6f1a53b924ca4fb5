"""Time shift on the analytic mixture: mean-square error to the exact end, against the base solver with the same evaluations.

    python -m fewstep.benchmarks.time_shift

The rule is made for data whose variance is below 1. The testbed's mixture has latents' variance; the same one shrunk to a
quarter stands for such data. Windows are the node's default and a narrow one; no window takes more evaluations.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..samplers.analytic import GaussianMixture
from .mixture_cells import BASES, DDIM, GRIDS, GUIDANCES, NFES, Cell, errors_of, exact_end, grid_of, place, report, starts

WAYS = {"window 40": {}, "window 10": {"window": 10}}
BY = ("scale", "base", "guidance", "NFE")


def cells() -> Iterator[Cell]:
    """One for each scale, grid, guidance, number of evaluations and base solver."""
    for scale in (1.0, 0.25):
        model = GaussianMixture.make(0, scale=scale)
        for name in GRIDS:
            frame, start = GRIDS[name][0], starts(name)
            for guidance in GUIDANCES:
                denoiser = model.denoiser(frame, guidance)
                exact = exact_end(name, denoiser, start)
                for nfe in NFES:
                    for base, recipe in {**DDIM, **BASES}.items():
                        shifted = {way: recipe.corrected("time_shift", **options) for way, options in WAYS.items()}
                        errors = errors_of({"plain": recipe, **shifted}, grid_of(name, nfe), denoiser, start, exact)
                        where = place(name, guidance, nfe, scale=f"{scale:g}", base=base)
                        yield Cell(where, {"plain": errors.pop("plain")}, errors)


if __name__ == "__main__":
    print(report(cells(), BY))
