"""The templates: the drawing and the API form say the same, both are what the code makes, and they run."""

import json
from pathlib import Path

import fewstep
import pytest
from fewstep.host.embedded import EmbeddedHost
from fewstep.host.executor import Executor, all_classes
from fewstep.host.templates import templates
from fewstep.host.ui_format import to_api
from fewstep.host.ui_layout import to_ui
from PIL import Image

ROOT = Path(fewstep.__file__).parent
NAMES = sorted(path.stem for path in (ROOT / "example_workflows").glob("*.json"))


def read(name):
    drawing = json.loads((ROOT / "example_workflows" / f"{name}.json").read_text("utf-8"))
    return drawing, json.loads((ROOT / "tests" / "data" / "workflows" / f"{name}.json").read_text("utf-8"))


def plain(prompt):
    return {i: {"class_type": e["class_type"], "inputs": e["inputs"], "title": e.get("_meta", {}).get("title")} for i, e in prompt.items()}


@pytest.mark.parametrize("name", NAMES)
def test_drawing_and_api_form_say_the_same(name):
    drawing, prompt = read(name)
    assert plain(to_api(drawing, all_classes())) == plain(prompt)
    assert prompt == templates()[name], "run python -m fewstep.host.templates"
    assert drawing == to_ui(prompt, all_classes())


@pytest.mark.parametrize("name", NAMES)
def test_drawings_are_well_formed(name):
    """What the frontend relies on: link ends that exist, slots that agree in type, nodes that do not overlap."""
    drawing, _ = read(name)
    nodes = {node["id"]: node for node in drawing["nodes"]}
    assert drawing["last_node_id"] == max(nodes) and drawing["last_link_id"] == len(drawing["links"])
    for number, origin, slot, target, place, kind in drawing["links"]:
        assert number in nodes[origin]["outputs"][slot]["links"] and nodes[origin]["outputs"][slot]["type"] == kind
        assert nodes[target]["inputs"][place]["link"] == number and nodes[target]["inputs"][place]["type"] == kind
    boxes = [(*n["pos"], n["pos"][0] + n["size"][0], n["pos"][1] + n["size"][1]) for n in drawing["nodes"]]
    for i, a in enumerate(boxes):
        assert not any(a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3] for b in boxes[i + 1 :])


@pytest.mark.parametrize("name", NAMES)
def test_templates_run_and_have_a_thumbnail(name, tmp_path):
    _, prompt = read(name)
    result = Executor(EmbeddedHost(tmp_path)).execute(prompt, {})
    pictures = [image for ui in result.ui.values() for image in ui.get("images", ())]
    assert len(pictures) >= (1 if name == "compare_solvers" else 4)  # that one is a labelled grid
    with Image.open(ROOT / "example_workflows" / f"{name}.jpg") as thumbnail:
        assert thumbnail.format == "JPEG" and min(thumbnail.size) >= 160


def test_wrong_settings_in_the_lora_template_warn_first_in_its_report(tmp_path):
    """20 steps and CFG 7, in the loader and in the sampler after it."""
    _, prompt = read("distilled_lora")
    (loader,) = [i for i, e in prompt.items() if e["class_type"] == "FewStepLoadDistilledLoRA"]
    (sampler,) = [i for i, e in prompt.items() if e["class_type"] == "SamplerCustom"]

    def report():
        return Executor(EmbeddedHost(tmp_path)).execute(prompt, {}).ui[loader]["text"][0].splitlines()

    assert not any(line.startswith("WARNING") for line in report())
    prompt[loader]["inputs"].update(steps=20, cfg=7.0)
    prompt[sampler]["inputs"]["cfg"] = 7.0
    first = report()[:3]
    assert [line.split(":")[1].strip() for line in first] == ["SamplerCustom after this node has CFG 7", "20 steps", "CFG 7"]
    assert all(line.startswith("WARNING: ") for line in first)


def test_there_is_a_template_for_every_solver_node():
    used = {e["class_type"] for name in NAMES for e in read(name)[1].values()}
    assert {i for i in fewstep.NODE_CLASS_MAPPINGS if hasattr(fewstep.NODE_CLASS_MAPPINGS[i], "SOLVER")} <= used


def test_inpainting_keeps_the_upper_half(tmp_path):
    import numpy as np

    _, prompt = read("inpainting")
    (ui,) = Executor(EmbeddedHost(tmp_path)).execute(prompt, {}).ui.values()
    pictures = [np.asarray(Image.open(tmp_path / i["filename"]).convert("L")).astype(int) for i in ui["images"]]
    for before, after in zip(pictures[:4], pictures[4:], strict=True):
        assert np.abs(before[:24] - after[:24]).max() <= 2  # the decoder's bicubic reaches a few rows over the edge
        assert np.abs(before[40:] - after[40:]).mean() > 10
