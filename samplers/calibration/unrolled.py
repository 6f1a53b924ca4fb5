"""A fitted plan as a differentiable function of few numbers, all 0 at the plan that it starts from.

What is learned (Bespoke non-stationary solvers, Shaul et al., arXiv 2403.01329; LD3, Tong et al., arXiv 2405.15506; S4S,
Frankel et al., arXiv 2502.17423): the nodes, the noise level that the model is told apart from the state's own, the factor
on the state and those on all outputs so far. Outputs of neighbouring steps are nearly equal, so their factors are moved in
a basis in which the outputs are uncorrelated and of unit size: without it, gradient descent needs ten times the steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from ..engine import Denoiser
from ..grids import from_sigmas
from ..lincomb import accumulation_dtype
from .tableau import Tableau

LEVEL_STEP = 0.05  # of the logarithm of a level: over many of a table's entries, since hosts round a level to the nearest one
INSIDE = 1e-9  # of a level, relative: so far from an end of the model's levels rounding has no say
SMALLEST = 1e-6  # of a basis' directions, relative: what moves less than that is noise


@dataclass(frozen=True)
class Numbers:
    """The numbers of a ``Tableau`` as float64 tensors that gradients flow through; ``log_told`` is the told level's logarithm."""

    sigma: torch.Tensor
    log_told: torch.Tensor
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
        own = self._levels(start.grid.sigma[:-1])
        told_levels = self._levels(start.told)
        nodes = own if zero else torch.cat([own, self._levels(start.grid.sigma[-1:])])
        self._log_first, self._gaps = nodes[0].log(), nodes[:-1].log() - nodes[1:].log()
        self._span = None if zero else self._gaps.sum()
        self._told = told_levels / own
        self._scale = torch.tensor(start.scale) / self._rescaling(own, told_levels)
        decay = np.where(start.decay > 0, start.decay, 1.0)
        self._x = torch.tensor(start.x / decay)
        self._weights = [torch.tensor(start.m[k, : k + 1] / start.gain[k]) for k in range(self.steps)]
        lowest = float(self.frame.level_of_lambda(self.frame.lambda_(self.frame.time.t_0)))
        self._range = min(lowest, float(told_levels.min())), float(told_levels.max())
        sizes = [len(self._gaps), self.steps, self.steps, *(basis.shape[1] for basis in bases)]
        moves = [times, told, state, *(True for _ in bases)]
        self.sizes = sizes
        self.moving = torch.cat([torch.full((n,), float(m), dtype=torch.float64) for n, m in zip(sizes, moves, strict=True)])

    def _levels(self, sigma: np.ndarray) -> torch.Tensor:
        """The coordinate of ``Frame.level_of_lambda``: sigma/alpha, but sigma in a flow frame."""
        return torch.as_tensor(self.frame.level_of_lambda(self.frame.lambda_of_sigma(sigma)))

    def _state(self, level: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(alpha, sigma) at a level."""
        if self.frame.scaling == "flow":
            return 1 - level, level
        size = (1 + level**2).sqrt() if self.frame.scaling == "vp" else torch.ones_like(level)
        return 1 / size, level / size

    def _rescaling(self, own: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
        """The factor on the state with which a network that is told another level still gets the same input.

        With alpha = 1 its input is the state over sqrt(1 + sigma^2); in the other frames it is the state.
        """
        return ((1 + told**2) / (1 + own**2)).sqrt() if self.frame.scaling == "unit" else torch.ones_like(own)

    def _nodes(self, times: torch.Tensor) -> torch.Tensor:
        """The levels of the nodes [M + 1]."""
        gaps = self._gaps * times.exp()
        if self._span is not None:
            gaps = gaps * (self._span / gaps.sum())
        level = (self._log_first - torch.cat([gaps.new_zeros(1), gaps.cumsum(0)])).exp()
        return torch.cat([level, level.new_zeros(1)]) if self._span is None else level

    def project(self, theta: torch.Tensor) -> None:
        """Moves ``theta``, in place, to where every told level is one of the model's: beyond, it would have no gradient."""
        times, told, *_ = torch.split(theta * self.moving, self.sizes)
        level = self._nodes(times)[:-1] * self._told
        low, high = (torch.full_like(level, v).div(level).log() for v in self._range)
        first = self.sizes[0]
        theta[first : first + self.steps] = told.clamp(low + INSIDE, high - INSIDE)

    def numbers(self, theta: torch.Tensor) -> Numbers:
        """The plan's numbers at ``theta``."""
        times, told, state, *weights = torch.split(theta * self.moving, self.sizes)
        level = self._nodes(times)
        alpha, sigma = self._state(level)
        decay = sigma[1:] / sigma[:-1]
        gain = alpha[1:] - alpha[:-1] * decay
        told_level = (level[:-1] * self._told * told.exp()).clamp(*self._range)
        scale = self._scale * self._rescaling(level[:-1], told_level)
        factor = torch.where(decay > 0, decay, torch.ones_like(decay))
        rows = [g * (w + basis @ v) for g, w, basis, v in zip(gain, self._weights, self.bases, weights, strict=True)]
        return Numbers(sigma, told_level.log(), self._state(told_level)[1], scale, (self._x + state) * factor, rows)

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
            outputs.append(self._predict(denoiser, numbers.scale[k] * x, numbers.told[k], numbers.log_told[k], checkpointing))
            x = numbers.x[k] * x + sum(c * d for c, d in zip(numbers.m[k], outputs, strict=True))
        return x

    def _predict(
        self, denoiser: Denoiser, y: torch.Tensor, told: torch.Tensor, log_told: torch.Tensor, checkpointing: bool
    ) -> torch.Tensor:
        """``D(y, told)`` with a gradient to the state by autograd and to the level by a difference.

        Hosts find a model's time in a table, and rounding has no gradient; one more evaluation at a lower level gives it.
        """
        def level(sigma: torch.Tensor) -> torch.Tensor:
            return sigma.detach().to(y.device, accumulation_dtype(y.dtype)).expand(len(y))

        denoised: torch.Tensor = (
            checkpoint(denoiser, y, level(told), use_reentrant=False)  # type: ignore[no-untyped-call]
            if checkpointing else denoiser(y, level(told))
        )
        if not log_told.requires_grad:
            return denoised
        with torch.no_grad():
            lower = self._state((log_told - LEVEL_STEP).exp())[1]
            slope = (denoised - denoiser(y, level(lower))) / LEVEL_STEP
        return denoised + slope * (log_told - log_told.detach())


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
            vectors = vectors / values.clamp(min=max(float(values.max()) * SMALLEST, 1e-30)).sqrt()
        bases.append(allowed @ vectors)
    return bases
