"""Train one form of the demo network: ``python -m fewstep.demo.train --form eps`` (or ``v``, ``flow``).

Stops cleanly on Ctrl-C and goes on from its checkpoint when started again with the same arguments.
"""

import argparse
import copy
import csv
import json
import os
import signal
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor

from . import FORMS, data, weights
from .network import CONTEXT_WIDTH, NULL_CLASS, DemoNet
from .schedule import TRAIN_STEPS, alphas_cumprod

LABEL_DROPOUT = 0.12
LOG_EVERY = 250
COLUMNS = ["step", "loss", "train_ema_loss", "held_out_ema_loss", "learning_rate", "seconds"]


def noisy(form: str, x0: Tensor, noise: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Network input, timesteps and regression target for clean ``x0``, ``noise`` [B, 4, H, W] and ``u`` [B] in [0, 1).

    ``u`` picks the noise level: uniform over the 1000 discrete steps for eps and v, uniform in s for flow.
    """
    if form == "flow":
        s = u.reshape(-1, 1, 1, 1)
        return (1 - s) * x0 + s * noise, TRAIN_STEPS * u, noise - x0
    t = (u * TRAIN_STEPS).long().clamp(max=TRAIN_STEPS - 1)
    ac = torch.from_numpy(alphas_cumprod()).float()[t].reshape(-1, 1, 1, 1)
    alpha, sigma = ac.sqrt(), (1 - ac).sqrt()
    return alpha * x0 + sigma * noise, t.float(), noise if form == "eps" else alpha * noise - sigma * x0


def snr_weight(form: str, u: Tensor, cap: float) -> Tensor:
    """Min-SNR loss weight [B] in 0..1 (Hang et al. 2023): min(SNR, cap) over what the prediction weighs x0 errors with.

    Plain noise prediction spends most of its loss on nearly clean inputs; the errors that decide a digit's shape are made
    on noisy ones, where SNR is below ``cap``.
    """
    if form == "flow":
        raise SystemExit("--snr-cap is for the forms eps and v")
    t = (u * TRAIN_STEPS).long().clamp(max=TRAIN_STEPS - 1)
    ac = torch.from_numpy(alphas_cumprod()).float()[t]
    snr = ac / (1 - ac)
    return snr.clamp(max=cap) / (snr if form == "eps" else snr + 1)


def batch_loss(
    net: DemoNet, form: str, x0: Tensor, labels: Tensor, generator: torch.Generator, dropout: float,
    snr_cap: float | None = None,
) -> Tensor:
    """Mean squared error of one batch; labels [B] become the null class with probability ``dropout``."""
    size = len(x0)
    # One noise level per equal slice of the range: an unbiased draw with far less spread in the loss.
    u = (torch.arange(size) + torch.rand(size, generator=generator)) / size
    noise = torch.randn(x0.shape, generator=generator)
    dropped = torch.rand(size, generator=generator) < dropout
    context = torch.eye(CONTEXT_WIDTH)[torch.where(dropped, NULL_CLASS, labels)][:, None]
    x, timesteps, target = noisy(form, x0, noise, u)
    out: Tensor = net(x, timesteps, context)
    error = (out.float() - target).square().mean(dim=(1, 2, 3))
    return error.mean() if snr_cap is None else (error * snr_weight(form, u, snr_cap)).mean()


@torch.no_grad()
def fixed_loss(net: DemoNet, form: str, part: data.Digits) -> float:
    """Loss on 360 unaugmented pictures with always the same noise, to compare training and held-out pictures over time."""
    generator = torch.Generator().manual_seed(1234)
    order = torch.randperm(len(part.labels), generator=generator)[: data.HELD_OUT]
    x0 = part.latents()[order]
    return batch_loss(net, form, x0, part.labels[order], generator, 0.0).item()


def learning_rate(step: int, steps: int, peak: float, warmup: int = 300) -> float:
    """Linear rise over ``warmup`` steps, then a cosine fall to 1 % of ``peak``."""
    if step < warmup:
        return peak * (step + 1) / warmup
    done = torch.tensor((step - warmup) / max(steps - warmup, 1))
    return peak * (0.01 + 0.99 * 0.5 * (1 + torch.cos(torch.pi * done).item()))


class Trainer:
    """Everything that changes during training, and its checkpoint."""

    def __init__(self, args: argparse.Namespace) -> None:
        torch.manual_seed(args.seed)
        self.args = args
        self.net = DemoNet(args.width)
        if args.warm_start:
            weights.fill(self.net, weights.load(weights.path_of(args.warm_start), args.warm_start)[0], args.warm_start)
        self.ema = copy.deepcopy(self.net).requires_grad_(False).eval()
        self.optimiser = torch.optim.AdamW(self.net.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=0.01)
        self.generator = torch.Generator().manual_seed(args.seed)
        self.train_part, self.held_part = data.load()
        self.step, self.seconds, self.losses = 0, 0.0, [0.0, 0.0]
        self.rows: list[list[float]] = []
        self.checkpoint = Path(args.work) / f"{args.form}.pt"

    def save(self) -> None:
        """Write the checkpoint beside its final name, then rename: a stop in between leaves the old one whole."""
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "net": self.net.state_dict(), "ema": self.ema.state_dict(), "optimiser": self.optimiser.state_dict(),
            "generator": self.generator.get_state(), "step": self.step, "seconds": self.seconds, "losses": self.losses,
            "rows": self.rows, "args": vars(self.args),
        }
        torch.save(state, self.checkpoint.with_suffix(".partial"))
        os.replace(self.checkpoint.with_suffix(".partial"), self.checkpoint)

    def resume(self) -> None:
        """Go on from the checkpoint if there is one of the same arguments."""
        if not self.checkpoint.is_file():
            return
        state = torch.load(self.checkpoint, weights_only=True)
        if state["args"] != vars(self.args):
            raise SystemExit(f"{self.checkpoint} was written with other arguments; delete it or choose another --work")
        self.net.load_state_dict(state["net"])
        self.ema.load_state_dict(state["ema"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.generator.set_state(state["generator"])
        self.step, self.seconds, self.losses, self.rows = state["step"], state["seconds"], state["losses"], state["rows"]
        print(f"{self.args.form}: resumed at step {self.step}", flush=True)

    def one_step(self) -> None:
        """One optimiser step and one step of the weight average."""
        begin = time.monotonic()
        rate = learning_rate(self.step, self.args.steps, self.args.lr)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        pick = torch.randint(len(self.train_part.labels), (self.args.batch,), generator=self.generator)
        x0 = data.augmented_latents(self.train_part.images[pick], self.generator)
        # bfloat16 products with float32 weights and sums: a third faster on the CPU, and its rounding is far below the loss.
        with torch.autocast("cpu", torch.bfloat16, enabled=self.args.autocast):
            labels = self.train_part.labels[pick]
            loss = batch_loss(self.net, self.args.form, x0, labels, self.generator, LABEL_DROPOUT, self.args.snr_cap)
        self.optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimiser.step()
        # The average follows closely at first, else it would still remember the untrained weights after 1000s of steps.
        decay = min(self.args.ema, (1 + self.step) / (10 + self.step))
        for average, value in zip(self.ema.parameters(), self.net.parameters(), strict=True):
            average.lerp_(value.detach(), 1 - decay)
        self.step += 1
        self.losses = [self.losses[0] + loss.item(), self.losses[1] + 1]
        self.seconds += time.monotonic() - begin
        if self.step % LOG_EVERY == 0 or self.step == self.args.steps:
            self.log(rate)

    def log(self, rate: float) -> None:
        """Print and keep one row: mean training loss since the last row, and the averaged weights' fixed losses."""
        compared = [fixed_loss(self.ema, self.args.form, part) for part in (self.train_part, self.held_part)]
        self.rows.append([self.step, self.losses[0] / self.losses[1], *compared, rate, self.seconds])
        self.losses = [0.0, 0.0]
        print(self.args.form, " ".join(f"{k}={v:.5g}" for k, v in zip(COLUMNS, self.rows[-1], strict=True)), flush=True)

    def publish(self) -> None:
        """Write the averaged weights (float16, with metadata) and the log into the package."""
        a = self.args
        metadata = {
            "form": a.form, "settings": json.dumps(self.net.settings), "seed": str(a.seed), "steps": str(a.steps),
            "batch": str(a.batch), "peak_learning_rate": repr(a.lr), "ema": repr(a.ema), "warm_start": a.warm_start or "none",
            "label_dropout": repr(LABEL_DROPOUT), "snr_cap": str(a.snr_cap),
            "data": "scikit-learn load_digits, 1437 training images",
        }
        weights.save(weights.path_of(a.form), self.ema.state_dict(), metadata)
        with open(Path(__file__).parent / f"training_log_{a.form}.csv", "w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            writer.writerows([int(row[0]), *(f"{value:.6g}" for value in row[1:])] for row in self.rows)


def main() -> None:
    """Parse the command line and train to the end, or until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--form", choices=FORMS, required=True)
    parser.add_argument("--steps", type=int, default=9000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--width", type=int, default=48)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--ema", type=float, default=0.999)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--snr-cap", type=float, default=None, help="min-SNR loss weight of eps and v (none: plain loss)")
    parser.add_argument("--warm-start", choices=FORMS, default=None, help="start from the shipped weights of another form")
    parser.add_argument("--work", default=str(Path(tempfile.gettempdir()) / "fewstep-demo"), help="folder of checkpoints")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--autocast", action=argparse.BooleanOptionalAction, default=True, help="bfloat16 products")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    stop: list[int] = []
    # The handler only notes the wish; the loop obeys between two steps, so no half-made step is ever saved.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, frame: stop.append(received))
    trainer = Trainer(args)
    trainer.resume()
    saved = time.monotonic()
    while trainer.step < args.steps and not stop:
        trainer.one_step()
        if time.monotonic() - saved > 60:
            trainer.save()
            saved = time.monotonic()
    trainer.save()
    if stop:
        print(f"{args.form}: stopped at step {trainer.step}; start again to go on", flush=True)
        return
    trainer.publish()
    print(f"{args.form}: done, {trainer.seconds:.0f} s of training", flush=True)


if __name__ == "__main__":
    main()
