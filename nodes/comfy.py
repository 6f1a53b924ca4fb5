"""ComfyUI as a host. Everything of ``comfy`` is imported inside functions, so this file imports anywhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .demo_parts import DemoClip, DemoVAE, load_demo
from .host import HostError


class ComfyHost:
    """The ``Host`` of ``nodes/host.py``, by ComfyUI's public functions."""

    def make_sampler(self, function: Callable[..., Any], options: Mapping[str, Any]) -> Any:
        """A ``comfy.samplers.KSAMPLER``."""
        from comfy.samplers import KSAMPLER

        return KSAMPLER(function, dict(options))

    def sampler_options(self, sampler: Any) -> Mapping[str, Any]:
        """KSAMPLER's ``extra_options``."""
        return getattr(sampler, "extra_options", None) or {}

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

        demo = load_demo(form)
        names = {"eps": "EPS", "v": "V_PREDICTION", "flow": "FLOW"}
        kind = getattr(comfy.model_base.ModelType, names[demo.prediction], None)
        if kind is None:
            raise HostError(f"this ComfyUI has no model type {names[demo.prediction]}: update it to 0.3.64 or later")
        if demo.prediction == "flow":
            settings: dict[str, Any] = {"shift": 1.0, "multiplier": 1000}
        else:
            from ..demo.schedule import BETA_END, BETA_START

            settings = {"beta_schedule": "linear", "linear_start": BETA_START, "linear_end": BETA_END}

        class DemoConfig(comfy.supported_models_base.BASE):  # type: ignore[misc]
            unet_config: dict[str, Any] = {}  # noqa: RUF012
            unet_extra_config: dict[str, Any] = {}  # noqa: RUF012
            sampling_settings = settings
            latent_format = comfy.latent_formats.LatentFormat

        manage = comfy.model_management
        model = comfy.model_base.BaseModel(
            DemoConfig({"disable_unet_model_creation": False}), kind, manage.get_torch_device(),
            unet_model=lambda **config: demo.net,
        )
        return comfy.model_patcher.ModelPatcher(model, manage.get_torch_device(), manage.unet_offload_device()), \
            DemoClip(), DemoVAE()

    def check_interrupted(self) -> None:
        """Raises ComfyUI's ``InterruptProcessingException`` after a cancel."""
        import comfy.model_management

        comfy.model_management.throw_exception_if_processing_interrupted()
