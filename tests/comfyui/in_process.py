"""One named check of the pack inside ComfyUI's own process: `python in_process.py CHECK`, in the checkout's folder.

Prints one line of JSON, the last one. ``test_in_process.py`` runs it and says what the numbers should be.
"""

import importlib
import importlib.util
import json
import logging
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
CHECKS = {}


def check(function):
    CHECKS[function.__name__] = function
    return function


# the host and the pack
def start_host():
    """ComfyUI's modules as its main.py has them when it loads packs, on the CPU."""
    global LIBRARY
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):  # a CPU torch beside a CUDA torchvision, see launch.py
        for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        LIBRARY = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            LIBRARY.define(f"{operator}(Tensor d, Tensor s, float t) -> Tensor")
    sys.path[0] = str(Path.cwd())  # in place of this file's folder
    sys.argv = ["main.py", "--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.sample
    import comfy.samplers

    import nodes  # noqa: F401
    logging.getLogger().setLevel(logging.ERROR)


def load_folder(folder):
    """A folder as a pack, under the module name that ComfyUI gives it."""
    name = str(folder).replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, Path(folder) / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


class Pack:
    """The pack under a folder name with a dash and a dot."""

    def __init__(self, folder_name="few-step.pack"):
        self.holder = tempfile.TemporaryDirectory()
        folder = Path(self.holder.name) / folder_name
        folder.symlink_to(ROOT)
        self.module = load_folder(folder)
        self.nodes = self.module.NODE_CLASS_MAPPINGS

    def part(self, name):
        return importlib.import_module(f"{self.module.__name__}.{name}")

    def run(self, node, *args, **widgets):
        cls = self.nodes[node]
        return getattr(cls(), cls.FUNCTION)(*args, **widgets)

    def solver(self, node, **changes):
        """The SAMPLER of a solver node, every other widget at its default."""
        values = {}
        for inputs in self.nodes[node].INPUT_TYPES().values():
            for label, (kind, *options) in inputs.items():
                settings = options[0] if options else {}
                values[label] = settings.get("default", kind[0] if isinstance(kind, list) else None)
        return self.run(node, **{**values, **changes})[0]

    def sigmas(self, model, kind="uniform_t", steps=6, denoise=1.0):
        return self.run("FewStepSchedule", model, kind, steps, denoise)[0]

    def demo(self, form):
        model, clip, _ = self.run("FewStepDemoCheckpoint", form)
        conds = [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in ("3", "")]
        return model, *conds


def sample(model, positive, negative, sampler, sigmas, latent, noise, cfg=1.0, **more):
    import comfy.sample

    with torch.inference_mode():
        return comfy.sample.sample_custom(
            model, noise.clone(), cfg, sampler, sigmas.clone(), positive, negative, latent.clone(), disable_pbar=True,
            seed=7, **more)


def stock(name):
    import comfy.samplers

    return comfy.samplers.sampler_object(name)


def difference(a, b):
    """Largest absolute difference, relative to the largest value."""
    return float((a - b).abs().max() / b.abs().max())


def noise_like(latent, seed=3):
    return torch.randn(latent.shape, generator=torch.Generator().manual_seed(seed))


LATENT = torch.zeros(2, 4, 8, 8)


# a. parity with the stock samplers
@check
def parity():
    start_host()
    pack, out = Pack(), {}
    noise = noise_like(LATENT)
    for form in ("eps", "v", "flow"):
        model, *conds = pack.demo(form)
        for kind in ("uniform_t", "karras"):
            sigmas = pack.sigmas(model, kind, 8)
            for cfg in (1.0, 4.0):
                def both(ours, theirs, levels, model=model, conds=conds, cfg=cfg):
                    return difference(*(sample(model, *conds, s, levels, LATENT, noise, cfg) for s in (ours, stock(theirs))))

                out[f"{form} {kind} cfg {cfg:g} euler"] = both(pack.solver("FewStepDDIM"), "euler", sigmas)
                if form == "flow":
                    continue
                multistep = pack.solver("FewStepDPMSolverMultistep", order=2, lower_order_final="never")
                out[f"{form} {kind} cfg {cfg:g} dpmpp_2m"] = both(multistep, "dpmpp_2m", sigmas)
                for variant, name in (("bh1", "uni_pc"), ("bh2", "uni_pc_bh2")):
                    unipc = pack.solver("FewStepUniPC", order=3, variant=variant, lower_order_final=True)
                    out[f"{form} {kind} cfg {cfg:g} {name}"] = both(unipc, name, sigmas[:-1])
    return out


# b. model families: networks of the host's own classes, as small as they go, with random weights
def randomized(model):
    """Small weights; norms keep their scale."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(torch.randn(value.shape, generator=generator) * 0.05)
            if value.ndim == 1 and name.endswith(("weight", "scale")):
                value += 1
    return model


def patcher(model):
    import comfy.model_patcher

    return comfy.model_patcher.ModelPatcher(randomized(model), torch.device("cpu"), torch.device("cpu"))


def unet_config(channels, **more):
    return {
        "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": channels, "num_res_blocks": [1, 1],
        "channel_mult": [1, 2], "transformer_depth": [1, 1], "transformer_depth_output": [1, 1, 1, 1],
        "transformer_depth_middle": 1, "context_dim": 16, "use_spatial_transformer": True, "legacy": False,
        "dtype": torch.float32, **more,
    }


def sd15():
    import comfy.model_base
    import comfy.supported_models as known

    config = known.SD15(unet_config(32, use_linear_in_transformer=False))
    return patcher(comfy.model_base.BaseModel(config, comfy.model_base.ModelType.EPS))


def sdxl():
    import comfy.model_base
    import comfy.supported_models as known

    config = known.SDXL(unet_config(64, use_linear_in_transformer=True, num_classes="sequential", adm_in_channels=2816))
    return patcher(comfy.model_base.SDXL(config))


def flux():
    import comfy.model_base
    import comfy.supported_models as known

    config = known.Flux({
        "image_model": "flux", "in_channels": 16, "out_channels": 16, "vec_in_dim": 16, "context_in_dim": 16, "hidden_size": 32,
        "mlp_ratio": 2.0, "num_heads": 2, "depth": 1, "depth_single_blocks": 1, "axes_dim": [4, 4, 8], "theta": 10000,
        "patch_size": 2, "qkv_bias": True, "guidance_embed": True, "txt_ids_dims": [], "dtype": torch.float32,
    })
    return patcher(comfy.model_base.Flux(config))


def wan():
    import comfy.model_base
    import comfy.supported_models as known

    config = known.WAN21_T2V({
        "image_model": "wan2.1", "model_type": "t2v", "dim": 48, "num_heads": 2, "ffn_dim": 64, "freq_dim": 32, "text_dim": 16,
        "num_layers": 1, "in_dim": 16, "out_dim": 16, "dtype": torch.float32,
    })
    return patcher(comfy.model_base.WAN21(config))


def audio():
    import comfy.ldm.audio.embedders
    import comfy.model_base
    import comfy.supported_models as known

    config = known.StableAudio({
        "audio_model": "dit1.0", "io_channels": 64, "embed_dim": 128, "depth": 1, "num_heads": 2, "dtype": torch.float32,
    })
    seconds = comfy.ldm.audio.embedders.NumberConditioner(768, min_val=0, max_val=512).state_dict()
    return patcher(comfy.model_base.StableAudio1(config, seconds, seconds))


def packed():
    """A flow model of two nested latents, picture and sound: the sampler sees them packed into [B, 1, N]."""
    import comfy.conds
    import comfy.latent_formats
    import comfy.model_base
    import comfy.supported_models_base

    class Net(torch.nn.Module):
        dtype = torch.float32

        def __init__(self, **config):
            super().__init__()
            self.picture, self.sound = torch.nn.Conv3d(4, 4, 1), torch.nn.Conv1d(2, 2, 3, padding=1)

        def forward(self, x, t, context=None, control=None, transformer_options=None, **ignored):
            assert [part.ndim for part in x] == [5, 3], "the host unpacks for the network"
            return [self.picture(x[0]), self.sound(x[1])]

    class Config(comfy.supported_models_base.BASE):
        unet_config = {}
        unet_extra_config = {}
        sampling_settings = {"shift": 2.0}
        latent_format = comfy.latent_formats.LatentFormat

    class Model(comfy.model_base.BaseModel):
        def extra_conds(self, **known):
            return {**super().extra_conds(**known), "latent_shapes": comfy.conds.CONDConstant(known["latent_shapes"])}

    return patcher(Model(Config({}), comfy.model_base.ModelType.FLOW, unet_model=Net))


def conditioning(width=16, pooled=16):
    generator = torch.Generator().manual_seed(2)
    return [[[torch.randn(1, 5, width, generator=generator), {"pooled_output": torch.randn(1, pooled, generator=generator)}]]
            for _ in range(2)]


def patched(node, *args):
    from comfy_extras import nodes_model_advanced

    return getattr(nodes_model_advanced, node)().patch(*args)[0]


def family_models():
    """name: (model, conditionings, latent)"""
    picture = torch.zeros(2, 4, 8, 8)
    unet, flow = sd15(), flux()
    models = {
        "sd15": (unet, conditioning(), picture),
        "sdxl": (sdxl(), conditioning(16, 1280), picture),
        "flux": (flow, conditioning(), torch.zeros(2, 16, 8, 8)),
        "wan": (wan(), conditioning(), torch.zeros(1, 16, 3, 8, 8)),
        "audio": (audio(), conditioning(768), torch.zeros(2, 64, 40)),
    }
    discrete = {"v": ("v_prediction", False), "eps zsnr": ("eps", True), "v zsnr": ("v_prediction", True), "lcm": ("lcm", False),
                "x0": ("x0", False)}
    for name, (kind, zsnr) in discrete.items():
        models[f"sd15 {name}"] = (patched("ModelSamplingDiscrete", unet, kind, zsnr), conditioning(), picture)
    for kind in ("v_prediction", "edm", "edm_playground_v2.5", "eps", "cosmos_rflow"):
        models[f"sd15 continuous {kind}"] = (patched("ModelSamplingContinuousEDM", unet, kind, 80.0, 0.002), conditioning(), picture)
    models["sd15 continuous_v"] = (patched("ModelSamplingContinuousV", unet, "v_prediction", 500.0, 0.03), conditioning(), picture)
    models["sd15 cascade"] = (patched("ModelSamplingStableCascade", unet, 2.0), conditioning(), picture)
    models["flux sd3"] = (patched("ModelSamplingSD3", flow, 3.0), conditioning(), torch.zeros(2, 16, 8, 8))
    models["flux auraflow"] = (patched("ModelSamplingSD3", flow, 1.73, 1.0), conditioning(), torch.zeros(2, 16, 8, 8))
    models["flux flux"] = (patched("ModelSamplingFlux", flow, 1.15, 0.5, 1024, 1024), conditioning(), torch.zeros(2, 16, 8, 8))
    return models


SOLVERS = {
    "FewStepDDIM": {}, "FewStepDPMSolverMultistep": {}, "FewStepDPMSolverSinglestep": {},
    "FewStepDPMSolverAdaptive": {"rtol": 0.5, "atol": 0.5}, "FewStepDPMSolverSDE": {}, "FewStepUniPC": {},
    "FewStepDEIS": {"basis": "log_rho"}, "FewStepDEISRungeKutta": {}, "FewStepIPNDM": {"order": 3},
}


EVERY_SOLVER = ("sd15", "flux", "wan", "audio", "sd15 v zsnr", "sd15 continuous edm")


@check
def families():
    start_host()
    torch.set_num_threads(1)  # the networks are tiny
    pack, out = Pack(), {}
    kinds = pack.part("nodes.schedule").KINDS
    frame_of = pack.part("nodes.frames").frame_of
    for name, (model, conds, latent) in family_models().items():
        sampling = model.get_model_object("model_sampling")
        frame, sigmas, noise = frame_of(sampling), pack.sigmas(model), noise_like(latent)
        found = out[name] = {
            "scaling": frame.scaling, "time": type(frame.time).__name__, "model_time": bool(frame.time.is_model_time),
            "sigmas": sigmas.tolist(), "sigma_max": float(sampling.sigma_max), "shape": list(latent.shape), "solvers": {},
        }
        if found["time"] == "DiscreteTime":
            table = sampling.sigmas
            found["time_error"] = max(
                abs(float(frame.sigma((i + 1) / len(table))) / float(table[i]) - 1) for i in range(0, len(table), 7))
        usable = [kind for kind in kinds if kind != "shifted" or frame.time.t_max == 1.0]  # a shift needs a time from 0 to 1
        found["schedules"] = {kind: pack.sigmas(model, kind).tolist() for kind in usable}
        inner = pack.sigmas(model, "uniform_t", 8)[:-1]
        found["network_times"] = [float(t) for t in sampling.timestep(inner)]
        for node, options in SOLVERS.items():
            if name not in EVERY_SOLVER and node not in ("FewStepDDIM", "FewStepUniPC"):
                continue
            seen = []
            result = sample(model, *conds, pack.solver(node, **options), sigmas, latent, noise, 3.0,
                            callback=lambda i, denoised, x, total, seen=seen: seen.append((i, list(denoised.shape), total)))
            found["solvers"][node] = {
                "shape": list(result.shape), "finite": bool(torch.isfinite(result).all()), "steps": [i for i, _, _ in seen],
                "seen": [list(s) for s in {tuple(shape) for _, shape, _ in seen}], "totals": sorted({t for _, _, t in seen})}
            if node == "FewStepDDIM":
                found["euler"] = difference(result, sample(model, *conds, stock("euler"), sigmas, latent, noise, 3.0))
    return out


@check
def nested():
    start_host()
    import comfy.nested_tensor
    import comfy.utils

    pack, model = Pack(), packed()
    parts = [torch.zeros(2, 4, 3, 4, 4), torch.zeros(2, 2, 30)]
    size = sum(p[0].numel() for p in parts)
    noises = [noise_like(p, 3 + i) for i, p in enumerate(parts)]

    class Nested(comfy.nested_tensor.NestedTensor):
        def clone(self):
            return Nested([t.clone() for t in self.tensors])

    out, sigmas = {"packed": [2, 1, size]}, pack.sigmas(model)
    for node, options in SOLVERS.items():
        seen = []
        result = sample(model, *conditioning(), pack.solver(node, **options), sigmas, Nested(parts), Nested(noises), 3.0,
                        callback=lambda i, denoised, x, total, seen=seen: seen.append(list(denoised.shape)))
        out[node] = {"shapes": [list(t.shape) for t in result.unbind()], "seen": [list(s) for s in {tuple(s) for s in seen}],
                     "finite": all(bool(torch.isfinite(t).all()) for t in result.unbind())}
        if node == "FewStepDDIM":
            theirs = sample(model, *conditioning(), stock("euler"), sigmas, Nested(parts), Nested(noises), 3.0)
            out["euler"] = max(difference(a, b) for a, b in zip(result.unbind(), theirs.unbind(), strict=True))
    return out


# c. masks, img2img, slices, batches
@check
def given_latents():
    start_host()
    pack, out = Pack(), {"mask": {}, "img2img": {}, "slices": {}, "batch": {}}
    for form in ("eps", "v", "flow"):
        model, *conds = pack.demo(form)
        sigmas, noise = pack.sigmas(model, "uniform_t", 6), noise_like(LATENT)
        picture = sample(model, *conds, pack.solver("FewStepUniPC"), sigmas, LATENT, noise_like(LATENT, 8), 2.0)
        mask = torch.zeros(1, 1, 8, 8)
        mask[..., 2:6, 3:7] = 1
        kept = (mask == 0).expand(picture.shape)
        for node, options in SOLVERS.items():
            result = sample(model, *conds, pack.solver(node, **options), sigmas, picture, noise, 2.0, noise_mask=mask)
            out["mask"][f"{form} {node}"] = {
                "kept": float((result - picture)[kept].abs().max()), "changed": float((result - picture)[~kept].abs().mean())}

        half = pack.sigmas(model, "uniform_t", 6, 0.5)
        near = sample(model, *conds, pack.solver("FewStepUniPC"), half, picture, noise, 2.0)
        far = sample(model, *conds, pack.solver("FewStepUniPC"), sigmas, picture, noise, 2.0)
        ours, theirs = (sample(model, *conds, s, half, picture, noise, 2.0) for s in (pack.solver("FewStepDDIM"), stock("euler")))
        full = pack.sigmas(model, "uniform_t", 12)
        out["img2img"][form] = {
            "steps": len(half) - 1, "tail": bool(torch.equal(half, full[-7:])), "euler": difference(ours, theirs),
            "near": float((near - picture).abs().mean()), "far": float((far - picture).abs().mean()),
            "finite": bool(torch.isfinite(near).all())}

        ddim = pack.solver("FewStepDDIM")
        whole = sample(model, *conds, ddim, sigmas, LATENT, noise, 2.0)
        first = sample(model, *conds, ddim, sigmas[:4], LATENT, noise, 2.0)
        second = sample(model, *conds, ddim, sigmas[3:], first, torch.zeros_like(noise), 2.0)
        out["slices"][form] = difference(second, whole)
        for node, options in SOLVERS.items():  # the same slices through every solver: no fault, finite
            part = sample(model, *conds, pack.solver(node, **options), sigmas[:4], LATENT, noise, 2.0)
            rest = sample(model, *conds, pack.solver(node, **options), sigmas[3:], part, torch.zeros_like(noise), 2.0)
            out["slices"][f"{form} {node}"] = bool(torch.isfinite(rest).all() and rest.std() > 0)

        three = torch.zeros(3, 4, 8, 8)
        noises = noise_like(three)
        for node in ("FewStepDDIM", "FewStepDPMSolverMultistep", "FewStepUniPC", "FewStepDEIS", "FewStepIPNDM"):
            solver = pack.solver(node, **SOLVERS[node])
            together = sample(model, *conds, solver, sigmas, three, noises, 2.0)
            alone = torch.cat([sample(model, *conds, solver, sigmas, three[:1], noises[i : i + 1], 2.0) for i in range(3)])
            out["batch"][f"{form} {node}"] = difference(alone, together)
    return out


# d. the stock lists
@check
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


# e. loading
@check
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


@check
def load_in_host():
    start_host()
    return timed_load()


@check
def load_alone():
    """With nothing but torch: what the host has imported already hides what the pack imports."""
    return timed_load()


if __name__ == "__main__":
    print("\n" + json.dumps(CHECKS[sys.argv[1]]()))
