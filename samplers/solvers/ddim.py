"""DDIM (Song et al., arXiv 2010.02502), which is Euler's method for the probability-flow ODE of every model family."""

from __future__ import annotations

from ..errors import check_choice, check_range
from ..grids import Grid
from ..plan import Plan, Row, Stage
from ..predictions import KINDS, Kind, coefficients
from ..sparse import stages_of
from .dpm_sde import ancestral_row, check_eta


def ddim(grid: Grid, *, prediction: Kind = "x_0", eta: float = 0.0, s_noise: float = 1.0) -> Plan:
    """One linear step per evaluation: order 1, no history.

    Args:
        prediction: what is stored and stepped with: x_0, eps (DDIM as published), v, or flow (Euler on the velocity).
            The samples are the same; the table that ``describe`` prints is each family's own.
        eta: 0 is the ODE; 1 is ancestral sampling (Euler ancestral, DDPM's variance).
        s_noise: factor on the added noise.
    """
    check_choice("prediction", prediction, KINDS)
    check_range("eta", eta, 0.0, 1.0)
    check_eta(eta, s_noise)

    def step(i: int, first: int) -> tuple[Stage]:
        node = grid.node(i)
        # at pure noise (alpha 0) the noise prediction does not determine x_0
        kind = "x_0" if node.alpha == 0 and prediction == "eps" else prediction
        row = ancestral_row(node, grid.node(i + 1), {i: 1.0}, eta, s_noise)
        p, q = coefficients(kind, node.alpha, node.sigma)
        b = float(row.m.get(i, 0.0))  # type: ignore[arg-type]
        # x' = a x + b D with D = (M - p x)/q
        changed = Row(x=row.x - b * p / q, m={i: b / q}, noise=row.noise)
        return (Stage(node, changed, kind=kind, step=i),)

    return Plan(stages_of([1] * grid.steps, step), grid.nodes)
