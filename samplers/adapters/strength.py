"""A LoRA's strength over the steps: the values, where one gives way to the next, and the host's way of saying when."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np

from ..errors import OptionError, ScheduleError


def strengths_from_text(text: str, steps: int, name: str = "strengths") -> list[float]:
    """One strength per step from numbers such as '1, 0.5'.

    As many numbers as steps are taken as they are; fewer or more are spread over the steps, linear in between, the first on
    the first step and the last on the last one.

    >>> strengths_from_text("1, 0", 5), strengths_from_text("0.8", 2)
    ([1.0, 0.75, 0.5, 0.25, 0.0], [0.8, 0.8])
    """
    try:
        values = [float(part) for part in text.replace(",", " ").split()]
    except ValueError:
        values = []
    if not values or not all(math.isfinite(v) for v in values):
        raise OptionError(f"{name} is {text!r}, expected finite numbers separated by commas, such as '1, 0.5'")
    if len(values) in (1, steps):
        return values * steps if len(values) == 1 else values
    places = np.linspace(0.0, len(values) - 1.0, steps) if steps > 1 else np.array([0.0])
    return [float(v) for v in np.interp(places, np.arange(len(values)), values)]


def boundaries(sigmas: Sequence[float]) -> list[float]:
    """The levels at which step i gives way to step i + 1: halfway between their sigmas, so that rounding cannot matter.

    ``sigmas`` are n + 1 falling levels; the result has n - 1.
    """
    if len(sigmas) < 2:
        raise ScheduleError(f"strengths over steps need at least 2 sigmas, got {len(sigmas)}: connect the schedule")
    return [0.5 * (a + b) for a, b in itertools.pairwise(sigmas[:-1])]


def percent_of(percent_to_sigma: Callable[[float], float], sigma: float) -> float:
    """The progress p in 0..1 at which a model is at ``sigma``, by bisection of the model's own (falling) map."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        if percent_to_sigma(middle) > sigma:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)


def keyframes(
    strengths: Sequence[float], sigmas: Sequence[float], percent_to_sigma: Callable[[float], float]
) -> list[tuple[float, float]]:
    """(start as progress 0..1, strength) for every change of strength; the first starts at 0."""
    starts = [0.0, *(percent_of(percent_to_sigma, level) for level in boundaries(sigmas))]
    frames = [(starts[0], strengths[0])]
    for start, value in zip(starts[1:], strengths[1:], strict=True):
        if value != frames[-1][1]:
            frames.append((start, value))
    return frames
