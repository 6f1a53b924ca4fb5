"""Time shift (Li et al., arXiv 2305.15583): states are re-labelled with the training time whose noise variance they show.

A sampled state is a little off the noise level that its time claims. Per sample, the variance of the state chooses among
the training times in a window around the nominal one; the choice is made on the state's device and no evaluation is added.
The published code does this in four different ways (``wiring``). Each is the base plan with coefficients looked up by the
choice; they are computed before the run, by planning again on grids with one node moved to each candidate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from ..errors import OptionError, PlanError, check_choice, check_integer
from ..frames import Frame
from ..grids import Grid, Node
from ..plan import Plan, Row
from ..sparse import sparse
from ..times import DiscreteTime
from .late_rows import Choice, Deferred, looked_up, same, scaled
from .output_maps import predicts_ahead
from .relabel import Move, TimeShiftHook

Wiring = Literal["paper", "target", "label", "dpm_solver"]
CONTINUOUS = 1000  # levels that stand for training times where the model has no table


def time_shift(
    build: Callable[[Grid], Plan], grid: Grid, *, window: int = 40, cutoff: float = 300.0, wiring: Wiring = "paper",
    clamp: bool = True,
) -> Plan:
    """Puts time shift on the plan that ``build`` makes; put it after every other corrector.

    Args:
        build: the base plan on any grid.
        window: width of the window in training times, of which half lies on either side (for ``label`` all of it, as
            published). 0 and 1 leave the plan as it is.
        cutoff: the training time (0 to N-1; 1000 times stand for a continuous model) up to which nothing is shifted.
        wiring: ``paper``: a state just reached is re-labelled, and the next step starts from that label. ``target`` (the
            authors' PNM code): the step aims at the time that fits the state before it. ``label`` (their DEIS code): only
            the model is told another time. ``dpm_solver`` (their DPM-Solver code): the step aims at the time that fits the
            latest noise prediction, and history and model follow; for second-order DPM-Solver alone.
        clamp: keeps candidates between the neighbouring nodes, so that every step goes forward. The authors' code does not.

    Raises:
        OptionError: a negative window, an unknown wiring, a cutoff outside the training times.
        PlanError: a base plan that cannot be shifted so.
    """
    check_integer("window", window, 0, 100_000)
    check_choice("wiring", wiring, ("paper", "target", "label", "dpm_solver"))
    plan, levels = build(grid), Levels.of(grid)
    mixes = isinstance(plan, Plan) and not plan.maps and any(stage.mix is not None for stage in plan.stages)
    if not isinstance(plan, Plan) or mixes or plan.sample_shape is not None:
        raise PlanError(
            "time shift needs a plan of plain numbers that is known ahead; one coefficient per channel or element "
            "(DPM-Solver-v3) and solvers that choose their steps while running are not"
        )
    if isinstance(cutoff, bool) or not isinstance(cutoff, (int, float)) or not 0 <= cutoff < len(levels.lambdas):
        raise OptionError(f"cutoff is {cutoff!r}, expected a training time from 0 to {len(levels.lambdas) - 1}")
    half = window if wiring == "label" else window // 2
    if half == 0:
        return plan
    if wiring == "label":
        return _label(plan, levels, half, cutoff)
    if wiring == "dpm_solver":
        from .time_shift_dpm import shift_dpm_solver

        return shift_dpm_solver(plan, levels, half, cutoff, clamp)
    return _rewired(build, plan, grid, levels, half, cutoff, clamp, wiring == "paper")


@dataclass(frozen=True, eq=False)
class Levels:
    """The training times of a model, or what stands for them: lambda of each, falling as the time's number rises."""

    frame: Frame
    lambdas: np.ndarray

    @classmethod
    def of(cls, grid: Grid) -> Levels:
        """The table of a discrete model; 1000 even times of a continuous one; without times, even in lambda over the grid."""
        frame, time = grid.frame, grid.frame.time
        if isinstance(time, DiscreteTime):
            return cls(frame, np.asarray(frame.lambda_(time.knots)))
        if time.is_model_time:
            t = np.clip(time.t_max * np.arange(1, CONTINUOUS + 1) / CONTINUOUS, time.t_min, time.t_max)
            return cls(frame, np.asarray(frame.lambda_(t)))
        finite = grid.lambda_[np.isfinite(grid.lambda_)]
        return cls(frame, np.linspace(finite[-1], finite[0], CONTINUOUS))

    def centre(self, node: Node, cutoff: float) -> int | None:
        """The training time nearest to a node; None where nothing is shifted: below the cutoff, and at the pure ends."""
        if not math.isfinite(node.lambda_):
            return None
        known = np.isfinite(self.lambdas)
        nearest = round(float(np.interp(-node.lambda_, -self.lambdas[known], np.flatnonzero(known))))
        return nearest if nearest > cutoff else None

    def candidates(self, centre: int, half: int, low: float = -math.inf, high: float = math.inf) -> list[Node]:
        """Training times within ``half`` of ``centre`` with lambda strictly between ``low`` and ``high``; least noise first."""
        around = self._nodes[max(0, centre - half) : centre + half + 1]
        return [node for node in around if low < node.lambda_ < high]

    @cached_property
    def _nodes(self) -> list[Node]:
        frame, lambdas = self.frame, self.lambdas
        columns = (frame.t_of_lambda(lambdas), frame.alpha_of_lambda(lambdas), frame.sigma_of_lambda(lambdas), lambdas)
        return list(map(Node, *(column.tolist() for column in columns)))


def _label(plan: Plan, levels: Levels, half: int, cutoff: float) -> Plan:
    before: dict[int, Choice] = {}
    moves: dict[int, Move] = {}
    for k, stage in enumerate(plan.stages):
        centre = levels.centre(stage.node, cutoff)
        if centre is not None:
            before[k] = choice = Choice(("time shift", k), stage.node, levels.candidates(centre, half), stage.node)
            moves[k] = Move(choice.key, choice.candidates, choice.scales, keep_eps=True)
    return replace(plan, hooks=(*plan.hooks, TimeShiftHook(tuple(plan.stages), before, {}, moves)))


def _rewired(
    build: Callable[[Grid], Plan], base: Plan, grid: Grid, levels: Levels, half: int, cutoff: float, clamp: bool, paper: bool,
) -> Plan:
    """The base plan with the rows of every shifted step looked up by the choice made for it: of the label of the step's
    source (``paper``) or of its target.
    """
    rows: dict[int, Row] = {}  # in place of the base's, by id
    before: dict[int, Choice] = {}
    after: dict[int, Choice] = {}
    moves: dict[int, Move] = {}
    nodes, late_carry = base.nodes, predicts_ahead(base)
    for step in range(1, len(nodes) - 1):
        node = nodes[step] if paper else nodes[step + 1]
        centre = levels.centre(node, cutoff)
        if centre is None:
            continue
        # forward: less noise than the node before, and, for a source, more than the node after
        low, high = (nodes[step - 1] if paper else nodes[step]).lambda_, nodes[step + 1].lambda_ if paper else math.inf
        found = levels.candidates(centre, half, low, high) if clamp else levels.candidates(centre, half)
        if not found:
            continue
        place = _place(grid, node)

        def planned(candidate: Node, place: int = place) -> Plan:
            with sparse():
                return build(moved(grid, place, candidate))

        plans: Sequence[Plan] = Deferred(lambda planned=planned, found=found: [planned(c) for c in found])  # type: ignore[misc]
        example = planned(max(found, key=lambda c: abs(c.lambda_ - node.lambda_)))
        choice = Choice(("time shift", step), node, found, nodes[step])
        first = next(k for k, stage in enumerate(base.stages) if stage.step == step)
        if paper:
            before[first] = choice
            moves[first] = Move(choice.key, found, choice.scales, keep_eps=False, stores=_stores(plans, first))
        else:  # chosen from the state at the step's source, as soon as it is there
            after[first if late_carry else first - 1] = choice
        for k, where in _rows_of(base, step, late_carry):
            if where == "predict" and not late_carry and example.stages[k].node != base.stages[k].node and k != first:
                stage_nodes = Deferred(lambda plans=plans, k=k: [plan.stages[k].node for plan in plans])  # type: ignore[misc]
                moves[k] = Move(choice.key, stage_nodes, None, keep_eps=False, stores=_stores(plans, k))
            own, other = _row(base, k, where), _row(example, k, where)
            if own.is_identity or id(own) in rows or same(own, other):
                continue
            inner = where == "predict" and not late_carry
            rows[id(own)] = looked_up(own, other, _rescaled(plans, choice, k, where, paper, inner), choice.key)
    stages = tuple(
        replace(s, predict=rows.get(id(s.predict), s.predict), carry=rows.get(id(s.carry), s.carry)) for s in base.stages
    )
    final = rows.get(id(base.final), base.final)
    hook = TimeShiftHook(stages, before, after, moves, final)
    return base.with_stages(stages, final, hooks=(*base.hooks, hook))


def _rescaled(plans: Sequence[Plan], choice: Choice, k: int, where: str, paper: bool, inner: bool) -> Sequence[Row]:
    """The candidates' rows, with the states between steps kept at the nominal nodes' scale."""
    def make() -> list[Row]:
        return [
            scaled(_row(plan, k, where), state=scale) if paper else
            scaled(_row(plan, k, where), whole=1.0 if inner else 1.0 / scale)
            for plan, scale in zip(plans, choice.scales, strict=True)
        ]

    return Deferred(make)


def moved(grid: Grid, i: int, node: Node) -> Grid:
    """A copy with node ``i`` elsewhere. It is not checked: a step may go backwards, as time shift's published forms do."""
    copy = object.__new__(Grid)
    arrays: dict[str, Any] = {name: getattr(grid, name).copy() for name in ("sigma", "alpha", "lambda_", "t")}
    for name, array in arrays.items():
        array[i] = getattr(node, name)
    nodes = (*grid.nodes[:i], node, *grid.nodes[i + 1 :])
    copy.__dict__.update(frame=grid.frame, end=grid.end, nodes=nodes, **arrays)
    return copy


def _stores(plans: Sequence[Plan], k: int) -> Sequence[tuple[Any, Any]]:
    return Deferred(lambda: [plan.stages[k].store for plan in plans])


def _rows_of(plan: Plan, step: int, late_carry: bool) -> list[tuple[int, str]]:
    """(stage, row) of the rows that take part in a step."""
    if not late_carry:
        return [(k, where) for k, s in enumerate(plan.stages) if s.step == step for where in ("predict", "carry")]
    if step + 1 < len(plan.stages):
        return [(step + 1, "predict"), (step + 1, "carry")]
    return [(-1, "final")]


def _row(plan: Plan, k: int, where: str) -> Row:
    row: Row = plan.final if where == "final" else getattr(plan.stages[k], where)
    return row


def _place(grid: Grid, node: Node) -> int:
    """The node's number in the grid; plans whose steps do not start at grid nodes cannot be moved."""
    found = np.flatnonzero(grid.sigma == node.sigma)
    if len(found) != 1:
        raise PlanError("time shift moves nodes of the grid, but this plan's steps have others: use inner='grid'")
    return int(found[0])
