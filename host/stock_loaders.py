"""Stock nodes that load models: the demo model stands in for a checkpoint if the user asked for it; else they refuse.

They are known so that the graphs that browsers open with, and saved ones, can be opened and give a reason.
"""

from __future__ import annotations

from typing import Any, ClassVar

from ..nodes.host import get_host
from .errors import HostInputError

REFUSAL = (
    "FewStep's embedded host loads no checkpoint files: use the node 'Demo Checkpoint (FewStep)', or start with "
    "--demo-checkpoint to get the demo model here"
)


class CheckpointLoaderSimple:
    """Refuses, with the way out in its message."""

    DISPLAY_NAME = "Load Checkpoint"
    CATEGORY = "loaders"
    DESCRIPTION = "The embedded host has no checkpoints; with --demo-checkpoint this gives the demo model."
    RETURN_TYPES = ("MODEL", "CLIP", "VAE")
    FUNCTION = "load_checkpoint"
    CHECKPOINTS: ClassVar[dict[str, str]] = {}

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's description of the inputs."""
        return {"required": {"ckpt_name": (list(cls.CHECKPOINTS), {"tooltip": cls.DESCRIPTION})}}

    @classmethod
    def VALIDATE_INPUTS(cls, ckpt_name: str) -> bool | str:
        """Refuses before anything runs."""
        return True if cls.CHECKPOINTS else REFUSAL

    def load_checkpoint(self, ckpt_name: str) -> tuple[Any, Any, Any]:
        """MODEL, CLIP and VAE; any name the demo does not have, such as the default graph's, is its eps form."""
        if not self.CHECKPOINTS:
            raise HostInputError(REFUSAL)
        return get_host().demo_checkpoint(self.CHECKPOINTS.get(ckpt_name, "eps"))


class _DemoCheckpointLoader(CheckpointLoaderSimple):
    """The demo model under the stock node's id."""

    DESCRIPTION = "Gives the demo model, whatever file is named (--demo-checkpoint)."
    CHECKPOINTS: ClassVar[dict[str, str]] = {f"fewstep_demo_{form}": form for form in ("eps", "v", "flow")}


class _Refused:
    """A node that is known, so that graphs with it can be opened, and refuses to run."""

    DESCRIPTION = "FewStep's embedded host does not have this node; it is here so that graphs with it can be opened."
    FUNCTION = "refuse"
    INPUTS: ClassVar[dict[str, Any]] = {}

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's description of the inputs."""
        return cls.INPUTS

    @classmethod
    def VALIDATE_INPUTS(cls, **inputs: Any) -> str:
        """Refuses before anything runs."""
        return REFUSAL

    def refuse(self, **inputs: Any) -> Any:
        """Raises HostInputError."""
        raise HostInputError(REFUSAL)


def _refused(
    node_id: str, name: str, category: str, output: str, required: dict[str, Any], optional: dict[str, Any] | None = None
) -> type[Any]:
    inputs = {"required": required, **({"optional": optional} if optional else {})}
    return type(node_id, (_Refused,), {
        "DISPLAY_NAME": name, "CATEGORY": category, "RETURN_TYPES": (output,), "INPUTS": inputs, "__doc__": _Refused.__doc__,
    })


NO_FILES: tuple[list[str], dict[str, Any]] = ([], {})
REFUSED = (
    _refused("UNETLoader", "Load Diffusion Model", "advanced/loaders", "MODEL", {
        "unet_name": NO_FILES, "weight_dtype": (["default"], {}),
    }),
    _refused("CLIPLoader", "Load CLIP", "advanced/loaders", "CLIP", {
        "clip_name": NO_FILES, "type": (["stable_diffusion", "lumina2"], {}),
    }, {"device": (["default", "cpu"], {})}),
    _refused("VAELoader", "Load VAE", "loaders", "VAE", {"vae_name": NO_FILES}),
    _refused("ModelSamplingAuraFlow", "ModelSamplingAuraFlow", "advanced/model", "MODEL", {
        "model": ("MODEL", {}), "shift": ("FLOAT", {"default": 1.73, "min": 0.0, "max": 100.0, "step": 0.01}),
    }),
)


def loaders(demo_checkpoint: bool) -> dict[str, type[Any]]:
    """The loaders by id; with ``demo_checkpoint`` CheckpointLoaderSimple gives the demo model."""
    checkpoint = _DemoCheckpointLoader if demo_checkpoint else CheckpointLoaderSimple
    return {"CheckpointLoaderSimple": checkpoint, **{node.__name__: node for node in REFUSED}}
