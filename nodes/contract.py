"""What saved workflows rely on: ids, sockets, widgets and defaults; ``python -m fewstep.nodes.contract`` prints it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

SETTINGS = ("default", "min", "max", "step", "round", "multiline", "control_after_generate")  # words may change, these may not
FOLDER_LISTS = ("file",)  # choices that depend on what lies in a folder


def contract(classes: Mapping[str, type[Any]] | None = None) -> dict[str, Any]:
    """JSON values by node id: inputs in order with kind and settings, and outputs."""
    from . import NODE_CLASS_MAPPINGS

    nodes = NODE_CLASS_MAPPINGS if classes is None else classes
    return {node_id: _node(nodes[node_id]) for node_id in sorted(nodes)}


def _node(node: type[Any]) -> dict[str, Any]:
    inputs = {
        name: {"group": group, **_input(name, *entry)}
        for group, entries in node.INPUT_TYPES().items() if group != "hidden" for name, entry in entries.items()
    }
    outputs = [list(pair) for pair in zip(getattr(node, "RETURN_NAMES", node.RETURN_TYPES), node.RETURN_TYPES, strict=True)]
    return {"inputs": inputs, "outputs": outputs, "output_node": bool(getattr(node, "OUTPUT_NODE", False))}


def _input(name: str, kind: Any, settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
    shown = "COMBO" if name in FOLDER_LISTS else kind
    kept = {key: value for key, value in (settings or {}).items() if key in SETTINGS and name not in FOLDER_LISTS}
    return {"kind": shown, **kept}


def text(data: Mapping[str, Any]) -> str:
    """The snapshot: one input a line, so that a change can be read in a diff."""
    lines = []
    for node_id, node in data.items():
        inputs = ",\n".join(f"   {json.dumps(name)}: {json.dumps(entry)}" for name, entry in node["inputs"].items())
        rest = f'  "outputs": {json.dumps(node["outputs"])},\n  "output_node": {json.dumps(node["output_node"])}'
        lines.append(f' {json.dumps(node_id)}: {{\n  "inputs": {{\n{inputs}\n  }},\n{rest}\n }}')
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    print(text(contract()), end="")
