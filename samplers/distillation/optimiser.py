"""AdamW for one of the trained networks: its settings, its learning rate over time, one update, and its state as tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ..errors import OptionError, check_choice, check_integer

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Optimiser:
    """Settings of AdamW (Loshchilov and Hutter 2019).

    The learning rate rises over ``warmup`` iterations to ``lr``, then stays ("constant") or falls to zero as half a cosine,
    ``cycles`` times over ("cosine": with restarts). ``clip`` bounds the gradient's norm.
    """

    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    clip: float | None = None
    warmup: int = 0
    decay: Literal["constant", "cosine"] = "constant"
    cycles: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.lr < 1:
            raise OptionError(f"the learning rate is {self.lr!r}, expected a number between 0 and 1")
        check_choice("decay", self.decay, ("constant", "cosine"))
        check_integer("warmup", self.warmup, 0, 10**9)
        check_integer("cycles", self.cycles, 1, 1000)

    def rate(self, step: int, iterations: int) -> float:
        """Learning rate of iteration ``step`` (from 0) of ``iterations``."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        if self.decay == "constant":
            return self.lr
        done = (step - self.warmup) / max(iterations - self.warmup, 1)
        return self.lr * 0.5 * (1 + math.cos(math.pi * (self.cycles * done % 1.0)))


class Updater:
    """AdamW on named ``parameters``."""

    def __init__(self, settings: Optimiser, parameters: Mapping[str, nn.Parameter]) -> None:
        self.settings, self.parameters = settings, dict(parameters)
        self._adam = torch.optim.AdamW(
            self.parameters.values(), lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay
        )

    def update(self, loss: Tensor, rate: float) -> bool:
        """One step down ``loss``; False, and nothing changed, where the loss or its gradient is NaN or infinite."""
        self._adam.zero_grad(set_to_none=True)
        torch.autograd.backward(loss, inputs=list(self.parameters.values()))
        limit = math.inf if self.settings.clip is None else self.settings.clip
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), limit)
        if not bool(torch.isfinite(norm + loss.detach())):
            return False
        for group in self._adam.param_groups:
            group["lr"] = rate
        self._adam.step()
        return True

    def state(self) -> dict[str, Tensor]:
        """Weights and moments by name."""
        out = {name: p.detach() for name, p in self.parameters.items()}
        for name, p in self.parameters.items():
            out.update({f"{name}:{moment}": value for moment, value in self._adam.state[p].items()})
        return out

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Puts back what ``state`` gave; KeyError if something is missing."""
        for name, p in self.parameters.items():
            p.data.copy_(state[name])
            if f"{name}:step" in state:  # absent before the first update
                # the step count stays on the CPU, where AdamW keeps it
                self._adam.state[p] = {
                    m: state[f"{name}:{m}"].clone().to("cpu" if m == "step" else p.device) for m in _MOMENTS
                }
