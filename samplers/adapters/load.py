"""Reading an adapter file for a network: detection, normalisation, checks, patches and the report, in one call."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch

from ..errors import AdapterError
from .detect import Detection, detect, facts_of
from .families import Family, compatible, family_of, model_widths
from .files import AdapterFile
from .lowrank import Patch
from .match import Matched, Routing, match
from .modules import Module, Modules, modules_of
from .names import flat, formats_of
from .presets import Preset, chosen
from .report import Report, examples, say_detection, say_matched, say_scales
from .routed import task_names
from .scale import Scales
from .targets import Targets

MIN_COVERAGE = 0.95
AUTO, NONE = "auto", "none"


@dataclass(frozen=True)
class Adapter:
    """A file ready to be applied.

    Attributes:
        patches: of the diffusion model; ``text_patches`` of the text encoders.
        detection: the method and its preset; ``family`` the base model that the file is made for.
    """

    patches: list[Patch]
    text_patches: list[Patch]
    detection: Detection
    family: Family | None
    report: Report = field(default_factory=Report)


@dataclass(frozen=True)
class Choices:
    """What the user says about the file.

    Attributes:
        strength: factor on every change.
        preset: ``auto``, ``none`` or an id.
        scale: stands in for a missing alpha in place of the preset's, None leaves the preset's.
        allow_partial: use a file even where keys are lost or the base model is another one.
        task: of a routed file; ``allow_unknown_task`` gives unknown ones uniform routing.
        routed: whether routed files are expected; others refuse them.
    """

    strength: float = 1.0
    preset: str = AUTO
    scale: float | None = None
    allow_partial: bool = False
    task: str = ""
    allow_unknown_task: bool = False
    routed: bool = False


def load_adapter(
    file: AdapterFile, model: Targets, presets: Mapping[str, Preset], choices: Choices | None = None, *,
    text: Targets | None = None,
) -> Adapter:
    """Makes patches for the network (and the text encoders, if connected) from a file.

    Raises:
        AdapterError: the file does not fit the model, too many keys would be lost, a value is NaN, or the strength is not a
            finite number. The message says what the file looks made for.
    """
    choices = choices or Choices()
    check_strength(choices.strength)
    file = replace(file, tensors=model.renamed(file.tensors))
    modules = modules_of(file)
    report = Report()
    inner = [m for m in modules.all if not m.is_text]
    outer = [m for m in modules.all if m.is_text]
    _check_routed("routed" in modules.kinds, choices, file)
    own, theirs = family_of(_widths(inner)), family_of(model_widths(model.shapes))
    formats = formats_of(m.base for m in modules.all)
    report.say(f"{file.name}: {len(file.tensors)} tensors in {len(modules.all)} modules ({'; '.join(formats)}), "
               f"kinds: {', '.join(sorted(modules.kinds))}")
    report.say(f"made for: {own.label if own else 'unknown'}; the loaded model: {theirs.label if theirs else 'unknown'}")
    _check_family(file, own, theirs, choices, report)
    detection = method_of(file, presets, choices.preset, modules)
    say_detection(report, detection)
    preset_scale = _preset_scale(detection, choices, file, inner, report)
    routing = Routing(
        modules.logits, tuple(task_names(file)), choices.task, choices.allow_unknown_task,
        file.metadata.get("merge_after", "").lower() == "true",
    )
    found = match(inner, model, Scales(file, preset_scale), routing)
    in_text = match(outer, text, Scales(file, preset_scale), routing) if text is not None else Matched()
    _check(file, found, in_text, formats, own, theirs, choices, report)
    if modules.unknown:
        report.warn(f"{len(modules.unknown)} keys belong to no known format and are not used: {examples(modules.unknown)}")
    if inner:
        say_matched(report, "diffusion model", found)
    if outer and text is not None:
        say_matched(report, "text encoder", in_text)
    elif outer:
        report.say(f"text encoder: {len(outer)} modules are in the file and not used, as no CLIP is connected")
    say_scales(report, [*found.scales.values(), *in_text.scales.values()], preset_scale, choices.strength)
    if choices.strength == 0:
        report.warn("strength is 0: the file is not applied")
    return Adapter(found.patches, in_text.patches, detection, own, report)


def check_strength(strength: float) -> None:
    """Raises AdapterError unless the strength is a finite number."""
    if isinstance(strength, bool) or not isinstance(strength, (int, float)) or not math.isfinite(strength):
        raise AdapterError(f"strength is {strength!r}, expected a finite number, usually from 0 to 1")


def _widths(modules: list[Module]) -> dict[str, tuple[int | None, int | None]]:
    return {flat(m.name): m.widths for m in modules}


def _check_routed(has_routed: bool, choices: Choices, file: AdapterFile) -> None:
    if has_routed and not choices.routed:
        raise AdapterError(f"{file.name} holds routed adapters, of which a task chooses a mixture: use Load Routed Adapter")
    if choices.task and not has_routed:
        raise AdapterError(f"{file.name} holds no routed adapters: there is no task {choices.task!r} to choose, leave it empty")


def _check_family(
    file: AdapterFile, own: Family | None, theirs: Family | None, choices: Choices, report: Report
) -> None:
    if own is None or theirs is None or own.id == theirs.id:
        return
    if compatible(own, theirs):
        if "unet" not in (own.id, theirs.id):
            report.warn(f"the file is made for {own.label}, the loaded model is {theirs.label}: their weights have the same "
                        "sizes, but the result may be poor")
        return
    text = f"{file.name} is made for {own.label}, the loaded model is {theirs.label}"
    if not choices.allow_partial:
        raise AdapterError(f"{text}: load {own.label}, or choose a file that is made for {theirs.label}")
    report.warn(text)


def method_of(
    file: AdapterFile, presets: Mapping[str, Preset], choice: str = AUTO, modules: Modules | None = None
) -> Detection:
    """The method of a file, or the user's choice; no model is needed."""
    if choice == NONE:
        return Detection(None, "none", ("you chose no preset",))
    if choice != AUTO:
        preset = chosen(presets, choice)
        return Detection(preset, "given", ("you chose it",), preset.method)
    inner = [m for m in (modules or modules_of(file)).all if not m.is_text]
    scales = Scales(file)
    alphas = {m.base: scales.of(m).alpha for m in inner if m.rank is not None}
    return detect(file, facts_of(inner, family_of(_widths(inner)), alphas), presets)


def _preset_scale(
    detection: Detection, choices: Choices, file: AdapterFile, modules: list[Module], report: Report
) -> float:
    """The scale for modules without alpha: the user's, else that of a preset that is certain."""
    if choices.scale is not None:
        return choices.scale
    preset = detection.preset
    if preset is None or preset.scale is None or preset.scale == 1:
        return 1.0
    if detection.confidence in ("high", "given"):
        return preset.scale
    scales = Scales(file)
    if any(scales.of(m).alpha is None for m in modules if m.rank is not None):
        report.warn(
            f"{preset.label} is used at scale {preset.scale:g} where the file has no alpha; this file has none, but it is not "
            f"certain that it is {preset.method}: its strength is left alone. Choose the preset, or set scale, if it is"
        )
    return 1.0


def _check(
    file: AdapterFile, found: Matched, in_text: Matched, formats: list[str], own: Family | None, theirs: Family | None,
    choices: Choices, report: Report,
) -> None:
    """The rules of what must not be lost."""
    bad = [*found.not_finite, *in_text.not_finite]
    if bad:
        raise AdapterError(f"{file.name} holds NaN or infinity in {examples(bad)}: the file is damaged, get it again")
    if not found.modules and not in_text.modules:
        raise AdapterError(
            f"{file.name} changes the text encoder only: connect a CLIP to use it. It cannot make a model sample in few steps"
        )
    if not found.modules:
        report.warn("the file changes the text encoder only: it cannot make a model sample in few steps")
        if not in_text.used:
            raise AdapterError(f"{file.name}: none of its {in_text.modules} text encoder modules exists in the connected CLIP")
        return
    made_for = own.label if own else "a model that FewStep does not know"
    lost = [*found.unmatched, *found.incomplete, *found.misfit]
    if not found.used:
        raise AdapterError(
            f"{file.name}: none of its {found.modules} modules fits the loaded model"
            f"{f' ({theirs.label})' if theirs else ''}. The file looks made for {made_for}; its names are of the form "
            f"{'; '.join(formats)}, for example {examples(lost)}"
        )
    if found.used < MIN_COVERAGE * found.modules and not choices.allow_partial:
        raise AdapterError(
            f"{file.name}: only {found.used} of {found.modules} modules fit the loaded model. Not used would be "
            f"{examples(lost)}. The file looks made for {made_for} (names: {'; '.join(formats)}). Load that model, or turn on "
            "allow_partial to use what fits"
        )


def unscaled_fp8(model: Targets) -> bool:
    """Whether the base weights are 8-bit floats without scales, on which LoRAs of Wan and Qwen-Image leave a grid."""
    narrow = {getattr(torch, name) for name in ("float8_e4m3fn", "float8_e5m2") if hasattr(torch, name)}
    scaled = any(key.endswith(("scale_weight", "weight_scale")) for key in model.shapes)
    return not scaled and any(dtype in narrow for dtype in model.dtypes.values())


def warn_fp8(report: Report, family: Family | None, model: Targets) -> None:
    """The warning of ``unscaled_fp8`` for the families that show it."""
    if family is not None and family.id.startswith(("wan", "qwen")) and unscaled_fp8(model):
        report.warn(f"the loaded {family.label} is in plain 8-bit floats, on which this LoRA leaves a grid pattern: use scaled "
                    "8-bit or 16-bit weights")
