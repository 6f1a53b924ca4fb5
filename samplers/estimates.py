"""An error estimate for every step while a plan runs: two results for the same step, compared.

Where a step is corrected (UniPC, UniC, DPM-Solver-v3), the corrected state against the predicted one. Elsewhere the step
against the same step with one order less: the output farthest from the step's start is replaced by what the polynomial in
lambda through the others gives there. A step of order 1 (DDIM) is compared with order 2 through the output before.

Both results start from the same state, so their difference is a row of outputs (and x_T) alone. It is computed on the state's
device, at a thousand points of the latent, and read back without waiting: the run is not slowed, its bits do not change.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from .correctors.output_maps import predicts_ahead
from .grids import Node
from .hooks import Hook
from .lincomb import accumulation_dtype
from .plan import Coefficient, LazyStages, Memory, Plan, Row, Stage
from .solvers.exponential import KIND, Step, lagrange_weights, psi

POINTS = 1024  # of a state: the root mean square over them is within a quarter of that over all
MOST_LEVELS = 6  # a polynomial through more says nothing


class Comparison(NamedTuple):
    """The difference of two results for one step.

    Attributes:
        step: the step, from 0.
        row: the difference, a row that reads outputs and the start, and not the state.
        size: sqrt(alpha^2 + sigma^2) where the step ends, the size of a state of unit-variance data: it makes estimates
            comparable between steps and frames.
    """

    step: int
    row: Row
    size: float


def comparisons(plan: Plan) -> dict[int, list[Comparison]]:
    """What is compared, by the stage after whose evaluation it can be computed; at most one comparison per step.

    Nothing for steps of which no second result is known: the first without corrector, those from pure noise or to sigma 0,
    first-order steps of stochastic solvers, outputs changed by a corrector's map, and coefficients as large as a latent.
    """
    found: dict[int, list[Comparison]] = {}

    def add(k: int, step: int, row: Row | None) -> None:
        known = row is not None and (not row.reads_start or plan.stages[0].predict.is_identity)
        if known and row is not None and row.m and step + 1 < len(plan.nodes):
            end = plan.nodes[step + 1]
            found.setdefault(k, []).append(Comparison(step, row, math.hypot(end.alpha, end.sigma)))

    if isinstance(plan.stages, LazyStages):
        return found
    stages = _stepping_in_x_0(plan.stages)
    if not predicts_ahead(plan):
        for k, stage in enumerate(stages):
            if not stage.carry.is_identity and (k + 1 == len(stages) or stages[k + 1].step > stage.step):
                add(k, stage.step, None if plan.maps else _other_order(plan, stages, stage.step, stage.carry))
        return found
    for k, stage in enumerate(stages[1:], 1):
        corrected = None if stage.carry is stage.predict else _difference(stage.carry, stage.predict)
        if corrected is not None:
            add(k, k - 1, corrected)
        elif not plan.maps:
            add(k - 1, k - 1, _other_order(plan, stages, k - 1, stage.predict))
    last = len(stages) - 1
    if not plan.final.is_identity and not plan.maps:
        add(last, last, _other_order(plan, stages, last, plan.final))
    return found


def _stepping_in_x_0(stages: Sequence[Stage]) -> Sequence[Stage]:
    """Stages of a method without history, which steps alike whatever it stores, written as if it stored x_0."""
    if not all(stage.predict.is_identity and set(stage.carry.m) == {k} and stage.mix is None for k, stage in enumerate(stages)):
        return stages
    changed = []
    for k, stage in enumerate(stages):
        p, q = stage.store
        b = float(stage.carry.m[k])
        row = Row(float(stage.carry.x) + b * p, {k: b * q}, noise=stage.carry.noise)
        changed.append(Stage(stage.node, row, kind="x_0", step=stage.step))
    return changed


def _difference(a: Row, b: Row) -> Row | None:
    """``a - b`` where that does not read the state; their noise is the same or none."""
    if not _equal(a.x, b.x):
        return None
    outputs = {j: _number(a.m.get(j, 0.0)) - _number(b.m.get(j, 0.0)) for j in {*a.m, *b.m}}
    offset = a.offset
    if b.offset is not None:
        offset = -b.offset if offset is None else offset - b.offset
    return Row(m=outputs, x_T=_number(a.x_T) - _number(b.x_T), offset=offset)


def _number(c: Coefficient) -> Any:
    """A coefficient; for one that depends on the data its nominal value."""
    return c if isinstance(c, torch.Tensor) else float(c)


def _equal(a: Coefficient, b: Coefficient) -> bool:
    return bool((torch.as_tensor(_number(a)) - torch.as_tensor(_number(b))).abs().max() <= 1e-9)


def _other_order(plan: Plan, stages: Sequence[Stage], step: int, row: Row) -> Row | None:
    """The row of a step less the same step with one order less (order 1: less the same with one order more)."""
    source, outputs = plan.nodes[step], sorted(row.m)
    kinds = {stages[j].kind for j in outputs}
    distances = {j: stages[j].node.lambda_ - source.lambda_ for j in outputs}
    if len(kinds) != 1 or not all(map(math.isfinite, distances.values())):
        return None
    levels = sorted(set(distances.values()), key=abs)
    if not levels or len(levels) > MOST_LEVELS:
        return None
    if levels == [0.0]:
        return _first_order(stages, source, plan.nodes[step + 1], row, outputs[-1])
    if len(levels) == 1:  # the middle of a step that began with another evaluation
        begun = next((j for j in range(outputs[0]) if stages[j].step == step and stages[j].node.lambda_ == source.lambda_), None)
        return None if begun is None else Row(m={outputs[0]: row.m[outputs[0]], begun: -_number(row.m[outputs[0]])})
    farthest, kept = levels[-1], levels[:-1]
    at = lagrange_weights([level / farthest for level in kept], [1.0] * len(kept))  # of the polynomial, at the farthest level
    dropped = sum(_number(row.m[j]) for j in outputs if distances[j] == farthest)
    weights: dict[int, Any] = {}
    for j in outputs:
        if distances[j] == farthest:
            weights[j] = _number(row.m[j])
        else:
            alike = sum(distances[i] == distances[j] for i in outputs)
            weights[j] = -dropped * at[kept.index(distances[j])] / alike
    return Row(m=weights)


def _first_order(stages: Sequence[Stage], source: Node, target: Node, row: Row, i: int) -> Row | None:
    """A DDIM step less the step of order 2 that also reads the output before; None for rows that are no DDIM step."""
    before = stages[i - 1] if i else None
    kinds = {kind: prediction for prediction, kind in KIND.items()}
    if before is None or before.kind != stages[i].kind or before.kind not in kinds or not row.has_numbers:
        return None
    step = Step.between(source, target, kinds[before.kind])  # type: ignore[arg-type]
    back = before.node.lambda_ - source.lambda_
    if not (math.isfinite(step.h) and math.isfinite(back) and back < 0) or row.noise is not None:
        return None
    own = step.row({}, newest=i)
    if not (_equal(own.x, row.x) and math.isclose(float(own.m[i]), float(row.m[i]), rel_tol=1e-9, abs_tol=1e-12)):
        return None
    return _difference(row, step.row({i - 1: psi(step.g, 2)[1] * step.h / back}, newest=i))


class Estimates(Hook):
    """Estimates of one run: a hook for ``engine.run``.

    >>> from fewstep.samplers import frames, make_plan, run
    >>> plan = make_plan("unipc", frames.edm(), [10.0, 3.0, 1.0, 0.3, 0.0])
    >>> estimates = Estimates(plan)
    >>> x = run(plan, lambda x, sigma: x / (1 + sigma[:, None] ** 2), 10 * torch.ones(1, 4), hooks=[estimates])
    >>> sorted(estimates.all())
    [0, 1, 2]
    """

    def __init__(self, plan: Plan) -> None:
        self._stages = () if isinstance(plan.stages, LazyStages) else tuple(_stepping_in_x_0(plan.stages))
        self._at = comparisons(plan)
        self._steps = [c.step for k in sorted(self._at) for c in self._at[k]]
        self._kept = max((k - min(c.row.m) for k, found in self._at.items() for c in found), default=0) + 1
        self._k = self._found = 0
        self._tables: list[_Table] = []
        self._values: torch.Tensor | None = None

    def begin(self, memory: Memory) -> Hook:
        """See ``Hook``; a new run forgets the one before."""
        self._k = self._found = 0
        self._values = None
        return self

    def denoised(self, stage: Stage, y: torch.Tensor, denoised: torch.Tensor) -> torch.Tensor:
        """See ``Hook``; looks at the prediction and gives it back."""
        k, self._k = self._k, self._k + 1
        if not self._at:
            return denoised
        if self._values is None:
            self._prepare(denoised)
        slot, own = self._history[k % self._kept], self._stages[k]
        if k == 0:
            self._history[-1].copy_(self._points(y))
        if own.stores_x_0:
            slot.copy_(self._points(denoised))
        else:
            p, q = (self._spread(c, denoised) for c in own.store)
            torch.add(p * self._points(y), q * self._points(denoised), out=slot)
        for _ in self._at.get(k, ()):
            self._tables[self._found].compare(self._history, self._difference, self._values[self._found])  # type: ignore[index]
            self._found += 1
        if k in self._at:
            self._reader.follow(self._found)
        return denoised

    def known(self) -> dict[int, float]:
        """Estimates by step, as far as they can be read without waiting for the device."""
        return {} if self._values is None else dict(zip(self._steps, self._reader.ready(), strict=False))

    def all(self) -> dict[int, float]:
        """All estimates by step: the root mean square of the difference, for states of unit variance. Waits for the device."""
        return {} if self._values is None else dict(zip(self._steps, self._values[: self._found].tolist(), strict=False))

    def _prepare(self, like: torch.Tensor) -> None:
        """Buffers and weights on the state's device, before the first step."""
        self._stride = max(1, like.numel() // POINTS) | 1  # odd: every column of a picture has its turn
        count, wide = len(self._points(like)), accumulation_dtype(like.dtype)
        self._history = torch.zeros(self._kept + 1, count, dtype=wide, device=like.device)
        self._difference = torch.empty(count, dtype=wide, device=like.device)
        self._values = torch.zeros(len(self._steps), dtype=wide, device=like.device)
        self._tables = [self._table(c, like) for k in sorted(self._at) for c in self._at[k]]
        self._reader = _Reader(self._values)

    def _table(self, found: Comparison, like: torch.Tensor) -> _Table:
        scale = 1.0 / (found.size * math.sqrt(self._history.shape[1]))
        slots: Mapping[int, Any] = {**{j % self._kept: c for j, c in found.row.m.items()}, self._kept: found.row.x_T}
        if found.row.has_numbers and found.row.offset is None:
            weights = torch.tensor([scale * slots.get(i, 0.0) for i in range(self._kept + 1)], dtype=self._history.dtype)
            return _Table(weights.to(like.device, non_blocking=True), None)
        rows = [scale * self._spread(slots.get(i, 0.0), like) + torch.zeros_like(self._difference) for i in range(self._kept + 1)]
        offset = found.row.offset
        return _Table(torch.stack(rows), None if offset is None else scale * self._spread(offset, like))

    def _points(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(-1)[:: self._stride]

    def _spread(self, c: Coefficient, like: torch.Tensor) -> Any:
        """A coefficient as it stands at the points of a state like this."""
        if not isinstance(c, torch.Tensor):
            return float(c)
        shaped = c if c.ndim == like.ndim - 1 else c.reshape(-1, *(1,) * (like.ndim - 2))
        return self._points(shaped.to(self._history, non_blocking=True).expand(like.shape))


class _Table(NamedTuple):
    """The weights of one comparison over the history's slots: [slots], or [slots, points] where they differ by point."""

    weights: torch.Tensor
    offset: torch.Tensor | None

    def compare(self, history: torch.Tensor, difference: torch.Tensor, value: torch.Tensor) -> None:
        """Writes the norm of the weighted sum into ``value`` []."""
        if self.weights.ndim == 1:
            torch.mv(history.t(), self.weights, out=difference)
        else:
            torch.sum(self.weights * history, dim=0, out=difference)
        if self.offset is not None:
            difference.add_(self.offset)
        torch.linalg.vector_norm(difference, out=value)


class _Reader:
    """Brings values to the host as they come: on CUDA by copies that nobody waits for, elsewhere than on the CPU not at all."""

    def __init__(self, values: torch.Tensor) -> None:
        self._values, self._done = values, 0
        self._waiting: list[tuple[int, Any]] = []
        self._here = torch.zeros_like(values, device="cpu")
        if values.is_cuda:
            self._here = self._here.pin_memory()

    def follow(self, count: int) -> None:
        """Notes that the first ``count`` values are on their way."""
        if self._values.is_cuda:
            last = self._waiting[-1][0] if self._waiting else self._done
            self._here[last:count].copy_(self._values[last:count], non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
            self._waiting.append((count, event))
        elif self._values.device.type == "cpu":
            self._here, self._done = self._values, count

    def ready(self) -> list[float]:
        """The values that have arrived."""
        while self._waiting and self._waiting[0][1].query():
            self._done = self._waiting.pop(0)[0]
        return [float(v) for v in self._here[: self._done].tolist()]
