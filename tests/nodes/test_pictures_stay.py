"""Saved workflows keep working: the nodes' contract, the bits of version 1 recipes, and how nodes are replaced.

After a wanted change of the nodes: ``python -m fewstep.nodes.contract > tests/data/contract.json``. Only add: inputs at the end,
nodes under new ids, choices to lists. Everything else breaks what people have saved and needs a new node id (see
``nodes/replacements.py``) or a new algorithm version (``samplers/recipe.py``).
"""

import asyncio
import hashlib
import json
import types
from pathlib import Path

import fewstep
import pytest
import torch
from fewstep.nodes import replacements
from fewstep.nodes.contract import contract, text
from fewstep.nodes.replacements import Replacement
from fewstep.samplers import Recipe, frames, grids, run

SNAPSHOT = Path(__file__).resolve().parents[1] / "data" / "contract.json"


def test_the_contract_is_the_saved_one():
    saved = json.loads(SNAPSHOT.read_text("utf-8"))
    now = json.loads(json.dumps(contract()))
    assert now == saved, "the nodes changed; see this file's first lines"
    assert {i: list(node["inputs"]) for i, node in now.items()} == {i: list(node["inputs"]) for i, node in saved.items()}, "their order"
    assert json.loads(text(now)) == now


def test_the_snapshot_sees_every_kind_of_change():
    class Node:
        RETURN_TYPES = ("SAMPLER",)

        @classmethod
        def INPUT_TYPES(cls):
            return {"required": {"order": ("INT", dict(cls.settings)), "kind": (list(cls.choices), {"default": "a"})}}

    def snapshot(**changes):
        defaults = {"settings": {"default": 2, "min": 1, "max": 3, "tooltip": "words"}, "choices": ("a", "b"), "RETURN_TYPES": ("SAMPLER",)}
        return contract({"N": type("N", (Node,), {**defaults, **changes})})

    first = snapshot()
    assert first == snapshot(settings={"default": 2, "min": 1, "max": 3, "tooltip": "other words"})
    changed = [snapshot(settings={"default": 3, "min": 1, "max": 3}), snapshot(choices=("b", "a")), snapshot(RETURN_TYPES=("SIGMAS",)),
               snapshot(OUTPUT_NODE=True), snapshot(RETURN_NAMES=("other",))]
    assert all(other != first for other in changed)


def test_the_simple_node_is_simple():
    """At most four widgets of its own beside those of the stock KSampler."""
    usual = {"seed", "steps", "cfg", "denoise"}
    node = fewstep.NODE_CLASS_MAPPINGS["FewStepKSampler"].INPUT_TYPES()
    own = [n for g in node.values() for n, (k, s) in g.items() if n not in usual and (isinstance(k, list) or "default" in s)
           and not s.get("advanced")]
    assert 1 <= len(own) <= 4


# of the result's float64 bytes, on a linear denoiser, whose arithmetic is the same on every machine
PINNED = {
    '{"fewstep_recipe":1,"solver":"ddim","options":{},"correctors":[]}':
        "fec2e3a1d525a154",
    '{"fewstep_recipe":1,"solver":"unipc","options":{"order":3},"correctors":[]}':
        "47b606ef0a084f44",
    '{"fewstep_recipe":1,"solver":"dpm_solver_multistep","options":{"order":2},"correctors":[{"corrector":"unic","options":{}}]}':
        "3de8075168335f7f",
    '{"fewstep_recipe":1,"solver":"dpm_solver_sde_multistep","options":{"order":2},"correctors":[]}':
        "f4f507a3f4afa21c",
    '{"fewstep_recipe":1,"solver":"deis_rk","options":{},"correctors":[]}':
        "f7bf3296fa131020",
}


def result(text):
    frame = frames.edm()
    grid = grids.karras(frame, 6, end="zero", t_T=80.0, t_0=0.02)
    plan = Recipe.from_json(text).resolve(frame, grid)
    x = torch.linspace(-1, 1, 32, dtype=torch.float64).reshape(2, 1, 4, 4) * 80
    return run(plan, lambda y, sigma: y / (1 + sigma.reshape(-1, 1, 1, 1) ** 2), x, seed=3)


@pytest.mark.parametrize("text", list(PINNED), ids=lambda text: json.loads(text)["solver"])
def test_recipes_of_version_1_give_the_same_numbers(text):
    """Rounded to 10 digits: what remains is the compiler's choice of the last bits, not the algorithm. Noise is made in float32,
    by the machine's own logarithm and cosine: 5 digits.
    """
    digits = 4 if "sde" in text else 9
    rounded = [f"{value:.{digits}e}" for value in result(text).flatten().tolist()]
    assert hashlib.sha256(" ".join(rounded).encode()).hexdigest()[:16] == PINNED[text]


def fake_host():
    """A host with node replacement, which keeps what it is told."""
    told = []

    async def register(entry):
        told.append(entry)

    api = types.SimpleNamespace(node_replacement=types.SimpleNamespace(register=register))
    return types.SimpleNamespace(ComfyAPI=lambda: api, io=types.SimpleNamespace(NodeReplace=lambda **given: given)), told


ENTRY = Replacement("FewStepOld", "FewStepDDIM", ("eta", "kind"), {"eta": "eta"}, {"s_noise": 1.0})
TOLD = {
    "new_node_id": "FewStepDDIM", "old_node_id": "FewStepOld", "old_widget_ids": ["eta", "kind"],
    "input_mapping": [{"new_id": "eta", "old_id": "eta"}, {"new_id": "s_noise", "set_value": 1.0}],
    "output_mapping": [{"new_idx": 0, "old_idx": 0}],
}


def test_replacements_reach_a_host_that_knows_them():
    host, told = fake_host()
    assert replacements.install((ENTRY,), host) and told == [TOLD]

    async def while_the_loop_runs():
        assert replacements.install((ENTRY,), host)
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    asyncio.run(while_the_loop_runs())
    assert told == [TOLD, TOLD]


def test_hosts_without_replacement_lose_nothing():
    assert not replacements.install((ENTRY,), types.SimpleNamespace(ComfyAPI=lambda: object()))
    assert not replacements.install((ENTRY,))  # no ComfyUI here
    host, told = fake_host()
    assert not replacements.install((), host) and told == []


def test_replacements_fit_the_nodes():
    nodes = contract()
    for entry in replacements.REPLACEMENTS:
        assert entry.new in nodes and {*entry.inputs, *entry.values} <= set(nodes[entry.new]["inputs"])
