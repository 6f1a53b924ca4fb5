"""The law of samples: ``python -m fewstep.benchmarks.law [--out DIR]`` writes law.csv and law.md.

How far the pixels that a stochastic method draws are from the data, on a mixture without guidance, for every one of the pack
and of the peers that are installed, on each of its grids.

Sliced Wasserstein distance: the root mean square difference of quantiles along random directions of the four channels,
against a million exact draws; the mean over the noises that runs start from. A perfect sampler of as many pixels would show
the floor that the table gives.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..samplers.analytic import GaussianMixture, start_noise
from .error import all_methods
from .error_tables import best
from .methods import Method, evaluations, steps_for
from .problems import PROBLEMS
from .tables import markdown, preamble, write_csv

SHAPE = (16, 4, 24, 24)
NFES = (4, 6, 8, 10, 15, 20)
# of the start; not 0 or 1: samplers are given seed 0, and ComfyUI's draw with seed + 1 on the CPU, which would be the start again
SEEDS = (11, 12, 13)
QUANTILES = 2000
REFERENCE = 1_000_000
Row = dict[str, Any]


def draws(model: GaussianMixture, count: int, seed: int) -> torch.Tensor:
    """``count`` pixels [count, C] of the conditional mixture."""
    generator = torch.Generator().manual_seed(seed)
    which = torch.multinomial(model.w_cond, count, replacement=True, generator=generator)
    z = torch.randn(count, model.mu.shape[1], generator=generator, dtype=torch.float64)
    return model.mu[which] + model.s[which] * z


class Distance:
    """Distances of pixels from one mixture."""

    def __init__(self, model: GaussianMixture, count: int = REFERENCE) -> None:
        channels = model.mu.shape[1]
        directions = torch.randn(24, channels, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        self.directions = directions / directions.norm(dim=1, keepdim=True)
        self.levels = (torch.arange(QUANTILES, dtype=torch.float64) + 0.5) / QUANTILES
        self.reference = self._quantiles(draws(model, count, 1))

    def _quantiles(self, pixels: torch.Tensor) -> torch.Tensor:
        ordered = (pixels @ self.directions.T).sort(dim=0).values
        quantiles: torch.Tensor = ordered[(self.levels * len(ordered)).long()]
        return quantiles

    def __call__(self, pixels: torch.Tensor) -> float:
        """``pixels`` [N, C]."""
        return float((self._quantiles(pixels) - self.reference).square().mean().sqrt())


def measure(methods: Iterable[Method], nfes: Iterable[int]) -> Iterator[Row]:
    """A row for each method, grid and number of evaluations, and the floor."""
    model = GaussianMixture.make(0)
    problem, *others = (replace(PROBLEMS["mixture_vp"](1), noise=start_noise(seed, SHAPE)) for seed in SEEDS)
    distance = Distance(model, REFERENCE)
    floor = distance(draws(model, SHAPE[0] * SHAPE[2] * SHAPE[3], 2))
    yield {"package": "exact draws", "method": "", "grid": "", "nfe": 0, "evaluations": 0, "error": floor}
    denoiser = problem.make(1.0)
    for method in methods:
        for grid in method.grids(problem):
            for nfe in nfes:
                steps = steps_for(method, problem, grid, nfe)
                if steps is None or evaluations(method, problem, grid, steps) < nfe - 2:  # exists for one step only
                    continue
                errors = []
                for start in (problem, *others):
                    pixels = method.sample(start, denoiser, grid, steps).double().movedim(1, -1).reshape(-1, SHAPE[1])
                    errors.append(distance(pixels) if bool(torch.isfinite(pixels).all()) else math.inf)
                yield {
                    "package": method.package, "method": method.name, "grid": grid, "nfe": nfe,
                    "evaluations": evaluations(method, problem, grid, steps), "error": sum(errors) / len(errors),
                }


def write(out: Path, rows: Sequence[Row]) -> None:
    """law.csv and law.md in ``out``."""
    write_csv(out / "law.csv", rows)
    floor, rest = rows[0]["error"], rows[1:]
    nfes = sorted({row["nfe"] for row in rest})
    lines = []
    for package, method in dict.fromkeys((row["package"], row["method"]) for row in rest):
        found = [best(rest, package=package, method=method, nfe=nfe) for nfe in nfes]
        lines.append([package, method, *(row["error"] if row else "" for row in found)])
    title = "Distance of the samples' law from the data's, each method on its best grid."
    text = preamble("python -m fewstep.benchmarks.law", title)
    (out / "law.md").write_text(text + f"The floor is {floor:.3g}.\n\n" + markdown(["package", "method", *map(str, nfes)], lines))


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--nfe", nargs="+", type=int, default=list(NFES))
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    write(args.out, list(measure([method for method in all_methods() if method.stochastic], args.nfe)))


if __name__ == "__main__":
    main()
