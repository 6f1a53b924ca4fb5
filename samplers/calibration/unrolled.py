"""A fitted plan as a differentiable function of few numbers, all 0 at the plan that it starts from.

What is learned (Bespoke non-stationary solvers, Shaul et al., arXiv 2403.01329; LD3, Tong et al., arXiv 2405.15506; S4S,
Frankel et al., arXiv 2502.17423): the nodes, the noise level that the model is told apart from the state's own, the factor
on the state and those on all outputs so far. Outputs of neighbouring steps are nearly equal, so their factors are moved in
a basis in which the outputs are uncorrelated and of unit size: without it, gradient descent needs ten times the steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from ..engine import Denoiser
from ..grids import from_sigmas
from ..lincomb import accumulation_dtype
from .tableau import Tableau

LEVEL_STEP = 0.05  # in log sigma: over many of a table's entries, since hosts round a level to the nearest one
SMALLEST = 1e-6  # of a basis' directions, relative: what moves less than that is noise


@dataclass(frozen=True)
class Numbers:
    """The numbers of a ``Tableau`` as float64 tensors that gradients flow through."""

    sigma: torch.Tensor
    told: torch.Tensor
    scale: torch.Tensor
    x: torch.Tensor
    m: Sequence[torch.Tensor]  # row k: [k + 1]


class Unrolled:
    """The map from the learned numbers ``theta`` [P] to a plan.

    Args:
        start: where ``theta`` = 0 leads.
        bases: per step the directions [k + 1, n] in which the outputs' factors may move, see ``uncorrelated``.
        times, told, state: whether the nodes, the told levels and the state's factors move.
    """

    def __init__(
        self, start: Tableau, bases: Sequence[torch.Tensor], *, times: bool = True, told: bool = True, state: bool = True
    ) -> None:
        self.start, self.bases = start, bases
        self.frame, self.steps = start.grid.frame, start.steps
        zero = start.grid.end == "zero"
        log_sigma = torch.tensor(start.grid.sigma[: self.steps if zero else None]).log()
        self._log_first, self._gaps = log_sigma[0], log_sigma[:-1] - log_sigma[1:]
        self._span = None if zero else self._gaps.sum()
        own = torch.tensor(start.grid.sigma[:-1])
        self._told = torch.tensor(start.told) / own
        self._scale = torch.tensor(start.scale) / (self._input(torch.tensor(start.told)) / self._input(own))
        decay = np.where(start.decay > 0, start.decay, 1.0)
        self._x = torch.tensor(start.x / decay)
        self._weights = [torch.tensor(start.m[k, : k + 1] / start.gain[k]) for k in range(self.steps)]
        lowest = float(self.frame.sigma(self.frame.time.t_0))
        self._range = min(lowest, float(min(start.told))), float(max(start.told))
        sizes = [len(self._gaps), self.steps, self.steps, *(basis.shape[1] for basis in bases)]
        moves = [times, told, state, *(True for _ in bases)]
        self.sizes = sizes
        self.moving = torch.cat([torch.full((n,), float(m), dtype=torch.float64) for n, m in zip(sizes, moves, strict=True)])

    def _alpha(self, sigma: torch.Tensor) -> torch.Tensor:
        if self.frame.scaling == "unit":
            return torch.ones_like(sigma)
        return 1 - sigma if self.frame.scaling == "flow" else ((1 - sigma) * (1 + sigma)).sqrt()

    def _input(self, sigma: torch.Tensor) -> torch.Tensor:
        """What a network's input is divided by at a level: the state's own size, but 1 for flow models, who take it as it is."""
        return torch.ones_like(sigma) if self.frame.scaling == "flow" else (self._alpha(sigma) ** 2 + sigma**2).sqrt()

    def numbers(self, theta: torch.Tensor) -> Numbers:
        """The plan's numbers at ``theta``."""
        times, told, state, *weights = torch.split(theta * self.moving, self.sizes)
        gaps = self._gaps * times.exp()
        if self._span is not None:
            gaps = gaps * (self._span / gaps.sum())
        sigma = (self._log_first - torch.cat([gaps.new_zeros(1), gaps.cumsum(0)])).exp()
        if self._span is None:
            sigma = torch.cat([sigma, sigma.new_zeros(1)])
        own = sigma[:-1]
        alpha, decay = self._alpha(sigma), sigma[1:] / own
        gain = alpha[1:] - alpha[:-1] * decay
        level = (own * self._told * told.exp()).clamp(*self._range)
        factor = torch.where(decay > 0, decay, torch.ones_like(decay))
        rows = [g * (w + basis @ v) for g, w, basis, v in zip(gain, self._weights, self.bases, weights, strict=True)]
        return Numbers(sigma, level, self._scale * self._input(level) / self._input(own), self._x * state.exp() * factor, rows)

    def tableau(self, theta: torch.Tensor) -> Tableau:
        """The plan at ``theta``, ready to run or to save."""
        numbers = self.numbers(theta.detach())
        m = np.zeros((self.steps, self.steps))
        for k, row in enumerate(numbers.m):
            m[k, : k + 1] = row.numpy()
        sigma = numbers.sigma.numpy().copy()
        sigma[0] = self.start.grid.sigma[0]
        if self._span is not None:
            sigma[-1] = self.start.grid.sigma[-1]
        return Tableau(from_sigmas(self.frame, sigma), numbers.told.numpy(), numbers.scale.numpy(), numbers.x.numpy(), m)

    def run(self, denoiser: Denoiser, x: torch.Tensor, theta: torch.Tensor, *, checkpointing: bool = True) -> torch.Tensor:
        """The result from start states ``x`` [B, ...], with gradients to ``theta`` and ``x``.

        ``checkpointing`` recomputes each evaluation in the backward pass, so that memory holds one at a time.
        """
        numbers = self.numbers(theta)
        outputs: list[torch.Tensor] = []
        for k in range(self.steps):
            outputs.append(told_prediction(denoiser, numbers.scale[k] * x, numbers.told[k], checkpointing))
            x = numbers.x[k] * x + sum(c * d for c, d in zip(numbers.m[k], outputs, strict=True))
        return x


def told_prediction(denoiser: Denoiser, y: torch.Tensor, told: torch.Tensor, checkpointing: bool) -> torch.Tensor:
    """``D(y, told)`` with a gradient to the state by autograd and to the level by a difference.

    Hosts find a model's time in a table, and rounding has no gradient; one more evaluation at a lower level gives it.
    """
    level = told.detach().to(y.device, accumulation_dtype(y.dtype)).expand(len(y))
    denoised: Any = checkpoint(denoiser, y, level, use_reentrant=False) if checkpointing else denoiser(y, level)
    if not told.requires_grad:
        return denoised  # type: ignore[no-any-return]
    with torch.no_grad():
        slope = (denoised.detach() - denoiser(y.detach(), level * math.exp(-LEVEL_STEP))) / LEVEL_STEP
    return denoised + slope * (told.log() - told.detach().log())  # type: ignore[no-any-return]


def uncorrelated(outputs: torch.Tensor, gain: np.ndarray, *, consistent: bool) -> list[torch.Tensor]:
    """Per step the directions [k + 1, n] of the outputs' factors, each of unit effect on the state and uncorrelated.

    Args:
        outputs: D_0..D_{M-1} of some samples, [M, ...].
        gain: of ``Tableau``, [M].
        consistent: directions of sum 0 only (n = k), so that a constant prediction stays exact.
    """
    flat = outputs.flatten(1).double().cpu()
    gram = flat @ flat.T / flat.shape[1]
    bases = []
    for k in range(len(outputs)):
        allowed = torch.eye(k + 1, dtype=torch.float64)
        if consistent:  # an orthonormal basis of the vectors of sum 0
            allowed = torch.linalg.qr(torch.cat([torch.ones(k + 1, 1, dtype=torch.float64), allowed[:, :k]], dim=1)).Q[:, 1:]
        values, vectors = torch.linalg.eigh(allowed.T @ gram[: k + 1, : k + 1] @ allowed * float(gain[k]) ** 2)
        if len(values):
            vectors = vectors / values.clamp(min=float(values.max()) * SMALLEST).sqrt()
        bases.append(allowed @ vectors)
    return bases
