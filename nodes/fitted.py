"""The node of fitted plans: a SAMPLER and the SIGMAS that it was fitted to."""

from __future__ import annotations

from typing import Any, ClassVar

from .calibration import SOCKET, CalibrationInput
from .frames import frame_of
from .sampling import make_sampler
from .solvers import checked


class FewStepFittedSolver:
    """A fitted plan."""

    DISPLAY_NAME = "Fitted Solver (FewStep)"
    CATEGORY = "FewStep/solvers"
    DESCRIPTION = (
        "Samples with coefficients and noise levels that were fitted to this model, cfg and number of steps: the fewest "
        "evaluations for a given error. Use both outputs together, at the cfg that the file was made for, with denoise 1."
    )
    SEARCH_ALIASES: ClassVar[list[str]] = ["learned solver", "lsd", "bespoke solver", "s4s", "ld3", "calibrated"]
    RETURN_TYPES = ("SAMPLER", "SIGMAS")
    OUTPUT_TOOLTIPS = (
        "For SamplerCustom, SamplerCustomAdvanced or FewStep's KSampler, with the SIGMAS beside it; other levels are refused.",
        "The noise levels of the fitted plan; they end in 0.",
    )
    FUNCTION = "build"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's description of the inputs."""
        return {"required": {
            "model": ("MODEL", {"tooltip": "The model to be sampled; tells in which frame its noise levels are counted."}),
            "calibration": (SOCKET, {"tooltip": "A fitted plan, from Load Calibration or from the node that fits one."}),
        }}

    def build(self, model: Any, calibration: CalibrationInput) -> tuple[Any, Any]:
        """The SAMPLER and its SIGMAS; raises CalibrationError for a file of another kind or another frame."""
        import torch

        from ..samplers import Recipe
        from ..samplers.solvers.fitted import fitted_grid

        grid = fitted_grid(calibration.calibration, frame_of(model.get_model_object("model_sampling")))
        recipe = checked(Recipe("fitted_plan", {"calibration": calibration.reference}))
        return make_sampler(recipe), torch.tensor(grid.sigma, dtype=torch.float32)


NODES = (FewStepFittedSolver,)
