"""The one hot operation: ``y = sum_i c_i * x_i``, for one row or for several rows in order.

Coefficients are Python floats, or tensors that broadcast over the state. States of 16 bits are accumulated in float32,
others in their own precision. On CUDA all rows of a call are one Triton kernel (see ``kernels``), on the CPU one pass in
machine code where Numba is installed (see ``kernels_cpu``); elsewhere a row is a chain of torch operations in place, which
nothing that torch alone can do on the CPU is faster than (``docs/results.md``). Rows that come again on the same
memory of a GPU can be one launch (see ``graphs``). No operation here reads a tensor on the host.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple

import torch

from .graphs import graphs_for

Term = tuple[float | torch.Tensor, torch.Tensor]
Flag = torch.Tensor | list[float]  # a float32 scalar on the device; on the CPU a plain number costs less
Watch = tuple[torch.Tensor, Flag]
CPU_LEAST, CPU_ONE_THREAD = 1 << 14, 1 << 17  # elements of a state, see cpu_kernels_for
CPU_BLOCK = 1 << 16  # elements of a 16-bit state widened at a time: the float32 scratch stays in a core's cache
log = logging.getLogger("fewstep")


class Sum(NamedTuple):
    """One row: ``out = sum of coefficient * tensor over terms + offset``. ``out`` may be one of the terms' tensors."""

    terms: Sequence[Term]
    out: torch.Tensor
    offset: torch.Tensor | None = None


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The precision in which rows are summed: float64 for float64 states, float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def place(coefficient: float | torch.Tensor, like: torch.Tensor) -> float | torch.Tensor:
    """A coefficient ready for arithmetic with ``like``: tensors are moved to its device and accumulation precision."""
    if isinstance(coefficient, torch.Tensor):
        return coefficient.to(like.device, accumulation_dtype(like.dtype), non_blocking=True)
    return coefficient


@cache
def kernel_module(name: str) -> Any:
    """The module of this package, imported when first needed, or None where its compiler is missing or does not load."""
    try:
        return importlib.import_module(f".{name}", __package__)
    except Exception:  # half-installed, or unlike this Python or numpy: many kinds of error; torch's operations do the same work
        return None


def kernels_for(like: torch.Tensor) -> Any:
    """The Triton kernels where they can serve states like this one, else None: CUDA itself, not ROCm, up to 32 bits."""
    if not like.is_cuda or torch.version.hip is not None or like.dtype == torch.float64:
        return None
    return kernel_module("kernels") if _triton_serves(like.device) else None


@cache
def _triton_serves(device: torch.device) -> bool:
    """Whether Triton can compile for the device and launch there: that takes compute capability 7.0 and a C compiler."""
    kernels, x = kernel_module("kernels"), torch.ones(1, device=device)
    try:
        return kernels is not None and kernels.combine([Sum([(1.0, x)], x)])
    except Exception as error:
        log.warning("Triton does not work on %s, steps are computed by torch's own operations: %s", device, error)
        return False


def compiled_for(device: torch.device, numel: int, name: str) -> Any:
    """The module of this package that Numba compiles, or None where it is missing or loading it for ``numel`` does not pay."""
    return kernel_module(name) if device.type == "cpu" and numel >= CPU_LEAST else None


def cpu_kernels_for(like: torch.Tensor) -> Any:
    """What makes the kernels for the CPU where they can serve states like this one, else None.

    Where torch has several threads, its own operations are faster on large states.
    """
    numel = like.numel()
    if like.dtype != torch.float32 or (numel > CPU_ONE_THREAD and torch.get_num_threads() > 1):
        return None
    module = compiled_for(like.device, numel, "kernels_cpu")
    return None if module is None else module.Rows


class Combiner:
    """Sums rows for one run; owns the float32 scratch that 16-bit states need, so that no row allocates it anew.

    Attributes:
        fused: whether several rows in one call cost less than one after another.
    """

    def __init__(self, like: torch.Tensor) -> None:
        self._narrow = accumulation_dtype(like.dtype) != like.dtype
        self._scratch: torch.Tensor | None = None
        rows = cpu_kernels_for(like)
        self._kernels = kernels_for(like) if rows is None else rows()
        self.fused = self._kernels is not None
        self._graphs = graphs_for(like)

    def __call__(self, terms: Sequence[Term], out: torch.Tensor, offset: torch.Tensor | None = None) -> torch.Tensor:
        """Writes one sum into ``out`` and returns it.

        Args:
            terms: (coefficient, tensor) pairs; all tensors of one shape, dtype and device.
            out: where the sum goes; its old content is only read if it is a term.
            offset: an additive constant that broadcasts.
        """
        self.rows([Sum(terms, out, offset)])
        return out

    def rows(self, rows: Sequence[Sum], watch: Watch | None = None) -> bool:
        """Computes ``rows`` in order; a row may read what an earlier one wrote.

        Args:
            watch: (tensor, flag): a kernel also leaves NaN in ``flag`` if the tensor holds NaN or infinity.

        Returns:
            Whether ``watch`` was done.
        """
        if self._graphs is not None and (self._scratch is not None or not self._narrow):  # a recording must not make the scratch
            tensors = [x for x in (self._scratch, *(watch or ())) if isinstance(x, torch.Tensor)]
            return self._graphs.run(rows, tensors, self._kernels is None, lambda: self._compute(rows, watch))
        return self._compute(rows, watch)

    def _compute(self, rows: Sequence[Sum], watch: Watch | None) -> bool:
        kernels = None if torch.is_grad_enabled() and _needs_gradients(rows) else self._kernels
        if kernels is not None and kernels.combine(rows, watch):
            return watch is not None
        for row in rows:
            if kernels is None or (len(rows) == 1 and watch is None) or not kernels.combine([row]):
                (self._widened if self._narrow else _chain)(*row)
        return False

    def _widened(self, terms: Sequence[Term], out: torch.Tensor, offset: torch.Tensor | None) -> None:
        """A row of a 16-bit state, summed in float32: on the CPU block by block where the tensors are plain lists of numbers."""
        plain = offset is None and not any(isinstance(c, torch.Tensor) for c, _ in terms)
        if not (out.device.type == "cpu" and plain and out.is_contiguous() and all(x.is_contiguous() for _, x in terms)):
            if self._scratch is None or self._scratch.shape != out.shape:
                self._scratch = torch.empty_like(out, dtype=torch.float32)
            out.copy_(_chain(terms, self._scratch, offset))
            return
        if self._scratch is None or self._scratch.ndim != 1:
            self._scratch = torch.empty(min(CPU_BLOCK, out.numel()), dtype=torch.float32)
        flat = [(c, x.view(-1)) for c, x in terms]
        for i in range(0, out.numel(), CPU_BLOCK):
            target = out.view(-1)[i : i + CPU_BLOCK]
            total = self._scratch.view(-1)[: len(target)]
            target.copy_(_chain([(c, x[i : i + CPU_BLOCK]) for c, x in flat], total, None))


def _needs_gradients(rows: Sequence[Sum]) -> bool:
    for row in rows:
        for _, x in row.terms:
            if x.requires_grad:
                return True
    return False


def _chain(terms: Sequence[Term], total: torch.Tensor, offset: torch.Tensor | None) -> torch.Tensor:
    """The row as operations on ``total``, which is in accumulation precision."""
    rest = list(terms)
    if rest:
        # a term that lives in the target must be read before the target is written
        first = 0 if terms[0][1] is total else next((i for i, (_, t) in enumerate(terms) if t is total), 0)
        c, x = rest.pop(first)
        alike = x.dtype == total.dtype
        if alike and not isinstance(c, torch.Tensor) and c != 1.0 and (weights := _mean_weights(c, *(c for c, _ in rest))):
            for (_, m), w in zip(rest, weights, strict=True):
                x = torch.lerp(x, m, w, out=total)
            rest = []
        elif isinstance(c, torch.Tensor) or c != 1.0:
            if x is not total and not alike:  # widen first: a product of 16-bit numbers would be rounded to 16 bits
                x = total.copy_(x)
            torch.mul(x, place(c, x), out=total)
        elif x is not total and alike and rest and not isinstance(rest[0][0], torch.Tensor):
            torch.add(x, rest[0][1], alpha=rest[0][0], out=total)
            del rest[0]
        elif x is not total:
            total.copy_(x)
    else:
        total.zero_()
    for c, x in rest:
        if isinstance(c, torch.Tensor):
            total.addcmul_(x.to(total.dtype), place(c, x).expand_as(total))  # type: ignore[union-attr]
        else:
            total.add_(x, alpha=c)
    if offset is not None:
        total.add_(place(offset, total))  # type: ignore[arg-type]
    return total


def _mean_weights(*coefficients: float | torch.Tensor) -> tuple[float, ...]:
    """The weights with which terms whose coefficients sum to 1 are averaged one after another, else nothing.

    Such are the rows of data-predicting methods wherever alpha or alpha + sigma is 1. One operation less than a product
    and sums, and as exact: a weight near 1, whose rounding would weigh on the terms before it, is refused.
    """
    for c in coefficients:
        if isinstance(c, torch.Tensor):
            return ()
    return _weights(coefficients)  # type: ignore[arg-type]


@lru_cache(maxsize=4096)  # a plan's rows come back in every run
def _weights(coefficients: tuple[float, ...]) -> tuple[float, ...]:
    total, weights = coefficients[0], []
    for c in coefficients[1:]:
        before, total = total, total + c
        if abs(total) < 1e-3 or abs(before) < 0.25 * abs(total):
            return ()
        weights.append(c / total)
    return tuple(weights) if abs(total - 1.0) < 2e-15 else ()
