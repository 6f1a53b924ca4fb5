"""Measure the demo models: ``python -m fewstep.demo.measure`` writes demo/measured.json and demo/measured.md.

Three questions. Are samples recognised as the digit asked for? How far is their distribution from held-out real digits,
against real digits' own spread? Are they closer to training pictures than held-out pictures are (memorised)?
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import FORMS, classifier, data
from .model import load
from .sampling import sample

GUIDANCES = (1.0, 2.0, 4.0)
COPIES = 2  # times the 360 held-out labels: 720 samples, with the held-out class counts
DRAWS = 20


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Squared Frechet distance of the Gaussians fitted to features ``a`` [N, F] and ``b`` [M, F], float64.

    |mean difference|^2 + trace(Ca + Cb - 2 (Ca Cb)^(1/2)). It is biased upwards for few samples, so only values of the
    same N and M may be compared.
    """
    ca, cb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    # The product's eigenvalues are those of a symmetric positive matrix; rounding alone makes them slightly negative or complex.
    roots = np.sqrt(np.linalg.eigvals(ca @ cb).real.clip(min=0.0))
    gap = a.mean(axis=0) - b.mean(axis=0)
    return float(gap @ gap + np.trace(ca) + np.trace(cb) - 2.0 * roots.sum())


def features(latents: Tensor) -> np.ndarray:
    """Classifier features [N, 64] float64 of latents [N, 4, 8, 8]."""
    with torch.no_grad():
        return classifier.load().features(latents).double().numpy()


def pick(labels: np.ndarray, counts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Random row numbers, without repeats, with ``counts[digit]`` rows of each digit among ``labels`` [N]."""
    rows = [rng.permutation(np.flatnonzero(labels == digit))[: counts[digit]] for digit in range(10)]
    return np.concatenate(rows)


def halves(held: np.ndarray, held_labels: np.ndarray, other: np.ndarray, other_labels: np.ndarray) -> tuple[float, float]:
    """Mean and deviation over random draws of the distance between half of the held-out features and as many others.

    Both sides have the same count of each digit, else chance differences of those counts would be most of the distance.
    If ``other`` is ``held`` itself, the two are disjoint halves of it: the floor.
    """
    rng = np.random.default_rng(0)
    counts = np.bincount(held_labels, minlength=10) // 2
    values = []
    for _ in range(DRAWS):
        first = pick(held_labels, counts, rng)
        free = np.setdiff1d(np.arange(len(held)), first) if other is held else np.arange(len(other))
        second = free[pick(other_labels[free], counts, rng)]
        values.append(frechet(held[first], other[second]))
    return float(np.mean(values)), float(np.std(values))


def whole(held: np.ndarray, held_labels: np.ndarray, other: np.ndarray, other_labels: np.ndarray) -> tuple[float, float]:
    """The same for all 360 held-out features against as many random others of the same digits."""
    rng = np.random.default_rng(1)
    counts = np.bincount(held_labels, minlength=10)
    values = [frechet(held, other[pick(other_labels, counts, rng)]) for _ in range(DRAWS)]
    return float(np.mean(values)), float(np.std(values))


def neighbours(latents: Tensor, train: Tensor) -> np.ndarray:
    """Root-mean-square difference [N] of each latent to its nearest training latent."""
    nearest = torch.cdist(latents.flatten(1), train.flatten(1)).min(dim=1).values / latents[0].numel() ** 0.5
    distances: np.ndarray = nearest.numpy()
    return distances


def quality(drawn: Tensor, classes: Tensor, held: np.ndarray, held_labels: np.ndarray) -> dict[str, Any]:
    """Share recognised as the class asked for, over all and per class, and the two distances to held-out features."""
    right = (classifier.load().predict(drawn) == classes).float()
    found, labels = features(drawn), classes.numpy()
    return {
        "accuracy": right.mean().item(),
        "accuracy_per_class": [right[classes == digit].mean().item() for digit in range(10)],
        "fd_half": halves(held, held_labels, found, labels), "fd_whole": whole(held, held_labels, found, labels),
    }


def measure(steps: int, seed: int, solver: str) -> dict[str, Any]:
    """All numbers: ``real`` (reference values) and one entry of ``models`` per form and guidance."""
    train_part, held_part = data.load()
    train, held = train_part.latents(), held_part.latents()
    held_features, train_features = features(held), features(train)
    real_held = (held_features, held_part.labels.numpy())
    classes = held_part.labels.repeat(COPIES)
    moved = data.augmented_latents(train_part.images, torch.Generator().manual_seed(seed))
    near_held, near_moved = neighbours(held, train), neighbours(moved, train)
    threshold = float(np.quantile(near_held, 0.01))
    real = {
        "classifier_held_out_accuracy": (classifier.load().predict(held) == held_part.labels).float().mean().item(),
        "fd_half_count": int((held_part.labels.bincount() // 2).sum()), "fd_whole_count": len(held),
        "fd_half_held_out": halves(*real_held, *real_held),
        "fd_half_train": halves(*real_held, train_features, train_part.labels.numpy()),
        "fd_whole_train": whole(*real_held, train_features, train_part.labels.numpy()),
        "nearest_held_out_median": float(np.median(near_held)),
        "nearest_augmented_train_median": float(np.median(near_moved)),
        "nearest_held_out_1_percent": threshold,
        "augmented_train_below_that": float((near_moved < threshold).mean()),
    }
    rows = []
    for form in FORMS:
        model = load(form)
        for guidance in GUIDANCES:
            begin = time.monotonic()
            drawn = sample(model, classes, steps=steps, guidance=guidance, seed=seed, solver=solver)
            seconds = time.monotonic() - begin
            near = neighbours(drawn, train)
            rows.append({
                "form": form, "guidance": guidance, **quality(drawn, classes, *real_held),
                "nearest_median": float(np.median(near)), "below_held_out_1_percent": float((near < threshold).mean()),
                "latent_std": drawn.std().item(), "seconds": seconds,
            })
            print(json.dumps(rows[-1]), flush=True)
    return {"samples": len(classes), "steps": steps, "seed": seed, "solver": solver, "real": real, "models": rows}


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    real = result["real"]

    def spread(pair: tuple[float, float]) -> str:
        return f"{pair[0]:.2f} ± {pair[1]:.2f}"

    half, whole = real["fd_half_count"], real["fd_whole_count"]
    lines = [
        f"{result['samples']} samples per row, {result['steps']} {result['solver']} steps, seed {result['seed']}.", "",
        f"| form | guidance | recognised | FD, {half} | FD, {whole} | nearest training picture | nearer than 99 % of held-out |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['form']} | {r['guidance']:g} | {100 * r['accuracy']:.1f} % | {spread(r['fd_half'])} | {spread(r['fd_whole'])}"
        f" | {r['nearest_median']:.3f} | {100 * r['below_held_out_1_percent']:.1f} % |" for r in result["models"]
    ]
    lines += [
        f"| held-out real | | {100 * real['classifier_held_out_accuracy']:.1f} % | {spread(real['fd_half_held_out'])}"
        f" | | {real['nearest_held_out_median']:.3f} | 1.0 % |",
        f"| training real | | | {spread(real['fd_half_train'])} | {spread(real['fd_whole_train'])} | | |",
        f"| training real, augmented | | | | | {real['nearest_augmented_train_median']:.3f}"
        f" | {100 * real['augmented_train_below_that']:.1f} % |",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and write both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--solver", default="ddim")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", default=str(Path(__file__).parent), help="folder for measured.json and measured.md")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    result = measure(args.steps, args.seed, args.solver)
    (Path(args.out) / "measured.json").write_text(json.dumps(result, indent=1) + "\n")
    (Path(args.out) / "measured.md").write_text(table(result))
    print(table(result), flush=True)


if __name__ == "__main__":
    main()
