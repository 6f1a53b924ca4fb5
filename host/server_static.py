"""Files: the frontend, the pack's extensions and example workflows, pictures to view and pictures that come in."""

from __future__ import annotations

import importlib.util
import json
import mimetypes
from pathlib import Path
from typing import Any

from aiohttp import web

from .errors import HostInputError
from .files import inside
from .server_json import BadRequest, respond

PACK = "fewstep"
ROOT = Path(__file__).resolve().parents[1]
MISSING = (
    "the page itself is not installed: pip install comfyui-frontend-package==1.35.9 (or name a folder with --frontend DIR)"
)
SCRIPTS = {"text/html", "application/xhtml+xml", "text/javascript", "application/javascript", "text/css", "image/svg+xml",
           "application/xml", "text/xml"}


def find_frontend(folder: Path | None = None) -> Path:
    """The folder with the frontend's index.html: inside ``folder``, or of the installed wheel.

    Raises HostInputError where there is none.
    """
    if folder is None:
        spec = importlib.util.find_spec("comfyui_frontend_package")
        places = [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
    else:
        places = [folder, folder / "comfyui_frontend_package"]
    for place in places:
        for candidate in (place, place / "static"):
            if (candidate / "index.html").is_file():
                return candidate.resolve()
    raise HostInputError(MISSING if folder is None else f"{folder} has no index.html, nor a folder 'static' with one")


def as_data(path: Path) -> web.FileResponse:
    """A stored file. What a browser would run is sent as a download."""
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return web.FileResponse(path, headers={
        "Content-Type": "application/octet-stream" if kind in SCRIPTS else kind, "X-Content-Type-Options": "nosniff",
    })


def add_routes(routes: web.RouteTableDef, folders: dict[str, Path], web_folder: Path, examples: Path) -> None:
    """Adds /view, /upload, /extensions and /workflow_templates; ``folders``: input, output and temp."""

    @routes.get("/view")
    async def view(request: web.Request) -> web.StreamResponse:
        filename = request.query.get("filename", "")
        folder = folders.get(request.query.get("type", "output"))
        if not filename or folder is None or filename.startswith("/") or ".." in filename or "\0" in filename:
            raise BadRequest("filename or type cannot be used")
        path = inside(folder, request.query.get("subfolder", ""), filename)
        if path is None:
            raise web.HTTPForbidden(text="the file is outside of its folder")
        if not path.is_file():
            raise web.HTTPNotFound(text="there is no such file")
        response = as_data(path)
        response.headers["Content-Disposition"] = f'filename="{path.name}"'.encode("latin-1", "replace").decode("latin-1")
        return response

    @routes.post("/upload/image")
    async def upload(request: web.Request) -> web.Response:
        fields = await request.post()
        image = fields.get("image")
        if not isinstance(image, web.FileField) or not image.filename:
            raise BadRequest("there is no file in the field 'image'")
        kind, subfolder = str(fields.get("type", "input")), str(fields.get("subfolder", ""))
        if kind not in folders:
            raise BadRequest(f"type is {kind!r}, expected one of {', '.join(folders)}")
        path = inside(folders[kind], subfolder, image.filename)
        if path is None or path == folders[kind].resolve():
            raise web.HTTPForbidden(text="the file would be outside of its folder")
        content = image.file.read()
        if str(fields.get("overwrite", "")).lower() not in ("true", "1"):
            path = _free_name(path, content)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        where = path.parent.relative_to(folders[kind].resolve()).as_posix()
        return respond({"name": path.name, "subfolder": "" if where == "." else where, "type": kind})

    @routes.get("/extensions")
    async def extensions(request: web.Request) -> web.Response:
        scripts = sorted(web_folder.rglob("*.js")) if web_folder.is_dir() else []
        return respond([f"/extensions/{PACK}/{script.relative_to(web_folder).as_posix()}" for script in scripts])

    @routes.get(f"/extensions/{PACK}/{{path:.+}}")
    async def extension(request: web.Request) -> web.StreamResponse:
        return _static(web_folder, request.match_info["path"])

    @routes.get("/workflow_templates")
    async def templates(request: web.Request) -> web.Response:
        names = sorted(path.stem for path in examples.glob("*.json")) if examples.is_dir() else []
        return respond({PACK: names} if names else {})

    @routes.get(f"/workflow_templates/{PACK}/{{path:.+}}")
    async def template(request: web.Request) -> web.StreamResponse:
        return _static(examples, request.match_info["path"])


def add_frontend(app: web.Application, frontend: Path) -> None:
    """Serves the frontend at /; to be added last. The page itself is never kept by browsers, so that versions do not mix."""

    async def index(request: web.Request) -> web.StreamResponse:
        return web.FileResponse(frontend / "index.html", headers={"Cache-Control": "no-cache", "Pragma": "no-cache"})

    async def no_style(request: web.Request) -> web.Response:  # the page's link; the user's own style is in the userdata
        return web.Response(content_type="text/css")

    async def no_icon(request: web.Request) -> web.Response:
        return web.Response(status=204)

    for path in ("/", "/api/"):
        app.router.add_get(path, index)
    app.router.add_get("/user.css", no_style)
    app.router.add_get("/favicon.ico", no_icon)
    app.router.add_static("/", frontend)


def _static(folder: Path, name: str) -> web.FileResponse:
    path = inside(folder, name)
    if path is None:
        raise web.HTTPForbidden(text="the file is outside of its folder")
    if not path.is_file():
        raise web.HTTPNotFound(text="there is no such file")
    return web.FileResponse(path, headers={"Cache-Control": "no-cache"})


def _free_name(path: Path, content: bytes) -> Path:
    """``path``, or ``name (1)`` and on where other content has the name."""
    number, candidate = 0, path
    while candidate.exists() and not (candidate.is_file() and candidate.read_bytes() == content):
        number += 1
        candidate = path.with_name(f"{path.stem} ({number}){path.suffix}")
    return candidate


def read_json(path: Path) -> Any:
    """A JSON file; None if it is not there or is none."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
