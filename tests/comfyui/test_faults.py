"""Faults are told in the same form by both hosts, and in the node that has them."""

import copy

import pytest

CHANGES = {  # name: (node, input, value); None takes it away
    "missing input": ("7", "sigmas", None), "missing widget": ("7", "cfg", None),
    "wrong socket type": ("7", "sigmas", ["5", 0]), "long link": ("7", "sigmas", ["6", 0, 0]), "too big": ("5", "order", 99),
    "too small": ("6", "steps", 0), "not a number": ("6", "steps", "many"), "not in the list": ("5", "variant", "bh3"),
    "custom check": ("5", "disable_corrector", "first"), "null": ("2", "text", None),
}


def told(status, answer):
    """What a client acts on."""
    assert set(answer["error"]) == {"type", "message", "details", "extra_info"}
    nodes = {
        i: (node["class_type"], sorted(node["dependent_outputs"]),
            sorted((fault["type"], fault["extra_info"].get("input_name")) for fault in node["errors"]))
        for i, node in dict(answer["node_errors"]).items()}
    return status, answer["error"]["type"], nodes


def both(server, embedded, prompt):
    found = [told(*host.post("/prompt", {"prompt": copy.deepcopy(prompt)})) for host in (server, embedded)]
    assert found[0] == found[1]
    return found[0]


@pytest.mark.parametrize("name", CHANGES)
def test_a_fault_of_a_node(server, embedded, graph, name):
    node, key, value = CHANGES[name]
    prompt = graph("eps", "FewStepUniPC")
    if value is None:
        prompt[node]["inputs"].pop(key)
    else:
        prompt[node]["inputs"][key] = value
    status, kind, nodes = both(server, embedded, prompt)
    assert (status, kind, list(nodes)) == (400, "prompt_outputs_failed_validation", [node])


def test_two_faults_at_once(server, embedded, graph):
    prompt = graph("eps", "FewStepUniPC")
    prompt["5"]["inputs"] |= {"order": 99, "variant": "bh3"}
    prompt["4"]["inputs"]["width"] = 1
    _, _, nodes = both(server, embedded, prompt)
    assert {i: len(faults) for i, (_, _, faults) in nodes.items()} == {"4": 1, "5": 2}


@pytest.mark.parametrize("name", ["no output", "unknown class", "no class"])
def test_a_fault_of_the_whole(server, embedded, graph, name):
    prompt = graph("eps", "FewStepUniPC")
    if name == "no output":
        del prompt["9"]
    else:
        prompt["5"] = {"inputs": {}} | ({"class_type": "FewStepUniPCC"} if name == "unknown class" else {})
    status, _, nodes = both(server, embedded, prompt)
    assert status == 400 and nodes == {}


def test_a_missing_node_is_named(either, graph):
    """ComfyUI fails while it checks, and blames the input that leads to the fault; here the fault itself is named."""
    status, answer = either.post("/prompt", {"prompt": graph("eps", "FewStepUniPC", sampler=["77", 0])})
    assert status == 400 and answer["node_errors"]["7"]["class_type"] == "SamplerCustom"


def test_good_outputs_run_beside_bad_ones(either, graph):
    prompt = graph("eps", "FewStepUniPC") | {"20": {"class_type": "PreviewImage", "inputs": {"images": ["77", 0]}}}
    status, answer = either.post("/prompt", {"prompt": prompt})
    assert status == 200 and list(answer["node_errors"]) == ["20"]
    assert set(either.entry(answer["prompt_id"])["outputs"]) == {"9"}


@pytest.mark.parametrize(("change", "node", "words"), [
    (("5", "order", 3), "7", "order 3 needs at least 3 steps"),
    (("2", "text", "17"), "2", "names the number 17"),
])
def test_an_error_of_the_run(either, graph, change, node, words):
    prompt = graph("eps", "FewStepUniPC", steps=2)
    prompt[change[0]]["inputs"][change[1]] = change[2]
    error = either.error(either.run(prompt))
    assert error["node_id"] == node and words in error["exception_message"]
    assert error["exception_type"].rsplit(".", 1)[-1].endswith("Error") and error["traceback"]
    assert len(either.images(either.run(graph("eps", "FewStepUniPC")))) == 2
