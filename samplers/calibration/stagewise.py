"""Plans fitted step by step: least squares against a fine solution, in closed form and without gradients of the model.

The continuous analogue of LSD's alignment of intermediate outputs (Fu et al., arXiv 2509.19962). At step k, with the
student's own state and outputs, the weights minimise the distance of the next state to the teacher's:

    ``y = (x*_{k+1} - x_k sigma'/sigma) / (alpha' - alpha sigma'/sigma)``,   ``min_w |y - sum_j w_j D_{k-j}|^2``.

With ``sum w = 1`` a constant prediction stays exact; a ridge draws the weights towards DPM-Solver++(2M)'s.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ..engine import Denoiser, Progress, run
from ..errors import CalibrationError, DenoiserError, check_integer, check_range
from ..grids import Grid, from_sigmas
from ..solvers.dpm_multistep import dpm_solver_multistep
from ..solvers.unipc import unipc
from .job import Job, Keeper
from .samples import Samples
from .tableau import Tableau

SINGULAR = 1e-13  # relative size of a direction in which the outputs are taken to be equal
NEAR_NOISE = -6.9  # lambda from which the teacher's steps are even; pure noise itself has none


def teacher_grid(grid: Grid, steps: int) -> tuple[Grid, list[int]]:
    """(a fine grid that contains ``grid``'s nodes, the numbers of those nodes in it).

    About ``steps`` steps, even in lambda within each interval; from the last node above 0 down to the frame's smallest
    time and then to 0 where the grid ends there.
    """
    check_integer("teacher steps", steps, grid.steps, 100_000)
    frame, edges = grid.frame, grid.lambda_.copy()
    edges[0] = max(edges[0], min(NEAR_NOISE, edges[1] - 1e-3))
    if grid.end == "zero":
        edges[-1] = max(float(frame.lambda_(frame.time.t_0)), edges[-2])
    shares = np.diff(edges) / (edges[-1] - edges[0]) * steps
    sigmas: list[float] = []
    marks = [0]
    for k, share in enumerate(shares):
        inner = np.linspace(edges[k], edges[k + 1], max(1, round(float(share))) + 1)
        last = grid.end == "zero" and k == grid.steps - 1
        first_even = [edges[0]] if k == 0 and edges[0] != grid.lambda_[0] else []
        fine = [*first_even, *inner[1 : None if last and share > 0 else -1]]
        sigmas += [float(grid.sigma[k]), *(float(frame.sigma_of_lambda(v)) for v in fine)]
        marks.append(len(sigmas))
    return from_sigmas(frame, [*sigmas, float(grid.sigma[-1])]), marks


def teacher_cost(grid: Grid, samples: int, steps: int) -> int:
    """Evaluations of ``teacher_states``, one per sample and call."""
    return teacher_grid(grid, steps)[0].steps * samples


def teacher_states(samples: Samples, grid: Grid, x: torch.Tensor, steps: int, keeper: Keeper) -> torch.Tensor:
    """The fine solution at nodes 1..M of ``grid``: [M, N, ...], by UniPC-3 in about ``steps`` steps.

    Args:
        x: start states [N, ...] at the grid's first node.
        steps: 50 bring the demo models within 1e-4 (mean square) of 1000 at guidance 7.5, within 2e-5 at 2.
    """
    fine, marks = teacher_grid(grid, steps)
    plan = unipc(fine, order=min(3, fine.steps))
    kept = keeper.part("teacher")
    states = kept["states"].to(x) if kept else x.new_zeros(grid.steps, *x.shape)
    done = int(kept["done"]) if kept else 0
    for i, part in enumerate(samples.batches):
        if i < done:
            continue

        def keep(progress: Progress, part: slice = part) -> None:
            if progress.index + 1 in marks[:-1]:
                states[marks.index(progress.index + 1) - 1, part] = progress.x

        try:
            states[-1, part] = run(plan, samples.denoiser, x[part], callback=keep)
        except DenoiserError as error:
            raise CalibrationError(f"the fine solution of samples {part.start} to {part.stop - 1} failed: {error}") from error
        keeper.advance(fine.steps * samples.batch, "teacher", {"states": states, "done": torch.tensor(i + 1)})
    return states


def solve_weights(moments: torch.Tensor, prior: torch.Tensor, ridge: float) -> torch.Tensor:
    """The w [n] that minimises ``|y - w A|^2 + ridge * (mean diagonal of A A^T) * |w - prior|^2``.

    Args:
        moments: inner products [1 + n, 1 + n] of y and the n rows of A, float64.
        prior: [n]. Where several w are as good the nearest to it is taken: ``prior`` itself where the rows of A vanish.
    """
    gram, right = moments[1:, 1:], moments[1:, 0]
    if not len(gram):
        return prior
    damped = gram + ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    inverse: torch.Tensor = torch.linalg.pinv(damped, rtol=SINGULAR, hermitian=True)
    return prior + inverse @ (right - gram @ prior)


def fit_stagewise(
    samples: Samples, grid: Grid, x: torch.Tensor, states: torch.Tensor, keeper: Keeper, *, order: int = 3,
    constrained: bool = True, ridge: float = 1e-4,
) -> tuple[Tableau, dict[str, list[float]]]:
    """(the fitted numbers, per step the mean square distance to the teacher's next state before and after the fit).

    Args:
        x: start states [N, ...]; row i of a batch of ``samples`` has prompt i.
        states: the teacher's [M, N, ...] at nodes 1..M.
        order: outputs that each step combines, 1 to M.
        constrained: weights of sum 1.
        ridge: pull towards DPM-Solver++(2M), in units of the mean diagonal of the normal equations.
    """
    check_integer("order", order, 1, grid.steps)
    check_range("ridge", ridge, 0.0, 1.0)
    if samples.count < order + 1:
        raise CalibrationError(f"{samples.count} samples cannot fit order {order}: give at least {order + 1}")
    prior = two_multistep(grid)
    kept = keeper.part("stagewise")
    weights = kept["weights"].numpy().copy() if kept else np.zeros((grid.steps, grid.steps))
    report = kept["report"].clone() if kept else torch.zeros(2, grid.steps, dtype=torch.float64)
    carried = kept["x"].to(x) if kept else x.clone()
    outputs = list(kept["outputs"].to(x)) if kept else []  # newest last
    done = int(kept["done"]) if kept else 0
    decay, gain = prior.decay, prior.gain
    for k in range(done, grid.steps):
        newest = torch.empty_like(x)
        for part in samples.batches:
            newest[part] = samples(carried[part], float(grid.sigma[k]), f"step {k} of the fit, samples {part.start} on")
        outputs = [*outputs, newest][-order:]
        w_0 = torch.from_numpy(prior.m[k, k + 1 - len(outputs) : k + 1] / gain[k]).flip(0)  # newest first
        moments = torch.zeros((), dtype=torch.float64)
        for part in samples.batches:
            target = (states[k, part].double() - decay[k] * carried[part].double()) / gain[k]
            columns = [output[part].double() for output in reversed(outputs)]
            if constrained:  # w_0 is eliminated: differences from the newest output
                target, columns = target - columns[0], [c - columns[0] for c in columns[1:]]
            flat = torch.stack([target, *columns]).flatten(1)
            moments = moments + (flat @ flat.T).cpu()
        start = w_0[1:] if constrained else w_0
        w = solve_weights(moments, start, ridge)
        report[:, k] = torch.stack([_residual(moments, v) for v in (start, w)]) * gain[k] ** 2 / x.numel()
        full = torch.cat([1 - w.sum().reshape(1), w]) if constrained else w
        weights[k, k + 1 - len(full) : k + 1] = full.flip(0).numpy()
        carried = decay[k] * carried + sum(float(gain[k] * c) * d for c, d in zip(full, reversed(outputs), strict=True))
        part_state = {
            "x": carried, "outputs": torch.stack(outputs), "weights": torch.from_numpy(weights), "report": report,
            "done": torch.tensor(k + 1),
        }
        curves = {"2M": report[0, : k + 1].tolist(), "fitted": report[1, : k + 1].tolist()}
        keeper.advance(samples.count, "stagewise", part_state, curves)
    return Tableau.from_weights(grid, weights), {"before": report[0].tolist(), "after": report[1].tolist()}


def _residual(moments: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """``|y - w A|^2`` from the moments."""
    signed = torch.cat([torch.ones(1, dtype=w.dtype), -w])
    return (signed @ moments @ signed).clamp(min=0.0)


def two_multistep(grid: Grid) -> Tableau:
    """DPM-Solver++(2M) on the grid, of order 2 to the end."""
    return Tableau.from_plan(dpm_solver_multistep(grid, order=min(2, grid.steps), lower_order_final=False), grid.frame)


def fit_plan(
    denoiser: Denoiser, states: torch.Tensor, grid: Grid, *, order: int = 3, constrained: bool = True, ridge: float = 1e-4,
    batch: int | None = None, job: Job | None = None,
) -> tuple[Tableau, dict[str, Any]]:
    """Stagewise least squares on given teacher states [M+1, N, ...] (the first: the starts). See ``fit_stagewise``.

    ``tableau.plan()`` is the plan. Costs N*M evaluations.

    Raises CalibrationError: states that do not fit the grid, too few samples, NaN in the model.
    """
    if len(states) != grid.steps + 1:
        raise CalibrationError(f"{len(states)} teacher states are given for the {grid.steps + 1} nodes of the grid")
    count = states.shape[1]
    samples = Samples(denoiser, count, batch or count)
    with job or Job(count * grid.steps, {}) as running:
        return fit_stagewise(
            samples, grid, states[0], states[1:], Keeper(running), order=order, constrained=constrained, ridge=ridge
        )
