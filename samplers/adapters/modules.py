"""An adapter file as a list of modules: the keys that belong together, and what they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from ..errors import AdapterError
from .files import AdapterFile
from .names import is_text, module_of, split_key

LOW_RANK = {  # kind -> the roles that make it, the first one giving the rank by its dim 0
    "lora": ("lora_down.weight", "lora_up.weight"),
    "loha": ("hada_w1_b", "hada_w1_a", "hada_w2_a", "hada_w2_b"),
    "lokr": (),
    "oft": ("oft_blocks",),
    "glora": ("a1.weight", "a2.weight", "b1.weight", "b2.weight"),
}


@dataclass
class Module:
    """One module of the network and its tensors in the file.

    Attributes:
        base: its name in the file.
        tensors: by role, see ``names``; ``keys`` has the file's keys of them.
    """

    base: str
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)

    @property
    def is_text(self) -> bool:
        """Whether it belongs to a text encoder."""
        return is_text(self.base)

    @property
    def name(self) -> str:
        """The module's own name without the format's prefix."""
        return module_of(self.base)

    @property
    def kinds(self) -> list[str]:
        """What the tensors are: lora, loha, lokr, oft, glora, hydra, routed, diff, set, norm; several may stand together."""
        roles = set(self.tensors)
        found = [kind for kind, wanted in LOW_RANK.items() if wanted and set(wanted) & roles]
        starts = {"lokr": "lokr_", "hydra": "hydra_"}
        found += [kind for kind, start in starts.items() if any(role.startswith(start) for role in roles)]
        exact = {
            "routed": ("lora_a", "lora_b"), "diff": ("diff", "diff_b", "up_bias"), "set": ("set_weight",),
            "norm": ("w_norm", "b_norm"),
        }
        return found + [kind for kind, names in exact.items() if roles & set(names)]

    @property
    def missing(self) -> list[str]:
        """Roles without which its low-rank part cannot be used."""
        return [
            role for kind in self.kinds for role in LOW_RANK.get(kind, ()) if role not in self.tensors
        ]

    @property
    def rank(self) -> int | None:
        """Rank of a LoRA, LoHa or routed adapter, None for other kinds."""
        for role in ("lora_down.weight", "hada_w1_b"):
            if role in self.tensors:
                return int(self.tensors[role].shape[0])
        return int(self.tensors["lora_a"].shape[-1]) if "lora_a" in self.tensors else None

    @property
    def widths(self) -> tuple[int | None, int | None]:
        """(input, output) channels of the layer; None where the tensors do not tell."""
        def size(dim: int, *roles: str) -> int | None:
            found = (self.tensors[role].shape for role in roles if role in self.tensors)
            return next((int(shape[dim]) for shape in found if len(shape) > dim), None)

        whole = ("diff", "set_weight")
        return size(1, "lora_down.weight", *whole, "hada_w1_b"), size(0, "lora_up.weight", *whole, "hada_w1_a")


@dataclass(frozen=True)
class Modules:
    """All of a file's modules, its routing logits by scope, and the keys of no known format."""

    all: tuple[Module, ...]
    logits: Mapping[str, torch.Tensor]
    unknown: tuple[str, ...]

    @property
    def kinds(self) -> set[str]:
        """Every kind that occurs."""
        return {kind for module in self.all for kind in module.kinds}


def modules_of(file: AdapterFile) -> Modules:
    """Sorts a file's keys into modules.

    Raises:
        AdapterError: a checkpoint or another kind of file; two PEFT adapters in one file; the same role twice.
    """
    modules: dict[str, Module] = {}
    logits: dict[str, torch.Tensor] = {}
    unknown: list[str] = []
    adapters: set[str] = set()
    for key, tensor in file.tensors.items():
        part = split_key(key)
        if part is None:
            unknown.append(key)
        elif part.role == "module_logits":
            logits[part.base] = tensor
        else:
            module = modules.setdefault(part.base, Module(part.base))
            if part.adapter:
                adapters.add(part.adapter)
            if part.role in module.tensors:
                raise AdapterError(_twice(file.name, key, module.keys[part.role], adapters))
            module.tensors[part.role], module.keys[part.role] = tensor, key
    found = Modules(tuple(m for m in modules.values() if m.kinds), logits, tuple(unknown))
    alone = [key for m in modules.values() if not m.kinds for key in m.keys.values()]
    if not found.all:
        raise AdapterError(_not_an_adapter(file))
    return Modules(found.all, logits, (*unknown, *alone))


def _twice(name: str, key: str, other: str, adapters: set[str]) -> str:
    if len(adapters) > 1:
        return f"{name} holds several adapters ({', '.join(sorted(adapters))}): save one of them to a file of its own"
    return f"{name} holds the same thing twice, as {other} and as {key}: take one of them out"


def _not_an_adapter(file: AdapterFile) -> str:
    keys = list(file.tensors)
    weights = sum(key.endswith((".weight", ".bias")) for key in keys)
    example = ", ".join(keys[:3])
    if weights >= 0.5 * len(keys):
        return (
            f"{file.name} is not a LoRA but a model ({len(keys)} plain weights, such as {example}): put it into "
            "'checkpoints' or 'diffusion_models' and load it with Load Checkpoint or Load Diffusion Model"
        )
    return (
        f"{file.name} has no key of a known adapter format (its keys are like {example}); known are LoRA, LoCon, LoHa, LoKr, "
        "OFT, GLoRA, Hydra, routed adapters, .diff and .set_weight"
    )
