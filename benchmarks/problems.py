"""Models whose probability-flow ODE can be solved exactly: analytic mixtures and the demo models, with guidance.

States are in the frame that ComfyUI and k-diffusion use: alpha = 1 for noise- and v-prediction models (sigma 14.6 to 0 on
Stable Diffusion's schedule), flow for flow models (sigma 1 to 0). They are float64; the demo's network computes in float32, as
it does in a host.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch

from ..demo.model import load
from ..demo.schedule import alphas_cumprod
from ..demo.text import context_of
from ..samplers import frames, grids
from ..samplers.analytic import GaussianMixture, start_noise
from ..samplers.frames import Frame
from ..samplers.predictions import denoiser_of

Denoiser = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
GUIDANCES = (1.0, 2.0, 4.0, 7.5)
GRIDS = ("karras", "exponential", "uniform_t", "quadratic_t", "beta", "kl_optimal", "trailing", "linspace", "beta, stop")
FLOW_GRIDS = ("uniform_t", "even", "trailing", "trailing, shift 3", "beta", "uniform_lambda", "kl_optimal", "linspace, from 1",
              "beta, stop", "beta 0.9, 0.7", "beta 0.9, 0.8")
SPECIAL: dict[str, tuple[str, Callable[[int], dict[str, Any]]]] = {
    "even": ("uniform_t", lambda steps: {"t_0": 1.0 / steps} if steps > 1 else {}),  # as nodes.schedule has it on flow models
    "trailing, shift 3": ("trailing", lambda steps: {"shift": 3.0}),
    # diffusers' SA-Solver: even in time down to the last trained level, where it stops without a step to 0
    "linspace": ("uniform_t", lambda steps: {"end": "stop"}),
    "beta, stop": ("beta", lambda steps: {"end": "stop"}),
    # fewer steps near the picture, as flow models want; from where lambda is finite
    "beta 0.9, 0.7": ("beta", lambda steps: {"a": 0.9, "b": 0.7, "t_T": 1 - 1e-6}),
    "beta 0.9, 0.8": ("beta", lambda steps: {"a": 0.9, "b": 0.8, "t_T": 1 - 1e-6}),
    # diffusers' UniPC on flow models: from 1 less 1e-6, where lambda is finite, even towards 0.001 but for a last step to 0
    "linspace, from 1": ("uniform_t", lambda steps: {"t_T": 1 - 1e-6, "t_0": min(0.9, 1 - 0.999 * (steps - 1) / steps)}),
}


@dataclass(frozen=True, eq=False)
class Problem:
    """One model: ``make(guidance)`` gives its denoiser in ``frame``.

    Attributes:
        prediction: what the network predicts ("eps", "v" or "flow"), for peers that ask.
        noise: unit noise [B, 4, 8, 8], float64; a run starts at sigma_1 times it, sigma_1 being its own first sigma.
        rtol: of the exact solution.
    """

    name: str
    prediction: str
    frame: Frame
    make: Callable[[float], Denoiser]
    noise: torch.Tensor
    rtol: float = 1e-9
    solutions: dict[float, torch.Tensor] = field(default_factory=dict)

    @property
    def flow(self) -> bool:
        """Whether the frame is a flow frame."""
        return self.frame.scaling == "flow"

    @cached_property
    def sigma_max(self) -> float:
        """The first sigma of the model's own schedule."""
        return float(self.frame.sigma(self.frame.time.t_T))

    def grid_names(self) -> tuple[str, ...]:
        """The grids that every method which takes a list of sigmas is tried on."""
        return FLOW_GRIDS if self.flow else GRIDS

    def sigmas(self, grid: str, steps: int) -> np.ndarray:
        """``steps + 1`` falling sigmas of the named grid, the last one 0 unless the grid stops above it."""
        kind, options = SPECIAL.get(grid, (grid, lambda steps: {}))
        sigma: np.ndarray = grids.GRIDS[kind](self.frame, steps, **{"end": "zero", **options(steps)}).sigma
        return sigma

    def solution(self, guidance: float) -> torch.Tensor:
        """The exact solution of the ODE from ``sigma_max`` times the noise to the schedule's last sigma, and x_0 there.

        That last step is every sampler's: below its last sigma the model has no training. By SciPy's DOP853.
        """
        if guidance not in self.solutions:
            stop = float(self.frame.sigma(self.frame.time.t_0))
            start = self.noise * self.sigma_max
            self.solutions[guidance] = solve(self.make(guidance), start, self.sigma_max, stop, self.rtol)
        return self.solutions[guidance]

    def error(self, result: torch.Tensor, guidance: float) -> float:
        """Root mean square of the difference to the exact end, over that of the end itself."""
        exact = self.solution(guidance)
        return float((result.double() - exact).square().mean().sqrt() / exact.square().mean().sqrt())


def solve(denoiser: Denoiser, x: torch.Tensor, start: float, stop: float, rtol: float) -> torch.Tensor:
    """The denoiser's x_0 at the end of ``dx/dsigma = (x - D)/sigma`` (alpha = 1 and flow alike) from ``start`` to ``stop``."""
    from scipy.integrate import solve_ivp

    def slope(s: float, flat: np.ndarray) -> np.ndarray:
        y = torch.from_numpy(flat).view(x.shape)
        out: np.ndarray = ((y - denoiser(y, torch.full((len(x),), s, dtype=torch.float64))) / s).flatten().numpy()
        return out

    done = solve_ivp(slope, (start, stop), x.flatten().numpy(), "DOP853", rtol=rtol, atol=rtol)
    assert done.success, done.message
    end = torch.from_numpy(done.y[:, -1].copy()).view(x.shape)
    return denoiser(end, torch.full((len(x),), stop, dtype=torch.float64))


def mixture(name: str, frame: Frame, seed: int, batch: int) -> Problem:
    """An analytic mixture of the testbed: every pixel is an independent draw from 5 Gaussians over 4 channels."""
    model = GaussianMixture.make(seed)
    prediction = "flow" if frame.scaling == "flow" else "eps"
    return Problem(name, prediction, frame, lambda g: model.denoiser(frame, g), start_noise(100 + seed, (batch, 4, 8, 8)))


def digits(form: str, batch: int) -> Problem:
    """A demo model on the digits 0, 1, ... as prompts; its network is told the time between the trained steps too."""
    demo = load(form)
    net: Any = demo.net
    context = context_of(torch.arange(batch) % 10)
    vp = frames.flow() if form == "flow" else frames.discrete_vp(demo.alphas_cumprod)

    def make(guidance: float) -> Denoiser:
        @torch.no_grad()
        def network(x: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
            x, label = x.float(), (label * 1000.0 if form == "flow" else label).float().expand(len(x))
            if guidance == 1.0:
                out: torch.Tensor = net(x, label, context).double()
                return out
            both = net(torch.cat([x, x]), torch.cat([label, label]), torch.cat([context, torch.zeros_like(context)]))
            wanted, unwanted = both.double().chunk(2)
            guided: torch.Tensor = unwanted + guidance * (wanted - unwanted)
            return guided

        inner = denoiser_of(network, vp, form)  # type: ignore[arg-type]
        if form == "flow":
            return inner

        def denoiser(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            alpha = (1 + sigma.double().reshape(-1) ** 2) ** -0.5
            scaled = alpha.reshape(-1, *(1,) * (x.ndim - 1)) * x
            denoised: torch.Tensor = inner(scaled, (sigma.reshape(-1) * alpha).expand(len(x)))
            return denoised

        return denoiser

    frame = vp if form == "flow" else vp.unit_alpha()
    return Problem(f"digits_{form}", form, frame, make, start_noise(7, (batch, 4, 8, 8)), 1e-6)


PROBLEMS: dict[str, Callable[[int], Problem]] = {
    "mixture_vp": lambda batch: mixture("mixture_vp", frames.discrete_vp(alphas_cumprod()).unit_alpha(), 0, batch),
    "mixture_flow": lambda batch: mixture("mixture_flow", frames.flow(), 1, batch),
    "digits_eps": lambda batch: digits("eps", batch),
    "digits_v": lambda batch: digits("v", batch),
    "digits_flow": lambda batch: digits("flow", batch),
}
