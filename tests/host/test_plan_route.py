"""POST /fewstep/plan over a socket."""

import asyncio
import io
import json
import types

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from fewstep.host.embedded import EmbeddedHost
from fewstep.host.server import Options, make_app
from fewstep.nodes import plan_route

PROMPT = {"1": {"class_type": "FewStepDDIM", "inputs": {"prediction": "eps", "eta": 0.0, "s_noise": 1.0}}}


def talk(folder, *bodies):
    """[(status, answer)...] of requests."""
    (folder / "index.html").write_text("<html></html>")

    async def main():
        async with TestClient(TestServer(make_app(EmbeddedHost(folder / "out"), Options(frontend=folder)))) as client:
            answers = [await client.post(f"{prefix}/fewstep/plan", data=body if isinstance(body, str) else io.BytesIO(body)) for body in bodies for prefix in ("", "/api")]
            return [(answer.status, await answer.json()) for answer in answers]

    return asyncio.run(main())


@pytest.mark.parametrize(("body", "status", "kind"), [
    (json.dumps({"prompt": PROMPT, "node": "1"}), 200, None), (b"{", 400, "Malformed"), (b"\xff\xfe", 400, "Malformed"),
    (b"[" * 100_000, 400, "Malformed"), (b"[]", 400, "Malformed"),
    (json.dumps({"prompt": PROMPT, "node": "2"}), 400, "Malformed"), (b" " * (plan_route.MAX_BODY + 1), 413, "Oversized"),
])
def test_answers(body, status, kind, tmp_path):
    for found, answer in talk(tmp_path, body):
        assert found == status and answer.get("error", {}).get("type") == kind
        assert kind or (answer["nfe"] == 8 and not answer["basis"]["known"])


def test_a_running_comfyui_gets_the_route_and_a_changed_one_is_only_logged(monkeypatch, caplog):
    routes = web.RouteTableDef()
    server = types.SimpleNamespace(PromptServer=types.SimpleNamespace(instance=types.SimpleNamespace(routes=routes)))
    monkeypatch.setitem(__import__("sys").modules, "server", server)
    assert plan_route.install()
    assert [(r.method, r.path, r.handler) for r in routes] == [("POST", "/fewstep/plan", plan_route.handle)]
    server.PromptServer.instance = None
    assert not plan_route.install() and "cannot be drawn" in caplog.text
