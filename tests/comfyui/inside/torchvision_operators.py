"""Stands in for torchvision's compiled operators where they are missing (a CPU torch beside a CUDA torchvision)."""

import sys

import torch

LIBRARY = None  # keeps the definitions alive


def provide():
    """To be called before ComfyUI is imported."""
    global LIBRARY
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        LIBRARY = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            LIBRARY.define(f"{operator}(Tensor d, Tensor s, float t) -> Tensor")
