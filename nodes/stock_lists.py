"""A few solvers and schedules in the stock KSampler's lists, for people who never leave it.

There is no official way; what every pack does is followed as gently as possible: entries are appended to the host's own
lists, once, under names of ours, and nothing is replaced or reloaded. FEWSTEP_STOCK_LISTS=0 leaves the lists alone.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from typing import Any

from .sampling import sample_recipe

log = logging.getLogger("fewstep")

SAMPLERS: dict[str, tuple[str, Mapping[str, Any]]] = {
    "fewstep_unipc": ("unipc", {}),
    "fewstep_dpmpp_2m": ("dpm_solver_multistep", {}),
    "fewstep_dpmpp_2m_sde": ("dpm_solver_sde_multistep", {}),
    "fewstep_sa_solver": ("sa_solver", {}),
    "fewstep_deis": ("deis_ab", {"basis": "log_rho"}),
}
SCHEDULES = {"fewstep_uniform_lambda": "uniform_lambda", "fewstep_quadratic": "quadratic_t"}


def install() -> list[str]:
    """Adds the entries to a running ComfyUI; returns the names added now. A host that changed is logged, not broken."""
    if os.environ.get("FEWSTEP_STOCK_LISTS", "1") == "0":
        return []
    try:
        return _install()
    except (ImportError, AttributeError) as error:
        log.warning("FewStep: its solvers are not in the stock KSampler's lists: %s", error)
        return []


def _install() -> list[str]:
    import comfy.k_diffusion.sampling as functions
    import comfy.samplers as host

    added = []
    for name in SAMPLERS:
        setattr(functions, f"sample_{name}", sampler(name))
        for names in (host.KSAMPLER_NAMES, host.SAMPLER_NAMES):
            if name not in names:
                names.append(name)
                added.append(name)
    for name in SCHEDULES:
        host.SCHEDULER_HANDLERS[name] = host.SchedulerHandler(scheduler(name))
        if name not in host.SCHEDULER_NAMES:
            host.SCHEDULER_NAMES.append(name)
            added.append(name)
    return added


def sampler(name: str) -> Callable[..., Any]:
    """The sampler function of an entry of ``SAMPLERS``, its order lowered where there are fewer steps than it needs."""
    solver, options = SAMPLERS[name]

    def sample(
        model: Any, x: Any, sigmas: Any, extra_args: Any = None, callback: Any = None, disable: Any = None, **ignored: Any
    ) -> Any:
        from ..samplers import Recipe
        from .frames import frame_of
        from .ksampler import preset

        if len(sigmas) < 2:
            return x
        chosen = preset(solver, frame_of(model.inner_model.inner_model.model_sampling), len(sigmas) - 1)
        recipe = Recipe(solver, {**chosen.options, **options})
        return sample_recipe(model, x, sigmas, extra_args, callback, disable, recipe_json=recipe.to_json())

    return sample


def scheduler(name: str) -> Callable[[Any, int], Any]:
    """The function of (model_sampling, steps) of an entry of ``SCHEDULES``."""

    def sigmas(model_sampling: Any, steps: int) -> Any:
        from .schedule import sigmas_of

        return sigmas_of(model_sampling, SCHEDULES[name], steps)

    return sigmas
