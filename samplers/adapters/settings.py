"""The sampling that belongs to a preset, with the user's own numbers in place of the preset's, and what contradicts it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import check_choice
from ..recipe import Recipe
from .presets import Preset
from .report import Report
from .trained_times import ModelTimes, levels_from_text, preset_sigmas

SAMPLERS: dict[str, tuple[str, Mapping[str, Any]]] = {
    "euler": ("ddim", {}), "euler_ancestral": ("ddim", {"eta": 1.0}), "dpmpp_2m": ("dpm_solver_multistep", {"order": 2}),
    "renoise": ("consistency", {}), "tcd": ("tcd", {}),
}
PLAIN_STEPS = 8  # without a preset


@dataclass(frozen=True)
class Overrides:
    """The user's own numbers; None or '' leaves the preset's."""

    steps: int | None = None
    cfg: float | None = None
    shift: float | None = None
    sampler: str = ""
    gamma: float | None = None
    times: str = ""
    denoise: float = 1.0


@dataclass(frozen=True)
class Settings:
    """What to sample with."""

    recipe: Recipe
    sigmas: tuple[float, ...]
    cfg: float
    steps: int


def settings_for(preset: Preset | None, own: Overrides, model: ModelTimes, report: Report) -> Settings:
    """The sampler, the sigmas, the CFG and the steps; contradictions to the preset become warnings.

    Raises:
        ScheduleError, OptionError: a number outside its range, or times that the model does not have.
    """
    shift = own.shift if own.shift is not None else (preset.shift if preset else None)
    steps = own.steps or (preset.steps if preset else PLAIN_STEPS)
    if own.times:
        sigmas = levels_from_text(own.times, model, shift)
        if own.denoise < 1:
            sigmas = sigmas[-max(1, round((len(sigmas) - 1) * own.denoise)) - 1 :]
        steps = len(sigmas) - 1
    else:
        grid = preset.grid if preset else {"kind": "flow" if model.flow else "trailing"}
        sigmas = preset_sigmas(grid, steps, model, shift=shift, denoise=own.denoise)
    recipe = _recipe(preset, own, max(len(sigmas) - 1, 1))
    cfg = own.cfg if own.cfg is not None else (preset.cfg if preset else 1.0)
    if preset is not None:
        _warn(preset, own, steps, cfg, report)
    _say(preset, recipe, sigmas, cfg, shift, model, report)
    return Settings(recipe, tuple(sigmas), float(cfg), max(len(sigmas) - 1, 0))


def _recipe(preset: Preset | None, own: Overrides, steps: int) -> Recipe:
    if own.sampler:
        check_choice("sampler", own.sampler, SAMPLERS)
        solver, options = SAMPLERS[own.sampler]
        recipe = Recipe(solver, {**options, **({"order": min(2, steps)} if "order" in options else {})})
    else:
        recipe = preset.recipe(steps) if preset else Recipe("ddim")
    if own.gamma is not None and recipe.solver == "tcd":
        recipe = Recipe("tcd", {**recipe.options, "gamma": own.gamma})
    return recipe


def contradictions(preset: Preset, steps: int | None, cfg: float | None) -> list[str]:
    """What is wrong with a number of steps and a CFG for this method, wherever they were set."""
    found = []
    if steps is not None and preset.trained_steps and steps not in preset.trained_steps:
        trained = ", ".join(map(str, preset.trained_steps))
        found.append(
            f"{steps} steps: {preset.label} is trained for {trained}"
            + ("; more steps give oversaturated, smeared pictures and take longer" if steps > max(preset.trained_steps) else "")
        )
    low, high = preset.cfg_range
    if cfg is not None and not low <= cfg <= high:
        right = f"{low:g}" if low == high else f"{low:g} to {high:g}"
        what = "burns the picture" if cfg > high else "ignores the prompt or uses the negative one"
        cost = " and doubles the time" if cfg > 1 and high <= 1 else ""
        found.append(f"CFG {cfg:g}: {preset.label} is made for {right}; {cfg:g} {what}{cost}")
    return found


def _warn(preset: Preset, own: Overrides, steps: int, cfg: float, report: Report) -> None:
    for text in contradictions(preset, steps, cfg):
        report.warn(text)
    if own.sampler and SAMPLERS[own.sampler][0] != preset.solver:
        report.warn(f"sampler {own.sampler}: {preset.label} is made for {preset.recipe(steps).label}")
    if own.shift is not None and preset.shift is not None and own.shift != preset.shift:
        report.warn(f"shift {own.shift:g}: {preset.label} is made for {preset.shift:g}")
    if preset.scale is None:
        report.warn("nobody has said how strong this file must be: if the picture is burnt, set scale to 0.125")


def _say(
    preset: Preset | None, recipe: Recipe, sigmas: list[float], cfg: float, shift: float | None, model: ModelTimes,
    report: Report,
) -> None:
    report.say(f"sampler: {recipe.label}; CFG {cfg:g}")
    used = f", shift {shift or model.shift:g}" if model.flow else ""
    report.say(f"{max(len(sigmas) - 1, 0)} steps{used}; sigmas {' '.join(f'{s:.6g}' for s in sigmas)}")
    for note in preset.notes if preset else ():
        report.say(f"note: {note}")
    if preset is not None and preset.sources:
        report.say("sources: " + "; ".join(f"{name}: {text}" for name, text in preset.sources.items()))
