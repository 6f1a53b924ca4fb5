"""The weights that LoRA files of every format and kind give on the host's own networks."""

import json

import torch
from hosted import Pack, difference, start_host
from lora_files import (
    AB,
    ALPHA,
    FAMILIES,
    KOHYA,
    STRENGTH,
    Loras,
    diffusers_modules,
    error,
    expected_weights,
    file_of,
    flat,
    own_modules,
    weights,
)
from model_zoo import flux, sd15


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
