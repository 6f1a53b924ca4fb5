"""Teleportation on the analytic mixture: mean-square error to the exact end, against the base solver with the same evaluations.

    python -m fewstep.benchmarks.teleportation

Moments and range are measured with the guidance that is sampled with, from noise that the comparison does not use. A jump to
the measured range before `regrid` or `tail`; the number of steps is chosen so that every column takes the same evaluations.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from ..samplers import Recipe, frames, grids, make_plan, run
from ..samplers.analytic import GaussianMixture, start_noise
from ..samplers.calibration.moments import from_denoiser, measure_range
from .tables import markdown

BASES = {
    "DPM-Solver++ 2M": Recipe("dpm_solver_multistep", {"order": 2, "lower_order_final": "always"}),
    "UniPC-2": Recipe("unipc", {"order": 2}),
}
GRIDS = {
    "EDM, Karras from 80": (frames.edm(), "karras", {"t_T": 80.0, "t_0": 0.002}),
    "VP, uniform t": (frames.linear_vp(), "uniform_t", {}),
    "VP, uniform lambda": (frames.linear_vp(), "uniform_lambda", {}),
    "flow, uniform t": (frames.flow(), "uniform_t", {}),
}
WAYS = [(mode, rest) for mode in ("anchored", "mean") for rest in ("regrid", "tail")]


class Row(NamedTuple):
    """Mean-square errors by way, and where the jumps end (sigma/alpha by mode, None where none was found to hold)."""

    grid: str
    base: str
    guidance: float
    nfe: int
    plain: float
    errors: dict[tuple[str, str], float]
    reach: dict[str, float | None]


def rows(
    nfes: Sequence[int] = (5, 6, 8, 10), guidances: Sequence[float] = (1.0, 3.0, 7.5), model_seed: int = 0,
    noise_seeds: Sequence[int] = (1, 2), grid_names: Sequence[str] = tuple(GRIDS), tolerance: float = 0.02,
) -> Iterator[Row]:
    """One row for each grid, guidance, number of evaluations and base solver."""
    model, like = GaussianMixture.make(model_seed), torch.zeros(4, 4, 8, 8, dtype=torch.float64)
    for name in grid_names:
        frame, kind, ends = GRIDS[name]

        def grid(steps: int, frame: frames.Frame = frame, kind: str = kind, ends: dict[str, float] = ends) -> grids.Grid:
            return grids.GRIDS[kind](frame, steps, end="zero", **ends)

        start = torch.cat([start_noise(seed) for seed in noise_seeds]) * grid(1).sigma[0]
        for guidance in guidances:
            denoiser = model.denoiser(frame, guidance)
            moments = from_denoiser(denoiser, frame, like, kind="channel", samples=16, seed=500)
            moments = measure_range(denoiser, frame, moments, like, samples=8, seed=600, tolerance=tolerance)
            exact = run(make_plan("unipc", frame, grid(1500), order=3), denoiser, start)
            for nfe in nfes:
                for base, recipe in BASES.items():
                    found = {}
                    for way in (None, *WAYS):
                        chosen = recipe if way is None else recipe.started("teleport", moments=moments, mode=way[0], rest=way[1])
                        plans = (chosen.resolve(frame, grid(steps)) for steps in range(max(nfe - 2, 3), 4 * nfe))
                        plan = next((p for p in plans if p.nfe == nfe), None)
                        found[way] = float("nan") if plan is None else mse(run(plan, denoiser, start), exact)
                    yield Row(name, base, guidance, nfe, found.pop(None), found, moments.meta["range"])  # type: ignore[arg-type]


def mse(a: torch.Tensor, b: torch.Tensor) -> float:
    """Mean-square difference."""
    return float((a - b).square().mean())


def table(found: Sequence[Row]) -> str:
    """The rows as Markdown; a ratio below 1 in brackets is a gain."""
    head = ["grid", "guidance", "NFE", "base", "plain", *(f"{mode}, {rest}" for mode, rest in WAYS)]
    lines = []
    for row in found:
        cells = [row.grid, f"{row.guidance:g}", str(row.nfe), row.base, f"{row.plain:.3g}"]
        cells += [f"{error:.3g} (x{error / row.plain:.2f})" for error in row.errors.values()]
        lines.append(cells)
    return markdown(head, lines)


if __name__ == "__main__":
    print(table(list(rows())))
