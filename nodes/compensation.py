"""Nodes that change the outputs which a solver works with: dynamic compensation and DualFast."""

from __future__ import annotations

from typing import Any, ClassVar

from .calibration import SOCKET, CalibrationInput
from .correctors import CorrectorNode
from .sampling import make_sampler, recipe_of
from .solvers import checked
from .widgets import float_widget, number_list, option_values

PUBLISHED = "sd21"


class FewStepDynamicCompensation(CorrectorNode):
    """Dynamic compensation on any multistep solver."""

    CORRECTOR = "dynamic_compensation"
    SHOWN = ("dc_order",)
    TAKES = "A FewStep solver with one evaluation per step, with or without a corrector: UniPC, DPM-Solver++ Multistep, DEIS ..."
    DISPLAY_NAME = "Dynamic Compensation (FewStep)"
    DESCRIPTION = (
        "DC-Solver (Zhao et al. 2024): before every step the newest prediction is moved a little along the solver's own past, by "
        "one ratio per step that was searched for this model, solver, schedule and guidance. Costs no evaluations; made for "
        "large guidance at 5 to 10 steps. Without ratios of your own it takes the published polynomial for Stable Diffusion 2.1 "
        "with UniPC of order 2, bh2, corrector disabled in step 0."
    )
    SEARCH_ALIASES: ClassVar[list[str]] = ["dc-solver", "dc solver", "compensation ratios", "calibrated"]
    OUTPUT_TOOLTIPS = ("The same solver with compensation.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's description of the inputs."""
        from .widgets import WORDS

        types = super().INPUT_TYPES()
        low, high = WORDS["guidance"].low, WORDS["guidance"].high
        types["required"] |= {
            "ratios": ("STRING", {"default": "", "tooltip": WORDS["ratios"].tooltip}),
            "guidance": ("FLOAT", float_widget(7.5, low, high, tooltip=WORDS["guidance"].tooltip)),
        }
        types["optional"] = {"calibration": (SOCKET, {"tooltip": "Ratios of this model, solver, schedule and guidance."})}
        return types

    @classmethod
    def VALIDATE_INPUTS(cls, ratios: str | None = None) -> bool | str:
        """The host cannot check a list of numbers in a text."""
        from ..samplers.errors import OptionError

        try:
            number_list("ratios", ratios or "")
        except OptionError as error:
            return str(error)
        return True

    def correct(
        self, sampler: Any, ratios: str = "", guidance: float = 7.5, calibration: CalibrationInput | None = None, **widgets: Any
    ) -> tuple[Any]:
        """The new SAMPLER; raises OptionError for ratios that do not fit, CalibrationError for those of another solver."""
        from ..samplers import solver_options
        from ..samplers.calibration.ratios import check_recipe
        from ..samplers.errors import OptionError

        recipe, typed = recipe_of(sampler), number_list("ratios", ratios)
        options = option_values(widgets, solver_options(self.CORRECTOR))
        if typed and calibration is not None:
            raise OptionError("ratios are both typed and connected: empty the text, or disconnect the calibration")
        if calibration is not None:
            check_recipe(calibration.calibration, recipe)
            order = calibration.calibration.meta.get("dc_order", options["dc_order"])
            options |= {"ratios": calibration.reference, "dc_order": order}
            if calibration.calibration.meta.get("form") == "polynomial":
                options["guidance"] = guidance
        elif typed:
            options["ratios"] = typed
        else:
            check_recipe(PUBLISHED, recipe)
            options |= {"ratios": PUBLISHED, "guidance": guidance}
        return (make_sampler(checked(recipe.corrected(self.CORRECTOR, **options))),)


class FewStepDualFast(CorrectorNode):
    """DualFast on any deterministic solver."""

    CORRECTOR = "dualfast"
    SHOWN = ("c_max", "c_min", "schedule", "tau", "scope", "skip_last")
    TAKES = "A FewStep solver without added noise, with its other correctors if it has any."
    DISPLAY_NAME = "DualFast, experimental (FewStep)"
    DESCRIPTION = (
        "Experimental: pushes every prediction away from an earlier, noisier one to undo the model's own error (DualFast, 2025). "
        "Costs no evaluations and a little memory. There is no official code and its best strength is not known: it may help a "
        "first-order solver and hurt a higher-order one at large guidance. With more steps the result does not become exact."
    )
    SEARCH_ALIASES: ClassVar[list[str]] = ["dual fast", "approximation error", "experimental"]
    OUTPUT_TOOLTIPS = ("The same solver with DualFast.",)


NODES = (FewStepDynamicCompensation, FewStepDualFast)
