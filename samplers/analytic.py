"""An analytic model to test solvers on: data of a per-pixel Gaussian mixture, whose denoiser is known exactly.

Every pixel is an independent draw from a mixture over its channels with diagonal covariances. Two sets of weights make
the conditional and the unconditional model, so classifier-free guidance can be tested too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from .frames import Frame

COMPONENTS = 5


@dataclass(frozen=True, eq=False)
class GaussianMixture:
    """``mu`` and ``s`` [K, C]: means and standard deviations; ``w_cond``, ``w_uncond`` [K]: weights (sum 1)."""

    mu: torch.Tensor
    s: torch.Tensor
    w_cond: torch.Tensor
    w_uncond: torch.Tensor

    @classmethod
    def make(cls, seed: int, channels: int = 4, scale: float = 1.0) -> GaussianMixture:
        """The testbed's mixture of ``seed``: the one that the golden data were made with. ``scale`` shrinks mu and s."""
        g = torch.Generator().manual_seed(seed)
        mu = 1.2 * torch.randn(COMPONENTS, channels, generator=g, dtype=torch.float64)
        s = 0.15 + 0.35 * torch.rand(COMPONENTS, channels, generator=g, dtype=torch.float64)
        w_uncond = torch.softmax(torch.randn(COMPONENTS, generator=g, dtype=torch.float64), 0)
        w_cond = torch.softmax(3.0 * torch.randn(COMPONENTS, generator=g, dtype=torch.float64), 0)
        return cls(scale * mu, scale * s, w_cond, w_uncond)

    def posterior_mean(
        self, x: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """E[x_0 | x] for ``x`` [B, C, ...] = alpha x_0 + sigma eps; alpha and sigma are 0-dimensional or [B]."""
        rows = x.movedim(1, -1)  # [B, ..., C]
        alpha, sigma = (v.to(x.dtype).reshape(-1, *(1,) * x.ndim) for v in (alpha, sigma))
        mu, s = self.mu.to(x), self.s.to(x)
        variance = alpha**2 * s**2 + sigma**2
        d = rows.unsqueeze(-2) - alpha * mu  # [B, ..., K, C]
        log_p = weights.to(x).log() - 0.5 * (d**2 / variance + variance.log()).sum(-1)
        share = torch.softmax(log_p, -1).unsqueeze(-1)
        mean = (share * (mu + alpha * s**2 / variance * d)).sum(-2)
        return mean.movedim(-1, 1)

    def guided(
        self, x: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor, guidance_scale: float = 1.0
    ) -> torch.Tensor:
        """uncond + scale*(cond - uncond); scale 1 is the conditional model alone."""
        cond = self.posterior_mean(x, alpha, sigma, self.w_cond)
        if guidance_scale == 1.0:
            return cond
        uncond = self.posterior_mean(x, alpha, sigma, self.w_uncond)
        return uncond + guidance_scale * (cond - uncond)

    def denoiser(self, frame: Frame, guidance_scale: float = 1.0) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        """``D(x, sigma) -> x_0`` in ``frame``; runs on the device without reading from it."""

        def denoise(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            if frame.scaling == "unit":
                alpha = torch.ones_like(sigma)
            else:
                alpha = 1 - sigma if frame.scaling == "flow" else ((1 - sigma) * (1 + sigma)).sqrt()
            return self.guided(x, alpha, sigma, guidance_scale)

        return denoise


def start_noise(seed: int, shape: tuple[int, ...] = (2, 4, 8, 8)) -> torch.Tensor:
    """The testbed's unit noise ``x_T(seed)``, float64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
