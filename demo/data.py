"""Training data: scikit-learn's handwritten digits as latents, split once and for all, with light augmentation."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .vae import to_latent

SPLIT_SEED = 0
HELD_OUT = 360  # of 1797, about a fifth, stratified by class

# Standard deviations of the augmentation, in source pixels (of 8), degrees and relative scale: small enough that a digit
# stays inside its frame and a 6 stays a 6, large enough that no two epochs show the same picture.
SHIFT_STD = 0.25
ROTATION_STD = 4.0
SCALE_STD = 0.03


@dataclass(frozen=True)
class Digits:
    """One part of the data: 8x8 pictures ``[N, 1, 8, 8]`` in [0, 1] and labels ``[N]`` int64 in 0..9."""

    images: Tensor
    labels: Tensor

    def latents(self) -> Tensor:
        """Unaugmented latents ``[N, 4, 8, 8]``, about zero mean and unit deviation over all."""
        return to_latent(render(self.images))


def load() -> tuple[Digits, Digits]:
    """The fixed stratified split: 1437 pictures to train on and 360 held out, always the same ones."""
    # Imported here because only training and measuring need scikit-learn; using the model does not.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    train, held = train_test_split(
        np.arange(len(bunch.target)), test_size=HELD_OUT, stratify=bunch.target, random_state=SPLIT_SEED
    )
    images = torch.tensor(bunch.images / 16.0, dtype=torch.float32)[:, None]
    labels = torch.tensor(bunch.target, dtype=torch.int64)
    return Digits(images[train], labels[train]), Digits(images[held], labels[held])


def render(images: Tensor, affine: Tensor | None = None) -> Tensor:
    """Resample ``[B, 1, 8, 8]`` in [0, 1] to ``[B, 1, 16, 16]`` in [0, 1], bicubic, clamped.

    ``affine`` ``[B, 2, 3]`` maps output to input coordinates (both in [-1, 1]); none means plain enlargement.
    """
    if affine is None:
        affine = torch.eye(2, 3).expand(len(images), -1, -1)
    grid = F.affine_grid(affine, [len(images), 1, 16, 16], align_corners=False)
    return F.grid_sample(images, grid, mode="bicubic", padding_mode="border", align_corners=False).clamp(0.0, 1.0)


def augmented_latents(images: Tensor, generator: torch.Generator) -> Tensor:
    """Randomly shifted, turned and scaled ``[B, 1, 8, 8]`` -> latents ``[B, 4, 8, 8]``."""
    draw = torch.randn(len(images), 4, generator=generator).clamp(-2.5, 2.5)
    angle = draw[:, 0] * np.deg2rad(ROTATION_STD)
    scale = torch.exp(draw[:, 1] * SCALE_STD)
    shift = draw[:, 2:] * (SHIFT_STD / 4.0)  # the 8 source pixels span 2 in grid coordinates
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    rows = [torch.stack([cos, -sin, shift[:, 0]], dim=1), torch.stack([sin, cos, shift[:, 1]], dim=1)]
    return to_latent(render(images, torch.stack(rows, dim=1)))
