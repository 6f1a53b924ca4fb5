"""The bridge: a sampler function in the host's form that runs a Recipe, and the SAMPLER objects around it."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from .estimates import EstimateFeed
from .frames import frame_of
from .host import get_host
from .last_runs import remember

if TYPE_CHECKING:
    from ..samplers import Progress, Recipe


log = logging.getLogger("fewstep")


def make_sampler(recipe: Recipe) -> Any:
    """A SAMPLER of the host that carries ``recipe``."""
    return get_host().make_sampler(sample_recipe, {"recipe_json": recipe.to_json()})


def recipe_of(sampler: Any) -> Recipe:
    """The recipe in a SAMPLER; raises OptionError for samplers that are not FewStep's."""
    from ..samplers.errors import OptionError

    recipe = carried_recipe(sampler)
    if recipe is None:
        raise OptionError(
            "the connected SAMPLER is not one of FewStep's; correctors act on a solver's coefficients, which other samplers "
            "do not have: connect a FewStep solver node"
        )
    return recipe


def carried_recipe(sampler: Any) -> Recipe | None:
    """The recipe in a SAMPLER, or None for samplers that are not FewStep's."""
    from ..samplers import Recipe

    text = get_host().sampler_options(sampler).get("recipe_json")
    return Recipe.from_json(text) if isinstance(text, str) else None


def sample_recipe(
    model: Any, x: Any, sigmas: Any, extra_args: Mapping[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], None] | None = None, disable: bool | None = None, *, recipe_json: str,
) -> Any:
    """Samples with a recipe, as the host calls samplers.

    Args:
        model: ``model(x, sigma[B], **extra_args)`` gives the guided x_0; ``model.inner_model.inner_model.model_sampling``
            tells the noise frame.
        x: the start state [B, ...] of any rank from 2 on, packed ones included; it is not modified.
        sigmas: falling noise levels; they need not end in 0. With fewer than two, ``x`` is returned as it is.
        extra_args: passed to every call of the model. Its ``seed`` starts the solver's own noise: that stream is keyed by
            a hash of seed, sample and sigma interval, so it never repeats the host's start noise of the same seed.
        callback: called after every evaluation with ``i``, ``x``, ``sigma``, ``sigma_hat`` and ``denoised``. The host
            counts ``len(sigmas) - 1`` steps, so ``i`` is the step reached, also where a solver evaluates more often.
        disable: whether the host wants no text progress bar; there is none.
        recipe_json: the solver, see ``samplers.Recipe``.

    Raises:
        ScheduleError, OptionError, PlanError: the recipe cannot run on these sigmas; said before the first evaluation.
        Whatever ``model`` and ``callback`` raise, the host's interruption above all, passes through.
    """
    from ..samplers import Recipe, run

    levels = sigmas.detach().cpu().double().tolist()
    if len(levels) < 2:
        return x
    args = dict(extra_args or {})
    host = get_host()
    recipe = Recipe.from_json(recipe_json)
    model_sampling = model.inner_model.inner_model.model_sampling
    warn_of_guidance(recipe, getattr(model.inner_model, "cfg", None))
    plan: Any = recipe.resolve(frame_of(model_sampling), levels)
    remember(recipe_json, model_sampling, levels)

    def denoiser(y: Any, sigma: Any) -> Any:
        host.check_interrupted()
        return model(y, sigma, **args).to(y.dtype)

    reached, feed = 0, EstimateFeed(recipe_json, plan)

    def report(progress: Progress) -> None:
        nonlocal reached
        reached = max(reached, step_reached(progress, levels))  # a rejected adaptive step must not turn the bar back
        if callback is not None:
            callback({
                "i": reached, "x": progress.x, "sigma": progress.sigma, "sigma_hat": progress.sigma,
                "denoised": progress.denoised,
            })
        feed.step()

    result = run(plan, denoiser, x, seed=args.get("seed"), callback=report, hooks=feed.hooks)
    feed.end()
    return result


def warn_of_guidance(recipe: Recipe, cfg: Any) -> None:
    """Logs a calibration that was made for a guidance more than 1 away from ``cfg``, where that is known."""
    from ..samplers.calibration import store

    for reference in recipe.references if isinstance(cfg, (int, float)) else ():
        measured = store.read(store.find(reference.partition("@")[0])).meta.get("guidance")
        if isinstance(measured, (int, float)) and abs(measured - cfg) > 1:
            log.warning(
                "FewStep: '%s' was calibrated at cfg %g, this samples at cfg %g: calibrate for that, it gains more", reference,
                measured, cfg,
            )


def step_reached(progress: Progress, sigmas: list[float]) -> int:
    """Which of the host's ``len(sigmas) - 1`` steps an evaluation belongs to; the last evaluation is the last step.

    Where the number of evaluations is not known ahead, the share of the way from the first to the last sigma above 0,
    in log sigma.
    """
    steps = len(sigmas) - 1
    if progress.total is not None:
        done = (progress.index + 1) * steps / progress.total
        return math.ceil(done - 1e-9) - 1
    start, end = sigmas[0], sigmas[-1] or sigmas[-2]
    if progress.sigma <= end or start <= end:
        return steps - 1
    share = math.log(start / progress.sigma) / math.log(start / end)
    return min(max(int(share * steps), 0), steps - 1)
