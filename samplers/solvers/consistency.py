"""Samplers of distilled models: multistep consistency sampling and trajectory consistency (TCD).

Consistency sampling (Song et al. 2023, algorithm 1; Luo et al. 2023, LCM; Yin et al. 2024, DMD2) takes the x_0 prediction
for the result and noises it again to the next level. TCD (Zheng et al. 2024, algorithm 4) steps to a lower level than the
next one and adds only the noise that is missing.
"""

from __future__ import annotations

import math
from typing import Literal

from ..errors import check_choice, check_range
from ..frames import Frame
from ..grids import Grid, Node
from ..plan import IDENTITY, Plan, Row, Stage
from ..times import DiscreteTime
from .dpm_sde import check_eta, renewed_row

Start = Literal["state", "noise"]


def consistency(grid: Grid, *, start: Start = "state", s_noise: float = 1.0) -> Plan:
    """``x' = alpha' D + sigma' xi``: nothing of the old state is kept. LCM, DMD2, PCM's stochastic form, one-step models.

    Args:
        start: ``state``: the first evaluation sees the state. ``noise``: it sees the same noise scaled to what the network
            takes for unit noise, as one-step models expect that start at a low time (DMD2 at t = 399, Hyper-SD at t = 800);
            only for a start from an empty latent.
        s_noise: factor on the added noise; other than 1 it biases the law of the samples.
    """
    check_choice("start", start, ("state", "noise"))
    check_eta(0.0, s_noise)
    stages = []
    for i in range(grid.steps):
        s, t = grid.node(i), grid.node(i + 1)
        predict = _unit_noise(grid.frame, s) if i == 0 and start == "noise" else IDENTITY
        stages.append(Stage(s, renewed_row(s, t, {i: 1.0}, 0.0, s_noise * t.rho), predict, step=i))
    return Plan(tuple(stages), grid.nodes)


def _unit_noise(frame: Frame, node: Node) -> Row:
    """From ``sigma*z`` to what the network's input scaling turns into z: the alpha = 1 frame divides by sqrt(1 + sigma^2)."""
    return Row(x=(math.sqrt(1.0 + node.sigma**2) if frame.scaling == "unit" else 1.0) / node.sigma)


def tcd(grid: Grid, *, gamma: float = 0.3, s_noise: float = 1.0) -> Plan:
    """Strategic stochastic sampling: DDIM to time ``(1 - gamma) t'``, then noise up to the next node's t'.

    Args:
        gamma: 0 is DDIM, 1 renews nearly all noise. The papers use 0.3.
        s_noise: factor on the added noise.

    Times are the model's own; on a discrete schedule ``(1 - gamma) t'`` is rounded down to a training step. The published
    sampler ends at training step 0 and leaves its noise (sigma 0.03) in the result; a grid that ends in 0 does not.
    """
    check_range("gamma", gamma, 0.0, 1.0)
    check_eta(0.0, s_noise)
    stages = []
    for i in range(grid.steps):
        s, t = grid.node(i), grid.node(i + 1)
        kept = min(_level_below(grid.frame, t, gamma), t.rho) if gamma else t.rho
        added = math.sqrt((t.rho - kept) * (t.rho + kept))
        stages.append(Stage(s, renewed_row(s, t, {i: 1.0}, kept, s_noise * added), step=i))
    return Plan(tuple(stages), grid.nodes)


def _level_below(frame: Frame, node: Node, gamma: float) -> float:
    """sigma/alpha at ``1 - gamma`` of the node's time."""
    if node.sigma == 0:
        return 0.0
    label = float(frame.time.model_time(node.t))
    if isinstance(frame.time, DiscreteTime) and abs(label - round(label)) < 1e-3:
        t = frame.time.t_of_model_time(math.floor((1.0 - gamma) * round(label) + 1e-9))
    else:
        t = max((1.0 - gamma) * node.t, frame.time.t_min)
    return math.exp(-float(frame.lambda_(t)))
