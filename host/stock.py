"""The host's own nodes that the example workflows use: same ids, sockets, widgets and results as ComfyUI's."""

from __future__ import annotations

import secrets
from typing import Any, ClassVar

import torch

from . import stock_custom, stock_masks, stock_sampling
from .embedded import active
from .errors import HostInputError
from .files import save_images

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

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's description of the inputs."""
        side = {"default": 512, "min": 16, "max": MAX_SIDE, "step": 8}
        return {"required": {
            "width": ("INT", {**side, "tooltip": "Width in pixels."}),
            "height": ("INT", {**side, "tooltip": "Height in pixels."}),
            "batch_size": ("INT", {"default": 1, "min": 1, "max": 4096, "tooltip": "How many."}),
        }}

    def generate(self, width: int, height: int, batch_size: int = 1) -> tuple[dict[str, torch.Tensor]]:
        """Zeros [B, 4, H/8, W/8]."""
        return ({"samples": torch.zeros(batch_size, 4, height // 8, width // 8)},)


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


class SaveImage:
    """Pictures to PNG files."""

    DISPLAY_NAME = "Save Image"
    CATEGORY = "image"
    DESCRIPTION = "Saves pictures to the output folder, with the workflow inside."
    SEARCH_ALIASES: ClassVar[list[str]] = ["write", "export", "png"]
    RETURN_TYPES: tuple[str, ...] = ()
    FUNCTION = "save_images"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's description of the inputs."""
        return {
            "required": {
                "images": ("IMAGE", {"tooltip": "The pictures to save."}),
                "filename_prefix": ("STRING", {"default": "ComfyUI", "tooltip": "Start of the file name; may name a subfolder."}),
            },
            "hidden": {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"},
        }

    def save_images(
        self, images: torch.Tensor, filename_prefix: str = "ComfyUI", prompt: Any = None, extra_pnginfo: Any = None
    ) -> dict[str, Any]:
        """Writes the files and says where they are."""
        return self._save(images, active().output_directory, filename_prefix, "output", prompt, extra_pnginfo)

    @staticmethod
    def _save(images: torch.Tensor, folder: Any, prefix: str, kind: str, prompt: Any, extra: Any) -> dict[str, Any]:
        saved = save_images(images, folder, prefix, prompt, extra)
        return {"ui": {"images": [{**entry, "type": kind} for entry in saved]}}


class PreviewImage(SaveImage):
    """Pictures to temporary files."""

    DISPLAY_NAME = "Preview Image"
    DESCRIPTION = "Shows pictures; they are kept in a temporary folder only."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's description of the inputs."""
        return {
            "required": {"images": ("IMAGE", {"tooltip": "The pictures to show."})},
            "hidden": {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"},
        }

    def save_images(
        self, images: torch.Tensor, filename_prefix: str = "ComfyUI", prompt: Any = None, extra_pnginfo: Any = None
    ) -> dict[str, Any]:
        """Writes the files to the temporary folder, under names that do not repeat."""
        prefix = f"{filename_prefix}_temp_{secrets.token_hex(3)}"
        return self._save(images, active().temp_directory, prefix, "temp", prompt, extra_pnginfo)


NODES: tuple[type[Any], ...] = (
    CLIPTextEncode, EmptyLatentImage, VAEDecode, VAEEncode, SaveImage, PreviewImage, *stock_sampling.NODES, *stock_custom.NODES,
    *stock_masks.NODES,
)
