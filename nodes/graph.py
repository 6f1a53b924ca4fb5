"""What the workflow around a node says: which files are loaded before it, and how its model is sampled after it.

A MODEL does not know its file, and a loader does not see the sampler; the prompt, in API form, has both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Prompt = Mapping[str, Mapping[str, Any]]
FILES = (".safetensors", ".gguf", ".ckpt", ".pt", ".pth", ".bin", ".sft")


def _links(node: Mapping[str, Any]) -> Iterator[tuple[str, str, int]]:
    """(input name, source node, slot) of every link."""
    for name, value in node.get("inputs", {}).items():
        if isinstance(value, (list, tuple)) and len(value) == 2:
            yield name, str(value[0]), int(value[1])


def files_before(prompt: Prompt | None, node_id: str | None, name: str) -> list[tuple[str, str]]:
    """(node class, file) of the nodes through which input ``name`` came, nearest first: checkpoints, LoRAs.

    Only links of the same name are followed further back (a MODEL's), so that a CLIP's or a picture's file does not count.
    """
    found: list[tuple[str, str]] = []
    place, seen = node_id, set[str]()
    while prompt is not None and place is not None and place not in seen and place in prompt:
        seen.add(place)
        source = next((s for n, s, _ in _links(prompt[place]) if n == name), None)
        if source is not None:
            node = prompt.get(source, {})
            kind, values = str(node.get("class_type", "")), node.get("inputs", {}).values()
            found += [(kind, value) for value in values if isinstance(value, str) and value.lower().endswith(FILES)]
        place = source
    return found


def used_after(prompt: Prompt | None, node_id: str | None, slot: int = 0) -> list[tuple[str, Mapping[str, Any]]]:
    """(node class, constant inputs) of the nodes that get a MODEL from output ``slot``, also through other model nodes.

    A number of steps is left out where the node has sigmas connected and does not use it.
    """
    found: list[tuple[str, Mapping[str, Any]]] = []
    places, seen = [(str(node_id), slot)], set[tuple[str, int]]()
    while prompt is not None and node_id is not None and places:
        place = places.pop()
        if place in seen:
            continue
        seen.add(place)
        for i, node in prompt.items():
            if any(name in ("model", "guider") and (source, s) == place for name, source, s in _links(node)):
                linked = {name for name, _, _ in _links(node)}
                constants = {
                    k: v for k, v in node.get("inputs", {}).items()
                    if not isinstance(v, (list, tuple, dict)) and not (k == "steps" and "sigmas" in linked)
                }
                found.append((str(node.get("class_type", "")), constants))
                places.append((str(i), 0))
    return found
