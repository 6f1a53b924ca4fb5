"""Plans as pictures: the grid, and every row's coefficients as a heat map. Needs matplotlib."""

from __future__ import annotations

import math
import textwrap
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .optional import pyplot, require
from .plan import Plan, Row
from .plan_io import write_atomically


def coefficient_table(plan: Plan) -> tuple[np.ndarray, list[str], list[str]]:
    """(values [rows, columns], row names, column names) of all rows that compute something; NaN where a term is absent."""
    columns = ["X", *(f"M_{j}" for j in range(len(plan.stages)))]
    columns += ["x_T"] if plan.start_last_read >= 0 else []
    columns += ["xi"] if plan.stochastic else []
    named: list[tuple[str, Row]] = []
    for k, stage in enumerate(plan.stages):
        if not stage.predict.is_identity:
            named.append((f"predict {k}", stage.predict))
        if not stage.carry.is_identity and stage.carry is not stage.predict:
            named.append((f"carry {k}", stage.carry))
    if not plan.final.is_identity:
        named.append(("result", plan.final))
    values = np.full((len(named), len(columns)), np.nan)
    for i, (_, row) in enumerate(named):
        terms: dict[str, Any] = {"X": row.x, "x_T": row.x_T, **{f"M_{j}": c for j, c in row.m.items()}}
        if row.noise is not None:
            terms["xi"] = row.noise.coefficient
        for name, c in terms.items():
            number = float(c.mean()) if isinstance(c, torch.Tensor) else float(c)
            if number:
                values[i, columns.index(name)] = number
    return values, [name for name, _ in named], columns


def plot_plan(plan: Plan, path: str | Path | None = None) -> bytes:
    """Draws the plan; returns the PNG and writes it to ``path`` if given."""
    buffer = BytesIO()
    _figure(plan).savefig(buffer, format="png")
    if path is not None:
        write_atomically(Path(path), buffer.getvalue())
    return buffer.getvalue()


def plan_image(plan: Plan) -> np.ndarray:
    """The same drawing as an array [H, W, 3], float32 in 0..1."""
    agg = require("matplotlib.backends.backend_agg", "matplotlib", "drawing a plan")
    canvas = agg.FigureCanvasAgg(_figure(plan))
    canvas.draw()
    return np.asarray(canvas.buffer_rgba(), np.float32)[..., :3] / 255


def _figure(plan: Plan) -> Any:
    values, rows, columns = coefficient_table(plan)
    figure = pyplot().Figure(figsize=(max(7.0, 2.5 + 0.55 * len(columns)), 3.4 + 0.3 * len(rows)), dpi=110)
    top, bottom = figure.subplots(2, 1, height_ratios=[2.2, 0.3 * len(rows) + 0.6])
    facts = [f"{plan.nfe} evaluations", f"peak {plan.peak_latents} latents"]
    facts = ([f"order {plan.order}"] if plan.order is not None else []) + facts
    name = "\n".join(textwrap.wrap(plan.label, int(13 * figure.get_figwidth())))
    figure.suptitle(f"{name}\n{', '.join(facts)}", fontsize=10)
    _plot_grid(top, plan)
    _plot_table(bottom, values, rows, columns)
    figure.tight_layout()
    return figure


def _plot_table(axes: Any, values: np.ndarray, rows: list[str], columns: list[str]) -> None:
    shown = np.sign(values) * np.log1p(np.abs(values) * 10)  # small weights stay visible beside large ones
    limit = float(np.nanmax(np.abs(shown))) if np.isfinite(shown).any() else 1.0
    axes.imshow(shown, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
    axes.set_xticks(range(len(columns)), columns, fontsize=8)
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    for i, j in zip(*np.nonzero(np.isfinite(values)), strict=True):
        dark = abs(shown[i, j]) > 0.6 * limit
        axes.text(j, i, f"{values[i, j]:.3g}", ha="center", va="center", fontsize=7, color="white" if dark else "black")
    axes.set_title("coefficients (blue positive, red negative)", fontsize=9)


def _plot_grid(axes: Any, plan: Plan) -> None:
    steps = range(len(plan.nodes))
    axes.plot(steps, [n.sigma for n in plan.nodes], "o-", ms=4, color="tab:orange", label="sigma (nodes)")
    inner = [s for s in plan.stages if s.node not in plan.nodes]
    if inner:
        axes.plot([s.step + 0.5 for s in inner], [s.node.sigma for s in inner], "x", ms=5, color="tab:red", label="sigma (inner)")
    axes.set_xlabel("step", fontsize=8)
    axes.set_ylabel("sigma", fontsize=8)
    if plan.nodes[0].sigma > 2:
        axes.set_yscale("symlog", linthresh=min(n.sigma for n in plan.nodes if n.sigma > 0))
    twin = axes.twinx()
    finite = [(i, n.lambda_) for i, n in enumerate(plan.nodes) if math.isfinite(n.lambda_)]
    twin.plot(*zip(*finite, strict=True), "s--", ms=3, color="tab:blue", label="lambda")
    twin.set_ylabel("lambda", fontsize=8)
    lines = [*axes.get_lines(), *twin.get_lines()]
    axes.legend(lines, [line.get_label() for line in lines], fontsize=8, loc="center right")
    for a in (axes, twin):
        a.tick_params(labelsize=8)
