"""The hook behind time shift: it chooses training times from the states, and evaluates the model where the choice says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ..engine import Denoiser
from ..grids import Node
from ..hooks import Hook
from ..plan import IDENTITY, Memory, Row, Stage
from ..predictions import coefficients
from .late_rows import Choice, Lookup, gather


@dataclass(frozen=True, eq=False)
class Move:
    """Where one stage is evaluated instead of at its node.

    Attributes:
        key: of the choice.
        nodes: by candidate.
        scales: what the state is multiplied by first, by candidate; None where its row has done so.
        keep_eps: the noise prediction found there counts at the stage's own node; else what the stage stores.
        stores: (p, q) of row 3 at each candidate, where the stage stores a mix.
    """

    key: Any
    nodes: Sequence[Node]
    scales: Sequence[float] | None
    keep_eps: bool
    stores: Sequence[tuple[Any, Any]] = ()

    def evaluate(
        self, stage: Stage, y: torch.Tensor, sigma: torch.Tensor, denoiser: Denoiser, memory: Memory
    ) -> torch.Tensor:
        """The x_0 prediction that, stored at the stage's own node, is what was found at the chosen one."""
        index = memory[self.key]
        told = y if self.scales is None else (y * gather(self.scales, index, y)).to(y.dtype)
        level = gather([n.sigma for n in self.nodes], index, y)
        found = denoiser(told, level.flatten().to(sigma.dtype))
        kind = "eps" if self.keep_eps else stage.kind
        if stage.mix is not None and not self.keep_eps:
            (p, q), there = stage.store, self.stores
        elif kind == "x_0":
            return found
        else:
            p, q = coefficients(kind, stage.node.alpha, stage.node.sigma)
            there = [coefficients(kind, n.alpha, n.sigma) for n in self.nodes]
        p_c, q_c = (gather([pair[i] for pair in there], index, y) for i in (0, 1))
        brought_back: torch.Tensor = (p_c * told + q_c * found - p * y) / q
        return brought_back.to(y.dtype)


@dataclass(frozen=True, eq=False)
class TimeShiftHook(Hook):
    """Chooses and moves, by stage number.

    Attributes:
        stages: of the plan, to know a stage by.
        before: choices made from the state that a stage is to evaluate, before it does.
        after: choices made from the carried state after a stage's last row.
        moves: stages that are evaluated elsewhere.
        final: the plan's last row.
    """

    stages: tuple[Stage, ...]
    before: Mapping[int, Choice]
    after: Mapping[int, Choice]
    moves: Mapping[int, Move]
    final: Row = IDENTITY
    memory: Memory = field(default_factory=dict)

    latents = 2  # the state at the chosen time, and the prediction before it is brought back

    def begin(self, memory: Memory) -> Hook:
        """See ``Hook``; makes what has been deferred."""
        rows = [self.final, *(row for stage in self.stages for row in (stage.predict, stage.carry))]
        lookups = [c for row in rows for c in row.coefficients() if isinstance(c, Lookup)]
        moved = [part for move in self.moves.values() for part in (move.nodes, move.stores)]
        for part in (*moved, *(lookup.values for lookup in lookups)):
            len(part)
        return replace(self, memory=memory)

    def evaluate(self, stage: Stage, y: torch.Tensor, sigma: torch.Tensor, denoiser: Denoiser) -> torch.Tensor:
        """See ``Hook``."""
        k = self._number(stage)
        if k in self.before:
            self.before[k].choose(y, self.memory)
        if k not in self.moves:
            return denoiser(y, sigma)
        return self.moves[k].evaluate(stage, y, sigma, denoiser, self.memory)

    def state(self, stage: Stage, x: torch.Tensor) -> torch.Tensor:
        """See ``Hook``; the state is looked at only."""
        k = self._number(stage)
        if k in self.after:
            self.after[k].choose(x, self.memory)
        return x

    def _number(self, stage: Stage) -> int:
        """Which stage of the plan this is; -1 for one that is not (a start transform's evaluation)."""
        return next((k for k, own in enumerate(self.stages) if own is stage), -1)
