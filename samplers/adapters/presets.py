"""Presets: what each few-step method was trained for, read from ``presets.json`` and the user's own file.

Each preset names the source of its numbers (``sources``): *code* of the official repository, its *card* (model card or
README), *infer* (deduced, not checked on the weights), *know* (common knowledge).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..errors import AdapterError, FewStepError, suggest
from ..recipe import Recipe
from .families import FAMILIES
from .trained_times import GRID_KINDS

FILE = Path(__file__).with_name("presets.json")
USER_FILE = "fewstep_presets.json"
FORMAT = 1


@dataclass(frozen=True)
class Preset:
    """One method on one base model.

    Attributes:
        id, method, label: for files, detection and people.
        families: ids of base models (see ``families``); empty means any.
        names: regular expressions searched in the file's name, without case; the longest match wins. A number of steps in the
            name goes before ``steps``.
        facts: what files of the method look like: ``rank`` (list), ``alpha`` ("none", "equal" to the rank, or a number),
            ``targets`` ("attention" or "all").
        scale: stands in for an alpha that the file lacks (see ``scale``); None where nobody has said it.
        steps: the number of steps to take; ``trained_steps`` are those that the weights were trained for (empty: any).
        grid: where the steps lie, see ``trained_times``.
        solver, options: the sampler, a recipe of the registry.
        cfg, cfg_range: guidance in the host's units (1 is none) and the range that does not spoil the picture.
        shift: time shift of flow models, None for the model's own.
        prediction: "x_0" where the network's output is the picture itself, else "model".
        lora: False for methods published as full models only.
        on_top: whether the file is meant for a model that is distilled already.
        notes: sentences for the report.
        sources: by field where the number comes from.
    """

    id: str
    method: str
    label: str
    steps: int
    grid: Mapping[str, Any]
    solver: str
    cfg: float
    cfg_range: tuple[float, float]
    families: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    facts: Mapping[str, Any] = None  # type: ignore[assignment]
    scale: float | None = 1.0
    trained_steps: tuple[int, ...] = ()
    options: Mapping[str, Any] = None  # type: ignore[assignment]
    shift: float | None = None
    prediction: str = "model"
    lora: bool = True
    on_top: bool = False
    notes: tuple[str, ...] = ()
    sources: Mapping[str, str] = None  # type: ignore[assignment]

    def recipe(self, steps: int) -> Recipe:
        """The sampler for this many steps: its order is lowered where there are fewer."""
        options = dict(self.options or {})
        if "order" in options:
            options["order"] = min(options["order"], steps)
        return Recipe(self.solver, options)

    def with_steps(self, steps: int) -> Preset:
        """The preset for the number of steps that a file's name gives."""
        return replace(self, steps=steps, trained_steps=(steps,))


_LISTS = ("families", "names", "notes", "trained_steps", "cfg_range")


def preset_from(id_: str, data: Any, where: str) -> Preset:
    """A preset from its JSON form; raises AdapterError naming the field that is wrong."""
    try:
        if not isinstance(data, dict):
            raise TypeError("expected an object")
        known = {f.name for f in fields(Preset)} - {"id"}
        for name in data:
            if name not in known:
                raise TypeError(f"unknown field {name!r}{suggest(name, known)}")
        values: dict[str, Any] = {name: tuple(value) if name in _LISTS else value for name, value in data.items()}
        preset = Preset(id=id_, **values)
        _check(preset)
        preset.recipe(preset.steps)
    except (TypeError, ValueError, KeyError, re.error, FewStepError) as error:
        raise AdapterError(f"{where}: the preset '{id_}' is wrong: {error}") from None
    return replace(preset, facts=preset.facts or {}, options=preset.options or {}, sources=preset.sources or {})


def _check(preset: Preset) -> None:
    if not isinstance(preset.steps, int) or not 1 <= preset.steps <= 1000:
        raise ValueError(f"steps is {preset.steps!r}, expected an integer from 1 to 1000")
    for name, value in {"scale": preset.scale, "cfg": preset.cfg, "shift": preset.shift}.items():
        if value is not None and not (isinstance(value, (int, float)) and math.isfinite(value) and value > 0):
            raise ValueError(f"{name} is {value!r}, expected a number above 0")
    if len(preset.cfg_range) != 2 or not preset.cfg_range[0] <= preset.cfg <= preset.cfg_range[1]:
        raise ValueError(f"cfg_range is {preset.cfg_range!r}, expected two numbers around cfg {preset.cfg}")
    for pattern in preset.names:
        re.compile(pattern)
    for family in preset.families:
        if family not in FAMILIES:
            raise ValueError(f"unknown family {family!r}{suggest(family, FAMILIES)}; known are {', '.join(FAMILIES)}")
    kind = preset.grid.get("kind")
    if kind not in GRID_KINDS:
        raise ValueError(f"grid kind {kind!r} is unknown, known are {', '.join(GRID_KINDS)}")
    if preset.prediction not in ("model", "x_0"):
        raise ValueError(f"prediction is {preset.prediction!r}, expected 'model' or 'x_0'")


def read_presets(path: str | Path) -> dict[str, Preset]:
    """The presets of one file by id; raises AdapterError saying what is wrong with it."""
    path = Path(path)
    try:
        data = json.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise AdapterError(f"the preset file {path} cannot be read: {error}") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT or not isinstance(data.get("presets"), dict):
        raise AdapterError(f'the preset file {path} must hold {{"format": {FORMAT}, "presets": {{...}}}}')
    return {id_: preset_from(id_, entry, path.name) for id_, entry in data["presets"].items()}


@lru_cache(maxsize=1)
def shipped() -> Mapping[str, Preset]:
    """The presets that come with the package."""
    return read_presets(FILE)


def all_presets(*folders: str | Path) -> dict[str, Preset]:
    """The shipped presets and those of ``fewstep_presets.json`` in the folders; a user's preset replaces one of its id."""
    presets = dict(shipped())
    for folder in folders:
        own = Path(folder) / USER_FILE
        if own.is_file():
            presets.update(read_presets(own))
    return presets


def chosen(presets: Mapping[str, Preset], id_: str) -> Preset:
    """The preset of that id; raises AdapterError naming the nearest one."""
    if id_ not in presets:
        raise AdapterError(f"there is no preset {id_!r}{suggest(id_, presets)}; known are {', '.join(presets)}")
    return presets[id_]
