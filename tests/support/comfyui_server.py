"""A real ComfyUI with the pack in it. COMFYUI_PATH names a checkout, COMFYUI_PYTHON the Python that has its packages."""

import contextlib
import os
import socket
import sys
from pathlib import Path

import client
import pytest

ROOT = Path(__file__).resolve().parents[2]
INSIDE = ROOT / "tests" / "comfyui" / "inside"
OTHER_PACK = """
from . import host, nodes, samplers

class OtherNode:
    RETURN_TYPES, FUNCTION, OUTPUT_NODE, CATEGORY = (), "go", True, "other"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def go(self):
        return {"ui": {"text": [nodes.WHO, samplers.WHO, host.WHO]}}

NODE_CLASS_MAPPINGS = {"OtherNode": OtherNode}
"""


def comfyui():
    """(checkout, its Python); skips the test where there is none."""
    path = os.environ.get("COMFYUI_PATH")
    if not path:
        pytest.skip("COMFYUI_PATH is not set: it names a ComfyUI checkout to test the pack in")
    return path, os.environ.get("COMFYUI_PYTHON", sys.executable)


def lay(base):
    """A base directory of ComfyUI with the pack in it."""
    (base / "custom_nodes").mkdir(exist_ok=True)
    if not (base / "custom_nodes" / "few-step.pack").exists():
        (base / "custom_nodes" / "few-step.pack").symlink_to(ROOT)
    (base / "models" / "loras").mkdir(parents=True, exist_ok=True)
    other = base / "custom_nodes" / "other_pack"  # with folders of the same names as the pack's
    for folder in ("nodes", "samplers", "host"):
        (other / folder).mkdir(parents=True, exist_ok=True)
        (other / folder / "__init__.py").write_text(f"WHO = 'other {folder}'\n")
    (other / "__init__.py").write_text(OTHER_PACK)
    return base


@contextlib.contextmanager
def running(folder):
    """A server on that base directory."""
    path, python = comfyui()
    lay(folder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [python, str(INSIDE / "launch.py"), "--cpu", "--port", str(port), "--base-directory", str(folder), "--disable-api-nodes"]
    with client.started(command, folder / "log.txt", {**os.environ, "COMFYUI_PATH": path}) as process:
        yield client.Server(f"http://127.0.0.1:{port}", process)
