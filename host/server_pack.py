"""What the pack brings beside its nodes: translations and subgraph blueprints."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from aiohttp import web

from .server_json import respond
from .server_static import PACK, read_json

SECTIONS = ("nodeDefs", "commands", "settings")  # files of their own; what else there is stands in main.json


def translations(folder: Path) -> dict[str, Any]:
    """By language: the content of main.json, and the sections beside it."""
    found: dict[str, Any] = {}
    for language in sorted(path for path in folder.glob("*") if path.is_dir()):
        words = dict(read_json(language / "main.json") or {})
        for section in SECTIONS:
            words |= {section: content} if (content := read_json(language / f"{section}.json")) else {}
        found |= {language.name: words} if words else {}
    return found


def blueprints(folder: Path) -> dict[str, Path]:
    """The blueprints' files by an id that stays the same."""
    return {hashlib.sha256(path.name.encode()).hexdigest(): path for path in sorted(folder.glob("*.json"))}


def add_routes(routes: web.RouteTableDef, root: Path) -> None:
    """Adds /i18n and /global_subgraphs; ``root`` holds the folders ``locales`` and ``subgraphs``."""

    @routes.get("/i18n")
    async def i18n(request: web.Request) -> web.Response:
        return respond(translations(root / "locales"))

    @routes.get("/global_subgraphs")
    async def subgraphs(request: web.Request) -> web.Response:
        return respond({key: _entry(path) for key, path in blueprints(root / "subgraphs").items()})

    @routes.get("/global_subgraphs/{key}")
    async def subgraph(request: web.Request) -> web.Response:
        path = blueprints(root / "subgraphs").get(request.match_info["key"])
        return respond(None if path is None else {**_entry(path), "data": path.read_text("utf-8")})


def _entry(path: Path) -> dict[str, Any]:
    return {"source": "custom_node", "name": path.stem, "info": {"node_pack": f"custom_nodes.{PACK}"}}
