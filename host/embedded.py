"""The embedded host object: what nodes reach through ``nodes.host.get_host()``, and where files and progress go."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from ..nodes.comfy import patches_data
from ..nodes.gradients import own_tensors
from ..nodes.host import HostError, get_host
from .adapters import EmbeddedAdapters, EmbeddedFiles, comfy_form
from .errors import InterruptProcessingException
from .model import demo_model, demo_sampling
from .sampling import CFGGuider, KSampler, Noise, fitted

ProgressListener = Callable[[int, int, torch.Tensor | None], None]  # (value, total, denoised)


class EmbeddedHost:
    """The ``Host`` of ``nodes/host.py`` without ComfyUI.

    Args:
        output_directory: where SaveImage writes; made when needed.
        temp_directory: where PreviewImage writes; ``temp`` inside the output directory by default.
        input_directory: where LoadImage looks and uploads go; ``input`` inside the output directory by default.
        on_progress: called with (steps done, steps in all, present x_0) while sampling.
        load_demo: replaces the demo model's loader, for tests.
        models_directory: where model files are looked for, LoRAs in its subfolder ``loras``; calibration files are written to
            and looked for in its subfolder ``fewstep``.

    Attributes:
        sampling_seconds: time spent in samplers so far.
        tell: sends an event to the browser whose workflow is running; None where there is none.
    """

    def __init__(
        self, output_directory: str | Path = "out", *, temp_directory: str | Path | None = None,
        on_progress: ProgressListener | None = None, load_demo: Callable[[str], Any] | None = None,
        models_directory: str | Path = "models", input_directory: str | Path | None = None,
    ) -> None:
        self.models_directory = Path(models_directory)
        self.output_directory = Path(output_directory)
        self.temp_directory = Path(temp_directory) if temp_directory else self.output_directory / "temp"
        self.input_directory = Path(input_directory) if input_directory else self.output_directory / "input"
        self.on_progress = on_progress
        self.sampling_seconds = 0.0
        self.files = EmbeddedFiles(self.models_directory)
        self.adapters = EmbeddedAdapters()
        self.tell: Callable[[str, Mapping[str, Any]], None] | None = None
        self._load_demo = load_demo
        self._interrupt = threading.Event()

    # for nodes
    def make_sampler(self, function: Callable[..., Any], options: Mapping[str, Any]) -> KSampler:
        """See ``Host``."""
        return KSampler(function, options)

    def sampler_options(self, sampler: Any) -> Mapping[str, Any]:
        """See ``Host``."""
        return getattr(sampler, "extra_options", None) or {}

    def wrap_sampler(self, sampler: Any, function: Callable[..., Any], options: Mapping[str, Any]) -> KSampler:
        """See ``Host``; every SAMPLER here is made of a function."""
        return KSampler(function, {**options, "inner": partial(sampler.sampler_function, **sampler.extra_options)})

    def demo_checkpoint(self, form: str) -> tuple[Any, Any, Any]:
        """See ``Host``."""
        from ..nodes.demo_parts import DemoClip, DemoVAE, load_demo

        return demo_model((self._load_demo or load_demo)(form)), DemoClip(), DemoVAE()

    def demo_sampling(self, form: str) -> Any:
        """See ``Host``."""
        from ..demo.schedule import alphas_cumprod

        if self._load_demo is not None:
            return demo_sampling(self._load_demo(form))
        return demo_sampling(SimpleNamespace(prediction=form, alphas_cumprod=None if form == "flow" else alphas_cumprod()))

    def check_interrupted(self) -> None:
        """Raises InterruptProcessingException once after ``interrupt()``."""
        if self._interrupt.is_set():
            self._interrupt.clear()
            raise InterruptProcessingException("the run was cancelled")

    def weights(self, model: Any) -> tuple[Mapping[str, Any], Any]:
        """See ``Host``."""
        own = model.get_model_object("diffusion_model").state_dict()
        patches: dict[str, list[Any]] = {}
        for patch, strength in model.weight_patches:
            patches.setdefault(patch.key, []).append((strength, comfy_form(patch), 1.0))
        return {f"diffusion_model.{name}": tensor for name, tensor in own.items()}, patches_data(patches, model.additions)

    def differentiable(self, model: Any) -> AbstractContextManager[None]:
        """See ``Host``; nodes run in inference mode here too."""
        return own_tensors(model.get_model_object("diffusion_model"))

    def calibration_folders(self) -> list[Path]:
        """See ``Host``."""
        return [self.models_directory / "fewstep"]

    def running_prompt(self) -> Mapping[str, Any]:
        """See ``Host``; nodes are given it here."""
        return {}

    def progress_bar(self, total: int, node_id: str | None) -> Callable[[int, str, Any], None]:
        """See ``Host``; the picture is not shown."""
        return lambda done, text, picture: self.progress(done, total)

    def teller(self) -> Callable[[str, Mapping[str, Any]], None] | None:
        """See ``Host``."""
        return self.tell

    def sample(
        self, model: Any, seed: int, cfg: float, sampler: Any, sigmas: torch.Tensor, positive: Any, negative: Any,
        latent: Mapping[str, Any],
    ) -> dict[str, Any]:
        """See ``Host``."""
        return self.sample_guided(CFGGuider(model, positive, negative, cfg), Noise(seed), sampler, sigmas, latent)[0]

    # for the stock nodes and whoever drives the host
    def sample_guided(
        self, guider: CFGGuider, noise: Noise, sampler: Any, sigmas: torch.Tensor, latent: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """(LATENT of the result, LATENT of the last x_0 prediction)."""
        latent = {**latent, "samples": fitted(latent["samples"], guider.inner_model.latent_channels)}
        last: dict[str, torch.Tensor] = {}

        def progress(step: int, denoised: torch.Tensor, x: torch.Tensor, total: int) -> None:
            last["denoised"] = denoised
            self.progress(step + 1, total, denoised)

        start = time.perf_counter()
        try:
            samples = guider.sample(
                noise.generate_noise(latent), latent["samples"], sampler, sigmas, denoise_mask=latent.get("noise_mask"),
                callback=progress, seed=noise.seed,
            )
        finally:
            self.sampling_seconds += time.perf_counter() - start
        return {**latent, "samples": samples}, {**latent, "samples": last.get("denoised", samples)}

    def progress(self, value: int, total: int, denoised: torch.Tensor | None = None) -> None:
        """Reports progress of the running node, and stops here if the run was cancelled."""
        self.check_interrupted()
        if self.on_progress is not None:
            self.on_progress(value, total, denoised)

    def interrupt(self) -> None:
        """Asks the running workflow to stop at its next evaluation; may be called from another thread."""
        self._interrupt.set()

    def clear_interrupt(self) -> None:
        """Forgets a request to stop that came when nothing was running."""
        self._interrupt.clear()


def active() -> EmbeddedHost:
    """The embedded host that is running the present node; raises HostError in any other host."""
    host = get_host()
    if not isinstance(host, EmbeddedHost):
        raise HostError("this node belongs to FewStep's embedded host; in ComfyUI use the stock node of the same name")
    return host
