"""Plans: a solver as data. See ``docs/mathematics.md`` for the algebra.

With ``X`` the carried state, ``x_T`` the start and ``M_j`` the stored outputs, stage k does

1. predict   ``y   = a*X + sum_{j<k} b_j*M_j + u*x_T + n*xi + g``
2. evaluate  ``D_k = D(y, sigma_k)``
3. store     ``M_k = p*y + q*D_k``
4. carry     ``X  <- c*X + sum_{j<=k} d_j*M_j + e*x_T + m*xi' + g'``

and a last row of the first form gives the result. In numerical analysis this is a general linear method.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch

from .errors import PlanError
from .predictions import coefficients
from .rows import IDENTITY, Coefficient, Late, Memory, NoiseTerm, Row, check_coefficient, is_one, is_zero
from .sparse import SparseStages

if TYPE_CHECKING:
    from .grids import Node
    from .hooks import Hook
    from .recipe import Recipe
    from .start import StartTransform

__all__ = ["IDENTITY", "Coefficient", "Late", "LazyStages", "Memory", "NoiseTerm", "OutputMap", "Plan", "Row", "Stage"]


@dataclass(frozen=True, eq=False)
class Stage:
    """One function evaluation with the rows around it.

    Attributes:
        node: where the denoiser is evaluated; its sigma is what the denoiser is told.
        predict, carry: rows 1 and 4. A carry that *is* the predict row (the same object) is not computed twice.
        kind: what row 3 stores, see ``predictions``; gives its p and q.
        step: index of the solver's step that the stage belongs to, from 0.
        mix: (p, q) of row 3 where it stores something else; ``kind`` is then a word for people.
    """

    node: Node
    carry: Row
    predict: Row = IDENTITY
    kind: str = "x_0"
    step: int = 0
    mix: tuple[Coefficient, Coefficient] | None = None

    @cached_property
    def store(self) -> tuple[Any, Any]:
        """(p, q) of row 3: numbers, or what ``mix`` gives."""
        if self.mix is not None:
            return self.mix
        p, q = coefficients(self.kind, self.node.alpha, self.node.sigma)
        return float(p), float(q)

    @cached_property
    def stores_x_0(self) -> bool:
        """Whether the prediction is stored as it is, without a copy."""
        return is_zero(self.store[0]) and is_one(self.store[1])


class LazyStages(Sequence[Stage]):
    """Stages that are made when they are asked for and not kept: for coefficients as large as a latent.

    Args:
        count: how many.
        make: makes stage k; called once to check the plan, once in every run, and by facts that look at the numbers.
    """

    def __init__(self, count: int, make: Callable[[int], Stage]) -> None:
        self._count, self._make = count, make

    @cached_property
    def outline(self) -> tuple[Stage, ...]:
        """The stages with zeros that take no memory in place of tensor coefficients: who reads what, and the shapes."""
        return tuple(map(_outlined, self))

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, k: int) -> Stage: ...
    @overload
    def __getitem__(self, k: slice) -> Sequence[Stage]: ...
    def __getitem__(self, k: int | slice) -> Stage | Sequence[Stage]:
        return self._make(range(self._count)[k]) if isinstance(k, int) else tuple(map(self._make, range(self._count)[k]))


def _outlined(stage: Stage) -> Stage:
    def stand_in(c: Any) -> Any:
        return c.new_zeros(()).expand(c.shape) if isinstance(c, torch.Tensor) else c

    def row(full: Row) -> Row:
        return replace(
            full, x=stand_in(full.x), m={j: stand_in(c) for j, c in full.m.items()}, x_T=stand_in(full.x_T),
            offset=stand_in(full.offset),
        )

    predict = row(stage.predict)
    carry = predict if stage.carry is stage.predict else row(stage.carry)
    mix = None if stage.mix is None else (stand_in(stage.mix[0]), stand_in(stage.mix[1]))
    return replace(stage, predict=predict, carry=carry, mix=mix)


@dataclass(frozen=True, eq=False)
class OutputMap:
    """What a corrector makes of the stored outputs before the rows read them, folded into the rows by ``fold``.

    Attributes:
        name: the corrector's.
        fold: plan to plan; None in a plan that was read from a file.
        biased: whether another ODE than the model's is solved then, which a run on a constant denoiser cannot show.
    """

    name: str
    fold: Callable[[Plan], Plan] | None = None
    biased: bool = False


@dataclass(frozen=True, eq=False)
class Plan:
    """Stages in order and the row that gives the result; checked when built.

    Attributes:
        stages: a tuple, ``LazyStages``, or ``SparseStages``, which are not checked.
        nodes: the grid's nodes, noise first; the result is a state at the last one.
        hooks: what the engine applies beyond linear rows (see ``hooks``).
        recipe: what the plan was resolved from, or None for a plan made by hand.
        start: what happens to the caller's state before the first stage, or None; then the caller's state belongs to
            ``start.source`` and the first node is ``start.target``.
        maps: output maps that are folded into the rows, the one nearest to the model first.
        unmapped: the plan without them, for correctors that put in rows of their own; None where there are none, or where
            the plan was read from a file.
    """

    stages: Sequence[Stage]
    nodes: tuple[Node, ...]
    final: Row = IDENTITY
    hooks: tuple[Hook, ...] = ()
    recipe: Recipe | None = None
    start: StartTransform | None = None
    maps: tuple[OutputMap, ...] = ()
    unmapped: Plan | None = None

    def __post_init__(self) -> None:
        if isinstance(self.stages, SparseStages):
            return
        if not self.stages:
            raise PlanError("a plan needs at least one stage")
        for k, stage in enumerate(self.outline):
            where = f"stage {k}"
            _check_reads(stage.predict, k, f"{where}, predict")
            _check_reads(stage.carry, k + 1, f"{where}, carry")
            if not (math.isfinite(stage.node.sigma) and stage.node.sigma >= 0):
                raise PlanError(f"{where} evaluates at sigma {stage.node.sigma!r}")
            if stage.mix is not None:
                for c in stage.mix:
                    check_coefficient(c)
            elif not all(math.isfinite(float(c)) for c in stage.store):
                raise PlanError(f"{where} stores {stage.kind} at sigma {stage.node.sigma!r}, where it does not exist")
        _check_reads(self.final, len(self.stages), "the last row")

    # facts, derived once
    @property
    def label(self) -> str:
        """Solver, options and correctors, for people."""
        return self.recipe.label if self.recipe else "plan"

    @cached_property
    def order(self) -> int | None:
        """Order of convergence of the recipe, measured on a small problem (see ``orders``); None where there is none."""
        return self.recipe.order if self.recipe else None

    @property
    def outline(self) -> Sequence[Stage]:
        """The stages, or where they are lazy their outline: for all that does not look at the numbers."""
        return self.stages.outline if isinstance(self.stages, LazyStages) else self.stages

    @property
    def nfe(self) -> int:
        """Number of function evaluations, those of the start transform included."""
        return len(self.stages) + (self.start.nfe if self.start else 0)

    def rows(self) -> Iterator[Row]:
        """Every row in order of execution."""
        for stage in self.stages:
            yield stage.predict
            yield stage.carry
        yield self.final

    @cached_property
    def late(self) -> bool:
        """Whether any coefficient depends on the data (see ``Late``)."""
        return any(isinstance(c, Late) for row in self._outlined_rows() for c in row.coefficients())

    @cached_property
    def has_numbers(self) -> bool:
        """Whether every coefficient is a number, those of the stored outputs too."""
        return all(row.has_numbers for row in self._outlined_rows()) and all(
            isinstance(c, (int, float)) for stage in self.outline for c in stage.mix or ())

    @property
    def stochastic(self) -> bool:
        """Whether any row adds noise."""
        return bool(self.noise_terms)

    @cached_property
    def noise_terms(self) -> list[NoiseTerm]:
        """The draws of noise in order."""
        return [row.noise for row in self._outlined_rows() if row.noise is not None]

    def _outlined_rows(self) -> Iterator[Row]:
        for stage in self.outline:
            yield from (stage.predict, stage.carry)
        yield self.final

    @cached_property
    def biased(self) -> bool:
        """Whether a perfect constant denoiser would *not* give the exact law of the last node (see ``facts.bias``), or an output
        map changes the ODE.
        """
        from .facts import bias

        return any(m.biased for m in self.maps) or bias(self) > 1e-6

    @cached_property
    def peak_latents(self) -> int:
        """Most latent-sized tensors alive at once while the plan runs, the caller's start included; see ``memory``."""
        from .memory import peak_latents

        return peak_latents(self)

    @cached_property
    def last_read(self) -> dict[int, int]:
        """For each stored output the last stage whose rows read it; for the last row the number of stages."""
        last: dict[int, int] = {}
        for k, stage in enumerate(self.outline):
            for j in (*stage.predict.m, *stage.carry.m):
                last[j] = k
        for j in self.final.m:
            last[j] = len(self.stages)
        return last

    @cached_property
    def ends(self) -> dict[int, list[int]]:
        """Outputs that no row reads after stage k, by k."""
        ends: dict[int, list[int]] = {}
        for j in range(len(self.stages)):
            last = self.last_read.get(j, j)
            if last < len(self.stages):
                ends.setdefault(last, []).append(j)
        return ends

    @cached_property
    def start_last_read(self) -> int:
        """The last stage that reads x_T (the number of stages for the last row), or -1."""
        reads = [k for k, s in enumerate(self.outline) if s.predict.reads_start or s.carry.reads_start]
        return len(self.stages) if self.final.reads_start else max(reads, default=-1)

    @cached_property
    def sample_shape(self) -> tuple[int, ...] | None:
        """The shape of one sample that the tensor coefficients broadcast over; None where there are none.

        Raises PlanError if they do not fit each other.
        """
        mixed = (c for stage in self.outline for c in stage.mix or () if isinstance(c, torch.Tensor))
        shapes = {tuple(c.shape) for row in self._outlined_rows() for c in row.tensors()} | {tuple(c.shape) for c in mixed}
        try:
            return np.broadcast_shapes(*shapes) if shapes else None
        except ValueError:
            raise PlanError(f"the tensor coefficients of a plan have shapes {sorted(shapes)}, which do not go together") from None

    def describe(self) -> str:
        """The coefficient table that a paper would print; see ``describe``."""
        from .describe import describe

        return describe(self)

    def with_stages(self, stages: Iterable[Stage], final: Row | None = None, **changes: Any) -> Plan:
        """A copy with other stages (and last row); used by plan transforms."""
        kept = stages if isinstance(stages, SparseStages) else tuple(stages)
        return replace(self, stages=kept, final=self.final if final is None else final, **changes)


def _check_reads(row: Row, stored: int, where: str) -> None:
    bad = [j for j in row.m if not 0 <= j < stored]
    if bad:
        raise PlanError(f"{where} reads output {bad[0]}, but only outputs 0..{stored - 1} are stored by then")
