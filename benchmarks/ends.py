"""Where a schedule should end: ``python -m fewstep.benchmarks.ends [--out DIR]`` writes ends.md and ends.csv.

The same solver with the same number of evaluations on the same kind of grid, once with a last step to noise level 0 (as the
nodes have it by default) and once stopping at the last trained level. The error is relative to the exact picture without noise
on both sides, so what noise a schedule leaves counts against it.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from ..nodes.schedule import ENDS, even_end
from ..samplers import Recipe, run
from ..samplers.grids import GRIDS
from ..samplers.plan_io import write_atomically
from .problems import GUIDANCES, PROBLEMS, Problem
from .tables import markdown, preamble, write_csv

KINDS = ("uniform_t", "karras", "beta")
STEPS = (4, 5, 6, 8, 10)
RECIPES = (Recipe("unipc"), Recipe("dpm_solver_multistep"), Recipe("deis_ab", {"ab_order": 2, "basis": "log_rho"}))
Row = dict[str, Any]


def measure(problem: Problem) -> Iterator[Row]:
    """A row for each guidance, kind of grid, number of steps and solver."""
    for guidance in GUIDANCES:
        denoiser = problem.make(guidance)
        for kind in KINDS:
            for steps in STEPS:
                levels = [
                    GRIDS[kind](problem.frame, steps, end=end, **even_end(problem.frame, kind, steps, end)) for end in ENDS
                ]
                for recipe in RECIPES:
                    zero, stop = (
                        problem.error(run(recipe.resolve(problem.frame, g), denoiser, problem.noise * g.sigma[0]), guidance)
                        for g in levels
                    )
                    yield {
                        "problem": problem.name, "guidance": guidance, "grid": kind, "steps": steps, "recipe": recipe.label,
                        "zero": zero, "stop": stop, "ratio": stop / zero,
                    }


def mean(rows: Sequence[Row]) -> str:
    """Geometric mean of the ratios, in words."""
    return f"{math.exp(sum(math.log(row['ratio']) for row in rows) / len(rows)):.2f}"


def write(out: Path, rows: Sequence[Row]) -> None:
    """ends.csv and ends.md in ``out``."""
    lines = []
    for name in dict.fromkeys(row["problem"] for row in rows):
        for kind in KINDS:
            own = [row for row in rows if (row["problem"], row["grid"]) == (name, kind)]
            by_steps = [mean([row for row in own if row["steps"] == steps]) for steps in STEPS]
            better, worst = sum(row["ratio"] < 1 for row in own), max(row["ratio"] for row in own)
            lines.append([name, kind, *by_steps, f"{worst:.2f}", f"{better} of {len(own)}"])
    words = "Error of schedules that stop at the last trained level over that of those that end in 0, at equal evaluations."
    text = preamble("python -m fewstep.benchmarks.ends", words)
    labels = ", ".join(recipe.label for recipe in RECIPES)
    text += f"Geometric mean over {labels} and guidance 1, 2, 4 and 7.5; below 1 is a gain.\n\n"
    text += markdown(["problem", "grid", *(f"{n} steps" for n in STEPS), "worst", "better"], lines)
    write_csv(out / "ends.csv", rows)
    write_atomically(out / "ends.md", text.encode())


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--batch", type=int, default=4, help="samples of 4x8x8")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for name, make in PROBLEMS.items():
        rows += measure(make(args.batch))
        write(args.out, rows)  # whatever happens to the next
        print(name, len(rows), flush=True)


if __name__ == "__main__":
    main()
