"""The grid that is left after a jump to a lower noise level."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .errors import ScheduleError
from .frames import Frame
from .grids import Grid, from_sigmas

Map = Callable[[Any], Any]
SAME = 1e-3  # levels nearer than this share are one: a step between them would be wasted


def tail(grid: Grid, sigma: float) -> Grid:
    """``sigma`` and the grid's nodes below it: as many evaluations fewer as nodes were passed.

    Raises ScheduleError where no node lies below.
    """
    below = _first_below(grid, sigma)
    head = from_sigmas(grid.frame, [sigma, 0.0])
    if abs(grid.sigma[below - 1] - sigma) <= SAME * sigma:  # a node of the grid stays as given, to the last bit
        head, below = grid, below - 1
    rest: dict[str, Any] = {
        name: getattr(grid, name)[below:] if head is grid else np.append(getattr(head, name)[0], getattr(grid, name)[below:])
        for name in ("sigma", "alpha", "lambda_", "t")
    }
    return Grid(grid.frame, end=grid.end, **rest)


def regrid(grid: Grid, sigma: float) -> Grid:
    """All of the grid's steps spent between ``sigma`` and its end, spaced as the grid spaces them.

    Node numbers are interpolated in the coordinate in which the grid is nearest to uniform: time or its square root, lambda,
    log level, level^(1/7) or level (see ``Frame.level_of_lambda``). So a Karras grid gives the Karras grid from ``sigma`` on.

    Raises ScheduleError where no node lies below ``sigma``.
    """
    _first_below(grid, sigma)
    frame, count = grid.frame, grid.steps + (grid.end == "stop")  # nodes above sigma 0
    if sigma <= grid.sigma[count - 1] or count == 1:
        return tail(grid, sigma)
    forward, back = min(_coordinates(frame), key=lambda pair: _unevenness(pair[0](grid.lambda_[:count])))
    nodes, start = forward(grid.lambda_[:count]), forward(frame.lambda_of_sigma(sigma))
    index, sign = np.arange(count, dtype=np.float64), np.sign(nodes[-1] - nodes[0])  # np.interp wants rising points
    places = np.linspace(np.interp(sign * start, sign * nodes, index), count - 1, count)
    sigmas = frame.sigma_of_lambda(back(np.interp(places, index, nodes)))
    sigmas[0], sigmas[-1] = sigma, grid.sigma[count - 1]
    return from_sigmas(frame, np.append(sigmas, grid.sigma[count:]))


def _coordinates(frame: Frame) -> list[tuple[Map, Map]]:
    """Coordinates in which common grids are uniform: (from lambda, back to lambda)."""

    def level(lambda_: Any) -> Any:
        return np.asarray(frame.level_of_lambda(lambda_))

    return [
        (frame.t_of_lambda, frame.lambda_),
        (lambda lambda_: np.sqrt(frame.t_of_lambda(lambda_)), lambda root: frame.lambda_(root * root)),
        (lambda lambda_: lambda_, lambda lambda_: lambda_),
        (lambda lambda_: np.log(level(lambda_)), lambda log: frame.lambda_of_level(np.exp(log))),
        (lambda lambda_: level(lambda_) ** (1 / 7), lambda root: frame.lambda_of_level(root**7)),
        (level, frame.lambda_of_level),
    ]


def _first_below(grid: Grid, sigma: float) -> int:
    below = np.flatnonzero(grid.sigma < sigma * (1.0 - SAME))
    if not len(below):
        raise ScheduleError(
            f"the grid has no sigma below {sigma:g}, where the jump would end (its last is {grid.sigma[-1]:g}): jump less far, "
            "or use a grid that goes on to lower noise"
        )
    return int(below[0])


def _unevenness(coordinate: np.ndarray) -> float:
    """Largest second difference, relative to the mean step; infinite where the coordinate is not defined."""
    if not np.all(np.isfinite(coordinate)):
        return float("inf")
    return float(np.abs(np.diff(coordinate, 2)).max(initial=0.0) / abs(np.diff(coordinate).mean()))
