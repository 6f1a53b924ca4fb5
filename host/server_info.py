"""What the server knows about itself: nodes, system, and the many questions with fixed answers."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

import torch
from aiohttp import web

from ..nodes import NODE_CLASS_MAPPINGS
from .server_json import respond
from .validate import Classes

log = logging.getLogger("fewstep")
EMPTY: dict[str, Any] = {
    "/node_replacements": {}, "/embeddings": [], "/experiment/models": [],
    "/experiment/models/{folder}": [], "/models": [], "/models/{folder}": [], "/view_metadata/{folder}": {},
    "/internal/folder_paths": {}, "/internal/logs": "", "/templates/index.json": [], "/templates/index_logo.json": {},
}


def node_info(node_id: str, node: type[Any]) -> dict[str, Any]:
    """A node as the browser needs it to draw it."""
    inputs = node.INPUT_TYPES()
    outputs = list(node.RETURN_TYPES)
    info = {
        "input": inputs, "input_order": {group: list(entries) for group, entries in inputs.items()}, "output": outputs,
        "output_is_list": list(getattr(node, "OUTPUT_IS_LIST", [False] * len(outputs))),
        "output_name": list(getattr(node, "RETURN_NAMES", outputs)), "name": node_id,
        "display_name": getattr(node, "DISPLAY_NAME", node_id), "description": getattr(node, "DESCRIPTION", ""),
        "python_module": "custom_nodes.fewstep" if node_id in NODE_CLASS_MAPPINGS else "nodes",
        "category": getattr(node, "CATEGORY", "sd"), "output_node": bool(getattr(node, "OUTPUT_NODE", False)),
        "search_aliases": list(getattr(node, "SEARCH_ALIASES", [])),
    }
    if hasattr(node, "OUTPUT_TOOLTIPS"):
        info["output_tooltips"] = list(node.OUTPUT_TOOLTIPS)
    for mark in ("DEPRECATED", "EXPERIMENTAL"):
        if getattr(node, mark, False):
            info[mark.lower()] = True
    return info


def all_nodes(classes: Classes) -> dict[str, Any]:
    """``node_info`` of every node; one that cannot describe itself is logged and left out."""
    described = {}
    for node_id, node in classes.items():
        try:
            described[node_id] = node_info(node_id, node)
        except Exception:
            log.exception("the node %s cannot be described", node_id)
    return described


def system_stats() -> dict[str, Any]:
    """System and devices."""
    from .. import __version__

    total = free = 0
    if hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        page = os.sysconf("SC_PAGE_SIZE")
        total, free = page * os.sysconf("SC_PHYS_PAGES"), page * os.sysconf("SC_AVPHYS_PAGES")
    memory = {"vram_total": total, "vram_free": free, "torch_vram_total": total, "torch_vram_free": free}
    return {
        "system": {
            "os": sys.platform, "ram_total": total, "ram_free": free, "comfyui_version": f"FewStep {__version__}",
            "python_version": sys.version, "pytorch_version": torch.__version__, "embedded_python": False,
            "argv": ["fewstep", "serve"],
        },
        "devices": [{"name": "cpu", "type": "cpu", "index": 0, **memory}],
    }


def add_routes(routes: web.RouteTableDef, classes: Classes, features: dict[str, Any]) -> None:
    """Adds /object_info, /system_stats, /features and the fixed answers."""

    @routes.get("/object_info")
    async def object_info(request: web.Request) -> web.Response:
        return respond(all_nodes(classes))

    @routes.get("/object_info/{node_class}")
    async def object_info_of(request: web.Request) -> web.Response:
        name = request.match_info["node_class"]
        return respond(all_nodes({name: classes[name]} if name in classes else {}))

    @routes.get("/system_stats")
    async def stats(request: web.Request) -> web.Response:
        return respond(system_stats())

    @routes.get("/features")
    async def known_features(request: web.Request) -> web.Response:
        return respond(features)

    for path, answer in EMPTY.items():
        routes.get(path)(_fixed(answer))


def _fixed(answer: Any) -> Any:
    async def handler(request: web.Request) -> web.Response:
        return respond(answer)

    return handler
