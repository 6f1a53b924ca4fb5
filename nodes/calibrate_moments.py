"""Calibrating teleportation: Gaussian moments of a model's latents, and how far jumps by them hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from .calibrate import CalibrateNode, Parts

if TYPE_CHECKING:
    from ..samplers.calibration.store import Calibration
    from ..samplers.frames import Frame
    from ..samplers.plan import Plan
    from .inside import Session

OWN_STEPS = 12  # of the samples that the model draws itself


class FewStepCalibrateMoments(CalibrateNode):
    """Moments for Teleport."""

    CALIBRATES = "moments"
    DISPLAY_NAME = "Calibrate Teleport (FewStep)"
    DESCRIPTION = (
        "Measures mean and covariance of what the model draws for these prompts at this guidance, and down to which noise level "
        "a jump by them holds. Seconds to minutes. Connect the result to Teleport."
    )
    SEARCH_ALIASES: ClassVar[list[str]] = ["gaussian moments", "teleportation statistics", "covariance"]

    @classmethod
    def own_inputs(cls) -> dict[str, Any]:
        """Where moments come from, and how many samples they take."""
        return {
            "source": (["denoiser", "own samples", "latents"], {
                "default": "denoiser",
                "tooltip": "denoiser: read off the model at high noise, fastest. own samples: of few-step samples of the model. "
                           "latents: of encoded pictures, connected below.",
            }),
            "kind": (["fourier", "channel", "lowrank"], {
                "default": "fourier",
                "tooltip": "fourier fits every picture size and needs few samples; channel takes pixels as independent; lowrank "
                           "needs hundreds of samples of one size and does not go with the source denoiser.",
            }),
            "samples": ("INT", {
                "default": 64, "min": 2, "max": 100_000, "tooltip": "Samples per noise level (denoiser) or in all (own samples).",
            }),
            "rank": ("INT", {"default": 64, "min": 1, "max": 256, "advanced": True, "tooltip": "lowrank only: directions kept."}),
            "range_samples": ("INT", {
                "default": 6, "min": 1, "max": 64, "advanced": True, "tooltip": "Many-step runs to measure the jump's range on.",
            }),
        }

    @classmethod
    def optional_inputs(cls) -> dict[str, Any]:
        """Pictures of the user's."""
        return {"latents": ("LATENT", {"tooltip": "Encoded pictures, for the source latents; 16 or more."})}

    def cost(self, frame: Frame, batch: int, widgets: Mapping[str, Any]) -> int:
        """See ``CalibrateNode``."""
        from ..samplers.calibration import moments, moments_gain

        measured = 0
        if widgets["source"] == "denoiser":
            measured = moments.cost_from_denoiser(widgets["samples"])
        elif widgets["source"] == "own samples":
            measured = moments.cost_from_model(own_plan(frame), widgets["samples"])
        tests = widgets["range_samples"]
        return measured + moments.cost_of_range(tests) + moments_gain.cost(frame, tests)

    def work(self, session: Session, cfg: float, seed: int, parts: Parts, widgets: Mapping[str, Any]) -> Calibration:
        """See ``CalibrateNode``; raises CalibrationError for the source latents without any."""
        from ..samplers.calibration import moments, moments_gain
        from ..samplers.errors import CalibrationError

        kind, count, rank, tests = (widgets[name] for name in ("kind", "samples", "rank", "range_samples"))
        extent, judged = moments.cost_of_range(tests), moments_gain.cost(session.frame, tests)
        job = parts.job("moments", parts.total - extent - judged)
        if widgets["source"] == "denoiser":
            made = moments.from_denoiser(
                session.denoiser, session.frame, session.like, kind=kind, samples=count, seed=seed, job=job)
        elif widgets["source"] == "own samples":
            made = moments.from_model(
                session.denoiser, own_plan(session.frame), session.like, samples=count, seed=seed, kind=kind, rank=rank, job=job)
        else:
            if widgets.get("latents") is None:
                raise CalibrationError("the source is latents, but no LATENT is connected to 'latents': encode some pictures")
            given = session.process_in(widgets["latents"]["samples"].to(session.like.device))
            made = moments.from_latents(given.split(len(session.like)), kind=kind, rank=rank, job=job)
        made = moments.measure_range(
            session.denoiser, session.frame, made, session.like, samples=tests, seed=(seed + 2**40) % 2**63,
            job=parts.job("range", extent),
        )
        return moments_gain.measure_gain(
            session.denoiser, session.frame, made, session.like, samples=tests, seed=(seed + 2**41) % 2**63,
            job=parts.job("gain", judged),
        )


def own_plan(frame: Frame) -> Plan:
    """The plan by which the model draws samples to measure."""
    from ..samplers import Plan, Recipe, grids

    plan = Recipe("dpm_solver_multistep").resolve(frame, grids.uniform_t(frame, OWN_STEPS, end="zero"))
    assert isinstance(plan, Plan)
    return plan


NODES = (FewStepCalibrateMoments,)
