"""HiPA: one-step students by what their pictures lack, the high frequencies (Zhang et al., arXiv 2311.18158).

The method's two terms are a perceptual distance to the teacher's many-step picture and the distance of both pictures'
high-frequency parts. Its code is not published: the Fourier mask and the weights here are this project's choice.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import check_range


def high_pass(images: Tensor, radius: float = 0.25) -> Tensor:
    """``images`` [..., H, W] without frequencies up to ``radius`` (0..1) of the highest one along each axis."""
    check_range("radius", radius, 0.0, 1.0)
    height, width = images.shape[-2:]
    rows = torch.fft.fftfreq(height, d=0.5, device=images.device)  # -1..1
    columns = torch.fft.rfftfreq(width, d=0.5, device=images.device)
    kept = (rows[:, None] ** 2 + columns[None] ** 2).sqrt() > radius
    # half precision has no Fourier transform of every size
    wide = images if images.dtype == torch.float64 else images.float()
    passed: Tensor = torch.fft.irfft2(torch.fft.rfft2(wide) * kept, s=(height, width))
    return passed.to(images.dtype)


def hipa_loss(
    images: Tensor, teacher: Tensor, *, perceptual: Callable[[Tensor, Tensor], Tensor] = F.mse_loss, weight: float = 1.0,
    radius: float = 0.25,
) -> Tensor:
    """``perceptual(images, teacher) + weight * mean |H(images) - H(teacher)|^2``; both are [B, C, H, W].

    ``teacher`` holds the teacher's many-step pictures of the same noise and prompts.
    """
    return perceptual(images, teacher) + weight * F.mse_loss(high_pass(images, radius), high_pass(teacher, radius))
