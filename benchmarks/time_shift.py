"""Time shift on the analytic mixture: mean-square error to the exact end, against the base solver with the same evaluations.

    python -m fewstep.benchmarks.time_shift

The rule is made for data whose variance is below 1. The testbed's mixture has latents' variance; the same one shrunk to a
quarter stands for such data. Windows are the node's default and a narrow one; no window takes more evaluations.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from ..samplers import Recipe, grids, make_plan, run
from ..samplers.analytic import GaussianMixture, start_noise
from .tables import markdown
from .teleportation import GRIDS, mse

BASES = {
    "DDIM": Recipe("ddim"), "DPM-Solver++ 2M": Recipe("dpm_solver_multistep", {"order": 2, "lower_order_final": "always"}),
    "UniPC-2": Recipe("unipc", {"order": 2}),
}
WAYS = {"window 40": {}, "window 10": {"window": 10}}
SCALES = (1.0, 0.25)


class Row(NamedTuple):
    """Mean-square errors by way; ``scale`` of the mixture's means and deviations."""

    scale: float
    grid: str
    base: str
    guidance: float
    nfe: int
    plain: float
    errors: dict[str, float]


def rows(
    nfes: Sequence[int] = (5, 6, 8, 10), guidances: Sequence[float] = (1.0, 3.0, 7.5), scales: Sequence[float] = SCALES,
    model_seed: int = 0, noise_seeds: Sequence[int] = (1, 2), grid_names: Sequence[str] = tuple(GRIDS),
) -> Iterator[Row]:
    """One row for each scale, grid, guidance, number of evaluations and base solver."""
    for scale in scales:
        model = GaussianMixture.make(model_seed, scale=scale)
        for name in grid_names:
            frame, kind, ends = GRIDS[name]
            fine = grids.GRIDS[kind](frame, 1500, end="zero", **ends)
            start = torch.cat([start_noise(seed) for seed in noise_seeds]) * fine.sigma[0]
            for guidance in guidances:
                denoiser = model.denoiser(frame, guidance)
                exact = run(make_plan("unipc", frame, fine, order=3), denoiser, start)
                for nfe in nfes:
                    grid = grids.GRIDS[kind](frame, nfe, end="zero", **ends)
                    for base, recipe in BASES.items():
                        tried = {way: recipe.corrected("time_shift", **options) for way, options in WAYS.items()}
                        plain, *found = (
                            mse(run(r.resolve(frame, grid), denoiser, start), exact) for r in (recipe, *tried.values()))
                        yield Row(scale, name, base, guidance, nfe, plain, dict(zip(tried, found, strict=True)))


def table(found: Sequence[Row]) -> str:
    """The rows as Markdown; a ratio below 1 in brackets is a gain."""
    head = ["scale", "grid", "guidance", "NFE", "base", "plain", *found[0].errors]
    lines = []
    for row in found:
        cells = [f"{row.scale:g}", row.grid, f"{row.guidance:g}", str(row.nfe), row.base, f"{row.plain:.3g}"]
        cells += [f"{error:.3g} (x{error / row.plain:.2f})" for error in row.errors.values()]
        lines.append(cells)
    return markdown(head, lines)


def summary(found: Sequence[Row]) -> str:
    """Geometric means over grids of the ratio to the base, and how many cells are worse."""
    head = ["scale", "guidance", "NFE", "base", *WAYS]
    lines = []
    for scale, guidance, nfe, base in dict.fromkeys((r.scale, r.guidance, r.nfe, r.base) for r in found):
        own = [r for r in found if (r.scale, r.guidance, r.nfe, r.base) == (scale, guidance, nfe, base)]
        cells = []
        for way in WAYS:
            ratios = [row.errors[way] / row.plain for row in own]
            mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
            cells.append(f"{mean:.2f} ({sum(ratio > 1 for ratio in ratios)} of {len(ratios)} worse)")
        lines.append([f"{scale:g}", f"{guidance:g}", str(nfe), base, *cells])
    return markdown(head, lines)


if __name__ == "__main__":
    measured = list(rows())
    print(table(measured))
    print(summary(measured))
