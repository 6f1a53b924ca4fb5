"""LoRAs as additions while the network runs: ``y = f(x) + k up(down(x))``, k another number in every step.

No weight is rebuilt, so a change of strength costs nothing and quantised weights stay as they are; each layer costs two
small products more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional

from ..errors import AdapterError
from .lowrank import Patch
from .strength import boundaries
from .targets import Slice

_CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


def can_be_added(patches: Iterable[Patch]) -> bool:
    """Whether every patch is a plain low-rank one, which needs no rebuilt weights."""
    return all(
        p.kind == "lora" and p.function is None and p.key.endswith(".weight") and (p.part is None or p.part[0] == 0)
        and not {"lora_mid.weight", "dora_scale", "reshape_weight"} & set(p.tensors) for p in patches
    )


class ForwardAdditions(torch.nn.Module):
    """Low-rank additions to a network's layers, with a strength for every step.

    Args:
        patches: for which ``can_be_added`` is true.
        strengths: one per step.
        sigmas: the levels of the run, one more than steps; an evaluation between two of them belongs to the nearer step.
        prefix: what the patches' keys have before the network's own names.

    Raises:
        AdapterError: a patch that needs rebuilt weights.
    """

    def __init__(
        self, patches: Sequence[Patch], strengths: Sequence[float], sigmas: Sequence[float], prefix: str = "diffusion_model."
    ) -> None:
        super().__init__()
        if not can_be_added(patches):
            raise AdapterError("this file changes whole weights, not by low-rank additions: let the weights be rebuilt")
        self.places: list[tuple[str, Slice | None, float]] = []
        self.downs, self.ups = torch.nn.ParameterList(), torch.nn.ParameterList()
        for patch in patches:
            down, up = patch.tensors["lora_down.weight"], patch.tensors["lora_up.weight"]
            factor = float(patch.tensors["alpha"]) / down.shape[0]
            self.places.append((patch.key.removeprefix(prefix).removesuffix(".weight"), patch.part, factor))
            self.downs.append(torch.nn.Parameter(down, requires_grad=False))
            self.ups.append(torch.nn.Parameter(up, requires_grad=False))
        self.strengths: torch.Tensor
        self.boundaries: torch.Tensor
        self.register_buffer("strengths", torch.tensor(strengths, dtype=torch.float32))
        self.register_buffer("boundaries", torch.tensor(boundaries(sigmas), dtype=torch.float32))

    def strength_at(self, sigma: torch.Tensor) -> torch.Tensor:
        """The strength [] of the step that ``sigma`` [B] belongs to, without reading the device."""
        index = (self.boundaries.to(sigma.device) >= sigma.flatten()[:1]).sum().reshape(1)
        return self.strengths.to(sigma.device).index_select(0, index)[0]

    @contextmanager
    def attached(self, network: torch.nn.Module, sigma: torch.Tensor) -> Iterator[None]:
        """The layers of ``network`` with their additions, for one evaluation at ``sigma`` [B].

        Raises AdapterError where the network has no such layer.
        """
        strength = self.strength_at(sigma)
        modules = dict(network.named_modules())
        handles = []
        try:
            for (name, part, factor), down, up in zip(self.places, self.downs, self.ups, strict=True):
                layer = modules.get(name)
                if layer is None:
                    raise AdapterError(f"the running network has no layer {name!r}: another node has replaced it")
                handles.append(layer.register_forward_hook(_Addition(down, up, part, factor, strength)))
            yield
        finally:
            for handle in handles:
                handle.remove()


def up_of_down(layer: Any, x: torch.Tensor, down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """up(down(x)) of a linear or convolution ``layer``: what the weight ``up @ down`` would add to its output."""
    spatial = down.ndim - 2
    if spatial == 0:
        return functional.linear(functional.linear(x, down), up.flatten(1))
    convolve = _CONVOLUTIONS[spatial]
    inner = convolve(x, down, None, layer.stride, layer.padding, layer.dilation, layer.groups)
    return convolve(inner, up.reshape(*up.shape[:2], *(1,) * spatial))


class _Addition:
    """A forward hook that adds one layer's change to its output."""

    def __init__(
        self, down: torch.Tensor, up: torch.Tensor, part: Slice | None, factor: float, strength: torch.Tensor
    ) -> None:
        self.down, self.up, self.part, self.factor, self.strength = down, up, part, factor, strength

    def __call__(self, layer: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        x = inputs[0]
        change = up_of_down(layer, x, self.down.to(x.device, x.dtype), self.up.to(x.device, x.dtype))
        change = change * self.strength.to(change.dtype)
        if self.part is None:
            return torch.add(output, change, alpha=self.factor)
        axis = output.ndim - 1 if self.down.ndim == 2 else 1
        result = output.clone()
        result.narrow(axis, self.part[1], self.part[2]).add_(change, alpha=self.factor)
        return result
