"""Plans as text: the table that a paper would print."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from .plan import Coefficient, Late, Row

if TYPE_CHECKING:
    from .plan import Plan


def describe(plan: Plan, *, with_order: bool = True) -> str:
    """Facts in one line, then one line per row: what it makes and with which coefficients.

    The order is measured when first asked for, which takes a moment; ``with_order=False`` leaves it out.

    Rows: ``y_k`` is the state that evaluation k sees, ``M_k`` what it stores, ``X`` the carried state.
    """
    facts = [f"{plan.nfe} evaluations", f"peak {plan.peak_latents} latents"]
    if with_order and plan.order is not None:
        facts.insert(0, f"order {plan.order}")
    facts += ["stochastic"] * plan.stochastic + ["biased"] * plan.biased
    lines = [plan.label, ", ".join(facts), ""]
    if plan.late:
        lines.insert(2, "* depends on the data; shown for nominal times")
    table = [("eval", "sigma", "lambda", "makes", "from")]
    if plan.start is not None:
        source = plan.start.source
        table.append(("start", f"{source.sigma:.6g}", f"{source.lambda_:.4f}", "X", str(plan.start)))
    for k, stage in enumerate(plan.stages):
        sigma, lam = f"{stage.node.sigma:.6g}", f"{stage.node.lambda_:.4f}"
        if not stage.predict.is_identity:
            table.append((str(k), sigma, lam, f"y_{k}", row_text(stage.predict)))
        y = "X" if stage.predict.is_identity else f"y_{k}"
        p, q = stage.store
        stored = f"D({y})" if stage.stores_x_0 else f"{_signed(p)} {y} {_signed(q)} D({y})".removeprefix("+ ")
        table.append((str(k), sigma, lam, f"M_{k} ({stage.kind})", stored))
        if stage.carry is stage.predict and not stage.predict.is_identity:
            table.append((str(k), "", "", "X", f"y_{k}"))
        elif not stage.carry.is_identity:
            table.append((str(k), "", "", "X", row_text(stage.carry)))
    end = plan.nodes[-1]
    if not plan.final.is_identity:
        table.append(("end", f"{end.sigma:.6g}", f"{end.lambda_:.4f}", "result", row_text(plan.final)))
    else:
        table.append(("end", f"{end.sigma:.6g}", f"{end.lambda_:.4f}", "result", "X"))
    return "\n".join([*lines, *_align(table)])


def row_text(row: Row) -> str:
    """One row as a sum, e.g. ``0.31 X + 0.9 M_0 - 0.2 M_1``."""
    terms: list[tuple[Coefficient, str]] = [(row.x, "X")] if row.reads_x else []
    terms += [(c, f"M_{j}") for j, c in sorted(row.m.items())]
    if row.reads_start:
        terms.append((row.x_T, "x_T"))
    if row.noise is not None:
        terms.append((row.noise.coefficient, "xi"))
    text = " ".join(f"{_signed(c)} {name}" for c, name in terms) or "0"
    if row.offset is not None:
        text += " + offset"
    return text.removeprefix("+ ")


def _signed(c: Coefficient) -> str:
    if isinstance(c, torch.Tensor):
        return f"+ tensor{list(c.shape)} mean {float(c.mean()):.4g}"
    sign, mark = "-" if float(c) < 0 else "+", "*" if isinstance(c, Late) else ""
    return f"{sign} {abs(float(c)):.6g}{mark}"


def _align(table: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
