"""How strong a module's low-rank part is: the one place where alpha, rank and a preset's scale meet.

The factor on ``up @ down`` is, in this order:

1. ``alpha / rank`` from the file's ``.alpha`` tensor;
2. from the header: ``lora_adapter_metadata`` (diffusers), or ``lora_alpha``, ``network_alpha``, ``ss_network_alpha`` with
   their rank;
3. from ``adapter_config.json`` beside the file (PEFT; ``alpha / sqrt(rank)`` with ``use_rslora``);
4. 1, times the preset's scale. The preset's scale stands for an alpha that the file lacks, so it counts in no other case:
   a file trained at 8/64 = 0.125 would otherwise get it twice.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import AdapterError
from .files import AdapterFile
from .modules import Module

PLAIN_PAIRS = (
    ("lora_alpha", "r"), ("lora_alpha", "rank"), ("lora_alpha", "lora_rank"), ("network_alpha", "network_dim"),
    ("network_alpha", "rank"), ("ss_network_alpha", "ss_network_dim"),
)


@dataclass(frozen=True)
class Scale:
    """Factor on ``up @ down`` of one module, and where it comes from."""

    factor: float
    rank: int
    alpha: float | None
    source: str


@dataclass(frozen=True)
class Config:
    """One source's alpha and rank: values for all modules, and by regular expression those of exceptions."""

    alpha: float
    rank: float
    source: str
    alphas: Mapping[str, float] = field(default_factory=dict)
    ranks: Mapping[str, float] = field(default_factory=dict)
    sqrt: bool = False

    def factor(self, module: str, rank: int) -> tuple[float, float]:
        """(factor, alpha) of a module with this rank."""
        alpha = _special(self.alphas, module, self.alpha)
        return alpha / (math.sqrt(rank) if self.sqrt else rank), alpha

    def describes(self, module: str, rank: int) -> bool:
        """Whether the module has the rank that is said here."""
        return _special(self.ranks, module, self.rank) == rank


class Scales:
    """The factors of a file's modules.

    ``preset_scale`` is used for modules without an alpha from anywhere.
    """

    def __init__(self, file: AdapterFile, preset_scale: float = 1.0) -> None:
        self.preset_scale = preset_scale
        self._header = _header_configs(file)
        self._beside = _peft_config(file.config, f"{file.name}'s adapter_config.json", "adapter_config.json")

    def of(self, module: Module) -> Scale:
        """The factor of a low-rank module; raises AdapterError for an alpha that is not a finite number."""
        rank = module.rank
        assert rank is not None
        if "alpha" in module.tensors:
            tensor = module.tensors["alpha"]
            alpha = float(tensor) if tensor.numel() == 1 else math.nan
            if not math.isfinite(alpha):
                raise AdapterError(f"{module.keys['alpha']} is not a finite number: the file is damaged, get it again")
            return Scale(alpha / rank, rank, alpha, "the file's alpha")
        prefix = module.base.split(".", 1)[0]
        config = self._header.get(prefix) or self._header.get("")
        if config is None and self._beside is not None and self._beside.describes(module.base, rank):
            config = self._beside  # of another rank, it belongs to another file of the folder
        if config is not None:
            factor, alpha = config.factor(module.base, rank)
            return Scale(factor, rank, alpha, config.source)
        return Scale(self.preset_scale, rank, None, "none" if self.preset_scale == 1 else "the preset's scale")


def _header_configs(file: AdapterFile) -> dict[str, Config]:
    """By prefix ('' for all): complete pairs only."""
    found: dict[str, Config] = {}
    text = file.metadata.get("lora_adapter_metadata")
    if text:
        try:
            data = json.loads(text)
        except json.JSONDecodeError:
            data = None
        if not isinstance(data, dict):
            raise AdapterError(f"{file.name}: its header's lora_adapter_metadata is not a JSON object: {text[:80]!r}")
        by_prefix: dict[str, dict[str, Any]] = {}
        for key, value in data.items():
            prefix, dot, name = key.rpartition(".")
            by_prefix.setdefault(prefix if dot else "", {})[name] = value
        for prefix, values in by_prefix.items():
            config = _peft_config(values, f"{file.name}'s lora_adapter_metadata", "the header's lora_adapter_metadata")
            if config is not None:
                found[prefix] = config
    for alpha, rank in PLAIN_PAIRS:
        if "" not in found and alpha in file.metadata and rank in file.metadata:
            where = f"{file.name}'s header"
            found[""] = Config(
                _number(file.metadata[alpha], alpha, where), _number(file.metadata[rank], rank, where), f"the header's {alpha}"
            )
    return found


def _peft_config(data: Mapping[str, Any], where: str, source: str) -> Config | None:
    if "lora_alpha" not in data or "r" not in data:
        return None
    patterns: dict[str, dict[str, float]] = {}
    for name in ("alpha_pattern", "rank_pattern"):
        pattern = data.get(name) or {}
        if not isinstance(pattern, Mapping):
            raise AdapterError(f"{where}: {name} is {pattern!r}, expected an object")
        patterns[name] = {str(k): _number(v, f"{name} {k}", where) for k, v in pattern.items()}
    return Config(
        _number(data["lora_alpha"], "lora_alpha", where), _number(data["r"], "r", where), source,
        patterns["alpha_pattern"], patterns["rank_pattern"], bool(data.get("use_rslora")),
    )


def _number(value: Any, name: str, where: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise AdapterError(f"{where}: {name} is {value!r}, expected a number")
    return number


def _special(values: Mapping[str, float], module: str, default: float) -> float:
    """The value whose pattern (a name's end, or a regular expression for it, as PEFT has them) names the module."""
    for pattern, value in values.items():
        try:
            found = re.search(rf"(?:^|\.)(?:{pattern})$", module) is not None
        except re.error:
            found = module.endswith(pattern)
        if found:
            return value
    return default
