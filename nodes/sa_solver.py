"""SA-Solver as a node; beside the other solver nodes in the menu."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from .solvers import SolverNode


class FewStepSASolver(SolverNode):
    """SA-Solver."""

    SOLVER = "sa_solver"
    SHOWN = (
        "predictor_order", "corrector_order", "tau", "sde_start", "sde_end", "s_noise", "simple_order_2", "lower_order_final",
    )
    CHANGES: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "tau": {
            "high": 10.0, "advanced": False,
            "tooltip": "How much noise is renewed: 0 is the ODE, 1 the full stochastic process. ComfyUI calls it eta.",
        },
        "lower_order_final": {
            "advanced": True, "tooltip": "Lowers the order step by step towards the end; keep it on with few steps.",
        },
    }
    DISPLAY_NAME = "SA-Solver (FewStep)"
    DESCRIPTION = (
        "Stochastic Adams predictor and corrector at one evaluation per step (Xue et al. 2023). Noise is renewed at middle noise "
        "levels alone. Of the stochastic solvers the one for few steps; each sample has its own noise, the same in any batch."
    )
    SEARCH_ALIASES: ClassVar[list[str]] = ["sa_solver", "stochastic adams", "sasolver"]


NODES = (FewStepSASolver,)
