"""Teleportation for any SAMPLER: FewStep's carry the jump in their recipe, others are called after it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from .calibration import SOCKET
from .frames import frame_of
from .host import get_host
from .sampling import carried_recipe, make_sampler
from .solvers import TRIAL_STEPS
from .widgets import inputs, option_values

if TYPE_CHECKING:
    from .calibration import CalibrationInput

START = (
    "ode: continues the picture that the noise would have given. draw: another picture from the same noise, with the full range "
    "of brightness that noise and v models lose at their start; needs denoise 1."
)


def sample_after_jump(
    model: Any, x: Any, sigmas: Any, extra_args: Mapping[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], None] | None = None, disable: bool | None = None, *, inner: Callable[..., Any],
    start_json: str,
) -> Any:
    """Jumps, and lets another sampler function go on from there; arguments as of ``sampling.sample_recipe``.

    ``inner`` is called with the shortened sigmas and the same model and ``extra_args``, so masks and seeds mean the same to it.
    Its callback's ``i`` is moved on by the steps that were jumped over.
    """
    import torch

    from ..samplers.grids import Node, from_sigmas
    from ..samplers.teleport import teleport

    args = dict(extra_args or {})
    start, rest = None, None
    if len(sigmas) > 1:
        grid = from_sigmas(frame_of(model.inner_model.inner_model.model_sampling), sigmas)
        start, rest = teleport(grid, **json.loads(start_json))
    if start is None or rest is None:
        return inner(model, x, sigmas, extra_args=args, callback=callback, disable=disable)
    skipped = grid.steps - rest.steps

    def report(info: dict[str, Any]) -> None:
        if callback is not None:
            callback({**info, "i": info["i"] + skipped})

    def denoise(y: Any, node: Node) -> Any:
        get_host().check_interrupted()
        denoised = model(y, torch.full((len(y),), node.sigma, dtype=sigmas.dtype, device=y.device), **args).to(y.dtype)
        if callback is not None:
            callback({"i": 0, "x": y, "sigma": node.sigma, "sigma_hat": node.sigma, "denoised": denoised})
        return denoised

    jumped = start(x, denoise)
    left = torch.tensor(rest.sigma).to(sigmas.dtype).to(sigmas.device)
    return inner(model, jumped, left, extra_args=args, callback=report, disable=disable)


class FewStepTeleport:
    """A jump before any sampler."""

    DISPLAY_NAME = "Teleport (FewStep)"
    CATEGORY = "FewStep/correctors"
    DESCRIPTION = (
        "Replaces the first, noisiest steps by one exact jump, computed from the mean and covariance of the model's latents "
        "(Wang and Vastola 2024): fewer evaluations for the same picture, or finer steps where they matter. Works before every "
        "SAMPLER, stock ones too. Not for step-distilled models (Turbo, Lightning, LCM): they are made for their own steps."
    )
    SEARCH_ALIASES: ClassVar[list[str]] = ["teleportation", "gaussian moments", "skip steps", "warm start"]
    RETURN_TYPES = ("SAMPLER",)
    OUTPUT_TOOLTIPS = ("The same sampler after the jump.",)
    FUNCTION = "teleport"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's description of the inputs."""
        from ..samplers import solver_options

        names = ("mode", "skip", "sigma_skip", "fraction", "rest", "start", "guidance_scale")
        return {"required": {
            "sampler": ("SAMPLER", {"tooltip": "Any sampler: FewStep's solvers with their correctors, or a stock one."}),
            "moments": (SOCKET, {"tooltip": "Gaussian moments of this model's latents, loaded or just measured."}),
            **inputs(solver_options("teleport"), names, {"start": {"tooltip": START}}),
        }}

    def teleport(self, sampler: Any, moments: CalibrationInput, **widgets: Any) -> tuple[Any]:
        """The new SAMPLER; raises OptionError for options that do not go together, and for a second jump."""
        from ..samplers import frames, grids, solver_options
        from ..samplers.errors import OptionError
        from ..samplers.teleport import teleport

        options = option_values(widgets, solver_options("teleport"))
        # a bad option shows here; how far this model's sigmas reach is known when it samples
        trial = grids.exponential(frames.edm(), TRIAL_STEPS, end="stop", t_T=1e6, t_0=1e-6)
        teleport(trial, **options, moments=moments.calibration)
        options = {**options, "moments": moments.reference}
        recipe, host = carried_recipe(sampler), get_host()
        if (recipe is not None and recipe.start is not None) or "start_json" in host.sampler_options(sampler):
            raise OptionError("the connected SAMPLER has a jump already: one Teleport node is enough")
        if recipe is not None:
            return (make_sampler(recipe.started("teleport", **options)),)
        return (host.wrap_sampler(sampler, sample_after_jump, {"start_json": json.dumps(options, sort_keys=True)}),)


NODES = (FewStepTeleport,)
