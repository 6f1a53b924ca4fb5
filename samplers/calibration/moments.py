"""Measuring Gaussian moments for teleportation: from latents, from the model's own samples, or from its denoiser.

Latents must be in the space that samplers work in: a host scales what its VAE encodes first (ComfyUI's ``process_in``; for
SD 1.5 a factor 0.18215, which the covariance feels squared). All sums are float64 and stream, so memory does not grow with the
samples; a job that was interrupted ends with the same bits.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from ..engine import Denoiser, Progress, run
from ..errors import CalibrationError, DenoiserError, check_choice, check_integer, check_range
from ..frames import Frame
from ..grids import Node, node_at_lambda, uniform_lambda
from ..lincomb import accumulation_dtype
from ..moments import Moments, pixel_variance
from ..plan import Plan
from ..solvers.dpm_multistep import dpm_solver_multistep
from ..teleport import GaussianJump, Mode
from .affine import AffineFit, combined
from .job import Job
from .moments_file import calibration_of, curves, moments_of
from .second_moments import StationarySums, Sums, reopened, sums_for
from .store import Calibration

LEVELS = (14.0, 5.0, 2.0)  # sigma/alpha: where variances of 200, 25 and 4 show best
TOLERANCE = 0.02
LOWEST, HIGHEST = 0.3, 2000.0  # sigma/alpha between which the range is looked for


def from_latents(
    batches: Iterable[torch.Tensor], *, kind: str = "fourier", rank: int = 64, append: Calibration | None = None,
    job: Job | None = None,
) -> Calibration:
    """Moments of latents in the samplers' space.

    Args:
        batches: latents [B, C, ...], all of one size (channel moments take any sizes); the same again where a job is resumed.
        kind: ``fourier`` (the default: 16 to 64 latents suffice, fits every size), ``lowrank`` (several hundreds, one size) or
            ``channel`` (pixels independent).
        rank: of lowrank moments, 1 to 256; at most a quarter of the number of latents is sound.
        append: earlier moments of latents of the same kind, to which these are added.
        job: counts latents, as no model is evaluated.

    Raises:
        CalibrationError: NaN, shapes that differ, fewer than 2 latents, rank above their number less 1.
    """
    return _measured(lambda done: itertools.islice(iter(batches), done, None), kind, rank, append, job, 1, "latents")


def cost_from_model(plan: Plan, samples: int) -> int:
    """Evaluations that ``from_model`` takes; a call counts as many as it has samples."""
    return samples * plan.nfe


def from_model(
    denoiser: Denoiser, plan: Plan, like: torch.Tensor, *, samples: int = 32, seed: int = 0, kind: str = "fourier",
    rank: int = 64, append: Calibration | None = None, job: Job | None = None,
) -> Calibration:
    """Moments of the model's own samples: no data needed, and right for the prompts and guidance inside ``denoiser``.

    Args:
        plan: a few-step plan of the model's frame, without a start transform.
        like: a batch [B, C, ...] whose size, dtype and device are used.
        samples: sample i starts from the noise of ``seed + i``.
    """
    check_integer("samples", samples, 2, 100_000)
    first = plan.nodes[0]

    def batches(done: int) -> Iterator[torch.Tensor]:
        for start in range(done * len(like), samples, len(like)):
            seeds = range(seed + start, seed + min(start + len(like), samples))
            x = noise(seeds, like) * math.hypot(first.alpha, first.sigma)
            try:
                yield run(plan, denoiser, x, seed=list(seeds))
            except DenoiserError as error:
                raise CalibrationError(f"sampling from seed {seeds[0]} on failed: {error}") from error

    return _measured(batches, kind, rank, append, job, plan.nfe, "samples")


def _measured(
    batches: Callable[[int], Iterator[torch.Tensor]], kind: str, rank: int, append: Calibration | None, job: Job | None,
    each: int, source: str,
) -> Calibration:
    sums = sums_for(kind, rank) if append is None else reopened(append, kind, rank)
    job = Job(0, {}) if job is None else job
    state, done = job.resume(), 0
    if state is not None:
        done = int(state.pop("batches"))
        sums.restore(state)
    with job:
        for batch in batches(done):
            sums.add(batch)
            done += 1
            shown = curves(sums.moments()) if sums.samples >= 2 + rank * (kind == "lowrank") else {}
            job.advance(each * len(batch), {**sums.state(), "batches": torch.tensor(done)}, shown)
        found = sums.moments()
    return calibration_of(found, **_facts(sums, found, kind, source))


def _facts(sums: Sums, found: Moments, kind: str, source: str) -> dict[str, Any]:
    facts: dict[str, Any] = {"method": "teleport", "source": source, "samples": sums.samples, "rows": sums.samples}
    warnings = []
    if isinstance(sums, StationarySums):
        facts["rows"] = sums.rows
    else:
        facts["rank"] = len(found.values) - 1
        if 4 * facts["rank"] > sums.samples:
            warnings.append(f"rank {facts['rank']} is more than a quarter of {sums.samples} latents: its variances are too large")
    variance = pixel_variance(found)
    if not 0.1 <= variance <= 10.0:
        warnings.append(
            f"the mean variance of a latent pixel is {variance:.3g}: the latents look unscaled (samplers work on about 1)"
        )
    return {**facts, "kind": kind, "variance": variance, **({"warnings": warnings} if warnings else {})}


def cost_from_denoiser(samples: int, levels: Sequence[float] = LEVELS, *, unconditional: bool = False) -> int:
    """Evaluations that ``from_denoiser`` takes; a call counts as many as it has samples."""
    return samples * len(levels) * (1 + unconditional)


def from_denoiser(
    denoiser: Denoiser, frame: Frame, like: torch.Tensor, *, kind: str = "fourier", levels: Sequence[float] = LEVELS,
    samples: int = 64, seed: int = 0, unconditional: Denoiser | None = None, job: Job | None = None,
) -> Calibration:
    """Moments read off the denoiser at high noise, without samples: see ``affine``.

    With guidance inside ``denoiser`` they are those of the guided model, its mean above all. Level by level from most noise, the
    states are drawn from what the levels before have said, so that the model sees the states it was trained on.

    Args:
        frame: of the denoiser's states.
        like: a batch [B, C, ...] whose size, dtype and device are used.
        kind: ``fourier`` or ``channel``.
        levels: falling sigma/alpha.
        samples: per level; fourier moments need more than the channels, twice as many are sound.
        unconditional: the model without its prompt, measured too, for ``mode="guided"`` at any guidance scale.

    Raises:
        CalibrationError: too few samples, NaN in the model (named with its level).
        OptionError: lowrank moments, levels that do not fall.
    """
    check_choice("kind", kind, ("fourier", "channel"))
    check_integer("samples", samples, 2, 100_000)
    if not levels or not all(math.isfinite(s) and s > 0 for s in levels) or list(levels) != sorted(set(levels), reverse=True):
        raise CalibrationError(f"levels are {list(levels)}, expected falling positive numbers (sigma/alpha)")
    most = math.exp(-float(frame.lambda_(frame.time.t_T)))
    if levels[0] > most * (1.0 + 1e-6):
        raise CalibrationError(f"level {levels[0]:g} is above this model's most noise, sigma/alpha {most:.6g}: start with that")
    models = [denoiser, *([] if unconditional is None else [unconditional])]
    fits = [[AffineFit(kind, s) for s in levels] for _ in models]
    job = Job(0, {}) if job is None else job
    calls = [(m, i, start) for m in range(len(models)) for i in range(len(levels)) for start in range(0, samples, len(like))]
    state = job.resume()
    done = 0 if state is None else int(state["calls"])
    if state is not None:
        for m, i in {(m, i) for m, i, _ in calls[:done]}:
            fits[m][i].restore({key.removeprefix(f"{m}.{i}."): t for key, t in state.items() if key.startswith(f"{m}.{i}.")})
    with job:
        kept = {} if state is None else state
        for number, (m, i, start) in enumerate(calls[done:], done + 1):
            seeds = range(seed + start, seed + min(start + len(like), samples))
            x = noise([s + i * samples for s in seeds], like).double().cpu() * levels[i]
            if i:
                x = _drawn(combined(fits[m][:i]), x, levels[i])
            node = node_at_lambda(frame, -math.log(levels[i]))
            told = torch.full((len(x),), node.sigma, dtype=accumulation_dtype(like.dtype), device=like.device)
            denoised = models[m]((x * node.alpha).to(like), told)
            try:
                fits[m][i].add(x, denoised)
            except CalibrationError as error:
                raise CalibrationError(f"at sigma {node.sigma:.6g} the model's prediction for {error}") from None
            kept |= {f"{m}.{i}.{name}": tensor for name, tensor in fits[m][i].state().items()}
            shown = curves(combined(fits[m][: i + 1])) if seeds.stop == seed + samples else {}
            job.advance(len(x), {**kept, "calls": torch.tensor(number)}, shown)
        found = [combined(fit) for fit in fits]
    facts = {"method": "teleport", "source": "denoiser", "samples": samples, "levels": [float(s) for s in levels]}
    return calibration_of(found[0], found[1] if len(found) > 1 else None, **facts, variance=pixel_variance(found[0]))


def _drawn(moments: Moments, x: torch.Tensor, sigma: float) -> torch.Tensor:
    """Noise of standard deviation ``sigma`` made into states of N(mu, S + sigma^2)."""
    fitted = moments.fit(x.shape)
    return fitted.centre(x) + fitted.apply(x / sigma, (fitted.values + sigma**2).sqrt())


def cost_of_range(samples: int, steps: int = 48) -> int:
    """Evaluations that ``measure_range`` takes; a call counts as many as it has samples."""
    return samples * steps


def measure_range(
    denoiser: Denoiser, frame: Frame, moments: Calibration, like: torch.Tensor, *, samples: int = 6, seed: int = 10_000,
    steps: int = 48, tolerance: float = TOLERANCE, guidance_scale: float | None = None, job: Job | None = None,
) -> Calibration:
    """How far a jump holds: the moments with ``meta["range"]``, which ``skip="auto"`` reads.

    Solves the ODE in many steps from the schedule's most noise and compares every state with the jump to it. The error is
    ``e = rms(jump - solution)/sigma``; the range is the lowest sigma/alpha down to which e stays within ``tolerance``, by mode,
    or None where the first step breaks it.

    Args:
        samples: starts from the noise of ``seed + i``; 4 to 8 are enough.
        guidance_scale: measures ``guided`` jumps too, for moments that have the unconditional model's.
    """
    check_integer("samples", samples, 1, 10_000)
    check_integer("steps", steps, 8, 10_000)
    check_range("tolerance", tolerance, 0.0, 1.0)
    top = min(float(frame.t_of_lambda(-math.log(HIGHEST))), frame.time.t_T)
    grid = uniform_lambda(frame, steps, end="stop", t_T=top, t_0=float(frame.t_of_lambda(-math.log(LOWEST))))
    plan, first = dpm_solver_multistep(grid, order=3, solver_type="exact", lower_order_final=False), grid.node(0)
    own = moments_of(moments)
    modes: list[tuple[Mode, Moments | None]] = [("anchored", None), ("mean", None)]
    if guidance_scale is not None:
        modes.append(("guided", moments_of(moments, unconditional=True)))
    job = Job(0, {}) if job is None else job
    state = job.resume() or {"squares": torch.zeros(len(modes), steps, dtype=torch.float64), "next": torch.tensor(0)}
    squares, done = state["squares"].clone(), int(state["next"])
    with job:
        for start in range(done, samples, len(like)):
            x = noise(range(seed + start, seed + min(start + len(like), samples)), like)
            x = x * math.hypot(first.alpha, first.sigma)
            anchor: list[torch.Tensor] = []

            def compare(progress: Progress, x: torch.Tensor = x, anchor: list[torch.Tensor] = anchor) -> None:
                anchor.append(progress.denoised) if not anchor else None
                for row, (mode, other) in enumerate(modes):
                    node = grid.node(progress.index + 1)
                    jump = GaussianJump(first, node, own, mode, "ode", other, guidance_scale or 1.0)
                    error = (jump(x, lambda y, _: anchor[0]) - progress.x).double().div(node.sigma).square()
                    squares[row, progress.index] += float(error.flatten(1).mean(1).sum())

            try:
                run(plan, denoiser, x, callback=compare)
            except DenoiserError as error:
                raise CalibrationError(f"the range from seed {seed + start} on could not be measured: {error}") from error
            errors = (squares / (start + len(x))).sqrt()
            shown = dict(zip((f"error of the {mode} jump" for mode, _ in modes), errors.tolist(), strict=True))
            job.advance(steps * len(x), {"squares": squares, "next": torch.tensor(start + len(x))}, shown)
    by_mode = dict(zip((mode for mode, _ in modes), (squares / samples).sqrt().tolist(), strict=True))
    more = {
        "range": {mode: _reach(grid.nodes[1:], errors, tolerance) for mode, errors in by_mode.items()},
        "range_tolerance": tolerance, "range_errors": {"rho": [node.rho for node in grid.nodes[1:]], **by_mode},
    }
    return replace(moments, meta={**moments.meta, **more})


def _reach(nodes: Sequence[Node], errors: Sequence[float], tolerance: float) -> float | None:
    within = list(itertools.takewhile(lambda pair: pair[1] <= tolerance, zip(nodes, errors, strict=True)))
    return within[-1][0].rho if within else None


def noise(seeds: Iterable[int], like: torch.Tensor) -> torch.Tensor:
    """Standard normal noise of one sample a seed, of the size, dtype and device of ``like``; drawn on the CPU."""
    draws = [
        torch.randn(like.shape[1:], generator=torch.Generator().manual_seed(seed % 2**64), dtype=torch.float32) for seed in seeds
    ]
    return torch.stack(draws).to(like)
