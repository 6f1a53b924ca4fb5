"""The words of all nodes in every language: ``python -m fewstep.nodes.locales`` writes ``locales/`` and says what is missing.

English comes from the nodes themselves. A translation is one table from English text to translated text,
``locales/<language>/texts.json``, one text a line; the files that the host serves (``nodeDefs.json``, ``main.json``) are made
from it. A text that changes in a node is thereby missing in the table, and is said to be.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1] / "locales"
TRANSLATED = ("zh", "ja")


def english() -> dict[str, dict[str, Any]]:
    """The host's locale files by name, in English: node texts, and the parts of their categories."""
    from . import NODE_CLASS_MAPPINGS

    parts = dict.fromkeys(part for node in NODE_CLASS_MAPPINGS.values() for part in node.CATEGORY.split("/"))
    return {
        "nodeDefs.json": {node_id: _node(node) for node_id, node in NODE_CLASS_MAPPINGS.items()},
        "main.json": {"nodeCategories": {part: part for part in parts}},
    }


def _node(node: type[Any]) -> dict[str, Any]:
    """One node's words; widgets and sockets by name, outputs by number."""
    entries = {name: entry for group, listed in node.INPUT_TYPES().items() if group != "hidden" for name, entry in listed.items()}
    names = getattr(node, "RETURN_NAMES", node.RETURN_TYPES)
    return {
        "display_name": node.DISPLAY_NAME, "description": node.DESCRIPTION,
        "inputs": {name: {"name": name, "tooltip": entry[1]["tooltip"]} for name, entry in entries.items()},
        "outputs": {
            str(i): {"name": name, "tooltip": tip} for i, (name, tip) in enumerate(zip(names, node.OUTPUT_TOOLTIPS, strict=True))
        },
    }


def leaves(value: Any) -> Iterator[str]:
    """Every text in a locale file."""
    if isinstance(value, str):
        yield value
    else:
        for inner in value.values():
            yield from leaves(inner)


def texts() -> list[str]:
    """Every distinct English text, in the order of the nodes."""
    return list(dict.fromkeys(text for file in english().values() for text in leaves(file)))


def translated(value: Any, table: Mapping[str, str]) -> Any:
    """A locale file in another language; a text without a translation stays English."""
    if isinstance(value, str):
        return table.get(value) or value
    return {key: translated(inner, table) for key, inner in value.items()}


def table_of(language: str) -> dict[str, str]:
    """English text to translated text."""
    table: dict[str, str] = json.loads((ROOT / language / "texts.json").read_text("utf-8"))
    return table


def dumped(value: Any) -> str:
    """One text a line, so that a change can be read in a diff."""
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def files() -> dict[str, str]:
    """The content of every made file, by its path in ``locales/``."""
    source = english()
    made = {f"en/{name}": dumped(file) for name, file in source.items()}
    for language in TRANSLATED:
        table = table_of(language)
        made |= {f"{language}/{name}": dumped(translated(file, table)) for name, file in source.items()}
    return made


def faults() -> list[str]:
    """What a person must mend: texts without a translation, and translations of texts that no node has any more."""
    wanted = texts()
    found = []
    for language in TRANSLATED:
        table = table_of(language)
        found += [f"{language}: no translation of {text!r}" for text in wanted if not table.get(text)]
        found += [f"{language}: no node says {text!r} any more" for text in table if text not in wanted]
    return found


def main() -> int:
    """Writes the files; 1 where translations are missing or left over."""
    from ..samplers.plan_io import write_atomically

    for name, content in files().items():
        (ROOT / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(ROOT / name, content.encode())
    problems = faults()
    print("\n".join(problems) or f"{len(texts())} texts in {', '.join(('en', *TRANSLATED))}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
