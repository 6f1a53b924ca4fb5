"""Fitting a plan's coefficients, noise levels and times to a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from .calibrate import CalibrateNode, Parts
from .sampling import recipe_of

if TYPE_CHECKING:
    from ..samplers.calibration.fitted_plan import FitSettings
    from ..samplers.calibration.store import Calibration
    from ..samplers.frames import Frame
    from ..samplers.grids import Grid
    from ..samplers.plan import Plan
    from .inside import Session


class FewStepCalibratePlan(CalibrateNode):
    """A fitted plan for Fitted Solver."""

    CALIBRATES = "plan"
    DISPLAY_NAME = "Calibrate Fitted Solver (FewStep)"
    DESCRIPTION = (
        "Fits the solver itself to this model, guidance and number of steps: coefficients step by step against a fine solution, "
        "then coefficients and the times told to the model together on the final error, by least squares that need no gradients. "
        "Judged on noise that it has not seen, and not saved where that brings nothing. An evaluation is a sampling step of one "
        "picture: the defaults take about 2,650 for 5 steps, with SDXL too the time of 130 pictures of 20 steps; 64 samples and "
        "4 rounds take 8,000 and gain more on some models. count_only says it for your settings."
    )
    SEARCH_ALIASES: ClassVar[list[str]] = ["learn solver", "lsd", "s4s", "ld3", "fitted plan"]

    @classmethod
    def own_inputs(cls) -> dict[str, Any]:
        """Where the fit starts, and how long it goes on."""
        return {
            "sigmas": ("SIGMAS", {"tooltip": "The schedule to start from; its number of steps is that of the fitted plan."}),
            "samples": ("INT", {
                "default": 32, "min": 2, "max": 100_000,
                "tooltip": "Noises to fit and judge on, taken up to whole batches of the LATENT; a quarter judges.",
            }),
            "order": ("INT", {
                "default": 3, "min": 0, "max": 6, "tooltip": "Past outputs in the least squares; 0 leaves that part out.",
            }),
            "iterations": ("INT", {
                "default": 0, "min": 0, "max": 100_000,
                "tooltip": "Gradient descent on top, which differentiates the model: some hundreds for small models. 0, the "
                           "default, leaves it out; big models need much memory for it, and rounds mostly reach as much.",
            }),
        }

    @classmethod
    def optional_inputs(cls) -> dict[str, Any]:
        """A solver to start from, and the joint least squares."""
        return {
            "sampler": ("SAMPLER", {
                "tooltip": "The FewStep solver to be better than, and to start from if order is 0; DPM-Solver++ 2M if none.",
            }),
            "rounds": ("INT", {
                "default": 2, "min": 0, "max": 1000,
                "tooltip": "Of the least squares for all numbers at once, without gradients of the model: each round brings the "
                           "result nearer, most of it in the first five; small models afford 15. 0 leaves them out.",
            }),
            "reference_steps": ("INT", {
                "default": 30, "min": 10, "max": 1000, "advanced": True,
                "tooltip": "Steps of the fine solution that the fit aims at, for every noise.",
            }),
        }

    @classmethod
    def differentiates(cls, widgets: Mapping[str, Any]) -> bool:
        """See ``CalibrateNode``."""
        return bool(widgets["iterations"])

    def cost(self, frame: Frame, batch: int, widgets: Mapping[str, Any]) -> int:
        """See ``CalibrateNode``."""
        from ..samplers import grids
        from ..samplers.calibration.fitted_plan import cost

        count, held_out = shares(widgets["samples"], batch)
        return cost(grids.from_sigmas(frame, widgets["sigmas"]), count, batch, held_out, self._settings(widgets))

    def work(self, session: Session, cfg: float, seed: int, parts: Parts, widgets: Mapping[str, Any]) -> Calibration:
        """See ``CalibrateNode``."""
        from ..samplers import grids
        from ..samplers.calibration.fitted_plan import fit
        from ..samplers.calibration.search_ratios import draw_starts

        grid, batch = grids.from_sigmas(session.frame, widgets["sigmas"]), len(session.like)
        count, held_out = shares(widgets["samples"], batch)
        return fit(
            session.denoiser, grid, draw_starts(grid, session.like[0], seed, count), batch=batch, held_out=held_out,
            settings=self._settings(widgets), base=self._base(grid, widgets), job=parts.job("plan", parts.total),
        )

    @staticmethod
    def _settings(widgets: Mapping[str, Any]) -> FitSettings:
        from ..samplers.calibration.fitted_plan import FitSettings
        from ..samplers.calibration.joint import Joint
        from ..samplers.calibration.refine import Refinement

        # a graph saved before there were rounds has none, and fine solutions of 50 steps
        joint = Joint(rounds=widgets.get("rounds", 0))
        refinement = Refinement(iterations=widgets["iterations"])
        fine = widgets.get("reference_steps", FitSettings.teacher_steps)
        return FitSettings(order=widgets["order"], teacher_steps=fine, joint=joint, refinement=refinement)

    @staticmethod
    def _base(grid: Grid, widgets: Mapping[str, Any]) -> Plan | None:
        from ..samplers import Plan
        from ..samplers.errors import CalibrationError

        if widgets.get("sampler") is None:
            return None
        plan = recipe_of(widgets["sampler"]).resolve(grid.frame, grid)
        if not isinstance(plan, Plan):
            raise CalibrationError("a fit starts from a plan that is known ahead; this solver chooses its steps while running")
        return plan


def shares(samples: int, batch: int) -> tuple[int, int]:
    """(samples in whole batches, those of them that judge)."""
    batches = max(2, -(-samples // batch))
    return batches * batch, max(1, batches // 4) * batch


NODES = (FewStepCalibratePlan,)
