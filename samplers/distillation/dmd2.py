"""DMD2: distribution matching distillation without its GAN (Yin et al., arXiv 2405.14867; formulas of the official code).

The student is trained at the times at which it will be used, on states of its own: simulated by running it from noise,
re-noised between steps. Teacher minus critic on its re-noised x_0 is the direction in which that moves.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import OptionError, check_integer, check_range
from .objective import Batch, Context, Need, States, guided, per_sample, preset
from .table import TimeTable

LEAST_TIME, MOST_TIME = 0.02, 0.98  # of the table: range of the diffusion time in the student's update


def renoised(table: TimeTable, x_0: Tensor, t: int | Tensor, z: Tensor) -> Tensor:
    """alpha x_0 + sigma z at ``t``."""
    alpha, sigma = table.at(t, x_0)
    return alpha * x_0 + sigma * z


def matching_gradient(x_0: Tensor, real: Tensor, critic: Tensor) -> Tensor:
    """(critic - real)/mean |x_0 - real| per sample, DMD's gradient and normaliser; NaN becomes 0."""
    return torch.nan_to_num((critic - real) / per_sample((x_0 - real).abs()))


def student_loss(x_0: Tensor, gradient: Tensor) -> Tensor:
    """Half the squared distance to ``x_0 - gradient``: its derivative by ``x_0`` is ``gradient`` over the element count."""
    return 0.5 * ((x_0 - (x_0 - gradient).detach()) ** 2).mean()


def critic_loss(table: TimeTable, x_0: Tensor, critic: Tensor, t: Tensor) -> Tensor:
    """Squared error of the critic's noise prediction, written with its x_0: (alpha/sigma)^2 |critic - x_0|^2."""
    alpha, sigma = table.at(t, x_0)
    return ((alpha / sigma) ** 2 * (critic - x_0) ** 2).mean()


@dataclass(frozen=True)
class DMD2:
    """Trains for ``times`` (falling table indices), with the student updated in every ``ratio``-th iteration.

    ``guidance`` is folded in. Needs no data but prompts: the GAN, which needs real images, is left out.
    """

    times: tuple[int, ...] = (999, 749, 499, 249)
    guidance: float = 8.0
    ratio: int = 5

    def __post_init__(self) -> None:
        check_integer("ratio", self.ratio, 1, 1000)
        check_range("guidance", self.guidance, 0.0, 100.0)
        if not self.times or self.times[-1] < 0 or any(b >= a for a, b in zip(self.times, self.times[1:], strict=False)):
            raise OptionError(f"times {list(self.times)}: expected table indices that fall, such as 999 749 499 249")

    def requirements(self) -> frozenset[Need]:
        return frozenset({"prompts", "critic"})

    def updates(self, step: int) -> tuple[str, ...]:
        return ("critic", "student") if step % self.ratio == 0 else ("critic",)

    def preset(self) -> dict[str, Any]:
        return preset("dmd2", list(self.times), "renoise", asdict(self))

    def roll(self, batch: Batch, ctx: Context) -> States:
        """``x`` [B, ...] at ``t`` [B]: n student steps from noise, n drawn once for the batch."""
        n = int(ctx.draws.integers(0, len(self.times), 1))
        x, size = batch.start, len(batch.start)
        for t, t_next in zip(self.times[:n], self.times[1:], strict=False):
            x_0 = ctx.student(x, torch.full((size,), t), batch.prompts)
            x = renoised(ctx.table, x_0, t_next, ctx.draws.noise(x))
        return {"x": x, "t": torch.full((size,), self.times[n])}

    def loss(self, network: str, batch: Batch, states: States, ctx: Context) -> Tensor:
        assert ctx.critic is not None
        size, steps = len(batch.start), len(ctx.table.alpha)
        with torch.set_grad_enabled(network == "student"):
            x_0 = ctx.student(states["x"], states["t"], batch.prompts)
        low, high = (0, steps) if network == "critic" else (int(LEAST_TIME * steps), int(MOST_TIME * steps) + 1)
        t = ctx.draws.integers(low, high, size)
        x_t = renoised(ctx.table, x_0.detach(), t, ctx.draws.noise(x_0))
        if network == "critic":
            return critic_loss(ctx.table, x_0, ctx.critic(x_t, t, batch.prompts), t)
        with torch.no_grad():
            real = guided(ctx.teacher, x_t, t, batch.prompts, self.guidance)
            fake = ctx.critic(x_t, t, batch.prompts)
            gradient = matching_gradient(x_0, real, fake)
        return student_loss(x_0, gradient)
