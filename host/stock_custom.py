"""Stock nodes for what SamplerCustomAdvanced takes: noise, guiders, samplers and sigmas."""

from __future__ import annotations

from typing import Any

import torch

from . import sampling
from .stock_samplers import sampler_by_name, sigmas_by_name
from .stock_sampling import CFG, DENOISE, MODEL, NEGATIVE, POSITIVE, SAMPLER_NAME, SCHEDULER, SEED, STEPS


class RandomNoise:
    """NOISE of a seed."""

    DISPLAY_NAME = "RandomNoise"
    CATEGORY = "sampling/custom_sampling/noise"
    DESCRIPTION = "Start noise; the same seed gives the same noise."
    RETURN_TYPES = ("NOISE",)
    OUTPUT_TOOLTIPS = ("The noise.",)
    FUNCTION = "get_noise"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's description of the inputs."""
        return {"required": {"noise_seed": SEED}}

    def get_noise(self, noise_seed: int) -> tuple[sampling.Noise]:
        """The NOISE."""
        return (sampling.Noise(noise_seed),)


class DisableNoise:
    """NOISE that is none."""

    DISPLAY_NAME = "DisableNoise"
    CATEGORY = RandomNoise.CATEGORY
    DESCRIPTION = "No start noise, for latents that already hold theirs."
    RETURN_TYPES = ("NOISE",)
    OUTPUT_TOOLTIPS = ("No noise.",)
    FUNCTION = "get_noise"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's description of the inputs."""
        return {"required": {}}

    def get_noise(self) -> tuple[sampling.Noise]:
        """The NOISE."""
        return (sampling.Noise(empty=True),)


class CFGGuider:
    """A GUIDER with two prompts."""

    DISPLAY_NAME = "CFGGuider"
    CATEGORY = "sampling/custom_sampling/guiders"
    DESCRIPTION = "Classifier-free guidance between two prompts."
    RETURN_TYPES = ("GUIDER",)
    OUTPUT_TOOLTIPS = ("The model with its prompts.",)
    FUNCTION = "get_guider"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's description of the inputs."""
        return {"required": {"model": MODEL, "positive": POSITIVE, "negative": NEGATIVE, "cfg": CFG}}

    def get_guider(self, model: Any, positive: Any, negative: Any, cfg: float) -> tuple[sampling.CFGGuider]:
        """The GUIDER."""
        return (sampling.CFGGuider(model, positive, negative, cfg),)


class BasicGuider:
    """A GUIDER with one prompt."""

    DISPLAY_NAME = "BasicGuider"
    CATEGORY = CFGGuider.CATEGORY
    DESCRIPTION = "One prompt without guidance."
    RETURN_TYPES = ("GUIDER",)
    OUTPUT_TOOLTIPS = CFGGuider.OUTPUT_TOOLTIPS
    FUNCTION = "get_guider"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's description of the inputs."""
        return {"required": {"model": MODEL, "conditioning": POSITIVE}}

    def get_guider(self, model: Any, conditioning: Any) -> tuple[sampling.CFGGuider]:
        """The GUIDER."""
        return (sampling.CFGGuider(model, conditioning, None, 1.0),)


class KSamplerSelect:
    """A SAMPLER by name."""

    DISPLAY_NAME = "KSamplerSelect"
    CATEGORY = "sampling/custom_sampling/samplers"
    DESCRIPTION = "A solver of the stock list, or one of FewStep's entries in it."
    RETURN_TYPES = ("SAMPLER",)
    OUTPUT_TOOLTIPS = ("The solver.",)
    FUNCTION = "get_sampler"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's description of the inputs."""
        return {"required": {"sampler_name": SAMPLER_NAME}}

    def get_sampler(self, sampler_name: str) -> tuple[sampling.KSampler]:
        """The SAMPLER."""
        return (sampler_by_name(sampler_name),)


class BasicScheduler:
    """SIGMAS by name."""

    DISPLAY_NAME = "BasicScheduler"
    CATEGORY = "sampling/custom_sampling/schedulers"
    DESCRIPTION = "A schedule of the stock list, or one of FewStep's entries in it."
    RETURN_TYPES = ("SIGMAS",)
    OUTPUT_TOOLTIPS = ("Falling noise levels, one more than steps.",)
    FUNCTION = "get_sigmas"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's description of the inputs."""
        return {"required": {"model": MODEL, "scheduler": SCHEDULER, "steps": STEPS, "denoise": DENOISE}}

    def get_sigmas(self, model: Any, scheduler: str, steps: int, denoise: float) -> tuple[torch.Tensor]:
        """The SIGMAS."""
        return (sigmas_by_name(model.get_model_object("model_sampling"), scheduler, steps, denoise),)


class SplitSigmas:
    """A schedule in two parts."""

    DISPLAY_NAME = "SplitSigmas"
    CATEGORY = "sampling/custom_sampling/sigmas"
    DESCRIPTION = "Cuts a schedule in two, which share the sigma at the cut."
    RETURN_TYPES = ("SIGMAS", "SIGMAS")
    RETURN_NAMES = ("high_sigmas", "low_sigmas")
    OUTPUT_TOOLTIPS = ("The noisy part.", "The rest.")
    FUNCTION = "get_sigmas"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's description of the inputs."""
        return {"required": {
            "sigmas": ("SIGMAS", {"tooltip": "The schedule to cut."}),
            "step": ("INT", {"default": 0, "min": 0, "max": 10_000, "tooltip": "How many steps the first part has."}),
        }}

    def get_sigmas(self, sigmas: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(SIGMAS up to the cut, SIGMAS from it)."""
        return sigmas[: step + 1], sigmas[step:]


NODES: tuple[type[Any], ...] = (
    RandomNoise, DisableNoise, CFGGuider, BasicGuider, KSamplerSelect, BasicScheduler, SplitSigmas,
)
