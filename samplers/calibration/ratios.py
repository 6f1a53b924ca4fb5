"""Compensation ratios from what an option gives: a list, a polynomial, or a calibration made for the same steps."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import CalibrationError, CalibrationWarning, OptionError
from ..frames import flow, linear_vp
from ..grids import Grid, Node, from_sigmas, uniform_lambda
from . import polynomial
from .store import Calibration, resolve

if TYPE_CHECKING:
    from ..recipe import Recipe

SAME = 1e-3  # relative difference of noise levels up to which steps count as the same
Ratios = Sequence[float] | str | Calibration


def resolve_ratios(ratios: Ratios, nodes: Sequence[Node], dc_order: int, guidance: float | None) -> list[float]:
    """rho_1 ... rho_n for the steps between ``nodes``; see ``correctors.compensation.dynamic_compensation``."""
    steps = len(nodes) - 1
    if isinstance(ratios, str) and ratios in polynomial.PUBLISHED:
        return _from_polynomial(ratios, guidance, steps, *polynomial.PUBLISHED[ratios])
    if isinstance(ratios, (str, Calibration)):
        return _calibrated(resolve(ratios, "ratios"), nodes, dc_order, guidance)
    found = list(ratios)
    if len(found) != steps:
        raise OptionError(f"{len(found)} ratios were given for {steps} steps, expected one per step, the first ones 1")
    bad = next((v for v in found if isinstance(v, bool) or not isinstance(v, (int, float)) or not math.isfinite(v)), None)
    if bad is not None:
        raise OptionError(f"the ratios hold {bad!r}, expected finite numbers")
    return [float(v) for v in found]


def _from_polynomial(
    name: str, guidance: float | None, steps: int, table: Any, fitted_steps: Sequence[int], fitted_guidance: Sequence[float],
) -> list[float]:
    if guidance is None:
        raise OptionError(f"the ratio polynomial {name} needs the guidance scale: give guidance")
    ratios = polynomial.evaluate(table, guidance, steps)
    polynomial.warn_outside(name, guidance, steps, fitted_steps, fitted_guidance)
    return ratios


def _calibrated(calibration: Calibration, nodes: Sequence[Node], dc_order: int, guidance: float | None) -> list[float]:
    meta, steps = calibration.meta, len(nodes) - 1
    try:
        made_order, polynomials = int(meta["dc_order"]), meta.get("form") == "polynomial"
        clock = None if polynomials else np.asarray(meta["clock"], np.float64)
        values = calibration.tensors["polynomial" if polynomials else "ratios"].double()
    except (KeyError, TypeError, ValueError) as error:
        raise CalibrationError(f"the calibration holds no compensation ratios ({type(error).__name__} {error})") from error
    if made_order != dc_order:
        raise CalibrationError(f"the ratios were searched with dc_order {made_order}, not {dc_order}: set it to {made_order}")
    if clock is None:
        return _from_polynomial(
            "of the calibration", guidance, steps, values.numpy(), meta["fitted_steps"], meta["fitted_guidance"]
        )
    if len(clock) != len(nodes) or len(values) != steps:
        raise CalibrationError(f"the ratios were searched for {len(clock) - 1} steps, not for {steps}: search for these")
    apart = np.flatnonzero(~np.isclose(clock_of(nodes), clock, rtol=SAME, atol=1e-9))
    ended = (clock[-1] == 0) != (nodes[-1].sigma == 0)
    if len(apart) > 1 or ended:  # one may be elsewhere: time shift plans with one node moved at a time, though never to 0
        i = steps if ended else int(apart[0])
        raise CalibrationError(
            f"the ratios were searched for other noise levels: node {i} is at sigma/(alpha+sigma) {clock_of(nodes)[i]:.6g} here, "
            f"and was at {clock[i]:.6g} there: use the schedule of the search ({meta.get('sigmas')}), or search for this one"
        )
    return [float(v) for v in values]


def clock_of(nodes: Sequence[Node]) -> list[float]:
    """Noise levels as sigma/(alpha + sigma), from 1 (noise) to 0 (data): finite, and the same in every frame of a model."""
    return [node.sigma / (node.alpha + node.sigma) for node in nodes]


def check_recipe(ratios: str | Calibration, recipe: Recipe) -> None:
    """Raises CalibrationError where ratios were searched with another solver or other correctors before them.

    A published polynomial, which may still do, only brings a CalibrationWarning.
    """
    from ..recipe import Recipe

    if isinstance(ratios, str):
        old = Recipe(*polynomial.SOLVERS[ratios])
    elif "recipe" in ratios.meta:
        old = Recipe.from_json(str(ratios.meta["recipe"]))
    else:
        return
    if _parts(old) == _parts(recipe):
        return
    if isinstance(ratios, str):
        text = f"the ratio polynomial {ratios} was fitted for {old.label}, not for {recipe.label}"
        warnings.warn(text, CalibrationWarning, stacklevel=3)
        return
    raise CalibrationError(
        f"the ratios were searched for {old.label}, not for {recipe.label}: use that solver, or search for this one"
    )


def _parts(recipe: Recipe) -> list[tuple[str, dict[str, Any]]]:
    """The solver and its correctors with every option."""
    from ..registry import solver_options

    parts = ((recipe.solver, recipe.options), *recipe.correctors)
    return [(name, {**{key: option.default for key, option in solver_options(name).items()}, **given}) for name, given in parts]


def trial_grid(recipe: Recipe) -> Grid | None:
    """A grid on which a recipe with compensation can be tried: of as many steps as it has ratios, or that of the search."""
    for name, options in recipe.correctors:
        if name != "dynamic_compensation":
            continue
        ratios, frame = options.get("ratios", "sd21"), linear_vp().unit_alpha()
        if isinstance(ratios, str) and ratios in polynomial.PUBLISHED:
            return uniform_lambda(frame, polynomial.PUBLISHED[ratios][1][1], end="stop")
        if not isinstance(ratios, (str, Calibration)):
            return uniform_lambda(frame, len(ratios), end="stop")
        meta = resolve(ratios, "ratios").meta
        if "clock" not in meta:
            return uniform_lambda(frame, int(meta["fitted_steps"][1]), end="stop")
        clock = np.asarray(meta["clock"], np.float64)
        return from_sigmas(flow(), clock) if clock[0] == 1 else from_sigmas(frame, clock / (1 - clock))
    return None
