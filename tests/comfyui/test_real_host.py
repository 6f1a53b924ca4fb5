"""The pack in a real ComfyUI, through its API queue. Needs COMFYUI_PATH (a checkout); COMFYUI_PYTHON names the Python that
has ComfyUI's packages, if it is another one.
"""

import io
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / "example_workflows").glob("*.json"))

pytestmark = pytest.mark.skipif(
    not os.environ.get("COMFYUI_PATH"), reason="COMFYUI_PATH is not set: it names a ComfyUI checkout to test the pack in"
)


class Server:
    def __init__(self, port, log):
        self.url, self.log = f"http://127.0.0.1:{port}", log

    def get(self, path):
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            return answer.read()

    def json(self, path):
        return json.loads(self.get(path))

    def queue(self, prompt):
        request = urllib.request.Request(self.url + "/prompt", json.dumps({"prompt": prompt}).encode(), {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return json.loads(error.read())

    def run(self, prompt):
        """The history entry of a finished prompt."""
        queued = self.queue(prompt)
        assert "prompt_id" in queued, queued
        for _ in range(600):
            history = self.json(f"/history/{queued['prompt_id']}")
            if history:
                return history[queued["prompt_id"]]
            time.sleep(0.2)
        raise TimeoutError(self.log.read_text()[-2000:])

    def images(self, entry):
        assert entry["status"]["status_str"] == "success", entry["status"]
        files = [f for output in entry["outputs"].values() for f in output.get("images", ())]
        return [np.asarray(Image.open(io.BytesIO(self.get(f"/view?filename={f['filename']}&subfolder={f['subfolder']}&type={f['type']}")))) for f in files]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    base = tmp_path_factory.mktemp("comfyui")
    (base / "custom_nodes").mkdir()
    (base / "custom_nodes" / "fewstep").symlink_to(ROOT)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = base / "log.txt"
    command = [os.environ.get("COMFYUI_PYTHON", sys.executable), str(Path(__file__).with_name("launch.py")), "--cpu", "--port", str(port),
               "--base-directory", str(base), "--disable-api-nodes"]
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
    try:
        host = Server(port, log)
        for _ in range(240):
            assert process.poll() is None, log.read_text()[-3000:]
            try:
                host.get("/system_stats")
                break
            except OSError:
                time.sleep(0.5)
        yield host
    finally:
        process.terminate()
        process.wait(20)


def fewstep_nodes():
    import fewstep

    return fewstep.NODE_CLASS_MAPPINGS


def test_every_node_is_known_to_the_host(server):
    info = server.json("/object_info")
    for name, node in fewstep_nodes().items():
        assert name in info, f"{name} is missing: {server.log.read_text()[-2000:]}"
        assert info[name]["output"] == list(node.RETURN_TYPES)
        assert info[name]["category"].startswith("FewStep")
        for inputs in info[name]["input"].values():
            for label, spec in inputs.items():
                assert len(spec) == 1 or spec[1].get("tooltip"), f"{name}.{label} has no tooltip"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)
def test_a_workflow_gives_the_same_picture_here_and_there(server, path, tmp_path):
    from fewstep.host.embedded import EmbeddedHost
    from fewstep.host.executor import Executor
    from fewstep.host.workflows import load_workflow

    prompt, extra = load_workflow(path)
    theirs = server.images(server.run(prompt))
    result = Executor(EmbeddedHost(tmp_path)).execute(prompt, extra)
    files = [tmp_path / image["subfolder"] / image["filename"] for ui in result.ui.values() for image in ui.get("images", ())]
    ours = [np.asarray(Image.open(file)) for file in files]
    assert len(theirs) == len(ours) > 0
    for a, b in zip(theirs, ours, strict=True):
        assert a.shape == b.shape
        assert np.abs(a.astype(int) - b.astype(int)).max() <= 1  # one grey level: the hosts batch cond and uncond differently


SOLVER_NODES = [
    "FewStepDDIM", "FewStepDPMSolverMultistep", "FewStepDPMSolverSinglestep", "FewStepDPMSolverAdaptive", "FewStepDPMSolverSDE",
    "FewStepUniPC", "FewStepDEIS", "FewStepDEISRungeKutta", "FewStepIPNDM",
]


def graph(form, solver, **custom):
    """Demo model, one solver node, stock SamplerCustom."""
    return {
        "1": {"class_type": "FewStepDemoCheckpoint", "inputs": {"form": form}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "3"}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": ""}},
        "4": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 2}},
        "5": {"class_type": solver, "inputs": defaults(solver)},
        "6": {"class_type": "FewStepSchedule", "inputs": {**defaults("FewStepSchedule"), "model": ["1", 0], "steps": 6}},
        "7": {"class_type": "SamplerCustom", "inputs": {
            "model": ["1", 0], "add_noise": True, "noise_seed": 5, "cfg": 2.0, "positive": ["2", 0], "negative": ["3", 0],
            "sampler": ["5", 0], "sigmas": ["6", 0], "latent_image": ["4", 0], **custom}},
        "8": {"class_type": "VAEDecode", "inputs": {"samples": ["7", 0], "vae": ["1", 2]}},
        "9": {"class_type": "PreviewImage", "inputs": {"images": ["8", 0]}},
    }


def defaults(name):
    """Every widget of a node at its default."""
    spec = fewstep_nodes()[name].INPUT_TYPES()
    values = {}
    for inputs in spec.values():
        for label, entry in inputs.items():
            options = entry[1] if len(entry) > 1 else {}
            if isinstance(entry[0], list):
                values[label] = options.get("default", entry[0][0])
            elif "default" in options:
                values[label] = options["default"]
    return values


@pytest.mark.parametrize("form", ["eps", "v", "flow"])
@pytest.mark.parametrize("solver", SOLVER_NODES)
def test_every_solver_node_on_every_family(server, solver, form):
    images = server.images(server.run(graph(form, solver)))
    assert len(images) == 2
    for image in images:
        assert image.shape == (64, 64, 3) and image.std() > 20, "a digit has dark and light parts"


def test_stock_samplers_work_on_the_demo_model(server):
    prompt = graph("flow", "FewStepUniPC")
    prompt["5"] = {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}}
    prompt["6"] = {"class_type": "BasicScheduler", "inputs": {"model": ["1", 0], "scheduler": "simple", "steps": 8, "denoise": 1.0}}
    assert len(server.images(server.run(prompt))) == 2
    prompt["7"] = {"class_type": "KSampler", "inputs": {
        "model": ["1", 0], "seed": 1, "steps": 8, "cfg": 2.0, "sampler_name": "dpmpp_2m", "scheduler": "karras",
        "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0], "denoise": 1.0}}
    prompt["1"]["inputs"]["form"] = "eps"
    del prompt["5"], prompt["6"]
    assert len(server.images(server.run(prompt))) == 2


def test_faults_are_told_in_the_node_that_has_them(server):
    prompt = graph("eps", "FewStepUniPC")
    prompt["5"]["inputs"]["order"] = 99
    answer = server.queue(prompt)
    assert answer["node_errors"]["5"]["errors"][0]["type"] == "value_bigger_than_max"
    prompt = graph("eps", "FewStepUniPC")
    prompt["5"]["inputs"]["order"], prompt["6"]["inputs"]["steps"] = 3, 2
    entry = server.run(prompt)
    error = next(data for event, data in entry["status"]["messages"] if event == "execution_error")
    assert error["node_type"] == "SamplerCustom" and "order 3 needs at least 3 steps" in error["exception_message"]


def test_img2img_slices_and_masks_keep_what_they_should(server):
    """denoise below 1 starts from the given latent: the picture stays near it."""
    prompt = graph("flow", "FewStepUniPC")
    prompt["6"]["inputs"]["denoise"] = 0.3
    base = {**prompt, "10": {"class_type": "FewStepSchedule", "inputs": {**prompt["6"]["inputs"], "denoise": 1.0}},
            "11": {"class_type": "SamplerCustom", "inputs": {**prompt["7"]["inputs"], "sigmas": ["10", 0]}}}
    base["7"] = {"class_type": "SamplerCustom", "inputs": {**prompt["7"]["inputs"], "noise_seed": 99, "latent_image": ["11", 0]}}
    base["12"] = {"class_type": "VAEDecode", "inputs": {"samples": ["11", 0], "vae": ["1", 2]}}
    base["13"] = {"class_type": "PreviewImage", "inputs": {"images": ["12", 0]}}
    entry = server.run(base)
    pictures = {node: server.images({"status": entry["status"], "outputs": {node: out}}) for node, out in entry["outputs"].items()}
    near = np.abs(pictures["9"][0].astype(float) - pictures["13"][0]).mean()
    far = np.abs(pictures["9"][0].astype(float) - pictures["13"][1][::-1]).mean()
    assert 0 < near < far
