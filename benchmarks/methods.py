"""What the error benchmark needs of a sampler, the pack's or a peer's, and how evaluations are counted."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch

from .problems import Denoiser, Problem

Sample = Callable[[Problem, Denoiser, str, int], torch.Tensor]


class Unfit(Exception):
    """The method cannot run on this problem, grid or number of steps."""


@dataclass(frozen=True, eq=False)
class Method:
    """A sampler.

    Attributes:
        package, name: for the tables.
        grids: the grids that it is tried on.
        sample: (problem, denoiser, grid, steps) to its x_0; raises Unfit where it does not apply. It starts from
            ``problem.noise`` times its own first sigma.
        stochastic: whether it adds noise: then it is measured by the law of its samples.
        calibrated: whether it is made for a number of evaluations, and stands only where it takes as many as are asked for.
        count: (problem, grid, steps) to the number of evaluations, where it is known without a run; raises Unfit likewise.
    """

    package: str
    name: str
    grids: Callable[[Problem], Sequence[str]]
    sample: Sample
    stochastic: bool = False
    calibrated: bool = False
    count: Callable[[Problem, str, int], int] | None = None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars, no warnings of the peers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class Counter:
    """A denoiser that counts the evaluations of single states in the batch."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser, self.calls = denoiser, 0

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.denoiser(x, sigma.to(x.dtype).reshape(-1).expand(len(x)))


@cache
def evaluations(method: Method, problem: Problem, grid: str, steps: int) -> int | None:
    """How often the method calls the model in ``steps`` steps; None where it does not apply. Costs no model call."""
    counter = Counter(lambda x, sigma: 0.5 * x)
    try:
        if method.count is not None:
            return method.count(problem, grid, steps)
        method.sample(replace(problem, noise=problem.noise[:1, :, :1, :1]), counter, grid, steps)
    except Unfit:
        return None
    return counter.calls


def steps_for(method: Method, problem: Problem, grid: str, nfe: int) -> int | None:
    """The largest number of steps that takes at most ``nfe`` evaluations, or None. A step takes at least one; of a
    calibrated method it takes one."""
    if method.calibrated:
        return nfe if evaluations(method, problem, grid, nfe) == nfe else None
    steps = nfe
    while steps:
        count = evaluations(method, problem, grid, steps)
        if count is not None and count <= nfe:
            return steps
        # the share of the steps that would fit, and one more in case that the last step takes less
        steps = steps - 1 if count is None else min(steps - 1, steps * nfe // count + 1)
    return None
