"""Cascade polynomial regression (DC-Solver, arXiv 2409.03755, section 3.4): ratios from guidance, steps and step index."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..errors import CalibrationError, CalibrationWarning, OptionError, check_integer
from .store import Calibration

SHAPE = (4, 3, 3)  # powers 0..3 of step/steps; 2..0 of guidance/12; 2..0 of steps/50
FIRST = 3  # the first step whose ratio is fitted; before it the ratio is 1
# Stable Diffusion 2.1, UniPC of order 2, bh2, no corrector after the first step; by the paper's authors
SD21 = (
    (
        (1523.676619658719, -1111.4746450817747, 198.38349617752823),
        (-1346.0890022783242, 1007.1949412581944, -186.2547577408646),
        (168.39730243270586, -128.0389489406508, 24.884789751788965),
    ),
    (
        (-8140.644018577604, 5906.748279115223, -1035.9941123139745),
        (6941.413899402556, -5193.980659818976, 950.3205652979913),
        (-848.2104675050633, 650.6903333310611, -121.28674276636774),
    ),
    (
        (13309.270384617059, -9616.6703205253, 1668.7685962068279),
        (-11037.107794392457, 8256.66668566493, -1503.7992035851387),
        (1293.9740435093065, -999.5629328211232, 188.2217041354989),
    ),
    (
        (-6747.4218216104955, 4853.153053347587, -835.5116792834909),
        (5489.115183777738, -4096.897218212316, 743.0953413127122),
        (-619.5612763258621, 480.1497146559675, -90.89633128561563),
    ),
)
PUBLISHED: dict[str, tuple[Any, tuple[int, int], tuple[float, float]]] = {"sd21": (SD21, (5, 20), (1.0, 12.0))}
SOLVERS: dict[str, tuple[str, dict[str, Any]]] = {"sd21": ("unipc", {"order": 2, "variant": "bh2", "disable_corrector": (0,)})}


def evaluate(table: Any, guidance: float, steps: int) -> list[float]:
    """rho_1 ... rho_n of a table of 36 numbers, shape (4, 3, 3); the first two are 1.

    Raises OptionError for fewer than 3 steps, a table of another shape, or a guidance that is not a number.
    """
    check_integer("steps of the ratio polynomial", steps, FIRST, 10_000)
    K = np.asarray(table, np.float64)
    if K.shape != SHAPE or not np.all(np.isfinite(K)):
        raise OptionError(f"the ratio polynomial has shape {list(K.shape)}, expected 36 finite numbers in shape {list(SHAPE)}")
    if isinstance(guidance, bool) or not isinstance(guidance, (int, float)) or not np.isfinite(guidance):
        raise OptionError(f"guidance is {guidance!r}, expected the guidance scale that the ratios are for")
    c = (K @ _powers(steps / 50.0)) @ _powers(guidance / 12.0)
    u = np.arange(1, steps + 1) / steps
    ratios = c[0] + c[1] * u + c[2] * u**2 + c[3] * u**3
    return [1.0] * (FIRST - 1) + [float(rho) for rho in ratios[FIRST - 1 :]]


def _powers(value: float) -> np.ndarray:
    return np.array([value**2, value, 1.0])


def warn_outside(name: str, guidance: float, steps: int, fitted_steps: Sequence[int], fitted_guidance: Sequence[float]) -> None:
    """A CalibrationWarning where a polynomial is used outside the range that it was fitted on: it diverges there."""
    if not (fitted_steps[0] <= steps <= fitted_steps[1] and fitted_guidance[0] <= guidance <= fitted_guidance[1]):
        warnings.warn(
            f"the ratio polynomial {name} was fitted for {fitted_steps[0]} to {fitted_steps[1]} steps and guidance "
            f"{fitted_guidance[0]:g} to {fitted_guidance[1]:g}; for {steps} steps at guidance {guidance:g} it may be wild",
            CalibrationWarning, stacklevel=4,
        )


def fit_polynomial(
    searched: Mapping[tuple[float, int], Sequence[float]], *, dc_order: int = 2, meta: Mapping[str, Any] | None = None,
) -> Calibration:
    """One's own table from searched ratios.

    The published cascade (a cubic in the step, its coefficients quadratic in guidance, theirs in the number of steps) is one
    polynomial in all three. Its 36 numbers are fitted together here, by least squares on the ratios: where the cascade fits
    exactly that is the same table, and few steps, which do not determine a cubic of their own, count too.

    Args:
        searched: rho_1 ... rho_n by (guidance, n).
        dc_order: of the search.
        meta: further JSON values for the file, such as the solver.

    Returns:
        Calibration for "ratios": tensor ``polynomial`` (4, 3, 3); the fitted ranges and the residual in ``meta``.

    Raises:
        CalibrationError: lists of a wrong length, not finite, or too few of them: it takes 3 values of guidance and 3
            numbers of steps, two of them 6 or more.
    """
    rows, values = [], []
    for (guidance, steps), ratios in searched.items():
        if len(ratios) != steps or not np.all(np.isfinite(np.asarray(ratios, np.float64))):
            raise CalibrationError(f"guidance {guidance:g}, {steps} steps: {len(ratios)} ratios, expected {steps} finite ones")
        for i in range(FIRST, steps + 1):
            u = (i / steps) ** np.arange(4)
            rows.append(np.einsum("i,j,k->ijk", u, _powers(guidance / 12.0), _powers(steps / 50.0)).ravel())
            values.append(float(ratios[i - 1]))
    size = int(np.prod(SHAPE))
    matrix, target = np.array(rows).reshape(-1, size), np.array(values)
    scale = np.abs(matrix).max(0, initial=0.0) + 1e-300
    solution, _, rank, _ = np.linalg.lstsq(matrix / scale, target, rcond=None)
    if rank < size:
        raise CalibrationError(
            f"the searched ratios determine {rank} of the polynomial's {size} numbers: search at 3 or more values of guidance, "
            "each with 3 or more numbers of steps, most of them 6 or more"
        )
    residual = float(np.sqrt(np.mean((matrix / scale @ solution - target) ** 2)))
    guidances, counts = [sorted({key[i] for key in searched}) for i in (0, 1)]
    return Calibration("ratios", {"polynomial": torch.from_numpy((solution / scale).reshape(SHAPE))}, {
        **(meta or {}), "method": "dynamic_compensation", "form": "polynomial", "dc_order": dc_order,
        "residual": residual,
        "fitted_guidance": [float(guidances[0]), float(guidances[-1])], "fitted_steps": [int(counts[0]), int(counts[-1])],
    })
