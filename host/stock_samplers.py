"""Samplers and schedulers by the names in the stock KSampler's lists.

Of ComfyUI's own, euler and dpmpp_2m and the usual schedulers are here, written from their formulas, with ComfyUI's results on
every model family; FewStep's entries are the ones that the pack adds to ComfyUI's lists (``nodes/stock_lists.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import torch

from ..nodes import stock_lists
from .sampling import KSampler

Step = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
RHO = 7.0  # of the scheduler karras (Karras et al. 2022)


def sampler_by_name(name: str) -> KSampler:
    """The SAMPLER of a name in ``SAMPLERS``."""
    return KSampler(SAMPLERS[name], {})


def sigmas_by_name(model_sampling: Any, name: str, steps: int, denoise: float = 1.0) -> torch.Tensor:
    """Sigmas [steps + 1] of a name in ``SCHEDULERS``, ending in 0; ``denoise`` < 1: the end of a longer schedule, 0: none."""
    if denoise <= 0.0:
        return torch.zeros(0)
    return SCHEDULERS[name](model_sampling, int(steps / denoise) if denoise < 1.0 else steps)[-steps - 1 :]


def euler(
    model: Any, x: torch.Tensor, sigmas: torch.Tensor, extra_args: Mapping[str, Any], callback: Callable[..., None],
    disable: bool | None = None,
) -> torch.Tensor:
    """Euler's method on dx/dsigma = (x - D)/sigma."""
    return _run(model, x, sigmas, extra_args, callback, _along)


def dpmpp_2m(
    model: Any, x: torch.Tensor, sigmas: torch.Tensor, extra_args: Mapping[str, Any], callback: Callable[..., None],
    disable: bool | None = None,
) -> torch.Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022) in lambda = -log sigma for every family, as ComfyUI has it."""
    last: tuple[torch.Tensor, torch.Tensor] | None = None  # (D, h) of the step before

    def step(x: torch.Tensor, denoised: torch.Tensor, sigma: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        nonlocal last
        h, used = (sigma / after).log(), denoised
        if last is not None and after > 0:
            used = denoised + (denoised - last[0]) * (h / (2.0 * last[1]))
        last = denoised, h
        return _along(x, used, sigma, after)

    return _run(model, x, sigmas, extra_args, callback, step)


def _along(x: torch.Tensor, denoised: torch.Tensor, sigma: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """From ``sigma`` to ``after`` on the straight line to x_0."""
    return denoised + (x - denoised) * (after / sigma)


def _run(
    model: Any, x: torch.Tensor, sigmas: torch.Tensor, extra_args: Mapping[str, Any], callback: Callable[..., None], step: Step
) -> torch.Tensor:
    for i, (sigma, after) in enumerate(pairwise(sigmas)):
        denoised = model(x, sigma.expand(len(x)), **extra_args)
        callback({"i": i, "x": x, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
        x = step(x, denoised, sigma, after)
    return x


def _simple(sampling: Any, steps: int) -> torch.Tensor:
    """Every n-th entry of the model's table, from the largest down."""
    table: torch.Tensor = sampling.sigmas
    stride = len(table) / steps
    return table[[-1 - int(i * stride) for i in range(steps)]]


def _normal(sampling: Any, steps: int, last: bool = True) -> torch.Tensor:
    """Even in the network's time, with or without the last training step."""
    start, end = (float(sampling.timestep(s)) for s in (sampling.sigma_max, sampling.sigma_min))
    return torch.stack([sampling.sigma(t) for t in torch.linspace(start, end, steps + (not last))[:steps]])


def _karras(sampling: Any, steps: int) -> torch.Tensor:
    low, high = (float(s) ** (1.0 / RHO) for s in (sampling.sigma_min, sampling.sigma_max))
    return torch.linspace(high, low, steps) ** RHO


def _exponential(sampling: Any, steps: int) -> torch.Tensor:
    return torch.linspace(float(sampling.sigma_max.log()), float(sampling.sigma_min.log()), steps).exp()


def _ending(levels: Callable[[Any, int], torch.Tensor]) -> Callable[[Any, int], torch.Tensor]:
    return lambda sampling, steps: torch.cat([levels(sampling, steps), torch.zeros(1)])


SAMPLERS: dict[str, Callable[..., torch.Tensor]] = {
    "euler": euler, "dpmpp_2m": dpmpp_2m, **{name: stock_lists.sampler(name) for name in stock_lists.SAMPLERS},
}
SCHEDULERS: dict[str, Callable[[Any, int], torch.Tensor]] = {
    "normal": _ending(_normal), "simple": _ending(_simple), "karras": _ending(_karras), "exponential": _ending(_exponential),
    "sgm_uniform": _ending(lambda sampling, steps: _normal(sampling, steps, last=False)),
    **{name: stock_lists.scheduler(name) for name in stock_lists.SCHEDULES},
}
