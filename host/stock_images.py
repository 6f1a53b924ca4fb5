"""Stock nodes for picture files: the ids, inputs and results of ComfyUI's."""

from __future__ import annotations

import hashlib
import re
import secrets
from pathlib import Path
from typing import Any, ClassVar

import torch

from ..nodes.host import HostError
from .embedded import active
from .errors import HostInputError
from .files import inside, load_pictures, save_images

PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif"}


def input_file(name: str) -> Path:
    """The file of a name such as "cat.png", "sub/cat.png" or "cat.png [output]". Raises HostInputError."""
    host = active()
    folders = {"input": host.input_directory, "output": host.output_directory, "temp": host.temp_directory}
    found = re.fullmatch(r"(.*?)(?: \[(input|output|temp)\])?", name, re.DOTALL)
    assert found
    folder = folders[found[2] or "input"]
    path = inside(folder, found[1])
    if path is None or not path.is_file():
        raise HostInputError(f"there is no picture '{found[1]}' in {folder}")
    return path


class LoadImage:
    """A picture file."""

    DISPLAY_NAME = "Load Image"
    CATEGORY = "image"
    DESCRIPTION = "Opens a picture of the input folder; the mask is what is transparent in it."
    RETURN_TYPES = ("IMAGE", "MASK")
    OUTPUT_TOOLTIPS = ("The picture.", "1 where it is transparent; 64x64 zeros for a picture without transparency.")
    FUNCTION = "load_image"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's description of the inputs."""
        try:
            folder = active().input_directory
        except HostError:  # only to be described
            names = []
        else:
            names = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in PICTURES) if folder.is_dir() else []
        return {"required": {"image": (names, {"image_upload": True, "tooltip": "A file of the input folder."})}}

    @classmethod
    def VALIDATE_INPUTS(cls, image: str) -> bool | str:
        """Says before the run that a file is not there."""
        try:
            input_file(image)
        except HostInputError as error:
            return str(error)
        return True

    @classmethod
    def IS_CHANGED(cls, image: str) -> str:
        """A digest of the file."""
        return hashlib.sha256(input_file(image).read_bytes()).hexdigest()

    def load_image(self, image: str) -> tuple[torch.Tensor, torch.Tensor]:
        """(pictures [B, H, W, 3] in 0..1, mask [B, H, W])."""
        return load_pictures(input_file(image))


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


NODES: tuple[type[Any], ...] = (LoadImage, SaveImage, PreviewImage)
