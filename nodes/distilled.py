"""Loading distilled LoRAs: the model, and with it the sampler, the sigmas, the steps and the CFG that belong to the file."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, ClassVar

from .frames import model_times
from .host import get_host
from .lora_parts import apply, around, changed, lora_widget, opened, preset_names, presets, strength_widget
from .sampling import make_sampler
from .widgets import float_widget

if TYPE_CHECKING:
    from ..samplers.adapters import Overrides, Preset, Report, Settings

log = logging.getLogger("fewstep")

SETTINGS_TYPES = ("SAMPLER", "SIGMAS", "FLOAT", "INT", "STRING")
SETTINGS_NAMES = ("sampler", "sigmas", "cfg", "steps", "report")
SETTINGS_TOOLTIPS = (
    "The method's own sampler, for SamplerCustom or FewStep's KSampler.", "The noise levels that it was trained at.",
    "The guidance to sample with.", "The number of steps, for nodes that ask for it.",
    "What was found, what was done, and warnings. Read it once for every new file.",
)


def override_widgets() -> dict[str, Any]:
    """The user's own numbers in place of the preset's; each has a value that means the preset's."""
    from ..samplers.adapters.settings import SAMPLERS

    return {
        "steps": ("INT", {"default": 0, "min": 0, "max": 1000, "advanced": True, "tooltip": "0: the method's own number."}),
        "cfg": ("FLOAT", float_widget(0.0, 0.0, 100.0, advanced=True, tooltip="0: the method's own guidance; 1 is none.")),
        "shift": ("FLOAT", float_widget(
            0.0, 0.0, 100.0, advanced=True, tooltip="Time shift of flow models. 0: the method's own, or the model's.")),
        "sampler": (["method", *SAMPLERS], {
            "default": "method", "advanced": True,
            "tooltip": "method: the file's own. renoise is LCM's and DMD2's sampling, dpmpp_2m TDM's, tcd TCD's."}),
        "gamma": ("FLOAT", float_widget(
            -1.0, -1.0, 1.0, advanced=True, tooltip="tcd only: how much noise is renewed, 0 to 1. Below 0: the method's own.")),
        "times": ("STRING", {
            "default": "", "advanced": True,
            "tooltip": "Your own list in place of the trained one: training steps '999, 749, 499, 249', times of a flow model "
                       "'1, 0.75, 0.5, 0.25', or levels 'sigmas: 14.6, 4.1, 1.6'. Empty: the method's own."}),
        "denoise": ("FLOAT", float_widget(
            1.0, 0.0, 1.0, advanced=True, tooltip="Below 1: only the last of the trained steps, to change a given picture.")),
    }


def overrides(
    steps: int = 0, cfg: float = 0.0, shift: float = 0.0, sampler: str = "method", gamma: float = -1.0, times: str = "",
    denoise: float = 1.0,
) -> Overrides:
    """From the widgets of ``override_widgets``."""
    from ..samplers.adapters import Overrides

    return Overrides(
        steps or None, cfg or None, shift or None, "" if sampler == "method" else sampler, gamma if gamma >= 0 else None, times,
        denoise,
    )


def sample_with(
    model: Any, preset: Preset | None, own: Overrides, report: Report
) -> tuple[Any, tuple[Any, Any, float, int, str]]:
    """(MODEL, the outputs of SETTINGS_TYPES) for a preset, which may need the model's prediction read in another way."""
    import torch

    from ..samplers.adapters import settings_for

    settings: Settings = settings_for(preset, own, model_times(model.get_model_object("model_sampling")), report)
    if preset is not None and preset.prediction == "x_0":
        model = get_host().adapters.predict_x_0(model)
        report.say("the network's output is taken for the picture itself (x_0 prediction)")
    for warning in report.warnings:
        log.warning("FewStep: %s", warning)
    sigmas = torch.tensor(settings.sigmas, dtype=torch.float32)
    return model, (make_sampler(settings.recipe), sigmas, settings.cfg, settings.steps, report.text)


class FewStepLoadDistilledLoRA:
    """A few-step LoRA and everything that belongs to it."""

    DISPLAY_NAME = "Load Distilled LoRA (FewStep)"
    CATEGORY = "FewStep/distilled"
    DESCRIPTION = (
        "Loads a few-step LoRA of any format (TDM, DMD2, LCM, TCD, Lightning, Hyper-SD, PCM, Turbo, Qwen and Wan ...) at the "
        "right strength and gives the sampler, sigmas, steps and CFG that it was trained for. The report accounts for every "
        "key and warns of wrong settings."
    )
    SEARCH_ALIASES: ClassVar[list[str]] = ["lora", "load lora", "dmd2", "lcm", "lightning", "turbo", "hyper", "tdm", "few step"]
    RETURN_TYPES = ("MODEL", "CLIP", *SETTINGS_TYPES)
    RETURN_NAMES = ("model", "clip", *SETTINGS_NAMES)
    OUTPUT_TOOLTIPS = ("The model with the LoRA.", "The CLIP with the LoRA's text part, if it has one.", *SETTINGS_TOOLTIPS)
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's description of the inputs."""
        from ..samplers.adapters.load import AUTO, NONE

        return {
            "required": {
                "model": ("MODEL", {"tooltip": "The base model that the file was made for."}),
                "lora_name": lora_widget(),
                "strength": ("FLOAT", strength_widget(
                    "Factor on every change. Leave it at 1: the file's own scale (alpha, or the method's) is applied already.")),
                "preset": ([AUTO, NONE, *preset_names()], {
                    "default": AUTO,
                    "tooltip": "Which method it is. auto finds out and says how sure it is; a guess changes no strength."}),
            },
            "optional": {
                "clip": ("CLIP", {"tooltip": "Only for files that also change the text encoder; few-step LoRAs do not."}),
                **override_widgets(),
                "scale": ("FLOAT", float_widget(
                    0.0, 0.0, 10.0, advanced=True,
                    tooltip="For files without alpha: stands in for it, as 0.125 does for 8/64. 0: the method's own.")),
                "allow_partial": ("BOOLEAN", {
                    "default": False, "advanced": True,
                    "tooltip": "Use the file although the model is another one or many keys do not fit."}),
            },
            "hidden": {"prompt": "PROMPT", "node_id": "UNIQUE_ID"},
        }

    @classmethod
    def IS_CHANGED(
        cls, lora_name: str = "", preset: str = "auto", prompt: Any = None, node_id: str | None = None, **ignored: Any
    ) -> str:
        """The file, and what the workflow contradicts: the report must not stay behind."""
        from ..samplers.adapters.load import method_of

        try:
            found = method_of(opened(lora_name), presets(), preset).preset
            workflow = prompt or get_host().running_prompt()
            return f"{changed(lora_name)} {around(found, lora_name, workflow, node_id)}"
        except Exception as error:  # whatever it is, the node says it when it runs
            return str(error)

    def load(
        self, model: Any, lora_name: str, strength: float, preset: str, clip: Any = None, scale: float = 0.0,
        allow_partial: bool = False, prompt: Any = None, node_id: str | None = None, **own: Any,
    ) -> dict[str, Any]:
        """(MODEL, CLIP, SAMPLER, SIGMAS, CFG, steps, report), and the report for the node itself."""
        from ..samplers.adapters import Choices

        choices = Choices(strength, preset, scale or None, allow_partial)
        model, clip, adapter = apply(model, opened(lora_name), choices, clip)
        found = adapter.detection.preset
        for text in around(found, lora_name, prompt, node_id):
            adapter.report.warn(text)
        model, settings = sample_with(model, found, overrides(**own), adapter.report)
        return {"ui": {"text": [settings[-1]]}, "result": (model, clip, *settings)}


class FewStepDistilledPreset:
    """The settings of a distilled model without a LoRA."""

    DISPLAY_NAME = "Distilled Model Settings (FewStep)"
    CATEGORY = "FewStep/distilled"
    DESCRIPTION = (
        "The sampler, sigmas, steps and CFG of a few-step method for a model that is distilled itself (SDXL-Turbo, a DMD2 or "
        "Hyper-SD UNet, a merge). Choose the method; nothing is loaded."
    )
    SEARCH_ALIASES: ClassVar[list[str]] = ["turbo", "dmd2 unet", "one step", "lightning checkpoint", "few step"]
    RETURN_TYPES = ("MODEL", *SETTINGS_TYPES)
    RETURN_NAMES = ("model", *SETTINGS_NAMES)
    OUTPUT_TOOLTIPS = ("The model; some one-step methods read its prediction in another way.", *SETTINGS_TOOLTIPS)
    FUNCTION = "settings"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's description of the inputs."""
        names = preset_names()
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "The distilled model."}),
                "preset": (names, {"default": names[0], "tooltip": "The method, and the base model that was distilled."}),
            },
            "optional": override_widgets(),
        }

    def settings(self, model: Any, preset: str, **own: Any) -> dict[str, Any]:
        """(MODEL, SAMPLER, SIGMAS, CFG, steps, report)."""
        from ..samplers.adapters import Report
        from ..samplers.adapters.presets import chosen

        found, report = chosen(presets(), preset), Report()
        report.say(f"method: {found.label} [preset {found.id}], as you chose it")
        model, settings = sample_with(model, found, overrides(**own), report)
        return {"ui": {"text": [settings[-1]]}, "result": (model, *settings)}


NODES: tuple[type[Any], ...] = (FewStepLoadDistilledLoRA, FewStepDistilledPreset)
