"""The pack's own rows: every solver of the registry with its published choices, correctors, and recipes added by hand."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator

import torch

from ..samplers import Recipe, run
from ..samplers.errors import FewStepError
from ..samplers.grids import from_sigmas
from ..samplers.plan import Plan
from ..samplers.registry import BOUND, CORRECTORS, REPLANNERS, SOLVERS, solver_options
from . import fits, shipped
from .methods import Method, Unfit
from .problems import Denoiser, Problem

# values that are tried for options without a list of their own; an option that is not here stays at its default
# (order 1 is DDIM in every family)
NOISY = (0.3, 0.6, 1.0)
NUMBERS = {"order": (2, 3, 4), "ab_order": (2, 3), "tableau": ("2heun", "3kutta", "4rk"), "eta": (0.0, *NOISY),
           "predictor_order": (2, 3), "tau": (0.0, 0.7, 1.0)}
CHOICES = ("prediction", "solver_type", "variant", "basis")
RARE = {"prediction": ("noise",), "solver_type": ("taylor", "heun"), "variant": ("vary_coeff_official",)}
# the number of evaluations is not given ahead; for distilled models; on a calibration's own levels
LEFT_OUT = ("dpm_solver_adaptive", "consistency", "tcd", *BOUND)
CORRECTED = ("ddim", "pndm", "dpm_solver_multistep")  # with every corrector; others with UniC alone
# recipes of their own, for instance calibrated ones: name -> problem, guidance -> recipe (or None where there is none)
EXTRA: dict[str, Callable[[Problem, float], Recipe | None]] = {}


def recipes() -> Iterator[Recipe]:
    """Every solver with every combination of its tried options; multistep ones also with each corrector of the same order."""
    for solver in (name for name in SOLVERS if name not in LEFT_OUT):
        options = solver_options(solver)
        axes = {
            name: list(NUMBERS.get(name, option.choices if name in CHOICES else None) or (option.default,))
            for name, option in options.items() if name in NUMBERS or name in CHOICES
        }
        if solver == "ddim":  # the same samples whatever is stored
            axes["prediction"] = ["x_0"]
        elif "eta" in axes:  # without noise these are the solvers of the same name
            axes["eta"] = list(NOISY)
        for values in itertools.product(*axes.values()):
            recipe = Recipe(solver, dict(zip(axes, values, strict=True)))
            yield recipe
            if solver not in ("unipc", "sa_solver"):  # which have their own
                yield recipe.corrected("unic", order=recipe.options.get("order", recipe.options.get("ab_order", 1)))
        for corrector in (*CORRECTORS, *(name for name in REPLANNERS if name != "sigma_clock")):
            needs = any(option.default is inspect.Parameter.empty for option in solver_options(corrector).values())
            if solver in CORRECTED and corrector != "unic" and not needs:
                yield Recipe(solver).corrected(corrector)


def methods(rare: bool = True) -> list[Method]:
    """A method for every recipe; without ``rare`` the choices that slow models can be spared are left out."""
    found = {recipe.label: recipe for recipe in recipes() if rare or not _is_rare(recipe)}
    clocked = [
        recipe.corrected("sigma_clock") for recipe in found.values()
        if not (recipe.correctors or _stochastic(recipe) or _is_rare(recipe))
    ]
    return [
        *(_method(label, recipe, Problem.grid_names) for label, recipe in found.items()),
        *(_method(recipe.label, recipe, _flow_grids) for recipe in clocked if recipe.solver != "ddim"),
    ]


def _flow_grids(problem: Problem) -> tuple[str, ...]:
    """Elsewhere sigma is the clock already."""
    return problem.grid_names() if problem.flow else ()


def _is_rare(recipe: Recipe) -> bool:
    """DPM-Solver's own multistep form is not: it predicts noise, and leads on some networks."""
    if recipe.solver == "dpm_solver_multistep" and recipe.options.get("solver_type") == "dpmsolver":
        return False
    return any(value in RARE.get(name, ()) for name, value in recipe.options.items())


def extra_methods(problem: Problem, guidance: float) -> list[Method]:
    """The recipes of ``EXTRA`` for one guidance scale."""
    return [_extra(name, make, guidance) for name, make in EXTRA.items()]


def calibrated_methods(problem: Problem, guidance: float) -> list[Method]:
    """What is calibrated for one guidance scale: plans fitted to a mixture, and on a demo model the files that ship."""
    return list((shipped if problem.name.startswith("digits") else fits).methods(problem, guidance))


def _method(label: str, recipe: Recipe, grids: Callable[[Problem], tuple[str, ...]]) -> Method:
    def count(problem: Problem, grid: str, steps: int) -> int:
        return _plan(recipe, problem, grid, steps).nfe

    return Method("fewstep", label, grids, lambda *args: sample(recipe, *args), _stochastic(recipe), count=count)


def _extra(name: str, make: Callable[[Problem, float], Recipe | None], guidance: float) -> Method:
    def sample_extra(problem: Problem, denoiser: Denoiser, grid: str, steps: int) -> torch.Tensor:
        recipe = make(problem, guidance)
        if recipe is None:
            raise Unfit
        return sample(recipe, problem, denoiser, grid, steps)

    return Method("fewstep", name, Problem.grid_names, sample_extra)


_PLANS: dict[tuple[Recipe, str, str, int], Plan | None] = {}


def _plan(recipe: Recipe, problem: Problem, grid: str, steps: int) -> Plan:
    key = (recipe, problem.name, grid, steps)
    if key not in _PLANS:
        _PLANS[key] = _resolved(recipe, problem, grid, steps)
    plan = _PLANS[key]
    if plan is None:
        raise Unfit
    return plan


def _resolved(recipe: Recipe, problem: Problem, grid: str, steps: int) -> Plan | None:
    try:
        plan = recipe.resolve(problem.frame, from_sigmas(problem.frame, problem.sigmas(grid, steps)))
    except FewStepError:
        return None
    return plan if isinstance(plan, Plan) else None


def _stochastic(recipe: Recipe) -> bool:
    return bool(recipe.options.get("eta") or recipe.options.get("tau"))


def sample(recipe: Recipe, problem: Problem, denoiser: Denoiser, grid: str, steps: int) -> torch.Tensor:
    """The recipe on one of the problem's grids."""
    plan = _plan(recipe, problem, grid, steps)
    return run(plan, denoiser, problem.noise * plan.nodes[0].sigma, seed=0)
