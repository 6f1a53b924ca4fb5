"""Which method made a file: from its header, from keys and shapes, and from its name; how sure, and why.

high: the header names the method, or the name does and every fact that the preset states agrees.
medium: the name and the base model agree, the preset states no further fact.
low: the name alone, or facts that contradict it: no preset is chosen. A guess never changes a strength.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..errors import AdapterError
from .families import Family, labels
from .files import AdapterFile
from .modules import Module
from .presets import Preset, preset_from

_ATTENTION = re.compile(r"(?:^|_)(?:attn\d?|self_attn|cross_attn|attention)_")
_TEXTS = ("modelspec.title", "modelspec.description", "ss_output_name", "ss_training_comment", "title", "name", "model")
_WORDS = re.compile(
    r"distill?|lightning|turbo|schnell|dmd2|hyper-?(?:sd|flux)|lightx2v|causvid|(?<![a-z])(?:lcm|tcd|pcm|tdm|dmd)(?![a-z])"
    r"|(?<![\d.])(?:[1248]|16)[-_ ]?steps?(?![a-z\d])", re.IGNORECASE
)
_SHIFT = re.compile(r"shift[-_ ]?(\d+(?:\.\d+)?)", re.IGNORECASE)
_STEPS = re.compile(r"(?<![\d.])([1-9]|[1-6]\d)[-_ ]?steps?(?![a-z\d])", re.IGNORECASE)


@dataclass(frozen=True)
class Facts:
    """What a file looks like.

    Attributes:
        family: the base model its names and widths belong to.
        ranks: the ranks that occur.
        alpha: "none", "equal" (to the rank everywhere), a number, or "mixed"; of the file, its header, or the file beside.
        targets: "attention" where only attention layers are changed, else "all".
    """

    family: Family | None
    ranks: tuple[int, ...]
    alpha: str | float
    targets: str


@dataclass(frozen=True)
class Detection:
    """The preset that was found (None: none is sure enough), how sure, and the reasons."""

    preset: Preset | None
    confidence: str
    reasons: tuple[str, ...]
    method: str = ""


def facts_of(modules: Iterable[Module], family: Family | None, alphas: Mapping[str, float | None]) -> Facts:
    """Facts of the low-rank modules; ``alphas`` by base, None where there is none from anywhere."""
    listed = [m for m in modules if m.rank is not None and not m.is_text]
    ranks = tuple(sorted({m.rank for m in listed if m.rank is not None}))
    values = {alphas.get(m.base) for m in listed}
    alpha: str | float = "mixed"
    if values == {None}:
        alpha = "none"
    elif all(alphas.get(m.base) == m.rank for m in listed):
        alpha = "equal"
    elif len(values) == 1:
        alpha = float(next(iter(values)) or 0.0)
    attention = bool(listed) and all(_ATTENTION.search(_flat(m)) for m in listed)
    return Facts(family, ranks, alpha, "attention" if attention else "all")


def _flat(module: Module) -> str:
    return module.name.replace(".", "_") + "_"


def detect(file: AdapterFile, facts: Facts, presets: Mapping[str, Preset]) -> Detection:
    """The method of ``file``."""
    own = self_described(file)
    if own is not None:
        return Detection(own, "high", ("the file's header names its method and its settings",), own.method)
    texts = {f"its header's {key}": file.metadata[key] for key in _TEXTS if file.metadata.get(key)}
    for where, text in [*texts.items(), ("its name", file.name)]:
        found = _by_text(text, where, facts, presets)
        if found is not None:
            return found
    return _by_facts(facts, presets)


def _by_text(text: str, where: str, facts: Facts, presets: Mapping[str, Preset]) -> Detection | None:
    matches: list[tuple[int, Preset]] = []
    for preset in presets.values():
        found = [m for pattern in preset.names if (m := re.search(pattern, text, re.IGNORECASE))]
        if found:
            matches.append((max(m.end() - m.start() for m in found), preset))
    if not matches:
        return None
    fitting = [m for m in matches if facts.family is not None and facts.family.id in m[1].families]
    said = ", ".join(sorted({m[1].method for m in matches}))
    if not fitting:
        made_for = labels({f for m in matches for f in m[1].families})
        seen = f"keys and widths belong to {facts.family.label}" if facts.family else "keys and widths belong to no known model"
        return Detection(None, "low", (f"{where} says {said} (known for {made_for}), but {seen}",), said)
    longest = max(m[0] for m in fitting)
    best_fits = [m for m in fitting if m[0] == longest]
    if len(best_fits) > 1:
        ids = ", ".join(m[1].id for m in best_fits)
        return Detection(None, "low", (f"{where} fits several presets ({ids}): choose one",), said)
    _, preset = best_fits[0]
    steps = _STEPS.search(text)
    reasons = [f"{where} says {preset.method}", f"keys and widths belong to {facts.family.label if facts.family else '?'}"]
    if steps:
        preset = preset.with_steps(int(steps.group(1)))
        reasons.append(f"{where} says {preset.steps} steps")
    shift = _SHIFT.search(text)
    if shift and preset.shift is not None:
        preset = replace(preset, shift=float(shift.group(1)))
        reasons.append(f"{where} says shift {preset.shift:g}")
    agree, differ = compare(preset, facts)
    if differ:
        return Detection(None, "low", (*reasons, *differ), preset.method)
    return Detection(preset, "high" if agree or where != "its name" else "medium", (*reasons, *agree), preset.method)


def compare(preset: Preset, facts: Facts) -> tuple[list[str], list[str]]:
    """(facts that agree with the preset, facts that contradict it), in words."""
    agree: list[str] = []
    differ: list[str] = []
    wanted = preset.facts
    if "rank" in wanted and facts.ranks:
        ok = set(facts.ranks) <= set(wanted["rank"])
        (agree if ok else differ).append(
            f"rank {', '.join(map(str, facts.ranks))}" + ("" if ok else f" where {preset.method} has {_numbers(wanted['rank'])}"))
    if "alpha" in wanted and facts.ranks:
        ok = facts.alpha == wanted["alpha"]
        (agree if ok else differ).append(f"alpha {facts.alpha}" + ("" if ok else f" where {preset.method} has {wanted['alpha']}"))
    if "targets" in wanted and facts.ranks:
        ok = facts.targets == wanted["targets"]
        (agree if ok else differ).append(
            f"changes {facts.targets} layers" + ("" if ok else f" where {preset.method} changes {wanted['targets']}"))
    return agree, differ


def _by_facts(facts: Facts, presets: Mapping[str, Preset]) -> Detection:
    """Keys and shapes alone separate no two methods with certainty: they give a list to choose from."""
    family = facts.family
    if family is None:
        return Detection(None, "none", ("neither header nor name tell the method, and the names belong to no known model",))
    fitting = [p for p in presets.values() if p.lora and family.id in p.families and p.facts and not compare(p, facts)[1]]
    words = f"keys and widths belong to {family.label}"
    if not fitting:
        return Detection(None, "none", (words, "neither header nor name tell the method"))
    ids = ", ".join(p.id for p in fitting)
    return Detection(None, "low", (words, f"keys and shapes fit {ids}, the name and the header tell nothing"))


def _numbers(values: Iterable[Any]) -> str:
    return " or ".join(map(str, values))


def self_described(file: AdapterFile) -> Preset | None:
    """The preset in a file's own header, as FewStep's trainer writes it: entries ``fewstep.<name>``.

    ``method``; ``timesteps`` (or ``times``), a JSON list of training steps, or of noise levels up to 1; ``steps``, their
    number by default; ``update``: ode (DPM-Solver++ 2M), ddim, renoise or x0; ``cfg``, 1 by default; ``shift``;
    ``guidance``, what is folded into the weights. Raises AdapterError for entries that cannot be read.
    """
    method = file.metadata.get("fewstep.method")
    if not method:
        return None
    said = {key.removeprefix("fewstep."): value for key, value in file.metadata.items()}
    where = f"{file.name}'s header"
    solvers: dict[str, tuple[str, dict[str, Any]]] = {
        "ode": ("dpm_solver_multistep", {"order": 2}), "ddim": ("ddim", {}), "renoise": ("consistency", {}),
        "x0": ("consistency", {"start": "noise"}),
    }
    try:
        times = [float(t) for t in json.loads(said.get("timesteps") or said.get("times") or "[]")]
        steps = int(said.get("steps") or len(times))
        solver, options = solvers[said.get("update", "ode")]
        cfg = float(said.get("cfg", 1.0))
        shift = float(said["shift"]) if said.get("shift", "null") not in ("null", "None", "") else None
    except (ValueError, TypeError, KeyError) as error:
        raise AdapterError(f"{where}: its settings cannot be read: {type(error).__name__} {error}") from None
    levels = bool(times) and max(times) <= 1.0
    grid: dict[str, Any] = {"kind": "trailing"}
    if times:
        grid = {"kind": "sigmas", "sigmas": times} if levels else {"kind": "times", "times": {str(len(times)): times}}
    return preset_from(f"{method} (the file's own)", {
        "method": method.upper(), "label": f"{method}, as the file's header says", "steps": steps, "trained_steps": [steps],
        "grid": grid, "solver": solver, "options": options, "cfg": cfg, "cfg_range": [min(cfg, 1.0), max(cfg, 1.0)],
        "shift": shift, "sources": {"all": "the file's header"},
        "notes": [f"A guidance of {said['guidance']} is folded into the weights."] if "guidance" in said else [],
    }, where)


def looks_distilled(name: str) -> bool:
    """Whether a file's name is that of a few-step model or LoRA."""
    return bool(_WORDS.search(name))
