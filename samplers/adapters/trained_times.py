"""The noise levels that a distilled model was trained at, on the loaded model's own schedule.

A preset's grid is one of

- ``{"kind": "trailing"}``: n of 1000 training steps, ``round(1000 (1 - i/n)) - 1`` (SDXL-Lightning, DMD2, PCM ...);
- ``{"kind": "lcm"}``: LCM's rule, every 20th training step, n of those from the last one down;
- ``{"kind": "times", "times": {"4": [999, 749, 500, 250]}}``: training steps by number of steps, else ``trailing``;
- ``{"kind": "flow", "start": 0.999}``: times ``start * (1 - i/n)``, then the shift, ``s = k u / (1 + (k-1) u)``;
- ``{"kind": "sigmas", "sigmas": [1, 0.9, ...]}``: the levels themselves, cut from the front for fewer steps.

All of them end in 0.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import ScheduleError, check_integer, check_range

GRID_KINDS = ("trailing", "lcm", "times", "flow", "sigmas")
TRAINING_STEPS = 1000


@dataclass(frozen=True)
class ModelTimes:
    """What must be known of a model's schedule.

    Attributes:
        flow: whether it is a rectified flow, sigma = t.
        labels, sigmas: the training step of each entry of its sigma table, and the entry; None without a table.
        shift: the model's own time shift (flow).
    """

    flow: bool
    labels: Sequence[float] | None = None
    sigmas: Sequence[float] | None = None
    shift: float = 1.0

    def sigma_of(self, step: float) -> float:
        """The level of a training step 0..999: the table's own number, or log-linear between two of them.

        For a flow, ``(step + 1)/1000`` is the time before the shift.
        """
        if self.flow:
            return self.shifted((step + 1.0) / TRAINING_STEPS, self.shift)
        if self.labels is None or self.sigmas is None:
            raise ScheduleError(
                "this model has no table of training steps, so the times of the method mean nothing to it: give the sigmas "
                "yourself, or check that the model is the one that the file was made for"
            )
        labels = np.asarray(self.labels, np.float64)
        if not labels[0] <= step <= labels[-1]:
            raise ScheduleError(f"training step {step:g} is outside the model's {labels[0]:g} to {labels[-1]:g}")
        exact = np.flatnonzero(labels == step)
        if len(exact):
            return float(self.sigmas[int(exact[0])])
        return float(np.exp(np.interp(step, labels, np.log(np.asarray(self.sigmas, np.float64)))))

    @staticmethod
    def shifted(u: float, shift: float) -> float:
        """``k u / (1 + (k-1) u)``."""
        return shift * u / (1.0 + (shift - 1.0) * u)


def trailing_steps(steps: int) -> list[float]:
    """``round(1000 (1 - i/n)) - 1``, rounded half to even as numpy does: diffusers' trailing spacing.

    >>> trailing_steps(4)
    [999.0, 749.0, 499.0, 249.0]
    """
    return [float(t) for t in np.round(TRAINING_STEPS * (1.0 - np.arange(steps) / steps)) - 1.0]


def lcm_steps(steps: int) -> list[float]:
    """LCM's spacing over the 50 steps it was distilled on.

    >>> lcm_steps(4)
    [999.0, 759.0, 499.0, 259.0]
    """
    return [float(TRAINING_STEPS - 1 - 20 * int(i)) for i in np.floor(np.linspace(0.0, 50.0, steps, endpoint=False))]


def preset_sigmas(
    grid: Mapping[str, Any], steps: int, model: ModelTimes, *, shift: float | None = None, denoise: float = 1.0
) -> list[float]:
    """Falling levels of ``steps`` steps, ending in 0.

    Args:
        grid: see the module's text.
        shift: time shift of flow models; None takes the model's own.
        denoise: below 1 only the last part of the list is kept (at least one step): trained times are never re-spaced.

    Raises:
        ScheduleError: the grid does not belong to this kind of model, or the list does not fall strictly.
    """
    check_integer("steps", steps, 1, TRAINING_STEPS)
    check_range("denoise", denoise, 0.0, 1.0)
    if denoise == 0:
        return []
    levels = _levels(grid, steps, model, shift)
    keep = max(1, round(len(levels) * denoise))
    return checked_levels([*levels[-keep:], 0.0])


def _levels(grid: Mapping[str, Any], steps: int, model: ModelTimes, shift: float | None) -> list[float]:
    kind = grid["kind"]
    if kind == "sigmas":
        listed = [float(s) for s in grid["sigmas"] if s > 0]
        if steps > len(listed):
            raise ScheduleError(f"the method gives {len(listed)} noise levels, {steps} steps were asked for: ask for fewer")
        return listed[len(listed) - steps :]
    if kind == "flow":
        if not model.flow:
            raise ScheduleError("the method is for flow models, the loaded model is none: check the model and the file")
        start = float(grid.get("start", 1.0))
        return [model.shifted(start * (1.0 - i / steps), shift or model.shift) for i in range(steps)]
    if kind == "lcm":
        times = lcm_steps(steps)
    else:
        listed_times = grid.get("times", {}).get(str(steps))
        times = trailing_steps(steps) if listed_times is None else [float(t) for t in listed_times]
    if model.flow and shift is not None:
        return [model.shifted((t + 1.0) / TRAINING_STEPS, shift) for t in times]
    return [model.sigma_of(t) for t in times]


def levels_from_text(text: str, model: ModelTimes, shift: float | None = None) -> list[float]:
    """Levels from what a user types: numbers above 1 in a list are training steps, else (flow) times before the shift.

    '999, 749, 499, 249' or '1, 0.75, 0.5, 0.25' or 'sigmas: 14.6, 4.08, 1.6, 0.69'. A final 0 may be left out.
    """
    body, sigmas = text.strip(), False
    if body.lower().startswith("sigmas:"):
        body, sigmas = body[len("sigmas:"):], True
    try:
        numbers = [float(part) for part in body.replace(",", " ").split()]
    except ValueError:
        expected = "expected numbers such as '999, 749, 499, 249' or 'sigmas: 14.6, 4.1, 1.6'"
        raise ScheduleError(f"times are {text!r}, {expected}") from None
    if sigmas:
        levels = [n for n in numbers if n != 0]
    elif model.flow and numbers and max(numbers) <= 1:
        levels = [model.shifted(u, shift or model.shift) for u in numbers if u != 0]
    else:
        flow_shift = shift or model.shift
        levels = [model.shifted((t + 1) / TRAINING_STEPS, flow_shift) if model.flow else model.sigma_of(t) for t in numbers]
    if not levels:
        raise ScheduleError("no times were given: write at least one, such as '999'")
    return checked_levels([*levels, 0.0])


def checked_levels(levels: list[float]) -> list[float]:
    """The list itself; raises ScheduleError unless it is finite and falls strictly."""
    for a, b in itertools.pairwise(levels):
        if not (math.isfinite(a) and b < a):
            raise ScheduleError(f"noise levels must fall strictly, but {a:g} is followed by {b:g}")
    return levels
