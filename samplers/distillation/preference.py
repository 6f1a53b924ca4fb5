"""Preference losses: PSO (Miao et al., arXiv 2410.03190) for distilled models, SPO (Liang et al., arXiv 2406.04314) by step.

Both compare how likely the student and the reference (the same model with its adapter off) make the winner's and the
loser's next state; only the step's Gaussian differs: re-noising for PSO, DDIM with eta 1 for SPO.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import check_range
from .objective import per_sample
from .table import TimeTable


def renoise_step(table: TimeTable, x_0: Tensor, t_next: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [B, ...] and standard deviation [B, 1, ...] of a re-noised next state: alpha' x_0, sigma'."""
    alpha, sigma = table.at(t_next, x_0)
    return alpha * x_0, sigma


def ddim_posterior(table: TimeTable, x: Tensor, x_0: Tensor, t: Tensor, t_next: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of DDIM's next state with eta 1 (Song et al. 2021, eq. 12 and 16), for VP tables."""
    alpha, sigma = table.at(t, x)
    alpha_next, sigma_next = table.at(t_next, x)
    variance = sigma_next**2 / sigma**2 * (1 - alpha**2 / alpha_next**2)
    eps = table.noise_of(x, x_0, t)
    return alpha_next * x_0 + (sigma_next**2 - variance).clamp(min=0.0).sqrt() * eps, variance.sqrt()


def log_prob(x_next: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Log density [B] of a Gaussian step, averaged over elements (not summed: that keeps the ratios near 1)."""
    density = -((x_next - mean) ** 2) / (2 * std**2) - std.log() - 0.5 * math.log(2 * math.pi)
    return per_sample(density).flatten()


def preference_loss(
    win: Tensor, win_reference: Tensor, lose: Tensor, lose_reference: Tensor, *, beta: float, clip: float = 0.1
) -> Tensor:
    """Mean of ``-log sigmoid(beta * sum_j (log r_win - log r_lose))`` over pairs, r = student over reference, clipped.

    Log densities [B], or [B, J] for trajectories of J noisy steps, which are summed. ``clip`` bounds each ratio to
    1 - clip..1 + clip; outside, its gradient is zero. PSO: beta 50, SPO: beta 10.
    """
    check_range("clip", clip, 0.0, 1.0)
    margin = _log_ratio(win, win_reference, clip) - _log_ratio(lose, lose_reference, clip)
    return -F.logsigmoid(beta * margin.reshape(len(margin), -1).sum(dim=1)).mean()


def _log_ratio(student: Tensor, reference: Tensor, clip: float) -> Tensor:
    return torch.exp(student - reference).clamp(1 - clip, 1 + clip).log()
