"""Stock nodes that sample: same ids, sockets, widgets and results as ComfyUI's."""

from __future__ import annotations

from typing import Any

import torch

from .embedded import active
from .sampling import CFGGuider, Noise
from .stock_samplers import SAMPLERS, SCHEDULERS, sampler_by_name, sigmas_by_name

MODEL = ("MODEL", {"tooltip": "The model that removes the noise."})
POSITIVE = ("CONDITIONING", {"tooltip": "What the picture should show."})
NEGATIVE = ("CONDITIONING", {"tooltip": "What to keep away from; not evaluated at cfg 1."})
CFG = ("FLOAT", {
    "default": 8.0, "min": 0.0, "max": 100.0, "step": 0.1, "round": 0.01, "tooltip": "Guidance; 1 is none, and twice as fast.",
})
SEED = ("INT", {"default": 0, "min": 0, "max": 2**64 - 1, "control_after_generate": True, "tooltip": "Decides the noise."})
STEPS = ("INT", {"default": 20, "min": 1, "max": 10_000, "tooltip": "Number of steps."})
SAMPLER_NAME = (list(SAMPLERS), {"tooltip": "The solver."})
SCHEDULER = (list(SCHEDULERS), {"tooltip": "How the steps are spread."})
DENOISE = ("FLOAT", {
    "default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01, "tooltip": "Below 1: only the last part of the schedule.",
})
SAMPLER = ("SAMPLER", {"tooltip": "The solver."})
SIGMAS = ("SIGMAS", {"tooltip": "The schedule."})
LATENT = ("LATENT", {"tooltip": "The latent to fill or to change."})


class KSampler:
    """Sampling in one node."""

    DISPLAY_NAME = "KSampler"
    CATEGORY = "sampling"
    DESCRIPTION = "Samples with a solver and a schedule of the stock lists, or FewStep's entries in them."
    RETURN_TYPES = ("LATENT",)
    OUTPUT_TOOLTIPS = ("The sampled latent.",)
    FUNCTION = "sample"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's description of the inputs."""
        return {"required": {
            "model": MODEL, "seed": SEED, "steps": STEPS, "cfg": CFG, "sampler_name": SAMPLER_NAME, "scheduler": SCHEDULER,
            "positive": POSITIVE, "negative": NEGATIVE, "latent_image": LATENT, "denoise": DENOISE,
        }}

    def sample(
        self, model: Any, seed: int, steps: int, cfg: float, sampler_name: str, scheduler: str, positive: Any, negative: Any,
        latent_image: dict[str, Any], denoise: float = 1.0,
    ) -> tuple[dict[str, Any]]:
        """The new LATENT."""
        sigmas = sigmas_by_name(model.get_model_object("model_sampling"), scheduler, steps, denoise)
        guider = CFGGuider(model, positive, negative, cfg)
        return (active().sample_guided(guider, Noise(seed), sampler_by_name(sampler_name), sigmas, latent_image)[0],)


class SamplerCustom:
    """Sampling with a SAMPLER and SIGMAS."""

    DISPLAY_NAME = "SamplerCustom"
    CATEGORY = "sampling/custom_sampling"
    DESCRIPTION = "Samples with any sampler and any sigmas."
    RETURN_TYPES = ("LATENT", "LATENT")
    RETURN_NAMES = ("output", "denoised_output")
    OUTPUT_TOOLTIPS = ("The result at the last sigma.", "The model's last prediction of the clean latent.")
    FUNCTION = "sample"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's description of the inputs."""
        add_noise = ("BOOLEAN", {"default": True, "tooltip": "Off: the latent already holds its noise."})
        return {"required": {
            "model": MODEL, "add_noise": add_noise, "noise_seed": SEED, "cfg": CFG, "positive": POSITIVE, "negative": NEGATIVE,
            "sampler": SAMPLER, "sigmas": SIGMAS, "latent_image": LATENT,
        }}

    def sample(
        self, model: Any, add_noise: bool, noise_seed: int, cfg: float, positive: Any, negative: Any, sampler: Any,
        sigmas: torch.Tensor, latent_image: dict[str, Any],
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """(LATENT at the last sigma, LATENT of the last prediction)."""
        noise = Noise(noise_seed, empty=not add_noise)
        return active().sample_guided(CFGGuider(model, positive, negative, cfg), noise, sampler, sigmas, latent_image)


class SamplerCustomAdvanced:
    """Sampling with a NOISE, a GUIDER, a SAMPLER and SIGMAS."""

    DISPLAY_NAME = "SamplerCustomAdvanced"
    CATEGORY = SamplerCustom.CATEGORY
    DESCRIPTION = "Samples with any noise, guidance, sampler and sigmas."
    RETURN_TYPES = SamplerCustom.RETURN_TYPES
    RETURN_NAMES = SamplerCustom.RETURN_NAMES
    OUTPUT_TOOLTIPS = SamplerCustom.OUTPUT_TOOLTIPS
    FUNCTION = "sample"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's description of the inputs."""
        return {"required": {
            "noise": ("NOISE", {"tooltip": "The start noise."}), "guider": ("GUIDER", {"tooltip": "The model with its prompts."}),
            "sampler": SAMPLER, "sigmas": SIGMAS, "latent_image": LATENT,
        }}

    def sample(
        self, noise: Any, guider: Any, sampler: Any, sigmas: torch.Tensor, latent_image: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """(LATENT at the last sigma, LATENT of the last prediction)."""
        return active().sample_guided(guider, noise, sampler, sigmas, latent_image)


NODES: tuple[type[Any], ...] = (KSampler, SamplerCustom, SamplerCustomAdvanced)
