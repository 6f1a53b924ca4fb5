"""TDM: trajectory distribution matching, data-free (Luo et al., arXiv 2503.06674; formulas of the official trainer).

The student's deterministic K-step trajectory is matched, interval by interval, with the teacher's distribution: the
difference of teacher and critic on re-noised student states is the direction in which the student's x_0 moves.
"""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import OptionError, check_integer, check_range
from .objective import Batch, Context, Need, States, guided, per_sample, preset
from .table import TimeTable

SNR_CAP = 5.0
LEAST_TIME, MARGIN = 20, 10  # of the diffusion time: never below, and that far below the interval's upper end


class Jump(NamedTuple):
    """The student's own next state ``x_m``, the same diffused to time t (``x_t``), and all the noise in that (``e``)."""

    x_m: Tensor
    x_t: Tensor
    e: Tensor


def jump(table: TimeTable, x: Tensor, x_0: Tensor, t_g: Tensor, t_m: Tensor, t: Tensor, z: Tensor) -> Jump:
    """From ``x`` [B, ...] at ``t_g`` by DDIM with ``x_0`` to ``t_m``, then with fresh noise ``z`` up to ``t`` (all int64 [B]).

    ``x_t = (alpha_t/alpha_m) x_m + b z`` with ``b^2 = sigma_t^2 - (alpha_t sigma_m/alpha_m)^2``, not negative for t >= t_m.
    """
    alpha, sigma = table.at(t, x)
    alpha_m, sigma_m = table.at(t_m, x)
    old = alpha * sigma_m / alpha_m
    b = (sigma**2 - old**2).clamp(min=0.0).sqrt()
    eps = table.noise_of(x, x_0, t_g)
    x_m = alpha_m * x_0 + sigma_m * eps
    return Jump(x_m, alpha / alpha_m * x_m + b * z, (old * eps + b * z) / sigma)


def importance(e: Tensor, z: Tensor) -> Tensor:
    """q [B, 1, ...]: how much likelier a Gaussian is to give ``e`` than ``z`` (1 where they are equally long)."""
    return (per_sample(z**2) / 2 - per_sample(e**2) / 2).exp()


def critic_loss(table: TimeTable, x_0: Tensor, critic: Tensor, t: Tensor, e: Tensor, z: Tensor) -> Tensor:
    """The critic's weighted squared error against the student's ``x_0`` (no noise target: it follows x_0 itself)."""
    alpha, sigma = table.at(t, x_0)
    weight = ((alpha / sigma) ** 2).clamp(max=SNR_CAP) * importance(e, z)
    return (weight * (critic - x_0) ** 2).mean()


def student_loss(x_0: Tensor, real: Tensor, critic: Tensor, huber: float | None) -> Tensor:
    """Pulls ``x_0``, which carries the gradient, by ``real - critic``, scaled by the sample's mean |x_0 - real|.

    Pseudo-Huber distance with the given constant, or squared error where ``huber`` is None.
    """
    fixed = x_0.detach()
    target, scale = fixed + (real - critic), per_sample((fixed - real).abs())
    difference = x_0 - target
    distance = difference**2 if huber is None else (difference**2 + huber**2).sqrt() - huber
    return (distance / scale).mean()


@dataclass(frozen=True)
class TDM:
    """``steps`` student steps over the first ``total`` training times, at ``i*total/steps - 1``.

    ``separate``: diffusion times of an interval stay inside it (the official setting); else they go up to ``total``.
    ``guidance`` is folded in: the LoRA is meant for sampling without guidance. ``huber``: see `student_loss`.
    Needs no data but prompts.
    """

    steps: int = 4
    guidance: float = 4.5
    total: int = 1000
    separate: bool = True
    huber: float | None = 1e-3

    def __post_init__(self) -> None:
        check_integer("steps", self.steps, 1, 64)
        check_range("guidance", self.guidance, 0.0, 100.0)
        shortest = self.total // self.steps
        if shortest <= LEAST_TIME + MARGIN:
            raise OptionError(
                f"{self.steps} steps leave intervals of {shortest} of the {self.total} training times, TDM needs more than "
                f"{LEAST_TIME + MARGIN}; ask for fewer steps"
            )

    @property
    def times(self) -> list[int]:
        """The student's times, noise first."""
        return [i * self.total // self.steps - 1 for i in range(self.steps, 0, -1)]

    def requirements(self) -> frozenset[Need]:
        return frozenset({"prompts", "critic"})

    def updates(self, step: int) -> tuple[str, ...]:
        return ("critic", "student")

    def preset(self) -> dict[str, Any]:
        return preset("tdm", self.times, "ddim", asdict(self))

    def interval(self, i: Tensor) -> tuple[Tensor, Tensor]:
        """(t_g, t_m) of step ``i`` in 1..steps: where the student is evaluated, and where its step ends."""
        return i * self.total // self.steps - 1, (i - 1) * self.total // self.steps

    def roll(self, batch: Batch, ctx: Context) -> States:
        """``states`` [steps, B, ...]: the states entering step i = 1, ..., ``steps`` (the last one is the start)."""
        x, times = batch.start, self.times
        states = [x]
        for t, t_next in itertools.pairwise(times):
            x_0 = ctx.student(x, torch.full((len(x),), t), batch.prompts)
            x = ctx.table.ddim(x, x_0, t, t_next)
            states.insert(0, x)
        return {"states": torch.stack(states)}

    def loss(self, network: str, batch: Batch, states: States, ctx: Context) -> Tensor:
        assert ctx.critic is not None
        size = len(batch.start)
        i = ctx.draws.integers(1, self.steps + 1, size)
        t_g, t_m = self.interval(i)
        t = ctx.draws.integers(t_m.clamp(min=LEAST_TIME), (t_g if self.separate else torch.tensor(self.total)) - MARGIN, size)
        z = ctx.draws.noise(batch.start)
        x = states["states"][i - 1, torch.arange(size)]
        with torch.set_grad_enabled(network == "student"):
            x_0 = ctx.student(x, t_g, batch.prompts)
        fixed = x_0.detach()
        jumped = jump(ctx.table, x, fixed, t_g, t_m, t, z)
        if network == "critic":
            return critic_loss(ctx.table, fixed, ctx.critic(jumped.x_t, t, batch.prompts), t, jumped.e, z)
        with torch.no_grad():
            real = guided(ctx.teacher, jumped.x_t, t, batch.prompts, self.guidance)
            fake = ctx.critic(jumped.x_t, t, batch.prompts)
        return student_loss(x_0, real, fake, self.huber)
