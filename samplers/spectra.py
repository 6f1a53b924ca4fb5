"""Spectra of stationary covariances: one Hermitian C x C matrix per spatial frequency."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch


def whole_spectrum(half: torch.Tensor, width: int) -> torch.Tensor:
    """[..., W, C, C] from the half [..., W//2 + 1, C, C] that ``rfftn`` gives of real samples: S(-f) = conj S(f)."""
    axes = tuple(range(half.ndim - 3))
    mirrored = torch.roll(half.flip(axes), [1] * len(axes), axes) if axes else half
    return torch.cat([half, mirrored.conj()[..., 1 : width - half.shape[-3] + 1, :, :].flip(-3)], -3)


def radial_spectrum(half: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """Variances [rings, C] averaged over rings of equal width in cycles per pixel, from 0 (left out) to 1/2."""
    far = sum(
        torch.fft.fftfreq(size, dtype=torch.float64)[: half.shape[axis]].abs().reshape(-1, *(1,) * (len(sizes) - axis - 1)) ** 2
        for axis, size in enumerate(sizes)
    )
    assert isinstance(far, torch.Tensor)
    rings = max(min(sizes) // 2, 1)
    ring = (far.sqrt() * (2 * rings) + 0.5).long().flatten()
    variances = torch.diagonal(half, dim1=-2, dim2=-1).real.flatten(0, -2)
    inside = (ring > 0) & (ring <= rings)
    total = torch.zeros(rings + 1, variances.shape[-1], dtype=variances.dtype).index_add_(0, ring[inside], variances[inside])
    count = torch.bincount(ring[inside], minlength=rings + 1)[:, None]
    return (total / count.clamp(min=1))[1:][count[1:, 0] > 0]


def resized_spectrum(spectrum: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """The whole ``spectrum`` [..., C, C] as a function of cycles per pixel, read off at the frequencies of other ``sizes``.

    Interpolated linearly and periodically along each dimension. The zero frequency, which is the covariance of whole-image
    means times the number of pixels, is left out of that (its neighbours fill it in) and scaled with the number of pixels;
    the other frequencies are scaled so that every channel keeps its variance.
    """
    old = spectrum.shape[:-2]
    dc = (0,) * len(old)
    means, variance = spectrum[dc] / math.prod(old), _mean(spectrum)
    result = spectrum.clone()
    around = [tuple(step if j == i else 0 for j in range(len(old))) for i in range(len(old)) for step in (1, -1) if old[i] > 1]
    if around:
        result[dc] = torch.stack([spectrum[place] for place in around]).mean(0)
    for axis, size in enumerate(sizes):
        result = _resampled(result, axis, size)
    pixels = math.prod(sizes)
    result[dc] = 0.0
    rest, wanted = (torch.diagonal(matrix).real for matrix in (_mean(result), variance - means))
    scale = (wanted.clamp(min=0.0) / rest.clamp(min=torch.finfo(rest.dtype).tiny)).sqrt().to(result.dtype)
    result = result * (scale[:, None] * scale)
    result[dc] = means * pixels
    return result


def _mean(spectrum: torch.Tensor) -> torch.Tensor:
    """Average over the frequencies: the covariance of the channels at one pixel."""
    return spectrum.flatten(0, -3).mean(0)


def _resampled(spectrum: torch.Tensor, axis: int, size: int) -> torch.Tensor:
    old = spectrum.shape[axis]
    place = torch.arange(size, dtype=torch.float64) * old / size
    low = place.floor().long()
    share = (place - low).to(spectrum.dtype).reshape(-1, *(1,) * (spectrum.ndim - axis - 1))
    here, after = (spectrum.index_select(axis, index % old) for index in (low, low + 1))
    return here + share * (after - here)
