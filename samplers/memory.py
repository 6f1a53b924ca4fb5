"""How much a plan holds: the engine's buffers, counted before the run, and what the engine may compute early."""

from __future__ import annotations

from collections.abc import Sequence

from .hooks import Hook
from .plan import Plan, Row


def peak_latents(plan: Plan) -> int:
    """Most latent-sized tensors alive at once, counting the caller's start and the denoiser's returned prediction.

    Follows ``engine.Engine`` step by step; what the denoiser needs inside is not counted, nor the float32 scratch of 16-bit
    states (on the CPU a small block; none with Triton; elsewhere two latents' worth of bytes).
    """
    own_x = y = xi = False  # buffers that the engine has made so far
    pool = own_outputs = 0
    live: set[int] = set()
    copied: set[int] = set()  # outputs in buffers of the engine
    peak = 1

    def count(extra: int = 0) -> int:
        borrowed = len(live) - own_outputs
        return 1 + own_x + y + xi + pool + own_outputs + borrowed + extra

    held_by_hooks = sum(hook.latents for hook in plan.hooks)
    for k, stage in enumerate(plan.outline):
        if not stage.predict.is_identity:
            y = True
            xi = xi or stage.predict.noise is not None
        peak = max(peak, count(held_by_hooks))
        direct = stage.stores_x_0
        live.add(k)
        if not direct:
            copied.add(k)
            own_outputs += 1
            pool = max(pool - 1, 0)
        held = 0 if direct else 1  # the prediction itself, until the callback has seen it
        peak = max(peak, count(held))
        if stage.carry is stage.predict and not stage.predict.is_identity:
            own_x, y = True, own_x
        elif not stage.carry.is_identity:
            own_x = True
            xi = xi or stage.carry.noise is not None
        peak = max(peak, count(held))
        for j in plan.ends.get(k, ()):
            live.discard(j)
            if j in copied:
                own_outputs -= 1
                pool += 1
    own_x = own_x or not plan.final.is_identity
    peak = max(peak, count())
    return peak if plan.start is None else max(peak + 1, plan.start.latents)  # the caller's state and the one it became


def ahead_of(plan: Plan, hooks: Sequence[Hook]) -> list[Row | None]:
    """For each stage the next one's predict row, where it may be computed together with this stage's rows."""
    if any(type(hook).state is not Hook.state for hook in hooks):
        return [None] * len(plan.stages)
    following = [stage.predict for stage in plan.outline[1:]]
    return [*(row if _free(row) else None for row in following), None]


def _free(row: Row) -> bool:
    """Whether a row with work to do needs nothing but stored tensors and numbers."""
    return row.has_numbers and row.noise is None and row.offset is None and not row.is_identity
