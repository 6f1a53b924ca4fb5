"""What a network or a plan may predict, as linear maps of the state and of x_0.

With ``x = alpha*x_0 + sigma*eps`` every kind is ``M = p*x + q*x_0``:

=========  =============================  ==========================================
kind       meaning                        used by
=========  =============================  ==========================================
``x_0``    the clean sample               DPM-Solver++, UniPC (data prediction)
``eps``    the noise                      DPM-Solver, DEIS, most older networks
``v``      (alpha*eps - sigma*x_0)/n      v-prediction networks; n = sqrt(alpha^2 + sigma^2)
``flow``   eps - x_0                      rectified-flow networks
=========  =============================  ==========================================
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from .errors import ScheduleError, check_choice
from .frames import Frame

Kind = Literal["x_0", "eps", "v", "flow"]
KINDS: tuple[Kind, ...] = ("x_0", "eps", "v", "flow")


def coefficients(kind: str, alpha: Any, sigma: Any) -> tuple[Any, Any]:
    """(p, q) with ``M = p*x + q*x_0``. ``alpha`` and ``sigma`` may be floats or arrays.

    Raises ScheduleError where sigma is 0 and the kind is not ``x_0``: noise cannot be read off a clean state.
    """
    check_choice("prediction kind", kind, KINDS)
    if kind == "x_0":
        return 0.0, 1.0
    if isinstance(sigma, float) and sigma == 0.0:
        raise ScheduleError(f"a {kind} prediction does not exist at sigma 0; use x_0 there")
    if kind == "eps":
        return 1.0 / sigma, -alpha / sigma
    if kind == "v":
        norm = (alpha * alpha + sigma * sigma) ** 0.5
        return alpha / (sigma * norm), -norm / sigma
    return 1.0 / sigma, -alpha / sigma - 1.0


def to_x_0(kind: str, output: Any, x: Any, alpha: Any, sigma: Any) -> Any:
    """x_0 from a network's ``output`` of the given kind at state ``x``; stable for every sigma > 0.

    ``output`` and ``x`` are arrays or tensors of one shape; ``alpha`` and ``sigma`` broadcast.
    """
    check_choice("prediction kind", kind, KINDS)
    if kind == "x_0":
        return output
    if kind == "eps":
        return (x - sigma * output) / alpha
    if kind == "v":
        power = alpha * alpha + sigma * sigma
        return (alpha * x - sigma * power**0.5 * output) / power
    return (x - sigma * output) / (alpha + sigma)


def from_x_0(kind: str, x_0: Any, x: Any, alpha: Any, sigma: Any) -> Any:
    """A prediction of the given kind from ``x_0`` at state ``x``."""
    p, q = coefficients(kind, alpha, sigma)
    return x_0 if kind == "x_0" else p * x + q * x_0


def change_frame(x: Any, source: Frame, target: Frame, lambda_: float) -> Any:
    """The state ``x`` of ``source`` at ``lambda_`` as a state of ``target`` at the same lambda (same x_0 and eps).

    Predictions are the same in every frame (v too, since it is defined with n); only the state needs conversion.
    """
    if not -float("inf") < lambda_ < float("inf"):
        # at a pure end only one of alpha and sigma is left, and it decides
        scale = (source.alpha_of_lambda, target.alpha_of_lambda) if lambda_ > 0 else (
            source.sigma_of_lambda, target.sigma_of_lambda)
        return x * (float(scale[1](lambda_)) / float(scale[0](lambda_)))
    return x * (float(target.alpha_of_lambda(lambda_)) / float(source.alpha_of_lambda(lambda_)))


def denoiser_of(
    network: Callable[..., Any], frame: Frame, kind: Kind, *, model_time: bool = True
) -> Callable[[Any, Any], Any]:
    """Wraps ``network(x, time) -> prediction of kind`` as the denoiser ``D(x, sigma) -> x_0`` of ``frame``.

    ``x`` is in ``frame``; ``sigma`` is a tensor [B]. The network is told the model's time (``model_time``) or sigma.
    Interpolates the schedule on the CPU, so it reads sigma from the device: meant for scripts and tests; hosts bring
    their own denoiser.
    """
    import torch

    def denoiser(x: Any, sigma: Any) -> Any:
        host_sigma = sigma.detach().double().cpu().numpy()
        alpha = torch.as_tensor(frame.alpha_of_sigma(host_sigma)).to(x)
        label = frame.time.model_time(frame.t_of_sigma(host_sigma)) if model_time else host_sigma
        shape = (-1,) + (1,) * (x.ndim - 1)
        output = network(x, torch.as_tensor(label).to(x))
        return to_x_0(kind, output, x, alpha.reshape(shape), sigma.to(x.dtype).reshape(shape))

    return denoiser
