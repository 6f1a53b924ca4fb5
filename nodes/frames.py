"""The noise frame of a host's model, found by how it behaves: no class names, so patched models are understood too."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..samplers.adapters import ModelTimes
    from ..samplers.frames import Frame

POINTS = 1001  # at which a continuous model's time is read off


def frame_of(model_sampling: Any) -> Frame:
    """The frame in which the host samples this model: the state x and the sigmas are its own.

    - start noise mixed as ``s*noise + (1-s)*latent``: rectified flow, sigma = t;
    - as ``latent + s*noise``, with a table whose entries the model knows by number: the model's own discrete schedule
      in the alpha = 1 frame, with the model's own time;
    - else any model with alpha = 1 (EDM), between its sigma_min and sigma_max, with the time that it tells its network, or
      time = sigma where that does not rise with the noise.

    Raises ScheduleError for a model that mixes its noise in another way.
    """
    from ..samplers import frames
    from ..samplers.errors import ScheduleError

    share = _signal_share(model_sampling)
    if all(abs(kept - (1.0 - s)) < 1e-4 for s, kept in share.items()):
        return frames.flow()
    if any(abs(kept - 1.0) > 1e-4 for kept in share.values()):
        raise ScheduleError(
            f"this model keeps {share} of the latent at these noise levels; FewStep knows 1 (noise and v prediction, EDM) "
            "and 1 - sigma (rectified flow): use another model, or remove the node that patches its sampling"
        )
    table = _own_table(model_sampling)
    if table is not None:
        return frames.discrete_vp(1.0 / (1.0 + table**2)).unit_alpha()
    return frames.Frame("unit", _own_time(model_sampling))


def sigma_range(model_sampling: Any) -> tuple[float, float]:
    """(sigma_min, sigma_max) of the model."""
    return float(model_sampling.sigma_min), float(model_sampling.sigma_max)


def own_shift(model_sampling: Any) -> float:
    """The time shift k of a flow model, sigma = k*u/(1 + (k-1)*u), read off at u = 1/2; 1 where there is none to find."""
    half = float(model_sampling.percent_to_sigma(0.5))
    return half / (1.0 - half) if 0.0 < half < 1.0 else 1.0


def model_times(model_sampling: Any) -> ModelTimes:
    """What trained times need of a model: its table of training steps, or that it is a flow and its shift."""
    from ..samplers.adapters.trained_times import ModelTimes

    if frame_of(model_sampling).scaling == "flow":
        return ModelTimes(True, shift=own_shift(model_sampling))
    table = getattr(model_sampling, "sigmas", None)
    if table is None or table.ndim != 1 or len(table) < 2:
        return ModelTimes(False)
    labels = model_sampling.timestep(table).double().tolist()
    rising = all(a < b for a, b in itertools.pairwise(labels))
    return ModelTimes(False, labels, table.double().tolist()) if rising else ModelTimes(False)


def _signal_share(model_sampling: Any) -> dict[float, float]:
    """How much of the latent is kept at two noise levels: ``noise_scaling(s, 0, 1)``."""
    import torch

    zero, one = torch.zeros(1, 1), torch.ones(1, 1)
    return {
        s: round(float(model_sampling.noise_scaling(torch.tensor([s]), zero.clone(), one.clone())), 6) for s in (0.25, 0.75)
    }


def _own_time(model_sampling: Any) -> Any:
    """The time map of a continuous model, read off at many noise levels."""
    import torch

    from ..samplers.errors import ScheduleError
    from ..samplers.time_tables import TabulatedTime
    from ..samplers.times import SigmaTime

    low, high = sigma_range(model_sampling)
    levels = torch.logspace(math.log10(low), math.log10(high), POINTS, dtype=torch.float64)
    levels[0], levels[-1] = low, high
    try:
        labels = model_sampling.timestep(levels).double()
        return TabulatedTime.from_points(labels.tolist(), (-levels.log()).tolist())
    except (ScheduleError, RuntimeError, TypeError, AttributeError):
        return SigmaTime(t_T=high, t_0=low)


def _own_table(model_sampling: Any) -> Any:
    """The model's sigma table in float64 if its entries are training steps: the model's time of each is a whole number."""
    table = getattr(model_sampling, "sigmas", None)
    if table is None or table.ndim != 1 or len(table) < 3:
        return None
    first, middle, last = 0, len(table) // 2, len(table) - 1
    steps = [float(model_sampling.timestep(table[i : i + 1])) for i in (first, middle, last)]
    whole = all(step >= 0 and step == round(step) for step in steps)
    even = (steps[1] - steps[0]) * (last - first) == (steps[2] - steps[0]) * (middle - first)
    return table.detach().cpu().double().numpy() if whole and even and steps[2] > steps[0] else None
