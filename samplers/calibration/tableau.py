"""A fitted plan's numbers: one evaluation per step, each step a combination of the state and of every output so far.

Step k, from node k to node k+1:

    ``y = scale_k X``,   ``D_k = D(y, told_k)``,   ``X <- x_k X + sum_{j<=k} m_kj D_j``.

``told_k`` is the noise level that the model is told, which may differ from the state's own, ``sigma_k``. Every deterministic
plan with scalar coefficients and falling levels has this form exactly, so any solver can be the start of a fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from ..errors import CalibrationError, PlanError
from ..frames import Frame
from ..grids import Grid, Node, from_sigmas
from ..plan import IDENTITY, Plan, Row, Stage
from ..predictions import change_frame
from .store import Calibration

SAME_SIGMA = 1e-5  # relative: a host hands sigmas over in float32, and may have computed them anew


@dataclass(frozen=True, eq=False)
class Tableau:
    """The numbers of one grid of M steps.

    Attributes:
        grid: the state's own nodes, M + 1 of them.
        told: noise levels that the model is told, in the grid's frame, [M].
        scale: factor on the state before an evaluation, [M].
        x: factor on the state in each step, [M].
        m: factors on the outputs, [M, M], lower triangular, oldest output first.
    """

    grid: Grid
    told: np.ndarray
    scale: np.ndarray
    x: np.ndarray
    m: np.ndarray

    @property
    def steps(self) -> int:
        """Number of steps and of evaluations."""
        return self.grid.steps

    @property
    def decay(self) -> np.ndarray:
        """``sigma_{k+1}/sigma_k`` [M]: the factor on the state that keeps the noise of a constant prediction right."""
        return np.asarray(self.grid.sigma[1:] / self.grid.sigma[:-1])

    @property
    def gain(self) -> np.ndarray:
        """``alpha_{k+1} - alpha_k sigma_{k+1}/sigma_k`` [M]: what a step's output coefficients add up to where x is ``decay``."""
        return np.asarray(self.grid.alpha[1:] - self.grid.alpha[:-1] * self.decay)

    @classmethod
    def from_weights(cls, grid: Grid, weights: np.ndarray) -> Tableau:
        """From weights [M, M] of the outputs in units of ``gain``: a row of sum 1 keeps a constant prediction exact."""
        ones = np.ones(grid.steps)
        blank = cls(grid, grid.sigma[:-1].copy(), ones, ones, np.asarray(weights))
        return cls(grid, blank.told, ones, blank.decay, np.tril(weights) * blank.gain[:, None])

    @classmethod
    def from_plan(cls, plan: Plan, frame: Frame) -> Tableau:
        """The same samples from any deterministic plan with scalar coefficients and no hooks.

        Raises PlanError naming what does not fit: noise, tensor coefficients, hooks, a start transform, coefficients that
        depend on the data, or evaluations whose levels do not fall.
        """
        reason = _misfit(plan)
        if reason:
            raise PlanError(f"this plan cannot start a fit: {reason}")
        levels = [stage.node.sigma for stage in plan.stages]
        # each state as a combination of x_T (first entry) and the outputs D_j
        states = _states(plan)
        if not all(abs(state[0]) > 0 for state in states[:-1]) or any(a <= b for a, b in pairwise(levels)):
            raise PlanError(f"this plan cannot start a fit: its evaluations do not lie at falling noise levels: {levels}")
        grid = from_sigmas(frame, [*levels, plan.nodes[-1].sigma])
        x = np.array([after[0] / before[0] for before, after in pairwise(states)])
        m = np.stack([after[1:] - c * before[1:] for c, (before, after) in zip(x, pairwise(states), strict=True)])
        scale = np.ones(len(x))
        scale[0] = states[0][0]
        return cls(grid, np.array(levels), scale, x * np.append(scale[0], np.ones(len(x) - 1)), m)

    def plan(self, nodes: Grid | None = None) -> Plan:
        """The plan; ``nodes`` replaces the grid that it names (the same but for rounding)."""
        frame, stages = self.grid.frame, []
        for k in range(self.steps):
            told = float(self.told[k])
            lambda_ = float(frame.lambda_of_sigma(told))
            node = Node(float(frame.t_of_lambda(lambda_)), float(frame.alpha_of_sigma(told)), told, lambda_)
            row = Row(x=float(self.x[k]), m={j: float(self.m[k, j]) for j in range(k + 1)})
            predict = IDENTITY if self.scale[k] == 1.0 else Row(x=float(self.scale[k]))
            stages.append(Stage(node, row, predict, step=k))
        return Plan(tuple(stages), (nodes or self.grid).nodes)

    def in_frame(self, frame: Frame) -> Tableau:
        """The same samples in a frame of another scaling.

        Raises CalibrationError where there is no such frame: a flow or VP state of pure noise has no place in one with alpha = 1.
        """
        own = self.grid.frame
        if own.scaling == frame.scaling:
            sigmas = self.grid.sigma
            return Tableau(from_sigmas(frame, sigmas), self.told, self.scale, self.x, self.m)
        told = own.lambda_of_sigma(self.told)
        if frame.scaling == "unit" and not np.all(np.isfinite([*told, self.grid.lambda_[0]])):
            raise CalibrationError("this fitted plan starts at pure noise, which has no finite sigma in a frame with alpha = 1")
        # a factor on the state at each node, own -> frame, and at each told level
        r = np.array([change_frame(1.0, own, frame, float(v)) for v in self.grid.lambda_])
        s = np.array([change_frame(1.0, own, frame, float(v)) for v in told])
        grid = from_sigmas(frame, frame.sigma_of_lambda(self.grid.lambda_))
        return Tableau(
            grid, np.asarray(frame.sigma_of_lambda(told)), self.scale * s / r[:-1], self.x * r[1:] / r[:-1],
            self.m * r[1:, None],
        )

    def check_grid(self, grid: Grid, name: str = "this fitted plan") -> None:
        """Raises CalibrationError, naming the sigmas to use, unless ``grid`` is the plan's own but for rounding."""
        own, given = self.grid.sigma, grid.sigma
        if len(own) != len(given) or not np.allclose(given, own, rtol=SAME_SIGMA, atol=0.0):
            raise CalibrationError(
                f"{name} was fitted to the {self.steps} steps {_listed(own)}, the sigmas given are {_listed(given)}: use the "
                "SIGMAS of the fitted solver's node (fitted_sigmas in Python); it does not work on part of them, as denoise "
                "below 1 would ask"
            )

    def tensors(self) -> dict[str, torch.Tensor]:
        """For a calibration file."""
        arrays = {"sigma": self.grid.sigma, "told": self.told, "scale": self.scale, "x": self.x, "m": self.m}
        return {name: torch.tensor(array, dtype=torch.float64) for name, array in arrays.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor], frame: Frame) -> Tableau:
        """From ``tensors()``, in the frame that they were made in."""
        arrays = {name: tensors[name].double().numpy() for name in ("sigma", "told", "scale", "x", "m")}
        steps = len(arrays["told"])
        shapes = {"sigma": (steps + 1,), "scale": (steps,), "x": (steps,), "m": (steps, steps)}
        wrong = [name for name, shape in shapes.items() if arrays[name].shape != shape]
        if wrong:
            raise CalibrationError(f"the fitted plan's '{wrong[0]}' has shape {arrays[wrong[0]].shape}, not {shapes[wrong[0]]}")
        return cls(from_sigmas(frame, arrays["sigma"]), arrays["told"], arrays["scale"], arrays["x"], arrays["m"])

    @classmethod
    def from_calibration(cls, calibration: Calibration, frame: Frame) -> Tableau:
        """The numbers of a file, in ``frame``; raises CalibrationError where they are incomplete or do not fit the frame."""
        try:
            scaling = calibration.meta["scaling"]
            own = frame if frame.scaling == scaling else Frame(scaling, frame.time)
            made = cls.from_tensors(calibration.tensors, own)
        except KeyError as error:
            raise CalibrationError(f"the fitted plan's file lacks {error}; make it again") from error
        return made.in_frame(frame)


def _states(plan: Plan) -> list[np.ndarray]:
    """The state of each evaluation, and the result, as combinations of x_T and the outputs D_j: vectors [1 + M]."""
    count = len(plan.stages)
    start = np.eye(1 + count)[0]
    x, stored, states = start, list[np.ndarray](), list[np.ndarray]()

    def apply(row: Row) -> np.ndarray:
        total = float(row.x) * x + float(row.x_T) * start  # type: ignore[arg-type]
        for j, c in row.m.items():
            total = total + float(c) * stored[j]  # type: ignore[arg-type]
        return np.asarray(total)

    for k, stage in enumerate(plan.stages):
        y = apply(stage.predict)
        states.append(y)
        p, q = stage.store
        stored.append(p * y + q * np.eye(1 + count)[1 + k])
        x = y if stage.carry is stage.predict else apply(stage.carry)
    return [*states, apply(plan.final)]


def _misfit(plan: Plan) -> str | None:
    if not isinstance(plan, Plan):
        return "it chooses its steps while running"
    if plan.stochastic:
        return "it adds noise"
    if plan.start is not None or plan.hooks:
        return "it acts on the data beyond its coefficients (a start transform or a hook)"
    if plan.late or any(True for row in plan.rows() for _ in row.tensors()):
        return "its coefficients are not plain numbers"
    return None


def _listed(sigmas: np.ndarray) -> str:
    return "[" + ", ".join(f"{v:.6g}" for v in sigmas) + "]"
