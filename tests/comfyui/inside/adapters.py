"""LoRA files of every format on the host's own networks."""

import json
import tempfile
from pathlib import Path

import torch
from hosted import LATENT, ROOT, Pack, difference, noise_like, sample, start_host, stock
from model_zoo import conditioning, flux, patcher, sd15, sdxl, wan
from safetensors.torch import save_file

STRENGTH, ALPHA, RANK = 0.7, 3.0, 2


class Loras:
    """A folder of the host's kind 'loras', and the pack's nodes on its files."""

    def __init__(self, pack):
        import folder_paths

        self.pack, self.holder = pack, tempfile.TemporaryDirectory()
        self.folder = Path(self.holder.name)
        folder_paths.add_model_folder_path("loras", str(self.folder), is_default=True)

    def write(self, tensors, metadata=None, name="test.safetensors"):
        import folder_paths

        save_file({k: v.clone().contiguous() for k, v in tensors.items()}, self.folder / name, metadata)
        folder_paths.filename_list_cache.clear()
        return name

    def load(self, model, tensors, metadata=None, node="FewStepLoadDistilledLoRA", name="test.safetensors", **widgets):
        """The node's outputs."""
        return self.load_shipped(model, self.write(tensors, metadata, name), node, **widgets)

    def load_shipped(self, model, name, node="FewStepLoadDistilledLoRA", **widgets):
        """The same for a file that is there."""
        values = {}
        for group in ("required", "optional"):
            for label, (_, settings) in self.pack.nodes[node].INPUT_TYPES().get(group, {}).items():
                if "default" in settings:
                    values[label] = settings["default"]
        values.update(model=model, lora_name=name, **widgets)
        return self.pack.run(node, **values)["result"]


def weights(model):
    """Every weight as the host runs it."""
    model.patch_model(torch.device("cpu"))
    found = {key: value.clone() for key, value in model.model.state_dict().items()}
    model.unpatch_model(torch.device("cpu"))
    return found


# families: the host's own classes, tiny
def sd3():
    import comfy.model_base
    import comfy.supported_models as known

    return patcher(comfy.model_base.SD3(known.SD3({
        "in_channels": 16, "patch_size": 2, "depth": 1, "num_blocks": 2, "adm_in_channels": 16, "input_size": None, "pos_embed_max_size": 8,
        "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 16, "out_features": 64}}, "dtype": torch.float32,
        "pos_embed_scaling_factor": None, "context_size": 16,
    })))


def pixart():
    import comfy.model_base
    import comfy.supported_models as known

    return patcher(comfy.model_base.PixArt(known.PixArtAlpha({
        "image_model": "pixart_alpha", "depth": 2, "hidden_size": 32, "num_heads": 2, "caption_channels": 16, "dtype": torch.float32,
        "micro_condition": False,
    })))


def qwen():
    import comfy.model_base
    import comfy.supported_models as known

    return patcher(comfy.model_base.QwenImage(known.QwenImage({
        "image_model": "qwen_image", "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 16,
        "axes_dims_rope": (4, 6, 6), "dtype": torch.float32,
    })))


def z_image():
    import comfy.model_base
    import comfy.supported_models as known

    return patcher(comfy.model_base.Lumina2(known.Lumina2({
        "image_model": "lumina2", "dim": 32, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2, "cap_feat_dim": 16,
        "axes_dims": [4, 6, 6], "axes_lens": [8, 8, 8], "qk_norm": True, "in_channels": 16, "dtype": torch.float32,
    })))


def flux_4():
    """The host's table of slices knows an MLP four times as wide."""
    import comfy.model_base
    import comfy.supported_models as known

    return patcher(comfy.model_base.Flux(known.Flux({**flux().model.model_config.unet_config, "mlp_ratio": 4.0})))


def own_modules(model):
    """{host's module name: key} of everything with a matrix."""
    state = model.model.state_dict()
    return {
        key[len("diffusion_model."):-len(".weight")]: key for key, value in state.items()
        if key.startswith("diffusion_model.") and key.endswith(".weight") and value.ndim > 1
    }


def diffusers_modules(model, table):
    """{diffusers' module name: target} from the host's own table, for weights with a matrix."""
    state, found = model.model.state_dict(), {}
    for name, target in table.items():
        key = target if isinstance(target, str) else target[0]
        known = target in found.values()  # the table has some weights under two names
        if name.endswith(".weight") and key in state and state[key].ndim > 1 and not known:
            found[name[:-len(".weight")]] = target
    return found


def unet_table(model):
    import comfy.utils

    return {k: f"diffusion_model.{v}" for k, v in comfy.utils.unet_to_diffusers(model.model.model_config.unet_config).items()}


def table_of(function):
    def table(model):
        import comfy.utils

        return getattr(comfy.utils, function)(model.model.model_config.unet_config, output_prefix="diffusion_model.")

    return table


def flat(name):
    return name.replace(".", "_")


def d0(name):
    return name.replace(".to_", ".processor.to_").removesuffix(".0") if ".attn" in name else name


KOHYA, AB, OLD = (".lora_down.weight", ".lora_up.weight"), (".lora_A.weight", ".lora_B.weight"), (".lora.down.weight", ".lora.up.weight")
DEFAULT = (".lora_A.default.weight", ".lora_B.default.weight")
OWN = {  # formats with the host's own names
    "K2": (lambda m: "lora_unet_" + flat(m), KOHYA), "G": (lambda m: "diffusion_model." + m, AB), "G down/up": (lambda m: "diffusion_model." + m, KOHYA),
}
TRANSFORMER = {
    "D2": (lambda m: "transformer." + m, AB), "bare": (lambda m: m, AB), "P": (lambda m: "base_model.model." + m, AB),
    "P default": (lambda m: "base_model.model." + m, DEFAULT), "lycoris": (lambda m: "lycoris_" + flat(m), KOHYA),
}
UNET = {
    "K": (lambda m: "lora_unet_" + flat(m), KOHYA), "D0": (lambda m: "unet." + d0(m), ("_lora.down.weight", "_lora.up.weight")),
    "D1": (lambda m: "unet." + m, OLD), "D1 A/B": (lambda m: "unet." + m, AB), "P": (lambda m: "base_model.model." + m, AB),
    "P in unet": (lambda m: "unet.base_model.model." + m, DEFAULT), "bare": (lambda m: m, AB),
}
FAMILIES = {  # name -> (model, host's table of diffusers' names, formats in those names, formats in the host's names)
    "sd15": (sd15, unet_table, UNET, OWN), "sdxl": (sdxl, unet_table, UNET, OWN),
    "sd3": (sd3, table_of("mmdit_to_diffusers"), {**TRANSFORMER, "K": (lambda m: "lora_transformer_" + flat(m), KOHYA)}, OWN),
    "pixart": (pixart, table_of("pixart_to_diffusers"), {**TRANSFORMER, "P in unet": (lambda m: "unet.base_model.model." + m, AB)}, OWN),
    "flux": (flux_4, table_of("flux_to_diffusers"), {**TRANSFORMER, "K": (lambda m: "lora_transformer_" + flat(m), KOHYA)}, OWN),
    "z-image": (z_image, table_of("z_image_to_diffusers"), TRANSFORMER, OWN),
    "qwen": (qwen, None, {}, {**OWN, **TRANSFORMER}),
    "wan": (wan, None, {}, {**OWN, **TRANSFORMER, "Wan Fun": (lambda m: "lora_unet__" + flat(m), KOHYA)}),
}


def file_of(modules, state, base, endings, seed=1):
    """(tensors, {module: (down, up)}) of a random adapter."""
    generator = torch.Generator().manual_seed(seed)
    tensors, pairs = {}, {}
    for module, target in modules.items():
        shape = list(state[target if isinstance(target, str) else target[0]].shape)
        if not isinstance(target, str) and target[1] is not None:
            shape[target[1][0]] = target[1][2]
        down = torch.randn(RANK, *shape[1:], generator=generator) * 0.1
        up = torch.randn(shape[0], RANK, *(1,) * (len(shape) - 2), generator=generator) * 0.1
        pairs[module] = down, up
        tensors |= {base(module) + endings[0]: down, base(module) + endings[1]: up, base(module) + ".alpha": torch.tensor(ALPHA)}
    return tensors, pairs


def expected_weights(modules, state, pairs):
    """W + strength * alpha/rank * B A in float64, with the host's slices and rearrangements."""
    found = {key: value.double().clone() for key, value in state.items()}
    for module, target in modules.items():
        key, part, function = (target, None, None) if isinstance(target, str) else (*target, None)[:3]
        region = found[key] if part is None else found[key].narrow(*part)
        down, up = (t.double().flatten(1) for t in pairs[module])
        change = (STRENGTH * ALPHA / RANK * (up @ down)).reshape(region.shape)
        region += change if function is None else function(change)
    return found


def error(found, expected, before):
    """Largest error of any weight, relative to the largest weight; and how many weights changed."""
    worst = max(float((found[k].double() - expected[k]).abs().max() / expected[k].abs().max().clamp(min=1e-9)) for k in expected)
    return worst, sum(not torch.equal(found[k], before[k]) for k in before)


def formats():
    start_host()
    import comfy.lora

    pack = Pack()
    loras, out = Loras(pack), {}
    for family, (make, table, diffusers, own) in FAMILIES.items():
        model = make()
        before = {k: v.clone() for k, v in model.model.state_dict().items()}
        groups = [(own_modules(model), own)]
        if table is not None:
            groups.append((diffusers_modules(model, table(model)), diffusers))
        for modules, forms in groups:
            for name, (base, endings) in forms.items():
                tensors, pairs = file_of(modules, before, base, endings)
                changed, _, *_, report = loras.load(model, tensors, strength=STRENGTH, preset="none")
                worst, count = error(weights(changed), expected_weights(modules, before, pairs), before)
                # what the host alone would use of the same file
                alone = comfy.lora.load_lora(dict(tensors), comfy.lora.model_lora_keys_unet(model.model, {}), log_missing=False)
                out[f"{family} {name}"] = {
                    "error": worst, "changed": count, "modules": len(modules), "used": f"{len(modules)} of {len(modules)} modules used" in report,
                    "host": len(alone), "restored": all(torch.equal(before[k], v) for k, v in model.model.state_dict().items()),
                }
    return out


def kinds():
    """LoHa, LoKr, LoCon, DoRA, OFT, GLoRA, full changes: the same weights as the host's own loader gives."""
    start_host()
    import comfy.sd

    pack = Pack()
    loras, out = Loras(pack), {}
    model = sd15()
    linear, conv = "input_blocks_1_1_transformer_blocks_0_attn2_to_k", "input_blocks_1_0_in_layers_2"
    generator = torch.Generator().manual_seed(6)

    def random(**shapes):
        return {role: torch.randn(shape, generator=generator) * 0.1 for role, shape in shapes.items()}

    lora = {"lora_down.weight": (2, 16), "lora_up.weight": (32, 2)}
    cases = {
        "lora without alpha": (linear, random(**lora)),
        "locon": (conv, random(**{"lora_down.weight": (2, 32, 1, 1), "lora_mid.weight": (2, 2, 3, 3), "lora_up.weight": (32, 2, 1, 1)})),
        "loha": (linear, random(hada_w1_a=(32, 2), hada_w1_b=(2, 16), hada_w2_a=(32, 2), hada_w2_b=(2, 16))),
        "lokr": (linear, random(lokr_w1=(4, 4), lokr_w2_a=(8, 2), lokr_w2_b=(2, 4))),
        "dora": (linear, {**random(**lora), "dora_scale": torch.rand(32, 1, generator=generator) + 0.5}),
        "oft": (linear, random(oft_blocks=(4, 8, 8))),
        "glora": (linear, random(**{"a1.weight": (2, 16), "a2.weight": (16, 2), "b1.weight": (2, 16), "b2.weight": (32, 2)})),
        "diff": (linear, random(diff=(32, 16))), "set": (linear, random(set_weight=(32, 16))),
    }
    embedded = pack.part("samplers.adapters")
    for name, (module, roles) in cases.items():
        if name not in ("lora without alpha", "diff", "set", "oft"):
            roles["alpha"] = torch.tensor(1.0)
        tensors = {f"lora_unet_{module}.{role}": tensor for role, tensor in roles.items()}
        ours = weights(loras.load(model, tensors, strength=STRENGTH, preset="none")[0])
        theirs = weights(comfy.sd.load_lora_for_models(model, None, dict(tensors), STRENGTH, 0)[0])
        plain = weights(model)
        out[name] = {"host": max(float((ours[k] - theirs[k]).abs().max()) for k in ours), "changed": sum(not torch.equal(ours[k], plain[k]) for k in ours)}
        if name not in ("dora", "oft", "glora"):  # the library's own arithmetic, which the embedded host uses
            targets = pack.part("nodes.comfy_adapters").ComfyAdapters().targets(model)
            (patch,) = embedded.load_adapter(embedded.AdapterFile("x", tensors), targets, {}).patches
            merged = embedded.merge(plain[patch.key], [(patch, STRENGTH)])
            out[name]["library"] = difference(merged, ours[patch.key])
    # a LoRA, a full change and a bias on one layer: the host's loader keeps one of the first two, FewStep both
    key = "diffusion_model.out.2"
    tensors = {f"{key}.lora_down.weight": torch.ones(1, 32, 3, 3), f"{key}.lora_up.weight": torch.ones(4, 1, 1, 1), f"{key}.diff": torch.ones(4, 32, 3, 3),
               f"{key}.diff_b": torch.ones(4)}
    changed = weights(loras.load(model, tensors, preset="none", strength=0.5)[0])
    plain = weights(model)
    out["both"] = {"weight": float((changed[f"{key}.weight"] - plain[f"{key}.weight"]).mean()), "bias": float((changed[f"{key}.bias"] - plain[f"{key}.bias"]).mean())}
    # FLUX control files of its makers: other names, biases, norms, and a wider first layer
    wide = flux()
    state = wide.model.state_dict()
    outside, inside = state["diffusion_model.img_in.weight"].shape
    shapes = {"img_in": (outside, 2 * inside), "double_blocks.0.img_attn.qkv": tuple(state["diffusion_model.double_blocks.0.img_attn.qkv.weight"].shape)}
    control = {}
    for module, (rows, columns) in shapes.items():
        control |= random(**{f"{module}.lora_A.weight": (2, columns), f"{module}.lora_B.weight": (rows, 2), f"{module}.lora_B.bias": (rows,)})
    scale = "single_blocks.0.norm.key_norm.scale"
    control |= random(**{scale: tuple(state[f"diffusion_model.{scale}"].shape)})
    ours = weights(loras.load(wide, control, strength=STRENGTH, preset="none")[0])
    theirs = weights(comfy.sd.load_lora_for_models(wide, None, dict(control), STRENGTH, 0)[0])
    out["control"] = {"host": max(float((ours[k] - theirs[k]).abs().max()) for k in ours), "changed": sum(
        ours[k].shape != v.shape or not torch.equal(ours[k], v) for k, v in state.items()), "input": list(ours["diffusion_model.img_in.weight"].shape)}
    # eight-bit base weights: stochastic rounding by the host, bit for bit as with its own loader
    if hasattr(torch, "float8_e4m3fn"):
        narrow = sd15()
        narrow.model.diffusion_model.to(torch.float8_e4m3fn).requires_grad_(False)
        tensors = {f"lora_unet_{linear}.{role}": tensor for role, tensor in cases["lora without alpha"][1].items()}
        tensors[f"lora_unet_{linear}.alpha"] = torch.tensor(1.0)
        ours = weights(loras.load(narrow, tensors, strength=STRENGTH, preset="none")[0])
        theirs = weights(comfy.sd.load_lora_for_models(narrow, None, dict(tensors), STRENGTH, 0)[0])
        own = f"diffusion_model.{'input_blocks.1.1.transformer_blocks.0.attn2.to_k'}.weight"
        out["fp8"] = {"same": torch.equal(ours[own].view(torch.uint8), theirs[own].view(torch.uint8)), "dtype": str(ours[own].dtype)}
    return out


def text_encoders():
    """Both CLIPs of SDXL under the host's names, tiny."""
    start_host()
    import comfy.model_patcher
    import comfy.sd

    pack = Pack()
    loras, out = Loras(pack), {}
    root, generator = torch.nn.Module(), torch.Generator().manual_seed(8)
    layers = {f"{clip}.transformer.text_model.encoder.layers.0.{leaf}": (6, 4) for clip in ("clip_l", "clip_g") for leaf in ("mlp.fc1", "self_attn.q_proj")}
    for path, (outside, inside) in layers.items():
        *parents, leaf = path.split(".")
        place = root
        for name in parents:
            if not hasattr(place, name):
                place.add_module(name, torch.nn.Module())
            place = getattr(place, name)
        place.add_module(leaf, torch.nn.Linear(inside, outside))
    clip = comfy.sd.CLIP(no_init=True)
    clip.cond_stage_model, clip.tokenizer, clip.layer_idx = root, None, None
    clip.patcher = comfy.model_patcher.ModelPatcher(root.requires_grad_(False), torch.device("cpu"), torch.device("cpu"))
    clip.tokenizer_options, clip.use_clip_schedule, clip.apply_hooks_to_conds = {}, False, None
    before = {k: v.clone() for k, v in root.state_dict().items()}
    model = sd15()
    main, _ = file_of(dict(list(own_modules(model).items())[:4]), model.model.state_dict(), lambda m: "diffusion_model." + m, KOHYA)
    tails = {path: path.split(".text_model.")[1] for path in layers}
    second = {path: path.startswith("clip_g") for path in layers}
    bases = {
        "kohya": lambda p: f"lora_te{2 if second[p] else 1}_text_model_" + flat(tails[p]),
        "diffusers": lambda p: f"text_encoder{'_2' if second[p] else ''}.text_model." + tails[p], "generic": lambda p: "text_encoders." + p,
        "PEFT": lambda p: f"text_encoder{'_2' if second[p] else ''}.base_model.model.text_model." + tails[p],
    }
    endings = {"diffusers": (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"), "PEFT": AB}
    for name, base in bases.items():
        down_end, up_end = endings.get(name, KOHYA)
        file, expected = dict(main), {k: v.double().clone() for k, v in before.items()}
        for path, (outside, inside) in layers.items():
            down, up = torch.randn(2, inside, generator=generator), torch.randn(outside, 2, generator=generator)
            file |= {base(path) + down_end: down, base(path) + up_end: up, base(path) + ".alpha": torch.tensor(ALPHA)}
            expected[f"{path}.weight"] += STRENGTH * ALPHA / 2 * (up.double() @ down.double())
        _, changed, *_, report = loras.load(model, file, clip=clip, strength=STRENGTH, preset="none")
        changed.patcher.patch_model(torch.device("cpu"))
        found = {k: v.clone() for k, v in root.state_dict().items()}
        changed.patcher.unpatch_model(torch.device("cpu"))
        out[name] = {"error": error(found, expected, before)[0], "changed": error(found, expected, before)[1], "used": "text encoder: 4 of 4" in report}
        without = loras.load(model, file, preset="none")[-1]
        out[name]["without"] = "4 modules are in the file and not used, as no CLIP" in without and "WARNING: text" not in without
    return out


def hydra_and_routed():
    start_host()
    pack = Pack()
    loras, out, model = Loras(pack), {}, sd15()
    name, key = "diffusion_model.out.2", "diffusion_model.out.2.weight"
    generator = torch.Generator().manual_seed(3)
    plain = weights(model)
    w, b = plain[key].double().flatten(1), plain["diffusion_model.out.2.bias"].double()
    t = {f"hydra_{branch}.{role}": torch.randn(shape, generator=generator) * 0.1 for branch, shapes in {
        "par": {"down_proj.weight": (2, 288), "down_proj.bias": (2,), "up_proj.weight": (4, 2), "up_proj.bias": (4,)},
        "seq": {"down_proj.weight": (3, 4), "down_proj.bias": (3,), "up_proj.weight": (4, 3), "up_proj.bias": (4,)}}.items() for role, shape in shapes.items()}
    d = {k: v.double() for k, v in t.items()}
    change = d["hydra_par.up_proj.weight"] @ d["hydra_par.down_proj.weight"] + d["hydra_seq.up_proj.weight"] @ d["hydra_seq.down_proj.weight"] @ w
    bias = sum(d[f"hydra_{x}.up_proj.weight"] @ d[f"hydra_{x}.down_proj.bias"] + d[f"hydra_{x}.up_proj.bias"] for x in ("par", "seq"))
    bias = bias + d["hydra_seq.up_proj.weight"] @ d["hydra_seq.down_proj.weight"] @ b
    file = {f"{name}.{k}": v for k, v in t.items()}
    first = {f"{name}.lora_down.weight": torch.ones(1, 32, 3, 3), f"{name}.lora_up.weight": torch.ones(4, 1, 1, 1), f"{name}.alpha": torch.tensor(0.1)}
    before = loras.load(model, first, preset="none")[0]
    for label, base in (("alone", model), ("after another", before)):
        base.patch_model(torch.device("cpu"))  # in place: the base weight must be taken from the backup
        changed = loras.load(base, file, preset="none", strength=STRENGTH)[0]
        base.unpatch_model(torch.device("cpu"))
        found, start = weights(changed), weights(base)
        expected = start[key].double() + STRENGTH * change.reshape(plain[key].shape)
        out[f"hydra {label}"] = {"weight": difference(found[key].double(), expected),
                                 "bias": difference(found["diffusion_model.out.2.bias"].double(), b + STRENGTH * bias)}
    a_, b_ = torch.randn(3, 2, 8, 2, generator=generator), torch.randn(3, 2, 2, 16, generator=generator)
    z = torch.randn(2, 6, generator=generator)
    module = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k"
    gates = torch.sigmoid(z[1].double()).reshape(2, 3)
    mix = gates / (gates.sum(1, keepdim=True) + 1e-8)
    mean_a = torch.cat([sum(mix[h, s] * a_[s, h].double() for s in range(3)) for h in range(2)])
    mean_b = torch.cat([sum(mix[h, s] * b_[s, :, h].double() for s in range(3)) for h in range(2)], dim=1)
    changed, _ = loras.load(
        model, {f"{module}.lora_a": a_, f"{module}.lora_b": b_, f"{module}.alpha": torch.tensor(1.0), "module_logits": z},
        {"task_names": json.dumps(["x", "y"])}, "FewStepLoadRoutedAdapter", task="y", strength=STRENGTH)
    expected = plain[f"{module}.weight"].double() + STRENGTH * 0.5 * (mean_a @ mean_b).T
    out["routed"] = {"weight": difference(weights(changed)[f"{module}.weight"].double(), expected)}
    return out


def over_steps():
    """Strengths over steps, by additions and by the host's hooks, against a run that loads each step's strength plainly."""
    start_host()
    pack = Pack()
    loras, out = Loras(pack), {}
    cases = {"sd15": (sd15(), conditioning(), LATENT), "flux": (flux(), conditioning(), torch.zeros(2, 16, 8, 8)), "demo": (*demo_case(pack), LATENT)}
    values = [1.0, 0.5, 0.25, 0.0]
    for name, (model, conds, latent) in cases.items():
        sigmas, noise = pack.sigmas(model, "uniform_t", 4), noise_like(latent)
        plain_file = file_of(own_modules(model), model.model.state_dict(), lambda m: "diffusion_model." + m, KOHYA)[0]
        some = sorted(own_modules(model))[:3]
        whole_file = {f"diffusion_model.{m}.diff": torch.randn(model.model.state_dict()[f"diffusion_model.{m}.weight"].shape) * 0.1 for m in some}
        for kind, file in (("plain", plain_file), ("whole", whole_file)):
            steps = [loras.load(model, file, preset="none", strength=v)[0] for v in values]
            x = latent
            for i, changed in enumerate(steps):  # Euler has no memory: slices of one step each
                x = sample(changed, *conds, stock("euler"), sigmas[i : i + 2], x, noise if i == 0 else torch.zeros_like(noise), 2.0)
            base = sample(model, *conds, stock("euler"), sigmas, latent, noise, 2.0)
            found = {"effect": difference(base, x)}
            for method in ("auto", "additions", "rebuild"):
                if kind == "whole" and method == "additions":
                    continue
                changed, positive, negative, report = loras.load(
                    model, file, node="FewStepLoRAOverSteps", sigmas=sigmas, strengths=", ".join(map(str, values)), positive=conds[0],
                    negative=conds[1], method=method)
                for run in (1, 2):  # a second run starts from what the first one left
                    result = sample(changed, positive, negative, stock("euler"), sigmas, latent, noise, 2.0)
                    found[f"{method} {run}"] = difference(result, x)
                found[f"{method} rebuilds"] = "weights are rebuilt" in report
            found["restored"] = difference(sample(model, *conds, stock("euler"), sigmas, latent, noise, 2.0), base)
            out[f"{name} {kind}"] = found
    return out


def demo_case(pack):
    model, *conds = pack.demo("eps")
    return model, conds


def both_hosts():
    """The demo model with a LoRA: weights and pictures here and in the embedded host, and by the stock loader."""
    start_host()
    import nodes as host_nodes

    pack = Pack()
    host = pack.part("nodes.comfy").ComfyHost()
    loras, out = Loras(pack), {}
    header = {"fewstep.method": "tdm", "fewstep.timesteps": "[999, 749, 499, 249]", "fewstep.update": "ddim"}
    for form in ("eps", "v", "flow"):
        model, *conds = pack.demo(form)
        state = model.model.state_dict()
        tensors, _ = file_of(own_modules(model), state, lambda m: "diffusion_model." + m, KOHYA)
        ours, _, sampler, sigmas, cfg, _, report = loras.load(model, tensors, header)
        (theirs,) = host_nodes.LoraLoaderModelOnly().load_lora_model_only(model, "test.safetensors", 1.0)
        fading = loras.load(model, tensors, header, node="FewStepLoRAOverSteps", sigmas=sigmas, strengths="1, 0")[0]
        a, b = weights(ours), weights(theirs)
        embedded = pack.part("host.embedded").EmbeddedHost(loras.folder / "out", models_directory=loras.folder / "models")
        (loras.folder / "models" / "loras").mkdir(parents=True, exist_ok=True)
        save_file(tensors, loras.folder / "models" / "loras" / "test.safetensors", header)
        with pack.part("nodes.host").use_host(embedded):
            inner, *inner_conds = pack.demo(form)
            loaded, _, e_sampler, e_sigmas, *_ , e_report = loras.load(inner, tensors, header)
            merged = loaded.patched_model().weights
            e_fading = loras.load(inner, tensors, header, node="FewStepLoRAOverSteps", sigmas=e_sigmas, strengths="1, 0")[0]
            picture = embedded.sample(loaded, 7, cfg, e_sampler, e_sigmas, *inner_conds, {"samples": LATENT})["samples"]
        noise = torch.randn(LATENT.shape, generator=torch.Generator().manual_seed(7))
        out[form] = {
            "stock": max(float((a[k] - b[k]).abs().max()) for k in a),
            "embedded": max(difference(merged[k.removeprefix("diffusion_model.")], a[k]) for k in a if k.removeprefix("diffusion_model.") in merged),
            "picture": difference(picture, sample(ours, *conds, sampler, sigmas, LATENT, noise, cfg)), "sigmas": torch.equal(sigmas, e_sigmas),
            "reports": report == e_report, "merged": len(merged),
            "fingerprint": embedded.weights(loaded)[1] == host.weights(ours)[1],
            "additions": embedded.weights(e_fading)[1] == host.weights(fading)[1] != host.weights(model)[1],
        }
    return out


def shipped():
    """The demo model's own LoRAs: by the host's loader and by the pack's, on their base and on the other forms."""
    start_host()
    import comfy.lora
    import comfy.utils

    pack, out = Pack(), {}
    loras, distilled = Loras(pack), pack.part("demo.distilled")
    for name in distilled.names():
        ours = distilled.load_distilled(name)
        model, *conds = pack.demo(ours.model.form)
        tensors = comfy.utils.load_torch_file(str(ROOT / "demo" / "weights" / "loras" / f"{name}.safetensors"))
        patches = comfy.lora.load_lora(tensors, comfy.lora.model_lora_keys_unet(model.model, {}))
        stocked = model.clone()
        case = {"modules": len(tensors) // 3, "mapped": len(patches), "applied": len(stocked.add_patches(patches, 1.0))}
        patched, _, sampler, sigmas, cfg, steps, report = loras.load_shipped(model, f"{name}.safetensors")
        a, b = weights(stocked), weights(patched)
        case["weights"] = max(difference(a[k], b[k]) for k in a)
        noise = noise_like(LATENT)
        level = float(sigmas[1])
        found, plain = (sample(m, *conds, stock("euler"), torch.tensor([level, 0.0]), LATENT, noise) for m in (patched, model))
        expected = ours.model.denoiser(pack.part("demo.text").encode("3"))(noise * level, torch.full((2,), level))
        case.update(
            x_0=difference(found, expected), without=difference(plain, expected), sigmas=sigmas.tolist(), cfg=cfg, steps=steps,
            planned=[node.sigma for node in ours.plan.nodes], warnings=report.count("WARNING"), sure="confidence high" in report,
            finite=bool(torch.isfinite(sample(patched, *conds, sampler, sigmas, LATENT, noise, cfg)).all()),
        )
        others = {form: loras.load_shipped(pack.demo(form)[0], f"{name}.safetensors")[-1] for form in ("eps", "v", "flow")}
        case["other"] = {form: "the loaded model is another one" in text for form, text in others.items() if form != ours.model.form}
        out[name] = case
    return out


def refused():
    """What the loader says of files and numbers that are wrong, on the host's own network; and what strength 0 leaves."""
    start_host()
    pack, out = Pack(), {}
    loras, model = Loras(pack), sd15()
    fine, _ = file_of(own_modules(model), model.model.state_dict(), lambda m: "diffusion_model." + m, KOHYA)
    whole = loras.folder / loras.write(fine)
    flux_q = "transformer.single_transformer_blocks.0.attn.to_q"
    sdxl_k = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    text = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    for name, tensors in {
        "other base": {f"{flux_q}.lora_A.weight": torch.ones(2, 3072), f"{flux_q}.lora_B.weight": torch.ones(3072, 2)},
        "other width": {f"{sdxl_k}.lora_down.weight": torch.ones(2, 2048), f"{sdxl_k}.lora_up.weight": torch.ones(640, 2)},
        "checkpoint": model.model.state_dict(), "unknown": {"emb.string_to_param": torch.ones(2)},
        "text only": {f"{text}.lora_down.weight": torch.ones(2, 4), f"{text}.lora_up.weight": torch.ones(4, 2)},
        "nan": {k: v if k.endswith("alpha") else v * float("nan") for k, v in fine.items()},
    }.items():
        loras.write(tensors, name=f"{name}.safetensors")
    content = whole.read_bytes()
    for name, part in {"cut.safetensors": content[: len(content) // 2], "empty.safetensors": b"", "old.pt": b"PK"}.items():
        (loras.folder / name).write_bytes(part)
    cases = {name: (name, 1.0) for name in sorted(p.name for p in loras.folder.iterdir()) if name != whole.name}
    for name, (file, strength) in {**cases, "strength nan": (whole.name, float("nan")), "strength inf": (whole.name, float("inf"))}.items():
        try:
            loras.load_shipped(model, file, strength=strength)
            out[name] = "taken"
        except Exception as error:
            out[name] = f"{type(error).__name__}: {error}"
    same, *_, report = loras.load_shipped(model, whole.name, strength=0.0)
    before, after = weights(model), weights(same)
    out["strength 0"] = report if all(torch.equal(before[k], after[k]) for k in before) and not same.patches else "changed"
    return out


def settings():
    """Noise levels and inputs of presets on the host's own models."""
    start_host()
    pack, out = Pack(), {}

    def run(model, preset, **widgets):
        values = {label: s["default"] for label, (_, s) in pack.nodes["FewStepDistilledPreset"].INPUT_TYPES()["optional"].items()}
        return pack.run("FewStepDistilledPreset", **{**values, "model": model, "preset": preset, **widgets})["result"]

    unet, flow = sd15(), flux()
    for preset in ("dmd2-sdxl", "lcm", "tdm-sd15", "sdxl-lightning", "dmd2-sdxl-1step", "tdm-pixart"):
        sampling = unet.get_model_object("model_sampling")
        sigmas = run(unet, preset)[2]
        out[preset] = {"sigmas": sigmas.tolist(), "times": sampling.timestep(sigmas[:-1]).tolist(),
                       "exact": all(s in sampling.sigmas.tolist() for s in sigmas[:-1].tolist())}
    for preset in ("qwen-lightning", "wan21-lightx2v", "tdm-sd3", "hyper-flux"):
        out[preset] = {"sigmas": run(flow, preset)[2].tolist()}
    from comfy.samplers import calculate_sigmas
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3

    shifted = ModelSamplingSD3().patch(flow, 3.0)[0]
    out["simple"] = {"flow 3": calculate_sigmas(shifted.get_model_object("model_sampling"), "simple", 4).tolist(),
                     "sd": calculate_sigmas(unet.get_model_object("model_sampling"), "simple", 4).tolist()}

    seen, lightning = [], []
    noise = noise_like(LATENT)

    def spy(apply_model, args):
        result = apply_model(args["input"], args["timestep"], **args["c"])
        seen.append((args["input"].clone(), float(args["timestep"][0]), result))
        return result

    watched = unet.clone()
    watched.set_model_unet_function_wrapper(spy)
    _, sampler, sigmas, *_ = run(watched, "dmd2-sdxl-1step")
    sample(watched, *conditioning(), sampler, sigmas, LATENT, noise)
    x, sigma, _ = seen[-1]
    out["one step"] = {"input": difference(x / (1 + sigma**2) ** 0.5, noise), "sigma": sigma}

    changed, sampler, sigmas, *_ = run(unet, "sdxl-lightning-1step")
    network = unet.model.diffusion_model
    handle = network.register_forward_hook(lambda module, args, output: lightning.append(output.clone()))
    result = sample(changed, *conditioning(), sampler, sigmas, LATENT, noise)
    handle.remove()
    out["x_0"] = {"output": difference(result, unet.model.latent_format.process_out(lightning[-1].float()))}
    return out


def full_size():
    """The real networks' names and widths, without their weights."""
    start_host()
    import comfy.model_base as base
    import comfy.supported_models as known

    pack, out = Pack(), {}
    families = pack.part("samplers.adapters.families")
    attention = {"use_spatial_transformer": True, "legacy": False, "dtype": torch.float16}
    unet = {"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "transformer_depth_middle": 1, **attention}
    sd = {**unet, "num_res_blocks": [2, 2, 2, 2], "channel_mult": [1, 2, 4, 4], "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
          "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "num_heads": 8, "num_head_channels": -1}
    xl = {**unet, "num_res_blocks": [2, 2, 2], "channel_mult": [1, 2, 4], "transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_middle": 10,
          "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "num_head_channels": 64, "num_heads": -1, "context_dim": 2048,
          "use_linear_in_transformer": True, "num_classes": "sequential", "adm_in_channels": 2816}
    flux_config = {"image_model": "flux", "in_channels": 16, "out_channels": 16, "vec_in_dim": 768, "context_in_dim": 4096, "hidden_size": 3072,
                   "mlp_ratio": 4.0, "num_heads": 24, "depth": 19, "depth_single_blocks": 38, "axes_dim": [16, 56, 56], "theta": 10000, "patch_size": 2,
                   "qkv_bias": True, "txt_ids_dims": [], "dtype": torch.float16}
    sd3_config = {"in_channels": 16, "patch_size": 2, "depth": 24, "adm_in_channels": 2048, "input_size": None, "pos_embed_max_size": 192,
                  "pos_embed_scaling_factor": None, "dtype": torch.float16,
                  "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 1536}}}
    wan_config = {"image_model": "wan2.1", "model_type": "t2v", "dim": 5120, "num_heads": 40, "ffn_dim": 13824, "freq_dim": 256, "text_dim": 4096,
                  "num_layers": 40, "in_dim": 16, "out_dim": 16, "dtype": torch.float16}
    models = {
        "sd15": lambda d: base.BaseModel(known.SD15({**sd, "context_dim": 768}), device=d), "sdxl": lambda d: base.SDXL(known.SDXL(xl), device=d),
        "sd2": lambda d: base.BaseModel(known.SD20({**sd, "context_dim": 1024}), device=d),
        "sd3": lambda d: base.SD3(known.SD3(sd3_config), device=d),
        "sd35-large": lambda d: base.SD3(known.SD3({**sd3_config, "depth": 38}), device=d),
        "flux": lambda d: base.Flux(known.Flux({**flux_config, "guidance_embed": True}), device=d),
        "flux-schnell": lambda d: base.Flux(known.Flux({**flux_config, "guidance_embed": False}), device=d),
        "wan-14b-t2v": lambda d: base.WAN21(known.WAN21_T2V(wan_config), device=d),
        "wan-14b-i2v": lambda d: base.WAN21(known.WAN21_I2V({**wan_config, "model_type": "i2v", "in_dim": 36}), device=d),
        "wan-1.3b": lambda d: base.WAN21(known.WAN21_T2V({**wan_config, "dim": 1536, "ffn_dim": 8960, "num_heads": 12, "num_layers": 30}), device=d),
        "qwen-image": lambda d: base.QwenImage(known.QwenImage({"image_model": "qwen_image", "dtype": torch.float16}), device=d),
        "pixart": lambda d: base.PixArt(known.PixArtAlpha({"image_model": "pixart_alpha", "dtype": torch.float16}), device=d),
        "z-image": lambda d: base.Lumina2(known.Lumina2({
            "image_model": "lumina2", "dim": 3840, "n_layers": 30, "n_heads": 30, "n_kv_heads": 30, "cap_feat_dim": 2560, "axes_dims": [32, 48, 48],
            "axes_lens": [1536, 512, 512], "qk_norm": True, "in_channels": 16, "dtype": torch.float16}), device=d),
    }
    for name, make in models.items():
        model = make(torch.device("meta"))
        shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
        family = families.family_of(families.model_widths(shapes))
        out[name] = family.id if family else None
    return out

