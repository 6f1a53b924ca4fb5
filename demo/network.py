"""The demo's denoising network: a two-level convolutional U-Net with attention at the lower level."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 10
NULL_CLASS = 10
CONTEXT_WIDTH = CLASSES + 1


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(8, channels)


class ResBlock(nn.Module):
    """Two 3x3 convolutions; the embedding scales and shifts between them."""

    def __init__(self, inside: int, outside: int, embedding: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(inside), nn.Conv2d(inside, outside, 3, padding=1)
        self.film = nn.Linear(embedding, 2 * outside)
        self.norm2, self.conv2 = _norm(outside), nn.Conv2d(outside, outside, 3, padding=1)
        self.skip = nn.Identity() if inside == outside else nn.Conv2d(inside, outside, 1)
        # Each block starts as its skip path: a deep stack of them trains evenly from the first step.
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """``x`` [B, inside, H, W] and ``embedding`` [B, E] -> [B, outside, H, W]."""
        scale, shift = self.film(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.norm2(h) * (1 + scale) + shift
        out: Tensor = self.skip(x) + self.conv2(F.silu(h))
        return out


class Attention(nn.Module):
    """Multi-head self-attention over all pixels, any size; positions come from the convolutions' zero borders."""

    def __init__(self, channels: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.qkv, self.out = _norm(channels), nn.Conv2d(channels, 3 * channels, 1), nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        batch, channels, height, width = x.shape
        qkv = self.qkv(self.norm(x)).reshape(batch, 3, self.heads, channels // self.heads, height * width)
        q, k, v = qkv.transpose(-1, -2).unbind(dim=1)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(-1, -2)
        out: Tensor = self.out(mixed.reshape(batch, channels, height, width))
        return x + out


class DemoNet(nn.Module):
    """Predicts noise, v or velocity (which one is a matter of training) of a noisy digit latent.

    ``width`` is the channel count at full size, twice that at half size; ``embedding`` the size of the joint embedding of
    time and class. Both must be multiples of 8.
    """

    def __init__(self, width: int = 48, embedding: int = 128) -> None:
        super().__init__()
        self.settings = {"width": width, "embedding": embedding}
        wide = 2 * width
        self.time_frequencies = 32
        self.time = nn.Sequential(
            nn.Linear(2 * self.time_frequencies, embedding), nn.SiLU(), nn.Linear(embedding, embedding)
        )
        self.label = nn.Linear(CONTEXT_WIDTH, embedding, bias=False)
        self.enter = nn.Conv2d(4, width, 3, padding=1)
        self.down1 = ResBlock(width, width, embedding)
        self.down2 = ResBlock(width, width, embedding)
        self.shrink = nn.Conv2d(width, wide, 3, stride=2, padding=1)
        self.middle1 = ResBlock(wide, wide, embedding)
        self.attention = Attention(wide)
        self.middle2 = ResBlock(wide, wide, embedding)
        self.up1 = ResBlock(wide + width, width, embedding)
        self.up2 = ResBlock(width, width, embedding)
        self.leave = nn.Sequential(_norm(width), nn.SiLU(), nn.Conv2d(width, 4, 3, padding=1))
        nn.init.zeros_(self.leave[2].weight)  # type: ignore[arg-type]

    @property
    def dtype(self) -> torch.dtype:
        """The weights' dtype, which is also the dtype computed in."""
        return self.enter.weight.dtype

    def _embed(self, timesteps: Tensor, context: Tensor) -> Tensor:
        """``timesteps`` [B] in 0..1000 and ``context`` [B, T, 11] -> [B, E]."""
        # The angles are formed in float32: bfloat16 has 8 bits and could not tell step 997 from step 999.
        octaves = torch.arange(self.time_frequencies, device=timesteps.device, dtype=torch.float32)
        frequencies = torch.exp(octaves * (math.log(1000.0) / (self.time_frequencies - 1)))
        angles = (timesteps.float() / 1000.0)[:, None] * frequencies
        waves = torch.cat([angles.cos(), angles.sin()], dim=1).to(self.dtype)
        weights = context.to(self.dtype).mean(dim=1)
        # An all-zero context is what "no conditioning" becomes in a host: whatever weight is missing goes to the null class.
        missing = (1 - weights.sum(dim=1, keepdim=True)).clamp(min=0)
        null = F.pad(missing, (NULL_CLASS, 0))
        return F.silu(self.time(waves) + self.label(weights + null))

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor | None = None, **ignored: object) -> Tensor:
        """``x`` [B, 4, H, W] (H, W >= 2), ``timesteps`` [B] in 0..1000, ``context`` [B, T, 11] -> [B, 4, H, W].

        ``context`` holds class weights (one-hot over 10 digits and the null class), averaged over its T tokens; none or
        all-zero means the null class. Further keyword arguments that a host may pass are ignored.
        """
        if context is None:
            context = x.new_zeros(x.shape[0], 1, CONTEXT_WIDTH)
        embedding = self._embed(timesteps, context)
        h = self.down2(self.down1(self.enter(x.to(self.dtype)), embedding), embedding)
        low = self.middle1(self.shrink(h), embedding)
        low = self.middle2(self.attention(low), embedding)
        # To the skip path's own size, so odd heights and widths work.
        high = F.interpolate(low, size=h.shape[-2:], mode="nearest")
        high = self.up2(self.up1(torch.cat([high, h], dim=1), embedding), embedding)
        out: Tensor = self.leave(high)
        return out
