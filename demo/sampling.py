"""Draw digits with the pack's own samplers: what the measurements, the sample sheet and the tests share."""

import torch
from torch import Tensor

from ..samplers import frames, grids, make_plan, run
from .model import DemoModel
from .text import context_of
from .vae import LATENT_CHANNELS


def sample(
    model: DemoModel, classes: Tensor, *, steps: int = 50, guidance: float = 1.0, seed: int = 0, solver: str = "ddim",
    size: tuple[int, int] = (8, 8), batch: int = 180,
) -> Tensor:
    """Latents [N, 4, h, w] of the ``classes`` [N] int64 in 0..10, from noise to sigma = 0 in ``steps`` solver steps.

    Step times are uniform in the model's own time. The same seed gives the same noise for every form, guidance and
    solver; ``batch`` (pictures per network call) changes results by rounding at most.
    """
    frame = frames.flow() if model.alphas_cumprod is None else frames.discrete_vp(model.alphas_cumprod).unit_alpha()
    grid = grids.uniform_t(frame, steps, end="zero")
    plan = make_plan(solver, frame, grid)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(classes), LATENT_CHANNELS, *size, generator=generator) * float(grid.sigma[0])
    parts = []
    for start in range(0, len(classes), batch):
        part = slice(start, start + batch)
        denoise = model.denoiser(context_of(classes[part]), guidance_scale=guidance)
        parts.append(run(plan, denoise, noise[part]))
    return torch.cat(parts)
