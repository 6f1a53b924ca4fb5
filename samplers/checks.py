"""What the engine asks of a start state and of a denoiser's results: shapes, precision, finite numbers."""

from __future__ import annotations

import math
from typing import Any

import torch

from .errors import DenoiserError, PlanError
from .lincomb import Flag


def checked(denoised: torch.Tensor, y: torch.Tensor, k: int, sigma: float) -> torch.Tensor:
    """``denoised`` if it is a prediction for the state ``y``: a copy where it shares memory with it. Raises DenoiserError."""
    fits = isinstance(denoised, torch.Tensor) and denoised.shape == y.shape and denoised.dtype == y.dtype
    if not fits or denoised.device != y.device:
        raise DenoiserError(f"at evaluation {k} (sigma {sigma:.6g}) the denoiser returned {_misfit(denoised, y)}")
    # a denoiser may hand back its input, or a view of it; rows written in place must not reach a stored output
    if denoised.data_ptr() != y.data_ptr() and denoised.is_contiguous():
        return denoised
    same = denoised.untyped_storage().data_ptr() == y.untyped_storage().data_ptr()
    return denoised.clone() if same else denoised


def _misfit(denoised: Any, y: torch.Tensor) -> str:
    if not isinstance(denoised, torch.Tensor):
        return f"{type(denoised).__name__}, expected a tensor of shape {tuple(y.shape)}"
    if denoised.shape != y.shape:
        return f"shape {tuple(denoised.shape)}, expected the state's shape {tuple(y.shape)}"
    if denoised.dtype != y.dtype:
        return f"{denoised.dtype}, expected the state's {y.dtype}: convert its result with .to(x.dtype)"
    return f"a tensor on {denoised.device}, expected the state's {y.device}"


def check_start(x: torch.Tensor) -> None:
    """Raises PlanError for a state that no plan can start from."""
    if not isinstance(x, torch.Tensor) or x.dtype not in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        what = x.dtype if isinstance(x, torch.Tensor) else type(x).__name__
        raise PlanError(f"the start state is {what}, expected a tensor of float64, float32, bfloat16 or float16")
    if x.ndim < 2 or x.numel() == 0:
        raise PlanError(f"the start state has shape {tuple(x.shape)}, expected a batch [B, ...] with at least one element")


def check_sample(shape: tuple[int, ...] | None, x: torch.Tensor) -> None:
    """Raises PlanError unless coefficients of ``shape`` (``Plan.sample_shape``) fit the samples of ``x``."""
    if shape is None:
        return
    per_channel = math.prod(shape[1:]) == 1
    wanted = (*shape[:1], *(1,) * (x.ndim - 2)) if per_channel else shape
    if len(wanted) != x.ndim - 1 or any(c not in (1, s) for c, s in zip(wanted, x.shape[1:], strict=True)):
        raise PlanError(
            f"the plan's coefficients are made for samples of shape {list(shape)} (1: any size), the state's samples have "
            f"{list(x.shape[1:])}: use a calibration of this model and size, or one with a number per channel"
        )


class Finiteness:
    """Watches a run without reading the device: a number per evaluation, finite where all of the prediction is.

    Attributes:
        sigmas: the noise level of every evaluation.
    """

    def __init__(self) -> None:
        self.sigmas: list[float] = []
        self._numbers: list[Flag] = []
        self._flags: list[torch.Tensor] = []

    def note(self, denoised: torch.Tensor) -> None:
        """Takes a prediction's sum: NaN and infinity survive it, and no other pass over the tensor is cheaper."""
        # in float16 the sum itself would overflow; in the others a conversion would cost more than the sum
        self._numbers.append(denoised.sum(dtype=torch.float32 if denoised.dtype == torch.float16 else None))

    def flag(self, device: torch.device) -> Flag:
        """A zero in which a kernel may leave NaN in place of a sum; ``note_flag`` says that it did the work."""
        if device.type == "cpu":
            return [0.0]
        if not self._flags:
            self._flags = list(torch.zeros(32, device=device).unbind())
        return self._flags.pop()

    def note_flag(self, flag: Flag) -> None:
        """Takes the flag as the evaluation's number."""
        self._numbers.append(flag)

    def check(self) -> None:
        """Raises DenoiserError naming the first evaluation whose prediction held NaN or infinity. Reads the device once."""
        sums = [number for number in self._numbers if isinstance(number, torch.Tensor)]
        kinds = {number.dtype for number in sums}  # in the state's precision, or in its and the flags'
        read = iter(torch.stack(sums if len(kinds) == 1 else [s.to(sums[0].dtype) for s in sums]).tolist() if sums else ())
        finite = [math.isfinite(next(read) if isinstance(number, torch.Tensor) else number[0]) for number in self._numbers]
        if not all(finite):
            k = finite.index(False)
            raise DenoiserError(
                f"evaluation {k} (sigma {self.sigmas[k]:.6g}) returned NaN or infinity. If it is the first one, the model "
                "itself overflows: run it in float32 or bfloat16. If it is a later one, the sampling diverged: lower the "
                "guidance scale or the order, or use data prediction"
            )
