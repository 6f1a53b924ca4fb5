"""Gradients in hosts that run nodes in inference mode, whose tensors autograd refuses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def own_tensors(network: Any) -> Iterator[None]:
    """Replaces parameters and buffers that are inference tensors by plain copies, and puts them back at the end."""
    import torch

    replaced: list[tuple[dict[str, Any], str, Any]] = []
    try:
        with torch.inference_mode(False):
            for module in network.modules():
                for store in (module._parameters, module._buffers):
                    for name, tensor in store.items():
                        if tensor is not None and tensor.is_inference():
                            replaced.append((store, name, tensor))
                            copy = tensor.clone()
                            store[name] = torch.nn.Parameter(copy, False) if store is module._parameters else copy
        yield
    finally:
        for store, name, tensor in replaced:
            store[name] = tensor
