"""Gaussian moments from a denoiser alone: for Gaussian data it is affine in the state, and a regression finds it.

In the alpha = 1 frame ``D = mu + W (x - mu)`` with ``W = S (S + sigma^2)^-1``, so ``D = W x + b`` gives the covariance
``S = sigma^2 W (1 - W)^-1`` and the mean ``mu = (1 - W)^-1 b``: exactly for Gaussian data, at any noise level.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from ..errors import CalibrationError
from ..moments import Moments
from .second_moments import State, moments_from, rows_of, wide

NEARLY_ONE = 1.0 - 1e-5  # an eigenvalue of W above it says nothing about the covariance but that it is large


FLOOR = 1e-12  # of a prediction's power: what is left of an affine one is rounding, and tells nothing


class Level(NamedTuple):
    """What one noise level says: covariances [blocks, C, C], the mean [C] of the first block, and by block the power [blocks]
    of what the regression leaves unexplained."""

    covariance: torch.Tensor
    mean: torch.Tensor
    residual: torch.Tensor


class AffineFit:
    """Running sums of states and predictions at one noise level ``sigma`` (alpha = 1), for channel or fourier moments."""

    def __init__(self, kind: str, sigma: float) -> None:
        self.kind, self.sigma, self.rows, self.samples = kind, sigma, 0, 0
        self.sizes: tuple[int, ...] = ()
        self._sums: State = {}

    def add(self, x: torch.Tensor, denoised: torch.Tensor) -> None:
        """Adds states [B, C, ...] of the alpha = 1 frame and their predictions; raises CalibrationError for NaN."""
        z, d = (rows_of(wide(part, self.samples), self.kind) for part in (x, denoised))
        new = {
            "x": z.sum(0), "d": d.sum(0), "xx": torch.einsum("nfi,nfj->fij", z, z.conj()),
            "dx": torch.einsum("nfi,nfj->fij", d, z.conj()), "dd": d.abs().square().sum((0, 2)).to(z.dtype),
        }
        self._sums = {name: self._sums[name] + part if self._sums else part for name, part in new.items()}
        self.rows, self.samples = self.rows + len(z), self.samples + len(x)
        self.sizes = tuple(x.shape[2:]) if self.kind == "fourier" else ()

    def solve(self) -> Level:
        """By this level alone; raises CalibrationError for fewer rows than unknowns."""
        channels = self._sums["x"].shape[-1]
        if self.rows < channels + 2:
            raise CalibrationError(
                f"{self.samples} samples are too few for {channels} channels: {self.kind} moments need at least {channels + 2}, "
                f"twice as many are sound"
            )
        x, d = self._sums["x"] / self.rows, self._sums["d"] / self.rows
        xx = self._sums["xx"] / self.rows - x.unsqueeze(-1) * x.conj().unsqueeze(-2)
        dx = self._sums["dx"] / self.rows - d.unsqueeze(-1) * x.conj().unsqueeze(-2)
        W = torch.linalg.solve(xx, dx.mH).mH  # W xx = dx, xx Hermitian
        b = d[0] - W[0] @ x[0]
        w, V = torch.linalg.eigh(0.5 * (W + W.mH))
        w = w.clamp(0.0, NEARLY_ONE)
        covariance = (V * (self.sigma**2 * w / (1.0 - w)).unsqueeze(-2)) @ V.mH
        mean = (V[0] / (1.0 - w[0])) @ (V[0].mH @ b)
        power = self._sums["dd"].real / self.rows
        explained = (W * dx.conj()).sum((-2, -1)).real + d.abs().square().sum(-1)
        return Level(covariance, mean.real, (power - explained).clamp(min=0.0) + FLOOR * power)

    def state(self) -> State:
        """Everything, as tensors."""
        parts = {f"{name}_{part}": getattr(tensor + 0j, part) for name, tensor in self._sums.items() for part in ("real", "imag")}
        return {"counts": torch.tensor([self.rows, self.samples, *self.sizes]), **parts}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Takes up ``state``."""
        self.rows, self.samples, *sizes = state["counts"].tolist()
        self.sizes = tuple(sizes)
        for name in ("x", "d", "xx", "dx", "dd"):
            real, imag = state[f"{name}_real"], state[f"{name}_imag"]
            self._sums[name] = torch.complex(real, imag) if self.kind == "fourier" else real


def combined(fits: Sequence[AffineFit]) -> Moments:
    """One set of moments from several noise levels, each weighted for what it can tell.

    An error of the regression moves an eigenvalue l by ``(l + s^2)^2/s^2`` times it, and the mean by ``(l + s^2)/s^2``; the
    error's own variance is that of the residual over that of the state, ``l + s^2``. Each block gets the inverse of those
    variances as its weight, at its mean l: levels with s near sqrt(l) count most, and those where the denoiser is far from
    affine least.
    """
    levels = [fit.solve() for fit in fits]
    power = torch.tensor([fit.sigma**2 for fit in fits], dtype=torch.float64)[:, None]
    residual = torch.stack([level.residual for level in levels])  # [levels, blocks]
    total = torch.stack([torch.diagonal(level.covariance, dim1=-2, dim2=-1).real.mean(-1) for level in levels]) + power
    weights = (power / total**2) ** 2 * total / residual
    covariance = torch.einsum("lf,lfij->fij", (weights / weights.sum(0)).to(levels[0].covariance.dtype), torch.stack(
        [level.covariance for level in levels]))
    certainty = ((power / total) ** 2 / residual)[:, 0]
    mean = (certainty / certainty.sum()) @ torch.stack([level.mean for level in levels])
    return moments_from(fits[0].kind, mean, covariance, fits[0].sizes)
