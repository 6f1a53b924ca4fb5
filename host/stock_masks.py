"""Stock nodes for masks and batches of pictures, under the host's names and with its results."""

from __future__ import annotations

from typing import Any

import torch

_SIZE = {"default": 512, "min": 1, "max": 16384, "step": 1}


class SolidMask:
    """A mask of one value."""

    DISPLAY_NAME = "SolidMask"
    CATEGORY = "mask"
    DESCRIPTION = "A mask of one value."
    RETURN_TYPES = ("MASK",)
    OUTPUT_TOOLTIPS = ("The mask.",)
    FUNCTION = "solid"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's description of the inputs."""
        return {"required": {
            "value": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01, "tooltip": "1 is painted, 0 is kept."}),
            "width": ("INT", {**_SIZE, "tooltip": "Width in pixels."}),
            "height": ("INT", {**_SIZE, "tooltip": "Height in pixels."}),
        }}

    def solid(self, value: float, width: int, height: int) -> tuple[torch.Tensor]:
        """A mask [1, H, W]."""
        return (torch.full((1, height, width), value, dtype=torch.float32),)


class MaskComposite:
    """One mask put into another."""

    DISPLAY_NAME = "MaskComposite"
    CATEGORY = "mask"
    DESCRIPTION = "Puts one mask into another at x, y."
    RETURN_TYPES = ("MASK",)
    OUTPUT_TOOLTIPS = ("The combined mask.",)
    FUNCTION = "combine"
    OPERATIONS = ("multiply", "add", "subtract", "and", "or", "xor")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's description of the inputs."""
        place = {"default": 0, "min": 0, "max": 16384, "step": 1}
        return {"required": {
            "destination": ("MASK", {"tooltip": "The mask to change."}), "source": ("MASK", {"tooltip": "What is put into it."}),
            "x": ("INT", {**place, "tooltip": "Left edge."}), "y": ("INT", {**place, "tooltip": "Upper edge."}),
            "operation": (list(cls.OPERATIONS), {"tooltip": "How the two are combined where they meet."}),
        }}

    def combine(self, destination: torch.Tensor, source: torch.Tensor, x: int, y: int, operation: str) -> tuple[torch.Tensor]:
        """The destination [B, H, W] with the source's values put in, kept in 0..1."""
        result = destination.reshape(-1, *destination.shape[-2:]).clone()
        piece = source.reshape(-1, *source.shape[-2:])
        height, width = min(piece.shape[-2], result.shape[-2] - y), min(piece.shape[-1], result.shape[-1] - x)
        if height <= 0 or width <= 0:
            return (result,)
        below = result[:, y : y + height, x : x + width]
        above = piece[:, :height, :width]
        bits = (below.round().bool(), above.round().bool())
        below.copy_({
            "multiply": lambda: below * above, "add": lambda: below + above, "subtract": lambda: below - above,
            "and": lambda: (bits[0] & bits[1]).float(), "or": lambda: (bits[0] | bits[1]).float(),
            "xor": lambda: (bits[0] ^ bits[1]).float(),
        }[operation]())
        return (result.clamp_(0.0, 1.0),)


class SetLatentNoiseMask:
    """A mask on a latent."""

    DISPLAY_NAME = "Set Latent Noise Mask"
    CATEGORY = "latent/inpaint"
    DESCRIPTION = "Marks the part of a latent that samplers may change."
    RETURN_TYPES = ("LATENT",)
    OUTPUT_TOOLTIPS = ("The latent with its mask.",)
    FUNCTION = "set_mask"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's description of the inputs."""
        return {"required": {
            "samples": ("LATENT", {"tooltip": "The latent."}), "mask": ("MASK", {"tooltip": "1 where it may change, in pixels."}),
        }}

    def set_mask(self, samples: dict[str, Any], mask: torch.Tensor) -> tuple[dict[str, Any]]:
        """The LATENT with ``noise_mask`` [B, 1, H, W]."""
        return ({**samples, "noise_mask": mask.reshape(-1, 1, *mask.shape[-2:])},)


class ImageBatch:
    """Two batches of pictures as one."""

    DISPLAY_NAME = "Batch Images"
    CATEGORY = "image"
    DESCRIPTION = "Puts the pictures of two batches behind one another."
    RETURN_TYPES = ("IMAGE",)
    OUTPUT_TOOLTIPS = ("All pictures, in the size of the first.",)
    FUNCTION = "batch"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's description of the inputs."""
        return {"required": {
            "image1": ("IMAGE", {"tooltip": "The first pictures."}), "image2": ("IMAGE", {"tooltip": "The pictures after them."}),
        }}

    def batch(self, image1: torch.Tensor, image2: torch.Tensor) -> tuple[torch.Tensor]:
        """Pictures [B1 + B2, H, W, C]; the second batch is resized (bilinear, cropped at the centre) to the first's size."""
        height, width = image1.shape[1:3]
        if image2.shape[1:3] != image1.shape[1:3]:
            moved = image2.movedim(-1, 1)
            scale = max(height / moved.shape[-2], width / moved.shape[-1])
            size = (max(round(moved.shape[-2] * scale), height), max(round(moved.shape[-1] * scale), width))
            moved = torch.nn.functional.interpolate(moved, size=size, mode="bilinear")
            top, left = (moved.shape[-2] - height) // 2, (moved.shape[-1] - width) // 2
            image2 = moved[..., top : top + height, left : left + width].movedim(1, -1)
        return (torch.cat([image1, image2.to(image1)]),)


NODES: tuple[type[Any], ...] = (SolidMask, MaskComposite, SetLatentNoiseMask, ImageBatch)
