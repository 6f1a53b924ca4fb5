"""ComfyUI as a host. Everything of ``comfy`` is imported inside functions, so this file imports anywhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from .comfy_adapters import ComfyAdapters, ComfyFiles, additions_of
from .demo_parts import DemoClip, DemoVAE, load_demo
from .gradients import own_tensors
from .host import HostError

if TYPE_CHECKING:
    from ..samplers.adapters.forward import ForwardAdditions


class ComfyHost:
    """The ``Host`` of ``nodes/host.py``, by ComfyUI's public functions."""

    files = ComfyFiles()
    adapters = ComfyAdapters()

    def make_sampler(self, function: Callable[..., Any], options: Mapping[str, Any]) -> Any:
        """A ``comfy.samplers.KSAMPLER``."""
        from comfy.samplers import KSAMPLER

        return KSAMPLER(function, dict(options))

    def sampler_options(self, sampler: Any) -> Mapping[str, Any]:
        """KSAMPLER's ``extra_options``."""
        return getattr(sampler, "extra_options", None) or {}

    def wrap_sampler(self, sampler: Any, function: Callable[..., Any], options: Mapping[str, Any]) -> Any:
        """A ``comfy.samplers.KSAMPLER`` with the inpainting options of the given one."""
        from comfy.samplers import KSAMPLER

        inner = getattr(sampler, "sampler_function", None)
        if inner is None:
            raise HostError(
                f"the connected SAMPLER is a {type(sampler).__name__} and no KSAMPLER, so it cannot be started at a later step: "
                "connect one from KSamplerSelect, from a sampler node, or one of FewStep's"
            )
        inner = partial(inner, **(getattr(sampler, "extra_options", None) or {}))
        return KSAMPLER(function, {**options, "inner": inner}, getattr(sampler, "inpaint_options", None) or {})

    def sample(
        self, model: Any, seed: int, cfg: float, sampler: Any, sigmas: Any, positive: Any, negative: Any,
        latent: Mapping[str, Any],
    ) -> dict[str, Any]:
        """As the stock SamplerCustom does it: its start noise, masks, progress and preview."""
        import comfy.sample
        import comfy.utils
        import latent_preview

        samples = comfy.sample.fix_empty_latent_channels(model, latent["samples"])
        noise = comfy.sample.prepare_noise(samples, seed, latent.get("batch_index"))
        callback = latent_preview.prepare_callback(model, max(len(sigmas) - 1, 1))
        result = comfy.sample.sample_custom(
            model, noise, cfg, sampler, sigmas, positive, negative, samples, noise_mask=latent.get("noise_mask"),
            callback=callback, disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED, seed=seed,
        )
        return {**latent, "samples": result}

    def demo_checkpoint(self, form: str) -> tuple[Any, Any, Any]:
        """The demo network in a ``BaseModel`` and ``ModelPatcher``, so that every stock node works on it."""
        import comfy.latent_formats
        import comfy.model_base
        import comfy.model_management
        import comfy.model_patcher
        import comfy.supported_models_base

        from ..demo.vae import LATENT_MEAN, LATENT_STD

        demo = load_demo(form)
        kind, settings = _demo_settings(demo.prediction)

        class DemoLatentFormat(comfy.latent_formats.LatentFormat):  # type: ignore[misc]
            """For previews: grey, from the mean of the 2x2 pixels that a latent pixel holds."""

            latent_rgb_factors = [[LATENT_STD / 4] * 3] * 4
            latent_rgb_factors_bias = [LATENT_MEAN] * 3

        class DemoConfig(comfy.supported_models_base.BASE):  # type: ignore[misc]
            unet_config: dict[str, Any] = {}  # noqa: RUF012
            unet_extra_config: dict[str, Any] = {}  # noqa: RUF012
            sampling_settings = settings
            latent_format = DemoLatentFormat

        manage = comfy.model_management
        model = comfy.model_base.BaseModel(
            DemoConfig({"disable_unet_model_creation": False}), kind, manage.get_torch_device(),
            unet_model=lambda **config: demo.net,
        )
        return comfy.model_patcher.ModelPatcher(model, manage.get_torch_device(), manage.unet_offload_device()), \
            DemoClip(), DemoVAE()

    def demo_sampling(self, form: str) -> Any:
        """ComfyUI's own object for the demo's settings."""
        import comfy.model_base

        kind, settings = _demo_settings(form)
        return comfy.model_base.model_sampling(SimpleNamespace(sampling_settings=settings), kind)

    def check_interrupted(self) -> None:
        """Raises ComfyUI's ``InterruptProcessingException`` after a cancel."""
        import comfy.model_management

        comfy.model_management.throw_exception_if_processing_interrupted()

    def weights(self, model: Any) -> tuple[dict[str, Any], Any]:
        """The diffusion model's weights as they are without patches: a loaded LoRA changes them in place and backs them up."""
        network = model.get_model_object("diffusion_model")
        own = {f"diffusion_model.{name}": tensor for name, tensor in network.state_dict().items()}
        for name, backup in getattr(model, "backup", {}).items():
            if name in own:
                own[name] = getattr(backup, "weight", backup)
        return own, patches_data(getattr(model, "patches", None) or {}, additions_of(model))

    def differentiable(self, model: Any) -> AbstractContextManager[None]:
        """See ``Host``."""
        return own_tensors(model.get_model_object("diffusion_model"))

    def calibration_folders(self) -> list[Path]:
        """``models/fewstep`` and what extra_model_paths.yaml lists under ``fewstep``."""
        import folder_paths

        folder_paths.add_model_folder_path("fewstep", str(Path(folder_paths.models_dir) / "fewstep"))
        paths, suffixes = folder_paths.folder_names_and_paths["fewstep"]
        suffixes.add(".safetensors")
        return [Path(path) for path in paths]

    def running_prompt(self) -> Mapping[str, Any]:
        """From the queue: ComfyUI leaves the hidden PROMPT empty in IS_CHANGED."""
        from server import PromptServer

        queue = getattr(getattr(PromptServer, "instance", None), "prompt_queue", None)
        running = list(getattr(queue, "currently_running", {}).values())
        return running[0][2] if running and len(running[0]) > 2 else {}

    def teller(self) -> Callable[[str, Mapping[str, Any]], None] | None:
        """By the server's queue of messages, which any thread may fill."""
        server = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
        client = getattr(server, "client_id", None)
        if server is None or client is None:
            return None
        return lambda event, data: server.send_sync(event, dict(data), client)

    def progress_bar(self, total: int, node_id: str | None) -> Callable[[int, str, Any], None]:
        """The node's own bar, its text line where this ComfyUI has one, and the picture as a preview."""
        import comfy.utils
        from server import PromptServer

        bar = comfy.utils.ProgressBar(total, node_id=node_id)
        say = getattr(getattr(PromptServer, "instance", None), "send_progress_text", None)

        def update(done: int, text: str, picture: Any) -> None:
            bar.update_absolute(done, total, None if picture is None else ("PNG", picture, None))
            if say is not None and node_id is not None:
                say(text, node_id)

        return update


def _demo_settings(prediction: str) -> tuple[Any, dict[str, Any]]:
    """(ModelType, sampling settings) of a demo network that predicts eps, v or flow."""
    import comfy.model_base

    names = {"eps": "EPS", "v": "V_PREDICTION", "flow": "FLOW"}
    kind = getattr(comfy.model_base.ModelType, names[prediction], None)
    if kind is None:
        raise HostError(f"this ComfyUI has no model type {names[prediction]}: update it to 0.3.64 or later")
    if prediction == "flow":
        return kind, {"shift": 1.0, "multiplier": 1000}
    from ..demo.schedule import BETA_END, BETA_START

    return kind, {"beta_schedule": "linear", "linear_start": BETA_START, "linear_end": BETA_END}


def patches_data(patches: Mapping[str, Any], additions: Iterable[ForwardAdditions] = ()) -> list[Any] | None:
    """What tells one set of LoRAs from another, as JSON values: weights patched, strengths, some numbers.

    ``additions`` are the LoRAs that are added while the network runs.
    """
    def numbers(value: Any) -> Any:
        if hasattr(value, "detach"):
            flat = value.detach().reshape(-1)
            return [float(f"{float(v):.3g}") for v in flat[:: max(1, flat.numel() // 3)][:3]]
        if hasattr(value, "weights"):  # a weight adapter
            return numbers(value.weights)
        if isinstance(value, (tuple, list)):
            return [numbers(v) for v in value]
        return value if isinstance(value, (str, int, float, bool)) or value is None else type(value).__name__

    listed = [[str(name), [numbers(tuple(patch)[:3]) for patch in patches[name]]] for name in sorted(patches, key=str)]
    for part in additions:
        over_steps = [part.strengths.tolist(), part.boundaries.tolist()]
        listed.append(["while running", numbers([part.places, *part.parameters()]), over_steps])
    return listed or None
