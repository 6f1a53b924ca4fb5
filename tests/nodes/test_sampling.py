"""The bridge and the simple sampler, against a model whose exact answer is known."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fewstep.nodes import NODE_CLASS_MAPPINGS as NODES
from fewstep.nodes.ksampler import FewStepKSampler
from fewstep.nodes.sampling import recipe_of, sample_recipe
from fewstep.nodes.schedule import schedule
from fewstep.samplers import Recipe, solver_names
from fewstep.samplers.errors import FewStepError, OptionError, PlanError, ScheduleError


class Stop(Exception):
    """A host's own interruption."""


def defaults(node_id, **changes):
    types = NODES[node_id].INPUT_TYPES()
    return {n: e[1].get("default") for n, e in types["required"].items()} | changes


def build(node_id, **changes):
    return getattr(NODES[node_id](), NODES[node_id].FUNCTION)(**defaults(node_id, **changes))[0]


@pytest.fixture
def wrapped(gaussian, host):
    """wrapped(form) -> what a sampler function gets as ``model``, unguided."""
    from fewstep.host.sampling import CFGGuider, MaskedModel

    def make(form, mean=0):
        model = host.demo_checkpoint(form)[0]
        context = torch.zeros(1, 1, 11)
        context[0, 0, mean] = 1
        guider = CFGGuider(model, [[context, {}]], [[context, {}]], 1.0)
        return MaskedModel(guider, torch.zeros(1), torch.zeros(1)), model

    return make


def exact(x, sigmas, form, spread, mean=0.0):
    """Solution of the probability-flow ODE of N(mean, spread^2) from the first to the last sigma."""
    (s, e) = float(sigmas[0]), float(sigmas[-1])
    if form == "flow":
        a, b = ((1 - v) ** 2 * spread**2 + v**2 for v in (s, e))
        return (1 - e) * mean + (x - (1 - s) * mean) * (b / a) ** 0.5
    return mean + (x - mean) * ((spread**2 + e**2) / (spread**2 + s**2)) ** 0.5


DETERMINISTIC = ["dpm_solver_multistep", "dpm_solver_singlestep", "unipc", "deis_ab", "deis_rk", "ipndm", "ddim"]


@pytest.mark.parametrize("form", ["eps", "v", "flow"])
@pytest.mark.parametrize("solver", DETERMINISTIC)
def test_samples_approach_the_exact_solution(wrapped, gaussian, form, solver):
    model, _patcher = wrapped(form, mean=5)
    sigmas = torch.tensor([*gaussian.SIGMAS[np.arange(999, 0, -18)]] if form != "flow" else np.linspace(1, 0.02, 50)).float()
    x = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0)) * sigmas[0]
    before = x.clone()
    got = sample_recipe(model, x, sigmas, {}, recipe_json=Recipe(solver).to_json())
    assert torch.equal(x, before)
    error = (got - exact(x, sigmas, form, gaussian.SPREAD, 0.5)).abs().max() / gaussian.SPREAD
    assert error < (0.25 if solver == "ddim" else 0.04)


def test_the_network_is_told_the_hosts_sigmas(wrapped, gaussian):
    model, patcher = wrapped("eps")
    sigmas = torch.tensor([*gaussian.SIGMAS[[999, 500, 20]], 0]).float()
    sample_recipe(model, torch.randn(1, 4, 2, 2), sigmas, {}, recipe_json=Recipe("unipc").to_json())
    np.testing.assert_allclose(patcher.model.diffusion_model.levels, sigmas[:-1], rtol=1e-6)


@pytest.mark.parametrize("solver", solver_names())
@pytest.mark.parametrize("form", ["eps", "flow"])
def test_the_callback_counts_steps_as_the_host_does(wrapped, solver, form):
    model, patcher = wrapped(form)
    sigmas = schedule(patcher, "uniform_t", 6)
    seen, x = [], torch.randn(1, 4, 3, 3)
    result = sample_recipe(model, x, sigmas, {"seed": 3}, seen.append, recipe_json=Recipe(solver).to_json())
    assert len(seen) == patcher.model.diffusion_model.calls
    assert all(set(info) == {"i", "x", "sigma", "sigma_hat", "denoised"} for info in seen)
    steps = [info["i"] for info in seen]
    assert steps == sorted(steps) and steps[0] >= 0 and steps[-1] == 5
    assert seen[0]["sigma"] == pytest.approx(float(sigmas[0]))
    assert seen[-1]["denoised"].shape == x.shape
    torch.testing.assert_close(seen[-1]["denoised"], result)  # the last step to 0 gives the prediction itself


def test_what_the_callback_and_the_model_raise_passes_through(wrapped):
    model, patcher = wrapped("eps")
    sigmas, text = schedule(patcher, "karras", 5), Recipe("unipc").to_json()

    def stop(info):
        if info["i"] == 2:
            raise Stop

    with pytest.raises(Stop):
        sample_recipe(model, torch.randn(1, 4, 3, 3), sigmas, {}, stop, recipe_json=text)
    assert patcher.model.diffusion_model.calls == 3

    def broken(x, sigma, **args):
        raise Stop

    broken.inner_model = model.inner_model
    with pytest.raises(Stop):
        sample_recipe(broken, torch.randn(1, 4, 3, 3), sigmas, {}, recipe_json=text)


def test_extra_args_reach_every_call(wrapped):
    model, patcher = wrapped("eps")
    seen = []

    def spy(x, sigma, **args):
        seen.append((args, sigma.shape))
        return model(x, sigma, **args)

    spy.inner_model = model.inner_model
    args = {"model_options": {"a": 1}, "seed": 5, "denoise_mask": None}
    sample_recipe(spy, torch.randn(3, 4, 3, 3), schedule(patcher, "karras", 3), args, recipe_json=Recipe("ddim").to_json())
    assert seen == [(args, (3,))] * 3


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_to_step_through_returns_the_start(count, host):
    x = torch.randn(1, 4, 2, 2)
    assert sample_recipe(None, x, torch.ones(count), {}, recipe_json=Recipe("unipc").to_json()) is x


@pytest.mark.parametrize(("sigmas", "solver", "error", "words"), [
    ([3.0, 1.0, 1.0, 0.0], "ddim", ScheduleError, "repeats"),
    ([1.0, 3.0, 0.0], "ddim", ScheduleError, "fall"),
    ([3.0, float("nan"), 0.0], "ddim", ScheduleError, "finite"),
    ([3.0, 0.0], "dpm_solver_multistep", OptionError, "lower the order or add steps"),
])
def test_bad_sigmas_are_named_before_any_evaluation(wrapped, sigmas, solver, error, words):
    model, patcher = wrapped("eps")
    with pytest.raises(error, match=words):
        sample_recipe(model, torch.randn(1, 4, 2, 2), torch.tensor(sigmas), {}, recipe_json=Recipe(solver).to_json())
    assert patcher.model.diffusion_model.calls == 0


def test_a_recipe_must_be_one(host):
    with pytest.raises(OptionError, match="not a FewStep recipe"):
        sample_recipe(None, torch.randn(1, 4), torch.tensor([2.0, 0.0]), recipe_json="{}")


@pytest.mark.parametrize("shape", [(2, 4, 3, 5), (2, 4, 3, 2, 2), (2, 1, 37)])
@pytest.mark.parametrize("form", ["eps", "flow"])
def test_pictures_video_and_packed_latents_are_the_same_arithmetic(wrapped, form, shape):
    model, patcher = wrapped(form)
    sigmas, text = schedule(patcher, "karras", 5), Recipe("unipc", {"order": 3}).to_json()
    x = torch.randn(shape)
    got = sample_recipe(model, x, sigmas, {}, recipe_json=text)
    flat = sample_recipe(model, x.reshape(2, 1, 1, -1), sigmas, {}, recipe_json=text)
    torch.testing.assert_close(got, flat.reshape(shape))


def test_slices_that_do_not_end_in_zero(wrapped, gaussian):
    """A deterministic one-step method run in two parts is the whole run."""
    model, patcher = wrapped("v")
    sigmas, text = schedule(patcher, "karras", 6), Recipe("ddim").to_json()
    x = torch.randn(1, 4, 3, 3) * sigmas[0]
    half = sample_recipe(model, x, sigmas[:4], {}, recipe_json=text)
    torch.testing.assert_close(
        sample_recipe(model, half, sigmas[3:], {}, recipe_json=text), sample_recipe(model, x, sigmas, {}, recipe_json=text))


@pytest.mark.parametrize("solver", ["dpm_solver_sde_multistep", "dpm_solver_sde_singlestep"])
def test_a_samples_noise_does_not_depend_on_its_batch(wrapped, solver):
    model, patcher = wrapped("flow")
    sigmas, text = schedule(patcher, "uniform_t", 5), Recipe(solver).to_json()
    x = torch.randn(3, 4, 4, 4)
    whole = sample_recipe(model, x, sigmas, {"seed": 11}, recipe_json=text)
    again = sample_recipe(model, x, sigmas, {"seed": 11}, recipe_json=text)
    assert torch.equal(whole, again)
    for i in range(3):
        single = sample_recipe(model, x[i : i + 1], sigmas, {"seed": 11 + i}, recipe_json=text)
        torch.testing.assert_close(single, whole[i : i + 1], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(whole, sample_recipe(model, x, sigmas, {"seed": 12}, recipe_json=text))


def test_the_solvers_noise_is_not_the_start_noise(wrapped):
    """With one seed for both, ancestral noise must not repeat the start: the residue would be correlated."""
    model, _patcher = wrapped("eps")
    start = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(7))
    sigmas = torch.tensor([14.0, 13.0])
    step = Recipe("ddim", {"eta": 1.0}).to_json()
    with_noise = sample_recipe(model, torch.zeros_like(start), sigmas, {"seed": 7}, recipe_json=step)
    plain = sample_recipe(model, torch.zeros_like(start), sigmas, {"seed": 8}, recipe_json=step)
    for draw in (with_noise, plain):
        assert abs(float(torch.corrcoef(torch.stack([draw.flatten(), start.flatten()]))[0, 1])) < 0.03


# nodes

@pytest.mark.parametrize("node_id", [i for i, c in NODES.items() if hasattr(c, "SOLVER")])
def test_solver_nodes_carry_recipes(host, node_id):
    recipe = recipe_of(build(node_id))
    node = NODES[node_id]
    assert recipe.solver == node.SOLVER
    assert Recipe.from_json(recipe.to_json()) == recipe
    json.dumps(dict(recipe.options))


def test_widget_words_become_options(host):
    assert recipe_of(build("FewStepUniPC", disable_corrector="0, 2")).options["disable_corrector"] == (0, 2)
    words = {"published": True, "always": "always", "never": False}
    for word, value in words.items():
        options = recipe_of(build("FewStepDPMSolverMultistep", lower_order_final=word)).options
        assert options["lower_order_final"] is value or options["lower_order_final"] == value != True  # noqa: E712
    single = recipe_of(build("FewStepDPMSolverSDE", method="singlestep", r=0.25))
    assert (single.solver, single.options["r"]) == ("dpm_solver_sde_singlestep", 0.25)
    assert "r" not in recipe_of(build("FewStepDPMSolverSDE")).options


def test_corrector_steps_far_out_are_allowed(host):
    assert recipe_of(build("FewStepUniPC", disable_corrector="150")).options["disable_corrector"] == (150,)


@pytest.mark.parametrize(("node_id", "changes", "words"), [
    ("FewStepDPMSolverMultistep", {"order": 5}, "order is 5"),
    ("FewStepDPMSolverMultistep", {"prediction": "noise", "thresholding": True}, "prediction='data'"),
    ("FewStepUniPC", {"disable_corrector": "first"}, "separated by commas"),
    ("FewStepDDIM", {"eta": 1.5}, "eta is 1.5"),
])
def test_bad_options_show_in_the_node_that_has_them(host, node_id, changes, words):
    with pytest.raises(OptionError, match=words):
        build(node_id, **changes)


def test_texts_are_validated_before_the_run():
    node = NODES["FewStepUniPC"]
    assert node.VALIDATE_INPUTS(disable_corrector="0,3") is True
    assert node.VALIDATE_INPUTS(disable_corrector=None) is True
    assert "separated by commas" in node.VALIDATE_INPUTS(disable_corrector="0;x")
    assert "'1.5'" in NODES["FewStepUniC"].VALIDATE_INPUTS(disable="1.5")


def test_the_corrector_adds_to_the_recipe(host, wrapped, gaussian):
    plain = build("FewStepDPMSolverMultistep")
    corrected = build("FewStepUniC", sampler=plain)
    assert recipe_of(plain).correctors == ()
    assert [n for n, _ in recipe_of(corrected).correctors] == ["unic"]
    model, patcher = wrapped("eps")
    sigmas = torch.tensor(gaussian.SIGMAS[np.arange(999, 0, -110)]).float()
    x = torch.randn(1, 4, 4, 4) * sigmas[0]
    errors = [
        float((s.sampler_function(model, x, sigmas, {}, **s.extra_options) - exact(x, sigmas, "eps", 0.5)).abs().max())
        for s in (plain, corrected)
    ]
    assert patcher.model.diffusion_model.calls == 2 * 9  # at no cost
    assert errors[1] < errors[0]


def test_what_cannot_be_corrected_says_why(host):
    with pytest.raises(PlanError, match="adds noise"):
        build("FewStepUniC", sampler=build("FewStepDPMSolverSDE"))
    with pytest.raises(FewStepError, match="one evaluation per step"):
        build("FewStepUniC", sampler=build("FewStepDEISRungeKutta"))
    with pytest.raises(OptionError, match="not one of FewStep's"):
        build("FewStepUniC", sampler=SimpleNamespace())


# the simple sampler

def ksample(host, text, model, **changes):
    values = {
        "model": model, "positive": text("3"), "negative": text(""), "latent_image": {"samples": torch.zeros(2, 4, 8, 8)}, "seed": 1, "steps": 6,
        "cfg": 1.0, "solver": "unipc", "schedule": "uniform_t", "denoise": 1.0}
    return FewStepKSampler().sample(**{**values, **changes})[0]["samples"]


@pytest.mark.parametrize("form", ["eps", "v", "flow"])
@pytest.mark.parametrize("solver", solver_names())
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_every_solver_runs_with_any_number_of_steps(host, text, form, solver, steps):
    model = host.demo_checkpoint(form)[0]
    samples = ksample(host, text, model, solver=solver, steps=steps)
    assert torch.isfinite(samples).all() and samples.shape == (2, 4, 8, 8)


def test_widgets_give_way_to_sockets(host, text):
    model = host.demo_checkpoint("eps")[0]
    sigmas = schedule(model, "karras", 3)
    by_sockets = ksample(host, text, model, sampler=build("FewStepDDIM"), sigmas=sigmas, denoise=0.2, solver="deis_rk")
    by_widgets = ksample(host, text, model, solver="ddim", schedule="karras", steps=3)
    assert torch.equal(by_sockets, by_widgets)


def test_the_same_inputs_give_the_same_bits(host, text):
    runs = [ksample(host, text, host.demo_checkpoint("v")[0], solver="dpm_solver_sde_multistep", cfg=3.0) for _ in range(2)]
    assert torch.equal(*runs)


def test_denoise_keeps_as_much_of_the_picture_as_the_ode_does(host, text, gaussian):
    """img2img: start at the sigma of the last 4 of 8 steps, from latent + noise."""
    model = host.demo_checkpoint("flow")[0]
    image = torch.full((1, 4, 8, 8), 0.9)
    latent = {"samples": image}
    assert torch.equal(ksample(host, text, model, latent_image=latent, denoise=0.0), image)
    samples = ksample(host, text, model, latent_image=latent, denoise=0.5, steps=40, solver="dpm_solver_multistep")
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    expected = exact(0.5 * noise + 0.5 * image, [0.5, 0.0], "flow", gaussian.SPREAD, 0.3)
    torch.testing.assert_close(samples, expected, rtol=0, atol=5e-3)
    assert model.model.diffusion_model.calls == 40


def test_an_unfit_schedule_is_an_error_of_the_node(host, text):
    with pytest.raises(ScheduleError, match="repeats"):
        ksample(host, text, host.demo_checkpoint("eps")[0], sigmas=torch.tensor([5.0, 1.0, 1.0, 0.0]))
