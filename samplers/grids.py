"""Step grids: the nodes that a solver steps through, with an explicit end.

A grid of ``steps`` steps has ``steps + 1`` nodes, noise first. ``end`` says what the last one is:

- ``"stop"``: sampling stops at a small time t_0 > 0, as the papers' solvers do;
- ``"zero"``: sampling ends at sigma = 0 by one exact step, as ComfyUI and k-diffusion do; the named grid then covers
  t_T..t_0 with the first ``steps`` nodes.

>>> from fewstep.samplers import frames
>>> uniform_t(frames.flow(), 4, end="stop", t_T=0.9, t_0=0.1).sigma.round(3).tolist()
[0.9, 0.7, 0.5, 0.3, 0.1]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from .errors import OptionError, ScheduleError, check_choice, check_integer
from .frames import Frame
from .grid import End, Grid, Node, from_lambdas, from_sigmas, from_times, node_at_lambda

__all__ = ["GRIDS", "End", "Grid", "Node", "from_sigmas", "from_times", "node_at_lambda"]


def _times(frame: Frame, steps: int, end: End, t_T: float | None, t_0: float | None) -> tuple[float, float, int]:
    """Checks the ends; returns (t_T, t_0, number of nodes between them)."""
    check_integer("steps", steps, 1, 10_000)
    check_choice("end", end, ("stop", "zero"))
    start = frame.time.t_T if t_T is None else float(t_T)
    stop = frame.time.t_0 if t_0 is None else float(t_0)
    if not stop > 0:
        raise ScheduleError(f"t_0 is {stop}, expected a time above 0; use end='zero' to end at sigma 0")
    if not stop < start <= frame.time.t_max:
        raise ScheduleError(f"t_T {start} and t_0 {stop}: expected 0 < t_0 < t_T <= {frame.time.t_max:g}")
    return start, stop, steps + (end == "stop")


def _span(a: float, b: float, nodes: int) -> np.ndarray:
    return np.linspace(a, b, nodes) if nodes > 1 else np.array([a])


def power_t(
    frame: Frame, steps: int, *, end: End, t_T: float | None = None, t_0: float | None = None, power: float = 2.0
) -> Grid:
    """Uniform in t^(1/power), raised to the power again (power 2: ``time_quadratic``)."""
    _check_power(power)
    start, stop, nodes = _times(frame, steps, end, t_T, t_0)
    t = _span(start ** (1 / power), stop ** (1 / power), nodes) ** power
    t[0] = start  # rounding of the power must not leave the schedule's range
    if nodes > 1:
        t[-1] = stop
    return from_times(frame, t, end=end)


def uniform_t(
    frame: Frame, steps: int, *, end: End, t_T: float | None = None, t_0: float | None = None
) -> Grid:
    """Uniform in the schedule's time (``time_uniform``)."""
    return power_t(frame, steps, end=end, t_T=t_T, t_0=t_0, power=1.0)


def quadratic_t(
    frame: Frame, steps: int, *, end: End, t_T: float | None = None, t_0: float | None = None
) -> Grid:
    """Uniform in sqrt(t) (``time_quadratic``)."""
    return power_t(frame, steps, end=end, t_T=t_T, t_0=t_0, power=2.0)


def uniform_lambda(
    frame: Frame, steps: int, *, end: End, t_T: float | None = None, t_0: float | None = None
) -> Grid:
    """Uniform in lambda (``logSNR``). A start at pure noise is moved to sigma 0.999 of a flow frame."""
    start, stop, nodes = _times(frame, steps, end, t_T, t_0)
    if not np.isfinite(frame.lambda_(start)):
        start = 0.999
    return from_lambdas(frame, _span(float(frame.lambda_(start)), float(frame.lambda_(stop)), nodes), end)


def karras(
    frame: Frame, steps: int, *, end: End, t_T: float | None = None, t_0: float | None = None, rho: float = 7.0
) -> Grid:
    """Uniform in level^(1/rho) (Karras et al. 2022, eq. 5); the level is sigma/alpha, in a flow frame sigma."""
    _check_power(rho)
    return _levels(frame, steps, end, t_T, t_0, lambda level: level ** (1 / rho), lambda u: u**rho)


def exponential(
    frame: Frame, steps: int, *, end: End, t_T: float | None = None, t_0: float | None = None
) -> Grid:
    """Uniform in log level: the same as ``uniform_lambda`` but in a flow frame, where it is uniform in log sigma."""
    return _levels(frame, steps, end, t_T, t_0, np.log, np.exp)


def kl_optimal(
    frame: Frame, steps: int, *, end: End, t_T: float | None = None, t_0: float | None = None
) -> Grid:
    """Uniform in arctan level: the optimum for Gaussian data of unit variance (Sabour et al. 2024, "Align Your Steps")."""
    return _levels(frame, steps, end, t_T, t_0, np.arctan, np.tan)


def edm_rho(
    frame: Frame, steps: int, *, end: End, sigma_max: float = 80.0, sigma_min: float = 0.002, rho: float = 7.0
) -> Grid:
    """EDM's grid between two levels given as numbers, whatever the model's own range (Karras et al. 2022, table 1)."""
    start, stop = (float(frame.t_of_lambda(frame.lambda_of_level(s))) for s in (sigma_max, sigma_min))
    return karras(frame, steps, end=end, t_T=start, t_0=stop, rho=rho)


def beta(
    frame: Frame, steps: int, *, end: End, t_T: float | None = None, t_0: float | None = None,
    a: float = 0.6, b: float = 0.6,
) -> Grid:
    """Times at quantiles of a beta distribution (Lee et al. 2024, "Beta Sampling is All You Need"); needs scipy."""
    from .optional import scipy_special

    if not (0 < a < 100 and 0 < b < 100):
        raise OptionError(f"the beta distribution's parameters are {a:g} and {b:g}, expected numbers between 0 and 100")
    start, stop, _ = _times(frame, steps, end, t_T, t_0)
    quantile = 1.0 - np.arange(steps + (end == "stop")) / steps
    share = scipy_special().betaincinv(a, b, quantile)
    t = stop + (start - stop) * share
    t[0] = start
    if not np.all(np.diff(t) < -1e-9 * start):
        raise OptionError(
            f"{steps} beta steps with parameters {a:g} and {b:g} repeat noise levels: take fewer, or parameters nearer to 1"
        )
    return from_times(frame, t, end=end)


def shifted(
    frame: Frame, steps: int, *, end: End, t_T: float | None = None, t_0: float | None = None, shift: float = 3.0
) -> Grid:
    """Uniform time pushed towards noise: t -> shift*t / (1 + (shift-1)*t) (Esser et al. 2024); flow models' grid.

    ``t_T`` and ``t_0`` are the ends before the shift.
    """
    if frame.time.t_max != 1.0:
        raise ScheduleError("a shifted grid needs a time from 0 to 1; use it with flow or VP frames")
    start, stop, nodes = _times(frame, steps, end, t_T, t_0)
    return from_times(frame, _shift(frame, _span(start, stop, nodes), shift), end=end)


def _shift(frame: Frame, t: np.ndarray, shift: float) -> np.ndarray:
    if not 0 < shift < np.inf:
        raise OptionError(f"shift is {shift}, expected a positive number")
    if shift != 1.0 and frame.time.t_max != 1.0:
        raise ScheduleError(f"the shift {shift} needs a time from 0 to 1, as flow and VP frames have")
    return t if shift == 1.0 else shift * t / (1.0 + (shift - 1.0) * t)


def trailing(
    frame: Frame, steps: int, *, end: End, t_T: float | None = None, t_0: float | None = None, shift: float = 1.0
) -> Grid:
    """Uniform in time down to 0 itself: the last step is as long as the others (diffusers' ``trailing``, ``sgm_uniform``).

    A start at pure noise is moved to sigma 0.999, where lambda is finite: the second step can then have order 2. That is
    diffusers' grid of flow models, ``shift`` its ``flow_shift``. With ``end="zero"`` no other node lies below ``t_0``.
    """
    start, stop, nodes = _times(frame, steps, end, t_T, t_0)
    if not np.isfinite(frame.lambda_(start)):
        start = 0.999
    if end == "zero":
        stop = max(stop, start / steps)
    return from_times(frame, _shift(frame, _span(start, stop, nodes), shift), end=end)


def _levels(
    frame: Frame, steps: int, end: End, t_T: float | None, t_0: float | None,
    forward: Callable[[Any], Any], back: Callable[[Any], Any],
) -> Grid:
    start, stop, nodes = _times(frame, steps, end, t_T, t_0)
    lam = [float(frame.lambda_(start)), float(frame.lambda_(stop))]
    ends = [float(frame.level_of_lambda(value)) for value in lam]
    if not np.isfinite(ends[0]):
        raise ScheduleError("this grid needs a start with alpha > 0; give a smaller t_T")
    levels = back(_span(forward(ends[0]), forward(ends[1]), nodes))
    lambda_ = frame.lambda_of_level(np.clip(levels, ends[1], ends[0]))
    lambda_[0] = lam[0]
    if nodes > 1:
        lambda_[-1] = lam[1]
    return from_lambdas(frame, lambda_, end)


def _check_power(power: float) -> None:
    if not 0 < power < np.inf:
        raise OptionError(f"the grid's power is {power}, expected a positive number")


def deis_grid(
    frame: Frame, steps: int, *, phase: Literal["t", "log", "rho"], end: End = "stop", power: float = 2.0,
    t_T: float | None = None, t_0: float | None = None,
) -> Grid:
    """DEIS's grids (Zhang and Chen 2023): ``t`` and ``rho`` uniform in the power-th root, ``log`` uniform in log rho.

    The ``t`` phase works in the network's own label, so a discrete schedule runs from index N-1 to 0.
    """
    check_choice("phase", phase, ("t", "log", "rho"))
    if phase == "log":
        return exponential(frame, steps, end=end, t_T=t_T, t_0=t_0)
    if phase == "rho":
        return karras(frame, steps, end=end, t_T=t_T, t_0=t_0, rho=power)
    _check_power(power)
    start, stop, nodes = _times(frame, steps, end, t_T, t_0)
    labels = [max(float(frame.time.model_time(t)), 0.0) ** (1 / power) for t in (start, stop)]
    t = frame.time.t_of_model_time(_span(labels[0], labels[1], nodes) ** power)
    t[0] = start
    return from_times(frame, t, end=end)


GRIDS: dict[str, Callable[..., Grid]] = {
    "uniform_t": uniform_t, "uniform_lambda": uniform_lambda, "quadratic_t": quadratic_t, "karras": karras,
    "exponential": exponential, "edm_rho": edm_rho, "beta": beta, "shifted": shifted, "trailing": trailing,
    "kl_optimal": kl_optimal,
}
