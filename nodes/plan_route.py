"""POST /fewstep/plan: the plan of a node of a graph that has not run. The same handler serves ComfyUI and the embedded server."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aiohttp import web

log = logging.getLogger("fewstep")
PATH = "/fewstep/plan"
MAX_BODY = 2**20  # bytes; the browser leaves long texts out
_one_at_a_time: asyncio.Semaphore | None = None


async def handle(request: web.Request) -> web.Response:
    """200 with a plan or its error, 400 for a malformed request, 413 for an oversized one; see ``live_plan``."""
    from aiohttp import web

    from .live_plan import Malformed, live_plan

    def answer(status: int, data: Any) -> web.Response:
        return web.json_response(data, status=status)

    body = bytearray()
    async for chunk in request.content.iter_chunked(65536):
        body += chunk
        if len(body) > MAX_BODY:
            return answer(413, {"error": {"type": "Oversized", "message": f"the request has more than {MAX_BODY} bytes"}})
    try:
        return answer(200, await _in_turn(live_plan, json.loads(bytes(body))))
    except (ValueError, RecursionError) as error:
        if not isinstance(error, (Malformed, json.JSONDecodeError, UnicodeDecodeError, RecursionError)):
            raise
        return answer(400, {"error": {"type": "Malformed", "message": str(error)}})


async def _in_turn(function: Any, data: Any) -> Any:
    """Runs ``function`` in a thread, one request after the other: drawing must not take the run's processors."""
    global _one_at_a_time
    if _one_at_a_time is None:
        _one_at_a_time = asyncio.Semaphore(1)
    async with _one_at_a_time:
        return await asyncio.to_thread(function, data)


def install() -> bool:
    """Adds the route to a running ComfyUI; False where there is none or it has changed, which is logged."""
    try:
        server = sys.modules["server"].PromptServer.instance
        server.routes.post(PATH)(handle)
    except (KeyError, AttributeError) as error:
        log.warning("FewStep: plans cannot be drawn in the nodes: %s %s", type(error).__name__, error)
        return False
    return True
