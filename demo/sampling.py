"""Draw digits with the pack's own samplers: what the measurements, the sample sheets and the tests share."""

import torch
from torch import Tensor

from ..samplers import Plan, frames, grids, make_plan, run
from ..samplers.frames import Frame
from .model import DemoModel
from .text import context_of
from .vae import LATENT_CHANNELS


def frame_of(model: DemoModel) -> Frame:
    """The frame that the model's denoiser works in: flow, or the schedule with alpha = 1."""
    return frames.flow() if model.alphas_cumprod is None else frames.discrete_vp(model.alphas_cumprod).unit_alpha()


@torch.no_grad()
def sample(
    model: DemoModel, classes: Tensor, *, steps: int = 50, guidance: float = 1.0, seed: int = 0, solver: str = "ddim",
    size: tuple[int, int] = (8, 8), batch: int = 180,
) -> Tensor:
    """Latents [N, 4, h, w] of the ``classes`` [N] int64 in 0..10, from noise to sigma = 0 in ``steps`` solver steps.

    Step times are uniform in the model's own time. The same seed gives the same noise for every form, guidance and
    solver; ``batch`` (pictures per network call) changes results by rounding at most.
    """
    frame = frame_of(model)
    plan = make_plan(solver, frame, grids.uniform_t(frame, steps, end="zero"))
    assert isinstance(plan, Plan)
    return draw(model, plan, classes, guidance=guidance, seed=seed, size=size, batch=batch)


def draw(
    model: DemoModel, plan: Plan, classes: Tensor, *, guidance: float = 1.0, seed: int = 0, size: tuple[int, int] = (8, 8),
    batch: int = 180,
) -> Tensor:
    """The same with any plan in `frame_of` the model."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(classes), LATENT_CHANNELS, *size, generator=generator) * plan.nodes[0].sigma
    parts = []
    for start in range(0, len(classes), batch):
        part = slice(start, start + batch)
        denoise = model.denoiser(context_of(classes[part]), guidance_scale=guidance)
        parts.append(run(plan, denoise, noise[part], seed=seed + start))
    return torch.cat(parts)
