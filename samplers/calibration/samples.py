"""What the parts of a fit share: the model over batches of samples."""

from __future__ import annotations

import torch

from ..engine import Denoiser
from ..errors import CalibrationError
from ..lincomb import accumulation_dtype


class Samples:
    """A model over N samples in batches of B: row i of every batch has the same prompt, so sample s has prompt ``s % B``.

    Args:
        denoiser: ``D(x [B, ...], sigma [B]) -> x_0``, guidance inside; row i is conditioned by prompt i.
        count: N, a multiple of ``batch``.
    """

    def __init__(self, denoiser: Denoiser, count: int, batch: int) -> None:
        if count < 1 or batch < 1 or count % batch:
            raise CalibrationError(f"{count} samples do not make whole batches of {batch}: give a multiple of {batch}")
        self.denoiser, self.count, self.batch = denoiser, count, batch

    @property
    def batches(self) -> list[slice]:
        """The batches in order."""
        return [slice(a, a + self.batch) for a in range(0, self.count, self.batch)]

    def mixed(self, epoch: int, seed: int) -> torch.Tensor:
        """Sample numbers [batches, B] of one epoch: each batch draws a sample of each prompt, each sample comes once."""
        g = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        count = self.count // self.batch
        order = torch.stack([torch.randperm(count, generator=g) for _ in range(self.batch)], dim=1)
        return order * self.batch + torch.arange(self.batch)

    def __call__(self, y: torch.Tensor, sigma: float, what: str) -> torch.Tensor:
        """The finite x_0 prediction for one batch; raises CalibrationError naming ``what`` and the level where it is not."""
        level = torch.full((len(y),), sigma, dtype=accumulation_dtype(y.dtype), device=y.device)
        return finite(self.denoiser(y, level).contiguous(), sigma, what)  # a resumed job's layout, see walk.Model


def finite(denoised: torch.Tensor, sigma: float, what: str) -> torch.Tensor:
    """``denoised`` itself; raises CalibrationError where it holds NaN or infinity."""
    if not bool(torch.isfinite(denoised.detach()).all()):
        raise CalibrationError(
            f"the model returned NaN or infinity at sigma {sigma:.6g}, in {what}: run it in float32 or bfloat16, or lower the "
            "guidance scale"
        )
    return denoised
