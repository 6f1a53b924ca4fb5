"""Workflows as the frontend saves them (a drawing with links), turned into the API form that is executed.

A saved drawing lists nodes with their widgets' values in order and links between slots. Executed is, per node, a value or
a link for each input. Muted nodes are left out, bypassed ones pass their inputs through, reroutes and primitives vanish.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any

from ..samplers.errors import suggest
from .errors import HostInputError
from .validate import WIDGETS, Classes, InputSpec, input_specs

MUTED, BYPASSED = 2, 4
DRAWING_ONLY = {"Note", "MarkdownNote"}
CONTROL_VALUES = {"fixed", "increment", "decrement", "randomize"}

Link = tuple[str, int]  # (node id, output slot)


def is_ui_format(data: Any) -> bool:
    """Whether ``data`` is a drawing, sound or damaged, rather than the API form (where "nodes" could be a node's id)."""
    return isinstance(data, Mapping) and "nodes" in data and not isinstance(data["nodes"], Mapping)


def to_api(data: Mapping[str, Any], classes: Classes) -> dict[str, dict[str, Any]]:
    """The API form of a drawing.

    Args:
        data: what the frontend saves.
        classes: node classes by id; they tell which inputs are widgets, and in which order.

    Raises:
        HostInputError: nodes that this host does not know, subgraphs, or a drawing that is damaged.
    """
    try:
        return _Drawing(data, classes).prompt()
    except HostInputError:
        raise
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(f"{type(error).__name__} {error}") from error  # whatever else can be wrong with a file


def _damaged(what: str) -> HostInputError:
    return HostInputError(f"the saved workflow is damaged: {what}; open it in the editor, mend it there and save it again")


class _Drawing:
    def __init__(self, data: Mapping[str, Any], classes: Classes) -> None:
        self.classes = classes
        self.nodes: dict[str, Mapping[str, Any]] = {}
        for node in _list(data, "nodes"):
            if not isinstance(node, Mapping) or "id" not in node or not isinstance(node.get("type"), str):
                raise _damaged(f"this is no node: {_short(node)}")
            if str(node["id"]) in self.nodes:
                raise _damaged(f"two nodes have the id {node['id']}")
            self.nodes[str(node["id"])] = node
        self.links = dict(_link(entry) for entry in _list(data, "links"))
        groups = {str(s["id"]) for s in (data.get("definitions") or {}).get("subgraphs", ())}
        if any(node["type"] in groups for node in self.nodes.values()):
            raise HostInputError("the workflow holds subgraphs; unpack them, or save it with 'Export (API)'")

    def prompt(self) -> dict[str, dict[str, Any]]:
        wanted = {
            i: node for i, node in self.nodes.items()
            if node.get("mode", 0) not in (MUTED, BYPASSED) and node["type"] not in DRAWING_ONLY and not self._passes(node)
        }
        unknown = sorted({node["type"] for node in wanted.values()} - set(self.classes))
        if unknown:
            hints = "; ".join(f"'{name}'{suggest(name, self.classes)}" for name in unknown)
            raise HostInputError(f"this host does not know the nodes {hints}: run the workflow in ComfyUI, or remove them")
        return {i: self._entry(node) for i, node in wanted.items()}

    def _entry(self, node: Mapping[str, Any]) -> dict[str, Any]:
        specs = input_specs(self.classes[node["type"]])
        inputs: dict[str, Any] = _widget_values(node, specs)
        for slot in node.get("inputs") or ():
            if slot.get("link") is None:
                continue
            source = self._source(slot["link"], f"node {node['id']} ({node['type']}), input '{slot['name']}'")
            if isinstance(source, tuple):
                inputs[slot["name"]] = [source[0], source[1]]
            elif source is not None:
                inputs[slot["name"]] = source["value"]  # a primitive's own value
            else:
                inputs.pop(slot["name"], None)  # it came from a muted node
        entry = {"class_type": node["type"], "inputs": inputs}
        return {**entry, "_meta": {"title": node["title"]}} if node.get("title") else entry

    def _source(self, link: int, user: str) -> Link | dict[str, Any] | None:
        """Where a link's value comes from: a node's output, a primitive's value, or nothing."""
        for _ in range(len(self.nodes) + 1):
            if link not in self.links:
                raise _damaged(f"{user}: there is no link {link}")
            origin, slot, kind = self.links[link]
            if origin not in self.nodes:
                raise _damaged(f"{user}: link {link} comes from node {origin}, which is not there")
            node = self.nodes[origin]
            if node["type"] == "PrimitiveNode":
                return {"value": node["widgets_values"][0]}
            if node.get("mode", 0) == MUTED:
                return None
            if not self._passes(node) and node.get("mode", 0) != BYPASSED:
                return origin, slot
            entries = [s for s in node.get("inputs") or () if s.get("link") is not None]
            matching = entries if self._passes(node) else [s for s in entries if s.get("type") == kind]
            if not matching:
                return None
            link = matching[0]["link"]
        raise HostInputError("the workflow's reroutes form a circle")

    @staticmethod
    def _passes(node: Mapping[str, Any]) -> bool:
        return node["type"] in ("Reroute", "PrimitiveNode")


def _list(data: Mapping[str, Any], name: str) -> list[Any]:
    """A drawing's nodes or links; what it leaves out is empty."""
    entries = data.get(name, [])
    if not isinstance(entries, list):
        raise _damaged(f"'{name}' is {_short(entries)}, expected a list")
    return entries


def _short(value: Any) -> str:
    return reprlib.repr(value)


def _link(entry: Any) -> tuple[int, tuple[str, int, str]]:
    """(link id, (origin node, origin slot, type)) of either saved form."""
    try:
        if isinstance(entry, Mapping):
            return int(entry["id"]), (str(entry["origin_id"]), int(entry["origin_slot"]), str(entry["type"]))
        return int(entry[0]), (str(entry[1]), int(entry[2]), str(entry[5]))
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise _damaged(f"this is no link: {_short(entry)}") from error


def _widget_values(node: Mapping[str, Any], specs: Mapping[str, InputSpec]) -> dict[str, Any]:
    """Values of a node's widgets by name; the saved list also holds the frontend's own "control after generate"."""
    saved = node.get("widgets_values") or []
    if not isinstance(saved, (list, Mapping)):
        raise _damaged(f"the widgets of node {node['id']} are {_short(saved)}, expected a list")
    widgets = [s for s in specs.values() if (isinstance(s.type, list) or s.type in WIDGETS) and not s.options.get("forceInput")]
    if isinstance(saved, Mapping):
        return {s.name: saved[s.name] for s in widgets if s.name in saved}
    values, position = {}, 0
    for spec in widgets:
        if position >= len(saved):
            break  # an older file: widgets that were added later keep their defaults
        values[spec.name] = saved[position]
        position += 1
        seeded = spec.options.get("control_after_generate") or spec.name in ("seed", "noise_seed")
        if seeded and position < len(saved) and saved[position] in CONTROL_VALUES:
            position += 1
    for spec in widgets:
        if spec.name not in values and "default" in spec.options:
            values[spec.name] = spec.options["default"]
    return values
