"""Makes the subgraph blueprints: ``python -m fewstep.host.blueprints`` writes ``subgraphs/`` anew.

A blueprint is a graph with some of its inputs and outputs led out; the frontend lists it beside the nodes and puts it into a
graph as one node. Each is composed here in API form, as templates are, and laid out as the frontend saves subgraphs.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from typing import Any

from ..samplers.plan_io import write_atomically
from .templates import ROOT, Prompt, node
from .ui_layout import COLUMN, input_slot, to_ui
from .validate import Classes, input_specs

FOLDER = ROOT / "subgraphs"
INPUTS, OUTPUTS = -10, -20  # the frontend's ids of the two ends inside a subgraph
SPACE = uuid.UUID("7d1f9c1e-52e1-4f2a-9a37-0f5e5746e570")  # ids must stay the same: workflows that hold the subgraph name them


@dataclass(frozen=True)
class Blueprint:
    """A graph and what of it is seen from outside.

    Attributes:
        prompt: API form; ids are whole numbers.
        inputs: by name the (node id, input) that it feeds, one kind each; a widget's shows on the outer node.
        outputs: by name the (node id, output slot).
        description, aliases: for the search box.
    """

    prompt: Prompt
    inputs: dict[str, list[tuple[str, str]]]
    outputs: dict[str, tuple[str, int]]
    description: str
    aliases: tuple[str, ...]


def text_to_image() -> Blueprint:
    """Prompts to pictures in a few steps."""
    prompt = {
        "1": node("CLIPTextEncode", "Prompt", text=""), "2": node("CLIPTextEncode", "Negative prompt", text=""),
        "3": node("EmptyLatentImage", width=1024, height=1024),
        "4": node("FewStepKSampler", positive=["1", 0], negative=["2", 0], latent_image=["3", 0]),
        "5": node("VAEDecode", samples=["4", 0]),
    }
    inputs = {
        "model": [("4", "model")], "clip": [("1", "clip"), ("2", "clip")], "vae": [("5", "vae")], "prompt": [("1", "text")],
        "negative_prompt": [("2", "text")], "width": [("3", "width")], "height": [("3", "height")],
        "batch_size": [("3", "batch_size")],
        "seed": [("4", "seed")], "steps": [("4", "steps")], "cfg": [("4", "cfg")],
    }
    return Blueprint(prompt, inputs, {"image": ("5", 0), "latent": ("4", 0)},
                     "Text to image in a few steps: prompts, an empty latent, FewStep's KSampler, and the decoded pictures.",
                     ("txt2img", "few step", "text to image"))


def sampled(before: Prompt, source: str, outputs: tuple[int, int], cfg: int | None = None, model: bool = False) -> Prompt:
    """``before``, and SamplerCustom as node 9 with that node's SAMPLER and SIGMAS, and its cfg and MODEL where it gives them."""
    links: dict[str, Any] = {"sampler": [source, outputs[0]], "sigmas": [source, outputs[1]]}
    links |= {"cfg": [source, cfg]} if cfg is not None else {}
    links |= {"model": [source, 0]} if model else {}
    return {**before, "9": node("SamplerCustom", **links)}


def outer(**own: tuple[str, str]) -> dict[str, list[tuple[str, str]]]:
    """``own`` inputs, and those of SamplerCustom as node 9 that every such graph leads out."""
    rest = {"positive": "positive", "negative": "negative", "latent_image": "latent_image", "seed": "noise_seed"}
    return {**{name: [place] for name, place in own.items()}, **{name: [("9", place)] for name, place in rest.items()}}


def distilled_lora() -> Blueprint:
    """A few-step LoRA with all that belongs to it."""
    prompt = sampled({"1": node("FewStepLoadDistilledLoRA")}, "1", (2, 3), cfg=4, model=True)
    inputs = outer(model=("1", "model"), lora_name=("1", "lora_name"), strength=("1", "strength"))
    return Blueprint(prompt, inputs, {"latent": ("9", 0), "report": ("1", 6)},
                     "Samples with a distilled LoRA at the noise levels, with the sampler and the cfg that it was trained for.",
                     ("lcm", "dmd2", "lightning", "turbo", "few step lora"))


def calibrated() -> Blueprint:
    """A solver that was fitted to the model."""
    before = {
        "1": node("FewStepLoadCalibration"), "2": node("FewStepFittedSolver", calibration=["1", 0]),
    }
    inputs = outer(file=("1", "file"), cfg=("9", "cfg"))
    inputs = {"model": [("1", "model"), ("2", "model"), ("9", "model")], **inputs}
    return Blueprint(sampled(before, "2", (0, 1)), inputs, {"latent": ("9", 0), "facts": ("1", 1)},
                     "Samples with a solver that was fitted to this model, cfg and number of steps: a calibration file.",
                     ("fitted solver", "calibration"))


def advised() -> Blueprint:
    """What the advisor proposes."""
    inputs = outer(steps=("1", "steps"), cfg=("1", "cfg"), distilled=("1", "distilled"))
    inputs = {"model": [("1", "model"), ("9", "model")], **inputs}
    return Blueprint(sampled({"1": node("FewStepAdvisor")}, "1", (0, 1), cfg=2), inputs,
                     {"latent": ("9", 0), "advice": ("1", 3)},
                     "Samples with the solver, schedule and cfg that the advisor proposes for this model and these steps.",
                     ("advisor", "auto sampler", "best sampler"))


def compared() -> Blueprint:
    """Four solvers side by side."""
    kinds = ("FewStepDDIM", "FewStepIPNDM", "FewStepDPMSolverMultistep", "FewStepUniPC")
    prompt = {str(i): node(kind, **({"order": 2} if kind == "FewStepIPNDM" else {})) for i, kind in enumerate(kinds, 1)}
    prompt["9"] = node("FewStepCompare", **{f"sampler_{i}": [str(i), 0] for i in range(1, 5)})
    names = ("model", "positive", "negative", "latent_image", "vae", "seed", "cfg", "steps", "schedule")
    return Blueprint(prompt, {name: [("9", name)] for name in names}, {"grid": ("9", 0), "table": ("9", 1), "csv": ("9", 2)},
                     "DDIM, iPNDM, DPM-Solver++ 2M and UniPC at several step counts in one labelled picture, with the numbers.",
                     ("xy plot", "sampler comparison"))


def blueprints() -> dict[str, Blueprint]:
    """Every blueprint by the name that the frontend shows."""
    return {
        "FewStep Text to Image": text_to_image(), "FewStep Distilled LoRA": distilled_lora(),
        "FewStep Calibrated Sampler": calibrated(), "FewStep Advised Sampler": advised(), "FewStep Compare Solvers": compared(),
    }


def drawn(name: str, blueprint: Blueprint, classes: Classes) -> dict[str, Any]:
    """The blueprint as the frontend saves it: one outer node, and the definition of its inside."""
    inside = to_ui(blueprint.prompt, classes)
    nodes = {str(entry["id"]): entry for entry in inside["nodes"]}
    keys = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    links = [dict(zip(keys, link, strict=True)) for link in inside["links"]]

    def link(*ends: Any) -> int:
        links.append(dict(zip(keys, (len(links) + 1, *ends), strict=True)))
        return len(links)

    inputs, outputs = [], []
    for number, (label, places) in enumerate(blueprint.inputs.items()):
        ids = []
        for i, socket in places:
            entries = nodes[i]["inputs"]
            if all(entry["name"] != socket for entry in entries):  # a widget's
                entries.append(input_slot(input_specs(classes[blueprint.prompt[i]["class_type"]])[socket], None))
            position = next(k for k, entry in enumerate(entries) if entry["name"] == socket)
            ids.append(link(INPUTS, number, int(i), position, entries[position]["type"]))
            entries[position]["link"] = ids[-1]
        first = next(entry for entry in nodes[places[0][0]]["inputs"] if entry["name"] == places[0][1])
        inputs.append({"id": _id(name, "in", label), "name": label, "type": first["type"], "linkIds": ids,
                       **({"widget": {"name": label}} if "widget" in first else {})})
    for number, (label, (i, place)) in enumerate(blueprint.outputs.items()):
        entry = nodes[i]["outputs"][place]
        ids = [link(int(i), place, OUTPUTS, number, entry["type"])]
        entry["links"] = [*entry["links"], *ids]
        outputs.append({"id": _id(name, "out", label), "name": label, "type": entry["type"], "linkIds": ids})
    right = max(entry["pos"][0] for entry in inside["nodes"]) + COLUMN
    definition = {
        "id": _id(name), "version": 1, "revision": 0, "config": {}, "name": name, "description": blueprint.description,
        "category": "FewStep", "state": {"lastGroupId": 0, "lastNodeId": inside["last_node_id"], "lastLinkId": len(links),
                                         "lastRerouteId": 0},
        "inputNode": {"id": INPUTS, "bounding": [-240, 0, 130, 40 + 20 * len(inputs)]},
        "outputNode": {"id": OUTPUTS, "bounding": [right, 0, 130, 40 + 20 * len(outputs)]},
        "inputs": [{key: value for key, value in entry.items() if key != "widget"} for entry in inputs], "outputs": outputs,
        "widgets": [], "nodes": inside["nodes"], "groups": [], "links": links, "extra": {},
    }
    shown = [{key: entry[key] for key in ("name", "type", "widget") if key in entry} | {"link": None} for entry in inputs]
    node_outside = {
        "id": 1, "type": definition["id"], "pos": [0, 0], "size": [300, 80 + 26 * len(inputs)], "flags": {}, "order": 0,
        "mode": 0, "title": name, "inputs": shown,
        "outputs": [{"name": entry["name"], "type": entry["type"], "links": []} for entry in outputs],
        "properties": {"proxyWidgets": []}, "widgets_values": [],
    }
    extra = {"BlueprintDescription": blueprint.description, "BlueprintSearchAliases": list(blueprint.aliases)}
    return {"revision": 0, "last_node_id": 1, "last_link_id": 0, "nodes": [node_outside], "links": [], "version": 0.4,
            "definitions": {"subgraphs": [definition]}, "extra": extra}


def _id(*parts: str) -> str:
    return str(uuid.uuid5(SPACE, "/".join(parts)))


def main() -> None:
    """Writes every blueprint."""
    from .executor import all_classes

    FOLDER.mkdir(exist_ok=True)
    for name, blueprint in blueprints().items():
        text = json.dumps(drawn(name, blueprint, all_classes()), indent=1) + "\n"
        write_atomically(FOLDER / f"{name}.json", text.encode())


if __name__ == "__main__":
    main()
