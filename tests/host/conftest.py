"""The same fixtures as for the nodes, and the command line."""

import asyncio
import importlib.util
from pathlib import Path

import pytest

_path = Path(__file__).resolve().parents[1] / "nodes" / "conftest.py"
_spec = importlib.util.spec_from_file_location("fewstep_test_fixtures", _path)
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
gaussian, host, text = _module.gaussian, _module.host, _module.text


@pytest.fixture
def cli(gaussian, monkeypatch, tmp_path):
    """cli(*words) -> result, in an empty folder and with the Gaussian model as the demo."""
    from fewstep.host.cli import app
    from typer.testing import CliRunner

    monkeypatch.setattr("fewstep.nodes.demo_parts.load_demo", gaussian.load)
    monkeypatch.chdir(tmp_path)
    return lambda *words: CliRunner().invoke(app, [str(w) for w in words])


@pytest.fixture
def page(tmp_path):
    """A stand-in for the frontend's folder."""
    folder = tmp_path / "frontend"
    folder.mkdir()
    (folder / "index.html").write_text("<html>page</html>")
    return folder


@pytest.fixture
def serve(gaussian, page, tmp_path):
    """serve(coroutine function of a client, **options): runs it against a server on a free port."""

    def run(talk, **options):
        from aiohttp.test_utils import TestClient, TestServer
        from fewstep.host.embedded import EmbeddedHost
        from fewstep.host.server import Options, make_app

        async def main():
            host = EmbeddedHost(tmp_path / "out", load_demo=gaussian.load)
            app = make_app(host, Options(frontend=page, **options))
            async with TestClient(TestServer(app)) as client:
                return await asyncio.wait_for(talk(client), 60)

        return asyncio.run(main())

    return run
