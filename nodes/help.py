"""The help pages: ``python -m fewstep.nodes.help`` writes ``web/docs/``, which the frontend shows for a node.

A page is made of the node's own words (translated by ``locales``), the section of ``docs/nodes.md`` or ``docs/nodes.zh.md``,
``docs/nodes.ja.md`` (written by hand), a picture (``python -m fewstep.host.help_pictures``), and the papers of
``samplers/citations.bib``. The frontend asks for ``<node id>/<language>.md`` first and then for ``<node id>.md``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .locales import table_of


class Words(NamedTuple):
    """What stands around the nodes' own words; ``columns`` are of the table of inputs."""

    inputs: str
    outputs: str
    columns: tuple[str, str, str, str]
    choice: str
    optional: str
    advanced: str
    templates: str
    reference: str


WORDS = {
    "en": Words("Inputs", "Outputs", ("input", "kind", "default", "what it is"), "choice", "optional", "advanced",
                "Templates with this node", "Reference"),
    "zh": Words("输入", "输出", ("输入", "类型", "默认值", "说明"), "选项", "可选", "高级", "含此节点的模板", "参考文献"),
    "ja": Words("入力", "出力", ("入力", "種類", "既定値", "説明"), "選択肢", "任意", "高度",
                "このノードのあるテンプレート", "参考文献"),
}
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


def prose(language: str = "en") -> dict[str, str]:
    """The hand-written sections of ``docs/nodes.md``, or of ``docs/nodes.<language>.md``, by node id."""
    name = "nodes.md" if language == "en" else f"nodes.{language}.md"
    _, *sections = re.split(r"^## ", (ROOT / "docs" / name).read_text("utf-8"), flags=re.M)
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


def page(node_id: str, node: type[Any], text: str, language: str = "en") -> str:
    """The Markdown of one page; ``text`` is its hand-written section in the same language."""
    from ..samplers.citations import KEYS, entries

    words = WORDS[language]
    table = {} if language == "en" else table_of(language)

    def say(english: str) -> str:
        return table.get(english, english)

    parts = [f"# {say(node.DISPLAY_NAME)}", say(node.DESCRIPTION)]
    if (name := picture(node_id)) is not None:
        parts.append(f"![{say(node.DISPLAY_NAME)}]({name})")
    parts += [text, f"## {words.inputs}", _inputs(node, words, say), f"## {words.outputs}", _outputs(node, words, say)]
    if found := templates_with(node_id):
        parts.append(f"{words.templates}: {', '.join(found)}.")
    keys = dict.fromkeys(key for paper in papers(node_id, node) for key in KEYS.get(paper, ()))
    if keys:
        parts += [f"## {words.reference}", "\n\n".join(reference(entries()[key]) for key in keys)]
    return "\n\n".join(parts) + "\n"


def _named(name: str, say: Callable[[str], str]) -> str:
    """An input's or output's name, with its translation before it."""
    return name if say(name) == name else f"{say(name)} (`{name}`)"


def _inputs(node: type[Any], words: Words, say: Callable[[str], str]) -> str:
    rows = [f"| {' | '.join(words.columns)} |", "|---|---|---|---|"]
    for group, entries in node.INPUT_TYPES().items():
        if group == "hidden":
            continue
        for name, (kind, *rest) in entries.items():
            settings: Mapping[str, Any] = rest[0] if rest else {}
            shown = words.choice if isinstance(kind, list) else kind
            shown += f" ({words.optional})" if group == "optional" and "default" not in settings else ""
            shown += f" ({words.advanced})" if settings.get("advanced") else ""
            default = "" if settings.get("default") in (None, "") else f"`{settings['default']}`"
            rows.append(f"| {_named(name, say)} | {shown} | {default} | {say(settings['tooltip'])} |")
    return "\n".join(rows)


def _outputs(node: type[Any], words: Words, say: Callable[[str], str]) -> str:
    rows = [f"| {words.outputs} | {words.columns[1]} | {words.columns[3]} |", "|---|---|---|"]
    names = getattr(node, "RETURN_NAMES", node.RETURN_TYPES)
    for name, kind, tip in zip(names, node.RETURN_TYPES, node.OUTPUT_TOOLTIPS, strict=True):
        rows.append(f"| {_named(name, say)} | {kind} | {say(tip)} |")
    return "\n".join(rows)


def pages() -> dict[str, str]:
    """Every page by its path in ``PAGES``: one for each language, and the English one for all others.

    Raises KeyError for a node without a section in a language's text.
    """
    from . import NODE_CLASS_MAPPINGS

    made = {}
    for language in WORDS:
        texts = prose(language)
        for node_id, node in NODE_CLASS_MAPPINGS.items():
            made[f"{node_id}/{language}.md"] = page(node_id, node, texts[node_id], language)
    return made | {f"{node_id}.md": made[f"{node_id}/en.md"] for node_id in NODE_CLASS_MAPPINGS}


def main() -> None:
    """Writes all pages."""
    from ..samplers.plan_io import write_atomically

    for name, text in pages().items():
        (PAGES / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(PAGES / name, text.encode())


if __name__ == "__main__":
    main()
