"""Launches, host reads and new tensors of a sampling loop, counted by torch's dispatcher."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from ..samplers import lincomb
from .loops import STEPS, Loop

READS = ("aten._local_scalar_dense.default", "aten.is_nonzero.default", "aten.equal.default")


class Counts(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations that touch a tensor of at least ``numel`` elements, the others, host reads, and new storages."""

    def __init__(self, numel: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.numel, self.large, self.small, self.reads = numel, 0, 0, 0
        self.made: set[StorageWeakRef] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if str(func) in READS:
            self.reads += 1
        elif not func.is_view and "empty" not in str(func) and "detach" not in str(func):
            tensors = [t for t in (*args, out) if isinstance(t, torch.Tensor)]
            if any(t.numel() >= self.numel for t in tensors):
                self.large += 1
            else:
                self.small += 1
        if isinstance(out, torch.Tensor) and out.numel() >= self.numel and not func.is_view:
            self.made.add(StorageWeakRef(out.untyped_storage()))  # type: ignore[no-untyped-call]
        return out


@contextmanager
def _counted_kernels(counts: Counts, x: torch.Tensor) -> Iterator[None]:
    """What a kernel computes in one call counts as one operation: torch's dispatcher does not see it."""
    noise = lincomb.compiled_for(x.device, x[0].numel(), "normals_cpu")
    with ExitStack() as stack:
        for owner, name in ((lincomb.kernels_for(x) or lincomb.cpu_kernels_for(x), "combine"), (noise, "fill")):
            if owner is not None:
                stack.enter_context(mock.patch.object(owner, name, _counted(counts, getattr(owner, name))))
        yield


def _counted(counts: Counts, kernel: Callable[..., Any]) -> Callable[..., Any]:
    def counted(*args: Any) -> Any:
        done = kernel(*args)
        counts.large += done is not False  # left to torch's operations, which are counted
        return done

    return counted


def count(loop: Loop, x: torch.Tensor) -> dict[str, float]:
    """Per step: operations on states, on scalars, host reads, tensors made of the state's size (those kept in mind)."""
    loop.setup()
    with Counts(x.numel()) as counts, _counted_kernels(counts, x):
        loop.run()
    return {
        "large_ops": counts.large / STEPS, "small_ops": counts.small / STEPS, "host_reads": counts.reads / STEPS,
        "new_states": len(counts.made) / STEPS,
    }
