"""A grid of nodes and one node: levels, times and how both are made from a frame; the named grids are in ``grids``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np

from .errors import ScheduleError, check_choice
from .frames import Frame

End = Literal["stop", "zero"]


class Node(NamedTuple):
    """One point of the schedule, as Python floats (float64). ``t`` is NaN where the schedule has no such time."""

    t: float
    alpha: float
    sigma: float
    lambda_: float

    @property
    def rho(self) -> float:
        """sigma/alpha, the noise level in the alpha = 1 frame; inf where alpha is 0."""
        return self.sigma / self.alpha if self.alpha else float("inf")


@dataclass(frozen=True, eq=False)
class Grid:
    """Nodes of a schedule from noise to data; build one with the functions of this module.

    Attributes:
        frame: where alpha and sigma come from.
        sigma, alpha, lambda_, t: float64 arrays of ``steps + 1`` values; lambda rises strictly.
        end: ``"stop"`` or ``"zero"``, see the module's text.
    """

    frame: Frame
    sigma: np.ndarray
    alpha: np.ndarray
    lambda_: np.ndarray
    t: np.ndarray
    end: End

    def __post_init__(self) -> None:
        _check_falling(self.sigma, self.lambda_)
        if (self.sigma[-1] == 0) != (self.end == "zero"):
            raise ScheduleError(f"the grid's end is '{self.end}' but its last sigma is {float(self.sigma[-1])}")

    @property
    def steps(self) -> int:
        """Number of steps, one less than the nodes."""
        return len(self.sigma) - 1

    def node(self, i: int) -> Node:
        """Node ``i`` as Python floats."""
        return self.nodes[i]

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """All nodes, noise first."""
        columns = (getattr(self, name).tolist() for name in Node._fields)
        return tuple(map(Node, *columns))


def _check_falling(sigma: np.ndarray, lambda_: np.ndarray) -> None:
    if sigma.ndim != 1 or len(sigma) < 2:
        raise ScheduleError(f"a grid needs at least 2 sigmas in one dimension, got shape {sigma.shape}")
    if not np.all(np.isfinite(sigma)):
        raise ScheduleError(f"sigma[{int(np.argmin(np.isfinite(sigma)))}] is not a finite number")
    if np.any(sigma < 0):
        raise ScheduleError(f"sigma[{int(np.argmax(sigma < 0))}] is negative: {float(sigma[np.argmax(sigma < 0)])}")
    if np.any(sigma[:-1] == 0):
        raise ScheduleError(f"sigma[{int(np.argmax(sigma == 0))}] is 0; only the last sigma may be 0")
    if not np.all(np.diff(lambda_) > 0) or not np.all(np.diff(sigma) < 0):
        i = int(np.argmax(~((np.diff(lambda_) > 0) & (np.diff(sigma) < 0))))
        what = "repeats" if sigma[i] == sigma[i + 1] else "does not fall"
        raise ScheduleError(
            f"the grid {what} at step {i}: sigma {float(sigma[i])} is followed by {float(sigma[i + 1])}; "
            "sigmas must fall strictly from noise to data (sort them, drop repeated ones, or ask for fewer steps)"
        )


def node_at_lambda(frame: Frame, lambda_: float) -> Node:
    """A node of the schedule that lies between two grid nodes (inner stages of singlestep methods)."""
    return Node(
        float(frame.t_of_lambda(lambda_)), float(frame.alpha_of_lambda(lambda_)),
        float(frame.sigma_of_lambda(lambda_)), float(lambda_),
    )


def from_sigmas(frame: Frame, sigmas: Sequence[float] | Any) -> Grid:
    """Any strictly falling list of the frame's sigmas; the end is ``"zero"`` if the last one is 0.

    Takes lists, numpy arrays and CPU tensors. The sigmas stay exactly as given: the denoiser sees them.
    """
    if hasattr(sigmas, "detach"):
        sigmas = sigmas.detach().cpu().double().numpy()
    try:
        sigma = np.array(sigmas, np.float64)
    except (TypeError, ValueError) as error:
        raise ScheduleError(f"sigmas must be a list of numbers, got {type(sigmas).__name__}: {error}") from None
    if sigma.ndim != 1 or len(sigma) < 2:
        raise ScheduleError(f"a grid needs at least 2 sigmas in one dimension, got shape {sigma.shape}")
    if not np.all(np.isfinite(sigma)):
        raise ScheduleError(f"sigma[{int(np.argmin(np.isfinite(sigma)))}] is not a finite number")
    lambda_ = frame.lambda_of_sigma(sigma)
    return Grid(
        frame, sigma, frame.alpha_of_sigma(sigma), lambda_, frame.t_of_lambda(lambda_),
        "zero" if sigma[-1] == 0 else "stop",
    )


def from_times(frame: Frame, t: Any, *, end: End) -> Grid:
    """Nodes at the times ``t`` (falling); with ``end="zero"`` one node at sigma = 0 is added."""
    times = np.array(t, np.float64)
    return from_lambdas(frame, frame.lambda_(times), end, times)


def from_lambdas(frame: Frame, lambda_: np.ndarray, end: End, t: np.ndarray | None = None) -> Grid:
    """Nodes at rising ``lambda_``, whose times are ``t`` where they are known; with ``end="zero"`` one at sigma = 0 is added."""
    check_choice("end", end, ("stop", "zero"))
    t = frame.t_of_lambda(lambda_) if t is None else t
    if end == "zero":
        lambda_ = np.append(lambda_, np.inf)
        t = np.append(t, np.nan)
    return Grid(frame, frame.sigma_of_lambda(lambda_), frame.alpha_of_lambda(lambda_), lambda_, t, end)
