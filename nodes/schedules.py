"""One schedule node per kind of grid, for people who know which one they want; ``FewStepSchedule`` has them all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from .schedule import KINDS, FewStepSchedule, schedule


class ScheduleNode:
    """What these nodes share: MODEL, steps, denoise, and the grid's own number where it has one."""

    KIND: ClassVar[str]
    EXTRA: ClassVar[tuple[str, ...]] = ()
    LATER: ClassVar[tuple[str, ...]] = ("end",)  # optional: workflows were saved before they were there
    DISPLAY_NAME: ClassVar[str]
    SOURCE: ClassVar[str] = ""
    DESCRIPTION: ClassVar[str]

    CATEGORY = FewStepSchedule.CATEGORY
    RETURN_TYPES = ("SIGMAS",)
    OUTPUT_TOOLTIPS = FewStepSchedule.OUTPUT_TOOLTIPS
    FUNCTION = "build"

    def __init_subclass__(cls) -> None:
        words = KINDS[cls.KIND]
        cls.DESCRIPTION = f"Noise levels: {words}, in the model's own schedule. {cls.SOURCE}".strip()

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's description of the inputs: those of the general node that this grid has."""
        every: Mapping[str, Any] = FewStepSchedule.INPUT_TYPES()
        required = {name: every["required"][name] for name in ("model", "steps", "denoise")}
        extra, later = ({name: every["optional"][name] for name in names} for names in (cls.EXTRA, cls.LATER))
        return {"required": {**required, **extra}, "optional": later}

    def build(self, model: Any, steps: int, denoise: float, **extra: Any) -> tuple[Any]:
        """See ``schedule.schedule``."""
        return (schedule(model, self.KIND, steps, denoise, **extra),)


class FewStepUniformTimeSchedule(ScheduleNode):
    """Uniform in the model's time."""

    KIND = "uniform_t"
    DISPLAY_NAME = "Schedule: Uniform Time (FewStep)"
    SEARCH_ALIASES: ClassVar[list[str]] = ["time_uniform", "normal", "simple", "sgm_uniform", "ddim_uniform"]


class FewStepUniformLambdaSchedule(ScheduleNode):
    """Uniform in log SNR."""

    KIND = "uniform_lambda"
    DISPLAY_NAME = "Schedule: Uniform log-SNR (FewStep)"
    SOURCE = "DPM-Solver's logSNR steps."
    SEARCH_ALIASES: ClassVar[list[str]] = ["logSNR", "lambda", "exponential"]


class FewStepQuadraticTimeSchedule(ScheduleNode):
    """Quadratic in time."""

    KIND = "quadratic_t"
    DISPLAY_NAME = "Schedule: Quadratic Time (FewStep)"
    SOURCE = "DEIS's default steps."
    SEARCH_ALIASES: ClassVar[list[str]] = ["time_quadratic", "deis"]


class FewStepKarrasSchedule(ScheduleNode):
    """Karras et al."""

    KIND = "karras"
    EXTRA = ("rho",)
    DISPLAY_NAME = "Schedule: Karras (FewStep)"
    SEARCH_ALIASES: ClassVar[list[str]] = ["karras scheduler", "rho"]


class FewStepExponentialSchedule(ScheduleNode):
    """Uniform in log sigma."""

    KIND = "exponential"
    DISPLAY_NAME = "Schedule: Exponential (FewStep)"
    SEARCH_ALIASES: ClassVar[list[str]] = ["log sigma"]


class FewStepEDMSchedule(ScheduleNode):
    """EDM's own range."""

    KIND = "edm_rho"
    EXTRA = ("rho",)
    DISPLAY_NAME = "Schedule: EDM (FewStep)"
    SEARCH_ALIASES: ClassVar[list[str]] = ["edm", "karras 80 0.002"]


class FewStepBetaSchedule(ScheduleNode):
    """Beta quantiles."""

    KIND = "beta"
    LATER = ("end", "start", "alpha", "beta")
    DISPLAY_NAME = "Schedule: Beta (FewStep)"
    SOURCE = "Lee et al. 2024; needs scipy, which ComfyUI has."
    SEARCH_ALIASES: ClassVar[list[str]] = ["beta scheduler", "beta57"]


class FewStepShiftedSchedule(ScheduleNode):
    """Shifted time."""

    KIND = "shifted"
    EXTRA = ("shift",)
    DISPLAY_NAME = "Schedule: Shifted (FewStep)"
    SOURCE = "Esser et al. 2024 (Stable Diffusion 3)."
    SEARCH_ALIASES: ClassVar[list[str]] = ["flow shift", "sd3 shift", "time shift"]


class FewStepTrailingSchedule(ScheduleNode):
    """Even down to 0."""

    KIND = "trailing"
    EXTRA = ("shift",)
    LATER = ("end", "start")
    DISPLAY_NAME = "Schedule: Trailing (FewStep)"
    SOURCE = "diffusers' trailing spacing and its flow_shift; as Wan and other flow models are sampled with UniPC."
    SEARCH_ALIASES: ClassVar[list[str]] = ["sgm_uniform", "simple", "flow_shift", "trailing"]


class FewStepKLOptimalSchedule(ScheduleNode):
    """Uniform in arctan sigma."""

    KIND = "kl_optimal"
    DISPLAY_NAME = "Schedule: KL-optimal (FewStep)"
    SEARCH_ALIASES: ClassVar[list[str]] = ["kl_optimal", "align your steps", "arctan"]


NODES = (
    FewStepUniformTimeSchedule, FewStepUniformLambdaSchedule, FewStepQuadraticTimeSchedule, FewStepKarrasSchedule,
    FewStepExponentialSchedule, FewStepEDMSchedule, FewStepBetaSchedule, FewStepShiftedSchedule,
    FewStepTrailingSchedule, FewStepKLOptimalSchedule,
)
