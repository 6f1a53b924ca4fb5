"""The sampler of distilled models as a node of its own; the loaders choose it themselves."""

from __future__ import annotations

from typing import Any, ClassVar

from .solvers import SolverNode
from .widgets import inputs


class FewStepConsistency(SolverNode):
    """Multistep consistency sampling and TCD."""

    SOLVER = "consistency"
    METHODS: ClassVar[dict[str, str]] = {"consistency": "consistency", "tcd": "tcd"}
    DISPLAY_NAME = "Consistency / TCD (FewStep)"
    DESCRIPTION = (
        "For distilled models. consistency takes the prediction and noises it again (LCM, DMD2, PCM); tcd renews only a part of "
        "the noise (TCD). Each sample has its own noise, the same in any batch. Other models give smooth, poor pictures with it."
    )
    SEARCH_ALIASES: ClassVar[list[str]] = ["lcm", "dmd2", "re-noise", "pingpong", "trajectory consistency"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's description of the inputs."""
        from ..samplers import solver_options

        both = {**solver_options("tcd"), **solver_options("consistency")}
        method = (list(cls.METHODS), {"default": "consistency", "tooltip": "The one that the model was distilled for."})
        return {"required": {"method": method, **inputs(both, ("gamma", "start", "s_noise"), cls.CHANGES)}}

    def build(self, **widgets: Any) -> tuple[Any]:
        """The SAMPLER of the chosen method."""
        return self._build(self.METHODS[widgets.pop("method")], widgets)


NODES = (FewStepConsistency,)
