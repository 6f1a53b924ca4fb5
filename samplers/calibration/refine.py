"""Joint refinement of a fitted plan: all its numbers by Adam on the final error of the whole, unrolled run."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from ..engine import run
from ..errors import CalibrationError, DenoiserError, check_integer, check_range
from .job import Keeper
from .samples import Samples
from .tableau import Tableau
from .unrolled import Unrolled, uncorrelated

OUTLIER = 4.0  # an error so many times the batch's median begins to count by its root: a sample that ends in another mode
WARM_UP = 0.05  # of the iterations


@dataclass(frozen=True)
class Refinement:
    """Settings of ``refine``.

    Attributes:
        iterations: batches; 0 refines nothing.
        rate: Adam's learning rate at its highest; it rises over the first twentieth and falls along a cosine.
        times, told, state: whether the nodes, the levels told to the model and the state's factors are learned.
        consistent: keep a constant prediction exact: weights of sum 1, the state's factors unchanged.
        relaxation: radius of the ball around each start noise in which the student's own start may lie while it is fitted, as
            a share of the noise's norm (LSD's and LD3's relaxation); 0 for none.
        checks: how often the held-out error is looked at.
        patience: checks without a better one after which it stops.
        checkpointing: recompute evaluations in the backward pass instead of keeping what they need.
        seed: of the order of samples.
    """

    iterations: int = 300
    rate: float = 0.015
    times: bool = True
    told: bool = True
    state: bool = True
    consistent: bool = False
    relaxation: float = 0.0
    checks: int = 10
    patience: int = 4
    checkpointing: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        check_integer("iterations", self.iterations, 0, 1_000_000)
        check_integer("checks", self.checks, 1, 1000)
        check_integer("patience", self.patience, 1, 1000)
        check_range("rate", self.rate, 0.0, 1.0)
        check_range("relaxation", self.relaxation, 0.0, 1.0)

    def rate_at(self, i: int) -> float:
        """The learning rate of iteration ``i``."""
        warm = max(1, round(WARM_UP * self.iterations))
        return self.rate * min(1.0, (i + 1) / warm) * 0.5 * (1.0 + math.cos(math.pi * i / self.iterations))

    def checked_after(self, i: int) -> bool:
        """Whether the held-out error is looked at after iteration ``i``."""
        return (i + 1) * self.checks // self.iterations > i * self.checks // self.iterations


def refine_cost(steps: int, batch: int, held_out: int, settings: Refinement) -> int:
    """Evaluations of ``refine``, one per sample and call, if it does not stop early; backward passes are not counted."""
    if settings.iterations == 0:
        return 0
    calls = 2 + settings.checkpointing  # the run, the difference in the told level, the recomputation
    return steps * (batch * (settings.iterations * calls + 1) + held_out * (settings.checks + 1))


def final_errors(tableau: Tableau, samples: Samples, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean square error of each sample's result [N], float64."""
    plan, errors = tableau.plan(), []
    for part in samples.batches:
        try:
            result = run(plan, samples.denoiser, x[part])
        except DenoiserError as error:
            raise CalibrationError(f"the run of samples {part.start} to {part.stop - 1} failed: {error}") from error
        errors.append((result.double() - target[part].double()).square().flatten(1).mean(1))
    return torch.cat(errors)


def robust(errors: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Pseudo-Huber in mean square errors: themselves where small against ``scale``, growing by their root beyond."""
    return 2 * scale * ((1 + errors / scale).sqrt() - 1)


def outputs_of_first_batch(tableau: Tableau, samples: Samples, x: torch.Tensor) -> torch.Tensor:
    """The predictions [M, B, ...] of the first batch along the plan."""
    seen: list[torch.Tensor] = []
    run(tableau.plan(), samples.denoiser, x[: samples.batch], callback=lambda p: seen.append(p.denoised.clone()))
    return torch.stack(seen)


def refine(
    samples: Samples, x: torch.Tensor, target: torch.Tensor, held: Samples, x_held: torch.Tensor, target_held: torch.Tensor,
    start: Tableau, settings: Refinement, keeper: Keeper,
) -> Tableau:
    """The best plan on held-out samples; ``start`` itself where none is better.

    Args:
        x, target: start states and the teacher's end states [N, ...]; row i of a batch of ``samples`` has prompt i.
        held, x_held, target_held: the same for the samples that only judge.
        start: the warm start.
    """
    if settings.iterations == 0:
        return start
    with torch.inference_mode(False), torch.enable_grad():
        # a host's inference tensors cannot enter a graph
        data = [tensor.clone() for tensor in (x, target, x_held, target_held)]
        return _descend(samples, data[0], data[1], held, data[2], data[3], start, settings, keeper)


def _descend(
    samples: Samples, x: torch.Tensor, target: torch.Tensor, held: Samples, x_held: torch.Tensor, target_held: torch.Tensor,
    start: Tableau, settings: Refinement, keeper: Keeper,
) -> Tableau:
    if settings.consistent:
        settings = replace(settings, state=False)
    state = keeper.part("refine")
    if not state:
        with torch.no_grad():
            outputs = outputs_of_first_batch(start, samples, x)
            state = {
                "outputs": outputs, "done": torch.tensor(0), "held": final_errors(start, held, x_held, target_held).mean()[None],
                "train": torch.zeros(0, dtype=torch.float64),
            }
        keeper.advance(start.steps * (samples.batch + held.count), "refine", state)
    unrolled = Unrolled(
        start, uncorrelated(state["outputs"], start.gain, consistent=settings.consistent),
        times=settings.times, told=settings.told, state=settings.state,
    )
    theta = torch.zeros(sum(unrolled.sizes), dtype=torch.float64, requires_grad=True)
    unrolled.project(theta.data)
    adam = torch.optim.Adam([theta], betas=(0.9, 0.99))
    best = state.get("best", torch.zeros_like(theta.detach())).clone()
    offset = state["offset"].to(x) if "offset" in state else torch.zeros_like(x) if settings.relaxation else None
    if "theta" in state:
        theta.data.copy_(state["theta"])
        adam.state[theta] = {name: state[name].clone() for name in ("step", "exp_avg", "exp_avg_sq")}
    train, judged = state["train"].tolist(), state["held"].tolist()
    calls = 2 + settings.checkpointing
    for i in range(int(state["done"]), settings.iterations):
        if len(judged) - 1 - judged.index(min(judged)) >= settings.patience:
            break
        epoch, number = divmod(i, len(samples.batches))
        rows = samples.mixed(epoch, settings.seed)[number].to(x.device)
        begin = x[rows] if offset is None else (x[rows] + offset[rows]).requires_grad_()
        result = unrolled.run(samples.denoiser, begin, theta, checkpointing=settings.checkpointing)
        errors = (result - target[rows]).square().flatten(1).mean(1).double()
        scale = OUTLIER * errors.detach().median().clamp(min=1e-30)
        loss = robust(errors, scale).mean()
        if not math.isfinite(float(loss.detach())):
            raise CalibrationError(f"iteration {i} of the fit gave NaN or infinity: lower the rate, or run the model in float32")
        adam.param_groups[0]["lr"] = settings.rate_at(i)
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
        unrolled.project(theta.data)
        if offset is not None:
            assert begin.grad is not None
            offset[rows] = _relaxed(offset[rows], begin.grad, x[rows], settings)
        train.append(float(errors.detach().mean()))
        evaluations = start.steps * samples.batch * calls
        if settings.checked_after(i):
            error = float(final_errors(unrolled.tableau(theta), held, x_held, target_held).mean())
            if error < min(judged):
                best = theta.detach().clone()
            judged.append(error)
            evaluations += start.steps * held.count
        kept = {
            "outputs": state["outputs"], "done": torch.tensor(i + 1), "theta": theta.detach(), "best": best,
            "train": torch.tensor(train, dtype=torch.float64), "held": torch.tensor(judged, dtype=torch.float64),
            **{name: adam.state[theta][name] for name in ("step", "exp_avg", "exp_avg_sq")},
            **({} if offset is None else {"offset": offset}),
        }
        keeper.advance(evaluations, "refine", kept, {"held out": judged})
    return unrolled.tableau(best) if min(judged) < judged[0] else start


def _relaxed(offset: torch.Tensor, gradient: torch.Tensor, x: torch.Tensor, settings: Refinement) -> torch.Tensor:
    """One step of the starts against their gradient, and back into the ball."""
    radius = settings.relaxation * _norm(x)
    moved = offset - 0.1 * radius * gradient / _norm(gradient).clamp(min=1e-30)
    inside: torch.Tensor = moved * (radius / _norm(moved).clamp(min=1e-30)).clamp(max=1.0)
    return inside


def _norm(tensor: torch.Tensor) -> torch.Tensor:
    """[B, 1, ...]."""
    norms: torch.Tensor = torch.linalg.vector_norm(tensor.flatten(1), dim=1)
    return norms.reshape(-1, *(1,) * (tensor.ndim - 1))
