"""The node that gives the embedded demo model."""

from __future__ import annotations

from typing import Any, ClassVar

from .host import get_host


class FewStepDemoCheckpoint:
    """MODEL, CLIP and VAE of the digit model that comes with the pack."""

    DISPLAY_NAME = "Demo Checkpoint (FewStep)"
    CATEGORY = "FewStep/demo"
    DESCRIPTION = (
        "A tiny digit model that comes with the pack: no download, runs on a CPU in seconds. Its prompts are one digit, "
        "'7' or 'seven'; an empty prompt is any digit. Use 64x64 latents."
    )
    SEARCH_ALIASES: ClassVar[list[str]] = ["example model", "digits", "load checkpoint", "mnist"]
    RETURN_TYPES = ("MODEL", "CLIP", "VAE")
    OUTPUT_TOOLTIPS = (
        "The network, for any sampler node.", "For CLIP Text Encode.", "For VAE Decode and VAE Encode (factor 8, 4 channels).",
    )
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's description of the inputs."""
        from ..demo import FORMS

        return {"required": {"form": (list(FORMS), {
            "default": "eps",
            "tooltip": "What the network predicts: noise (eps), velocity on the variance-preserving path (v), or "
                       "rectified flow (flow). Three networks, trained alike.",
        })}}

    def load(self, form: str) -> tuple[Any, Any, Any]:
        """Loads the model through the host."""
        return get_host().demo_checkpoint(form)


NODES = (FewStepDemoCheckpoint,)
