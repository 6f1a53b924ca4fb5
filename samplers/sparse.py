"""Stages made all at once, or only where they are looked at: for plans on many grids that differ in one node.

Time shift looks at the rows of one step in each of a thousand plans. A solver gives ``stages_of`` a function that makes the
stages of one step; within ``sparse()`` that is called for the steps that are asked for, and nobody checks the others.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, overload

if TYPE_CHECKING:
    from .plan import Stage

Make = Callable[[int, int], "Sequence[Stage]"]
_sparse: ContextVar[bool] = ContextVar("sparse", default=False)


@contextmanager
def sparse() -> Iterator[None]:
    """Within, plans have ``SparseStages``."""
    token = _sparse.set(True)
    try:
        yield
    finally:
        _sparse.reset(token)


def stages_of(counts: Sequence[int], make: Make) -> Sequence[Stage]:
    """The stages of all steps: a tuple, or within ``sparse()`` a sequence that makes them when they are asked for.

    Args:
        counts: how many stages each step has.
        make: ``make(i, first)`` gives the stages of step ``i``, the first of which is number ``first`` of the plan; what it gives
            depends on nothing else that changes.
    """
    if _sparse.get():
        return SparseStages(counts, make)
    stages: list[Stage] = []
    for i in range(len(counts)):
        stages += make(i, len(stages))
    return tuple(stages)


class SparseStages(Sequence["Stage"]):
    """See ``stages_of``. A step's stages are made once."""

    def __init__(self, counts: Sequence[int], make: Make) -> None:
        self._counts, self._make = counts, make
        self._made: dict[int, Sequence[Stage]] = {}

    @cached_property
    def _firsts(self) -> list[int]:
        return [0, *accumulate(self._counts)]

    def __len__(self) -> int:
        return self._firsts[-1]

    @overload
    def __getitem__(self, k: int) -> Stage: ...
    @overload
    def __getitem__(self, k: slice) -> Sequence[Stage]: ...
    def __getitem__(self, k: int | slice) -> Stage | Sequence[Stage]:
        if isinstance(k, slice):
            return tuple(self[j] for j in range(len(self))[k])
        k = range(len(self))[k]
        step = bisect_right(self._firsts, k) - 1
        first = self._firsts[step]
        if step not in self._made:
            self._made[step] = self._make(step, first)
        return self._made[step][k - first]
