"""Gaussian moments of the data: a mean and a covariance in one of three forms, all behind one interface.

``apply(d, factors)`` multiplies every eigen-direction of ``d`` by the factor that stands in its eigenvalue's place, so a
function f of the covariance acts as ``apply(d, f(values))``. Eigenvalues are float64 on the CPU; states are multiplied on
their own device, in float32 (float64 for float64 states).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Protocol

import torch

from .errors import CalibrationError
from .spectra import resized_spectrum, whole_spectrum

KINDS = ("channel", "fourier", "lowrank")
ORTHONORMAL = 1e-4  # largest |U^T U - I|: eigenvectors stored in float32 are orthonormal to 1e-6


class Moments(Protocol):
    """A Gaussian model of the data.

    Attributes:
        kind: one of ``KINDS``.
        values: eigenvalues of the covariance, float64, none below 0; their shape is the kind's own.
    """

    @property
    def kind(self) -> str: ...
    @property
    def values(self) -> torch.Tensor: ...

    def fit(self, shape: Sequence[int]) -> Moments:
        """The moments for states of this shape [B, ...]; raises CalibrationError for one that they do not describe."""

    def centre(self, x: torch.Tensor) -> torch.Tensor:
        """The mean, broadcasting over ``x`` and on its device."""

    def apply(self, d: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
        """``U diag(factors) U^T d`` for ``d`` [B, ...] of float32 or float64; ``factors`` is shaped as ``values``."""

    def in_basis(self, other: Moments) -> torch.Tensor:
        """Variances of ``other``, of the same kind and size, along the directions of ``values``."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """What a calibration file holds; ``moments_of`` reads it."""


@dataclass(frozen=True, eq=False)
class ChannelMoments:
    """Independent pixels: ``mean`` [C] and ``covariance`` [C, C] over the channels."""

    mean: torch.Tensor
    covariance: torch.Tensor

    kind = "channel"

    def __post_init__(self) -> None:
        channels = self.mean.numel()
        if self.mean.ndim != 1 or tuple(self.covariance.shape) != (channels, channels):
            raise CalibrationError(
                f"channel moments need a mean [C] and a covariance [C, C], got {list(self.mean.shape)} and "
                f"{list(self.covariance.shape)}"
            )

    @cached_property
    def _eigen(self) -> tuple[torch.Tensor, torch.Tensor]:
        return _eigen(self.covariance)

    @property
    def values(self) -> torch.Tensor:
        return self._eigen[0]

    def fit(self, shape: Sequence[int]) -> ChannelMoments:
        _check_channels(self.mean, shape)
        return self

    def centre(self, x: torch.Tensor) -> torch.Tensor:
        return _per_channel(self.mean, x)

    def apply(self, d: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
        matrix = _function(self._eigen[1], factors)
        return torch.einsum("ij,bj...->bi...", matrix.to(d.dtype).to(d.device), d)

    def in_basis(self, other: Moments) -> torch.Tensor:
        assert isinstance(other, ChannelMoments)
        return _variances(self._eigen[1], other.covariance)

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"mean": self.mean, "covariance": self.covariance}


@dataclass(frozen=True, eq=False)
class FourierMoments:
    """A stationary covariance: one Hermitian C x C matrix per spatial frequency.

    Attributes:
        mean: [C].
        spectrum: complex [..., W//2 + 1, C, C]: the average of Z Z^H over the samples, with Z the orthonormal ``rfftn`` of the
            sample less its mean over the spatial dimensions (the other half follows, since samples are real).
        sizes: the spatial sizes, (H, W) or (T, H, W).
    """

    mean: torch.Tensor
    spectrum: torch.Tensor
    sizes: tuple[int, ...]

    kind = "fourier"

    def __post_init__(self) -> None:
        channels = self.mean.numel()
        expected = (*self.sizes[:-1], self.sizes[-1] // 2 + 1, channels, channels)
        if self.mean.ndim != 1 or tuple(self.spectrum.shape) != expected or not self.spectrum.is_complex():
            raise CalibrationError(
                f"fourier moments of size {list(self.sizes)} need a mean [C] and a complex spectrum {list(expected)}, got "
                f"{list(self.mean.shape)} and {self.spectrum.dtype} {list(self.spectrum.shape)}"
            )

    @cached_property
    def _eigen(self) -> tuple[torch.Tensor, torch.Tensor]:
        return _eigen(self.spectrum)

    @property
    def values(self) -> torch.Tensor:
        return self._eigen[0]

    def fit(self, shape: Sequence[int]) -> FourierMoments:
        _check_channels(self.mean, shape)
        if len(shape) - 2 != len(self.sizes):
            raise CalibrationError(
                f"these moments describe latents of size {list(self.sizes)}, the state {list(shape)} has {len(shape) - 2} "
                "dimensions beside batch and channels: measure moments on latents of the same kind (picture or video)"
            )
        sizes = tuple(shape[2:])
        return self if sizes == self.sizes else _resized(self, sizes)

    def centre(self, x: torch.Tensor) -> torch.Tensor:
        return _per_channel(self.mean, x)

    def apply(self, d: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
        dims = tuple(range(2, d.ndim))
        z = torch.fft.rfftn(d, dim=dims, norm="ortho")
        matrix = _function(self._eigen[1], factors).to(z.dtype).to(d.device)
        z = torch.einsum("...ij,bj...->bi...", matrix, z)
        result: torch.Tensor = torch.fft.irfftn(z, s=self.sizes, dim=dims, norm="ortho")
        return result

    def in_basis(self, other: Moments) -> torch.Tensor:
        assert isinstance(other, FourierMoments)
        return _variances(self._eigen[1], other.spectrum)

    def tensors(self) -> dict[str, torch.Tensor]:
        return {
            "mean": self.mean, "spectrum_real": self.spectrum.real, "spectrum_imag": self.spectrum.imag,
            "sizes": torch.tensor(self.sizes),
        }


@dataclass(frozen=True, eq=False)
class LowRankMoments:
    """The largest r eigen-directions and one variance for all others.

    Attributes:
        mean: of one sample's shape, n numbers.
        vectors: U [n, r], orthonormal columns over the sample flattened in C, H, W order.
        eigenvalues: [r].
        residual: variance of every other direction, () (0 is the published rule).
    """

    mean: torch.Tensor
    vectors: torch.Tensor
    eigenvalues: torch.Tensor
    residual: torch.Tensor

    kind = "lowrank"

    def __post_init__(self) -> None:
        n, r = self.mean.numel(), self.eigenvalues.numel()
        if tuple(self.vectors.shape) != (n, r) or self.eigenvalues.ndim != 1 or r > n:
            raise CalibrationError(
                f"lowrank moments need vectors [n, r] with r <= n = {n} and r eigenvalues, got {list(self.vectors.shape)} and "
                f"{list(self.eigenvalues.shape)}"
            )
        U = self.vectors.double()
        error = float((U.T @ U - torch.eye(r, dtype=torch.float64)).abs().max())
        if not error <= ORTHONORMAL:
            raise CalibrationError(
                f"the eigenvectors of the lowrank moments are not orthonormal: U^T U differs from 1 by {error:.2g}; give unit "
                "eigenvectors that are orthogonal to each other, one a column"
            )

    @cached_property
    def values(self) -> torch.Tensor:
        return torch.cat([self.eigenvalues.double(), self.residual.double().reshape(1)]).clamp(min=0.0)

    def fit(self, shape: Sequence[int]) -> LowRankMoments:
        if tuple(shape[1:]) != tuple(self.mean.shape):
            raise CalibrationError(
                f"these lowrank moments describe latents {list(self.mean.shape)} and no other size, the state is {list(shape)}: "
                "sample at that size, or measure fourier moments, which fit every size"
            )
        return self

    def centre(self, x: torch.Tensor) -> torch.Tensor:
        return self.mean.to(x.dtype).to(x.device)

    def apply(self, d: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
        U, rest = self.vectors.to(d.dtype).to(d.device), float(factors[-1])
        gains = (factors[:-1] - rest).to(d.dtype).to(d.device)
        flat = d.flatten(1)
        return torch.addmm(rest * flat, (flat @ U) * gains, U.T).reshape(d.shape)

    def in_basis(self, other: Moments) -> torch.Tensor:
        assert isinstance(other, LowRankMoments)
        own, (n, r) = other.values, self.vectors.shape
        shares = (self.vectors.double().T @ other.vectors.double()) ** 2
        along = own[-1] + shares @ (own[:-1] - own[-1])
        trace = own[:-1].sum() + (n - len(own) + 1) * own[-1]
        return torch.cat([along, ((trace - along.sum()) / max(n - r, 1)).reshape(1)]).clamp(min=0.0)

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"mean": self.mean, "vectors": self.vectors, "eigenvalues": self.eigenvalues, "residual": self.residual}


def pixel_variance(moments: Moments) -> float:
    """The variance of one number of a sample around the mean, averaged over the sample."""
    values = moments.values
    if isinstance(moments, LowRankMoments):
        n = moments.mean.numel()
        return float(values[:-1].sum() + (n - len(values) + 1) * values[-1]) / n
    if not isinstance(moments, FourierMoments):
        return float(values.mean())
    traces, width = values.mean(-1), moments.sizes[-1]
    twice = torch.full((traces.shape[-1],), 2.0, dtype=torch.float64)  # frequencies that stand for two
    twice[0] = 1.0
    if width % 2 == 0:
        twice[-1] = 1.0
    return float((traces * twice).sum() / math.prod(moments.sizes))


def _eigen(matrices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    wide = matrices.to(torch.complex128 if matrices.is_complex() else torch.float64)
    values, vectors = torch.linalg.eigh(0.5 * (wide + wide.mH))
    return values.clamp(min=0.0), vectors


def _function(vectors: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    return (vectors * factors.unsqueeze(-2)) @ vectors.mH


def _variances(vectors: torch.Tensor, covariance: torch.Tensor) -> torch.Tensor:
    """diag(V^H S V)."""
    return (vectors.conj() * (covariance.to(vectors.dtype) @ vectors)).sum(-2).real.clamp(min=0.0)


def _per_channel(mean: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return mean.to(x.dtype).to(x.device).reshape(-1, *(1,) * (x.ndim - 2))


def _check_channels(mean: torch.Tensor, shape: Sequence[int]) -> None:
    if len(shape) == 3 and shape[1] == 1 != mean.numel():
        raise CalibrationError(
            f"the state {list(shape)} is several latents packed into one row, such as picture and sound; moments describe one "
            "latent: use the solver without teleportation"
        )
    if len(shape) < 2 or shape[1] != mean.numel():
        raise CalibrationError(
            f"these moments have {mean.numel()} channels, the state {list(shape)} has {shape[1]}: they were measured for "
            "another kind of latent"
        )


@lru_cache(maxsize=4)
def _resized(moments: FourierMoments, sizes: tuple[int, ...]) -> FourierMoments:
    """The same moments for another size, see ``spectra.resized_spectrum``."""
    spectrum = resized_spectrum(whole_spectrum(moments.spectrum, moments.sizes[-1]), sizes)
    return FourierMoments(moments.mean, spectrum[..., : sizes[-1] // 2 + 1, :, :], sizes)
