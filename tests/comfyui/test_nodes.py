"""The pack's nodes in the real server: they are known, and they work with the stock nodes."""

import io
import struct

import fewstep
import numpy as np
import pytest
from PIL import Image

NODES = fewstep.NODE_CLASS_MAPPINGS
DISPLAY_NAMES = fewstep.NODE_DISPLAY_NAME_MAPPINGS
SOLVERS = [name for name, node in NODES.items() if hasattr(node, "SOLVER")]
FORMS = ("eps", "v", "flow")


@pytest.mark.parametrize("name", NODES)
def test_a_node_is_described_as_it_says(server, name):
    info, node = server.json(f"/object_info/{name}")[name], NODES[name]
    assert info["output"] == list(node.RETURN_TYPES) and info["output_tooltips"] == list(node.OUTPUT_TOOLTIPS)
    assert info["category"].startswith("FewStep") and info["display_name"] == node.DISPLAY_NAME == DISPLAY_NAMES[name]
    assert info["description"] == node.DESCRIPTION and info["python_module"] == "custom_nodes.few-step.pack"
    inputs = {label: spec for group in ("required", "optional") for label, spec in info["input"].get(group, {}).items()}
    assert all(spec[1].get("tooltip") for spec in inputs.values()), f"{name} has an input without a tooltip"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_solver_node_on_a_family(server, graph, solver, form):
    images = server.images(server.run(graph(form, solver)))
    assert len(images) == 2
    for image in images:
        assert image.shape == (64, 64, 3) and image.std() > 20, "a digit has dark and light parts"


def advanced(graph, form, solver, guider="CFGGuider", steps=6):
    """``graph`` with SamplerCustomAdvanced."""
    prompt = graph(form, solver, steps=steps)
    conditioning = {"positive": ["2", 0], "negative": ["3", 0], "cfg": 2.0} if guider == "CFGGuider" else {"conditioning": ["2", 0]}
    return prompt | {
        "10": {"class_type": "RandomNoise", "inputs": {"noise_seed": 5}},
        "11": {"class_type": guider, "inputs": {"model": ["1", 0], **conditioning}},
        "7": {"class_type": "SamplerCustomAdvanced", "inputs": {
            "noise": ["10", 0], "guider": ["11", 0], "sampler": ["5", 0], "sigmas": ["6", 0], "latent_image": ["4", 0]}}}


@pytest.mark.parametrize("solver", SOLVERS)
def test_samplercustomadvanced_is_samplercustom(server, graph, solver):
    plain, other = (server.images(server.run(prompt)) for prompt in (graph("v", solver), advanced(graph, "v", solver)))
    assert all(np.array_equal(a, b) for a, b in zip(plain, other, strict=True))


def jpeg_of(message):
    """A preview's picture, of either form of the message."""
    (kind,) = struct.unpack(">I", message[:4])
    return message[8:] if kind == 1 else message[8 + struct.unpack(">I", message[4:8])[0]:]


@pytest.mark.parametrize("solver", SOLVERS)
def test_progress_and_previews(either, graph, solver):
    """The bar has the steps that were asked for, never turns back, and ends full; every preview is a picture of the digit."""
    with either.listen("viewer") as events:
        queued = either.queue(advanced(graph, "eps", solver, steps=40), client_id="viewer", extra_data={"preview_method": "latent2rgb"})
        events.wait("execution_success", prompt_id=queued)
        bar = [(data["value"], data["max"]) for data in events.of("progress", prompt_id=queued) if data["node"] == "7"]
        assert {total for _, total in bar} == {40} and bar[-1] == (40, 40)
        assert [value for value, _ in bar] == sorted(value for value, _ in bar) and bar[0][0] <= 2
        if solver != "FewStepDPMSolverAdaptive":  # which chooses its own steps
            assert {value for value, _ in bar} == set(range(1, 41)), "every step is shown, also where it takes several evaluations"
        previews = [jpeg_of(data) for kind, data in events.events if kind == "preview"]
        assert previews
        last = np.asarray(Image.open(io.BytesIO(previews[-1])).convert("L"))
        assert last.std() > 20


def test_basicguider_is_guidance_1(server, graph):
    plain = server.images(server.run(graph("flow", "FewStepUniPC", cfg=1.0)))
    guided = server.images(server.run(advanced(graph, "flow", "FewStepUniPC", "BasicGuider")))
    assert all(np.array_equal(a, b) for a, b in zip(plain, guided, strict=True))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("sampler", "scheduler"), [("euler", "simple"), ("dpmpp_2m", "karras"), ("dpmpp_2m_sde", "normal")])
def test_stock_samplers_work_on_the_demo_model(server, graph, form, sampler, scheduler):
    prompt = advanced(graph, form, "FewStepUniPC")
    prompt["5"] = {"class_type": "KSamplerSelect", "inputs": {"sampler_name": sampler}}
    prompt["6"] = {"class_type": "BasicScheduler", "inputs": {"model": ["1", 0], "scheduler": scheduler, "steps": 20, "denoise": 1.0}}
    custom = server.images(server.run(prompt))
    prompt["7"] = {"class_type": "KSampler", "inputs": {
        "model": ["1", 0], "seed": 5, "steps": 20, "cfg": 2.0, "sampler_name": sampler, "scheduler": scheduler,
        "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0], "denoise": 1.0}}
    plain = server.images(server.run(prompt))
    assert all(np.array_equal(a, b) and a.std() > 20 for a, b in zip(custom, plain, strict=True))


def test_ksampleradvanced_starts_where_it_is_told(server, graph):
    """The second half of a schedule from a finished picture keeps it near; the stages of a split run fit together."""
    base = graph("flow", "FewStepUniPC", steps=8)

    def stage(latent, start, end, noise, leftover, seed):
        return {"class_type": "KSamplerAdvanced", "inputs": {
            "model": ["1", 0], "add_noise": noise, "noise_seed": seed, "steps": 8, "cfg": 2.0, "sampler_name": "fewstep_unipc",
            "scheduler": "simple", "positive": ["2", 0], "negative": ["3", 0], "latent_image": latent, "start_at_step": start,
            "end_at_step": end, "return_with_leftover_noise": leftover}}

    def pictures(*nodes):
        prompt = {k: v for k, v in base.items() if k in "1234"} | dict(nodes)
        for i in ("30", "31", "32", "33"):
            prompt[f"{i}0"] = {"class_type": "VAEDecode", "inputs": {"samples": [i, 0], "vae": ["1", 2]}}
            prompt[f"{i}1"] = {"class_type": "PreviewImage", "inputs": {"images": [f"{i}0", 0]}}
        entry = server.run(prompt)
        return [server.images(entry, f"{i}1")[0].astype(float) for i in ("30", "31", "32", "33")]

    whole, again, first, rest = pictures(
        ("30", stage(["4", 0], 0, 10_000, "enable", "disable", 5)), ("31", stage(["30", 0], 5, 10_000, "enable", "disable", 6)),
        ("32", stage(["4", 0], 0, 4, "enable", "enable", 5)), ("33", stage(["32", 0], 4, 10_000, "disable", "disable", 0)))
    assert 0 < np.abs(again - whole).mean() < 0.3 * np.abs(first - whole).mean()
    assert np.abs(rest - whole).mean() < 0.2 * np.abs(first - whole).mean(), "the second stage starts without a past, so not equal"


def test_img2img_keeps_what_it_should(server, graph):
    """denoise below 1 starts from the given latent: the picture stays near it."""
    prompt = graph("flow", "FewStepUniPC")
    prompt |= {
        "10": {"class_type": "FewStepSchedule", "inputs": {**prompt["6"]["inputs"], "denoise": 0.3}},
        "11": {"class_type": "SamplerCustom", "inputs": {
            **prompt["7"]["inputs"], "sigmas": ["10", 0], "noise_seed": 99, "latent_image": ["7", 0]}},
        "12": {"class_type": "VAEDecode", "inputs": {"samples": ["11", 0], "vae": ["1", 2]}},
        "13": {"class_type": "PreviewImage", "inputs": {"images": ["12", 0]}},
    }
    entry = server.run(prompt)
    before, after = (np.stack(server.images(entry, node)).astype(float) for node in ("9", "13"))
    assert 0 < np.abs(after - before).mean() < 0.5 * np.abs(after[::-1] - before).mean()


def test_another_pack_with_the_same_folders_works_beside(server, graph):
    prompt = graph("eps", "FewStepUniPC") | {"20": {"class_type": "OtherNode", "inputs": {}}}
    entry = server.run(prompt)
    assert entry["outputs"]["20"]["text"] == ["other nodes", "other samplers", "other host"]
    assert len(server.images(entry, "9")) == 2
