"""What the training loop and the objectives share: the protocol, a batch, and the context they work in."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from .table import TimeTable

Denoiser = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``D(x, t, prompts) -> x_0``: state [B, ...], table index int64 [B], prompt numbers int64 [B] (`EMPTY`: no prompt)."""

Need = Literal["prompts", "images", "scorer", "teacher_images", "critic", "second_time"]
States = dict[str, Tensor]
EMPTY = -1


class Draws:
    """Random numbers of one training run, one generator a purpose: "noise", "time" and "data".

    Drawn on the CPU and moved, so that every device trains on the same draws.
    """

    PURPOSES = ("noise", "time", "data")

    def __init__(self, seed: int) -> None:
        self.generators: dict[str, torch.Generator] = {}
        for purpose in self.PURPOSES:
            key = hashlib.blake2b(f"{purpose} {seed}".encode(), digest_size=8, person=b"fewstep").digest()
            # below 2^63: older torch takes seeds as signed
            self.generators[purpose] = torch.Generator("cpu").manual_seed(int.from_bytes(key, "little") >> 1)

    def noise(self, like: Tensor) -> Tensor:
        """Unit normal noise of the shape, dtype and device of ``like``."""
        return torch.randn(like.shape, generator=self.generators["noise"]).to(like)

    def integers(self, low: Tensor | int, high: Tensor | int, size: int) -> Tensor:
        """int64 [``size``], each uniform in ``low``..``high`` - 1 (bounds may differ by sample)."""
        share = torch.rand(size, generator=self.generators["time"], dtype=torch.float64)
        return (torch.as_tensor(low) + (share * (torch.as_tensor(high) - torch.as_tensor(low))).floor()).long()

    def prompts(self, count: int, size: int) -> Tensor:
        """int64 [``size``] prompt numbers below ``count``, stratified: each as often as any other, give or take one."""
        order = torch.randperm(count, generator=self.generators["data"])
        return order.repeat(-(-size // count))[:size]


@dataclass(frozen=True)
class Batch:
    """One iteration's input. ``start`` [B, ...] is unit noise, ``prompts`` int64 [B] the numbers of its prompts."""

    start: Tensor
    prompts: Tensor


@dataclass(frozen=True)
class Context:
    """The networks and the schedule that an objective works with.

    ``critic`` may be the same network as the student with another adapter switched on, or one of its own.
    """

    table: TimeTable
    teacher: Denoiser
    student: Denoiser
    critic: Denoiser | None
    draws: Draws


class Objective(Protocol):
    """A way to distil. `Trainer` calls ``roll`` once an iteration, then ``loss`` for every network of ``updates``."""

    def requirements(self) -> frozenset[Need]:
        """What must be given beside teacher and student."""
        ...

    def roll(self, batch: Batch, ctx: Context) -> States:
        """States of the student's own trajectory, computed without gradient."""
        ...

    def loss(self, network: str, batch: Batch, states: States, ctx: Context) -> Tensor:
        """The scalar that an update of ``network`` lowers; draws afresh what it needs beside ``states``."""
        ...

    def updates(self, step: int) -> tuple[str, ...]:
        """Names of the networks to update in iteration ``step``, in order."""
        ...

    def preset(self) -> dict[str, Any]:
        """What a loader must know of the finished LoRA; see `preset`."""
        ...


def preset(method: str, times: list[int], update: Literal["ddim", "renoise", "x0"], settings: dict[str, Any]) -> dict[str, Any]:
    """Facts for the header of a LoRA file: trained ``times`` (table indices, noise first), the sampler's ``update`` and the
    guidance to sample with (1: what was trained in, ``guidance`` of the settings, is not to be added again).
    """
    return {
        "method": method, "steps": len(times), "timesteps": times, "update": update, "cfg": 1, "guidance": settings["guidance"],
        "objective": settings,
    }


def guided(teacher: Denoiser, x: Tensor, t: Tensor, prompts: Tensor, guidance: float) -> Tensor:
    """The teacher's x_0 with classifier-free guidance: D(empty) + guidance (D(prompts) - D(empty))."""
    wanted = teacher(x, t, prompts)
    if guidance == 1.0:
        return wanted
    unwanted = teacher(x, t, torch.full_like(prompts, EMPTY))
    return unwanted + guidance * (wanted - unwanted)


def per_sample(x: Tensor) -> Tensor:
    """Mean of ``x`` [B, ...] over all but the batch, kept as [B, 1, ...]."""
    return x.mean(dim=tuple(range(1, x.ndim)), keepdim=True)
