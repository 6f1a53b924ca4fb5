"""Picture files: names with a counter, PNGs that carry their workflow, and paths that stay in their folder."""

from __future__ import annotations

import json
import os
import re
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .errors import HostInputError


def save_images(
    images: torch.Tensor, folder: Path, prefix: str, prompt: Any = None, extra: Mapping[str, Any] | None = None
) -> list[dict[str, str]]:
    """Writes pictures [B, H, W, 3] in 0..1 as ``prefix_00001_.png`` and on, after the highest number there is.

    Args:
        prefix: may name subfolders ("digits/seven") but not leave ``folder``; ``%width%``, ``%height%``, ``%year%``,
            ``%month%``, ``%day%``, ``%hour%``, ``%minute%``, ``%second%`` and ``%batch_num%`` are filled in.
        prompt: the workflow in API form, kept in the PNG's ``prompt`` text; ``extra`` holds further texts by name, such as
            ``workflow``. Both are stored as JSON.

    Returns:
        One {"filename", "subfolder"} per picture. A file appears whole or not at all.

    Raises HostInputError for a prefix that leads outside of the folder, and for pictures of another shape.
    """
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    if images.ndim != 4 or images.shape[-1] not in (3, 4):
        raise HostInputError(f"SaveImage expects pictures [B, H, W, 3], got {list(images.shape)}")
    target, name = _place(folder, _filled(prefix, images.shape[2], images.shape[1]))
    info = PngInfo()
    if prompt is not None:
        info.add_text("prompt", json.dumps(prompt))
    for key, value in (extra or {}).items():
        info.add_text(key, json.dumps(value))
    target.mkdir(parents=True, exist_ok=True)
    number = next_number(target, name)
    saved = []
    for i, pixels in enumerate(images):
        picture = Image.fromarray((pixels.detach().cpu().float() * 255.0).clamp(0, 255).to(torch.uint8).numpy())
        filename = f"{name.replace('%batch_num%', str(i))}_{number + i:05}_.png"
        temporary = target / f".partial-{secrets.token_hex(8)}.png"
        try:
            with open(temporary, "xb") as file:
                picture.save(file, format="PNG", pnginfo=info, compress_level=4)
            os.replace(temporary, target / filename)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        subfolder = target.relative_to(folder.resolve()).as_posix()
        saved.append({"filename": filename, "subfolder": "" if subfolder == "." else subfolder})
    return saved


def load_pictures(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """(pictures [B, H, W, 3] in 0..1, mask [B, H, W]) of a file; the frames of a moving picture are a batch.

    The mask is 1 where the picture is transparent; 64x64 zeros for pictures without transparency. Raises HostInputError.
    """
    import numpy as np
    from PIL import Image, ImageOps, ImageSequence

    pictures: list[torch.Tensor] = []
    masks: list[torch.Tensor] = []
    try:
        with Image.open(path) as file:
            for frame in ImageSequence.Iterator(file):
                upright = ImageOps.exif_transpose(frame)
                if upright.mode == "I":  # 16 bits
                    upright = upright.point(lambda value: value * (1 / 255))
                colours = torch.from_numpy(np.array(upright.convert("RGB"))).float() / 255.0
                if pictures and colours.shape != pictures[0].shape:
                    continue
                pictures.append(colours)
                masks.append(_transparency(upright))
    except (OSError, ValueError, SyntaxError) as error:  # what PIL raises on damaged files
        raise HostInputError(f"{path} is not a readable picture: {error}") from error
    return torch.stack(pictures), torch.stack(masks)


def _transparency(picture: Any) -> torch.Tensor:
    import numpy as np

    if "A" not in picture.getbands() and not (picture.mode == "P" and "transparency" in picture.info):
        return torch.zeros(64, 64)
    return 1.0 - torch.from_numpy(np.array(picture.convert("RGBA").getchannel("A"))).float() / 255.0


def inside(root: Path, *parts: str) -> Path | None:
    """The path of ``parts`` below ``root``, links followed; None where it is not below."""
    try:
        base = root.resolve()
        path = base.joinpath(*parts).resolve()
    except (ValueError, OSError, RuntimeError):
        return None
    if any("\0" in part or part.startswith(("/", "\\")) for part in parts):
        return None
    return path if path.is_relative_to(base) else None


def next_number(folder: Path, name: str) -> int:
    """One more than the highest counter among ``name_<digits>_*.png``; 1 in an empty folder."""
    pattern = re.compile(re.escape(name).replace("%batch_num%", r"\d+") + r"_(\d+)_.*\.png", re.IGNORECASE)
    numbers = [int(found[1]) for entry in folder.iterdir() if (found := pattern.fullmatch(entry.name))]
    return max(numbers, default=0) + 1


def _filled(prefix: str, width: int, height: int) -> str:
    now = time.localtime()
    values = {
        "width": str(width), "height": str(height), "year": str(now.tm_year), "month": f"{now.tm_mon:02}",
        "day": f"{now.tm_mday:02}", "hour": f"{now.tm_hour:02}", "minute": f"{now.tm_min:02}", "second": f"{now.tm_sec:02}",
    }
    return re.sub(r"%(\w+)%", lambda found: values.get(found[1], found[0]), prefix)


def _place(folder: Path, prefix: str) -> tuple[Path, str]:
    """(folder to write to, file name without counter)."""
    root = folder.resolve()
    target = (root / prefix).resolve() if prefix else root
    if not prefix.strip() or prefix.endswith(("/", "\\")) or "\0" in prefix or not target.is_relative_to(root) or target == root:
        raise HostInputError(f"filename_prefix is {prefix!r}, expected a name, or subfolder/name inside the output folder")
    return target.parent, target.name
