"""The pictures that a workflow makes, and a small sheet of them."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image


def pictures(prompt: Mapping[str, Any]) -> list[Image]:
    """What a workflow saves and previews, run on the embedded host."""
    from PIL import Image

    from .embedded import EmbeddedHost
    from .executor import Executor

    with tempfile.TemporaryDirectory() as folder:
        result = Executor(EmbeddedHost(folder)).execute(prompt, {})
        files = [Path(folder) / i["subfolder"] / i["filename"] for ui in result.ui.values() for i in ui.get("images", [])]
        return [Image.open(file).convert("RGB") for file in files]


def thumbnail(prompt: Mapping[str, Any]) -> bytes:
    """The pictures of a workflow as one JPEG, at most four to a row."""
    from io import BytesIO

    from PIL import Image

    shown = pictures(prompt)
    if len(shown) == 1 and shown[0].width > 160:  # a labelled grid
        sheet = shown[0]
        sheet.thumbnail((656, 656), Image.Resampling.LANCZOS)
    else:
        columns = min(4, len(shown))
        sheet = Image.new("RGB", (columns * 164 - 4, -(-len(shown) // columns) * 164 - 4), "gray")
        for i, picture in enumerate(shown):
            sheet.paste(picture.resize((160, 160), Image.Resampling.BICUBIC), (i % columns * 164, i // columns * 164))
    buffer = BytesIO()
    sheet.save(buffer, "JPEG", quality=88)
    return buffer.getvalue()
