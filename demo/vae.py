"""The demo's stand-in for a VAE: a fixed, weight-free map between latents and pictures.

A latent pixel holds a 2x2 block of a small grey picture in its 4 channels, standardised; the small picture is enlarged
4 times. So 64x64 picture pixels are a latent of 4x8x8, the same 4 channels and factor 8 as Stable Diffusion's VAE.
"""

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from .errors import SizeError

LATENT_CHANNELS = 4
DOWNSCALE = 8
ENLARGE = 4
# Mean and standard deviation of the [-1, 1] pixels of the 1437 unaugmented training digits: one pair for all channels,
# because the four channels are the same picture sampled at four offsets.
LATENT_MEAN = -0.3743
LATENT_STD = 0.7102


def to_latent(small: Tensor) -> Tensor:
    """Grey pictures ``[B, 1, 2h, 2w]`` in [0, 1] -> standardised latents ``[B, 4, h, w]`` in about [-0.88, 1.94]."""
    blocks = rearrange(small, "b 1 (h p) (w q) -> b (p q) h w", p=2, q=2)
    return ((blocks * 2.0 - 1.0) - LATENT_MEAN) / LATENT_STD


def from_latent(latent: Tensor) -> Tensor:
    """Inverse of `to_latent`, without a clamp: ``[B, 4, h, w]`` -> ``[B, 1, 2h, 2w]``."""
    blocks = (latent * LATENT_STD + LATENT_MEAN + 1.0) / 2.0
    return rearrange(blocks, "b (p q) h w -> b 1 (h p) (w q)", p=2, q=2)


def decode(latent: Tensor) -> Tensor:
    """Latents ``[B, 4, h, w]`` -> pictures ``[B, 8h, 8w, 3]`` in [0, 1], channels last, three equal channels.

    Half-precision latents are decoded in float32: bicubic kernels for them are missing or coarse on the CPU.
    """
    if latent.ndim != 4 or latent.shape[1] != LATENT_CHANNELS:
        raise SizeError(f"the demo decodes latents [B, 4, h, w]; got {list(latent.shape)}")
    small = from_latent(latent.float()).clamp(0.0, 1.0)
    image = F.interpolate(small, scale_factor=ENLARGE, mode="bicubic", align_corners=False).clamp(0.0, 1.0)
    return rearrange(image, "b 1 h w -> b h w 1").expand(-1, -1, -1, 3).contiguous()


def encode(images: Tensor) -> Tensor:
    """Pictures ``[B, H, W, C]`` in [0, 1] (C >= 1; the mean of the first three is the grey) -> latents ``[B, 4, H/8, W/8]``.

    The enlargement is undone by area averaging, so strokes come back a little softer than they went in.
    """
    if images.ndim != 4:
        raise SizeError(f"the demo encodes pictures [B, H, W, C]; got {list(images.shape)}")
    height, width = images.shape[1:3]
    if height % DOWNSCALE or width % DOWNSCALE or not height or not width:
        raise SizeError(f"the demo encodes pictures whose sides are multiples of {DOWNSCALE}; got {width}x{height}")
    grey = images[..., :3].float().mean(dim=-1)
    small = F.avg_pool2d(rearrange(grey, "b h w -> b 1 h w"), ENLARGE)
    return to_latent(small)
