"""Models in half precision, models whose weights are elsewhere between calls, and LoRAs."""

import tempfile
from pathlib import Path

import torch
from hosted import LATENT, SOLVERS, Pack, difference, noise_like, sample, start_host, stock


class Elsewhere(torch.nn.Module):
    """A network with no weights to be seen: they are fetched for a call, as offloading does it."""

    def __init__(self, network):
        super().__init__()
        self.fetch, self.dtype = (lambda: network), network.dtype

    def forward(self, *args, **more):
        return self.fetch()(*args, **more)


def variants(model):
    """name: a patcher like ``model`` of another precision or place."""
    network = model.model.diffusion_model

    def clone(change):
        other = model.clone()
        change(other)
        return other

    def answer(dtype):
        return lambda run, args: run(args["input"], args["timestep"], **args["c"]).to(dtype)

    yield "elsewhere", clone(lambda m: m.add_object_patch("diffusion_model", Elsewhere(network)))
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        name = str(dtype).split(".")[1]
        yield f"answers in {name}", clone(lambda m, dtype=dtype: m.set_model_unet_function_wrapper(answer(dtype)))
    for dtype in (torch.float16, torch.bfloat16):  # last: the weights are shared
        network.to(dtype)
        yield f"weights in {str(dtype).split('.')[1]}", model.clone()


def precisions():
    start_host()
    torch.set_num_threads(1)
    pack, out = Pack(), {}
    noise = noise_like(LATENT)
    solvers = {node: (pack.solver(node, **options)) for node, options in SOLVERS.items() if node != "FewStepDPMSolverAdaptive"}
    for form in ("eps", "v", "flow"):
        model, *conds = pack.demo(form)
        sigmas = pack.sigmas(model)
        plain = {node: sample(model, *conds, solver, sigmas, LATENT, noise, 2.0) for node, solver in solvers.items()}
        euler = sample(model, *conds, stock("euler"), sigmas, LATENT, noise, 2.0)
        for name, variant in variants(model):
            same = difference(sample(variant, *conds, stock("euler"), sigmas, LATENT, noise, 2.0), euler)
            for node, solver in solvers.items():
                result = sample(variant, *conds, solver, sigmas, LATENT, noise, 2.0)
                out[f"{form} {name} {node}"] = {
                    "dtype": str(result.dtype), "off": difference(result, plain[node]), "euler": same,
                    "finite": bool(torch.isfinite(result).all())}
        for dtype in (torch.float16, torch.bfloat16):
            given = LATENT.to(dtype)
            model, *conds = pack.demo(form)
            result = sample(model, *conds, solvers["FewStepUniPC"], sigmas, given, noise.to(dtype), 2.0)
            out[f"{form} latents in {str(dtype).split('.')[1]} FewStepUniPC"] = {
                "dtype": str(result.dtype), "off": difference(result, plain["FewStepUniPC"]), "euler": 0.05,
                "finite": bool(torch.isfinite(result).all())}
    return out


def lora():
    """A LoRA through LoraLoaderModelOnly against the same change made in the weights."""
    start_host()
    import folder_paths
    import safetensors.torch

    import nodes

    pack, out = Pack(), {}
    generator = torch.Generator().manual_seed(4)
    with tempfile.TemporaryDirectory() as folder:
        folder_paths.add_model_folder_path("loras", folder)
        for form in ("eps", "v", "flow"):
            model, *conds = pack.demo(form)
            weights = {k: v for k, v in model.model.diffusion_model.named_parameters() if k.endswith(".weight") and v.ndim == 4}
            state, changes = {}, {}
            for name, weight in weights.items():
                rows, columns = weight.shape[0], weight[0].numel()
                up, down = (torch.randn(shape, generator=generator) * 0.1 for shape in ((rows, 2), (2, columns)))
                stem = "diffusion_model." + name.removesuffix(".weight")
                state |= {f"{stem}.lora_up.weight": up.reshape(rows, 2, 1, 1), f"{stem}.alpha": torch.tensor(1.0),
                          f"{stem}.lora_down.weight": down.reshape(2, *weight.shape[1:])}
                changes[name] = (up @ down).reshape(weight.shape) * (1.0 / 2)
            safetensors.torch.save_file(state, Path(folder) / f"{form}.safetensors")
            sigmas, noise = pack.sigmas(model), noise_like(LATENT)

            def run(model, conds=conds, sigmas=sigmas, noise=noise):
                return sample(model, *conds, pack.solver("FewStepUniPC"), sigmas, LATENT, noise, 2.0)

            (patched,) = nodes.LoraLoaderModelOnly().load_lora_model_only(model, f"{form}.safetensors", 0.7)
            plain, with_lora, again = run(model), run(patched), run(model)
            with torch.no_grad():
                for name, change in changes.items():
                    weights[name].add_(change, alpha=0.7)
            out[form] = {"layers": len(changes), "merged": difference(with_lora, run(model)), "effect": difference(with_lora, plain),
                         "undone": difference(again, plain)}
    return out
