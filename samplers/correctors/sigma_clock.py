"""The clock of sigma: flow models stepped as if alpha were 1.

In a flow frame and with alpha = 1 alike the ODE is ``dx/dsigma = (x - D)/sigma``. A plan made for alpha = 1 on the same sigmas
is therefore a plan of the flow model too, of the same order, but another one: its noise prediction ``(x - D)/sigma`` is the
flow's velocity, and its lambda is ``-log sigma``, which is finite at pure noise, so that the second step already has order 2.
ComfyUI's ``dpmpp_2m``, ``res_multistep``, ``ipndm``, ``lms``, ``deis`` and ``gradient_estimation`` are such
methods on flow models.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import OptionError
from ..frames import edm
from ..grids import Grid, from_sigmas
from ..plan import Plan


def sigma_clock(build: Callable[[Grid], Any], grid: Grid) -> Plan:
    """Plans on the sigmas of a flow grid as if alpha were 1; in other frames, where lambda is that clock, changes nothing.

    Args:
        build: the base plan on any grid. It may not add noise, which has another law there, nor ask for the model's time.
    """
    plan: Plan = build(grid if grid.frame.scaling != "flow" else from_sigmas(edm(), grid.sigma))
    if grid.frame.scaling == "flow" and plan.stochastic:
        raise OptionError("sigma_clock is for solvers that add no noise: set eta (SA-Solver: tau) to 0 or leave it out")
    return plan
