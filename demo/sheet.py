"""Draw the sample sheets: ``python -m fewstep.demo.sheet`` writes demo/samples.png and demo/distilled.png."""

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from . import FORMS, data
from .distilled import load_distilled, names
from .model import load
from .sampling import draw, sample
from .vae import decode

COLUMNS = 8
Block = tuple[str, Tensor]


def form_blocks(classes: Tensor, steps: int, guidance: float, seed: int) -> list[Block]:
    """Each form by many steps, and held-out real digits."""
    held = data.load()[1]
    real = torch.cat([held.latents()[held.labels == digit][:COLUMNS] for digit in range(10)])
    drawn = [(f"{form}: {steps} DDIM steps, guidance {guidance:g}",
              sample(load(form), classes, steps=steps, guidance=guidance, seed=seed)) for form in FORMS]
    return [*drawn, ("real, held out", real)]


def lora_blocks(classes: Tensor, seed: int) -> list[Block]:
    """Each LoRA at its own steps, and its base with as many and with twice as many."""
    shipped = {name: load_distilled(name) for name in names()}
    blocks = []
    for form, guidance in sorted({(d.model.form, d.guidance) for d in shipped.values()}):
        for name, d in shipped.items():
            if (d.model.form, d.guidance) == (form, guidance):
                blocks.append((f"{name.removeprefix('digits_')}:\n{d.plan.nfe} calls", draw(d.model, d.plan, classes, seed=seed)))
        for steps in (4, 8):
            drawn = sample(load(form), classes, steps=steps, guidance=guidance, seed=seed, solver="dpm_solver_multistep")
            calls = steps * (1 if guidance == 1.0 else 2)
            blocks.append((f"{form}, guidance {guidance:g}, 2M {steps} steps:\n{calls} calls", drawn))
    return blocks


def save_sheet(blocks: list[Block], path: Path, across: int, dpi: int = 75) -> None:
    """Blocks of latents [10 n, 4, 8, 8] beside each other: a row of n per class, no sample chosen or left out."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    down, width = math.ceil(len(blocks) / across), 0.5 + 0.75 * len(blocks[0][1]) / 10
    figure, axes = plt.subplots(down, across, figsize=(width * across, 8 * down), constrained_layout=True, squeeze=False)
    for axis in axes.flat[len(blocks) :]:
        axis.set_axis_off()
    for axis, (title, latents) in zip(axes.flat, blocks, strict=False):
        columns = len(latents) // 10
        pictures = decode(latents).numpy()[..., 0].reshape(10, columns, 64, 64)
        padded = np.pad(pictures, ((0, 0), (0, 0), (2, 2), (2, 2)), constant_values=0.35)
        axis.imshow(padded.transpose(0, 2, 1, 3).reshape(10 * 68, columns * 68), cmap="gray", vmin=0, vmax=1)
        axis.set_title(title, fontsize=10)
        axis.set_yticks(34 + 68 * np.arange(10), [str(digit) for digit in range(10)])
        axis.set_ylabel("class")
        axis.set_xticks(34 + 68 * np.arange(columns), [str(column + 1) for column in range(columns)])
        axis.set_xlabel("sample")
    figure.savefig(path, dpi=dpi)
    plt.close(figure)


def main() -> None:
    """Both sheets, from the same noise throughout."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default=str(Path(__file__).parent), help="folder for samples.png and distilled.png")
    args = parser.parse_args()
    torch.set_num_threads(1)
    classes = torch.arange(10)
    many = classes.repeat_interleave(COLUMNS)
    save_sheet(form_blocks(many, args.steps, args.guidance, args.seed), Path(args.out) / "samples.png", 2)
    save_sheet(lora_blocks(classes.repeat_interleave(COLUMNS // 2), args.seed), Path(args.out) / "distilled.png", 7, dpi=55)


if __name__ == "__main__":
    main()
