"""Time shift as the authors' DPM-Solver code has it: the latest noise prediction decides where the next step goes.

The levels of the last two evaluations and of the target then differ from sample to sample, so the second-order update is
written out in them; everything is computed on the state's device.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ..engine import Denoiser
from ..errors import PlanError
from ..grids import Node
from ..hooks import Hook
from ..lincomb import accumulation_dtype
from ..plan import Late, Memory, Plan, Row, Stage
from .late_rows import Choice, gather
from .relabel import Move

if TYPE_CHECKING:
    from .time_shift import Levels


class Place(NamedTuple):
    """alpha, sigma and lambda of a node, as numbers or as tensors [B, 1, ...]."""

    alpha: Any
    sigma: Any
    lambda_: Any


def second_order(old: Place | None, source: Place, target: Place) -> tuple[Any, Any, Any]:
    """(x, newest, older) of DPM-Solver-2 multistep in noise predictions; without ``old``, and to sigma 0, of order 1."""
    if isinstance(target.lambda_, float) and math.isinf(target.lambda_):
        gain = target.alpha / source.alpha
        return gain, target.sigma - source.sigma * gain, 0.0
    exp1 = math.expm1 if isinstance(source.lambda_, float) and isinstance(target.lambda_, float) else torch.expm1
    h = target.lambda_ - source.lambda_
    first = -target.sigma * exp1(h)
    slope = first * h / (2 * (source.lambda_ - old.lambda_)) if old is not None else 0.0
    return target.alpha / source.alpha, first + slope, -slope


@dataclass(frozen=True, eq=False)
class Updated(Late):
    """One coefficient of the update over nodes that were chosen while running."""

    nominal: float
    part: int
    nodes: tuple[Node | None, Node, Node]
    numbers: tuple[int, int, int]

    def value(self, memory: Memory, like: torch.Tensor) -> torch.Tensor:
        """See ``Late``."""
        places = [
            None if node is None else memory.get(("place", k), Place(node.alpha, node.sigma, node.lambda_))
            for k, node in zip(self.numbers, self.nodes, strict=True)
        ]
        result = second_order(*places)[self.part]  # type: ignore[arg-type]
        if isinstance(result, torch.Tensor):
            return result
        return torch.full((1,) * like.ndim, float(result), dtype=accumulation_dtype(like.dtype), device=like.device)


@dataclass(frozen=True, eq=False)
class NoiseFollower(Hook):
    """Chooses the next node from the noise prediction of a stage, and evaluates a stage at its chosen node."""

    stages: tuple[Stage, ...]
    choices: Mapping[int, Choice]  # by the stage whose prediction decides; for the node after it
    moves: Mapping[int, Move]
    memory: Memory = field(default_factory=dict)

    latents = 2

    def begin(self, memory: Memory) -> Hook:
        """See ``Hook``."""
        return replace(self, memory=memory)

    def evaluate(self, stage: Stage, y: torch.Tensor, sigma: torch.Tensor, denoiser: Denoiser) -> torch.Tensor:
        """See ``Hook``."""
        k = next((k for k, own in enumerate(self.stages) if own is stage), -1)
        move = self.moves.get(k)
        found = denoiser(y, sigma) if move is None else move.evaluate(stage, y, sigma, denoiser, self.memory)
        if k in self.choices:
            choice, (p, q) = self.choices[k], stage.store
            index = choice.choose(p * y + q * found, self.memory)
            chosen = (gather([getattr(n, f) for n in choice.candidates], index, y) for f in Place._fields)
            self.memory["place", k + 1] = Place(*chosen)
        return found


def shift_dpm_solver(plan: Plan, levels: Levels, half: int, cutoff: float, clamp: bool) -> Plan:
    """See ``time_shift``: the choice begins with the third node; below the cutoff nodes are truncated to training times.

    Raises PlanError for anything but DPM-Solver multistep of order 2 in noise predictions on a model with training times.
    """
    orders = [len(stage.carry.m) for stage in plan.stages]
    if any(s.kind != "eps" or not s.predict.is_identity for s in plan.stages) or max(orders) > 2 or plan.stochastic:
        raise PlanError(
            "the wiring 'dpm_solver' is that of DPM-Solver multistep of order 2 with prediction='noise'; use 'paper' for others"
        )
    nodes, choices, moves = list(plan.nodes), {}, {}
    for k in range(2, len(nodes)):
        if not math.isfinite(nodes[k].lambda_):
            continue
        centre = _truncated(levels, nodes[k])
        if centre > cutoff:
            # forward: half-way to either neighbour, since that one may be moved too
            near = [0.5 * (nodes[j].lambda_ + nodes[k].lambda_) if j < len(nodes) else math.inf for j in (k - 1, k + 1)]
            found = levels.candidates(centre, half, *near) if clamp else levels.candidates(centre, half)
        else:
            found = levels.candidates(centre, 0)
        if found:
            # noise of unit variance is expected of a noise prediction: it is measured as it is
            choices[k - 1] = Choice(("time shift", k), nodes[k], found, Node(math.nan, 0.0, 1.0, -math.inf))
            moves[k] = Move(("time shift", k), found, None, keep_eps=False)
    stages = []
    for k, stage in enumerate(plan.stages):
        three = (nodes[k - 1] if len(stage.carry.m) > 1 else None, nodes[k], nodes[k + 1])
        places = [None if n is None else Place(n.alpha, n.sigma, n.lambda_) for n in three]
        nominal = second_order(*places)  # type: ignore[arg-type]
        if not _agree(stage.carry, k, nominal):
            raise PlanError("the wiring 'dpm_solver' knows solver_type='dpmsolver' of order 2 alone")
        numbers = (k - 1, k, k + 1)
        if not any(j - 1 in choices for j in numbers):
            stages.append(stage)
            continue
        late = [Updated(float(c), part, three, numbers) for part, c in enumerate(nominal)]
        stages.append(replace(stage, carry=Row(x=late[0], m={k: late[1], **({k - 1: late[2]} if three[0] else {})})))
    hook = NoiseFollower(tuple(stages), choices, moves)
    return plan.with_stages(stages, hooks=(*plan.hooks, hook))


def _truncated(levels: Levels, node: Node) -> int:
    """The published centre: the training time just below the node."""
    label = float(levels.frame.time.model_time(node.t))
    return max(0, int(label + 1e-6))


def _agree(row: Row, k: int, nominal: tuple[float, float, float]) -> bool:
    own = (row.x, row.m.get(k, 0.0), row.m.get(k - 1, 0.0))
    return all(math.isclose(float(a), float(b), rel_tol=1e-9, abs_tol=1e-12) for a, b in zip(own, nominal, strict=True))
