"""The error benchmark's tables and plot: best of the pack against best of the peers at the same number of evaluations."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .tables import markdown, preamble, write_csv

Row = dict[str, Any]
OURS, CALIBRATED = "fewstep", "fewstep, calibrated"
COLOURS = {
    "fewstep": "#c0392b", "fewstep, calibrated": "#e67e22", "diffusers": "#2980b9",
    "k-diffusion": "#27ae60", "ComfyUI": "#7f8c8d", "RES4LYF": "#8e44ad",
}


def best(rows: Sequence[Row], **where: Any) -> Row | None:
    """The row of least error among those with the given values; ``package`` may be a set of names."""
    def fits(row: Row) -> bool:
        return all(row[k] in v if isinstance(v, (set, frozenset)) else row[k] == v for k, v in where.items())

    return min((row for row in rows if fits(row)), key=lambda row: row["error"], default=None)


def cells(rows: Sequence[Row]) -> list[tuple[str, float, int]]:
    """Every (problem, guidance, nfe) in order."""
    return list(dict.fromkeys((row["problem"], row["guidance"], row["nfe"]) for row in rows))


def allrounders(rows: Sequence[Row]) -> dict[str, list[tuple[float, str, str]]]:
    """By package the (geometric mean error, method, grid) over all cells, best first, of those that ran in every cell.

    VP and flow problems share no grids, so they are told apart: the package's name is followed by the family.
    """
    found: dict[str, list[tuple[float, str, str]]] = {}
    for family in ("noise and v prediction", "flow"):
        part = [row for row in rows if ("flow" in row["problem"]) == (family == "flow")]
        wanted = len(cells(part))
        logs: dict[tuple[str, str, str], list[float]] = defaultdict(list)
        for row in part:
            logs[row["package"], row["method"], row["grid"]].append(math.log(row["error"]))
        for (package, method, grid), values in logs.items():
            if len(values) == wanted and package != CALIBRATED:
                found.setdefault(f"{package}, {family}", []).append((math.exp(sum(values) / wanted), method, grid))
    return {key: sorted(value) for key, value in found.items()}


def ratios(rows: Sequence[Row]) -> tuple[list[str], list[list[Any]]]:
    """Best peer's error over the pack's best at the same evaluations: a line per problem and guidance."""
    peers = frozenset({row["package"] for row in rows} - {OURS, CALIBRATED})
    nfes = sorted({row["nfe"] for row in rows})
    lines: list[list[Any]] = []
    for problem, guidance in dict.fromkeys((row["problem"], row["guidance"]) for row in rows):
        line: list[Any] = [problem, f"{guidance:g}"]
        for nfe in nfes:
            where = {"problem": problem, "guidance": guidance, "nfe": nfe}
            mine, theirs = best(rows, package=frozenset({OURS}), **where), best(rows, package=peers, **where)
            line.append("" if mine is None or theirs is None else theirs["error"] / mine["error"])
        lines.append(line)
    return ["problem", "guidance", *map(str, nfes)], lines


def duels(rows: Sequence[Row]) -> tuple[list[str], list[list[Any]]]:
    """The best of the pack and of the peers in every cell, named."""
    peers = frozenset({row["package"] for row in rows} - {OURS, CALIBRATED})
    lines = []
    for problem, guidance, nfe in cells(rows):
        where = {"problem": problem, "guidance": guidance, "nfe": nfe}
        mine, theirs = best(rows, package=frozenset({OURS}), **where), best(rows, package=peers, **where)
        if mine and theirs:
            lines.append([
                problem, f"{guidance:g}", nfe, mine["method"], mine["grid"], mine["error"],
                f"{theirs['package']} {theirs['method']}", theirs["grid"], theirs["error"], theirs["error"] / mine["error"],
            ])
    return ["problem", "guidance", "NFE", "fewstep", "grid", "error", "best peer", "grid", "error", "ratio"], lines


def plot(path: Path, rows: Sequence[Row]) -> None:
    """Error against evaluations: each package's best, one panel per problem and guidance."""
    from ..samplers.optional import pyplot

    problems = list(dict.fromkeys(row["problem"] for row in rows))
    guidances = sorted({row["guidance"] for row in rows})
    figure = pyplot().Figure(figsize=(2.6 * len(guidances), 2.2 * len(problems)), layout="constrained")
    axes = figure.subplots(len(problems), len(guidances), sharex=True, squeeze=False)
    for i, problem in enumerate(problems):
        for j, guidance in enumerate(guidances):
            axis = axes[i][j]
            part = [row for row in rows if row["problem"] == problem and row["guidance"] == guidance]
            for package in dict.fromkeys(row["package"] for row in part):
                points = [(n, best(part, package=package, nfe=n)) for n in sorted({row["nfe"] for row in part})]
                kept = [(n, row["error"]) for n, row in points if row and math.isfinite(row["error"])]
                axis.loglog(*zip(*kept, strict=True), "o-", ms=2.5, lw=1.8 if package == OURS else 1, color=COLOURS[package],
                            label=package, zorder=3 if package == OURS else 2)
            axis.set_title(f"{problem}, guidance {guidance:g}", fontsize=8)
            axis.tick_params(labelsize=7)
            axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize=6)
    figure.supxlabel("evaluations", fontsize=8)
    figure.supylabel("relative error of the best method and grid", fontsize=8)
    figure.savefig(path, dpi=80)


def write(out: Path, rows: Sequence[Row]) -> None:
    """error.csv (every run), error_best.csv (each package's best), error.md and error.png in ``out``."""
    write_csv(out / "error.csv", rows)
    packages = dict.fromkeys(row["package"] for row in rows)
    kept = [best(rows, problem=p, guidance=g, nfe=n, package=package) for p, g, n in cells(rows) for package in packages]
    write_csv(out / "error_best.csv", [row for row in kept if row])
    general = [
        [key, method, grid, error, error / ranking[0][0]]
        for key, ranking in allrounders(rows).items() for error, method, grid in ranking[:3]
    ]
    text = preamble("python -m fewstep.benchmarks.error", "Relative root mean square distance from the exact end of the ODE.")
    text += "Best peer's error over the pack's best, at equal evaluations (above 1 the pack is ahead):\n\n"
    text += markdown(*ratios(rows))
    text += "\nOne method on one grid everywhere (geometric mean of the error over all problems, guidances and evaluations):\n\n"
    text += markdown(["package", "method", "grid", "mean error", "to the package's first"], general)
    text += "\nThe best of both sides in every case:\n\n" + markdown(*duels(rows))
    (out / "error.md").write_text(text)
    plot(out / "error.png", rows)
