"""Distil the demo model into four-step LoRAs: ``python -m fewstep.demo.distill`` trains all that are shipped.

Uses prompts alone, no pictures. Stops cleanly on Ctrl-C and goes on from its checkpoint when started again.
"""

import argparse
import copy
import csv
import functools
import signal
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..samplers import frames
from ..samplers.calibration.fingerprint import Fingerprint
from ..samplers.distillation import (
    DMD2,
    EMPTY,
    TDM,
    Context,
    Denoiser,
    Draws,
    LowRank,
    Objective,
    Optimiser,
    TimeTable,
    Trainer,
    TrainingProgress,
    TrainSettings,
    denoiser_on,
    switched,
)
from ..samplers.distillation.lora import PREFIX
from ..samplers.errors import Interrupted
from . import weights
from .distilled import load_distilled
from .measure import features, frechet
from .measure_distilled import MANY, base_plan
from .model import DemoModel, load
from .network import CLASSES, NULL_CLASS, DemoNet
from .sampling import draw
from .schedule import TRAIN_STEPS
from .text import context_of
from .vae import LATENT_CHANNELS

LOG_EVERY = 100
LOGS = Path(__file__).parent
ALPHAS = range(3, 10)  # tried for the finished LoRA, which was trained at its rank, 8
PER_CLASS, DRAW_SEED = 72, 1000  # samples, and their noise, by which one is chosen


@dataclass(frozen=True)
class Job:
    """One LoRA to train. ``rate`` is the student's learning rate, ``critic_rate`` the critic's."""

    form: str
    method: Literal["tdm", "dmd2"]
    guidance: float
    iterations: int
    rate: float
    critic_rate: float = 1e-3
    batch: int = 32
    rank: int = 8
    ema: float = 0.99
    seed: int = 0

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return f"digits_{self.form}_{self.method}_4steps_cfg{self.guidance:g}"

    def objective(self) -> Objective:
        """What it is trained for."""
        # Intervals that end where they began reproduce the teacher's ODE, errors and all; up to pure noise its scores decide.
        return TDM(4, self.guidance, separate=False) if self.method == "tdm" else DMD2(guidance=self.guidance)

    def optimisers(self) -> dict[str, Optimiser]:
        """The method's own settings but for the rates, which suit a network of this size."""
        if self.method == "tdm":
            return {
                "student": Optimiser(self.rate, (0.0, 0.95), clip=1.0, warmup=50, decay="cosine"),
                "critic": Optimiser(self.critic_rate, (0.0, 0.95), warmup=50, decay="cosine"),
            }
        return {
            "student": Optimiser(self.rate, clip=10.0, warmup=50, decay="cosine"),
            "critic": Optimiser(self.critic_rate, clip=10.0, warmup=50, decay="cosine"),
        }


# Short runs of TDM for guidance 1: a longer one goes on to the teacher's ODE at many steps, which is worse (see README).
JOBS = (
    Job("eps", "tdm", 2.0, 1500, 1e-3), Job("eps", "tdm", 1.0, 200, 2e-4), Job("eps", "dmd2", 2.0, 3000, 2e-3),
    Job("eps", "dmd2", 1.0, 1000, 1e-3), Job("v", "tdm", 2.0, 1000, 1e-3), Job("flow", "tdm", 2.0, 1000, 1e-3),
)


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


@functools.cache
def teacher_features(form: str, guidance: float) -> np.ndarray:
    """Features of the teacher's own law at a guidance: samples of many steps of its SDE."""
    model, classes = load(form), torch.arange(CLASSES).repeat(PER_CLASS)
    plan = base_plan(model, "ddim", {"eta": 1.0}, "uniform_t", MANY)
    return features(draw(model, plan, classes, guidance=guidance, seed=DRAW_SEED - 1))


def distances(job: Job) -> dict[int, float]:
    """How far the LoRA as it is written is from the teacher's law, by the alpha that would stand in its file.

    Needs prompts and the teacher alone, as the training does; real pictures stay for the measurement.
    """
    classes, wanted = torch.arange(CLASSES).repeat(PER_CLASS), teacher_features(job.form, job.guidance)
    found = {}
    for alpha in ALPHAS:
        lora = load_distilled(job.name, alpha / job.rank)
        found[alpha] = frechet(features(draw(lora.model, lora.plan, classes, seed=DRAW_SEED)), wanted)
    return found


def publish(job: Job, trainer: Trainer, adapter: LowRank) -> None:
    """Writes the averaged LoRA, with all that a loader needs in its header, and the log beside the other logs.

    Where guidance is folded in, with the alpha that brings it closest to the teacher: TDM goes beyond its target there.
    """
    base = load(job.form).net.state_dict()
    facts = {
        **trainer.objective.preset(), "rank": adapter.rank, "base": weights.path_of(job.form).stem,
        "base_fingerprint": Fingerprint.of({f"{PREFIX}{name}": value for name, value in base.items()}).to_data(),
        "training": asdict(job),
    }
    weights.LORAS.mkdir(parents=True, exist_ok=True)

    def write(alpha: float, **more: object) -> None:
        adapter.alpha = alpha
        adapter.save(weights.lora_path(job.name), {**facts, "alpha": alpha, **more}, values=trainer.average)
        load_distilled.cache_clear()

    write(float(job.rank))
    if job.guidance != 1:
        tried = distances(job)
        write(float(min(tried, key=tried.__getitem__)), distances=tried)
    names = sorted(trainer.settings.optimisers)
    with open(LOGS / f"distillation_log_{job.name}.csv", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["iteration", *(f"{name}_loss" for name in names)])
        for end in range(LOG_EVERY, job.iterations + 1, LOG_EVERY):
            means = np.nanmean(trainer.history[end - LOG_EVERY : end], axis=0)
            writer.writerow([end, *(f"{value:.6g}" for value in means)])


def train(job: Job, work: Path, stop: list[int]) -> None:
    """Trains ``job`` to the end and publishes it, or raises Interrupted after saving."""
    trainer, adapter = make(job)
    checkpoint = work / f"{job.name}.safetensors"
    if checkpoint.is_file():
        trainer.resume(checkpoint)
    begin, first = time.monotonic(), trainer.step

    def report(progress: TrainingProgress) -> None:
        if progress.step % LOG_EVERY == 0:
            means = np.nanmean(trainer.history[-LOG_EVERY:], axis=0)
            losses = " ".join(f"{name}={v:.4g}" for name, v in zip(sorted(trainer.settings.optimisers), means, strict=True))
            print(f"{job.name} {progress.step}/{progress.total} {losses}", flush=True)

    trainer.run(checkpoint=checkpoint, callback=report, should_stop=lambda: bool(stop))
    publish(job, trainer, adapter)
    print(f"{job.name}: done, {trainer.step - first} iterations in {time.monotonic() - begin:.0f} s", flush=True)


def main() -> None:
    """Parse the command line and train, or go on training."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"which to train: {', '.join(job.name for job in JOBS)} (none: all)")
    parser.add_argument("--work", default=str(Path(tempfile.gettempdir()) / "fewstep-demo"), help="folder of checkpoints")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    unknown = set(args.names) - {job.name for job in JOBS}
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    torch.set_num_threads(args.threads)
    stop: list[int] = []
    # The handler only notes the wish; the loop obeys between two iterations.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, frame: stop.append(received))
    try:
        for job in JOBS:
            if not args.names or job.name in args.names:
                train(job, Path(args.work), stop)
    except Interrupted as error:
        print(f"{error}; start again to go on", flush=True)


if __name__ == "__main__":
    main()
