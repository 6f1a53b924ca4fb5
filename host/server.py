"""The server behind ``fewstep serve``: ComfyUI's own frontend on the embedded host, in ComfyUI's protocol."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from ..nodes import plan_route
from ..nodes.host import use_host
from . import server_info, server_jobs, server_pack, server_static, server_userdata
from .embedded import EmbeddedHost
from .errors import HostInputError, WorkflowError
from .executor import all_classes
from .server_events import Events
from .server_guard import guard, is_loopback
from .server_json import BadRequest, body_of, integer, respond
from .server_queue import PromptQueue

log = logging.getLogger("fewstep")
QUEUE: web.AppKey[PromptQueue] = web.AppKey("queue", PromptQueue)


@dataclass(frozen=True)
class Options:
    """How to serve.

    Attributes:
        listen, port: the address; only this machine by default.
        frontend: folder with another frontend than the installed wheel's.
        demo_checkpoint: CheckpointLoaderSimple gives the demo model.
        max_body: largest request, in bytes.
    """

    listen: str = "127.0.0.1"
    port: int = 8188
    frontend: Path | None = None
    demo_checkpoint: bool = False
    max_body: int = 100 * 2**20

    @property
    def only_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        return is_loopback(self.listen)


def make_app(host: EmbeddedHost, options: Options | None = None) -> web.Application:
    """The application; its queue starts and stops with it.

    Args:
        host: runs the workflows; the browser's files go to ``user`` in its output folder.

    Raises HostInputError where there is no frontend.
    """
    options = options or Options()
    frontend = server_static.find_frontend(options.frontend)
    nodes = all_classes(options.demo_checkpoint)
    events = Events(options.max_body)
    queue = PromptQueue(host, nodes, events)
    folders = {"output": host.output_directory, "temp": host.temp_directory, "input": host.input_directory}

    routes = web.RouteTableDef()
    routes.get("/ws")(events.handle)
    _add_prompt(routes, queue)
    _add_queue(routes, queue)
    routes.post(plan_route.PATH)(plan_route.handle)
    server_jobs.add_routes(routes, queue)
    server_info.add_routes(routes, nodes, events.features())
    server_userdata.add_routes(routes, host.output_directory / "user")
    server_pack.add_routes(routes, server_static.ROOT)
    server_static.add_routes(routes, folders, server_static.ROOT / "web", server_static.ROOT / "example_workflows")

    app = web.Application(
        client_max_size=options.max_body, middlewares=[guard(options.only_loopback, options.max_body)]  # type: ignore[list-item]
    )
    for route in routes:
        assert isinstance(route, web.RouteDef)
        for prefix in ("", "/api"):
            web.RouteDef(route.method, prefix + route.path, route.handler, route.kwargs).register(app.router)
    server_static.add_frontend(app, frontend)
    app[QUEUE] = queue

    async def known(app: web.Application) -> AsyncIterator[None]:
        with use_host(host):  # for all threads: nodes describe and check themselves by the host's folders
            yield

    async def start(app: web.Application) -> None:
        events.start()
        queue.start()

    async def leave(app: web.Application) -> None:
        await events.close()

    async def stop(app: web.Application) -> None:
        await asyncio.to_thread(queue.stop)

    app.cleanup_ctx.append(known)
    app.on_startup.append(start)
    app.on_shutdown.append(leave)
    app.on_cleanup.append(stop)
    return app


def _add_prompt(routes: web.RouteTableDef, queue: PromptQueue) -> None:
    @routes.get("/prompt")
    async def info(request: web.Request) -> web.Response:
        return respond(queue.info())

    @routes.post("/prompt")
    async def submit(request: web.Request) -> web.Response:
        try:
            return respond(queue.submit(await body_of(request)))
        except WorkflowError as error:
            return respond(error.as_response(), 400)

    @routes.post("/interrupt")
    async def interrupt(request: web.Request) -> web.Response:
        prompt_id = (await body_of(request)).get("prompt_id")
        queue.interrupt(None if prompt_id is None else str(prompt_id))
        return web.Response()

    @routes.post("/free")
    async def free(request: web.Request) -> web.Response:
        body = await body_of(request)
        if body.get("free_memory") or body.get("unload_models"):
            queue.free()
        return web.Response()


def _add_queue(routes: web.RouteTableDef, queue: PromptQueue) -> None:
    @routes.get("/queue")
    async def rows(request: web.Request) -> web.Response:
        running, waiting = queue.rows()
        return respond({"queue_running": running, "queue_pending": waiting})

    @routes.post("/queue")
    async def change_queue(request: web.Request) -> web.Response:
        await _remove(request, queue.remove)
        return web.Response()

    @routes.get("/history")
    async def history(request: web.Request) -> web.Response:
        return respond(queue.history(max_items=integer(request, "max_items", None), offset=integer(request, "offset", None)))

    @routes.get("/history/{prompt_id}")
    async def entry(request: web.Request) -> web.Response:
        return respond(queue.history(request.match_info["prompt_id"]))

    @routes.post("/history")
    async def change_history(request: web.Request) -> web.Response:
        await _remove(request, queue.forget)
        return web.Response()


async def _remove(request: web.Request, remove: Callable[..., None]) -> None:
    """{"clear": true} or {"delete": [ids]}."""
    body = await body_of(request)
    if body.get("clear"):
        remove()
    if "delete" in body:
        if not isinstance(body["delete"], list):
            raise BadRequest("delete is no list of ids")
        remove([str(i) for i in body["delete"]])


async def serve(host: EmbeddedHost, options: Options, ready: Callable[[str], None] = print) -> None:
    """Serves until the process is interrupted; ``ready`` gets the address.

    Raises HostInputError where the address cannot be used.
    """
    runner = web.AppRunner(make_app(host, options), access_log=None, shutdown_timeout=2.0)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, options.listen, options.port).start()
        except OSError as error:
            raise HostInputError(f"cannot listen on {options.listen} port {options.port}: {error.strerror or error}") from error
        name, port = runner.addresses[0][:2]
        ready(f"http://{f'[{name}]' if ':' in name else name}:{port}")
        done = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            with suppress(NotImplementedError):  # Windows raises KeyboardInterrupt instead
                loop.add_signal_handler(number, done.set)
        await done.wait()
    finally:
        await runner.cleanup()
