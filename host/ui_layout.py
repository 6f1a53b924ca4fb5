"""The API form as a drawing that the frontend opens: nodes in columns by their distance from the start, and links."""

from __future__ import annotations

from typing import Any

from .validate import WIDGETS, Classes, InputSpec, input_specs, is_link

COLUMN, GAP = 330, 40
PLAN = 250  # height of the drawing that ``web/live_plans.js`` puts into a node
REPORT = 150  # and of the text that ``web/reports.js`` puts there


def to_ui(prompt: dict[str, dict[str, Any]], classes: Classes) -> dict[str, Any]:
    """A drawing (format 0.4) of ``prompt``; ``ui_format.to_api`` turns it back. Node ids must be whole numbers."""
    depth: dict[str, int] = {}

    def column(i: str) -> int:
        if i not in depth:
            sources = [value[0] for value in prompt[i]["inputs"].values() if is_link(value)]
            depth[i] = 1 + max((column(s) for s in sources), default=-1)
        return depth[i]

    bottoms: dict[int, int] = {}
    nodes: list[tuple[str, dict[str, Any]]] = []
    links: list[list[Any]] = []
    outgoing: dict[tuple[str, int], list[int]] = {}
    for i, entry in prompt.items():
        for slot, (name, value) in enumerate(_sockets(entry, classes)):
            if is_link(value):
                number = len(links) + 1
                kind = classes[prompt[value[0]]["class_type"]].RETURN_TYPES[value[1]]
                links.append([number, int(value[0]), value[1], int(i), slot, kind])
                outgoing.setdefault((value[0], value[1]), []).append(number)
                entry = {**entry, "_links": {**entry.get("_links", {}), name: number}}
        nodes.append((i, entry))
    drawn = []
    for order, (i, entry) in enumerate(sorted(nodes, key=lambda item: column(item[0]))):
        node = classes[entry["class_type"]]
        specs, sockets = input_specs(node), _sockets(entry, classes)
        widgets = _widget_values(entry, specs)
        height = 60 + 22 * max(len(sockets), len(node.RETURN_TYPES)) + 26 * len(widgets)
        height += PLAN if _has_plan(entry["class_type"], node) else REPORT if has_report(entry["class_type"], node) else 0
        x, y = column(i) * COLUMN, bottoms.get(column(i), 0)
        bottoms[column(i)] = y + height + GAP
        names = getattr(node, "RETURN_NAMES", node.RETURN_TYPES)
        drawn.append({
            "id": int(i), "type": entry["class_type"], "pos": [x, y], "size": [280, height], "flags": {}, "order": order,
            "mode": 0,
            "inputs": [input_slot(specs[name], entry.get("_links", {}).get(name)) for name, _ in sockets],
            "outputs": [
                {"name": name, "type": kind, "slot_index": slot, "links": outgoing.get((i, slot), [])}
                for slot, (name, kind) in enumerate(zip(names, node.RETURN_TYPES, strict=True))
            ],
            "properties": {"Node name for S&R": entry["class_type"]}, "widgets_values": widgets,
            **({"title": entry["_meta"]["title"]} if "_meta" in entry else {}),
        })
    return {
        "last_node_id": max(map(int, prompt)), "last_link_id": len(links), "nodes": drawn, "links": links, "groups": [],
        "config": {}, "extra": {}, "version": 0.4,
    }


def _has_plan(name: str, node: type[Any]) -> bool:
    if name in ("FewStepKSampler", "FewStepPlanInspector", "FewStepFittedSolver"):
        return True
    return name.startswith("FewStep") and tuple(node.RETURN_TYPES) == ("SAMPLER",)


def has_report(name: str, node: type[Any]) -> bool:
    """Whether a node shows a text after a run; those that draw a plan or a table have it elsewhere."""
    texts = {"report", "advice"} & set(getattr(node, "RETURN_NAMES", ()))
    return name.startswith("FewStep") and (bool(texts) or name == "FewStepShowStatistics")


def _is_widget(spec: InputSpec) -> bool:
    return isinstance(spec.type, list) or spec.type in WIDGETS


def _sockets(entry: dict[str, Any], classes: Classes) -> list[tuple[str, Any]]:
    """(name, value) of the inputs that are drawn as sockets: all that are no widgets, and widgets with a link."""
    specs, inputs = input_specs(classes[entry["class_type"]]), entry["inputs"]
    named = [name for name, spec in specs.items() if not _is_widget(spec) or is_link(inputs.get(name))]
    return [(name, inputs.get(name)) for name in named]


def input_slot(spec: InputSpec, link: int | None) -> dict[str, Any]:
    """A socket, or a widget's, which the frontend keeps beside the widget."""
    kind = "COMBO" if isinstance(spec.type, list) else spec.type
    return {"name": spec.name, "type": kind, "link": link, **({"widget": {"name": spec.name}} if _is_widget(spec) else {})}


def _widget_values(entry: dict[str, Any], specs: dict[str, InputSpec]) -> list[Any]:
    values: list[Any] = []
    for name, spec in specs.items():
        if _is_widget(spec):
            value = entry["inputs"][name]
            values.append(spec.options.get("default") if is_link(value) else value)
            if spec.options.get("control_after_generate"):
                values.append("fixed")
    return values
