"""The host's ``model_sampling`` objects: how noise is mixed in, and what the network's output means.

=============  ====================  =================================  =======================  =========
family         network input         x_0 from output o                  start                    end
=============  ====================  =================================  =======================  =========
eps            x/sqrt(s^2+1)         x - s*o                            s*noise + latent         x
v              x/sqrt(s^2+1)         x/(s^2+1) - o*s/sqrt(s^2+1)        s*noise + latent         x
flow           x                     x - s*o                            s*noise + (1-s)*latent   x/(1-s)
=============  ====================  =================================  =======================  =========

Arithmetic is float32 in the host's own order of operations. ``sigma`` arguments are tensors of shape [B] or [].
"""

from __future__ import annotations

from typing import Any

import torch

PAST_THE_START = 999999999.9  # the host's sigma for progress <= 0 of a noise- or v-prediction model


def per_sample(sigma: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """``sigma`` with ones behind its batch dimension, so that it broadcasts over ``like``."""
    return sigma.reshape(sigma.shape[:1] + (1,) * (like.ndim - 1))


class SigmaTable:
    """A model's noise levels, rising; what schedulers ask for their ends."""

    sigmas: torch.Tensor

    @property
    def sigma_min(self) -> torch.Tensor:
        """The table's smallest sigma."""
        return self.sigmas[0]

    @property
    def sigma_max(self) -> torch.Tensor:
        """The table's largest sigma."""
        return self.sigmas[-1]


class DiscreteSampling(SigmaTable):
    """Noise or v prediction with a table of training steps: the alpha = 1 frame."""

    def __init__(self, alphas_cumprod: Any, prediction: str) -> None:
        ac = torch.as_tensor(alphas_cumprod, dtype=torch.float64)
        self.prediction = prediction
        self.sigmas = ((1.0 - ac) / ac).sqrt().float()
        self.log_sigmas = self.sigmas.log()

    def timestep(self, sigma: torch.Tensor) -> torch.Tensor:
        """Number of the training step nearest in log sigma; same shape as ``sigma``."""
        distance = (sigma.float().log().reshape(1, -1) - self.log_sigmas[:, None]).abs()
        return distance.argmin(dim=0).reshape(sigma.shape)

    def sigma(self, timestep: torch.Tensor) -> torch.Tensor:
        """Sigma of a training step; log sigma is linear in between."""
        t = torch.as_tensor(timestep).float().clamp(0, len(self.sigmas) - 1)
        low, high = t.floor().long(), t.ceil().long()
        return torch.lerp(self.log_sigmas[low], self.log_sigmas[high], t.frac()).exp()

    def percent_to_sigma(self, percent: float) -> float:
        """Sigma at a progress of 0 (start) to 1 (end)."""
        if percent <= 0.0:
            return PAST_THE_START
        if percent >= 1.0:
            return 0.0
        return float(self.sigma(torch.tensor((1.0 - percent) * (len(self.sigmas) - 1))))

    def calculate_input(self, sigma: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """What the network sees of the state."""
        return noise / (per_sample(sigma, noise) ** 2 + 1.0) ** 0.5

    def calculate_denoised(self, sigma: torch.Tensor, output: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """x_0 from the network's output."""
        s = per_sample(sigma, output)
        if self.prediction == "eps":
            return x - output * s
        if self.prediction == "x_0":
            return output
        return x / (s**2 + 1.0) - output * s / (s**2 + 1.0) ** 0.5

    def noise_scaling(
        self, sigma: torch.Tensor, noise: torch.Tensor, latent_image: torch.Tensor, max_denoise: bool = False
    ) -> torch.Tensor:
        """The state at ``sigma``; at a full start the noise also stands for the missing picture."""
        s = per_sample(sigma, noise)
        return noise * (torch.sqrt(1.0 + s**2) if max_denoise else s) + latent_image

    def inverse_noise_scaling(self, sigma: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
        """From the final state to the latent: the same."""
        return latent


class FlowSampling(SigmaTable):
    """Rectified flow with a time shift: sigma = shift*u / (1 + (shift-1)*u), u from 0 to 1, in ``steps`` steps."""

    def __init__(self, shift: float = 1.0, steps: int = 1000) -> None:
        self.shift, self.steps = shift, steps
        self.sigmas = self.sigma(torch.arange(1, steps + 1, dtype=torch.float32))

    def timestep(self, sigma: torch.Tensor) -> torch.Tensor:
        """What the network is told: 1000 sigma."""
        return sigma * self.steps

    def sigma(self, timestep: torch.Tensor) -> torch.Tensor:
        """Sigma of a time in 0..``steps`` before the shift."""
        u = torch.as_tensor(timestep) / self.steps
        return self.shift * u / (1.0 + (self.shift - 1.0) * u)

    def percent_to_sigma(self, percent: float) -> float:
        """Sigma at a progress of 0 (start) to 1 (end)."""
        if percent <= 0.0:
            return 1.0
        if percent >= 1.0:
            return 0.0
        u = 1.0 - percent
        return self.shift * u / (1.0 + (self.shift - 1.0) * u)

    def calculate_input(self, sigma: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """What the network sees of the state: all of it."""
        return noise

    def calculate_denoised(self, sigma: torch.Tensor, output: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """x_0 from the network's velocity."""
        return x - output * per_sample(sigma, output)

    def noise_scaling(
        self, sigma: torch.Tensor, noise: torch.Tensor, latent_image: torch.Tensor, max_denoise: bool = False
    ) -> torch.Tensor:
        """The state at ``sigma``, on the straight line between picture and noise."""
        s = per_sample(sigma, noise)
        return s * noise + (1.0 - s) * latent_image

    def inverse_noise_scaling(self, sigma: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
        """From the final state to the latent."""
        return latent / (1.0 - per_sample(sigma, latent))
