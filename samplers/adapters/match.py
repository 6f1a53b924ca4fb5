"""From a file's modules to patches of a network's weights, with every key accounted for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ..errors import AdapterError
from . import routed
from .hydra import merged_branches
from .lowrank import Patch, fits
from .modules import Module
from .scale import Scale, Scales
from .targets import Target, Targets, bias_of, key_of, part_of, target_shape

PASSED_ON = {  # kind -> roles handed to the host under their own names
    "loha": ("hada_", "alpha", "dora_scale"), "lokr": ("lokr_", "alpha", "dora_scale"), "oft": ("oft_blocks", "rescale", "alpha"),
    "glora": ("a1.", "a2.", "b1.", "b2.", "alpha", "dora_scale"),
}


@dataclass(frozen=True)
class Routing:
    """How a routed file is to be read: the routing logits by scope and the task."""

    logits: Mapping[str, torch.Tensor]
    names: tuple[str, ...] = ()
    task: str = ""
    allow_unknown: bool = False
    merge_after: bool = False


@dataclass
class Matched:
    """One component's result.

    Attributes:
        patches: what to add, in the file's order.
        scales: of the low-rank modules, by base.
        modules: how many the file has for this component.
        unmatched: bases that the network has no module for.
        incomplete: "base (what is missing)" of half modules.
        misfit: "base: made for ..., the weight is ..." of modules with another size.
        not_finite: keys with NaN or infinity.
        empty: bases whose up weights are all zero.
    """

    patches: list[Patch] = field(default_factory=list)
    scales: dict[str, Scale] = field(default_factory=dict)
    modules: int = 0
    unmatched: list[str] = field(default_factory=list)
    incomplete: list[str] = field(default_factory=list)
    misfit: list[str] = field(default_factory=list)
    not_finite: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)

    @property
    def used(self) -> int:
        """How many modules became patches."""
        return self.modules - len(self.unmatched) - len(self.incomplete) - len(self.misfit)


def match(modules: Iterable[Module], targets: Targets, scales: Scales, routing: Routing) -> Matched:
    """Finds every module's weight and makes its patches.

    Raises AdapterError where two modules of the file change the same weight in the same way, or a Hydra or routed module
    does not fit its layer.
    """
    found, taken, buffer = Matched(), dict[Any, str](), torch.empty(1 << 20)
    for module in modules:
        found.modules += 1
        ends = {role: _extremes(tensor, buffer) for role, tensor in module.tensors.items()}
        found.not_finite += [module.keys[role] for role, pair in ends.items() if not all(map(math.isfinite, pair))]
        if (0.0, 0.0) in (ends.get("lora_up.weight"), ends.get("lora_b")):
            found.empty.append(module.base)
        target = targets.find(module.base)
        if target is None or target_shape(target, targets.shapes) is None:
            found.unmatched.append(module.base)
            continue
        if module.missing:
            found.incomplete.append(f"{module.base} (no {', '.join(module.missing)})")
            continue
        if module.rank is not None:
            found.scales[module.base] = scales.of(module)
        patches = _patches(module, target, targets, found.scales.get(module.base), routing)
        wrong = [p for p in patches if not fits(p, target_shape(p.target, targets.shapes) or ())]
        if wrong:
            weight = list(target_shape(wrong[0].target, targets.shapes) or ())
            found.misfit.append(f"{module.base}: {_size(wrong[0])}, the weight is {weight}")
            continue
        for patch in patches:
            place = (patch.key, patch.part, patch.kind)
            if place in taken:
                raise AdapterError(f"{module.base} and {taken[place]} both change {patch.key}: the file names one module twice")
            taken[place] = module.base
        found.patches += patches
    return found


def _patches(
    module: Module, target: Target, targets: Targets, scale: Scale | None, routing: Routing
) -> list[Patch]:
    name, t, kinds, patches = module.base, module.tensors, module.kinds, list[Patch]()
    if "lora" in kinds:
        assert scale is not None
        roles = ("lora_down.weight", "lora_up.weight", "lora_mid.weight", "reshape_weight", "dora_scale")
        tensors = {role: t[role] for role in roles if role in t}
        if "dora_scale" in tensors and tensors["dora_scale"].ndim == 1:  # PEFT's magnitudes, one for each output
            tensors["dora_scale"] = t["dora_scale"].reshape(-1, *(1,) * (len(target_shape(target, targets.shapes) or (0, 0)) - 1))
        patches.append(_low_rank(name, target, tensors, scale.factor))
    for kind, starts in PASSED_ON.items():
        if kind in kinds:
            tensors = {role: tensor for role, tensor in t.items() if role.startswith(starts)}
            if kind == "loha" and scale is not None:
                tensors["alpha"] = torch.tensor(scale.factor * scale.rank)
            patches.append(Patch(name, target, kind, tensors))
    if "hydra" in kinds:
        patches += _hydra(module, target, targets)
    if "routed" in kinds:
        assert scale is not None
        patches.append(_routed(module, target, targets, scale, routing))
    bias = bias_of(target)
    for role, place, kind in (("diff", target, "diff"), ("w_norm", target, "diff"), ("set_weight", target, "set"),
                              ("diff_b", bias, "diff"), ("b_norm", bias, "diff"), ("up_bias", bias, "diff")):
        if role in t:
            tensor = t[role]
            if role == "up_bias" and scale is not None:  # PEFT's bias is inside the scaled branch
                tensor = tensor.float() * scale.factor
            patches.append(Patch(name, place, kind, {"set_weight" if kind == "set" else "diff": tensor}))
    return patches


def _low_rank(name: str, target: Target, tensors: dict[str, torch.Tensor], factor: float) -> Patch:
    """A LoRA whose whole scale is written as ``alpha``: every host divides that by the rank, and none looks elsewhere."""
    rank = tensors["lora_down.weight"].shape[0]
    return Patch(name, target, "lora", {**tensors, "alpha": torch.tensor(factor * rank, dtype=torch.float64)})


def _hydra(module: Module, target: Target, targets: Targets) -> list[Patch]:
    weight, bias_target = part_of(targets.base(key_of(target)), target), bias_of(target)
    bias_key = key_of(bias_target)
    bias = part_of(targets.base(bias_key), bias_target) if bias_key in targets.shapes else None
    down, up, change = merged_branches(module.tensors, weight, bias, module.base)
    factor = float(module.tensors["alpha"]) if "alpha" in module.tensors else 1.0  # Hydra's s, not divided by a rank
    patches = [_low_rank(module.base, target, {"lora_down.weight": down, "lora_up.weight": up}, factor)]
    if change is not None and bool(change.any()):
        patches.append(Patch(module.base, bias_target, "diff", {"diff": factor * change}))
    return patches


def _routed(module: Module, target: Target, targets: Targets, scale: Scale, routing: Routing) -> Patch:
    a, b = routed.split_pair(module.tensors, module.base)
    shape = target_shape(target, targets.shapes) or ()
    routed.check_sizes(a, b, math.prod(shape[1:]), shape[0], module.base)
    adapters, heads = a.shape[:2]
    logits = routed.logits_for(module.base, routing.logits)
    row = None
    if logits is not None:
        row = routed.task_index(routing.task, routing.names, logits.shape[0], routing.allow_unknown)
    weights = routed.routing_weights(logits, row, heads, adapters, module.base)
    down, up = routed.stack(a, b, weights, module.base) if routing.merge_after else routed.route(a, b, weights)
    return _low_rank(module.base, target, {
        "lora_down.weight": down.reshape(-1, *shape[1:]), "lora_up.weight": up.reshape(*up.shape, *(1,) * (len(shape) - 2)),
    }, scale.factor)


def _extremes(tensor: torch.Tensor, buffer: torch.Tensor) -> tuple[float, float]:
    """(smallest, largest) value, NaN if there is one; read in pieces through ``buffer``, so that no memory is asked for."""
    low, high = (math.inf, -math.inf) if tensor.numel() else (0.0, 0.0)
    flat = tensor.reshape(-1)
    for start in range(0, len(flat), len(buffer)):
        piece = flat[start : start + len(buffer)]
        ends = torch.aminmax(buffer[: len(piece)].copy_(piece))
        a, b = float(ends.min), float(ends.max)
        if math.isnan(a):
            return a, b
        low, high = min(low, a), max(high, b)
    return low, high


def _size(patch: Patch) -> str:
    shapes = ", ".join(f"{role} {list(tensor.shape)}" for role, tensor in patch.tensors.items() if role != "alpha")
    return f"made for another size ({shapes})"
