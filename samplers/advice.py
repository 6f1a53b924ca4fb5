"""What to sample with: rules that were measured, as data in ``advice.json``.

A rule holds for a family of models, a range of steps and one of guidance scales; it names a recipe, a grid, the reason, and
what ``python -m fewstep.benchmarks.advice`` measured of it against what people usually take. A calibration made for the model
goes before every rule, the one with the least error by its own file first.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from .calibration.store import Calibration
from .errors import FewStepError, OptionError, check_choice, check_integer, check_range
from .frames import Frame
from .recipe import Recipe
from .solvers.fitted import fitted_grid

FILE = Path(__file__).with_suffix(".json")
FAMILIES = ("vp", "flow")
NAMES = {"a": "alpha", "b": "beta", "t_T": "start"}  # what the schedule nodes call the grids' options, where that differs
NEAR = 0.1  # share by which the guidance may differ from a calibration's


@dataclass(frozen=True)
class Facts:
    """What is known before a choice.

    Attributes:
        frame: of the model; flow frames are of the family "flow", all others (noise, v, EDM) of "vp".
        steps: evaluations of the model that one can afford.
        guidance: guidance scale (cfg) that is wanted; 1 is none.
        distilled: whether the model was distilled to few steps.
        shift: the time shift that a flow model has of its own; 1 is none.
        calibrations: (reference, content) of what was fitted to this very model.
    """

    frame: Frame
    steps: int
    guidance: float
    distilled: bool = False
    shift: float = 1.0
    calibrations: tuple[tuple[str, Calibration], ...] = ()

    def __post_init__(self) -> None:
        check_integer("steps", self.steps, 1, 10_000)
        check_range("guidance", self.guidance, 0.0, 100.0)

    @property
    def family(self) -> str:
        """One of ``FAMILIES``."""
        return "flow" if self.frame.scaling == "flow" else "vp"


@dataclass(frozen=True)
class Rule:
    """A measured choice.

    Attributes:
        name, family: an id, and one of ``FAMILIES``.
        steps, guidance: closed range of steps; range of guidance scales, above the first (or 0) up to the second.
        recipe: what to sample with.
        grid: {"kind": a name of ``grids.GRIDS``, and its options}.
        why: the reason, in a sentence or two.
        measured: "error" relative to ``usual`` (geometric mean over problems; below 1 is a gain), "worst" of all cells, their
            number "cells", and "worse": in how many of them the usual choice was better.
        unseen: the same of problems by which the rule was not chosen.
        usual: what it was measured against, for people.
        source: the command that measured it.
    """

    name: str
    family: str
    steps: tuple[int, int]
    guidance: tuple[float, float]
    recipe: Recipe
    grid: Mapping[str, Any]
    why: str
    measured: Mapping[str, Any]
    unseen: Mapping[str, Any]
    usual: str
    source: str

    def holds(self, family: str, steps: int, guidance: float) -> bool:
        """Whether the rule is for this."""
        low, high = self.guidance
        return family == self.family and self.steps[0] <= steps <= self.steps[1] and (low < guidance or low == 0) \
            and guidance <= high

    @property
    def evidence(self) -> str:
        """What was measured, in a sentence."""
        m = self.measured
        if m["worst"] == 1.0 == m["error"]:
            return f"Measured: what else was tried gains little over {self.usual} here ({self.source})."
        worse, unseen = (f"worse in {part['worse'] or 'none'} of {part['cells']}" for part in (m, self.unseen))
        return (
            f"Measured: {m['error']:.2g} times the error of {self.usual}, {worse} comparisons; on unseen noise and mixtures "
            f"{self.unseen['error']:.2g} times, {unseen} ({self.source})."
        )


@dataclass(frozen=True)
class Advice:
    """A choice and its reason.

    Attributes:
        recipe: the solver with its correctors.
        grid: {"kind", options} of ``grids.GRIDS``; None where ``sigmas`` are prescribed.
        guidance: to sample with.
        why, evidence: two lines for people.
        sigmas: noise levels that belong to the recipe, falling, with the 0; empty where there is a grid.
    """

    recipe: Recipe
    grid: Mapping[str, Any] | None
    guidance: float
    why: str
    evidence: str
    sigmas: tuple[float, ...] = field(default=())

    @property
    def where(self) -> str:
        """The noise levels, for people."""
        return "its own noise levels" if self.grid is None else f"the schedule {grid_label(self.grid)}"


@lru_cache(maxsize=1)
def rules() -> tuple[Rule, ...]:
    """The rules in the file's order."""
    data = json.loads(FILE.read_text("utf-8"))
    return tuple(
        Rule(
            r["name"], r["family"], tuple(r["steps"]), tuple(r["guidance"]), recipe_of(r["recipe"]), r["grid"], r["why"],
            r["measured"], r["unseen"], data["usual"][r["family"]]["words"], data["source"],
        )
        for r in data["rules"]
    )


def recipe_of(data: Mapping[str, Any]) -> Recipe:
    """A recipe as it stands in the file."""
    return Recipe(data["solver"], data["options"], tuple((c["corrector"], c["options"]) for c in data["correctors"]))


def grid_label(grid: Mapping[str, Any]) -> str:
    """A rule's grid with all that has to be set in a schedule node to get it.

    >>> grid_label({"kind": "beta", "a": 0.9, "b": 0.8})
    'beta (alpha 0.9, beta 0.8)'
    """
    options = ", ".join(f"{NAMES.get(name, name)} {value}" for name, value in grid.items() if name != "kind")
    return f"{grid['kind']} ({options})" if options else str(grid["kind"])


def rule_for(family: str, steps: int, guidance: float, among: Iterable[Rule] | None = None) -> Rule:
    """The first rule that holds; raises OptionError where none does."""
    check_choice("family", family, FAMILIES)
    for rule in rules() if among is None else among:
        if rule.holds(family, steps, guidance):
            return rule
    raise OptionError(f"there is no rule for a {family} model with {steps} steps at guidance {guidance:g}")


def advise(facts: Facts) -> Advice:
    """What to sample with: a step-distilled model's own sampling, else the best calibration that fits, else the rule."""
    if facts.distilled:
        return Advice(
            Recipe("consistency"), {"kind": "uniform_t"}, 1.0,
            "A model distilled to few steps knows its own noise levels alone, at guidance 1: re-noise its predictions.",
            "Not measured for your model: Load Distilled LoRA and Distilled Model Settings know the levels of the methods "
            "(docs/distilled_loras.md).",
        )
    found = [(gain, reference, made) for reference, made in facts.calibrations if (gain := gain_of(made, facts)) < 1]
    for gain, reference, made in sorted(found, key=lambda entry: (errors_of(entry[2])[1], entry[1])):
        try:
            return _calibrated(facts, gain, reference, made)
        except FewStepError:  # made for another frame or by another version: the next one may do
            continue
    rule = rule_for(facts.family, facts.steps, facts.guidance)
    grid, evidence = rule.grid, rule.evidence
    if facts.family == "flow" and facts.shift != 1.0:
        grid = {"kind": "shifted", "shift": facts.shift}
        evidence += f" The model brings a shift of its own, {facts.shift:g}, whose steps are taken instead."
    return Advice(rule.recipe, grid, facts.guidance, rule.why, evidence)


def gain_of(made: Calibration, facts: Facts) -> float:
    """Error with a calibration over that without, as its file says; infinite where it is not for these steps and guidance."""
    gain, meta = made.meta.get("gain"), made.meta
    fits = made.purpose in ("plan", "ratios") and meta.get("steps") == facts.steps and meta.get("helps", True)
    near = abs(float(meta.get("guidance", math.inf)) - facts.guidance) <= NEAR * max(1.0, facts.guidance)
    if not (fits and near and isinstance(gain, Mapping) and meta.get("scaling") == facts.frame.scaling):
        return math.inf
    plain, calibrated = errors_of(made)
    return calibrated / plain if plain > 0 else math.inf


def errors_of(made: Calibration) -> tuple[float, float]:
    """Mean square errors on unseen noise without and with a calibration; those of one model compare, the shares do not."""
    gain = made.meta["gain"]
    plain, calibrated = (v["mean"] if isinstance(v := gain[key], Mapping) else v for key in ("plain", "calibrated"))
    return float(plain), float(calibrated)


def _calibrated(facts: Facts, gain: float, reference: str, made: Calibration) -> Advice:
    """The recipe of a plan or of ratios, on its own noise levels."""
    name, guidance = reference.partition("@")[0], float(made.meta["guidance"])
    if made.purpose == "plan":
        recipe, sigmas = Recipe("fitted_plan", {"calibration": reference}), fitted_grid(made, facts.frame).sigma
        why = f"A solver was fitted to this model for {facts.steps} steps at guidance {guidance:g}: {name}."
    else:
        base, sigmas = Recipe.from_json(str(made.meta["recipe"])), made.meta["sigmas"]
        recipe = base.corrected("dynamic_compensation", ratios=reference, dc_order=made.meta.get("dc_order", 2))
        why = f"Compensation was searched for this model, {facts.steps} steps and guidance {guidance:g}: {name}."
    noises = f"{made.meta.get('held_out', 'some')} noises that it was not fitted to"
    evidence = f"Measured by its file: {gain:.2g} times the squared error of the plain solver, on {noises}."
    return Advice(recipe, None, guidance, why, evidence, tuple(float(s) for s in sigmas))
