"""What an adapter can change: the weights of a network under the names by which adapter files call its modules.

A target is the key of a weight, ``(key, (dim, start, length))`` for a part of a fused weight (query, key and value in one),
or ``(key, slice or None, function)`` where the host rearranges the change before it is added.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from .names import flat, is_text, module_of, text_names

Slice = tuple[int, int, int]
Target = Any  # str, (str, Slice), or (str, Slice | None, function)
Shape = tuple[int, ...]


def _unchanged(tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    return tensors


@dataclass(frozen=True)
class Targets:
    """What a host knows of a network.

    Attributes:
        names: from the host's names of modules (its LoRA key map) to targets.
        shapes: shape of every weight by key.
        base: gives a base weight in float32 by key, without anybody's patches.
        dtypes: dtype of every weight by key.
        renamed: the host's own conversion of whole files, applied before the names are looked at.
    """

    names: Mapping[str, Target]
    shapes: Mapping[str, Shape]
    base: Callable[[str], torch.Tensor]
    dtypes: Mapping[str, torch.dtype] = field(default_factory=dict)
    renamed: Callable[[Mapping[str, torch.Tensor]], Mapping[str, torch.Tensor]] = _unchanged

    @cached_property
    def _by_module(self) -> dict[str, Target | None]:
        """From flat module names, the same in all formats, to targets; None where hosts' names of two weights fall together."""
        found: dict[str, Target | None] = {}
        for name, target in self.names.items():
            module = flat(module_of(name))
            found[module] = target if found.get(module, target) == target else None
        return found

    def find(self, base: str) -> Target | None:
        """The weight of a file's module: by the host's own names first, else by the module's name alone."""
        if base in self.names:
            return self.names[base]
        if is_text(base):
            return next((self.names[name] for name in text_names(base) if name in self.names), None)
        return self._by_module.get(flat(module_of(base)))


def targets_of(network: torch.nn.Module, prefix: str = "diffusion_model.") -> Targets:
    """Targets of a plain torch network; keys are ``prefix`` and the network's own.

    Every weight goes by the host's generic names: ``diffusion_model.a.b`` and ``lora_unet_a_b``.

    >>> sorted(targets_of(torch.nn.Sequential(torch.nn.Linear(2, 3))).names)
    ['diffusion_model.0', 'lora_unet_0']
    """
    state = network.state_dict()
    names: dict[str, Target] = {}
    for key in state:
        if key.endswith(".weight"):
            module = key[: -len(".weight")]
            names[prefix + module] = names["lora_unet_" + module.replace(".", "_")] = prefix + key
        elif not key.endswith(".bias"):
            names[prefix + key] = prefix + key
    return Targets(
        names, {prefix + key: tuple(value.shape) for key, value in state.items()},
        lambda key: state[key[len(prefix):]].detach().float(), {prefix + key: value.dtype for key, value in state.items()},
    )


def key_of(target: Target) -> str:
    """The weight's key."""
    return str(target if isinstance(target, str) else target[0])


def part_of(weight: torch.Tensor, target: Target) -> torch.Tensor:
    """The part of the weight that the target means."""
    return weight if isinstance(target, str) or target[1] is None else weight.narrow(*target[1])


def target_shape(target: Target, shapes: Mapping[str, Shape]) -> Shape | None:
    """Shape of the (part of the) weight, None if there is no such weight or part."""
    shape = shapes.get(key_of(target))
    if shape is None or isinstance(target, str) or target[1] is None:
        return shape
    dim, start, length = target[1]
    if start + length > shape[dim]:  # a host's table for another network
        return None
    return (*shape[:dim], length, *shape[dim + 1 :])


def bias_of(target: Target) -> Target:
    """The bias beside a weight; the same rows of it where the target is a slice of rows."""
    bias = key_of(target).removesuffix(".weight") + ".bias"
    if isinstance(target, str) or (target[1] is not None and target[1][0] != 0):
        return bias
    return (bias, *target[1:])
