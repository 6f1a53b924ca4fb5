"""The adapter to ComfyUI, against stand-ins of the functions that it calls."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from fewstep.nodes import demo_parts
from fewstep.nodes.host import get_host, set_host
from fewstep.nodes.solvers import FewStepDDIM


class Cancelled(Exception):
    """The host's interruption."""


class KSAMPLER:
    def __init__(self, function, extra_options=None):
        self.sampler_function, self.extra_options = function, extra_options


@pytest.fixture
def comfy(monkeypatch, gaussian):
    """A ``comfy`` package of recorders; yields what was called."""
    calls = {}

    def module(name, **members):
        made = ModuleType(name)
        vars(made).update(members)
        monkeypatch.setitem(sys.modules, name, made)
        if "." in name:
            parent, _, child = name.rpartition(".")
            setattr(sys.modules[parent], child, made)

    def cancel():
        raise Cancelled

    def sample_custom(model, noise, cfg, sampler, sigmas, positive, negative, latent, **more):
        calls["sample"] = (model, noise, cfg, sampler, sigmas, positive, negative, latent, more)
        return latent + 1

    class BASE:
        def __init__(self, config):
            self.config = config

    def base_model(config, kind, device, unet_model):
        calls["model"] = (config, kind, device)
        return SimpleNamespace(diffusion_model=unet_model(device=device, operations=None))

    module("comfy", __path__=[])
    module("comfy.samplers", KSAMPLER=KSAMPLER)
    module("comfy.sample", sample_custom=sample_custom, fix_empty_latent_channels=lambda model, x: x,
           prepare_noise=lambda x, seed, inds=None: torch.full_like(x, seed))
    module("comfy.utils", PROGRESS_BAR_ENABLED=True)
    module("latent_preview", prepare_callback=lambda model, steps: ("callback", steps))
    module("comfy.latent_formats", LatentFormat=object)
    module("comfy.supported_models_base", BASE=BASE)
    module("comfy.model_management", get_torch_device=lambda: "gpu", unet_offload_device=lambda: "cpu",
           throw_exception_if_processing_interrupted=cancel)
    module("comfy.model_base", BaseModel=base_model, ModelType=SimpleNamespace(EPS="E", V_PREDICTION="V", FLOW="F"))
    module("comfy.model_patcher", ModelPatcher=lambda *args: args)
    monkeypatch.setattr("fewstep.nodes.comfy.load_demo", gaussian.load)
    previous = set_host(None)
    yield calls
    set_host(previous)


def test_inside_comfyui_the_host_is_found(comfy):
    (sampler,) = FewStepDDIM().build(prediction="eps", eta=0.0, s_noise=1.0)
    assert isinstance(sampler, KSAMPLER)
    assert '"solver":"ddim"' in sampler.extra_options["recipe_json"]
    assert get_host() is get_host()
    with pytest.raises(Cancelled):
        get_host().check_interrupted()


def test_sampling_goes_through_the_hosts_functions(comfy):
    latent = {"samples": torch.zeros(1, 4, 2, 2), "noise_mask": "mask", "batch_index": [0]}
    result = get_host().sample("model", 5, 2.0, "sampler", torch.ones(4), "pos", "neg", latent)
    assert result["samples"].eq(1).all() and result["noise_mask"] == "mask" and latent["samples"].eq(0).all()
    model, noise, cfg, *_, more = comfy["sample"]
    assert (model, cfg, more["callback"], more["seed"], more["noise_mask"]) == ("model", 2.0, ("callback", 3), 5, "mask")
    assert noise.eq(5).all()


@pytest.mark.parametrize(("form", "kind"), [("eps", "E"), ("v", "V"), ("flow", "F")])
def test_the_demo_becomes_a_model_of_the_host(comfy, form, kind):
    (model, load, offload), clip, vae = get_host().demo_checkpoint(form)
    config, given, device = comfy["model"]
    assert (given, device, load, offload) == (kind, "gpu", "gpu", "cpu")
    assert model.diffusion_model.form == form
    assert config.sampling_settings.get("shift") == (1.0 if form == "flow" else None)
    assert isinstance(clip, demo_parts.DemoClip) and isinstance(vae, demo_parts.DemoVAE)


def test_clip_and_vae_of_the_demo():
    clip, vae = demo_parts.DemoClip(), demo_parts.DemoVAE()
    ((context, options),) = clip.encode_from_tokens_scheduled(clip.tokenize("a seven"))
    assert context.shape == (1, 1, 11) and context[0, 0, 7] == 1 and isinstance(options, dict)
    assert torch.equal(clip.encode_from_tokens(clip.tokenize("7")), context)
    assert clip.encode_from_tokens(clip.tokenize("7"), return_pooled=True)[1] is None
    pixels = vae.decode(torch.zeros(2, 4, 8, 8))
    assert pixels.shape == (2, 64, 64, 3) and 0 <= pixels.min() <= pixels.max() <= 1
    assert torch.equal(vae.decode_tiled(torch.zeros(2, 4, 8, 8), tile_size=64), pixels)
    assert vae.encode(pixels).shape == (2, 4, 8, 8)
