"""The schedule node: SIGMAS from a model and one of ``samplers.grids``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from .frames import frame_of, own_shift, sigma_range
from .widgets import float_widget

if TYPE_CHECKING:
    from ..samplers.frames import Frame
    from ..samplers.grids import End

KINDS = {
    "uniform_t": "even steps in the model's time; the safe choice for latent models",
    "uniform_lambda": "even in log signal-to-noise ratio; small pixel models",
    "quadratic_t": "even in the square root of time: more steps near the picture",
    "karras": "even in sigma to the power 1/rho (Karras et al. 2022)",
    "exponential": "even in log sigma",
    "edm_rho": "karras between EDM's own ends, 0.002 and 80, where the model reaches them",
    "beta": "quantiles of a beta distribution: more steps at both ends",
    "shifted": "even steps pushed towards noise by shift; the schedule of flow models",
    "trailing": "even steps in the model's time down to 0 itself; on flow models from 0.999, with shift",
    "kl_optimal": "even in the arctangent of sigma (Sabour et al. 2024)",
}
ENDS: tuple[End, ...] = ("zero", "stop")
END_WORDS = (
    "zero: the last step goes to noise level 0, as ComfyUI does. stop: the steps end at the lowest noise level that the model "
    "was trained at, and that little noise stays (sigma 0.03 on Stable Diffusion); with even or karras steps on noise and v "
    "models mostly nearer to the exact picture all the same. Not for inpainting, nor for distilled models."
)
START_WORDS = (
    "trailing and beta on flow models only: the first noise level, before the shift. own: 0.999 for trailing, 1 for beta. 0.999 "
    "as diffusers' SA-Solver has it, 0.999999 nearly as its UniPC. From below 1 the second step can have order 2."
)
ALPHA_WORDS = (
    "beta only: larger means fewer steps near the picture. 0.5 with beta 0.7 is the schedule known as beta57; 1 and 1 are even "
    "steps."
)
BETA_WORDS = "beta only: larger means fewer steps near the noise."
STARTS = ("own", "0.999", "0.999999")  # on flow models; below 1 lambda is finite, so that the second step can have order 2
STARTING = ("trailing", "beta")


def schedule(model: Any, kind: str, steps: int, denoise: float = 1.0, **options: Any) -> Any:
    """``sigmas_of`` for a MODEL of the host."""
    return sigmas_of(model.get_model_object("model_sampling"), kind, steps, denoise, **options)


def sigmas_of(
    model_sampling: Any, kind: str, steps: int, denoise: float = 1.0, shift: float = 0.0, rho: float = 7.0,
    end: End = "zero", start: str = STARTS[0], alpha: float = 0.6, beta: float = 0.6,
) -> Any:
    """Sigmas for a host's sampler: float32, CPU, ``steps + 1`` of them, never above the model's own.

    Args:
        model_sampling: of a MODEL of the host, with its patches.
        kind: one of ``samplers.grids.GRIDS``.
        denoise: below 1 only the last ``steps`` of ``int(steps/denoise)`` steps; 0 gives no sigmas at all.
        shift: for ``shifted`` and ``trailing``; 0 takes the model's own.
        rho: for ``karras`` and ``edm_rho``.
        end: ``zero``, or ``stop``: the last one is the model's smallest noise level (flow models: 0.001, before a shift).
        start: one of ``STARTS``, for ``STARTING`` on flow models, before the shift; own is 0.999 for trailing, 1 for beta.
        alpha, beta: parameters of the beta distribution, for ``beta``.

    With end ``zero`` a flow model's ``uniform_t``, ``quadratic_t`` and ``shifted`` go down evenly to 0 itself (4 uniform
    steps: 1, 0.75, 0.5, 0.25, 0), as such models are sampled; other models take their smallest sigma before the 0.
    """
    import torch

    from ..samplers.errors import OptionError, check_choice, check_integer, check_range
    from ..samplers.grids import GRIDS

    check_choice("kind", kind, GRIDS)
    check_choice("end", end, ENDS)
    check_choice("start", start, STARTS)
    check_integer("steps", steps, 1, 10_000)
    check_range("denoise", denoise, 0.0, 1.0)
    if denoise == 0:
        return torch.zeros(0)
    total = steps if denoise > 0.9999 else int(steps / denoise)
    if total > 10_000:
        raise OptionError(f"{steps} steps at denoise {denoise} are the last of {total}: use fewer steps or more denoise")
    frame, (low, high) = frame_of(model_sampling), sigma_range(model_sampling)
    options: dict[str, float] = {}
    if kind in ("shifted", "trailing"):
        options["shift"] = shift or (own_shift(model_sampling) if frame.scaling == "flow" else 1.0)
    if kind in ("karras", "edm_rho"):
        options["rho"] = rho
    if kind == "beta":
        options["a"], options["b"] = alpha, beta
    if kind == "edm_rho":
        options["sigma_max"], options["sigma_min"] = min(80.0, high), max(0.002, low)
    if kind in STARTING and start != STARTS[0] and frame.scaling == "flow":
        options["t_T"] = float(start)
    options.update(even_end(frame, kind, total, end))
    grid = GRIDS[kind](frame, total, end=end, **options)
    return torch.tensor(grid.sigma[-steps - 1 :], dtype=torch.float32).clamp_(max=high)


def from_start(model_sampling: Any, even: Any, grid: Mapping[str, Any]) -> Any:
    """SIGMAS that start where ``even`` does and have as many steps, spread as {"kind", options} spreads them.

    ``even`` itself where that leaves too few steps below the start.
    """
    import torch

    from ..samplers.grids import from_sigmas
    from ..samplers.shortened import regrid

    whole = sigmas_of(model_sampling, steps=len(even) - 1, **grid)
    levels = regrid(from_sigmas(frame_of(model_sampling), whole.double().tolist()), float(even[0])).sigma
    return torch.tensor(levels, dtype=torch.float32) if len(levels) == len(even) else even


def even_end(frame: Frame, kind: str, steps: int, end: End = "zero") -> dict[str, float]:
    """The ``t_0`` with which ``steps`` steps of a flow model go down to 0 evenly; empty where the frame's own is right."""
    power = {"uniform_t": 1, "shifted": 1, "quadratic_t": 2}.get(kind)
    return {"t_0": steps**-power} if frame.scaling == "flow" and end == "zero" and power and steps > 1 else {}


def schedule_widget(default: str = "uniform_t") -> tuple[list[str], dict[str, Any]]:
    """The combo of schedules."""
    from ..samplers.grids import GRIDS

    words = "; ".join(f"{kind}: {KINDS.get(kind, 'see the documentation')}" for kind in GRIDS)
    return list(GRIDS), {"default": default, "tooltip": f"How the steps are spread. {words}."}


def end_widget() -> tuple[list[str], dict[str, Any]]:
    """The combo of ends."""
    return list(ENDS), {"default": ENDS[0], "advanced": True, "tooltip": END_WORDS}


class FewStepSchedule:
    """SIGMAS for a model."""

    DISPLAY_NAME = "Schedule (FewStep)"
    CATEGORY = "FewStep/schedules"
    DESCRIPTION = (
        "The noise levels to step through, computed in the model's own schedule (noise, v, EDM and flow models alike). They "
        "end in 0, unless end says otherwise, and never exceed what the model knows."
    )
    SEARCH_ALIASES: ClassVar[list[str]] = ["scheduler", "sigmas", "karras", "logsnr", "beta"]
    RETURN_TYPES = ("SIGMAS",)
    OUTPUT_TOOLTIPS = ("Falling noise levels, one more than steps; empty at denoise 0.",)
    FUNCTION = "build"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's description of the inputs."""
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "The model to be sampled; patches of its sampling are respected."}),
                "kind": schedule_widget(),
                "steps": ("INT", {"default": 8, "min": 1, "max": 10_000, "tooltip": "Number of steps."}),
                "denoise": ("FLOAT", float_widget(
                    1.0, 0.0, 1.0, tooltip="Below 1: only the last part of the schedule, to change a given picture.")),
            },
            "optional": {
                "shift": ("FLOAT", float_widget(
                    0.0, 0.0, 100.0, advanced=True,
                    tooltip="shifted and trailing only: how far towards noise; 0 takes the model's own.")),
                "rho": ("FLOAT", float_widget(
                    7.0, 0.1, 100.0, advanced=True, tooltip="karras and edm_rho only: larger means more steps at low noise.")),
                "end": end_widget(),
                "start": (list(STARTS), {"default": STARTS[0], "advanced": True, "tooltip": START_WORDS}),
                "alpha": ("FLOAT", float_widget(0.6, 0.01, 50.0, advanced=True, tooltip=ALPHA_WORDS)),
                "beta": ("FLOAT", float_widget(0.6, 0.01, 50.0, advanced=True, tooltip=BETA_WORDS)),
            },
        }

    def build(self, model: Any, kind: str, steps: int, denoise: float, **options: Any) -> tuple[Any]:
        """See ``sigmas_of``."""
        return (schedule(model, kind, steps, denoise, **options),)


NODES = (FewStepSchedule,)
