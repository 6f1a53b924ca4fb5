"""The demo model ready to sample from: a network, its schedule, and the map from network output to clean latents."""

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from . import FORMS, weights
from .errors import DemoError
from .network import DemoNet
from .schedule import TRAIN_STEPS, alphas_cumprod, k_sigmas

Denoiser = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class DemoModel:
    """One form of the demo.

    ``prediction`` is "eps", "v" or "flow". ``alphas_cumprod`` is float64 [1000] for eps and v, and none for flow, whose
    noise level s in [0, 1] is the time itself.
    """

    net: DemoNet
    form: str
    prediction: str
    alphas_cumprod: np.ndarray | None
    metadata: dict[str, str]

    def denoiser(self, context: Tensor, negative_context: Tensor | None = None, guidance_scale: float = 1.0) -> Denoiser:
        """D(x, sigma) -> x0: ``x`` [B, 4, H, W] and ``sigma`` [B] (or a scalar tensor) -> clean prediction [B, 4, H, W].

        eps and v: ``x`` = x0 + sigma * noise, sigma in 0.029..14.6 (the alpha = 1 frame of k-diffusion). flow:
        ``x`` = (1 - s) * x0 + s * noise with ``sigma`` = s. ``context`` is [B, T, 11] or [1, T, 11]; the negative one
        (the null class if none is given) counts only where ``guidance_scale`` is not 1; then
        x0 = negative + scale * (positive - negative), both from one batch of 2B.
        """
        guided = guidance_scale != 1.0
        negative = torch.zeros_like(context) if negative_context is None else negative_context
        log_sigmas = None
        if self.alphas_cumprod is not None:
            log_sigmas = torch.from_numpy(np.log(k_sigmas(self.alphas_cumprod))).to(context.device, torch.float32)

        def predict(x: Tensor, timesteps: Tensor) -> Tensor:
            """Network output [B, 4, H, W], at least float32, guided if asked for."""
            positive = context.expand(len(x), -1, -1)
            if not guided:
                plain: Tensor = self.net(x, timesteps, positive)
                return plain.float()
            # Tokens are averaged, so prompts of different lengths are averaged first to share one batch.
            both = torch.cat([positive.mean(1, keepdim=True), negative.expand(len(x), -1, -1).mean(1, keepdim=True)])
            out: Tensor = self.net(torch.cat([x, x]), torch.cat([timesteps, timesteps]), both)
            wanted, unwanted = out.float().chunk(2)
            # x0 is linear in the output with the same factors for both, so guiding the output is guiding x0.
            return unwanted + guidance_scale * (wanted - unwanted)

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            # Noise levels need more digits than a half-precision state has: 8 bits would mix up neighbouring steps.
            level = sigma.to(x.device, torch.promote_types(x.dtype, torch.float32)).expand(len(x))
            s = level.reshape(-1, 1, 1, 1)
            if log_sigmas is None:
                return (x - s * predict(x, TRAIN_STEPS * level)).to(x.dtype)
            # The nearest trained step in log sigma, as ComfyUI picks it; the network has only seen whole steps.
            steps = (level.float().log()[:, None] - log_sigmas[None]).abs().argmin(dim=1)
            scale = (s**2 + 1).sqrt()
            out = predict(x / scale, steps.float())
            if self.prediction == "eps":
                return (x - s * out).to(x.dtype)
            return (x / scale**2 - out * s / scale).to(x.dtype)

        return denoise


@functools.cache
def load(form: str) -> DemoModel:
    """The shipped model of ``form`` in float32 on the CPU, one per form: copy it before moving it."""
    if form not in FORMS:
        raise DemoError(f"the demo has the forms {', '.join(FORMS)}; got {form!r}")
    state, metadata = weights.load(weights.path_of(form), form)
    net = DemoNet(**json.loads(metadata["settings"]))
    weights.fill(net, state, weights.path_of(form).name)
    schedule = None if form == "flow" else alphas_cumprod()
    return DemoModel(net.eval().requires_grad_(False), form, form, schedule, metadata)
