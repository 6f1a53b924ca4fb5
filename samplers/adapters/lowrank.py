"""Patches: what a file adds to one weight, in the words of the host, and the arithmetic of merging it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import AdapterError
from .targets import Shape, Slice, Target, key_of


@dataclass(frozen=True, eq=False)
class Patch:
    """One change of one weight.

    Attributes:
        name: the module's name in the file.
        target: see ``targets``.
        kind: lora, loha, lokr, oft, glora, diff (a change of full size) or set (a new weight).
        tensors: by the host's words for them (``lora_up.weight``, ``alpha``, ``diff`` ...).
    """

    name: str
    target: Target
    kind: str
    tensors: Mapping[str, torch.Tensor]

    @property
    def key(self) -> str:
        """The weight's key."""
        return key_of(self.target)

    @property
    def part(self) -> Slice | None:
        """The part of the weight that is changed, None for all of it."""
        return None if isinstance(self.target, str) else self.target[1]

    @property
    def function(self) -> Callable[[torch.Tensor], torch.Tensor] | None:
        """What the host does to the change before adding it."""
        return self.target[2] if not isinstance(self.target, str) and len(self.target) > 2 else None


def delta_shape(patch: Patch) -> Shape | None:
    """(rows, columns...) that a patch can fill; None for kinds whose size does not follow from two factors."""
    t = patch.tensors
    if patch.kind == "lora":
        down, up = t["lora_down.weight"], t["lora_up.weight"]
        if down.shape[0] != up.flatten(1).shape[1] and "lora_mid.weight" not in t:
            return None
        kernel = t["lora_mid.weight"].shape[2:] if "lora_mid.weight" in t else ()
        return (up.shape[0], math.prod(down.shape[1:]) * math.prod(kernel))
    if patch.kind == "loha" and "hada_t1" not in t:
        return (t["hada_w1_a"].shape[0], t["hada_w1_b"].shape[1])
    if patch.kind in ("diff", "set"):
        return tuple(t["diff" if patch.kind == "diff" else "set_weight"].shape)
    return None


def fits(patch: Patch, shape: Shape) -> bool:
    """Whether the patch's change has the size of the weight; kinds of which that is not known pass."""
    if "reshape_weight" in patch.tensors:
        return True
    if patch.kind in ("lora", "loha"):
        size = delta_shape(patch)
        if size is None:
            return patch.kind == "loha"
        return size[0] == shape[0] and size[1] == math.prod(shape[1:])
    size = delta_shape(patch)
    return size is None or size == tuple(shape)


def delta(patch: Patch) -> torch.Tensor:
    """The change at strength 1 in float32, [out, in * kernel]; raises AdapterError for kinds not computed here."""
    t = {role: tensor.float() for role, tensor in patch.tensors.items()}
    if patch.kind == "lora" and "dora_scale" not in t:
        up, down = t["lora_up.weight"].flatten(1), t["lora_down.weight"].flatten(1)
        if "lora_mid.weight" in t:  # CP form of a convolution: down and up are 1x1, mid has the kernel
            down = torch.einsum("mn...,ni->mi...", t["lora_mid.weight"], down).flatten(1)
        return up @ down * _factor(t, t["lora_down.weight"].shape[0])
    if patch.kind == "loha" and "hada_t1" not in t and "dora_scale" not in t:
        product = (t["hada_w1_a"] @ t["hada_w1_b"]) * (t["hada_w2_a"] @ t["hada_w2_b"])
        return product * _factor(t, t["hada_w1_b"].shape[0])
    if patch.kind == "lokr" and "lokr_t2" not in t and "dora_scale" not in t:
        factors, rank = [], None
        for name in ("lokr_w1", "lokr_w2"):
            if name in t:
                factors.append(t[name])
            else:
                factors.append(t[f"{name}_a"] @ t[f"{name}_b"])
                rank = t[f"{name}_b"].shape[0]
        first, second = factors
        while first.ndim < second.ndim:
            first = first.unsqueeze(-1)
        return torch.kron(first, second).flatten(1) * (1.0 if rank is None else _factor(t, rank))
    if patch.kind == "diff":
        return t["diff"].flatten(1) if t["diff"].ndim > 1 else t["diff"]
    raise AdapterError(
        f"{patch.name}: {patch.kind}{' with DoRA' if 'dora_scale' in t else ''} is merged by ComfyUI's weight adapters only; "
        "load this file in ComfyUI"
    )


def _factor(tensors: Mapping[str, torch.Tensor], rank: int) -> float:
    return float(tensors["alpha"]) / rank if "alpha" in tensors else 1.0


def merge(weight: torch.Tensor, patches: Iterable[tuple[Patch, float]]) -> torch.Tensor:
    """A copy of ``weight`` in its dtype with the patches at their strengths merged into it, computed in float32."""
    merged = weight.detach().float().clone()
    for patch, strength in patches:
        region = merged if patch.part is None else merged.narrow(*patch.part)
        if patch.kind == "set":
            region.copy_(patch.tensors["set_weight"])
        elif strength != 0:
            change = (strength * delta(patch)).reshape(region.shape)
            region += change if patch.function is None else patch.function(change)
    return merged.to(weight.dtype)


def rounds(patches: Iterable[Patch]) -> list[list[Patch]]:
    """The patches in groups in which every target occurs once: hosts keep one patch per target in a dictionary."""
    groups: list[list[Patch]] = []
    count: dict[Any, int] = {}
    for patch in patches:
        identity = patch.target if isinstance(patch.target, str) else tuple(patch.target[:2])
        place = count.get(identity, 0)
        count[identity] = place + 1
        if place == len(groups):
            groups.append([])
        groups[place].append(patch)
    return groups
