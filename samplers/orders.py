"""The order of convergence of a solver, measured: solve a small problem on two grids and compare the errors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from .frames import Frame, linear_vp
from .grids import Grid, from_sigmas
from .plan import Plan, Row
from .registry import CORRECTORS, KEEPS_ORDER, SOLVERS, WITHOUT_ORDER, solver_options

_T_T, _T_0 = 0.6, 0.2  # a stretch of the schedule on which the test problem is smooth at these step sizes
_STEPS = (60, 120)
_START_UP = 24  # steps that double in size, so that a multistep method's low-order first steps leave no error
_STARTS = np.array([-1.7, -1.1, -0.6, -0.2, 0.3, 0.9, 1.4])  # several, since one start's error may change its sign
_BODY = {
    "lower_order_final": False, "denoise_to_zero": False, "thresholding": False, "disable_corrector": (), "disable": (),
    "allocation": "fixed", "statistics": None,  # no statistics: their grid would limit what can be seen of the order
}


def posterior_mean(x: np.ndarray, alpha: float, sigma: float) -> np.ndarray:
    """The denoiser of two points at -1 and +1 widened by noise of standard deviation 0.5: smooth and nonlinear."""
    variance = alpha * alpha * 0.25 + sigma * sigma
    mode = np.tanh(alpha * x / variance)
    return mode + alpha * 0.25 / variance * (x - alpha * mode)


def run_on_arrays(plan: Plan, x: np.ndarray) -> np.ndarray:
    """Runs a deterministic plan with scalar coefficients in numpy, against ``posterior_mean``."""
    start = x
    outputs: list[Any] = []

    def apply(row: Row) -> Any:
        return float(row.x) * x + float(row.x_T) * start + sum(float(c) * outputs[j] for j, c in row.m.items())

    for stage in plan.stages:
        y = apply(stage.predict)
        p, q = stage.store
        outputs.append(p * y + q * posterior_mean(y, stage.node.alpha, stage.node.sigma))
        x = apply(stage.carry)
    result: np.ndarray = apply(plan.final)
    return result


@lru_cache(maxsize=1)
def _reference(frame: Frame) -> np.ndarray:
    """The exact end states, by the classical fourth-order method in lambda with a very fine step."""
    lam, h = np.linspace(float(frame.lambda_(_T_T)), float(frame.lambda_(_T_0)), 2001, retstep=True)

    def slope(v: np.ndarray, lambda_: float) -> np.ndarray:  # with v = x/alpha: dv/dlambda = -rho eps = D - v
        alpha, sigma = float(frame.alpha_of_lambda(lambda_)), float(frame.sigma_of_lambda(lambda_))
        return np.asarray(posterior_mean(alpha * v, alpha, sigma) - v)

    v = _STARTS / float(frame.alpha_of_lambda(lam[0]))
    for a in lam[:-1]:
        k1 = slope(v, a)
        k2 = slope(v + h / 2 * k1, a + h / 2)
        k3 = slope(v + h / 2 * k2, a + h / 2)
        v = v + h / 6 * (k1 + 2 * k2 + 2 * k3 + slope(v + h * k3, a + h))
    return np.asarray(v * float(frame.alpha_of_lambda(lam[-1])))


def _grid(frame: Frame, steps: int) -> Grid:
    sizes = np.concatenate([2.0 ** np.arange(-_START_UP, 0), np.ones(steps)])
    start, stop = float(frame.lambda_(_T_T)), float(frame.lambda_(_T_0))
    lam = start + (stop - start) * np.concatenate([[0.0], np.cumsum(sizes) / np.sum(sizes)])
    return from_sigmas(frame, frame.sigma_of_lambda(lam))


def measured_slope(parts: Sequence[tuple[str, Mapping[str, Any]]]) -> float | None:
    """Slope of log error against log steps for a solver followed by correctors, each (name, options).

    The body's slope: without a lowered order at the end or the start-up steps. None for stochastic solvers, for those
    that choose their steps while running, for correctors that leave no order, and for solvers bound to one grid.
    """
    if any(name in WITHOUT_ORDER for name, _ in parts):
        return None
    measured = [(name, {**options, **_body(name)}) for name, options in parts if name not in KEEPS_ORDER]
    return _slope(tuple((name, tuple(sorted(options.items()))) for name, options in measured))


def _body(name: str) -> dict[str, Any]:
    return {k: v for k, v in _BODY.items() if k in solver_options(name)}


@lru_cache(maxsize=256)
def _slope(parts: tuple[tuple[str, tuple[tuple[str, Any], ...]], ...]) -> float | None:
    frame, errors = linear_vp(), []
    for steps in _STEPS:
        plan: Any = _grid(frame, steps)
        for i, (name, options) in enumerate(parts):
            plan = (CORRECTORS if i else SOLVERS)[name](plan, **dict(options))
        if not isinstance(plan, Plan) or plan.stochastic:
            return None
        difference = run_on_arrays(plan, _STARTS) - _reference(frame)
        errors.append(math.sqrt(float(np.mean(difference**2))))
    return math.log(errors[0] / max(errors[1], 1e-300)) / math.log(_STEPS[1] / _STEPS[0])
