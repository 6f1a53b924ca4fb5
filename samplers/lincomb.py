"""The one hot operation: ``y = sum_i c_i * x_i``.

Coefficients are Python floats, or tensors that broadcast over one sample. States of 16 bits are accumulated in float32,
others in their own precision. No operation here reads a tensor on the host.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

Term = tuple[float | torch.Tensor, torch.Tensor]


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The precision in which rows are summed: float64 for float64 states, float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def place(coefficient: float | torch.Tensor, like: torch.Tensor) -> float | torch.Tensor:
    """A coefficient ready for arithmetic with ``like``: tensors are moved to its device and accumulation precision."""
    if isinstance(coefficient, torch.Tensor):
        return coefficient.to(like.device, accumulation_dtype(like.dtype), non_blocking=True)
    return coefficient


class Combiner:
    """Sums rows for one run; owns the float32 scratch that 16-bit states need, so that no row allocates it anew."""

    def __init__(self, like: torch.Tensor) -> None:
        wide = accumulation_dtype(like.dtype)
        self._scratch = None if wide == like.dtype else torch.empty_like(like, dtype=wide)

    def __call__(self, terms: Sequence[Term], out: torch.Tensor, offset: torch.Tensor | None = None) -> torch.Tensor:
        """Writes the sum into ``out`` and returns it. ``out`` may be one of the terms' tensors.

        Args:
            terms: (coefficient, tensor) pairs; all tensors of one shape, dtype and device.
            out: where the sum goes; its old content is only read if it is a term.
            offset: an additive constant that broadcasts.
        """
        total = out if self._scratch is None else self._scratch
        # a term that lives in the target must be read before the target is written
        ordered = sorted(terms, key=lambda term: term[1] is not total)
        if not ordered:
            total.zero_()
        for i, (c, x) in enumerate(ordered):
            c = place(c, x)
            if i == 0:
                if total is x:
                    total.mul_(c)
                elif x.dtype == total.dtype:
                    torch.mul(x, c, out=total)
                else:  # widen first: a product of 16-bit numbers would be rounded to 16 bits
                    total.copy_(x).mul_(c)
            elif isinstance(c, torch.Tensor):
                total.addcmul_(x.to(total.dtype), c.expand_as(total))
            else:
                total.add_(x, alpha=c)
        if offset is not None:
            total.add_(place(offset, total))  # type: ignore[arg-type]
        if total is not out:
            out.copy_(total)
        return out
