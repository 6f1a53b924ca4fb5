"""What the pack adds to the host, and what loading it costs."""

import sys
import tempfile
import time
from pathlib import Path

import torch
from hosted import LATENT, Pack, load_folder, noise_like, sample, start_host


def stock_lists():
    start_host()
    import comfy.samplers as host

    samplers, schedulers = list(host.KSampler.SAMPLERS), list(host.KSampler.SCHEDULERS)
    functions = {name: host.sampler_object(name).sampler_function.__qualname__ for name in samplers}
    handlers = dict(host.SCHEDULER_HANDLERS)
    pack = Pack()
    again = Pack("few-step again")  # a second copy must not add anything
    model, *conds = pack.demo("eps")
    noise, out = noise_like(LATENT), {"runs": {}}
    for form in ("eps", "v", "flow"):
        model, *conds = pack.demo(form)
        for name in [n for n in host.KSampler.SAMPLERS if n.startswith("fewstep_")]:
            for scheduler in [n for n in host.KSampler.SCHEDULERS if n.startswith("fewstep_")] + ["simple"]:
                for steps in (1, 2, 6):
                    key = f"{form} {name} {scheduler} {steps}"
                    seen = []
                    with torch.inference_mode():
                        ks = host.KSampler(model, steps, torch.device("cpu"), name, scheduler, 1.0, model.model_options)
                        result = ks.sample(noise.clone(), *conds, 2.0, LATENT.clone(), disable_pbar=True, seed=1,
                                           callback=lambda i, d, x, t, seen=seen: seen.append(i))
                    out["runs"][key] = bool(torch.isfinite(result).all()) and seen[-1:] == [steps - 1] and len(ks.sigmas) == steps + 1
    return {
        **out, "copies": [len(copy.nodes) for copy in (pack, again)], "samplers_before": samplers, "samplers": host.KSampler.SAMPLERS, "schedulers_before": schedulers,
        "schedulers": host.KSampler.SCHEDULERS, "ksampler_names": host.KSAMPLER_NAMES,
        "unchanged": functions == {n: host.sampler_object(n).sampler_function.__qualname__ for n in samplers}
        and all(host.SCHEDULER_HANDLERS[n] is handlers[n] for n in schedulers),
    }


def neighbours():
    start_host()
    import nodes as host_nodes

    with tempfile.TemporaryDirectory() as folder:
        other = Path(folder) / "other-pack"
        for sub in ("nodes", "samplers", "demo"):
            (other / sub).mkdir(parents=True)
            (other / sub / "__init__.py").write_text(f"WHO = 'other {sub}'\nfrom . import frames\n")
            (other / sub / "frames.py").write_text("def frame_of(m):\n    return 'other'\n")
        (other / "__init__.py").write_text(
            "from . import demo, nodes, samplers\nclass Other: pass\nNODE_CLASS_MAPPINGS = {'OtherNode': Other}\n")
        first = load_folder(other)
        path = list(sys.path)
        pack = Pack()
        second = load_folder(other)
        import nodes

        model, *conds = pack.demo("flow")
        result = sample(model, *conds, pack.solver("FewStepUniPC"), pack.sigmas(model), LATENT, noise_like(LATENT))
        return {
            "host_nodes": nodes is host_nodes and hasattr(nodes, "KSampler"), "path": sys.path == path,
            "others": [m.nodes.WHO == "other nodes" and m.samplers.WHO == "other samplers" and
                       m.nodes.frames.frame_of(0) == "other" for m in (first, second)],
            "ours": pack.part("nodes.frames").frame_of.__module__.endswith("few-step_x_pack.nodes.frames"),
            "top_level": [n for n in ("samplers", "demo", "host", "fewstep") if n in sys.modules],
            "finite": bool(torch.isfinite(result).all()), "nodes": len(pack.nodes),
        }


def timed_load():
    before, began = set(sys.modules), time.perf_counter()
    pack = Pack()
    seconds = time.perf_counter() - began
    new = {name.split(".")[0] for name in set(sys.modules) - before}
    return {"seconds": seconds, "heavy": sorted(new & {"matplotlib", "scipy", "sklearn", "pandas", "PIL", "aiohttp"}),
            "nodes": len(pack.nodes)}


def in_host():
    start_host()
    return timed_load()


def alone():
    """With nothing but torch: what the host has imported already hides what the pack imports."""
    return timed_load()
