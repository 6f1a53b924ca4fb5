"""The demo's parts that need no trained weights: the picture map, the prompt, the schedule, the network."""

import numpy as np
import pytest
import torch
from fewstep.demo import data, schedule, text, vae
from fewstep.demo.errors import DemoError, PromptError, SizeError
from fewstep.demo.network import CONTEXT_WIDTH, NULL_CLASS, DemoNet


@pytest.fixture(scope="module")
def split():
    return data.load()


@pytest.fixture(scope="module")
def net():
    """An untrained network whose zero-initialised layers are filled, so that every path shows in the output."""
    torch.manual_seed(0)
    net = DemoNet().eval().requires_grad_(False)
    for parameter in net.parameters():
        if not parameter.any() and parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.05)
    return net


def test_split_is_fixed_stratified_and_disjoint(split):
    train, held = split
    assert len(train.labels) == 1437 and len(held.labels) == data.HELD_OUT
    assert held.labels.bincount().tolist() == [36, 36, 35, 37, 36, 37, 36, 36, 35, 36]
    # No held-out picture is also a training picture.
    assert torch.cdist(held.images.flatten(1), train.images.flatten(1)).min() > 0
    again = data.load()[1]
    assert torch.equal(again.images, held.images)


def test_latents_are_standardised(split):
    latents = split[0].latents()
    assert latents.shape == (1437, 4, 8, 8)
    # The constants are these very pictures' mean and deviation, rounded to four digits.
    assert abs(latents.mean()) < 1e-3 and abs(latents.std() - 1) < 1e-3


def test_latent_map_is_exactly_invertible(split):
    small = data.render(split[1].images)
    assert torch.allclose(vae.from_latent(vae.to_latent(small)), small, atol=1e-6)


def test_decode_encode_round_trip_on_real_digits(split):
    latents = split[1].latents()
    images = vae.decode(latents)
    assert images.shape == (360, 64, 64, 3) and images.min() >= 0 and images.max() <= 1
    assert torch.equal(images[..., 0], images[..., 2])
    back = vae.encode(images)
    # Latents have deviation 1; bicubic enlargement and area averaging soften strokes by a tenth of that.
    assert (back - latents).square().mean().sqrt() < 0.12


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (16, 8)])
def test_vae_sizes(size):
    latents = torch.zeros(2, 4, *size)
    assert vae.decode(latents).shape == (2, 8 * size[0], 8 * size[1], 3)
    assert vae.encode(vae.decode(latents)).shape == latents.shape
    assert vae.decode(latents.bfloat16()).dtype == torch.float32


def test_encode_takes_grey_and_alpha_channels():
    grey = torch.rand(1, 16, 16, 1)
    assert torch.allclose(vae.encode(grey), vae.encode(grey.expand(-1, -1, -1, 3)), atol=1e-6)
    with_alpha = torch.cat([grey.expand(-1, -1, -1, 3), torch.ones(1, 16, 16, 1)], dim=-1)
    assert torch.allclose(vae.encode(with_alpha), vae.encode(grey), atol=1e-6)


def test_vae_refuses_other_sizes():
    with pytest.raises(SizeError, match=r"multiples of 8; got 60x64"):
        vae.encode(torch.zeros(1, 64, 60, 3))
    with pytest.raises(SizeError, match=r"\[B, 4, h, w\]"):
        vae.decode(torch.zeros(1, 16, 8, 8))
    with pytest.raises(SizeError, match=r"\[B, H, W, C\]"):
        vae.encode(torch.zeros(64, 64, 3))


@pytest.mark.parametrize(("prompt", "digit"), [
    ("7", 7), ("seven", 7), ("a 7", 7), ("A Seven!", 7), ("0", 0), ("zero", 0), ("the digit 3, handwritten", 3),
    ("7 (seven)", 7), ("", NULL_CLASS), ("  \n", NULL_CLASS),
])
def test_prompts(prompt, digit):
    assert text.parse(prompt) == digit
    context = text.encode(prompt)
    assert context.shape == (1, 1, CONTEXT_WIDTH) and context.sum() == 1 and context[0, 0, digit] == 1


@pytest.mark.parametrize(("prompt", "says"), [
    ("a cat", "names no digit"), ("17", "names the number 17"), ("3 and 4", "names the digits 3, 4"),
    ("one or two", "names the digits 1, 2"), ("phone", "names no digit"), ("-", "names no digit"),
])
def test_prompts_not_understood(prompt, says):
    with pytest.raises(PromptError, match=says) as caught:
        text.parse(prompt)
    assert "numeral 0 to 9" in str(caught.value) and isinstance(caught.value, DemoError)


def test_schedule_is_stable_diffusions():
    ac = schedule.alphas_cumprod()
    sigmas = schedule.k_sigmas(ac)
    assert ac.shape == (1000,) and ac.dtype == np.float64 and (np.diff(ac) < 0).all()
    # The two ends that ComfyUI and k-diffusion show for Stable Diffusion 1.x.
    assert sigmas[0] == pytest.approx(0.0292, abs=1e-4) and sigmas[-1] == pytest.approx(14.6146, abs=1e-3)


def test_network_size_and_dtype(net):
    assert 0.5e6 < sum(parameter.numel() for parameter in net.parameters()) < 1.0e6
    assert net.dtype == torch.float32


@pytest.mark.parametrize("size", [(2, 2), (3, 2), (5, 7), (8, 8), (16, 24)])
def test_network_takes_any_size(net, size):
    x = torch.randn(2, 4, *size)
    out = net(x, torch.tensor([0.0, 999.5]), text.encode("3").expand(2, -1, -1), transformer_options={}, control=None)
    assert out.shape == x.shape and out.isfinite().all() and out.abs().max() > 0


def test_network_depends_on_time_and_class(net):
    x = torch.randn(1, 4, 8, 8)
    base = net(x, torch.tensor([500.0]), text.encode("3"))
    assert torch.equal(base, net(x, torch.tensor([500.0]), text.encode("3")))
    assert not torch.allclose(base, net(x, torch.tensor([501.0]), text.encode("3")))
    assert not torch.allclose(base, net(x, torch.tensor([500.0]), text.encode("4")))


def test_network_context_rules(net):
    x, t = torch.randn(1, 4, 8, 8), torch.tensor([500.0])
    null = net(x, t, text.encode(""))
    assert torch.allclose(null, net(x, t, torch.zeros(1, 3, CONTEXT_WIDTH)), atol=1e-6)
    assert torch.allclose(null, net(x, t), atol=1e-6)
    # Repeating tokens, as hosts do to give two prompts one length, changes nothing.
    assert torch.allclose(net(x, t, text.encode("5")), net(x, t, text.encode("5").repeat(1, 6, 1)), atol=1e-6)


def test_network_in_bfloat16_stays_near_float32(net):
    low = DemoNet().eval().requires_grad_(False)
    low.load_state_dict(net.state_dict())
    low = low.to(torch.bfloat16)
    assert low.dtype == torch.bfloat16
    x, t, c = torch.randn(4, 4, 8, 8), torch.tensor([1.0, 250.0, 600.0, 999.0]), text.context_of(torch.tensor([0, 3, 9, 10]))
    exact, rough = net(x, t, c), low(x.bfloat16(), t.bfloat16(), c.bfloat16()).float()
    # 8 bits of mantissa through a dozen layers: errors of a few percent of the output's size.
    assert (exact - rough).square().mean().sqrt() < 0.1 * exact.square().mean().sqrt()
