"""Adapters beyond a plain load: a task's mixture of routed adapters, and LoRAs whose strength changes over the steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from .host import get_host
from .lora_parts import apply, changed, lora_widget, opened, presets, strength_widget

if TYPE_CHECKING:
    from ..samplers.adapters import Adapter

NO_SECOND = "none"
METHODS = ("auto", "additions", "rebuild")


class FewStepLoadRoutedAdapter:
    """Poly and MHR adapters, one task of them; and Hydra."""

    DISPLAY_NAME = "Load Routed Adapter (FewStep)"
    CATEGORY = "FewStep/distilled"
    DESCRIPTION = (
        "Loads a file that mixes several adapters by task (Poly, multi-head routing) for the task you name, or a Hydra adapter "
        "with parallel and sequential branches. The result is merged like a LoRA."
    )
    SEARCH_ALIASES: ClassVar[list[str]] = ["poly", "mhr", "mixture of loras", "hydra", "multi task lora"]
    RETURN_TYPES = ("MODEL", "STRING")
    RETURN_NAMES = ("model", "report")
    OUTPUT_TOOLTIPS = ("The model with the adapter.", "What was found and what was used.")
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's description of the inputs."""
        return {"required": {
            "model": ("MODEL", {"tooltip": "The base model that the file was made for."}),
            "lora_name": lora_widget(),
            "task": ("STRING", {
                "default": "", "tooltip": "Name or number of the task whose mixture is used; empty if the file has one only."}),
            "strength": ("FLOAT", strength_widget("Factor on the change.")),
            "allow_unknown_task": ("BOOLEAN", {
                "default": False, "tooltip": "Mix all adapters evenly for a task that the file does not know."}),
        }}

    @classmethod
    def IS_CHANGED(cls, lora_name: str = "", **ignored: Any) -> str:
        """The file's size and time."""
        return changed_or_error(lora_name)

    def load(self, model: Any, lora_name: str, task: str, strength: float, allow_unknown_task: bool) -> dict[str, Any]:
        """(MODEL, report), and the report for the node itself."""
        from ..samplers.adapters import Choices
        from ..samplers.adapters.load import NONE

        choices = Choices(strength, NONE, task=task, allow_unknown_task=allow_unknown_task, routed=True)
        model, _, adapter = apply(model, opened(lora_name), choices)
        return {"ui": {"text": [adapter.report.text]}, "result": (model, adapter.report.text)}


def changed_or_error(*names: str) -> str:
    """``distilled.changed`` of several files; a missing one shows when the node runs."""
    try:
        return " ".join(changed(name) for name in names if name and name != NO_SECOND)
    except Exception as error:  # the host's own kind
        return str(error)


class FewStepLoRAOverSteps:
    """A strength for every step, and two LoRAs that hand over."""

    DISPLAY_NAME = "LoRA Over Steps (FewStep)"
    CATEGORY = "FewStep/distilled"
    DESCRIPTION = (
        "Loads a LoRA whose strength changes from step to step: full at first and fading, or a second LoRA that takes over. "
        "Plain LoRAs are added while the network runs, which costs nothing to change; files with whole weights are rebuilt."
    )
    SEARCH_ALIASES: ClassVar[list[str]] = ["lora schedule", "lora keyframes", "fade lora", "strength per step", "hook lora"]
    RETURN_TYPES = ("MODEL", "CONDITIONING", "CONDITIONING", "STRING")
    RETURN_NAMES = ("model", "positive", "negative", "report")
    OUTPUT_TOOLTIPS = (
        "The model with the LoRA added while it runs.", "The positive prompt; it carries the LoRA where weights are rebuilt.",
        "The negative prompt, likewise: use both from here.", "What was found, and the strength of every step.",
    )
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's description of the inputs."""
        names, settings = lora_widget()
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "The base model that the files were made for."}),
                "lora_name": (names, settings),
                "sigmas": ("SIGMAS", {"tooltip": "The schedule of the run: it says where the steps are."}),
                "strengths": ("STRING", {
                    "default": "1, 0",
                    "tooltip": "One number per step, or fewer that are spread over the steps: '1, 0' fades evenly, "
                               "'1, 1, 0.5, 0' is exact for 4 steps."}),
            },
            "optional": {
                "second_lora": ([NO_SECOND, *names], {
                    "default": NO_SECOND, "tooltip": "A LoRA that takes over as the first one fades."}),
                "second_strengths": ("STRING", {
                    "default": "", "tooltip": "Strengths of the second LoRA; empty: 1 minus those of the first."}),
                "positive": ("CONDITIONING", {"tooltip": "Needed where weights are rebuilt."}),
                "negative": ("CONDITIONING", {"tooltip": "Needed where weights are rebuilt."}),
                "method": (list(METHODS), {
                    "default": "auto", "advanced": True,
                    "tooltip": "auto: additions where the files allow it. additions: never rebuild weights. rebuild: ComfyUI's "
                               "hooks, which take time at every change of strength."}),
            },
        }

    @classmethod
    def IS_CHANGED(cls, lora_name: str = "", second_lora: str = NO_SECOND, **ignored: Any) -> str:
        """The files' sizes and times."""
        return changed_or_error(lora_name, second_lora or NO_SECOND)

    def load(
        self, model: Any, lora_name: str, sigmas: Any, strengths: str, second_lora: str = NO_SECOND, second_strengths: str = "",
        positive: Any = None, negative: Any = None, method: str = "auto",
    ) -> dict[str, Any]:
        """(MODEL, CONDITIONING, CONDITIONING, report), and the report for the node itself."""
        from ..samplers.adapters.forward import can_be_added
        from ..samplers.adapters.strength import strengths_from_text
        from ..samplers.errors import check_choice

        check_choice("method", method, METHODS)
        levels = sigmas.double().tolist()
        steps = max(len(levels) - 1, 1)
        values = [strengths_from_text(strengths, steps)]
        names = [lora_name]
        if second_lora != NO_SECOND:
            names.append(second_lora)
            values.append(
                strengths_from_text(second_strengths, steps, "second_strengths") if second_strengths.strip()
                else [1.0 - value for value in values[0]]
            )
        loaded = [found(model, name) for name in names]
        parts = list(zip(loaded, values, strict=True))
        rebuild = method == "rebuild" or (method == "auto" and not all(can_be_added(a.patches) for a in loaded))
        conditionings = [positive, negative]
        if rebuild:
            conditionings = rebuilt(model, conditionings, parts, levels)
        else:
            model = added(model, parts, levels)
        lines = [adapter.report.text for adapter in loaded]
        lines += [f"strengths of {name}: {', '.join(f'{v:g}' for v in value)}" for name, value in zip(names, values, strict=True)]
        lines.append("weights are rebuilt at every change of strength" if rebuild else "added while the network runs")
        text = "\n".join(lines)
        return {"ui": {"text": [text]}, "result": (model, *conditionings, text)}


def found(model: Any, name: str) -> Adapter:
    """The file's patches for ``model``, nothing applied yet."""
    from ..samplers.adapters import load_adapter

    return load_adapter(opened(name), get_host().adapters.targets(model), presets())


def added(model: Any, parts: Sequence[tuple[Adapter, list[float]]], levels: list[float]) -> Any:
    """The MODEL with every part's additions."""
    from ..samplers.adapters.forward import ForwardAdditions

    for adapter, values in parts:
        model = get_host().adapters.add_while_running(model, ForwardAdditions(adapter.patches, values, levels))
    return model


def rebuilt(
    model: Any, conditionings: list[Any], parts: Sequence[tuple[Adapter, list[float]]], levels: list[float]
) -> list[Any]:
    """The CONDITIONINGs with every part's keyframes; raises OptionError without them."""
    from ..samplers.adapters.strength import keyframes
    from ..samplers.errors import OptionError

    if any(c is None for c in conditionings):
        raise OptionError(
            "where weights are rebuilt, the prompts carry the LoRA: connect positive and negative here and use both outputs"
        )
    progress = model.get_model_object("model_sampling").percent_to_sigma
    listed = [(a.patches, keyframes(v, levels, lambda p: float(progress(p)))) for a, v in parts]
    return get_host().adapters.rebuild_over_steps(conditionings, listed)


NODES: tuple[type[Any], ...] = (FewStepLoadRoutedAdapter, FewStepLoRAOverSteps)
