"""Training few-step LoRAs: low-rank adapters, objectives, and the one loop that runs any of them.

A model is distilled by three networks that share one denoiser signature ``D(x, t, prompts) -> x_0``: the teacher (the base
model), the student (the base with the LoRA being trained) and a critic that follows the student's outputs. An objective
says what to draw and what to lower; `Trainer` knows only the `Objective` protocol.
"""

from .dmd2 import DMD2
from .hipa import high_pass, hipa_loss
from .lora import LowRank, switched
from .objective import EMPTY, Batch, Context, Denoiser, Draws, Objective, guided
from .optimiser import Optimiser
from .preference import ddim_posterior, log_prob, preference_loss, renoise_step
from .table import TimeTable, denoiser_on
from .tdm import TDM
from .trainer import Trainer, TrainingProgress, TrainSettings

__all__ = [
    "Batch", "Context", "DMD2", "Denoiser", "Draws", "EMPTY", "LowRank", "Objective", "Optimiser", "TDM", "TimeTable",
    "TrainSettings", "Trainer", "TrainingProgress", "ddim_posterior", "denoiser_on", "guided", "high_pass", "hipa_loss",
    "log_prob", "preference_loss", "renoise_step", "switched",
]
