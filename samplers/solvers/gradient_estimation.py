"""DDIM with gradient estimation (Permenter and Yuan, arXiv 2306.04848)."""

from __future__ import annotations

from ..errors import check_range
from ..grids import Grid
from ..plan import Plan
from .deis import combined_ddim


def gradient_estimation(grid: Grid, *, gamma: float = 2.0) -> Plan:
    """Euler steps on ``gamma eps_i + (1 - gamma) eps_{i-1}``, one evaluation per step (ComfyUI's sampler of that name).

    The first step, and one to sigma 0, are DDIM's. The method converges with order 1; only ``gamma`` 1.5 on even steps in
    sigma/alpha is of order 2 (iPNDM).

    Args:
        gamma: 1 is DDIM; 2 as published; above 0, at most 5.
    """
    check_range("gamma", gamma, 0.0, 5.0)
    return combined_ddim(grid, ((1.0,), (gamma, 1.0 - gamma)))
