"""What the pack adds to the stock KSampler's lists."""

import os

import torch
from hosted import LATENT, Pack, noise_like, start_host


def names():
    import comfy.samplers as host

    return {"samplers": list(host.KSampler.SAMPLERS), "schedulers": list(host.KSampler.SCHEDULERS), "ksampler": list(host.KSAMPLER_NAMES)}


def other_pack(name):
    """What other packs do to the lists."""
    import comfy.k_diffusion.sampling as functions
    import comfy.samplers as host

    setattr(functions, f"sample_{name}", functions.sample_euler)
    host.KSAMPLER_NAMES.append(name)
    host.SAMPLER_NAMES.append(name)
    host.SCHEDULER_HANDLERS[name] = host.SchedulerHandler(host.simple_scheduler)
    host.SCHEDULER_NAMES.append(name)


def behaviour():
    """What every name of the lists stands for."""
    import comfy.samplers as host

    return {name: host.sampler_object(name).sampler_function for name in host.KSampler.SAMPLERS if name not in ("dpm_fast", "dpm_adaptive")
            } | {f"scheduler {name}": host.SCHEDULER_HANDLERS[name].handler for name in host.KSampler.SCHEDULERS}


def additions():
    start_host()
    other_pack("early")
    out, before = {"before": names()}, behaviour()
    packs = [Pack()]
    out["after"] = names()
    other_pack("late")
    packs.append(Pack("few-step again"))  # a second copy, as after a reload
    out["again"] = names()
    after = behaviour()
    out["changed"] = [name for name, what in before.items() if after[name] is not what and name not in ("ddim", "uni_pc", "uni_pc_bh2")]
    out["nodes"] = [len(pack.nodes) for pack in packs]
    return out


def switched_off():
    os.environ["FEWSTEP_STOCK_LISTS"] = "0"
    start_host()
    before = names()
    pack = Pack()
    return {"same": names() == before, "nodes": len(pack.nodes)}


def runs():
    """"form sampler scheduler steps": whether the stock KSampler ran it in that many steps."""
    start_host()
    import comfy.samplers as host

    pack, out = Pack(), {}
    for form in ("eps", "v", "flow"):
        model, *conds = pack.demo(form)
        for name in [n for n in host.KSampler.SAMPLERS if n.startswith("fewstep_")]:
            for scheduler in [n for n in host.KSampler.SCHEDULERS if n.startswith("fewstep_")] + ["simple"]:
                for steps in (1, 2, 6):
                    seen = []
                    with torch.inference_mode():
                        ks = host.KSampler(model, steps, torch.device("cpu"), name, scheduler, 1.0, model.model_options)
                        result = ks.sample(noise_like(LATENT), *conds, 2.0, LATENT.clone(), disable_pbar=True, seed=1,
                                           callback=lambda i, d, x, t, seen=seen: seen.append(i))
                    good = bool(torch.isfinite(result).all()) and seen[-1:] == [steps - 1] and len(ks.sigmas) == steps + 1
                    out[f"{form} {name} {scheduler} {steps}"] = good
    return out
