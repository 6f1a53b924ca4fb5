"""The help pages: ``python -m fewstep.nodes.help`` writes ``web/docs/<node id>.md``, which the page shows for a node.

A page is made of the node's own words, the section of ``docs/nodes.md`` (written by hand), a picture
(``python -m fewstep.host.help_pictures``), and the papers of ``samplers/citations.bib``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "web" / "docs"
# papers of nodes that do not name their method themselves, by the names of ``citations.KEYS``
PAPERS: dict[str, tuple[str, ...]] = {
    "FewStepConsistency": ("consistency", "tcd"),
    "FewStepDPMSolverAdaptive": ("dpm_solver_adaptive",),
    "FewStepFittedSolver": ("fitted_plan",),
    "FewStepCalibratePlan": ("fitted_plan",),
    "FewStepTeleport": ("teleport",),
    "FewStepCalibrateMoments": ("teleport",),
    "FewStepCalibrateRatios": ("dynamic_compensation",),
    "FewStepCalibrateStatistics": ("dpm_solver_v3",),
    "FewStepShowStatistics": ("dpm_solver_v3",),
    "FewStepOfficialStatistics": ("dpm_solver_v3",),
    "FewStepLoadDistilledLoRA": ("distilled",),
    "FewStepDistilledPreset": ("distilled",),
    "FewStepLoadRoutedAdapter": ("routed",),
    "FewStepLoRAOverSteps": ("lora",),
}


def prose() -> dict[str, str]:
    """The hand-written sections of ``docs/nodes.md`` by node id."""
    _, *sections = re.split(r"^## ", (ROOT / "docs" / "nodes.md").read_text("utf-8"), flags=re.M)
    return {(parts := section.split("\n", 1))[0].strip(): parts[1].strip() for section in sections}


def picture(node_id: str) -> str | None:
    """The name of the node's picture; None where there is none."""
    return next((f"{node_id}{suffix}" for suffix in (".png", ".jpg") if (PAGES / f"{node_id}{suffix}").exists()), None)


def templates_with(node_id: str) -> list[str]:
    """Names of the templates in which the node stands."""
    found = []
    for path in sorted((ROOT / "example_workflows").glob("*.json")):
        if any(node["type"] == node_id for node in json.loads(path.read_text("utf-8"))["nodes"]):
            found.append(path.stem)
    return found


def papers(node_id: str, node: type[Any]) -> tuple[str, ...]:
    """Names of ``citations.KEYS`` behind a node."""
    own = [getattr(node, name) for name in ("SOLVER", "CORRECTOR", "KIND") if hasattr(node, name)]
    return PAPERS.get(node_id, (*own, *getattr(node, "METHODS", {}).values()))


def reference(entry: str) -> str:
    """A BibTeX entry as a line of text with its link."""
    lines = re.findall(r"^  (\w+) = \{(.*?)\},?$", entry.replace("\n    ", " "), re.M)
    fields = {name: re.sub(r"\\\W|[{}]", "", value) for name, value in lines}  # without accents and braces
    title, year = fields["title"], fields["year"]
    authors = [" ".join(reversed(name.split(", "))) for name in fields["author"].split(" and ")]
    named = ", ".join(authors).replace(", others", " et al.")
    where = fields.get("booktitle") or fields.get("journal")
    return f"{named}: *{title}*. {f'{where}, ' if where else ''}{year}. [arXiv:{fields['eprint']}](https://arxiv.org/abs/{fields['eprint']})"


def page(node_id: str, node: type[Any], text: str) -> str:
    """The Markdown of one page."""
    from ..samplers.citations import KEYS, entries

    parts = [f"# {node.DISPLAY_NAME}", node.DESCRIPTION]
    if (name := picture(node_id)) is not None:
        parts.append(f"![{node.DISPLAY_NAME}]({name})")
    parts += [text, "## Inputs", _inputs(node), "## Outputs", _outputs(node)]
    if found := templates_with(node_id):
        parts.append(f"Templates with this node: {', '.join(found)}.")
    keys = dict.fromkeys(key for paper in papers(node_id, node) for key in KEYS.get(paper, ()))
    if keys:
        parts += ["## Reference", "\n\n".join(reference(entries()[key]) for key in keys)]
    return "\n\n".join(parts) + "\n"


def _inputs(node: type[Any]) -> str:
    rows = ["| input | kind | default | what it does |", "|---|---|---|---|"]
    for group, entries in node.INPUT_TYPES().items():
        if group == "hidden":
            continue
        for name, (kind, *rest) in entries.items():
            settings: Mapping[str, Any] = rest[0] if rest else {}
            shown = "choice" if isinstance(kind, list) else kind
            shown += " (optional)" if group == "optional" and "default" not in settings else ""
            shown += " (advanced)" if settings.get("advanced") else ""
            default = "" if settings.get("default") in (None, "") else f"`{settings['default']}`"
            rows.append(f"| {name} | {shown} | {default} | {settings['tooltip']} |")
    return "\n".join(rows)


def _outputs(node: type[Any]) -> str:
    rows = ["| output | kind | what it is |", "|---|---|---|"]
    names = getattr(node, "RETURN_NAMES", node.RETURN_TYPES)
    rows += [f"| {n} | {k} | {tip} |" for n, k, tip in zip(names, node.RETURN_TYPES, node.OUTPUT_TOOLTIPS, strict=True)]
    return "\n".join(rows)


def pages() -> dict[str, str]:
    """Every page by node id. Raises KeyError for a node without a section in ``docs/nodes.md``."""
    from . import NODE_CLASS_MAPPINGS

    texts = prose()
    return {node_id: page(node_id, node, texts[node_id]) for node_id, node in NODE_CLASS_MAPPINGS.items()}


def main() -> None:
    """Writes all pages."""
    from ..samplers.plan_io import write_atomically

    PAGES.mkdir(parents=True, exist_ok=True)
    for node_id, text in pages().items():
        write_atomically(PAGES / f"{node_id}.md", text.encode())


if __name__ == "__main__":
    main()
