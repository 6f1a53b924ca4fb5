"""A real ComfyUI with the pack in it, as a server and as a process that runs one check.

Needs COMFYUI_PATH (a checkout); COMFYUI_PYTHON names the Python that has ComfyUI's packages, if it is another one.
"""

import functools
import json
import os
import subprocess
import sys

import client
import pytest
from comfyui_server import INSIDE, ROOT, comfyui, lay, running


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


@pytest.fixture(scope="session")
def comfy_folder(tmp_path_factory):
    """The base directory of the real server."""
    return lay(tmp_path_factory.mktemp("comfyui"))


@pytest.fixture(scope="session")
def comfy_server():
    """comfy_server(folder) -> a context with a real server on that base directory."""
    return running


@pytest.fixture(scope="session")
def server(comfy_server, comfy_folder):
    """The real server."""
    with comfy_server(comfy_folder) as started:
        yield started


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
