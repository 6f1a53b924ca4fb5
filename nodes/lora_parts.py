"""What the LoRA nodes share: the list of files, presets, applying a file, and what the workflow around says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .graph import files_before, used_after
from .host import HostError, get_host
from .widgets import float_widget

if TYPE_CHECKING:
    from ..samplers.adapters import Adapter, AdapterFile, Choices, Preset

APPLIED = "fewstep_distilled"  # model_options key: which distilled files are on a MODEL already
OWN_LOADER = "FewStepLoadDistilledLoRA"
KIND = "loras"


def lora_widget() -> tuple[list[str], dict[str, Any]]:
    """The combo of LoRA files; empty outside of a host."""
    try:
        names = get_host().files.names(KIND)
    except HostError:
        names = []
    settings = {"tooltip": "A file in models/loras: safetensors of any LoRA format."}
    return names, {**settings, **({"default": names[0]} if names else {})}


def presets() -> dict[str, Preset]:
    """The shipped presets and the user's, from fewstep_presets.json in the loras folders."""
    from ..samplers.adapters import all_presets

    try:
        folders = get_host().files.folders(KIND)
    except HostError:
        folders = []
    return all_presets(*folders)


def preset_names() -> list[str]:
    """Ids for a combo; where the user's file is broken the shipped ones, and the node says what is wrong when it runs."""
    from ..samplers.adapters.presets import shipped
    from ..samplers.errors import AdapterError

    try:
        return list(presets())
    except AdapterError:
        return list(shipped())


def strength_widget(tooltip: str) -> dict[str, Any]:
    """Strength with every digit: 0.125 must not become 0.13."""
    return float_widget(1.0, -10.0, 10.0, tooltip=tooltip)


def opened(name: str) -> AdapterFile:
    """The file of the list, under its own name."""
    from ..samplers.adapters import open_adapter

    return open_adapter(get_host().files.path(KIND, name))


def changed(name: str) -> str:
    """Changes when the file, its neighbour adapter_config.json, or the user's presets do."""
    from ..samplers.adapters import fingerprint
    from ..samplers.adapters.presets import USER_FILE

    files = get_host().files
    return fingerprint(files.path(KIND, name), *(folder / USER_FILE for folder in files.folders(KIND)))


def apply(model: Any, file: AdapterFile, choices: Choices, clip: Any = None) -> tuple[Any, Any, Adapter]:
    """(MODEL, CLIP, what was found) with the file's changes; the MODEL remembers it as distilled where it is."""
    from ..samplers.adapters import load_adapter
    from ..samplers.adapters.load import warn_fp8

    adapters = get_host().adapters
    targets = adapters.targets(model)
    text = adapters.text_targets(clip) if clip is not None else None
    adapter = load_adapter(file, targets, presets(), choices, text=text)
    warn_fp8(adapter.report, adapter.family, targets)
    other = other_base(model, file)
    if other is not None:
        adapter.report.warn(other)
    before, preset = model.model_options.get(APPLIED, ()), adapter.detection.preset
    if before and not (preset is not None and preset.on_top):
        adapter.report.warn(f"{', '.join(before)} is on this model already: the strengths of distilled LoRAs add up")
    if choices.strength != 0:
        if adapter.patches:
            model = adapters.patch(model, adapter.patches, choices.strength)
        if clip is not None and adapter.text_patches:
            clip = adapters.patch_text(clip, adapter.text_patches, choices.strength)
        if adapter.detection.method and adapter.patches:
            model = mark(model, file.name)
    return model, clip, adapter


def other_base(model: Any, file: AdapterFile) -> str | None:
    """What is wrong if a file states its base model (``fewstep.base_fingerprint``) and the loaded one is another."""
    import json

    from ..samplers.calibration.fingerprint import Fingerprint

    stated = file.metadata.get("fewstep.base_fingerprint")
    if stated is None:
        return None
    try:
        wanted = Fingerprint.from_data(json.loads(stated))
    except (ValueError, KeyError, TypeError):
        return f"{file.name} states its base model in a form that cannot be read"
    difference = wanted.difference(Fingerprint.of(get_host().weights(model)[0]))
    name = file.metadata.get("fewstep.base", "another model")
    return None if difference is None else f"{file.name} was trained on {name}, the loaded model is another one: {difference}"


def mark(model: Any, name: str) -> Any:
    """A MODEL that remembers that the distilled file ``name`` is on it."""
    model = model.clone()
    model.model_options[APPLIED] = (*model.model_options.get(APPLIED, ()), name)
    return model


def around(preset: Preset | None, name: str, prompt: Any, node_id: str | None) -> list[str]:
    """What the workflow contradicts: files loaded before, and how the model is sampled after this node."""
    from ..samplers.adapters import looks_distilled
    from ..samplers.adapters.settings import contradictions

    found = []
    before = files_before(prompt, node_id, "model")
    # what this node loaded itself is on the MODEL's own list
    distilled = [file for kind, file in before if looks_distilled(file) and kind != OWN_LOADER]
    if distilled and not (preset is not None and preset.on_top):
        found.append(f"{', '.join(distilled)} is loaded before and looks distilled already: two such files spoil each other")
    for here, there in (("high_noise", "low_noise"), ("low_noise", "high_noise")):
        if here in name.lower() and any(there in file.lower() for _, file in before):
            found.append(f"{name} is made for the {here} model of Wan 2.2, but a {there} model is loaded before")
    for node, given in used_after(prompt, node_id) if preset is not None else ():
        steps, cfg = given.get("steps"), given.get("cfg")
        numbers = (steps if isinstance(steps, int) else None, cfg if isinstance(cfg, (int, float)) else None)
        assert preset is not None
        found += [f"{node} after this node has {text}" for text in contradictions(preset, *numbers)]
    return list(dict.fromkeys(found))
