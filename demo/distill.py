"""Distil the demo model into four-step LoRAs: ``python -m fewstep.demo.distill`` trains all that are shipped.

Uses prompts alone, no pictures. Stops cleanly on Ctrl-C and goes on from its checkpoint when started again.
"""

import argparse
import copy
import csv
import signal
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ..samplers import frames
from ..samplers.distillation import (
    DMD2, EMPTY, TDM, Context, Denoiser, LowRank, Objective, Optimiser, TimeTable, Trainer, TrainSettings, denoiser_on, switched,
)
from ..samplers.distillation.objective import Draws
from ..samplers.errors import Interrupted
from . import weights
from .model import DemoModel, load
from .network import CLASSES, NULL_CLASS, DemoNet
from .schedule import TRAIN_STEPS
from .text import context_of
from .vae import LATENT_CHANNELS


@dataclass(frozen=True)
class Job:
    """One LoRA to train. ``rate`` is the student's learning rate, ``critic_rate`` the critic's."""

    form: str
    method: Literal["tdm", "dmd2"]
    guidance: float
    iterations: int = 1500
    batch: int = 32
    rank: int = 8
    rate: float = 1e-3
    critic_rate: float = 5e-4
    ema: float = 0.99
    seed: int = 0

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return f"{self.method}_{self.form}_4step_cfg{self.guidance:g}"

    def objective(self) -> Objective:
        """What it is trained for."""
        return TDM(4, self.guidance) if self.method == "tdm" else DMD2(guidance=self.guidance)

    def optimisers(self) -> dict[str, Optimiser]:
        betas = (0.0, 0.95) if self.method == "tdm" else (0.9, 0.999)
        clip = 1.0 if self.method == "tdm" else 10.0
        return {
            "student": Optimiser(self.rate, betas, clip=clip, warmup=50, decay="cosine"),
            "critic": Optimiser(self.critic_rate, betas, clip=None if self.method == "tdm" else clip, warmup=50, decay="cosine"),
        }


def table_of(model: DemoModel) -> TimeTable:
    """The training times of a form: its 1000 steps, or thousandths of the flow."""
    frame = frames.flow() if model.alphas_cumprod is None else frames.discrete_vp(model.alphas_cumprod)
    return TimeTable.of(frame, TRAIN_STEPS)


def denoiser(model: DemoModel, net: DemoNet) -> Denoiser:
    """``D(x, t, prompts)`` of ``net``, which predicts as ``model`` does; prompts are classes."""

    def network(x: Tensor, t: Tensor, prompts: Tensor) -> Tensor:
        label = t + 1 if model.form == "flow" else t  # index i of a flow is the time (i+1)/1000
        out: Tensor = net(x, label.float(), context_of(torch.where(prompts == EMPTY, NULL_CLASS, prompts)))
        return out.float()

    return denoiser_on(table_of(model), network, model.prediction)  # type: ignore[arg-type]


def make(job: Job) -> tuple[Trainer, LowRank]:
    """The run of ``job`` at its start, and the student's adapters. The critic is a full copy of the base."""
    model = load(job.form)
    base, critic = copy.deepcopy(model.net), copy.deepcopy(model.net).requires_grad_(True)
    adapter = LowRank(base, job.rank, seed=job.seed)
    teacher = denoiser(model, base)
    context = Context(table_of(model), teacher, switched(teacher, adapter), denoiser(model, critic), Draws(job.seed))
    networks = {"student": adapter.parameters, "critic": dict(critic.named_parameters())}
    settings = TrainSettings(
        job.iterations, job.batch, (LATENT_CHANNELS, 8, 8), CLASSES, job.optimisers(), job.ema, job.seed,
        {"base": weights.path_of(job.form).stem, "rank": job.rank},
    )
    return Trainer(job.objective(), context, networks, settings), adapter
