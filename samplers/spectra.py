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
