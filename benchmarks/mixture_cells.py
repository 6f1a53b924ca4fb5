"""What the benchmarks on the analytic mixtures share: grids, base solvers, the exact end, and their two tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch

from ..samplers import Recipe, frames, grids, make_plan, run
from ..samplers.analytic import start_noise
from ..samplers.engine import Denoiser
from ..samplers.frames import Frame
from ..samplers.grids import Grid
from .tables import markdown

NFES = (5, 6, 8, 10)
GUIDANCES = (1.0, 3.0, 7.5)
MIXTURES = (0, 11)  # seeds
GRIDS: dict[str, tuple[Frame, str, Mapping[str, float]]] = {
    "EDM, Karras from 80": (frames.edm(), "karras", {"t_T": 80.0, "t_0": 0.002}),
    "VP, uniform t": (frames.linear_vp(), "uniform_t", {}),
    "VP, uniform lambda": (frames.linear_vp(), "uniform_lambda", {}),
    "flow, uniform t": (frames.flow(), "uniform_t", {}),
}
BASES = {
    "DPM-Solver++ 2M": Recipe("dpm_solver_multistep", {"order": 2, "lower_order_final": "always"}),
    "UniPC-2": Recipe("unipc", {"order": 2}),
}
DDIM = {"DDIM": Recipe("ddim")}


class Cell(NamedTuple):
    """Mean-square errors to the exact end in one place.

    Attributes:
        place: where: the first columns of a table.
        plain: by solver, without the method.
        errors: by way of using the method, with as many evaluations.
    """

    place: dict[str, str]
    plain: dict[str, float]
    errors: dict[str, float]

    @property
    def shares(self) -> dict[str, float]:
        """The errors over that of the best plain solver: below 1 is a gain."""
        best = min(self.plain.values())
        return {way: error / best for way, error in self.errors.items()}


def grid_of(name: str, steps: int) -> Grid:
    """The named grid of ``GRIDS``, ending at sigma 0."""
    frame, kind, ends = GRIDS[name]
    return grids.GRIDS[kind](frame, steps, end="zero", **ends)


def starts(name: str) -> torch.Tensor:
    """The noise of all comparisons, which no calibration sees."""
    return torch.cat([start_noise(seed) for seed in (1, 2)]) * grid_of(name, 1).sigma[0]


def exact_end(name: str, denoiser: Denoiser, start: torch.Tensor) -> torch.Tensor:
    """The end of the ODE to about 1e-9, by UniPC-3 in 1500 steps."""
    return run(make_plan("unipc", GRIDS[name][0], grid_of(name, 1500), order=3), denoiser, start)


def errors_of(
    ways: Mapping[str, Recipe], grid: Grid, denoiser: Denoiser, start: torch.Tensor, exact: torch.Tensor
) -> dict[str, float]:
    """Each recipe's error on the grid."""
    return {way: mse(run(recipe.resolve(grid.frame, grid), denoiser, start), exact) for way, recipe in ways.items()}


def place(grid: str, guidance: float, nfe: int, **more: str) -> dict[str, str]:
    """A cell's place: ``more`` comes first."""
    return {**more, "grid": grid, "guidance": f"{guidance:g}", "NFE": str(nfe)}


def mse(a: torch.Tensor, b: torch.Tensor) -> float:
    """Mean-square difference."""
    return float((a - b).square().mean())


def cells_table(found: Sequence[Cell]) -> str:
    """Every cell; in brackets the share of the best plain solver's error."""
    lines = [
        [*cell.place.values(), *(f"{error:.3g}" for error in cell.plain.values()),
         *(f"{error:.3g} (x{cell.shares[way]:.2g})" for way, error in cell.errors.items())]
        for cell in found
    ]
    return markdown([*found[0].place, *found[0].plain, *found[0].errors], lines)


def summary(found: Sequence[Cell], by: Sequence[str]) -> str:
    """Geometric means over all cells alike in the columns ``by``: plain errors and shares; in brackets how many are above 1."""
    groups: dict[tuple[str, ...], list[Cell]] = {}
    for cell in found:
        groups.setdefault(tuple(cell.place[column] for column in by), []).append(cell)
    lines = [
        [*place, *(f"{geometric_mean(cell.plain[name] for cell in cells):.2g}" for name in found[0].plain),
         *(f"{geometric_mean(cell.shares[way] for cell in cells):.2g} ({sum(cell.shares[way] > 1 for cell in cells)})"
           for way in found[0].errors), str(len(cells))]
        for place, cells in groups.items()
    ]
    return markdown([*by, *found[0].plain, *found[0].errors, "cells"], lines)


def geometric_mean(values: Iterable[float]) -> float:
    """Of positive values."""
    logarithms = [math.log(value) for value in values]
    return math.exp(sum(logarithms) / len(logarithms))


def report(cells: Iterable[Cell], by: Sequence[str]) -> str:
    """The summary and all cells."""
    found = list(cells)
    return f"{summary(found, by)}\n{cells_table(found)}"
