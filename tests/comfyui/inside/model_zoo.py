"""Models of the host's own classes, as small as they go, with random weights."""

import torch


def randomized(model):
    """Small weights; norms keep their scale."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(torch.randn(value.shape, generator=generator) * 0.05)
            if value.ndim == 1 and name.endswith(("weight", "scale")):
                value += 1
        for name, value in model.named_buffers():
            if name.endswith("inv_freq"):  # the host leaves one to be filled from a checkpoint
                value.copy_(10000.0 ** -torch.linspace(0, 1, len(value)))
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
