"""The stand-ins for the host's objects, against what the host does."""

import numpy as np
import pytest
import torch
from fewstep.host.errors import HostInputError, InterruptProcessingException
from fewstep.host.model import HostModel
from fewstep.host.model_sampling import DiscreteSampling, FlowSampling
from fewstep.host.sampling import full_mask, start_noise
from fewstep.host.stock_sampling import SamplerCustom
from fewstep.nodes import NODE_CLASS_MAPPINGS as NODES
from fewstep.nodes.schedule import schedule


def solver(node_id="FewStepUniPC", **changes):
    types = NODES[node_id].INPUT_TYPES()["required"]
    return NODES[node_id]().build(**{**{n: e[1]["default"] for n, e in types.items()}, **changes})[0]


@pytest.fixture
def custom(host, text):
    def run(form="eps", **changes):
        model = host.demo_checkpoint(form)[0]
        values = {
            "model": model, "add_noise": True, "noise_seed": 5, "cfg": 1.0, "positive": text("4"), "negative": text(""), "sampler": solver(),
            "sigmas": schedule(model, "karras", 6), "latent_image": {"samples": torch.zeros(2, 4, 8, 8)}}
        values.update({k: v(model) if callable(v) else v for k, v in changes.items()})
        output, denoised = SamplerCustom().sample(**values)
        return output["samples"], denoised["samples"], model.model.diffusion_model

    return run


# start noise

@pytest.mark.parametrize("seed", [0, 42, 2**64 - 1])
def test_start_noise_is_torch_s_global_stream(seed):
    latent = torch.zeros(3, 4, 5, 6)
    torch.manual_seed(seed)
    assert torch.equal(start_noise(latent, seed), torch.randn(3, 4, 5, 6))


def test_batch_index_picks_samples_of_a_whole_batch():
    latent = torch.zeros(3, 4, 5, 6)
    torch.manual_seed(9)
    each = [torch.randn(1, 4, 5, 6) for _ in range(6)]
    assert torch.equal(start_noise(latent, 9, [5, 0, 5]), torch.cat([each[5], each[0], each[5]]))


# model_sampling

def test_discrete_table_and_times(gaussian):
    s = DiscreteSampling(gaussian.AC, "eps")
    assert s.sigmas.dtype == torch.float32 and len(s.sigmas) == 1000
    assert (float(s.sigma_min), float(s.sigma_max)) == pytest.approx((0.0292, 14.6146), abs=5e-5)
    assert torch.equal(s.timestep(s.sigmas), torch.arange(1000))
    between = (s.sigmas[10] * s.sigmas[11]) ** 0.5  # halfway in log sigma
    assert s.timestep((between * 1.001)[None]).tolist() == [11] and s.timestep((between * 0.999)[None]).tolist() == [10]
    torch.testing.assert_close(s.sigma(torch.tensor(10.5)), between)
    assert (s.percent_to_sigma(0.0), s.percent_to_sigma(1.0)) == (999999999.9, 0.0)
    assert s.percent_to_sigma(0.5) == pytest.approx(float(s.sigma(torch.tensor(499.5))))


def test_flow_times():
    s = FlowSampling(3.0)
    u = np.arange(1, 1001) / 1000
    np.testing.assert_allclose(s.sigmas, 3 * u / (1 + 2 * u), rtol=1e-6)
    assert float(s.sigma_max) == 1.0 and s.percent_to_sigma(0.0) == 1.0 and s.percent_to_sigma(1.0) == 0.0
    assert float(s.timestep(torch.tensor(0.25))) == 250


@pytest.mark.parametrize("form", ["eps", "v", "flow"])
def test_network_output_means_what_the_family_says(gaussian, form):
    """With the right target as output, x_0 comes back."""
    s = FlowSampling() if form == "flow" else DiscreteSampling(gaussian.AC, form)
    x_0, noise = torch.randn(2, 3, 4, 4).unbind(0)
    sigma = torch.tensor([0.3, 0.9, 0.5])
    k = sigma.reshape(-1, 1, 1)
    x = s.noise_scaling(sigma, noise, x_0)
    alpha, std = 1 / (1 + k**2) ** 0.5, k / (1 + k**2) ** 0.5
    target = {"eps": noise, "v": alpha * noise - std * x_0, "flow": noise - x_0}[form]
    torch.testing.assert_close(s.calculate_denoised(sigma, target, x), x_0)
    torch.testing.assert_close(s.calculate_input(sigma, x), x if form == "flow" else alpha * x)


def test_start_and_end_scaling(gaussian):
    eps, flow = DiscreteSampling(gaussian.AC, "eps"), FlowSampling()
    s, noise, latent = torch.tensor(2.0), torch.ones(1, 1), torch.full((1, 1), 3.0)
    assert float(eps.noise_scaling(s, noise, latent)) == 5
    assert float(eps.noise_scaling(s, noise, latent, True)) == pytest.approx(5**0.5 + 3)
    assert float(flow.noise_scaling(s / 8, noise, latent, True)) == pytest.approx(0.25 + 0.75 * 3)
    assert float(eps.inverse_noise_scaling(s, latent)) == 3
    assert float(flow.inverse_noise_scaling(s / 8, latent)) == 4


def test_clones_are_independent(host):
    model = host.demo_checkpoint("eps")[0]
    clone = model.clone()
    clone.add_object_patch("model_sampling", FlowSampling())
    clone.model_options["transformer_options"]["a"] = 1
    assert isinstance(model.get_model_object("model_sampling"), DiscreteSampling)
    assert model.model_options == {"transformer_options": {}}
    assert clone.patched_model().diffusion_model is model.get_model_object("diffusion_model")
    assert isinstance(model.model, HostModel) and isinstance(model.model.model_sampling, DiscreteSampling)


# guidance

def test_guidance_is_linear_and_cfg_1_spares_the_negative(custom, text):
    cond, _, net = custom(cfg=1.0)
    assert (net.calls, net.samples) == (6, 12)
    both, _, net = custom(cfg=2.0)
    assert (net.calls, net.samples) == (6, 24)  # both in one batch
    uncond, _, _ = custom(cfg=1.0, positive=text(""))
    # the Gaussian model is linear in the mean, so guidance moves the whole trajectory linearly
    torch.testing.assert_close(both, uncond + 2 * (cond - uncond), rtol=1e-4, atol=1e-5)
    apart, _, net = custom(cfg=2.0, negative=[[torch.cat([text("")[0][0]] * 2, 1), {}]])  # another length: two calls
    assert net.calls == 12
    torch.testing.assert_close(apart, both, rtol=1e-4, atol=1e-5)


def test_conditionings_with_several_entries_are_averaged(custom, text):
    mean, _, _ = custom(positive=text("2") + text("6"))
    one, _, _ = custom(positive=text("4"))
    torch.testing.assert_close(mean, one, rtol=1e-4, atol=1e-5)
    strong = [[text("2")[0][0], {"strength": 3.0}], *text("6")]
    weighted, _, _ = custom(positive=strong)
    third, _, _ = custom(positive=text("3"))
    torch.testing.assert_close(weighted, third, rtol=1e-4, atol=1e-5)


# SamplerCustom

def test_the_same_seed_gives_the_same_bits(custom):
    assert torch.equal(custom()[0], custom()[0])
    assert not torch.equal(custom()[0], custom(noise_seed=6)[0])


@pytest.mark.parametrize("form", ["eps", "v", "flow"])
def test_a_run_to_zero_ends_in_the_last_prediction(custom, form):
    output, denoised, _ = custom(form)
    torch.testing.assert_close(output, denoised)
    assert abs(float(output.mean()) - 0.4) < 0.1


@pytest.mark.parametrize("form", ["eps", "flow"])
def test_two_halves_are_the_whole(custom, form):
    """KSamplerAdvanced's way: the second half gets the first's latent and no noise."""
    one_step = solver("FewStepDDIM")
    whole, _, _ = custom(form, sampler=one_step)
    sigmas = {}

    def first(model):
        sigmas["all"] = schedule(model, "karras", 6)
        return sigmas["all"][:4]

    half, denoised, _ = custom(form, sampler=one_step, sigmas=first)
    assert not torch.allclose(half, denoised, atol=1e-2)
    rest, _, _ = custom(form, sampler=one_step, sigmas=lambda model: sigmas["all"][3:], add_noise=False, latent_image={"samples": half})
    torch.testing.assert_close(rest, whole, rtol=1e-4, atol=1e-5)


def test_no_sigmas_return_the_latent(custom):
    latent = {"samples": torch.randn(1, 4, 8, 8), "batch_index": [3]}
    output, denoised, net = custom(sigmas=torch.zeros(0), latent_image=latent)
    assert torch.equal(output, latent["samples"]) and torch.equal(denoised, latent["samples"]) and net.calls == 0


@pytest.mark.parametrize("form", ["eps", "v", "flow"])
@pytest.mark.parametrize("node", ["FewStepUniPC", "FewStepDPMSolverSDE", "FewStepDPMSolverMultistep", "FewStepDEISRungeKutta"])
def test_the_unmasked_region_stays(custom, form, node):
    image = torch.rand(2, 4, 8, 8)
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., :32] = 1  # the left half is to be painted
    given = {"samples": image, "noise_mask": mask}
    output, _, _ = custom(form, latent_image=given, sampler=solver(node))
    torch.testing.assert_close(output[..., 5:], image[..., 5:], rtol=0, atol=2e-5)
    assert (output[..., :3] - image[..., :3]).abs().mean() > 0.1
    free, _, _ = custom(form, latent_image={"samples": image}, sampler=solver(node))
    assert (free[..., 5:] - image[..., 5:]).abs().mean() > 0.1
    assert given["samples"] is image and set(given) == {"samples", "noise_mask"}


@pytest.mark.parametrize("form", ["eps", "flow"])
def test_the_network_sees_the_kept_region_at_the_calls_noise_level(custom, gaussian, monkeypatch, form):
    """In every call, inner ones too: latent and start noise mixed at the sigma of that call."""
    image, seen = torch.rand(2, 4, 8, 8), []
    forward = gaussian.Net.forward
    monkeypatch.setattr(gaussian.Net, "forward", lambda self, x, t, **more: seen.append(x.clone()) or forward(self, x, t, **more))
    _, _, net = custom(form, latent_image={"samples": image, "noise_mask": torch.zeros(8, 8)}, sampler=solver("FewStepDEISRungeKutta"))
    torch.manual_seed(5)
    noise = torch.randn(2, 4, 8, 8)
    for s, x in zip(net.levels, seen, strict=True):
        known = s * noise + (1 - s) * image if form == "flow" else (image + s * noise) / (1 + s**2) ** 0.5
        torch.testing.assert_close(x, known, rtol=0, atol=1e-2)  # the table's level is the nearest one


def test_masks_of_any_form_take_the_latents_shape():
    for mask in (torch.ones(8, 8), torch.ones(1, 64, 32), torch.ones(3, 1, 16, 16)):
        assert full_mask(mask, (3, 4, 8, 6)).shape == (3, 4, 8, 6)
    two = torch.stack([torch.zeros(8, 8), torch.ones(8, 8)])[:, None]
    assert full_mask(two, (4, 4, 8, 8))[:, 0, 0, 0].tolist() == [0, 1, 0, 1]
    assert full_mask(torch.ones(2, 1, 8, 8), (2, 4, 3, 8, 8)).shape == (2, 4, 3, 8, 8)


def test_wrong_channels_are_named(custom):
    with pytest.raises(HostInputError, match="16 channels"):
        custom(latent_image={"samples": torch.ones(1, 16, 8, 8)})


def test_an_empty_latent_takes_the_models_channels(custom):
    sixteen, four = (custom(latent_image={"samples": torch.zeros(2, channels, 8, 8)})[0] for channels in (16, 4))
    assert torch.equal(sixteen, four)


def test_progress_and_cancel(host, custom):
    seen = []

    def listen(value, total, denoised):
        seen.append((value, total, tuple(denoised.shape)))
        if value == 3:
            host.interrupt()

    host.on_progress = listen
    with pytest.raises(InterruptProcessingException):
        custom()
    assert seen == [(i, 6, (2, 4, 8, 8)) for i in (1, 2, 3)]
    host.on_progress = None
    custom()  # the request is used up
    assert host.sampling_seconds > 0


# the trained demo

@pytest.mark.parametrize("form", ["eps", "v", "flow"])
def test_a_workflow_samples_what_the_demo_itself_does(tmp_path, form):
    """The whole chain of nodes against the demo's own guided denoiser and the engine, on the trained network."""
    from fewstep.demo import model as demo
    from fewstep.demo import text as demo_text
    from fewstep.demo import weights
    from fewstep.host.embedded import EmbeddedHost
    from fewstep.host.executor import Executor
    from fewstep.host.workflows import sample_workflow
    from fewstep.samplers import frames, make_plan, run

    if not weights.path_of(form).is_file():
        pytest.skip(f"no weights for the form {form}")
    graph = sample_workflow(form=form, prompt="3", negative="", batch=2, size=64, seed=4, steps=6, cfg=2.5, solver="unipc",
                            schedule="uniform_t", options={})
    values = Executor(EmbeddedHost(tmp_path)).execute(graph).values
    model, samples = values["1"][0][0], values["6"][0][0]["samples"]
    assert model.model.diffusion_model is not demo.load(form).net  # hosts move networks about: each has its own
    sigmas = schedule(model, "uniform_t", 6)
    torch.manual_seed(4)
    noise = torch.randn(2, 4, 8, 8)
    if form == "flow":
        frame, start = frames.flow(), noise
    else:
        frame = frames.discrete_vp(demo.load(form).alphas_cumprod).unit_alpha()
        start = noise * (1 + sigmas[0] ** 2) ** 0.5
    denoiser = demo.load(form).denoiser(demo_text.encode("3"), demo_text.encode(""), guidance_scale=2.5)
    expected = run(make_plan("unipc", frame, sigmas), denoiser, start)
    torch.testing.assert_close(samples, expected, rtol=1e-3, atol=1e-3)
