"""Latents with known statistics, and moments measured from them."""

import torch
from fewstep.samplers import frames
from fewstep.samplers.calibration.moments import from_latents
from fewstep.samplers.moments import ChannelMoments, FourierMoments, LowRankMoments

SHAPE = (3, 8, 6)
FRAMES = {"edm": frames.edm(), "vp": frames.linear_vp(), "flow": frames.flow()}
KINDS = ("channel", "fourier", "lowrank")


def correlated(samples, shape=SHAPE, seed=0):
    """Latents with a red spectrum, channels that go together, and a mean."""
    g = torch.Generator().manual_seed(seed)
    white = torch.randn(samples, *shape, generator=g, dtype=torch.float64)
    if len(shape) == 1:
        return white @ (torch.eye(shape[0], dtype=torch.float64) + 0.5) - 0.5
    z = torch.fft.fftn(white, dim=tuple(range(2, white.ndim)))
    far = sum(torch.fft.fftfreq(n).reshape(-1, *(1,) * (len(shape) - 2 - i)) ** 2 for i, n in enumerate(shape[1:]))
    x = torch.fft.ifftn(z / (0.15 + far**0.5), dim=tuple(range(2, white.ndim))).real * 0.4
    mix = torch.eye(shape[0], dtype=torch.float64) + 0.5
    return torch.einsum("ij,bj...->bi...", mix, x) + torch.linspace(-1, 1, shape[0], dtype=torch.float64).reshape(-1, *(1,) * (len(shape) - 1))


def measured(kind, shape=SHAPE, samples=40):
    return from_latents([correlated(samples, shape)], kind=kind, rank=5)


def shifted(moments):
    """The same directions, another mean and larger variances."""
    if moments.kind == "channel":
        return ChannelMoments(moments.mean - 0.5, moments.covariance * 1.7)
    if moments.kind == "fourier":
        return FourierMoments(moments.mean - 0.5, moments.spectrum * 1.7, moments.sizes)
    return LowRankMoments(moments.mean - 0.5, moments.vectors, moments.eigenvalues * 1.7, moments.residual * 1.7)
