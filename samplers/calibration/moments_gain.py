"""Whether teleportation helps: runs with and without the jump, at the same number of evaluations, from unseen noise."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..engine import Denoiser
from ..errors import CalibrationError, DenoiserError, check_integer
from ..frames import Frame
from ..grids import Grid, uniform_t
from ..plan import Plan
from ..recipe import Recipe
from . import held_out
from .job import Job
from .moments import noise
from .store import Calibration

STEPS = 5
BASE = Recipe("unipc", {"order": 2})
MODES = ("mean", "anchored")


def cost(frame: Frame, samples: int, steps: int = STEPS) -> int:
    """Evaluations that ``measure_gain`` takes; a call counts as many as it has samples."""
    return samples * (held_out.refined(_grid(frame, steps)).steps + (1 + len(MODES)) * steps)


def measure_gain(
    denoiser: Denoiser, frame: Frame, moments: Calibration, like: torch.Tensor, *, samples: int = 6, seed: int = 20_000,
    steps: int = STEPS, job: Job | None = None,
) -> Calibration:
    """The moments with ``meta["gain"]``: mean-square errors to a many-step solution of UniPC-2 on uniform t with ``steps``
    evaluations, "plain" and after a jump with ``rest="regrid"`` in the modes "mean" and "anchored", whose evaluation is one of
    them; "calibrated" is the better one, named by "mode". A jump that was measured to hold nowhere is left out, as when sampling.

    Args:
        denoiser: guidance inside; row i of a batch may have its own prompt.
        moments: with their range, see ``moments.measure_range``.
        like: a batch [B, C, ...] whose size, dtype and device are used.
        samples: starts from the noise of ``seed + i``.
        steps: at least 3.

    Raises CalibrationError where the model returns NaN.
    """
    check_integer("samples", samples, 1, 10_000)
    check_integer("steps", steps, 3, 1000)
    grid, plans = _grid(frame, steps), _plans(frame, moments, steps)
    job = Job(0, {}) if job is None else job
    state = job.resume() or {"errors": torch.zeros(len(plans), dtype=torch.float64), "next": torch.tensor(0)}
    sums, done = state["errors"].clone(), int(state["next"])
    with job:
        for start in range(done, samples, len(like)):
            x = noise(range(seed + start, seed + min(start + len(like), samples)), like) * float(grid.sigma[0])
            try:
                found = held_out.errors(plans, denoiser, grid, x)
            except DenoiserError as error:
                raise CalibrationError(f"the gain from seed {seed + start} on could not be measured: {error}") from error
            sums += torch.tensor(list(found.values()), dtype=torch.float64) * len(x)
            job.advance(cost(frame, len(x), steps), {"errors": sums, "next": torch.tensor(start + len(x))})
    gain = dict(zip(plans, (sums / samples).tolist(), strict=True))
    mode = min(MODES, key=lambda name: gain[name])
    return replace(moments, meta={**moments.meta, "gain": {"steps": steps, **gain, "calibrated": gain[mode], "mode": mode}})


def _grid(frame: Frame, steps: int) -> Grid:
    return uniform_t(frame, steps, end="zero")


def _plans(frame: Frame, moments: Calibration, steps: int) -> dict[str, Plan]:
    """By the name of the error, each of ``steps`` evaluations."""
    jumps = {mode: BASE.started("teleport", moments=moments, mode=mode, rest="regrid") for mode in MODES}
    recipes = {"plain": BASE, **jumps}
    found = {}
    for name, recipe in recipes.items():
        plans = (recipe.resolve(frame, _grid(frame, count)) for count in (steps, steps - 1))
        found[name] = next(plan for plan in plans if isinstance(plan, Plan) and plan.nfe == steps)
    return found
