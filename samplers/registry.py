"""The registry: every solver and corrector by name, and their options read off their signatures."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from .correctors.compensation import dynamic_compensation
from .correctors.dualfast import dualfast
from .correctors.sigma_clock import sigma_clock
from .correctors.time_shift import time_shift
from .correctors.unic import unic
from .errors import OptionError, check_choice, suggest
from .grids import Grid
from .plan import Plan
from .solvers.consistency import consistency, tcd
from .solvers.ddim import ddim
from .solvers.deis import deis_ab, ipndm
from .solvers.deis_rk import deis_rk
from .solvers.dpm_adaptive import AdaptivePlan, dpm_solver_adaptive
from .solvers.dpm_multistep import dpm_solver_multistep
from .solvers.dpm_sde import dpm_solver_sde_multistep, dpm_solver_sde_singlestep
from .solvers.dpm_singlestep import dpm_solver_singlestep
from .solvers.dpm_v3 import dpm_solver_v3
from .solvers.fitted import fitted_plan
from .solvers.gradient_estimation import gradient_estimation
from .solvers.pndm import pndm
from .solvers.sa_solver import sa_solver
from .solvers.unipc import unipc
from .start import StartTransform
from .teleport import teleport

SOLVERS: dict[str, Callable[..., Plan | AdaptivePlan]] = {
    "ddim": ddim,
    "dpm_solver_multistep": dpm_solver_multistep,
    "dpm_solver_singlestep": dpm_solver_singlestep,
    "dpm_solver_adaptive": dpm_solver_adaptive,
    "dpm_solver_sde_multistep": dpm_solver_sde_multistep,
    "dpm_solver_sde_singlestep": dpm_solver_sde_singlestep,
    "sa_solver": sa_solver,
    "dpm_solver_v3": dpm_solver_v3,
    "unipc": unipc,
    "deis_ab": deis_ab,
    "deis_rk": deis_rk,
    "ipndm": ipndm,
    "pndm": pndm,
    "gradient_estimation": gradient_estimation,
    "consistency": consistency,
    "tcd": tcd,
    "fitted_plan": fitted_plan,
}
BOUND = ("fitted_plan",)  # solvers that need a calibration file and run on its noise levels alone
# plan -> plan
CORRECTORS: dict[str, Callable[..., Plan]] = {
    "unic": unic, "dynamic_compensation": dynamic_compensation, "dualfast": dualfast,
}
# (grid -> plan, grid) -> plan: those that plan on other grids too
REPLANNERS: dict[str, Callable[..., Plan]] = {"sigma_clock": sigma_clock, "time_shift": time_shift}
# grid -> (transform, the grid that is left); no transform where there is nothing to jump over
STARTS: dict[str, Callable[..., tuple[StartTransform | None, Grid]]] = {"teleport": teleport}
# solvers of step-distilled models, which know their own noise levels alone
NOT_AFTER: dict[str, tuple[str, ...]] = {"teleport": ("consistency", "tcd")}
# no order of convergence: numbers for one grid, another ODE, steps that the data move
KEEPS_ORDER = {"sigma_clock"}  # the same method in another variable
WITHOUT_ORDER = {"dynamic_compensation", "dualfast", *REPLANNERS, *BOUND} - KEEPS_ORDER


@dataclass(frozen=True)
class Option:
    """One option of a solver or corrector: its default, and the names it may take (None: a number or list)."""

    default: Any
    choices: tuple[Any, ...] | None


def solver_names() -> list[str]:
    """The solvers that run on any grid as they are. ``make_plan`` and ``Recipe`` know those of ``BOUND`` too."""
    return [name for name in SOLVERS if name not in BOUND]


def solver_options(name: str) -> dict[str, Option]:
    """The options of a solver (corrector, start transform) in order; its docstring explains them."""
    return _options(lookup({**SOLVERS, **CORRECTORS, **REPLANNERS, **STARTS}, name, "solver"))


def lookup(table: Mapping[str, Callable[..., Any]], name: str, what: str) -> Callable[..., Any]:
    """The function of that name; raises OptionError naming the nearest known one."""
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


def check_options(function: Callable[..., Any], name: str, options: Mapping[str, Any]) -> None:
    """Raises OptionError for an option that ``function`` has not, or a choice that it does not know."""
    known = _options(function)
    for option, value in options.items():
        if option not in known:
            raise OptionError(f"{name} has no option {option!r}, it has {', '.join(known)}{suggest(option, known)}")
        choices = known[option].choices
        if choices is not None:
            check_choice(f"{name}: {option}", value, choices)
