"""The same workflow gives the same picture in ComfyUI and in the embedded host.

Bound: one grey level of 255. Both hosts run the same network, solver and arithmetic in float32, but they batch the two
predictions of a guided step differently, so the last bits differ; that is far below half a grey level, and turning the
value into a whole number can then fall to either side.
"""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from fewstep.host.embedded import EmbeddedHost
from fewstep.host.executor import Executor
from fewstep.host.workflows import load_workflow
from fewstep.nodes import NODE_CLASS_MAPPINGS
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / "example_workflows").glob("*.json"))
GREY_LEVELS = 1
TIMES_WRITTEN = 0.02  # of a comparison's picture, which says how long each run took


@pytest.fixture
def same(server, tmp_path):
    """Runs a prompt in both hosts and compares all pictures; gives those of ComfyUI."""
    def compare(prompt):
        timed = any(node["class_type"] == "FewStepCompare" for node in prompt.values())
        entry = server.run(prompt)
        result = Executor(EmbeddedHost(tmp_path, temp_directory=tmp_path)).execute(prompt)
        assert set(entry["outputs"]) == set(result.ui)
        pictures = []
        for node, ui in ((node, ui) for node, ui in result.ui.items() if "images" in ui):
            theirs = server.images(entry, node)
            ours = [np.asarray(Image.open(tmp_path / image["subfolder"] / image["filename"])) for image in ui["images"]]
            assert len(theirs) == len(ours) > 0
            for a, b in zip(theirs, ours, strict=True):
                assert a.shape == b.shape and a.std() > 20, "a digit has dark and light parts"
                differs = np.abs(a.astype(int) - b.astype(int)) > GREY_LEVELS
                assert differs.mean() <= TIMES_WRITTEN if timed else not differs.any()
            pictures += theirs
        assert pictures
        return pictures

    return compare


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)
def test_a_template(same, path):
    same(load_workflow(path)[0])


def test_a_picture_of_the_real_host_runs_in_the_embedded_one(server, tmp_path):
    """The prompt in the PNG is read, and gives that picture."""
    prompt = json.loads((ROOT / "tests" / "data" / "workflows" / "first_picture.json").read_text("utf-8"))
    prompt["2"]["inputs"]["text"] = "five"  # what ran before comes from the cache, without pictures
    (file, *_) = server.run(prompt)["outputs"]["7"]["images"]
    data = server.get(f"/view?filename={file['filename']}&type=output")
    (tmp_path / "saved.png").write_bytes(data)
    inside, _ = load_workflow(tmp_path / "saved.png")
    assert inside == prompt
    result = Executor(EmbeddedHost(tmp_path)).execute(inside)
    (again, *_) = result.ui["7"]["images"]
    saved, made = (np.asarray(Image.open(file)).astype(int) for file in (io.BytesIO(data), tmp_path / again["filename"]))
    assert np.abs(saved - made).max() <= GREY_LEVELS


def ksampler(form, sampler, scheduler, denoise=1.0):
    prompt = {
        "1": {"class_type": "FewStepDemoCheckpoint", "inputs": {"form": form}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "3"}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": ""}},
        "4": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 2}},
        "7": {"class_type": "KSampler", "inputs": {
            "model": ["1", 0], "seed": 4, "steps": 7, "cfg": 2.0, "sampler_name": sampler, "scheduler": scheduler,
            "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0], "denoise": 1.0}},
        "8": {"class_type": "VAEDecode", "inputs": {"samples": ["7", 0], "vae": ["1", 2]}},
        "9": {"class_type": "PreviewImage", "inputs": {"images": ["8", 0]}},
    }
    if denoise < 1.0:
        again = {**prompt["7"]["inputs"], "latent_image": ["7", 0], "denoise": denoise, "seed": 5}
        prompt["10"] = {"class_type": "KSampler", "inputs": again}
        prompt["8"]["inputs"]["samples"] = ["10", 0]
    return prompt


def test_the_stock_lists_of_the_embedded_host_are_of_the_real_ones(server):
    from fewstep.host.stock_samplers import SAMPLERS, SCHEDULERS

    widgets = server.json("/object_info/KSampler")["KSampler"]["input"]["required"]
    assert set(SAMPLERS) <= set(widgets["sampler_name"][0]) and set(SCHEDULERS) <= set(widgets["scheduler"][0])


@pytest.mark.parametrize("form", ["eps", "v", "flow"])
@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "fewstep_unipc", "fewstep_dpmpp_2m", "fewstep_dpmpp_2m_sde", "fewstep_sa_solver", "fewstep_deis"])
def test_a_sampler_of_the_stock_list(same, form, sampler):
    same(ksampler(form, sampler, "karras"))


@pytest.mark.parametrize("form", ["eps", "v", "flow"])
@pytest.mark.parametrize("scheduler", ["normal", "simple", "karras", "exponential", "sgm_uniform", "fewstep_uniform_lambda",
                                       "fewstep_quadratic"])
def test_a_scheduler_of_the_stock_list(same, form, scheduler):
    same(ksampler(form, "euler", scheduler, denoise=0.8))


@pytest.mark.parametrize("guider", ["CFGGuider", "BasicGuider"])
@pytest.mark.parametrize("form", ["eps", "v", "flow"])
def test_custom_sampling(same, graph, form, guider):
    """Split sigmas, two samplers, the first prediction as a second picture."""
    prompt = graph(form, "FewStepUniPC", steps=8)
    conditioning = {"positive": ["2", 0], "negative": ["3", 0], "cfg": 3.0} if guider == "CFGGuider" else {"conditioning": ["2", 0]}
    prompt |= {
        "20": {"class_type": "RandomNoise", "inputs": {"noise_seed": 11}}, "21": {"class_type": "DisableNoise", "inputs": {}},
        "22": {"class_type": guider, "inputs": {"model": ["1", 0], **conditioning}},
        "23": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "fewstep_dpmpp_2m"}},
        "24": {"class_type": "BasicScheduler", "inputs": {"model": ["1", 0], "scheduler": "simple", "steps": 8, "denoise": 1.0}},
        "25": {"class_type": "SplitSigmas", "inputs": {"sigmas": ["24", 0], "step": 3}},
        "26": {"class_type": "SamplerCustomAdvanced", "inputs": {
            "noise": ["20", 0], "guider": ["22", 0], "sampler": ["5", 0], "sigmas": ["25", 0], "latent_image": ["4", 0]}},
        "7": {"class_type": "SamplerCustomAdvanced", "inputs": {
            "noise": ["21", 0], "guider": ["22", 0], "sampler": ["23", 0], "sigmas": ["25", 1], "latent_image": ["26", 0]}},
        "27": {"class_type": "VAEDecode", "inputs": {"samples": ["26", 1], "vae": ["1", 2]}},
        "28": {"class_type": "PreviewImage", "inputs": {"images": ["27", 0]}},
    }
    assert len(same(prompt)) == 4


def test_an_empty_latent_of_other_channels(same):
    prompt = ksampler("flow", "euler", "simple")
    prompt["4"] = {"class_type": "EmptySD3LatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}}
    assert len(same(prompt)) == 1


SCHEDULES = {name: node.KIND for name, node in NODE_CLASS_MAPPINGS.items() if hasattr(node, "KIND") and "SIGMAS" in node.RETURN_TYPES}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_node(same, graph, name):
    """Of its own, and through the node that has all schedules: the same picture."""
    prompt = graph("flow", "FewStepUniPC")
    prompt["6"]["inputs"]["kind"] = SCHEDULES[name]
    widgets = {k: v for k, v in prompt["6"]["inputs"].items() if k in NODE_CLASS_MAPPINGS[name].INPUT_TYPES()["required"]}
    prompt |= {
        "20": {"class_type": name, "inputs": widgets},
        "21": {"class_type": "SamplerCustom", "inputs": {**prompt["7"]["inputs"], "sigmas": ["20", 0], "noise_seed": 5}},
        "22": {"class_type": "VAEDecode", "inputs": {"samples": ["21", 0], "vae": ["1", 2]}},
        "23": {"class_type": "PreviewImage", "inputs": {"images": ["22", 0]}},
    }
    pictures = same(prompt)
    assert len(pictures) == 4 and all(np.array_equal(a, b) for a, b in zip(pictures[:2], pictures[2:], strict=True))


def test_the_plan_inspector(server, embedded, graph):
    prompt = graph("eps", "FewStepUniPC")
    prompt |= {
        "20": {"class_type": "FewStepPlanInspector", "inputs": {"model": ["1", 0], "sampler": ["5", 0], "sigmas": ["6", 0]}},
        "21": {"class_type": "PreviewImage", "inputs": {"images": ["20", 0]}},
    }
    entries = [host.run(prompt) for host in (server, embedded)]
    theirs, ours = (entry["outputs"]["20"]["text"][0] for entry in entries)
    assert theirs == ours and "unipc" in ours and "6 evaluations" in ours
    for host, entry in zip((server, embedded), entries, strict=True):
        (plot,) = host.images(entry, "21")
        assert min(plot.shape[:2]) > 300 and plot.std() > 5


def test_an_uploaded_picture(server, embedded):
    """Upload, Load Image with its mask, inpainting: the same answers and pictures from both servers."""
    drawn = np.zeros((64, 64, 4), np.uint8)
    drawn[8:56, 28:36] = 255  # a stroke; the lower half is transparent
    drawn[..., 3] = 255
    drawn[32:, :, 3] = 0
    file = io.BytesIO()
    Image.fromarray(drawn).save(file, "PNG")
    pictures = []
    for host in (server, embedded):
        name = host.upload("stroke.png", file.getvalue())
        assert name == {"name": "stroke.png", "subfolder": "", "type": "input"}
        prompt = ksampler("flow", "euler", "simple")
        prompt["7"]["inputs"] |= {"latent_image": ["22", 0], "denoise": 0.9}
        prompt |= {
            "20": {"class_type": "LoadImage", "inputs": {"image": "stroke.png"}},
            "21": {"class_type": "VAEEncode", "inputs": {"pixels": ["20", 0], "vae": ["1", 2]}},
            "22": {"class_type": "SetLatentNoiseMask", "inputs": {"samples": ["21", 0], "mask": ["20", 1]}},
        }
        del prompt["4"]
        pictures.append(np.stack(host.images(host.run(prompt))).astype(int))
    assert np.abs(pictures[0] - pictures[1]).max() <= GREY_LEVELS
    assert np.abs(pictures[0][0, :28, :, 0] - drawn[:28, :, 0]).mean() < 10 < np.abs(pictures[0][0, 36:, :, 0] - drawn[36:, :, 0]).mean()


@pytest.mark.parametrize("form", ["eps", "flow"])
def test_auto_in_the_simple_node(same, form):
    """From noise, then the last part of the schedule on its result; the recipe is the rule's in both hosts."""
    prompt = ksampler(form, "", "", denoise=0.6)
    for node in ("7", "10"):
        inputs = {name: value for name, value in prompt[node]["inputs"].items() if name not in ("sampler_name", "scheduler")}
        prompt[node] = {"class_type": "FewStepKSampler", "inputs": {**inputs, "solver": "auto", "schedule": "auto"}}
    same(prompt)
