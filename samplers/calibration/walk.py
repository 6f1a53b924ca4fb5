"""A plan run over many samples a stage at a time, so that a calibration can stop after any, go on later, and look at states."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from ..correctors.output_maps import predicts_ahead
from ..engine import Denoiser, fitted
from ..errors import CalibrationError
from ..lincomb import accumulation_dtype, place
from ..plan import Plan, Row, Stage
from .job import Keeper

State = dict[str, torch.Tensor]
ALL = slice(None)
NOTHING: Mapping[int, torch.Tensor] = {}


class Model:
    """A denoiser for any number of samples: ``batch`` at a time, entry j modulo their number of several for batch j."""

    def __init__(self, denoiser: Denoiser | Sequence[Denoiser], batch: int) -> None:
        self._denoisers = [denoiser] if callable(denoiser) else list(denoiser)
        self.batch = batch

    def parts(self, count: int) -> list[slice]:
        """The batches of ``count`` samples."""
        return [slice(a, min(a + self.batch, count)) for a in range(0, count, self.batch)]

    def part(self, y: torch.Tensor, plan: Plan, stage: Stage, part: slice) -> torch.Tensor:
        """What ``stage`` stores for the samples of one batch, ``y`` being their states."""
        node = stage.node
        sigma = torch.full((len(y),), node.sigma, dtype=accumulation_dtype(y.dtype), device=y.device)
        # in the layout that a resumed job has it in: sums in another order would be rounded otherwise
        denoised = self._denoisers[part.start // self.batch % len(self._denoisers)](y, sigma).contiguous()
        if not bool(torch.isfinite(denoised.detach()).all()):
            raise CalibrationError(
                f"the model returned NaN or infinity at sigma {node.sigma:.6g}, samples {part.start} to {part.stop - 1}: run it "
                "in float32 or bfloat16, or lower the guidance scale"
            )
        for hook in plan.hooks:
            denoised = hook.denoised(stage, y, denoised)
        p, q = stage.store
        return denoised if stage.stores_x_0 else _times(p, y) + _times(q, denoised)

    def __call__(self, y: torch.Tensor, plan: Plan, stage: Stage) -> torch.Tensor:
        """What ``stage`` stores for all samples [S, ...]."""
        return torch.cat([self.part(y[part], plan, stage, part) for part in self.parts(len(y))])


class Walk:
    """Where a run of a plan stands: the carried states, the stored outputs, the next stage."""

    def __init__(self, start: torch.Tensor, state: State) -> None:
        self.start = start
        self.x = state["x"].to(start) if "x" in state else start
        self.k = int(state.get("k", 0))
        self.outputs = {int(key[7:]): tensor.to(start) for key, tensor in state.items() if key.startswith("output.")}

    def state(self) -> State:
        """All but the start."""
        return {"x": self.x, "k": torch.tensor(self.k), **{f"output.{j}": tensor for j, tensor in self.outputs.items()}}

    def combined(self, row: Row, part: slice = ALL, more: Mapping[int, torch.Tensor] = NOTHING) -> torch.Tensor:
        """A row's result for some of the samples; ``more`` are outputs of these samples alone."""
        x = self.x[part]
        terms = [_times(c, more[j] if j in more else self.outputs[j][part]) for j, c in row.m.items()]
        if row.reads_x:
            terms.append(_times(row.x, x))
        if row.reads_start:
            terms.append(_times(row.x_T, self.start[part]))
        if row.offset is not None:
            terms.append(torch.zeros_like(x) + place(fitted(row.offset, x), x))
        return sum(terms[1:], terms[0]) if terms else torch.zeros_like(x)

    def stage(self, plan: Plan, model: Model) -> None:
        """Runs the next stage."""
        stage = plan.stages[self.k]
        y = self.combined(stage.predict)
        self.outputs[self.k] = model(y, plan, stage)
        self.x = y if stage.carry is stage.predict else self.combined(stage.carry)
        self.k += 1

    def forget(self, plan: Plan) -> None:
        """Drops the outputs that no later row of the plan reads."""
        self.outputs = {j: tensor for j, tensor in self.outputs.items() if plan.last_read.get(j, -1) >= self.k}


def _times(c: Any, x: torch.Tensor) -> torch.Tensor:
    product: torch.Tensor = x * (place(fitted(c, x), x) if isinstance(c, torch.Tensor) and c.ndim else c)
    return product


def follow(
    plan: Plan, model: Model, start: torch.Tensor, wanted: Collection[int], keeper: Keeper, name: str
) -> dict[int, torch.Tensor]:
    """Runs a plan and returns its states [S, ...] at the numbered nodes; part ``name`` of the job."""
    kept = keeper.part(name)
    walk, ahead, count = Walk(start, kept), predicts_ahead(plan), len(plan.stages)
    seen = {int(key[5:]): tensor.to(start) for key, tensor in kept.items() if key.startswith("node.")}

    def look(k: int) -> None:
        if k in wanted:
            seen[k] = walk.x

    while walk.k < count:
        k = walk.k
        if not ahead:
            look(k)
        walk.stage(plan, model)
        walk.forget(plan)
        if ahead:
            look(k)
        keeper.advance(len(start), name, {**walk.state(), **{f"node.{i}": x for i, x in seen.items()}})
    walk.x = walk.combined(plan.final)
    look(count)
    return seen
