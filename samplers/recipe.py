"""Recipes and the registry: what nodes, files and picture metadata carry, and how it becomes a plan."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal, get_args, get_origin

from .correctors.unic import unic
from .errors import OptionError, check_choice, suggest
from .frames import Frame
from .grids import Grid, from_sigmas
from .plan import Plan
from .solvers.ddim import ddim
from .solvers.deis import deis_ab, ipndm
from .solvers.deis_rk import deis_rk
from .solvers.dpm_adaptive import AdaptivePlan, dpm_solver_adaptive
from .solvers.dpm_multistep import dpm_solver_multistep
from .solvers.dpm_sde import dpm_solver_sde_multistep, dpm_solver_sde_singlestep
from .solvers.dpm_singlestep import dpm_solver_singlestep
from .solvers.unipc import unipc

SOLVERS: dict[str, Callable[..., Plan | AdaptivePlan]] = {
    "ddim": ddim,
    "dpm_solver_multistep": dpm_solver_multistep,
    "dpm_solver_singlestep": dpm_solver_singlestep,
    "dpm_solver_adaptive": dpm_solver_adaptive,
    "dpm_solver_sde_multistep": dpm_solver_sde_multistep,
    "dpm_solver_sde_singlestep": dpm_solver_sde_singlestep,
    "unipc": unipc,
    "deis_ab": deis_ab,
    "deis_rk": deis_rk,
    "ipndm": ipndm,
}
CORRECTORS: dict[str, Callable[..., Plan]] = {"unic": unic}
ALGORITHM_VERSION = 1  # raised when a change of the formulas changes pictures; old recipes keep their own


@dataclass(frozen=True)
class Option:
    """One option of a solver or corrector: its default, and the names it may take (None: a number or list)."""

    default: Any
    choices: tuple[Any, ...] | None


def solver_names() -> list[str]:
    """The names that ``make_plan`` and ``Recipe`` know."""
    return list(SOLVERS)


def solver_options(name: str) -> dict[str, Option]:
    """The options of a solver (or corrector) in order; its docstring explains them."""
    return _options(_lookup({**SOLVERS, **CORRECTORS}, name, "solver"))


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
    """A solver, its options and the correctors after it; immutable, JSON both ways, independent of model and steps.

    >>> Recipe.from_json(Recipe("unipc", {"order": 3}).to_json()) == Recipe("unipc", {"order": 3})
    True
    """

    solver: str
    options: Mapping[str, Any] = field(default_factory=dict)
    correctors: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    version: int = ALGORITHM_VERSION

    def __post_init__(self) -> None:
        _check_options(_lookup(SOLVERS, self.solver, "solver"), self.solver, self.options)
        for name, options in self.correctors:
            _check_options(_lookup(CORRECTORS, name, "corrector"), name, options)
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

    def resolve(self, frame: Frame, sigmas_or_grid: Grid | Any) -> Plan | AdaptivePlan:
        """The plan for one frame and grid."""
        grid = sigmas_or_grid if isinstance(sigmas_or_grid, Grid) else from_sigmas(frame, sigmas_or_grid)
        if grid.frame is not frame and (grid.frame.scaling != frame.scaling):
            raise OptionError(f"the grid belongs to a {grid.frame.scaling} frame, the plan was asked for a {frame.scaling} one")
        plan = SOLVERS[self.solver](grid, **self.options)
        for name, options in self.correctors:
            if not isinstance(plan, Plan):
                raise OptionError(f"the corrector {name} needs a fixed grid; {self.solver} chooses its steps while running")
            plan = CORRECTORS[name](plan, **options)
        return replace(plan, recipe=self)

    @property
    def label(self) -> str:
        """Solver and options in one line."""
        parts = [(self.solver, self.options), *self.correctors]
        return " + ".join(f"{n}({', '.join(f'{k}={v}' for k, v in o.items())})" for n, o in parts)

    def to_json(self) -> str:
        """Compact JSON with sorted keys: the same recipe gives the same text."""
        data = {
            "fewstep_recipe": self.version, "solver": self.solver, "options": dict(self.options),
            "correctors": [{"corrector": n, "options": dict(o)} for n, o in self.correctors],
        }
        return json.dumps(data, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """Reads ``to_json``'s text; raises OptionError on anything else."""
        try:
            data = json.loads(text)
            correctors = tuple((c["corrector"], c["options"]) for c in data["correctors"])
            return cls(data["solver"], data["options"], correctors, data["fewstep_recipe"])
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise OptionError(f"this is not a FewStep recipe: {type(error).__name__} {error}") from None


def _frozen(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """A read-only copy in one order, lists as tuples: two recipes that mean the same are equal."""
    return MappingProxyType({k: tuple(v) if isinstance(v, list) else v for k, v in sorted(options.items())})


def _lookup(table: Mapping[str, Callable[..., Any]], name: str, what: str) -> Callable[..., Any]:
    if name not in table:
        raise OptionError(f"unknown {what} {name!r}, known are {', '.join(table)}{suggest(str(name), table)}")
    return table[name]


def _options(function: Callable[..., Any]) -> dict[str, Option]:
    hints = inspect.get_annotations(function, eval_str=True)
    return {
        p.name: Option(p.default, _choices(hints[p.name]))
        for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY
    }


def _choices(hint: Any) -> tuple[Any, ...] | None:
    if get_origin(hint) is Literal:
        return get_args(hint)
    if hint is bool:
        return (True, False)
    parts = [_choices(part) for part in get_args(hint)]
    if parts and all(part is not None for part in parts):
        return tuple(choice for part in parts for choice in part or ())
    return None


def _check_options(function: Callable[..., Any], name: str, options: Mapping[str, Any]) -> None:
    known = _options(function)
    for option, value in options.items():
        if option not in known:
            raise OptionError(f"{name} has no option {option!r}, it has {', '.join(known)}{suggest(option, known)}")
        choices = known[option].choices
        if choices is not None:
            check_choice(f"{name}: {option}", value, choices)
