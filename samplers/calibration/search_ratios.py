"""The search of compensation ratios (DC-Solver, arXiv 2409.03755, algorithm 1): step by step, against a fine trajectory.

The ratio of a step is the one that brings the state after it, its corrector included, nearest to the trajectory on a few starts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from ..correctors.compensation import compensable, compensated
from ..correctors.output_maps import predicts_ahead
from ..engine import Denoiser
from ..errors import CalibrationError, PlanError, check_choice, check_integer
from ..frames import Frame
from ..grids import Grid, Node, from_times
from ..noise import GaussianNoise, sample_seeds
from ..plan import NoiseTerm, Plan, Row, Stage
from ..solvers.ddim import ddim
from ..times import DiscreteTime
from . import scalar_search
from .job import Job, Keeper
from .walk import Model, State, Walk, follow

Rule = Literal["interpolated", "official"]
Method = Literal["auto", "gradient", "line"]
METHODS = ("auto", "gradient", "line")
PUBLISHED_LOOKS, GRADIENT_LOOKS, LINE_LOOKS = 40, 8, 12  # per step
BACKWARD = 3  # evaluations that one with its gradient costs


def draw_starts(grid: Grid, like: torch.Tensor, seed: int, count: int) -> torch.Tensor:
    """States [count, ...] at the grid's first node, for samples like ``like`` [...]: noise of the seeds from ``seed`` on."""
    node = grid.node(0)
    noise = torch.empty((count, *like.shape))
    GaussianNoise(sample_seeds(seed, count))(NoiseTerm(1.0, 1.0, 1.0), noise)
    return noise.to(like) * math.hypot(node.alpha, node.sigma)


@dataclass(frozen=True)
class Settings:
    """How ratios are searched.

    Attributes:
        dc_order: degree of the interpolation, see ``dynamic_compensation``.
        rule: ``interpolated``: the state after a step is compared with a fine trajectory at the step's own noise level.
            ``official``: with a 200-step DDIM trajectory's state at its next noisier label, as published.
        method: ``gradient``: with gradients through the model; by the official rule AdamW, whose last place is kept; else for
            a slope of 0, and the best place seen is kept. ``line``: without gradients. ``auto``: gradients where the model is
            in the error and can be differentiated.
        iterations: looks at the error per step; None: 12 without gradients, 8 with them, 40 with AdamW.
    """

    dc_order: int = 2
    rule: Rule = "interpolated"
    method: Method = "auto"
    iterations: int | None = None

    def __post_init__(self) -> None:
        check_choice("rule", self.rule, ("interpolated", "official"))
        check_choice("method", self.method, METHODS)
        check_integer("dc_order", self.dc_order, 1, 6)
        if self.iterations is not None:
            check_integer("iterations", self.iterations, 3, 1000)

    def looks(self, sloped: bool) -> int:
        """How often the error of a step is looked at."""
        with_slopes = PUBLISHED_LOOKS if self.rule == "official" else GRADIENT_LOOKS
        return self.iterations or (with_slopes if sloped else LINE_LOOKS)

    def propose(self, history: Sequence[scalar_search.Look], sloped: bool) -> float:
        """Where to look next."""
        if not sloped:
            return scalar_search.line(history)
        return scalar_search.adamw(history) if self.rule == "official" else scalar_search.descend(history)

    def choose(self, history: Sequence[scalar_search.Look], sloped: bool) -> float:
        """The ratio in the end."""
        return scalar_search.adamw(history) if sloped and self.rule == "official" else scalar_search.best(history)

    def cost(self, sloped: bool) -> int:
        """Evaluations per sample of the search at a step that evaluates the model."""
        return self.looks(sloped) * (BACKWARD if sloped else 1)


DEFAULT = Settings()


@dataclass(frozen=True)
class Step:
    """What step i (from 1) of a plan does once the output at its start is there.

    Attributes:
        row: gives the state after the step, or what the model is given on the way there.
        stage: evaluated on the way, in plans with a corrector.
        carry: corrects with what it stores; None where the state is ``row`` already.
    """

    row: Row
    stage: Stage | None = None
    carry: Row | None = None

    @property
    def evaluates(self) -> bool:
        """Whether the state after the step depends on a new evaluation."""
        return self.carry is not None


def step_of(plan: Plan, i: int) -> Step:
    """What step ``i`` does."""
    if not predicts_ahead(plan):
        return Step(plan.stages[i - 1].carry)
    if i < len(plan.stages):
        stage = plan.stages[i]
        return Step(stage.predict, stage, None if stage.carry is stage.predict else stage.carry)
    return Step(plan.stages[-1].carry if plan.final.is_identity else plan.final)


class _NotDifferentiableError(Exception):
    """Gradients do not pass through the model."""


class Search:
    """One search over the steps of a plan; everything that decides how it goes on is in its part of the job's state."""

    def __init__(
        self, plan: Plan, model: Model, start: torch.Tensor, targets: Sequence[torch.Tensor], settings: Settings, keeper: Keeper
    ) -> None:
        self.plan, self.model, self.targets, self.settings, self.keeper = plan, model, targets, settings, keeper
        self.steps, self.free = len(plan.nodes) - 1, compensable(plan, settings.dc_order)
        kept = keeper.part("search")
        self.walk = Walk(start, kept)
        self.ratios: list[float] = kept["ratios"].tolist() if "ratios" in kept else []
        self.history: list[scalar_search.Look] = [tuple(look) for look in kept["history"].tolist()] if "history" in kept else []
        self.method = METHODS[int(kept["method"])] if "method" in kept else settings.method

    def run(self) -> list[float]:
        """rho_1 ... rho_n."""
        while len(self.ratios) < self.steps:
            i = len(self.ratios) + 1
            if i - 1 not in self.walk.outputs:
                stage = self.plan.stages[i - 1]
                self.walk.outputs[i - 1] = self.model(self.walk.combined(stage.predict), self.plan, stage)
                self._advance(len(self.walk.x))
            while i in self.free and len(self.history) < self.settings.looks(self._sloped(i)):
                self._look(i)
            self._take(i)
        return self.ratios

    def _sloped(self, i: int) -> bool:
        """Whether gradients are used for step ``i``: without the model in them they win nothing over a line search."""
        return self.method == "gradient" or (self.method == "auto" and step_of(self.plan, i).evaluates)

    def _rows(self, i: int, ratio: Any) -> Step:
        return step_of(compensated(self.plan, [*self.ratios, ratio, *[1.0] * (self.steps - i)], self.settings.dc_order), i)

    def _look(self, i: int) -> None:
        """One more place at which the error after step ``i`` is known."""
        sloped, evaluates = self._sloped(i), step_of(self.plan, i).evaluates
        place = self.settings.propose(self.history, sloped)
        try:
            value, slope = self._error(i, place, sloped)
        except _NotDifferentiableError as error:
            if self.method == "gradient":
                raise CalibrationError(f"the model cannot be differentiated ({error}): use method 'line' or 'auto'") from error
            left = sum(step_of(self.plan, k).evaluates for k in self.free if k >= i)
            self.method = "line"
            self.keeper.job.total -= left * len(self.walk.x) * (self.settings.cost(True) - self.settings.cost(False))
            return
        if not math.isfinite(value):
            raise CalibrationError(f"the error of step {i} is not finite at ratio {place:.4g}: lower the guidance or the order")
        self.history.append((place, value, slope))
        self._advance(len(self.walk.x) * evaluates * (BACKWARD if sloped else 1))

    def _error(self, i: int, place: float, sloped: bool) -> tuple[float, float]:
        """Mean-square distance to the target after step ``i``, and its slope in the ratio (NaN where it is not asked for)."""
        value = slope = 0.0
        size = self.targets[i - 1].numel()
        for part in self.model.parts(len(self.walk.x)):
            ratio = torch.tensor(place, dtype=torch.float64, requires_grad=sloped)
            with torch.enable_grad() if sloped else torch.no_grad():
                try:
                    step = self._rows(i, ratio if sloped else place)
                    x = self.walk.combined(step.row, part)
                    if step.stage is not None and step.carry is not None:
                        output = self.model.part(x, self.plan, step.stage, part)
                        if sloped and not output.requires_grad:
                            raise _NotDifferentiableError("its result does not depend on its input")
                        x = self.walk.combined(step.carry, part, {i: output})
                    loss = (x - self.targets[i - 1][part]).double().square().sum() / size
                    if sloped:
                        slope += float(torch.autograd.grad(loss, ratio)[0])
                except (RuntimeError, NotImplementedError) as error:
                    if sloped:
                        raise _NotDifferentiableError(f"{type(error).__name__}: {error}") from error
                    raise
            value += float(loss.detach())
        return value, slope if sloped else math.nan

    def _take(self, i: int) -> None:
        """Takes step ``i`` with its ratio."""
        ratio = self.settings.choose(self.history, self._sloped(i)) if i in self.free else 1.0
        step = self._rows(i, ratio)
        x = self.walk.combined(step.row)
        if step.stage is not None:
            self.walk.outputs[i] = self.model(x, self.plan, step.stage)
            x = x if step.carry is None else self.walk.combined(step.carry)
        self.walk.x = x
        self.ratios, self.history = [*self.ratios, ratio], []
        self._advance(len(x) if step.stage is not None else 0)

    def _advance(self, evaluations: int) -> None:
        state: State = {
            **self.walk.state(), "ratios": torch.tensor(self.ratios, dtype=torch.float64),
            "history": torch.tensor(self.history, dtype=torch.float64).reshape(-1, 3),
            "method": torch.tensor(METHODS.index(self.method)),
        }
        curves = {"ratio": list(self.ratios), "error of the present step": [value for _, value, _ in self.history]}
        self.keeper.advance(evaluations, "search", state, curves)


def search_ratios(
    denoiser: Denoiser | Sequence[Denoiser], plan: Plan, starts: torch.Tensor, targets: Sequence[torch.Tensor], *,
    settings: Settings = DEFAULT, batch: int | None = None, job: Job | None = None,
) -> list[float]:
    """rho_1 ... rho_n that bring the states after each step nearest to ``targets``, one after the other.

    Args:
        denoiser: ``D(x, sigma [B]) -> x_0``, guidance included. Several: batch j uses entry j modulo their number (prompts).
        plan: multistep, without compensation.
        starts: states [S, ...] at its first node.
        targets: states [S, ...] of a fine solution after each step; see ``official_targets`` and ``fine_targets``.

    Raises:
        PlanError: a plan that cannot be compensated.
        CalibrationError: targets for other steps or samples, NaN from the model, a model without gradients where they are needed.
    """
    check_search(plan)
    _check_targets(len(plan.nodes) - 1, starts, targets)
    keeper = Keeper(job or Job(0, {}))
    with keeper.job, torch.inference_mode(False), torch.no_grad():
        model = Model(denoiser, batch or len(starts))
        return Search(plan, model, starts.clone(), [x.clone() for x in targets], settings, keeper).run()


def check_search(plan: Plan) -> None:
    """Raises PlanError for a plan whose steps move with the data."""
    if plan.late or any(hook.latents for hook in plan.hooks):
        raise PlanError("ratios are searched for fixed steps, but the data move this plan's: search them without time shift")


def _check_targets(steps: int, starts: torch.Tensor, targets: Sequence[torch.Tensor]) -> None:
    if len(targets) != steps:
        raise CalibrationError(f"the trajectory has states for {len(targets)} steps, the plan has {steps}: use the plan's grid")
    bad = next((x for x in targets if x.shape != starts.shape), None)
    if bad is not None:
        raise CalibrationError(
            f"the trajectory has states of shape {list(bad.shape)}, the starts {list(starts.shape)}: use those it was made from"
        )


def official_trajectory(frame: Frame, nodes: Sequence[Node], steps: int) -> tuple[Grid, list[int]]:
    """The published search's trajectory: the grid of its DDIM steps, and for each of ``nodes`` but the first the number of the
    state it is compared with: of those entering a step, the last one whose label index/N is above the node's time.

    Raises CalibrationError for models without training steps, and for a trajectory with fewer steps than there are nodes.
    """
    if not isinstance(frame.time, DiscreteTime):
        raise CalibrationError("the official rule counts in training steps, which this model has not: use rule 'interpolated'")
    count = frame.time.steps
    if not len(nodes) - 1 <= steps <= count:
        raise CalibrationError(f"a trajectory of {steps} steps is no reference for {len(nodes) - 1} of a model with {count}")
    labels = np.arange(0, count, count // steps)[::-1] + 1
    grid = from_times(frame, (np.append(labels, 0) + 1) / count, end="stop")
    above = [int(np.flatnonzero(labels / count > node.t)[-1]) if labels[0] / count > node.t else 0 for node in nodes[1:]]
    return grid, above


def official_targets(
    denoiser: Denoiser | Sequence[Denoiser], frame: Frame, plan: Plan, starts: torch.Tensor, *, steps: int = 200,
    batch: int | None = None, job: Job | None = None,
) -> list[torch.Tensor]:
    """States [S, ...] for ``search_ratios`` by the official rule; they start from ``starts`` at the trajectory's first label."""
    grid, chosen = official_trajectory(frame, plan.nodes, steps)
    keeper = Keeper(job or Job(len(starts) * grid.steps, {}))
    with keeper.job, torch.inference_mode(False), torch.no_grad():
        seen = follow(ddim(grid), Model(denoiser, batch or len(starts)), starts.clone(), set(chosen), keeper, "trajectory")
    return [seen[k] for k in chosen]
