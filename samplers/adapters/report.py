"""What happened to a file, in words: every key accounted for, and every doubt as a warning."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from .detect import Detection
from .match import Matched
from .scale import Scale

SHOWN = 5  # examples in a list


@dataclass
class Report:
    """Lines in order; warnings are also shown first."""

    lines: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def say(self, text: str) -> None:
        """A fact."""
        self.lines.append(text)

    def warn(self, text: str) -> None:
        """A doubt."""
        self.warnings.append(text)

    @property
    def text(self) -> str:
        """Warnings first, then the facts, one a line."""
        return "\n".join([*(f"WARNING: {warning}" for warning in self.warnings), *self.lines])


def examples(items: Sequence[str]) -> str:
    """The first few, and how many more."""
    more = len(items) - SHOWN
    return ", ".join(items[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def say_detection(report: Report, detection: Detection) -> None:
    """The method, how sure, and why."""
    preset = detection.preset
    reasons = "; ".join(detection.reasons)
    if preset is not None:
        report.say(f"method: {preset.label} [preset {preset.id}], confidence {detection.confidence} ({reasons})")
    else:
        report.say(f"method: not certain, confidence {detection.confidence} ({reasons})")
        report.warn(
            "no preset was chosen: the sampler, the sigmas, the steps and the CFG are plain defaults. Choose the preset that the "
            "file's page names"
        )


def say_scales(report: Report, scales: Iterable[Scale], preset_scale: float, strength: float) -> None:
    """Rank, alpha and where it comes from, the preset's scale, the user's strength, and the product."""
    groups: dict[tuple[int, float | None, str, float], int] = {}
    for scale in scales:
        key = (scale.rank, scale.alpha, scale.source, scale.factor)
        groups[key] = groups.get(key, 0) + 1
    for (rank, alpha, source, factor), count in sorted(groups.items(), key=lambda item: -item[1])[:SHOWN]:
        alpha_text = f"no alpha, preset's scale {preset_scale:g}" if alpha is None else f"alpha {alpha:g} ({source})"
        report.say(f"scale of {count} modules: rank {rank}, {alpha_text}, strength {strength:g}: {factor * strength:g} in all")
    if len(groups) > SHOWN:
        report.say(f"and {len(groups) - SHOWN} more combinations of rank and alpha")


def say_matched(report: Report, what: str, matched: Matched) -> None:
    """How many modules were used, and what was not."""
    report.say(f"{what}: {matched.used} of {matched.modules} modules used, {len(matched.patches)} changes of weights")
    for title, items in (
        ("without a counterpart in the model", matched.unmatched), ("incomplete", matched.incomplete),
        ("of another size", matched.misfit),
    ):
        if items:
            report.warn(f"{what}: {len(items)} modules {title}: {examples(items)}")
    if matched.empty and len(matched.empty) == matched.modules:
        report.warn(f"{what}: every up weight is zero, so the file changes nothing: it is untrained")
    elif matched.empty:
        report.say(f"{what}: {len(matched.empty)} modules have zero up weights and change nothing")
