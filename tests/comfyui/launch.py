"""Starts ComfyUI where torchvision's compiled operators may be missing (a CPU torch beside a CUDA torchvision)."""

import os
import runpy
import sys

import torch

try:
    import torchvision  # noqa: F401
except (ImportError, RuntimeError):
    for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    LIBRARY = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        LIBRARY.define(f"{operator}(Tensor d, Tensor s, float t) -> Tensor")

os.chdir(os.environ["COMFYUI_PATH"])
sys.path.insert(0, os.getcwd())
sys.argv[0] = "main.py"
runpy.run_path("main.py", run_name="__main__")
