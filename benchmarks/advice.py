"""The advisor's rules: ``python -m fewstep.benchmarks.advice [--out DIR]`` measures each where it holds, and writes advice.md.

``--write`` also puts what was measured into ``samplers/advice.json``. Every rule is compared with what people usually take (named
there) at the same evaluations and guidance, on mixtures and on the demo models, and once more on mixtures and noise by which no
rule was chosen. The error is relative to the exact solution.

``--simple`` compares what auto chooses in the simple node with that node's default before it, UniPC on even steps, on the demo
models alone, and writes simple_node.md and simple_node.csv.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..nodes.ksampler import preset
from ..nodes.schedule import even_end
from ..samplers import Recipe, run
from ..samplers.advice import FILE, Facts, advise, grid_label, recipe_of
from ..samplers.analytic import start_noise
from ..samplers.grids import GRIDS
from ..samplers.plan_io import write_atomically
from .problems import GUIDANCES, PROBLEMS, Denoiser, Problem, mixture
from .tables import markdown, preamble, write_csv

NFES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20)
SIMPLE_NFES = (4, 6, 8, 12)
UNSEEN_MIXTURES, UNSEEN_NOISE = (5, 6, 7), 12  # seeds
Row = dict[str, Any]


def error_of(problem: Problem, denoiser: Denoiser, recipe: Recipe, grid: Mapping[str, Any], steps: int, guidance: float) -> float:
    """Relative error of one choice."""
    kind, end = grid["kind"], grid.get("end", "zero")
    options = {name: value for name, value in grid.items() if name not in ("kind", "end")}
    levels = GRIDS[kind](problem.frame, steps, end=end, **options, **even_end(problem.frame, kind, steps, end))
    return problem.error(run(recipe.resolve(problem.frame, levels), denoiser, problem.noise * levels.sigma[0]), guidance)


def measure(problem: Problem, data: Mapping[str, Any]) -> Iterator[Row]:
    """A row for each rule of the problem's family, guidance and number of steps in its range."""
    family = "flow" if problem.flow else "vp"
    usual = data["usual"][family]
    for guidance in GUIDANCES:
        denoiser = problem.make(guidance)
        plain: dict[int, float] = {}
        for rule in data["rules"]:
            (low, high), (least, most) = rule["guidance"], rule["steps"]
            if rule["family"] != family or guidance > high or (guidance <= low and low > 0):
                continue
            for steps in (n for n in NFES if least <= n <= most):
                if steps not in plain:
                    recipe = Recipe("ddim") if steps < 2 else recipe_of(usual["recipe"])  # of one step all are the same
                    plain[steps] = error_of(problem, denoiser, recipe, usual["grid"], steps, guidance)
                error = error_of(problem, denoiser, recipe_of(rule["recipe"]), rule["grid"], steps, guidance)
                yield {
                    "rule": rule["name"], "problem": problem.name, "guidance": guidance, "steps": steps, "error": error,
                    "usual": plain[steps], "ratio": error / plain[steps],
                }


def unseen(batch: int) -> Iterator[Problem]:
    """Problems by which no rule was chosen: other mixtures, and the demo models from other noise."""
    for name, make in PROBLEMS.items():
        problem = make(batch)
        if name.startswith("digits"):
            yield replace(problem, noise=start_noise(UNSEEN_NOISE, problem.noise.shape), solutions={})
        else:  # together they weigh as one problem
            yield from (mixture(name, problem.frame, seed, batch) for seed in UNSEEN_MIXTURES)


def measure_simple(problem: Problem) -> Iterator[Row]:
    """A row for each guidance and number of steps: what auto chooses against UniPC on even steps."""
    for guidance in GUIDANCES:
        denoiser = problem.make(guidance)
        for steps in SIMPLE_NFES:
            found = advise(Facts(problem.frame, steps, guidance))
            assert found.grid is not None, "rules have a grid"
            old, even = preset("unipc", problem.frame, steps), {"kind": "uniform_t"}
            error = error_of(problem, denoiser, found.recipe, found.grid, steps, guidance)
            usual = error_of(problem, denoiser, old, even, steps, guidance)
            yield {
                "problem": problem.name, "guidance": guidance, "steps": steps, "recipe": found.recipe.label,
                "grid": found.grid["kind"], "error": error, "usual": usual, "ratio": error / usual,
            }


def summary(rows: Sequence[Row]) -> dict[str, float]:
    """Geometric mean of the ratios, each problem weighing the same; the worst; how many, and how many above 1."""
    logs: dict[str, list[float]] = {}
    for row in rows:
        logs.setdefault(row["problem"], []).append(math.log(row["ratio"]))
    ratios = [row["ratio"] for row in rows]
    return {
        "error": float(f"{math.exp(sum(sum(v) / len(v) for v in logs.values()) / len(logs)):.2g}"),
        "worst": float(f"{max(ratios):.2g}"), "cells": len(ratios), "worse": sum(r > 1.005 for r in ratios),
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--batch", type=int, default=4, help="samples of 4x8x8")
    parser.add_argument("--simple", action="store_true", help="auto in the simple node, and nothing else")
    parser.add_argument("--write", action="store_true", help="put the numbers into samplers/advice.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.simple:
        digits = (make(args.batch) for name, make in PROBLEMS.items() if name.startswith("digits"))
        write_simple(args.out, [row for problem in digits for row in measure_simple(problem)])
        return
    data = json.loads(FILE.read_text("utf-8"))
    rows: list[Row] = []
    for name, make in PROBLEMS.items():
        rows += measure(make(args.batch), data)
        print(name, len(rows), flush=True)
    others: list[Row] = []
    for problem in unseen(args.batch):
        others += measure(problem, data)
        print("unseen", problem.name, len(others), flush=True)
    write(args.out, data, rows, others)
    if args.write:
        write_atomically(FILE, (json.dumps(data, indent=1) + "\n").encode())


def write(out: Path, data: Mapping[str, Any], rows: Sequence[Row], others: Sequence[Row]) -> None:
    """advice.csv and advice.md in ``out``; every rule of ``data`` gets what was measured of it."""
    lines = []
    for rule in data["rules"]:
        m, o = (summary([row for row in part if row["rule"] == rule["name"]]) for part in (rows, others))
        rule["measured"], rule["unseen"] = m, o
        measured = [value for part in (m, o) for value in (part["error"], part["worst"], f"{part['worse']} of {part['cells']}")]
        lines.append([rule["name"], recipe_of(rule["recipe"]).label, grid_label(rule["grid"]), *measured])
    words = "The advisor's rules: error relative to the usual choice at equal evaluations (below 1 is a gain)."
    text = preamble("python -m fewstep.benchmarks.advice", words)
    text += "\n".join(f"Usual, {family}: {usual['words']}.\n" for family, usual in data["usual"].items()) + "\n"
    seeds = ", ".join(map(str, UNSEEN_MIXTURES))
    text += f"Unseen: the mixtures {seeds} and the demo models from other noise, by which no rule was chosen.\n\n"
    text += markdown(["rule", "recipe", "grid", "error", "worst", "worse", "unseen: error", "worst", "worse"], lines)
    write_csv(out / "advice.csv", [{**row, "unseen": part is others} for part in (rows, others) for row in part])
    write_atomically(out / "advice.md", text.encode())


def write_simple(out: Path, rows: Sequence[Row]) -> None:
    """simple_node.csv and simple_node.md in ``out``."""
    lines = []
    for name in (*dict.fromkeys(row["problem"] for row in rows), "all"):
        m = summary([row for row in rows if name in (row["problem"], "all")])
        lines.append([name, m["error"], m["worst"], f"{m['worse']} of {m['cells']}"])
    cells = [
        [name, f"{guidance:g}", *(f"{row['ratio']:.2g}" for row in rows if (row["problem"], row["guidance"]) == (name, guidance))]
        for name in dict.fromkeys(row["problem"] for row in rows) for guidance in GUIDANCES
    ]
    words = "auto in the simple node: error relative to UniPC on even steps, its default before (below 1 is a gain)."
    text = preamble("python -m fewstep.benchmarks.advice", words)
    text += markdown(["model", "error", "worst", "worse"], lines) + "\nEvery cell, by steps:\n\n"
    text += markdown(["model", "guidance", *(str(n) for n in SIMPLE_NFES)], cells)
    write_csv(out / "simple_node.csv", rows)
    write_atomically(out / "simple_node.md", text.encode())


if __name__ == "__main__":
    main()
