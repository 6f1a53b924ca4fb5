"""LoRA files for the demo model, and its nodes called with every widget at its default."""

import torch
from fewstep.nodes import NODE_CLASS_MAPPINGS as CLASSES
from safetensors.torch import save_file

DEMO = {"fewstep.method": "dmd2", "fewstep.timesteps": "[999, 749, 499, 249]", "fewstep.update": "renoise", "fewstep.guidance": "2.0"}
SHAPES = {"down1.conv1": (48, 48, 3, 3), "attention.qkv": (288, 96, 1, 1), "middle1.film": (192, 128)}


def lora_file(path, shapes=None, rank=2, seed=1, metadata=None, base="diffusion_model.{}", scale=0.05):
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in (shapes or SHAPES).items():
        module = base.format(name)
        tensors[f"{module}.lora_down.weight"] = torch.randn(rank, *shape[1:], generator=generator) * scale
        tensors[f"{module}.lora_up.weight"] = torch.randn(shape[0], rank, *(1,) * (len(shape) - 2), generator=generator)
        tensors[f"{module}.alpha"] = torch.tensor(1.0)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata)
    return tensors


def run(node, *args, **widgets):
    """The node's outputs, every widget that is not given at its default."""
    cls = CLASSES[node]
    values = {}
    for group in ("required", "optional"):
        for name, (_, settings) in cls.INPUT_TYPES().get(group, {}).items():
            if "default" in settings:
                values[name] = settings["default"]
    result = getattr(cls(), cls.FUNCTION)(**{**values, **widgets})
    return result["result"] if isinstance(result, dict) else result


def checkpoint(form="eps"):
    return run("FewStepDemoCheckpoint", form=form)


def load(name="digits.safetensors", form="eps", **widgets):
    model = widgets.pop("model", None) or checkpoint(form)[0]
    return run("FewStepLoadDistilledLoRA", model=model, lora_name=name, **widgets)


def weights(model):
    patched = model.patched_model()
    own = dict(patched.diffusion_model.state_dict())
    return {**own, **(patched.weights or {})}


def sampled(model, clip, sampler, sigmas, cfg=1.0, seed=3, size=8, conds=None):
    from fewstep.nodes.host import get_host

    positive, negative = conds or [clip.encode_from_tokens_scheduled(clip.tokenize(t)) for t in ("3", "")]
    latent = {"samples": torch.zeros(2, 4, size, size)}
    return get_host().sample(model, seed, cfg, sampler, sigmas, positive, negative, latent)["samples"]


# the loader
