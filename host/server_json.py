"""JSON that every browser can read, and requests' bodies."""

from __future__ import annotations

import json
import math
from typing import Any

from aiohttp import web


class BadRequest(web.HTTPBadRequest):
    """400 with the reason as text."""

    def __init__(self, reason: str) -> None:
        super().__init__(text=reason)


def dumps(data: Any) -> str:
    """JSON; NaN and infinities, which JSON does not have, become null, and what is no JSON at all becomes its text."""
    try:
        return json.dumps(data, allow_nan=False)
    except (ValueError, TypeError):
        return json.dumps(_clean(data))


def respond(data: Any, status: int = 200) -> web.Response:
    """``data`` as a JSON response."""
    return web.json_response(text=dumps(data), status=status)


def parse(text: bytes) -> Any:
    """The JSON in a request. Raises BadRequest where it cannot be read."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON: {error}") from error


async def body_of(request: web.Request) -> dict[str, Any]:
    """The JSON object in a request; an empty body is an empty object. Raises BadRequest for anything else."""
    text = await request.read()
    data = parse(text) if text.strip() else {}
    if not isinstance(data, dict):
        raise BadRequest(f"the body is a JSON {type(data).__name__}, expected an object")
    return data


def integer(request: web.Request, name: str, default: int | None, low: int = 0) -> int | None:
    """A whole number of at least ``low`` from the query. Raises BadRequest."""
    text = request.query.get(name)
    if text is None:
        return default
    try:
        value = int(text)
    except ValueError:
        raise BadRequest(f"{name} is {text!r}, expected a whole number") from None
    if value < low:
        raise BadRequest(f"{name} is {value}, expected at least {low}")
    return value


def _clean(data: Any) -> Any:
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, dict):
        return {str(key): _clean(value) for key, value in data.items()}
    if isinstance(data, (list, tuple, set)):
        return [_clean(value) for value in data]
    return data if isinstance(data, (str, int, bool)) or data is None else str(data)
