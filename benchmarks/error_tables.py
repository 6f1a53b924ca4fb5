"""The error benchmark's tables and plot: best of the pack against best of the peers at the same number of evaluations."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from .problems import PROBLEMS
from .tables import markdown, preamble, write_csv

Row = dict[str, Any]
TICKS = (4, 6, 10, 20, 30)
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

    Cells in which only the promising were measured do not count (``error.hopeless``).

    VP and flow problems share no grids, so they are told apart: the package's name is followed by the family.
    """
    sizes = Counter((row["problem"], row["guidance"], row["nfe"]) for row in rows)
    fullest = {problem: max(n for cell, n in sizes.items() if cell[0] == problem) for problem, *_ in sizes}
    rows = [row for row in rows if 2 * sizes[row["problem"], row["guidance"], row["nfe"]] > fullest[row["problem"]]]
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


def ratios(rows: Sequence[Row], mine: str = OURS) -> tuple[list[str], list[list[Any]]]:
    """Best peer's error over the best of the pack's package ``mine`` at the same evaluations: a line per problem and guidance."""
    found = {(row["problem"], row["guidance"], row["nfe"]): theirs["error"] / row["error"] for row, theirs in pairs(rows, mine)}
    nfes = sorted({nfe for *_, nfe in found})
    lines = [
        [problem, f"{guidance:g}", *(found.get((problem, guidance, nfe), "") for nfe in nfes)]
        for problem, guidance in dict.fromkeys(key[:2] for key in found)
    ]
    return ["problem", "guidance", *map(str, nfes)], lines


def pairs(rows: Sequence[Row], mine: str = OURS) -> Iterator[tuple[Row, Row]]:
    """The best row of the package ``mine`` and of the peers in every cell that has both."""
    peers = frozenset({row["package"] for row in rows} - {OURS, CALIBRATED})
    for problem, guidance, nfe in cells(rows):
        where = {"problem": problem, "guidance": guidance, "nfe": nfe}
        found, theirs = best(rows, package=mine, **where), best(rows, package=peers, **where)
        if found and theirs:
            yield found, theirs


def duels(rows: Sequence[Row], mine: str = OURS) -> tuple[list[str], list[list[Any]]]:
    """The best of the package ``mine`` and of the peers in every cell, named."""
    return ["problem", "guidance", "NFE", mine, "grid", "error", "best peer", "grid", "error", "ratio"], [
        [
            row["problem"], f"{row['guidance']:g}", row["nfe"], row["method"], row["grid"], row["error"],
            f"{theirs['package']} {theirs['method']}", theirs["grid"], theirs["error"], theirs["error"] / row["error"],
        ]
        for row, theirs in pairs(rows, mine)
    ]


def ordered(rows: Iterable[Row]) -> list[Row]:
    """By problem, guidance and evaluations."""
    problems = list(PROBLEMS)
    return sorted(rows, key=lambda row: (problems.index(row["problem"]), row["guidance"], row["nfe"]))


def plot(path: Path, rows: Sequence[Row]) -> None:
    """Error against evaluations: each package's best, one panel per problem and guidance."""
    from ..samplers.optional import pyplot

    problems = list(dict.fromkeys(row["problem"] for row in rows))
    guidances = sorted({row["guidance"] for row in rows})
    figure = pyplot().Figure(figsize=(2.8 * len(guidances), 2.2 * len(problems) + 0.5), layout="constrained")
    axes = figure.subplots(len(problems), len(guidances), squeeze=False)
    shown: dict[str, Any] = {}
    for i, problem in enumerate(problems):
        for j, guidance in enumerate(guidances):
            axis = axes[i][j]
            part = [row for row in rows if row["problem"] == problem and row["guidance"] == guidance]
            for package in dict.fromkeys(row["package"] for row in part):
                points = [(n, best(part, package=package, nfe=n)) for n in sorted({row["nfe"] for row in part})]
                kept = [(n, row["error"]) for n, row in points if row and math.isfinite(row["error"])]
                line: dict[str, Any] = {"lw": 1.8, "zorder": 3} if package == OURS else {"lw": 1, "zorder": 2}
                if package == CALIBRATED:  # each point may be another recipe
                    line |= {"ls": "", "marker": "D", "ms": 3.5}
                shown[package], = axis.loglog(
                    *zip(*kept, strict=True), color=COLOURS[package], **{"marker": "o", "ms": 2.5, **line})
            axis.set_title(f"{problem}, guidance {guidance:g}", fontsize=8)
            axis.set_xlim(3.6, 33)
            axis.set_xticks(TICKS, map(str, TICKS))
            axis.set_xticks([], minor=True)
            axis.tick_params(labelsize=7)
            axis.grid(alpha=0.3)
    figure.legend(shown.values(), shown.keys(), loc="outside upper center", ncols=len(shown), fontsize=8)
    figure.supxlabel("evaluations", fontsize=8)
    figure.supylabel("relative error of the best method and grid", fontsize=8)
    figure.savefig(path, dpi=90)


def write(out: Path, rows: Sequence[Row]) -> None:
    """error.csv (every run), error_best.csv (each package's best), error.md and error.png in ``out``."""
    rows = ordered(rows)
    write_csv(out / "error.csv", rows)
    grouped: dict[tuple[str, float, int], list[Row]] = defaultdict(list)
    for row in rows:
        grouped[row["problem"], row["guidance"], row["nfe"]].append(row)
    packages = dict.fromkeys(row["package"] for row in rows)
    kept = [row for cell in grouped.values() for package in packages if (row := best(cell, package=package))]
    write_csv(out / "error_best.csv", kept)
    general = [
        [key, method, grid, error, error / ranking[0][0]]
        for key, ranking in allrounders(rows).items() for error, method, grid in ranking[:3]
    ]
    text = preamble("python -m fewstep.benchmarks.error", "Relative root mean square distance from the exact end of the ODE.")
    text += "Best peer's error over the pack's best, at equal evaluations (above 1 the pack is ahead):\n\n"
    text += markdown(*ratios(kept))
    text += "\nOne method on one grid everywhere (geometric mean of the error over the problems, guidances and evaluations at "
    text += "which all were measured):\n\n"
    text += markdown(["package", "method", "grid", "mean error", "to the package's first"], general)
    text += "\nThe best of both sides in every case:\n\n" + markdown(*duels(kept))
    if any(row["package"] == CALIBRATED for row in kept):
        text += "\nBest peer's error over that of the pack's calibrated recipes, each at its own number of evaluations. On the\n"
        text += "mixtures these are plans fitted on other noise, on the digits the files that ship; no table above has any:\n\n"
        text += markdown(*ratios(kept, CALIBRATED)) + "\nThe best calibrated recipe in every case:\n\n"
        text += markdown(*duels(kept, CALIBRATED))
    (out / "error.md").write_text(text)
    plot(out / "error.png", kept)
