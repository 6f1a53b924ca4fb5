"""The simple node: one sampler with a solver and a schedule to choose, and sockets for those who want more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from .frames import frame_of
from .host import get_host
from .sampling import make_sampler
from .schedule import schedule as make_schedule
from .schedule import schedule_widget
from .widgets import float_widget

if TYPE_CHECKING:
    from ..samplers import Recipe
    from ..samplers.frames import Frame


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


class FewStepKSampler:
    """Sampling in one node."""

    DISPLAY_NAME = "KSampler (FewStep)"
    CATEGORY = "FewStep"
    DESCRIPTION = (
        "Samples with FewStep's solvers and schedules. With few steps the order is lowered as needed. Connect a solver node or "
        "a schedule node to overrule the choice made here."
    )
    SEARCH_ALIASES: ClassVar[list[str]] = ["sampler", "sample", "denoise", "few step"]
    RETURN_TYPES = ("LATENT",)
    OUTPUT_TOOLTIPS = ("The sampled latent.",)
    FUNCTION = "sample"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's description of the inputs."""
        from ..samplers import solver_names

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
                "solver": (solver_names(), {"default": "unipc", "tooltip": "The method, with its default options."}),
                "schedule": schedule_widget(),
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
        if sigmas is None:
            sigmas = make_schedule(model, schedule, steps, denoise)
        if len(sigmas) < 2:
            return (dict(latent_image),)
        if sampler is None:
            frame = frame_of(model.get_model_object("model_sampling"))
            sampler = make_sampler(preset(solver, frame, len(sigmas) - 1))
        return (get_host().sample(model, seed, cfg, sampler, sigmas, positive, negative, latent_image),)


NODES = (FewStepKSampler,)
