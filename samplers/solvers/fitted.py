"""Fitted plans as a solver: the numbers of a calibration file, on its own noise levels."""

from __future__ import annotations

from ..calibration.store import Calibration, resolve
from ..calibration.tableau import Tableau
from ..errors import CalibrationError
from ..frames import Frame, edm, flow, linear_vp
from ..grids import Grid
from ..plan import Plan


def fitted_plan(grid: Grid, *, calibration: str | Calibration = "") -> Plan:
    """A plan fitted to one model, guidance and number of steps (``calibration.fitted_plan.fit``).

    Args:
        calibration: the reference of its file, or the object itself. Its sigmas must be the grid's, see ``fitted_grid``; a
            frame of another scaling (alpha = 1, VP, flow) is converted exactly.
    """
    tableau = Tableau.from_calibration(_resolved(calibration), grid.frame)
    tableau.check_grid(grid, calibration.partition("@")[0] if isinstance(calibration, str) else "this fitted plan")
    return tableau.plan(grid)


def fitted_grid(calibration: str | Calibration, frame: Frame) -> Grid:
    """The noise levels that a fitted plan steps through, in ``frame``."""
    return Tableau.from_calibration(_resolved(calibration), frame).grid


def trial_grid(calibration: str | Calibration) -> Grid:
    """The fitted plan's noise levels in the scaling that it was fitted in, where no model is known."""
    found = _resolved(calibration)
    frame = {"unit": edm, "flow": flow, "vp": linear_vp}[found.meta.get("scaling", "unit")]()
    return fitted_grid(found, frame)


def _resolved(calibration: str | Calibration) -> Calibration:
    if not calibration:
        raise CalibrationError("fitted_plan needs the reference of a calibration file: load one, or fit a plan to the model")
    return resolve(calibration, "plan")
