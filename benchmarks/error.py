"""Error per evaluation: ``python -m fewstep.benchmarks.error [--out DIR]`` writes error.csv, error.md, error.png.

Every method runs on each of its grids at each number of evaluations; a method that takes two evaluations a step gets half
the steps. Measured is the distance of the result from the exact end of the ODE; methods that add noise are in ``law``.

Problems may be measured apart: ``--add`` keeps the rows of earlier runs and measures what they lack, ``--problems`` without a
name measures nothing, so that ``--problems --add A/error.csv B/error.csv`` joins two runs into one table. Where a model is slow,
``--nfe 12 15 30 --close 3`` then measures only what is near its package's best at the numbers of evaluations around these.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from . import ours, peers_diffusers, peers_sigmas
from .error_tables import CALIBRATED, write
from .methods import Method, evaluations, steps_for
from .problems import GUIDANCES, PROBLEMS, Problem
from .tables import read_csv, write_csv

NFES = (4, 5, 6, 8, 10, 12, 15, 20, 30)
NETWORK_NFES = (4, 5, 6, 8, 10, 20)
KEYS = ("problem", "guidance", "package", "method", "grid", "nfe")
Row = dict[str, Any]


def all_methods(rare: bool = True) -> list[Method]:
    """The pack's methods and those of every peer that is installed."""
    return [*ours.methods(rare), *peers_diffusers.methods(), *peers_sigmas.methods()]


def measure(
    problem: Problem, guidance: float, methods: Iterable[Method], nfes: Iterable[int], known: Collection[tuple[Any, ...]] = (),
) -> Iterator[Row]:
    """A row for each method, grid and number of evaluations; results that are not numbers count as infinite error.

    ``known``: the values of ``KEYS`` that are left out, measured already or not worth it.
    """
    denoiser = problem.make(guidance)
    for method in methods:
        for grid in method.grids(problem):
            for nfe in nfes:
                if (problem.name, guidance, method.package, method.name, grid, nfe) in known:
                    continue
                steps = steps_for(method, problem, grid, nfe)
                if steps is None:
                    continue
                error = problem.error(method.sample(problem, denoiser, grid, steps), guidance)
                yield {
                    "problem": problem.name, "guidance": guidance, "package": method.package, "method": method.name,
                    "grid": grid, "nfe": nfe, "evaluations": evaluations(method, problem, grid, steps), "steps": steps,
                    "error": error if math.isfinite(error) else math.inf,
                }


def read(paths: Iterable[Path]) -> list[Row]:
    """The rows of earlier runs, each once; of two for the same the later one."""
    return list({tuple(row[key] for key in KEYS): row for path in paths for row in read_csv(path)}.values())


def current(rows: Iterable[Row], problem: Problem, guidance: float, methods: Iterable[Method]) -> list[Row]:
    """Without those on this problem whose method, schedule or calibration file is no longer there; other packages' stay."""
    offered = {(method.package, method.name, grid) for method in methods for grid in method.grids(problem)}
    packages = {package for package, *_ in offered} | {CALIBRATED}
    return [
        row for row in rows
        if (row["problem"], row["guidance"]) != (problem.name, guidance) or row["package"] not in packages
        or (row["package"], row["method"], row["grid"]) in offered
    ]


def hopeless(rows: Sequence[Row], problem: str, guidance: float, nfes: Iterable[int], factor: float) -> set[tuple[Any, ...]]:
    """The values of ``KEYS`` of methods on grids that need not be measured at ``nfes``, judged by their errors nearby.

    Nearby are the next smaller and the next larger number of evaluations in ``rows``. Left out is what has more than ``factor``
    times the error of its own package's best at each of them; of other packages' errors nothing is asked.
    """
    here = [row for row in rows if (row["problem"], row["guidance"]) == (problem, guidance)]
    measured = sorted({row["nfe"] for row in here})
    best: dict[tuple[str, int], float] = {}
    for row in here:
        key = row["package"], row["nfe"]
        best[key] = min(best.get(key, math.inf), row["error"])
    found = set()
    for nfe in nfes:
        near = [*[n for n in measured if n < nfe][-1:], *[n for n in measured if n > nfe][:1]]
        seen = [row for row in here if row["nfe"] in near]
        ways = {(row["package"], row["method"], row["grid"]) for row in seen}
        good = {
            (row["package"], row["method"], row["grid"]) for row in seen
            if row["error"] <= factor * best[row["package"], row["nfe"]]
        }
        found |= {(problem, guidance, *way, nfe) for way in ways - good}
    return found


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--problems", nargs="*", choices=list(PROBLEMS), default=list(PROBLEMS))
    parser.add_argument("--guidance", nargs="+", type=float, default=list(GUIDANCES))
    parser.add_argument("--nfe", nargs="+", type=int, default=list(NFES))
    parser.add_argument("--batch", type=int, default=4, help="samples of 4x8x8")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--add", nargs="*", type=Path, metavar="CSV", help=(
        "keep the rows of these files, or of error.csv in that folder, and measure what they lack; not where a solver changed"
    ))
    parser.add_argument("--close", type=float, default=math.inf, metavar="FACTOR", help=(
        "leave out what has more than so many times its package's best error at the next measured numbers of evaluations"
    ))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "error.csv"
    rows = [] if args.add is None else read(args.add or [path])
    for name in args.problems:
        problem = PROBLEMS[name](args.batch)
        # a network takes milliseconds where a mixture takes a tenth of one
        chosen = [m for m in all_methods(rare=name.startswith("mixture")) if not m.stochastic]
        nfes = args.nfe if name.startswith("mixture") else [n for n in args.nfe if n in NETWORK_NFES] or args.nfe
        for guidance in args.guidance:
            begin = time.monotonic()
            methods = [*chosen, *ours.extra_methods(problem, guidance), *ours.calibrated_methods(problem, guidance)]
            rows = current(rows, problem, guidance, methods)
            known = {tuple(row[key] for key in KEYS) for row in rows}
            if args.close < math.inf:
                known |= hopeless(rows, name, guidance, nfes, args.close)
            new = list(measure(problem, guidance, methods, nfes, known))
            rows += new
            write_csv(path, rows)
            print(f"{name} guidance {guidance:g}: {len(new)} runs, {time.monotonic() - begin:.0f} s", flush=True)
    write(args.out, rows)


if __name__ == "__main__":
    main()
