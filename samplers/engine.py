"""The engine: runs any plan against a denoiser.

The loop holds no method: it predicts, evaluates, stores and carries as the stages say. It never reads a tensor on the
host, so a GPU stays busy; whether every prediction was finite is checked once, after the last stage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch

from .checks import Finiteness, check_sample, check_start, checked
from .errors import Interrupted, NoiseError
from .grids import Node
from .hooks import Hook
from .lincomb import Combiner, Sum, Term, accumulation_dtype
from .memory import ahead_of
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
        self, denoiser: Denoiser, x: torch.Tensor, noise: NoiseSource | None, hooks: Sequence[Hook], keep_start: bool,
        plain: bool = False,
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
        self._ready = False  # whether _y already holds the next stage's state
        self._xi: torch.Tensor | None = None
        self._plain = plain  # whether the coefficients are numbers
        self._scales: dict[int, float] = {}  # of stored outputs that are kept up to a factor
        self._pool: list[torch.Tensor] = []
        self._own: set[int] = set()  # outputs that live in buffers of the engine
        self._combine = Combiner(x)
        self.finite = Finiteness()

    def sigma_tensor(self, sigmas: Sequence[float]) -> torch.Tensor:
        """Noise levels as the denoiser gets them: on the state's device, float32 or, for float64 states, float64."""
        return torch.tensor(sigmas, dtype=accumulation_dtype(self.x.dtype)).to(self.x.device)

    def combine(self, row: Row, out: torch.Tensor) -> torch.Tensor:
        """Evaluates ``row`` on the present state and outputs into ``out``, which may be the state itself."""
        return self._combine(*self._terms(row, out))

    def _terms(self, row: Row, out: torch.Tensor) -> tuple[list[Term], torch.Tensor, torch.Tensor | None]:
        """What the combiner needs for ``row``; draws its noise."""
        terms: list[Any] = [(row.x, self.x)] if row.reads_x else []
        for j, c in row.m.items():
            terms.append((c * self._scales[j] if j in self._scales else c, self.outputs[j]))  # type: ignore[operator]
        if row.reads_start:
            terms.append((row.x_T, self._start))
        if row.noise is not None:
            if self._noise is None:
                raise NoiseError("the plan adds noise; give run() a seed, a noise source or the noise tensors")
            self._xi = torch.empty_like(self.x) if self._xi is None else self._xi
            terms.append((row.noise.coefficient, self._noise(row.noise, self._xi)))
        if not row.has_numbers:
            terms = [(self._known(c), x) for c, x in terms]
        return terms, out, None if row.offset is None else fitted(row.offset, self.x)

    def _known(self, c: Coefficient) -> float | torch.Tensor:
        if isinstance(c, Late):
            return c.value(self.memory, self.x)
        return fitted(c, self.x) if isinstance(c, torch.Tensor) else c

    def advance(self, row: Row) -> None:
        """Replaces the carried state by ``row``, in place where the buffer is the engine's own."""
        if not row.is_identity:
            self.x = self.combine(row, self._target())

    def _target(self) -> torch.Tensor:
        return torch.empty_like(self.x) if self.x is self._given else self.x

    def execute(self, k: int, stage: Stage, sigma: torch.Tensor, ahead: Row | None = None) -> torch.Tensor:
        """Runs stage ``k``; returns the x_0 prediction.

        Args:
            sigma: [B], what the denoiser is told.
            ahead: the next stage's predict row where nothing can change the state in between; it then shares a pass over
                the tensors with this stage's rows.
        """
        if stage.predict.is_identity:
            y = self.x
        else:
            if self._y is None:
                self._y = torch.empty_like(self.x)
            y = self._y if self._ready else self.combine(stage.predict, self._y)
        self._ready = False
        denoised = self.evaluate(y, sigma, stage)
        for hook in self._hooks:
            denoised = hook.denoised(stage, y, denoised)
        rows: list[Sum] = []
        if stage.stores_x_0:
            self.outputs[k] = denoised
        else:
            terms: list[Term]
            if self._plain:
                self._scales[k], terms = _normalized(stage.store, y, denoised)
            else:
                terms = [(self._known(c), tensor) for c, tensor in zip(stage.store, (y, denoised), strict=True)]
            buffer = self._pool.pop() if self._pool else torch.empty_like(y)
            rows.append(Sum(terms, buffer))
            self.outputs[k] = buffer
            self._own.add(k)
        if stage.carry is stage.predict and not stage.predict.is_identity:
            # the state becomes y; the old state's buffer serves the next y
            self._y, self.x = (None if self.x is self._given else self.x), y
        elif not stage.carry.is_identity:
            rows.append(Sum(*self._terms(stage.carry, self._target())))
            self.x = rows[-1].out
        if ahead is not None and self._y is not None:
            rows.append(Sum(*self._terms(ahead, self._y)))
            self._ready = True
        self._sum_up(rows, denoised)
        for hook in self._hooks:
            self.x = hook.state(stage, self.x)
        return denoised

    def _sum_up(self, rows: Sequence[Sum], denoised: torch.Tensor) -> None:
        """Computes a stage's rows and notes whether the prediction is finite, in the same pass where that is possible."""
        watch = (denoised, self.finite.flag(denoised.device)) if self._combine.fused else None
        if rows and self._combine.rows(rows, watch):
            self.finite.note_flag(watch[1])  # type: ignore[index]
        else:
            self.finite.note(denoised)

    def evaluate(self, y: torch.Tensor, sigma: torch.Tensor, stage: Stage) -> torch.Tensor:
        """The checked x_0 prediction at state ``y``; ``sigma`` [B] is what the denoiser is told."""
        denoiser, level = self._denoiser, stage.node.sigma
        for hook in self._hooks:
            denoiser = partial(hook.evaluate, stage, denoiser=denoiser)
        denoised = checked(denoiser(y, sigma), y, self.evaluations, level)
        if self._combine.fused and y.is_contiguous():
            denoised = denoised.contiguous()  # the kernels go through memory in order
        self.evaluations += 1
        self.finite.sigmas.append(level)
        return denoised

    def begin(self, start: StartTransform, report: Callable[[Stage, torch.Tensor], None]) -> None:
        """Replaces the caller's state by the transformed one; ``report`` is called after each of its evaluations."""

        def denoise(y: torch.Tensor, node: Node) -> torch.Tensor:
            stage = Stage(node, IDENTITY)
            denoised = self.evaluate(y, self.sigma_tensor([node.sigma]).expand(len(y)), stage)
            self.finite.note(denoised)
            report(stage, denoised)
            return denoised

        self.x = self._given = start(self.x, denoise)
        if self._start is not None:
            self._start = self.x

    def free(self, outputs: Iterable[int]) -> None:
        """Drops stored outputs; buffers of the engine go back to the pool."""
        for j in outputs:
            tensor = self.outputs.pop(j, None)
            if tensor is not None and j in self._own:
                self._own.discard(j)
                self._pool.append(tensor)


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
        check_sample(fixed.sample_shape, x)
    terms = None if fixed is None else fixed.noise_terms
    source = source_for(noise, seed, len(x), terms)
    engine = Engine(
        denoiser, x, source, (*plan.hooks, *hooks), fixed is not None and fixed.start_last_read >= 0,
        fixed is not None and fixed.has_numbers,
    )
    stages = plan.stages if isinstance(plan, Plan) else plan.generate(engine)
    # one transfer before the loop; a plan made while it runs needs one per stage
    levels = engine.sigma_tensor([] if fixed is None else [stage.node.sigma for stage in fixed.outline])
    table = levels[:, None].expand(-1, len(x)).unbind()
    ends = {} if fixed is None else fixed.ends
    ahead = [] if fixed is None else ahead_of(fixed, (*plan.hooks, *hooks))

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
        if fixed is None:
            denoised = engine.execute(k, stage, engine.sigma_tensor([stage.node.sigma]).expand(len(x)))
        else:
            denoised = engine.execute(k, stage, table[k], ahead[k])
        if k in ends:
            engine.free(ends[k])
        report(stage, denoised)
        del denoised
    if fixed is not None:
        engine.advance(fixed.final)
    engine.finite.check()
    return engine.x.clone() if engine.x is x else engine.x


def fitted(c: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """A tensor coefficient ready for states of ``x``'s rank: one number per channel, [C, 1, ...], suits every rank."""
    return c if c.ndim == x.ndim - 1 else c.reshape(-1, *(1,) * (x.ndim - 2))


def _normalized(store: tuple[float, float], y: torch.Tensor, denoised: torch.Tensor) -> tuple[float, list[Term]]:
    """Row 3 up to the factor that is given first and goes to the output's coefficients: one operation instead of two."""
    p, q = store
    return (p, [(1.0, y), (q / p, denoised)]) if abs(p) >= abs(q) else (q, [(1.0, denoised), (p / q, y)])
