"""The LoRA nodes at work in the host: over steps, beside the embedded host, on the shipped files, on bad ones, by preset."""

import torch
from hosted import LATENT, ROOT, Pack, difference, noise_like, sample, start_host, stock
from lora_files import KOHYA, Loras, file_of, own_modules, weights
from model_zoo import conditioning, flux, sd15
from safetensors.torch import save_file


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

