"""Calibration in a real ComfyUI: made in a graph, found again after a restart, and sampled with."""

import json
from pathlib import Path

import numpy as np
import pytest
from fewstep.host.calibrate_command import NODES, Method, calibration_workflow

HERE = Path(__file__).parent
SMALL = {
    Method.moments: {"kind": "channel", "samples": 8, "range_samples": 1}, Method.ratios: {"samples": 4},
    Method.plan: {"samples": 8, "iterations": 4}, Method.statistics: {},
}


def graph(method):
    return calibration_workflow(
        NODES[method], form="eps", prompts=["3", "7"], cfg=4.0, steps=5, schedule="uniform_t", solver="unipc", batch=4, seed=0,
        options={"name": f"made {method.value}", **SMALL[method]},
    )


def sampled(calibration):
    """UniPC in 5 steps, with compensation where ``calibration`` is a file."""
    prompt = {
        key: entry for key, entry in graph(Method.ratios).items() if key in ("1", "2", "3", "4", "5", "6")
    }
    last = ["6", 0]
    if calibration:
        prompt["8"] = {"class_type": "FewStepLoadCalibration", "inputs": {"model": ["1", 0], "file": calibration}}
        prompt["9"] = {"class_type": "FewStepDynamicCompensation", "inputs": {
            "sampler": ["6", 0], "calibration": ["8", 0], "ratios": "", "guidance": 4.0, "dc_order": 2}}
        last = ["9", 0]
    prompt["10"] = {"class_type": "SamplerCustom", "inputs": {
        "model": ["1", 0], "add_noise": True, "noise_seed": 1, "cfg": 4.0, "positive": ["2", 0], "negative": ["3", 0],
        "sampler": last, "sigmas": ["5", 0], "latent_image": ["4", 0]}}
    prompt["11"] = {"class_type": "VAEDecode", "inputs": {"samples": ["10", 0], "vae": ["1", 2]}}
    prompt["12"] = {"class_type": "PreviewImage", "inputs": {"images": ["11", 0]}}
    return prompt


@pytest.fixture
def restarted(comfy_server, tmp_path):
    """restarted() -> a context with a new server on one and the same folder."""
    return lambda: comfy_server(tmp_path)


def test_made_kept_and_used(restarted, tmp_path):
    with restarted() as server:
        for method in (Method.ratios, Method.moments, Method.plan):
            entry = server.run(graph(method))
            assert entry["status"]["status_str"] == "success", json.dumps(entry["status"])[:2000]
            assert "evaluations" in entry["outputs"]["7"]["text"][0]
        plain = server.images(server.run(sampled(None)))
    made = sorted(p.name for p in (tmp_path / "models" / "fewstep").iterdir())
    assert made == ["made moments.safetensors", "made plan.safetensors", "made ratios.safetensors"]
    with restarted() as server:
        listed = server.json("/object_info/FewStepLoadCalibration")["FewStepLoadCalibration"]["input"]["required"]["file"][0]
        assert set(made) <= set(listed)
        images = server.images(server.run(sampled("made ratios.safetensors")))
        other = sampled("made ratios.safetensors")
        other["1"]["inputs"]["form"] = "v"
        refused = server.run(other)
    assert len(images) == len(plain) == 4 and any(not np.array_equal(a, b) for a, b in zip(images, plain, strict=True))
    assert refused["status"]["status_str"] == "error" and "another model" in json.dumps(refused["status"])
