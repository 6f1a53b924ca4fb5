"""What the browser keeps at the server: settings, and the user's files such as saved workflows."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from aiohttp import web

from .files import inside
from .server_json import BadRequest, body_of, dumps, parse, respond
from .server_static import as_data, read_json

DEFAULTS: dict[str, Any] = {"Comfy.TutorialCompleted": True}  # without it the gallery of templates opens at the first start


def write(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".partial-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def add_routes(routes: web.RouteTableDef, folder: Path) -> None:
    """Adds /users, /settings and /userdata, all stored in ``folder``."""
    _add_settings(routes, folder / "comfy.settings.json")
    _add_files(routes, folder)


def _add_settings(routes: web.RouteTableDef, path: Path) -> None:
    def load() -> dict[str, Any]:
        stored = read_json(path)
        return {**DEFAULTS, **(stored if isinstance(stored, dict) else {})}

    @routes.get("/users")
    async def users(request: web.Request) -> web.Response:
        return respond({"storage": "server", "migrated": True})

    @routes.get("/settings")
    async def settings(request: web.Request) -> web.Response:
        return respond(load())

    @routes.get("/settings/{name}")
    async def setting(request: web.Request) -> web.Response:
        return respond(load().get(request.match_info["name"]))

    @routes.post("/settings")
    async def store_all(request: web.Request) -> web.Response:
        write(path, dumps({**load(), **await body_of(request)}).encode())
        return web.Response()

    @routes.post("/settings/{name}")
    async def store(request: web.Request) -> web.Response:
        write(path, dumps({**load(), request.match_info["name"]: parse(await request.read())}).encode())
        return web.Response()


def _add_files(routes: web.RouteTableDef, folder: Path) -> None:
    def place(request: web.Request, key: str = "file") -> Path:
        path = inside(folder, request.match_info[key])
        if path is None or path == folder.resolve():
            raise web.HTTPForbidden(text="the file is outside of the user's folder")
        return path

    def existing(request: web.Request) -> Path:
        path = place(request)
        if not path.is_file():
            raise web.HTTPNotFound(text="there is no such file")
        return path

    def answer(request: web.Request, path: Path) -> web.Response:
        full = request.query.get("full_info", "").lower() == "true"
        return respond(_facts(path, folder) if full else path.relative_to(folder.resolve()).as_posix())

    def check_free(request: web.Request, path: Path) -> None:
        if path.is_dir():
            raise BadRequest("this is a folder")
        if request.query.get("overwrite", "true").lower() == "false" and path.exists():
            raise web.HTTPConflict(text="the file is there already")

    @routes.get("/userdata")
    async def listing(request: web.Request) -> web.Response:
        base = inside(folder, request.query.get("dir", ""))
        if base is None:
            raise web.HTTPForbidden(text="the folder is outside of the user's folder")
        deep = request.query.get("recurse", "").lower() == "true"
        files = sorted(p for p in (base.rglob("*") if deep else base.glob("*")) if p.is_file()) if base.is_dir() else []
        if request.query.get("full_info", "").lower() == "true":
            return respond([_facts(path, base) for path in files])
        names = [path.relative_to(base).as_posix() for path in files]
        split = request.query.get("split", "").lower() == "true"
        return respond([[name, *name.split("/")] for name in names] if split else names)

    @routes.get("/v2/userdata")
    async def tree(request: web.Request) -> web.Response:
        base = inside(folder, request.query.get("path", ""))
        if base is None:
            raise web.HTTPForbidden(text="the folder is outside of the user's folder")
        if not base.is_dir():
            return respond([])
        entries = [
            {"name": p.name, "path": p.relative_to(folder.resolve()).as_posix(), "type": "directory"} if p.is_dir() else
            {"name": p.name, "type": "file", **_facts(p, folder)} for p in base.rglob("*")
        ]
        return respond(sorted(entries, key=lambda entry: (entry["type"], str(entry["name"]).lower())))

    @routes.get("/userdata/{file}")
    async def read(request: web.Request) -> web.StreamResponse:
        return as_data(existing(request))

    @routes.post("/userdata/{file}")
    async def save(request: web.Request) -> web.Response:
        path = place(request)
        check_free(request, path)
        try:
            write(path, await request.read())
        except OSError as error:
            raise BadRequest(f"the file cannot be written: {error.strerror}") from error
        return answer(request, path)

    @routes.delete("/userdata/{file}")
    async def delete(request: web.Request) -> web.Response:
        existing(request).unlink()
        return web.Response(status=204)

    @routes.post("/userdata/{file}/move/{dest}")
    async def move(request: web.Request) -> web.Response:
        source, dest = existing(request), place(request, "dest")
        check_free(request, dest)
        try:
            dest.parent.mkdir(parents=True, exist_ok=True)
            os.replace(source, dest)
        except OSError as error:
            raise BadRequest(f"the file cannot be moved: {error.strerror}") from error
        return answer(request, dest)


def _facts(path: Path, base: Path) -> dict[str, Any]:
    """Path, size and times in milliseconds."""
    state = path.stat()
    return {
        "path": path.relative_to(base.resolve()).as_posix(), "size": state.st_size, "modified": int(state.st_mtime * 1000),
        "created": int(state.st_ctime * 1000),
    }
