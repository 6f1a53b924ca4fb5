"""Joint least squares: all of a fitted plan's numbers by Gauss-Newton on the final error, without gradients of the model.

The numbers are few (26 for 5 steps), so the slopes of the results in each of them are measured by differences: a number of
step k moves nothing before that step, and one of the last step's coefficients costs no evaluation at all. Levenberg's and
Marquardt's damping chooses the length of each round's move. Ten rounds reach what Adam needs a thousand batches for, in the
memory of plain sampling, and any model will do: compiled, quantised, without a backward pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..errors import check_integer
from .job import Keeper
from .refine import OUTLIER, final_errors, outputs_of_first_batch, robust
from .samples import Samples
from .tableau import Tableau
from .unrolled import LEVEL_STEP, Numbers, Unrolled, uncorrelated

DIFFERENCE = 0.01  # of a number whose unit moves the state by its own size: well above the rounding of half precision
LONGEST = 0.5  # a number's move in one round
TRIED = (0.1, 1.0, 10.0)  # dampings of a round, relative to the last round's best
SOFTEST, HARDEST = 1e-5, 1e3
FLATTEST = 1e-3  # curvature that damping takes a number to have at least, relative to the largest


@dataclass(frozen=True)
class Joint:
    """Settings of ``fit_joint``.

    Attributes:
        rounds: Gauss-Newton steps; 0 leaves the part out.
        parts: a round measures its slopes on one of so many parts of the samples, drawn anew when all have had their turn.
        patience: rounds without a better held-out error after which it stops.
        damping: Levenberg-Marquardt's, relative to each number's curvature, of the first round.
        seed: of the order of samples.
    """

    rounds: int = 8
    parts: int = 3
    patience: int = 6
    damping: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        check_integer("rounds", self.rounds, 0, 10_000)
        check_integer("parts", self.parts, 1, 10_000)
        check_integer("patience", self.patience, 1, 10_000)

    def batches(self, samples: int, batch: int) -> int:
        """Batches of a round."""
        return max(1, samples // batch // self.parts)


def slopes_cost(steps: int) -> int:
    """Evaluations per sample for the slopes of one round, at most: a level at an end of the model's needs half of its own."""
    told = steps * (steps + 1) // 2
    return 2 * told + sum((k + 2) * (steps - 1 - k) for k in range(steps))


def joint_cost(steps: int, samples: int, batch: int, held_out: int, settings: Joint) -> int:
    """Evaluations of ``fit_joint``, one per sample and call, if it does not stop early."""
    if settings.rounds == 0:
        return 0
    a_round = _round_cost(steps, settings.batches(samples, batch) * batch, held_out)
    return settings.rounds * a_round + steps * (batch + held_out)


def _round_cost(steps: int, samples: int, held_out: int) -> int:
    return samples * (slopes_cost(steps) + steps * (1 + len(TRIED))) + held_out * steps


class Trace(NamedTuple):
    """A run of one batch: its numbers, the states [M + 1] and the outputs [M]."""

    numbers: Numbers
    states: list[torch.Tensor]
    outputs: list[torch.Tensor]


def trace(samples: Samples, x: torch.Tensor, numbers: Numbers, known: Trace | None = None) -> Trace:
    """Runs one batch [B, ...]; what a ``known`` run with other numbers has in common is taken from it."""
    states, outputs, same = [x], list[torch.Tensor](), known is not None
    for k, told in enumerate(numbers.told.tolist()):
        same = same and known is not None and bool(
            numbers.told[k] == known.numbers.told[k] and numbers.scale[k] == known.numbers.scale[k]
        )
        if same and known is not None:
            outputs.append(known.outputs[k])
        else:
            outputs.append(samples(float(numbers.scale[k]) * states[-1], told, f"step {k} of the joint fit"))
        same = same and known is not None and bool(
            numbers.x[k] == known.numbers.x[k] and torch.equal(numbers.m[k], known.numbers.m[k])
        )
        if same and known is not None:
            states.append(known.states[k + 1])
        else:
            moved = float(numbers.x[k]) * states[-1]
            states.append(moved + sum(float(c) * d for c, d in zip(numbers.m[k], outputs, strict=True)))
    return Trace(numbers, states, outputs)


def fit_joint(
    samples: Samples, x: torch.Tensor, target: torch.Tensor, held: Samples, x_held: torch.Tensor, target_held: torch.Tensor,
    start: Tableau, settings: Joint, keeper: Keeper,
) -> Tableau:
    """The best plan on held-out samples; ``start`` itself where none is better. Arguments as for ``refine``.

    The nodes stay where they are: with the told levels, the state's factors and the outputs' free they decide nothing.
    """
    if settings.rounds == 0:
        return start
    state = keeper.part("joint")
    if not state:
        state = {
            "outputs": outputs_of_first_batch(start, samples, x), "done": torch.tensor(0),
            "held": final_errors(start, held, x_held, target_held).mean()[None],
            "damping": torch.tensor(settings.damping, dtype=torch.float64),
        }
        keeper.advance(start.steps * (samples.batch + held.count), "joint", state)
    unrolled = Unrolled(start, uncorrelated(state["outputs"], start.gain, consistent=False), times=False)
    theta = state.get("theta", torch.zeros(sum(unrolled.sizes), dtype=torch.float64)).clone()
    unrolled.project(theta)
    best, damping, judged = state.get("best", theta).clone(), float(state["damping"]), state["held"].tolist()
    number = settings.batches(samples.count, samples.batch)
    epochs = 1 + settings.rounds * number * samples.batch // samples.count
    order = torch.cat([samples.mixed(epoch, settings.seed) for epoch in range(epochs)])
    evaluations = _round_cost(start.steps, number * samples.batch, held.count)
    for i in range(int(state["done"]), settings.rounds):
        if len(judged) - 1 - judged.index(min(judged)) >= settings.patience:
            break
        rows = list(order[i * number : (i + 1) * number].to(x.device))
        theta, damping = _round(unrolled, theta, samples, x, target, rows, damping)
        error = float(final_errors(unrolled.tableau(theta), held, x_held, target_held).mean())
        if error < min(judged):
            best = theta.clone()
        judged.append(error)
        kept = {
            "outputs": state["outputs"], "done": torch.tensor(i + 1), "theta": theta, "best": best,
            "held": torch.tensor(judged, dtype=torch.float64), "damping": torch.tensor(damping, dtype=torch.float64),
        }
        keeper.advance(evaluations, "joint", kept, {"held out": judged})
    return unrolled.tableau(best) if min(judged) < judged[0] else start


def _round(
    unrolled: Unrolled, theta: torch.Tensor, samples: Samples, x: torch.Tensor, target: torch.Tensor, rows: list[torch.Tensor],
    damping: float,
) -> tuple[torch.Tensor, float]:
    """(``theta`` after one damped Gauss-Newton step, its damping); unchanged, and damped more, where no step is better."""
    def errors(numbers: Numbers) -> torch.Tensor:
        results = (trace(samples, x[row], numbers).states[-1] - target[row] for row in rows)
        return torch.cat([r.double().square().flatten(1).mean(1) for r in results]).cpu()

    products = _products(unrolled, theta, samples, x, target, rows)
    now = products[:, 0, 0]
    scale = OUTLIER * now.median().clamp(min=1e-30)
    weight = (1 + now / scale).rsqrt()  # the slope of ``robust``
    total = (weight[:, None, None] * products).mean(0)
    gram, right = total[1:, 1:], total[1:, 0]
    moving = unrolled.moving.bool()
    found = []
    for factor in TRIED:
        trial = min(max(damping * factor, SOFTEST), HARDEST)
        curvature = gram.diagonal().clamp(min=float(gram.diagonal().max()) * FLATTEST)
        step = torch.linalg.solve(gram + trial * torch.diag(curvature), -right)
        moved = theta.clone()
        moved[moving] += step * (LONGEST / step.abs().max()).clamp(max=1.0)
        unrolled.project(moved)
        found.append((float(robust(errors(unrolled.numbers(moved)), scale).mean()), trial, moved))
    loss, trial, moved = min(found, key=lambda entry: entry[0])
    if loss < float(robust(now, scale).mean()):
        return moved, trial
    return theta, min(damping * TRIED[-1] ** 2, HARDEST)


def _products(
    unrolled: Unrolled, theta: torch.Tensor, samples: Samples, x: torch.Tensor, target: torch.Tensor, rows: list[torch.Tensor],
) -> torch.Tensor:
    """Mean products, over its elements, of each sample's error and the slopes of its result in the P numbers that move
    [samples, 1 + P, 1 + P]: the first is its mean square error, the rest of the first row J^T r, and then J^T J."""
    first, told = unrolled.sizes[0], unrolled.steps
    # a level to both sides, since 5 percent are far; where one side leaves the model's levels, to the other alone
    pairs = []
    for i in range(first, len(theta)):
        low, high = theta.clone(), theta.clone()
        low[i] -= LEVEL_STEP if i < first + told else 0.0
        high[i] += LEVEL_STEP if i < first + told else DIFFERENCE
        unrolled.project(low)
        unrolled.project(high)
        pairs.append((unrolled.numbers(low), unrolled.numbers(high), float(high[i] - low[i])))
    numbers, found = unrolled.numbers(theta), []
    for row in rows:
        base = trace(samples, x[row], numbers)
        columns = [(base.states[-1] - target[row]).double()]
        for below, above, between in pairs:
            ends = [trace(samples, x[row], n, base).states[-1] for n in (below, above)]
            columns.append((ends[1] - ends[0]).double() / between)
        flat = torch.stack(columns, 1).flatten(2)
        found.append((flat @ flat.transpose(1, 2)).cpu() / flat.shape[2])
    return torch.cat(found)
