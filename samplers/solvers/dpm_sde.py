"""DPM-Solver++ SDE forms: multistep 1M to 3M and singlestep (arXiv 2211.01095, and k-diffusion's samplers).

With ``eta`` 1 the full reverse SDE is solved, with 0 its ODE. All intervals are in lambda, so the forms hold in every
frame, flow included.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

from ..errors import OptionError, check_choice, check_integer
from ..grids import Grid, Node, node_at_lambda
from ..plan import IDENTITY, NoiseTerm, Plan, Row, Stage
from ..sparse import stages_of
from .dpm_multistep import difference_weights, require_steps
from .exponential import usable_history

SdeType = Literal["midpoint", "heun"]


def check_eta(eta: float, s_noise: float) -> None:
    """Raises OptionError unless both are finite and not negative."""
    for name, value in {"eta": eta, "s_noise": s_noise}.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
            raise OptionError(f"{name} is {value!r}, expected a number of at least 0")


def sde_row(
    grid: Grid, i: int, order: int, eta: float, s_noise: float, solver_type: str
) -> Row:
    """The update from node i to node i+1 through at most ``order`` outputs, with its noise."""
    s, t = grid.node(i), grid.node(i + 1)
    h = t.lambda_ - s.lambda_
    if t.sigma == 0:
        return Row(m={i: t.alpha})
    if s.alpha == 0:  # pure noise: the step is infinitely long, so all of the old noise is replaced when eta > 0
        keep = 1.0 if eta == 0 else 0.0
        return Row(x=keep * t.sigma / s.sigma, m={i: t.alpha}, noise=NoiseTerm.between(s_noise * t.sigma * (1 - keep), s, t))
    order = usable_history(grid, i, order)
    gaps = [float(grid.lambda_[i - k] - grid.lambda_[i - k - 1]) for k in range(order - 1)]
    # the psi functions see (1+eta) h, the divided differences plain h
    weights = difference_weights(order, -(1 + eta) * h, h, gaps, "dpmsolver" if solver_type == "midpoint" else "taylor")
    m = {i - age: -t.alpha * w for age, w in weights.items()}
    first = -t.alpha * math.expm1(-(1 + eta) * h)
    m[i] = first - math.fsum(m.values())
    noise = s_noise * t.sigma * math.sqrt(-math.expm1(-2 * eta * h))
    return Row(x=t.sigma / s.sigma * math.exp(-eta * h), m=m, noise=NoiseTerm.between(noise, s, t))


def dpm_solver_sde_multistep(
    grid: Grid, *, order: int = 2, eta: float = 1.0, s_noise: float = 1.0, solver_type: SdeType = "midpoint",
) -> Plan:
    """DPM-Solver++(2M) SDE and (3M) SDE, one evaluation per step.

    Args:
        order: 1, 2 (2M) or 3 (3M; its second step uses the Heun weight, as k-diffusion has it).
        eta: share of the reverse SDE; 0 gives the ODE.
        s_noise: factor on the added noise; other than 1 it biases the law of the samples.
        solver_type: ``midpoint`` or ``heun`` weight of the second-order term (order 2 only).
    """
    check_integer("order", order, 1, 3)
    check_choice("solver_type", solver_type, ("midpoint", "heun"))
    check_eta(eta, s_noise)
    require_steps(grid, order)
    kind = "heun" if order == 3 else solver_type

    def step(i: int, first: int) -> tuple[Stage]:
        return (Stage(grid.node(i), sde_row(grid, i, min(order, i + 1), eta, s_noise, kind), step=i),)

    return Plan(stages_of([1] * grid.steps, step), grid.nodes)


def ancestral(source: Node, target: Node, eta: float) -> tuple[float, float]:
    """(kept, added) noise levels of an ancestral step between rho levels, in the alpha = 1 frame.

    ``kept^2 + added^2 = rho_target^2``. The same split as DDIM's eta (Song et al. 2021, eq. 16).
    """
    a, b = source.rho, target.rho
    if eta == 0:
        return b, 0.0
    added = min(b, eta * b) if math.isinf(a) else min(b, eta * b * math.sqrt(-math.expm1(2 * (source.lambda_ - target.lambda_))))
    return math.sqrt(max((b - added) * (b + added), 0.0)), added


def ancestral_row(source: Node, target: Node, m: dict[int, float], eta: float, s_noise: float) -> Row:
    """x_0 weights ``m`` (summing to 1), the kept part of the old noise, and new noise."""
    kept, added = ancestral(source, target, eta)
    return renewed_row(source, target, m, kept, added * s_noise)


def renewed_row(source: Node, target: Node, m: dict[int, float], kept: float, added: float) -> Row:
    """The step to ``target`` whose noise is ``kept`` of the old and ``added`` new, both in the alpha = 1 frame."""
    keep = target.alpha * kept / source.sigma
    share = target.alpha - keep * source.alpha
    return Row(
        x=keep, m={j: share * w for j, w in m.items()},
        noise=NoiseTerm.between(target.alpha * added, source, target),
    )


def dpm_solver_sde_singlestep(grid: Grid, *, eta: float = 1.0, s_noise: float = 1.0, r: float = 0.5) -> Plan:
    """DPM-Solver++ SDE of second order (k-diffusion's ``dpmpp_sde``): two evaluations per step, one on the last.

    Args:
        eta: share of ancestral noise in both parts of a step; 0 gives an ODE solver.
        s_noise: factor on the added noise.
        r: where in the step (in lambda) the inner evaluation lies, above 0 to 1.

    The two draws of a step belong to overlapping intervals: use a Brownian noise source for correlated ones (``run``
    does, given a seed).
    """
    check_eta(eta, s_noise)
    if not 0 < r <= 1:
        raise OptionError(f"r is {r!r}, expected a number above 0 and up to 1")
    one = [t.sigma == 0 or s.alpha == 0 for s, t in pairwise(grid.nodes)]

    def step(i: int, first: int) -> tuple[Stage, ...]:
        s, t = grid.node(i), grid.node(i + 1)
        if one[i]:
            return (Stage(s, ancestral_row(s, t, {first: 1.0}, eta, s_noise), step=i),)
        middle = node_at_lambda(grid.frame, s.lambda_ + r * (t.lambda_ - s.lambda_))
        share = 1 / (2 * r)
        return Stage(s, IDENTITY, step=i), Stage(
            middle, ancestral_row(s, t, {first: 1 - share, first + 1: share}, eta, s_noise),
            ancestral_row(s, middle, {first: 1.0}, eta, s_noise), step=i,
        )

    return Plan(stages_of([1 if single else 2 for single in one], step), grid.nodes)
