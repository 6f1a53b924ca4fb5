"""Low-rank adapters: the forward addition equals the merged weight, in every layer kind, and files bring them back."""

import json

import pytest
import torch
from fewstep.samplers import adapters
from fewstep.samplers.distillation import DMD2, TDM, LowRank, switched
from fewstep.samplers.errors import OptionError
from safetensors.torch import load_file
from torch import nn


def filled(network, **options):
    """Adapters whose up half is not zero."""
    adapter = LowRank(network, **options)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in adapter.parameters.items():
        if name.endswith(".up"):
            parameter.data.normal_(generator=generator)
    return adapter


LAYERS = [
    (nn.Linear(6, 5), (3, 6)),
    (nn.Linear(6, 5, bias=False), (2, 7, 6)),
    (nn.Conv1d(4, 3, 3, padding=1), (2, 4, 9)),
    (nn.Conv2d(4, 6, 3, stride=2, padding=1), (2, 4, 8, 7)),
    (nn.Conv2d(4, 6, 3, padding=2, dilation=2), (2, 4, 8, 8)),
    (nn.Conv2d(4, 6, 1), (2, 4, 5, 5)),
    (nn.Conv3d(2, 3, (1, 3, 3), padding=(0, 1, 1)), (1, 2, 3, 6, 6)),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS)
@torch.no_grad()
def test_addition_equals_merged_weight(layer, shape):
    torch.manual_seed(0)
    network = nn.Sequential(layer)
    adapter = filled(network, rank=2, alpha=3.0)
    x = torch.randn(shape)
    plain = network(x)
    with adapter.active():
        added = network(x)
    assert torch.equal(network(x), plain) and not torch.allclose(added, plain, atol=1e-2)
    tensors = adapter.tensors(prefix="")
    down, up = tensors["0.lora_down.weight"], tensors["0.lora_up.weight"]
    # the formula of LoRA files: W + alpha/rank * up @ down, all but the first dimension flattened
    change = tensors["0.alpha"] / len(down) * (up.flatten(1) @ down.flatten(1)).reshape(layer.weight.shape)
    original = layer.weight.clone()
    layer.weight += change
    torch.testing.assert_close(network(x), added, rtol=1e-5, atol=1e-5)
    layer.weight.copy_(original)


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.SiLU(), nn.Conv2d(8, 4, 1))


def test_adapters_start_at_nothing_and_switch():
    network, x = small(), torch.randn(1, 4, 5, 5)
    student, critic = filled(network, rank=2), LowRank(network, 3)
    base = network(x)
    with critic.active():
        assert torch.equal(network(x), base)
    with student.active():
        changed = network(x)
    assert not torch.equal(changed, base) and torch.equal(network(x), base)
    call = switched(lambda x, t, prompts: network(x), student)
    assert torch.equal(call(x, None, None), changed) and not student.enabled
    student.remove()
    with student.active():
        assert torch.equal(network(x), base)


def test_only_matching_layers_and_only_the_adapter_gets_gradients():
    network = small().requires_grad_(False)
    adapter = filled(network, rank=2, match=r"^3$")
    assert set(adapter.parameters) == {"3.down", "3.up"}
    with adapter.active():
        network(torch.randn(1, 4, 5, 5)).square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in adapter.parameters.values())
    assert all(p.grad is None for p in network.parameters())


def test_half_precision_base_keeps_its_dtype():
    network = small().to(torch.bfloat16)
    adapter = filled(network, rank=2)
    assert all(p.dtype == torch.float32 for p in adapter.parameters.values())
    with adapter.active():
        assert network(torch.randn(1, 4, 5, 5, dtype=torch.bfloat16)).dtype == torch.bfloat16


@torch.no_grad()
def test_the_loader_reads_what_was_trained(tmp_path):
    """A file, through the distilled-LoRA loader, gives the outputs of the student in memory, and its header the settings."""
    network = small()
    adapter = filled(network, rank=2, alpha=1.0)
    path = tmp_path / "lora.safetensors"
    adapter.save(path, {**TDM(2, 3.0).preset(), "base": "small"}, dtype=torch.float32)
    assert [p.name for p in tmp_path.iterdir()] == ["lora.safetensors"]
    tensors = load_file(path)
    assert set(tensors) == {
        f"diffusion_model.{n}.{p}" for n in "03" for p in ("lora_down.weight", "lora_up.weight", "alpha")
    }
    assert tensors["diffusion_model.0.lora_down.weight"].shape == (2, 4, 3, 3)
    assert tensors["diffusion_model.0.lora_up.weight"].shape == (8, 2, 1, 1)
    x = torch.randn(1, 4, 5, 5)
    with adapter.active():
        expected = network(x)
    other = small()
    file = adapters.open_adapter(path)
    loaded = adapters.load_adapter(file, adapters.targets_of(other), {})
    for patch in loaded.patches:
        weight = other.get_parameter(patch.key.removeprefix("diffusion_model."))
        weight.copy_(adapters.merge(weight, [(patch, 1.0)]))
    torch.testing.assert_close(other(x), expected, rtol=1e-5, atol=1e-5)
    assert file.metadata["fewstep.base"] == "small" and json.loads(file.metadata["fewstep.objective"])["guidance"] == 3.0
    found = loaded.detection
    assert (found.confidence, found.preset.method, found.preset.steps, found.preset.cfg) == ("high", "TDM", 2, 1)
    assert found.preset.solver == "ddim" and found.preset.grid == {"kind": "times", "times": {"2": [999.0, 499.0]}}
    adapter.save(path, DMD2().preset())
    again = adapters.load_adapter(adapters.open_adapter(path), adapters.targets_of(other), {}).detection.preset
    assert (again.method, again.solver, again.steps) == ("DMD2", "consistency", 4)


def test_what_cannot_be_adapted():
    with pytest.raises(OptionError, match="no linear or convolution layer.*'attn'"):
        LowRank(small(), 2, match="attn")
    with pytest.raises(OptionError, match="rank is 0"):
        LowRank(small(), 0)
    with pytest.raises(OptionError, match="0 is a grouped"):
        LowRank(nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)), 2)
