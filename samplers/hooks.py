"""What a plan's linear rows cannot express: actions of the engine on the data, at fixed places of a stage.

A hook may change where the denoiser is evaluated, the prediction, or the carried state. It must not read tensors on
the host (no ``.item()``, no data-dependent branch).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from .errors import OptionError, PlanError, check_range, suggest

if TYPE_CHECKING:
    from .engine import Denoiser
    from .plan import Memory, Stage


class Hook:
    """Base of hooks: each method returns what the engine goes on with. Override what is needed."""

    latents = 0  # states that the hook holds while the model is evaluated, for the plan's memory figure

    def begin(self, memory: Memory) -> Hook:
        """The hook for one run, whose ``memory`` late coefficients read; a hook that keeps nothing returns itself."""
        return self

    def evaluate(self, stage: Stage, y: torch.Tensor, sigma: torch.Tensor, denoiser: Denoiser) -> torch.Tensor:
        """The x_0 prediction for ``y``; a hook that moves the evaluation calls ``denoiser`` at another state or sigma [B]."""
        return denoiser(y, sigma)

    def denoised(self, stage: Stage, y: torch.Tensor, denoised: torch.Tensor) -> torch.Tensor:
        """The x_0 prediction before it is stored."""
        return denoised

    def state(self, stage: Stage, x: torch.Tensor) -> torch.Tensor:
        """The carried state after row 4."""
        return x


@dataclass(frozen=True)
class DynamicThresholding(Hook):
    """Clips x_0 to its own quantile and rescales (Saharia et al. 2022, "Imagen"): for pixel-space models only.

    Per sample ``s = max(quantile_ratio(|x_0|), max_value)`` and ``x_0 <- clip(x_0, -s, s) * max_value / s``.
    """

    ratio: float = 0.995
    max_value: float = 1.0

    def __post_init__(self) -> None:
        check_range("thresholding ratio", self.ratio, 0.0, 1.0)
        if not 0 < self.max_value < float("inf"):
            raise OptionError(f"thresholding max_value is {self.max_value}, expected a positive number")

    def denoised(self, stage: Stage, y: torch.Tensor, denoised: torch.Tensor) -> torch.Tensor:
        flat = denoised.abs().flatten(1)
        s = _quantile(flat if flat.dtype == torch.float64 else flat.float(), self.ratio).clamp_(min=self.max_value)
        s = s.to(denoised.dtype).reshape(-1, *(1,) * (denoised.ndim - 1))
        return torch.clamp(denoised, -s, s).mul_(self.max_value).div_(s)


def _quantile(flat: torch.Tensor, ratio: float) -> torch.Tensor:
    """Quantile of each row with linear interpolation; unlike torch.quantile without a limit on the row's length."""
    position = ratio * (flat.shape[1] - 1)
    low = int(position)
    ordered = flat.sort(dim=1).values
    return torch.lerp(ordered[:, low], ordered[:, min(low + 1, flat.shape[1] - 1)], position - low)


@dataclass(frozen=True)
class StateHook(Hook):
    """Calls ``function(x, stage) -> x`` on the carried state after every stage (DPM-Solver's ``correcting_xt_fn``)."""

    function: Callable[[torch.Tensor, Any], torch.Tensor]

    def state(self, stage: Stage, x: torch.Tensor) -> torch.Tensor:
        return self.function(x, stage)


SAVED_HOOKS: dict[str, type[Any]] = {"dynamic_thresholding": DynamicThresholding}


def hook_to_data(hook: Hook) -> dict[str, Any]:
    """A JSON form of a hook whose class is in ``SAVED_HOOKS``; raises PlanError for others."""
    for name, cls in SAVED_HOOKS.items():
        if type(hook) is cls:
            return {"hook": name, **asdict(hook)}  # type: ignore[call-overload]
    raise PlanError(f"a {type(hook).__name__} hook calls Python code and cannot be saved; remove it and add it after loading")


def hook_from_data(data: dict[str, Any]) -> Hook:
    """The hook from its JSON form."""
    options = dict(data)
    name = options.pop("hook", None)
    if name not in SAVED_HOOKS:
        raise PlanError(f"unknown hook {name!r}, known are {', '.join(SAVED_HOOKS)}{suggest(str(name), SAVED_HOOKS)}")
    hook: Hook = SAVED_HOOKS[name](**options)
    return hook
