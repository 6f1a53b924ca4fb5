"""Dynamic compensation and DualFast on the analytic mixture: mean-square error to the exact end, base solver against base solver.

    python -m fewstep.benchmarks.compensation

Ratios are searched on ten starts and judged on sixteen others, both with the guidance that is sampled with; the comparison
uses noise of its own. No method takes more evaluations than its base. "recommended" are the ratios that the calibration
recommends: those found, or 1 where it saw no gain. DualFast's strengths are not fitted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from ..samplers import Recipe, frames, grids, make_plan, run
from ..samplers.analytic import GaussianMixture
from ..samplers.calibration.calibrate_ratios import calibrate_ratios
from ..samplers.calibration.held_out import refined
from ..samplers.calibration.search_ratios import Settings, draw_starts
from .tables import markdown

BASES = {
    "DDIM": Recipe("ddim"), "DPM-Solver++ 2M": Recipe("dpm_solver_multistep", {"order": 2, "lower_order_final": "always"}),
    "UniPC-2": Recipe("unipc", {"order": 2}), "UniPC-3": Recipe("unipc", {"order": 3}),
}
GRIDS = {
    "EDM, Karras from 80": (frames.edm(), "karras", {"t_T": 80.0, "t_0": 0.002}),
    "VP, uniform t": (frames.linear_vp(), "uniform_t", {}),
    "VP, uniform lambda": (frames.linear_vp(), "uniform_lambda", {}),
    "flow, uniform t": (frames.flow(), "uniform_t", {}),
}
STRENGTHS = (0.1, 0.3)


class Row(NamedTuple):
    """Mean-square errors by method; ``helps`` is what the calibration itself says of its ratios."""

    grid: str
    base: str
    guidance: float
    nfe: int
    plain: float
    errors: dict[str, float]
    helps: bool


def rows(
    nfes: Sequence[int] = (5, 6, 8, 10), guidances: Sequence[float] = (1.0, 3.0, 7.5), model_seed: int = 0,
    grid_names: Sequence[str] = tuple(GRIDS), bases: Sequence[str] = tuple(BASES), settings: Settings = Settings(method="line"),  # noqa: B008
) -> Iterator[Row]:
    """One row for each grid, guidance, number of evaluations and base solver."""
    model, like = GaussianMixture.make(model_seed), torch.zeros(4, 8, 8, dtype=torch.float64)
    for name in grid_names:
        frame, kind, ends = GRIDS[name]
        for guidance in guidances:
            denoiser = model.denoiser(frame, guidance)
            for nfe in nfes:
                grid = grids.GRIDS[kind](frame, nfe, end="zero", **ends)
                seeds = ((100, 10), (200, 16), (300, 32))  # first seed, count
                search, held_out, start = (draw_starts(grid, like, *seed) for seed in seeds)
                exact = run(make_plan("unipc", frame, refined(grid, 200)), denoiser, start)
                for base in bases:

                    def error(recipe: Recipe, grid: grids.Grid = grid, start: torch.Tensor = start) -> float:
                        return float((run(recipe.resolve(frame, grid), denoiser, start) - exact).square().mean())  # noqa: B023

                    recipe = BASES[base]
                    found = calibrate_ratios(
                        denoiser, recipe, grid, search, held_out, guidance=guidance, settings=settings, refine=40)
                    ways = {
                        "searched": recipe.corrected("dynamic_compensation", ratios=found.tensors["searched"].tolist()),
                        "recommended": recipe.corrected("dynamic_compensation", ratios=found),
                        **{f"DualFast {c:g}": recipe.corrected("dualfast", c_max=c) for c in STRENGTHS},
                    }
                    errors = {way: error(changed) for way, changed in ways.items()}
                    yield Row(name, base, guidance, nfe, error(recipe), errors, bool(found.meta["helps"]))


def table(found: Sequence[Row]) -> str:
    """The rows as Markdown; a ratio below 1 in brackets is a gain."""
    head = ["grid", "guidance", "NFE", "base", "plain", *found[0].errors]
    lines = []
    for row in found:
        cells = [row.grid, f"{row.guidance:g}", str(row.nfe), row.base, f"{row.plain:.3g}"]
        cells += [f"{error:.3g} (x{error / row.plain:.2f})" for error in row.errors.values()]
        lines.append(cells)
    return markdown(head, lines)


if __name__ == "__main__":
    print(table(list(rows())))
