"""auto in FewStep KSampler: the Advisor's answer for every family of models, and what it leaves alone."""

import json
import logging

import numpy as np
import pytest
import torch
from fewstep.host.model import HostModel, ModelPatcher
from fewstep.host.model_sampling import DiscreteSampling, FlowSampling
from fewstep.nodes import last_runs
from fewstep.nodes.advisor import FewStepAdvisor
from fewstep.nodes.frames import frame_of
from fewstep.nodes.ksampler import FewStepKSampler
from fewstep.nodes.live_plan import live_plan
from fewstep.nodes.sampling import make_sampler, recipe_of
from fewstep.nodes.schedule import schedule
from fewstep.samplers import Recipe
from fewstep.samplers.errors import OptionError
from scipy.stats import beta

FORMS = ("eps", "v", "flow", "flow of shift 3", "edm")


class Edm(DiscreteSampling):
    """A continuous model with the time of EDM; its network gives x_0."""

    def __init__(self):
        self.prediction = "x_0"
        self.sigmas = torch.logspace(-2.7, 1.9, 1000)

    def timestep(self, sigma):
        return sigma.log() / 4


@pytest.fixture
def model_of(host, gaussian):
    """model_of(form) -> MODEL whose network is exact for a Gaussian."""
    class EdmNet(torch.nn.Module):
        calls = 0

        def forward(self, x, t, context=None, **ignored):
            self.calls += 1
            s = (4 * t.reshape(-1, 1, 1, 1)).exp()
            mean = (context.mean(1)[:, :10] @ torch.arange(10.0) / 10).reshape(-1, 1, 1, 1)
            return mean + gaussian.SPREAD**2 / (gaussian.SPREAD**2 + s**2) * (x * (1 + s**2) ** 0.5 - mean)

    def make(form):
        if form == "edm":
            return ModelPatcher(HostModel(EdmNet(), Edm()))
        model = host.demo_checkpoint(form.partition(" ")[0])[0]
        if form == "flow of shift 3":
            model.add_object_patch("model_sampling", FlowSampling(3.0))
        return model

    return make


@pytest.fixture
def sample(text):
    """sample(model, ...) -> the samples; auto unless said otherwise."""
    def run(model, **changes):
        values = {
            "model": model, "positive": text("3"), "negative": text(""), "latent_image": {"samples": torch.zeros(1, 4, 8, 8)},
            "seed": 1, "steps": 6, "cfg": 1.0, "solver": "auto", "schedule": "auto", "denoise": 1.0}
        return FewStepKSampler().sample(**{**values, **changes})[0]["samples"]

    return run


@pytest.fixture
def handed(host, sample, monkeypatch):
    """handed(model, ...) -> the recipe and the sigmas that the host is given; nothing is sampled."""
    def give(model, **changes):
        seen = []
        monkeypatch.setattr(host, "sample", lambda *given: seen.append(given) or given[-1])
        sample(model, **changes)
        (_, _, _, sampler, sigmas, *_), = seen
        return recipe_of(sampler), sigmas

    return give


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cfg", [1.0, 2.0, 4.0, 7.5])
def test_auto_is_the_advisors_answer_at_one_evaluation_a_step(model_of, handed, form, cfg):
    model = model_of(form)
    frame = frame_of(model.get_model_object("model_sampling"))
    for steps in (1, 2, 3, 4, 6, 8, 12, 20):
        sampler, sigmas, *_ = FewStepAdvisor().advise(model, steps, cfg, False, False)["result"]
        recipe, levels = handed(model, steps=steps, cfg=cfg)
        assert recipe == recipe_of(sampler) and torch.equal(levels, sigmas)
        assert recipe.resolve(frame, levels.tolist()).nfe == steps


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("steps", [1, 2, 3, 8])
def test_it_runs_on_every_family_and_asks_the_network_once_a_step(model_of, sample, form, steps):
    model = model_of(form)
    samples = sample(model, steps=steps)
    assert torch.isfinite(samples).all() and model.model.diffusion_model.calls == steps


@pytest.mark.parametrize("form", ["eps", "edm"])
def test_it_comes_near_the_exact_end(model_of, sample, gaussian, form):
    """x - mean shrinks as sqrt(SPREAD^2 + sigma^2)."""
    model = model_of(form)
    top = float(model.get_model_object("model_sampling").sigma_max)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)).double()
    start = noise * (1 + top**2) ** 0.5
    exact = 0.3 + (start - 0.3) * gaussian.SPREAD / (gaussian.SPREAD**2 + top**2) ** 0.5
    errors = [
        float((sample(model, **choice).double() - exact).square().mean().sqrt())
        for choice in ({"steps": 8}, {"steps": 14}, {"steps": 8, "solver": "unipc", "schedule": "uniform_t"})]
    assert errors[0] < 0.1 and errors[1] < 0.4 * errors[0], "the same rule converges"
    if form == "eps":  # of the family that the rules were measured on
        assert errors[0] < 0.25 * errors[2]


def test_one_auto_leaves_the_other_as_it_was_chosen(model_of, handed):
    model = model_of("eps")
    both, old = handed(model), handed(model, solver="unipc", schedule="beta")
    recipe, sigmas = handed(model, schedule="beta")
    assert recipe == both[0] and torch.equal(sigmas, schedule(model, "beta", 6))
    recipe, sigmas = handed(model, solver="unipc")
    assert recipe == old[0] == Recipe("unipc", {"order": 2}) and torch.equal(sigmas, both[1])


def test_sockets_overrule_auto(model_of, handed):
    model, sampler, sigmas = model_of("eps"), make_sampler(Recipe("deis_rk")), torch.tensor([9.0, 3.0, 1.0, 0.2, 0.0])
    advised = FewStepAdvisor().advise(model, 4, 1.0, False, False)["result"][0]
    recipe, levels = handed(model, sigmas=sigmas, steps=20, denoise=0.3)
    assert recipe == recipe_of(advised) and torch.equal(levels, sigmas), "the rule of the connected number of steps"
    recipe, levels = handed(model, sampler=sampler)
    assert recipe == Recipe("deis_rk") and torch.equal(levels, handed(model)[1])
    assert handed(model, sampler=sampler, sigmas=sigmas)[0] == Recipe("deis_rk")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 6, 8])
def test_denoise_changes_as_much_whatever_rule_holds(model_of, handed, form, steps):
    """The start is that of even steps; those of the rules are up to a factor 2 apart."""
    model = model_of(form)
    recipe, sigmas = handed(model, steps=steps, cfg=2.0, denoise=0.5)
    even = schedule(model, "shifted" if form == "flow of shift 3" else "uniform_t", 2 * steps)[-steps - 1 :]
    assert len(sigmas) == steps + 1 and bool((sigmas.diff() < 0).all()) and sigmas[[0, -1]].tolist() == even[[0, -1]].tolist()
    assert recipe == handed(model, steps=steps, cfg=2.0)[0], "the rule for the steps that are run"
    if form == "flow" and steps >= 4:  # beta steps are advised
        share = 0.001 + 0.998999 * beta.ppf(1 - np.arange(steps) / steps, 0.9, 0.8)
        np.testing.assert_allclose(sigmas[:-1], 0.5 * share / share[0], rtol=1e-5)
    elif "flow" in form:
        assert torch.equal(sigmas, even)


def test_below_the_start_steps_are_spread_as_advised(model_of, handed):
    """Karras steps are even in sigma^(1/7) from any start to the model's last level."""
    model = model_of("eps")
    levels = handed(model, steps=6, cfg=2.0, denoise=0.5)[1][:-1].double() ** (1 / 7)
    torch.testing.assert_close(levels, torch.linspace(float(levels[0]), float(schedule(model, "karras", 6)[-2]) ** (1 / 7), 6).double(),
                               atol=1e-5, rtol=0)


@pytest.mark.parametrize("form", FORMS)
def test_a_mask_keeps_the_rest_of_the_picture(model_of, sample, form):
    model, image = model_of(form), torch.full((1, 4, 8, 8), 0.9)
    mask = torch.zeros(1, 8, 8)
    mask[:, 4:] = 1
    for denoise in (1.0, 0.5):
        samples = sample(model, latent_image={"samples": image, "noise_mask": mask}, denoise=denoise, steps=3)
        torch.testing.assert_close(samples[:, :, :4], image[:, :, :4], atol=1e-3, rtol=0)  # float32, from sigma 79 on
        assert not torch.allclose(samples[:, :, 4:], image[:, :, 4:], atol=0.05)
    assert torch.equal(sample(model, latent_image={"samples": image}, denoise=0.0), image)


def test_saved_choices_ask_no_rule(model_of, handed, monkeypatch):
    monkeypatch.setattr("fewstep.samplers.advice.advise", lambda facts: pytest.fail("a pinned choice asked for advice"))
    recipe, sigmas = handed(model_of("flow"), solver="unipc", schedule="uniform_t", steps=4)
    assert json.loads(recipe.to_json()) == {"fewstep_recipe": 1, "solver": "unipc", "options": {"order": 2}, "correctors": []}
    assert sigmas.tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]


@pytest.mark.parametrize("name, known", [("solver", "unipc"), ("schedule", "karras")])
def test_a_bad_value_is_named_with_its_choices(model_of, sample, name, known):
    with pytest.raises(OptionError, match=f"{name} is 'atuo'.*auto.*{known}"):
        sample(model_of("eps"), **{name: "atuo"})


def test_the_log_says_what_was_chosen(model_of, handed, caplog):
    with caplog.at_level(logging.INFO, "fewstep"):
        handed(model_of("flow"), steps=12, cfg=4.0)
        handed(model_of("flow"), solver="unipc", schedule="karras")
    assert caplog.messages == ["FewStep: Auto chose ipndm(order=3) + sigma_clock() on the schedule beta."]


# the drawing

def drawn(form="flow", **inputs):
    links = {"model": ["1", 0], "positive": ["9", 0], "negative": ["9", 0], "latent_image": ["9", 0]}
    widgets = {"seed": 1, "steps": 12, "cfg": 4.0, "solver": "auto", "schedule": "auto", "denoise": 1.0}
    prompt = {
        "1": {"class_type": "FewStepDemoCheckpoint", "inputs": {"form": form}},
        "2": {"class_type": "FewStepDEISRungeKutta", "inputs": {"tableau": "2heun"}},
        "3": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "any"}},
        "4": {"class_type": "PrimitiveFloat", "inputs": {"value": 1.0}},
        "7": {"class_type": "FewStepKSampler", "inputs": {**widgets, **links, **inputs}},
    }
    return live_plan(json.loads(json.dumps({"prompt": prompt, "node": "7"})))


@pytest.fixture
def no_runs(host):
    last_runs.forget()
    yield
    last_runs.forget()


@pytest.mark.usefixtures("no_runs")
def test_the_drawing_and_its_text_name_what_auto_chose():
    plan, said = drawn(), "Auto chose ipndm(order=3) + sigma_clock() on the schedule beta."
    assert plan["label"] == "ipndm(order=3) + sigma_clock()" and plan["nfe"] == plan["steps"] == 12
    assert plan["basis"] == {"known": True, "text": f"{said} Drawn from the node's schedule and the demo model (flow)."}
    assert plan["text"].startswith(f"{said}\n\n")
    assert drawn(solver="unipc")["basis"]["text"].startswith("Auto chose the schedule beta. Drawn")
    assert drawn(schedule="beta")["basis"]["text"].startswith("Auto chose ipndm(order=3) + sigma_clock(). Drawn")
    assert drawn(sampler=["2", 0])["basis"]["text"].startswith("Auto chose the schedule beta. Drawn")
    pinned = drawn(solver="unipc", schedule="beta")
    assert pinned["basis"]["text"].startswith("Drawn from") and "Auto" not in pinned["text"]
    assert "deis_ab(ab_order=2, basis=rho) + unic(order=2) on the schedule beta" in drawn("eps", steps=4, cfg=["4", 0])["text"]
    assert "cfg is linked" in drawn(cfg=["3", 0])["error"]["message"]


@pytest.mark.usefixtures("no_runs")
@pytest.mark.parametrize("form", ["eps", "flow"])
def test_a_run_tells_which_rule_holds_for_an_unknown_model(model_of, sample, form):
    before = drawn(model=["3", 0], cfg=2.0, steps=6)
    assert not before["basis"]["known"] and "a Stable Diffusion model" in before["basis"]["text"]
    sample(model_of(form), steps=6, cfg=2.0)
    after = drawn(model=["3", 0], cfg=2.0, steps=6)
    known = drawn(form, cfg=2.0, steps=6)
    assert after["basis"]["known"] and (after["recipe"], after["sigmas"]) == (known["recipe"], known["sigmas"])
