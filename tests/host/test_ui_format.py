"""Saved drawings become the API form: widgets in order, links, muted and bypassed nodes, reroutes, primitives."""

import pytest
from fewstep.host.errors import HostInputError
from fewstep.host.ui_format import is_ui_format, to_api


class Source:
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"form": (["a", "b"], {})}}


class Sampler:
    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {"model": ("MODEL", {}), "seed": ("INT", {"control_after_generate": True}), "steps": ("INT", {"default": 8}), "cfg": ("FLOAT", {})},
            "optional": {"sigmas": ("SIGMAS", {}), "text": ("STRING", {"forceInput": True}), "late": ("FLOAT", {"default": 0.5})},
        }


CLASSES = {"Source": Source, "Sampler": Sampler}


def drawing(*, middle=None, mode=0, links=None, values=(7, "randomize", 12, 2.5)):
    nodes = [
        {"id": 1, "type": "Source", "mode": mode, "outputs": [{"name": "MODEL", "type": "MODEL"}], "widgets_values": ["b"]},
        {"id": 2, "type": "Sampler", "title": "mine", "inputs": [{"name": "model", "type": "MODEL", "link": 5 if middle else 4}], "widgets_values": list(values)},
        {"id": 9, "type": "MarkdownNote", "widgets_values": ["hello"]},
    ]
    return {"nodes": nodes + ([middle] if middle else []), "links": links or [[4, 1, 0, 2, 0, "MODEL"]], "version": 0.4}


def test_widgets_links_and_titles():
    data = drawing()
    assert is_ui_format(data) and not is_ui_format({"1": {"class_type": "Source"}})
    assert to_api(data, CLASSES) == {
        "1": {"class_type": "Source", "inputs": {"form": "b"}},
        "2": {"class_type": "Sampler", "inputs": {"model": ["1", 0], "seed": 7, "steps": 12, "cfg": 2.5, "late": 0.5}, "_meta": {"title": "mine"}},
    }


def test_widget_values_by_name_and_links_as_objects():
    data = drawing(links=[{"id": 4, "origin_id": 1, "origin_slot": 0, "target_id": 2, "target_slot": 0, "type": "MODEL"}])
    data["nodes"][1]["widgets_values"] = {"seed": 3, "steps": 4, "cfg": 1.0, "late": 0.1, "seed_control": "fixed"}
    assert to_api(data, CLASSES)["2"]["inputs"] == {"model": ["1", 0], "seed": 3, "steps": 4, "cfg": 1.0, "late": 0.1}


def test_muted_nodes_are_left_out_with_their_links():
    assert to_api(drawing(mode=2), CLASSES) == {"2": {"class_type": "Sampler", "inputs": {"seed": 7, "steps": 12, "cfg": 2.5, "late": 0.5}, "_meta": {"title": "mine"}}}


@pytest.mark.parametrize("middle", [
    {"id": 3, "type": "Reroute", "inputs": [{"name": "", "type": "*", "link": 4}]},
    {"id": 3, "type": "SomeModelPatch", "mode": 4, "inputs": [{"name": "clip", "type": "CLIP", "link": None}, {"name": "model", "type": "MODEL", "link": 4}]},
])
def test_reroutes_and_bypassed_nodes_pass_through(middle):
    links = [[4, 1, 0, 3, 0, "MODEL"], [5, 3, 0, 2, 0, "MODEL"]]
    assert to_api(drawing(middle=middle, links=links), CLASSES)["2"]["inputs"]["model"] == ["1", 0]


def test_primitives_give_their_value():
    data = drawing()
    data["nodes"].append({"id": 8, "type": "PrimitiveNode", "widgets_values": [99, "fixed"]})
    data["nodes"][1]["inputs"].append({"name": "steps", "type": "INT", "link": 6, "widget": {"name": "steps"}})
    data["links"].append([6, 8, 0, 2, 1, "INT"])
    assert to_api(data, CLASSES)["2"]["inputs"]["steps"] == 99 and "8" not in to_api(data, CLASSES)


@pytest.mark.parametrize(("change", "words"), [
    (lambda d: d["nodes"].append({"id": 5, "type": "Samplr"}), "does not know the nodes 'Samplr'.*did you mean 'Sampler'"),
    (lambda d: d["links"].clear(), "damaged"),
    (lambda d: d["nodes"].append({"id": 5}), "damaged"),
    (lambda d: (d.update(definitions={"subgraphs": [{"id": "u-u-i-d"}]}), d["nodes"].append({"id": 5, "type": "u-u-i-d"})), "holds subgraphs"),
])
def test_what_cannot_be_converted_is_named(change, words):
    data = drawing()
    change(data)
    with pytest.raises(HostInputError, match=words):
        to_api(data, CLASSES)
