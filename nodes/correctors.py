"""Corrector nodes: they add to the recipe inside a SAMPLER and never wrap a running sampler in another."""

from __future__ import annotations

from typing import Any, ClassVar

from .sampling import make_sampler, recipe_of
from .solvers import checked
from .widgets import inputs, option_values, step_list_problem


class FewStepUniC:
    """UniC after any multistep solver."""

    DISPLAY_NAME = "UniC Corrector (FewStep)"
    CATEGORY = "FewStep/correctors"
    DESCRIPTION = (
        "Corrects every step of a multistep solver with the next step's evaluation, at no cost (Zhao et al. 2023). Works after "
        "DPM-Solver++ Multistep, DEIS, iPNDM and DDIM without noise; UniPC has it built in."
    )
    SEARCH_ALIASES: ClassVar[list[str]] = ["corrector", "unipc"]
    RETURN_TYPES = ("SAMPLER",)
    OUTPUT_TOOLTIPS = ("The same solver with the corrector.",)
    FUNCTION = "correct"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's description of the inputs."""
        from ..samplers import solver_options

        return {"required": {
            "sampler": ("SAMPLER", {"tooltip": "A FewStep solver with one evaluation per step."}),
            **inputs(solver_options("unic"), ("order", "variant", "disable"), {
                "order": {"tooltip": "Order of the corrector, mostly that of the solver; the result gains one order."},
            }),
        }}

    @classmethod
    def VALIDATE_INPUTS(cls, disable: str | None = None) -> bool | str:
        """The host cannot check a list of numbers in a text."""
        return step_list_problem("disable", disable)

    def correct(self, sampler: Any, **widgets: Any) -> tuple[Any]:
        """The new SAMPLER; raises PlanError for solvers that cannot be corrected."""
        from ..samplers import solver_options

        return (make_sampler(checked(recipe_of(sampler).corrected("unic", **option_values(widgets, solver_options("unic"))))),)


NODES = (FewStepUniC,)
