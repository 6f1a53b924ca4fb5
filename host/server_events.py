"""Events to the browser: a websocket per client, with JSON texts and binary previews, sent in order from any thread."""

from __future__ import annotations

import asyncio
import io
import json
import struct
import uuid
from collections.abc import Callable
from typing import Any

import torch
from aiohttp import WSMsgType, web

from .server_json import dumps

MAX_WAITING = 2000  # messages of a client that does not read; then it is cut off and may come back
PREVIEW_SIDE = 512
FEATURES = {"supports_preview_metadata": True}


class Client:
    """One open websocket, with the messages that wait to be sent."""

    def __init__(self, socket: web.WebSocketResponse) -> None:
        self.socket = socket
        self.features: dict[str, Any] = {}
        self.waiting: asyncio.Queue[str | bytes] = asyncio.Queue()

    async def write(self) -> None:
        """Sends what waits, until the socket closes."""
        while not self.socket.closed:
            message = await self.waiting.get()
            try:
                if isinstance(message, bytes):
                    await self.socket.send_bytes(message)
                else:
                    await self.socket.send_str(message)
            except (ConnectionError, RuntimeError):
                return


class Events:
    """All open websockets by client id.

    Attributes:
        greeting: makes the messages for a client that has just come (back).
        max_upload: told to clients, in bytes.
    """

    def __init__(self, max_upload: int) -> None:
        self.clients: dict[str, Client] = {}
        self.greeting: Callable[[str], list[tuple[str, dict[str, Any]]]] = lambda client_id: []
        self.max_upload = max_upload
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Takes the running loop as the one that sends."""
        self._loop = asyncio.get_running_loop()

    def features(self) -> dict[str, Any]:
        """What the server can do, in the host's names."""
        return {**FEATURES, "max_upload_size": self.max_upload}

    def send(self, event: str, data: dict[str, Any], client_id: str | None = None) -> None:
        """Sends an event to a client, or to all; may be called from any thread."""
        self._later(dumps({"type": event, "data": data}), client_id)

    def send_preview(self, jpeg: bytes, where: dict[str, Any], client_id: str) -> None:
        """Sends a preview picture in the form that the client asked for."""
        client = self.clients.get(client_id)
        if client is None:
            return
        if client.features.get("supports_preview_metadata"):
            text = json.dumps({**where, "image_type": "image/jpeg"}).encode()
            self._later(struct.pack(">II", 4, len(text)) + text + jpeg, client_id)
        else:
            self._later(struct.pack(">II", 1, 1) + jpeg, client_id)

    def _later(self, message: str | bytes, client_id: str | None) -> None:
        if self._loop is None:
            return
        try:
            self._loop.call_soon_threadsafe(self._put, message, client_id)
        except RuntimeError:  # the loop is closed: the server is going down
            return

    def _put(self, message: str | bytes, client_id: str | None) -> None:
        chosen = list(self.clients.values()) if client_id is None else [self.clients.get(client_id)]
        for client in chosen:
            if client is None:
                continue
            if client.waiting.qsize() < MAX_WAITING:
                client.waiting.put_nowait(message)
            else:
                self.clients = {key: value for key, value in self.clients.items() if value is not client}

    async def handle(self, request: web.Request) -> web.WebSocketResponse:
        """GET /ws?clientId=ID: an open websocket until the client leaves."""
        socket = web.WebSocketResponse(heartbeat=30)
        await socket.prepare(request)
        client_id = request.query.get("clientId") or uuid.uuid4().hex
        client = self.clients[client_id] = Client(socket)
        for event, data in self.greeting(client_id):
            client.waiting.put_nowait(dumps({"type": event, "data": data}))
        writer = asyncio.create_task(client.write())
        try:
            async for message in socket:
                if message.type == WSMsgType.TEXT:
                    self._receive(client, message.data)
        finally:
            writer.cancel()
            if self.clients.get(client_id) is client:
                del self.clients[client_id]
        return socket

    def _receive(self, client: Client, text: str) -> None:
        try:
            message = json.loads(text)
        except (ValueError, RecursionError):
            return
        if isinstance(message, dict) and message.get("type") == "feature_flags" and isinstance(message.get("data"), dict):
            client.features = message["data"]
            client.waiting.put_nowait(dumps({"type": "feature_flags", "data": self.features()}))

    async def close(self) -> None:
        """Closes every websocket."""
        for client in list(self.clients.values()):
            await client.socket.close(code=1001, message=b"the server stops")


def jpeg_of(denoised: torch.Tensor) -> bytes | None:
    """The first picture of the present x_0 (demo latents, [B, 4, h, w]) as JPEG; None for latents of another shape."""
    from PIL import Image

    from ..nodes.demo_parts import DemoVAE

    if denoised.ndim != 4 or denoised.shape[1] != 4:
        return None
    pixels = DemoVAE().decode(denoised[:1].detach())[0]
    picture = Image.fromarray((pixels.float() * 255).clamp(0, 255).to(torch.uint8).numpy())
    picture.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    file = io.BytesIO()
    picture.save(file, format="JPEG", quality=90)
    return file.getvalue()
