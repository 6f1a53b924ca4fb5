"""The host's own nodes that the example workflows use: same ids, sockets, widgets and results as ComfyUI's."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from . import stock_custom, stock_images, stock_lora, stock_masks, stock_sampling
from .errors import HostInputError

MAX_SIDE = 16384


class CLIPTextEncode:
    """Text to CONDITIONING."""

    DISPLAY_NAME = "CLIP Text Encode (Prompt)"
    CATEGORY = "conditioning"
    DESCRIPTION = "Encodes a text prompt with a CLIP model."
    RETURN_TYPES = ("CONDITIONING",)
    OUTPUT_TOOLTIPS = ("What the text means to the model.",)
    FUNCTION = "encode"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's description of the inputs."""
        return {"required": {
            "text": ("STRING", {"multiline": True, "dynamicPrompts": True, "tooltip": "The text to encode."}),
            "clip": ("CLIP", {"tooltip": "The CLIP model that encodes it."}),
        }}

    def encode(self, clip: Any, text: str) -> tuple[Any]:
        """CONDITIONING of the text."""
        if clip is None:
            raise HostInputError("CLIPTextEncode was given no CLIP: connect one from a checkpoint")
        return (clip.encode_from_tokens_scheduled(clip.tokenize(text)),)


class EmptyLatentImage:
    """A LATENT of zeros."""

    DISPLAY_NAME = "Empty Latent Image"
    CATEGORY = "latent"
    DESCRIPTION = "A batch of empty latents to be filled by sampling."
    RETURN_TYPES = ("LATENT",)
    OUTPUT_TOOLTIPS = ("The empty latents.",)
    FUNCTION = "generate"
    CHANNELS: ClassVar[int] = 4
    SIDE: ClassVar[dict[str, int]] = {"default": 512, "min": 16, "max": MAX_SIDE, "step": 8}

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's description of the inputs."""
        return {"required": {
            "width": ("INT", {**cls.SIDE, "tooltip": "Width in pixels."}),
            "height": ("INT", {**cls.SIDE, "tooltip": "Height in pixels."}),
            "batch_size": ("INT", {"default": 1, "min": 1, "max": 4096, "tooltip": "How many."}),
        }}

    def generate(self, width: int, height: int, batch_size: int = 1) -> tuple[dict[str, torch.Tensor]]:
        """Zeros [B, C, H/8, W/8]."""
        return ({"samples": torch.zeros(batch_size, self.CHANNELS, height // 8, width // 8)},)


class EmptySD3LatentImage(EmptyLatentImage):
    """The same with 16 channels."""

    DISPLAY_NAME = "EmptySD3LatentImage"
    CATEGORY = "latent/sd3"
    DESCRIPTION = "A batch of empty latents with 16 channels; a model with another number takes them too."
    CHANNELS = 16
    SIDE: ClassVar[dict[str, int]] = {"default": 1024, "min": 16, "max": MAX_SIDE, "step": 16}


class VAEDecode:
    """LATENT to IMAGE."""

    DISPLAY_NAME = "VAE Decode"
    CATEGORY = "latent"
    DESCRIPTION = "Decodes latents into pictures."
    RETURN_TYPES = ("IMAGE",)
    OUTPUT_TOOLTIPS = ("The pictures.",)
    FUNCTION = "decode"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's description of the inputs."""
        return {"required": {
            "samples": ("LATENT", {"tooltip": "The latents to decode."}), "vae": ("VAE", {"tooltip": "The VAE to decode with."}),
        }}

    def decode(self, vae: Any, samples: dict[str, Any]) -> tuple[torch.Tensor]:
        """Pictures [B, H, W, 3]; video frames join the batch."""
        images = vae.decode(samples["samples"])
        return (images.reshape(-1, *images.shape[-3:]) if images.ndim == 5 else images,)


class VAEEncode:
    """IMAGE to LATENT."""

    DISPLAY_NAME = "VAE Encode"
    CATEGORY = "latent"
    DESCRIPTION = "Encodes pictures into latents."
    RETURN_TYPES = ("LATENT",)
    OUTPUT_TOOLTIPS = ("The latents.",)
    FUNCTION = "encode"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's description of the inputs."""
        return {"required": {
            "pixels": ("IMAGE", {"tooltip": "The pictures to encode."}), "vae": ("VAE", {"tooltip": "The VAE to encode with."}),
        }}

    def encode(self, vae: Any, pixels: torch.Tensor) -> tuple[dict[str, torch.Tensor]]:
        """Latents [B, C, h, w]."""
        return ({"samples": vae.encode(pixels[..., :3])},)


NODES: tuple[type[Any], ...] = (
    CLIPTextEncode, EmptyLatentImage, EmptySD3LatentImage, VAEDecode, VAEEncode, *stock_images.NODES, *stock_lora.NODES,
    *stock_masks.NODES, *stock_sampling.NODES, *stock_custom.NODES,
)
