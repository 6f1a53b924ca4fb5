"""What the server refuses: other sites' requests and too large bodies."""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def is_loopback(name: str | None) -> bool:
    """Whether a host name means this machine itself; nothing is looked up."""
    if not name:
        return False
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def guard(only_loopback: bool, max_body: int) -> Handler:
    """The middleware.

    A page of another site may not talk to a server on this machine: its Origin must be the Host, and browsers' own mark of
    requests across sites is heeded (links are fine). ``only_loopback``: the Host must be a name of this machine too, which
    stops pages whose name was made to point here.
    """

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        reason = _foreign(request, only_loopback)
        if reason:
            raise web.HTTPForbidden(text=reason)
        if request.content_length is not None and request.content_length > max_body:
            raise web.HTTPRequestEntityTooLarge(max_body, request.content_length)
        response = await handler(request)
        if not response.prepared:
            response.headers.setdefault("X-Content-Type-Options", "nosniff")
        return response

    return middleware  # type: ignore[return-value]


def _foreign(request: web.Request, only_loopback: bool) -> str:
    """Why a request counts as another site's; empty if it does not."""
    try:
        host = urlsplit("//" + request.headers.get("Host", "").lower())
        origin = urlsplit(request.headers.get("Origin", "").lower())
        here, there = (host.hostname, host.port), (origin.hostname, origin.port)
    except ValueError:
        return "Host or Origin cannot be read"
    local = is_loopback(here[0])
    if only_loopback and here[0] and not local:
        return f"the server listens on this machine only, it is not {here[0]}"
    if local and request.headers.get("Origin"):
        same = here[0] == there[0] and (here[1] == there[1] or None in (here[1], there[1]))
        if not same:
            return "the request comes from a page of another site"
    link = request.method == "GET" and request.headers.get("Sec-Fetch-Mode") == "navigate"
    if request.headers.get("Sec-Fetch-Site") == "cross-site" and not link:
        return "the request comes from a page of another site"
    return ""
