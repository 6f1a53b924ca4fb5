"""Clean samples drawn by the model itself, for calibrations that need some and are given none."""

from __future__ import annotations

import math

import torch

from ..engine import Denoiser, run
from ..errors import CalibrationError, DenoiserError, check_integer
from ..plan import Plan
from .job import Job
from .moments import noise


def cost(plan: Plan, samples: int) -> int:
    """Evaluations that ``own_samples`` takes; a call counts as many as it has samples."""
    return samples * plan.nfe


def own_samples(
    denoiser: Denoiser, plan: Plan, like: torch.Tensor, samples: int, *, seed: int = 0, job: Job | None = None
) -> torch.Tensor:
    """``samples`` results [N, C, ...] of ``plan``, in batches of ``len(like)``; sample i starts from the noise of ``seed + i``.

    Raises CalibrationError where the model returns NaN; the job's state are the samples drawn so far.
    """
    check_integer("samples", samples, 1, 100_000)
    first = plan.nodes[0]
    job = Job(cost(plan, samples), {}) if job is None else job
    drawn = (job.resume() or {"samples": like[:0].cpu()})["samples"]
    with job:
        for start in range(len(drawn), samples, len(like)):
            seeds = range(seed + start, seed + min(start + len(like), samples))
            x = noise(seeds, like) * math.hypot(first.alpha, first.sigma)
            try:
                result = run(plan, denoiser, x, seed=list(seeds))
            except DenoiserError as error:
                raise CalibrationError(f"sampling from seed {seeds[0]} on failed: {error}") from error
            drawn = torch.cat([drawn, result.cpu()])
            job.advance(plan.nfe * len(x), {"samples": drawn})
    return drawn.to(like.device)
