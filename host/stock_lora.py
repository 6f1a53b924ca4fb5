"""The host's own LoRA loader, for plain LoRAs: same id, sockets, widgets and result as ComfyUI's."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any, ClassVar

from .embedded import active

log = logging.getLogger("fewstep")


class LoraLoaderModelOnly:
    """A LoRA on a MODEL."""

    DISPLAY_NAME = "LoraLoaderModelOnly"
    CATEGORY = "loaders"
    DESCRIPTION = "Loads a LoRA onto a diffusion model; keys that do not fit are logged."
    SEARCH_ALIASES: ClassVar[list[str]] = ["lora", "load lora"]
    RETURN_TYPES = ("MODEL",)
    OUTPUT_TOOLTIPS = ("The model with the LoRA.",)
    FUNCTION = "load_lora_model_only"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's description of the inputs."""
        from ..nodes.lora_parts import lora_widget

        return {"required": {
            "model": ("MODEL", {"tooltip": "The model to change."}),
            "lora_name": lora_widget(),
            "strength_model": ("FLOAT", {
                "default": 1.0, "min": -100.0, "max": 100.0, "step": 0.01, "tooltip": "Factor on the change."}),
        }}

    @classmethod
    def IS_CHANGED(cls, lora_name: str = "", **ignored: Any) -> str:
        """The file's size and time."""
        from ..nodes.lora_steps import changed_or_error

        return changed_or_error(lora_name)

    def load_lora_model_only(self, model: Any, lora_name: str, strength_model: float) -> tuple[Any]:
        """The changed MODEL. Like the host it takes alpha from the tensors alone, and goes on with what fits."""
        from ..nodes.lora_parts import opened
        from ..samplers.adapters import Choices, load_adapter
        from ..samplers.adapters.load import NONE

        if strength_model == 0:
            return (model,)
        file = replace(opened(lora_name), metadata={}, config={})
        adapters = active().adapters
        choices = Choices(strength_model, NONE, allow_partial=True)
        adapter = load_adapter(file, adapters.targets(model), {}, choices)
        for warning in adapter.report.warnings:
            log.warning("%s", warning)
        return (adapters.patch(model, adapter.patches, strength_model),)


NODES: tuple[type[Any], ...] = (LoraLoaderModelOnly,)
