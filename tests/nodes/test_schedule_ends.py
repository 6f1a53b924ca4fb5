"""Schedules that stop at the last trained noise level, and where flow models' trailing starts: levels, results, everything after."""

import itertools
import json

import fewstep
import numpy as np
import pytest
import torch
from fewstep.benchmarks.problems import PROBLEMS
from fewstep.host.sampling import CFGGuider
from fewstep.host.stock_custom import SplitSigmas
from fewstep.host.stock_samplers import sampler_by_name
from fewstep.nodes.compare import FewStepCompare
from fewstep.nodes.frames import frame_of
from fewstep.nodes.live_plan import live_plan
from fewstep.nodes.schedule import schedule
from fewstep.samplers import Recipe, grids, run
from fewstep.samplers.calibration.store import Calibration
from fewstep.samplers.errors import CalibrationError, OptionError
from fewstep.samplers.shortened import regrid
from scipy.stats import beta

NODES = fewstep.NODE_CLASS_MAPPINGS
SINGLE = {node.KIND: node for node in NODES.values() if hasattr(node, "KIND")}
# SASolverScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="linspace") of
# diffusers 0.42.1 after set_timesteps(3 and 9), numbers that divide its 999 steps, so that it rounds none
SA_SOLVER = (
    [14.61465, 2.918308, 0.9323583, 0.02916753],
    [14.61465, 7.839885, 4.609176, 2.918308, 1.950162, 1.344929, 0.9323583, 0.6249773, 0.3686585, 0.02916753],
)
# UniPCMultistepScheduler(use_flow_sigmas=True, flow_shift=1.0 and 3.0) of the same after set_timesteps(4)
UNIPC_FLOW = {
    1.0: [0.9999989867, 0.75025, 0.5005, 0.25075, 0.0], 3.0: [0.9999989867, 0.90012, 0.7503748, 0.501, 0.0],
}


@pytest.fixture
def model(host):
    return lambda form="eps": host.demo_checkpoint(form)[0]


@pytest.mark.parametrize("levels", SA_SOLVER)
def test_even_steps_that_stop_are_diffusers_linspace(model, levels):
    for form in ("eps", "v"):
        np.testing.assert_allclose(schedule(model(form), "uniform_t", len(levels) - 1, end="stop"), levels, rtol=2e-5)


@pytest.mark.parametrize("shape", [(0.6, 0.6), (0.5, 0.7), (1.0, 1.0)])
@pytest.mark.parametrize("form", ["eps", "flow"])
def test_beta_steps_that_stop_differ_in_the_last_level_alone(model, gaussian, form, shape):
    options = {} if shape == (0.6, 0.6) else dict(zip(("alpha", "beta"), shape, strict=True))
    stopped, zero = (NODES["FewStepBetaSchedule"]().build(model(form), 5, 1.0, end=end, **options)[0] for end in ("stop", "zero"))
    assert torch.equal(zero, schedule(model(form), "beta", 5, **options))
    share = beta.ppf(1 - np.arange(6) / 5, *shape)
    if form == "flow":
        np.testing.assert_allclose(stopped, 0.001 + 0.999 * share, rtol=1e-6)
    else:  # between the 1000 training steps log alpha is linear
        expected = np.interp(999 * share, np.arange(1000), 0.5 * np.log(gaussian.AC))
        np.testing.assert_allclose(stopped, np.sqrt(np.exp(-2 * expected) - 1), rtol=2e-5)
    assert torch.equal(stopped[:-1], zero[:-1]) and zero[-1] == 0


@pytest.mark.parametrize(("form", "kind"), list(itertools.product(("eps", "flow"), grids.GRIDS)))
def test_every_schedule_stops_where_the_model_was_trained_last(model, gaussian, form, kind):
    lowest = gaussian.SIGMAS[0] if form == "eps" else 0.001
    if kind in ("shifted", "trailing") and form == "flow":
        lowest = 3 * 0.001 / (1 + 2 * 0.001)  # with a shift of 3 after the stop
    if kind == "edm_rho" and form == "flow":
        lowest = 0.002  # EDM's own end
    options = {"shift": 3.0 if form == "flow" else 1.0} if kind in ("shifted", "trailing") else {}
    for steps, denoise in ((1, 1.0), (2, 1.0), (7, 1.0), (5, 0.4)):
        sigmas = schedule(model(form), kind, steps, denoise, end="stop", **options)
        assert sigmas.shape == (steps + 1,) and (sigmas.diff() < 0).all()
        assert float(sigmas[-1]) == pytest.approx(lowest, rel=2e-5)
        whole = schedule(model(form), kind, int(steps / denoise), end="stop", **options)
        assert torch.equal(sigmas, whole[-steps - 1 :]), "denoise takes the last part of the same grid"
    node = SINGLE[kind]
    extra = {name: node.INPUT_TYPES()["required"][name][1]["default"] for name in node.EXTRA}
    assert torch.equal(node().build(model(form), 4, 1.0, end="stop", **extra)[0], schedule(model(form), kind, 4, end="stop", **extra))
    saved = node().build(model(form), 4, 1.0, **extra)[0]
    assert torch.equal(saved, node().build(model(form), 4, 1.0, end="zero", **extra)[0]) and saved[-1] == 0


@pytest.mark.parametrize("shift", UNIPC_FLOW)
def test_trailing_from_just_below_1_is_nearly_diffusers_unipc(model, shift):
    """Its last level before 0 is a step above 0.001, the pack's a step above 0: never 0.001 apart before the shift."""
    found = schedule(model("flow"), "trailing", 4, shift=shift, start="0.999999")
    u = 0.999999 * np.array([1, 0.75, 0.5, 0.25, 0])
    np.testing.assert_allclose(found, shift * u / (1 + (shift - 1) * u), rtol=1e-6)
    np.testing.assert_allclose(found, UNIPC_FLOW[shift], rtol=0, atol=1e-3 * shift)
    plain = schedule(model("flow"), "trailing", 4, shift=shift)
    assert torch.equal(plain, schedule(model("flow"), "trailing", 4, shift=shift, start="0.999")) and plain[0] < found[0] < 1
    assert torch.equal(plain, schedule(model("flow"), "trailing", 4, shift=shift, start="own"))
    for kind in ("trailing", "beta"):  # noise models start where they were trained to
        assert torch.equal(*(schedule(model("eps"), kind, 4, start=start) for start in ("0.999", "0.999999")))
    assert torch.equal(found, SINGLE["trailing"]().build(model("flow"), 4, 1.0, shift=shift, start="0.999999")[0])


@pytest.mark.parametrize("start", ["0.999", "0.999999"])
def test_beta_from_just_below_1_has_the_same_quantiles(model, start):
    found = schedule(model("flow"), "beta", 4, start=start, alpha=0.9, beta=0.8)
    share = beta.ppf([1, 0.75, 0.5, 0.25], 0.9, 0.8)
    np.testing.assert_allclose(found, [*(0.001 + (float(start) - 0.001) * share), 0], rtol=1e-6)
    assert torch.equal(found, SINGLE["beta"]().build(model("flow"), 4, 1.0, start=start, alpha=0.9, beta=0.8)[0])
    assert torch.equal(*(schedule(model("flow"), "beta", 4, **options) for options in ({}, {"start": "own"})))


def test_from_0_999999_the_second_step_has_order_2(model):
    """From 1 itself lambda is infinite and the second step cannot use the first: against the exact solution of a mixture."""
    problem = PROBLEMS["mixture_flow"](4)
    denoiser = problem.make(2.0)

    def error(sigmas):
        plan = Recipe("unipc").resolve(problem.frame, grids.from_sigmas(problem.frame, sigmas))
        return problem.error(run(plan, denoiser, problem.noise * plan.nodes[0].sigma), 2.0)

    even = error(schedule(model("flow"), "uniform_t", 20))
    assert error(schedule(model("flow"), "trailing", 20, start="0.999999")) < even / 5


def test_bad_ends_and_starts_are_named(model):
    with pytest.raises(OptionError, match="end"):
        schedule(model(), "uniform_t", 4, end="last")
    with pytest.raises(OptionError, match="start"):
        schedule(model("flow"), "trailing", 4, start="1")


# what a host makes of it

@pytest.mark.parametrize("form", ["eps", "v", "flow"])
@pytest.mark.parametrize("which", ["fewstep", "euler", "dpmpp_2m"])
def test_the_result_is_the_state_at_the_last_level(host, text, model, gaussian, form, which):
    """The ODE's solution there, its little noise included, over alpha as the host has it; not the last prediction of x_0."""
    steps = 1000 if which == "euler" else 300
    sigmas = schedule(model(form), "karras" if form != "flow" else "uniform_t", steps, end="stop")
    sampler = NODES["FewStepUniPC"]().build(**defaults("FewStepUniPC"))[0] if which == "fewstep" else sampler_by_name(which)
    got = host.sample(model(form), 1, 1.0, sampler, sigmas, text("3"), text(""), {"samples": torch.zeros(1, 4, 8, 8)})["samples"]
    s, e, spread = float(sigmas[0]), float(sigmas[-1]), gaussian.SPREAD
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    if form == "flow":
        state = (1 - e) * 0.3 + (noise * s - (1 - s) * 0.3) * (((1 - e) ** 2 * spread**2 + e**2) / ((1 - s) ** 2 * spread**2 + s**2)) ** 0.5
        exact = state / (1 - e)
    else:
        x = noise * ((1 + s**2) ** 0.5)  # the host's full start
        exact = 0.3 + (x - 0.3) * ((spread**2 + e**2) / (spread**2 + s**2)) ** 0.5
    torch.testing.assert_close(got, exact, rtol=0, atol=4e-3)
    if form != "flow":
        below = 0.3 + (exact - 0.3) * spread**2 / (spread**2 + e**2)  # the prediction there is another picture
        assert (got - exact).abs().mean() < (below - exact).abs().mean()


@pytest.mark.parametrize("form", ["eps", "flow"])
def test_a_run_in_the_host_is_the_plan_that_the_benchmark_runs(host, text, model, form):
    sigmas = schedule(model(form), "beta", 5, end="stop")
    sampler = NODES["FewStepUniPC"]().build(**defaults("FewStepUniPC"))[0]
    got = host.sample(model(form), 1, 1.0, sampler, sigmas, text("3"), text(""), {"samples": torch.zeros(1, 4, 8, 8)})["samples"]
    guider = CFGGuider(model(form), text("3"), text(""), 1.0)
    frame, sampling = frame_of(host.demo_sampling(form)), host.demo_sampling(form)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    start = sampling.noise_scaling(sigmas[0], noise, torch.zeros_like(noise), True)
    plan = Recipe("unipc").resolve(frame, grids.from_sigmas(frame, sigmas))
    state = run(plan, lambda x, sigma: guider(x, sigma.float(), {}, None), start)
    torch.testing.assert_close(got, state / (1 - float(sigmas[-1])) if form == "flow" else state, rtol=1e-6, atol=1e-6)


def test_a_kept_part_of_a_picture_keeps_the_little_noise_too(host, text, model):
    """Why the words say: not for inpainting."""
    sigmas = schedule(model(), "karras", 6, end="stop")
    picture, mask = torch.full((1, 4, 8, 8), 0.5), torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    sampler = NODES["FewStepUniPC"]().build(**defaults("FewStepUniPC"))[0]
    found = [
        host.sample(model(), 1, 1.0, sampler, levels, text("3"), text(""), {"samples": picture, "noise_mask": mask})["samples"]
        for levels in (sigmas, schedule(model(), "karras", 6))
    ]
    left = (found[0] - picture)[..., 4:]
    assert float(left.std()) == pytest.approx(float(sigmas[-1]), rel=0.2)
    torch.testing.assert_close(found[1][..., 4:], picture[..., 4:], rtol=0, atol=1e-5)


def test_a_split_and_joined_schedule_is_the_whole(host, text, model):
    """The second part starts where the first ends; a deterministic first-order solver gives the same in two runs."""
    whole = schedule(model(), "uniform_t", 6, end="stop")
    high, low = SplitSigmas().get_sigmas(whole, 3)
    assert torch.equal(torch.cat([high, low[1:]]), whole)
    sampler = NODES["FewStepDDIM"]().build(**defaults("FewStepDDIM"))[0]
    latent = {"samples": torch.zeros(1, 4, 8, 8)}
    once = host.sample(model(), 1, 1.0, sampler, whole, text("3"), text(""), latent)["samples"]
    first = host.sample(model(), 1, 1.0, sampler, high, text("3"), text(""), latent)
    guider = CFGGuider(model(), text("3"), text(""), 1.0)

    class NoNoise:
        seed = 0

        def generate_noise(self, latent):
            return torch.zeros_like(latent["samples"])

    twice = host.sample_guided(guider, NoNoise(), sampler, low, first)[0]["samples"]
    torch.testing.assert_close(twice, once, rtol=0, atol=1e-5)


# nodes that look ahead

def defaults(node, **changes):
    groups = NODES[node].INPUT_TYPES()
    widgets = {n: s[0]["default"] for g in groups.values() for n, (k, *s) in g.items() if s and "default" in s[0]}
    return {**widgets, **changes}


def graph(**changes):
    prompt = {
        "1": ("FewStepDemoCheckpoint", {"form": "eps"}), "2": ("FewStepUniPC", defaults("FewStepUniPC")),
        "3": ("FewStepSchedule", defaults("FewStepSchedule", model=["1", 0], steps=3, **changes)),
        "4": ("SamplerCustom", {"model": ["1", 0], "sampler": ["2", 0], "sigmas": ["3", 0]}),
    }
    return {i: {"class_type": kind, "inputs": inputs} for i, (kind, inputs) in prompt.items()}


def drawn(prompt, node="2"):
    return live_plan(json.loads(json.dumps({"prompt": prompt, "node": node})))


def test_the_drawing_and_the_inspector_end_where_the_run_does(host, model):
    plan = drawn(graph(kind="uniform_t", end="stop"))
    np.testing.assert_allclose(plan["sigmas"], SA_SOLVER[0], rtol=2e-5)
    assert plan["lambdas"][-1] == pytest.approx(-np.log(SA_SOLVER[0][-1]), rel=2e-5), "finite: there is a last level to draw"
    assert plan["basis"]["known"] and (plan["steps"], plan["nfe"]) == (3, 3)
    older = graph(kind="uniform_t")
    del older["3"]["inputs"]["end"], older["3"]["inputs"]["start"]
    assert drawn(older)["sigmas"][-1] == 0 and drawn(older)["sigmas"] == drawn(graph(kind="uniform_t", end="zero"))["sigmas"]
    assert "end" in drawn(graph(kind="uniform_t", end="last"))["error"]["message"]
    sampler = NODES["FewStepUniPC"]().build(**defaults("FewStepUniPC"))[0]
    image, text = NODES["FewStepPlanInspector"]().inspect(model(), sampler, schedule(model(), "uniform_t", 3, end="stop"))["result"]
    assert "0.029167" in text and torch.isfinite(image).all()


def test_a_comparison_drawn_with_an_end(host):
    prompt = graph()
    prompt["4"] = {"class_type": "FewStepCompare", "inputs": defaults(
        "FewStepCompare", model=["1", 0], sampler_1=["2", 0], steps="3, 9", end="stop")}
    assert drawn(prompt)["sigmas"][-1] == pytest.approx(SA_SOLVER[0][-1], rel=2e-5)
    del prompt["4"]["inputs"]["end"]
    assert drawn(prompt)["sigmas"][-1] == 0


def test_a_comparison_holds_both_ends_against_the_picture_without_noise(host, text, model):
    """60 steps that stop are off by the noise that stays, of which the exact solution says how much it is."""
    class Vae:
        def decode(self, samples):
            return samples.movedim(1, -1)[..., :3].clamp(0, 1)

    sampler, net = NODES["FewStepUniPC"]().build(**defaults("FewStepUniPC"))[0], model()
    differences = {}
    for end in ("zero", "stop"):
        _, _, numbers = FewStepCompare().compare(
            net, text("3"), text(""), {"samples": torch.zeros(1, 4, 8, 8)}, Vae(), 1, 1.0, "60", "karras", 100, end=end,
            sampler_1=sampler)["result"]
        differences[end] = float(numbers.splitlines()[-1].split(",")[4])
    e, spread = SA_SOLVER[0][-1], 0.5
    scale = (1 + e**2 / spread**2) ** 0.5 - 1 / (1 + e**2 / spread**2) ** 0.5  # of the state over x_0, about its mean 0.3
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    expected = scale * spread / (spread**2 * float((noise**2).mean()) + 0.3**2) ** 0.5 * float((noise**2).mean()) ** 0.5
    assert differences["zero"] < 2e-4 and differences["stop"] == pytest.approx(expected, rel=0.2)


# calibrations belong to one end

def test_ratios_of_one_end_are_refused_on_the_other(host, model):
    frame = frame_of(host.demo_sampling("eps"))
    solver = Recipe("unipc")
    stopped, zero = (grids.from_sigmas(frame, schedule(model(), "beta", 5, end=end)) for end in ("stop", "zero"))
    for made_on, other in ((stopped, zero), (zero, stopped)):
        clock = [n.sigma / (n.alpha + n.sigma) for n in made_on.nodes]
        meta = {"recipe": solver.to_json(), "dc_order": 2, "clock": clock, "sigmas": made_on.sigma.tolist(), "steps": 5}
        made = Calibration("ratios", {"ratios": torch.ones(5, dtype=torch.float64)}, meta)
        recipe = solver.corrected("dynamic_compensation", ratios=made)
        assert recipe.resolve(frame, made_on).nfe == 5
        with pytest.raises(CalibrationError, match="other noise levels: node 5"):
            recipe.resolve(frame, other)


def test_a_jump_leaves_the_end_where_it_was(host, model):
    frame = frame_of(host.demo_sampling("eps"))
    rest = regrid(grids.from_sigmas(frame, schedule(model(), "karras", 8, end="stop")), 3.0)
    assert rest.steps == 8 and rest.end == "stop" and rest.sigma[-1] == pytest.approx(SA_SOLVER[0][-1], rel=2e-5)
