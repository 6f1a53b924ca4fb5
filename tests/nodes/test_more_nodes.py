"""The nodes around the solvers: one schedule node per grid, the inspector, and the entries in the stock lists."""

import sys
import types

import pytest
import torch
from fewstep import NODE_CLASS_MAPPINGS
from fewstep.nodes import stock_lists
from fewstep.nodes.schedule import schedule
from fewstep.samplers import grids
from fewstep.samplers.errors import OptionError

KINDS = {node.KIND: node for name, node in NODE_CLASS_MAPPINGS.items() if hasattr(node, "KIND")}


def test_there_is_a_node_for_every_grid():
    assert set(KINDS) == set(grids.GRIDS)


@pytest.mark.parametrize("kind", grids.GRIDS)
@pytest.mark.parametrize("form", ["eps", "flow"])
def test_it_gives_what_the_general_node_gives(host, kind, form):
    model = host.demo_checkpoint(form)[0]
    node = KINDS[kind]
    extra = {name: node.INPUT_TYPES()["required"][name][1]["default"] for name in node.EXTRA}
    sigmas = node().build(model, 7, 0.6, **extra)[0]
    assert torch.equal(sigmas, schedule(model, kind, 7, 0.6)) and len(sigmas) == 8 and sigmas[-1] == 0


def test_the_inspector_shows_what_will_run(host):
    model = host.demo_checkpoint("eps")[0]
    sigmas = schedule(model, "karras", 6)
    sampler = NODE_CLASS_MAPPINGS["FewStepDPMSolverMultistep"]().build(order=3, solver_type="exact")[0]
    shown = NODE_CLASS_MAPPINGS["FewStepPlanInspector"]().inspect(model, sampler, sigmas)
    image, text = shown["result"]
    assert shown["ui"]["text"] == [text] and "order 3, 6 evaluations" in text
    assert [line.split()[1] for line in text.splitlines() if " M_" in line and "(x_0)" in line] == [f"{s:.6g}" for s in sigmas[:-1].tolist()]
    assert image.ndim == 4 and image.shape[-1] == 3 and 0 <= float(image.min()) < 0.5 < float(image.max()) <= 1
    adaptive = NODE_CLASS_MAPPINGS["FewStepDPMSolverAdaptive"]().build(order=2)[0]
    assert "chosen while running" in NODE_CLASS_MAPPINGS["FewStepPlanInspector"]().inspect(model, adaptive, sigmas)["result"][1]
    with pytest.raises(OptionError, match="not one of FewStep's"):
        NODE_CLASS_MAPPINGS["FewStepPlanInspector"]().inspect(model, object(), sigmas)


@pytest.fixture
def comfy(monkeypatch):
    """The few names of the host that the lists live under."""
    samplers = types.ModuleType("comfy.samplers")
    samplers.KSAMPLER_NAMES, samplers.SAMPLER_NAMES = ["euler"], ["euler", "ddim"]
    samplers.SCHEDULER_NAMES, samplers.SCHEDULER_HANDLERS = ["normal"], {"normal": None}
    samplers.SchedulerHandler = lambda handler: handler
    functions = types.ModuleType("comfy.k_diffusion.sampling")
    package, diffusion = types.ModuleType("comfy"), types.ModuleType("comfy.k_diffusion")
    package.samplers, package.k_diffusion, diffusion.sampling = samplers, diffusion, functions
    for module in (package, diffusion, samplers, functions):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return samplers, functions


def test_stock_lists_are_appended_to_once(comfy):
    samplers, functions = comfy
    before = samplers.SAMPLER_NAMES
    added = stock_lists.install()
    assert samplers.SAMPLER_NAMES is before and before[:2] == ["euler", "ddim"] and set(stock_lists.SAMPLERS) <= set(before)
    assert all(hasattr(functions, f"sample_{name}") for name in stock_lists.SAMPLERS)
    assert ["normal", *stock_lists.SCHEDULES] == samplers.SCHEDULER_NAMES and samplers.SCHEDULER_HANDLERS["normal"] is None
    assert added and stock_lists.install() == [] and samplers.SAMPLER_NAMES.count("fewstep_unipc") == 1


def test_stock_lists_can_be_left_alone(comfy, monkeypatch):
    monkeypatch.setenv("FEWSTEP_STOCK_LISTS", "0")
    assert stock_lists.install() == [] and comfy[0].SAMPLER_NAMES == ["euler", "ddim"]


def test_a_changed_host_costs_a_log_line_only(comfy, caplog):
    del comfy[0].SCHEDULER_HANDLERS
    assert stock_lists.install() == [] and "not in the stock KSampler's lists" in caplog.text


@pytest.mark.parametrize("name", stock_lists.SAMPLERS)
@pytest.mark.parametrize("form", ["eps", "flow"])
@pytest.mark.parametrize("steps", [1, 2, 6])
def test_stock_entries_sample(host, text, comfy, name, form, steps):
    stock_lists.install()
    samplers, functions = comfy
    model = host.demo_checkpoint(form)[0]
    sigmas = samplers.SCHEDULER_HANDLERS["fewstep_quadratic"](model.get_model_object("model_sampling"), steps)
    assert len(sigmas) == steps + 1
    sampler = host.make_sampler(getattr(functions, f"sample_{name}"), {})
    latent = {"samples": torch.zeros(2, 4, 8, 8)}
    out = host.sample(model, 1, 1.0, sampler, sigmas, text("3"), text(""), latent)["samples"]
    assert torch.isfinite(out).all()
    if steps == 1 and form == "flow":  # one step from pure noise gives the prediction there: the data's mean
        assert float((out - 0.3).abs().max()) < 1e-5
    elif steps == 6:
        assert 0.2 < float(out.std()) < 0.8 and abs(float(out.mean()) - 0.3) < 0.15  # data: 0.3, spread 0.5
