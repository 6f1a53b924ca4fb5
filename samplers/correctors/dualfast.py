"""DualFast (arXiv 2506.13058): every noise prediction is pushed away from an earlier, noisier one. Experimental.

No official code is known; this is the mechanism as its abstract has it, ``eps'_k = eps_k + c_k (eps_k - eps_tau)``, and what is
not settled are options. In x_0 predictions ``D'_k = D_k - sigma_k/alpha_k c_k (eps_k - eps_tau)``, a linear map of what the
plan stores, so it is folded into the rows. The mix changes the ODE: with more steps the result does not tend to the model's.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from ..errors import OptionError, PlanError, check_choice, check_range
from ..facts import gives_x_0
from ..grids import Node
from ..plan import LazyStages, OutputMap, Plan, Row, Stage
from ..solvers.exponential import Step
from .output_maps import predicts_ahead, rewritten, with_map

Schedule = Literal["linear", "constant", "step"]
Tau = Literal["first", "previous"]
Scope = Literal["all", "leading"]
Form = dict[int | str, Any]  # a combination of stored outputs, "X", "x_T" and "offset"
LARGE = 0.5


def dualfast(
    plan: Plan, *, c_max: float = 0.1, c_min: float = 0.0, schedule: Schedule = "linear", tau: Tau = "first",
    scope: Scope = "all", skip_last: bool = True, c: Sequence[float] | None = None,
) -> Plan:
    """Mixes the outputs of a deterministic plan; no evaluation is added.

    Args:
        plan: of any solver, with its other correctors.
        c_max, c_min: strengths at the least and at the most noise, -1 to 1. The authors' values are not known; 0.1 is cautious.
        schedule: of the strength: ``linear`` in the model's time, ``constant`` (c_max), or ``step``, linear in the number of the
            evaluation.
        tau: the earlier prediction: of the ``first`` evaluation, which keeps two states more, or of the ``previous`` one, which
            keeps all outputs unless the plan stores noise predictions.
        scope: ``all``: the solver works with mixed outputs throughout, as if the denoiser mixed them. ``leading``: only the
            first-order term of each step does, higher-order differences use the model's own.
        skip_last: no mix at an evaluation that goes straight into the picture, where it would leave grain: the last one of
            plans that end at sigma 0 or with an x_0 prediction.
        c: the strength of each evaluation, in place of c_max, c_min and schedule; the first has no effect.

    Raises:
        PlanError: the plan adds noise, has DualFast already, or a scope or tau that its kind of output does not allow.
        OptionError: a strength that is not finite or above 1 in size, a list of another length, an unknown choice.
    """
    check_choice("schedule", schedule, ("linear", "constant", "step"))
    check_choice("tau", tau, ("first", "previous"))
    check_choice("scope", scope, ("all", "leading"))
    strengths = _strengths(plan, c_max, c_min, schedule) if c is None else _given(plan, c)
    if plan.stochastic:
        raise PlanError(
            "DualFast compares predictions along one path, but this plan adds noise: set eta to 0 (SA-Solver: tau)"
        )
    if len(strengths) < 2:
        warnings.warn("DualFast has no effect on a plan with a single evaluation", stacklevel=2)
        return plan
    if (largest := max(strengths[1:] if c is not None else (c_min, c_max))) > LARGE:
        warnings.warn(f"DualFast with a strength of {largest:g}: above {LARGE:g} it mostly adds error", stacklevel=2)
    strengths[0] = 0.0
    if skip_last and (plan.nodes[-1].sigma == 0 or gives_x_0(plan)):
        strengths[-1] = 0.0
    if not any(strengths):
        return plan
    if any(stage.mix is not None for stage in plan.stages) and (scope == "leading" or tau == "previous"):
        raise PlanError("DualFast on DPM-Solver-v3's outputs has scope 'all' and tau 'first' alone")
    return with_map(plan, OutputMap("dualfast", lambda base: _Fold(base, strengths, tau, scope).plan(), biased=True))


def _strengths(plan: Plan, c_max: float, c_min: float, schedule: str) -> list[float]:
    check_range("c_max", c_max, -1.0, 1.0)
    check_range("c_min", c_min, -1.0, 1.0)
    if c_min > c_max:
        warnings.warn(f"DualFast with c_min {c_min:g} above c_max {c_max:g}: the mix grows with the noise", stacklevel=3)
    count, times = len(plan.stages), [stage.node.t for stage in plan.stages]
    if schedule == "constant":
        return [float(c_max)] * count
    if schedule == "step":
        return [c_min + (c_max - c_min) * k / max(count - 1, 1) for k in range(count)]
    if not all(map(math.isfinite, times)) or times[0] == 0:
        raise PlanError(f"DualFast's linear schedule needs the model's time of every evaluation, which here are {times}")
    return [c_max + (c_min - c_max) * t / times[0] for t in times]


def _given(plan: Plan, c: Sequence[float]) -> list[float]:
    if len(c) != len(plan.stages):
        raise OptionError(f"DualFast's c holds {len(c)} strengths for {len(plan.stages)} evaluations, expected one for each")
    for k, value in enumerate(c):
        check_range(f"DualFast's c[{k}]", value, -1.0, 1.0)
    return [float(value) for value in c]


class _Fold:
    """Folds the mix into a plan's rows, stage by stage.

    With scope all a stage stores its own part of the mix, and rows add the part of eps_tau; with scope leading the stored
    outputs stay raw, and rows add the difference that the mix makes to a DDIM step.
    """

    def __init__(self, plan: Plan, c: Sequence[float], tau: str, scope: str) -> None:
        self.base, self.c, self.tau, self.scope = plan, c, tau, scope
        self.ahead = predicts_ahead(plan)
        self.unrolls = tau == "previous" and any(stage.kind != "eps" for stage in plan.stages)
        self.made: list[Stage] = []
        self.X: Form = {"x_T": 1.0}  # the carried state and what the stages evaluated, in outputs and x_T, where needed
        self.y: list[Form] = []

    def plan(self) -> Plan:
        """The plan with the mix."""
        return rewritten(self.base, self.row, self.stage)

    def row(self, k: int, where: str, old: Row) -> Row:
        """Row 1, 4 or the last one, reading mixed outputs."""
        if old.is_identity:
            return old
        if self.scope == "all":
            mixed = [j for j in old.m if self.c[j]]
            rest = replace(old, m={j: c for j, c in old.m.items() if j not in mixed})
            return _plus(rest, [(old.m[j], self.output(j)) for j in mixed]) if mixed else old
        step = self.step(k, where, old)
        if step is None or not self.c[step[0]]:
            return old
        f, target = step
        source = self.base.stages[f].node
        first_order: Any = Step.between(source, target, "data").row({}, newest=0).m.get(0, 0.0)
        gain = -first_order * source.sigma / source.alpha * self.c[f]
        return _plus(old, [(gain, self.eps(f, self.present(f))), (-gain, self.eps_tau(f))])

    def stage(self, k: int, new: Stage) -> Stage:
        """Row 3: with scope all a stage stores the part of the mix that it knows; noise predictions stay raw."""
        c = self.c[k]
        if c and self.scope == "all" and not _stores_eps(new):
            (p, q), alpha = new.store, new.node.alpha
            new = replace(new, mix=(p - q * (c / alpha), q * (1 + c)))
        if not isinstance(self.base.stages, LazyStages):
            self.made.append(new)
        if self.unrolls:
            self.y.append(_applied(new.predict, self.X))
            self.X = self.y[-1] if new.carry is new.predict else _applied(new.carry, self.X)
        return new

    def output(self, k: int) -> Form:
        """The mixed output of stage ``k`` in what is stored."""
        stage, c = self.base.stages[k], self.c[k]
        if _stores_eps(stage):
            return _sum([(1 + c, {k: 1.0}), (-c, self.eps_tau(k))])
        return _sum([(1.0, {k: 1.0}), (stage.store[1] * (c * stage.node.sigma / stage.node.alpha), self.eps_tau(k))])

    def eps_tau(self, k: int) -> Form:
        """The earlier noise prediction, for stage ``k``."""
        if self.tau == "previous":
            return self.eps(k - 1, self.y[k - 1] if self.unrolls else {})
        first: Any = self.base.stages[0].predict
        if first.m or first.offset is not None:
            raise PlanError("DualFast needs the start state as the first evaluation's, but this plan adds something to it")
        return self.eps(0, {"x_T": first.x + first.x_T})

    def eps(self, k: int, y: Form) -> Form:
        """The raw noise prediction of stage ``k``, whose state was ``y``, from what the stage stores."""
        stage = self.made[k] if k < len(self.made) else self.base.stages[k]
        node = stage.node
        if _stores_eps(stage):
            return {k: 1.0}
        if node.alpha == 0:
            return _sum([(1.0 / node.sigma, y)])
        p, q = stage.store
        # D = (M - p y)/q and eps = (y - alpha D)/sigma
        back = node.alpha / (node.sigma * q)
        return _sum([(1.0 / node.sigma + back * p, y), (-back, {k: 1.0})])

    def step(self, k: int, where: str, old: Row) -> tuple[int, Node] | None:
        """(source stage, target node) of the step that a row makes; None for a row that returns an x_0 prediction."""
        nodes, stages = self.base.nodes, self.base.stages
        steps = len(nodes) - 1
        if where == "final":
            return len(stages) - 1, nodes[-1]
        step = stages[k].step
        if self.ahead:
            if where == "carry" and (k >= steps or not old.reads_x):
                return None
            return k - 1, nodes[k]
        if step >= steps:
            return None
        first = next(j for j, stage in enumerate(stages) if stage.step == step)
        return first, nodes[step + 1] if where == "carry" else stages[k].node

    def present(self, f: int) -> Form:
        """The state that stage ``f`` evaluated, as rows of the step that starts there can have it."""
        made = self.made[f] if f < len(self.made) else self.base.stages[f]  # its own carry is not made yet
        if made.predict.is_identity or made.carry is made.predict:
            return {"X": 1.0}
        if made.predict.x != made.carry.x:
            raise PlanError("DualFast's scope 'leading' needs predictor and corrector to start from one state; use 'all'")
        # X was corrected since: the same start with other outputs
        rows = ((1.0, made.predict), (-1.0, made.carry))
        return _sum([(1.0, {"X": 1.0}), *((c, {**row.m, "x_T": row.x_T}) for c, row in rows)])


def _stores_eps(stage: Stage) -> bool:
    return stage.kind == "eps" and stage.mix is None


def _sum(terms: Iterable[tuple[Any, Mapping[Any, Any]]]) -> Form:
    total: Form = {}
    for c, form in terms:
        for key, value in form.items():
            total[key] = total.get(key, 0.0) + c * value
    return total


def _applied(row: Row, X: Form) -> Form:
    """The row's result, the carried state being ``X``."""
    constant = {} if row.offset is None else {"offset": row.offset}
    return _sum([(row.x, X), (1.0, {**row.m, **constant, "x_T": row.x_T})])


def _plus(row: Row, terms: Iterable[tuple[Any, Form]]) -> Row:
    form = _sum([(1.0, {**row.m, "X": row.x, "x_T": row.x_T}), *terms])
    x, x_T, offset = form.pop("X"), form.pop("x_T"), form.pop("offset", None)
    if offset is not None and row.offset is not None:
        offset = offset + row.offset
    outputs: dict[int, Any] = {int(j): c for j, c in form.items()}
    return replace(row, x=x, x_T=x_T, m=outputs, offset=row.offset if offset is None else offset)
