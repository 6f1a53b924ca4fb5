"""The node that shows what a solver will do: its coefficients as a table and as a picture."""

from __future__ import annotations

from typing import Any, ClassVar

from .frames import frame_of
from .sampling import recipe_of


class FewStepPlanInspector:
    """A plan, drawn and written out."""

    DISPLAY_NAME = "Plan Inspector (FewStep)"
    CATEGORY = "FewStep"
    DESCRIPTION = (
        "Resolves a FewStep solver on this model and these sigmas, without running the model: evaluations, order, memory, the "
        "schedule, and every coefficient. What it shows is what will run."
    )
    SEARCH_ALIASES: ClassVar[list[str]] = ["plot sigmas", "coefficients", "plan", "debug sampler"]
    RETURN_TYPES = ("IMAGE", "STRING")
    RETURN_NAMES = ("plot", "table")
    OUTPUT_TOOLTIPS = ("The schedule and the coefficients as a picture.", "The same numbers as text.")
    FUNCTION = "inspect"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's description of the inputs."""
        return {"required": {
            "model": ("MODEL", {"tooltip": "The model to be sampled: it decides the noise frame."}),
            "sampler": ("SAMPLER", {"tooltip": "A FewStep solver, with or without correctors."}),
            "sigmas": ("SIGMAS", {"tooltip": "The noise levels to be stepped through."}),
        }}

    def inspect(self, model: Any, sampler: Any, sigmas: Any) -> dict[str, Any]:
        """(picture, text) and the text for the node itself; an adaptive solver has no plan to draw before it runs."""
        import torch

        from ..samplers import Plan
        from ..samplers.plotting import plan_image

        recipe = recipe_of(sampler)
        plan = recipe.resolve(frame_of(model.get_model_object("model_sampling")), sigmas)
        text = f"{plan.describe()}\n\nPlease cite:\n{recipe.cite()}"
        image = torch.from_numpy(plan_image(plan))[None] if isinstance(plan, Plan) else torch.zeros(1, 8, 8, 3)
        return {"ui": {"text": [text]}, "result": (image, text)}


NODES = (FewStepPlanInspector,)
