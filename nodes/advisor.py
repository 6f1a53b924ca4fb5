"""The node that proposes solver, schedule and guidance, and says why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from .calibration import fingerprint_of, listed, opened
from .frames import frame_of, own_shift
from .sampling import make_sampler
from .schedule import from_start, sigmas_of
from .widgets import float_widget

if TYPE_CHECKING:
    from ..samplers.advice import Advice, Facts
    from ..samplers.calibration.store import Calibration


def facts_of(model_sampling: Any, steps: int, cfg: float, distilled: bool = False) -> Facts:
    """What the rules ask about a model of the host; raises OptionError for steps or cfg out of range."""
    from ..samplers.advice import Facts

    frame = frame_of(model_sampling)
    return Facts(frame, steps, cfg, distilled, own_shift(model_sampling) if frame.scaling == "flow" else 1.0)


def advised_sigmas(found: Advice, model_sampling: Any, steps: int, denoise: float = 1.0) -> Any:
    """The noise levels that go with an advice, as ``schedule.sigmas_of`` gives them; prescribed ones are as they are.

    Denoise below 1 starts where even steps do (flow models: even before the model's own shift), so that how much of a picture
    changes does not jump where another rule begins. Flow models then take these even steps, or beta steps between there and 0
    where those are advised; with the rules' recipes, 4 to 15 steps, these have 0.7 times the error of even ones.
    """
    import torch

    from ..samplers.advice import NAMES

    if found.grid is None:
        return torch.tensor(found.sigmas, dtype=torch.float32)
    grid: dict[str, Any] = {NAMES.get(name, name): str(value) if name == "t_T" else value for name, value in found.grid.items()}
    if not 0 < denoise <= 0.9999:
        return sigmas_of(model_sampling, steps=steps, denoise=denoise, **grid)
    if frame_of(model_sampling).scaling != "flow":
        return from_start(model_sampling, sigmas_of(model_sampling, "uniform_t", steps, denoise), grid)
    even = sigmas_of(model_sampling, "shifted", steps, denoise)
    if grid["kind"] != "beta":
        return even
    whole = sigmas_of(model_sampling, steps=steps, **grid).double()
    return (float(even[0]) * whole / whole[0]).float()


def fitting(model: Any, facts: Facts) -> tuple[tuple[str, Calibration], ...]:
    """(reference, content) of the calibration files that were made for this very model, these steps and this guidance."""
    from ..samplers.advice import gain_of
    from ..samplers.errors import CalibrationError

    near = []
    for name in listed():
        try:
            found = opened(name)
        except CalibrationError:  # a damaged file is for its loader to complain about
            continue
        if gain_of(found.calibration, facts) < 1 and found.calibration.model is not None:
            near.append(found)
    if not near:  # the model's weights are read only where there is something to compare
        return ()
    try:
        own = fingerprint_of(model)
    except CalibrationError:  # a model without weights is nobody's
        return ()
    return tuple(
        (found.reference, found.calibration) for found in near
        if found.calibration.model is not None and found.calibration.model.difference(own) is None
    )


class FewStepAdvisor:
    """A choice for this model, with its reason."""

    DISPLAY_NAME = "Advisor (FewStep)"
    CATEGORY = "FewStep"
    DESCRIPTION = (
        "Proposes solver, corrector, schedule and guidance for this model and the steps you can afford, and says why in two "
        "lines. It follows rules that were measured on models with a known solution, and prefers a calibration made for this "
        "model."
    )
    SEARCH_ALIASES: ClassVar[list[str]] = ["recommend", "best sampler", "which sampler", "auto sampler", "help me choose"]
    RETURN_TYPES = ("SAMPLER", "SIGMAS", "FLOAT", "STRING")
    RETURN_NAMES = ("sampler", "sigmas", "cfg", "advice")
    OUTPUT_TOOLTIPS = (
        "The proposed solver, for SamplerCustom or FewStep's KSampler.", "The noise levels that go with it.",
        "The guidance to sample with.", "What was chosen, why, and what was measured.",
    )
    FUNCTION = "advise"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's description of the inputs."""
        return {"required": {
            "model": ("MODEL", {"tooltip": "The model to be sampled, with its LoRAs."}),
            "steps": ("INT", {"default": 8, "min": 1, "max": 10_000, "tooltip": "Evaluations of the model that you can afford."}),
            "cfg": ("FLOAT", float_widget(4.0, 0.0, 100.0, tooltip="Guidance that you would like; 1 is none.")),
            "distilled": ("BOOLEAN", {
                "default": False,
                "tooltip": "The model was distilled to few steps (Turbo, Lightning, LCM ...) and is sampled in its own way."}),
            "use_calibrations": ("BOOLEAN", {
                "default": True, "advanced": True,
                "tooltip": "Look in models/fewstep for files that were made for this model, these steps and this guidance."}),
        }}

    @classmethod
    def IS_CHANGED(cls, use_calibrations: bool = True, **ignored: Any) -> str:
        """The calibration files: a new one may be the better choice."""
        from ..samplers.calibration import store

        return " ".join(store.reference_of(store.find(name)) for name in listed()) if use_calibrations else ""

    def advise(self, model: Any, steps: int, cfg: float, distilled: bool, use_calibrations: bool) -> dict[str, Any]:
        """(SAMPLER, SIGMAS, cfg, text), and the text for the node itself."""
        from dataclasses import replace

        from ..samplers.advice import advise

        sampling = model.get_model_object("model_sampling")
        facts = facts_of(sampling, steps, cfg, distilled)
        if use_calibrations and not distilled:
            facts = replace(facts, calibrations=fitting(model, facts))
        found = advise(facts)
        sigmas = advised_sigmas(found, sampling, steps)
        text = f"{found.recipe.label} on {found.where}, cfg {found.guidance:g}.\n{found.why}\n{found.evidence}"
        return {"ui": {"text": [text]}, "result": (make_sampler(found.recipe), sigmas, found.guidance, text)}


NODES = (FewStepAdvisor,)
