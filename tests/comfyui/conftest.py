"""A real ComfyUI with the pack in it, as a server and as a process that runs one check.

Needs COMFYUI_PATH (a checkout); COMFYUI_PYTHON names the Python that has ComfyUI's packages, if it is another one.
"""

import contextlib
import functools
import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
INSIDE = Path(__file__).with_name("inside")
_spec = importlib.util.spec_from_file_location("fewstep_test_client", Path(__file__).with_name("client.py"))
client = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(client)


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


@functools.cache
def _numbers(check):
    path, python = comfyui()
    done = subprocess.run([python, str(INSIDE), check], cwd=path, capture_output=True, text=True, timeout=570)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="session")
def numbers():
    """numbers("file.function") -> what that check in ``inside/`` found in ComfyUI's own process."""
    return _numbers


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


@pytest.fixture(scope="session")
def comfy_folder(tmp_path_factory):
    """The base directory of the real server."""
    return lay(tmp_path_factory.mktemp("comfyui"))


@pytest.fixture(scope="session")
def comfy_server():
    """comfy_server(folder) -> a context with a real server on that base directory."""

    @contextlib.contextmanager
    def start(folder):
        path, python = comfyui()
        lay(folder)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [python, str(INSIDE / "launch.py"), "--cpu", "--port", str(port), "--base-directory", str(folder),
                   "--disable-api-nodes"]
        with client.started(command, folder / "log.txt", {**os.environ, "COMFYUI_PATH": path}) as process:
            yield client.Server(f"http://127.0.0.1:{port}", process)

    return start


@pytest.fixture(scope="session")
def server(comfy_server, comfy_folder):
    """The real server."""
    with comfy_server(comfy_folder) as running:
        yield running


@pytest.fixture(scope="session")
def embedded(tmp_path_factory):
    """``fewstep serve`` in a process of its own, with an empty page as the frontend."""
    folder = tmp_path_factory.mktemp("embedded")
    (folder / "fewstep").symlink_to(ROOT)
    (folder / "page").mkdir()
    (folder / "page" / "index.html").write_text("<html></html>")
    command = [sys.executable, "-m", "fewstep", "serve", "--port", "0", "--out", str(folder / "out"), "--frontend", str(folder / "page")]
    with client.started(command, folder / "log.txt", {**os.environ, "PYTHONPATH": str(folder)}, folder) as process:
        yield client.Server(process.wait_for_address(), process)


@pytest.fixture(params=["server", "embedded"], ids=["comfyui", "embedded"])
def either(request):
    """Each of the two servers in turn: they should behave alike."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def defaults():
    """defaults(node id) -> every widget of a node of the pack at its default."""
    import fewstep

    def of(name):
        values = {}
        for inputs in fewstep.NODE_CLASS_MAPPINGS[name].INPUT_TYPES().values():
            for label, (kind, *options) in inputs.items():
                if isinstance(kind, list) or "default" in (options or [{}])[0]:
                    values[label] = options[0].get("default", kind[0] if isinstance(kind, list) else None)
        return values

    return of


@pytest.fixture(scope="session")
def graph(defaults):
    """graph(form, solver node, seed=, steps=, **inputs of SamplerCustom) -> demo model, solver, schedule, SamplerCustom, preview."""

    def make(form, solver, steps=6, seed=5, **custom):
        return {
            "1": {"class_type": "FewStepDemoCheckpoint", "inputs": {"form": form}},
            "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "3"}},
            "3": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": ""}},
            "4": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 2}},
            "5": {"class_type": solver, "inputs": defaults(solver)},
            "6": {"class_type": "FewStepSchedule", "inputs": {**defaults("FewStepSchedule"), "model": ["1", 0], "steps": steps}},
            "7": {"class_type": "SamplerCustom", "inputs": {
                "model": ["1", 0], "add_noise": True, "noise_seed": seed, "cfg": 2.0, "positive": ["2", 0], "negative": ["3", 0],
                "sampler": ["5", 0], "sigmas": ["6", 0], "latent_image": ["4", 0], **custom}},
            "8": {"class_type": "VAEDecode", "inputs": {"samples": ["7", 0], "vae": ["1", 2]}},
            "9": {"class_type": "PreviewImage", "inputs": {"images": ["8", 0]}},
        }

    return make
