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
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ..errors import OptionError, TrainingError, check_integer
from ..plan_io import write_atomically
from .objective import Denoiser

PREFIX = "diffusion_model."  # the host's own name of the network, which every LoRA loader of it understands
_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}


class _Pair(nn.Module):
    """``down`` and ``up`` of one layer, and the hook that adds them."""

    def __init__(self, layer: nn.Module, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        weight: Any = layer.weight
        bound = 1.0 / math.sqrt(weight[0].numel())
        down = torch.empty(rank, *weight.shape[1:], dtype=torch.float32).uniform_(-bound, bound, generator=generator)
        self.down = nn.Parameter(down.to(weight.device))
        self.up = nn.Parameter(torch.zeros(weight.shape[0], rank, *(1,) * (weight.ndim - 2), device=weight.device))

    def forward(self, layer: Any, x: Tensor) -> Tensor:
        """up(down(x)) in the adapter's dtype."""
        x = x.to(self.down.dtype)
        if isinstance(layer, nn.Linear):
            return F.linear(F.linear(x, self.down), self.up)
        convolve = _CONVOLUTIONS[self.down.ndim]
        return convolve(convolve(x, self.down, None, layer.stride, layer.padding, layer.dilation), self.up)


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
            change: Tensor = self.alpha / self.rank * pair(layer, inputs[0])
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

    @classmethod
    def load(cls, network: nn.Module, path: str | Path, prefix: str = PREFIX) -> LowRank:
        """The adapters that ``save`` wrote, on ``network``. Raises TrainingError if the file is not one, or does not fit.

        For one's own files; foreign formats are the work of the distilled-LoRA loader.
        """
        path = Path(path)
        try:
            with safe_open(path, "pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise TrainingError(f"{path.name} is not a readable safetensors file: {error}") from error
        end = ".lora_down.weight"
        names = [key[len(prefix) : -len(end)] for key in tensors if key.startswith(prefix) and key.endswith(end)]
        wanted = {f"{prefix}{name}.{part}" for name in names for part in ("lora_down.weight", "lora_up.weight", "alpha")}
        if not names or wanted != set(tensors):
            raise TrainingError(f"{path.name} does not hold lora_down, lora_up and alpha of each layer under {prefix!r}")
        unknown = sorted(set(names) - {name for name, _ in network.named_modules()})
        if unknown:
            raise TrainingError(f"{path.name} holds layers that the network has not: {', '.join(unknown[:5])}")
        first = f"{prefix}{names[0]}"
        made = cls(
            network, len(tensors[first + end]), alpha=float(tensors[f"{first}.alpha"]),
            match=f"^({'|'.join(map(re.escape, names))})$",
        )
        for key, value in made.tensors(prefix=prefix).items():
            if tensors[key].shape != value.shape or (value.ndim == 0 and tensors[key] != value):
                made.remove()
                raise TrainingError(f"{path.name}: {key} is {list(tensors[key].shape)}, the network needs {list(value.shape)}")
            value.copy_(tensors[key])
        return made


def read_metadata(path: str | Path) -> dict[str, str]:
    """The ``fewstep.*`` entries of a LoRA file's header, without the prefix; empty for files of others."""
    with safe_open(Path(path), "pt") as file:
        found = file.metadata() or {}
    return {key.removeprefix("fewstep."): value for key, value in found.items() if key.startswith("fewstep.")}


def switched(denoiser: Denoiser, adapter: LowRank) -> Denoiser:
    """``denoiser`` with ``adapter`` switched on in every call."""

    def call(x: Tensor, t: Tensor, prompts: Tensor) -> Tensor:
        with adapter.active():
            return denoiser(x, t, prompts)

    return call
