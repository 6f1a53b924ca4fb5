"""What the engine asks of a start state and of a denoiser's results."""

from __future__ import annotations

import torch

from .errors import DenoiserError, PlanError


def checked(denoised: torch.Tensor, y: torch.Tensor, k: int, sigma: float) -> torch.Tensor:
    """``denoised`` if it is a prediction for the state ``y``: a copy where it shares memory with it. Raises DenoiserError."""
    where = f"at evaluation {k} (sigma {sigma:.6g}) the denoiser returned"
    if not isinstance(denoised, torch.Tensor):
        raise DenoiserError(f"{where} {type(denoised).__name__}, expected a tensor of shape {tuple(y.shape)}")
    if denoised.shape != y.shape:
        raise DenoiserError(f"{where} shape {tuple(denoised.shape)}, expected the state's shape {tuple(y.shape)}")
    if denoised.dtype != y.dtype:
        raise DenoiserError(f"{where} {denoised.dtype}, expected the state's {y.dtype}: convert its result with .to(x.dtype)")
    if denoised.device != y.device:
        raise DenoiserError(f"{where} a tensor on {denoised.device}, expected the state's {y.device}")
    # a denoiser may hand back its input; rows written in place must not reach a stored output
    same = denoised.untyped_storage().data_ptr() == y.untyped_storage().data_ptr()
    return denoised.clone() if same else denoised


def check_start(x: torch.Tensor) -> None:
    """Raises PlanError for a state that no plan can start from."""
    if not isinstance(x, torch.Tensor) or x.dtype not in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        what = x.dtype if isinstance(x, torch.Tensor) else type(x).__name__
        raise PlanError(f"the start state is {what}, expected a tensor of float64, float32, bfloat16 or float16")
    if x.ndim < 2 or x.numel() == 0:
        raise PlanError(f"the start state has shape {tuple(x.shape)}, expected a batch [B, ...] with at least one element")
