"""Subgraph blueprints: what the code makes, whole, served, and each runs with its inputs fed from the demo model."""

import copy
import json
import uuid

import pytest
from fewstep.host.blueprints import FOLDER, INPUTS, OUTPUTS, blueprints, drawn
from fewstep.host.embedded import EmbeddedHost
from fewstep.host.executor import Executor, all_classes
from fewstep.host.templates import common, node
from fewstep.host.ui_format import to_api
from fewstep.host.validate import WIDGETS, input_specs
from fewstep.nodes import NODE_CLASS_MAPPINGS

NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
FED = {"model": ["101", 0], "clip": ["101", 1], "vae": ["101", 2], "positive": ["102", 0], "negative": ["103", 0], "latent_image": ["104", 0]}
VALUES = {"lora_name": "digits_eps_tdm_4steps_cfg2.safetensors", "file": "digits-eps-plan-cfg2.safetensors", "width": 64, "height": 64}


def read(name):
    return json.loads((FOLDER / f"{name}.json").read_text("utf-8"))


def test_the_files_are_what_the_code_makes():
    assert sorted(blueprints()) == NAMES and len(NAMES) >= 4
    for name, blueprint in blueprints().items():
        assert read(name) == drawn(name, copy.deepcopy(blueprint), all_classes()), "run python -m fewstep.host.blueprints"
        assert name.startswith("FewStep ") and len(blueprint.description) > 40 and blueprint.aliases


@pytest.mark.parametrize("name", NAMES)
def test_links_join_sockets_of_one_kind(name):
    """What the frontend relies on: ids, both ends of every link, kinds of the nodes' own definitions."""
    data = read(name)
    (outside,), (inside,) = data["nodes"], data["definitions"]["subgraphs"]
    assert outside["type"] == inside["id"] == str(uuid.UUID(inside["id"]))
    classes, nodes = all_classes(), {entry["id"]: entry for entry in inside["nodes"]}
    assert any(entry["type"] in NODE_CLASS_MAPPINGS for entry in nodes.values())
    assert len({link["id"] for link in inside["links"]}) == len(inside["links"]) == inside["state"]["lastLinkId"]
    for link in inside["links"]:
        start, end = link["origin_id"], link["target_id"]
        if start == INPUTS:
            source = inside["inputs"][link["origin_slot"]]
            assert link["id"] in source["linkIds"]
        else:
            source = nodes[start]["outputs"][link["origin_slot"]]
            assert link["id"] in source["links"] and classes[nodes[start]["type"]].RETURN_TYPES[link["origin_slot"]] == link["type"]
        if end == OUTPUTS:
            target = inside["outputs"][link["target_slot"]]
            assert link["id"] in target["linkIds"]
        else:
            target = nodes[end]["inputs"][link["target_slot"]]
            spec = input_specs(classes[nodes[end]["type"]])[target["name"]]
            widget = isinstance(spec.type, list) or spec.type in WIDGETS
            assert target["link"] == link["id"] and ("widget" in target) == widget
            assert link["type"] == ("COMBO" if isinstance(spec.type, list) else spec.type)
        assert source["type"] == target["type"] == link["type"]
    for ends, seen in ((inside["inputs"], outside["inputs"]), (inside["outputs"], outside["outputs"])):
        assert [(e["name"], e["type"]) for e in ends] == [(e["name"], e["type"]) for e in seen]


@pytest.mark.parametrize("name", NAMES)
def test_it_runs(name, tmp_path):
    """The inside as a graph of its own, with what is led out fed from the demo model."""
    (inside,) = read(name)["definitions"]["subgraphs"]
    kept = [link for link in inside["links"] if link["origin_id"] != INPUTS and link["target_id"] != OUTPUTS]
    fed = {link["id"]: inside["inputs"][link["origin_slot"]]["name"] for link in inside["links"] if link["origin_id"] == INPUTS}
    places = []
    for entry in inside["nodes"]:
        for slot in entry["inputs"]:
            if slot["link"] in fed:
                places.append((str(entry["id"]), slot["name"], fed[slot["link"]]))
                slot["link"] = None
    prompt = to_api({**inside, "links": kept}, all_classes())
    for i, socket, label in places:
        if label in FED or label in VALUES:
            prompt[i]["inputs"][socket] = FED.get(label, VALUES.get(label))
        assert prompt[i]["inputs"].get(socket) is not None, (socket, "has no value of its own: it must be fed")
    demo = {str(100 + int(i)): entry for i, entry in common("eps", "5", 1).items()}
    for entry in demo.values():
        entry["inputs"] = {k: [str(100 + int(v[0])), v[1]] if isinstance(v, list) else v for k, v in entry["inputs"].items()}
    prompt |= demo
    results = {}
    for output in inside["outputs"]:
        (link,) = (entry for entry in inside["links"] if entry["target_id"] == OUTPUTS and entry["id"] in output["linkIds"])
        results[output["name"]] = (str(link["origin_id"]), link["origin_slot"], link["type"])
    for number, (i, slot, kind) in enumerate(results.values()):
        if kind == "LATENT":
            prompt[f"{200 + number}"] = node("VAEDecode", samples=[i, slot], vae=["101", 2])
            prompt[f"{300 + number}"] = node("PreviewImage", images=[f"{200 + number}", 0])
        elif kind == "IMAGE":
            prompt[f"{300 + number}"] = node("PreviewImage", images=[i, slot])
    done = Executor(EmbeddedHost(tmp_path)).execute(prompt, {})
    for label, (i, slot, kind) in results.items():
        (value,) = done.values[i][slot]
        assert len(value) > 20 if kind == "STRING" else value is not None, label
        if kind == "LATENT":
            assert value["samples"].shape == (1, 4, 8, 8) and bool(value["samples"].isfinite().all())


def test_they_are_served_as_the_page_asks_for_them(serve):
    async def talk(client):
        listed = await (await client.get("/api/global_subgraphs")).json()
        whole = {key: await (await client.get(f"/api/global_subgraphs/{key}")).json() for key in listed}
        return listed, whole, await (await client.get("/api/global_subgraphs/none")).json()

    listed, whole, none = serve(talk)
    assert sorted(entry["name"] for entry in listed.values()) == NAMES and none is None
    for key, entry in listed.items():
        assert entry["source"] == "custom_node" and entry["info"] == {"node_pack": "custom_nodes.fewstep"} and "data" not in entry
        assert json.loads(whole[key]["data"]) == read(entry["name"])
