"""The training times of a model as a table: index t, 0 (data) to N - 1 (noise), with alpha and sigma at each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import ScheduleError, check_integer
from ..frames import Frame
from ..predictions import Kind, to_x_0


@dataclass(frozen=True, eq=False)
class TimeTable:
    """``alpha`` and ``sigma`` [N] float64 on the CPU: ``x_t = alpha[t]*x_0 + sigma[t]*eps``."""

    alpha: Tensor
    sigma: Tensor

    @classmethod
    def of(cls, frame: Frame, steps: int = 1000) -> TimeTable:
        """Index i at the frame's time (i+1)/``steps``: the training steps of a discrete model, a thousandth of a flow.

        Raises ScheduleError for a frame whose state is not the network's (alpha = 1), or whose time does not end at 1.
        """
        check_integer("steps", steps, 2, 100_000)
        if frame.scaling == "unit" or frame.time.t_max != 1.0:
            raise ScheduleError("training needs the model's own frame, VP or flow, with a time from 0 to 1")
        t = np.arange(1, steps + 1) / steps
        with torch.inference_mode(False):  # tensors of a host that infers could not be multiplied with a gradient
            return cls(torch.as_tensor(frame.alpha(t)), torch.as_tensor(frame.sigma(t)))

    def at(self, t: int | Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma at index ``t`` (one, or int64 [B]) in the dtype and on the device of ``x``, shaped to broadcast."""
        index = torch.as_tensor(t).cpu().reshape(-1, *(1,) * (x.ndim - 1))
        return self.alpha[index].to(x), self.sigma[index].to(x)

    def noise_of(self, x: Tensor, x_0: Tensor, t: int | Tensor) -> Tensor:
        """The noise that ``x`` at ``t`` holds beside ``x_0``: (x - alpha x_0)/sigma."""
        alpha, sigma = self.at(t, x)
        return (x - alpha * x_0) / sigma

    def ddim(self, x: Tensor, x_0: Tensor, t: int | Tensor, t_next: int | Tensor) -> Tensor:
        """The state at ``t_next`` with the same x_0 and noise as ``x`` at ``t`` (DDIM, Song et al. 2021, eta 0)."""
        alpha, sigma = self.at(t_next, x)
        return alpha * x_0 + sigma * self.noise_of(x, x_0, t)


def denoiser_on(
    table: TimeTable, network: Callable[[Tensor, Tensor, Tensor], Tensor], kind: Kind
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """``D(x, t, prompts) -> x_0`` from ``network(x, t, prompts)``, which predicts ``kind`` at state ``x`` and index ``t``."""

    def denoise(x: Tensor, t: Tensor, prompts: Tensor) -> Tensor:
        alpha, sigma = table.at(t, x)
        out: Tensor = to_x_0(kind, network(x, t, prompts).to(x.dtype), x, alpha, sigma)
        return out

    return denoise
