"""rhoRK: explicit Runge-Kutta methods on ``dv/drho = eps`` (DEIS, arXiv 2204.13902, section 3.4)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from ..errors import check_choice
from ..grids import Grid, node_at_lambda
from ..plan import IDENTITY, Plan, Row, Stage
from ..sparse import stages_of
from .exponential import stage_kind, step_from


@dataclass(frozen=True)
class Tableau:
    """A Butcher tableau: ``a[i]`` are the weights of stage i+1 on the stages before it."""

    c: tuple[Fraction, ...]
    a: tuple[tuple[Fraction, ...], ...]
    b: tuple[Fraction, ...]


def _tableau(c: str, a: str, b: str) -> Tableau:
    def row(text: str) -> tuple[Fraction, ...]:
        return tuple(Fraction(part) for part in text.split())

    return Tableau(row(c), tuple(row(line) for line in a.split(";") if line.strip()), row(b))


TABLEAUS = {
    "1euler": _tableau("0", "", "1"),
    "2heun": _tableau("0 1", "1", "1/2 1/2"),
    "3kutta": _tableau("0 1/2 1", "1/2; -1 2", "1/6 4/6 1/6"),
    "3ral": _tableau("0 1/2 3/4", "1/2; 0 3/4", "2/9 1/3 4/9"),
    "3heun": _tableau("0 1/3 2/3", "1/3; 0 2/3", "1/4 0 3/4"),
    "3vdh": _tableau("0 8/15 2/3", "8/15; 1/4 5/12", "1/4 0 3/4"),
    "3ssprk": _tableau("0 1 1/2", "1; 1/4 1/4", "1/6 1/6 2/3"),
    "4rk": _tableau("0 1/2 1/2 1", "1/2; 0 1/2; 0 0 1", "1/6 1/3 1/3 1/6"),
}


def deis_rk(grid: Grid, *, tableau: str = "3kutta") -> Plan:
    """rhoRK with a named tableau: 1euler, 2heun, 3kutta, 3ral, 3heun, 3vdh, 3ssprk or 4rk.

    Every step takes as many evaluations as the tableau has stages; a step from pure noise or to sigma 0 is one Euler
    step.
    """
    check_choice("tableau", tableau, TABLEAUS)
    method = TABLEAUS[tableau]
    euler = [s.alpha == 0 or t.sigma == 0 for s, t in pairwise(grid.nodes)]

    def step(i: int, first: int) -> list[Stage]:
        s, t = grid.node(i), grid.node(i + 1)
        if euler[i]:
            return [Stage(s, step_from(s, t, "noise").row({}, newest=first), kind=stage_kind(s, "noise"), step=i)]
        stages: list[Stage] = []
        d = t.rho - s.rho
        for k, c in enumerate(method.c):
            node, predict = s, IDENTITY
            if k:
                node = t if c == 1 else node_at_lambda(grid.frame, -math.log(s.rho + float(c) * d))
                scale = node.alpha * d
                predict = Row(x=node.alpha / s.alpha, m={first + j: scale * float(a) for j, a in enumerate(method.a[k - 1])})
            carry = IDENTITY
            if k == len(method.c) - 1:
                carry = Row(x=t.alpha / s.alpha, m={first + j: t.alpha * d * float(b) for j, b in enumerate(method.b)})
            stages.append(Stage(node, carry, predict, "eps", i))
        return stages

    return Plan(stages_of([1 if single else len(method.c) for single in euler], step), grid.nodes)
