"""The Teleport node before FewStep's samplers and before others, against a model whose exact answer is known."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fewstep.nodes.calibration import CalibrationInput, register_folders
from fewstep.nodes.sampling import recipe_of
from fewstep.nodes.schedule import schedule
from fewstep.nodes.solvers import FewStepDPMSolverMultistep
from fewstep.nodes.teleport import FewStepTeleport
from fewstep.samplers import Recipe, frames
from fewstep.samplers import run as run_plan
from fewstep.samplers.calibration import store
from fewstep.samplers.calibration.moments_file import calibration_of
from fewstep.samplers.errors import CalibrationError, FewStepError, OptionError, ScheduleError
from fewstep.samplers.moments import ChannelMoments

MEAN = 0.3  # of the prompt "3"


class Stop(Exception):
    """A host's own interruption."""


@pytest.fixture
def moments(host, tmp_path, monkeypatch, gaussian):
    """The exact moments of the prompt "3", saved where the host finds them."""
    monkeypatch.setattr(store, "_folders", [])
    host.models_directory = tmp_path / "models"
    folder = register_folders()
    made = calibration_of(ChannelMoments(torch.full((4,), MEAN), torch.eye(4) * gaussian.SPREAD**2))
    return CalibrationInput(store.save(made, folder / "digits.safetensors"), made)


def euler(model, x, sigmas, extra_args=None, callback=None, disable=None, scale=1.0):
    """A sampler function of the host's kind; it writes to its start, as some do."""
    for i in range(len(sigmas) - 1):
        denoised = model(x, sigmas[i] * x.new_ones(len(x)), **(extra_args or {}))
        if callback is not None:
            callback({"x": x, "i": i, "sigma": sigmas[i], "sigma_hat": sigmas[i], "denoised": denoised})
        x += (x - denoised) / sigmas[i] * (sigmas[i + 1] - sigmas[i]) * scale
    return x


def stock(host, **options):
    return host.make_sampler(euler, options)


def defaults(node):
    return {n: e[1]["default"] for n, e in node.INPUT_TYPES()["required"].items() if "default" in e[1]}


def teleported(sampler, moments, **changes):
    return FewStepTeleport().teleport(sampler, moments, **{**defaults(FewStepTeleport), **changes})[0]


def fewstep():
    return FewStepDPMSolverMultistep().build(**defaults(FewStepDPMSolverMultistep))[0]


def run(host, text, model, sampler, sigmas, latent=None, seed=3, cfg=1.0, **more):
    steps = []
    host.on_progress = lambda value, total, denoised: steps.append((value, total))
    latent = {"samples": torch.zeros(2, 4, 8, 8), **more} if latent is None else latent
    return host.sample(model, seed, cfg, sampler, sigmas, text("3"), text(""), latent)["samples"], steps


@pytest.mark.parametrize("form", ["eps", "v", "flow"])
@pytest.mark.parametrize("which", ["fewstep", "stock"])
@pytest.mark.parametrize(("mode", "rest"), [("mean", "tail"), ("anchored", "tail"), ("mean", "regrid"), ("anchored", "regrid")])
def test_gaussian_data_lose_nothing_by_the_jump(host, text, moments, form, which, mode, rest):
    """The model's data are Gaussian, so the picture is that of many steps, with the promised number of evaluations."""
    model = host.demo_checkpoint(form)[0]
    sampler = stock(host) if which == "stock" else fewstep()
    sigmas = schedule(model, "uniform_t", 12)
    result, steps = run(host, text, model, teleported(sampler, moments, mode=mode, rest=rest, skip="fraction"), sigmas)
    calls = {"tail": 9, "regrid": 12}[rest] + (mode == "anchored")
    assert model.model.diffusion_model.calls == calls and len(steps) == calls
    assert steps[-1] == (12, 12) and [s for s, _ in steps] == sorted(s for s, _ in steps) and steps[0][0] >= 1
    exact, _ = run(host, text, model, fewstep(), schedule(model, "uniform_lambda", 200))
    plain, _ = run(host, text, model, sampler, sigmas)
    assert float((result - exact).abs().mean()) < 1.1 * float((plain - exact).abs().mean()) + 1e-3


def test_the_jump_alone_is_what_the_sampler_starts_from(host, text, moments, gaussian):
    """Inner sigmas, start, callback numbers and options of a wrapped sampler."""
    seen = {}

    def inner(model, x, sigmas, extra_args=None, callback=None, disable=None, strength=1.0):
        seen.update(x=x.clone(), sigmas=sigmas, args=extra_args, strength=strength, disable=disable)
        for i in range(len(sigmas) - 1):
            callback({"x": x, "i": i, "sigma": sigmas[i], "sigma_hat": sigmas[i], "denoised": x})
        return x

    model = host.demo_checkpoint("eps")[0]
    sigmas = schedule(model, "karras", 10)
    options = {"mode": "mean", "skip": "sigma", "sigma_skip": float(sigmas[4]), "rest": "tail"}
    sampler = teleported(host.make_sampler(inner, {"strength": 0.7}), moments, **options)
    _, steps = run(host, text, model, sampler, sigmas)
    assert torch.equal(seen["sigmas"], sigmas[4:]) and seen["sigmas"].dtype == sigmas.dtype
    assert steps == [(i, 10) for i in range(5, 11)]
    assert (seen["strength"], seen["disable"], seen["args"]["seed"]) == (0.7, True, 3) and "denoise_mask" in seen["args"]
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3)) * (1 + sigmas[0] ** 2) ** 0.5
    a, b = (gaussian.SPREAD**2 + s**2 for s in (sigmas[4], sigmas[0]))
    torch.testing.assert_close(seen["x"], MEAN + (noise - MEAN) * (a / b) ** 0.5)
    assert model.model.diffusion_model.calls == 0


def test_a_low_denoise_is_left_alone(host, text, moments, caplog):
    model = host.demo_checkpoint("eps")[0]
    sigmas = schedule(model, "karras", 10)[6:]
    latent = {"samples": torch.full((1, 4, 8, 8), 0.4)}
    for sampler in (stock(host), fewstep()):
        jumping = teleported(sampler, moments, skip="sigma", sigma_skip=9.0)
        assert torch.equal(run(host, text, model, jumping, sigmas, latent)[0], run(host, text, model, sampler, sigmas, latent)[0])
    assert caplog.text.count("no teleportation") == 2


@pytest.mark.parametrize("which", ["fewstep", "stock"])
@pytest.mark.parametrize("form", ["eps", "flow"])
def test_masks_keep_the_known_area(host, text, moments, which, form):
    model = host.demo_checkpoint(form)[0]
    picture, mask = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)) * 0.3, torch.zeros(1, 8, 8)
    mask[..., 4:] = 1.0
    sampler = teleported(stock(host) if which == "stock" else fewstep(), moments)
    result, _ = run(host, text, model, sampler, schedule(model, "uniform_t", 8), {"samples": picture, "noise_mask": mask})
    torch.testing.assert_close(result[..., :4], picture[..., :4], rtol=0, atol=2e-3)
    assert float((result[..., 4:] - picture[..., 4:]).abs().mean()) > 0.1


@pytest.mark.parametrize("which", ["fewstep", "stock"])
def test_the_same_seed_gives_the_same_bits_and_a_cancel_stops(host, text, moments, which):
    model = host.demo_checkpoint("eps")[0]
    sampler, sigmas = teleported(stock(host) if which == "stock" else fewstep(), moments), schedule(model, "karras", 8)
    assert torch.equal(run(host, text, model, sampler, sigmas)[0], run(host, text, model, sampler, sigmas)[0])
    assert not torch.equal(run(host, text, model, sampler, sigmas, seed=4)[0], run(host, text, model, sampler, sigmas)[0])
    before = model.model.diffusion_model.calls
    host.check_interrupted = lambda: (_ for _ in ()).throw(Stop)
    with pytest.raises(Stop):
        run(host, text, model, sampler, sigmas)
    assert model.model.diffusion_model.calls == before, "cancelled before the evaluation that anchors the jump"


@pytest.mark.parametrize("which", ["fewstep", "stock"])
def test_latents_that_the_moments_do_not_describe_stop_before_the_model_runs(host, text, moments, which):
    model = host.demo_checkpoint("eps")[0]
    bad = calibration_of(ChannelMoments(torch.zeros(16), torch.eye(16)))
    given = CalibrationInput(store.save(bad, host.calibration_folders()[0] / "other.safetensors"), bad)
    sampler = teleported(stock(host) if which == "stock" else fewstep(), given)
    with pytest.raises(CalibrationError, match="16 channels"):
        run(host, text, model, sampler, schedule(model, "karras", 8))
    assert model.model.diffusion_model.calls == 0


@pytest.mark.parametrize("which", ["fewstep", "stock"])
def test_a_file_that_changed_is_refused(host, text, moments, which):
    model = host.demo_checkpoint("eps")[0]
    sampler = teleported(stock(host) if which == "stock" else fewstep(), moments)
    other = calibration_of(ChannelMoments(torch.ones(4), torch.eye(4)))
    store.save(other, host.calibration_folders()[0] / "digits.safetensors")
    with pytest.raises(CalibrationError, match="has changed since"):
        run(host, text, model, sampler, schedule(model, "karras", 8))


def test_the_recipe_carries_the_reference_and_its_options(host, moments):
    recipe = recipe_of(teleported(fewstep(), moments, mode="mean", rest="regrid"))
    name, options = recipe.start
    assert name == "teleport" and options["moments"] == moments.reference and options["rest"] == "regrid"
    assert json.loads(recipe.to_json())["start"]["options"]["mode"] == "mean"


@pytest.mark.parametrize(("changes", "words"), [
    ({"skip": "sigma", "sigma_skip": 0.0}, "sigma_skip is 0.0"), ({"mode": "guided"}, "unconditional model"),
    ({"fraction": 0.95}, "fraction is 0.95"), ({"start": "draws"}, "start is 'draws'"),
])
def test_bad_options_show_in_the_node_that_has_them(host, moments, changes, words):
    for sampler in (fewstep(), stock(host)):
        with pytest.raises(FewStepError, match=words):
            teleported(sampler, moments, **changes)


def test_good_options_of_any_model_pass_the_node(host, moments, caplog):
    for changes in ({"sigma_skip": 400.0, "skip": "sigma"}, {"sigma_skip": 0.7, "skip": "sigma"}, {"start": "draw"}, {"fraction": 0.1}):
        teleported(fewstep(), moments, **changes)
    assert not caplog.text


def test_one_jump_is_enough(host, moments):
    for sampler in (fewstep(), stock(host)):
        with pytest.raises(OptionError, match="a jump already"):
            teleported(teleported(sampler, moments), moments)
    with pytest.raises(OptionError, match="not one of FewStep's"):
        recipe_of(teleported(stock(host), moments))


def test_correctors_may_come_after(host, text, moments):
    from fewstep.nodes.correctors import FewStepUniC

    model = host.demo_checkpoint("eps")[0]
    sigmas = schedule(model, "karras", 8)
    sampler = FewStepUniC().correct(teleported(fewstep(), moments, skip="sigma", sigma_skip=4.0, rest="tail"), **defaults(FewStepUniC))[0]
    run(host, text, model, sampler, sigmas)
    below = int((sigmas[:-1] < 4.0).sum())
    assert model.model.diffusion_model.calls == below + 2


def test_a_schedule_without_room_is_named(host, text, moments):
    model = host.demo_checkpoint("eps")[0]
    with pytest.raises(ScheduleError, match=r"no sigma below 0\.05"):
        run(host, text, model, teleported(stock(host), moments, skip="sigma", sigma_skip=0.05), schedule(model, "karras", 8)[:4])


def test_nothing_to_sample_is_left_to_the_inner_sampler(host, moments):
    sampler = teleported(stock(host), moments)
    x = torch.randn(1, 4, 2, 2)
    assert sampler.sampler_function(None, x, torch.ones(1), **sampler.extra_options) is x


def test_comfyui_keeps_what_the_given_sampler_does_to_masks(monkeypatch):
    """The adapter: a stock KSAMPLER with options of its own; other kinds are refused."""
    import sys
    from types import ModuleType

    from fewstep.nodes.comfy import ComfyHost
    from fewstep.nodes.host import HostError

    class KSAMPLER:
        def __init__(self, function, extra_options=None, inpaint_options=None):
            self.sampler_function, self.extra_options, self.inpaint_options = function, extra_options, inpaint_options

    module = ModuleType("comfy.samplers")
    module.KSAMPLER = KSAMPLER
    monkeypatch.setitem(sys.modules, "comfy", ModuleType("comfy"))
    monkeypatch.setitem(sys.modules, "comfy.samplers", module)
    given = KSAMPLER(lambda model, x, eta=0: (model, x, eta), {"eta": 0.5}, {"random": True})
    made = ComfyHost().wrap_sampler(given, len, {"start_json": "{}"})
    assert made.sampler_function is len and made.inpaint_options == {"random": True} and made.extra_options["start_json"] == "{}"
    assert made.extra_options["inner"]("m", "x") == ("m", "x", 0.5)
    with pytest.raises(HostError, match="SimpleNamespace and no KSAMPLER"):
        ComfyHost().wrap_sampler(SimpleNamespace(), len, {})


def test_video_latents(moments):
    plan = Recipe("unipc").started("teleport", moments=moments.reference, mode="mean").resolve(frames.edm(), np.geomspace(80, 0.1, 30))
    x = torch.randn(1, 4, 3, 8, 8) * 80
    end = run_plan(plan, lambda y, s: MEAN + 0.25 / (0.25 + s[0] ** 2) * (y - MEAN), x)
    torch.testing.assert_close(end, MEAN + (x - MEAN) * ((0.25 + 0.1**2) / (0.25 + 80**2)) ** 0.5, rtol=0, atol=0.03)
