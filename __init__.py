"""FewStep: few-step solvers and distilled models for ComfyUI.

This folder is both the ComfyUI pack and the Python package ``fewstep``. ComfyUI reads ``NODE_CLASS_MAPPINGS``,
``NODE_DISPLAY_NAME_MAPPINGS`` and ``WEB_DIRECTORY`` from here; they are made when first asked for, so that a program
that only wants ``fewstep.samplers`` does not pay for the nodes.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
_PACK = ("NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY")


def __getattr__(name: str) -> Any:
    """The three names that ComfyUI looks for (PEP 562). Without a single working node there is no web folder either."""
    if name not in _PACK:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import nodes

    if name == "WEB_DIRECTORY":
        return "./web" if nodes.NODE_CLASS_MAPPINGS else None
    return getattr(nodes, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PACK})
