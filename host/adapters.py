"""Changed weights in the embedded host: LoRAs merged into a copy of the weights, or added while the network runs."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..nodes.demo_parts import LORAS
from ..nodes.host import HostError
from ..samplers.adapters import Patch, Targets, targets_of
from ..samplers.adapters.forward import ForwardAdditions
from .errors import HostInputError

SUFFIXES = (".safetensors", ".pt", ".bin", ".ckpt", ".pth")  # as the host lists them; pickles are refused when opened


class EmbeddedFiles:
    """``HostFiles``: a folder for each kind in the models directory, and the demo model's LoRAs."""

    def __init__(self, models_directory: Path) -> None:
        self._models = models_directory

    def folders(self, kind: str) -> list[Path]:
        """See ``HostFiles``."""
        return [self._models / kind, *([LORAS] if kind == "loras" else [])]

    def names(self, kind: str) -> list[str]:
        """See ``HostFiles``."""
        found = {
            path.relative_to(folder).as_posix() for folder in self.folders(kind) if folder.is_dir()
            for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES
        }
        return sorted(found)

    def path(self, kind: str, name: str) -> Path:
        """See ``HostFiles``; raises HostInputError for a file that is not in the list."""
        path = next((folder / name for folder in self.folders(kind) if (folder / name).is_file()), None)
        if path is None or name not in self.names(kind):
            raise HostInputError(f"there is no file '{name}' in {self.folders(kind)[0]}: put it there, or choose another one")
        return path


class EmbeddedAdapters:
    """``HostAdapters`` on ``host.model.ModelPatcher``."""

    def targets(self, model: Any) -> Targets:
        """See ``HostAdapters``."""
        return targets_of(model.model.diffusion_model)

    def text_targets(self, clip: Any) -> Targets:
        """The demo's text encoder has no weights."""
        return Targets({}, {}, lambda key: torch.zeros(0))

    def patch(self, model: Any, patches: Sequence[Patch], strength: float) -> Any:
        """See ``HostAdapters``."""
        changed = model.clone()
        changed.add_patches(patches, strength)
        return changed

    def patch_text(self, clip: Any, patches: Sequence[Patch], strength: float) -> Any:
        """See ``HostAdapters``."""
        if patches:
            raise HostError("the demo's text encoder has no weights to change")
        return clip

    def add_while_running(self, model: Any, additions: ForwardAdditions) -> Any:
        """See ``HostAdapters``."""
        changed = model.clone()
        changed.additions = (*changed.additions, additions)
        return changed

    def rebuild_over_steps(self, conditionings: Sequence[Any], parts: Any) -> list[Any]:
        """Not here: hooks on conditioning belong to ComfyUI."""
        raise HostError(
            "this file changes whole weights, which only ComfyUI can rebuild between steps: use a plain LoRA, or run this "
            "workflow in ComfyUI"
        )

    def predict_x_0(self, model: Any) -> Any:
        """See ``HostAdapters``."""
        sampling = copy.copy(model.get_model_object("model_sampling"))
        sampling.prediction = "x_0"
        changed = model.clone()
        changed.add_object_patch("model_sampling", sampling)
        return changed


def comfy_form(patch: Patch) -> Any:
    """What ComfyUI keeps of a patch, so that a patched model has the same fingerprint in both hosts."""
    t = patch.tensors
    if patch.kind == "lora":
        return (t["lora_up.weight"], t["lora_down.weight"], float(t["alpha"]), t.get("lora_mid.weight"), None, None)
    if patch.kind in ("diff", "set"):
        return (patch.kind, tuple(t.values()))
    return tuple(t.values())
