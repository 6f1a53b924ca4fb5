"""MODEL: a network with its sampling, behind the few methods of the host's ModelPatcher that nodes use."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import torch

from ..samplers.adapters import Patch, merge
from ..samplers.adapters.forward import ForwardAdditions
from .model_sampling import DiscreteSampling, FlowSampling


class HostModel:
    """The network and its ``model_sampling``; ``apply_model`` gives x_0.

    Attributes:
        diffusion_model: called with (x [B, C, H, W], timesteps [B], context=[B, T, C']).
        latent_channels: C.
        weights: weights by name that stand in for the network's own (merged LoRAs).
        additions: LoRAs that are added while the network runs.
    """

    weights: Mapping[str, torch.Tensor] | None = None
    additions: tuple[ForwardAdditions, ...] = ()

    def __init__(self, network: Any, model_sampling: Any, latent_channels: int = 4) -> None:
        self.diffusion_model = network
        self.model_sampling = model_sampling
        self.latent_channels = latent_channels

    def apply_model(self, x: torch.Tensor, sigma: torch.Tensor, context: torch.Tensor | None) -> torch.Tensor:
        """x_0 of the state ``x`` [B, ...] at ``sigma`` [B], float32, without guidance."""
        sampling = self.model_sampling
        seen, t = sampling.calculate_input(sigma, x), sampling.timestep(sigma).float()
        with ExitStack() as stack:
            for additions in self.additions:
                stack.enter_context(additions.attached(self.diffusion_model, sigma))
            if self.weights is None:
                output = self.diffusion_model(seen, t, context=context)
            else:
                output = torch.func.functional_call(self.diffusion_model, dict(self.weights), (seen, t), {"context": context})
        denoised: torch.Tensor = sampling.calculate_denoised(sigma, output.float(), x)
        return denoised

    def process_latent_in(self, latent: torch.Tensor) -> torch.Tensor:
        """From a LATENT to the network's scale: the same."""
        return latent

    def process_latent_out(self, latent: torch.Tensor) -> torch.Tensor:
        """Back to the scale of a LATENT."""
        return latent


class ModelPatcher:
    """A model and the patches on it; clones share the model."""

    def __init__(self, model: Any, model_options: dict[str, Any] | None = None) -> None:
        self.model = model
        self.model_options: dict[str, Any] = {"transformer_options": {}} if model_options is None else model_options
        self.object_patches: dict[str, Any] = {}
        self.weight_patches: list[tuple[Patch, float]] = []
        self.additions: tuple[ForwardAdditions, ...] = ()
        self._merged: dict[str, torch.Tensor] | None = None

    def clone(self) -> ModelPatcher:
        """A patcher whose patches and options can be changed alone."""
        other = ModelPatcher(self.model, copy.deepcopy(self.model_options))
        other.object_patches = dict(self.object_patches)
        other.weight_patches, other.additions, other._merged = list(self.weight_patches), self.additions, self._merged
        return other

    def add_patches(self, patches: Iterable[Patch], strength: float) -> None:
        """Changes of weights, merged when the model is first used."""
        self.weight_patches += [(patch, strength) for patch in patches]
        self._merged = None

    def add_object_patch(self, name: str, value: Any) -> None:
        """Replaces an attribute of the model, such as ``model_sampling``, for this patcher alone."""
        self.object_patches[name] = value

    def get_model_object(self, name: str) -> Any:
        """The patched attribute, or the model's own; dotted names go deeper."""
        if name in self.object_patches:
            return self.object_patches[name]
        value = self.model
        for part in name.split("."):
            value = getattr(value, part)
        return value

    def patched_model(self) -> Any:
        """The model as samplers see it, with the patches in place."""
        if not (self.object_patches or self.weight_patches or self.additions):
            return self.model
        model = copy.copy(self.model)
        for name, value in self.object_patches.items():
            setattr(model, name, value)
        if self.weight_patches:
            self._merged = self._merge() if self._merged is None else self._merged
            model.weights = self._merged
        model.additions = self.additions
        return model

    def _merge(self) -> dict[str, torch.Tensor]:
        state = self.model.diffusion_model.state_dict()
        by_name: dict[str, list[tuple[Patch, float]]] = {}
        for patch, strength in self.weight_patches:
            by_name.setdefault(patch.key.removeprefix("diffusion_model."), []).append((patch, strength))
        return {name: merge(state[name], patches) for name, patches in by_name.items()}


def demo_sampling(demo: Any) -> Any:
    """The ``model_sampling`` of a demo by its ``prediction`` and ``alphas_cumprod``."""
    return FlowSampling() if demo.prediction == "flow" else DiscreteSampling(demo.alphas_cumprod, demo.prediction)


def demo_model(demo: Any) -> ModelPatcher:
    """MODEL from a loaded demo (``net``, ``prediction``, ``alphas_cumprod``)."""
    return ModelPatcher(HostModel(demo.net, demo_sampling(demo)))
