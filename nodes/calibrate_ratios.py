"""Calibrating dynamic compensation: the ratios of one solver on one schedule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from .calibrate import CalibrateNode, Parts
from .sampling import recipe_of

if TYPE_CHECKING:
    from ..samplers.calibration.search_ratios import Settings
    from ..samplers.calibration.store import Calibration
    from ..samplers.frames import Frame
    from .inside import Session

HELD_OUT = 10  # starts that the search does not see, to measure the gain on


class FewStepCalibrateRatios(CalibrateNode):
    """Ratios for Dynamic Compensation."""

    CALIBRATES = "ratios"
    DISPLAY_NAME = "Calibrate Compensation (FewStep)"
    DESCRIPTION = (
        "Searches the compensation ratios (DC-Solver, Zhao et al. 2024) of a solver on a schedule: step by step, against a fine "
        "solution from a few noises. What it finds is tried on noise that it has not seen; without a gain there the ratios stay "
        "1. Connect the result to Dynamic Compensation behind the same solver, with the same sigmas."
    )
    SEARCH_ALIASES: ClassVar[list[str]] = ["dc-solver search", "compensation ratios", "dynamic compensation"]

    @classmethod
    def own_inputs(cls) -> dict[str, Any]:
        """The solver, its sigmas, and the search."""
        return {
            "sampler": ("SAMPLER", {"tooltip": "The FewStep solver to compensate: multistep, with or without a corrector."}),
            "sigmas": ("SIGMAS", {"tooltip": "The schedule to compensate on; ratios belong to it."}),
            "samples": ("INT", {"default": 10, "min": 1, "max": 1000, "tooltip": "Noises to search on; 10 are usual."}),
            "rule": (["interpolated", "official"], {
                "default": "interpolated", "advanced": True,
                "tooltip": "interpolated compares with the fine solution at each step's own noise level; official with a "
                           "200-step DDIM trajectory's next noisier state, as published.",
            }),
            "method": (["auto", "gradient", "line"], {
                "default": "auto", "advanced": True,
                "tooltip": "gradient differentiates the model, line does not; auto takes gradients where the model has them.",
            }),
        }

    @classmethod
    def differentiates(cls, widgets: Mapping[str, Any]) -> bool:
        """See ``CalibrateNode``."""
        return bool(widgets["method"] != "line")

    def cost(self, frame: Frame, batch: int, widgets: Mapping[str, Any]) -> int:
        """See ``CalibrateNode``."""
        from ..samplers import grids
        from ..samplers.calibration.calibrate_ratios import cost

        grid = grids.from_sigmas(frame, widgets["sigmas"])
        return cost(recipe_of(widgets["sampler"]), grid, widgets["samples"], HELD_OUT, self._settings(widgets))

    def work(self, session: Session, cfg: float, seed: int, parts: Parts, widgets: Mapping[str, Any]) -> Calibration:
        """See ``CalibrateNode``."""
        from ..samplers import grids
        from ..samplers.calibration.calibrate_ratios import calibrate_ratios
        from ..samplers.calibration.search_ratios import draw_starts

        grid = grids.from_sigmas(session.frame, widgets["sigmas"])
        count = widgets["samples"]
        starts = draw_starts(grid, session.like[0], seed, count + HELD_OUT)
        return calibrate_ratios(
            session.denoiser, recipe_of(widgets["sampler"]), grid, starts[:count], starts[count:], guidance=cfg,
            settings=self._settings(widgets), batch=len(session.like), job=parts.job("ratios", parts.total),
        )

    @staticmethod
    def _settings(widgets: Mapping[str, Any]) -> Settings:
        from ..samplers.calibration.search_ratios import Settings

        return Settings(rule=widgets["rule"], method=widgets["method"])


NODES = (FewStepCalibrateRatios,)
