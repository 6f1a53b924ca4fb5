"""One random adapter, written in every file format, and tiny networks with the module names of real ones."""

import json
from types import SimpleNamespace

import pytest
import torch
from fewstep.samplers import adapters
from fewstep.samplers.adapters.targets import Targets
from safetensors.torch import save_file

RANK = 2
# a Stable Diffusion U-Net's modules: diffusers' name -> (the host's own name, weight's shape)
UNET = {
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": ("input_blocks.1.1.transformer_blocks.0.attn1.to_q", (8, 8)),
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0": ("input_blocks.1.1.transformer_blocks.0.attn1.to_out.0", (8, 8)),
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k": ("input_blocks.1.1.transformer_blocks.0.attn2.to_k", (8, 768)),
    "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj": ("input_blocks.1.1.transformer_blocks.0.ff.net.0.proj", (32, 8)),
    "down_blocks.0.resnets.0.conv1": ("input_blocks.1.0.in_layers.2", (8, 4, 3, 3)),
}


def unet_targets(context=768, generator=None):
    """The names that the host gives to a U-Net: its own, kohya's, and diffusers' with attention processors."""
    generator = generator or torch.Generator().manual_seed(5)
    names, weights = {}, {}
    for diffusers, (own, shape) in UNET.items():
        shape = tuple(context if size == 768 else size for size in shape)
        key = f"diffusion_model.{own}.weight"
        weights[key] = torch.randn(shape, generator=generator)
        processor = diffusers.replace(".to_", ".processor.to_").removesuffix(".0") if "attn" in diffusers else diffusers
        for name in (
            f"diffusion_model.{own}", "lora_unet_" + own.replace(".", "_"), "lora_unet_" + diffusers.replace(".", "_"),
            "lycoris_" + diffusers.replace(".", "_"), processor, f"unet.{processor}",
        ):
            names[name] = key
    shapes = {key: tuple(w.shape) for key, w in weights.items()}
    return Targets(names, shapes, weights.__getitem__, {k: w.dtype for k, w in weights.items()}), weights


def pairs_for(shapes, rank=RANK, seed=1):
    """{module: (down, up)}; convolutions as diffusers has them, the kernel in down."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (torch.randn(rank, *shape[1:], generator=generator), torch.randn(shape[0], rank, *(1,) * (len(shape) - 2), generator=generator))
        for name, shape in shapes.items()
    }


def tensors_of(pairs, base, down=".lora_down.weight", up=".lora_up.weight", alpha=None):
    """A file's tensors: ``base(module)`` is the module's name in the format."""
    tensors = {}
    for module, (a, b) in pairs.items():
        tensors[base(module) + down], tensors[base(module) + up] = a.clone(), b.clone()
        if alpha is not None:
            tensors[base(module) + ".alpha"] = torch.tensor(float(alpha))
    return tensors


def merged(adapter, weights, strength):
    """Every weight with the adapter merged."""
    return {
        key: adapters.merge(w, [(p, strength) for p in adapter.patches if p.key == key]) for key, w in weights.items()
    }


def load(tensors, targets, name="x.safetensors", metadata=None, config=None, presets=None, text=None, **choices):
    file = adapters.AdapterFile(name, tensors, metadata or {}, config or {})
    presets = adapters.all_presets() if presets is None else presets
    return adapters.load_adapter(file, targets, presets, adapters.Choices(**choices), text=text)


@pytest.fixture
def make():
    return SimpleNamespace(
        UNET=UNET, RANK=RANK, unet_targets=unet_targets, pairs_for=pairs_for, tensors_of=tensors_of, merged=merged, load=load,
        adapters=adapters, save=save_file, json=json,
    )
