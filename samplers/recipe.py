"""Recipes: what nodes, files and picture metadata carry, and how it becomes a plan."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import Any

from .calibration.store import REFERENCE
from .citations import bibtex
from .errors import OptionError
from .frames import Frame
from .grids import Grid, from_sigmas
from .orders import measured_slope
from .plan import Plan
from .registry import CORRECTORS, NOT_AFTER, REPLANNERS, SOLVERS, STARTS, check_options, lookup
from .solvers.dpm_adaptive import AdaptivePlan

ALGORITHM_VERSION = 1  # raised when a change of the formulas changes pictures; old recipes keep their own


def make_plan(name: str, frame: Frame, sigmas_or_grid: Grid | Any, **options: Any) -> Plan | AdaptivePlan:
    """Resolves a solver on a frame and a grid.

    Args:
        name: one of ``solver_names()``.
        frame: from ``frames``; the state and the denoiser live in it.
        sigmas_or_grid: a Grid made with ``grids``, or falling sigmas of the frame, with or without a final 0.
        options: of the solver, see ``solver_options``.

    Raises:
        OptionError: unknown name or option, or a value outside its range (also: order above the number of steps).
        ScheduleError: the grid repeats, rises, or holds NaN.

    >>> from fewstep.samplers import frames
    >>> make_plan("dpm_solver_multistep", frames.edm(), [10.0, 3.0, 1.0, 0.0], order=2).nfe
    3
    """
    return Recipe(name, options).resolve(frame, sigmas_or_grid)


@dataclass(frozen=True)
class Recipe:
    """A solver, its options, the correctors after it and what comes before it; immutable, JSON both ways, independent of
    model and steps.

    Attributes:
        solver, options: a name of ``registry.SOLVERS`` and its options.
        correctors: (name, options) of ``CORRECTORS`` (plan to plan) or ``REPLANNERS`` (they plan anew), in order.
        start: (name, options) of ``STARTS``, a start transform, or None.
        version: of the algorithms.

    >>> Recipe.from_json(Recipe("unipc", {"order": 3}).to_json()) == Recipe("unipc", {"order": 3})
    True
    """

    solver: str
    options: Mapping[str, Any] = field(default_factory=dict)
    correctors: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    version: int = ALGORITHM_VERSION
    start: tuple[str, Mapping[str, Any]] | None = None

    def __post_init__(self) -> None:
        check_options(lookup(SOLVERS, self.solver, "solver"), self.solver, self.options)
        for name, options in self.correctors:
            check_options(lookup({**CORRECTORS, **REPLANNERS}, name, "corrector"), name, options)
        if self.start is not None:
            check_options(lookup(STARTS, self.start[0], "start transform"), *self.start)
            if self.solver in NOT_AFTER.get(self.start[0], ()):
                raise OptionError(
                    f"{self.solver} is for step-distilled models, which know their own noise levels alone: {self.start[0]} would "
                    "start them at another; use either, not both"
                )
            object.__setattr__(self, "start", (self.start[0], _frozen(self.start[1])))
        if not isinstance(self.version, int) or not 1 <= self.version <= ALGORITHM_VERSION:
            raise OptionError(
                f"the recipe has algorithm version {self.version!r}, this FewStep knows 1 to {ALGORITHM_VERSION}: update FewStep"
            )
        object.__setattr__(self, "options", _frozen(self.options))
        object.__setattr__(self, "correctors", tuple((n, _frozen(o)) for n, o in self.correctors))

    def __hash__(self) -> int:
        return hash(self.to_json())

    def corrected(self, name: str, **options: Any) -> Recipe:
        """The recipe with one more corrector at the end."""
        return replace(self, correctors=(*self.correctors, (name, options)))

    def started(self, name: str, **options: Any) -> Recipe:
        """The recipe with a start transform in place of the one it had."""
        return replace(self, start=(name, options))

    def resolve(self, frame: Frame, sigmas_or_grid: Grid | Any) -> Plan | AdaptivePlan:
        """The plan for one frame and grid."""
        grid = sigmas_or_grid if isinstance(sigmas_or_grid, Grid) else from_sigmas(frame, sigmas_or_grid)
        if grid.frame is not frame and (grid.frame.scaling != frame.scaling):
            raise OptionError(f"the grid belongs to a {grid.frame.scaling} frame, the plan was asked for a {frame.scaling} one")
        start = None
        if self.start is not None:
            start, grid = STARTS[self.start[0]](grid, **self.start[1])
        return replace(self._build(grid, len(self.correctors)), recipe=self, start=start)

    def _build(self, grid: Grid, count: int) -> Plan | AdaptivePlan:
        """The solver's plan with the first ``count`` correctors."""
        plan = SOLVERS[self.solver](grid, **self.options)
        for i, (name, options) in enumerate(self.correctors[:count]):
            if not isinstance(plan, Plan):
                raise OptionError(f"the corrector {name} needs a fixed grid; {self.solver} chooses its steps while running")
            if plan.late:
                raise OptionError(
                    f"{name} cannot act on coefficients that {self.correctors[i - 1][0]} makes depend on the data: put it before"
                )
            if name in REPLANNERS:
                plan = REPLANNERS[name](partial(self._build, count=i), grid, **options)
            else:
                plan = CORRECTORS[name](plan, **options)
        return plan

    @property
    def order(self) -> int | None:
        """Order of convergence, measured on a small problem (see ``orders``); None where there is none to measure."""
        slope = measured_slope(((self.solver, self.options), *self.correctors))
        return None if slope is None else round(slope)

    @property
    def label(self) -> str:
        """Solver and options in one line."""
        parts = [*([self.start] if self.start else []), (self.solver, self.options), *self.correctors]
        return " + ".join(f"{n}({', '.join(f'{k}={v}' for k, v in o.items())})" for n, o in parts)

    @property
    def references(self) -> list[str]:
        """The calibration files that its options name, see ``calibration.store``."""
        parts = [self.options, *(o for _, o in self.correctors), *([self.start[1]] if self.start else [])]
        return [v for o in parts for v in o.values() if isinstance(v, str) and REFERENCE.fullmatch(v)]

    def cite(self) -> str:
        """BibTeX of the papers behind the solver, its correctors and its start transform.

        >>> Recipe("unipc").cite().splitlines()[0]
        '@inproceedings{zhao2023unipc,'
        """
        start = [] if self.start is None else [self.start[0]]
        return bibtex([self.solver, *(name for name, _ in self.correctors), *start])

    def to_json(self) -> str:
        """Compact JSON with sorted keys: the same recipe gives the same text."""
        data = {
            "fewstep_recipe": self.version, "solver": self.solver, "options": dict(self.options),
            "correctors": [{"corrector": n, "options": dict(o)} for n, o in self.correctors],
        }
        if self.start is not None:  # left out where there is none: texts of older recipes stay as they were
            data["start"] = {"transform": self.start[0], "options": dict(self.start[1])}
        try:
            return json.dumps(data, sort_keys=True, separators=(",", ":"))
        except TypeError as error:  # a calibration that was given as an object
            raise OptionError(f"the recipe cannot be written ({error}): save the calibration and give its reference") from None

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """Reads ``to_json``'s text; raises OptionError on anything else."""
        try:
            data = json.loads(text)
            correctors = tuple((c["corrector"], c["options"]) for c in data["correctors"])
            start = data.get("start")
            return cls(
                data["solver"], data["options"], correctors, data["fewstep_recipe"],
                None if start is None else (start["transform"], start["options"]),
            )
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise OptionError(f"this is not a FewStep recipe: {type(error).__name__} {error}") from None


def _frozen(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """A read-only copy in one order, lists as tuples: two recipes that mean the same are equal."""
    return MappingProxyType({k: tuple(v) if isinstance(v, list) else v for k, v in sorted(options.items())})
