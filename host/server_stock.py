"""Stock nodes of the graphs that the browser opens with: the demo model stands in for a checkpoint, or they refuse."""

from __future__ import annotations

from typing import Any, ClassVar

from ..nodes.host import get_host
from .errors import HostInputError

REFUSAL = (
    "FewStep's embedded host loads no checkpoint files: use the node 'Demo Checkpoint (FewStep)', or start the server with "
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

    DESCRIPTION = "Gives the demo model, whatever file is named (the server was started with --demo-checkpoint)."
    CHECKPOINTS: ClassVar[dict[str, str]] = {f"fewstep_demo_{form}": form for form in ("eps", "v", "flow")}


class KSampler:
    """Stock sampling, with FewStep's solvers of the same formulas."""

    DISPLAY_NAME = "KSampler"
    CATEGORY = "sampling"
    DESCRIPTION = "Samples with the stock names of solvers that FewStep has."
    RETURN_TYPES = ("LATENT",)
    OUTPUT_TOOLTIPS = ("The sampled latent.",)
    FUNCTION = "sample"
    SAMPLERS: ClassVar[dict[str, str]] = {
        "euler": "ddim", "ddim": "ddim", "dpmpp_2m": "dpm_solver_multistep", "uni_pc": "unipc", "ipndm": "ipndm",
        "deis": "deis_ab",
    }
    SCHEDULERS: ClassVar[dict[str, str]] = {
        "normal": "uniform_t", "karras": "karras", "exponential": "exponential", "beta": "beta",
    }

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's description of the inputs."""
        return {"required": {
            "model": ("MODEL", {"tooltip": "The model that removes the noise."}),
            "seed": ("INT", {
                "default": 0, "min": 0, "max": 2**64 - 1, "control_after_generate": True, "tooltip": "Decides the noise.",
            }),
            "steps": ("INT", {"default": 20, "min": 1, "max": 10_000, "tooltip": "Number of steps."}),
            "cfg": ("FLOAT", {"default": 8.0, "min": 0.0, "max": 100.0, "step": 0.1, "round": 0.01, "tooltip": "Guidance."}),
            "sampler_name": (list(cls.SAMPLERS), {"tooltip": "The solver."}),
            "scheduler": (list(cls.SCHEDULERS), {"tooltip": "How the steps are spread."}),
            "positive": ("CONDITIONING", {"tooltip": "What the picture should show."}),
            "negative": ("CONDITIONING", {"tooltip": "What to keep away from."}),
            "latent_image": ("LATENT", {"tooltip": "The latent to fill or to change."}),
            "denoise": ("FLOAT", {
                "default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01, "tooltip": "Below 1: how much of the latent is changed.",
            }),
        }}

    def sample(
        self, model: Any, seed: int, steps: int, cfg: float, sampler_name: str, scheduler: str, positive: Any, negative: Any,
        latent_image: dict[str, Any], denoise: float = 1.0,
    ) -> tuple[dict[str, Any]]:
        """The new LATENT."""
        from ..nodes.ksampler import FewStepKSampler

        return FewStepKSampler().sample(
            model, positive, negative, latent_image, seed, steps, cfg, self.SAMPLERS[sampler_name],
            self.SCHEDULERS[scheduler], denoise,
        )


class EmptySD3LatentImage:
    """A LATENT of zeros with 16 channels."""

    DISPLAY_NAME = "EmptySD3LatentImage"
    CATEGORY = "latent/sd3"
    DESCRIPTION = "A batch of empty latents with 16 channels; the demo model takes 4: use Empty Latent Image for it."
    RETURN_TYPES = ("LATENT",)
    FUNCTION = "generate"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's description of the inputs."""
        side = {"default": 1024, "min": 16, "max": 16384, "step": 16}
        return {"required": {
            "width": ("INT", side), "height": ("INT", side), "batch_size": ("INT", {"default": 1, "min": 1, "max": 4096}),
        }}

    def generate(self, width: int, height: int, batch_size: int = 1) -> tuple[dict[str, Any]]:
        """Zeros [B, 16, H/8, W/8]."""
        import torch

        return ({"samples": torch.zeros(batch_size, 16, height // 8, width // 8)},)


class _Refused:
    """A node that is known, so that graphs with it can be opened, and refuses to run."""

    DESCRIPTION = "FewStep's embedded host does not have this node; it is here so that graphs with it can be opened."
    FUNCTION = "refuse"
    INPUTS: ClassVar[dict[str, Any]] = {}

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's description of the inputs."""
        return {"required": cls.INPUTS}

    @classmethod
    def VALIDATE_INPUTS(cls, **inputs: Any) -> str:
        """Refuses before anything runs."""
        return REFUSAL

    def refuse(self, **inputs: Any) -> Any:
        """Raises HostInputError."""
        raise HostInputError(REFUSAL)


def _refused(node_id: str, name: str, category: str, outputs: tuple[str, ...], inputs: dict[str, Any]) -> type[Any]:
    return type(node_id, (_Refused,), {
        "DISPLAY_NAME": name, "CATEGORY": category, "RETURN_TYPES": outputs, "INPUTS": inputs, "__doc__": _Refused.__doc__,
    })


NO_FILES: tuple[list[str], dict[str, Any]] = ([], {})
REFUSED = (
    _refused("UNETLoader", "Load Diffusion Model", "advanced/loaders", ("MODEL",), {
        "unet_name": NO_FILES, "weight_dtype": (["default"], {}),
    }),
    _refused("CLIPLoader", "Load CLIP", "advanced/loaders", ("CLIP",), {
        "clip_name": NO_FILES, "type": (["stable_diffusion", "lumina2"], {}), "device": (["default", "cpu"], {}),
    }),
    _refused("VAELoader", "Load VAE", "loaders", ("VAE",), {"vae_name": NO_FILES}),
    _refused("ModelSamplingAuraFlow", "ModelSamplingAuraFlow", "advanced/model", ("MODEL",), {
        "model": ("MODEL", {}), "shift": ("FLOAT", {"default": 1.73, "min": 0.0, "max": 100.0, "step": 0.01}),
    }),
)


def default_graph_nodes(demo_checkpoint: bool) -> dict[str, type[Any]]:
    """What the graphs that frontends open with need, by id; with ``demo_checkpoint`` the older one of them can run."""
    return {
        "CheckpointLoaderSimple": _DemoCheckpointLoader if demo_checkpoint else CheckpointLoaderSimple, "KSampler": KSampler,
        "EmptySD3LatentImage": EmptySD3LatentImage, **{node.__name__: node for node in REFUSED},
    }
