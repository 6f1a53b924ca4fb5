"""Low-rank adapters on the layers of any torch network, added to their outputs while it runs, and their files.

A layer ``y = W x + b`` becomes ``y + (alpha/rank) up(down(x))``. The weights are not touched, so several adapters may sit
on one network and be switched on in turn (teacher, student and critic share the base), and a quantised base works too.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from ..adapters.forward import up_of_down
from ..errors import OptionError, check_integer
from ..plan_io import write_atomically
from .objective import Denoiser

PREFIX = "diffusion_model."  # the host's own name of the network, which every LoRA loader of it understands


class _Pair(nn.Module):
    """``down`` and ``up`` of one layer."""

    def __init__(self, layer: nn.Module, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        weight: Any = layer.weight
        bound = 1.0 / math.sqrt(weight[0].numel())
        down = torch.empty(rank, *weight.shape[1:], dtype=torch.float32).uniform_(-bound, bound, generator=generator)
        self.down = nn.Parameter(down.to(weight.device))
        self.up = nn.Parameter(torch.zeros(weight.shape[0], rank, *(1,) * (weight.ndim - 2), device=weight.device))


class LowRank:
    """Trainable adapters of one ``rank`` on the linear and convolution layers of ``network`` that ``match`` finds.

    They do nothing until used inside ``with adapter.active():``. ``up`` starts at zero, so training starts at the base.

    Args:
        network: any module; its own weights are neither changed nor frozen here.
        rank: inner dimension of each pair.
        alpha: the factor is ``alpha/rank``; the rank if None.
        match: regular expression, searched for in the layers' dotted names; all layers if empty.
        seed: of the start values of ``down``.

    Raises:
        OptionError: no layer matches, or a matching one is a grouped or a non-zero-padded convolution.
    """

    def __init__(self, network: nn.Module, rank: int, *, alpha: float | None = None, match: str = "", seed: int = 0) -> None:
        check_integer("rank", rank, 1, 4096)
        self.rank, self.alpha, self.enabled = rank, float(rank if alpha is None else alpha), False
        generator = torch.Generator().manual_seed(seed)
        self._pairs: dict[str, _Pair] = {}
        self._handles = []
        for name, layer in network.named_modules():
            if isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)) and re.search(match, name):
                if getattr(layer, "groups", 1) != 1 or getattr(layer, "padding_mode", "zeros") != "zeros":
                    raise OptionError(f"the layer {name} is a grouped or specially padded convolution; exclude it by match")
                with torch.inference_mode(False):  # a host's inference mode must not make them untrainable
                    self._pairs[name] = _Pair(layer, rank, generator)
                self._handles.append(layer.register_forward_hook(self._hook(self._pairs[name])))
        if not self._pairs:
            raise OptionError(f"no linear or convolution layer of the network has a name that {match!r} matches")

    def _hook(self, pair: _Pair) -> Callable[[nn.Module, Any, Tensor], Tensor | None]:
        def add(layer: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
            if not self.enabled:
                return None
            change = self.alpha / self.rank * up_of_down(layer, inputs[0].to(pair.down.dtype), pair.down, pair.up)
            return output + change.to(output.dtype)

        return add

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Switches the adapters on for the calls inside."""
        before, self.enabled = self.enabled, True
        try:
            yield
        finally:
            self.enabled = before

    def remove(self) -> None:
        """Takes the hooks off the network."""
        for handle in self._handles:
            handle.remove()

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The trainable tensors by name, ``<layer>.down`` and ``<layer>.up``."""
        return {f"{name}.{part}": value for name, pair in self._pairs.items() for part, value in pair.named_parameters()}

    def tensors(self, values: Mapping[str, Tensor] | None = None, prefix: str = PREFIX) -> dict[str, Tensor]:
        """The adapters (or ``values`` in their place, an average) under the names of LoRA files."""
        source = self.parameters if values is None else values
        out = {}
        for name in self._pairs:
            out[f"{prefix}{name}.lora_down.weight"] = source[f"{name}.down"].detach().contiguous()
            out[f"{prefix}{name}.lora_up.weight"] = source[f"{name}.up"].detach().contiguous()
            out[f"{prefix}{name}.alpha"] = torch.tensor(self.alpha)
        return out

    def save(
        self, path: str | Path, metadata: Mapping[str, Any], *, values: Mapping[str, Tensor] | None = None,
        dtype: torch.dtype = torch.float16, prefix: str = PREFIX,
    ) -> None:
        """Writes a LoRA file; ``metadata``'s values become ``fewstep.<key>``, text as it is and the rest as JSON."""
        facts = {f"fewstep.{key}": v if isinstance(v, str) else json.dumps(v) for key, v in metadata.items()}
        tensors = {key: value.to("cpu", dtype) for key, value in self.tensors(values, prefix).items()}
        write_atomically(Path(path), save(tensors, facts))


def switched(denoiser: Denoiser, adapter: LowRank) -> Denoiser:
    """``denoiser`` with ``adapter`` switched on in every call."""

    def call(x: Tensor, t: Tensor, prompts: Tensor) -> Tensor:
        with adapter.active():
            return denoiser(x, t, prompts)

    return call
