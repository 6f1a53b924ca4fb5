"""Draw the sample sheet: ``python -m fewstep.demo.sheet`` writes demo/samples.png."""

import argparse
from pathlib import Path

import numpy as np
import torch

from . import FORMS, data
from .model import load
from .sampling import sample
from .vae import decode

COLUMNS = 8


def main() -> None:
    """One block per form and one of held-out real digits: a row per class, no sample chosen or left out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default=str(Path(__file__).parent / "samples.png"))
    args = parser.parse_args()
    torch.set_num_threads(1)

    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    classes = torch.arange(10).repeat_interleave(COLUMNS)
    held = data.load()[1]
    real = torch.cat([held.latents()[held.labels == digit][:COLUMNS] for digit in range(10)])
    blocks = [(f"{form}: {args.steps} DDIM steps, guidance {args.guidance:g}",
               sample(load(form), classes, steps=args.steps, guidance=args.guidance, seed=args.seed)) for form in FORMS]
    figure, axes = plt.subplots(2, 2, figsize=(13, 16), constrained_layout=True)
    for axis, (title, latents) in zip(axes.flat, [*blocks, ("real, held out", real)], strict=True):
        pictures = decode(latents).numpy()[..., 0].reshape(10, COLUMNS, 64, 64)
        padded = np.pad(pictures, ((0, 0), (0, 0), (2, 2), (2, 2)), constant_values=0.35)
        axis.imshow(padded.transpose(0, 2, 1, 3).reshape(10 * 68, COLUMNS * 68), cmap="gray", vmin=0, vmax=1)
        axis.set_title(title)
        axis.set_yticks(34 + 68 * np.arange(10), [str(digit) for digit in range(10)])
        axis.set_ylabel("class")
        axis.set_xticks(34 + 68 * np.arange(COLUMNS), [str(column + 1) for column in range(COLUMNS)])
        axis.set_xlabel("sample")
    figure.savefig(args.out, dpi=75)


if __name__ == "__main__":
    main()
