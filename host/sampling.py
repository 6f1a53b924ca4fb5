"""Sampling as the host does it: start noise, guidance, masks, and the SAMPLER object around a sampler function."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .errors import HostInputError

StepCallback = Callable[[int, torch.Tensor, torch.Tensor, int], None]  # (step, denoised, x, total)


def start_noise(latent: torch.Tensor, seed: int, batch_index: Sequence[int] | None = None) -> torch.Tensor:
    """Standard normal noise of the latent's shape: one CPU stream for the whole batch, in float32.

    With ``batch_index`` sample i gets what sample ``batch_index[i]`` of a whole batch would get.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    if batch_index is None:
        return torch.randn(latent.shape, dtype=torch.float32, generator=generator).to(latent.dtype)
    shape = (1, *latent.shape[1:])
    draws = [torch.randn(shape, dtype=torch.float32, generator=generator) for _ in range(max(batch_index) + 1)]
    return torch.cat([draws[i] for i in batch_index]).to(latent.dtype)


def full_mask(mask: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """A noise mask [H, W], [B, H, W] or [B, 1, H, W] of any size, as [B, C, h, w] of the latent's shape."""
    mask = mask.float().reshape(-1, 1, *mask.shape[-2:])
    if mask.shape[-2:] != tuple(shape[-2:]):
        mask = torch.nn.functional.interpolate(mask, size=tuple(shape[-2:]), mode="bilinear")
    mask = mask.repeat(math.ceil(shape[0] / len(mask)), 1, 1, 1)[: shape[0]]
    return mask.reshape(shape[0], *(1,) * (len(shape) - 3), *shape[-2:]).expand(*shape).contiguous()


def per_row(tensor: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """A CONDITIONING's tensor [N, T, C] for a batch: row i gets entry i, and after the last the first again."""
    return tensor.to(x).repeat(math.ceil(len(x) / len(tensor)), 1, 1)[: len(x)]


@dataclass(frozen=True)
class Noise:
    """The NOISE socket: start noise of a seed, or none."""

    seed: int = 0
    empty: bool = False

    def generate_noise(self, latent: Mapping[str, Any]) -> torch.Tensor:
        """Noise for a LATENT."""
        samples: torch.Tensor = latent["samples"]
        return torch.zeros_like(samples) if self.empty else start_noise(samples, self.seed, latent.get("batch_index"))


def fitted(samples: torch.Tensor, channels: int) -> torch.Tensor:
    """A latent [B, C, ...] that the model can take: an empty one (all zero) gets its number of channels.

    Raises HostInputError for other latents that the model cannot take.
    """
    if samples.shape[1] == channels:
        return samples
    if not samples.any():
        return samples.new_zeros(samples.shape[0], channels, *samples.shape[2:])
    raise HostInputError(
        f"the latent has {samples.shape[1]} channels {list(samples.shape)}, this model works on {channels}: "
        "use a latent made for it"
    )


class CFGGuider:
    """The GUIDER socket: classifier-free guidance. Called with (x, sigma) it gives the guided x_0; ``inner_model`` is the model.

    Without guidance (cfg 1) ``negative`` may be None.
    """

    def __init__(self, model: Any, positive: Any, negative: Any, cfg: float) -> None:
        self.model_patcher = model
        self.inner_model = model.patched_model()
        self.positive, self.negative, self.cfg = positive, negative, cfg

    def __call__(
        self, x: torch.Tensor, sigma: torch.Tensor, model_options: Mapping[str, Any] | None = None, seed: int | None = None
    ) -> torch.Tensor:
        """uncond + cfg*(cond - uncond); at cfg 1 the negative is not evaluated."""
        if math.isclose(self.cfg, 1.0):
            return self._predict(x, sigma, self.positive)
        if len(self.negative) == 1 == len(self.positive) and self.negative[0][0].shape[1] == self.positive[0][0].shape[1]:
            both = [self.negative[0][0], self.positive[0][0]]  # the host's order: uncond first
            context = torch.cat([per_row(c, x) for c in both])
            denoised = self.inner_model.apply_model(torch.cat([x, x]), torch.cat([sigma, sigma]), context)
            uncond, cond = denoised.chunk(2)
        else:
            uncond, cond = self._predict(x, sigma, self.negative), self._predict(x, sigma, self.positive)
        guided: torch.Tensor = uncond + (cond - uncond) * self.cfg
        return guided

    def sample(
        self, noise: torch.Tensor, latent_image: torch.Tensor, sampler: Any, sigmas: torch.Tensor, *,
        denoise_mask: torch.Tensor | None = None, callback: StepCallback | None = None, seed: int | None = None,
    ) -> torch.Tensor:
        """Samples a latent [B, C, ...]. Without sigmas the latent comes back."""
        if len(sigmas) == 0:
            return latent_image
        mask = None if denoise_mask is None else full_mask(denoise_mask, latent_image.shape)
        extra_args = {"model_options": self.model_patcher.model_options, "seed": seed}
        samples: torch.Tensor = sampler.sample(self, sigmas, extra_args, callback, noise, latent_image, mask)
        return samples.float()

    def _predict(self, x: torch.Tensor, sigma: torch.Tensor, conditioning: Any) -> torch.Tensor:
        """The mean over the entries of a CONDITIONING, by their strength."""
        weights = [float(options.get("strength", 1.0)) for _, options in conditioning]
        parts = [
            weight * self.inner_model.apply_model(x, sigma, per_row(tensor, x))
            for weight, (tensor, _) in zip(weights, conditioning, strict=True)
        ]
        return parts[0] if len(parts) == 1 and weights[0] == 1 else torch.stack(parts).sum(0) / sum(weights)


class MaskedModel:
    """What a sampler function is given as ``model``: keeps the unmasked region at every call.

    The state is replaced before the call and the prediction after it, by the given latent at the call's noise level.
    """

    def __init__(self, guider: CFGGuider, noise: torch.Tensor, latent_image: torch.Tensor) -> None:
        self.inner_model = guider
        self.noise, self.latent_image = noise, latent_image

    def __call__(
        self, x: torch.Tensor, sigma: torch.Tensor, denoise_mask: torch.Tensor | None = None,
        model_options: Mapping[str, Any] | None = None, seed: int | None = None,
    ) -> torch.Tensor:
        """The guided x_0 of ``x`` [B, ...] at ``sigma`` [B]."""
        if denoise_mask is None:
            return self.inner_model(x, sigma, model_options, seed)
        keep = 1.0 - denoise_mask
        known = self.inner_model.inner_model.model_sampling.noise_scaling(sigma, self.noise, self.latent_image)
        denoised = self.inner_model(x * denoise_mask + known * keep, sigma, model_options, seed)
        return denoised * denoise_mask + self.latent_image * keep


class KSampler:
    """The SAMPLER socket: a sampler function and its options, between start and end scaling."""

    def __init__(self, function: Callable[..., torch.Tensor], options: Mapping[str, Any]) -> None:
        self.sampler_function, self.extra_options = function, dict(options)

    def sample(
        self, guider: CFGGuider, sigmas: torch.Tensor, extra_args: dict[str, Any], callback: StepCallback | None,
        noise: torch.Tensor, latent_image: torch.Tensor, denoise_mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """The final latent, in the network's scale."""
        sampling = guider.inner_model.model_sampling
        first, top = float(sigmas[0]), float(sampling.sigma_max)
        full = first > top or math.isclose(first, top, rel_tol=1e-5)
        x = sampling.noise_scaling(sigmas[0], noise, latent_image, full)
        total = len(sigmas) - 1

        def report(info: dict[str, Any]) -> None:
            if callback is not None:
                callback(info["i"], info["denoised"], info["x"], total)

        samples = self.sampler_function(
            MaskedModel(guider, noise, latent_image), x, sigmas, extra_args={**extra_args, "denoise_mask": denoise_mask},
            callback=report, disable=True, **self.extra_options,
        )
        result: torch.Tensor = sampling.inverse_noise_scaling(sigmas[-1], samples)
        return result
