"""LoRA files in every format, made for the host's own networks, tiny, and the pack's nodes on them."""

import tempfile
from pathlib import Path

import torch
from model_zoo import flux, patcher, sd15, sdxl, wan
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
