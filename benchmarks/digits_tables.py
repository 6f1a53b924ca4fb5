"""The tables of the digit models: how near the calibrations come to twice the evaluations, and every method in every cell."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .error_tables import CALIBRATED, OURS, best
from .tables import markdown, preamble, write_csv

Row = dict[str, Any]
FEW, TWICE = 5, 10


def square(row: Row | None) -> float | str:
    """Mean-square error, relative to the mean square of the end states."""
    return "" if row is None else row["error"] ** 2


def plain(rows: Iterable[Row]) -> list[Row]:
    """Those without calibration, the pack's and the peers'."""
    return [row for row in rows if row["package"] != CALIBRATED]


def cells(rows: Sequence[Row]) -> dict[tuple[str, float], list[Row]]:
    """The rows by (problem, guidance)."""
    found: dict[tuple[str, float], list[Row]] = {}
    for row in rows:
        found.setdefault((row["problem"], row["guidance"]), []).append(row)
    return found


def needed(rows: Sequence[Row], error: float) -> str:
    """The evaluations at which a plain solver first has at most this error."""
    nfes = sorted({row["nfe"] for row in plain(rows)})
    reached = (n for n in nfes if any(row["error"] <= error for row in plain(rows) if row["nfe"] == n))
    return str(next(reached, f"more than {nfes[-1]}"))


def goal(rows: Sequence[Row]) -> tuple[list[str], list[list[Any]]]:
    """A line per cell: the best calibrated recipe at 5 evaluations against plain solvers at 5 and 10."""
    lines: list[list[Any]] = []
    for (problem, guidance), own in cells(rows).items():
        few, twice = best(plain(own), nfe=FEW), best(plain(own), nfe=TWICE)
        found = best(own, package=CALIBRATED, nfe=FEW)
        line = [problem.removeprefix("digits_"), f"{guidance:g}", name(few), square(few), name(twice), square(twice)]
        if few is None or twice is None or found is None:
            lines.append([*line, "none", "", "", "", ""])
            continue
        error, shares = found["error"], [(found["error"] / row["error"]) ** 2 for row in (few, twice)]
        lines.append([*line, found["method"], square(found), *shares, needed(own, error)])
    return [
        "model", "guidance", f"best plain, {FEW}", "its error", f"best plain, {TWICE}", "its error", f"best calibrated, {FEW}",
        "its error", f"of plain {FEW}", f"of plain {TWICE}", "plain solvers need",
    ], lines


def name(row: Row | None) -> str:
    """Package (of the peers), method and grid."""
    return "" if row is None else f"{shown(row)}, {grid(row)}".removeprefix(f"{OURS} ")


def shown(row: Row) -> str:
    """Package and method, without options that are the peers' defaults."""
    method = re.sub(r"(, (algorithm|solver)_type=[^,)]*)", "", row["method"]).replace("solver_order=", "order ")
    return f"{row['package']} {method}"


def distances(rows: Sequence[Row]) -> tuple[list[str], list[list[Any]]]:
    """A line per cell and method that has one: Frechet distance and recognised share."""
    lines = []
    for (problem, guidance), own in cells(rows).items():
        for row in sorted((r for r in own if r["frechet"] != ""), key=lambda r: (r["nfe"], r["frechet"])):
            lines.append([
                problem.removeprefix("digits_"), f"{guidance:g}", row["nfe"], shown(row), square(row),
                row["frechet"], f"{100 * row['recognised']:.1f} %",
            ])
    return ["model", "guidance", "NFE", "method", "error", "Frechet distance", "recognised"], lines


def everything(rows: Sequence[Row]) -> tuple[list[str], list[list[Any]]]:
    """A line per cell and method: its error on its best grid at each number of evaluations."""
    nfes = sorted({row["nfe"] for row in plain(rows)})
    lines = []
    for (problem, guidance), own in cells(rows).items():
        for package, method in dict.fromkeys((r["package"], r["method"]) for r in own):
            found = [best(own, package=package, method=method, nfe=nfe) for nfe in nfes]
            errors = [f"{square(row):.2g} ({grid(row)})" if row else "" for row in found]
            lines.append([
                problem.removeprefix("digits_"), f"{guidance:g}", shown({"package": package, "method": method}), *errors])
    return ["model", "guidance", "method", *map(str, nfes)], lines


def grid(row: Row) -> str:
    """The grid, without the name of a calibration file."""
    return str(row["grid"]).split()[0] if row["package"] == CALIBRATED else str(row["grid"])


def write(out: Path, rows: Sequence[Row]) -> None:
    """digits.csv and digits.md in ``out``."""
    write_csv(out / "digits.csv", rows)
    text = preamble("python -m fewstep.benchmarks.digits", (
        "Mean-square error of the end states to a 1000-step solution, relative to their mean square, each method on its best\n"
        "grid; and Frechet distances of 360 samples, to be compared at equal guidance only."
    ))
    text += "The goal: the best calibrated recipe at 5 evaluations has the error that plain solvers need 10 for.\n\n"
    text += markdown(*goal(rows))
    text += "\nFrechet distance of the digits' features:\n\n" + markdown(*distances(rows))
    text += "\nEvery method:\n\n" + markdown(*everything(rows))
    (out / "digits.md").write_text(text)
