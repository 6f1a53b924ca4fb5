"""The overhead benchmark's table and plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .error_tables import COLOURS, OURS
from .loops import ALONE
from .tables import markdown, preamble, write_csv

Row = dict[str, Any]
EXPLAINED = """Time per step beside the model; `ratio` is the time without the draws of noise (one `normal_` each), over one pass
(`pass`, in microseconds) times the states that the pack's plan of the same form reads and writes (`passes`). `slower` is
the time over the pack's. Per step: operations on states (`ops`), on scalars (`small`), host reads, states newly made."""
ON_A_GPU = """ On a GPU also: the host's time from one evaluation to the next (`host`) and the time in which the device works
(`device`), in microseconds; launches, and waits of the host for the device. `ops` leaves out what Triton or a CUDA graph does."""
GPU_COLUMNS = {"host_us": "host", "device_us": "device", "launches": "launches", "waits": "waits"}


def table(rows: Sequence[Row]) -> str:
    """One table a size."""
    parts = []
    for shape in dict.fromkeys(row["shape"] for row in rows):
        part = [row for row in rows if row["shape"] == shape]
        mine = {row["form"]: row["us"] for row in part if row["package"] == OURS}
        lines = [[
            row["form"], row["package"], row["method"], row["us"], row["pass_us"], row["passes"], row["ratio"],
            row["us"] / mine[row["form"]], row["large_ops"], row["small_ops"], row["host_reads"], row["new_states"],
            *(row[key] for key in GPU_COLUMNS if key in row),
        ] for row in sorted(part, key=lambda row: list(mine).index(row["form"]))]
        parts.append(f"### [{shape.replace('x', ', ')}], one draw of noise {part[0]['randn_us']:.0f} us\n\n" + markdown(
            ["form", "package", "method", "us", "pass", "passes", "ratio", "slower", "ops", "small", "reads", "states",
             *(title for key, title in GPU_COLUMNS.items() if key in part[0])], lines))
    return "\n".join(parts)


def plot(path: Path, rows: Sequence[Row]) -> None:
    """Microseconds a step, by form, one panel a size."""
    from ..samplers.optional import pyplot

    shapes = list(dict.fromkeys(row["shape"] for row in rows))
    figure = pyplot().Figure(figsize=(4.2 * len(shapes), 3.4), layout="constrained")
    axes = figure.subplots(1, len(shapes), squeeze=False)[0]
    forms = list(dict.fromkeys(row["form"] for row in rows if row["package"] == OURS))
    for axis, shape in zip(axes, shapes, strict=True):
        for package, colour in {**COLOURS, ALONE: "#e59866"}.items():
            part = [row for row in rows if row["shape"] == shape and row["package"] == package]
            if part:
                places = [forms.index(row["form"]) for row in part]
                axis.semilogy(places, [row["us"] for row in part], "o", color=colour, label=package)
        ideal = [next(r["pass_us"] * r["passes"] for r in rows if r["shape"] == shape and r["form"] == form) for form in forms]
        axis.semilogy(ideal, "k_", ms=14, label="one pass")
        axis.set_title(shape, fontsize=9)
        axis.set_xticks(range(len(forms)), forms, rotation=60, fontsize=7)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("microseconds a step", fontsize=8)
    axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=80)


def write(out: Path, rows: Sequence[Row], clock: str, name: str) -> None:
    """``name`` with .csv, .md and .png in ``out``."""
    write_csv(out / f"{name}.csv", rows)
    head = preamble("python -m fewstep.benchmarks.overhead", EXPLAINED + ON_A_GPU * ("host_us" in rows[0]))
    (out / f"{name}.md").write_text(head + f"Clock: {clock}.\n\n" + table(rows))
    plot(out / f"{name}.png", rows)
