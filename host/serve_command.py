"""``fewstep serve``: the browser interface."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import typer

LOOPBACK = "127.0.0.1"
DemoCheckpoint = Annotated[bool, typer.Option(
    "--demo-checkpoint", help="Load Checkpoint gives the demo model, so that the default graph runs.")]


def serve(
    listen: Annotated[str, typer.Option("--listen", help="Address to listen on; 0.0.0.0 lets others in.")] = LOOPBACK,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port; 0 takes any free one.")] = 8188,
    out: Annotated[Path, typer.Option("--out", help="Folder for pictures, uploads and saved workflows.")] = Path("out"),
    frontend: Annotated[Path | None, typer.Option("--frontend", help="Folder with another version of the frontend.")] = None,
    demo_checkpoint: DemoCheckpoint = False,
    max_upload: Annotated[int, typer.Option("--max-upload", min=1, help="Largest request in MB.")] = 100,
) -> None:
    """Serve ComfyUI's own browser interface with FewStep's nodes and the demo model, without ComfyUI.

    It needs the frontend's package: pip install comfyui-frontend-package==1.35.9. Stop it with Ctrl-C.

    Exit codes: 0 stopped, 1 an error, 2 bad input.
    """
    from .cli import exit_codes

    with exit_codes():
        from .errors import HostInputError

        try:
            from .server import Options, serve
        except ModuleNotFoundError as error:
            if error.name != "aiohttp":
                raise
            raise HostInputError("the server needs the package 'aiohttp': pip install 'fewstep[host]'") from error
        from .embedded import EmbeddedHost

        options = Options(listen, port, frontend, demo_checkpoint, max_upload * 2**20)
        if not options.only_loopback:
            print(
                f"fewstep: warning: listening on {listen}: everyone who can reach this machine can run workflows and read the "
                "pictures; there is no password", file=sys.stderr,
            )
        asyncio.run(serve(EmbeddedHost(out), options, lambda url: print(f"FewStep serves on {url}  (Ctrl-C stops)", flush=True)))


def register(app: typer.Typer) -> None:
    """Adds the command to ``app``."""
    app.command()(serve)
