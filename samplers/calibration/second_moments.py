"""Running sums over latents, in float64, from which Gaussian moments are made; they grow with no number of samples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import torch

from ..errors import CalibrationError, check_choice, check_integer
from ..moments import KINDS, ChannelMoments, FourierMoments, LowRankMoments, Moments
from .moments_file import moments_of
from .store import Calibration

State = dict[str, torch.Tensor]
SKETCH = 4  # directions kept by a lowrank sum for each one asked for


class Sums(Protocol):
    """Sums of one kind.

    Attributes:
        samples: latents added so far.
    """

    samples: int

    def add(self, latents: torch.Tensor) -> None:
        """Adds a batch [B, C, ...]; raises CalibrationError for NaN, or for another shape than before."""

    def moments(self) -> Moments:
        """What the sums say; raises CalibrationError for fewer than 2 latents."""

    def state(self) -> State:
        """Everything, as tensors."""

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Takes up ``state``."""


def sums_for(kind: str, rank: int) -> Sums:
    """Empty sums; raises OptionError for an unknown kind or a rank outside 1..256."""
    check_choice("kind", kind, KINDS)
    if kind != "lowrank":
        return StationarySums(kind)
    check_integer("rank", rank, 1, 256)
    return LowRankSums(rank)


def rows_of(x: torch.Tensor, kind: str) -> torch.Tensor:
    """A batch [B, C, ...] as independent rows of blocks [rows, blocks, C]: pixels, or spatial frequencies."""
    if kind == "channel":
        return x.movedim(1, -1).reshape(-1, 1, x.shape[1])
    if x.ndim < 3:
        raise CalibrationError(f"fourier moments need latents with spatial dimensions [B, C, ...], got {list(x.shape)}")
    z: torch.Tensor = torch.fft.rfftn(x, dim=tuple(range(2, x.ndim)), norm="ortho")
    return z.movedim(1, -1).reshape(len(x), -1, x.shape[1])


def moments_from(kind: str, mean: torch.Tensor, covariance: torch.Tensor, sizes: tuple[int, ...]) -> Moments:
    """Channel or fourier moments from the mean [C] of a pixel, or of the zero frequency, and covariances [blocks, C, C]."""
    if kind == "channel":
        return ChannelMoments(mean, covariance[0])
    shape = (*sizes[:-1], sizes[-1] // 2 + 1)
    return FourierMoments(mean / math.sqrt(math.prod(sizes)), covariance.reshape(*shape, *covariance.shape[1:]), sizes)


def wide(latents: torch.Tensor, done: int) -> torch.Tensor:
    """The batch in float64 on the CPU; raises CalibrationError naming the first latent that holds NaN or infinity."""
    x = latents.detach().to("cpu").to(torch.float64)
    bad = ~torch.isfinite(x).flatten(1).all(1)
    if bool(bad.any()):
        raise CalibrationError(f"latent {done + int(bad.float().argmax())} holds NaN or infinity")
    return x


class StationarySums:
    """For the kinds channel and fourier."""

    def __init__(self, kind: str) -> None:
        self.kind, self.samples, self.rows = kind, 0, 0
        self.sizes: tuple[int, ...] = ()
        self.first = self.second = torch.zeros(())

    def add(self, latents: torch.Tensor) -> None:
        """See ``Sums``."""
        x = wide(latents, self.samples)
        z = rows_of(x, self.kind)
        sizes = tuple(x.shape[2:]) if self.kind == "fourier" else ()
        if self.samples and (z.shape[1:] != self.first.shape or sizes != self.sizes):
            raise CalibrationError(
                f"latents {list(x.shape[1:])} do not go with the ones before, of {self.first.shape[-1]} channels"
                + (f" and size {list(self.sizes)}" if self.sizes else "") + ": measure every size by itself"
            )
        if not self.samples:
            self.first, self.second, self.sizes = z.new_zeros(z.shape[1:]), z.new_zeros((*z.shape[1:], z.shape[-1])), sizes
        self.first = self.first + z.sum(0)
        self.second = self.second + torch.einsum("nfi,nfj->fij", z, z.conj())
        self.samples, self.rows = self.samples + len(x), self.rows + len(z)

    def moments(self) -> Moments:
        """See ``Sums``; averages are over the number of rows."""
        _check_enough(self.samples)
        mean, covariance = self.first[0] / self.rows, self.second / self.rows
        covariance[0] -= torch.outer(mean, mean.conj())
        return moments_from(self.kind, mean.real, covariance, self.sizes)

    def state(self) -> State:
        """See ``Sums``."""
        counts = torch.tensor([self.samples, self.rows, *self.sizes])
        parts = {"first": self.first, "second": self.second}
        return {"counts": counts, **{f"{name}_{part}": getattr(tensor + 0j, part) for name, tensor in parts.items()
                                     for part in ("real", "imag")}}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """See ``Sums``."""
        self.samples, self.rows, *sizes = state["counts"].tolist()
        self.sizes = tuple(sizes)
        for name in ("first", "second"):
            real, imag = state[f"{name}_real"], state[f"{name}_imag"]
            setattr(self, name, torch.complex(real, imag) if self.kind == "fourier" else real)

    def resume_from(self, moments: Any, samples: int, rows: int) -> None:
        """Sums that give ``moments`` (only the mean's own block of the first sum is known, and needed)."""
        self.samples, self.rows = samples, rows
        covariance = moments.covariance[None] if self.kind == "channel" else moments.spectrum.flatten(0, -3)
        self.sizes = moments.sizes if self.kind == "fourier" else ()
        mean = (moments.mean * math.sqrt(math.prod(self.sizes))).to(covariance.dtype)
        self.first = torch.zeros_like(covariance[..., 0])
        self.first[0] = mean * rows
        self.second = covariance * rows
        self.second[0] += torch.outer(mean, mean.conj()) * rows


class LowRankSums:
    """The leading directions of the scatter around the mean, in a sketch of bounded size; the total variance is exact.

    Nothing is lost before ``2 SKETCH rank`` latents; from then on the weakest directions are dropped into the residual.
    """

    def __init__(self, rank: int) -> None:
        self.rank, self.samples = rank, 0
        self.shape: tuple[int, ...] = ()
        self.mean = self.sketch = self.total = torch.zeros((), dtype=torch.float64)

    def add(self, latents: torch.Tensor) -> None:
        """See ``Sums``."""
        x = wide(latents, self.samples)
        if self.samples and tuple(x.shape[1:]) != self.shape:
            raise CalibrationError(
                f"latents {list(x.shape[1:])} do not go with the ones before, {list(self.shape)}: lowrank moments are tied to "
                "one size; measure every size by itself, or fourier moments"
            )
        flat, n = x.flatten(1), len(x)
        if not self.samples:
            self.shape, self.mean, self.sketch = tuple(x.shape[1:]), flat.mean(0), flat[:0]
        mean, both = flat.mean(0), self.samples + n
        # two groups' scatter adds up with one more row, between their means (Chan, Golub and LeVeque 1983)
        between = (mean - self.mean) * math.sqrt(self.samples * n / both)
        rows = torch.cat([flat - mean, between[None]])
        self.total = self.total + rows.square().sum()
        self.mean = self.mean + (mean - self.mean) * (n / both)
        self.sketch, self.samples = torch.cat([self.sketch, rows]), both
        if len(self.sketch) > 2 * SKETCH * self.rank:
            values, vectors = torch.linalg.eigh(self.sketch @ self.sketch.T)
            self.sketch = vectors[:, values.argsort(descending=True)[: SKETCH * self.rank]].T @ self.sketch

    def moments(self) -> LowRankMoments:
        """See ``Sums``; averages are over the number of samples less one."""
        _check_enough(self.samples)
        if self.rank > self.samples - 1:
            raise CalibrationError(
                f"rank {self.rank} needs at least {self.rank + 1} latents (four times the rank is sound), got {self.samples}"
            )
        weights, vectors = torch.linalg.eigh(self.sketch @ self.sketch.T)
        leading = weights.argsort(descending=True)[: self.rank]
        w = weights[leading].clamp(min=torch.finfo(torch.float64).tiny)
        U = (self.sketch.T @ vectors[:, leading]) / w.sqrt()
        values, trace, n = w / (self.samples - 1), self.total / (self.samples - 1), self.mean.numel()
        residual = ((trace - values.sum()) / max(n - self.rank, 1)).clamp(min=0.0)
        return LowRankMoments(self.mean.reshape(self.shape), U, values, residual)

    def state(self) -> State:
        """See ``Sums``."""
        counts = torch.tensor([self.samples, *self.shape])
        return {"counts": counts, "mean": self.mean, "sketch": self.sketch, "total": self.total}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """See ``Sums``."""
        self.samples, *shape = state["counts"].tolist()
        self.shape = tuple(shape)
        self.mean, self.sketch, self.total = state["mean"], state["sketch"], state["total"]

    def resume_from(self, moments: LowRankMoments, samples: int) -> None:
        """Sums that give ``moments``; what their residual held beyond its size is not known any more."""
        self.samples, self.shape = samples, tuple(moments.mean.shape)
        self.mean, values = moments.mean.double().flatten(), moments.values
        self.sketch = (moments.vectors.double() * (values[:-1] * (samples - 1)).sqrt()).T
        n, r = moments.vectors.shape
        self.total = (values[:-1].sum() + values[-1] * (n - r)) * (samples - 1)


def reopened(calibration: Calibration, kind: str, rank: int) -> Sums:
    """Sums to which more latents can be added; raises CalibrationError unless it holds such moments of latents."""
    meta, found = calibration.meta, moments_of(calibration)
    if found.kind != kind or not isinstance(meta.get("rows"), int):
        raise CalibrationError(
            f"{kind} moments cannot be continued from {found.kind} moments of {meta.get('source', 'unknown origin')}: "
            "give a calibration of the same kind that was measured on latents or samples"
        )
    sums = sums_for(kind, rank)
    if isinstance(sums, StationarySums):
        sums.resume_from(found, meta["samples"], meta["rows"])
    elif isinstance(sums, LowRankSums) and isinstance(found, LowRankMoments):
        sums.resume_from(found, meta["samples"])
    return sums


def _check_enough(samples: int) -> None:
    if samples < 2:
        raise CalibrationError(f"{samples} latents were given; moments need at least 2, and 16 to 64 to be any good")
