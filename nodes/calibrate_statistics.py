"""Calibrating DPM-Solver-v3: the statistics of a model at one guidance scale."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from .calibrate import CalibrateNode, Parts
from .calibrate_moments import own_plan

if TYPE_CHECKING:
    import numpy as np

    from ..samplers.calibration.store import Calibration
    from ..samplers.frames import Frame
    from ..samplers.grids import Grid
    from .inside import Session

PRESETS = {"draft": "80 noise levels, 8 samples", "normal": "120 levels, 128 samples", "paper": "250 levels, 1024 samples"}
CHECK_STEPS = 8  # the gain is measured on this many steps where no schedule is given


class FewStepCalibrateStatistics(CalibrateNode):
    """Statistics for DPM-Solver-v3."""

    CALIBRATES = "statistics"
    DISPLAY_NAME = "Calibrate DPM-Solver-v3 (FewStep)"
    DESCRIPTION = (
        "Measures the statistics that fit DPM-Solver-v3 to this model at this guidance (Zheng et al. 2023), on samples that the "
        "model draws itself or on pictures of yours, and what it gains at 8 steps. The draft takes about 4,000 evaluations, with "
        "SDXL too the time of 200 pictures of 20 steps."
    )
    SEARCH_ALIASES: ClassVar[list[str]] = ["measure ems", "empirical model statistics", "dpm solver v3"]

    @classmethod
    def own_inputs(cls) -> dict[str, Any]:
        """How much is measured, of what, and how the model is differentiated."""
        words = "; ".join(f"{name}: {what}" for name, what in PRESETS.items())
        return {
            "preset": (list(PRESETS), {"default": "draft", "tooltip": f"How much is measured. {words}."}),
            "per": (["channel", "scalar", "element"], {
                "default": "channel",
                "tooltip": "One number per channel fits every picture size and needs few samples; element fits this size only "
                           "and needs many samples.",
            }),
            "derivative": (["auto", "jvp", "difference", "stein"], {
                "default": "auto", "advanced": True,
                "tooltip": "How the model is differentiated: jvp exactly, difference for models that cannot be (fused attention, "
                           "quantised weights), stein without derivatives but noisier. auto tries jvp first.",
            }),
        }

    @classmethod
    def optional_inputs(cls) -> dict[str, Any]:
        """Pictures of the user's, and the schedule to judge on."""
        return {
            "latents": ("LATENT", {"tooltip": "Encoded pictures to measure on, instead of the model's own samples."}),
            "sigmas": ("SIGMAS", {
                "tooltip": "The schedule that you will use: the gain is measured on it. Without one, on 8 steps of uniform t.",
            }),
        }

    def cost(self, frame: Frame, batch: int, widgets: Mapping[str, Any]) -> int:
        """See ``CalibrateNode``."""
        from ..samplers.calibration import own_samples
        from ..samplers.calibration.measure_statistics import cost

        drawn = 0 if widgets.get("latents") is not None else own_samples.cost(own_plan(frame), self._samples(widgets))
        return drawn + cost(
            self._levels(frame, widgets), self._samples(widgets), widgets["derivative"], batch=batch,
            check=check_grid(frame, widgets.get("sigmas")),
        )

    def work(self, session: Session, cfg: float, seed: int, parts: Parts, widgets: Mapping[str, Any]) -> Calibration:
        """See ``CalibrateNode``."""
        from ..samplers.calibration import own_samples
        from ..samplers.calibration.measure_statistics import cost, measure_statistics

        frame, count, batch = session.frame, self._samples(widgets), len(session.like)
        levels, check = self._levels(frame, widgets), check_grid(frame, widgets.get("sigmas"))
        if widgets.get("latents") is None:
            plan = own_plan(frame)
            job = parts.job("samples", own_samples.cost(plan, count))
            clean = own_samples.own_samples(session.denoiser, plan, session.like, count, seed=seed, job=job)
        else:
            clean = session.process_in(widgets["latents"]["samples"].to(session.like.device)).to(session.like.dtype)
        total = cost(levels, count, widgets["derivative"], batch=batch, check=check)
        return measure_statistics(
            session.denoiser, frame, clean, levels, guidance=cfg, per=widgets["per"], derivative=widgets["derivative"],
            count=count, batch=batch, seed=seed, rounded=is_rounded(frame), check=check, job=parts.job("statistics", total),
        )

    @staticmethod
    def _samples(widgets: Mapping[str, Any]) -> int:
        from ..samplers.calibration.measure_statistics import PRESETS as NUMBERS

        return NUMBERS[widgets["preset"]][1]

    @staticmethod
    def _levels(frame: Frame, widgets: Mapping[str, Any]) -> np.ndarray:
        from ..samplers.calibration.measure_statistics import PRESETS as NUMBERS
        from ..samplers.calibration.measure_statistics import lambda_grid

        return lambda_grid(frame, NUMBERS[widgets["preset"]][0], rounded=is_rounded(frame))


def is_rounded(frame: Frame) -> bool:
    """Whether the host rounds sigma to a table before it tells the network the time: it does for discrete models."""
    from ..samplers.times import DiscreteTime

    return isinstance(frame.time, DiscreteTime)


def check_grid(frame: Frame, sigmas: Any = None) -> Grid:
    """The grid on which the gain is measured."""
    from ..samplers import grids

    return grids.uniform_t(frame, CHECK_STEPS, end="zero") if sigmas is None else grids.from_sigmas(frame, sigmas)


NODES = (FewStepCalibrateStatistics,)
