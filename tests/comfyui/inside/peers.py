"""The benchmark's way of running stock samplers against the host's own pipeline."""

import types

import torch
from hosted import LATENT, Pack, difference, noise_like, sample, start_host, stock


def peers():
    """How far each deterministic stock sampler in the harness, around the demo's own denoiser, is from the host's sample."""
    start_host()
    pack, out = Pack(), {}
    harness, demo, text = (pack.part(name) for name in ("benchmarks.peers_sigmas", "demo.model", "demo.text"))
    noise = noise_like(LATENT)
    for form in ("eps", "flow"):
        model, *conds = pack.demo(form)
        sigmas = pack.sigmas(model, "uniform_t", 8)[1:]  # at the schedule's first sigma the host scales the noise otherwise
        denoiser = demo.load(form).denoiser(text.context_of(torch.tensor([3])), guidance_scale=4.0)
        problem = types.SimpleNamespace(noise=noise, flow=form == "flow")
        wrapped = harness.Model(denoiser, harness.model_sampling(problem).float())
        for method in harness.methods():
            if method.package == "ComfyUI" and not method.stochastic:
                mine = harness.call(stock(method.name).sampler_function, wrapped, problem, sigmas.clone())
                theirs = sample(model, *conds, stock(method.name), sigmas, LATENT, noise, 4.0)
                out[f"{form} {method.name}"] = difference(mine, theirs)
    return out
