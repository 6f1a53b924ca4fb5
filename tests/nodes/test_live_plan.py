"""The plan drawn in a node is the plan that runs, and it says what it is drawn from."""

import json
import math
import time

import fewstep
import pytest
import torch
from fewstep.nodes import last_runs, live_graph
from fewstep.nodes.live_plan import Malformed, live_plan

CLASSES = fewstep.NODE_CLASS_MAPPINGS
SOLVERS = [i for i, c in CLASSES.items() if hasattr(c, "SOLVER")]
DRAWN = [i for i, c in CLASSES.items() if c.RETURN_TYPES == ("SAMPLER",)]


@pytest.fixture(autouse=True)
def no_runs(host):
    last_runs.forget()
    yield
    last_runs.forget()


def defaults(node, **changes):
    groups = CLASSES[node].INPUT_TYPES()
    widgets = {n: (k, s[0]) for g in groups.values() for n, (k, *s) in g.items() if isinstance(k, list) or "default" in s[0]}
    return {"class_type": node, "inputs": {**{n: s["default"] for n, (_, s) in widgets.items()}, **changes}}


def graph(solver="FewStepDDIM", form="eps", steps=8, kind="uniform_t", **options):
    custom = {"model": ["1", 0], "sampler": ["2", 0], "sigmas": ["3", 0]}
    return {
        "1": {"class_type": "FewStepDemoCheckpoint", "inputs": {"form": form}}, "2": defaults(solver, **options),
        "3": defaults("FewStepSchedule", model=["1", 0], steps=steps, kind=kind),
        "4": {"class_type": "SamplerCustom", "inputs": custom},
    }


def plan(prompt, node="2"):
    return live_plan(json.loads(json.dumps({"prompt": prompt, "node": node})))


@pytest.mark.parametrize("form", ["eps", "flow"])
@pytest.mark.parametrize("solver", ["FewStepDDIM", "FewStepUniPC", "FewStepDEISRungeKutta", "FewStepDPMSolverSinglestep"])
def test_it_names_the_levels_at_which_the_model_is_then_evaluated(form, solver, host, gaussian, text):
    """The network itself writes down where it is asked."""
    prompt = graph(solver, form)
    drawn = plan(prompt)
    (model, _, _), net = host.demo_checkpoint(form), None
    net = model.model.diffusion_model
    sigmas = CLASSES["FewStepSchedule"]().build(model, "uniform_t", 8, 1.0)[0]
    node = CLASSES[solver]()
    sampler = getattr(node, node.FUNCTION)(**prompt["2"]["inputs"])[0]
    host.sample(model, 1, 1.0, sampler, sigmas, text("3"), text(""), {"samples": torch.zeros(1, 4, 8, 8)})
    levels = sorted(set(drawn["sigmas"]) | {sigma for _, sigma in drawn["inner"]})
    near = 0.02 if form == "eps" else 1e-5  # the network is told the nearest of 1000 training steps
    assert drawn["nfe"] == net.calls and drawn["basis"]["known"]
    assert all(min(abs(level / sigma - 1) for sigma in levels if sigma) < near for level in net.levels)
    assert (drawn["steps"], drawn["sigmas"][-1], drawn["lambdas"][-1]) == (8, 0.0, None)


def test_the_table_of_ddim_is_the_published_one():
    """In the alpha = 1 frame a step is x + (sigma_next - sigma) eps."""
    drawn = plan(graph("FewStepDDIM", prediction="eps", steps=3))
    sigma = drawn["sigmas"]
    table = drawn["table"]
    assert table["columns"] == ["X", "M_0", "M_1", "M_2"] and len(table["rows"]) == 3
    for k, row in enumerate(table["values"]):
        assert row[0] == pytest.approx(1.0) and row[1 + k] == pytest.approx(sigma[k + 1] - sigma[k], rel=1e-6)
        assert [v for j, v in enumerate(row) if j not in (0, 1 + k)] == [None] * 2
    assert drawn["lambdas"][0] == pytest.approx(-math.log(sigma[0]))
    assert "song2021ddim" in drawn["citations"] and "3 evaluations" in drawn["text"]


def test_correctors_and_guiders_are_followed_to_the_schedule():
    prompt = graph("FewStepDPMSolverMultistep", steps=5)
    prompt["5"] = defaults("FewStepUniC", sampler=["2", 0])
    prompt["6"] = {"class_type": "CFGGuider", "inputs": {"model": ["1", 0]}}
    prompt["4"] = {"class_type": "SamplerCustomAdvanced", "inputs": {"guider": ["6", 0], "sampler": ["5", 0], "sigmas": ["3", 0]}}
    before, after = plan(prompt), plan(prompt, "5")
    assert before["steps"] == after["steps"] == 5 and before["basis"]["known"] and after["basis"]["known"]
    assert "unic" in after["label"] and "unic" not in before["label"] and before["table"] != after["table"]


def test_the_ksampler_shows_what_it_will_choose():
    links = {"model": ["1", 0], "positive": ["9", 0], "negative": ["9", 0], "latent_image": ["9", 0]}
    prompt = {**graph(), "7": defaults("FewStepKSampler", steps=2, solver="unipc", **links)}
    drawn = plan(prompt, "7")
    assert (drawn["nfe"], json.loads(drawn["recipe"])["options"]["order"]) == (2, 2), "the order is lowered to the steps"
    prompt["7"]["inputs"].update(sampler=["2", 0], sigmas=["3", 0])
    assert plan(prompt, "7")["label"] == plan(prompt)["label"] and plan(prompt, "7")["steps"] == 8
    prompt["7"]["inputs"]["sampler"] = ["4", 0]
    assert plan(prompt, "7")["error"]["type"] == "NotKnownYet"


def test_a_comparison_gives_its_first_steps():
    prompt = graph("FewStepUniPC")
    prompt["4"] = defaults("FewStepCompare", model=["1", 0], sampler_2=["2", 0], steps="5, 9", schedule="karras")
    drawn = plan(prompt)
    assert drawn["steps"] == 5 and drawn["basis"]["known"] and drawn["sigmas"] != plan(graph("FewStepUniPC", steps=5))["sigmas"]


def test_an_unknown_model_is_assumed_and_said_until_a_run_tells(host, text):
    prompt = graph("FewStepUniPC")
    prompt["1"] = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "any"}}
    drawn = plan(prompt)
    assert not drawn["basis"]["known"] and drawn["basis"]["text"].startswith("Assumed until it is known: a Stable Diffusion model")
    model = host.demo_checkpoint("flow")[0]
    sampler = CLASSES["FewStepUniPC"]().build(**prompt["2"]["inputs"])[0]
    sigmas = torch.tensor([1.0, 0.5, 0.0])
    host.sample(model, 1, 1.0, sampler, sigmas, text("3"), text(""), {"samples": torch.zeros(1, 4, 8, 8)})
    drawn = plan(prompt)
    assert drawn["basis"]["known"] and "last run" in drawn["basis"]["text"]
    assert drawn["sigmas"] == pytest.approx([1 - i / 8 for i in range(9)]), "the connected schedule on that model"
    del prompt["4"]
    assert plan(prompt)["sigmas"] == [1.0, 0.5, 0.0]
    prompt["2"]["inputs"]["order"] = 1
    other = plan(prompt)["basis"]
    assert not other["known"] and "the model of the last run" in other["text"] and "even steps" in other["text"]


def test_the_memory_of_runs_is_bounded_and_cannot_break_a_run():
    class Odd:
        def __deepcopy__(self, memo):
            raise RuntimeError("not copyable")

    for i in range(100):
        last_runs.remember(f"recipe {i}", object(), [1.0, 0.0])
    last_runs.remember("odd", Odd(), [1.0, 0.0])
    assert last_runs.recall("odd") is None and last_runs.recall("recipe 0") is None and last_runs.recall("recipe 99")


@pytest.mark.parametrize(("change", "kind", "message"), [
    ({"order": 99}, "OptionError", "order is 99"), ({"order": "3"}, "OptionError", "expected INT"),
    ({"variant": "bh9"}, "OptionError", "bh9"), ({"disable_corrector": "x"}, "OptionError", "step numbers"),
    ({"order": ["4", 0]}, "NotKnownYet", "linked"), ({"order": 6, "steps": 3}, "OptionError", "order"),
])
def test_errors_are_named(change, kind, message):
    prompt = graph("FewStepUniPC", steps=change.pop("steps", 8))
    prompt["2"]["inputs"].update(change)
    error = plan(prompt)["error"]
    assert error["type"] == kind and message in error["message"]


@pytest.mark.parametrize("node", DRAWN)
def test_every_node_that_draws_has_a_plan(node):
    prompt = graph("FewStepDPMSolverMultistep")
    prompt["5"] = defaults(node)
    if "sampler" in CLASSES[node].INPUT_TYPES()["required"]:
        prompt["5"]["inputs"]["sampler"] = ["2", 0]
    prompt["4"]["inputs"]["sampler"] = ["5", 0]
    drawn = plan(prompt, "5")
    calibrations = [name for name, (kind, _) in CLASSES[node].INPUT_TYPES()["required"].items() if kind == "FEWSTEP_CALIBRATION"]
    if calibrations:
        assert drawn["error"]["type"] == "NotKnownYet" and calibrations[0] in drawn["error"]["message"]
        prompt["6"] = {"class_type": "FewStepLoadCalibration", "inputs": {"model": ["1", 0], "file": "no such file"}}
        prompt["5"]["inputs"][calibrations[0]] = ["6", 0]
        assert plan(prompt, "5")["error"]["type"] == "OptionError"
    else:
        assert "error" not in drawn and drawn["basis"]["known"] and drawn["steps"] == 8


def test_many_steps_and_circles_are_refused():
    assert "not drawn" in plan(graph(steps=9999))["error"]["message"]
    prompt = graph()
    prompt["5"], prompt["6"] = defaults("FewStepUniC", sampler=["6", 0]), defaults("FewStepUniC", sampler=["5", 0])
    assert "circle" in plan(prompt, "5")["error"]["message"]


@pytest.mark.parametrize("data", [
    None, [], {"prompt": {}}, {"prompt": [], "node": "1"}, {"prompt": {"1": {}}, "node": "1"}, {"prompt": {}, "node": "1"},
    {"prompt": {"1": {"class_type": "FewStepDDIM", "inputs": []}}, "node": 1},
])
def test_malformed_requests(data):
    with pytest.raises(Malformed):
        live_plan(data)


@pytest.mark.parametrize("node", SOLVERS)
def test_fifty_steps_in_fifty_milliseconds(node):
    plan(graph(node, steps=49))  # imports, tables of the schedule

    def seconds(steps):
        start = time.process_time()
        plan(graph(node, steps=steps))
        return time.process_time() - start

    limit = 0.1 if node == "FewStepDPMSolverV3" else 0.05  # its integrals alone take 40 ms on a slow core
    assert min(seconds(50) for _ in range(5)) < limit


def test_no_model_is_loaded_or_run(host, monkeypatch):
    monkeypatch.setattr(host, "demo_checkpoint", None)
    monkeypatch.setattr(host, "sample", None)
    assert plan(graph())["basis"]["known"]
    assert set(live_graph.OUTPUTS) == {"SAMPLER", "SIGMAS"}
