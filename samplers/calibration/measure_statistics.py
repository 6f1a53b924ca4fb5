"""Measuring the statistics of DPM-Solver-v3: one pass over samples and noise levels, streaming and resumable."""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch

from ..engine import Denoiser
from ..errors import CalibrationError, check_choice, check_integer
from ..frames import Frame
from ..grids import Grid
from ..plan import Plan
from ..solvers.dpm_multistep import dpm_solver_multistep
from ..solvers.dpm_v3 import dpm_solver_v3
from . import held_out
from .derivatives import EVALUATIONS, TRIAL, Derivative, Model, table_of
from .job import Job
from .statistics import Statistics
from .store import Calibration
from .sums import NAMES, terms_of

Per = Literal["channel", "element", "scalar"]
Draws = Callable[[int, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
PRESETS = {"draft": (80, 8), "normal": (120, 128), "paper": (250, 1024)}  # steps of lambda, samples
CHECKED = 16  # starts that the gain is measured on, or more to make whole batches: fewer say little
REFINE = 6  # steps of the solution that it is measured by, for each of the grid's
PURE = 0.999  # the noisiest sigma of flow models: at 1 lambda is infinite
HOW: tuple[Derivative, ...] = ("jvp", "difference", "stein")


def lambda_grid(frame: Frame, points: int, *, rounded: bool = False) -> np.ndarray:
    """``points + 1`` noise levels, uniform in lambda over the frame's range; for a ``rounded`` model the nearest of its table.

    >>> from fewstep.samplers import frames
    >>> lambda_grid(frames.edm(), 4).round(2).tolist()
    [-4.38, -1.73, 0.92, 3.57, 6.21]
    """
    check_integer("points", points, 2, 100_000)
    start = float(frame.lambda_(frame.time.t_T))
    if not np.isfinite(start):
        start = float(frame.lambda_of_sigma(PURE))
    lam = np.linspace(start, float(frame.lambda_(frame.time.t_0)), points + 1)
    if not rounded:
        return lam
    table = table_of(frame)
    return np.asarray(table[np.unique(np.abs(table[:, None] - lam).argmin(0))])


def cost(
    lambdas: Sequence[float] | np.ndarray, samples: int, derivative: Derivative = "auto", *, batch: int = 4,
    check: Grid | None = None,
) -> int:
    """Evaluations of the guided denoiser that ``measure_statistics`` takes; a call counts as many as it has samples."""
    trial = TRIAL * min(batch, samples) if derivative == "auto" else 0
    held_out_cost = 0 if check is None else _check_cost(check, batch)
    return len(lambdas) * samples * EVALUATIONS[derivative] + trial + held_out_cost


def measure_statistics(
    denoiser: Denoiser, frame: Frame, samples: Sequence[torch.Tensor] | torch.Tensor,
    lambdas: Sequence[float] | np.ndarray, *, guidance: float, per: Per = "channel", derivative: Derivative = "auto",
    count: int | None = None, batch: int = 4, seed: int = 0, rounded: bool = False, half_precision: bool = False,
    smoothing: int = 0, check: Grid | None = None, draws: Draws | None = None, job: Job | None = None,
) -> Calibration:
    """Measures l, s, b of a model at a guidance scale.

    Args:
        denoiser: ``D(x, sigma [B]) -> x_0``, guidance included. Row i of a batch may have its own prompt: it is given the
            samples i, i + batch, ...
        frame: of the denoiser's states.
        samples: clean x_0, ``samples[i]`` of shape [C, ...]; float32 or float64, on the denoiser's device. They may be read
            from a file as they are asked for.
        lambdas: noise levels, rising; see ``lambda_grid``.
        guidance: the denoiser's guidance scale, for the file.
        per: one number per channel (any size, few samples suffice), per element (this size only, many samples) or in all.
        derivative: "jvp": forward differentiation; "difference": finite differences, for models that have none; "stein": by
            Gaussian integration by parts, cheaper and noisier; "auto": jvp where it works and agrees with differences.
        count: draws in all, at least 2; by default one per sample, else they are used in turn with new noise.
        batch: states per call of the denoiser.
        seed: of noise and probes; draw i is the same for every noise level and batch size.
        rounded: the denoiser rounds sigma to the frame's table, as hosts do with discrete models.
        half_precision: the model computes in 16 bits: wider differences.
        smoothing: of the slope of l, see ``sums.slope_of``; 5 as published.
        check: a grid to measure the gain on, from at least 16 starts in whole batches; None: it is not measured.
        draws: noise and random signs of draw i, in place of those from ``seed``.
        job: progress and resumption; its ``total`` should be ``cost(...)``.

    Returns:
        Calibration for "statistics": tensors ``lambda``, ``l``, ``s``, ``b``, ``sums``, and settings in ``meta``, whose ``gain``
        has the mean-square errors of DPM-Solver++ 2M ("plain") and of the calibrated solver by default ("calibrated").

    Raises:
        CalibrationError: fewer than two draws, NaN from the model (it says where), lambdas that do not rise.
    """
    check_choice("per", per, ("channel", "element", "scalar"))
    check_choice("derivative", derivative, tuple(EVALUATIONS))
    check_integer("batch", batch, 1, 4096)
    check_integer("smoothing", smoothing, 0, 1000)
    lam, total = _levels(lambdas), len(samples) if count is None else count
    if len(samples) < 1 or total < 2:
        raise CalibrationError(f"statistics need at least 2 samples, got {total if len(samples) else 0}")
    width, reach = (0.2, 0.02) if half_precision else (0.03, 0.005)
    model = Model(denoiser, frame, table_of(frame) if rounded else None, width, reach)
    like, draw = samples[0], draws or (lambda i, x: seeded_draws(seed, i, x))
    axes = {"element": (), "channel": tuple(range(2, like.ndim + 1)), "scalar": tuple(range(1, like.ndim + 1))}[per]
    shape = [1 if axis in axes else size for axis, size in enumerate(like.shape, 1)]
    job = job or Job(cost(lam, total, derivative, batch=batch, check=check), {})
    with job, torch.inference_mode(False), torch.no_grad():
        state = job.resume() or {
            "sums": torch.zeros(len(lam), len(NAMES), *shape, dtype=torch.float64), "next": torch.zeros(2, dtype=torch.int64),
            "how": torch.tensor(-1 if derivative == "auto" else HOW.index(derivative)),
        }
        sums, how, (first, level) = state["sums"].clone(), int(state["how"]), state["next"].tolist()
        for start in range(first, total, batch):
            chosen = range(start, min(start + batch, total))
            x_0 = torch.stack([samples[i % len(samples)] for i in chosen])
            z, v = (torch.stack(parts) for parts in zip(*(draw(i, like) for i in chosen), strict=True))
            if how < 0:
                middle = float(lam[len(lam) // 2])
                how = HOW.index("jvp" if model.agrees(x_0 + np.exp(-middle) * z, middle, v) else "difference")
                job.advance(TRIAL * len(chosen), _state(sums, start, 0, how))
            for j in range(level, len(lam)):
                X = x_0 + np.exp(-lam[j]) * z
                answer = model.respond(X, float(lam[j]), z, v, HOW[how])
                found = terms_of(float(lam[j]), X, answer.D, answer.T, answer.v, answer.Jv, axes).cpu()
                sums[j] += _finite(found, float(frame.sigma_of_lambda(lam[j])), chosen)
                done = _state(sums, start, j + 1, how) if j + 1 < len(lam) else _state(sums, start + batch, 0, how)
                job.advance(EVALUATIONS[HOW[how]] * len(chosen), done, _curves(sums))
            level = 0
        meta: dict[str, Any] = {
            "method": "dpm_solver_v3", "guidance": float(guidance), "samples": total, "seeds": [seed], "derivative": HOW[how],
            "per": per, "shape": list(like.shape), "points": len(lam), "lambda": [float(lam[0]), float(lam[-1])],
            "rounded": rounded, "half_precision": half_precision, "smoothing": smoothing,
        }
        statistics = Statistics.from_sums(lam, sums, total * math.prod(like.shape) // math.prod(shape), meta)
        if check is not None:
            gain = _gain(denoiser, check, statistics, batch, lambda i: draw(total + i, like)[0])
            statistics = replace(statistics, meta={**statistics.meta, "gain": gain})
            job.advance(_check_cost(check, batch), _state(sums, total, 0, how), _curves(sums))
    return statistics.calibration()


def _levels(lambdas: Sequence[float] | np.ndarray) -> np.ndarray:
    lam = np.asarray(lambdas, np.float64)
    if lam.ndim != 1 or len(lam) < 3 or not np.all(np.isfinite(lam)) or not np.all(np.diff(lam) > 0):
        raise CalibrationError("statistics need at least 3 finite noise levels that rise, noise first; see lambda_grid")
    return lam


def _finite(found: torch.Tensor, sigma: float, chosen: range) -> torch.Tensor:
    if not bool(torch.isfinite(found).all()):
        raise CalibrationError(
            f"the model returned NaN or infinity at sigma {sigma:.6g}, samples {chosen[0]} to {chosen[-1]}: run it in float32 or "
            "bfloat16, or leave those samples out"
        )
    return found


def _compared(grid: Grid, statistics: Statistics | None) -> dict[str, Plan]:
    plain = dpm_solver_multistep(grid, order=2, lower_order_final="always")
    return {"plain": plain, "calibrated": dpm_solver_v3(grid, statistics=statistics)}


def _starts(batch: int) -> list[range]:
    return [range(i, i + batch) for i in range(0, CHECKED, batch)]


def _check_cost(grid: Grid, batch: int) -> int:
    return len(_starts(batch)) * held_out.cost(_compared(grid, None), grid, batch, REFINE)


def _gain(
    denoiser: Denoiser, grid: Grid, statistics: Statistics, batch: int, noise: Callable[[int], torch.Tensor]
) -> dict[str, float]:
    plans, first = _compared(grid, statistics), float(grid.sigma[0])
    states = (torch.stack([noise(i) for i in chosen]) * first for chosen in _starts(batch))
    found = [held_out.errors(plans, denoiser, grid, start, REFINE) for start in states]
    return {"steps": grid.steps, **{name: sum(errors[name] for errors in found) / len(found) for name in plans}}


def seeded_draws(seed: int, i: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise and random signs of draw ``i``, of the shape, dtype and device of ``like``."""
    key = hashlib.blake2b(struct.pack("<QQ", seed % 2**64, i), digest_size=8, person=b"fewstep-ems").digest()
    generator = torch.Generator().manual_seed(int.from_bytes(key, "little"))
    z = torch.randn(like.shape, generator=generator)
    v = torch.randint(0, 2, like.shape, generator=generator) * 2 - 1
    return z.to(like), v.to(like)


def _state(sums: torch.Tensor, start: int, level: int, how: int) -> dict[str, torch.Tensor]:
    return {"sums": sums, "next": torch.tensor([start, level]), "how": torch.tensor(how)}


def _curves(sums: torch.Tensor) -> dict[str, list[float]]:
    """l so far, averaged over channels, for a live plot."""
    ratio: Any = (1 - sums[:, 0] / sums[:, 9]).flatten(1).mean(1)
    return {"l": [float(v) for v in ratio if v == v]}
