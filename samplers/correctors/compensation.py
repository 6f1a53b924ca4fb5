"""Dynamic compensation (Zhao et al., DC-Solver, arXiv 2409.03755): the newest output is moved along the solver's own past.

Before the step from node i-1 to node i the newest stored output is replaced, for good, by the value at
``t* = rho_i t_{i-1} + (1 - rho_i) t_{i-2}`` of the polynomial in the model's time through the latest outputs. The replacement
is linear, so it is folded into the plan's rows: a run costs no more evaluations, and only the search of the ratios (see
``calibration.search_ratios``) looks at data.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from ..calibration.ratios import resolve_ratios
from ..calibration.store import Calibration
from ..errors import OptionError, PlanError, check_integer
from ..plan import OutputMap, Plan, Row
from .output_maps import predicts_ahead, rewritten, with_map

Form = dict[int, Any]  # a combination of raw outputs: numbers, or tensors that broadcast over a sample


def compensation_weights(times: Sequence[float], ratio: Any) -> list[Any]:
    """Weights of outputs at ``times``, newest first, in their polynomial's value at ``t*``; ``ratio`` is a number or tensor.

    >>> [round(w, 6) for w in compensation_weights([0.6, 0.8, 1.0], 0.5)]
    [0.375, 0.75, -0.125]
    """
    t = ratio * times[0] + (1 - ratio) * times[1]
    return [
        math.prod(((t - b) / (a - b) for j, b in enumerate(times) if j != k), start=1.0) for k, a in enumerate(times)
    ]


def compensable(plan: Plan, dc_order: int) -> frozenset[int]:
    """The steps, counted from 1, whose ratio may differ from 1: those with dc_order + 1 outputs of one kind behind them.

    Raises PlanError for plans that do not evaluate once per step at its start, add noise or store v, and for times that repeat.
    """
    steps = len(plan.nodes) - 1
    at_nodes = len(plan.stages) in (steps, steps + 1) and all(
        s.node.sigma == n.sigma for s, n in zip(plan.stages, plan.nodes, strict=False)
    )
    if not at_nodes:
        raise PlanError(
            f"dynamic compensation needs one evaluation per step, at its start; this plan has {len(plan.stages)} for {steps} "
            "steps: use a multistep solver before it"
        )
    if plan.stochastic:
        raise PlanError(
            "dynamic compensation is searched and used along one path, but this plan adds noise: set eta to 0 (SA-Solver: tau)"
        )
    if any(stage.kind == "v" for stage in plan.stages):
        raise PlanError(
            "dynamic compensation needs outputs that a constant denoiser leaves constant, which v predictions are not: give the "
            "solver prediction='x_0', the samples are the same"
        )
    times = [node.t for node in plan.nodes[:steps]]
    bad = next((i for i, t in enumerate(times) if not math.isfinite(t) or t in times[:i]), None)
    if bad is not None:
        raise PlanError(f"dynamic compensation needs the model's time to fall, but step {bad} starts at {times[bad]!r}: {times}")
    kinds = [stage.kind for stage in plan.stages[:steps]]
    return frozenset(i for i in range(dc_order + 1, steps + 1) if len(set(kinds[i - dc_order - 1 : i])) == 1)


def dynamic_compensation(
    plan: Plan, *, ratios: Sequence[float] | str | Calibration = "sd21", dc_order: int = 2, guidance: float | None = None,
) -> Plan:
    """Compensates a multistep plan, with or without a corrector.

    Args:
        plan: one evaluation per step. Its first outputs of another kind (x_0 at pure noise in a plan of noise predictions)
            do not count as past.
        ratios: rho_1 ... rho_n, one per step, 1 where nothing changes; a calibration of ratios, or the reference of its file;
            or "sd21", the published polynomial for Stable Diffusion 2.1 with UniPC of order 2 (bh2, no corrector after the first
            step).
        dc_order: degree d of the polynomial; the first d ratios must be 1.
        guidance: the guidance scale, for ratios that a polynomial gives.

    Raises:
        OptionError: a list of another length, not finite, or with a ratio other than 1 where the past is too short.
        CalibrationError: a calibration that was made for other steps.
        PlanError: a plan with inner stages, noise, v predictions or repeated times, or compensated already.
    """
    check_integer("dc_order", dc_order, 1, 6)
    allowed = compensable(plan, dc_order)
    found = resolve_ratios(ratios, plan.nodes, dc_order, guidance)
    for i, rho in enumerate(found, 1):
        if rho != 1 and i not in allowed:
            raise OptionError(
                f"ratio {i} is {rho!r}, expected 1: the polynomial of dc_order {dc_order} needs {dc_order + 1} outputs of one "
                f"kind, which only the steps {', '.join(map(str, sorted(allowed))) or '(none)'} have"
            )
    return plan if all(rho == 1 for rho in found) else compensated(plan, found, dc_order)


def compensated(plan: Plan, ratios: Sequence[Any], dc_order: int) -> Plan:
    """``dynamic_compensation`` without its checks; a ratio may be a tensor of no dimensions, for gradients."""
    return with_map(plan, OutputMap("dynamic_compensation", lambda base: _fold(base, ratios, dc_order)))


def _fold(plan: Plan, ratios: Sequence[Any], dc_order: int) -> Plan:
    steps, forms = len(ratios), list[Form]()
    for j, rho in enumerate(ratios):
        past = range(j, j - dc_order - 1, -1)
        unchanged = isinstance(rho, float) and rho == 1
        weights = [1.0] if unchanged else compensation_weights([plan.nodes[i].t for i in past], rho)
        forms.append(_combined((w, {j: 1.0} if i == j else forms[i]) for i, w in zip(past, weights, strict=False)))
    # a corrector's newest output is not compensated yet, and neither is one that is itself the result
    ahead = predicts_ahead(plan)
    last = steps - 1 if plan.final.is_identity and len(plan.stages) == steps else steps

    def row(k: int, where: str, old: Row) -> Row:
        own = where == "carry" and k < steps and (not ahead or k == last)
        known = dict(enumerate(forms[: k + own]))
        if all(known.get(j, {j: 1.0}) == {j: 1.0} for j in old.m):
            return old
        return replace(old, m=_combined((c, known.get(j, {j: 1.0})) for j, c in old.m.items()))

    return rewritten(plan, row)


def _combined(terms: Iterable[tuple[Any, Form]]) -> Form:
    total: Form = {}
    for c, form in terms:
        for j, w in form.items():
            total[j] = total.get(j, 0.0) + c * w
    return total
