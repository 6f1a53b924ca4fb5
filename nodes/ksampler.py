"""The simple node: one sampler with a solver and a schedule to choose, and sockets for those who want more."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from .advisor import advised_sigmas, facts_of
from .frames import frame_of
from .host import get_host
from .sampling import make_sampler
from .schedule import schedule_widget, sigmas_of
from .widgets import float_widget

if TYPE_CHECKING:
    from ..samplers import Recipe
    from ..samplers.frames import Frame

log = logging.getLogger("fewstep")
AUTO = "auto"  # what the advisor's rules choose for this model, the evaluations and cfg


class OwnSteps(NamedTuple):
    """Sigmas by the node's widgets, and the schedule that auto chose; empty where it did not choose."""

    sigmas: Any
    auto: str


def own_steps(model_sampling: Any, schedule: str, steps: int, cfg: float, denoise: float) -> OwnSteps:
    """The noise levels by the widgets. With denoise below 1 the rule is the one for ``steps``: so many are evaluated."""
    from ..samplers.advice import advise
    from ..samplers.errors import check_choice
    from ..samplers.grids import GRIDS

    check_choice("schedule", schedule, (AUTO, *GRIDS))
    if schedule != AUTO:
        return OwnSteps(sigmas_of(model_sampling, schedule, steps, denoise), "")
    found = advise(facts_of(model_sampling, steps, cfg))
    return OwnSteps(advised_sigmas(found, model_sampling, steps, denoise), found.where)


def own_recipe(model_sampling: Any, solver: str, steps: int, cfg: float) -> Recipe:
    """What to sample with by the widgets, in ``steps`` steps."""
    from ..samplers import solver_names
    from ..samplers.advice import advise
    from ..samplers.errors import check_choice

    check_choice("solver", solver, (AUTO, *solver_names()))
    if solver != AUTO:
        return preset(solver, frame_of(model_sampling), steps)
    return advise(facts_of(model_sampling, steps, cfg)).recipe


def auto_words(recipe: Recipe | None, schedule: str) -> str:
    """What auto chose, in a sentence: None and empty are what it did not choose, and of nothing nothing is said."""
    chosen = ([recipe.label] if recipe is not None else []) + ([schedule] if schedule else [])
    return f"Auto chose {' on '.join(chosen)}." if chosen else ""


def preset(solver: str, frame: Frame, steps: int) -> Recipe:
    """A solver with its defaults, its order lowered where there are fewer steps than it needs.

    DEIS extrapolates in log rho for models without a time of their own.
    """
    from ..samplers import Recipe, solver_options

    known = solver_options(solver)
    options: dict[str, Any] = {}
    if solver == "deis_ab":
        options = {"ab_order": min(known["ab_order"].default, steps - 1)}
        if not frame.time.is_model_time:
            options["basis"] = "log_rho"
    elif "order" in known and solver not in ("dpm_solver_adaptive", "dpm_solver_singlestep", "pndm"):
        options = {"order": min(known["order"].default, steps)}
    return Recipe(solver, options)


SOLVER_WORDS = (
    "auto: solver and corrector by the Advisor's measured rules, one evaluation per step; best with schedule auto too. Else "
    "the method with its default options, its order lowered where there are few steps."
)
SCHEDULE_AUTO = "auto: the one that goes with the measured rule for this model, the steps and cfg."


class FewStepKSampler:
    """Sampling in one node."""

    DISPLAY_NAME = "KSampler (FewStep)"
    CATEGORY = "FewStep"
    DESCRIPTION = (
        "Samples with FewStep's solvers and schedules. auto takes what the Advisor's measured rules choose for this model, the "
        "steps and cfg; the drawing names it. Connect a solver node or a schedule node to overrule the choice made here."
    )
    SEARCH_ALIASES: ClassVar[list[str]] = ["sampler", "sample", "denoise", "few step"]
    RETURN_TYPES = ("LATENT",)
    OUTPUT_TOOLTIPS = ("The sampled latent.",)
    FUNCTION = "sample"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's description of the inputs."""
        from ..samplers import solver_names

        kinds, spread = schedule_widget(AUTO)
        spread["tooltip"] = f"{SCHEDULE_AUTO} {spread['tooltip']}"
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "The model that removes the noise."}),
                "positive": ("CONDITIONING", {"tooltip": "What the picture should show."}),
                "negative": ("CONDITIONING", {"tooltip": "What to keep away from; not evaluated at cfg 1."}),
                "latent_image": ("LATENT", {"tooltip": "The latent to fill (an empty one) or to change (denoise below 1)."}),
                "seed": ("INT", {
                    "default": 0, "min": 0, "max": 2**64 - 1, "control_after_generate": True,
                    "tooltip": "Decides the noise: the same seed gives the same picture.",
                }),
                "steps": ("INT", {"default": 8, "min": 1, "max": 10_000, "tooltip": "Number of steps; not used with SIGMAS."}),
                "cfg": ("FLOAT", float_widget(
                    4.0, 0.0, 100.0, tooltip="Guidance: how strongly the prompt counts. 1 is none, and twice as fast.")),
                "solver": ([AUTO, *solver_names()], {"default": AUTO, "tooltip": SOLVER_WORDS}),
                "schedule": ([AUTO, *kinds], spread),
                "denoise": ("FLOAT", float_widget(
                    1.0, 0.0, 1.0, tooltip="Below 1: how much of the given latent is changed; not used with SIGMAS.")),
            },
            "optional": {
                "sampler": ("SAMPLER", {"tooltip": "Takes the place of solver; any SAMPLER."}),
                "sigmas": ("SIGMAS", {"tooltip": "Takes the place of schedule, steps and denoise."}),
            },
        }

    def sample(
        self, model: Any, positive: Any, negative: Any, latent_image: dict[str, Any], seed: int, steps: int, cfg: float,
        solver: str, schedule: str, denoise: float, sampler: Any = None, sigmas: Any = None,
    ) -> tuple[dict[str, Any]]:
        """The new LATENT."""
        sampling, auto = model.get_model_object("model_sampling"), ""
        if sigmas is None:
            sigmas, auto = own_steps(sampling, schedule, steps, cfg, denoise)
        if len(sigmas) < 2:
            return (dict(latent_image),)
        recipe = None if sampler is not None else own_recipe(sampling, solver, len(sigmas) - 1, cfg)
        if words := auto_words(recipe if solver == AUTO else None, auto):
            log.info("FewStep: %s", words)
        if recipe is not None:
            sampler = make_sampler(recipe)
        return (get_host().sample(model, seed, cfg, sampler, sigmas, positive, negative, latent_image),)


NODES = (FewStepKSampler,)
