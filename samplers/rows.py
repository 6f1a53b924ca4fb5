"""Rows of a plan: linear combinations of the state, stored outputs, the start, noise and a constant. See ``plan``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from .errors import PlanError

if TYPE_CHECKING:
    from .grids import Node

Memory = dict[Any, Any]  # what the hooks of one run keep in it


class Late:
    """A coefficient that is known only while the plan runs: one number per sample, from what a hook left in the run's memory.

    Attributes:
        nominal: its value where the data change nothing; tables, plots and facts show it, ``float()`` gives it.
    """

    nominal: float

    def __float__(self) -> float:
        return self.nominal

    def value(self, memory: Memory, like: torch.Tensor) -> torch.Tensor:
        """The coefficients [B, 1, ...] for a state ``like`` [B, ...], on its device."""
        raise NotImplementedError


Coefficient = float | torch.Tensor | Late  # a tensor broadcasts over one sample: [C, 1, 1], [C, H, W], ...


@dataclass(frozen=True)
class NoiseTerm:
    """``coefficient * xi`` with xi the unit-variance increment of a Brownian path from ``start`` to ``stop``.

    The path's clock is ``u = sigma/(alpha + sigma)``, from 1 (noise) down to 0 (data): the same in every frame.
    """

    coefficient: float | Late
    start: float
    stop: float

    @staticmethod
    def between(coefficient: float, source: Node, target: Node) -> NoiseTerm:
        """The increment over the step from node ``source`` to node ``target``."""
        return NoiseTerm(
            coefficient, source.sigma / (source.sigma + source.alpha), target.sigma / (target.sigma + target.alpha)
        )


@dataclass(frozen=True, eq=False)
class Row:
    """One linear combination: ``x*X + sum_j m[j]*M_j + x_T*x_T + noise + offset``. Terms left out are zero."""

    x: Coefficient = 0.0
    m: Mapping[int, Coefficient] = field(default_factory=dict)
    x_T: Coefficient = 0.0
    noise: NoiseTerm | None = None
    offset: torch.Tensor | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "m", {j: c for j, c in self.m.items() if not is_zero(c)})
        if self.noise is not None and self.noise.coefficient == 0:
            object.__setattr__(self, "noise", None)
        for c in (self.x, self.x_T, *self.m.values(), *([] if self.offset is None else [self.offset])):
            check_coefficient(c)
        if self.noise is not None and not math.isfinite(float(self.noise.coefficient)):
            raise PlanError(f"a noise coefficient is {self.noise.coefficient!r}")

    @cached_property
    def is_identity(self) -> bool:
        """Whether the row is just X."""
        return is_one(self.x) and not self.m and is_zero(self.x_T) and self.noise is None and self.offset is None

    @cached_property
    def has_numbers(self) -> bool:
        """Whether every coefficient is a number."""
        return all(isinstance(c, (int, float)) for c in self.coefficients())

    @cached_property
    def reads_x(self) -> bool:
        """Whether the carried state enters."""
        return not is_zero(self.x)

    @cached_property
    def reads_start(self) -> bool:
        """Whether the initial state enters."""
        return not is_zero(self.x_T)

    def coefficients(self) -> Iterator[Coefficient]:
        """Every coefficient that is there, the noise's included."""
        yield from (self.x, self.x_T, *self.m.values())
        if self.noise is not None:
            yield self.noise.coefficient

    def tensors(self) -> Iterator[torch.Tensor]:
        """The tensor-valued coefficients."""
        values = (self.x, self.x_T, *self.m.values(), self.offset)
        return (c for c in values if isinstance(c, torch.Tensor))


def is_zero(c: Any) -> bool:
    """Whether a coefficient is the number 0."""
    return not isinstance(c, torch.Tensor) and c == 0


def is_one(c: Any) -> bool:
    """Whether a coefficient is the number 1."""
    return not isinstance(c, torch.Tensor) and c == 1


def check_coefficient(c: Any) -> None:
    """Raises PlanError unless ``c`` is a finite number or a tensor of them."""
    if isinstance(c, torch.Tensor):
        if not c.is_floating_point() or not bool(torch.isfinite(c).all()):
            raise PlanError("a tensor coefficient is not floating point or holds NaN or infinity")
    elif not isinstance(c, (float, Late)) and not (isinstance(c, int) and not isinstance(c, bool)):
        raise PlanError(f"a coefficient is {type(c).__name__} {c!r}, expected a Python float or a tensor")
    elif not math.isfinite(float(c)):
        raise PlanError(f"a coefficient is {float(c)!r}: the step is degenerate for this solver and grid")


IDENTITY = Row(x=1.0)
