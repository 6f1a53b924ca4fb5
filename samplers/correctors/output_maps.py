"""Correctors that change what the stored outputs mean: where they stand among others, and how rows are rewritten.

Dynamic compensation and DualFast replace the outputs that a solver works with. A plan's rows then read combinations of the
raw ones. Whatever the order in which correctors are given, DualFast acts on the model's outputs, compensation on what comes
of them, and a corrector with rows of its own (UniC) reads the outputs that the solver reads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ..errors import PlanError
from ..plan import LazyStages, OutputMap, Plan, Row, Stage

ORDER = ("dualfast", "dynamic_compensation")  # nearest to the model first


def with_map(plan: Plan, added: OutputMap) -> Plan:
    """The plan with one more output map. Raises PlanError for a second of its name."""
    if any(m.name == added.name for m in plan.maps):
        raise PlanError(f"{added.name} is in this plan already; use it once")
    maps = sorted((*plan.maps, added), key=lambda m: ORDER.index(m.name))
    return _folded(_unmapped(plan), tuple(maps))


def under_maps(plan: Plan, change: Callable[[Plan], Plan]) -> Plan:
    """``change`` made to the plan's own rows, below its output maps."""
    return _folded(change(_unmapped(plan)), plan.maps)


def _unmapped(plan: Plan) -> Plan:
    if not plan.maps:
        return plan
    if plan.unmapped is None or plan.hooks != plan.unmapped.hooks:
        names = " and ".join(m.name for m in plan.maps)
        raise PlanError(
            f"{names} cannot be undone in a plan that was read from a file or has hooks added since: change its recipe, or put "
            "the other corrector before"
        )
    return plan.unmapped


def _folded(base: Plan, maps: tuple[OutputMap, ...]) -> Plan:
    plan = base
    for m in reversed(maps):  # rows are rewritten from the solver's side to the model's
        assert m.fold is not None
        plan = m.fold(plan)
    return replace(plan, maps=maps, unmapped=base) if maps else plan


def predicts_ahead(plan: Plan) -> bool:
    """Whether a step's rows stand in the stage after it, as a corrector has them: row 1 steps, row 4 corrects."""
    return len(plan.stages) > 1 and plan.stages[0].carry.is_identity and [s.step for s in plan.stages] == list(
        range(len(plan.stages)))


def rewritten(plan: Plan, row: Callable[[int, str, Row], Row], stage: Callable[[int, Stage], Stage] = lambda k, s: s) -> Plan:
    """The plan with each row replaced by ``row(k, where, row)``, where is "predict", "carry" or (k = number of stages) "final".

    A carry that is its predict row stays it. ``stage`` changes the rest of a stage.
    """

    def make(k: int) -> Stage:
        old = plan.stages[k]
        predict = row(k, "predict", old.predict)
        carry = predict if old.carry is old.predict and not old.predict.is_identity else row(k, "carry", old.carry)
        return stage(k, replace(old, predict=predict, carry=carry))

    count = len(plan.stages)
    stages = LazyStages(count, make) if isinstance(plan.stages, LazyStages) else tuple(map(make, range(count)))
    return replace(plan, stages=stages, final=row(count, "final", plan.final))
