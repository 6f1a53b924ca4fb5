"""The engine: runs any plan against a denoiser.

The loop holds no method: it predicts, evaluates, stores and carries as the stages say. It never reads a tensor on the
host, so a GPU stays busy; whether every prediction was finite is checked once, after the last stage.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch

from .checks import check_start, checked
from .errors import DenoiserError, Interrupted, NoiseError, PlanError
from .grids import Node
from .hooks import Hook
from .lincomb import Combiner, Term, accumulation_dtype
from .noise import NoiseSource, source_for
from .plan import IDENTITY, Coefficient, Late, Memory, Plan, Row, Stage
from .start import StartTransform

Denoiser = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Progress:
    """What a progress callback is given after each stage.

    Attributes:
        index: number of the evaluation, from 0.
        total: number of evaluations, or None where it is not known ahead (adaptive step size).
        stage: the stage that ran.
        x: the carried state [B, ...]; the engine overwrites it later, so copy what you keep.
        denoised: the x_0 prediction [B, ...].
    """

    index: int
    total: int | None
    stage: Stage
    x: torch.Tensor
    denoised: torch.Tensor

    @property
    def sigma(self) -> float:
        """The noise level of the evaluation."""
        return self.stage.node.sigma


class StageSource(Protocol):
    """A plan made while it runs: yields stages and may look at the engine in between (step-size control)."""

    @property
    def hooks(self) -> tuple[Hook, ...]: ...
    @property
    def start(self) -> StartTransform | None: ...

    def generate(self, engine: Engine) -> Iterator[Stage]: ...


class Engine:
    """State of one run: the carried state ``x``, the stored outputs, and the buffers that rows write to."""

    def __init__(
        self, denoiser: Denoiser, x: torch.Tensor, noise: NoiseSource | None, hooks: Sequence[Hook], keep_start: bool
    ) -> None:
        self.x = x
        self.outputs: dict[int, torch.Tensor] = {}
        self.evaluations = 0
        self._denoiser = denoiser
        self._noise = noise
        self.memory: Memory = {}
        self._hooks = [hook.begin(self.memory) for hook in hooks]
        self._start = x if keep_start else None
        self._given = x  # the caller's tensor, never written to
        self._y: torch.Tensor | None = None
        self._xi: torch.Tensor | None = None
        self._pool: list[torch.Tensor] = []
        self._own: set[int] = set()  # outputs that live in buffers of the engine
        self._combine = Combiner(x)
        self._sums: list[torch.Tensor] = []
        self._levels: list[float] = []

    def sigma_tensor(self, sigmas: Sequence[float]) -> torch.Tensor:
        """Noise levels as the denoiser gets them: on the state's device, float32 or, for float64 states, float64."""
        return torch.tensor(sigmas, dtype=accumulation_dtype(self.x.dtype)).to(self.x.device)

    def combine(self, row: Row, out: torch.Tensor) -> torch.Tensor:
        """Evaluates ``row`` on the present state and outputs into ``out``, which may be the state itself."""
        known = self._known
        terms: list[Term] = [(known(c), self.outputs[j]) for j, c in row.m.items()]
        if row.reads_x:
            terms.append((known(row.x), self.x))
        if row.reads_start:
            assert self._start is not None
            terms.append((known(row.x_T), self._start))
        if row.noise is not None:
            if self._noise is None:
                raise NoiseError("the plan adds noise; give run() a seed, a noise source or the noise tensors")
            self._xi = torch.empty_like(self.x) if self._xi is None else self._xi
            terms.append((known(row.noise.coefficient), self._noise(row.noise, self._xi)))
        return self._combine(terms, out, None if row.offset is None else fitted(row.offset, self.x))

    def _known(self, c: Coefficient) -> float | torch.Tensor:
        if isinstance(c, Late):
            return c.value(self.memory, self.x)
        return fitted(c, self.x) if isinstance(c, torch.Tensor) else c

    def advance(self, row: Row) -> None:
        """Replaces the carried state by ``row``, in place where the buffer is the engine's own."""
        if not row.is_identity:
            self.x = self.combine(row, torch.empty_like(self.x) if self.x is self._given else self.x)

    def execute(self, k: int, stage: Stage, sigma: torch.Tensor) -> torch.Tensor:
        """Runs stage ``k``; returns the x_0 prediction. ``sigma`` [B] is what the denoiser is told."""
        if stage.predict.is_identity:
            y = self.x
        else:
            if self._y is None:
                self._y = torch.empty_like(self.x)
            y = self.combine(stage.predict, self._y)
        denoised = self.evaluate(y, sigma, stage)
        for hook in self._hooks:
            denoised = hook.denoised(stage, y, denoised)
        self._watch(denoised)
        if stage.stores_x_0:
            self.outputs[k] = denoised
        else:
            p, q = map(self._known, stage.store)
            buffer = self._pool.pop() if self._pool else torch.empty_like(y)
            self.outputs[k] = self._combine([(p, y), (q, denoised)], buffer)
            self._own.add(k)
        if stage.carry is stage.predict and not stage.predict.is_identity:
            # the state becomes y; the old state's buffer serves the next y
            self._y, self.x = (None if self.x is self._given else self.x), y
        else:
            self.advance(stage.carry)
        for hook in self._hooks:
            self.x = hook.state(stage, self.x)
        return denoised

    def evaluate(self, y: torch.Tensor, sigma: torch.Tensor, stage: Stage) -> torch.Tensor:
        """The checked x_0 prediction at state ``y``; ``sigma`` [B] is what the denoiser is told."""
        denoiser = self._denoiser
        for hook in self._hooks:
            denoiser = partial(hook.evaluate, stage, denoiser=denoiser)
        denoised = checked(denoiser(y, sigma), y, self.evaluations, stage.node.sigma)
        self.evaluations += 1
        self._levels.append(stage.node.sigma)
        return denoised

    def begin(self, start: StartTransform, report: Callable[[Stage, torch.Tensor], None]) -> None:
        """Replaces the caller's state by the transformed one; ``report`` is called after each of its evaluations."""

        def denoise(y: torch.Tensor, node: Node) -> torch.Tensor:
            stage = Stage(node, IDENTITY)
            denoised = self.evaluate(y, self.sigma_tensor([node.sigma]).expand(len(y)), stage)
            self._watch(denoised)
            report(stage, denoised)
            return denoised

        self.x = self._given = start(self.x, denoise)
        if self._start is not None:
            self._start = self.x

    def _watch(self, denoised: torch.Tensor) -> None:
        # NaN and infinity survive a sum, which is the cheapest pass over the tensor
        self._sums.append(denoised.sum(dtype=accumulation_dtype(denoised.dtype)))

    def free(self, outputs: Iterable[int]) -> None:
        """Drops stored outputs; buffers of the engine go back to the pool."""
        for j in list(outputs):
            tensor = self.outputs.pop(j, None)
            if tensor is not None and j in self._own:
                self._own.discard(j)
                self._pool.append(tensor)

    def check_finite(self) -> None:
        """Raises DenoiserError naming the first evaluation whose prediction held NaN or infinity. Reads the device once."""
        finite = torch.isfinite(torch.stack(self._sums)).tolist()
        if not all(finite):
            k = finite.index(False)
            raise DenoiserError(
                f"evaluation {k} (sigma {self._levels[k]:.6g}) returned NaN or infinity. If it is the first one, the model "
                "itself overflows: run it in float32 or bfloat16. If it is a later one, the sampling diverged: lower the "
                "guidance scale or the order, or use data prediction"
            )


def run(
    plan: Plan | StageSource, denoiser: Denoiser, x: torch.Tensor, *,
    noise: NoiseSource | Sequence[torch.Tensor] | None = None, seed: int | Sequence[int] | None = None,
    callback: Callable[[Progress], None] | None = None, should_stop: Callable[[], bool] | None = None,
    hooks: Sequence[Hook] = (),
) -> torch.Tensor:
    """Samples: runs ``plan`` from the noisy state ``x`` and returns the state at the last node.

    Args:
        plan: from ``make_plan``.
        denoiser: ``D(x, sigma) -> x_0``; gets the state [B, ...] and sigma [B] (float32, or float64 for float64
            states) and returns a new tensor of the state's shape and dtype.
        x: start state at the first node, in the plan's frame, 2-D to 5-D or more; float64, float32, bfloat16 or float16.
            It is not modified.
        noise: a source (see ``noise``) or the tensors themselves, in the order drawn; for stochastic plans.
        seed: one integer (sample i uses ``seed + i``) or one per sample; used where ``noise`` is not given.
        callback: called after every evaluation with a Progress; an exception it raises passes through.
        should_stop: asked before every evaluation; True raises Interrupted.
        hooks: more hooks, applied after the plan's own.

    Raises:
        DenoiserError: the denoiser returned another shape, dtype or device, or NaN (found after the last stage).
        NoiseError: a stochastic plan without noise or seed, or noise that does not fit.
        Interrupted: ``should_stop`` said so.
    """
    check_start(x)
    fixed = plan if isinstance(plan, Plan) else None
    if fixed is not None:
        _check_sample(fixed, x)
    terms = None if fixed is None else fixed.noise_terms
    source = source_for(noise, seed, len(x), terms)
    engine = Engine(denoiser, x, source, (*plan.hooks, *hooks), fixed is not None and fixed.start_last_read >= 0)
    stages = plan.stages if isinstance(plan, Plan) else plan.generate(engine)
    # one transfer before the loop; a plan made while it runs needs one per stage
    table = None if fixed is None else engine.sigma_tensor([stage.node.sigma for stage in fixed.outline])
    ends = {} if fixed is None else _ends(fixed)

    def report(stage: Stage, denoised: torch.Tensor) -> None:
        if callback is not None:
            callback(Progress(engine.evaluations - 1, None if fixed is None else fixed.nfe, stage, engine.x, denoised))

    def ask() -> None:
        if should_stop is not None and should_stop():
            raise Interrupted(f"sampling was stopped before evaluation {engine.evaluations}")

    if plan.start is not None:
        ask()
        engine.begin(plan.start, report)
    for k, stage in enumerate(stages):
        ask()
        sigma = engine.sigma_tensor([stage.node.sigma]) if table is None else table[k : k + 1]
        denoised = engine.execute(k, stage, sigma.expand(len(x)))
        engine.free(ends.get(k, ()))
        report(stage, denoised)
        del denoised
    if fixed is not None:
        engine.advance(fixed.final)
    engine.check_finite()
    return engine.x.clone() if engine.x is x else engine.x


def fitted(c: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """A tensor coefficient ready for states of ``x``'s rank: one number per channel, [C, 1, ...], suits every rank."""
    return c if c.ndim == x.ndim - 1 else c.reshape(-1, *(1,) * (x.ndim - 2))


def _check_sample(plan: Plan, x: torch.Tensor) -> None:
    shape = plan.sample_shape
    if shape is None:
        return
    per_channel = math.prod(shape[1:]) == 1
    wanted = (*shape[:1], *(1,) * (x.ndim - 2)) if per_channel else shape
    if len(wanted) != x.ndim - 1 or any(c not in (1, s) for c, s in zip(wanted, x.shape[1:], strict=True)):
        raise PlanError(
            f"the plan's coefficients are made for samples of shape {list(shape)} (1: any size), the state's samples have "
            f"{list(x.shape[1:])}: use a calibration of this model and size, or one with a number per channel"
        )


def _ends(plan: Plan) -> dict[int, list[int]]:
    """Outputs that no row reads after stage k, by k."""
    ends: dict[int, list[int]] = {}
    for j in range(len(plan.stages)):
        last = plan.last_read.get(j, j)
        if last < len(plan.stages):
            ends.setdefault(last, []).append(j)
    return ends
