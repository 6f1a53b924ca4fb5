"""Rows whose coefficients are looked up by a choice that a hook makes from the data while the plan runs.

What is looked up is computed when a run begins, not with the plan: there can be thousands of rows to make, and a plan that is
only drawn needs none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Generic, TypeVar, overload

import torch

from ..grids import Node
from ..lincomb import accumulation_dtype
from ..plan import Late, Memory, Row

T = TypeVar("T")


class Deferred(Sequence[T], Generic[T]):
    """A sequence that ``make`` gives when it is first looked at."""

    def __init__(self, make: Callable[[], Sequence[T]]) -> None:
        self._make = make

    @cached_property
    def made(self) -> Sequence[T]:
        """What was made."""
        return self._make()

    def __len__(self) -> int:
        return len(self.made)

    @overload
    def __getitem__(self, k: int) -> T: ...
    @overload
    def __getitem__(self, k: slice) -> Sequence[T]: ...
    def __getitem__(self, k: int | slice) -> T | Sequence[T]:
        return self.made[k]


def gather(values: Sequence[float], index: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """``values[index]`` [B, 1, ...] in the precision in which rows of ``like`` are summed; no host read."""
    table = torch.tensor(list(values), dtype=accumulation_dtype(like.dtype)).to(like.device, non_blocking=True)
    return table[index].reshape(-1, *(1,) * (like.ndim - 1))


def power(node: Node) -> float:
    """The variance alpha^2 + sigma^2 of a state of unit-variance data: what a state is divided by to be variance preserving."""
    return node.alpha**2 + node.sigma**2


@dataclass(frozen=True, eq=False)
class Choice:
    """A choice among training times, by the variance of a state.

    Attributes:
        key: where the chosen numbers [B] are kept in the run's memory.
        nominal: the node that the candidates stand for.
        candidates: from least to most noise.
        measured: the node to which the measured state belongs.
    """

    key: Any
    nominal: Node
    candidates: Sequence[Node]
    measured: Node

    def choose(self, x: torch.Tensor, memory: Memory) -> torch.Tensor:
        """The candidate whose noise variance is nearest to the state's variance, per sample [B] (paper, eq. 7)."""
        wide = accumulation_dtype(x.dtype)
        variance = x.to(wide).flatten(1).var(dim=1) / power(self.measured)
        levels = torch.tensor([c.sigma**2 / power(c) for c in self.candidates], dtype=wide).to(x.device, non_blocking=True)
        memory[self.key] = (variance[:, None] - levels).abs().argmin(dim=1)
        chosen: torch.Tensor = memory[self.key]
        return chosen

    @property
    def scales(self) -> list[float]:
        """What a state at the nominal node is multiplied by to be the same state at each candidate."""
        return [(power(c) / power(self.nominal)) ** 0.5 for c in self.candidates]


@dataclass(frozen=True, eq=False)
class Lookup(Late):
    """The coefficient of the chosen candidate."""

    nominal: float
    values: Sequence[float]
    key: Any

    def value(self, memory: Memory, like: torch.Tensor) -> torch.Tensor:
        """See ``Late``."""
        return gather(self.values, memory[self.key], like)


def looked_up(base: Row, example: Row, rows: Sequence[Row], key: Any) -> Row:
    """One row from those of the candidates. Tensor coefficients are not for this.

    Args:
        base: gives the nominal coefficients.
        example: one candidate's row: it and ``base`` tell which terms there are.
        rows: of all candidates; not looked at before the run.
    """
    def late(pick: Any) -> Any:
        present = any(float(pick(row)) for row in (base, example))
        return Lookup(float(pick(base)), Deferred(lambda: [float(pick(row)) for row in rows]), key) if present else 0.0

    outputs = sorted({j for row in (base, example) for j in row.m})
    noise = base.noise and replace(
        base.noise, coefficient=late(lambda row: row.noise.coefficient if row.noise else 0.0)
    )
    return Row(
        x=late(lambda row: row.x), m={j: late(lambda row, j=j: row.m.get(j, 0.0)) for j in outputs},
        x_T=late(lambda row: row.x_T), noise=noise,
    )


def scaled(row: Row, state: float = 1.0, whole: float = 1.0) -> Row:
    """The row with its state first multiplied by ``state``, and its result by ``whole``."""
    noise = row.noise and replace(row.noise, coefficient=float(row.noise.coefficient) * whole)
    return Row(
        x=float(row.x) * state * whole, m={j: float(c) * whole for j, c in row.m.items()}, x_T=float(row.x_T) * whole,
        noise=noise,
    )


def same(a: Row, b: Row) -> bool:
    """Whether two rows have the same numbers."""
    noise = [float(r.noise.coefficient) if r.noise else 0.0 for r in (a, b)]
    return (float(a.x), float(a.x_T), noise[0]) == (float(b.x), float(b.x_T), noise[1]) and {
        j: float(c) for j, c in a.m.items()} == {j: float(c) for j, c in b.m.items()}
