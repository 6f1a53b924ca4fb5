"""Corrector nodes: they add to the recipe inside a SAMPLER and never wrap a running sampler in another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from .sampling import make_sampler, recipe_of
from .solvers import checked
from .widgets import inputs, option_values, step_list_problem


class CorrectorNode:
    """What corrector nodes share. A subclass names its corrector, the options it shows, and its words."""

    CORRECTOR: ClassVar[str]
    SHOWN: ClassVar[tuple[str, ...]]
    CHANGES: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    TAKES: ClassVar[str]
    DISPLAY_NAME: ClassVar[str]

    CATEGORY = "FewStep/correctors"
    RETURN_TYPES = ("SAMPLER",)
    OUTPUT_TOOLTIPS: ClassVar[tuple[str, ...]] = ("The same solver with the corrector.",)
    FUNCTION = "correct"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's description of the inputs."""
        from ..samplers import solver_options

        return {"required": {
            "sampler": ("SAMPLER", {"tooltip": cls.TAKES}), **inputs(solver_options(cls.CORRECTOR), cls.SHOWN, cls.CHANGES),
        }}

    def correct(self, sampler: Any, **widgets: Any) -> tuple[Any]:
        """The new SAMPLER; raises PlanError for solvers that cannot be corrected so."""
        from ..samplers import solver_options

        options = option_values(widgets, solver_options(self.CORRECTOR))
        return (make_sampler(checked(recipe_of(sampler).corrected(self.CORRECTOR, **options))),)


class FewStepUniC(CorrectorNode):
    """UniC after any multistep solver."""

    CORRECTOR = "unic"
    SHOWN = ("order", "variant", "disable")
    CHANGES: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "order": {"tooltip": "Order of the corrector, mostly that of the solver; the result gains one order."},
    }
    TAKES = "A FewStep solver with one evaluation per step."
    DISPLAY_NAME = "UniC Corrector (FewStep)"
    DESCRIPTION = (
        "Corrects every step of a multistep solver with the next step's evaluation, at no cost (Zhao et al. 2023). Works after "
        "DPM-Solver++ Multistep, DEIS, iPNDM and DDIM without noise; UniPC has it built in."
    )
    SEARCH_ALIASES: ClassVar[list[str]] = ["corrector", "unipc"]

    @classmethod
    def VALIDATE_INPUTS(cls, disable: str | None = None) -> bool | str:
        """The host cannot check a list of numbers in a text."""
        return step_list_problem("disable", disable)


class FewStepTimeShift(CorrectorNode):
    """Time shift on any solver with a plan known ahead."""

    CORRECTOR = "time_shift"
    SHOWN = ("window", "cutoff", "wiring", "clamp")
    TAKES = "A FewStep solver, with its other correctors if it has any."
    DISPLAY_NAME = "Time Shift, experimental (FewStep)"
    DESCRIPTION = (
        "Experimental: re-labels each sampled state with the nearby training time whose noise variance it shows (Li et al. "
        "2024), picture by picture and at no extra evaluation. It mends a model's own drift and makes the solver's error larger: "
        "compare with and without. Made for pixel models, whose pictures have a variance below 1; on latents of unit variance "
        "the rule saturates at the edge of its window. Put it last, after other correctors."
    )
    SEARCH_ALIASES: ClassVar[list[str]] = ["experimental", "exposure bias", "ts-ddim", "time shift sampler"]


class FewStepSigmaClock(CorrectorNode):
    """The clock of sigma on a flow model."""

    CORRECTOR = "sigma_clock"
    SHOWN = ()
    TAKES = "A FewStep solver without noise."
    DISPLAY_NAME = "Sigma Clock (FewStep)"
    DESCRIPTION = (
        "Flow models only: the solver steps in log sigma instead of log SNR, as ComfyUI's own samplers do. Better in few steps "
        "at low guidance, worse at high guidance; at no cost. Other models are sampled as without it."
    )
    SEARCH_ALIASES: ClassVar[list[str]] = ["log sigma", "velocity", "flow", "rectified flow"]


NODES = (FewStepUniC, FewStepTimeShift, FewStepSigmaClock)
